//! What is in the archive of a layer.

use std::ffi::OsStr;

use ovl_diff::{EntryKind, Node, ViewDir, copy_root_attributes, diff_trees};

use super::{diff, names, set_xattr};
use crate::support::{CAPABILITY, DEFAULT_ACL, Entry, Scene, at, each, make_socket, members};

fn base() -> Vec<Entry> {
    vec![
        Entry::dir("./").mode(0o711).mtime(50, 0),
        Entry::dir("d"),
        Entry::file("d/old", b"old"),
        Entry::file("f", b"f"),
    ]
}

#[test]
fn names_come_depth_first_in_byte_order() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::file("b", b""),
            Entry::file("a/z", b""),
            Entry::file("a/b/c", b""),
            Entry::dir("a-"),
            Entry::file("B", b""),
            Entry::symlink("a/bb", "x"),
        ]);
        assert_eq!(
            names(scene, &applied.upper, &[]),
            ["./", "B", "a/", "a/b/", "a/b/c", "a/bb", "a/z", "a-/", "b"]
        );
    });
}

#[test]
fn every_kind_comes_with_its_attributes() {
    each(|scene| {
        let long = "x".repeat(180);
        let last = scene.last_device();
        let entries = [
            Entry::dir("./").mode(0o1711).owner(7, 8).mtime(-9, 10),
            Entry::block_device("block", 8, 1).mode(0o660),
            Entry::char_device("char", last.major, last.minor)
                .mode(0o620)
                .owner(0, 5),
            Entry::dir("dir")
                .mode(0o2750)
                .owner(1, 2)
                .mtime(3, 4)
                .xattr("user.k", b"v"),
            Entry::fifo("fifo").mtime(1 << 33, 0),
            Entry::file("file", b"contents")
                .mode(0o4755)
                .owner(3_000_000, 4_000_000_000)
                .mtime(-1, 5)
                .xattr("security.capability", CAPABILITY)
                .xattr("trusted.overlay.opaque", b"y")
                .xattr("user.binary", b"\n\0=\xff"),
            Entry::symlink("link", &long).owner(5, 6).mtime(7, 8),
            Entry::file(format!("{long}/{long}"), b"deep"),
        ];
        let applied = scene.stack(&[]).apply(&entries);
        let (bytes, summary) = diff(scene, &applied.upper, &[]);
        let found = members(&bytes);
        // The directory of the last one is implied.
        assert_eq!(
            (found.len(), summary.entries, summary.payload),
            (9, 9, 8 + 4)
        );
        for (entry, content) in &found {
            let name = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
            let written = entries
                .iter()
                .find(|entry| entry.name == name || entry.name == entry_name(name));
            let Some(written) = written else { continue };
            assert_eq!(content, &written.content);
            assert_eq!((entry.mode, entry.mtime), (written.mode, written.mtime));
            assert_eq!(
                (u64::from(entry.uid), u64::from(entry.gid)),
                (written.uid, written.gid)
            );
            let xattrs: Vec<_> = written
                .xattrs
                .iter()
                .map(|(name, value)| (name.clone().into_bytes(), value.clone()))
                .collect();
            assert_eq!(entry.xattrs, xattrs);
        }
        let device = |n: usize| match found[n].0.kind {
            EntryKind::BlockDevice(number) | EntryKind::CharDevice(number) => {
                (number.major, number.minor)
            }
            ref kind => panic!("{kind:?}"),
        };
        assert_eq!((device(1), device(2)), ((8, 1), (last.major, last.minor)));
        assert_eq!(
            found[6].0.kind,
            EntryKind::Symlink {
                target: long.into_bytes()
            }
        );
    });
}

fn entry_name(name: &[u8]) -> Vec<u8> {
    [name, b"/"].concat()
}

#[test]
fn the_root_comes_only_when_it_is_not_as_below() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let root = |entries: &[Entry]| {
            let upper = stack.apply(entries).upper;
            let names = names(scene, &upper, &stack.lowers);
            names.first().is_some_and(|name| name == "./")
        };
        assert!(!root(&[]));
        assert!(!root(&[Entry::file("x", b"")]));
        assert!(!root(&[Entry::dir("./").mode(0o711).mtime(50, 0)]));
        assert!(root(&[Entry::dir("./").mode(0o755).mtime(50, 0)]));
        assert!(root(&[Entry::dir("./").mode(0o711).mtime(51, 0)]));
        assert!(root(&[Entry::dir("./")
            .mode(0o711)
            .mtime(50, 0)
            .owner(1, 0)]));
        assert!(root(&[Entry::dir("./")
            .mode(0o711)
            .mtime(50, 0)
            .xattr("user.k", b"")]));
        // A base always has one.
        assert_eq!(names(scene, &scene.layer(), &[]), ["./"]);
    });
}

#[test]
fn row_049_a_whiteout_is_written_only_for_what_is_below() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let upper = scene.layer();
        copy_root_attributes(scene.view(), &stack.lowers[0], &upper).unwrap();
        let dir = scene.make_dir(&upper, "d");
        scene.whiteout(&upper, "f");
        scene.whiteout(&upper, "nothing");
        scene.whiteout(&dir, "old");
        scene.whiteout(&dir, "nothing");
        let names = names(scene, &upper, &stack.lowers);
        assert_eq!(
            names
                .iter()
                .filter(|name| *name != "./")
                .collect::<Vec<_>>(),
            ["d/", "d/.wh.old", ".wh.f"]
        );
        // What a whiteout is like on disk means nothing.
        let marker = members(&diff(scene, &upper, &stack.lowers).0)
            .pop()
            .unwrap()
            .0;
        assert_eq!((marker.kind, marker.size), (EntryKind::Regular, 0));
        assert_eq!((marker.uid, marker.gid, marker.mtime), (0, 0, at(0, 0)));
    });
}

#[test]
fn row_060_both_forms_of_whiteout_are_written() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let upper = scene.layer();
        let dir = scene.make_dir(&upper, "d");
        scene.write(&dir, "old", b"");
        set_xattr(scene, &dir, "old", "trusted.overlay.whiteout", b"");
        scene.write(&dir, "empty", b"");
        scene
            .tree()
            .set_xattr(Node::Dir(&dir), OsStr::new("trusted.overlay.opaque"), b"x")
            .unwrap();
        let names = names(scene, &upper, &stack.lowers);
        assert_eq!(names, ["./", "d/", "d/empty", "d/.wh.old"]);
    });
}

#[test]
fn row_062_an_opaque_marker_is_written_only_over_a_directory() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let upper = scene.layer();
        for name in ["d", "f", "new"] {
            scene.set_opaque(&scene.make_dir(&upper, name));
        }
        let found = names(scene, &upper, &stack.lowers);
        assert_eq!(found, ["./", "d/", "d/.wh..wh..opq", "f/", "new/"]);
        // Inside one, nothing is below any more.
        let dir = scene.open(&upper, "d");
        scene.whiteout(&dir, "old");
        assert_eq!(names(scene, &upper, &stack.lowers), found);
    });
}

#[test]
fn an_opaque_root_is_written_again() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let applied = stack.apply(&[Entry::marker(".wh..wh..opq"), Entry::file("d/new", b"")]);
        let mut bytes = Vec::new();
        let upper = &applied.upper;
        ovl_diff::diff(scene.view(), upper, &stack.lowers, true, &mut bytes).unwrap();
        let names: Vec<_> = members(&bytes)
            .into_iter()
            .map(|(entry, _)| entry.path)
            .collect();
        assert_eq!(
            names[names.len() - 3..],
            [&b".wh..wh..opq"[..], b"d/", b"d/new"]
        );
        let again = stack.apply_bytes(&bytes);
        assert!(again.summary.root_opaque);
        assert_eq!(again.names(""), ["d"]);
    });
}

#[test]
fn hard_links_are_written_as_such_and_whiteouts_are_none() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let upper = stack
            .apply(&[
                Entry::file("a", b"1"),
                Entry::hard_link("d/b", "a"),
                Entry::symlink("s", "x"),
                Entry::hard_link("t", "s"),
                Entry::fifo("p"),
                Entry::hard_link("q", "p"),
                Entry::marker(".wh.f"),
            ])
            .upper;
        // As the kernel does with all whiteouts of a mount.
        let dir = scene.open(&upper, "d");
        scene
            .tree()
            .hard_link(&upper, OsStr::new("f"), &dir, OsStr::new("old"))
            .unwrap();
        let links: Vec<_> = members(&diff(scene, &upper, &stack.lowers).0)
            .into_iter()
            .filter_map(|(entry, _)| match entry.kind {
                EntryKind::HardLink { target } => Some((entry.path, target)),
                _ => None,
            })
            .collect();
        let expected = [("d/b", "a"), ("q", "p"), ("t", "s")];
        assert_eq!(
            links,
            expected.map(|(name, target)| (name.into(), target.into()))
        );
    });
}

#[test]
fn a_hard_link_whose_other_name_is_not_in_the_layer_is_a_file() {
    each(|scene| {
        let (upper, elsewhere) = (scene.layer(), scene.layer());
        scene.write(&elsewhere, "x", b"contents");
        scene
            .tree()
            .hard_link(&elsewhere, OsStr::new("x"), &upper, OsStr::new("f"))
            .unwrap();
        let found = members(&diff(scene, &upper, &[]).0);
        assert_eq!(found[1].0.kind, EntryKind::Regular);
        assert_eq!(found[1].1, b"contents");
    });
}

#[test]
fn private_attributes_are_not_written() {
    each(|scene| {
        let upper = scene.layer();
        scene.write(&upper, "f", b"1");
        let dir = scene.make_dir(&upper, "d");
        for name in ["origin", "impure", "nlink", "upper", "uuid", "protattr"] {
            let attribute = format!("trusted.overlay.{name}");
            set_xattr(scene, &upper, "f", &attribute, b"x");
            set_xattr(scene, &upper, "d", &attribute, b"x");
        }
        scene.set_opaque(&dir);
        set_xattr(
            scene,
            &upper,
            "d",
            "trusted.overlay.overlay.opaque",
            b"user's",
        );
        for (entry, _) in members(&diff(scene, &upper, &[]).0) {
            let expected = match &*entry.path {
                b"d/" => vec![(b"trusted.overlay.opaque".to_vec(), b"user's".to_vec())],
                _ => Vec::new(),
            };
            assert_eq!(entry.xattrs, expected);
        }
    });
}

#[test]
fn access_control_lists_are_written_and_come_back() {
    let Some(scene) = Scene::host() else { return };
    if !scene.has_acls {
        crate::support::skip("POSIX ACLs: the temporary directory has none");
        return;
    }
    let acl = "system.posix_acl_default";
    let applied = scene.stack(&[]).apply(&[
        Entry::dir("d").xattr(acl, DEFAULT_ACL),
        Entry::file("d/f", b"").mode(0o640),
    ]);
    let (bytes, _) = diff(&scene, &applied.upper, &[]);
    let again = scene.stack(&[]).apply_bytes(&bytes);
    assert_eq!(again.at("d").xattr(acl), Some(DEFAULT_ACL));
    assert_eq!(diff(&scene, &again.upper, &[]).0, bytes);
}

#[test]
fn row_116_sockets_are_left_out_and_what_they_hide_stays_hidden() {
    let Some(scene) = Scene::host() else { return };
    let stack = scene.stack(&[&base()]);
    let upper = scene.layer();
    copy_root_attributes(scene.view(), &stack.lowers[0], &upper).unwrap();
    for name in ["s", "f"] {
        make_socket(&upper, name);
    }
    // An open would block for ever.
    let fifo = ovl_diff::NodeKind::Fifo;
    scene
        .tree()
        .create_node(&upper, OsStr::new("pipe"), fifo, 0o600)
        .unwrap();
    let (native, summary) = diff(&scene, &upper, &stack.lowers);
    assert_eq!(summary.skipped_sockets, 2);
    let mut parts = vec![upper];
    parts.extend_from_slice(&stack.lowers);
    let mut naive = Vec::new();
    let (tree, base) = (ViewDir::new(parts), ViewDir::new(stack.lowers.clone()));
    let summary = diff_trees(scene.view(), &tree, &base, &mut naive).unwrap();
    assert_eq!(summary.skipped_sockets, 2);
    for bytes in [native, naive] {
        assert_eq!(stack.apply_bytes(&bytes).names(""), ["d", "pipe"]);
    }
}

#[test]
fn two_diffs_are_the_same_bytes_however_the_layer_was_made() {
    each(|scene| {
        let entries = [
            Entry::dir("./").mtime(1, 0),
            Entry::dir("d").mtime(2, 0),
            Entry::file("d/a", b"1"),
            Entry::file("d/b", b"2")
                .xattr("user.b", b"")
                .xattr("user.a", b""),
            Entry::file("c", vec![0; 100_000]),
        ];
        let mut reversed = entries.clone();
        reversed.reverse();
        reversed[1].xattrs.reverse();
        let one = scene.stack(&[]).apply(&entries);
        let other = scene.stack(&[]).apply(&reversed);
        let bytes = diff(scene, &one.upper, &[]).0;
        assert!(bytes == diff(scene, &one.upper, &[]).0);
        assert!(bytes == diff(scene, &other.upper, &[]).0);
    });
}

#[test]
fn files_with_holes_are_written_whole() {
    each(|scene| {
        let upper = scene.layer();
        let file = scene
            .tree()
            .create_file(&upper, OsStr::new("f"), 0o600)
            .unwrap();
        let middle = vec![7; 70_000];
        scene.tree().write_at(&file, 1_000_000, &middle).unwrap();
        scene.tree().set_len(&file, 3_000_001).unwrap();
        let found = members(&diff(scene, &upper, &[]).0);
        let mut expected = vec![0; 3_000_001];
        expected[1_000_000..1_070_000].copy_from_slice(&middle);
        assert!(found[1].1 == expected);
    });
}
