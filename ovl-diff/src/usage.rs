//! What layers take, and what they add.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::emit::Inode;
use crate::error::{Context as _, DiffError};
use crate::handles::FewHandles;
use crate::levels::Level;
use crate::naive::{Cursor, size_of_walked, walk};
use crate::native::Layers;
use crate::tree::{DirHandle, Metadata};
use crate::view::{Found, View, ViewDir};

/// Adds up the apparent size of everything in a layer's directory but directories: the length of
/// the text for symbolic links, each inode once.
///
/// What a renamed directory has only in the layers below is not in the layer's directory, and not
/// counted: [`size_of`] does.
///
/// # Errors
///
/// Any error of the backend, except that what vanishes meanwhile is not counted.
pub fn size(view: View<'_>, upper: &DirHandle) -> Result<LayerSize, DiffError> {
    let tree = FewHandles::new(view.tree(), 1);
    let view = View::new(&tree, view.xattrs());
    Ok(Usage::of(view, upper)?.size)
}

/// As [`size`], for one layer on top of others: what directories show from below that were renamed
/// on a mount with `redirect_dir=on` adds to the apparent size, as it does to an archive. It takes
/// no blocks and no inodes of the layer.
///
/// # Errors
///
/// As for [`size`], and [`DiffError::Elsewhere`].
#[doc(alias = "DiffSize")]
pub fn size_of(
    view: View<'_>,
    upper: &DirHandle,
    lowers: &[DirHandle],
) -> Result<LayerSize, DiffError> {
    let few = FewHandles::new(view.tree(), 1 + lowers.len());
    let view = View::new(&few, view.xattrs());
    let mut usage = Usage::of(view, upper)?;
    let uppers = std::slice::from_ref(upper);
    let layers = Layers::new(uppers, lowers);
    let (mut tree, mut base) = (Cursor::new(&layers.tree()), Cursor::new(&layers.base()));
    let mut done: Option<PathBuf> = None;
    let mut renamed = std::mem::take(&mut usage.renamed);
    renamed.sort();
    for path in renamed {
        if done.as_ref().is_some_and(|done| path.starts_with(done)) {
            continue;
        }
        let Found::Directory(dir, _) = tree.find(view, &path)? else {
            continue;
        };
        let lower = dir.below(1, &layers.base());
        let moved = match base.find(view, &path)? {
            Found::Directory(base, _) => !view.is_same(&lower, &base).on("look at", &path)?,
            Found::Nothing | Found::Object(..) => true,
        };
        if moved {
            usage.add_shown(view, dir, &path)?;
            done = Some(path);
        }
    }
    Ok(usage.size)
}

/// Adds up what several layers add or modify together, as
/// [`size_of_changes`](crate::size_of_changes) does, without a walk of the layers below.
///
/// # Errors
///
/// As for [`size_of`].
pub fn size_of_change(view: View<'_>, layers: Layers<'_>) -> Result<LayerSize, DiffError> {
    let few = FewHandles::new(view.tree(), layers.len());
    let view = View::new(&few, view.xattrs());
    let tree = layers.tree();
    let walked = walk(view, &tree, &layers.base(), layers.above())?;
    size_of_walked(view, &tree, walked)
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

/// What is added up.
#[derive(Default)]
struct Usage {
    size: LayerSize,
    seen: HashSet<Inode>,
    /// Directories that merge with others than those of their names.
    renamed: Vec<PathBuf>,
}

impl Usage {
    fn of(view: View<'_>, upper: &DirHandle) -> Result<Self, DiffError> {
        let tree = view.tree();
        let mut usage = Self::default();
        let mut path = PathBuf::new();
        let list = |dir: &DirHandle, path: &Path| tree.read_dir(dir).on("list", path);
        let mut levels = vec![(upper.clone(), list(upper, &path)?)];
        while let Some((dir, entries)) = levels.last_mut() {
            let Some(entry) = entries.pop() else {
                levels.pop();
                path.pop();
                continue;
            };
            path.push(&entry.name);
            let found = view.entry(dir, &entry.name).on("look at", &path)?;
            if let Some(metadata) = &found
                && usage.is_new(metadata)
            {
                usage.size.add(metadata);
            }
            if found.is_some_and(|metadata| metadata.is_dir()) {
                let dir = tree.open_dir(dir, &entry.name).on("open", &path)?;
                if view.is_renamed(&dir).on("look at", &path)? {
                    usage.renamed.push(path.clone());
                }
                let entries = list(&dir, &path)?;
                levels.push((dir, entries));
            } else {
                path.pop();
            }
        }
        Ok(usage)
    }

    /// Adds what a directory shows from the layers below.
    fn add_shown(&mut self, view: View<'_>, dir: ViewDir, path: &Path) -> Result<(), DiffError> {
        let mut path = path.to_owned();
        let mut levels = vec![Level::open(view, dir, ViewDir::default(), None, &path)?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                path.pop();
                continue;
            };
            path.push(&name);
            let look = view.look(&level.tree, &name).on("look at", &path)?;
            match look.found {
                Found::Directory(dir, _) => {
                    levels.push(Level::open(view, dir, ViewDir::default(), None, &path)?);
                    continue;
                }
                Found::Object(_, metadata) if look.layer > 0 && self.is_new(&metadata) => {
                    self.size.apparent += metadata.size;
                }
                Found::Nothing | Found::Object(..) => {}
            }
            path.pop();
        }
        Ok(())
    }

    fn is_new(&mut self, metadata: &Metadata) -> bool {
        metadata.nlink < 2 || metadata.is_dir() || self.seen.insert((metadata.dev, metadata.ino))
    }
}
