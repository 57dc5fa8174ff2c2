//! A kit for testing code that uses ovl, without root and on the real kernel.

#![forbid(unsafe_code)]

mod archive;
pub mod conformance;
pub mod differential;
mod edit;
mod faulty;
mod listing;
mod mock;
pub mod model;
mod random;
mod schedule;
mod snapshot;

pub use archive::ArchiveBuilder;
pub use edit::{Edit, edit_file};
pub use faulty::{Fault, Faulty, Journal, Operation, Outcome};
pub use listing::listing_at;
pub use mock::{Fate, KernelProfile, MockKernel, Pending, PendingKind, Survivors};
pub use schedule::{
    Actor, Interleaved, Order, SharedKernel, Trace, interleave, interleave_threads,
};
pub use snapshot::{Object, Snapshot, differences, snapshot, snapshot_at};
