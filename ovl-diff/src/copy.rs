//! Copies between layers: single objects, attributes, whole trees.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context as _, TreeError};
use crate::place::{make_opaque, remove_any};
use crate::tree::{
    DirHandle, FileHandle, FileKind, Metadata, Node, NodeKind, RenameMode, TreeBackend,
};
use crate::view::{Found, View, ViewDir};
use crate::xattrs::is_private;

const BUFFER_LEN: usize = 256 * 1024;

/// Copies everything but a directory's contents: data, owner, mode, attributes, time. Overlay's
/// private attributes are left behind.
pub(crate) fn copy_object(
    view: View<'_>,
    (from, name): (&DirHandle, &OsStr),
    metadata: &Metadata,
    (to, to_name): (&DirHandle, &OsStr),
) -> io::Result<()> {
    let tree = view.tree();
    let source = Node::Entry(from, name);
    match metadata.kind {
        FileKind::Directory => {
            tree.create_dir(to, to_name, 0o700)?;
            let dir = tree.open_dir(to, to_name)?;
            return copy_attributes(view, source, metadata, Node::Dir(&dir));
        }
        FileKind::Regular => {
            let source_file = tree.open_file(from, name)?;
            let file = tree.create_file(to, to_name, 0o600)?;
            copy_data(tree, &source_file, &file)?;
            return copy_attributes(view, Node::File(&source_file), metadata, Node::File(&file));
        }
        FileKind::Symlink => {
            let target = tree.read_link(from, name)?;
            tree.create_symlink(to, to_name, &target)?;
        }
        FileKind::Fifo => tree.create_node(to, to_name, NodeKind::Fifo, 0o600)?,
        FileKind::CharDevice => {
            tree.create_node(to, to_name, NodeKind::CharDevice(metadata.rdev), 0)?;
        }
        FileKind::BlockDevice => {
            tree.create_node(to, to_name, NodeKind::BlockDevice(metadata.rdev), 0)?;
        }
        // A socket is a rendezvous of running processes; there is nothing to copy.
        FileKind::Socket => return Ok(()),
    }
    copy_attributes(view, source, metadata, Node::Entry(to, to_name))
}

/// Gives `to` the owner, mode, attributes and time of `from`.
pub(crate) fn copy_attributes(
    view: View<'_>,
    from: Node<'_>,
    metadata: &Metadata,
    to: Node<'_>,
) -> io::Result<()> {
    let tree = view.tree();
    tree.set_owner(to, metadata.uid, metadata.gid)?;
    if metadata.kind != FileKind::Symlink {
        tree.set_mode(to, metadata.mode)?;
    }
    for name in tree.list_xattrs(from)? {
        if is_private(view.xattrs(), &name) && exported(view, &name).is_none() {
            continue;
        }
        if let Some(value) = tree.xattr(from, &name)?
            && !crate::xattrs::is_host_only(&name)
        {
            tree.set_xattr(to, &name, &value)?;
        }
    }
    tree.set_mtime(to, metadata.mtime)
}

fn exported(view: View<'_>, name: &OsStr) -> Option<Vec<u8>> {
    crate::xattrs::exported_name(view.xattrs(), name)
}

/// Gives the layer directory `to` the attributes of another layer's root: what a new layer's root
/// looks like until something changes it.
///
/// # Errors
///
/// Any error of the backend.
pub fn copy_root_attributes(
    view: View<'_>,
    from: &DirHandle,
    to: &DirHandle,
) -> Result<(), TreeError> {
    let path = Path::new("");
    let metadata = view.tree().metadata(Node::Dir(from)).on("look at", path)?;
    copy_attributes(view, Node::Dir(from), &metadata, Node::Dir(to))
        .on("copy the attributes of", path)
}

fn copy_data(tree: &dyn TreeBackend, from: &FileHandle, to: &FileHandle) -> io::Result<()> {
    match tree.share_data(from, to) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        result => return result,
    }
    let size = tree.metadata(Node::File(from))?.size;
    let mut buffer = vec![0; BUFFER_LEN.min(usize::try_from(size).unwrap_or(BUFFER_LEN)).max(1)];
    let mut offset = 0;
    while let Some(extent) = tree.next_extent(from, offset)? {
        offset = extent.start;
        while offset < extent.end {
            let want = usize::try_from(extent.end - offset).unwrap_or(BUFFER_LEN).min(buffer.len());
            let len = tree.read_at(from, offset, &mut buffer[..want])?;
            if len == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            tree.write_at(to, offset, &buffer[..len])?;
            offset += len as u64;
        }
    }
    tree.set_len(to, size)
}

/// Copies a layer's contents as they are, whiteouts, opaque marks and hard links included, into an
/// empty directory. Data is shared with the original where the file system can.
///
/// # Errors
///
/// Any error of the backend; `to` is useless then.
pub fn copy_layer(view: View<'_>, from: &DirHandle, to: &DirHandle) -> Result<(), TreeError> {
    let tree = view.tree();
    let mut links: HashMap<u64, (DirHandle, OsString)> = HashMap::new();
    let root = PathBuf::new();
    let mut pending = vec![(from.clone(), to.clone(), root)];
    while let Some((from, to, path)) = pending.pop() {
        for entry in tree.read_dir(&from).on("list", &path)? {
            let (inner_path, name) = (path.join(&entry.name), entry.name);
            let source = Node::Entry(&from, &name);
            let metadata = tree.metadata(source).on("look at", &inner_path)?;
            let shared = !metadata.is_dir() && metadata.nlink > 1;
            if shared && let Some((dir, first)) = links.get(&metadata.ino) {
                tree.hard_link(dir, first, &to, &name).on("link", &inner_path)?;
                continue;
            }
            copy_object(view, (&from, &name), &metadata, (&to, &name)).on("copy", &inner_path)?;
            if shared {
                links.insert(metadata.ino, (to.clone(), name.clone()));
            }
            if metadata.is_dir() {
                let inner_from = tree.open_dir(&from, &name).on("open", &inner_path)?;
                let inner_to = tree.open_dir(&to, &name).on("open", &inner_path)?;
                if view.is_opaque(&inner_from).on("look at", &inner_path)? {
                    let attribute = OsStr::new(view.xattrs().opaque());
                    tree.set_xattr(Node::Dir(&inner_to), attribute, b"y").on("copy", &inner_path)?;
                }
                pending.push((inner_from, inner_to, inner_path));
            }
        }
    }
    restore_times(tree, from, to)
}

/// Filling a directory changes its time, so the times come last.
fn restore_times(tree: &dyn TreeBackend, from: &DirHandle, to: &DirHandle) -> Result<(), TreeError> {
    let mut pending = vec![(from.clone(), to.clone(), PathBuf::new())];
    while let Some((from, to, path)) = pending.pop() {
        let mtime = tree.metadata(Node::Dir(&from)).on("look at", &path)?.mtime;
        tree.set_mtime(Node::Dir(&to), mtime).on("set the time of", &path)?;
        for entry in tree.read_dir(&from).on("list", &path)? {
            if entry.kind == FileKind::Directory {
                let inner_path = path.join(&entry.name);
                let inner_from = tree.open_dir(&from, &entry.name).on("open", &inner_path)?;
                let inner_to = tree.open_dir(&to, &entry.name).on("open", &inner_path)?;
                pending.push((inner_from, inner_to, inner_path));
            }
        }
    }
    Ok(())
}

/// Moves everything of the layer directory `above` into `into`, as if it lay on top of it: what
/// results hides and shows over `lowers` what the two together did. `above` is left over.
///
/// # Errors
///
/// Any error of the backend; both directories are useless then.
pub fn fold_layer(
    view: View<'_>,
    above: &DirHandle,
    into: &DirHandle,
    lowers: &[DirHandle],
) -> Result<(), TreeError> {
    fold(view, above, into, &ViewDir::new(lowers.to_vec()), Path::new(""))
}

fn fold(
    view: View<'_>,
    above: &DirHandle,
    into: &DirHandle,
    lower: &ViewDir,
    path: &Path,
) -> Result<(), TreeError> {
    let tree = view.tree();
    let above_metadata = tree.metadata(Node::Dir(above)).on("look at", path)?;
    for entry in tree.read_dir(above).on("list", path)? {
        let (name, inner_path) = (&entry.name, path.join(&entry.name));
        let metadata = tree.metadata(Node::Entry(above, name)).on("look at", &inner_path)?;
        let existing = view.entry(into, name).on("look at", &inner_path)?;
        let below = view.lookup(lower, name).on("look at", &inner_path)?;
        let whiteout = view.is_whiteout(above, name, &metadata).on("look at", &inner_path)?;
        if whiteout && !below.exists() {
            remove_any(view, into, name).map_err(|error| error.below(path))?;
            continue;
        }
        let inner = match metadata.is_dir() {
            true => Some(tree.open_dir(above, name).on("open", &inner_path)?),
            false => None,
        };
        if let (Some(inner), Some(existing)) = (&inner, &existing)
            && existing.is_dir()
            && !view.is_opaque(inner).on("look at", &inner_path)?
        {
            let target = tree.open_dir(into, name).on("open", &inner_path)?;
            let cut = view.is_opaque(&target).on("look at", &inner_path)?;
            let inner_lower = match below {
                Found::Directory(dir, _) if !cut => dir,
                _ => ViewDir::default(),
            };
            fold(view, inner, &target, &inner_lower, &inner_path)?;
            continue;
        }
        remove_any(view, into, name).map_err(|error| error.below(path))?;
        tree.rename(above, name, into, name, RenameMode::NoReplace).on("move", &inner_path)?;
        // What it replaced, a whiteout or a file, had hidden the directory below.
        if let (Some(_), Some(_), Found::Directory(..)) = (&inner, &existing, &below) {
            let moved = tree.open_dir(into, name).on("open", &inner_path)?;
            make_opaque(view, &moved, &inner_path)?;
            let mtime = metadata.mtime;
            tree.set_mtime(Node::Dir(&moved), mtime).on("set the time of", &inner_path)?;
        }
    }
    let kept = tree.list_xattrs(Node::Dir(above)).on("read attributes of", path)?;
    for name in tree.list_xattrs(Node::Dir(into)).on("read attributes of", path)? {
        if !kept.contains(&name) && !is_private(view.xattrs(), &name) {
            tree.remove_xattr(Node::Dir(into), &name).on("remove attributes of", path)?;
        }
    }
    copy_attributes(view, Node::Dir(above), &above_metadata, Node::Dir(into))
        .on("copy the attributes of", path)
}
