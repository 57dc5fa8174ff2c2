//! Project quotas for directory trees on XFS and ext4: bytes and inodes.
//!
//! A project quota limits a directory tree, whoever owns its files. The kernel counts every file
//! whose project id is the tree's; new files take the id from their directory. This crate has
//!
//! - units that cannot be mixed up, and Docker's size syntax: [`Bytes`], [`BasicBlocks`],
//!   [`parse_size`];
//! - the choice of ids, a pure function of what was seen: [`ProjectIds`];
//! - [`QuotaBackend`], what a kernel does, and [`HostQuota`], the one that does it with system
//!   calls;
//! - [`QuotaControl`], which puts them together for the directories below one home.
//!
//! It stands alone: it knows nothing of layers, mounts or stores.
//!
//! ```
//! use ovl_quota::{Limits, ProjectId, ProjectIds, ProjectRange, parse_size};
//!
//! let size = parse_size("1.5g")?;
//! assert_eq!(size.get(), 1_610_612_736);
//! assert!(parse_size("0").is_err(), "0 would mean: no limit");
//!
//! // The kernel counts blocks of 512 bytes: a limit is rounded up, never down to "no limit".
//! let tiny = Limits::UNLIMITED.bytes(Some(parse_size("1b")?)).rounded()?;
//! assert_eq!(tiny.bytes.map(|bytes| bytes.get()), Some(512));
//!
//! let range = ProjectRange::after_base(None).ok_or("no ids left")?;
//! let mut ids = ProjectIds::new(range);
//! ids.observe(ProjectId::new(2).ok_or("not a project")?); // found on a directory
//! assert_eq!(ids.allocate()?.get(), 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Privileges
//!
//! The pure parts need none. Reading a directory's project needs read permission; all else needs
//! `CAP_SYS_ADMIN` in the initial user namespace. In a user namespace [`QuotaControl::probe`] says
//! so.
//!
//! # Kernel
//!
//! Limits are enforced on XFS mounted with `prjquota` (only the first mount counts, a remount does
//! nothing) and on ext4 made with `-O quota,project` and mounted with `prjquota`. Linux 5.14 or
//! newer needs no device node (`quotactl_fd(2)`); before it the backing block device must be
//! visible in `/dev`. Linux 4.6 is the oldest that can list project ids.
//!
//! Writes past a limit fail with `ENOSPC` on XFS and with `EDQUOT` on ext4, for bytes and for
//! inodes; [`QuotaControl::over_quota`] makes one typed error of both. On ext4 a writer with
//! `CAP_SYS_RESOURCE` is exempt, unless it writes through an overlay mount; XFS exempts nobody.

#![deny(unsafe_code)]

mod backend;
mod control;
mod device;
mod error;
mod host;
mod limits;
mod project;
mod size;
mod sys;
mod units;

pub use backend::{Enforcement, KeepsToLimits, QuotaBackend};
pub use control::QuotaControl;
pub use error::{QuotaError, UnsupportedReason};
pub use host::HostQuota;
pub use limits::{Limits, LimitsError, Usage};
pub use project::{IdsExhausted, ProjectId, ProjectIds, ProjectRange};
pub use size::{SizeError, parse_size};
pub use units::{BasicBlocks, Bytes};
