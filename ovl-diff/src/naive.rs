//! What differs between two merged trees: found by comparing all of both, or only what the layers
//! have that are in one and not in the other.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::change::{Change, ChangeKind, differs};
use crate::emit::{DiffOptions, DiffSummary, Emitter, Inode};
use crate::error::{Context as _, DiffError};
use crate::handles::FewHandles;
use crate::levels::{Below, Level, below};
use crate::output::with_output;
use crate::tree::{FileKind, Metadata, Node};
use crate::usage::LayerSize;
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
    let few = FewHandles::new(view.tree(), tree.parts().len() + base.parts().len());
    Ok(walk(View::new(&few, view.xattrs()), tree, base, None)?.changes)
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
    output: impl Write + Send,
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
    output: impl Write + Send,
    confirm: impl FnOnce() -> Result<(), DiffError>,
) -> Result<DiffSummary, DiffError> {
    let few = FewHandles::new(view.tree(), tree.parts().len() + base.parts().len());
    let view = View::new(&few, view.xattrs());
    with_output(output, |output| {
        let mut emitter = Emitter::new(view, options, output);
        let result = diff_into(&mut emitter, view, tree, base);
        emitter.end(result.and_then(|()| confirm()))
    })
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
    let few = FewHandles::new(view.tree(), tree.parts().len() + base.parts().len());
    let view = View::new(&few, view.xattrs());
    let walked = walk(view, tree, base, None)?;
    size_of_walked(view, tree, walked)
}

/// Adds up what was added or modified.
pub(crate) fn size_of_walked(
    view: View<'_>,
    tree: &ViewDir,
    walked: Walked,
) -> Result<LayerSize, DiffError> {
    let mut size = LayerSize::default();
    let mut seen = HashSet::new();
    let mut cursor = Cursor::new(tree);
    for change in walked.changes {
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
    let walked = walk(view, tree, base, None)?;
    let mut found = walked.relinked();
    found.extend(walked.changes);
    found.sort_by(|one, other| one.path().cmp(other.path()));
    let mut cursor = Cursor::new(tree);
    for change in found {
        let path = change.path();
        let parent = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().unwrap_or_default();
        if change.kind() == ChangeKind::Deleted {
            emitter.whiteout(parent, name, None)?;
            continue;
        }
        let found = cursor.find(view, path)?;
        match found {
            Found::Directory(dir, metadata) if !dir.is_empty() => {
                emitter.directory(&dir.parts()[0], path, &metadata)?;
            }
            Found::Object(_, metadata) if metadata.kind == FileKind::Socket => {
                emitter.socket(parent, name, change.kind() == ChangeKind::Modified)?;
            }
            Found::Object(dir, metadata) => {
                emitter.object(cursor.last(), &dir, name, path, &metadata)?;
            }
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
pub(crate) struct Cursor {
    root: ViewDir,
    /// From the one below the root down.
    dirs: Vec<ViewDir>,
    path: PathBuf,
}

impl Cursor {
    pub(crate) fn new(root: &ViewDir) -> Self {
        Self {
            root: root.clone(),
            dirs: Vec::new(),
            path: PathBuf::new(),
        }
    }

    /// The directory in which the last search ended.
    pub(crate) fn last(&self) -> &ViewDir {
        self.dirs.last().unwrap_or(&self.root)
    }

    pub(crate) fn find(&mut self, view: View<'_>, path: &Path) -> Result<Found, DiffError> {
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
        Ok(view.lookup(self.last(), name).on("look at", path)?)
    }
}

/// All differences of two trees.
#[derive(Default)]
pub(crate) struct Walked {
    pub(crate) changes: Vec<Change>,
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

/// A directory's own place in the list of changes, and whether it stays there anyway.
type Place = (usize, bool);

/// Compares two trees: all of both, or where `above` says how many layers of the tree lie on top of
/// those of the base, only what they have.
pub(crate) fn walk(
    view: View<'_>,
    tree: &ViewDir,
    base: &ViewDir,
    above: Option<usize>,
) -> Result<Walked, DiffError> {
    let (mut walked, mut path) = (Walked::default(), PathBuf::new());
    let root = Level::open(view, tree.clone(), base.clone(), above, &path)?;
    let mut levels: Vec<(Level, Option<Place>)> = vec![(root, None)];
    while let Some((level, change)) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            level.refuse_changed(view, &path)?;
            // Nothing in the directory is different.
            if *change == Some((walked.changes.len().wrapping_sub(1), false)) {
                walked.changes.pop();
            }
            levels.pop();
            path.pop();
            continue;
        };
        path.push(&name);
        match object(view, level, &name, &path, &mut walked)? {
            Some((inner, change)) => levels.push((inner, Some(change))),
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
) -> Result<Option<(Level, Place)>, DiffError> {
    let look = view.look(&level.tree, name).on("look at", path)?;
    let Below { then, above } = below(view, level, &look, name, path)?;
    let now = look.found;
    let kind = match (&now, &then) {
        (Found::Nothing, Found::Nothing) => return Ok(None),
        (Found::Nothing, _) => Some(ChangeKind::Deleted),
        (_, Found::Nothing) => Some(ChangeKind::Added),
        (Found::Directory(..), Found::Directory(..)) | (Found::Object(..), Found::Object(..)) => {
            let (tree, base) = (&level.tree, &level.base);
            differs(view, name, (tree, &now), (base, &then), path)?.then_some(ChangeKind::Modified)
        }
        _ => Some(ChangeKind::Modified),
    };
    match now {
        Found::Directory(tree, _) => {
            let change = (walked.changes.len(), kind.is_some());
            let kind = kind.unwrap_or(ChangeKind::Modified);
            walked.changes.push(Change::new(path.to_owned(), kind));
            let base = match then {
                Found::Directory(dir, _) => dir,
                Found::Nothing | Found::Object(..) => ViewDir::default(),
            };
            let inner = Level::open(view, tree, base, above, path)?;
            Ok(Some((inner, change)))
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
