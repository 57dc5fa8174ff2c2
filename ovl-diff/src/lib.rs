//! Layer archives for overlay layers: apply, diff and changes.
//!
//! - [`ArchiveReader`] reads layer archives strictly; [`apply`] builds a layer's directory from one.
//! - [`diff`], [`changes`] and [`size`] read what one layer changes from its own directory;
//!   [`compare`], [`diff_trees`] and [`size_of_changes`] compare any two merged trees.
//! - [`View`] reads a stack of layers as overlayfs merges it, without mounting.
//! - [`TreeBackend`] is what all of it stands on: [`HostTree`] with system calls, or a mock.
//!
//! The same semantics hold on every path: that of the OCI image specification.

#![forbid(unsafe_code)]

mod ahead;
mod apply;
mod archive;
mod change;
mod copy;
mod durable;
mod emit;
mod error;
mod handles;
mod host;
mod ids;
mod implied;
mod levels;
mod naive;
mod native;
mod output;
mod place;
mod redirect;
mod remove;
mod tree;
mod usage;
mod view;
mod whiteout;
mod workers;
mod write;
mod xattrs;

pub use apply::{ApplyOptions, ApplySummary, Progress, apply};
pub use archive::{
    ArchiveEntry, ArchiveError, ArchiveReader, ArchiveSummary, ArchiveWarning, BadArchive,
    BadReason, Compression, DiffId, DiffIdError, EntryKind, EscapedBytes, ReadLimits,
};
pub use change::{Change, ChangeKind};
pub use copy::{copy_layer, copy_root_attributes, fold_layer};
pub use durable::sync_layer;
pub use emit::{DiffOptions, DiffPolicy, DiffSummary};
pub use error::{ApplyError, DiffError, EscapedPath, TreeError};
pub use host::HostTree;
pub use ids::{IdKind, IdPlace};
pub use naive::{compare, diff_trees, diff_trees_confirmed, size_of_changes};
pub use native::{Layers, changes, changes_of, diff, diff_confirmed};
pub use redirect::Unresolved;
pub use remove::remove_tree;
pub use tree::{
    DeviceNumber, DirEntry, DirHandle, FileHandle, FileKind, Metadata, Node, NodeKind, RenameMode,
    Timestamp, TreeBackend,
};
pub use usage::{LayerSize, size, size_of, size_of_change};
pub use view::{Found, View, ViewDir};
