//! The mock kernel: that the store's rules hold on it, and that it refuses what Linux refuses.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

mod chains;
mod conformance;
mod differential;
mod durability;
mod dying;
mod exhaustive;
mod faults;
mod locks;
mod model;
mod namespaces;
mod overlay;
mod power;
mod printed;
mod quota;
mod quota_properties;
mod rows;
mod schedules;
mod trees;
mod volatile;
