//! A small file system with project quotas, in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use ovl_quota::{Bytes, Enforcement, Limits, ProjectId, ProjectRange, QuotaBackend, Usage};

#[derive(Debug)]
pub(crate) struct MockQuota {
    state: Mutex<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) enforcement: Enforcement,
    /// Every directory, with its project and whether new entries inherit it.
    pub(crate) dirs: BTreeMap<PathBuf, (Option<ProjectId>, bool)>,
    /// Bytes and inodes of each project, its directories left out.
    pub(crate) files: BTreeMap<ProjectId, (u64, u64)>,
    pub(crate) limits: BTreeMap<ProjectId, Limits>,
    /// Whether a project's directory counts as one of its inodes, as it does on XFS and ext4.
    pub(crate) dirs_count: bool,
    /// After this many calls, fails this many with an error number.
    pub(crate) fail: Option<(usize, usize, i32)>,
    /// The names of the calls, in order.
    pub(crate) calls: Vec<&'static str>,
}

impl MockQuota {
    /// A file system that enforces, with this one directory.
    pub(crate) fn new(home: &Path) -> Self {
        let state = State {
            enforcement: Enforcement::Enforced,
            dirs: BTreeMap::from([(home.to_owned(), (None, false))]),
            files: BTreeMap::new(),
            limits: BTreeMap::new(),
            dirs_count: true,
            fail: None,
            calls: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn add_dir(&self, dir: &Path) {
        self.state().dirs.insert(dir.to_owned(), (None, false));
    }

    fn call(&self, name: &'static str) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.calls.push(name);
        let Some((others, times, errno)) = &mut state.fail else {
            return Ok(state);
        };
        if *others > 0 {
            *others -= 1;
            return Ok(state);
        }
        let error = io::Error::from_raw_os_error(*errno);
        *times -= 1;
        if *times == 0 {
            state.fail = None;
        }
        Err(error)
    }
}

impl State {
    fn dir(&mut self, dir: &Path) -> io::Result<&mut (Option<ProjectId>, bool)> {
        self.dirs
            .get_mut(dir)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn usage(&self, project: ProjectId) -> Usage {
        let holds = |id: &Option<ProjectId>| self.dirs_count && *id == Some(project);
        let dirs = self.dirs.values().filter(|(id, _)| holds(id)).count() as u64;
        let (bytes, inodes) = self.files.get(&project).copied().unwrap_or_default();
        let limits = self.limits.get(&project).copied().unwrap_or_default();
        Usage::new(Bytes::new(bytes), inodes + dirs, limits)
    }

    fn quotas_are_on(&self) -> io::Result<()> {
        match self.enforcement {
            Enforcement::Enforced | Enforcement::AccountingOnly => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
        }
    }
}

impl QuotaBackend for MockQuota {
    fn project_of(&self, dir: &Path) -> io::Result<Option<ProjectId>> {
        Ok(self.call("project_of")?.dir(dir)?.0)
    }

    fn inherits(&self, dir: &Path) -> io::Result<bool> {
        Ok(self.call("inherits")?.dir(dir)?.1)
    }

    fn assign_project(&self, dir: &Path, project: Option<ProjectId>) -> io::Result<()> {
        *self.call("assign_project")?.dir(dir)? = (project, project.is_some());
        Ok(())
    }

    fn enforcement(&self, home: &Path) -> io::Result<Enforcement> {
        let mut state = self.call("enforcement")?;
        state.dir(home)?;
        Ok(state.enforcement)
    }

    fn set_limits(&self, home: &Path, project: ProjectId, limits: &Limits) -> io::Result<()> {
        let mut state = self.call("set_limits")?;
        state.dir(home)?;
        state.quotas_are_on()?;
        let limits = limits.rounded().map_err(|_| io::ErrorKind::InvalidInput)?;
        if limits.is_unlimited() {
            state.limits.remove(&project);
        } else {
            state.limits.insert(project, limits);
        }
        Ok(())
    }

    fn usage(&self, home: &Path, project: ProjectId) -> io::Result<Usage> {
        let mut state = self.call("usage")?;
        state.dir(home)?;
        state.quotas_are_on()?;
        Ok(state.usage(project))
    }

    fn used_ids(&self, home: &Path, range: ProjectRange) -> io::Result<Vec<ProjectId>> {
        let mut state = self.call("used_ids")?;
        state.dir(home)?;
        state.quotas_are_on()?;
        let dirs = state
            .dirs
            .values()
            .filter_map(|(id, _)| id.filter(|_| state.dirs_count));
        let files = state
            .files
            .iter()
            .filter(|(_, used)| **used != (0, 0))
            .map(|(id, _)| *id);
        let mut ids: Vec<_> = dirs
            .chain(files)
            .chain(state.limits.keys().copied())
            .collect();
        ids.retain(|id| range.contains(*id));
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }
}
