//! Archives in and out, and what a layer changes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, Read, Write};

use ovl_diff::{
    ApplyOptions, ApplySummary, Change, DiffError, DiffOptions, DiffSummary, DirHandle, LayerSize,
    Layers, Node, Progress, TreeError, ViewDir, copy_layer, copy_root_attributes, fold_layer,
};
use ovl_layout::{LayerId, LowerChain, SealReason, names};

use super::Overlay2;
use super::create::{Begun, refuse_limits};
use super::layer::{Layer, STANDS_ON_ITSELF, Stack};
use super::quota::Project;
use super::staging::{Parent, Plan, Staged};
use crate::error::Error;
use crate::system::LockKind;
use crate::types::{Applied, Base, CreateLayer, ExportOptions, ImportOptions};

impl Overlay2 {
    /// Makes a sealed layer from an archive, in one step: the layer appears whole, or not at all.
    ///
    /// The archive is plain tar, gzip or zstd. No lock is held while it is read; the parent cannot
    /// be removed or mounted writable meanwhile.
    ///
    /// # Errors
    ///
    /// Those of [`create`](Self::create), and [`Error::Apply`]. Nothing is left behind, but a parent
    /// that was open may be sealed; not so when the archive is at fault.
    pub fn import(
        &self,
        layer: &CreateLayer,
        archive: impl Read,
        options: ImportOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Applied, Error> {
        refuse_limits(layer)?;
        self.refuse_existing(&layer.id)?;
        let Begun {
            parent,
            chain,
            lock,
            layers,
        } = self.begin(layer)?;
        let mut staged = self.stage(Plan {
            id: &layer.id,
            parent: parent.as_ref(),
            chain,
            replaces: None,
            project: Project::None,
        })?;
        // From here on the staging directory says that the parent is in use.
        drop(lock);
        let summary =
            self.apply_to(&layer.id, &staged.diff, &layers, archive, options, progress)?;
        drop(layers);
        if summary.root_opaque {
            staged.chain = LowerChain::default();
            staged.record.root_opaque = layer.parent.is_some();
        }
        staged.record.sealed = Some(SealReason::Import);
        let size = self.size_of(&layer.id, &staged.diff)?;
        staged.complete(true)?;
        staged.publish(&layer.id)?;
        Ok(Applied { summary, size })
    }

    /// Applies an archive to an open layer that is not mounted, on top of what is in it. The layer
    /// is replaced in one step, and stays as it was on any error.
    ///
    /// The new contents belong to the layer's project while the old ones still do: a limit must
    /// leave room for both.
    ///
    /// # Errors
    ///
    /// [`Error::LayerNotFound`], [`Error::Sealed`], [`Error::Mounted`], [`Error::MountedElsewhere`],
    /// [`Error::StillInUse`], [`Error::Apply`], [`Error::OverQuota`], [`Error::Damaged`],
    /// [`Error::Dirty`], [`Error::Io`].
    #[doc(alias = "ApplyDiff")]
    pub fn apply(
        &self,
        id: &LayerId,
        archive: impl Read,
        options: ImportOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Applied, Error> {
        let lock = self.lock_layer(id, LockKind::Exclusive)?;
        let locked = lock.ino();
        let layer = self.changeable(id, None)?;
        self.refuse_dirty(&layer)?;
        let stack = self.stack(&layer)?;
        let parent_id = self.parent_of(&layer)?;
        let parent = match &parent_id {
            Some(parent) => Some(self.parent(parent)?),
            None => None,
        };
        let mut staged = self.stage(Plan {
            id,
            parent: parent.as_ref(),
            chain: layer.chain.clone(),
            replaces: Some(layer.link),
            project: Project::Kept,
        })?;
        // From here on nobody mounts, removes or replaces the layer.
        drop(lock);

        let summary = self
            .build_on(id, &mut staged, &stack, archive, options, progress)
            .map_err(|error| staged.explain(error))?;
        let was_opaque = layer.root_opaque();
        staged.record.root_opaque = was_opaque || (summary.root_opaque && parent_id.is_some());
        if staged.record.root_opaque {
            staged.chain = LowerChain::default();
        }
        self.keep_at_risk(&mut staged.record, &layer);
        let size = self.size_of(id, &staged.diff)?;
        let completed = staged.complete(false);
        completed.map_err(|error| staged.explain(error))?;

        // A child may have sealed it, and other programs know nothing of our staging.
        let lock = self.lock_layer(id, LockKind::Exclusive)?;
        self.changeable(id, Some(&staged))?;
        if lock.ino() != locked {
            return Err(Error::InFlight { id: id.clone() });
        }
        staged.exchange(id, lock)?;
        Ok(Applied { summary, size })
    }

    /// Fills a staged layer with what `stack` holds and an archive on top of it.
    fn build_on(
        &self,
        id: &LayerId,
        staged: &mut Staged<'_>,
        stack: &Stack,
        archive: impl Read,
        options: ImportOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ApplySummary, Error> {
        let view = self.view();
        let failed = |source: TreeError| Error::Apply {
            id: id.clone(),
            source: source.into(),
        };
        let listed = self.kernel.tree().read_dir(&stack.upper);
        let path = self.layout.layer(id).diff().to_owned();
        let is_empty = listed
            .map_err(|error| Error::io("list", path, error))?
            .is_empty();
        copy_root_attributes(view, &stack.upper, &staged.diff).map_err(failed)?;
        if is_empty {
            return self.apply_to(id, &staged.diff, &stack.lowers, archive, options, progress);
        }
        // What the layer has is one more layer below what the archive brings.
        let lowers = stack.layers();
        let incoming = staged.scratch()?;
        copy_root_attributes(view, &stack.upper, &incoming).map_err(failed)?;
        let summary = self.apply_to(id, &incoming, &lowers, archive, options, progress)?;
        if !summary.root_opaque {
            copy_layer(view, &stack.upper, &staged.diff).map_err(failed)?;
        }
        fold_layer(view, &incoming, &staged.diff, &stack.lowers).map_err(failed)?;
        staged.remove_scratch()?;
        Ok(summary)
    }

    /// Writes what a layer changes against `base` as an archive: deterministic, and applying it to
    /// `base` gives what the layer shows.
    ///
    /// Against a layer that it stands on, only the directories of the layers in between are read,
    /// nothing is mounted, and the cost is that of the change. The layer may be mounted; what
    /// changes while it is read is an error.
    ///
    /// # Errors
    ///
    /// [`Error::LayerNotFound`] (also for a `base` that is not there), [`Error::Diff`],
    /// [`Error::Damaged`]. What was written until then is no valid archive.
    #[doc(alias = "Diff")]
    pub fn diff(
        &self,
        id: &LayerId,
        base: &Base,
        output: impl Write + Send,
    ) -> Result<DiffSummary, Error> {
        self.diff_with(id, base, ExportOptions::new(), output)
    }

    /// As [`diff`](Self::diff), with a say in what the archive holds.
    ///
    /// # Errors
    ///
    /// As for [`diff`](Self::diff).
    pub fn diff_with(
        &self,
        id: &LayerId,
        base: &Base,
        options: ExportOptions,
        output: impl Write + Send,
    ) -> Result<DiffSummary, Error> {
        let layer = self.layer(id)?;
        let against = self.against(&layer, base)?;
        let options = DiffOptions::new()
            .id_maps(self.settings.id_maps.clone())
            .policy(options.policy)
            .clamp_mtime(options.clamp_mtime);
        let view = self.view();
        let confirm = || self.confirm(&layer, &against.others);
        let result = match &against.kind {
            AgainstKind::Below(lower) => {
                ovl_diff::diff_confirmed(view, lower.layers(), &options, output, confirm)
            }
            AgainstKind::Other { merged, base } => {
                ovl_diff::diff_trees_confirmed(view, merged, base, &options, output, confirm)
            }
        };
        result.map_err(|source| diff_error(id, source))
    }

    /// Lists what a layer changes against `base`: parents first, siblings in byte order.
    ///
    /// # Errors
    ///
    /// As for [`diff`](Self::diff).
    #[doc(alias = "Changes")]
    pub fn changes(&self, id: &LayerId, base: &Base) -> Result<Vec<Change>, Error> {
        let layer = self.layer(id)?;
        let against = self.against(&layer, base)?;
        let result = match &against.kind {
            AgainstKind::Below(lower) => ovl_diff::changes_of(self.view(), lower.layers()),
            AgainstKind::Other { merged, base } => ovl_diff::compare(self.view(), merged, base),
        };
        result
            .and_then(|changes| self.confirm(&layer, &against.others).map(|()| changes))
            .map_err(|source| diff_error(id, source))
    }

    /// Adds up what a layer adds or changes against `base`: apparent bytes, as Docker counts them,
    /// and beside them allocated bytes and inodes. Against its parent, that is what the layer's own
    /// directory holds.
    ///
    /// # Errors
    ///
    /// As for [`diff`](Self::diff).
    #[doc(alias = "DiffSize")]
    pub fn size(&self, id: &LayerId, base: &Base) -> Result<LayerSize, Error> {
        let layer = self.layer(id)?;
        let against = self.against(&layer, base)?;
        let view = self.view();
        let result = match &against.kind {
            AgainstKind::Below(Below { uppers, lowers, .. }) if against.is_parent => {
                ovl_diff::size_of(view, &uppers[0], lowers)
            }
            AgainstKind::Below(lower) => ovl_diff::size_of_change(view, lower.layers()),
            AgainstKind::Other { merged, base } => ovl_diff::size_of_changes(view, merged, base),
        };
        result.map_err(|source| diff_error(id, source))
    }

    pub(super) fn size_of(&self, id: &LayerId, diff: &DirHandle) -> Result<LayerSize, Error> {
        ovl_diff::size(self.view(), diff).map_err(|source| diff_error(id, source))
    }

    fn apply_to(
        &self,
        id: &LayerId,
        upper: &DirHandle,
        lowers: &[DirHandle],
        archive: impl Read,
        options: ImportOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ApplySummary, Error> {
        let identity = self.kernel.system().identity();
        let identity = identity.map_err(|e| Error::io("read the ids of", self.home(), e))?;
        let mut apply = ApplyOptions::new(self.settings.xattrs);
        apply.id_maps = self.settings.id_maps.clone();
        apply.squash = options.squash;
        apply.skip_devices = options.skip_devices;
        apply.start_writeback = self.durable();
        if identity.user_namespace {
            (apply.uids, apply.gids) = (Some(identity.uids), Some(identity.gids));
        }
        ovl_diff::apply(self.kernel.tree(), archive, upper, lowers, &apply, progress).map_err(
            |source| Error::Apply {
                id: id.clone(),
                source,
            },
        )
    }

    pub(super) fn parent(&self, id: &LayerId) -> Result<Parent, Error> {
        let layer = self.layer(id)?;
        let upper = self.diff_dir(&layer)?;
        Ok(Parent { layer, upper })
    }

    /// The layer, if its contents may change now.
    pub(super) fn changeable(
        &self,
        id: &LayerId,
        own: Option<&Staged<'_>>,
    ) -> Result<Layer, Error> {
        // In this order: a child seals its parent before it leaves staging.
        let in_flight = self.is_in_flight(id, own)?;
        let layer = self.layer(id)?;
        self.take_down_unheld(id, &layer.dir)?;
        self.refuse_mounted(&layer, None)?;
        let sealed = || Err(Error::Sealed { id: id.clone() });
        if layer.committed {
            return sealed();
        }
        if in_flight {
            return Err(Error::InFlight { id: id.clone() });
        }
        if self
            .seal_parent(&self.own_dirs()?, layer.clone())?
            .committed
        {
            return sealed();
        }
        Ok(layer)
    }

    /// What a layer is compared with. A stack of layers may take half of the descriptors of a
    /// process: none is opened twice.
    fn against(&self, layer: &Layer, base: &Base) -> Result<Against, Error> {
        let stack = self.stack(layer)?;
        let other = |base, others| {
            let merged = stack.merged();
            let kind = AgainstKind::Other { merged, base };
            Ok(Against {
                kind,
                others,
                is_parent: false,
            })
        };
        let parent = self.parent_of(layer)?;
        let wanted = match (base, &parent) {
            (Base::Empty, _) => return other(ViewDir::default(), Vec::new()),
            (Base::Layer(id), _) => id,
            (Base::Parent, Some(id)) => id,
            (Base::Parent, None) => return Ok(Against::nothing(stack)),
        };
        let is_parent = parent.as_ref() == Some(wanted);
        let mut below: Vec<_> = stack
            .ids
            .iter()
            .cloned()
            .zip(stack.lowers.clone())
            .collect();
        if let Some(at) = stack.ids.iter().position(|id| id == wanted) {
            let (between, lowers) = stack.lowers.split_at(at);
            let kind = AgainstKind::Below(Below {
                uppers: [std::slice::from_ref(&stack.upper), between].concat(),
                lowers: lowers.to_vec(),
                root_opaque: false,
            });
            below.truncate(if is_parent { 0 } else { at + 1 });
            return Ok(Against {
                kind,
                others: below,
                is_parent,
            });
        }
        // It may still be one that an opaque root hides, which only the lowest of a chain can have.
        let lowest = match stack.ids.last() {
            Some(id) => &self.layer(id)?,
            None => layer,
        };
        let mut hidden = match lowest.root_opaque() {
            true => self.parent_of(lowest)?,
            false => None,
        };
        let mut seen = BTreeSet::from([lowest.id.clone()]);
        while let Some(id) = hidden {
            let layer = self.layer(&id)?;
            if !seen.insert(id.clone()) {
                // Records alone say what is hidden; no chain speaks against them.
                let file = self.layout.layer(&id).dir().join(names::RECORD);
                return Err(Error::damaged(&id, file, STANDS_ON_ITSELF));
            }
            if id == *wanted {
                let base = self.stack_beside(&layer, &stack)?;
                if !is_parent {
                    below.push((id, base.upper.clone()));
                }
                let kind = AgainstKind::Below(Below {
                    uppers: stack.layers(),
                    lowers: base.layers(),
                    root_opaque: true,
                });
                return Ok(Against {
                    kind,
                    others: below,
                    is_parent,
                });
            }
            hidden = self.parent_of(&layer)?;
        }
        let base = self.stack_beside(&self.layer(wanted)?, &stack)?;
        let others = vec![(wanted.clone(), base.upper.clone())];
        other(base.merged(), others)
    }

    /// The stack of a layer, with the directories of another one where the two have the same.
    fn stack_beside(&self, layer: &Layer, other: &Stack) -> Result<Stack, Error> {
        let mut stack = self.stack(layer)?;
        for (id, dir) in stack.ids.iter().zip(&mut stack.lowers) {
            if let Some(at) = other.ids.iter().position(|other| other == id)
                && self.is_same(id, dir, &other.lowers[at])?
            {
                *dir = other.lowers[at].clone();
            }
        }
        Ok(stack)
    }

    fn is_same(&self, id: &LayerId, one: &DirHandle, other: &DirHandle) -> Result<bool, Error> {
        let look = |dir| {
            let found = self.kernel.tree().metadata(Node::Dir(dir));
            let failed = |error| Error::io("look at", self.layout.layer(id).diff(), error);
            found.map(|found| (found.dev, found.ino)).map_err(failed)
        };
        Ok(look(one)? == look(other)?)
    }

    /// Nothing locks a layer while it is read. A removal takes its name away before its contents, so
    /// that what still has its name was whole all the time. Of the others, what is open are the
    /// contents.
    fn confirm(&self, layer: &Layer, others: &[Other]) -> Result<(), DiffError> {
        let tree = self.kernel.tree();
        let failed = |id: &LayerId, source| TreeError::new("look at", id.as_str().as_ref(), source);
        let confirm = |id: &LayerId, name, within: &DirHandle, dir: &DirHandle| {
            let named = match tree.metadata(Node::Entry(within, name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(DiffError::Gone);
                }
                result => result.map_err(|error| failed(id, error))?,
            };
            let opened = tree.metadata(Node::Dir(dir));
            if named.ino != opened.map_err(|error| failed(id, error))?.ino {
                return Err(DiffError::Gone);
            }
            Ok(())
        };
        for (id, diff) in others {
            let dir = match tree.open_dir(&self.home, id.as_ref()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(DiffError::Gone);
                }
                result => result.map_err(|error| failed(id, error))?,
            };
            confirm(id, OsStr::new(names::DIFF), &dir, diff)?;
        }
        confirm(&layer.id, layer.id.as_ref(), &self.home, &layer.dir)
    }
}

fn diff_error(id: &LayerId, source: DiffError) -> Error {
    Error::Diff {
        id: id.clone(),
        source,
    }
}

/// A layer and its contents.
type Other = (LayerId, DirHandle);

/// What a layer is compared with.
struct Against {
    kind: AgainstKind,
    /// The other layers that must still be there when the comparison is done.
    others: Vec<Other>,
    is_parent: bool,
}

enum AgainstKind {
    /// One that it stands on, or nothing where it stands on nothing.
    Below(Below),
    Other {
        merged: ViewDir,
        base: ViewDir,
    },
}

/// The layers that lie on top of one, and all from that one down.
struct Below {
    uppers: Vec<DirHandle>,
    lowers: Vec<DirHandle>,
    root_opaque: bool,
}

impl Below {
    fn layers(&self) -> Layers<'_> {
        Layers::new(&self.uppers, &self.lowers).root_opaque(self.root_opaque)
    }
}

impl Against {
    fn nothing(stack: Stack) -> Self {
        let kind = AgainstKind::Below(Below {
            uppers: vec![stack.upper],
            lowers: stack.lowers,
            root_opaque: false,
        });
        Self {
            kind,
            others: Vec::new(),
            is_parent: true,
        }
    }
}

impl Stack {
    /// What the layer shows.
    pub(super) fn merged(&self) -> ViewDir {
        ViewDir::new(self.layers())
    }

    /// The `diff` directories of the layer and of everything below it, uppermost first.
    pub(super) fn layers(&self) -> Vec<DirHandle> {
        [std::slice::from_ref(&self.upper), &self.lowers].concat()
    }
}
