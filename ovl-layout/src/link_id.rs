use std::fmt;
use std::str::FromStr;

use crate::{LINK_ID_ENTROPY, LINK_ID_LEN};

const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The short name of a layer's `diff` under `l/`: 26 symbols of RFC 4648 base 32, upper case,
/// unpadded.
///
/// ```
/// use ovl_layout::LinkId;
///
/// let link = LinkId::from_entropy([0; 17]);
/// assert_eq!(link.as_str(), "AAAAAAAAAAAAAAAAAAAAAAAAAA");
/// assert_eq!(link.as_str().parse::<LinkId>()?, link);
/// # Ok::<(), ovl_layout::LinkIdError>(())
/// ```
///
/// # Compatibility
///
/// The same construction as Docker's `overlayutils.GenerateID(26)`: the first 26 symbols of 17
/// random bytes in standard base 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId([u8; LINK_ID_LEN]);

impl LinkId {
    /// Encodes 17 random bytes. The caller supplies the randomness, so this is a pure function.
    #[must_use]
    #[doc(alias = "GenerateID")]
    pub fn from_entropy(bytes: [u8; LINK_ID_ENTROPY]) -> Self {
        let mut symbols = [0; LINK_ID_LEN];
        for (index, symbol) in symbols.iter_mut().enumerate() {
            let bit = index * 5;
            let high = u16::from(bytes[bit / 8]) << 8;
            let low = bytes.get(bit / 8 + 1).copied().map_or(0, u16::from);
            let value = ((high | low) >> (11 - bit % 8)) & 0x1f;
            *symbol = ALPHABET[usize::from(value)];
        }
        Self(symbols)
    }

    /// The id as text, always [`LINK_ID_LEN`] bytes.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Every constructor admits symbols of the alphabet only.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Reads the contents of a `link` file. One trailing newline is tolerated.
    ///
    /// # Errors
    ///
    /// [`LinkIdError`] when what is left is not exactly 26 symbols.
    pub fn parse_file(contents: &[u8]) -> Result<Self, LinkIdError> {
        Self::from_bytes(contents.strip_suffix(b"\n").unwrap_or(contents))
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, LinkIdError> {
        let symbols: [u8; LINK_ID_LEN] = bytes
            .try_into()
            .map_err(|_| LinkIdError::Length { len: bytes.len() })?;
        let is_foreign = |symbol: &u8| !matches!(symbol, b'A'..=b'Z' | b'2'..=b'7');
        match symbols.iter().position(is_foreign) {
            None => Ok(Self(symbols)),
            Some(offset) => Err(LinkIdError::Symbol {
                byte: symbols[offset],
                offset,
            }),
        }
    }
}

impl FromStr for LinkId {
    type Err = LinkIdError;

    fn from_str(text: &str) -> Result<Self, LinkIdError> {
        Self::from_bytes(text.as_bytes())
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkId({self})")
    }
}

/// Why bytes are not a link id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkIdError {
    /// Not 26 bytes long.
    #[error("a link id has 26 symbols, this one has {len} bytes")]
    #[non_exhaustive]
    Length {
        /// Bytes found.
        len: usize,
    },
    /// A byte outside `A-Z2-7`.
    #[error(
        "a link id has symbols A-Z and 2-7 only, found the byte {byte:#04x} at offset {offset}"
    )]
    #[non_exhaustive]
    Symbol {
        /// The first wrong byte.
        byte: u8,
        /// Its offset in bytes.
        offset: usize,
    },
}
