//! Everything that can be seen of a tree, for comparison.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use ovl_diff::{DeviceNumber, DirHandle, FileKind, Metadata, Node, Timestamp, TreeBackend};

/// One object of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The kind.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Names of the inode; 0 for directories, whose count differs between file systems.
    pub nlink: u32,
    /// The device that a device node stands for.
    pub rdev: DeviceNumber,
    /// The modification time.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// A file's contents, or a symbolic link's text.
    pub contents: Vec<u8>,
}

/// The objects of a tree by path; the root is the empty path.
pub type Snapshot = BTreeMap<PathBuf, Object>;

/// Reads a whole tree through a backend.
///
/// # Errors
/// Any error of the backend.
pub fn snapshot(tree: &dyn TreeBackend, root: &DirHandle) -> io::Result<Snapshot> {
    let mut found = Snapshot::new();
    let metadata = tree.metadata(Node::Dir(root))?;
    let object = object(tree, Node::Dir(root), &metadata, Vec::new())?;
    found.insert(PathBuf::new(), object);
    directory(tree, root, Path::new(""), &mut found)?;
    Ok(found)
}

/// Reads the whole tree at an absolute path.
///
/// # Errors
/// Any error of the backend.
pub fn snapshot_at(tree: &dyn TreeBackend, path: &Path) -> io::Result<Snapshot> {
    snapshot(tree, &tree.open_root(path)?)
}

fn directory(
    tree: &dyn TreeBackend,
    dir: &DirHandle,
    path: &Path,
    found: &mut Snapshot,
) -> io::Result<()> {
    for entry in tree.read_dir(dir)? {
        let (name, inner_path) = (&*entry.name, path.join(&entry.name));
        let node = Node::Entry(dir, name);
        let metadata = tree.metadata(node)?;
        let contents = match metadata.kind {
            FileKind::Regular => read(tree, dir, name, metadata.size)?,
            FileKind::Symlink => tree.read_link(dir, name)?.into_encoded_bytes(),
            _ => Vec::new(),
        };
        found.insert(inner_path.clone(), object(tree, node, &metadata, contents)?);
        if metadata.is_dir() {
            directory(tree, &tree.open_dir(dir, name)?, &inner_path, found)?;
        }
    }
    Ok(())
}

fn object(
    tree: &dyn TreeBackend,
    node: Node<'_>,
    metadata: &Metadata,
    contents: Vec<u8>,
) -> io::Result<Object> {
    let mut xattrs = BTreeMap::new();
    for name in tree.list_xattrs(node)? {
        if let Some(value) = tree.xattr(node, &name)? {
            xattrs.insert(name, value);
        }
    }
    Ok(Object {
        kind: metadata.kind,
        mode: metadata.mode,
        uid: metadata.uid,
        gid: metadata.gid,
        nlink: if metadata.is_dir() { 0 } else { metadata.nlink },
        rdev: metadata.rdev,
        mtime: metadata.mtime,
        xattrs,
        contents,
    })
}

fn read(tree: &dyn TreeBackend, dir: &DirHandle, name: &OsStr, size: u64) -> io::Result<Vec<u8>> {
    let file = tree.open_file(dir, name)?;
    let mut contents = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    let mut buffer = [0; 16 * 1024];
    loop {
        match tree.read_at(&file, contents.len() as u64, &mut buffer)? {
            0 => return Ok(contents),
            len => contents.extend_from_slice(&buffer[..len]),
        }
    }
}

/// Says in words where two snapshots differ, `None` when they do not. At most ten differences.
#[must_use]
pub fn differences(one: &Snapshot, other: &Snapshot) -> Option<String> {
    let mut paths: Vec<&PathBuf> = one.keys().chain(other.keys()).collect();
    paths.sort();
    paths.dedup();
    let different = paths
        .into_iter()
        .filter(|path| one.get(*path) != other.get(*path));
    let mut words = String::new();
    for path in different.take(10) {
        let shown = path.display();
        let _ = match (one.get(path), other.get(path)) {
            (Some(one), Some(other)) => writeln!(words, "/{shown}: {one:?}\n  is not {other:?}"),
            (Some(_), None) => writeln!(words, "/{shown} is missing"),
            _ => writeln!(words, "/{shown} should not be there"),
        };
    }
    (!words.is_empty()).then_some(words)
}
