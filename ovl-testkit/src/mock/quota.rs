//! Project quotas: accounting, inheritance, limits.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use ovl_diff::TreeBackend as _;
use ovl_driver::FsType;
use ovl_quota::{
    Bytes, Enforcement, KeepsToLimits, Limits, ProjectId, ProjectRange, QuotaBackend, Usage,
};
use rustix::io::Errno;

use super::data::{Data, PAGE};
use super::inode::{Ino, Result};
use super::tree::MockDir;
use super::{MockKernel, Shared, State};

/// As many as one of its mappings of a write has.
const XFS_PAGES: u64 = 1024;

/// The limits of projects, and whom they bind.
#[derive(Debug)]
pub(super) struct ProjectLimits {
    live: BTreeMap<u32, Limits>,
    on_disk: BTreeMap<u32, Limits>,
    /// Those that are not on disk as they are, and since when.
    changed: BTreeMap<u32, i64>,
    /// Whether the file system lets the privileged exceed them.
    may_exceed: bool,
    /// Those who gave up that privilege.
    pub(super) keeping: BTreeSet<u64>,
    next: u64,
}

impl ProjectLimits {
    pub(super) fn new(may_exceed: bool) -> Self {
        Self {
            live: BTreeMap::new(),
            on_disk: BTreeMap::new(),
            changed: BTreeMap::new(),
            may_exceed,
            keeping: BTreeSet::new(),
            next: 0,
        }
    }

    /// The same, with everybody's privileges.
    pub(super) fn fork(&self) -> Self {
        Self {
            live: self.live.clone(),
            on_disk: self.on_disk.clone(),
            changed: self.changed.clone(),
            keeping: BTreeSet::new(),
            ..*self
        }
    }

    fn set(&mut self, project: u32, limits: Option<Limits>, now: i64) {
        if self.live.get(&project) == limits.as_ref() {
            return;
        }
        match limits {
            Some(limits) => self.live.insert(project, limits),
            None => self.live.remove(&project),
        };
        self.changed.insert(project, now);
    }

    /// Those that are not on disk: when they changed, and the project.
    pub(super) fn pending(&self) -> impl Iterator<Item = (i64, u32)> {
        self.changed.iter().map(|(&project, &at)| (at, project))
    }

    /// Puts on disk what was set by then.
    pub(super) fn settle(&mut self, until: i64) {
        let settled: Vec<u32> = self
            .pending()
            .filter(|(at, _)| *at <= until)
            .map(|(_, project)| project)
            .collect();
        for project in settled {
            self.settle_one(project);
        }
    }

    pub(super) fn settle_one(&mut self, project: u32) {
        self.changed.remove(&project);
        match self.live.get(&project) {
            Some(limits) => self.on_disk.insert(project, *limits),
            None => self.on_disk.remove(&project),
        };
    }

    /// Finds what is on disk.
    pub(super) fn read_disk(&mut self) {
        self.live.clone_from(&self.on_disk);
        self.changed.clear();
    }
}

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// The caller, whom ext4 lets exceed limits unless he gave that up.
    Caller,
    /// overlayfs, which gave it up.
    Overlay,
}

/// What may be added to a project; None without a limit.
#[derive(Default)]
struct Room {
    bytes: Option<u64>,
    inodes: Option<u64>,
}

/// Ends the keeping to limits when it is dropped.
struct Keeping {
    shared: Arc<Shared>,
    key: u64,
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.shared.lock().limits.keeping.remove(&self.key);
    }
}

impl State {
    /// Refuses what would go over a project's limit.
    pub(super) fn charge(
        &self,
        writer: Writer,
        project: u32,
        inodes: u64,
        bytes: u64,
    ) -> Result<()> {
        let over = |room: Option<u64>, more: u64| more > 0 && room.is_some_and(|room| more > room);
        let room = self.room(writer, project);
        match over(room.bytes, bytes) || over(room.inodes, inodes) {
            true => Err(self.full),
            false => Ok(()),
        }
    }

    /// What is left of a project's limits.
    fn room(&self, writer: Writer, project: u32) -> Room {
        let all = &self.limits;
        let none = Room::default();
        if writer == Writer::Caller && all.may_exceed && all.keeping.is_empty() {
            return none;
        }
        let Some(limits) = all.live.get(&project).filter(|_| project != 0) else {
            return none;
        };
        let (bytes, inodes) = self.used(project);
        let left = |limit: Option<u64>, used| limit.map(|limit| limit.saturating_sub(used));
        Room {
            bytes: left(limits.bytes.map(Bytes::get), bytes),
            inodes: left(limits.inodes, inodes),
        }
    }

    /// How much of a write goes before a limit stops it: all of it where there is none. ext4 takes
    /// the pages that fit; XFS has room for 4 MiB at a time, or for none of them.
    pub(super) fn fitting(
        &self,
        writer: Writer,
        project: u32,
        contents: &Data,
        (offset, len): (u64, usize),
    ) -> usize {
        let at_once = match self.fs_type {
            FsType::XFS => XFS_PAGES,
            _ => 1,
        };
        let room = self.room(writer, project).bytes;
        room.map_or(len, |room| {
            contents.fitting(offset, len, at_once, room / PAGE)
        })
    }

    fn used(&self, project: u32) -> (u64, u64) {
        let members = self
            .inodes
            .values()
            .filter(|inode| inode.project == project && inode.is_charged());
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
        let limits = match limits.is_unlimited() || !enforced {
            true => None,
            false => Some(limits.rounded().map_err(io::Error::other)?),
        };
        state.tick();
        let now = state.clock;
        state.limits.set(project.get(), limits, now);
        Ok(())
    }

    fn usage(&self, home: &Path, project: ProjectId) -> io::Result<Usage> {
        self.directory(home)?;
        self.quotas_on()?;
        let state = self.state();
        let (bytes, inodes) = state.used(project.get());
        let limits = state
            .limits
            .live
            .get(&project.get())
            .copied()
            .unwrap_or(Limits::UNLIMITED);
        Ok(Usage::new(Bytes::new(bytes), inodes, limits))
    }

    fn used_ids(&self, home: &Path, range: ProjectRange) -> io::Result<Vec<ProjectId>> {
        self.directory(home)?;
        self.quotas_on()?;
        let state = self.state();
        let limited = state.limits.live.keys().copied();
        let living = state.inodes.values().filter(|inode| inode.is_charged());
        let mut ids: Vec<u32> = living.map(|inode| inode.project).chain(limited).collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids
            .into_iter()
            .filter_map(ProjectId::new)
            .filter(|id| range.contains(*id))
            .collect())
    }

    fn keep_to_limits(&self) -> io::Result<KeepsToLimits> {
        let mut state = self.state();
        let key = state.limits.next;
        state.limits.next += 1;
        state.limits.keeping.insert(key);
        let shared = Arc::clone(&self.shared);
        Ok(KeepsToLimits::new(Keeping { shared, key }))
    }
}
