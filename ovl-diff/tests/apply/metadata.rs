//! Owners, modes, times, attributes, devices and the root.

use std::ffi::OsStr;
use std::path::Path;

use ovl_diff::{ApplyOptions, BadReason, DeviceNumber, FileKind};

use crate::support::{CAPABILITY, DEFAULT_ACL, Entry, Scene, archive, at, each, skip};

#[test]
fn row_098_private_attributes_of_overlayfs_are_stored_and_not_obeyed() {
    each(|scene| {
        let stack = scene.stack(&[&[
            Entry::dir("secret"),
            Entry::file("secret/x", b""),
            Entry::dir("d"),
            Entry::file("d/below", b""),
        ]]);
        let names = [
            "opaque",
            "redirect",
            "metacopy",
            "origin",
            "upper",
            "nlink",
            "impure",
            "whiteout",
            "verity",
            "protattr",
            "uuid",
            "overlay.opaque",
        ];
        let (mut dir, mut file) = (Entry::dir("d"), Entry::file("f", b""));
        for name in names {
            let value = if name == "opaque" {
                &b"y"[..]
            } else {
                b"/secret"
            };
            dir = dir.xattr(&format!("trusted.overlay.{name}"), value);
            file = file.xattr(&format!("trusted.overlay.{name}"), value);
        }
        let applied = stack.apply(&[dir, file]);
        assert_eq!(applied.names("d"), ["below"]);
        assert_eq!(applied.names(""), ["d", "f", "secret"]);
        for path in ["d", "f"] {
            for name in names {
                let seen = applied.at(path).xattr(&format!("trusted.overlay.{name}"));
                assert!(
                    seen.is_some(),
                    "{path} {name} is shown, through the kernel's escape"
                );
            }
            let raw = &scene.raw(&applied.upper)[Path::new(path)];
            let stored = |name: &OsStr| {
                name.to_str()
                    .unwrap()
                    .starts_with("trusted.overlay.overlay.")
            };
            assert!(raw.xattrs.keys().all(|name| stored(name)), "{raw:?}");
        }
    });
}

#[test]
fn row_099_the_other_namespaces_attributes_are_kept_as_they_are() {
    each(|scene| {
        let entries = [Entry::dir("d")
            .xattr("user.overlay.opaque", b"y")
            .xattr("user.overlay.origin", b"\0")];
        let applied = scene.stack(&[]).apply(&entries);
        assert_eq!(
            applied.at("d").xattr("user.overlay.opaque"),
            Some(&b"y"[..])
        );
        assert_eq!(
            applied.at("d").xattr("user.overlay.origin"),
            Some(&b"\0"[..])
        );
        let options = ApplyOptions::new(ovl_layout::XattrNamespace::User);
        let applied = scene
            .stack(&[])
            .try_apply(&archive(&entries), &options)
            .unwrap();
        let raw = &scene.raw(&applied.upper)[Path::new("d")];
        let names: Vec<_> = raw.xattrs.keys().collect();
        assert_eq!(
            names,
            ["user.overlay.overlay.opaque", "user.overlay.overlay.origin"]
        );
    });
}

#[test]
fn row_100_labels_of_the_host_are_left_out_and_counted() {
    each(|scene| {
        // A diff would not carry them either, and must not take away what an apply gives.
        let applied = scene.stack(&[]).apply(&[Entry::file("f", b"")
            .xattr("security.selinux", b"system_u:object_r:etc_t:s0")
            .xattr("security.evm", b"\x02signature")
            .xattr("security.apparmor", b"label")
            .xattr("security.nobody_knows", b"value")]);
        assert_eq!(applied.summary.skipped_xattrs, 4);
        assert_eq!(applied.at("f").xattrs.len(), 0);
    });
}

#[test]
fn row_101_capabilities_and_setuid_survive_the_change_of_owner() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[Entry::file("ping", b"x")
            .owner(1000, 1001)
            .mode(0o6755)
            .xattr("security.capability", CAPABILITY)]);
        let seen = applied.at("ping");
        assert_eq!((seen.owner(), seen.mode), ((1000, 1001), 0o6755));
        assert_eq!(seen.xattr("security.capability"), Some(CAPABILITY));
    });
}

#[test]
fn row_101_capabilities_of_a_wrong_form_are_the_archives_fault() {
    malformed(
        "security.capability",
        &[&CAPABILITY[..7], b"", &[7; 20], &CAPABILITY[..19]],
    );
}

#[test]
fn row_102_access_control_lists_of_a_wrong_form_are_the_archives_fault() {
    malformed(
        "system.posix_acl_access",
        &[b"\x02\0\0\0\x01", b"\x02\0\0\0nonsense"],
    );
}

fn malformed(name: &str, values: &[&[u8]]) {
    // Only the kernel knows their form.
    let Some(scene) = Scene::host() else { return };
    if name.starts_with("system.") && !scene.has_acls {
        skip("POSIX ACLs: the file system of the temporary directory has none");
        return;
    }
    for value in values {
        let entry = Entry::file("f", b"").xattr(name, value);
        let reason = scene.stack(&[]).refused(&[entry]);
        assert!(
            matches!(&reason, BadReason::BadXattr { .. }),
            "{value:?}: {reason:?}"
        );
    }
}

#[test]
fn row_103_user_attributes_of_what_cannot_have_any_are_left_out_and_counted() {
    each(|scene| {
        let with = |entry: Entry| entry.xattr("user.a", b"1").xattr("trusted.b", b"2");
        let applied = scene.stack(&[]).apply(&[
            with(Entry::symlink("l", "x")),
            with(Entry::fifo("p")),
            with(Entry::char_device("c", 1, 3)),
            with(Entry::file("f", b"")),
            with(Entry::dir("d")),
        ]);
        assert_eq!(applied.summary.skipped_xattrs, 3);
        for name in ["l", "p", "c"] {
            assert_eq!(applied.at(name).xattrs.len(), 1, "{name}");
        }
        for name in ["f", "d"] {
            assert_eq!(applied.at(name).xattrs.len(), 2, "{name}");
        }
    });
}

#[test]
fn row_107_owners_reach_as_far_as_linux_has_them() {
    each(|scene| {
        let last = u64::from(u32::MAX) - 1;
        let applied = scene.stack(&[]).apply(&[
            Entry::file("f", b"").owner(last, 1 << 31),
            Entry::dir("d").owner(3_000_000, last),
            Entry::symlink("l", "x").owner(0, 65_534),
        ]);
        assert_eq!(applied.at("f").owner(), (u32::MAX - 1, 1 << 31));
        assert_eq!(applied.at("d").owner(), (3_000_000, u32::MAX - 1));
        assert_eq!(applied.at("l").owner(), (0, 65_534));
        for (uid, gid) in [
            (last + 1, 0),
            (0, last + 1),
            (1 << 32, 0),
            (0, u64::MAX >> 1),
        ] {
            let reason = scene
                .stack(&[])
                .refused(&[Entry::file("f", b"").owner(uid, gid)]);
            assert!(
                matches!(reason, BadReason::IdOutOfRange { .. }),
                "{reason:?}"
            );
        }
    });
}

#[test]
fn a_directory_that_gives_its_group_away_gives_it_to_nobody_who_has_another() {
    each(|scene| {
        let mut entries = vec![Entry::dir("d").mode(0o2775).owner(0, 50)];
        for (n, gid) in [50, 0, 50, 7, 0].into_iter().enumerate() {
            entries.push(Entry::file(format!("d/f{n}"), b"").owner(0, gid));
            entries.push(Entry::dir(format!("d/d{n}")).owner(0, gid));
            entries.push(Entry::symlink(format!("d/l{n}"), "x").owner(0, gid));
            entries.push(Entry::dir("d").mode(0o2775).owner(0, gid));
            entries.push(Entry::fifo(format!("d/p{n}")).owner(0, 0));
            entries.push(Entry::dir("d").mode(0o755).owner(0, gid));
            entries.push(Entry::file(format!("d/d{n}/inner"), b"").owner(1, 0));
        }
        let applied = scene.stack(&[]).apply(&entries);
        for entry in entries.iter().filter(|entry| entry.name != b"d") {
            let name = std::str::from_utf8(&entry.name).unwrap();
            let seen = applied.at(name);
            assert_eq!(
                (seen.uid.into(), seen.gid.into()),
                (entry.uid, entry.gid),
                "{name}"
            );
            if entry.typeflag != b'2' {
                assert_eq!(seen.mode, entry.mode, "{name}");
            }
        }
    });
}

#[test]
fn row_108_an_owner_that_is_not_mapped_is_refused_or_squashed() {
    each(|scene| {
        let mut options = ApplyOptions::new(scene.xattrs);
        options.uids = Some(vec![0..1, 1000..1002]);
        options.gids = Some(std::iter::once(0..100).collect());
        let stack = scene.stack(&[]);
        for (uid, gid) in [(1, 0), (999, 5), (1002, 5), (0, 100), (5000, 5000)] {
            let bad = stack.blame(&archive(&[Entry::dir("d").owner(uid, gid)]), &options);
            let BadReason::UnmappedOwner {
                uid: bad_uid,
                gid: bad_gid,
                ..
            } = bad.reason
            else {
                panic!("{bad}");
            };
            assert_eq!((bad_uid.into(), bad_gid.into()), (uid, gid));
        }
        let entries = [
            Entry::file("mapped", b"").owner(1001, 99),
            Entry::file("user", b"").owner(5, 7).mode(0o4755),
            Entry::dir("group").owner(1000, 100),
            Entry::symlink("both", "x").owner(5000, 5000),
            Entry::hard_link("link", "user").owner(5000, 5000),
        ];
        options.squash = true;
        let applied = stack.try_apply(&archive(&entries), &options).unwrap();
        let owners = ["mapped", "user", "group", "both"].map(|name| applied.at(name).owner());
        assert_eq!(owners, [(1001, 99), (0, 7), (1000, 0), (0, 0)]);
        assert_eq!(applied.summary.squashed, 3);
    });
}

#[test]
fn row_110_all_twelve_bits_of_a_mode_are_kept_and_no_other() {
    each(|scene| {
        let mut entries: Vec<Entry> = (0..=0o7777)
            .step_by(73)
            .flat_map(|mode| {
                [
                    Entry::file(format!("f{mode:o}"), b"")
                        .mode(mode)
                        .owner(1, 2),
                    Entry::dir(format!("d{mode:o}")).mode(mode).owner(1, 2),
                ]
            })
            .collect();
        entries.push(Entry::fifo("p").mode(0o7777).owner(1, 2));
        entries.push(Entry::file("typed", b"").mode(0o100_640));
        let applied = scene.stack(&[]).apply(&entries);
        for entry in &entries[..entries.len() - 1] {
            let name = std::str::from_utf8(&entry.name).unwrap();
            assert_eq!(applied.at(name).mode, entry.mode, "{name}");
        }
        assert_eq!(applied.at("typed").mode, 0o640);
    });
}

#[test]
fn row_111_a_closed_directory_is_filled_all_the_same() {
    each(|scene| {
        let applied = scene.stack(&[&[Entry::dir("low").mode(0)]]).apply(&[
            Entry::dir("d").mode(0).mtime(7, 8),
            Entry::dir("d/e").mode(0o100).mtime(9, 0),
            Entry::file("d/e/f", b"1"),
            Entry::file("d/g", b"2"),
            Entry::file("low/x", b"3"),
        ]);
        assert_eq!((applied.at("d").mode, applied.at("d").mtime), (0, at(7, 8)));
        assert_eq!(
            (applied.at("d/e").mode, applied.at("d/e").mtime),
            (0o100, at(9, 0))
        );
        assert_eq!((applied.at("low").mode, applied.names("d/e").len()), (0, 1));
    });
}

#[test]
fn row_111_a_directorys_time_is_its_entrys_whatever_is_put_into_it_later() {
    each(|scene| {
        let stack = scene.stack(&[&[Entry::dir("d"), Entry::file("d/low", b"")]]);
        let applied = stack.apply(&[
            Entry::dir("d").mtime(1, 2),
            Entry::dir("e").mtime(3, 4),
            Entry::dir("e/inner").mtime(5, 6),
            Entry::file("top", b""),
            Entry::file("d/a", b""),
            Entry::marker("d/.wh.low"),
            Entry::hard_link("e/inner/h", "d/a"),
            Entry::hard_link("d/low2", "top"),
            Entry::file("d/a", b"again"),
            Entry::dir("./").mtime(7, 8),
            Entry::file("last", b""),
        ]);
        let times = ["", "d", "e", "e/inner"].map(|path| applied.at(path).mtime);
        assert_eq!(times, [at(7, 8), at(1, 2), at(3, 4), at(5, 6)]);
    });
}

#[test]
fn row_113_devices_are_made_with_their_numbers_and_modes() {
    each(|scene| {
        let last = scene.last_device();
        let applied = scene.stack(&[]).apply(&[
            Entry::char_device("null", 1, 3)
                .mode(0o666)
                .owner(1, 2)
                .mtime(3, 4),
            Entry::block_device("disk", 8, 0).mode(0o660),
            Entry::char_device("last", last.major, last.minor).mode(0),
        ]);
        let null = applied.at("null");
        assert_eq!(
            (null.kind, null.mode, null.owner(), null.mtime),
            (FileKind::CharDevice, 0o666, (1, 2), at(3, 4))
        );
        assert_eq!(null.rdev, DeviceNumber { major: 1, minor: 3 });
        assert_eq!(
            (applied.at("disk").kind, applied.at("disk").rdev.major),
            (FileKind::BlockDevice, 8)
        );
        assert_eq!(applied.at("last").rdev, last);
        if last.major < 4095 {
            let more = Entry::block_device("more", last.major + 1, 0);
            let reason = scene.stack(&[]).refused(&[more]);
            let expected = matches!(reason, BadReason::DeviceTooLarge { major: 512, .. });
            assert!(expected, "{reason:?}");
        }
    });
}

#[test]
fn row_116_a_pipe_is_made_and_never_opened() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::fifo("p").mode(0o622).owner(3, 4).mtime(5, 6),
            Entry::hard_link("q", "p"),
        ]);
        let seen = applied.at("p");
        assert_eq!(
            (seen.kind, seen.mode, seen.owner(), seen.mtime),
            (FileKind::Fifo, 0o622, (3, 4), at(5, 6))
        );
        assert_eq!(applied.at("q").linked_to, Path::new("p"));
    });
}

#[test]
fn row_117_times_before_the_epoch_and_after_2038_are_exact_or_counted() {
    each(|scene| {
        let times = [
            (-1, 0),
            (-1, 500_000_000),
            (-(1 << 31), 0),
            (-(1 << 31) - 1, 1),
            (0, 1),
            ((1 << 31) - 1, 0),
            (1 << 31, 999_999_999),
            (1 << 32, 0),
            ((1 << 34) - 1, 0),
        ];
        let times = times.map(|(secs, nanos)| at(secs, nanos));
        let (kept, clamped): (Vec<_>, Vec<_>) =
            times.into_iter().partition(|time| scene.keeps_time(*time));
        let mut entries: Vec<Entry> = Vec::new();
        for (n, time) in clamped.iter().enumerate() {
            let at = |entry: Entry| entry.mtime(time.secs, time.nanos);
            entries.push(at(Entry::dir(format!("clamped{n}"))));
            entries.push(at(Entry::file(format!("clamped{n}/f"), b"")));
            entries.push(at(Entry::symlink(format!("clamped{n}/l"), "x")));
        }
        for (n, time) in kept.iter().enumerate() {
            let (secs, nanos) = (time.secs, time.nanos);
            entries.push(Entry::file(format!("f{n}"), b"").mtime(secs, nanos));
            entries.push(Entry::dir(format!("d{n}")).mtime(secs, nanos));
            entries.push(Entry::symlink(format!("l{n}"), "x").mtime(secs, nanos));
        }
        let applied = scene.stack(&[]).apply(&entries);
        let clamped = clamped.len() as u64 * 3;
        assert_eq!(applied.summary.clamped_times, clamped);
        for (n, time) in kept.into_iter().enumerate() {
            for kind in ["f", "d", "l"] {
                assert_eq!(applied.at(&format!("{kind}{n}")).mtime, time);
            }
        }
        for time in ["1e30", "x", "99999999999999999999", "1.5x"] {
            let entry = Entry::file("f", b"").record("mtime", time);
            let reason = scene.stack(&[]).refused(&[entry]);
            assert!(
                matches!(reason, BadReason::BadNumber { .. }),
                "{time}: {reason:?}"
            );
        }
    });
}

#[test]
fn row_118_parts_of_a_nanosecond_are_rounded_down() {
    each(|scene| {
        for (text, time) in [
            ("1.9999999999999", at(1, 999_999_999)),
            ("1.0000000001", at(1, 0)),
            ("-1.5", at(-2, 500_000_000)),
            ("-0.0000000001", at(-1, 999_999_999)),
        ] {
            let entry = Entry::file("f", b"").record("mtime", text);
            assert_eq!(
                scene.stack(&[]).apply(&[entry]).at("f").mtime,
                time,
                "{text}"
            );
        }
    });
}

#[test]
fn row_120_an_entry_for_the_root_sets_its_attributes() {
    each(|scene| {
        let base = [
            Entry::dir("./")
                .mode(0o711)
                .owner(1, 2)
                .mtime(3, 4)
                .xattr("user.low", b"1"),
            Entry::file("f", b""),
        ];
        let stack = scene.stack(&[&base]);
        // Without one, the root is as below.
        let applied = stack.apply(&[Entry::file("g", b"")]);
        let root = applied.at("");
        assert_eq!(
            (root.mode, root.owner(), root.mtime),
            (0o711, (1, 2), at(3, 4))
        );
        assert_eq!(root.xattr("user.low"), Some(&b"1"[..]));
        for name in [".", "./", "/", "./."] {
            let entry = Entry::dir(name)
                .mode(0o1755)
                .owner(5, 6)
                .mtime(7, 8)
                .xattr("user.own", b"2");
            let applied = stack.apply(&[Entry::file("g", b""), entry, Entry::file("h", b"")]);
            let root = applied.at("");
            assert_eq!(
                (root.mode, root.owner(), root.mtime),
                (0o1755, (5, 6), at(7, 8)),
                "{name}"
            );
            assert_eq!(
                (root.xattr("user.low"), root.xattr("user.own")),
                (None, Some(&b"2"[..]))
            );
            assert_eq!(applied.names(""), ["f", "g", "h"]);
        }
    });
}

#[test]
fn row_121_the_root_is_no_link_no_file_no_device_and_no_whiteout() {
    root_is_no(&[
        Entry::symlink("", "/etc"),
        Entry::symlink("", "../victim"),
        Entry::char_device("", 1, 3),
        Entry::char_device("", 0, 0),
        Entry::block_device("", 8, 0),
    ]);
    each(|scene| {
        let reason = scene.stack(&[]).refused(&[Entry::file(".", b"x")]);
        assert_eq!(reason, BadReason::RootNotDirectory);
    });
}

#[test]
fn row_122_the_root_is_no_hard_link_and_no_pipe() {
    root_is_no(&[Entry::hard_link("", "f"), Entry::fifo("")]);
}

fn root_is_no(entries: &[Entry]) {
    each(|scene| {
        let stack = scene.stack(&[&[Entry::file("f", b"")]]);
        for name in [".", "/", "./", "//", "./."] {
            for entry in entries {
                let mut entry = entry.clone();
                entry.name = name.into();
                let reason = stack.refused(&[Entry::file("x", b""), entry.clone()]);
                assert_eq!(reason, BadReason::RootNotDirectory, "{entry:?}");
            }
        }
    });
}

#[test]
fn a_default_acl_of_a_directory_does_not_leak_into_what_is_put_there() {
    let Some(scene) = Scene::host() else { return };
    let acl = "system.posix_acl_default";
    if !scene.has_acls {
        skip("POSIX ACLs: the file system of the temporary directory has none");
        return;
    }
    let base = [
        Entry::dir("low").mode(0o750).xattr(acl, DEFAULT_ACL),
        Entry::file("low/f", b"").mode(0o640),
        Entry::hard_link("l", "low/f"),
    ];
    let own = [
        Entry::dir("d").mode(0o750).xattr(acl, DEFAULT_ACL),
        Entry::file("d/f", b"").mode(0o640),
        Entry::dir("d/e").mode(0o755),
        Entry::file("d/e/g", b"").mode(0o604),
        Entry::fifo("d/p").mode(0o622),
        Entry::symlink("d/l", "f"),
        Entry::file("d/implied/f", b"").mode(0o600),
        Entry::file("low/new", b"").mode(0o666),
        Entry::dir("low/dir").mode(0o700),
        Entry::hard_link("low/hard", "low/f"),
        Entry::dir("d").mode(0o750).xattr(acl, DEFAULT_ACL),
        Entry::file("d/late", b"").mode(0o606),
    ];
    for root in [Entry::dir("./"), Entry::dir("./").xattr(acl, DEFAULT_ACL)] {
        let with_root: Vec<Entry> = [root.clone()].into_iter().chain(own.clone()).collect();
        let applied = scene.stack(&[&base]).apply(&with_root);
        for (path, seen) in &applied.shown.0 {
            let path = path.to_str().unwrap();
            let entry = own.iter().find(|entry| entry.name == path.as_bytes());
            let expected = usize::from(
                path == "d" || path == "low" || (path.is_empty() && !root.xattrs.is_empty()),
            );
            assert_eq!(seen.xattrs.len(), expected, "{path}: {seen:?}");
            if let Some(entry) = entry
                && entry.typeflag != b'1'
            {
                assert_eq!(seen.mode, entry.mode, "{path}");
            }
        }
        assert_eq!(
            (applied.at("low/f").mode, applied.at("d/implied").mode),
            (0o640, 0o755)
        );
    }
}
