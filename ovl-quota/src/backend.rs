use std::any::Any;
use std::fmt;
use std::io;
use std::path::Path;

use crate::limits::{Limits, Usage};
use crate::project::{ProjectId, ProjectRange};

/// What a kernel does about project quotas.
///
/// `dir` is a directory, `home` any directory on the file system whose quotas are meant. In both,
/// symlinks are followed except in the last component, where they are refused.
///
/// # Privileges
///
/// The host's implementation needs `CAP_SYS_ADMIN` in the initial user namespace for all but
/// [`project_of`](Self::project_of), [`inherits`](Self::inherits) and
/// [`enforcement`](Self::enforcement).
pub trait QuotaBackend: fmt::Debug + Send + Sync + 'static {
    /// The project of a directory itself. A file system without project ids has none.
    ///
    /// # Errors
    /// When `dir` is not a directory, or cannot be opened for reading.
    fn project_of(&self, dir: &Path) -> io::Result<Option<ProjectId>>;

    /// Whether what is created in a directory takes over its project id: the flag that
    /// [`assign_project`](Self::assign_project) sets.
    ///
    /// # Errors
    /// As [`project_of`](Self::project_of).
    #[doc(alias = "FS_XFLAG_PROJINHERIT")]
    fn inherits(&self, dir: &Path) -> io::Result<bool>;

    /// Puts a directory into a project, and with it all that is created in it from now on; or, with
    /// `None`, out of any project. What is in the directory already keeps its project. Works
    /// whether or not quotas are on.
    ///
    /// # Errors
    /// As [`project_of`](Self::project_of); `EOPNOTSUPP` if the file system has no project ids (an
    /// ext4 without the `project` feature), `EINVAL` in a user namespace, `EPERM` if the caller
    /// does not own the directory. The directory is as it was then.
    fn assign_project(&self, dir: &Path, project: Option<ProjectId>) -> io::Result<()>;

    /// What the file system does about project limits. Asked of the kernel, never derived from the
    /// mount options.
    ///
    /// # Errors
    /// When `home` cannot be opened, or the state cannot be asked for. A file system without
    /// quotas is a value.
    fn enforcement(&self, home: &Path) -> io::Result<Enforcement>;

    /// Sets both limits of a project, [rounded](Limits::rounded). Limits below what is in use are
    /// set all the same: no more can be used then.
    ///
    /// # Errors
    /// `InvalidInput` for limits that cannot be rounded; `ESRCH` or `ENOSYS` if quotas
    /// are off, `EPERM` without the privilege, `EROFS` on a read-only mount.
    fn set_limits(&self, home: &Path, project: ProjectId, limits: &Limits) -> io::Result<()>;

    /// What a project uses. A project that never was used is empty and unlimited.
    ///
    /// # Errors
    /// `ESRCH` or `ENOSYS` if quotas are off, `EPERM` without the privilege.
    fn usage(&self, home: &Path, project: ProjectId) -> io::Result<Usage>;

    /// The projects of `range` that have files or limits, in ascending order. Files that were
    /// removed may count a while longer (XFS frees them later).
    ///
    /// # Errors
    /// `ESRCH` or `ENOSYS` if quotas are off, `EPERM` without the privilege.
    fn used_ids(&self, home: &Path, range: ProjectRange) -> io::Result<Vec<ProjectId>>;

    /// Has the calling thread, and those that it starts, keep to limits that its privileges would
    /// let it exceed, until what is returned is dropped. A backend whose limits bind everybody has
    /// nothing to do, as here.
    ///
    /// # Errors
    /// When privileges cannot be read or given up.
    #[doc(alias = "CAP_SYS_RESOURCE")]
    fn keep_to_limits(&self) -> io::Result<KeepsToLimits> {
        Ok(KeepsToLimits::default())
    }
}

/// While it lives, its thread keeps to limits; see [`QuotaBackend::keep_to_limits`]. It stays on
/// that thread.
#[derive(Default)]
#[must_use = "limits are kept while it lives"]
pub struct KeepsToLimits(Option<Box<dyn Any>>);

impl KeepsToLimits {
    /// Limits are kept until `kept` is dropped.
    pub fn new(kept: impl Any) -> Self {
        Self(Some(Box::new(kept)))
    }
}

impl fmt::Debug for KeepsToLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeepsToLimits")
            .field("gave_up_privileges", &self.0.is_some())
            .finish()
    }
}

/// What a file system does about project limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Enforcement {
    /// The file system has no project quotas at all: it is neither XFS nor ext4.
    Unsupported,
    /// It is XFS or ext4, and project quotas are off: the mount lacks `prjquota`, ext4 lacks the
    /// `quota` and `project` features, or the kernel was built without them. Limits cannot be set.
    Off,
    /// Usage is counted, limits are not kept: ext4 with the features, mounted without `prjquota`,
    /// or XFS with `pqnoenforce`. Setting a limit succeeds and does nothing, which is why this is
    /// refused.
    AccountingOnly,
    /// Limits are kept.
    Enforced,
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsupported => "the file system has no project quotas; use XFS or ext4",
            Self::Off => {
                "project quotas are off; mount the file system with `prjquota` (XFS: unmount it \
                 first, a remount does nothing; ext4: make it with `-O quota,project`), on a \
                 kernel with CONFIG_XFS_QUOTA or CONFIG_QFMT_V2"
            }
            Self::AccountingOnly => {
                "project quotas are counted but not enforced; mount the file system with \
                 `prjquota` (XFS: unmount it first, a remount does nothing)"
            }
            Self::Enforced => "project quotas are enforced",
        })
    }
}
