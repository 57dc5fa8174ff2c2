//! Integration tests.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod control;
mod host;
mod limits;
mod mock;
mod project;
mod size;
