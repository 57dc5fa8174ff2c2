//! What one layer changes, read from its own directory: the cost grows with the change.

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::change::{Change, ChangeKind, differs};
use crate::emit::{DiffSummary, Emitter};
use crate::error::{Context as _, DiffError};
use crate::tree::{DeviceNumber, DirEntry, DirHandle, FileKind, Metadata, Node};
use crate::view::{Found, View, ViewDir};

/// Writes a layer as an archive, from its `diff` directory and without mounting anything.
///
/// The output depends on nothing but the layer's contents and the names that the layers below have:
/// two diffs of the same layer are the same bytes. Names come depth first in byte order; user
/// attributes, capabilities and POSIX access control lists are kept; overlay's private attributes
/// are not. The root comes first, as `./`, when it differs from the root below. Sockets are left
/// out and counted.
///
/// # Errors
///
/// [`DiffError`] for any read error, for a file that changes meanwhile, for a name that an archive
/// reserves, for redirected directories and files without data. Nothing is ever silently left out.
#[doc(alias = "Diff")]
pub fn diff(
    view: View<'_>,
    upper: &DirHandle,
    lowers: &[DirHandle],
    root_opaque: bool,
    output: impl Write,
) -> Result<DiffSummary, DiffError> {
    let mut emitter = Emitter::new(view, output);
    let result = diff_into(&mut emitter, view, upper, lowers, root_opaque);
    emitter.end(result)
}

fn diff_into<W: Write>(
    emitter: &mut Emitter<'_, W>,
    view: View<'_>,
    upper: &DirHandle,
    lowers: &[DirHandle],
    root_opaque: bool,
) -> Result<(), DiffError> {
    let root = Path::new("");
    let metadata = view.tree().metadata(Node::Dir(upper)).on("look at", root)?;
    let root_differs = match lowers.first() {
        None => true,
        Some(below) => {
            let below_metadata = view.tree().metadata(Node::Dir(below)).on("look at", root)?;
            metadata.mtime != below_metadata.mtime
                || differs(view, (Node::Dir(upper), &metadata), (Node::Dir(below), &below_metadata), root)?
        }
    };
    if root_differs {
        emitter.root(upper, &metadata)?;
    }
    if root_opaque {
        emitter.opaque(root)?;
    }
    let below = if root_opaque { ViewDir::default() } else { ViewDir::new(lowers.to_vec()) };
    let mut levels = vec![Level::open(view, upper.clone(), PathBuf::new(), below)?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.pop() else {
            levels.pop();
            continue;
        };
        let path = level.path.join(&entry.name);
        let metadata = level.metadata(view, &entry, &path)?;
        if view.is_whiteout(&level.dir, &entry.name, &metadata).on("look at", &path)? {
            if view.lookup(&level.below, &entry.name).on("look at", &path)?.exists() {
                emitter.whiteout(&level.path, &entry.name)?;
            }
            continue;
        }
        emitter.object(&level.dir, &entry.name, &path, &metadata)?;
        if metadata.is_dir() {
            let dir = view.tree().open_dir(&level.dir, &entry.name).on("open", &path)?;
            let (inner, hides) = level.below(view, &dir, &entry.name, &path)?;
            if hides {
                emitter.opaque(&path)?;
            }
            levels.push(Level::open(view, dir, path, inner)?);
        }
    }
    Ok(())
}

/// Lists what a layer changes, from its `diff` directory: parents before what is in them, siblings
/// in byte order.
///
/// A directory is listed when its own attributes differ, or something in it does; an object that
/// was copied up and is the same as below is not.
///
/// # Errors
///
/// As for [`diff`], except that names and file contents that change are no error.
#[doc(alias = "Changes")]
pub fn changes(
    view: View<'_>,
    upper: &DirHandle,
    lowers: &[DirHandle],
    root_opaque: bool,
) -> Result<Vec<Change>, DiffError> {
    let mut found = Vec::new();
    let lowers = ViewDir::new(lowers.to_vec());
    if root_opaque {
        hidden(view, upper, &lowers, Path::new(""), &mut found)?;
    }
    // Here the levels carry what shows without this layer, also where an opaque directory hides it.
    let mut levels = vec![Level::open(view, upper.clone(), PathBuf::new(), lowers)?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.pop() else {
            if let Some(done) = levels.pop() {
                done.close(&mut found);
            }
            continue;
        };
        let path = level.path.join(&entry.name);
        let metadata = level.metadata(view, &entry, &path)?;
        let below = view.lookup(&level.below, &entry.name).on("look at", &path)?;
        let node = Node::Entry(&level.dir, &entry.name);
        if view.is_whiteout(&level.dir, &entry.name, &metadata).on("look at", &path)? {
            if below.exists() {
                found.push(Change::new(path, ChangeKind::Deleted));
            }
            continue;
        }
        if !metadata.is_dir() {
            let kind = match &below {
                Found::Nothing => Some(ChangeKind::Added),
                Found::Directory(..) => Some(ChangeKind::Modified),
                Found::Object(dir, below_metadata) => {
                    let below_node = Node::Entry(dir, &entry.name);
                    differs(view, (node, &metadata), (below_node, below_metadata), &path)?
                        .then_some(ChangeKind::Modified)
                }
            };
            found.extend(kind.map(|kind| Change::new(path, kind)));
            continue;
        }
        let kind = match &below {
            Found::Nothing => Some(ChangeKind::Added),
            Found::Object(..) => Some(ChangeKind::Modified),
            Found::Directory(parts, below_metadata) => {
                // `Found::Directory` has at least one part.
                let below_node = parts.parts().first().map_or(node, Node::Dir);
                differs(view, (node, &metadata), (below_node, below_metadata), &path)?
                    .then_some(ChangeKind::Modified)
            }
        };
        let dir = view.tree().open_dir(&level.dir, &entry.name).on("open", &path)?;
        let at = found.len();
        // Taken back when the directory is left and nothing in it has changed.
        let listed = kind.is_some();
        found.push(Change::new(path.clone(), kind.unwrap_or(ChangeKind::Modified)));
        let inner = match below {
            Found::Directory(parts, _) => {
                if view.is_opaque(&dir).on("look at", &path)? {
                    hidden(view, &dir, &parts, &path, &mut found)?;
                }
                parts
            }
            Found::Nothing | Found::Object(..) => ViewDir::default(),
        };
        let mut inner = Level::open(view, dir, path, inner)?;
        inner.change = Some((at, listed));
        levels.push(inner);
    }
    found.sort_by(|one, other| one.path().cmp(other.path()));
    Ok(found)
}

/// Everything that an opaque directory hides and has nothing of its own for.
fn hidden(
    view: View<'_>,
    upper: &DirHandle,
    below: &ViewDir,
    path: &Path,
    found: &mut Vec<Change>,
) -> Result<(), DiffError> {
    let own: BTreeSet<_> = view
        .tree()
        .read_dir(upper)
        .on("list", path)?
        .into_iter()
        .map(|entry| entry.name)
        .collect();
    for name in view.names(below).on("list", path)? {
        if !own.contains(&name) {
            found.push(Change::new(path.join(name), ChangeKind::Deleted));
        }
    }
    Ok(())
}

/// Adds up the apparent size of everything in a layer's directory but directories: the length of
/// the text for symbolic links, each inode once.
///
/// # Errors
///
/// Any error of the backend, except that what vanishes meanwhile is not counted.
#[doc(alias = "DiffSize")]
pub fn size(view: View<'_>, upper: &DirHandle) -> Result<LayerSize, DiffError> {
    let mut size = LayerSize::default();
    let mut seen: HashSet<(DeviceNumber, u64)> = HashSet::new();
    let mut levels = vec![Level::open(view, upper.clone(), PathBuf::new(), ViewDir::default())?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.pop() else {
            levels.pop();
            continue;
        };
        let path = level.path.join(&entry.name);
        let Some(metadata) = view.entry(&level.dir, &entry.name).on("look at", &path)? else {
            continue;
        };
        let first = metadata.nlink < 2 || metadata.is_dir() || seen.insert((metadata.dev, metadata.ino));
        if first {
            size.add(&metadata);
        }
        if metadata.is_dir() {
            let dir = view.tree().open_dir(&level.dir, &entry.name).on("open", &path)?;
            levels.push(Level::open(view, dir, path, ViewDir::default())?);
        }
    }
    Ok(size)
}

/// What a layer takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerSize {
    /// Bytes as `ls -l` shows them, directories not counted: the number that Docker gives.
    pub apparent: u64,
    /// Bytes that are allocated, directories counted.
    pub allocated: u64,
    /// Inodes, the root not counted.
    pub inodes: u64,
}

impl LayerSize {
    pub(crate) fn add(&mut self, metadata: &Metadata) {
        self.inodes += 1;
        self.allocated += metadata.blocks * 512;
        if !metadata.is_dir() {
            self.apparent += metadata.size;
        }
    }
}

/// Waits until everything in a layer's directory is on disk, the directory itself last.
///
/// # Errors
///
/// Any error of the backend.
pub fn sync_layer(view: View<'_>, root: &DirHandle) -> Result<(), DiffError> {
    let tree = view.tree();
    let mut levels = vec![Level::open(view, root.clone(), PathBuf::new(), ViewDir::default())?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.pop() else {
            if let Some(done) = levels.pop() {
                tree.sync(Node::Dir(&done.dir)).on("sync", &done.path)?;
            }
            continue;
        };
        let path = level.path.join(&entry.name);
        match entry.kind {
            FileKind::Directory => {
                let dir = tree.open_dir(&level.dir, &entry.name).on("open", &path)?;
                levels.push(Level::open(view, dir, path, ViewDir::default())?);
            }
            FileKind::Regular => {
                tree.sync(Node::Entry(&level.dir, &entry.name)).on("sync", &path)?;
            }
            // The others are all in their inode, which the directory's sync takes along.
            _ => {}
        }
    }
    Ok(())
}

/// One directory of a layer on the way down.
struct Level {
    dir: DirHandle,
    path: PathBuf,
    /// In reverse byte order, so that the next one is the last.
    entries: Vec<DirEntry>,
    /// What the layers below show here.
    below: ViewDir,
    /// The directory's own place in the list of changes, and whether it stays there anyway.
    change: Option<(usize, bool)>,
}

impl Level {
    fn open(view: View<'_>, dir: DirHandle, path: PathBuf, below: ViewDir) -> Result<Self, DiffError> {
        let mut entries = view.tree().read_dir(&dir).on("list", &path)?;
        entries.sort_unstable_by(|one, other| other.name.cmp(&one.name));
        Ok(Self { dir, path, entries, below, change: None })
    }

    /// An entry's metadata; what says that its contents are elsewhere is an error.
    fn metadata(&self, view: View<'_>, entry: &DirEntry, path: &Path) -> Result<Metadata, DiffError> {
        let node = Node::Entry(&self.dir, &entry.name);
        let metadata = view.tree().metadata(node).on("look at", path)?;
        let attribute = match metadata.kind {
            FileKind::Directory => view.xattrs().redirect(),
            FileKind::Regular => view.xattrs().metacopy(),
            _ => return Ok(metadata),
        };
        match view.tree().xattr(node, OsStr::new(attribute)).on("read attributes of", path)? {
            None => Ok(metadata),
            Some(_) => Err(DiffError::Elsewhere { path: path.to_owned(), attribute }),
        }
    }

    /// What the layers below show in the directory `name`, and whether `dir`, being opaque, hides
    /// something there.
    fn below(
        &self,
        view: View<'_>,
        dir: &DirHandle,
        name: &OsStr,
        path: &Path,
    ) -> Result<(ViewDir, bool), DiffError> {
        let Found::Directory(below, _) = view.lookup(&self.below, name).on("look at", path)? else {
            return Ok((ViewDir::default(), false));
        };
        if view.is_opaque(dir).on("look at", path)? {
            return Ok((ViewDir::default(), true));
        }
        Ok((below, false))
    }

    fn close(&self, found: &mut Vec<Change>) {
        if let Some((at, false)) = self.change
            && found.len() == at + 1
        {
            found.pop();
        }
    }
}
