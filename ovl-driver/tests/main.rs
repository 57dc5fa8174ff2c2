//! Integration tests.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests"
)]

mod asynchronous;
mod docker;
mod host_system;
mod mock;
