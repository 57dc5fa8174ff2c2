//! The reader of archives. The first byte says how the others are meant: as an archive, or as
//! changes of one that has one of everything, inside or outside of a compression.

#![no_main]
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    reason = "the tests' own files"
)]

#[path = "../../tests/archive/mod.rs"]
mod archive;
mod choices;
#[path = "../../tests/support/mod.rs"]
mod support;

use archive::mutation::{reseal, survive, zoo};
use archive::{gzip, zstd};
use choices::Choices;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut choices = Choices(data);
    match choices.byte() % 6 {
        0 => survive(choices.0),
        1 => {
            let mut bytes = choices.0.to_vec();
            reseal(&mut bytes);
            survive(&bytes);
        }
        2 => {
            let mut bytes = gzip(&zoo());
            choices.change(&mut bytes);
            survive(&bytes);
        }
        3 => {
            let mut bytes = zstd(&zoo());
            choices.change(&mut bytes);
            survive(&bytes);
        }
        how => {
            let mut bytes = zoo();
            choices.change(&mut bytes);
            reseal(&mut bytes);
            survive(&if how == 4 { bytes } else { gzip(&bytes) });
        }
    }
});
