//! Archives that were good before some of their bytes were changed.

use ovl_diff::{EntryKind, ReadLimits};
use proptest::prelude::*;

use super::builder::{Header, archive, long, pax, read_with, record};
use super::sparse::FORMATS;

/// An archive with one of everything.
pub(crate) fn zoo() -> Vec<u8> {
    let map = [(0, 512), (1024, 512), (3000, 100), (5000, 0)];
    let sparse: Vec<u8> = FORMATS
        .iter()
        .flat_map(|(_, write)| write(&map, 5000, &[7; 1124]))
        .collect();
    archive(&[
        &sparse,
        &Header::new(b'g', "g").holding(record("comment", "commit")),
        &Header::new(b'5', "dir/").seal(),
        &pax(&[
            ("path", b"dir/pax"),
            ("size", b"700"),
            ("mtime", b"-1.5"),
            ("uid", b"3000000"),
        ]),
        &Header::file("x").with([1; 700]),
        &pax(&[
            ("SCHILY.xattr.user.a", b"\n=\0"),
            ("SCHILY.xattr.user.b", b""),
        ]),
        &long(b'L', "long/".repeat(30) + "name"),
        &long(b'K', "../".repeat(50)),
        &Header::new(b'2', "x").link("y").gnu().seal(),
        &Header::new(b'1', "hard").link("dir/pax").seal(),
        &Header::new(b'3', "null")
            .set(329, b"0000001\0")
            .set(337, b"0000003\0")
            .seal(),
        &Header::file("base256")
            .set(108, b"\x80\0\0\0\0\x2d\xc6\xc0")
            .gnu()
            .holding("content"),
        &Header::new(0, "old/").set(257, &[0; 8]).seal(),
        &Header::new(b'6', "fifo").set(345, b"prefix").seal(),
    ])
}

/// A change of some bytes.
#[derive(Clone, Debug)]
pub(crate) enum Mutation {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Copy(prop::sample::Index, prop::sample::Index, usize),
    Truncate(prop::sample::Index),
}

pub(crate) fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        4 => (at(), prop::sample::select(b"\0 09=/\n-.xgLKS\x80\xff".to_vec())).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        4 => (at(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip(at, 1 << bit)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        1 => (at(), 1..600_usize).prop_map(|(at, len)| Mutation::Remove(at, len)),
        2 => (at(), at(), prop_oneof![Just(512_usize), 1..600_usize])
            .prop_map(|(from, to, len)| Mutation::Copy(from, to, len)),
        1 => at().prop_map(Mutation::Truncate),
    ]
}

pub(crate) fn mutate(bytes: &mut Vec<u8>, mutations: &[Mutation]) {
    for mutation in mutations {
        if bytes.is_empty() {
            return;
        }
        let len = bytes.len();
        match mutation {
            Mutation::Set(at, byte) => bytes[at.index(len)] = *byte,
            Mutation::Flip(at, bits) => bytes[at.index(len)] ^= bits,
            Mutation::Insert(at, more) => {
                let at = at.index(len);
                bytes.splice(at..at, more.iter().copied());
            }
            Mutation::Remove(at, count) => {
                let at = at.index(len);
                bytes.drain(at..len.min(at + count));
            }
            Mutation::Copy(from, to, count) => {
                let (from, to) = (from.index(len) / 512 * 512, to.index(len) / 512 * 512);
                let count = *count.min(&(len - from)).min(&(len - to));
                bytes.copy_within(from..from + count, to);
            }
            Mutation::Truncate(at) => bytes.truncate(at.index(len)),
        }
    }
}

/// Corrects all checksums, so that mutations get past them.
pub(crate) fn reseal(bytes: &mut [u8]) {
    for block in bytes
        .chunks_exact_mut(512)
        .filter(|block| block[156] != 0 || block[0] != 0)
    {
        let block: &mut [u8; 512] = block.try_into().unwrap();
        if &block[257..262] == b"ustar" || block[257..265] == [0; 8] && &block[154..156] == b"\0 " {
            let sealed = Header(*block).seal();
            block.copy_from_slice(&sealed);
        }
    }
}

/// Reads to the end or the first error; the reader must keep its promises on the way.
pub(crate) fn survive(bytes: &[u8]) {
    let mut limits = ReadLimits::default();
    (limits.max_output_bytes, limits.max_entries) = (1 << 20, 1000);
    if let Ok((entries, summary)) = read_with(bytes, limits) {
        assert_eq!(summary.entries, entries.len() as u64);
        assert!(summary.uncompressed_bytes <= 1 << 20);
        for (place, (entry, content)) in entries.iter().enumerate() {
            assert_eq!(
                (entry.index, entry.size),
                (place as u64, content.len() as u64)
            );
            assert!(!entry.path.is_empty() && !entry.path.contains(&0));
            assert!(entry.mode <= 0o7777 && entry.uid < u32::MAX && entry.gid < u32::MAX);
            assert!(entry.mtime.nanos < 1_000_000_000);
            assert!(entry.kind == EntryKind::Regular || entry.size == 0);
        }
    }
}
