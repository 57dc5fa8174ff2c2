use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use ovl_diff::{ApplyError, DiffError, EscapedPath, TreeError};
use ovl_layout::{DepthExceeded, LayerId};
use ovl_mount::{MountError, PlanError};
use ovl_quota::{ProjectId, QuotaError, Usage};

use crate::system::FsType;

/// Why an operation of the store failed. Whatever the variant, the store is as it was before,
/// unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no home at this path.
    #[error(
        "there is no layer store at {}; `init`, `create` or `import` make one",
        EscapedPath(home)
    )]
    #[non_exhaustive]
    HomeNotFound {
        /// The path.
        home: PathBuf,
    },
    /// The directory is there and holds something else.
    #[error(
        "{} is not a layer store: it has files but no directory l; choose an empty directory",
        EscapedPath(home)
    )]
    #[non_exhaustive]
    NotAHome {
        /// The path.
        home: PathBuf,
    },
    /// There is a home already, with other settings.
    #[error(
        "there is a layer store with other settings at {}; `status` shows them",
        EscapedPath(home)
    )]
    #[non_exhaustive]
    HomeExists {
        /// The path.
        home: PathBuf,
    },
    /// Another directory has taken the home's place since it was opened, or somebody has given it
    /// other settings.
    #[error(
        "{} is not the home any more that was opened; open the store again",
        EscapedPath(home)
    )]
    #[non_exhaustive]
    HomeReplaced {
        /// The path.
        home: PathBuf,
    },
    /// A home of Docker whose layers were made with id maps that nobody has said.
    #[error(
        "the home {} belongs to group {group}: its layers were made with id maps; say which with \
         `init --uid-map 0:HOST:COUNT --gid-map 0:{group}:COUNT`, as dockerd's userns-remap has them",
        EscapedPath(home)
    )]
    #[non_exhaustive]
    MapsUnknown {
        /// The path.
        home: PathBuf,
        /// The home's group.
        group: u32,
    },
    /// A home cannot have these settings.
    #[error(
        "the layer store at {} cannot be set up so: {problem}",
        EscapedPath(home)
    )]
    #[non_exhaustive]
    Settings {
        /// The path.
        home: PathBuf,
        /// Why not.
        problem: String,
    },
    /// There is no layer of this id.
    #[error(
        "there is no layer {id}; `ls` lists the layers of {}",
        EscapedPath(home)
    )]
    #[non_exhaustive]
    LayerNotFound {
        /// The id.
        id: LayerId,
        /// The home.
        home: PathBuf,
    },
    /// The parent of a layer to be made is not there.
    #[error(
        "the parent {parent} of {id} does not exist in {}; create or import it first",
        EscapedPath(home)
    )]
    #[non_exhaustive]
    ParentNotFound {
        /// The layer to be made.
        id: LayerId,
        /// Its parent.
        parent: LayerId,
        /// The home.
        home: PathBuf,
    },
    /// The id is taken.
    #[error("the layer {id} already exists; remove it first, or choose another id")]
    #[non_exhaustive]
    AlreadyExists {
        /// The id.
        id: LayerId,
    },
    /// The layer is mounted and must not be.
    #[error(
        "the layer {id} is mounted at {}; unmount it first",
        EscapedPath(target)
    )]
    #[non_exhaustive]
    Mounted {
        /// The layer.
        id: LayerId,
        /// Where.
        target: PathBuf,
    },
    /// Something is mounted on the layer's mount point that this store did not mount.
    #[error(
        "the mount at {} was not made by this store; unmount it with umount(8) if nobody uses it",
        EscapedPath(target)
    )]
    #[non_exhaustive]
    ForeignMount {
        /// The layer.
        id: LayerId,
        /// Where.
        target: PathBuf,
    },
    /// The layer is mounted in another mount namespace, where this process cannot reach it.
    #[error(
        "the layer {id} is mounted in another mount namespace; unmount it there, or end the processes in it"
    )]
    #[non_exhaustive]
    MountedElsewhere {
        /// The layer.
        id: LayerId,
    },
    /// Something still has files open in a mount of the layer that is not to be seen any more: it was
    /// unmounted lazily, or something else is mounted over it.
    #[error(
        "the layer {id} was unmounted while in use, or its mount is hidden by another, and something still uses it; close what does"
    )]
    #[non_exhaustive]
    StillInUse {
        /// The layer.
        id: LayerId,
    },
    /// The layer is mounted in another way than asked for.
    #[error("the layer {id} is mounted with {present}, not with {wanted}; unmount it first")]
    #[non_exhaustive]
    MountedDifferently {
        /// The layer.
        id: LayerId,
        /// Label and options of the mount.
        present: String,
        /// Label and options asked for.
        wanted: String,
    },
    /// Only other processes hold the mount, and it goes with them.
    #[error(
        "the mount of {id} is held by {} and goes with it; `unmount-all` takes it away",
        processes.iter().map(|pid| format!("process {pid}")).collect::<Vec<_>>().join(", ")
    )]
    #[non_exhaustive]
    HeldByProcess {
        /// The layer.
        id: LayerId,
        /// The processes.
        processes: Vec<u32>,
    },
    /// The layer is not mounted.
    #[error("the layer {id} is not mounted")]
    #[non_exhaustive]
    NotMounted {
        /// The layer.
        id: LayerId,
    },
    /// Other layers stand on this one.
    #[error(
        "the layer {id} is the parent of {}; remove those first",
        list(children)
    )]
    #[non_exhaustive]
    HasChildren {
        /// The layer.
        id: LayerId,
        /// Its children.
        children: Vec<LayerId>,
    },
    /// A child of this layer is being made, or an archive is being applied to it.
    #[error(
        "the layer {id} is in use: a child is being made or an archive applied; try again when that is done"
    )]
    #[non_exhaustive]
    InFlight {
        /// The layer.
        id: LayerId,
    },
    /// The layer is finished: its contents no longer change.
    #[error(
        "the layer {id} is sealed, its contents no longer change; create a child of it instead"
    )]
    #[non_exhaustive]
    Sealed {
        /// The layer.
        id: LayerId,
    },
    /// Too many layers below.
    #[error("cannot create {id}")]
    #[non_exhaustive]
    Depth {
        /// The layer to be made.
        id: LayerId,
        /// The numbers.
        source: DepthExceeded,
    },
    /// A layer to be made would stand on itself: one below its parent hides all below it, and names a
    /// layer of this id as its parent that another program has removed.
    #[error(
        "{id} cannot stand on {parent}: {child} was made on a layer {id}, which is gone, and still names it as its parent; choose another id"
    )]
    #[non_exhaustive]
    OwnAncestor {
        /// The layer to be made.
        id: LayerId,
        /// Its parent.
        parent: LayerId,
        /// The parent or one below it, which names the layer.
        child: LayerId,
    },
    /// The layer cannot be mounted in the way asked for.
    #[error("cannot mount {id}")]
    #[non_exhaustive]
    Plan {
        /// The layer.
        id: LayerId,
        /// The reason.
        source: PlanError,
    },
    /// A mount or unmount failed.
    #[error("layer {id}")]
    #[non_exhaustive]
    Mount {
        /// The layer.
        id: LayerId,
        /// The reason.
        source: MountError,
    },
    /// An archive could not be applied; what it had made is gone again.
    #[error("cannot apply the archive to {id}; nothing was changed")]
    #[non_exhaustive]
    Apply {
        /// The layer.
        id: LayerId,
        /// The reason.
        source: ApplyError,
    },
    /// A layer could not be compared or written as an archive.
    #[error("cannot read the changes of {id}")]
    #[non_exhaustive]
    Diff {
        /// The layer.
        id: LayerId,
        /// The reason.
        source: DiffError,
    },
    /// Limits for a layer that no container writes to.
    #[error("only writable layers take limits, and {id} is none; ask for a writable one")]
    #[non_exhaustive]
    NotWritable {
        /// The layer.
        id: LayerId,
    },
    /// Limits cannot be set.
    #[error("cannot limit {id}")]
    #[non_exhaustive]
    Quota {
        /// The layer.
        id: LayerId,
        /// Why not.
        source: QuotaError,
    },
    /// The layer's project is at its limit. What did not fit is gone again.
    #[error(
        "{id} is over the quota of its project {project}: {usage}; remove files, or raise the limit"
    )]
    #[non_exhaustive]
    OverQuota {
        /// The layer.
        id: LayerId,
        /// Its project.
        project: ProjectId,
        /// What the project used when it was full, and its limits.
        usage: Usage,
        /// What failed.
        source: Box<Self>,
    },
    /// The operation is done and can be seen, but the disk did not confirm it: a power cut may still
    /// take it back.
    #[error(
        "{what} {id}, but {} could not be synced, so that a power cut may take it back",
        EscapedPath(path)
    )]
    #[non_exhaustive]
    NotDurable {
        /// What was done: a participle.
        what: &'static str,
        /// The layer.
        id: LayerId,
        /// The directory that was to be synced.
        path: PathBuf,
        /// The failed call's error.
        source: io::Error,
    },
    /// Something on disk is not as it must be. Nothing was mounted or changed.
    #[error(
        "the store is damaged: {}: {problem}; `check` tells what mends it",
        EscapedPath(file)
    )]
    #[non_exhaustive]
    Damaged {
        /// The layer concerned, where it is known.
        id: Option<LayerId>,
        /// The file or directory.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The machine stopped while the layer was mounted volatile. Nothing was mounted or changed.
    #[error(
        "the layer {id} was mounted volatile when the machine stopped, and what was written to it is not whole; accept it as it is or discard it when you mount it, or remove the layer; {} says so",
        EscapedPath(mark)
    )]
    #[non_exhaustive]
    Dirty {
        /// The layer.
        id: LayerId,
        /// The file or directory that tells.
        mark: PathBuf,
    },
    /// This kernel, file system or user cannot do it.
    #[error("{what} is not supported here: {reason}")]
    #[non_exhaustive]
    Unsupported {
        /// The operation.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// The file system's directory entries do not tell their types, without which overlayfs shows
    /// wrong things.
    #[error(
        "the file system ({}) of {} is formatted without d_type support, which no home can do without; {advice}",
        fs_type.name(),
        EscapedPath(path)
    )]
    #[non_exhaustive]
    NoDType {
        /// The home, or the directory that it would be made in.
        path: PathBuf,
        /// The file system.
        fs_type: FsType,
        /// How to make one that can do it.
        advice: &'static str,
    },
    /// The file system keeps no attributes of the kind by which overlayfs marks what hides
    /// something: a mount would come up, and removing a directory in it fail.
    #[error(
        "the file system ({}) of {} keeps no attributes {prefix}*, which no home of this user can do without; use another file system, such as ext4 or XFS",
        fs_type.name(),
        EscapedPath(path)
    )]
    #[non_exhaustive]
    NoXattrs {
        /// The home, or the directory that it would be made in.
        path: PathBuf,
        /// The file system.
        fs_type: FsType,
        /// What the names of these attributes begin with.
        prefix: &'static str,
    },
    /// The system refused a step.
    #[error("cannot {operation} {}", EscapedPath(path))]
    #[non_exhaustive]
    Io {
        /// What was tried: a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The failed call's error.
        source: io::Error,
    },
}

/// The coarse kind of an [`Error`], for programs that decide what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A home, layer, parent or mount is not there.
    NotFound,
    /// An id is taken.
    AlreadyExists,
    /// A layer is mounted, has children or is sealed.
    Busy,
    /// Kernel, file system or user cannot do it.
    Unsupported,
    /// An id, archive, option or depth is refused.
    InvalidInput,
    /// The file system is full or a quota is used up.
    NoSpace,
    /// Something on disk is not as it must be.
    Damaged,
    /// Anything else, mostly I/O.
    Other,
}

impl Error {
    /// The coarse kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::HomeNotFound { .. }
            | Self::LayerNotFound { .. }
            | Self::ParentNotFound { .. }
            | Self::NotMounted { .. } => ErrorKind::NotFound,
            Self::AlreadyExists { .. } | Self::HomeExists { .. } => ErrorKind::AlreadyExists,
            Self::Mounted { .. }
            | Self::ForeignMount { .. }
            | Self::MountedElsewhere { .. }
            | Self::StillInUse { .. }
            | Self::MountedDifferently { .. }
            | Self::HeldByProcess { .. }
            | Self::HasChildren { .. }
            | Self::InFlight { .. }
            | Self::Sealed { .. } => ErrorKind::Busy,
            Self::NotAHome { .. }
            | Self::MapsUnknown { .. }
            | Self::Settings { .. }
            | Self::Depth { .. }
            | Self::OwnAncestor { .. }
            | Self::NotWritable { .. }
            | Self::Quota {
                source: QuotaError::Limits(_),
                ..
            } => ErrorKind::InvalidInput,
            Self::OverQuota { .. }
            | Self::Quota {
                source: QuotaError::IdsExhausted(_),
                ..
            } => ErrorKind::NoSpace,
            Self::Quota { .. } => ErrorKind::Unsupported,
            Self::Plan {
                source: PlanError::NoStrategy { .. },
                ..
            } => ErrorKind::Unsupported,
            Self::Plan { .. } => ErrorKind::InvalidInput,
            Self::Mount {
                source: MountError::Busy { .. },
                ..
            } => ErrorKind::Busy,
            Self::Mount {
                source: MountError::NotMounted { .. },
                ..
            } => ErrorKind::NotFound,
            Self::Apply {
                source: ApplyError::Archive(archive),
                ..
            } if archive.is_bad_input() => ErrorKind::InvalidInput,
            Self::Diff {
                source: DiffError::ReservedName { .. } | DiffError::NoContainerId { .. },
                ..
            } => ErrorKind::InvalidInput,
            Self::Diff {
                source: DiffError::Changed { .. },
                ..
            } => ErrorKind::Busy,
            Self::Diff {
                source: DiffError::Gone,
                ..
            } => ErrorKind::NotFound,
            Self::Diff {
                source: DiffError::Elsewhere { .. },
                ..
            } => ErrorKind::Unsupported,
            Self::Damaged { .. } | Self::Dirty { .. } => ErrorKind::Damaged,
            Self::HomeReplaced { .. } => ErrorKind::Other,
            Self::Unsupported { .. } | Self::NoDType { .. } | Self::NoXattrs { .. } => {
                ErrorKind::Unsupported
            }
            Self::NotDurable { .. }
            | Self::Mount { .. }
            | Self::Apply { .. }
            | Self::Diff { .. }
            | Self::Io { .. } => io_kind(self),
        }
    }

    /// The layer concerned, where there is one.
    #[must_use]
    pub fn layer(&self) -> Option<&LayerId> {
        match self {
            Self::LayerNotFound { id, .. }
            | Self::ParentNotFound { id, .. }
            | Self::AlreadyExists { id }
            | Self::Mounted { id, .. }
            | Self::ForeignMount { id, .. }
            | Self::MountedElsewhere { id }
            | Self::StillInUse { id }
            | Self::MountedDifferently { id, .. }
            | Self::NotMounted { id }
            | Self::HeldByProcess { id, .. }
            | Self::HasChildren { id, .. }
            | Self::InFlight { id }
            | Self::Sealed { id }
            | Self::Dirty { id, .. }
            | Self::NotWritable { id }
            | Self::Quota { id, .. }
            | Self::OverQuota { id, .. }
            | Self::Depth { id, .. }
            | Self::OwnAncestor { id, .. }
            | Self::Plan { id, .. }
            | Self::Mount { id, .. }
            | Self::Apply { id, .. }
            | Self::NotDurable { id, .. }
            | Self::Diff { id, .. } => Some(id),
            Self::Damaged { id, .. } => id.as_ref(),
            Self::HomeNotFound { .. }
            | Self::HomeExists { .. }
            | Self::HomeReplaced { .. }
            | Self::MapsUnknown { .. }
            | Self::Settings { .. }
            | Self::NotAHome { .. }
            | Self::Unsupported { .. }
            | Self::NoDType { .. }
            | Self::NoXattrs { .. }
            | Self::Io { .. } => None,
        }
    }

    pub(crate) fn io(operation: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io {
            operation,
            path: path.as_ref().to_owned(),
            source,
        }
    }

    pub(crate) fn damaged(id: &LayerId, file: PathBuf, problem: impl ToString) -> Self {
        Self::Damaged {
            id: Some(id.clone()),
            file,
            problem: problem.to_string(),
        }
    }

    /// An error of a layer's quota.
    pub(crate) fn quota(id: &LayerId, error: QuotaError) -> Self {
        match error {
            QuotaError::Io {
                operation,
                path,
                source,
                ..
            } => Self::io(operation, path, source),
            source => Self::Quota {
                id: id.clone(),
                source,
            },
        }
    }

    /// The error of the system at the end of the chain.
    pub(crate) fn io_source(&self) -> Option<&io::Error> {
        let mut next: Option<&(dyn StdError + 'static)> = Some(self);
        while let Some(error) = next {
            if let Some(source) = error.downcast_ref::<io::Error>() {
                return Some(source);
            }
            next = error.source();
        }
        None
    }

    /// An error of a step on the store's own tree, whose paths are relative to `base`.
    pub(crate) fn tree(base: &Path, error: TreeError) -> Self {
        Self::Io {
            operation: error.operation,
            path: base.join(&error.path),
            source: error.source,
        }
    }
}

/// What the error number at the end of the chain says.
fn io_kind(error: &Error) -> ErrorKind {
    match error.io_source().map(io::Error::kind) {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => ErrorKind::NoSpace,
        Some(io::ErrorKind::Unsupported | io::ErrorKind::ReadOnlyFilesystem) => {
            ErrorKind::Unsupported
        }
        _ => ErrorKind::Other,
    }
}

fn list(ids: &[LayerId]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<&str> = ids.iter().take(SHOWN).map(LayerId::as_str).collect();
    match ids.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::NotFound => io::ErrorKind::NotFound,
            ErrorKind::AlreadyExists => io::ErrorKind::AlreadyExists,
            ErrorKind::Busy => io::ErrorKind::ResourceBusy,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
            ErrorKind::NoSpace => io::ErrorKind::StorageFull,
            ErrorKind::Damaged => io::ErrorKind::InvalidData,
            ErrorKind::Other => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
