//! The program as its users run it: exit codes, output, messages.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod commands;
mod demo;
mod id_maps;
mod keeping;
mod machine;
mod mounting;
mod ordinary;
mod quotas;
mod support;
mod upkeep;
