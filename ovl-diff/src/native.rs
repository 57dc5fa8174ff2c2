//! What one layer changes, read from its own directory: the cost grows with the change.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::change::{Change, ChangeKind, differs};
use crate::emit::{DiffOptions, DiffSummary, Emitter};
use crate::error::{Context as _, DiffError};
use crate::handles::FewHandles;
use crate::tree::{DeviceNumber, DirEntry, DirHandle, FileKind, Metadata, Node, TreeBackend as _};
use crate::view::{Found, View, ViewDir};

/// Writes a layer as an archive, from its `diff` directory and without mounting anything.
///
/// The output depends on nothing but the layer's contents and the names that the layers below have:
/// two diffs of the same layer are the same bytes. Names come depth first in byte order; user
/// attributes, capabilities and POSIX access control lists are kept; overlay's private attributes
/// are not. The root comes first, as `./`, when it differs from the root below. Sockets are left
/// out and counted; what one hides below is written as gone.
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
    let options = DiffOptions::new();
    diff_confirmed(
        view,
        upper,
        lowers,
        root_opaque,
        &options,
        output,
        || Ok(()),
    )
}

/// As [`diff`], with options, and asks `confirm` before the archive is ended: when what was read
/// turns out not to be the layer any more, the output is broken off instead.
///
/// # Errors
///
/// As for [`diff`], what `confirm` gives, and [`DiffError::NoContainerId`] for an id on disk that the
/// options' maps do not have.
pub fn diff_confirmed(
    view: View<'_>,
    upper: &DirHandle,
    lowers: &[DirHandle],
    root_opaque: bool,
    options: &DiffOptions,
    output: impl Write,
    confirm: impl FnOnce() -> Result<(), DiffError>,
) -> Result<DiffSummary, DiffError> {
    let tree = FewHandles::new(view.tree());
    let view = View::new(&tree, view.xattrs());
    let mut emitter = Emitter::new(view, options, output);
    let result = diff_into(&mut emitter, view, upper, lowers, root_opaque);
    emitter.end(result.and_then(|()| confirm()))
}

fn diff_into<W: Write>(
    emitter: &mut Emitter<'_, W>,
    view: View<'_>,
    upper: &DirHandle,
    lowers: &[DirHandle],
    root_opaque: bool,
) -> Result<(), DiffError> {
    let mut path = PathBuf::new();
    let metadata = view
        .tree()
        .metadata(Node::Dir(upper))
        .on("look at", &path)?;
    let root_differs = match lowers.first() {
        None => true,
        Some(below) => {
            let below_metadata = view
                .tree()
                .metadata(Node::Dir(below))
                .on("look at", &path)?;
            let one = (Node::Dir(upper), &metadata);
            let other = (Node::Dir(below), &below_metadata);
            metadata.mtime != below_metadata.mtime || differs(view, one, other, &path)?
        }
    };
    if root_differs {
        emitter.root(upper, &metadata)?;
    }
    if root_opaque {
        emitter.opaque(&path)?;
    }
    let below = if root_opaque {
        ViewDir::default()
    } else {
        ViewDir::new(lowers.to_vec())
    };
    let mut levels = vec![Level::open(view, upper.clone(), &path, below)?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.pop() else {
            levels.pop();
            path.pop();
            continue;
        };
        path.push(&entry.name);
        match diff_entry(emitter, view, level, &entry, &path)? {
            Some(inner) => levels.push(inner),
            None => {
                path.pop();
            }
        }
    }
    Ok(())
}

/// Writes one entry, and gives the level to go on with when it is a directory.
fn diff_entry<W: Write>(
    emitter: &mut Emitter<'_, W>,
    view: View<'_>,
    level: &Level,
    entry: &DirEntry,
    path: &Path,
) -> Result<Option<Level>, DiffError> {
    let (tree, name) = (view.tree(), &*entry.name);
    let parent = path.parent().unwrap_or(Path::new(""));
    let metadata = tree
        .metadata(Node::Entry(&level.dir, name))
        .on("look at", path)?;
    let below = || view.lookup(&level.below, name).on("look at", path);
    if metadata.is_dir() {
        let dir = tree.open_dir(&level.dir, name).on("open", path)?;
        let marks = emitter.directory(&dir, path, &metadata)?;
        let inner = match below()? {
            Found::Directory(..) if marks.opaque => {
                emitter.opaque(path)?;
                ViewDir::default()
            }
            Found::Directory(below, _) => below,
            Found::Nothing | Found::Object(..) => ViewDir::default(),
        };
        return Level::open(view, dir, path, inner).map(Some);
    }
    if metadata.kind == FileKind::Socket {
        emitter.socket(parent, name, below()?.exists())?;
    } else if !view
        .is_whiteout(&level.dir, name, &metadata)
        .on("look at", path)?
    {
        emitter.object(&level.dir, name, path, &metadata)?;
    } else if below()?.exists() {
        emitter.whiteout(parent, name)?;
    }
    Ok(None)
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
    let tree = FewHandles::new(view.tree());
    let view = View::new(&tree, view.xattrs());
    let mut found = Vec::new();
    let mut path = PathBuf::new();
    let lowers = ViewDir::new(lowers.to_vec());
    // Here the levels carry what shows without this layer, also where an opaque directory hides it.
    let mut root = Level::open(view, upper.clone(), &path, lowers)?;
    if root_opaque {
        root.hide(view, &path, &mut found)?;
    }
    let mut levels = vec![root];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.pop() else {
            if let Some(done) = levels.pop() {
                done.close(&mut found);
            }
            path.pop();
            continue;
        };
        path.push(&entry.name);
        match changes_of_entry(view, level, &entry, &path, &mut found)? {
            Some(inner) => levels.push(inner),
            None => {
                path.pop();
            }
        }
    }
    found.sort_by(|one, other| one.path().cmp(other.path()));
    Ok(found)
}

/// Lists one entry, and gives the level to go on with when it is a directory.
fn changes_of_entry(
    view: View<'_>,
    level: &Level,
    entry: &DirEntry,
    path: &Path,
    found: &mut Vec<Change>,
) -> Result<Option<Level>, DiffError> {
    let (tree, name) = (view.tree(), &*entry.name);
    let node = Node::Entry(&level.dir, name);
    let metadata = tree.metadata(node).on("look at", path)?;
    let below = view.lookup(&level.below, name).on("look at", path)?;
    if view
        .is_whiteout(&level.dir, name, &metadata)
        .on("look at", path)?
    {
        if below.exists() {
            found.push(Change::new(path.to_owned(), ChangeKind::Deleted));
        }
        return Ok(None);
    }
    if !metadata.is_dir() {
        let kind = match &below {
            Found::Nothing => Some(ChangeKind::Added),
            Found::Directory(..) => Some(ChangeKind::Modified),
            Found::Object(dir, below_metadata) => {
                let below_node = Node::Entry(dir, name);
                differs(view, (node, &metadata), (below_node, below_metadata), path)?
                    .then_some(ChangeKind::Modified)
            }
        };
        found.extend(kind.map(|kind| Change::new(path.to_owned(), kind)));
        return Ok(None);
    }
    let dir = tree.open_dir(&level.dir, name).on("open", path)?;
    let marks = view.marks(Node::Dir(&dir)).on("read attributes of", path)?;
    if let Some(attribute) = marks.elsewhere {
        return Err(DiffError::Elsewhere {
            path: path.to_owned(),
            attribute,
        });
    }
    let kind = match &below {
        Found::Nothing => Some(ChangeKind::Added),
        Found::Object(..) => Some(ChangeKind::Modified),
        Found::Directory(parts, below_metadata) => {
            // `Found::Directory` has at least one part.
            let below_node = parts.parts().first().map_or(node, Node::Dir);
            differs(
                view,
                (Node::Dir(&dir), &metadata),
                (below_node, below_metadata),
                path,
            )?
            .then_some(ChangeKind::Modified)
        }
    };
    let at = found.len();
    // Taken back when the directory is left and nothing in it has changed.
    let listed = kind.is_some();
    found.push(Change::new(
        path.to_owned(),
        kind.unwrap_or(ChangeKind::Modified),
    ));
    let below = match below {
        Found::Directory(parts, _) => parts,
        Found::Nothing | Found::Object(..) => ViewDir::default(),
    };
    let mut inner = Level::open(view, dir, path, below)?;
    inner.change = Some((at, listed));
    if marks.opaque || level.hides {
        inner.hide(view, path, found)?;
    }
    Ok(Some(inner))
}

/// Adds up the apparent size of everything in a layer's directory but directories: the length of
/// the text for symbolic links, each inode once.
///
/// # Errors
///
/// Any error of the backend, except that what vanishes meanwhile is not counted.
#[doc(alias = "DiffSize")]
pub fn size(view: View<'_>, upper: &DirHandle) -> Result<LayerSize, DiffError> {
    let tree = FewHandles::new(view.tree());
    let view = View::new(&tree, view.xattrs());
    let mut size = LayerSize::default();
    let mut seen: HashSet<(DeviceNumber, u64)> = HashSet::new();
    let mut path = PathBuf::new();
    let mut levels = vec![Level::open(view, upper.clone(), &path, ViewDir::default())?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.pop() else {
            levels.pop();
            path.pop();
            continue;
        };
        path.push(&entry.name);
        let found = view.entry(&level.dir, &entry.name).on("look at", &path)?;
        if let Some(metadata) = &found
            && (metadata.nlink < 2
                || metadata.is_dir()
                || seen.insert((metadata.dev, metadata.ino)))
        {
            size.add(metadata);
        }
        if found.is_some_and(|metadata| metadata.is_dir()) {
            let dir = tree.open_dir(&level.dir, &entry.name).on("open", &path)?;
            levels.push(Level::open(view, dir, &path, ViewDir::default())?);
        } else {
            path.pop();
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

/// One directory of a layer on the way down.
struct Level {
    dir: DirHandle,
    /// In reverse byte order, so that the next one is the last.
    entries: Vec<DirEntry>,
    /// What the layers below show here.
    below: ViewDir,
    /// Nothing of that shows: this directory or one further up is opaque.
    hides: bool,
    /// The directory's own place in the list of changes, and whether it stays there anyway.
    change: Option<(usize, bool)>,
}

impl Level {
    fn open(
        view: View<'_>,
        dir: DirHandle,
        path: &Path,
        below: ViewDir,
    ) -> Result<Self, DiffError> {
        let mut entries = view.tree().read_dir(&dir).on("list", path)?;
        entries.sort_unstable_by(|one, other| other.name.cmp(&one.name));
        Ok(Self {
            dir,
            entries,
            below,
            hides: false,
            change: None,
        })
    }

    /// Lists what the directory, being opaque, hides and has nothing of its own for.
    fn hide(
        &mut self,
        view: View<'_>,
        path: &Path,
        found: &mut Vec<Change>,
    ) -> Result<(), DiffError> {
        self.hides = true;
        let mut names = view.names(&self.below).on("list", path)?;
        for own in &self.entries {
            names.remove(&own.name);
        }
        for name in names {
            let path = path.join(&name);
            // A listing can hold whiteouts in the form of files.
            if view
                .lookup(&self.below, &name)
                .on("look at", &path)?
                .exists()
            {
                found.push(Change::new(path, ChangeKind::Deleted));
            }
        }
        Ok(())
    }

    fn close(&self, found: &mut Vec<Change>) {
        if let Some((at, false)) = self.change
            && found.len() == at + 1
        {
            found.pop();
        }
    }
}
