//! What layers change, read from their own directories: the cost grows with the change.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::ahead::{Ahead, Batch, Next};
use crate::change::{Change, differs};
use crate::emit::{DiffOptions, DiffSummary, Emitter, Inode};
use crate::error::{Context as _, DiffError};
use crate::handles::FewHandles;
use crate::levels::{Below, Level, below};
use crate::naive::walk;
use crate::output::with_output;
use crate::tree::{DirHandle, FileKind, Metadata, Node};
use crate::view::{Found, Look, View, ViewDir};
use crate::workers::{Workers, with_workers};

/// Layers, seen as what they change of the layers below them. All are `diff` directories, uppermost
/// first.
#[derive(Clone, Copy, Debug)]
pub struct Layers<'a> {
    uppers: &'a [DirHandle],
    lowers: &'a [DirHandle],
    root_opaque: bool,
}

impl<'a> Layers<'a> {
    /// What `uppers` change of what `lowers` show.
    #[must_use]
    pub const fn new(uppers: &'a [DirHandle], lowers: &'a [DirHandle]) -> Self {
        Self {
            uppers,
            lowers,
            root_opaque: false,
        }
    }

    /// Sets whether nothing of `lowers` shows. The kernel ignores an opaque mark of a layer's root,
    /// so that it is not written there.
    #[must_use]
    pub const fn root_opaque(self, root_opaque: bool) -> Self {
        Self {
            root_opaque,
            ..self
        }
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.uppers.len() + self.lowers.len()
    }

    /// What all of them show.
    pub(crate) fn tree(&self) -> ViewDir {
        match self.root_opaque {
            true => ViewDir::new(self.uppers.to_vec()),
            false => ViewDir::new([self.uppers, self.lowers].concat()),
        }
    }

    pub(crate) fn base(&self) -> ViewDir {
        ViewDir::new(self.lowers.to_vec())
    }

    /// How many lie on top of the base.
    pub(crate) fn above(&self) -> Option<usize> {
        (!self.root_opaque).then_some(self.uppers.len())
    }
}

/// Writes a layer as an archive, from its `diff` directory and without mounting anything.
///
/// The output depends on nothing but the layer's contents and what the layers below have under its
/// names: two diffs of the same layer are the same bytes. Names come depth first in byte order; user
/// attributes, capabilities and POSIX access control lists are kept; overlay's private attributes
/// are not. The root comes first, as `./`, when it differs from the root below. Sockets are left
/// out and counted; what one hides below is written as gone.
///
/// A directory that was renamed on a mount with `redirect_dir=on` is written with all that it
/// shows, and a file of a mount with `metacopy=on` with the data that it has below. Other names of
/// a renamed directory's hard links come last.
///
/// # Errors
///
/// [`DiffError`] for any read error, for a file, link or directory that changes meanwhile, for a
/// name that an archive reserves, for contents that are not where the layer says. Nothing is ever
/// silently left out.
#[doc(alias = "Diff")]
pub fn diff(
    view: View<'_>,
    upper: &DirHandle,
    lowers: &[DirHandle],
    root_opaque: bool,
    output: impl Write + Send,
) -> Result<DiffSummary, DiffError> {
    let layers = Layers::new(std::slice::from_ref(upper), lowers).root_opaque(root_opaque);
    diff_confirmed(view, layers, &DiffOptions::new(), output, || Ok(()))
}

/// As [`diff`], of any number of layers as one change and with options, and asks `confirm` before
/// the archive is ended: when what was read turns out not to be the layer any more, the output is
/// broken off instead.
///
/// # Errors
///
/// As for [`diff`], what `confirm` gives, and [`DiffError::NoContainerId`] for an id on disk that the
/// options' maps do not have.
pub fn diff_confirmed(
    view: View<'_>,
    layers: Layers<'_>,
    options: &DiffOptions,
    output: impl Write + Send,
    confirm: impl FnOnce() -> Result<(), DiffError>,
) -> Result<DiffSummary, DiffError> {
    let tree = FewHandles::new(view.tree(), layers.len());
    let view = View::new(&tree, view.xattrs());
    with_output(output, |output| {
        let mut emitter = Emitter::new(view, options, output);
        let read = |batch: Batch| {
            for ticket in batch {
                ticket.run(view);
            }
        };
        let result = with_workers(options.parallelism, &read, |workers| {
            diff_into(&mut emitter, view, layers, workers)
        });
        emitter.end(result.and_then(|()| confirm()))
    })
}

/// Lists what a layer changes, from its `diff` directory: parents before what is in them, siblings
/// in byte order.
///
/// A directory is listed when its own attributes differ, or something in it does; an object that
/// was copied up and is the same as below is not. The list is that of [`compare`](crate::compare).
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
    let layers = Layers::new(std::slice::from_ref(upper), lowers).root_opaque(root_opaque);
    changes_of(view, layers)
}

/// As [`changes`], of any number of layers as one change.
///
/// # Errors
///
/// As for [`changes`].
pub fn changes_of(view: View<'_>, layers: Layers<'_>) -> Result<Vec<Change>, DiffError> {
    let tree = FewHandles::new(view.tree(), layers.len());
    let view = View::new(&tree, view.xattrs());
    let walked = walk(view, &layers.tree(), &layers.base(), layers.above())?;
    Ok(walked.changes)
}

fn diff_into<W: Write>(
    emitter: &mut Emitter<'_, W>,
    view: View<'_>,
    layers: Layers<'_>,
    workers: &Workers<'_, Batch>,
) -> Result<(), DiffError> {
    let mut path = PathBuf::new();
    let (tree, mut base) = (layers.tree(), layers.base());
    root(emitter, view, layers, &tree, &base)?;
    if layers.root_opaque {
        base = ViewDir::default();
    }
    let (above, mut written) = (layers.uppers.len(), Written::default());
    let mut levels = vec![Level::open(view, tree.clone(), base, Some(above), &path)?];
    // Of the level that is being written: it goes no further than to the next directory.
    let mut ahead = Ahead::default();
    while let Some(level) = levels.last_mut() {
        let Some(mut next) = ahead.next(view, workers, level, &path)? else {
            level.refuse_changed(view, &path)?;
            levels.pop();
            path.pop();
            continue;
        };
        path.push(&next.name);
        let inner = entry(emitter, view, level, &mut next, &path, above, &mut written)?;
        if let Some(file) = next.file {
            ahead.recycle(file);
        }
        match inner {
            Some(inner) => levels.push(inner),
            None => {
                path.pop();
            }
        }
    }
    let partly = emitter.take_partly_written();
    match partly.is_empty() {
        true => Ok(()),
        false => other_names(emitter, view, tree, &partly, &written),
    }
}

/// The names of the lower layers' files with several names that are in the archive.
type Written = HashSet<PathBuf>;

/// Writes the root, if it differs, and that nothing below it shows.
fn root<W: Write>(
    emitter: &mut Emitter<'_, W>,
    view: View<'_>,
    layers: Layers<'_>,
    tree: &ViewDir,
    base: &ViewDir,
) -> Result<(), DiffError> {
    let path = Path::new("");
    let Some(upper) = tree.parts().first() else {
        return Ok(());
    };
    let look = |dir| view.tree().metadata(Node::Dir(dir)).on("look at", path);
    let metadata = look(upper)?;
    let root_differs = match base.parts().first() {
        None => true,
        Some(below) => {
            let below = look(below)?;
            let (now, then) = (
                Found::Directory(tree.clone(), metadata),
                Found::Directory(base.clone(), below),
            );
            let name = OsStr::new("");
            metadata.mtime != below.mtime || differs(view, name, (tree, &now), (base, &then), path)?
        }
    };
    if root_differs {
        emitter.root(upper, &metadata)?;
    }
    match layers.root_opaque {
        true => emitter.opaque(path, &metadata),
        false => Ok(()),
    }
}

/// Writes one entry, and gives the level to go on with when it is a directory.
fn entry<W: Write>(
    emitter: &mut Emitter<'_, W>,
    view: View<'_>,
    level: &Level,
    Next { name, look, file }: &mut Next,
    path: &Path,
    above: usize,
    written: &mut Written,
) -> Result<Option<Level>, DiffError> {
    let name = &*name;
    let parent = path.parent().unwrap_or(Path::new(""));
    let there = || view.lookup(&level.base, name).on("look at", path);
    match &look.found {
        Found::Nothing => {
            if there()?.exists() {
                let whiteout = whiteout(view, level, name, path)?;
                emitter.whiteout(parent, name, whiteout.as_ref())?;
            }
            Ok(None)
        }
        Found::Object(_, metadata) if metadata.kind == FileKind::Socket => {
            emitter.socket(parent, name, there()?.exists())?;
            Ok(None)
        }
        Found::Object(dir, metadata) => {
            match file {
                Some(file) => emitter.small(name, path, metadata, file)?,
                None => emitter.object(&level.tree, dir, name, path, metadata)?,
            }
            if look.layer >= above && metadata.nlink > 1 {
                emitter.remember_names(metadata);
                written.insert(path.to_owned());
            }
            Ok(None)
        }
        Found::Directory(tree, metadata) => {
            directory(emitter, view, level, look, (tree, metadata), (name, path)).map(Some)
        }
    }
}

fn directory<W: Write>(
    emitter: &mut Emitter<'_, W>,
    view: View<'_>,
    level: &Level,
    look: &Look,
    (tree, metadata): (&ViewDir, &Metadata),
    (name, path): (&OsStr, &Path),
) -> Result<Level, DiffError> {
    // It has at least one part.
    if let Some(dir) = tree.parts().first() {
        emitter.directory(dir, path, metadata)?;
    }
    let Below { then, above } = below(view, level, look, name, path)?;
    let base = match then {
        Found::Directory(base, _) if above.is_some() => base,
        Found::Directory(..) => {
            emitter.opaque(path, metadata)?;
            ViewDir::default()
        }
        Found::Nothing | Found::Object(..) => ViewDir::default(),
    };
    // Over nothing, all that the layers on top have is all that there is.
    let on_top = level.above.filter(|&above| tree.is_above(above));
    Level::open(view, tree.clone(), base, above.or(on_top), path)
}

/// What the layers on top have where a name is gone.
fn whiteout(
    view: View<'_>,
    level: &Level,
    name: &OsStr,
    path: &Path,
) -> Result<Option<Metadata>, DiffError> {
    let parts = level.tree.parts_above(level.above.unwrap_or(0));
    for part in parts {
        if let Some(metadata) = view.entry(part, name).on("look at", path)? {
            return Ok(Some(metadata));
        }
    }
    Ok(None)
}

/// Writes the names of files of the layers below that have others in the archive: what is linked in
/// the layer is linked where the archive is applied. Only here the layers below are searched.
fn other_names<W: Write>(
    emitter: &mut Emitter<'_, W>,
    view: View<'_>,
    tree: ViewDir,
    partly: &HashMap<Inode, u32>,
    written: &Written,
) -> Result<(), DiffError> {
    let mut path = PathBuf::new();
    let base = ViewDir::default();
    let mut levels = vec![Level::open(view, tree, base, None, &path)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            levels.pop();
            path.pop();
            continue;
        };
        path.push(&name);
        let mut inner = None;
        match view.lookup(&level.tree, &name).on("look at", &path)? {
            Found::Directory(dir, _) => {
                inner = Some(Level::open(view, dir, ViewDir::default(), None, &path)?);
            }
            Found::Object(dir, metadata)
                if partly.contains_key(&(metadata.dev, metadata.ino))
                    && !written.contains(&path) =>
            {
                emitter.object(&level.tree, &dir, &name, &path, &metadata)?;
            }
            Found::Nothing | Found::Object(..) => {}
        }
        match inner {
            Some(inner) => levels.push(inner),
            None => {
                path.pop();
            }
        }
    }
    Ok(())
}
