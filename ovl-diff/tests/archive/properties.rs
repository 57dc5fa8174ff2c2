use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use ovl_diff::{ArchiveEntry, DeviceNumber, EntryKind};
use proptest::prelude::*;

use super::builder::{Header, gzip, read, zstd};
use super::mutation::{mutate, mutation, reseal, survive, zoo};

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

#[test]
fn the_archive_of_mutations_is_good() {
    let mut bytes = zoo();
    assert_eq!(read(bytes.as_slice()).unwrap().0.len(), 12);
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
