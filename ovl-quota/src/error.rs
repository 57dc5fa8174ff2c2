use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::backend::Enforcement;
use crate::limits::{LimitsError, Usage};
use crate::project::{IdsExhausted, ProjectId, ProjectRange};

/// Why a quota operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuotaError {
    /// Quotas cannot be used below this home.
    #[error("cannot use project quotas below {}: {}", home.display(), Advice { reason, home })]
    #[non_exhaustive]
    Unsupported {
        /// The home that was probed.
        home: PathBuf,
        /// Why.
        reason: UnsupportedReason,
    },
    /// A write failed since the project is at its limit.
    #[error(
        "{} is over the quota of its project {project}: {usage}; remove files, or raise the limit",
        dir.display()
    )]
    #[non_exhaustive]
    OverQuota {
        /// The project's directory.
        dir: PathBuf,
        /// The project.
        project: ProjectId,
        /// What it uses and the limits it has.
        usage: Usage,
    },
    /// A directory belongs to a project that is not one of ours to limit.
    #[error(
        "{} belongs to project {project}, which is none of {range}; take it out of the project, or \
         use a range with it",
        dir.display()
    )]
    #[non_exhaustive]
    ForeignProject {
        /// The directory.
        dir: PathBuf,
        /// Its project.
        project: ProjectId,
        /// The projects that may be used.
        range: ProjectRange,
    },
    /// The limits cannot be set.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// No project is free.
    #[error(transparent)]
    IdsExhausted(#[from] IdsExhausted),
    /// A system call failed.
    #[error("cannot {operation} at {}", path.display())]
    #[non_exhaustive]
    Io {
        /// What was tried, such as `read the project`.
        operation: &'static str,
        /// The directory.
        path: PathBuf,
        /// The failed call's error.
        source: io::Error,
    },
}

/// Why quotas cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnsupportedReason {
    /// The file system keeps no project limits.
    NotEnforced(Enforcement),
    /// New directories in the home would take over its project and could not be told from layers
    /// that have one; nor could a layer be moved in.
    HomeInherits,
    /// The caller may not set limits.
    NotPermitted,
    /// The home's own project leaves no greater ids.
    NoIdsAfter(ProjectId),
}

impl QuotaError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn unsupported(home: &Path, reason: UnsupportedReason) -> Self {
        Self::Unsupported {
            home: home.to_owned(),
            reason,
        }
    }
}

struct Advice<'a> {
    reason: &'a UnsupportedReason,
    home: &'a Path,
}

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            UnsupportedReason::NotEnforced(found) => found.fmt(f),
            UnsupportedReason::HomeInherits => write!(
                f,
                "new directories in it would take over its project; clear the flag with \
                 `chattr -P -- {}`",
                self.home.display()
            ),
            UnsupportedReason::NotPermitted => {
                f.write_str("this needs CAP_SYS_ADMIN in the initial user namespace")
            }
            UnsupportedReason::NoIdsAfter(base) => {
                write!(
                    f,
                    "its own project {base} leaves no ids after it; give it a smaller one"
                )
            }
        }
    }
}
