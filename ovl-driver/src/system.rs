use std::any::Any;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::ops::Range;

use ovl_diff::DirHandle;
use ovl_layout::XattrNamespace;

/// What the store asks of the system beside trees, mounts and quotas.
pub trait SystemBackend: fmt::Debug + Send + Sync + 'static {
    /// Fills a buffer with random bytes.
    ///
    /// # Errors
    /// What `getrandom(2)` gives.
    fn fill_random(&self, buffer: &mut [u8]) -> io::Result<()>;

    /// An id of the running boot: what it keys is void after the next one.
    ///
    /// # Errors
    /// When it cannot be read.
    fn boot_id(&self) -> io::Result<String>;

    /// The calling process.
    ///
    /// # Errors
    /// When its start time cannot be read.
    fn this_process(&self) -> io::Result<ProcessId>;

    /// Whether a process of this boot still runs.
    ///
    /// # Errors
    /// When the process table cannot be read.
    fn is_alive(&self, process: ProcessId) -> io::Result<bool>;

    /// A number of the caller's mount namespace, unique while the namespace lasts.
    ///
    /// # Errors
    /// When it cannot be read.
    fn mount_namespace(&self) -> io::Result<u64>;

    /// Whether a process that the caller can see is in a mount namespace. One that only an open
    /// file or a bind mount keeps has none, and processes in other user namespaces than the caller's
    /// do not let an ordinary user look.
    ///
    /// # Errors
    /// When the process table cannot be read.
    fn is_namespace_alive(&self, namespace: u64) -> io::Result<bool>;

    /// The ids that the caller's user namespace maps.
    ///
    /// # Errors
    /// When the map cannot be read.
    fn identity(&self) -> io::Result<Identity>;

    /// The type of the file system that holds a directory.
    ///
    /// # Errors
    /// What `statfs(2)` gives.
    fn fs_type(&self, dir: &DirHandle) -> io::Result<FsType>;

    /// Whether the entries of a directory tell their types, as overlayfs needs. The directory itself
    /// and its parent count as entries, so that an empty one answers too.
    ///
    /// # Errors
    /// What `getdents64(2)` gives.
    #[doc(alias = "d_type")]
    fn has_d_type(&self, dir: &DirHandle) -> io::Result<bool>;

    /// Whether the file system of a directory keeps attributes of a namespace, in which overlayfs
    /// marks what hides something. The directory is only looked at.
    ///
    /// # Errors
    /// What `fgetxattr(2)` gives, except `ENODATA` and `ENOTSUP`.
    #[doc(alias = "xattr")]
    fn keeps_xattrs(&self, dir: &DirHandle, namespace: XattrNamespace) -> io::Result<bool>;

    /// Locks the directory `name` inside `dir` (`dir` itself where `name` is `None`). `None` when
    /// the lock is held elsewhere and `wait` is false.
    ///
    /// Locks exclude each other between processes and between threads, and end with the process.
    /// The object that had the name is locked; whether it still has it is the caller's to check.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, and what `flock(2)` gives.
    fn lock(
        &self,
        dir: &DirHandle,
        name: Option<&OsStr>,
        kind: LockKind,
        wait: bool,
    ) -> io::Result<Option<Lock>>;
}

/// A held lock; dropping it unlocks.
pub struct Lock {
    ino: u64,
    dir: Option<DirHandle>,
    _held: Box<dyn Any + Send + Sync>,
}

impl Lock {
    /// A lock on the object with this inode number, held while `held` lives.
    pub fn new(ino: u64, held: impl Any + Send + Sync) -> Self {
        Self {
            ino,
            dir: None,
            _held: Box::new(held),
        }
    }

    /// The same, which opened the directory for that: whoever wants to look into it need not open it
    /// again.
    #[must_use]
    pub fn with_dir(self, dir: DirHandle) -> Self {
        let dir = Some(dir);
        Self { dir, ..self }
    }

    /// The locked directory, where the backend gives it.
    #[must_use]
    pub fn dir(&self) -> Option<&DirHandle> {
        self.dir.as_ref()
    }

    /// The inode number of what is locked.
    #[must_use]
    pub fn ino(&self) -> u64 {
        self.ino
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
            .field("ino", &self.ino)
            .finish_non_exhaustive()
    }
}

/// Whether others may hold the same lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Others that share it may.
    Shared,
    /// Nobody else may.
    Exclusive,
}

/// A process of one boot; the start time tells it from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// The process number.
    pub pid: u32,
    /// Clock ticks since boot when it started.
    pub start_time: u64,
}

/// Who the caller is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// Effective user id, as the caller's namespace sees it.
    pub uid: u32,
    /// Effective group id, as the caller's namespace sees it.
    pub gid: u32,
    /// Whether the caller is outside the initial user namespace.
    pub user_namespace: bool,
    /// User ids that the namespace maps.
    pub uids: Vec<Range<u64>>,
    /// Group ids that the namespace maps.
    pub gids: Vec<Range<u64>>,
}

impl Identity {
    /// Root of the initial user namespace.
    #[must_use]
    pub fn root() -> Self {
        let all = || std::iter::once(0..u64::from(u32::MAX)).collect();
        Self {
            uid: 0,
            gid: 0,
            user_namespace: false,
            uids: all(),
            gids: all(),
        }
    }

    /// Root of a user namespace that maps nothing else.
    #[must_use]
    pub fn single_id() -> Self {
        let root = || std::iter::once(0..1).collect();
        Self {
            user_namespace: true,
            uids: root(),
            gids: root(),
            ..Self::root()
        }
    }
}

/// A file system type, by the number that `statfs(2)` gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FsType(
    /// The magic number.
    pub u32,
);

impl FsType {
    /// ext2, ext3 and ext4.
    pub const EXT: Self = Self(0xef53);
    /// XFS.
    pub const XFS: Self = Self(0x5846_5342);
    /// tmpfs.
    pub const TMPFS: Self = Self(0x0102_1994);
    /// overlayfs.
    pub const OVERLAY: Self = Self(0x794c_7630);

    /// Docker's name for it, `<unknown>` where Docker has none.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            0x6175_6673 => "aufs",
            0x9123_683e => "btrfs",
            0x28cd_3d45 => "cramfs",
            0xf15f => "ecryptfs",
            0xef53 => "extfs",
            0xf2f5_2010 => "f2fs",
            0x6573_5546 => "fuse",
            0x4750_4653 => "gpfs",
            0x72b6 => "jffs2",
            0x3153_464a => "jfs",
            0x6969 => "nfs",
            0x794c_7630 => "overlayfs",
            0x8584_58f6 => "ramfs",
            0x5265_4973 => "reiserfs",
            0x517b => "smb",
            0x7371_7368 => "squashfs",
            0x0102_1994 => "tmpfs",
            0xa501_fcf5 => "vxfs",
            0x5846_5342 => "xfs",
            0x2fc1_2fc1 => "zfs",
            _ => "<unknown>",
        }
    }
}
