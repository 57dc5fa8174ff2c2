//! A layer store for Linux overlayfs, in the on-disk format of Docker's `overlay2` driver.
//!
//! [`blocking::Overlay2`] is the whole store as plain blocking code over a [`Kernel`]: the running
//! one, or a mock. With the feature `tokio` (on by default), [`Driver`] is the same for
//! asynchronous programs, and [`Overlay2`] its implementation.

#![forbid(unsafe_code)]

#[cfg(feature = "tokio")]
mod asynchronous;
pub mod blocking;
mod docker;
mod error;
mod files;
mod findings;
mod holds;
mod host_system;
mod kernel;
mod system;
mod types;

#[cfg(feature = "tokio")]
pub use asynchronous::{ArchiveSource, DiffStream, Driver, Overlay2};
pub use docker::{HomeOptions, OptionError, OptionNote};
pub use error::{Error, ErrorKind};
pub use findings::{
    CheckReport, Finding, FindingKind, Garbage, Remedy, Repaired, Severity, UpkeepOptions,
};
pub use host_system::HostSystem;
pub use kernel::Kernel;
pub use ovl_layout::Durability;
pub use system::{FsType, Identity, Lock, LockKind, ProcessId, SystemBackend};
pub use types::{
    Answer, Applied, Base, BrokenLayer, CreateLayer, Dirty, ExportOptions, Hold, ImportOptions,
    InitOptions, LayerInfo, LayerList, LayerQuota, LayerSummary, MountRequest, MountState,
    OpenOptions, Reclaimed, Status,
};
