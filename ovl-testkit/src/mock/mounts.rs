//! The mount table, and mounting as the kernel does it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::ops::Deref;
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
use super::quota::Writer;
use super::request::{Directory, Refusal, Request};
use super::tree::MockDir;
use super::{FIRST_NAMESPACE, KernelProfile, MockKernel, State};

/// One mount.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) id: u64,
    pub(super) target: PathBuf,
    /// The mount that it is on.
    pub(super) parent: u64,
    /// The directory it covers, as that one shows it.
    pub(super) point: Ino,
    /// The one mount namespace that sees it; of the root, all do.
    pub(super) namespace: u64,
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
            parent: 0,
            point: 0,
            namespace: FIRST_NAMESPACE,
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
    /// The mounts that the caller sees, in their order.
    fn seen(&self) -> impl DoubleEndedIterator<Item = &Arc<Mount>> {
        self.mounts
            .iter()
            .filter(|mount| mount.is_seen(self.namespace))
    }

    /// Whether something is mounted on a directory, by whatever mount that was reached.
    pub(super) fn is_mount_point(&self, ino: Ino) -> bool {
        self.seen().any(|mount| mount.point == ino)
    }

    /// The mount that covers a directory of another one.
    pub(super) fn mounted_on(&self, parent: u64, ino: Ino) -> Option<&Arc<Mount>> {
        self.seen()
            .rfind(|mount| (mount.parent, mount.point) == (parent, ino))
    }

    /// The mount that covers what was found.
    pub(super) fn covering(&self, found: &MockDir) -> Option<&Arc<Mount>> {
        self.mounted_on(found.mount_id(), found.point()?)
    }

    /// Copies what the caller sees into a new mount namespace.
    pub(super) fn copy_mounts(&mut self, namespace: u64) {
        let seen: Vec<Arc<Mount>> = self.seen().filter(|mount| mount.id > 1).cloned().collect();
        let mut copies = BTreeMap::new();
        for mount in seen {
            let id = self.next_mount;
            self.next_mount += 1;
            copies.insert(mount.id, id);
            self.mounts.push(Arc::new(Mount {
                id,
                parent: copies.get(&mount.parent).copied().unwrap_or(mount.parent),
                target: mount.target.clone(),
                kind: mount.kind.clone(),
                uses: Mutex::default(),
                namespace,
                ..*mount
            }));
        }
    }

    /// Takes mounts away, lazily, and what is mounted on them, which was mounted later.
    pub(super) fn drop_mounts(&mut self, which: impl Fn(&Mount) -> bool) {
        let mut dropped = BTreeSet::new();
        let chosen = |mount: &mut Arc<Mount>| {
            let goes = mount.id > 1 && (which(mount) || dropped.contains(&mount.parent));
            goes && dropped.insert(mount.id)
        };
        let gone: Vec<_> = self.mounts.extract_if(.., chosen).collect();
        self.detached.retain(|mount| mount.strong_count() > 0);
        self.detached.extend(gone.iter().map(Arc::downgrade));
    }

    /// A directory for a layer: the mount that it is on, and itself.
    fn layer_dir(&self, path: &Path, pid: u32) -> Result<(u64, Ino)> {
        let found = self.walk(path, pid)?;
        Ok((found.mount_id(), found.plain_or(Errno::INVAL)?))
    }

    /// The directory at a path that does not end with a symbolic link: what lies there under all
    /// that is mounted on it.
    fn dir_itself(&self, path: &Path, pid: u32) -> Result<MockDir> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return self.walk(path, pid);
        };
        let parent = self.walk(parent, pid)?;
        let ino = self.child(parent.plain_or(Errno::INVAL)?, name)?;
        let ino = ino.ok_or(Errno::NOENT)?;
        match self.inode(ino)?.is_dir() {
            true => Ok(parent.enter(name, ino)),
            false => Err(Errno::NOTDIR),
        }
    }

    /// Where a mount at such a path goes: the mount that it will be on, and the directory. It covers
    /// what is mounted there.
    fn mount_place(&self, path: &Path, pid: u32) -> Result<(u64, Ino)> {
        let place = self.covered(self.dir_itself(path, pid)?, pid);
        Ok((place.mount_id(), place.point().ok_or(Errno::INVAL)?))
    }

    /// `openat2(2)` with `RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS` and `RESOLVE_NO_XDEV`.
    fn dir_beneath(&self, mount: u64, home: Ino, path: &Path) -> Result<Ino> {
        path.iter().try_fold(home, |dir, name| {
            let ino = self.child(dir, name)?.ok_or(Errno::NOENT)?;
            match &self.inode(ino)?.body {
                Body::Directory(_) if self.mounted_on(mount, ino).is_some() => Err(Errno::XDEV),
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

    fn overlay(&mut self, request: &Request, profile: &KernelProfile, pid: u32) -> Result<Overlay> {
        let find = |directory: &Directory, empty: Errno| match directory {
            Directory::Open(mount, ino) => Ok((*mount, *ino)),
            Directory::Named(path) if path.as_os_str().is_empty() => Err(empty),
            Directory::Named(path) if path.is_absolute() => self.layer_dir(path, pid),
            Directory::Named(path) => {
                let base = request.working_dir.as_deref().ok_or(Errno::NOENT)?;
                self.layer_dir(&base.join(path), pid)
            }
        };
        let lowers = request
            .lowers
            .iter()
            .map(|lower| Ok(find(lower, Errno::INVAL)?.1));
        let lowers: Vec<Ino> = lowers.collect::<Result<_>>()?;
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
            // A work directory alone is ignored.
            (None, _) => None,
            (Some(upper), Some(work)) => {
                let (upper, work) = (find(upper, Errno::NOENT)?, find(work, Errno::NOENT)?);
                let read_only = |mount: &Arc<Mount>| mount.id == upper.0 && mount.read_only;
                if upper.0 != work.0 || self.seen().any(read_only) {
                    return Err(Errno::INVAL);
                }
                Some((upper.1, work.1))
            }
            (Some(_), None) => return Err(Errno::INVAL),
        };
        self.refuse_overlap(&lowers, upper)?;
        let mut inner_work = None;
        if let Some((upper, work)) = upper {
            // Linux only warns of this; nothing good comes of it.
            if self.is_used_by_mount(upper) || self.is_used_by_mount(work) {
                return Err(Errno::BUSY);
            }
            inner_work = self.make_work(work, request.volatile)?;
            self.whiteouts.remove(&upper);
        }
        // Without a place to work in nothing can be changed.
        let upper = upper.filter(|_| inner_work.is_some());
        Ok(Overlay {
            upper: upper.map(|(upper, _)| upper),
            work: upper.map(|(_, work)| work),
            inner_work,
            lowers,
            xattrs,
            redirect,
            metacopy,
            escapes: profile.escapes_xattrs,
        })
    }

    /// Layers must be apart from each other, and from where the kernel works.
    fn refuse_overlap(&self, lowers: &[Ino], upper: Option<(Ino, Ino)>) -> Result<()> {
        let mut apart: BTreeSet<Ino> = lowers.iter().copied().collect();
        if apart.len() < lowers.len() {
            return Err(Errno::LOOP);
        }
        let Some((upper, work)) = upper else {
            return match self.nested(&apart).is_empty() {
                true => Ok(()),
                false => Err(Errno::LOOP),
            };
        };
        if upper == work || !self.nested(&BTreeSet::from([upper, work])).is_empty() {
            return Err(Errno::INVAL);
        }
        if apart.contains(&upper) || apart.contains(&work) {
            return Err(Errno::LOOP);
        }
        apart.extend([upper, work]);
        // A work directory may be in a lower one. An upper one may, too, of late.
        match self.nested(&apart).iter().all(|(_, inner)| *inner == work) {
            true => Ok(()),
            false => Err(Errno::LOOP),
        }
    }

    /// Those directories that lie in others: the outer and the inner one.
    fn nested(&self, dirs: &BTreeSet<Ino>) -> Vec<(Ino, Ino)> {
        let mut found = Vec::new();
        let mut next: Vec<(Ino, Option<Ino>)> = vec![(ROOT, None)];
        while let Some((ino, outer)) = next.pop() {
            let is_one = dirs.contains(&ino);
            if is_one && let Some(outer) = outer {
                found.push((outer, ino));
            }
            let outer = if is_one { Some(ino) } else { outer };
            let Ok(entries) = self.entries(ino) else {
                continue;
            };
            next.extend(entries.values().map(|inner| (*inner, outer)));
        }
        found
    }

    /// `ovl_make_workdir`: makes `work/work` anew. None where it cannot be made, or what lies in it
    /// is too deep for the kernel to remove, which mounts read-only then.
    fn make_work(&mut self, work: Ino, volatile: bool) -> Result<Option<Ino>> {
        let name = OsStr::new("work");
        if let Some(inner) = self.child(work, name)? {
            if let Some(marks) = self.child(inner, OsStr::new("incompat"))?
                && self.entries(marks).is_ok_and(|marks| !marks.is_empty())
            {
                return Err(Errno::INVAL);
            }
            if !self.clear(inner, 0)? {
                return Ok(None);
            }
            self.rmdir(work, name)?;
        }
        let body = || Body::Directory(BTreeMap::new());
        let made = self.add_by(Writer::Overlay, work, (work, name), body(), 0);
        let Ok(inner) = made else {
            return Ok(None);
        };
        if volatile {
            let mut dir = inner;
            for name in ["incompat", "volatile"] {
                dir = self.add(dir, OsStr::new(name), body(), 0)?;
            }
            let dirty = Body::Regular(super::data::Data::default());
            self.add(dir, OsStr::new("dirty"), dirty, 0o600)?;
        }
        Ok(Some(inner))
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
    fn is_seen(&self, namespace: u64) -> bool {
        self.namespace == namespace || self.id == 1
    }

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
        let pid = self.process.pid;
        let (parent, point) = state.mount_place(plan.target(), pid)?;
        let (kind, read_only) = match plan.action() {
            MountAction::Bind { source } => {
                state.dir_itself(source, pid)?;
                let source = state.walk(source, pid)?;
                // Whatever is mounted there.
                let kind = match source.plain_or(Errno::INVAL) {
                    Ok(dir) => Kind::Plain(dir),
                    Err(_) => source.root_kind()?,
                };
                (kind, plan.access() == Access::ReadOnly)
            }
            MountAction::Overlay(call) => {
                let mut request = match call {
                    OverlayCall::Data { data, .. } => Request::from_data(data.as_bytes(), profile)?,
                    OverlayCall::Settings { settings, .. } => {
                        Request::from_settings(settings, profile, |_| Err(Errno::BADF))?
                    }
                    OverlayCall::Layers { home, settings } => {
                        let (mount, home) = state.layer_dir(home, pid)?;
                        let open = |path: &Path| Ok((mount, state.dir_beneath(mount, home, path)?));
                        Request::from_settings(settings, profile, open)?
                    }
                };
                request.working_dir = call.working_dir().map(Path::to_owned);
                let overlay = state.overlay(&request, profile, pid)?;
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
            parent,
            point,
            namespace: self.namespace,
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
                .redirect_dir(profile.redirect_dir)
                .metacopy(profile.metacopy)
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
        let mount = state.seen().rfind(|mount| mount.target == target);
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
        let mut seen = state.seen();
        let Some(gone) = seen.rfind(|mount| mount.target == target && mount.id > 1) else {
            return Err(MountError::unmount(target, Errno::INVAL.into()));
        };
        let id = gone.id;
        let is_parent = state.mounts.iter().any(|mount| mount.parent == id);
        let is_busy = is_parent || !gone.holders().is_empty();
        drop(seen);
        if mode == UnmountMode::Now && is_busy {
            drop(state);
            let holders = || self.holders(target).unwrap_or_default();
            return Err(MountError::unmount(target, Errno::BUSY.into()).with_holders(holders));
        }
        state.drop_mounts(|mount| mount.id == id);
        Ok(())
    }

    fn mount_at(&self, path: &Path) -> io::Result<Option<MountInfo>> {
        let state = self.state();
        Ok(state
            .seen()
            .rfind(|mount| mount.target == path)
            .map(|mount| info(mount)))
    }

    fn mounts_below(&self, path: &Path) -> io::Result<Vec<MountInfo>> {
        let state = self.state();
        let below = |mount: &&Arc<Mount>| mount.target != path && mount.target.starts_with(path);
        Ok(state
            .seen()
            .filter(below)
            .map(|mount| info(mount))
            .collect())
    }

    fn is_upper_in_use(&self, upper: &Path) -> io::Result<bool> {
        let state = self.state();
        let dir = state.dir_itself(upper, self.process.pid)?;
        let dir = dir.plain_or(Errno::INVAL)?;
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
