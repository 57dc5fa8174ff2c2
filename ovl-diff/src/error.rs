use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ovl_layout::IdMap;

use crate::archive::{ArchiveError, BadArchive};
use crate::ids::{IdKind, IdPlace};
use crate::redirect::{Unresolved, UnresolvedAttribute};

/// A failed step on a layer's tree.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", EscapedPath(path))]
#[non_exhaustive]
pub struct TreeError {
    /// What was tried: a verb.
    pub operation: &'static str,
    /// On which path, relative to the layer's root; empty for the root.
    pub path: PathBuf,
    /// The failed call's error.
    pub source: io::Error,
}

impl TreeError {
    /// An error of `operation` on `path`.
    #[must_use]
    pub fn new(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}

/// Adds operation and path to an I/O error.
pub(crate) trait Context<T> {
    fn on(self, operation: &'static str, path: &Path) -> Result<T, TreeError>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, operation: &'static str, path: &Path) -> Result<T, TreeError> {
        self.map_err(|source| TreeError::new(operation, path, source))
    }
}

/// Why an archive could not be applied. Whatever the variant, the layer that was being built is
/// useless and must be dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The archive cannot be read, or is not one that a layer may be made of.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The file system refused a step.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl From<BadArchive> for ApplyError {
    fn from(bad: BadArchive) -> Self {
        Self::Archive(ArchiveError::Bad(Box::new(bad)))
    }
}

/// Why a layer could not be written as an archive or compared. The output so far ends inside an
/// entry, so that no reader takes it for a whole archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiffError {
    /// The file system refused a step.
    #[error(transparent)]
    Tree(TreeError),
    /// The output could not be written.
    #[error("cannot write the archive")]
    #[non_exhaustive]
    Write {
        /// The failed call's error.
        source: io::Error,
    },
    /// A file, a link or a directory changed while it was read.
    #[error(
        "{} changed while it was read; try again when nothing writes to the layer",
        EscapedPath(path)
    )]
    #[non_exhaustive]
    Changed {
        /// What changed.
        path: PathBuf,
    },
    /// The layer was removed or replaced while it was read.
    #[error("the layer was removed or replaced while it was read")]
    Gone,
    /// A name that an archive reserves for deletions.
    #[error(
        "{} has a name that would delete something when the archive is applied; rename or remove it",
        EscapedPath(path)
    )]
    #[non_exhaustive]
    ReservedName {
        /// The object.
        path: PathBuf,
    },
    /// The layer was written on a mount with `redirect_dir=on` or `metacopy=on`, and what its
    /// attributes say cannot be followed.
    #[error(
        "{} has the attribute {attribute}: its contents are elsewhere, but {reason}",
        EscapedPath(path)
    )]
    #[non_exhaustive]
    Elsewhere {
        /// The object.
        path: PathBuf,
        /// The attribute.
        attribute: &'static str,
        /// Why it leads to no contents.
        reason: Unresolved,
    },
    /// An id on disk that stands for nobody inside a container.
    #[error(
        "{} has the {kind} {id} on disk in its {place}, which is not in the {kind} map {map}; give it to an owner that is",
        EscapedPath(path)
    )]
    #[non_exhaustive]
    NoContainerId {
        /// The object.
        path: PathBuf,
        /// What the id is in.
        place: IdPlace,
        /// What it is the id of, and so which map.
        kind: IdKind,
        /// The id on disk.
        id: u32,
        /// The map.
        map: IdMap,
    },
}

impl From<TreeError> for DiffError {
    fn from(error: TreeError) -> Self {
        let inner = error.source.get_ref();
        match inner.and_then(|inner| inner.downcast_ref::<UnresolvedAttribute>()) {
            Some(&UnresolvedAttribute { attribute, reason }) => Self::Elsewhere {
                path: error.path,
                attribute,
                reason,
            },
            None => Self::Tree(error),
        }
    }
}

/// A path with control bytes and bytes that are not text escaped; `/` for an empty one.
#[derive(Clone, Copy, Debug)]
pub struct EscapedPath<'a>(
    /// The path.
    pub &'a Path,
);

impl fmt::Display for EscapedPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.as_os_str().as_bytes();
        if bytes.is_empty() {
            return f.write_str("/");
        }
        for chunk in bytes.utf8_chunks() {
            for symbol in chunk.valid().chars() {
                if symbol.is_control() || symbol == '\\' {
                    write!(f, "{}", symbol.escape_default())?;
                } else {
                    write!(f, "{symbol}")?;
                }
            }
            chunk
                .invalid()
                .iter()
                .try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}
