use proptest::collection::vec;
use proptest::prelude::*;

use super::fuzz;
use crate::archive::mutation::{mutate, mutation, reseal, survive, zoo};
use crate::archive::{gzip, zstd};

/// How the mutated bytes are put into an archive.
#[derive(Clone, Copy, Debug)]
enum Wrap {
    AsIs,
    Resealed,
    Gzip,
    Zstd,
    InsideGzip,
    InsideZstd,
}

#[test]
fn any_bytes_are_read_or_refused() {
    let wrap = prop::sample::select(vec![
        Wrap::AsIs,
        Wrap::Resealed,
        Wrap::Resealed,
        Wrap::Resealed,
        Wrap::Gzip,
        Wrap::Zstd,
        Wrap::InsideGzip,
        Wrap::InsideZstd,
    ]);
    let input = (wrap, vec(mutation(), 0..16));
    fuzz("archive", 1, 256, &input, |(wrap, mutations)| {
        let mut bytes = zoo();
        match wrap {
            Wrap::InsideGzip => bytes = gzip(&bytes),
            Wrap::InsideZstd => bytes = zstd(&bytes),
            _ => {}
        }
        mutate(&mut bytes, &mutations);
        match wrap {
            Wrap::AsIs | Wrap::InsideGzip | Wrap::InsideZstd => {}
            _ => reseal(&mut bytes),
        }
        survive(&match wrap {
            Wrap::Gzip => gzip(&bytes),
            Wrap::Zstd => zstd(&bytes),
            _ => bytes,
        });
        Ok(())
    });
}
