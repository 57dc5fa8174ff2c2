use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use ovl_diff::{ArchiveEntry, DeviceNumber, EntryKind, ReadLimits};
use proptest::prelude::*;

use super::builder::{Header, archive, gzip, long, pax, read, read_with, record, zstd};

/// What is written with the `tar` crate.
#[derive(Clone, Debug)]
struct Spec {
    path: Vec<u8>,
    kind: SpecKind,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    xattrs: Vec<(String, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum SpecKind {
    File(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// Relative paths of any bytes, some longer than any field.
fn path() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => b'a'..=b'z',
        1 => any::<u8>().prop_filter("part of a name", |byte| !matches!(byte, 0 | b'/')),
    ];
    let component = prop_oneof![
        4 => prop::collection::vec(byte.clone(), 1..12),
        1 => prop::collection::vec(byte, 90..255),
    ]
    .prop_filter("a name", |name| name != b"." && name != b"..");
    prop::collection::vec(component, 1..5).prop_map(|components| {
        let mut path = components.join(&b'/');
        // The crate cuts long names for the short field, at text only.
        if path.len() > 100 {
            path.iter_mut()
                .for_each(|byte| *byte = (*byte).clamp(b' ', b'~'));
        }
        path
    })
}

fn kind() -> impl Strategy<Value = SpecKind> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..1500).prop_map(SpecKind::File),
        Just(SpecKind::Directory),
        path().prop_map(SpecKind::Symlink),
        path().prop_map(SpecKind::HardLink),
        (0..4096_u32, 0..1_048_576_u32).prop_map(|(major, minor)| SpecKind::Char(major, minor)),
        (0..4096_u32, 0..1_048_576_u32).prop_map(|(major, minor)| SpecKind::Block(major, minor)),
        Just(SpecKind::Fifo),
    ]
}

fn spec() -> impl Strategy<Value = Spec> {
    let id = || prop_oneof![0..70_000_u32, 0..u32::MAX];
    let xattr = (
        "user\\.[a-c]{1,3}",
        prop::collection::vec(any::<u8>(), 0..60),
    );
    let xattrs = prop::collection::vec(xattr, 0..4);
    (
        path(),
        kind(),
        0..0o10000_u32,
        id(),
        id(),
        0..1_u64 << 40,
        xattrs,
    )
        .prop_map(|(path, kind, mode, uid, gid, mtime, xattrs)| Spec {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        })
}

fn write(specs: &[Spec]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for spec in specs {
        let mut header = tar::Header::new_gnu();
        header.set_mode(spec.mode);
        header.set_uid(spec.uid.into());
        header.set_gid(spec.gid.into());
        header.set_mtime(spec.mtime);
        header.set_size(0);
        let keys: Vec<_> = spec
            .xattrs
            .iter()
            .map(|(name, _)| format!("SCHILY.xattr.{name}"))
            .collect();
        let records = keys
            .iter()
            .map(String::as_str)
            .zip(spec.xattrs.iter().map(|(_, value)| value.as_slice()));
        builder.append_pax_extensions(records).unwrap();
        let path = Path::new(OsStr::from_bytes(&spec.path));
        let mut content: &[u8] = &[];
        let entry_type = match &spec.kind {
            SpecKind::File(bytes) => {
                content = bytes;
                tar::EntryType::Regular
            }
            SpecKind::Directory => tar::EntryType::Directory,
            SpecKind::Symlink(_) => tar::EntryType::Symlink,
            SpecKind::HardLink(_) => tar::EntryType::Link,
            SpecKind::Char(..) => tar::EntryType::Char,
            SpecKind::Block(..) => tar::EntryType::Block,
            SpecKind::Fifo => tar::EntryType::Fifo,
        };
        header.set_entry_type(entry_type);
        header.set_size(content.len() as u64);
        match &spec.kind {
            SpecKind::Symlink(target) | SpecKind::HardLink(target) => {
                builder
                    .append_link(&mut header, path, Path::new(OsStr::from_bytes(target)))
                    .unwrap();
                continue;
            }
            SpecKind::Char(major, minor) | SpecKind::Block(major, minor) => {
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
            }
            _ => {}
        }
        builder.append_data(&mut header, path, content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn assert_matches(entry: &ArchiveEntry, content: &[u8], spec: &Spec) {
    let device = |major: &u32, minor: &u32| DeviceNumber {
        major: *major,
        minor: *minor,
    };
    let kind = match &spec.kind {
        SpecKind::File(_) => EntryKind::Regular,
        SpecKind::Directory => EntryKind::Directory,
        SpecKind::Symlink(target) => EntryKind::Symlink {
            target: target.clone(),
        },
        SpecKind::HardLink(target) => EntryKind::HardLink {
            target: target.clone(),
        },
        SpecKind::Char(major, minor) => EntryKind::CharDevice(device(major, minor)),
        SpecKind::Block(major, minor) => EntryKind::BlockDevice(device(major, minor)),
        SpecKind::Fifo => EntryKind::Fifo,
    };
    assert_eq!((&entry.path, &entry.kind), (&spec.path, &kind));
    assert_eq!(
        (entry.mode, entry.uid, entry.gid),
        (spec.mode, spec.uid, spec.gid)
    );
    assert_eq!(
        (entry.mtime.secs, entry.mtime.nanos),
        (spec.mtime as i64, 0)
    );
    let expected: &[u8] = if let SpecKind::File(bytes) = &spec.kind {
        bytes
    } else {
        &[]
    };
    assert_eq!((entry.size, content), (expected.len() as u64, expected));
    let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (name, value) in &spec.xattrs {
        xattrs.retain(|(known, _)| known != name.as_bytes());
        xattrs.push((name.clone().into_bytes(), value.clone()));
    }
    assert_eq!(entry.xattrs, xattrs);
}

/// An archive with one of everything.
fn zoo() -> Vec<u8> {
    archive(&[
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

#[derive(Clone, Debug)]
enum Mutation {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Copy(prop::sample::Index, prop::sample::Index, usize),
    Truncate(prop::sample::Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
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

fn mutate(bytes: &mut Vec<u8>, mutations: &[Mutation]) {
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
fn reseal(bytes: &mut [u8]) {
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
fn survive(bytes: &[u8]) {
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

#[test]
fn the_archive_of_mutations_is_good() {
    let mut bytes = zoo();
    assert_eq!(read(bytes.as_slice()).unwrap().0.len(), 8);
    reseal(&mut bytes);
    assert_eq!(bytes, zoo());
}

proptest! {
    #[test]
    fn what_the_tar_crate_writes_is_read_back(specs in prop::collection::vec(spec(), 0..8)) {
        let bytes = write(&specs);
        for source in [bytes.clone(), gzip(&bytes), zstd(&bytes)] {
            let (entries, summary) = read(source.as_slice()).unwrap();
            prop_assert_eq!(entries.len(), specs.len());
            prop_assert_eq!(&summary.warnings, &[]);
            for ((entry, content), spec) in entries.iter().zip(&specs) {
                assert_matches(entry, content, spec);
            }
        }
    }

    #[test]
    fn mutated_archives_never_panic(mutations in prop::collection::vec(mutation(), 1..12)) {
        let mut bytes = zoo();
        mutate(&mut bytes, &mutations);
        survive(&bytes);
        reseal(&mut bytes);
        survive(&bytes);
    }

    #[test]
    fn mutated_compressed_archives_never_panic(mutations in prop::collection::vec(mutation(), 1..6)) {
        for mut bytes in [gzip(&zoo()), [zstd(&zoo()), zstd(b"")].concat()] {
            mutate(&mut bytes, &mutations);
            survive(&bytes);
        }
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        survive(&bytes);
        survive(&[Header::new(b'x', "x").size(bytes.len() as u64).with(&bytes), Header::file("y").seal()].concat());
    }
}
