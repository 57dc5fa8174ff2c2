//! What archives say under each policy. Docker's form is compared byte for byte with what Go's
//! `archive/tar` writes, put together here by hand.

use std::ffi::OsStr;

use ovl_diff::{DiffOptions, DiffPolicy, DirHandle, Layers, Node, Timestamp, diff_confirmed};

use super::diff;
use crate::support::{CAPABILITY, Entry, Scene, at, each, make_socket, members};

fn diff_with(
    scene: &Scene,
    upper: &DirHandle,
    lowers: &[DirHandle],
    options: &DiffOptions,
) -> Vec<u8> {
    let layers = Layers::new(std::slice::from_ref(upper), lowers);
    let mut bytes = Vec::new();
    diff_confirmed(scene.view(), layers, options, &mut bytes, || Ok(())).unwrap();
    bytes
}

fn docker() -> DiffOptions {
    DiffOptions::new().policy(DiffPolicy::Docker)
}

/// A header as Go fills it.
#[derive(Clone, Debug)]
struct Header {
    name: Vec<u8>,
    prefix: Vec<u8>,
    link: Vec<u8>,
    kind: u8,
    mode: u32,
    owner: (u32, u32),
    mtime: u64,
    device: Option<(u32, u32)>,
    contents: Vec<u8>,
}

impl Header {
    fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            prefix: Vec::new(),
            link: Vec::new(),
            kind,
            mode: 0o644,
            owner: (0, 0),
            mtime: 1_000_000_000,
            device: Some((0, 0)),
            contents: Vec::new(),
        }
    }

    /// What comes before a member that its header has no room for.
    fn records(name: &str, records: &[(&str, &[u8])]) -> Self {
        let mut contents = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let digits = if rest + 2 > 99 { 3 } else { 2 };
            let len = rest + digits;
            contents.extend(format!("{len} {key}=").into_bytes());
            contents.extend_from_slice(value);
            contents.push(b'\n');
        }
        Self {
            mode: 0,
            mtime: 0,
            device: None,
            contents,
            ..Self::new(b'x', name)
        }
    }

    fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    fn owner(self, uid: u32, gid: u32) -> Self {
        Self {
            owner: (uid, gid),
            ..self
        }
    }

    fn mtime(self, mtime: u64) -> Self {
        Self { mtime, ..self }
    }

    fn link(self, link: &str) -> Self {
        let link = link.as_bytes().to_vec();
        Self { link, ..self }
    }

    fn contents(self, contents: &[u8]) -> Self {
        let contents = contents.to_vec();
        Self { contents, ..self }
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        let mut header = [0; 512];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        put(0, &self.name);
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(108, format!("{:07o}\0", self.owner.0).as_bytes());
        put(116, format!("{:07o}\0", self.owner.1).as_bytes());
        put(124, format!("{:011o}\0", self.contents.len()).as_bytes());
        put(136, format!("{:011o}\0", self.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link);
        put(257, b"ustar\x0000");
        if let Some((major, minor)) = self.device {
            put(329, format!("{major:07o}\0").as_bytes());
            put(337, format!("{minor:07o}\0").as_bytes());
        }
        put(345, &self.prefix);
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&self.contents);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
}

#[track_caller]
fn assert_bytes(found: &[u8], expected: &[Header]) {
    let mut bytes = Vec::new();
    expected.iter().for_each(|header| header.write(&mut bytes));
    bytes.extend_from_slice(&[0; 1024]);
    for (number, (one, other)) in found.chunks(512).zip(bytes.chunks(512)).enumerate() {
        let text = |block: &[u8]| String::from_utf8_lossy(block).into_owned();
        assert!(
            one == other,
            "block {number}: {:?}, not {:?}",
            text(one),
            text(other)
        );
    }
    assert_eq!(found.len(), bytes.len());
}

#[test]
fn docker_gets_whole_seconds_capabilities_and_no_root() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::dir("./").mode(0o711),
            Entry::dir("d")
                .mode(0o2750)
                .owner(5, 6)
                .mtime(77, 500)
                .xattr("user.k", b"v"),
            Entry::file("d/f", b"contents")
                .mode(0o755)
                .mtime(99, 999_999_999)
                .xattr("security.capability", CAPABILITY)
                .xattr("trusted.other", b"v"),
            Entry::hard_link("d/link", "d/f"),
            Entry::char_device("device", 5, 2).mode(0o620),
            Entry::fifo("pipe"),
            Entry::symlink("symbolic", "d/f"),
        ]);
        let found = diff_with(scene, &applied.upper, &[], &docker());
        let capability: (&str, &[u8]) = ("SCHILY.xattr.security.capability", CAPABILITY);
        let mut device = Header::new(b'3', "device").mode(0o620);
        device.device = Some((5, 2));
        let linked = |kind, name| Header::new(kind, name).mode(0o755).mtime(99);
        assert_bytes(
            &found,
            &[
                Header::new(b'5', "d/").mode(0o2750).owner(5, 6).mtime(77),
                Header::records("d/PaxHeaders.0/f", &[capability]),
                linked(b'0', "d/f").contents(b"contents"),
                // The link repeats what it links to.
                Header::records("d/PaxHeaders.0/link", &[capability]),
                linked(b'1', "d/link").link("d/f"),
                device,
                Header::new(b'6', "pipe"),
                Header::new(b'2', "symbolic").mode(0o777).link("d/f"),
            ],
        );
    });
}

#[test]
fn docker_gets_whiteouts_with_owner_and_time_and_opaque_marks_with_mode() {
    each(|scene| {
        let base = [
            Entry::dir("d"),
            Entry::file("d/gone", b""),
            Entry::dir("replaced"),
            Entry::file("replaced/old", b""),
        ];
        let stack = scene.stack(&[&base]);
        let applied = stack.apply(&[
            Entry::dir("d"),
            Entry::marker("d/.wh.gone"),
            Entry::marker(".wh.replaced"),
            Entry::dir("replaced").mode(0o1751).owner(7, 8),
        ]);
        let dir = scene.open(&applied.upper, "d");
        let whiteout = Node::Entry(&dir, OsStr::new("gone"));
        scene.tree().set_owner(whiteout, 3, 4).unwrap();
        scene.tree().set_mtime(whiteout, at(55, 6)).unwrap();
        let directory = |name| Header::new(b'5', name).mode(0o755);
        let expected = |whiteout: Header, mark: Header| {
            [
                directory("d/"),
                whiteout,
                directory("replaced/").mode(0o1751).owner(7, 8),
                mark,
            ]
        };
        let found = diff_with(scene, &applied.upper, &stack.lowers, &docker());
        let whiteout = Header::new(b'0', "d/.wh.gone").mode(0o600);
        let mark = Header::new(b'0', "replaced/.wh..wh..opq")
            .mode(0o600)
            .mtime(0);
        let of_docker = expected(
            whiteout.clone().owner(3, 4).mtime(55),
            mark.clone().mode(0o751).owner(7, 8),
        );
        assert_bytes(&found, &of_docker);
        // Ours have neither; the root, whose time has changed, comes first.
        scene
            .tree()
            .set_mtime(Node::Dir(&applied.upper), at(9, 0))
            .unwrap();
        let (found, _) = diff(scene, &applied.upper, &stack.lowers);
        let root = directory("./").mtime(9);
        let ours = [&[root][..], &expected(whiteout.mtime(0), mark)].concat();
        assert_bytes(&found, &ours);
    });
}

#[test]
fn docker_gets_names_and_numbers_as_go_writes_them() {
    each(|scene| {
        let (dir, name) = ("d".repeat(60), "n".repeat(60));
        let long = "x".repeat(150);
        let applied = scene.stack(&[]).apply(&[
            Entry::file("caf\u{e9}", b"1"),
            Entry::file(format!("{dir}/{name}"), b"2"),
            Entry::file("rich", b"3").owner(3_000_000, 4_000_000_000),
            Entry::symlink("to", "\u{e9}"),
            Entry::file(&long, b"4"),
        ]);
        let found = diff_with(scene, &applied.upper, &[], &docker());
        let mut split = Header::new(b'0', &name).contents(b"2");
        split.prefix = dir.clone().into_bytes();
        // The directory is implied: its time is that of now.
        let (parts, ..) = members(&found)
            .into_iter()
            .partition::<Vec<_>, _>(|(entry, _)| entry.path == format!("{dir}/").as_bytes());
        let made = parts[0].0.mtime.secs.try_into().unwrap();
        let cut = &long.as_bytes()[..100];
        assert_bytes(
            &found,
            &[
                Header::records("PaxHeaders.0/caf", &[("path", "caf\u{e9}".as_bytes())]),
                Header::new(b'0', "caf").contents(b"1"),
                Header::new(b'5', format!("{dir}/")).mode(0o755).mtime(made),
                split,
                Header::records(
                    "PaxHeaders.0/rich",
                    &[("gid", b"4000000000"), ("uid", b"3000000")],
                ),
                Header::new(b'0', "rich").contents(b"3"),
                Header::records("PaxHeaders.0/to", &[("linkpath", "\u{e9}".as_bytes())]),
                Header::new(b'2', "to").mode(0o777),
                Header::records(
                    &format!("PaxHeaders.0/{}", &long[..87]),
                    &[("path", long.as_bytes())],
                ),
                Header::new(b'0', cut).contents(b"4"),
            ],
        );
    });
}

#[test]
fn docker_gets_holes_as_zeros_and_no_sockets() {
    each(|scene| {
        let layer = scene.layer();
        let name = OsStr::new("holes");
        let file = scene.tree().create_file(&layer, name, 0o644).unwrap();
        scene.tree().write_at(&file, 3 << 20, b"end").unwrap();
        if scene.has_sockets {
            make_socket(&layer, "socket");
        }
        let found = members(&diff_with(scene, &layer, &[], &docker()));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0.path, b"holes");
        assert_eq!(found[0].1.len(), (3 << 20) + 3);
        let (ours, _) = diff(scene, &layer, &[]);
        assert!(ours.len() < 1 << 20, "a hole of {} bytes", ours.len());
    });
}

#[test]
fn later_times_become_the_last_one_and_earlier_ones_stay() {
    each(|scene| {
        let base = [Entry::file("gone", b"")];
        let stack = scene.stack(&[&base]);
        let applied = stack.apply(&[
            Entry::dir("./").mtime(2_000, 1),
            Entry::dir("dir").mtime(1_001, 0),
            Entry::file("early", b"").mtime(999, 999_999_999),
            Entry::file("exact", b"").mtime(1_000, 0),
            Entry::marker(".wh.gone"),
            Entry::symlink("late", "x").mtime(1_000, 1),
            Entry::file("old", b"").mtime(-5, 0),
        ]);
        let clamped = |policy| {
            let last = Timestamp {
                secs: 1_000,
                nanos: 0,
            };
            let options = DiffOptions::new().policy(policy).clamp_mtime(Some(last));
            let bytes = diff_with(scene, &applied.upper, &stack.lowers, &options);
            let times = members(&bytes).into_iter();
            let times = times.map(|(entry, _)| (entry.path, entry.mtime));
            times.collect::<Vec<_>>()
        };
        let time = |path: &str, secs, nanos| (path.as_bytes().to_vec(), at(secs, nanos));
        let ours = [
            time("./", 1_000, 0),
            time("dir/", 1_000, 0),
            time("early", 999, 999_999_999),
            time("exact", 1_000, 0),
            time(".wh.gone", 0, 0),
            time("late", 1_000, 0),
            time("old", -5, 0),
        ];
        assert_eq!(clamped(DiffPolicy::All), ours);
        // Its whiteout is as old as this test.
        let of_docker = [
            time("dir/", 1_000, 0),
            time("early", 999, 0),
            time("exact", 1_000, 0),
            time(".wh.gone", 1_000, 0),
            time("late", 1_000, 0),
            time("old", -5, 0),
        ];
        assert_eq!(clamped(DiffPolicy::Docker), of_docker);
    });
}
