//! What the names, ids and small files of a home accept and refuse.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod chain;
mod id_maps;
mod ids;
mod records;
