//! Copies between layers: single objects, attributes, whole trees.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context as _, TreeError};
use crate::handles::FewHandles;
use crate::place::{make_opaque, remove_any};
use crate::tree::{
    DirEntry, DirHandle, FileHandle, FileKind, Metadata, Node, NodeKind, RenameMode, TreeBackend,
};
use crate::view::{Found, View, ViewDir};
use crate::xattrs::{
    DEFAULT_ACL, is_host_only, is_inherited, is_origin, is_private, is_structural,
};

const BUFFER_LEN: usize = 256 * 1024;

/// What becomes of overlay's private attributes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Private {
    /// Left behind: the copy is whole without them.
    Drop,
    /// Those that say what the object is are kept: the copy has the same place in a layer.
    Keep,
}

/// Copies anything but a directory and a socket: data, owner, mode, attributes, time. The data is
/// that of `data` where a file has its own elsewhere. `inherits` when the directory that it is
/// copied to gives an access control list to new objects.
pub(crate) fn copy_object(
    view: View<'_>,
    (from, name): (&DirHandle, &OsStr),
    data: Option<&FileHandle>,
    metadata: &Metadata,
    (to, to_name): (&DirHandle, &OsStr),
    private: Private,
    inherits: bool,
) -> io::Result<()> {
    let tree = view.tree();
    let (source, target) = (Node::Entry(from, name), Node::Entry(to, to_name));
    match metadata.kind {
        FileKind::Regular => {
            let source_file = tree.open_file(from, name)?;
            let file = tree.create_file(to, to_name, 0o600)?;
            match data {
                None => copy_data(tree, &source_file, metadata, &file)?,
                Some(data) => {
                    copy_data(tree, data, &tree.metadata(Node::File(data))?, &file)?;
                }
            }
            let (source, target) = (Node::File(&source_file), Node::File(&file));
            if inherits {
                drop_inherited(tree, target)?;
            }
            return copy_attributes(view, source, metadata, target, private);
        }
        FileKind::Symlink => {
            let text = tree.read_link(from, name)?;
            tree.create_symlink(to, to_name, &text)?;
        }
        FileKind::Fifo => tree.create_node(to, to_name, NodeKind::Fifo, 0o600)?,
        FileKind::CharDevice => {
            tree.create_node(to, to_name, NodeKind::CharDevice(metadata.rdev), 0)?;
        }
        FileKind::BlockDevice => {
            tree.create_node(to, to_name, NodeKind::BlockDevice(metadata.rdev), 0)?;
        }
        // A socket is a rendezvous of running processes; there is nothing to copy.
        FileKind::Directory | FileKind::Socket => {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
    }
    if inherits {
        drop_inherited(tree, target)?;
    }
    copy_attributes(view, source, metadata, target, private)
}

/// Takes back what the default access control list of its directory gave to a new object.
pub(crate) fn drop_inherited(tree: &dyn TreeBackend, node: Node<'_>) -> io::Result<()> {
    for name in tree
        .list_xattrs(node)?
        .iter()
        .filter(|name| is_inherited(name))
    {
        tree.remove_xattr(node, name)?;
    }
    Ok(())
}

/// Takes away the attributes that [`copy_attributes`] or an archive's entry would give.
pub(crate) fn clear_attributes(view: View<'_>, node: Node<'_>) -> io::Result<()> {
    for name in view.tree().list_xattrs(node)? {
        if !is_private(view.xattrs(), &name) && !is_host_only(&name) {
            view.tree().remove_xattr(node, &name)?;
        }
    }
    Ok(())
}

/// Gives `to` the owner, mode, attributes and time of `from`.
pub(crate) fn copy_attributes(
    view: View<'_>,
    from: Node<'_>,
    metadata: &Metadata,
    to: Node<'_>,
    private: Private,
) -> io::Result<()> {
    let tree = view.tree();
    tree.set_owner(to, metadata.uid, metadata.gid)?;
    if metadata.kind != FileKind::Symlink {
        tree.set_mode(to, metadata.mode)?;
    }
    let (names, namespace) = (tree.list_xattrs(from)?, view.xattrs());
    // Without its origin, Linux takes the names of a file whose data is below for two files once
    // the data has come up, and refuses to rename one to the other.
    let has_data_below = names.iter().any(|name| name == namespace.metacopy());
    for name in names {
        let kept = match is_private(namespace, &name) {
            true => {
                let is_needed = has_data_below && is_origin(namespace, &name);
                private == Private::Keep && (is_structural(namespace, &name) || is_needed)
            }
            false => !is_host_only(&name),
        };
        if kept && let Some(value) = tree.xattr(from, &name)? {
            tree.set_xattr(to, &name, &value)?;
        }
    }
    tree.set_mtime(to, metadata.mtime)
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
    copy_attributes(
        view,
        Node::Dir(from),
        &metadata,
        Node::Dir(to),
        Private::Drop,
    )
    .on("copy the attributes of", path)
}

fn copy_data(
    tree: &dyn TreeBackend,
    from: &FileHandle,
    metadata: &Metadata,
    to: &FileHandle,
) -> io::Result<()> {
    match tree.share_data(from, to) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        result => return result,
    }
    let (size, dense) = (metadata.size, metadata.is_dense());
    let whole = usize::try_from(size).unwrap_or(BUFFER_LEN);
    let mut buffer = vec![0; BUFFER_LEN.min(whole)];
    let mut offset = 0;
    loop {
        let next = match dense {
            true => (offset < size).then_some(offset..size),
            false => tree.next_extent(from, offset)?,
        };
        let Some(extent) = next else { break };
        offset = extent.start;
        while offset < extent.end {
            let left = usize::try_from(extent.end - offset).unwrap_or(BUFFER_LEN);
            let want = left.min(buffer.len());
            let len = tree.read_at(from, offset, &mut buffer[..want])?;
            if len == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            tree.write_at(to, offset, &buffer[..len])?;
            offset += len as u64;
        }
    }
    if dense {
        Ok(())
    } else {
        tree.set_len(to, size)
    }
}

/// A directory and its copy, on the way down.
struct Level {
    from: DirHandle,
    to: DirHandle,
    entries: Vec<DirEntry>,
}

/// Copies a layer's contents as they are, whiteouts, opaque marks and hard links included, into an
/// empty directory. Data is shared with the original where the file system can. Sockets, which mean
/// nothing without the process that listens, are left out.
///
/// # Errors
///
/// Any error of the backend; `to` is useless then.
pub fn copy_layer(view: View<'_>, from: &DirHandle, to: &DirHandle) -> Result<(), TreeError> {
    let tree = &FewHandles::new(view.tree(), 2);
    let view = View::new(tree, view.xattrs());
    let mut links: HashMap<u64, (DirHandle, OsString)> = HashMap::new();
    let mut path = PathBuf::new();
    let open = |from: DirHandle, to: DirHandle, path: &Path| {
        let entries = tree.read_dir(&from).on("list", path)?;
        Ok::<_, TreeError>(Level { from, to, entries })
    };
    let acl = tree
        .xattr(Node::Dir(to), OsStr::new(DEFAULT_ACL))
        .on("look at", &path)?;
    let root_inherits = acl.is_some();
    let mut levels = vec![open(from.clone(), to.clone(), &path)?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.pop() else {
            // Only now, since filling a directory changes its time, and what is made in one with a
            // default access control list inherits that.
            let (from, to) = (Node::Dir(&level.from), Node::Dir(&level.to));
            let metadata = tree.metadata(from).on("look at", &path)?;
            if path.as_os_str().is_empty() {
                return tree
                    .set_mtime(to, metadata.mtime)
                    .on("set the time of", &path);
            }
            copy_attributes(view, from, &metadata, to, Private::Keep)
                .on("copy the attributes of", &path)?;
            levels.pop();
            path.pop();
            continue;
        };
        path.push(&entry.name);
        let name = &*entry.name;
        let metadata = tree
            .metadata(Node::Entry(&level.from, name))
            .on("look at", &path)?;
        let shared = metadata.nlink > 1;
        // Those further down are in directories that are dressed later.
        let inherits = root_inherits && path.as_os_str() == name;
        if metadata.is_dir() {
            tree.create_dir(&level.to, name, 0o700)
                .on("create", &path)?;
            let inner_from = tree.open_dir(&level.from, name).on("open", &path)?;
            let inner_to = tree.open_dir(&level.to, name).on("open", &path)?;
            if inherits {
                drop_inherited(tree, Node::Dir(&inner_to)).on("change", &path)?;
            }
            levels.push(open(inner_from, inner_to, &path)?);
            continue;
        }
        if metadata.kind == FileKind::Socket {
            path.pop();
            continue;
        }
        match links.get(&metadata.ino) {
            Some((dir, first)) if shared => {
                tree.hard_link(dir, first, &level.to, name)
                    .on("link", &path)?;
            }
            _ => {
                let (source, target) = ((&level.from, name), (&level.to, name));
                copy_object(
                    view,
                    source,
                    None,
                    &metadata,
                    target,
                    Private::Keep,
                    inherits,
                )
                .on("copy", &path)?;
                if shared {
                    links.insert(metadata.ino, (level.to.clone(), name.to_owned()));
                }
            }
        }
        path.pop();
    }
    Ok(())
}

/// Two directories that become one, on the way down.
struct Fold {
    above: DirHandle,
    into: DirHandle,
    /// What `into` shows with the layers below it.
    merged: ViewDir,
    metadata: Metadata,
    entries: Vec<DirEntry>,
}

impl Fold {
    fn open(
        tree: &dyn TreeBackend,
        above: DirHandle,
        into: DirHandle,
        merged: ViewDir,
        path: &Path,
    ) -> Result<Self, TreeError> {
        let metadata = tree.metadata(Node::Dir(&above)).on("look at", path)?;
        let entries = tree.read_dir(&above).on("list", path)?;
        Ok(Self {
            above,
            into,
            merged,
            metadata,
            entries,
        })
    }
}

/// Moves everything of the layer directory `above` into `into`, as if it lay on top of it: what
/// results hides and shows over `lowers` what the two together did. `above` is left over.
///
/// # Errors
///
/// Any error of the backend, and [`io::ErrorKind::Unsupported`] with an
/// [`Unresolved`](crate::Unresolved) for a directory that merges with others in a way that leads
/// nowhere. Both directories are useless then.
pub fn fold_layer(
    view: View<'_>,
    above: &DirHandle,
    into: &DirHandle,
    lowers: &[DirHandle],
) -> Result<(), TreeError> {
    let tree = &FewHandles::new(view.tree(), 2 + lowers.len());
    let view = View::new(tree, view.xattrs());
    let mut path = PathBuf::new();
    let merged = ViewDir::new([std::slice::from_ref(into), lowers].concat());
    let lower = ViewDir::new(lowers.to_vec());
    let mut levels = vec![Fold::open(
        tree,
        above.clone(),
        into.clone(),
        merged,
        &path,
    )?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.pop() else {
            let (above, into) = (Node::Dir(&level.above), Node::Dir(&level.into));
            clear_attributes(view, into).on("remove attributes of", &path)?;
            copy_attributes(view, above, &level.metadata, into, Private::Drop)
                .on("copy the attributes of", &path)?;
            levels.pop();
            path.pop();
            continue;
        };
        path.push(&entry.name);
        match fold_entry(view, level, &lower, &entry.name, &path)? {
            Some(inner) => levels.push(inner),
            None => {
                path.pop();
            }
        }
    }
    Ok(())
}

/// Moves one entry, or gives the level to go on with when it is a directory in both.
fn fold_entry(
    view: View<'_>,
    level: &Fold,
    lower: &ViewDir,
    name: &OsStr,
    path: &Path,
) -> Result<Option<Fold>, TreeError> {
    let (tree, above, into) = (view.tree(), &level.above, &level.into);
    let parent = path.parent().unwrap_or(Path::new(""));
    let metadata = tree
        .metadata(Node::Entry(above, name))
        .on("look at", path)?;
    let existing = view.entry(into, name).on("look at", path)?;
    let lower = level.merged.below(1, lower);
    let below = view.lookup(&lower, name).on("look at", path)?;
    let whiteout = view
        .is_whiteout(above, name, &metadata)
        .on("look at", path)?;
    if whiteout && !below.exists() {
        remove_any(view, into, name).map_err(|error| error.below(parent))?;
        return Ok(None);
    }
    if metadata.is_dir() && existing.is_some_and(|existing| existing.is_dir()) {
        let inner = tree.open_dir(above, name).on("open", path)?;
        if !view.is_opaque(&inner).on("look at", path)?
            && let Found::Directory(merged, _) =
                view.lookup(&level.merged, name).on("look at", path)?
        {
            let target = tree.open_dir(into, name).on("open", path)?;
            return Fold::open(tree, inner, target, merged, path).map(Some);
        }
    }
    remove_any(view, into, name).map_err(|error| error.below(parent))?;
    tree.rename(above, name, into, name, RenameMode::NoReplace)
        .on("move", path)?;
    if !metadata.is_dir() {
        return Ok(None);
    }
    let moved = tree.open_dir(into, name).on("open", path)?;
    let is_below = matches!(below, Found::Directory(..));
    if existing.is_some() && is_below {
        // What it replaced, a whiteout or a file, had hidden the directory below.
        make_opaque(view, &moved, path)?;
        tree.set_mtime(Node::Dir(&moved), metadata.mtime)
            .on("set the time of", path)?;
    } else if !is_below && view.is_opaque(&moved).on("look at", path)? {
        // It hid what it has replaced, and nothing else is there to hide.
        let attribute = OsStr::new(view.xattrs().opaque());
        tree.remove_xattr(Node::Dir(&moved), attribute)
            .on("change", path)?;
    }
    Ok(None)
}
