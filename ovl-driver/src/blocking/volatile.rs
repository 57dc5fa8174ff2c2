//! Layers that were mounted volatile.
//!
//! What is written through a volatile mount reaches the disk in no order, if at all, until the
//! machine stops. The layer's record notes the boot of such a mount; the kernel leaves a mark of its
//! own in `work`, which stays after the mount and refuses the next one. In the boot that is noted
//! nothing is lost, and the mark goes without a word; note and mark also go when somebody waits for
//! the disk, as for a durable layer on it. In any other boot somebody has to decide.

use std::ffi::OsStr;
use std::path::PathBuf;

use ovl_diff::{DirHandle, FileKind, Node, remove_tree};
use ovl_layout::{LayerId, LayerRecord, names};
use ovl_mount::{Access, UnmountMode};

use super::Overlay2;
use super::children::readable_record;
use super::home::OwnDirs;
use super::layer::{Below, Layer};
use super::mounted::Found;
use super::work::Work;
use crate::error::Error;
use crate::files;
use crate::holds::Holds;
use crate::types::Dirty;

impl Overlay2 {
    /// Refuses a layer that was mounted volatile when the machine stopped.
    pub(super) fn refuse_dirty(&self, layer: &Layer) -> Result<(), Error> {
        self.refuse_dirty_with(layer, None)
    }

    fn refuse_dirty_with(&self, layer: &Layer, work: Option<&Work>) -> Result<(), Error> {
        match self.dirty_mark(layer, work)? {
            None => Ok(()),
            Some(mark) => Err(Error::Dirty {
                id: layer.id.clone(),
                mark,
            }),
        }
    }

    /// The same for those below, of which only the records are asked.
    pub(super) fn refuse_dirty_below(&self, below: &Below) -> Result<(), Error> {
        if below.volatile.is_empty() {
            return Ok(());
        }
        let boot = self.boot()?;
        match below.volatile.iter().find(|(_, noted)| *noted != boot) {
            None => Ok(()),
            Some((id, _)) => Err(Error::Dirty {
                id: id.clone(),
                mark: self.layout.layer(id).dir().join(names::RECORD),
            }),
        }
    }

    /// Does with a layer's contents what the caller says, or refuses when they need a word and
    /// there is none. The note stays until the mount is sure to come: true says that it is void. Looks
    /// into `work` itself unless the caller has.
    pub(super) fn settle_dirty(
        &self,
        layer: &Layer,
        answer: Option<Dirty>,
        work: Option<&Work>,
    ) -> Result<bool, Error> {
        match answer {
            None => self.refuse_dirty_with(layer, work).map(|()| false),
            Some(_) if self.dirty_mark(layer, work)?.is_none() => Ok(false),
            Some(Dirty::Accept) => Ok(true),
            Some(Dirty::Discard) if layer.committed => Err(Error::Sealed {
                id: layer.id.clone(),
            }),
            Some(Dirty::Discard) => self.empty(layer).map(|()| true),
        }
    }

    /// Refuses a volatile mount that could not be noted.
    pub(super) fn refuse_without_record(&self, layer: &Layer) -> Result<(), Error> {
        match &layer.record {
            Some(_) => Ok(()),
            None => Err(Error::Unsupported {
                what: "a volatile mount",
                reason: format!(
                    "another program wrote the layer {}, so there is no record to note the mount in",
                    layer.id
                ),
            }),
        }
    }

    /// Notes a volatile mount before it is made, on disk where the store is durable, or that there is
    /// nothing to note any more.
    pub(super) fn note_volatile(&self, layer: &Layer, boot: Option<String>) -> Result<(), Error> {
        let Some(record) = &layer.record else {
            return Ok(());
        };
        // A note of this boot may be that of a store which does not wait for the disk.
        let is_safe = boot.is_none() || !self.durable();
        if record.volatile == boot && is_safe {
            return Ok(());
        }
        let mut record = record.clone();
        record.volatile = boot;
        self.write_record(layer, &record)
    }

    /// Says of a copy that nobody waits for that it is no safer than what it was made of.
    pub(super) fn keep_at_risk(&self, copy: &mut LayerRecord, of: &Layer) {
        if !self.durable() {
            let noted = of.record.as_ref();
            copy.volatile = noted.and_then(|record| record.volatile.clone());
        }
    }

    /// Takes back what was noted for a mount that did not come. The kernel's own mark says that it
    /// did, and its note stays.
    pub(super) fn take_note_back(&self, layer: &Layer) {
        if let Some(record) = &layer.record
            && matches!(self.is_volatile(&layer.dir), Ok(false))
        {
            // What stays asks one question too many after the next boot.
            let _ = self.write_record(layer, record);
        }
    }

    fn write_record(&self, layer: &Layer, record: &LayerRecord) -> Result<(), Error> {
        let tree = self.kernel.tree();
        let path = self.layout.layer(&layer.id).dir().join(names::RECORD);
        // Not the layer's contents: this one file, which must be whole whatever happens.
        let (contents, durable) = (record.to_string(), self.durable());
        files::replace(
            tree,
            &layer.dir,
            names::RECORD,
            0o644,
            contents.as_bytes(),
            durable,
        )
        .and_then(|_| match durable {
            true => tree.sync(Node::Dir(&layer.dir)),
            false => Ok(()),
        })
        .map_err(|error| Error::io("write", path, error))
    }

    /// Voids the note once the kernel has synced all that was written: it does when the last user
    /// of a mount that is not volatile goes, which is the unmount itself unless that is lazy. The
    /// unmount is done: a note that cannot be voided asks one question too many after the next boot.
    pub(super) fn note_synced(
        &self,
        id: &LayerId,
        dir: &DirHandle,
        holds: &Holds,
        mode: UnmountMode,
    ) {
        if holds.access == Access::ReadOnly || mode == UnmountMode::Lazy || is_volatile(holds) {
            return;
        }
        let noted = readable_record(self, dir).is_some_and(|record| record.volatile.is_some());
        if noted
            && let Ok(layer) = self.layer(id)
            && !layer.chain.is_empty()
        {
            let _ = self.note_volatile(&layer, None);
        }
    }

    pub(super) fn is_volatile_in_this_boot(&self, record: &LayerRecord) -> Result<bool, Error> {
        Ok(match &record.volatile {
            Some(noted) => *noted == self.boot()?,
            None => false,
        })
    }

    /// Whether a layer that the caller has locked was mounted volatile in this boot, and nobody writes
    /// to it any more: what was synced is on disk for good. Where that cannot be told, a note that
    /// stays asks one question too many after the next boot.
    pub(super) fn was_volatile(&self, id: &LayerId, record: &LayerRecord) -> Result<bool, Error> {
        // Of another boot nobody knows what is lost already.
        if !self.is_volatile_in_this_boot(record)? {
            return Ok(false);
        }
        let Some(own) = self.own_dirs_if_any()? else {
            return Ok(false);
        };
        Ok(match self.read_mounted(&own, id) {
            Ok(Found::Nothing { .. } | Found::Foreign { read_only: true }) => true,
            Ok(Found::Ours(holds) | Found::Elsewhere(holds)) => holds.access == Access::ReadOnly,
            Ok(Found::Foreign { read_only: false } | Found::OutOfSight { .. }) | Err(_) => false,
        })
    }

    /// Takes away the kernel's mark of a volatile mount that is over, and waits until it is gone.
    pub(super) fn remove_mark(&self, id: &LayerId, layer: &DirHandle) -> Result<(), Error> {
        let path = self.layout.layer(id).work().to_owned();
        let marked = self.is_volatile(layer);
        if !marked.map_err(|error| Error::io("look at", &path, error))? {
            return Ok(());
        }
        let (tree, name) = (self.kernel.tree(), OsStr::new(names::WORK));
        let work = tree.open_dir(layer, name);
        let work = work.map_err(|error| Error::io("open", &path, error))?;
        // The kernel makes it anew when it mounts.
        remove_tree(tree, &work, name).map_err(|error| Error::tree(&path, error))?;
        let synced = tree.sync(Node::Dir(&work));
        synced.map_err(|error| Error::io("sync", &path, error))
    }

    /// What the hold file says of a mount, where it can be read.
    pub(super) fn noted_holds(&self, own: &OwnDirs, id: &LayerId) -> Option<Holds> {
        let contents = files::read(self.kernel.tree(), &own.holds, id.as_str());
        Holds::parse(&contents.ok()??)
    }

    /// What tells that the layer was mounted volatile in a boot that is over.
    fn dirty_mark(&self, layer: &Layer, work: Option<&Work>) -> Result<Option<PathBuf>, Error> {
        let paths = self.layout.layer(&layer.id);
        let is_marked = || match work {
            Some(work) => Ok(work.is_volatile()),
            None => self
                .is_volatile(&layer.dir)
                .map_err(|error| Error::io("look at", paths.work(), error)),
        };
        let noted = layer.record.as_ref();
        match noted.and_then(|record| record.volatile.as_ref()) {
            Some(boot) if *boot == self.boot()? => Ok(None),
            Some(_) => Ok(Some(paths.dir().join(names::RECORD))),
            // Somebody else has mounted it so, nobody knows when.
            None if is_marked()? => Ok(Some(paths.work().join("work/incompat/volatile"))),
            None => Ok(None),
        }
    }

    /// Removes all contents. The directory itself keeps its attributes, which are its parent's.
    fn empty(&self, layer: &Layer) -> Result<(), Error> {
        let (tree, diff) = (self.kernel.tree(), self.diff_dir(layer)?);
        let path = self.layout.layer(&layer.id).diff().to_owned();
        let failed = |error| Error::io("empty", &path, error);
        for entry in tree.read_dir(&diff).map_err(failed)? {
            let name: &OsStr = &entry.name;
            if entry.kind == FileKind::Directory {
                let removed = remove_tree(tree, &diff, name);
                removed.map_err(|error| Error::tree(&path, error))?;
            } else {
                tree.unlink(&diff, name).map_err(failed)?;
            }
        }
        Ok(())
    }
}

fn is_volatile(holds: &Holds) -> bool {
    holds.options.split(',').any(|option| option == "volatile")
}
