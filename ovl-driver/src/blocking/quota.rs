//! Projects of layers: limits, and who is at them.

use std::io;
use std::path::Path;

use ovl_diff::{EscapedPath, Node, TreeError, copy_layer, copy_root_attributes};
use ovl_layout::{HomeSettings, LayerId, names};
use ovl_mount::MountError;
use ovl_quota::{Bytes, KeepsToLimits, Limits, ProjectId, ProjectRange, QuotaControl, QuotaError};

use super::Overlay2;
use super::home::OwnDirs;
use super::layer::Layer;
use super::staging::Plan;
use crate::error::Error;
use crate::kernel::Kernel;
use crate::system::LockKind;
use crate::types::LayerQuota;

/// The project of a layer being made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Project {
    /// None: no container writes to the layer.
    None,
    /// One of its own where quotas are enforced, with these limits.
    Own(Limits),
    /// That of the layer which it replaces.
    Kept,
}

impl Overlay2 {
    /// The project of a layer, what it takes and may take. `None` for a layer without: one that
    /// was not made for writing, or where quotas are not enforced.
    ///
    /// # Errors
    ///
    /// [`Error::LayerNotFound`]; [`Error::Damaged`]; [`Error::Io`].
    pub fn quota(&self, id: &LayerId) -> Result<Option<LayerQuota>, Error> {
        Ok(self.quota_of(&self.layer(id)?))
    }

    /// Sets both limits of a layer, mounted or not; `None` lifts one. Limits below what it takes
    /// already are set: it can only shrink then.
    ///
    /// A layer without a project gets one, which moves its contents to a copy (without copying data
    /// where the file system can share it); for that it must be open and not mounted.
    ///
    /// # Errors
    ///
    /// [`Error::LayerNotFound`]; [`Error::Unsupported`] where quotas are not enforced;
    /// [`Error::Quota`] for limits that cannot be; for a layer without a project,
    /// [`Error::Mounted`], [`Error::MountedElsewhere`], [`Error::StillInUse`], [`Error::InFlight`],
    /// [`Error::NotWritable`] and [`Error::Dirty`];
    /// [`Error::Io`].
    pub fn set_limits(&self, id: &LayerId, limits: Limits) -> Result<(), Error> {
        check_limits(id, limits)?;
        self.change_limits(id, |_| limits)
    }

    /// The same, made of the limits that are in force: nobody else changes them meanwhile.
    ///
    /// ```no_run
    /// # use ovl_driver::{Kernel, OpenOptions, blocking::Overlay2};
    /// # let store = Overlay2::open(Kernel::host(), "/home".as_ref(), OpenOptions::new())?;
    /// store.change_limits(&"work".parse()?, |now| now.inodes(Some(10_000)))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`set_limits`](Self::set_limits).
    pub fn change_limits(
        &self,
        id: &LayerId,
        change: impl FnOnce(Limits) -> Limits,
    ) -> Result<(), Error> {
        let own = self.own_dirs()?;
        let lock = self.lock_layer(id, LockKind::Exclusive)?;
        let layer = self.layer(id)?;
        let quotas = self.quotas()?;
        let project = self.project_of(&layer);
        let now = match project {
            Some(project) => {
                let usage = self.kernel.quota().usage(self.home(), project);
                let failed = |e| Error::io("read the limits of", self.layout.layer(id).dir(), e);
                usage.map_err(failed)?.limits
            }
            None => Limits::UNLIMITED,
        };
        let limits = change(now);
        check_limits(id, limits)?;
        if project.is_some() {
            let ids = self.lock_projects(&own)?;
            let limited = quotas.limit(self.layout.layer(id).dir(), limits);
            limited.map_err(|error| Error::quota(id, error))?;
            drop((ids, lock));
            return self.sync_limits(&layer);
        }
        if limits.is_unlimited() {
            return Ok(());
        }
        if layer.committed {
            return Err(Error::NotWritable { id: id.clone() });
        }
        if layer.record.is_none() {
            return Err(Error::Unsupported {
                what: "a limit on this layer",
                reason: format!(
                    "another program made {id}, without a project; only that can move it into one"
                ),
            });
        }
        drop(lock);
        self.move_into_project(id, limits)
    }

    /// Waits until limits that were set are on disk. They are in the journal of the file system, and
    /// no file's sync waits for them but that of one which has changed since.
    fn sync_limits(&self, layer: &Layer) -> Result<(), Error> {
        if !self.durable() {
            return Ok(());
        }
        let (tree, dir) = (self.kernel.tree(), Node::Dir(&layer.dir));
        let same = tree.metadata(dir).map(|found| found.mtime);
        let synced = same
            .and_then(|same| tree.set_mtime(dir, same))
            .and_then(|()| tree.sync(dir));
        synced.map_err(|error| {
            Error::io(
                "sync the limits of",
                self.layout.layer(&layer.id).dir(),
                error,
            )
        })
    }

    /// Puts a copy of a layer, in a project of its own, in its place.
    fn move_into_project(&self, id: &LayerId, limits: Limits) -> Result<(), Error> {
        let lock = self.lock_layer(id, LockKind::Exclusive)?;
        let locked = lock.ino();
        let layer = self.changeable(id, None)?;
        self.refuse_dirty(&layer)?;
        let upper = self.diff_dir(&layer)?;
        let parent = self.parent_of(&layer)?;
        let parent = parent.map(|parent| self.parent(&parent)).transpose()?;
        let mut staged = self.stage(Plan {
            id,
            parent: parent.as_ref(),
            chain: layer.chain.clone(),
            replaces: Some(layer.link),
            project: Project::Own(limits),
        })?;
        drop(lock);
        staged.record.root_opaque = layer.root_opaque();
        self.keep_at_risk(&mut staged.record, &layer);
        let path = self.layout.layer(id).diff().to_owned();
        let failed = |error: TreeError| Error::tree(&path, error);
        copy_root_attributes(self.view(), &upper, &staged.diff)
            .and_then(|()| copy_layer(self.view(), &upper, &staged.diff))
            .map_err(failed)
            .and_then(|()| staged.complete(false))
            .map_err(|error| staged.explain(error))?;
        let lock = self.lock_layer(id, LockKind::Exclusive)?;
        self.changeable(id, Some(&staged))?;
        if lock.ino() != locked {
            return Err(Error::InFlight { id: id.clone() });
        }
        staged.exchange(id, lock)
    }

    /// The quotas of the home, looked for once.
    pub(super) fn quotas(&self) -> Result<&QuotaControl, Error> {
        let found = match self.quotas.get() {
            Some(found) => found,
            None => match probe(&self.kernel, self.home(), &self.settings) {
                Ok(quotas) => self.quotas.get_or_init(|| Ok(quotas)),
                Err(error @ QuotaError::Unsupported { .. }) => {
                    self.quotas.get_or_init(|| Err(error.to_string()))
                }
                Err(error) => return Err(not_probed(error)),
            },
        };
        found.as_ref().map_err(|reason| Error::Unsupported {
            what: "a limit on a layer",
            reason: reason.clone(),
        })
    }

    pub(super) fn quota_of(&self, layer: &Layer) -> Option<LayerQuota> {
        let project = self.project_of(layer)?;
        let usage = self.kernel.quota().usage(self.home(), project);
        Some(LayerQuota {
            project,
            usage: usage.map_err(|error| error.to_string()),
        })
    }

    /// The layer's own project; what it shares with the home is not its own. A file system that
    /// does not tell has none.
    fn project_of(&self, layer: &Layer) -> Option<ProjectId> {
        let of = |dir: &Path| self.kernel.quota().project_of(dir).ok().flatten();
        let project = of(self.layout.layer(&layer.id).dir())?;
        (of(self.home()) != Some(project)).then_some(project)
    }

    /// Puts an empty directory in staging into its project, before anything is made in it. While
    /// what is returned lives, this thread keeps to its limits.
    pub(super) fn tag(
        &self,
        own: &OwnDirs,
        id: &LayerId,
        staged: &Path,
        project: Project,
    ) -> Result<KeepsToLimits, Error> {
        match project {
            Project::None => Ok(KeepsToLimits::default()),
            Project::Own(limits) => {
                let quotas = match self.quotas() {
                    Ok(quotas) => quotas,
                    // But what could not be read now may be enforced.
                    Err(Error::Unsupported { .. }) if limits.is_unlimited() => {
                        return Ok(KeepsToLimits::default());
                    }
                    Err(error) => return Err(error),
                };
                let _ids = self.lock_projects(own)?;
                let limited = quotas.limit(staged, limits);
                limited.map_err(|error| Error::quota(id, error))?;
                self.keep_to_limits(id)
            }
            Project::Kept => {
                let of = |dir: &Path| {
                    let project = self.kernel.quota().project_of(dir);
                    project.map_err(|error| Error::io("read the project of", dir, error))
                };
                let project = of(self.layout.layer(id).dir())?;
                if project.is_none() {
                    return Ok(KeepsToLimits::default());
                }
                if project != of(staged)? {
                    let assigned = self.kernel.quota().assign_project(staged, project);
                    assigned.map_err(|error| Error::io("set the project of", staged, error))?;
                }
                self.keep_to_limits(id)
            }
        }
    }

    /// The store works as root, whom ext4 lets exceed limits.
    fn keep_to_limits(&self, id: &LayerId) -> Result<KeepsToLimits, Error> {
        let kept = self.kernel.quota().keep_to_limits();
        kept.map_err(|error| Error::io("keep to the limits of", self.layout.layer(id).dir(), error))
    }

    /// Takes the store's own directories out of the project that they have from a home with the
    /// inherit flag, once that is cleared: all layers would be made in that project, and none could
    /// be moved to the trash.
    pub(super) fn leave_inherited_project(&self) -> io::Result<()> {
        let quota = self.kernel.quota();
        let store = self.layout.store_dir();
        if !quota.inherits(&store.join(names::STAGING))? || quota.inherits(self.home())? {
            return Ok(());
        }
        let inside = [names::STAGING, names::TRASH, names::HOLDS, names::CHILDREN];
        for dir in inside.map(|name| store.join(name)) {
            quota.assign_project(&dir, None)?;
        }
        quota.assign_project(&store, None)
    }

    /// Lifts the limits of the project of a directory that is removed next, so that its id can be
    /// used again.
    pub(super) fn release_project(&self, own: &OwnDirs, dir: &Path) -> Result<(), Error> {
        // Most have none, and need no look at the quotas of the file system.
        if !matches!(self.kernel.quota().project_of(dir), Ok(Some(_))) {
            return Ok(());
        }
        // Where quotas cannot be used, no limits are kept.
        let Ok(quotas) = self.quotas() else {
            return Ok(());
        };
        // Whoever released it first may have given the id to a new layer already.
        let _ids = self.lock_projects(own)?;
        match quotas.release(dir) {
            Err(QuotaError::Io {
                operation,
                path,
                source,
                ..
            }) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(operation, path, source))
            }
            Ok(Some(_)) if self.durable() => {
                // Or it comes back after a power cut, in a project that a new layer has by then.
                let tree = self.kernel.tree();
                let synced = tree.open_root(dir);
                let synced = synced.and_then(|dir| tree.sync(Node::Dir(&dir)));
                match synced {
                    // Somebody else has removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    result => result.map_err(|error| Error::io("sync", dir, error)),
                }
            }
            _ => Ok(()),
        }
    }

    /// Why a layer cannot be moved into the home, which is on the same file system.
    pub(super) fn not_movable(&self, id: &LayerId, error: io::Error) -> Error {
        let home = self.home();
        match self.kernel.quota().inherits(home) {
            Ok(true) => Error::Unsupported {
                what: "making a layer in this home",
                reason: format!(
                    "only directories of its own project can be moved into it; clear the flag with `chattr -P -- {}`",
                    EscapedPath(home)
                ),
            },
            _ => Error::io("publish", self.layout.layer(id).dir(), error),
        }
    }

    /// Two processes would choose the same id.
    fn lock_projects(&self, own: &OwnDirs) -> Result<crate::system::Lock, Error> {
        self.lock_own(&own.staging, names::STAGING, LockKind::Exclusive)
    }

    /// Says which project is at its limit, where that is why something below `dir` failed.
    pub(super) fn explain(&self, id: &LayerId, dir: &Path, error: Error) -> Error {
        let full = error.io_source().filter(|source| {
            let kind = source.kind();
            kind == io::ErrorKind::StorageFull || kind == io::ErrorKind::QuotaExceeded
        });
        let over = full.and_then(|full| {
            let quotas = self.quotas().ok()?;
            quotas.over_quota(dir, full, Bytes::ZERO)
        });
        match over {
            Some(QuotaError::OverQuota { project, usage, .. }) => Error::OverQuota {
                id: id.clone(),
                project,
                usage,
                source: Box::new(error),
            },
            _ => error,
        }
    }

    /// The same for the mount of a layer. A kernel that finds no room for its own directory says
    /// nothing: the mount comes up read-only.
    pub(super) fn explain_mount(&self, id: &LayerId, error: Error) -> Error {
        /// At least a block of any file system.
        const BLOCK: Bytes = Bytes::new(65536);
        let dir = self.layout.layer(id).dir().to_owned();
        if !matches!(&error, Error::Mount { source, .. } if matches!(source, MountError::NotWritable { .. }))
        {
            return self.explain(id, &dir, error);
        }
        let of = self.kernel.quota().project_of(&dir).ok().flatten();
        let usage = of.and_then(|project| {
            let usage = self.kernel.quota().usage(self.home(), project).ok()?;
            Some((project, usage))
        });
        match usage {
            Some((project, usage))
                if usage.inodes_left() == Some(0)
                    || usage.bytes_left().is_some_and(|left| left < BLOCK) =>
            {
                Error::OverQuota {
                    id: id.clone(),
                    project,
                    usage,
                    source: Box::new(error),
                }
            }
            _ => error,
        }
    }
}

/// Limits that no kernel keeps are refused before anything is made.
pub(super) fn check_limits(id: &LayerId, limits: Limits) -> Result<(), Error> {
    match limits.rounded() {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::quota(id, error.into())),
    }
}

/// Refuses a default size that would not be kept.
pub(super) fn check_default_size(
    kernel: &Kernel,
    home: &Path,
    settings: &HomeSettings,
    size: Bytes,
) -> Result<QuotaControl, Error> {
    let rounded = Limits::UNLIMITED.bytes(Some(size)).rounded();
    rounded.map_err(|error| Error::Settings {
        home: home.to_owned(),
        problem: error.to_string(),
    })?;
    probe(kernel, home, settings).map_err(|error| match error {
        QuotaError::Unsupported { .. } => Error::Unsupported {
            what: "a default size of writable layers",
            reason: error.to_string(),
        },
        error => not_probed(error),
    })
}

fn not_probed(error: QuotaError) -> Error {
    match error {
        QuotaError::Io {
            operation,
            path,
            source,
            ..
        } => Error::io(operation, path, source),
        error => Error::Unsupported {
            what: "a limit on a layer",
            reason: error.to_string(),
        },
    }
}

/// The quotas of a home, if they can be used.
pub(super) fn probe(
    kernel: &Kernel,
    home: &Path,
    settings: &HomeSettings,
) -> Result<QuotaControl, QuotaError> {
    let backend = kernel.shared_quota();
    let base = settings.project_base.and_then(ProjectId::new);
    match base.and_then(|base| ProjectRange::after_base(Some(base))) {
        Some(range) => QuotaControl::probe_in(backend, home, range),
        None => QuotaControl::probe(backend, home),
    }
}
