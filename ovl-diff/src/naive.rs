//! What differs between any two merged trees, found by comparing all of both.

use std::collections::{HashMap, HashSet, btree_set};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::change::{Change, ChangeKind, differs};
use crate::emit::{DiffOptions, DiffSummary, Emitter};
use crate::error::{Context as _, DiffError};
use crate::handles::FewHandles;
use crate::native::LayerSize;
use crate::tree::{DeviceNumber, FileKind, Metadata, Node};
use crate::view::{Found, View, ViewDir};

/// Lists what is different in `tree` from `base`: parents before what is in them, in byte order.
///
/// Both are merged views of layers, or mounted trees as one part. Every name of both is looked at,
/// so this works for trees that have nothing to do with each other.
///
/// # Errors
///
/// [`DiffError`] for any read error.
pub fn compare(view: View<'_>, tree: &ViewDir, base: &ViewDir) -> Result<Vec<Change>, DiffError> {
    let few = FewHandles::new(view.tree());
    Ok(walk(View::new(&few, view.xattrs()), tree, base)?.changes)
}

/// Writes what is different in `tree` from `base` as an archive that turns one into the other. The
/// root comes first, as `./`.
///
/// # Errors
///
/// As for [`diff`](crate::diff).
pub fn diff_trees(
    view: View<'_>,
    tree: &ViewDir,
    base: &ViewDir,
    output: impl Write,
) -> Result<DiffSummary, DiffError> {
    diff_trees_confirmed(view, tree, base, &DiffOptions::new(), output, || Ok(()))
}

/// As [`diff_trees`], with options, and asks `confirm` before the archive is ended, as
/// [`diff_confirmed`](crate::diff_confirmed) does.
///
/// # Errors
///
/// As for [`diff_confirmed`](crate::diff_confirmed).
pub fn diff_trees_confirmed(
    view: View<'_>,
    tree: &ViewDir,
    base: &ViewDir,
    options: &DiffOptions,
    output: impl Write,
    confirm: impl FnOnce() -> Result<(), DiffError>,
) -> Result<DiffSummary, DiffError> {
    let few = FewHandles::new(view.tree());
    let view = View::new(&few, view.xattrs());
    let mut emitter = Emitter::new(view, options, output);
    let result = diff_into(&mut emitter, view, tree, base);
    emitter.end(result.and_then(|()| confirm()))
}

/// Adds up the size of what is added or modified in `tree` against `base`, as [`size`](crate::size)
/// does for one layer.
///
/// # Errors
///
/// [`DiffError`] for any read error.
pub fn size_of_changes(
    view: View<'_>,
    tree: &ViewDir,
    base: &ViewDir,
) -> Result<LayerSize, DiffError> {
    let few = FewHandles::new(view.tree());
    let view = View::new(&few, view.xattrs());
    let mut size = LayerSize::default();
    let mut seen = HashSet::new();
    let mut cursor = Cursor::new(tree);
    for change in walk(view, tree, base)?.changes {
        if change.kind() != ChangeKind::Deleted
            && let Some(metadata) = cursor.find(view, change.path())?.metadata()
            && (metadata.nlink < 2
                || metadata.is_dir()
                || seen.insert((metadata.dev, metadata.ino)))
        {
            size.add(metadata);
        }
    }
    Ok(size)
}

fn diff_into<W: Write>(
    emitter: &mut Emitter<'_, W>,
    view: View<'_>,
    tree: &ViewDir,
    base: &ViewDir,
) -> Result<(), DiffError> {
    if let Some(root) = tree.parts().first() {
        let metadata = view
            .tree()
            .metadata(Node::Dir(root))
            .on("look at", Path::new(""))?;
        emitter.root(root, &metadata)?;
    }
    let walked = walk(view, tree, base)?;
    let mut found = walked.relinked();
    found.extend(walked.changes);
    found.sort_by(|one, other| one.path().cmp(other.path()));
    let mut cursor = Cursor::new(tree);
    for change in found {
        let path = change.path();
        let parent = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().unwrap_or_default();
        if change.kind() == ChangeKind::Deleted {
            emitter.whiteout(parent, name)?;
            continue;
        }
        match cursor.find(view, path)? {
            Found::Directory(dir, metadata) if !dir.is_empty() => {
                emitter.directory(&dir.parts()[0], path, &metadata)?;
            }
            Found::Object(_, metadata) if metadata.kind == FileKind::Socket => {
                emitter.socket(parent, name, change.kind() == ChangeKind::Modified)?;
            }
            Found::Object(dir, metadata) => emitter.object(&dir, name, path, &metadata)?,
            Found::Nothing | Found::Directory(..) => {
                return Err(DiffError::Changed {
                    path: path.to_owned(),
                });
            }
        }
    }
    Ok(())
}

/// Finds paths that come in order: the directories on the way to the last one are kept.
struct Cursor {
    /// From the root down.
    dirs: Vec<ViewDir>,
    path: PathBuf,
}

impl Cursor {
    fn new(root: &ViewDir) -> Self {
        Self {
            dirs: vec![root.clone()],
            path: PathBuf::new(),
        }
    }

    fn find(&mut self, view: View<'_>, path: &Path) -> Result<Found, DiffError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        while !parent.starts_with(&self.path) {
            self.path.pop();
            self.dirs.pop();
        }
        for name in parent
            .strip_prefix(&self.path)
            .unwrap_or(Path::new(""))
            .iter()
        {
            let path = self.path.join(name);
            let Found::Directory(dir, _) = self.lookup(view, name, &path)? else {
                return Ok(Found::Nothing);
            };
            self.dirs.push(dir);
            self.path = path;
        }
        self.lookup(view, path.file_name().unwrap_or_default(), path)
    }

    fn lookup(&self, view: View<'_>, name: &OsStr, path: &Path) -> Result<Found, DiffError> {
        let Some(dir) = self.dirs.last() else {
            return Ok(Found::Nothing);
        };
        Ok(view.lookup(dir, name).on("look at", path)?)
    }
}

type Inode = (DeviceNumber, u64);

/// All differences of two trees.
#[derive(Default)]
struct Walked {
    changes: Vec<Change>,
    /// Objects of the tree with several names: the inode, and the one that has the name in the base
    /// when nothing else is different.
    linked: Vec<(PathBuf, Inode, Option<Inode>)>,
}

impl Walked {
    /// Names that are the same in both trees but for whom they are hard links of. Of a group of hard
    /// links all or none are in an archive, since the layers below are not changed.
    fn relinked(&self) -> Vec<Change> {
        let mut first_now: HashMap<Inode, &Path> = HashMap::new();
        let mut first_then: HashMap<Inode, &Path> = HashMap::new();
        let mut whole: HashSet<Inode> = HashSet::new();
        for (path, now, then) in &self.linked {
            let same = then.is_some_and(|then| {
                *first_now.entry(*now).or_insert(path) == *first_then.entry(then).or_insert(path)
            });
            if !same {
                whole.insert(*now);
            }
        }
        let unchanged = self.linked.iter().filter(|(_, _, then)| then.is_some());
        unchanged
            .filter(|(_, now, _)| whole.contains(now))
            .map(|(path, ..)| Change::new(path.clone(), ChangeKind::Modified))
            .collect()
    }
}

/// A directory of both trees on the way down.
struct Level {
    tree: ViewDir,
    base: ViewDir,
    names: btree_set::IntoIter<OsString>,
    /// The directory's own place in the list of changes, and whether it stays there anyway.
    change: Option<(usize, bool)>,
}

impl Level {
    fn open(view: View<'_>, tree: ViewDir, base: ViewDir, path: &Path) -> Result<Self, DiffError> {
        let mut names = view.names(&tree).on("list", path)?;
        names.extend(view.names(&base).on("list", path)?);
        Ok(Self {
            tree,
            base,
            names: names.into_iter(),
            change: None,
        })
    }
}

fn walk(view: View<'_>, tree: &ViewDir, base: &ViewDir) -> Result<Walked, DiffError> {
    let (mut walked, mut path) = (Walked::default(), PathBuf::new());
    let mut levels = vec![Level::open(view, tree.clone(), base.clone(), &path)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            let done = levels.pop().and_then(|level| level.change);
            // Nothing in the directory is different.
            if done == Some((walked.changes.len().wrapping_sub(1), false)) {
                walked.changes.pop();
            }
            path.pop();
            continue;
        };
        path.push(&name);
        match object(view, level, &name, &path, &mut walked)? {
            Some(inner) => levels.push(inner),
            None => {
                path.pop();
            }
        }
    }
    Ok(walked)
}

/// Compares what has one name, and gives the level to go on with when it is a directory.
fn object(
    view: View<'_>,
    level: &Level,
    name: &OsStr,
    path: &Path,
    walked: &mut Walked,
) -> Result<Option<Level>, DiffError> {
    let now = view.lookup(&level.tree, name).on("look at", path)?;
    let then = view.lookup(&level.base, name).on("look at", path)?;
    let kind = match (&now, &then) {
        (Found::Nothing, Found::Nothing) => return Ok(None),
        (Found::Nothing, _) => Some(ChangeKind::Deleted),
        (_, Found::Nothing) => Some(ChangeKind::Added),
        (Found::Directory(_, metadata), Found::Directory(_, before))
        | (Found::Object(_, metadata), Found::Object(_, before)) => {
            let (Some(node), Some(below)) = (now.node(name), then.node(name)) else {
                return Ok(None);
            };
            differs(view, (node, metadata), (below, before), path)?.then_some(ChangeKind::Modified)
        }
        _ => Some(ChangeKind::Modified),
    };
    match now {
        Found::Directory(tree, _) => {
            let change = Some((walked.changes.len(), kind.is_some()));
            let kind = kind.unwrap_or(ChangeKind::Modified);
            walked.changes.push(Change::new(path.to_owned(), kind));
            let base = match then {
                Found::Directory(dir, _) => dir,
                Found::Nothing | Found::Object(..) => ViewDir::default(),
            };
            let inner = Level::open(view, tree, base, path)?;
            Ok(Some(Level { change, ..inner }))
        }
        Found::Nothing | Found::Object(..) => {
            if let Found::Object(_, metadata) = &now {
                let inode = |of: &Metadata| (of.dev, of.ino);
                let before = then.metadata().filter(|_| kind.is_none());
                if metadata.nlink > 1 || before.is_some_and(|before| before.nlink > 1) {
                    walked
                        .linked
                        .push((path.to_owned(), inode(metadata), before.map(inode)));
                }
            }
            walked
                .changes
                .extend(kind.map(|kind| Change::new(path.to_owned(), kind)));
            Ok(None)
        }
    }
}
