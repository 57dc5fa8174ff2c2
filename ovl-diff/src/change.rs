use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::emit::read_xattrs;
use crate::error::{Context as _, DiffError, EscapedPath};
use crate::tree::{FileHandle, FileKind, Metadata, Node};
use crate::view::{Found, View, ViewDir};

/// One path that differs from what is below.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    path: PathBuf,
    kind: ChangeKind,
}

impl Change {
    pub(crate) fn new(path: PathBuf, kind: ChangeKind) -> Self {
        Self { path, kind }
    }

    /// The path, relative to the layer's root.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What has happened to it.
    #[must_use]
    pub fn kind(&self) -> ChangeKind {
        self.kind
    }
}

/// `C /etc/motd`: Docker's form, control bytes escaped.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} /{}", self.kind.symbol(), EscapedPath(&self.path))
    }
}

/// What has happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// There was nothing below.
    Added,
    /// There was something else below.
    Modified,
    /// There is nothing any more.
    Deleted,
}

impl ChangeKind {
    /// Docker's letter: `A`, `C` or `D`.
    #[must_use]
    pub const fn symbol(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Modified => 'C',
            Self::Deleted => 'D',
        }
    }
}

/// Whether what two directories have under one name differs in what an archive carries. The time of
/// a directory does not count, since everything put into it changes it. Files of the same size and
/// time are compared by their contents, unless they are the same inode.
pub(crate) fn differs(
    view: View<'_>,
    name: &OsStr,
    (dir, now): (&ViewDir, &Found),
    (base, then): (&ViewDir, &Found),
    path: &Path,
) -> Result<bool, DiffError> {
    let (Some(one), Some(other)) = (now.metadata(), then.metadata()) else {
        return Ok(now.exists() != then.exists());
    };
    let (Some(node), Some(below)) = (now.node(name), then.node(name)) else {
        return Ok(false);
    };
    if is_same_inode(one, other) {
        return Ok(false);
    }
    let attributes = |of: &Metadata| (of.kind, of.mode, of.uid, of.gid, of.rdev);
    if attributes(one) != attributes(other) {
        return Ok(true);
    }
    let timed = one.kind != FileKind::Directory;
    if timed && (one.size, one.mtime) != (other.size, other.mtime) {
        return Ok(true);
    }
    if read_xattrs(view, node, path)?.0 != read_xattrs(view, below, path)?.0 {
        return Ok(true);
    }
    match (one.kind, node, below) {
        (FileKind::Symlink, Node::Entry(dir, name), Node::Entry(below_dir, below_name)) => {
            let target = view.tree().read_link(dir, name).on("read", path)?;
            Ok(target
                != view
                    .tree()
                    .read_link(below_dir, below_name)
                    .on("read", path)?)
        }
        (FileKind::Regular, ..) => {
            let file = view.open_file(dir, name).on("open", path)?;
            let below = view.open_file(base, name).on("open", path)?;
            let data = |file| view.tree().metadata(Node::File(file)).on("look at", path);
            // A file of a mount with `metacopy=on` and the one that it was copied up from.
            Ok(!is_same_inode(&data(&file)?, &data(&below)?)
                && contents_differ(view, &file, &below, path)?)
        }
        _ => Ok(false),
    }
}

fn is_same_inode(one: &Metadata, other: &Metadata) -> bool {
    (one.dev, one.ino) == (other.dev, other.ino)
}

fn contents_differ(
    view: View<'_>,
    file: &FileHandle,
    below: &FileHandle,
    path: &Path,
) -> Result<bool, DiffError> {
    const BUFFER_LEN: usize = 64 * 1024;
    let (mut one, mut other) = (vec![0; BUFFER_LEN], vec![0; BUFFER_LEN]);
    let mut offset = 0;
    loop {
        let one_len = read_full(view, file, offset, &mut one, path)?;
        let other_len = read_full(view, below, offset, &mut other, path)?;
        if one[..one_len] != other[..other_len] {
            return Ok(true);
        }
        if one_len < BUFFER_LEN {
            return Ok(false);
        }
        offset += one_len as u64;
    }
}

fn read_full(
    view: View<'_>,
    file: &FileHandle,
    offset: u64,
    buffer: &mut [u8],
    path: &Path,
) -> Result<usize, DiffError> {
    let mut filled = 0;
    while filled < buffer.len() {
        let at = offset + filled as u64;
        match view
            .tree()
            .read_at(file, at, &mut buffer[filled..])
            .on("read", path)?
        {
            0 => break,
            len => filled += len,
        }
    }
    Ok(filled)
}
