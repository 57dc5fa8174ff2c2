//! Integration tests.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod apply;
mod archive;
mod diff;
mod fuzz;
mod host_tree;
mod id_maps;
mod law;
mod parallel;
mod support;
