use std::fmt;
use std::str::FromStr;

use crate::size::{SizeError, parse_size};

/// A number of bytes.
///
/// Displays exactly, in the largest unit that divides it: `5 MiB`, `1000 B`. [`parse_size`] reads
/// that back.
///
/// ```
/// use ovl_quota::Bytes;
///
/// assert_eq!(Bytes::new(5 << 20).to_string(), "5 MiB");
/// assert_eq!(Bytes::new(1000).to_string(), "1000 B");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(u64);

impl Bytes {
    /// None.
    pub const ZERO: Self = Self(0);

    /// This many bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The blocks that hold these bytes, the last one filled in part: 1 to 512 bytes are one block.
    ///
    /// `None` if the blocks together are more bytes than 64 bits count. The kernel would multiply
    /// such a number to 0, which it reads as "no limit".
    #[must_use]
    pub const fn to_blocks_ceil(self) -> Option<BasicBlocks> {
        let blocks = BasicBlocks(self.0.div_ceil(BasicBlocks::SIZE));
        match blocks.to_bytes() {
            Some(_) => Some(blocks),
            None => None,
        }
    }

    /// The blocks that these bytes fill, a rest left out.
    #[must_use]
    pub const fn to_blocks_floor(self) -> BasicBlocks {
        BasicBlocks(self.0 / BasicBlocks::SIZE)
    }

    /// What is left after taking `other` away, at least nothing.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let (mut number, mut unit) = (self.0, 0);
        while number != 0 && number % 1024 == 0 && unit + 1 < UNITS.len() {
            number /= 1024;
            unit += 1;
        }
        write!(f, "{number} {}", UNITS[unit])
    }
}

impl FromStr for Bytes {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        parse_size(text)
    }
}

/// A number of blocks of 512 bytes, the unit of `Q_XSETQLIM` and `Q_XGETQUOTA` on every file
/// system, whatever its own block size.
#[doc(alias = "BB")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BasicBlocks(u64);

impl BasicBlocks {
    /// Bytes in a block (`BBSIZE` in `xfs_fs.h`).
    pub const SIZE: u64 = 512;

    /// This many blocks.
    #[must_use]
    pub const fn new(blocks: u64) -> Self {
        Self(blocks)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The bytes in these blocks; `None` if 64 bits do not count them.
    #[must_use]
    pub const fn to_bytes(self) -> Option<Bytes> {
        match self.0.checked_mul(Self::SIZE) {
            Some(bytes) => Some(Bytes(bytes)),
            None => None,
        }
    }
}

impl fmt::Display for BasicBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks of {} bytes", self.0, Self::SIZE)
    }
}
