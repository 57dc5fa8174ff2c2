//! How an archive writes down that something is gone: `.wh.` names.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// Longest name that a file system stores, in bytes.
pub(crate) const MAX_NAME_LEN: usize = 255;

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// Where AUFS kept what has several names: a file each, with these names linked to it.
const AUFS_LINKS: &[u8] = b".wh..wh.plnk";
/// A misspelling that some tools wrote: by the rules, the whiteout of a file `.wh.opq`.
const MISSPELT_OPAQUE: &[u8] = b".wh..wh.opq";

/// What the last component of an entry's path says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryName<'a> {
    /// An object of that name.
    Plain,
    /// What has this name below is hidden.
    Whiteout(&'a OsStr),
    /// Everything below the entry's directory is hidden.
    Opaque,
    /// Bookkeeping of AUFS, which means nothing here.
    AufsMetadata,
    /// A whiteout of nothing, of `.` or of `..`.
    Nonsense,
}

pub(crate) fn classify(name: &OsStr) -> EntryName<'_> {
    let bytes = name.as_bytes();
    match bytes.strip_prefix(PREFIX) {
        None => EntryName::Plain,
        Some(_) if bytes == OPAQUE => EntryName::Opaque,
        Some(_) if bytes.starts_with(AUFS_PREFIX) && bytes != MISSPELT_OPAQUE => {
            EntryName::AufsMetadata
        }
        Some(b"" | b"." | b"..") => EntryName::Nonsense,
        Some(hidden) => EntryName::Whiteout(OsStr::from_bytes(hidden)),
    }
}

/// Whether the directories of an entry's path are the one where AUFS kept what has several names.
pub(crate) fn is_aufs_links(parents: &[&OsStr]) -> bool {
    matches!(parents, [dir] if dir.as_bytes() == AUFS_LINKS)
}

/// The name of that directory.
pub(crate) fn aufs_links() -> &'static OsStr {
    OsStr::from_bytes(AUFS_LINKS)
}

/// The name of the entry that hides `name`.
pub(crate) fn whiteout_name(name: &OsStr) -> OsString {
    OsString::from_vec([PREFIX, name.as_bytes()].concat())
}

/// The name of the entry that hides everything below its directory.
pub(crate) fn opaque_name() -> &'static OsStr {
    OsStr::from_bytes(OPAQUE)
}

/// Whether an archive cannot hold an object of this name, since readers take it for a whiteout.
pub(crate) fn is_reserved(name: &OsStr) -> bool {
    name.as_bytes().starts_with(PREFIX)
}
