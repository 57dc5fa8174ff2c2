//! What differs between any two merged trees, found by comparing all of both.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::change::{Change, ChangeKind, differs};
use crate::emit::{DiffSummary, Emitter};
use crate::error::{Context as _, DiffError};
use crate::native::LayerSize;
use crate::tree::{DirHandle, Node};
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
    let mut found = Vec::new();
    Walk { view, found: &mut found }.directory(tree, base, &mut PathBuf::new())?;
    Ok(found)
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
    let mut emitter = Emitter::new(view, output);
    let result = diff_into(&mut emitter, view, tree, base);
    emitter.end(result)
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
    let mut size = LayerSize::default();
    let mut seen = HashSet::new();
    for change in compare(view, tree, base)? {
        if change.kind() == ChangeKind::Deleted {
            continue;
        }
        let path = change.path();
        let parent = path.parent().unwrap_or(Path::new(""));
        let Some(dir) = view.descend(tree, parent.iter()).on("open", parent)? else { continue };
        let found = view.lookup(&dir, path.file_name().unwrap_or_default()).on("look at", path)?;
        if let Some(metadata) = found.metadata()
            && (metadata.nlink < 2 || metadata.is_dir() || seen.insert((metadata.dev, metadata.ino)))
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
        let metadata = view.tree().metadata(Node::Dir(root)).on("look at", Path::new(""))?;
        emitter.root(root, &metadata)?;
    }
    // Parents come one after another, so the directory of the last path is kept.
    let mut current: (PathBuf, ViewDir) = (PathBuf::new(), tree.clone());
    for change in compare(view, tree, base)? {
        let path = change.path();
        let parent = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().unwrap_or_default();
        if change.kind() == ChangeKind::Deleted {
            emitter.whiteout(parent, name)?;
            continue;
        }
        if current.0 != parent {
            let dir = view.descend(tree, parent.iter()).on("open", parent)?;
            let dir = dir.ok_or_else(|| DiffError::Changed { path: parent.to_owned() })?;
            current = (parent.to_owned(), dir);
        }
        match view.lookup(&current.1, name).on("look at", path)? {
            Found::Nothing => return Err(DiffError::Changed { path: path.to_owned() }),
            Found::Object(dir, metadata) => emitter.object(&dir, name, path, &metadata)?,
            Found::Directory(_, metadata) => {
                let holder = holder(view, &current.1, name, path)?;
                emitter.object(holder, name, path, &metadata)?;
            }
        }
    }
    Ok(())
}

/// The uppermost part of `dir` that has `name`.
fn holder<'d>(
    view: View<'_>,
    dir: &'d ViewDir,
    name: &OsStr,
    path: &Path,
) -> Result<&'d DirHandle, DiffError> {
    for part in dir.parts() {
        if view.entry(part, name).on("look at", path)?.is_some() {
            return Ok(part);
        }
    }
    Err(DiffError::Changed { path: path.to_owned() })
}

struct Walk<'a> {
    view: View<'a>,
    found: &'a mut Vec<Change>,
}

impl Walk<'_> {
    fn directory(
        &mut self,
        tree: &ViewDir,
        base: &ViewDir,
        path: &mut PathBuf,
    ) -> Result<(), DiffError> {
        let mut names = self.view.names(tree).on("list", path)?;
        names.extend(self.view.names(base).on("list", path)?);
        for name in names {
            path.push(&name);
            let now = self.view.lookup(tree, &name).on("look at", path)?;
            let then = self.view.lookup(base, &name).on("look at", path)?;
            self.object(tree, base, now, then, path)?;
            path.pop();
        }
        Ok(())
    }

    fn object(
        &mut self,
        tree: &ViewDir,
        base: &ViewDir,
        now: Found,
        then: Found,
        path: &mut PathBuf,
    ) -> Result<(), DiffError> {
        let kind = match (&now, &then) {
            (Found::Nothing, Found::Nothing) => return Ok(()),
            (Found::Nothing, _) => Some(ChangeKind::Deleted),
            (_, Found::Nothing) => Some(ChangeKind::Added),
            (Found::Directory(_, metadata), Found::Directory(_, before))
            | (Found::Object(_, metadata), Found::Object(_, before)) => {
                let name = path.file_name().unwrap_or_default();
                let node = holder(self.view, tree, name, path)?;
                let below = holder(self.view, base, name, path)?;
                let node = (Node::Entry(node, name), metadata);
                let below = (Node::Entry(below, name), before);
                differs(self.view, node, below, path)?.then_some(ChangeKind::Modified)
            }
            _ => Some(ChangeKind::Modified),
        };
        let at = self.found.len();
        let own = kind.is_some();
        self.found.push(Change::new(path.clone(), kind.unwrap_or(ChangeKind::Modified)));
        if let Found::Directory(inner, _) = &now {
            let nothing = ViewDir::default();
            let inner_base = match &then {
                Found::Directory(dir, _) => dir,
                Found::Nothing | Found::Object(..) => &nothing,
            };
            self.directory(inner, inner_base, path)?;
        }
        if !own && self.found.len() == at + 1 {
            self.found.pop();
        }
        Ok(())
    }
}
