use proptest::collection::vec;
use proptest::prelude::*;

use super::fuzz;
use crate::archive::mutation::{Mutation, mutate, mutation, reseal, survive, zoo};
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

/// What is changed in an archive with one of everything, before or after it is compressed.
fn input() -> impl Strategy<Value = (Wrap, Vec<Mutation>)> {
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
    (wrap, vec(mutation(), 0..16))
}

/// Reads it, which checks what the reader promises.
fn check((wrap, mutations): &(Wrap, Vec<Mutation>)) -> Result<(), TestCaseError> {
    let mut bytes = zoo();
    match wrap {
        Wrap::InsideGzip => bytes = gzip(&bytes),
        Wrap::InsideZstd => bytes = zstd(&bytes),
        _ => {}
    }
    mutate(&mut bytes, mutations);
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
}

#[test]
fn any_bytes_are_read_or_refused() {
    fuzz("archive", 1, 256, &input(), |input| check(&input));
}
