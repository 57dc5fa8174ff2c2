//! Project quotas: accounting, inheritance, limits.

use std::io;
use std::path::Path;

use ovl_diff::TreeBackend as _;
use ovl_driver::FsType;
use ovl_quota::{Bytes, Enforcement, Limits, ProjectId, ProjectRange, QuotaBackend, Usage};
use rustix::io::Errno;

use super::inode::{Ino, Result};
use super::tree::MockDir;
use super::{MockKernel, State};

impl State {
    /// Refuses what would go over a project's limit.
    pub(super) fn charge(&self, project: u32, inodes: u64, bytes: u64) -> Result<()> {
        let Some(limits) = self.limits.get(&project).filter(|_| project != 0) else {
            return Ok(());
        };
        let (used_bytes, used_inodes) = self.used(project);
        let over = |limit: Option<u64>, used: u64, more: u64| {
            more > 0 && limit.is_some_and(|limit| used + more > limit)
        };
        let full = over(limits.bytes.map(Bytes::get), used_bytes, bytes)
            || over(limits.inodes, used_inodes, inodes);
        if full { Err(self.full) } else { Ok(()) }
    }

    fn used(&self, project: u32) -> (u64, u64) {
        let members = self
            .inodes
            .values()
            .filter(|inode| inode.project == project && inode.nlink > 0);
        members.fold((0, 0), |(bytes, inodes), inode| {
            (bytes + inode.blocks() * 512, inodes + 1)
        })
    }
}

impl MockKernel {
    /// What an exceeded limit is called: XFS says that there is no space, ext4 names the quota.
    pub(super) fn full(fs_type: FsType) -> Errno {
        if fs_type == FsType::XFS {
            Errno::NOSPC
        } else {
            Errno::DQUOT
        }
    }

    fn directory(&self, path: &Path) -> io::Result<Ino> {
        let handle = self.open_root(path)?;
        let dir: &MockDir = handle.inner()?;
        Ok(dir.ino(&self.state())?)
    }

    fn quotas_on(&self) -> io::Result<()> {
        match self.profile().quota {
            Enforcement::Unsupported | Enforcement::Off => Err(Errno::NOSYS.into()),
            _ => Ok(()),
        }
    }
}

impl QuotaBackend for MockKernel {
    fn project_of(&self, dir: &Path) -> io::Result<Option<ProjectId>> {
        let ino = self.directory(dir)?;
        Ok(ProjectId::new(self.state().inode(ino)?.project))
    }

    fn inherits(&self, dir: &Path) -> io::Result<bool> {
        let ino = self.directory(dir)?;
        Ok(self.state().inode(ino)?.inherits)
    }

    fn assign_project(&self, dir: &Path, project: Option<ProjectId>) -> io::Result<()> {
        if self.profile().identity.user_namespace {
            return Err(Errno::INVAL.into());
        }
        let ino = self.directory(dir)?;
        let mut state = self.state();
        let inode = state.inode_mut(ino)?;
        inode.project = project.map_or(0, ProjectId::get);
        inode.inherits = project.is_some();
        Ok(())
    }

    fn enforcement(&self, home: &Path) -> io::Result<Enforcement> {
        self.directory(home)?;
        Ok(self.profile().quota)
    }

    fn set_limits(&self, home: &Path, project: ProjectId, limits: &Limits) -> io::Result<()> {
        self.directory(home)?;
        self.quotas_on()?;
        let enforced = self.profile().quota == Enforcement::Enforced;
        let mut state = self.state();
        match limits.is_unlimited() || !enforced {
            true => state.limits.remove(&project.get()),
            false => {
                let rounded = limits.rounded().map_err(io::Error::other)?;
                state.limits.insert(project.get(), rounded)
            }
        };
        Ok(())
    }

    fn usage(&self, home: &Path, project: ProjectId) -> io::Result<Usage> {
        self.directory(home)?;
        self.quotas_on()?;
        let state = self.state();
        let (bytes, inodes) = state.used(project.get());
        let limits = state
            .limits
            .get(&project.get())
            .copied()
            .unwrap_or(Limits::UNLIMITED);
        Ok(Usage::new(Bytes::new(bytes), inodes, limits))
    }

    fn used_ids(&self, home: &Path, range: ProjectRange) -> io::Result<Vec<ProjectId>> {
        self.directory(home)?;
        self.quotas_on()?;
        let state = self.state();
        let limited = state.limits.keys().copied();
        let living = state.inodes.values().filter(|inode| inode.nlink > 0);
        let mut ids: Vec<u32> = living.map(|inode| inode.project).chain(limited).collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids
            .into_iter()
            .filter_map(ProjectId::new)
            .filter(|id| range.contains(*id))
            .collect())
    }
}
