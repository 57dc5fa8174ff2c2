//! A kernel in memory, with Linux's semantics.

mod copy_up;
mod data;
mod disk;
mod files;
mod inode;
mod mounts;
mod overlay;
mod profile;
mod quota;
mod renames;
mod request;
mod system;
mod tree;
mod walk;
mod xattrs;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use ovl_diff::{FileKind, Node, TreeBackend as _};
use ovl_driver::{FsType, Kernel, ProcessId};
use rustix::io::Errno;

pub use disk::{Fate, Pending, PendingKind, Survivors};
use inode::{Handles, Ino, Inode, ROOT};
use mounts::Mount;
pub use profile::KernelProfile;

/// The mount namespace of the machine, which never ends.
const FIRST_NAMESPACE: u64 = 1;

/// A kernel in memory: a tree with owners, modes, attributes and devices, mounts with overlayfs's
/// merge rules, locks and project quotas. It implements every backend of the store, so that code
/// which uses a [`Kernel`] runs on it without privileges.
///
/// It behaves as Linux does, with real error numbers. Clones are the same kernel.
///
/// ```
/// use ovl_driver::{CreateLayer, MountRequest, OpenOptions, blocking::Overlay2};
/// use ovl_testkit::{KernelProfile, MockKernel};
///
/// let kernel = MockKernel::new(KernelProfile::modern());
/// let options = OpenOptions::new().create(true);
/// let store = Overlay2::open(kernel.kernel(), "/home".as_ref(), options)?;
/// store.create(&CreateLayer::new("base".parse()?))?;
/// store.create(&CreateLayer::new("work".parse()?).parent(Some("base".parse()?)))?;
/// let path = store.mount(&"work".parse()?, &MountRequest::new())?;
/// kernel.write_file(&path.join("hello"), b"from a mock")?;
/// assert_eq!(store.changes(&"work".parse()?, &Default::default())?[0].to_string(), "A /hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Where it is stricter than Linux
///
/// What Linux permits, and no program should rely on, is refused:
///
/// - `EINVAL` for mount data of a page or more, which Linux cuts.
/// - `EBUSY` for an upper or work directory that a mount already uses, in any mount namespace, or
///   one that was unmounted lazily and that something still uses. Linux only warns.
/// - `ELOOP` for a lower layer that contains the upper one or is the work directory's own, as Linux
///   did everywhere once. Of late it mounts the former.
/// - `EPERM` for a mount without `userxattr` in a user namespace. Linux mounts one that cannot
///   write down what it hides.
/// - `EINVAL` for an overlay as a layer of another, below which Linux takes two levels; for mounts
///   on directories of merged views; for data-only layers (`::`), `nfs_export`, `uuid`, `verity` and
///   `fsync`; and for labels, since no security module is active.
///
/// # What it does not have
///
/// - Handles of overlay directories name a path: they do not follow a rename.
/// - Access is not checked against modes, and `nodev`, `nosuid` and `noexec` change nothing.
/// - Default access control lists are not inherited, and values of access control lists and
///   capabilities are not looked at.
/// - A new directory in one with the setgid bit has exactly the mode that is asked for, as
///   [`create_dir`](ovl_diff::TreeBackend::create_dir) promises; its group is inherited.
/// - Flags such as `chattr +i`.
/// - [Keeping to limits](ovl_quota::QuotaBackend::keep_to_limits) binds all callers while one of
///   them does, not his thread alone.
/// - What overlayfs makes in its work directory is never seen there, and a change of a merged view
///   is a change of names in the upper layer alone.
/// - A new mount namespace has copies of all mounts, and none is shared with it.
/// - Files share data on XFS, and are charged for it, only outside of overlays.
#[derive(Clone)]
pub struct MockKernel {
    shared: Arc<Shared>,
    process: ProcessId,
    /// The mount namespace of the process.
    namespace: u64,
}

struct Shared {
    profile: KernelProfile,
    state: Mutex<State>,
    /// Told when a lock is released.
    unlocked: Condvar,
}

struct State {
    inodes: BTreeMap<Ino, Inode>,
    next_ino: Ino,
    clock: i64,
    clock_step: i64,
    mounts: Vec<Arc<Mount>>,
    /// Unmounted ones, which something may still have open.
    detached: Vec<Weak<Mount>>,
    next_mount: u64,
    boot: u64,
    random: u64,
    locks: system::Locks,
    processes: BTreeMap<u32, system::Process>,
    /// When the last process started.
    started: u64,
    /// The mount namespace of whoever has the state.
    namespace: u64,
    limits: quota::ProjectLimits,
    /// Changes of names that are not on disk, in their order.
    pending: Vec<disk::NameChange>,
    /// The whiteout that a mounted upper layer makes all others of.
    whiteouts: BTreeMap<Ino, Ino>,
    /// What an exceeded limit is called here.
    full: Errno,
    fs_type: FsType,
}

impl MockKernel {
    /// A kernel of this kind with an empty root directory.
    #[must_use]
    pub fn new(profile: KernelProfile) -> Self {
        let process = ProcessId {
            pid: 1000,
            start_time: 1,
        };
        let first = system::Process {
            start_time: process.start_time,
            namespace: FIRST_NAMESPACE,
        };
        let may_exceed = profile.fs_type == FsType::EXT && !profile.identity.user_namespace;
        let mut root = Inode::directory(0o755, 0);
        root.settle_new(0);
        let state = State {
            inodes: BTreeMap::from([(ROOT, root)]),
            next_ino: ROOT + 1,
            clock: 0,
            clock_step: if profile.coarse_time { 1000 } else { 1 },
            mounts: vec![Arc::new(Mount::root())],
            detached: Vec::new(),
            next_mount: 2,
            boot: 1,
            random: 0x9e37_79b9_7f4a_7c15,
            locks: system::Locks::default(),
            processes: BTreeMap::from([(process.pid, first)]),
            started: process.start_time,
            namespace: FIRST_NAMESPACE,
            limits: quota::ProjectLimits::new(may_exceed),
            pending: Vec::new(),
            whiteouts: BTreeMap::new(),
            full: Self::full(profile.fs_type),
            fs_type: profile.fs_type,
        };
        let shared = Shared {
            profile,
            state: Mutex::new(state),
            unlocked: Condvar::new(),
        };
        Self {
            shared: Arc::new(shared),
            process,
            namespace: FIRST_NAMESPACE,
        }
    }

    /// The bundle that a store takes.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        Kernel::from_backend(self.clone())
    }

    /// What kind of kernel this is.
    #[must_use]
    pub fn profile(&self) -> &KernelProfile {
        &self.shared.profile
    }

    /// The same kernel, seen by another process, in this one's mount namespace. A process that was
    /// [killed](Self::kill) is not this one: another then has its number, and started later.
    #[must_use]
    pub fn as_process(&self, pid: u32) -> Self {
        self.as_process_in(pid, self.namespace)
    }

    /// The same kernel, seen by a process in another mount namespace, `1` being the first one's.
    /// A namespace without any process is new: it begins with copies of this one's mounts, as
    /// `unshare(2)` makes them where no mount is shared. What is mounted later is seen in its own
    /// namespace alone.
    ///
    /// ```
    /// use ovl_driver::{CreateLayer, MountRequest, OpenOptions, blocking::Overlay2};
    /// use ovl_testkit::{KernelProfile, MockKernel};
    ///
    /// let kernel = MockKernel::new(KernelProfile::modern());
    /// let open = |kernel: &MockKernel| {
    ///     let options = OpenOptions::new().create(true);
    ///     Overlay2::open(kernel.kernel(), "/home".as_ref(), options)
    /// };
    /// let id = "layer".parse()?;
    /// open(&kernel)?.create(&CreateLayer::new("layer".parse()?))?;
    /// let elsewhere = kernel.as_process_in(2000, 7);
    /// open(&elsewhere)?.mount(&id, &MountRequest::new())?;
    /// assert!(open(&kernel)?.mount(&id, &MountRequest::new()).is_err());
    /// elsewhere.kill(2000);
    /// open(&kernel)?.mount(&id, &MountRequest::new())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn as_process_in(&self, pid: u32, namespace: u64) -> Self {
        let mut state = self.state();
        if !state.has_namespace(namespace) {
            state.copy_mounts(namespace);
        }
        let process = state.start(pid, namespace);
        drop(state);
        Self {
            shared: Arc::clone(&self.shared),
            process: ProcessId {
                pid,
                start_time: process.start_time,
            },
            namespace: process.namespace,
        }
    }

    /// Ends a process: its locks are released. A mount namespace ends with its last process, but for
    /// the first one, and its mounts with it.
    pub fn kill(&self, pid: u32) {
        let mut state = self.state();
        state.locks.release_process(pid);
        if let Some(gone) = state.processes.remove(&pid)
            && !state.has_namespace(gone.namespace)
        {
            state.drop_mounts(|mount| mount.namespace == gone.namespace);
        }
        self.shared.unlocked.notify_all();
    }

    /// Starts the machine anew, after everything was put on disk: mounts, locks and processes are
    /// gone, the tree is as it was.
    pub fn reboot(&self) {
        self.sync_all();
        self.restart();
    }

    fn restart(&self) {
        let mut state = self.state();
        state.boot += 1;
        state.mounts.truncate(1);
        state.detached.clear();
        state.whiteouts.clear();
        state.locks = system::Locks::default();
        state.limits.keeping.clear();
        for inode in state.inodes.values_mut() {
            inode.handles = Handles::default();
        }
        let process = system::Process {
            start_time: self.process.start_time,
            namespace: self.namespace,
        };
        state.processes = BTreeMap::from([(self.process.pid, process)]);
        self.shared.unlocked.notify_all();
    }

    /// Another kernel with the same tree, mounts and processes, of which each goes its own way from
    /// here. What is open or locked in this one is not in the other.
    #[must_use]
    pub fn fork(&self) -> Self {
        let shared = Shared {
            profile: self.profile().clone(),
            state: Mutex::new(self.state().fork()),
            unlocked: Condvar::new(),
        };
        Self {
            shared: Arc::new(shared),
            process: self.process,
            namespace: self.namespace,
        }
    }

    /// The directory and all files and directories below it that have changed since they were last
    /// synced: what a power cut could take back. Paths are relative to it.
    ///
    /// # Errors
    /// As opening a directory gives.
    pub fn unsynced(&self, root: &Path) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut next = vec![(PathBuf::new(), self.open_root(root)?)];
        while let Some((path, dir)) = next.pop() {
            if self.path_is_unsynced(Node::Dir(&dir))? {
                found.push(path.clone());
            }
            for entry in self.read_dir(&dir)? {
                let path = path.join(&entry.name);
                match entry.kind {
                    FileKind::Directory => next.push((path, self.open_dir(&dir, &entry.name)?)),
                    FileKind::Regular
                        if self.path_is_unsynced(Node::Entry(&dir, &entry.name))? =>
                    {
                        found.push(path);
                    }
                    _ => {}
                }
            }
        }
        found.sort();
        Ok(found)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.shared.lock();
        state.namespace = self.namespace;
        state
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fork(&self) -> Self {
        Self {
            inodes: self.inodes.clone(),
            mounts: self.mounts.iter().map(|mount| mount.fork()).collect(),
            detached: Vec::new(),
            locks: system::Locks::default(),
            processes: self.processes.clone(),
            limits: self.limits.fork(),
            pending: self.pending.clone(),
            whiteouts: self.whiteouts.clone(),
            ..*self
        }
    }
}

impl fmt::Debug for MockKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockKernel")
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}
