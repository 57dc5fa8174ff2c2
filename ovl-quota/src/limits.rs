use std::fmt;

use crate::units::{BasicBlocks, Bytes};

/// What a project may use. The default is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Limits {
    /// Disk space, counted in whole blocks of the file system, metadata included; `None` is
    /// unlimited.
    #[doc(alias = "d_blk_hardlimit")]
    pub bytes: Option<Bytes>,
    /// Files, directories, links and device nodes; `None` is unlimited.
    #[doc(alias = "d_ino_hardlimit")]
    pub inodes: Option<u64>,
}

impl Limits {
    /// No limit.
    pub const UNLIMITED: Self = Self {
        bytes: None,
        inodes: None,
    };

    /// The largest byte limit: the whole blocks below 2^63 bytes, the most that ext4 stores.
    pub const MAX_BYTES: Bytes = Bytes::new((1 << 63) - BasicBlocks::SIZE);

    /// Limits with these values.
    #[must_use]
    pub const fn new(bytes: Option<Bytes>, inodes: Option<u64>) -> Self {
        Self { bytes, inodes }
    }

    /// Sets the byte limit.
    #[must_use]
    pub const fn bytes(self, bytes: Option<Bytes>) -> Self {
        Self { bytes, ..self }
    }

    /// Sets the inode limit.
    #[must_use]
    pub const fn inodes(self, inodes: Option<u64>) -> Self {
        Self { inodes, ..self }
    }

    /// Whether nothing is limited.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.inodes.is_none()
    }

    /// The limits as a kernel keeps them: bytes rounded up to a block of 512 bytes. The file system
    /// may round further up, to its own block. Every backend rounds so.
    ///
    /// # Errors
    /// [`LimitsError`] for limits that the kernel would take as "no limit" or refuse.
    ///
    /// # Compatibility
    /// Docker rounds down, so that its limit of 1 to 511 bytes is none.
    pub fn rounded(self) -> Result<Self, LimitsError> {
        let bytes = match self.bytes {
            Some(Bytes::ZERO) => return Err(LimitsError::ZeroBytes),
            Some(bytes) => Some(
                bytes
                    .to_blocks_ceil()
                    .and_then(BasicBlocks::to_bytes)
                    .filter(|&rounded| rounded <= Self::MAX_BYTES)
                    .ok_or(LimitsError::TooManyBytes { bytes })?,
            ),
            None => None,
        };
        match self.inodes {
            Some(0) => Err(LimitsError::ZeroInodes),
            Some(inodes) if i64::try_from(inodes).is_err() => {
                Err(LimitsError::TooManyInodes { inodes })
            }
            inodes => Ok(Self { bytes, inodes }),
        }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.bytes, self.inodes) {
            (None, None) => f.write_str("no limit"),
            (Some(bytes), None) => bytes.fmt(f),
            (None, Some(inodes)) => write!(f, "{inodes} inodes"),
            (Some(bytes), Some(inodes)) => write!(f, "{bytes} and {inodes} inodes"),
        }
    }
}

/// Why limits cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitsError {
    /// 0 bytes mean "no limit" to the kernel.
    #[error("a limit of 0 bytes cannot be set; for no limit, set none")]
    ZeroBytes,
    /// 0 inodes mean "no limit" to the kernel.
    #[error("a limit of 0 inodes cannot be set; for no limit, set none")]
    ZeroInodes,
    /// More than [`Limits::MAX_BYTES`].
    #[error("a limit of {bytes} cannot be set; at most {} can", Limits::MAX_BYTES)]
    #[non_exhaustive]
    TooManyBytes {
        /// The limit as asked for.
        bytes: Bytes,
    },
    /// More than 2^63 - 1, the most that ext4 stores.
    #[error("a limit of {inodes} inodes cannot be set; at most {} can", i64::MAX)]
    #[non_exhaustive]
    TooManyInodes {
        /// The limit as asked for.
        inodes: u64,
    },
}

/// What a project uses, and what it may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Usage {
    /// Disk space in use, in whole blocks of the file system, space reserved for writes under way
    /// included.
    pub bytes: Bytes,
    /// Inodes in use, the project's directory itself included.
    pub inodes: u64,
    /// The limits in force.
    pub limits: Limits,
}

impl Usage {
    /// A usage with these values.
    #[must_use]
    pub const fn new(bytes: Bytes, inodes: u64, limits: Limits) -> Self {
        Self {
            bytes,
            inodes,
            limits,
        }
    }

    /// Whether no file belongs to the project.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.get() == 0 && self.inodes == 0
    }

    /// How many bytes are left; `None` is unlimited. 0 too if the usage is above the limit, as when
    /// the limit was lowered.
    #[must_use]
    pub fn bytes_left(&self) -> Option<Bytes> {
        self.limits
            .bytes
            .map(|limit| limit.saturating_sub(self.bytes))
    }

    /// How many inodes are left; `None` is unlimited.
    #[must_use]
    pub fn inodes_left(&self) -> Option<u64> {
        self.limits
            .inodes
            .map(|limit| limit.saturating_sub(self.inodes))
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} and {} inodes in use, limit: {}",
            self.bytes, self.inodes, self.limits
        )
    }
}
