//! Integration tests that need no privileges.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test that panics has failed, which is what it is for"
)]

mod case;
mod exact_strings;
mod host;
mod plan_properties;
mod refusals;
