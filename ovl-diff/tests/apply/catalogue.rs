//! Rows of the catalogue about what surrounds a layer: names, link counts, programs, file systems.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use ovl_diff::{
    ApplyError, ApplyOptions, ArchiveError, BadReason, FileKind, HostTree, Node, remove_tree,
};

use crate::archive::gzip;
use crate::support::{Entry, Scene, archive, at, each, file_system_is_chosen, skip};

#[test]
fn row_012_a_layer_of_too_many_entries_is_refused() {
    each(|scene| {
        let entries: Vec<Entry> = (0..100)
            .map(|number| Entry::file(format!("d/{number}"), b""))
            .collect();
        let mut options = ApplyOptions::new(scene.xattrs);
        options.limits.max_entries = 100;
        let stack = scene.stack(&[]);
        let applied = stack.try_apply(&archive(&entries), &options).unwrap();
        assert_eq!(applied.names("d").len(), 100);
        options.limits.max_entries = 99;
        let bad = stack.blame(&archive(&entries), &options);
        assert!(
            matches!(bad.reason, BadReason::EntryLimit { max: 99, .. }),
            "{bad}"
        );
    });
}

#[test]
fn row_013_names_that_differ_only_by_case_or_form_are_different_names() {
    each(|scene| {
        let names = [
            "a", "A", "\u{e9}", "e\u{301}", "\u{df}", "ss", "\u{fb01}", "fi",
        ];
        let entries = names.map(|name| Entry::file(name, name));
        let applied = scene.stack(&[]).apply(&entries);
        assert_eq!(applied.names("").len(), names.len());
        for name in names {
            assert_eq!(applied.at(name).contents, name.as_bytes());
        }
        // A link through one spelling does not lead to another.
        let reason = scene
            .stack(&[])
            .refused(&[Entry::file("a", b""), Entry::hard_link("b", "A")]);
        assert_eq!(reason, BadReason::DanglingHardLink);
    });
}

#[test]
fn row_021_the_stores_own_names_are_plain_names_in_a_layer() {
    each(|scene| {
        let names = [
            "l",
            "staging",
            "diff",
            "work",
            "merged",
            "lower",
            "link",
            "committed",
            "layer-0",
        ];
        let entries = names.map(|name| Entry::file(name, name));
        let applied = scene.stack(&[]).apply(&entries);
        for name in names {
            assert_eq!(applied.at(name).contents, name.as_bytes());
        }
    });
}

/// An archive of one file with this many other names.
fn linked(links: u32) -> Vec<u8> {
    let mut entries = vec![Entry::file("f", b"data").mode(0o640).mtime(5, 6)];
    entries.extend((0..links).map(|number| Entry::hard_link(format!("d/{number}"), "f")));
    archive(&entries)
}

#[test]
fn row_040_a_link_too_many_becomes_a_copy_and_is_counted() {
    // The mock has the limit of ext4. XFS and tmpfs have none that anybody meets.
    too_many_links(&Scene::mock(), Some(65_000));
    if file_system_is_chosen()
        && let Some(scene) = Scene::host()
    {
        too_many_links(&scene, None);
    }
}

fn too_many_links(scene: &Scene, limit: Option<u64>) {
    let upper = scene.layer();
    let options = ApplyOptions::new(scene.xattrs);
    let bytes = linked(65_003);
    let applied =
        ovl_diff::apply(scene.tree(), &*bytes, &upper, &[], &options, &mut |_| {}).unwrap();
    let dir = scene.open(&upper, "d");
    let look = |name: &str| {
        let node = Node::Entry(&dir, OsStr::new(name));
        scene.tree().metadata(node).unwrap()
    };
    let (link, last) = (look("0"), look("65002"));
    let names = u64::from(link.nlink);
    assert!(limit.is_none_or(|limit| names == limit));
    assert_eq!(names + applied.copied_links, 65_004);
    assert_eq!((last.mode, last.mtime, last.size), (0o640, at(5, 6), 4));
    assert_eq!(link.ino == last.ino, applied.copied_links == 0);
}

#[test]
fn row_039_links_stay_inside_the_one_directory_of_their_layer() {
    // A layer's directory has one quota project from its creation on, so no link crosses two:
    // there is none between a layer and what is below it or beside it.
    each(|scene| {
        let stack = scene.stack(&[&[Entry::file("low", b"low")]]);
        let entries = [
            Entry::hard_link("copy", "low"),
            Entry::file("f", b"f"),
            Entry::hard_link("d/f", "f"),
        ];
        let applied = stack.apply(&entries);
        assert_eq!(applied.summary.copied_links, 0);
        let inode = |root, name| {
            let node = Node::Entry(root, OsStr::new(name));
            scene.tree().metadata(node).unwrap().ino
        };
        assert_ne!(inode(&applied.upper, "low"), inode(&stack.lowers[0], "low"));
        assert_eq!(inode(&applied.upper, "low"), inode(&applied.upper, "copy"));
    });
}

/// The sources of this crate.
fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path.display().to_string(), text));
        }
    }
}

/// No source of this crate says any of this.
fn never_said(words: &[&str]) {
    let mut found = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    assert!(found.len() > 20);
    for (name, text) in found {
        for never in words {
            assert!(!text.contains(never), "{name} has {never}");
        }
    }
}

#[test]
fn row_095_no_program_is_run_to_decompress() {
    never_said(&["process::Command", "Command::new", "execve", "fork("]);
    each(|scene| {
        // What an image brings of that kind is a file like any other.
        let stack = scene.stack(&[&[
            Entry::file("usr/bin/unpigz", b"#!/bin/false").mode(0o755),
            Entry::file("usr/bin/xz", b"#!/bin/false").mode(0o755),
        ]]);
        let whole = archive(&[Entry::file("f", b"1")]);
        let packed = gzip(&whole);
        assert_eq!(stack.apply_bytes(&packed).at("f").contents, b"1");
        let xz = [&[0xfd, b'7', b'z', b'X', b'Z', 0][..], &[0; 1000]].concat();
        let bad = stack.blame(&xz, &ApplyOptions::new(scene.xattrs));
        assert!(
            matches!(bad.reason, BadReason::UnsupportedCompression { .. }),
            "{bad}"
        );
    });
}

#[test]
fn row_096_no_owner_is_looked_up_by_name() {
    never_said(&[
        "getpwnam",
        "getgrnam",
        "/etc/passwd",
        "/etc/group",
        "nsswitch",
        "chroot",
    ]);
    each(|scene| {
        let named = Entry::file("f", b"")
            .owner(3, 4)
            .record("uname", "evil")
            .record("gname", "root");
        let applied = scene.stack(&[]).apply(&[
            Entry::file("etc/nsswitch.conf", b"passwd: evil"),
            Entry::file("etc/passwd", b"root:x:0:0::/:\nevil:x:7:8::/:"),
            Entry::file("lib/libnss_evil.so.2", b""),
            named,
        ]);
        assert_eq!(applied.at("f").owner(), (3, 4));
    });
}

#[test]
fn row_097_a_passwd_that_is_a_link_a_pipe_or_a_device_is_never_opened() {
    each(|scene| {
        // Opening any of them would block, or never end.
        for entry in [
            Entry::symlink("etc/passwd", "/dev/zero"),
            Entry::symlink("etc/passwd", "passwd"),
            Entry::fifo("etc/passwd"),
            Entry::char_device("etc/passwd", 1, 5),
        ] {
            let stack = scene.stack(&[]);
            let others = [Entry::fifo("etc/group"), Entry::file("f", b"").owner(1, 1)];
            let applied = stack.apply(&[&[entry][..], &others].concat());
            let mut bytes = Vec::new();
            ovl_diff::diff(scene.view(), &applied.upper, &[], false, &mut bytes).unwrap();
            let again = stack.apply_bytes(&bytes);
            assert_eq!(applied.shown.difference(&again.shown), None);
        }
    });
}

#[test]
fn row_104_an_attribute_that_is_too_large_is_not_called_a_full_disk() {
    // Only file systems have this limit.
    let Some(scene) = Scene::host() else { return };
    // No file system takes the first; ext4 calls the second "no space left on device".
    for (len, may_fit) in [(70_000, false), (60_000, true)] {
        let entry = Entry::file("f", b"").xattr("user.large", vec![7; len]);
        let options = ApplyOptions::new(scene.xattrs);
        let bad = match scene.stack(&[]).try_apply(&archive(&[entry]), &options) {
            Ok(applied) if may_fit => {
                assert_eq!(applied.at("f").xattr("user.large").unwrap().len(), len);
                continue;
            }
            Err(ApplyError::Archive(ArchiveError::Bad(bad))) => bad,
            other => panic!("{:?}", other.map(|applied| applied.summary)),
        };
        assert!(
            matches!(&bad.reason, BadReason::XattrTooLarge { name, len: said, .. } if name == b"user.large" && *said == len),
            "{bad}"
        );
        assert!(bad.to_string().contains("\"f\""), "{bad}");
    }
}

#[test]
fn row_106_an_attribute_that_the_file_system_refuses_is_named_with_its_entry() {
    each(|scene| {
        for entry in [
            Entry::file("d/f", b"x"),
            Entry::dir("d/e"),
            Entry::symlink("d/l", "x"),
        ] {
            let bytes = archive(&[Entry::dir("d"), entry.xattr("nobody.knows", b"v")]);
            let bad = scene
                .stack(&[])
                .blame(&bytes, &ApplyOptions::new(scene.xattrs));
            assert!(
                matches!(&bad.reason, BadReason::XattrRefused { name, .. } if name == b"nobody.knows"),
                "{bad}"
            );
            assert_eq!(bad.index, 1);
            let text = bad.to_string();
            assert!(
                text.contains("\"d/") && text.contains("nobody.knows"),
                "{text}"
            );
        }
    });
}

#[test]
fn row_115_the_mode_of_a_device_is_set_where_devices_cannot_be_opened() {
    each(|scene| {
        if let Ok(root) = HostTree::dir_fd(&scene.dir) {
            let flags = rustix::fs::fstatvfs(root).unwrap().f_flag;
            if !flags.contains(rustix::fs::StatVfsMountFlags::NODEV) {
                skip("a temporary directory on a mount without devices (nodev)");
            }
        }
        let applied = scene.stack(&[]).apply(&[
            Entry::char_device("dev/ptmx", 5, 2).mode(0o666),
            // Nobody has a driver for it.
            Entry::block_device("dev/none", 511, 77)
                .mode(0o4600)
                .owner(5, 6)
                .mtime(7, 8),
        ]);
        let ptmx = applied.at("dev/ptmx");
        assert_eq!((ptmx.kind, ptmx.mode), (FileKind::CharDevice, 0o666));
        let none = applied.at("dev/none");
        assert_eq!(
            (none.kind, none.mode, none.owner()),
            (FileKind::BlockDevice, 0o4600, (5, 6))
        );
    });
}

#[test]
fn row_123_file_flags_of_other_systems_are_ignored() {
    each(|scene| {
        let entries = [
            Entry::dir("d").record("SCHILY.fflags", "schg,uchg"),
            Entry::file("d/f", b"1")
                .record("SCHILY.fflags", "schg,sappnd,immutable")
                .record("LIBARCHIVE.fflags", "uchg"),
            // It can still be changed.
            Entry::file("d/f", b"2"),
        ];
        let applied = scene.stack(&[]).apply(&entries);
        assert_eq!(applied.at("d/f").contents, b"2");
        let tree = scene.tree();
        remove_tree(tree, &applied.upper, OsStr::new("d")).unwrap();
        assert!(tree.read_dir(&applied.upper).unwrap().is_empty());
    });
}

#[test]
fn a_directory_for_whiteouts_only_goes_with_its_own_whiteout() {
    each(|scene| {
        let low = [
            Entry::dir("d").mode(0o700),
            Entry::file("d/e/low", b""),
            Entry::file("d/low", b""),
        ];
        let stack = scene.stack(&[&low]);
        let markers = [
            Entry::marker("d/.wh.low"),
            Entry::marker("d/e/.wh.low"),
            Entry::marker(".wh.d"),
        ];
        for order in [[0, 1, 2], [1, 0, 2], [2, 0, 1], [0, 2, 1]] {
            let entries = order.map(|place| markers[place].clone());
            let applied = stack.apply(&entries);
            assert!(applied.names("").is_empty(), "{order:?}");
            let alone = stack.apply(&[markers[2].clone()]);
            assert_eq!(
                scene.raw(&applied.upper).len(),
                scene.raw(&alone.upper).len()
            );
        }
        // One that an entry names, or that holds something, stays.
        for real in [
            Entry::dir("d"),
            Entry::file("d/e/new", b""),
            Entry::symlink("d/l", "x"),
        ] {
            let applied = stack.apply(&[markers[0].clone(), real, markers[2].clone()]);
            assert_eq!(applied.names(""), ["d"]);
            assert!(!applied.names("d").contains(&"low".to_owned()));
        }
    });
}

#[test]
fn what_was_implied_over_a_directory_that_is_hidden_later_is_plain() {
    each(|scene| {
        let low = [
            Entry::dir("d").mode(0o711).owner(7, 8),
            Entry::dir("d/e")
                .mode(0o700)
                .owner(5, 6)
                .xattr("user.k", b"v"),
            Entry::file("d/e/low", b""),
        ];
        let stack = scene.stack(&[&low]);
        let new = Entry::file("d/e/new", b"");
        for marker in ["d/.wh..wh..opq", ".wh.d", ".wh..wh..opq"] {
            let marker = Entry::marker(marker);
            let first = stack.apply(&[marker.clone(), new.clone()]);
            let last = stack.apply(&[new.clone(), marker.clone()]);
            for applied in [&first, &last] {
                let seen = applied.at("d/e");
                assert_eq!((seen.mode, seen.owner()), (0o755, (0, 0)), "{marker:?}");
                assert!(seen.xattrs.is_empty());
                assert_eq!(applied.names("d/e"), ["new"]);
            }
            assert_eq!(first.at("d").mode, last.at("d").mode);
            assert_eq!(first.at("d").owner(), last.at("d").owner());
        }
        // What an entry names keeps what that says.
        let named = Entry::dir("d/e").mode(0o750).owner(1, 2);
        let applied = stack.apply(&[new, named, Entry::marker("d/.wh..wh..opq")]);
        let seen = applied.at("d/e");
        assert_eq!((seen.mode, seen.owner()), (0o750, (1, 2)));
    });
}

#[test]
fn an_error_of_the_file_system_itself_is_not_the_archives_fault() {
    // The root of the layer is gone.
    let scene = Scene::mock();
    let upper = scene.layer();
    let entries = scene.tree().read_dir(&scene.dir).unwrap();
    let layer = entries.iter().find(|entry| entry.name != "victim").unwrap();
    scene.tree().remove_dir(&scene.dir, &layer.name).unwrap();
    let options = ApplyOptions::new(scene.xattrs);
    let bytes = archive(&[Entry::file("f", b"")]);
    let result = ovl_diff::apply(scene.tree(), &*bytes, &upper, &[], &options, &mut |_| {});
    assert!(matches!(result, Err(ApplyError::Tree(_))), "{result:?}");
}
