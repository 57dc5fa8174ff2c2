//! The archive reader against hand-made, mutated and foreign archives. Rows are those of the
//! adversarial catalogue.

mod builder;
mod compression;
mod differential;
mod extensions;
mod foreign;
mod framing;
mod metadata;
pub(crate) mod mutation;
mod names;
mod properties;
mod reading;
mod sparse;

pub(crate) use builder::{gzip, zstd};
