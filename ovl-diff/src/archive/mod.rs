//! Reading layer archives: decompression, strict tar framing, digest and counts in one pass.
//!
//! Where tar readers are known to disagree about a header, the archive is refused: a scanner and
//! a runtime must not see different trees.

mod ahead;
mod buffers;
mod decode;
mod diff_id;
mod digest;
mod entry;
mod header;
mod limits;
mod pax;
mod reader;
mod sparse;
mod stream;
mod summary;

use std::fmt;
use std::io;

use ovl_layout::IdMap;

use crate::ids::{IdKind, IdPlace};

pub(crate) use buffers::{HOLDABLE, Piece};
pub use decode::Compression;
pub use diff_id::{DiffId, DiffIdError};
pub use entry::{ArchiveEntry, EntryKind};
pub use limits::ReadLimits;
pub use reader::ArchiveReader;
pub use summary::{ArchiveSummary, ArchiveWarning};

/// Why an archive could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The archive is damaged, hostile, over a limit, or none at all.
    #[error(transparent)]
    Bad(Box<BadArchive>),
    /// The source of the archive failed; says nothing about the archive.
    #[error("cannot read the archive after {offset} uncompressed bytes")]
    #[non_exhaustive]
    Io {
        /// Bytes of the uncompressed stream that were handed out before.
        offset: u64,
        /// The failed call's error.
        source: io::Error,
    },
}

impl ArchiveError {
    /// Whether the archive is at fault: reading the same bytes again ends the same way.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Bad(_))
    }
}

impl From<BadArchive> for ArchiveError {
    fn from(bad: BadArchive) -> Self {
        Self::Bad(Box::new(bad))
    }
}

/// What is wrong with an archive, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BadArchive {
    /// The entry at fault, counted from 0; the number of entries when the fault is after the last.
    pub index: u64,
    /// Where in the uncompressed stream, in bytes: the entry's header, or the block at fault.
    pub offset: u64,
    /// The entry's name as far as it was known, raw; may be empty.
    pub name: Vec<u8>,
    /// What is wrong.
    pub reason: BadReason,
}

impl BadArchive {
    /// Blames an entry that was read.
    #[must_use]
    pub fn new(entry: &ArchiveEntry, reason: BadReason) -> Self {
        Self {
            index: entry.index,
            offset: entry.offset,
            name: entry.path.clone(),
            reason,
        }
    }
}

impl fmt::Display for BadArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            index,
            offset,
            name,
            reason,
        } = self;
        match reason {
            BadReason::NotAnArchive { .. } | BadReason::UnsupportedCompression { .. } => {
                reason.fmt(f)
            }
            _ if name.is_empty() => write!(f, "archive entry {index} at byte {offset}: {reason}"),
            _ => write!(
                f,
                "archive entry {index} \"{}\" at byte {offset}: {reason}",
                EscapedBytes(name)
            ),
        }
    }
}

impl std::error::Error for BadArchive {}

/// What can be wrong with an archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadReason {
    /// No tar header at the start.
    #[error("this is not a layer archive: {hint}")]
    #[non_exhaustive]
    NotAnArchive {
        /// What it is instead, as far as its first bytes tell.
        hint: &'static str,
    },
    /// A compression other than gzip and zstd.
    #[error("{name} compression is not supported; decompress the archive, or use gzip or zstd")]
    #[non_exhaustive]
    UnsupportedCompression {
        /// The format that the first bytes tell.
        name: &'static str,
    },
    /// The compressed data contradicts itself: bad codes, a wrong checksum, a wrong length.
    #[error("the {compression} data is corrupt: {detail}")]
    #[non_exhaustive]
    CorruptCompression {
        /// The format.
        compression: Compression,
        /// What the decoder says.
        detail: String,
    },
    /// The compressed data ends early.
    #[error("the {compression} data is truncated after {compressed} compressed bytes")]
    #[non_exhaustive]
    TruncatedCompression {
        /// The format.
        compression: Compression,
        /// Length of the compressed data, in bytes.
        compressed: u64,
    },
    /// Something that is not compressed data follows it. Zeros after gzip are padding.
    #[error("bytes that are no {compression} data follow after {compressed} compressed bytes")]
    #[non_exhaustive]
    TrailingGarbage {
        /// The format.
        compression: Compression,
        /// Length of what could be decoded, in compressed bytes.
        compressed: u64,
    },
    /// A zstd frame that needs more memory to decode than is granted.
    #[error("a zstd frame needs a window of more than {} MiB", 1_u64 << max_log >> 20)]
    #[non_exhaustive]
    WindowTooLarge {
        /// Base-2 logarithm of the largest accepted window, in bytes.
        max_log: u32,
    },
    /// More uncompressed bytes than [`ReadLimits::max_output_bytes`], read or announced.
    #[error("the archive has more than the {max} uncompressed bytes that the limit allows")]
    #[non_exhaustive]
    OutputLimit {
        /// The limit.
        max: u64,
    },
    /// Decodes to more than [`ReadLimits::max_ratio`] times its size.
    #[error(
        "{compressed} compressed bytes gave {output} bytes, which is more than the limit of {max} to 1"
    )]
    #[non_exhaustive]
    RatioLimit {
        /// Compressed bytes read.
        compressed: u64,
        /// Uncompressed bytes made of them.
        output: u64,
        /// The limit.
        max: u64,
    },
    /// More entries than [`ReadLimits::max_entries`].
    #[error("the archive has more than the {max} entries that the limit allows")]
    #[non_exhaustive]
    EntryLimit {
        /// The limit.
        max: u64,
    },
    /// More extension data before one entry than [`ReadLimits::max_extension_bytes`].
    #[error("the entry has {size} bytes of extension headers, the limit is {max}")]
    #[non_exhaustive]
    ExtensionTooLarge {
        /// Bytes announced.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// The stream ends inside something.
    #[error("the archive is truncated: it ends after {found} of {expected} bytes of {part}")]
    #[non_exhaustive]
    Truncated {
        /// Inside what.
        part: &'static str,
        /// Length of the part, in bytes.
        expected: u64,
        /// Bytes of it that are there.
        found: u64,
    },
    /// One zero block and then more: some readers stop there, others go on.
    #[error("a single zero block hides what follows it; the end of an archive is two of them")]
    BadEof,
    /// Neither the unsigned nor the signed sum of the header matches.
    #[error("the header's checksum is {stored:o}, its bytes sum up to {computed:o} (octal)")]
    #[non_exhaustive]
    BadChecksum {
        /// What the header says.
        stored: i64,
        /// The unsigned sum of its bytes.
        computed: i64,
    },
    /// A header of no known tar format, or of a format that cannot hold its type.
    #[error("unknown tar format \"{}\" for type '{}'", EscapedBytes(magic), EscapedBytes(&[*typeflag]))]
    #[non_exhaustive]
    UnknownMagic {
        /// Magic and version.
        magic: [u8; 8],
        /// The type of the member.
        typeflag: u8,
    },
    /// A type of entry that a layer cannot have.
    #[error("entries of type '{}' are not supported in a layer", EscapedBytes(&[*typeflag]))]
    #[non_exhaustive]
    UnsupportedType {
        /// The type.
        typeflag: u8,
    },
    /// The map of a sparse file breaks the rules of its format, or its records those of all.
    #[error("bad sparse file: {problem}")]
    #[non_exhaustive]
    BadSparse {
        /// What is wrong.
        problem: &'static str,
    },
    /// A run of data in a sparse file that is not where it can be.
    #[error("run {number} of the sparse map, {len} bytes at {offset}, is wrong: {problem}")]
    #[non_exhaustive]
    BadSparseRun {
        /// The run, counted from 0.
        number: u64,
        /// Where it begins in the file.
        offset: u64,
        /// Its length, in bytes.
        len: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// A sparse map that is about more or less than there is.
    #[error("the sparse map has {mapped} bytes of data, the entry {stored}")]
    #[non_exhaustive]
    SparseMismatch {
        /// Bytes in all runs of the map.
        mapped: u64,
        /// Bytes of content in the archive.
        stored: u64,
    },
    /// A number that is none, or is out of range for its field.
    #[error("\"{}\" is not a valid {field}", EscapedBytes(value))]
    #[non_exhaustive]
    BadNumber {
        /// The field or PAX key.
        field: &'static str,
        /// Its raw contents.
        value: Vec<u8>,
    },
    /// An owner that Linux does not have; 4294967295 would mean "leave as it is" to the kernel.
    #[error("the {field} {value} is not between 0 and 4294967294")]
    #[non_exhaustive]
    IdOutOfRange {
        /// `uid` or `gid`.
        field: &'static str,
        /// The number.
        value: i64,
    },
    /// A device number that Linux does not have.
    #[error("the device number {major}:{minor} is out of range, which ends at 4095:1048575")]
    #[non_exhaustive]
    BadDevice {
        /// The number of the driver.
        major: i64,
        /// The number of the device.
        minor: i64,
    },
    /// An entry without a name, or a link without a target.
    #[error("the {field} is empty")]
    #[non_exhaustive]
    EmptyName {
        /// `path` or `linkpath`.
        field: &'static str,
    },
    /// A name with a zero byte, at which some readers would cut it.
    #[error("the {field} has a zero byte in it")]
    #[non_exhaustive]
    NulInName {
        /// `path` or `linkpath`.
        field: &'static str,
    },
    /// An explicit regular file with the name of a directory.
    #[error("the entry is a regular file, but its name ends in '/'")]
    TrailingSlash,
    /// PAX records that break the grammar `LENGTH KEY=VALUE\n`.
    #[error("malformed PAX record at byte {position} of the extension header: {problem}")]
    #[non_exhaustive]
    BadPax {
        /// Offset of the record in the extension header's data.
        position: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// An extended attribute that Linux cannot have.
    #[error("bad extended attribute name \"{}\": {problem}", EscapedBytes(name))]
    #[non_exhaustive]
    BadXattr {
        /// The name.
        name: Vec<u8>,
        /// What is wrong.
        problem: &'static str,
    },
    /// A global PAX header that renames or resizes all that follows.
    #[error("a global PAX header sets {key}, which some readers obey and others ignore")]
    #[non_exhaustive]
    GlobalOverride {
        /// The key.
        key: &'static str,
    },
    /// Extension headers whose precedence differs between readers.
    #[error("ambiguous extension headers: {problem}")]
    #[non_exhaustive]
    AmbiguousExtension {
        /// Which.
        problem: &'static str,
    },
    /// The same extension header twice before one entry.
    #[error("two extension headers of type '{}' before one entry", EscapedBytes(&[*typeflag]))]
    #[non_exhaustive]
    RepeatedExtension {
        /// The type.
        typeflag: u8,
    },
    /// Extension headers with no entry after them.
    #[error("the archive ends after an extension header, without the entry that it belongs to")]
    DanglingExtension,
    /// Two sizes for one entry.
    #[error("the header says {header} bytes, its PAX record {pax}")]
    #[non_exhaustive]
    SizeConflict {
        /// The size in the header.
        header: u64,
        /// The size in the PAX record.
        pax: u64,
    },
    /// Content for something that has none, which readers skip or take for headers.
    #[error("{size} bytes of content for an entry that is not a regular file")]
    #[non_exhaustive]
    PayloadOnSpecial {
        /// The announced size, in bytes.
        size: u64,
    },
    /// A name with `..` in it.
    #[error("the name leads out of the layer")]
    PathEscape,
    /// A link that leads out of the layer: a hard link, or a symbolic link on the way to the entry.
    #[error("a link leads out of the layer")]
    LinkEscape,
    /// A component that no file system stores.
    #[error("a component of the name is longer than 255 bytes")]
    NameTooLong,
    /// More components than anybody needs.
    #[error("the name has more than 4096 components")]
    PathTooDeep,
    /// A component on the way is a file, as this archive or a layer below has it.
    #[error("a component of the name is not a directory")]
    NotADirectory,
    /// Symbolic links that lead to each other, or too many of them.
    #[error("the name leads through more than 40 symbolic links")]
    TooManyLinks,
    /// A symbolic link whose text the kernel does not take.
    #[error("the text of the symbolic link is longer than 4095 bytes")]
    BadLinkTarget,
    /// A symbolic link whose text the file system below does not take.
    #[error(
        "the file system cannot hold the {len} bytes of the symbolic link's text: XFS ends at 1023; \
         apply the layer on another file system"
    )]
    #[non_exhaustive]
    LinkTargetTooLong {
        /// Length of the text, in bytes.
        len: usize,
    },
    /// A device whose number the file system below does not take.
    #[error(
        "the file system cannot hold the device number {major}:{minor}: XFS ends at 511:262143; apply \
         the layer on another file system"
    )]
    #[non_exhaustive]
    DeviceTooLarge {
        /// The number of the driver.
        major: u32,
        /// The number of the device.
        minor: u32,
    },
    /// A hard link to a directory or to a whiteout.
    #[error("a hard link can only be made to a file")]
    BadHardLink,
    /// A hard link to itself, or to what neither this archive nor a layer below has so far.
    #[error("the target of the hard link is neither in the archive before it nor in a layer below")]
    DanglingHardLink,
    /// A whiteout of nothing, one that is not an empty file, or a directory named like one.
    #[error("the name is reserved for whiteouts, and this is not a valid one")]
    BadWhiteout,
    /// Character device 0:0, which overlayfs takes for a whiteout.
    #[error("character device 0:0 would delete what is below; write a .wh. entry instead")]
    WhiteoutDevice,
    /// An entry for the root of the layer that is not a directory.
    #[error("the root of a layer can only be a directory")]
    RootNotDirectory,
    /// An owner that this user namespace cannot give files to.
    #[error(
        "the owner {uid}:{gid} is not mapped in this user namespace; run as root, or squash owners"
    )]
    #[non_exhaustive]
    UnmappedOwner {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// An id inside an attribute that this user namespace does not have.
    #[error(
        "the {kind} {id} of the {place} is not mapped in this user namespace; run as root, or squash owners"
    )]
    #[non_exhaustive]
    UnmappedId {
        /// What the id is in.
        place: IdPlace,
        /// What it is the id of.
        kind: IdKind,
        /// The id on disk.
        id: u32,
    },
    /// An id for which the map of ids has none on disk.
    #[error(
        "the {kind} {id} of the {place} is not in the {kind} map {map}; import it into a home with a wider map, or squash owners"
    )]
    #[non_exhaustive]
    NoHostId {
        /// What the id is in.
        place: IdPlace,
        /// What it is the id of, and so which map.
        kind: IdKind,
        /// The id in the archive.
        id: u32,
        /// The map.
        map: IdMap,
    },
    /// A device that this user cannot make.
    #[error("this user cannot make device nodes; run as root, or skip devices")]
    DeviceRefused,
    /// An attribute that the file system does not take, whatever its value.
    #[error(
        "the extended attribute \"{}\" cannot be set: this file system {problem}",
        EscapedBytes(name)
    )]
    #[non_exhaustive]
    XattrRefused {
        /// The attribute.
        name: Vec<u8>,
        /// Why.
        problem: &'static str,
    },
    /// An attribute larger than the file system stores.
    #[error(
        "the extended attribute \"{}\" has {len} bytes, more than this file system stores",
        EscapedBytes(name)
    )]
    #[non_exhaustive]
    XattrTooLarge {
        /// The attribute.
        name: Vec<u8>,
        /// Bytes in its value.
        len: usize,
    },
}

/// Bytes as text that is safe in a terminal and a log: control characters, quotes, backslashes and
/// what is not UTF-8 are escaped, and more than 256 bytes are cut.
#[derive(Clone, Copy, Debug)]
pub struct EscapedBytes<'a>(
    /// The bytes.
    pub &'a [u8],
);

impl fmt::Display for EscapedBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 256;
        for chunk in self.0[..self.0.len().min(SHOWN)].utf8_chunks() {
            for symbol in chunk.valid().chars() {
                match symbol {
                    '\'' => f.write_str("'")?,
                    _ => symbol.escape_debug().fmt(f)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        if self.0.len() > SHOWN {
            write!(f, "... ({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}

/// A failure before it is known whom to blame.
#[derive(Debug)]
enum Fault {
    Io(io::Error),
    Bad(BadReason),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<BadReason> for Fault {
    fn from(reason: BadReason) -> Self {
        Self::Bad(reason)
    }
}
