//! The directory `work` of a layer, which the kernel uses while the layer is mounted writable.

use std::ffi::OsStr;
use std::io;

use ovl_diff::{DirHandle, FileKind, Node, remove_tree};
use ovl_layout::names;

use super::Overlay2;
use super::layer::{Layer, is_no_directory};
use crate::error::Error;
use crate::files;

/// What is there.
pub(super) enum Work {
    Missing,
    /// Something that is no directory.
    Strange,
    /// Nothing, or what every mount leaves.
    Usual(DirHandle),
    Unusual {
        /// Whether it has the mark that the kernel makes for a volatile mount and never removes.
        volatile: bool,
    },
}

impl Work {
    pub(super) fn is_volatile(&self) -> bool {
        matches!(self, Self::Unusual { volatile: true })
    }
}

impl Overlay2 {
    /// What a mount must know of it, which reads no more than it has to.
    pub(super) fn look_at_work(&self, layer: &Layer) -> Result<Work, Error> {
        let (tree, name) = (self.kernel.tree(), OsStr::new(names::WORK));
        let look = || {
            let work = match tree.open_dir(&layer.dir, name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Work::Missing),
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                    return Ok(Work::Strange);
                }
                result => result?,
            };
            let entries = tree.read_dir(&work)?;
            let mut usual = entries.is_empty();
            if let [inner] = &entries[..]
                && inner.name == name
                && inner.kind == FileKind::Directory
            {
                let inner = tree.open_dir(&work, name)?;
                usual = tree.read_dir(&inner)?.is_empty();
            }
            Ok(match usual {
                true => Work::Usual(work),
                false => Work::Unusual {
                    volatile: self.has_volatile_mark(&work)?,
                },
            })
        };
        look().map_err(|error| Error::io("look at", self.layout.layer(&layer.id).work(), error))
    }

    /// Whether the kernel left its mark of a volatile mount in a layer's `work`.
    pub(super) fn is_volatile(&self, layer: &DirHandle) -> io::Result<bool> {
        let work = self.kernel.tree().open_dir(layer, OsStr::new(names::WORK));
        unless_missing(work.and_then(|work| self.has_volatile_mark(&work)))
    }

    fn has_volatile_mark(&self, work: &DirHandle) -> io::Result<bool> {
        let tree = self.kernel.tree();
        let mark = tree
            .open_dir(work, OsStr::new(names::WORK))
            .and_then(|inner| tree.open_dir(&inner, OsStr::new("incompat")))
            .and_then(|marks| files::exists(tree, &marks, "volatile"));
        unless_missing(mark)
    }

    /// Makes `work` an empty directory of the container's root. The kernel would keep what lies
    /// deeper than it looks, and refuses a mount over the mark of a volatile one, which is of this
    /// boot or settled by now.
    pub(super) fn clear_work(&self, layer: &Layer, work: Work) -> Result<DirHandle, Error> {
        let (tree, name) = (self.kernel.tree(), OsStr::new(names::WORK));
        let path = self.layout.layer(&layer.id).work().to_owned();
        let failed = |error| Error::io("clear", &path, error);
        match work {
            Work::Missing => {}
            Work::Strange => tree.unlink(&layer.dir, name).map_err(failed)?,
            Work::Usual(work) => {
                let given = self.owners.give_to_root(tree, Node::Dir(&work));
                return given.map(|()| work).map_err(failed);
            }
            Work::Unusual { .. } => remove_tree(tree, &layer.dir, name)
                .map_err(|error| Error::tree(self.layout.layer(&layer.id).dir(), error))?,
        }
        self.ensure_dir_of_root(&layer.dir, names::WORK)
            .map_err(failed)
    }

    /// The kernel makes a directory of its own in `work` when it mounts. Inside a container nothing
    /// can be copied up unless root there owns it.
    pub(super) fn give_work_to_root(
        &self,
        layer: &Layer,
        work: Option<&DirHandle>,
    ) -> Result<(), Error> {
        let Some(work) = work else {
            return Ok(());
        };
        let node = Node::Entry(work, OsStr::new(names::WORK));
        let given = self.owners.give_to_root(self.kernel.tree(), node);
        given.map_err(|error| {
            let path = self.layout.layer(&layer.id).work().join(names::WORK);
            Error::io("set the owner of", path, error)
        })
    }
}

/// Where something else is on the way there is no mark; what cannot be read may be one.
fn unless_missing(mark: io::Result<bool>) -> io::Result<bool> {
    mark.or_else(|error| match is_no_directory(&error) {
        true => Ok(false),
        false => Err(error),
    })
}
