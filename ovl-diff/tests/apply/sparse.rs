//! Files with holes: into a layer, and out of it again.

use std::ffi::OsStr;

use ovl_diff::{
    ApplyOptions, ArchiveEntry, ArchiveReader, BadReason, DirHandle, Node, ReadLimits, ViewDir,
};

use crate::support::{Entry, Scene, archive, each, members};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// A member in GNU tar's PAX format 1.0.
fn sparse(name: &str, size: u64, runs: &[(u64, &[u8])]) -> Entry {
    let mut map = format!("{}\n", runs.len() + 1);
    for (offset, data) in runs {
        map.push_str(&format!("{offset}\n{}\n", data.len()));
    }
    map.push_str(&format!("{size}\n0\n"));
    let mut content = map.into_bytes();
    content.resize(content.len().next_multiple_of(512), 0);
    content.extend(runs.iter().flat_map(|(_, data)| *data));
    Entry::file(format!("GNUSparseFile.0/{name}"), content)
        .record("GNU.sparse.major", "1")
        .record("GNU.sparse.minor", "0")
        .record("GNU.sparse.name", name)
        .record("GNU.sparse.realsize", size.to_string())
}

/// Applies without looking at contents, which nobody has the time to read.
fn apply(scene: &Scene, bytes: &[u8]) -> DirHandle {
    let upper = scene.layer();
    let options = ApplyOptions::new(scene.xattrs);
    ovl_diff::apply(scene.tree(), bytes, &upper, &[], &options, &mut |_| {}).unwrap();
    upper
}

/// Both ways of diff, which must agree.
fn diff(scene: &Scene, upper: &DirHandle) -> Vec<u8> {
    let (mut native, mut naive) = (Vec::new(), Vec::new());
    ovl_diff::diff(scene.view(), upper, &[], false, &mut native).unwrap();
    let parts = ViewDir::new(vec![upper.clone()]);
    ovl_diff::diff_trees(scene.view(), &parts, &ViewDir::default(), &mut naive).unwrap();
    assert!(native == naive);
    native
}

fn entry_of(bytes: &[u8], name: &str) -> ArchiveEntry {
    let mut reader = ArchiveReader::new(bytes, ReadLimits::default());
    loop {
        let entry = reader.next_entry().unwrap().expect("no such entry");
        if entry.path == name.as_bytes() {
            return entry;
        }
    }
}

#[test]
fn a_file_of_four_gibibytes_stays_sparse_on_disk_and_in_the_archive() {
    each(|scene| {
        let runs: [(u64, &[u8]); 3] = [
            (0, &[b'b'; 512]),
            (2 * GIB + 7, &[3; 5120]),
            (3 * GIB, &[4; 100]),
        ];
        let first = archive(&[
            sparse("d/large", 4 * GIB, &runs).mode(0o600).mtime(5, 6),
            sparse("hole", 4 * GIB, &[]),
            Entry::file("next", b"n"),
        ]);
        let upper = apply(scene, &first);
        let check = |upper: &DirHandle| {
            let dir = scene.open(upper, "d");
            let name = OsStr::new("large");
            let metadata = scene.tree().metadata(Node::Entry(&dir, name)).unwrap();
            assert_eq!((metadata.size, metadata.mode), (4 * GIB, 0o600));
            // Pages may be large, but the file is not.
            assert!(metadata.blocks * 512 < 64 * MIB, "{metadata:?}");
            let file = scene.tree().open_file(&dir, name).unwrap();
            let mut buffer = [9; 6000];
            for (offset, expected) in [
                (0, [&[b'b'; 512][..], &[0; 100]].concat()),
                (2 * GIB, [&[0; 7][..], &[3; 5120], &[0; 100]].concat()),
                (4 * GIB - 10, vec![0; 10]),
            ] {
                let len = expected.len();
                let found = scene.tree().read_at(&file, offset, &mut buffer).unwrap();
                assert!(found >= len, "{found} bytes at {offset}");
                assert_eq!(buffer[..len], expected, "at {offset}");
            }
            let hole = Node::Entry(upper, OsStr::new("hole"));
            let metadata = scene.tree().metadata(hole).unwrap();
            assert_eq!((metadata.size, metadata.blocks), (4 * GIB, 0));
        };
        check(&upper);

        let second = diff(scene, &upper);
        assert!(second.len() < 4 * MIB as usize, "{}", second.len());
        let large = entry_of(&second, "d/large");
        assert_eq!((large.size, large.mode), (4 * GIB, 0o600));
        assert!(large.stored < 4 * MIB, "{large:?}");
        assert_eq!(entry_of(&second, "hole").stored, 0);

        let again = apply(scene, &second);
        check(&again);
        assert!(diff(scene, &again) == second);
    });
}

#[test]
fn a_file_without_large_holes_is_written_whole() {
    each(|scene| {
        let large = 16 * MIB;
        let applied = apply(
            scene,
            &archive(&[
                sparse("small-holes", MIB, &[(0, &[b'x'; 512]), (MIB - 1, b"x")]),
                sparse("large-hole", large, &[(0, &[b'x'; 512]), (large - 1, b"x")]),
                Entry::file("dense", [1; 5000]),
                Entry::file("empty", b""),
            ]),
        );
        let bytes = diff(scene, &applied);
        for (name, stored) in [("small-holes", MIB), ("dense", 5000), ("empty", 0)] {
            let entry = entry_of(&bytes, name);
            assert_eq!((entry.size, entry.stored), (stored, stored), "{name}");
        }
        // Where a hole begins does not depend on the size of the file system's blocks.
        let entry = entry_of(&bytes, "large-hole");
        assert_eq!((entry.size, entry.stored), (large, 2 * (64 << 10)));
        let found = members(&bytes);
        let (_, content) = found
            .iter()
            .find(|(entry, _)| entry.path == b"large-hole")
            .unwrap();
        let ends = [&content[..1], &content[content.len() - 1..]].concat();
        assert_eq!((content.len() as u64, ends), (large, b"xx".to_vec()));
        assert!(
            content[512..content.len() - 1]
                .iter()
                .all(|byte| *byte == 0)
        );
    });
}

#[test]
fn a_sparse_file_with_a_long_name_and_attributes_comes_back() {
    each(|scene| {
        let name = format!("{}/{}", "d".repeat(200), "n".repeat(250));
        let entry = sparse(&name, 8 * MIB, &[(4 * MIB, b"data")])
            .owner(5_000_000, 7)
            .mtime(-5, 5)
            .xattr("user.k", b"v");
        let stack = scene.stack(&[]);
        let first = stack.apply(&[entry]);
        let again = stack.apply_bytes(&diff(scene, &first.upper));
        assert_eq!(first.at(&name), again.at(&name));
        assert_eq!(first.at(&name).contents.len() as u64, 8 * MIB);
    });
}

#[test]
fn what_is_hidden_or_linked_may_be_sparse_too() {
    each(|scene| {
        let lower = [Entry::file("f", b"lower"), Entry::file("d/old", b"")];
        let stack = scene.stack(&[&lower]);
        let applied = stack.apply(&[
            Entry::marker(".wh.f"),
            sparse("f", 2 * MIB, &[(MIB, b"new")]),
            Entry::hard_link("link", "f"),
        ]);
        assert_eq!(applied.at("f"), applied.at("link"));
        assert_eq!(applied.at("f").contents[MIB as usize..][..4], *b"new\0");
        // A marker has no content, not even a hole.
        let marker = archive(&[sparse("d/.wh.old", 5, &[])]);
        let bad = stack.blame(&marker, &ApplyOptions::new(scene.xattrs));
        assert_eq!(bad.reason, BadReason::BadWhiteout);
    });
}
