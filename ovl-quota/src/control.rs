use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::{Enforcement, QuotaBackend};
use crate::error::{QuotaError, UnsupportedReason};
use crate::limits::{Limits, Usage};
use crate::project::{IdsExhausted, ProjectId, ProjectIds, ProjectRange};
use crate::units::Bytes;

const READ_PROJECT: &str = "read the project";
const SET_PROJECT: &str = "set the project";
const SET_LIMITS: &str = "set the project's limits";
const READ_USAGE: &str = "read the project's usage";

/// Quotas of the directories below one home, one project each.
///
/// The projects are kept by the file system alone: the directories carry their ids, the kernel
/// keeps the limits. So nothing is lost with the process; [`adopt`](Self::adopt) finds the ids
/// again.
///
/// All methods can be called from many threads. What changes a project happens one at a time.
///
/// # Examples
///
/// ```no_run
/// use std::{path::Path, sync::Arc};
/// use ovl_quota::{HostQuota, Limits, QuotaControl, parse_size};
///
/// let home = Path::new("/var/lib/ovl");
/// let quotas = QuotaControl::probe(Arc::new(HostQuota::new()), home)?;
/// // An empty directory: what is in it already would keep its project.
/// let layer = home.join("layer");
/// std::fs::create_dir(&layer)?;
/// quotas.limit(&layer, Limits::UNLIMITED.bytes(Some(parse_size("10G")?)))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct QuotaControl {
    backend: Arc<dyn QuotaBackend>,
    home: PathBuf,
    ids: Mutex<ProjectIds>,
}

impl QuotaControl {
    /// Finds out whether quotas can be used below `home`, and which ids are taken. Ids come from
    /// [`ProjectRange::after_base`] of the home's own project.
    ///
    /// # Errors
    ///
    /// [`QuotaError::Unsupported`] with the reason: limits are not [`Enforced`], the home has the
    /// inherit flag, the caller lacks the privilege, or no ids are left after the home's. Else
    /// [`QuotaError::Io`].
    ///
    /// # Privileges
    ///
    /// `CAP_SYS_ADMIN` in the initial user namespace.
    ///
    /// [`Enforced`]: Enforcement::Enforced
    pub fn probe(backend: Arc<dyn QuotaBackend>, home: &Path) -> Result<Self, QuotaError> {
        let base = backend
            .project_of(home)
            .map_err(QuotaError::io(READ_PROJECT, home))?;
        let Some(range) = ProjectRange::after_base(base) else {
            let reason = UnsupportedReason::NoIdsAfter(base.unwrap_or(ProjectId::MAX));
            return Err(QuotaError::unsupported(home, reason));
        };
        Self::probe_in(backend, home, range)
    }

    /// As [`probe`](Self::probe), with ids from `range` whatever the home's own project is.
    ///
    /// # Errors
    ///
    /// As [`probe`](Self::probe).
    pub fn probe_in(
        backend: Arc<dyn QuotaBackend>,
        home: &Path,
        range: ProjectRange,
    ) -> Result<Self, QuotaError> {
        let found = backend.enforcement(home).map_err(QuotaError::io(
            "read the quota state of the file system",
            home,
        ))?;
        if found != Enforcement::Enforced {
            let reason = UnsupportedReason::NotEnforced(found);
            return Err(QuotaError::unsupported(home, reason));
        }
        if backend
            .inherits(home)
            .map_err(QuotaError::io(READ_PROJECT, home))?
        {
            return Err(QuotaError::unsupported(
                home,
                UnsupportedReason::HomeInherits,
            ));
        }
        let mut ids = ProjectIds::new(range);
        match backend.used_ids(home, range) {
            Ok(used) => used.into_iter().for_each(|id| {
                ids.observe(id);
            }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(QuotaError::unsupported(
                    home,
                    UnsupportedReason::NotPermitted,
                ));
            }
            Err(error) => {
                return Err(QuotaError::io("list the projects on the file system", home)(error));
            }
        }
        if let Some(base) = backend
            .project_of(home)
            .map_err(QuotaError::io(READ_PROJECT, home))?
        {
            ids.observe(base);
        }
        Ok(Self {
            backend,
            home: home.to_owned(),
            ids: Mutex::new(ids),
        })
    }

    /// The home.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The ids it chooses from.
    #[must_use]
    pub fn range(&self) -> ProjectRange {
        self.ids().range()
    }

    /// Counts the project of a directory as used, and returns it. To be called after a restart for
    /// every directory that may have one: a project without files and limits is known from its
    /// directory alone.
    ///
    /// # Errors
    ///
    /// [`QuotaError::Io`] if the directory cannot be read.
    pub fn adopt(&self, dir: &Path) -> Result<Option<ProjectId>, QuotaError> {
        let mut ids = self.ids();
        let project = self.project_of(dir)?;
        if let Some(project) = project {
            ids.observe(project);
        }
        Ok(project)
    }

    /// Sets the limits of a directory, and puts it into a project of its own if it has none. Both
    /// limits are set; `None` lifts one. The directory keeps its project whatever its limits are.
    ///
    /// A directory that has none yet should be empty: what is in it already keeps its project, is
    /// not counted, and cannot be linked or moved around in the directory.
    ///
    /// A limit below what is in use is set; no more can be used then.
    ///
    /// # Errors
    ///
    /// - [`QuotaError::Limits`] for limits of 0, or too large ones;
    /// - [`QuotaError::ForeignProject`] if the directory is in a project outside of the range;
    /// - [`QuotaError::IdsExhausted`] if no id is free;
    /// - [`QuotaError::Io`]. A directory without a project has none afterwards either.
    pub fn limit(&self, dir: &Path, limits: Limits) -> Result<ProjectId, QuotaError> {
        let limits = limits.rounded()?;
        let mut ids = self.ids();
        if let Some(project) = self.project_of(dir)? {
            let range = ids.range();
            if !range.contains(project) {
                return Err(QuotaError::ForeignProject {
                    dir: dir.to_owned(),
                    project,
                    range,
                });
            }
            ids.observe(project);
            if !self
                .backend
                .inherits(dir)
                .map_err(QuotaError::io(READ_PROJECT, dir))?
            {
                self.assign(dir, Some(project))?;
            }
            self.set_limits(dir, project, &limits)?;
            return Ok(project);
        }

        let project = self.allocate(&mut ids)?;
        // First the directory, then the limits: a crash in between leaves an id that is found again
        // on its directory, not limits that belong to nothing.
        if let Err(error) = self.assign(dir, Some(project)) {
            ids.release(project);
            return Err(error);
        }
        if let Err(error) = self.set_limits(dir, project, &limits) {
            // An id that could not be taken off the directory stays in use.
            if self.assign(dir, None).is_ok() {
                ids.release(project);
            }
            return Err(error);
        }
        Ok(project)
    }

    /// What the project of a directory uses, and its limits; `None` if it has no project.
    ///
    /// # Errors
    ///
    /// [`QuotaError::Io`].
    pub fn usage(&self, dir: &Path) -> Result<Option<Usage>, QuotaError> {
        Ok(self.usage_of(dir)?.map(|(_, usage)| usage))
    }

    /// Lifts the limits of a directory, takes it out of its project, and frees the id, which is
    /// returned. A directory without a project, or with one outside of the range, is left alone.
    ///
    /// To be called before the directory is removed. What is in it keeps the id until it is removed;
    /// so long the id is not given to another directory.
    ///
    /// # Errors
    ///
    /// [`QuotaError::Io`]; the id stays in use then, and the call can be repeated.
    pub fn release(&self, dir: &Path) -> Result<Option<ProjectId>, QuotaError> {
        let mut ids = self.ids();
        let Some(project) = self.project_of(dir)?.filter(|&id| ids.range().contains(id)) else {
            return Ok(None);
        };
        // First the limits: without its id on the directory nobody would find them again.
        self.set_limits(dir, project, &Limits::UNLIMITED)?;
        self.assign(dir, None)?;
        ids.release(project);
        Ok(Some(project))
    }

    /// Tells whether a write below a directory failed since its project is at a limit: XFS says so
    /// with `ENOSPC`, as if the file system was full, and ext4 with `EDQUOT`. `wanted` is what the
    /// failed call would have added, if that is known, or [`Bytes::ZERO`].
    ///
    /// `None` if `error` is another one, the project has no limit, or more is left of it than the
    /// call can have needed. With `ENOSPC` and less than 4 MiB left this may be wrong: the file
    /// system may be full as well.
    #[must_use]
    pub fn over_quota(&self, dir: &Path, error: &io::Error, wanted: Bytes) -> Option<QuotaError> {
        /// XFS reserves up to 1024 pages for a part of a write, and fails if they are not left.
        const RESERVATION: Bytes = Bytes::new(4 << 20);
        let only_quota = match error.kind() {
            io::ErrorKind::QuotaExceeded => true,
            io::ErrorKind::StorageFull => false,
            _ => return None,
        };
        let (project, usage) = self.usage_of(dir).ok()??;
        let is_over = usage.inodes_left() == Some(0)
            || usage
                .bytes_left()
                .is_some_and(|left| left < wanted.max(RESERVATION))
            || (only_quota && !usage.limits.is_unlimited());
        is_over.then(|| QuotaError::OverQuota {
            dir: dir.to_owned(),
            project,
            usage,
        })
    }

    /// The smallest free id that no file has. Files of a removed directory may still count.
    fn allocate(&self, ids: &mut ProjectIds) -> Result<ProjectId, QuotaError> {
        let mut still_in_use = Vec::new();
        let found = loop {
            let id = match ids.allocate() {
                Ok(id) => id,
                Err(error) => break Err(IdsExhausted::into(error)),
            };
            match self.backend.usage(&self.home, id) {
                Ok(usage) if usage.is_empty() => break Ok(id),
                Ok(_) => still_in_use.push(id),
                Err(error) => {
                    still_in_use.push(id);
                    break Err(QuotaError::io(READ_USAGE, &self.home)(error));
                }
            }
        };
        for id in still_in_use {
            ids.release(id);
        }
        found
    }

    fn usage_of(&self, dir: &Path) -> Result<Option<(ProjectId, Usage)>, QuotaError> {
        let Some(project) = self.project_of(dir)? else {
            return Ok(None);
        };
        let usage = self
            .backend
            .usage(&self.home, project)
            .map_err(QuotaError::io(READ_USAGE, dir))?;
        Ok(Some((project, usage)))
    }

    fn project_of(&self, dir: &Path) -> Result<Option<ProjectId>, QuotaError> {
        self.backend
            .project_of(dir)
            .map_err(QuotaError::io(READ_PROJECT, dir))
    }

    fn assign(&self, dir: &Path, project: Option<ProjectId>) -> Result<(), QuotaError> {
        self.backend
            .assign_project(dir, project)
            .map_err(QuotaError::io(SET_PROJECT, dir))
    }

    fn set_limits(
        &self,
        dir: &Path,
        project: ProjectId,
        limits: &Limits,
    ) -> Result<(), QuotaError> {
        self.backend
            .set_limits(&self.home, project, limits)
            .map_err(QuotaError::io(SET_LIMITS, dir))
    }

    /// A panic in a backend leaves the ids as they were, or one id too many in use.
    fn ids(&self) -> MutexGuard<'_, ProjectIds> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
