//! The mount table, and mounting as the kernel does it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ovl_layout::XattrNamespace;
use ovl_mount::{
    Access, DataLimit, HeldAs, Holder, KERNEL_MAX_LOWERS, MAX_HOLDERS, MountAction, MountBackend,
    MountError, MountFeatures, MountInfo, MountPlan, OverlayCall, UnmountMode,
};
use rustix::io::Errno;

use super::inode::{Body, Ino, ROOT, Result};
use super::overlay::Overlay;
use super::request::{Directory, Refusal, Request};
use super::{KernelProfile, MockKernel, State};

/// One mount.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) id: u64,
    pub(super) target: PathBuf,
    /// The directory it covers.
    point: Ino,
    pub(super) read_only: bool,
    pub(super) kind: Kind,
    uses: Mutex<Vec<Weak<Use>>>,
}

/// What a process has open on a mount, which is what keeps that busy.
#[derive(Debug)]
pub(super) struct Use {
    mount: Arc<Mount>,
    process: u32,
}

impl Use {
    pub(super) fn new(mount: &Arc<Mount>, process: u32) -> Arc<Self> {
        let mount = Arc::clone(mount);
        let new = Arc::new(Self { mount, process });
        let mut uses = new.mount.open_uses();
        uses.retain(|one| one.strong_count() > 0);
        uses.push(Arc::downgrade(&new));
        drop(uses);
        new
    }

    pub(super) fn process(&self) -> u32 {
        self.process
    }
}

impl Deref for Use {
    type Target = Mount;

    fn deref(&self) -> &Mount {
        &self.mount
    }
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Directories of the file system itself, from this one down.
    Plain(Ino),
    Overlay(Overlay),
}

impl Mount {
    pub(super) fn root() -> Self {
        let target = PathBuf::from("/");
        Self {
            id: 1,
            target,
            point: 0,
            read_only: false,
            kind: Kind::Plain(ROOT),
            uses: Mutex::default(),
        }
    }

    /// The same mount, with nothing open on it.
    pub(super) fn fork(&self) -> Arc<Self> {
        Arc::new(Self {
            target: self.target.clone(),
            kind: self.kind.clone(),
            uses: Mutex::default(),
            ..*self
        })
    }

    fn open_uses(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Use>>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The processes that have something open on it, by number.
    fn holders(&self) -> Vec<u32> {
        // Dropped only after the list is free again: the last use of a mount frees its list.
        let uses: Vec<_> = self.open_uses().iter().filter_map(Weak::upgrade).collect();
        let mut processes: Vec<u32> = uses.iter().map(|one| one.process).collect();
        processes.sort_unstable();
        processes.dedup();
        processes
    }
}

impl State {
    pub(super) fn is_mount_point(&self, ino: Ino) -> bool {
        self.mounts.iter().any(|mount| mount.point == ino)
    }

    /// The mount that covers a directory.
    pub(super) fn mounted_on(&self, ino: Ino) -> Option<&Arc<Mount>> {
        self.mounts.iter().rev().find(|mount| mount.point == ino)
    }

    /// Follows a path over plain directories. Layers of overlays are there.
    fn plain_dir(&self, path: &Path) -> Result<Ino> {
        let mut links = 0;
        let mut pending: Vec<OsString> = path.iter().rev().map(OsStr::to_owned).collect();
        let mut stack = vec![ROOT];
        while let Some(name) = pending.pop() {
            match name.as_bytes() {
                b"/" => stack.truncate(1),
                b"." => {}
                b".." => stack.truncate(stack.len().saturating_sub(1).max(1)),
                _ => {
                    let dir = stack[stack.len() - 1];
                    let ino = self.child(dir, &name)?.ok_or(Errno::NOENT)?;
                    match &self.inode(ino)?.body {
                        Body::Directory(_) => stack.push(ino),
                        Body::Symlink(target) if links < 40 => {
                            links += 1;
                            pending.extend(Path::new(target).iter().rev().map(OsStr::to_owned));
                        }
                        Body::Symlink(_) => return Err(Errno::LOOP),
                        _ => return Err(Errno::NOTDIR),
                    }
                }
            }
        }
        Ok(stack[stack.len() - 1])
    }

    /// A directory at a path that does not end with a symbolic link.
    fn plain_dir_itself(&self, path: &Path) -> Result<Ino> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return self.plain_dir(path);
        };
        let ino = self.child(self.plain_dir(parent)?, name)?;
        let ino = ino.ok_or(Errno::NOENT)?;
        match self.inode(ino)?.is_dir() {
            true => Ok(ino),
            false => Err(Errno::NOTDIR),
        }
    }

    /// `openat2(2)` with `RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS` and `RESOLVE_NO_XDEV`.
    fn dir_beneath(&self, home: Ino, path: &Path) -> Result<Ino> {
        path.iter().try_fold(home, |dir, name| {
            let ino = self.child(dir, name)?.ok_or(Errno::NOENT)?;
            match &self.inode(ino)?.body {
                Body::Directory(_) if self.is_mount_point(ino) => Err(Errno::XDEV),
                Body::Directory(_) => Ok(ino),
                Body::Symlink(_) => Err(Errno::LOOP),
                _ => Err(Errno::NOTDIR),
            }
        })
    }

    /// Whether an overlay writes there, perhaps one that was unmounted lazily.
    fn is_used_by_mount(&self, dir: Ino) -> bool {
        let detached = self.detached.iter().filter_map(Weak::upgrade);
        let in_use = detached.filter(|mount| !mount.holders().is_empty());
        in_use
            .chain(self.mounts.iter().cloned())
            .any(|mount| mount.uses(dir))
    }

    fn overlay(&mut self, request: &Request, profile: &KernelProfile) -> Result<Overlay> {
        let find = |directory: &Directory| match directory {
            Directory::Open(ino) => Ok(*ino),
            Directory::Named(path) if path.is_absolute() => self.plain_dir(path),
            Directory::Named(path) => {
                let base = request.working_dir.as_deref().ok_or(Errno::NOENT)?;
                self.plain_dir(&base.join(path))
            }
        };
        let mut lowers = Vec::new();
        for lower in &request.lowers {
            let ino = find(lower)?;
            if lowers.contains(&ino) {
                return Err(Errno::LOOP);
            }
            lowers.push(ino);
        }
        let minimum = if request.upper.is_some() { 1 } else { 2 };
        if lowers.len() < minimum || lowers.len() > KERNEL_MAX_LOWERS {
            return Err(Errno::INVAL);
        }
        let xattrs = match request.userxattr {
            true => XattrNamespace::User,
            // It would not see the attributes it has written.
            false if profile.identity.user_namespace => return Err(Errno::PERM),
            false => XattrNamespace::Trusted,
        };
        let (redirect, metacopy) = request.extras(profile)?;
        let upper = match (&request.upper, &request.work) {
            (None, None) => None,
            (Some(upper), Some(work)) => Some((find(upper)?, find(work)?)),
            _ => return Err(Errno::INVAL),
        };
        let mut writable = false;
        if let Some((upper, work)) = upper {
            if upper == work || lowers.contains(&upper) {
                return Err(Errno::LOOP);
            }
            // Linux only warns of this; nothing good comes of it.
            if self.is_used_by_mount(upper) || self.is_used_by_mount(work) {
                return Err(Errno::BUSY);
            }
            writable = self.make_work(work, request.volatile)?;
            self.whiteouts.remove(&upper);
        }
        // Without a place to work in nothing can be changed.
        let upper = upper.filter(|_| writable);
        Ok(Overlay {
            upper: upper.map(|(upper, _)| upper),
            work: upper.map(|(_, work)| work),
            lowers,
            xattrs,
            redirect,
            metacopy,
            escapes: profile.escapes_xattrs,
        })
    }

    /// `ovl_make_workdir`: makes `work/work` anew. False where it cannot be made, or what lies in it
    /// is too deep for the kernel to remove, which mounts read-only then.
    fn make_work(&mut self, work: Ino, volatile: bool) -> Result<bool> {
        let name = OsStr::new("work");
        if let Some(inner) = self.child(work, name)? {
            if let Some(marks) = self.child(inner, OsStr::new("incompat"))?
                && self.entries(marks).is_ok_and(|marks| !marks.is_empty())
            {
                return Err(Errno::INVAL);
            }
            if !self.clear(inner, 0)? {
                return Ok(false);
            }
            self.rmdir(work, name)?;
        }
        let body = || Body::Directory(BTreeMap::new());
        let Ok(mut dir) = self.add(work, name, body(), 0) else {
            return Ok(false);
        };
        if volatile {
            for name in ["incompat", "volatile"] {
                dir = self.add(dir, OsStr::new(name), body(), 0)?;
            }
            let dirty = Body::Regular(super::data::Data::default());
            self.add(dir, OsStr::new("dirty"), dirty, 0o600)?;
        }
        Ok(true)
    }

    /// Whether all went; two levels do.
    fn clear(&mut self, dir: Ino, level: usize) -> Result<bool> {
        for (name, ino) in self.entries(dir)?.clone() {
            if !self.inode(ino)?.is_dir() {
                self.unlink(dir, &name)?;
                continue;
            }
            if !self.entries(ino)?.is_empty() && (level == 1 || !self.clear(ino, level + 1)?) {
                return Ok(false);
            }
            self.rmdir(dir, &name)?;
        }
        Ok(true)
    }
}

impl Mount {
    /// Whether the mount writes to this directory.
    fn uses(&self, ino: Ino) -> bool {
        match &self.kind {
            Kind::Overlay(overlay) => overlay.upper == Some(ino) || overlay.work == Some(ino),
            Kind::Plain(_) => false,
        }
    }
}

impl MockKernel {
    fn try_mount(&self, plan: &MountPlan) -> std::result::Result<(), Refusal> {
        let profile = self.profile();
        let mut state = self.state();
        let point = state.plain_dir_itself(plan.target())?;
        let (kind, read_only) = match plan.action() {
            MountAction::Bind { source } => (
                Kind::Plain(state.plain_dir_itself(source)?),
                plan.access() == Access::ReadOnly,
            ),
            MountAction::Overlay(call) => {
                let mut request = match call {
                    OverlayCall::Data { data, .. } => Request::from_data(data.as_bytes(), profile)?,
                    OverlayCall::Settings { settings, .. } => {
                        Request::from_settings(settings, profile, |_| Err(Errno::BADF))?
                    }
                    OverlayCall::Layers { home, settings } => {
                        let home = state.plain_dir(home)?;
                        let open = |path: &Path| state.dir_beneath(home, path);
                        Request::from_settings(settings, profile, open)?
                    }
                };
                request.working_dir = call.working_dir().map(Path::to_owned);
                let overlay = state.overlay(&request, profile)?;
                let read_only = overlay.upper.is_none();
                (Kind::Overlay(overlay), read_only)
            }
        };
        if read_only != (plan.access() == Access::ReadOnly) {
            return Err(Refusal::WrongAccess);
        }
        let id = state.next_mount;
        state.next_mount += 1;
        let target = plan.target().to_owned();
        state.mounts.push(Arc::new(Mount {
            id,
            target,
            point,
            read_only,
            kind,
            uses: Mutex::default(),
        }));
        Ok(())
    }
}

impl MountBackend for MockKernel {
    fn features(&self) -> io::Result<MountFeatures> {
        let profile = self.profile();
        Ok(
            MountFeatures::new(DataLimit::for_page_size(profile.page_size))
                .layers_by_fd(profile.layers_by_fd)
                .lowerdir_plus(profile.lowerdir_plus)
                .index(profile.index)
                .user_namespace(profile.identity.user_namespace),
        )
    }

    fn mount(&self, plan: &MountPlan) -> std::result::Result<(), MountError> {
        self.try_mount(plan).map_err(|refusal| match refusal {
            Refusal::Errno(errno) => MountError::mount(plan, Vec::new(), errno.into()),
            Refusal::Said(errno, said) => MountError::mount(plan, vec![said], errno.into()),
            Refusal::Layer(layer, errno) => MountError::layer(plan, &layer, errno.into()),
            Refusal::WrongAccess => MountError::wrong_access(plan, Vec::new()),
        })
    }

    fn holders(&self, target: &Path) -> io::Result<Vec<Holder>> {
        let state = self.state();
        let mount = state.mounts.iter().rfind(|mount| mount.target == target);
        let processes = mount.map_or_else(Vec::new, |mount| mount.holders());
        let holder = |pid| Holder::new(pid, format!("process-{pid}"), HeldAs::OpenFile);
        Ok(processes
            .into_iter()
            .take(MAX_HOLDERS)
            .map(holder)
            .collect())
    }

    fn unmount(&self, target: &Path, mode: UnmountMode) -> std::result::Result<(), MountError> {
        let mut state = self.state();
        let Some(at) = state
            .mounts
            .iter()
            .rposition(|mount| mount.target == target && mount.id > 1)
        else {
            return Err(MountError::unmount(target, Errno::INVAL.into()));
        };
        if mode == UnmountMode::Now && !state.mounts[at].holders().is_empty() {
            drop(state);
            let holders = || self.holders(target).unwrap_or_default();
            return Err(MountError::unmount(target, Errno::BUSY.into()).with_holders(holders));
        }
        let gone = state.mounts.remove(at);
        state.detached.retain(|mount| mount.strong_count() > 0);
        state.detached.push(Arc::downgrade(&gone));
        Ok(())
    }

    fn mount_at(&self, path: &Path) -> io::Result<Option<MountInfo>> {
        let state = self.state();
        Ok(state
            .mounts
            .iter()
            .rev()
            .find(|mount| mount.target == path)
            .map(|mount| info(mount)))
    }

    fn mounts_below(&self, path: &Path) -> io::Result<Vec<MountInfo>> {
        let state = self.state();
        let below = |mount: &&Arc<Mount>| mount.target != path && mount.target.starts_with(path);
        Ok(state
            .mounts
            .iter()
            .filter(below)
            .map(|mount| info(mount))
            .collect())
    }

    fn is_upper_in_use(&self, upper: &Path) -> io::Result<bool> {
        let state = self.state();
        let dir = state.plain_dir_itself(upper)?;
        Ok(state.is_used_by_mount(dir))
    }
}

fn info(mount: &Mount) -> MountInfo {
    let fs_type = match mount.kind {
        Kind::Plain(_) => "mock",
        Kind::Overlay(_) => "overlay",
    };
    MountInfo::new(
        mount.id,
        mount.target.clone(),
        fs_type.to_owned(),
        mount.read_only,
    )
}
