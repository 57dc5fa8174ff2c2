use std::ffi::OsStr;
use std::io;

use ovl_diff::{DirHandle, Node, sync_layer};
use ovl_layout::{LayerId, LowerChain, names};
use ovl_mount::Access;

use super::Overlay2;
use super::children::readable_record;
use super::quota::{Project, check_limits};
use super::staging::{Parent, Plan};
use crate::error::Error;
use crate::files;
use crate::system::{Lock, LockKind};
use crate::types::CreateLayer;

/// What is known before a layer is staged.
#[derive(Default)]
pub(super) struct Begun {
    pub(super) parent: Option<Parent>,
    pub(super) chain: LowerChain,
    pub(super) lock: Option<Lock>,
    /// The `diff` directories of the parent and of everything below it.
    pub(super) layers: Vec<DirHandle>,
}

impl Overlay2 {
    /// Makes an empty, open layer: it mounts writable until it is sealed, which becoming a parent
    /// does.
    ///
    /// The new layer's root has the attributes of its parent's root.
    ///
    /// # Errors
    ///
    /// [`Error::NotWritable`] for limits; [`Error::AlreadyExists`]; [`Error::ParentNotFound`];
    /// [`Error::Mounted`], [`Error::MountedElsewhere`] and [`Error::StillInUse`] when the parent is
    /// mounted writable; [`Error::Depth`]; [`Error::OwnAncestor`]; [`Error::Damaged`] for a parent
    /// that cannot be trusted; [`Error::Dirty`] for one that was mounted volatile when the machine
    /// stopped; [`Error::Io`]. Nothing is left behind, but a parent that was open may be sealed.
    ///
    /// # Compatibility
    ///
    /// `Create` in Docker's `overlay2`, which replaces an existing layer instead of refusing.
    #[doc(alias = "Create")]
    pub fn create(&self, layer: &CreateLayer) -> Result<(), Error> {
        refuse_limits(layer)?;
        self.create_in(layer, Project::None)
    }

    /// Makes an empty, open layer that a container will write to.
    ///
    /// Where the file system enforces project quotas it gets a project of its own, with the limits
    /// asked for, and the home's default size where no size is. Elsewhere, and without limits, it is
    /// the same as [`create`](Self::create).
    ///
    /// # Errors
    ///
    /// As for [`create`](Self::create); [`Error::Unsupported`] for limits where quotas are not
    /// enforced, with the reason; [`Error::Quota`] for limits that cannot be set, and when no project
    /// is free; [`Error::OverQuota`] for limits that are too small for an empty layer.
    #[doc(alias = "CreateReadWrite")]
    pub fn create_writable(&self, layer: &CreateLayer) -> Result<(), Error> {
        let limits = layer.limits.bytes(layer.limits.bytes.or(self.size));
        check_limits(&layer.id, limits)?;
        self.create_in(layer, Project::Own(limits))
    }

    fn create_in(&self, layer: &CreateLayer, project: Project) -> Result<(), Error> {
        self.refuse_existing(&layer.id)?;
        let Begun {
            parent,
            chain,
            lock,
            ..
        } = self.begin(layer)?;
        let mut staged = self.stage(Plan {
            id: &layer.id,
            parent: parent.as_ref(),
            chain,
            replaces: None,
            project,
        })?;
        // From here on the staging directory says that the parent is in use.
        drop(lock);
        let completed = staged.complete(false);
        completed.map_err(|error| staged.explain(error))?;
        staged.publish(&layer.id)
    }

    pub(super) fn refuse_existing(&self, id: &LayerId) -> Result<(), Error> {
        let taken = files::exists(self.kernel.tree(), &self.home, id.as_str())
            .map_err(|error| Error::io("look at", self.layout.layer(id).dir(), error))?;
        if taken {
            Err(Error::AlreadyExists { id: id.clone() })
        } else {
            Ok(())
        }
    }

    /// Reads and locks the parent of a new layer and works out the chain.
    pub(super) fn begin(&self, layer: &CreateLayer) -> Result<Begun, Error> {
        let Some(parent_id) = &layer.parent else {
            return Ok(Begun::default());
        };
        let missing = |error| match error {
            Error::LayerNotFound { id, home } if id == *parent_id => Error::ParentNotFound {
                id: layer.id.clone(),
                parent: parent_id.clone(),
                home,
            },
            error => error,
        };
        self.unmount_unheld(parent_id)?;
        let lock = self
            .lock_layer(parent_id, LockKind::Shared)
            .map_err(missing)?;
        let parent = self.layer(parent_id).map_err(missing)?;
        let stack = self.stack(&parent)?;
        // Docker removes a layer that an opaque root hides, whoever names it as its parent.
        let lowest = stack.ids.last().unwrap_or(parent_id);
        if stack.hides
            && let Some(child) = self.named_below(lowest, &layer.id)?
        {
            return Err(Error::OwnAncestor {
                id: layer.id.clone(),
                parent: parent_id.clone(),
                child,
            });
        }
        self.refuse_dirty(&parent)?;
        self.refuse_mounted(&parent, Some(Access::Writable))?;
        let chain = LowerChain::for_child(parent.link, &parent.chain, self.settings.max_depth)
            .map_err(|source| Error::Depth {
                id: layer.id.clone(),
                source,
            })?;
        let layers = stack.layers();
        Ok(Begun {
            parent: Some(Parent {
                layer: parent,
                upper: stack.upper,
            }),
            chain,
            lock: Some(lock),
            layers,
        })
    }

    /// Marks a layer as one whose contents no longer change. What was written through its mounts
    /// nobody has waited for yet: a layer on it is on disk only if that is too.
    pub(super) fn seal(&self, id: &LayerId, lock: Locked) -> Result<(), Error> {
        let (tree, path) = (self.kernel.tree(), self.layout.layer(id).dir().to_owned());
        let dir = tree.open_dir(&self.home, id.as_ref());
        let dir = dir.map_err(|error| Error::io("open", &path, error))?;
        let is_sealed = files::exists(tree, &dir, names::COMMITTED);
        let is_sealed = is_sealed.map_err(|error| Error::io("seal", &path, error))?;
        if self.durable() && !is_sealed {
            let diff = tree.open_dir(&dir, names::DIFF.as_ref());
            let diff = diff.map_err(|error| Error::io("open", path.join(names::DIFF), error))?;
            sync_layer(tree, &diff).map_err(|error| Error::tree(&path.join(names::DIFF), error))?;
        }
        if self.durable() {
            let synced = (!is_sealed).then_some(id);
            self.sync_unsynced(id, lock, synced)?;
        } else if !is_sealed {
            self.note_unsynced(id, lock, true)?;
        }
        match tree.create_file(&dir, OsStr::new(names::COMMITTED), 0o600) {
            // Whoever made it may not have waited for the disk yet.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => {
                let mark = result.map_err(|error| Error::io("seal", &path, error))?;
                if self.durable() {
                    let synced = tree.sync(Node::File(&mark));
                    synced.map_err(|error| Error::io("sync", &path, error))?;
                }
            }
        }
        if self.durable() {
            tree.sync(Node::Dir(&dir))
                .map_err(|error| Error::io("sync", &path, error))?;
        }
        Ok(())
    }

    /// Waits for the disk where those who made a layer, and those below it, or wrote to it through a
    /// volatile mount in this boot, did not. Somebody builds on the layer, so that nothing of it
    /// changes meanwhile. The contents of `synced` are on disk already.
    pub(super) fn sync_unsynced(
        &self,
        id: &LayerId,
        lock: Locked,
        synced: Option<&LayerId>,
    ) -> Result<(), Error> {
        let (tree, mut unsynced) = (self.kernel.tree(), Vec::new());
        let mut next = Some(id.clone());
        while let Some(id) = next.take() {
            let dir = files::open_dir(tree, &self.home, id.as_str());
            let dir =
                dir.map_err(|error| Error::io("open", self.layout.layer(&id).dir(), error))?;
            let Some(record) = dir.and_then(|dir| readable_record(self, &dir)) else {
                continue;
            };
            let waits = record.unsynced || self.is_volatile_in_this_boot(&record)?;
            if waits && !unsynced.contains(&id) {
                next = record.parent;
                unsynced.push(id);
            }
        }
        // The lowest first: what is noted as synced stands on what is.
        for below in unsynced.into_iter().rev() {
            let path = self.layout.layer(&below).dir().to_owned();
            let failed = |error| Error::io("sync", &path, error);
            let dir = self.layer_dir(&below)?;
            let diff = files::open_dir(tree, &dir, names::DIFF).map_err(failed)?;
            if let Some(diff) = diff.filter(|_| synced != Some(&below)) {
                let synced = sync_layer(tree, &diff);
                synced.map_err(|error| Error::tree(&path.join(names::DIFF), error))?;
            }
            let names = [names::LINK, names::LOWER, names::COMMITTED, names::WORK];
            for name in names.map(OsStr::new) {
                match tree.sync(Node::Entry(&dir, name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(failed(error));
                    }
                    _ => {}
                }
            }
            let lock = match below == *id {
                true => lock,
                false => Locked::ByNobody,
            };
            self.note_unsynced(&below, lock, false)?;
            for dir in [&dir, &self.links, &self.home] {
                tree.sync(Node::Dir(dir)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Notes whether somebody has to wait for the disk yet; once nobody has, a volatile mount that is
    /// over is no question any more. Of what another program wrote nobody knows.
    fn note_unsynced(&self, id: &LayerId, lock: Locked, unsynced: bool) -> Result<(), Error> {
        let noted = |dir: &DirHandle| {
            readable_record(self, dir).filter(|record| {
                record.unsynced != unsynced || (!unsynced && record.volatile.is_some())
            })
        };
        if noted(&self.layer_dir(id)?).is_none() {
            return Ok(());
        }
        let _lock = match lock {
            Locked::ByCaller => None,
            Locked::ByNobody => Some(self.lock_layer(id, LockKind::Exclusive)?),
        };
        let dir = self.layer_dir(id)?;
        let Some(mut record) = noted(&dir) else {
            return Ok(());
        };
        record.unsynced = unsynced;
        if !unsynced && self.was_volatile(id, &record)? {
            // In this order: without a note the mark is another program's.
            self.remove_mark(id, &dir)?;
            record.volatile = None;
        }
        let (tree, text) = (self.kernel.tree(), record.to_string());
        let bytes = text.as_bytes();
        let written = files::replace(tree, &dir, names::RECORD, 0o644, bytes, self.durable());
        let path = self.layout.layer(id).dir().join(names::RECORD);
        written.map_err(|error| Error::io("write", path, error))
    }
}

/// Who has locked a layer exclusively.
#[derive(Clone, Copy, Debug)]
pub(super) enum Locked {
    ByCaller,
    ByNobody,
}

/// Limits are for what containers write.
pub(super) fn refuse_limits(layer: &CreateLayer) -> Result<(), Error> {
    match layer.limits.is_unlimited() {
        true => Ok(()),
        false => Err(Error::NotWritable {
            id: layer.id.clone(),
        }),
    }
}
