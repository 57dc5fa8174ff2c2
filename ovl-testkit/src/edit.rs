//! Changes of files in place.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::OFlags;

/// A change of the contents of a regular file that exists, in place. No
/// [`TreeBackend`](ovl_diff::TreeBackend) can do it, since no store may; a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Edit<'b> {
    /// Writes these bytes at an offset, which may be past the end.
    Write {
        /// Where.
        offset: u64,
        /// What.
        bytes: &'b [u8],
    },
    /// Gives the file this length: cuts it, or adds a hole.
    Truncate(u64),
}

/// Changes a file on the real kernel.
///
/// # Errors
/// `InvalidInput` for what is no regular file, which is not opened; else as `open(2)`, `write(2)`
/// and `ftruncate(2)` give.
pub fn edit_file(path: &Path, edit: Edit<'_>) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;

    if !fs::symlink_metadata(path)?.is_file() {
        return Err(not_regular());
    }
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let mut options = File::options();
    let file = options.write(true).custom_flags(flags).open(path)?;
    match edit {
        Edit::Write { offset, bytes } => file.write_all_at(bytes, offset),
        Edit::Truncate(len) => file.set_len(len),
    }
}

pub(crate) fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
}
