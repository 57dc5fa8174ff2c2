use crate::tree::{DeviceNumber, Timestamp};

/// One entry of a layer archive, with everything its extension headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ArchiveEntry {
    /// The place among the entries, from 0; extension headers do not count.
    pub index: u64,
    /// Where its own header is in the uncompressed stream, in bytes.
    pub offset: u64,
    /// The name as the archive has it: not cleaned, not confined, any bytes but NUL, never empty.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of content; 0 for anything but a regular file.
    pub size: u64,
    /// Bytes of content that are in the archive: fewer than `size` for a sparse file.
    pub stored: u64,
    /// Permission bits with setuid, setgid and sticky; no type bits.
    pub mode: u32,
    /// The owner, at most 4294967294. Names of owners are never looked at.
    pub uid: u32,
    /// The group, at most 4294967294.
    pub gid: u32,
    /// The modification time; parts of a nanosecond are rounded down.
    pub mtime: Timestamp,
    /// Extended attributes (`SCHILY.xattr.*`) in the archive's order. Of several with one name,
    /// the last.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink {
        /// Its text; any bytes but NUL, never empty.
        target: Vec<u8>,
    },
    /// Another name of an earlier entry, or of a lower layer's file.
    HardLink {
        /// The other name as the archive has it; any bytes but NUL, never empty.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
}
