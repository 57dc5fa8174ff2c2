//! Overlay mount plans with exact length arithmetic, and the backend that carries them out.
//!
//! - [`OverlaySpec::plan`] is a pure function: layer, chain, options and [`MountFeatures`] in, a
//!   [`MountPlan`] out. A plan prints what will be done, and never holds a string that the kernel
//!   would cut short.
//! - [`MountBackend`] carries plans out: [`HostMount`] with system calls, or a mock.
//!
//! The crate knows nothing of stores, reference counts or archives; `ovl-driver` composes them.

#![deny(unsafe_code)]

mod backend;
mod call;
mod host;
mod label;
mod lack;
mod mountinfo;
mod options;
mod plan;
mod sys;

pub use backend::{
    HeldAs, Holder, MAX_HOLDERS, MountBackend, MountError, MountFeatures, MountInfo, UnmountMode,
};
pub use host::HostMount;
pub use label::{LabelError, MountLabel};
pub use lack::{Call, Lack};
pub use options::{OptionError, OverlayOptions, RedirectDir, Switch, Xino};
pub use plan::{
    Access, DataLimit, KERNEL_MAX_LOWERS, MAX_SETTING_LEN, MountAction, MountData, MountPlan,
    OverlayCall, OverlaySpec, PlanError, Setting, Strategy,
};
