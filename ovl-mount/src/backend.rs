use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::lack::Lack;
use crate::plan::{Access, DataLimit, MountAction, MountPlan, Strategy};

/// Carries out mount plans and tells what is mounted.
///
/// What a store does for itself, such as asking whether a directory is in use, needs no attached
/// mount, so that a program that is killed leaves none behind. The only mounts that are ever
/// attached are those of plans, at their targets; where the kernel can, they are made detached and
/// attached when they are known to be as planned.
///
/// # Privileges
///
/// The host's implementation needs `CAP_SYS_ADMIN` in the user namespace that owns the mount
/// namespace.
pub trait MountBackend: fmt::Debug + Send + Sync + 'static {
    /// What this kernel offers. Probed, never derived from its version.
    ///
    /// # Errors
    /// An error of the probe itself; a missing feature is a value.
    fn features(&self) -> io::Result<MountFeatures>;

    /// Mounts as planned on the plan's target, an existing directory, and checks that the result
    /// is writable or read-only as planned. On error nothing is left mounted.
    ///
    /// # Errors
    /// [`MountError::Mount`] with the kernel's messages, [`MountError::Layer`],
    /// [`MountError::NotWritable`], [`MountError::NotReadOnly`].
    fn mount(&self, plan: &MountPlan) -> Result<(), MountError>;

    /// Takes away the topmost mount at exactly `target`.
    ///
    /// # Errors
    /// [`MountError::Busy`] with [`UnmountMode::Now`] while files are open or it is a working
    /// directory, with the [`holders`](Self::holders); [`MountError::NotMounted`],
    /// [`MountError::Unmount`].
    fn unmount(&self, target: &Path, mode: UnmountMode) -> Result<(), MountError>;

    /// Processes that use the topmost mount at exactly `target`: at most [`MAX_HOLDERS`] of those
    /// that the caller may look at, by process number. None where nothing is mounted.
    ///
    /// # Errors
    /// When the process table cannot be read.
    fn holders(&self, target: &Path) -> io::Result<Vec<Holder>>;

    /// The topmost mount at exactly `path`, in the caller's mount namespace.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    fn mount_at(&self, path: &Path) -> io::Result<Option<MountInfo>>;

    /// Whether something is mounted at exactly `path`, in the caller's mount namespace. Made of
    /// [`mount_at`](Self::mount_at), where there is no shorter way.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    fn is_mounted(&self, path: &Path) -> io::Result<bool> {
        Ok(self.mount_at(path)?.is_some())
    }

    /// The mount that `path` lies in, in the caller's mount namespace: the one at it, or the nearest
    /// one above. Made of [`mount_at`](Self::mount_at), where there is no shorter way.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    fn mount_of(&self, path: &Path) -> io::Result<Option<MountInfo>> {
        for path in path.ancestors() {
            if let Some(mount) = self.mount_at(path)? {
                return Ok(Some(mount));
            }
        }
        Ok(None)
    }

    /// All mounts below `path`, not at it, in the order in which they were made.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    fn mounts_below(&self, path: &Path) -> io::Result<Vec<MountInfo>>;

    /// Whether an overlay mount has a directory as its upper one: in any mount namespace, and also
    /// one that was unmounted lazily and that something still uses. A directory that is only a
    /// lower one, or bind mounted, is not in use so.
    ///
    /// # Errors
    /// When the kernel does not say; `PermissionDenied` without the privilege to mount.
    fn is_upper_in_use(&self, upper: &Path) -> io::Result<bool>;
}

/// What a kernel offers for mounting overlays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MountFeatures {
    /// The limit of a `mount(2)` data string: one page.
    pub data_limit: DataLimit,
    /// `fsconfig(2)` takes layers as open directories (Linux 6.13), and `openat2(2)` opens them.
    pub layers_by_fd: bool,
    /// `fsconfig(2)` takes one layer a call as `lowerdir+` (Linux 6.8).
    pub lowerdir_plus: bool,
    /// The overlay module knows the `index` option (Linux 4.13).
    pub index: bool,
    /// The overlay module knows `redirect_dir=nofollow` (Linux 4.15). A kernel without is not told
    /// so: before 4.10 none makes redirects.
    pub redirect_dir: bool,
    /// The overlay module knows the `metacopy` option (Linux 4.19).
    pub metacopy: bool,
    /// The caller is in a user namespace: `userxattr` is needed.
    pub user_namespace: bool,
    /// Why `layers_by_fd` and `lowerdir_plus` are missing, where they are.
    lacks: [Lack; 2],
}

impl MountFeatures {
    /// A kernel that knows `redirect_dir` and `metacopy`; all else that is not named is absent.
    #[must_use]
    pub fn new(data_limit: DataLimit) -> Self {
        Self {
            data_limit,
            layers_by_fd: false,
            lowerdir_plus: false,
            index: false,
            redirect_dir: true,
            metacopy: true,
            user_namespace: false,
            lacks: [Lack::Unknown; 2],
        }
    }

    /// Sets whether layers can be open directories.
    #[must_use]
    pub fn layers_by_fd(self, layers_by_fd: bool) -> Self {
        Self {
            layers_by_fd,
            ..self
        }
    }

    /// Sets whether `lowerdir+` works.
    #[must_use]
    pub fn lowerdir_plus(self, lowerdir_plus: bool) -> Self {
        Self {
            lowerdir_plus,
            ..self
        }
    }

    /// Sets whether the `index` option is known.
    #[must_use]
    pub fn index(self, index: bool) -> Self {
        Self { index, ..self }
    }

    /// Sets whether `redirect_dir=nofollow` is known.
    #[must_use]
    pub fn redirect_dir(self, redirect_dir: bool) -> Self {
        Self {
            redirect_dir,
            ..self
        }
    }

    /// Sets whether the `metacopy` option is known.
    #[must_use]
    pub fn metacopy(self, metacopy: bool) -> Self {
        Self { metacopy, ..self }
    }

    /// Sets that layers cannot be given in one of the ways of `fsconfig(2)`, and why.
    /// [`Strategy::MountAbsolute`] and [`Strategy::MountRelative`] are never missing.
    #[must_use]
    pub fn without(self, strategy: Strategy, why: Lack) -> Self {
        let [fds, strings] = self.lacks;
        match strategy {
            Strategy::LayersByFd => Self {
                lacks: [why, strings],
                ..self.layers_by_fd(false)
            },
            Strategy::LowerdirPlus => Self {
                lacks: [fds, why],
                ..self.lowerdir_plus(false)
            },
            Strategy::MountAbsolute | Strategy::MountRelative => self,
        }
    }

    /// Why a strategy is missing; `None` where it is not.
    #[must_use]
    pub fn lack(&self, strategy: Strategy) -> Option<Lack> {
        let [fds, strings] = self.lacks;
        match strategy {
            Strategy::LayersByFd => (!self.layers_by_fd).then_some(fds),
            Strategy::LowerdirPlus => (!self.lowerdir_plus).then_some(strings),
            Strategy::MountAbsolute | Strategy::MountRelative => None,
        }
    }

    /// Sets whether the caller is in a user namespace.
    #[must_use]
    pub fn user_namespace(self, user_namespace: bool) -> Self {
        Self {
            user_namespace,
            ..self
        }
    }
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmountMode {
    /// Fails while the mount is in use.
    Now,
    /// Takes the name away at once; the file system goes when its last user does.
    #[doc(alias = "MNT_DETACH")]
    Lazy,
}

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MountInfo {
    /// The kernel's number of the mount, unique while it lasts.
    pub id: u64,
    /// Where it is mounted.
    pub target: PathBuf,
    /// `overlay`, `xfs` and so on.
    pub fs_type: String,
    /// Whether the mount or its file system is read-only.
    pub read_only: bool,
    /// Whether what is mounted below it appears in other mounts too.
    #[doc(alias = "propagation")]
    pub shared: bool,
}

impl MountInfo {
    /// A private mount with these values.
    #[must_use]
    pub fn new(id: u64, target: PathBuf, fs_type: String, read_only: bool) -> Self {
        Self {
            id,
            target,
            fs_type,
            read_only,
            shared: false,
        }
    }

    /// Sets whether what is mounted below it appears in other mounts too.
    #[must_use]
    pub fn shared(self, shared: bool) -> Self {
        Self { shared, ..self }
    }
}

/// Most processes that [`MountBackend::holders`] names.
pub const MAX_HOLDERS: usize = 16;

/// A process that keeps a mount busy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The process number.
    pub pid: u32,
    /// What the process calls itself, unreadable bytes replaced.
    pub comm: String,
    /// The first use that was found.
    pub held_as: HeldAs,
}

impl Holder {
    /// A process with these values.
    #[must_use]
    pub fn new(pid: u32, comm: impl Into<String>, held_as: HeldAs) -> Self {
        Self {
            pid,
            comm: comm.into(),
            held_as,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, comm, held_as } = self;
        write!(f, "{} ({held_as} of process {pid})", comm.escape_debug())
    }
}

/// How a process uses a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeldAs {
    /// It is the working directory.
    WorkingDirectory,
    /// It is the root directory.
    Root,
    /// A file or directory is open.
    OpenFile,
    /// A file is mapped into memory.
    Mapping,
}

impl fmt::Display for HeldAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WorkingDirectory => "working directory",
            Self::Root => "root directory",
            Self::OpenFile => "open file",
            Self::Mapping => "mapped file",
        })
    }
}

/// Why a mount or unmount failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The kernel refused the mount.
    #[error("cannot mount {what} at {}{}", target.display(), Messages(messages))]
    #[non_exhaustive]
    Mount {
        /// `overlay` or `bind of ...`.
        what: String,
        /// The mount point.
        target: PathBuf,
        /// What the kernel said through the file system context, oldest first.
        messages: Vec<String>,
        /// The failed call's error.
        source: io::Error,
    },
    /// A layer's directory cannot be opened, or is not a directory but a symbolic link.
    #[error("cannot open the layer directory {} for the mount at {}", layer.display(), target.display())]
    #[non_exhaustive]
    Layer {
        /// The directory.
        layer: PathBuf,
        /// The mount point.
        target: PathBuf,
        /// The failed call's error.
        source: io::Error,
    },
    /// A mount planned as writable came up read-only; it was taken away again.
    #[error(
        "the mount at {} came up read-only: its file system is read-only, or the kernel could not use the layer's work directory{}",
        target.display(),
        Messages(messages)
    )]
    #[non_exhaustive]
    NotWritable {
        /// The mount point.
        target: PathBuf,
        /// What the kernel said through the file system context, oldest first.
        messages: Vec<String>,
    },
    /// A mount planned as read-only came up writable; it was taken away again.
    #[error("the mount at {} came up writable and was to be read-only", target.display())]
    #[non_exhaustive]
    NotReadOnly {
        /// The mount point.
        target: PathBuf,
    },
    /// Files of the mount are open, or it is somebody's working directory.
    #[error(
        "{} is in use{}; close what uses it, or unmount lazily",
        target.display(),
        Holders(holders)
    )]
    #[non_exhaustive]
    Busy {
        /// The mount point.
        target: PathBuf,
        /// Who uses it, as far as the caller may see.
        holders: Vec<Holder>,
        /// The failed call's error.
        source: io::Error,
    },
    /// Nothing is mounted there.
    #[error("nothing is mounted at {}", target.display())]
    #[non_exhaustive]
    NotMounted {
        /// The path.
        target: PathBuf,
    },
    /// The kernel refused to unmount.
    #[error("cannot unmount {}", target.display())]
    #[non_exhaustive]
    Unmount {
        /// The mount point.
        target: PathBuf,
        /// The failed call's error.
        source: io::Error,
    },
}

impl MountError {
    /// A refused mount.
    #[must_use]
    pub fn mount(plan: &MountPlan, messages: Vec<String>, source: io::Error) -> Self {
        let (what, target) = (plan.action().to_string(), plan.target().to_owned());
        Self::Mount {
            what,
            target,
            messages,
            source,
        }
    }

    /// A directory of a plan that cannot be opened, by its path below the home.
    #[must_use]
    pub fn layer(plan: &MountPlan, layer: &Path, source: io::Error) -> Self {
        let home = match plan.action() {
            MountAction::Overlay(call) => call.working_dir(),
            MountAction::Bind { .. } => None,
        };
        Self::Layer {
            layer: home.map_or_else(|| layer.to_owned(), |home| home.join(layer)),
            target: plan.target().to_owned(),
            source,
        }
    }

    /// A mount that is not what it was planned to be: read-only or writable.
    #[must_use]
    pub fn wrong_access(plan: &MountPlan, messages: Vec<String>) -> Self {
        let target = plan.target().to_owned();
        match plan.access() {
            Access::Writable => Self::NotWritable { target, messages },
            Access::ReadOnly => Self::NotReadOnly { target },
        }
    }

    /// A refused unmount, told apart by the error number: `EBUSY` and `EINVAL` have variants.
    #[must_use]
    pub fn unmount(target: &Path, source: io::Error) -> Self {
        let target = target.to_owned();
        match source
            .raw_os_error()
            .map(rustix::io::Errno::from_raw_os_error)
        {
            Some(rustix::io::Errno::BUSY) => Self::Busy {
                target,
                holders: Vec::new(),
                source,
            },
            Some(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {
                Self::NotMounted { target }
            }
            _ => Self::Unmount { target, source },
        }
    }

    /// Names who is in the way, where that is what is wrong.
    #[must_use]
    pub fn with_holders(mut self, find: impl FnOnce() -> Vec<Holder>) -> Self {
        if let Self::Busy { holders, .. } = &mut self {
            *holders = find();
        }
        self
    }
}

struct Holders<'a>(&'a [Holder]);

impl fmt::Display for Holders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        for (index, holder) in self.0.iter().take(SHOWN).enumerate() {
            let word = if index == 0 { " by " } else { ", " };
            write!(f, "{word}{holder}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

struct Messages<'a>(&'a [String]);

impl fmt::Display for Messages<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|message| write!(f, "; the kernel says: {message}"))
    }
}
