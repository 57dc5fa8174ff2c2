use std::fmt;

use super::decode::Compression;
use super::diff_id::DiffId;

/// What is known of an archive after all of it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ArchiveSummary {
    /// The digest of the whole uncompressed stream, whatever follows the end marker included.
    pub diff_id: DiffId,
    /// Length of the uncompressed stream, in bytes.
    pub uncompressed_bytes: u64,
    /// Length of what was read from the source, in bytes.
    pub compressed_bytes: u64,
    /// Entries, without extension headers.
    pub entries: u64,
    /// How the archive was compressed.
    pub compression: Compression,
    /// Oddities that are accepted because real images have them.
    pub warnings: Vec<ArchiveWarning>,
}

/// An oddity that does not change what an archive means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArchiveWarning {
    /// The archive ends without the two zero blocks that mark its end.
    #[non_exhaustive]
    MissingEndBlocks {
        /// How many of them there are.
        found: u8,
    },
    /// Something other than zeros follows the end marker. It is part of the digest, no entry.
    #[non_exhaustive]
    TrailingData {
        /// Where the first byte is that is not zero.
        offset: u64,
    },
}

impl fmt::Display for ArchiveWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingEndBlocks { found } => {
                write!(f, "the archive ends with {found} of 2 zero blocks")
            }
            Self::TrailingData { offset } => {
                write!(f, "data after the end of the archive, at byte {offset}")
            }
        }
    }
}
