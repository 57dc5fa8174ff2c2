//! Whiteouts and opaque markers.

use std::path::Path;

use ovl_diff::{BadReason, FileKind, View, ViewDir};
use ovl_layout::XattrNamespace;

use crate::support::{Entry, Shown, at, each};

/// `d` with two files and a directory, all with attributes that are not the usual ones.
fn base() -> Vec<Entry> {
    vec![
        Entry::dir("d").mode(0o711).owner(1, 2).mtime(100, 0),
        Entry::file("d/old", b"old"),
        Entry::file("d/other", b"other"),
        Entry::dir("d/sub").mode(0o700),
        Entry::file("d/sub/deep", b"deep"),
        Entry::file("f", b"f"),
    ]
}

#[test]
fn row_041_a_whiteout_of_nothing_is_refused() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        for name in [".wh.", "./.wh.", "d/.wh."] {
            let reason = stack.refused(&[Entry::marker(name)]);
            assert_eq!(reason, BadReason::BadWhiteout, "{name}");
        }
    });
}

#[test]
fn row_042_a_whiteout_of_dots_is_refused() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        for name in [".wh..", ".wh...", "d/.wh..", "d/.wh..."] {
            assert_eq!(
                stack.refused(&[Entry::marker(name)]),
                BadReason::BadWhiteout,
                "{name}"
            );
        }
        // Three dots are a name.
        let odd = scene
            .stack(&[&[Entry::file("...", b"")]])
            .apply(&[Entry::marker(".wh....")]);
        assert!(odd.names("").is_empty());
    });
}

#[test]
fn row_043_a_marker_is_an_empty_file() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        for name in ["d/.wh..wh..opq", ".wh..wh..opq", "d/.wh.old"] {
            for bad in [
                Entry::dir(name),
                Entry::symlink(name, "x"),
                Entry::fifo(name),
                Entry::char_device(name, 0, 0),
                Entry::char_device(name, 1, 3),
                Entry::file(name, b"1"),
                Entry::file(name, b"payload"),
                Entry::hard_link(name, "f"),
                Entry::hard_link(name, "d/old"),
            ] {
                let reason = stack.refused(&[Entry::file("x", b""), bad.clone()]);
                assert_eq!(reason, BadReason::BadWhiteout, "{bad:?}");
            }
        }
        // AUFS links its markers together.
        let applied = stack.apply(&[
            Entry::marker(".wh..wh.aufs"),
            Entry::hard_link("d/.wh.old", ".wh..wh.aufs"),
            Entry::hard_link("d/sub/.wh..wh..opq", "/d/.wh.old"),
        ]);
        assert_eq!(applied.names("d"), ["other", "sub"]);
        assert!(applied.names("d/sub").is_empty());
    });
}

#[test]
fn row_044_the_misspelt_opaque_marker_is_a_whiteout() {
    each(|scene| {
        let base = base();
        let applied = scene
            .stack(&[&base])
            .apply(&[Entry::marker("d/.wh..wh.opq")]);
        assert_eq!(applied.names("d"), ["old", "other", "sub"]);
        assert_eq!(
            scene.raw(&applied.upper).len(),
            1,
            "there is nothing to hide"
        );
        // A layer of another tool may have the file.
        let upper = scene.stack(&[]).apply(&base).upper;
        scene.write(&scene.open(&upper, "d"), ".wh.opq", b"");
        let applied = scene
            .stack_of(vec![upper])
            .apply(&[Entry::marker("d/.wh..wh.opq")]);
        assert_eq!(applied.names("d"), ["old", "other", "sub"]);
    });
}

#[test]
fn row_045_the_bookkeeping_of_aufs_is_skipped() {
    each(|scene| {
        let applied = scene.stack(&[&base()]).apply(&[
            Entry::marker(".wh..wh.aufs"),
            Entry::dir(".wh..wh.orph/"),
            Entry::dir(".wh..wh.plnk/"),
            Entry::file(".wh..wh.plnk/12.34", b"data of a link"),
            Entry::dir(".wh..wh.plnk/deep/er"),
            Entry::file("d/.wh..wh.foo", b"x"),
            Entry::symlink("d/.wh..wh.bar", "x"),
            Entry::file("real", b"1"),
        ]);
        assert_eq!(applied.names(""), ["d", "f", "real"]);
        let raw = scene.raw(&applied.upper);
        assert_eq!(
            raw.keys().collect::<Vec<_>>(),
            [Path::new(""), Path::new("real")]
        );
        assert_eq!(applied.summary.archive.entries, 8);
        // Links into it lead to what waits there, and to nothing else.
        let linked = scene.stack(&[]).apply(&[
            Entry::dir("./").mtime(77, 0),
            Entry::file(".wh..wh.plnk/1", b"both").owner(3, 4),
            Entry::file(".wh..wh.plnk/2", b"unused"),
            Entry::hard_link("h", ".wh..wh.plnk/1"),
            Entry::hard_link("d/h", "/.wh..wh.plnk/1"),
        ]);
        assert_eq!(linked.names(""), ["d", "h"]);
        assert_eq!(linked.at("h").linked_to, linked.at("d/h").linked_to);
        assert_eq!(
            (linked.at("h").owner(), linked.at("").mtime),
            ((3, 4), at(77, 0))
        );
        assert_eq!(scene.raw(&linked.upper)[Path::new("h")].nlink, 2);
        for parked in [".wh..wh.orph/1", ".wh..wh.plnk/deep/1", "d/.wh..wh.plnk/1"] {
            let link = [Entry::file(parked, b""), Entry::hard_link("h", parked)];
            assert_eq!(scene.stack(&[]).refused(&link), BadReason::DanglingHardLink);
        }
        let link = [
            Entry::file(".wh..wh.plnk/1", b""),
            Entry::hard_link("h", ".wh..wh.plnk/2"),
        ];
        assert_eq!(scene.stack(&[]).refused(&link), BadReason::DanglingHardLink);
    });
}

#[test]
fn row_045_hard_links_to_files_that_aufs_kept_are_one_file() {
    each(|scene| {
        let applied = scene.stack(&[&base()]).apply(&[
            Entry::dir("./").mode(0o2755).owner(1, 2).mtime(3, 4),
            Entry::dir(".wh..wh.plnk/"),
            Entry::file(".wh..wh.plnk/12.34", b"first"),
            Entry::file(".wh..wh.plnk/56.78", b"second")
                .mode(0o750)
                .owner(5, 6)
                .mtime(7, 8),
            Entry::file(".wh..wh.plnk/90.12", b"of no use"),
            Entry::marker(".wh..wh..opq"),
            Entry::hard_link("usr/bin/a", ".wh..wh.plnk/56.78"),
            Entry::hard_link("usr/bin/b", "/.wh..wh.plnk/56.78"),
            Entry::hard_link("c", "./.wh..wh.plnk/12.34"),
            Entry::file("own", b"").owner(1, 0),
        ]);
        assert_eq!(applied.names(""), ["c", "own", "usr"]);
        assert_eq!(applied.names("usr/bin"), ["a", "b"]);
        let (a, b) = (applied.at("usr/bin/a"), applied.at("usr/bin/b"));
        assert_eq!((a, &*a.contents), (b, &b"second"[..]));
        assert_eq!((a.mode, a.owner(), a.mtime), (0o750, (5, 6), at(7, 8)));
        assert_eq!(applied.at("c").contents, b"first");
        assert_eq!(applied.at("own").owner(), (1, 0));
        assert_eq!(
            (applied.at("").mode, applied.at("").mtime),
            (0o2755, at(3, 4))
        );
        let raw = scene.raw(&applied.upper);
        let hidden = |path: &Path| path.to_string_lossy().contains(".wh.");
        assert!(!raw.keys().any(|path| hidden(path)), "{raw:?}");
    });
}

#[test]
fn row_045_no_link_leads_to_a_name_like_a_marker() {
    each(|scene| {
        for text in [".wh.x", ".wh..wh.plnk", "/.wh..wh..opq/x", "d/.wh.old"] {
            for last in [
                Entry::file("l/f", b""),
                Entry::dir("l/f"),
                Entry::marker("l/.wh.f"),
            ] {
                let entries = [Entry::symlink("l", text), last];
                let reason = scene.stack(&[&base()]).refused(&entries);
                assert_eq!(reason, BadReason::BadWhiteout, "{text}");
            }
        }
    });
}

#[test]
fn row_046_a_directory_named_like_a_marker_is_refused() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        for name in [
            ".wh.a/b",
            ".wh.d/old",
            "d/.wh.sub/x",
            ".wh..wh..opq/x",
            ".wh./x",
            ".wh.a/.wh.b",
        ] {
            for entry in [Entry::marker(name), Entry::dir(name)] {
                assert_eq!(stack.refused(&[entry]), BadReason::BadWhiteout, "{name}");
            }
        }
        assert_eq!(
            stack.refused(&[Entry::dir(".wh.a/")]),
            BadReason::BadWhiteout
        );
    });
}

#[test]
fn row_047_a_marker_behind_a_link_works_where_the_link_leads_in_this_layer() {
    each(|scene| {
        let base = [base(), vec![Entry::symlink("low", "d")]].concat();
        let stack = scene.stack(&[&base]);
        for (link, name) in [(Some("/d"), "l"), (Some("./d"), "l"), (None, "low")] {
            let made: Vec<Entry> = link
                .map(|text| Entry::symlink("l", text))
                .into_iter()
                .collect();
            let with = |marker: &str| {
                [
                    made.clone(),
                    vec![Entry::marker(format!("{name}/{marker}"))],
                ]
                .concat()
            };
            let applied = stack.apply(&with(".wh.old"));
            assert_eq!(applied.names("d"), ["other", "sub"]);
            assert_eq!(applied.at(name).kind, FileKind::Symlink);
            let applied = stack.apply(&with(".wh..wh..opq"));
            assert!(applied.names("d").is_empty());
        }
        // The whiteout of the link itself hides the link, not what it leads to.
        let applied = stack.apply(&[Entry::marker(".wh.low")]);
        assert_eq!(applied.names(""), ["d", "f"]);
    });
}

#[test]
fn row_048_a_whiteout_without_its_parent_takes_the_parent_from_below() {
    each(|scene| {
        let applied = scene
            .stack(&[&base()])
            .apply(&[Entry::marker("d/sub/.wh.deep")]);
        assert!(applied.names("d/sub").is_empty());
        let dir = applied.at("d");
        assert_eq!(
            (dir.mode, dir.owner(), dir.mtime),
            (0o711, (1, 2), at(100, 0))
        );
        assert_eq!(applied.at("d/sub").mode, 0o700);
    });
}

#[test]
fn row_049_a_whiteout_of_what_is_nowhere_is_accepted_and_leaves_nothing() {
    each(|scene| {
        for archives in [&[][..], &[&base()[..]][..]] {
            let applied = scene.stack(archives).apply(&[
                Entry::marker(".wh.nothing"),
                Entry::marker("no/.wh.where"),
                Entry::marker("d/no/.wh.where"),
                Entry::marker("no/.wh..wh..opq"),
            ]);
            let raw = scene.raw(&applied.upper);
            assert!(raw.keys().all(|path| !path.starts_with("d")), "{raw:?}");
            assert!(
                raw.values()
                    .all(|object| object.kind == FileKind::Directory),
                "{raw:?}"
            );
            assert!(
                raw.values().all(|object| object.xattrs.is_empty()),
                "{raw:?}"
            );
        }
    });
}

#[test]
fn row_050_an_opaque_root_cuts_everything_below_off() {
    each(|scene| {
        let opaque = Entry::marker(".wh..wh..opq");
        let own = [
            Entry::file("only", b"1"),
            Entry::dir("d").mode(0o700),
            Entry::file("d/mine", b"2"),
            Entry::marker(".wh.f"),
        ];
        for place in 0..=own.len() {
            for name in [".wh..wh..opq", "./.wh..wh..opq", "/.wh..wh..opq"] {
                let mut entries = own.to_vec();
                entries.insert(
                    place,
                    Entry {
                        name: name.into(),
                        ..opaque.clone()
                    },
                );
                let applied = scene.stack(&[&base()]).apply(&entries);
                assert!(applied.summary.root_opaque);
                assert_eq!(applied.names(""), ["d", "only"], "marker at {place}");
                assert_eq!(applied.names("d"), ["mine"]);
                let raw = scene.raw(&applied.upper);
                assert_eq!(
                    raw[Path::new("")].xattrs.len(),
                    0,
                    "the kernel would ignore it"
                );
                assert!(
                    raw.values()
                        .all(|object| object.kind != FileKind::CharDevice)
                );
                assert!(
                    raw.values().all(|object| object.xattrs.is_empty()),
                    "nothing is left to hide"
                );
            }
        }
        // What is hidden is no parent, no link's way and no hard link's target any more.
        let stack = scene.stack(&[&[base(), vec![Entry::symlink("l", "d")]].concat()]);
        let applied = stack.apply(&[
            opaque.clone(),
            Entry::file("d/x", b""),
            Entry::file("l/x", b""),
        ]);
        assert_eq!(
            (applied.at("d").mode, applied.at("l").kind),
            (0o755, FileKind::Directory)
        );
        let link = [opaque, Entry::hard_link("h", "f")];
        assert_eq!(stack.refused(&link), BadReason::DanglingHardLink);
    });
}

#[test]
fn row_051_no_whiteout_stays_inside_an_opaque_directory() {
    each(|scene| {
        let whiteout = Entry::marker("d/.wh.old");
        let inner = Entry::marker("d/sub/.wh.deep");
        let opaque = Entry::marker("d/.wh..wh..opq");
        for entries in [
            [&whiteout, &whiteout, &opaque, &inner],
            [&opaque, &whiteout, &inner, &whiteout],
            [&inner, &opaque, &opaque, &whiteout],
            [&whiteout, &inner, &whiteout, &opaque],
        ] {
            let entries: Vec<Entry> = entries.into_iter().cloned().collect();
            let applied = scene.stack(&[&base()]).apply(&entries);
            assert!(
                applied.names("d").iter().all(|name| name == "sub"),
                "{entries:?}"
            );
            let raw = scene.raw(&applied.upper);
            assert!(
                raw.values()
                    .all(|object| object.kind == FileKind::Directory),
                "{raw:?}"
            );
            assert_eq!(raw[Path::new("d")].xattrs.len(), 1);
        }
        // Two whiteouts of one name are one.
        let applied = scene.stack(&[&base()]).apply(&[whiteout.clone(), whiteout]);
        assert_eq!(applied.names("d"), ["other", "sub"]);
    });
}

#[test]
fn row_052_an_opaque_marker_spares_what_the_same_archive_brings() {
    each(|scene| {
        let own = [
            Entry::dir("d").mode(0o750),
            Entry::file("d/new", b"1"),
            Entry::file("d/old", b"replaced"),
            Entry::dir("d/sub").mode(0o755),
            Entry::file("d/sub/inner", b"2"),
        ];
        for place in 0..=own.len() {
            let mut entries = own.to_vec();
            entries.insert(place, Entry::marker("d/.wh..wh..opq"));
            let applied = scene.stack(&[&base()]).apply(&entries);
            assert_eq!(
                applied.names("d"),
                ["new", "old", "sub"],
                "marker at {place}"
            );
            assert_eq!(applied.at("d/old").contents, b"replaced");
            assert_eq!(applied.names("d/sub"), ["inner"]);
            assert_eq!(applied.at("d").mode, 0o750);
        }
    });
}

#[test]
fn row_053_a_directory_stays_opaque_when_its_own_entry_comes_later() {
    each(|scene| {
        let applied = scene.stack(&[&base()]).apply(&[
            Entry::marker("d/.wh..wh..opq"),
            Entry::file("elsewhere", b""),
            Entry::dir("d").mode(0o750).xattr("user.k", b"v"),
            Entry::dir("d").mode(0o755),
            Entry::file("d/new", b""),
        ]);
        assert_eq!(applied.names("d"), ["new"]);
        assert_eq!(
            (applied.at("d").mode, applied.at("d").xattrs.len()),
            (0o755, 0)
        );
    });
}

#[test]
fn row_054_a_whiteout_after_the_directory_hides_only_what_is_below() {
    each(|scene| {
        for own in [
            vec![Entry::file("d/new", b"1")],
            vec![Entry::dir("d"), Entry::file("d/new", b"1")],
            vec![Entry::file("d/sub/new", b"1"), Entry::file("d/new", b"1")],
        ] {
            let after = [own.clone(), vec![Entry::marker(".wh.d")]].concat();
            let before = [vec![Entry::marker(".wh.d")], own].concat();
            let (after, before) = (
                scene.stack(&[&base()]).apply(&after),
                scene.stack(&[&base()]).apply(&before),
            );
            assert!(!after.names("d").contains(&String::from("old")));
            assert_eq!(after.names("d"), before.names("d"));
            assert_eq!(after.at("d/new").contents, b"1");
            if after.names("d").len() == 2 {
                assert_eq!(after.names("d/sub"), ["new"]);
            }
        }
        // Nothing that is no directory needs hiding twice.
        let entries = [
            Entry::file("f", b"new"),
            Entry::marker(".wh.f"),
            Entry::symlink("d", "f"),
            Entry::marker(".wh.d"),
        ];
        let applied = scene.stack(&[&base()]).apply(&entries);
        assert_eq!(
            (&*applied.at("f").contents, &*applied.at("d").contents),
            (&b"new"[..], &b"f"[..])
        );
    });
}

#[test]
fn row_055_a_directory_after_its_whiteout_is_opaque() {
    each(|scene| {
        for own in [
            vec![Entry::dir("d").mode(0o700), Entry::file("d/new", b"")],
            vec![Entry::file("d/new", b"")],
            vec![
                Entry::marker("x/.wh.y"),
                Entry::file("d/new", b""),
                Entry::dir("d"),
            ],
        ] {
            let entries = [vec![Entry::marker(".wh.d")], own].concat();
            let applied = scene.stack(&[&base()]).apply(&entries);
            assert_eq!(applied.names("d"), ["new"], "{entries:?}");
            assert!(
                scene
                    .raw(&applied.upper)
                    .values()
                    .all(|object| object.kind != FileKind::CharDevice)
            );
        }
        // Over a file there is nothing to hide.
        let applied = scene
            .stack(&[&base()])
            .apply(&[Entry::marker(".wh.f"), Entry::dir("f")]);
        assert!(applied.at("f").is_dir());
        assert_eq!(scene.raw(&applied.upper)[Path::new("f")].xattrs.len(), 0);
    });
}

#[test]
fn row_056_a_file_after_its_whiteout_is_a_file() {
    each(|scene| {
        for own in [
            Entry::file("f", b"new"),
            Entry::symlink("f", "new"),
            Entry::hard_link("f", "d/old"),
        ] {
            let applied = scene
                .stack(&[&base()])
                .apply(&[Entry::marker(".wh.f"), own.clone()]);
            assert!(
                ["new", "old"]
                    .map(str::as_bytes)
                    .contains(&&*applied.at("f").contents),
                "{own:?}"
            );
        }
    });
}

#[test]
fn row_057_a_directory_in_place_of_a_file_of_the_same_archive_is_opaque() {
    each(|scene| {
        for first in [
            Entry::file("d", b""),
            Entry::symlink("d", "x"),
            Entry::fifo("d"),
        ] {
            let applied = scene.stack(&[&base()]).apply(&[
                Entry::file("d/gone", b""),
                first,
                Entry::dir("d"),
                Entry::file("d/new", b""),
            ]);
            assert_eq!(applied.names("d"), ["new"]);
        }
    });
}

#[test]
fn row_058_a_whiteout_device_as_an_entry_is_refused() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        for name in ["f", "new", "d/old"] {
            let reason = stack.refused(&[Entry::char_device(name, 0, 0)]);
            assert_eq!(reason, BadReason::WhiteoutDevice);
        }
        let applied = stack.apply(&[
            Entry::block_device("b", 0, 0),
            Entry::char_device("c", 0, 1),
        ]);
        assert_eq!(applied.names(""), ["b", "c", "d", "f"]);
    });
}

#[test]
fn row_060_both_forms_of_whiteout_hide() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let upper = scene.layer();
        let dir = scene.make_dir(&upper, "d");
        let node = ovl_diff::Node::Dir(&dir);
        scene
            .tree()
            .set_xattr(node, scene.xattrs.opaque().as_ref(), b"x")
            .unwrap();
        scene.write(&dir, "old", b"");
        scene.write(&dir, "empty", b"");
        let old = ovl_diff::Node::Entry(&dir, "old".as_ref());
        scene
            .tree()
            .set_xattr(old, scene.xattrs.whiteout().as_ref(), b"")
            .unwrap();
        scene.whiteout(&dir, "other");
        assert_eq!(
            scene.shown(&[&upper, &stack.lowers[0]]).names("d"),
            ["empty", "sub"]
        );
        // Also for what is applied above.
        let stack = scene.stack_of(vec![upper, stack.lowers[0].clone()]);
        for name in ["old", "other"] {
            let reason = stack.refused(&[Entry::hard_link("h", format!("d/{name}"))]);
            assert_eq!(reason, BadReason::DanglingHardLink);
            let applied = stack.apply(&[Entry::marker(format!("d/.wh.{name}"))]);
            assert_eq!(scene.raw(&applied.upper).len(), 1, "it is hidden already");
        }
    });
}

#[test]
fn row_061_marks_of_the_other_namespace_mean_nothing() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let upper = scene.layer();
        let dir = scene.make_dir(&upper, "d");
        scene.set_opaque(&dir);
        let parts = ViewDir::new(vec![upper, stack.lowers[0].clone()]);
        let names = |xattrs| Shown::of(View::new(scene.tree(), xattrs), &parts).names("d");
        assert!(names(XattrNamespace::Trusted).is_empty());
        assert_eq!(names(XattrNamespace::User), ["old", "other", "sub"]);
    });
}

#[test]
fn row_061_a_store_without_privileges_marks_in_its_own_namespace() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let options = ovl_diff::ApplyOptions::new(XattrNamespace::User);
        let entries = [Entry::marker("d/.wh..wh..opq"), Entry::file("d/new", b"")];
        let applied = stack
            .try_apply(&crate::support::archive(&entries), &options)
            .unwrap();
        assert_eq!(applied.names("d"), ["new"]);
        let raw = scene.raw(&applied.upper);
        let names: Vec<_> = raw[Path::new("d")].xattrs.keys().collect();
        assert_eq!(names, ["user.overlay.opaque"]);
    });
}

#[test]
fn row_063_a_whiteout_inside_what_a_whiteout_hides_is_skipped() {
    each(|scene| {
        let inner = Entry::marker("d/sub/.wh.deep");
        let outer = Entry::marker(".wh.d");
        for entries in [[outer.clone(), inner.clone()], [inner, outer]] {
            let applied = scene.stack(&[&base()]).apply(&entries);
            // The other way round `d` was made for the first, so it stays, empty.
            assert!(
                applied
                    .shown
                    .0
                    .keys()
                    .all(|path| !path.starts_with("d/old")),
                "{entries:?}"
            );
            let left = applied.shown.0.keys().filter(|path| path.starts_with("d"));
            assert!(left.into_iter().all(|path| applied.shown.0[path].is_dir()));
        }
    });
}

#[test]
fn markers_may_come_anywhere_in_an_archive() {
    each(|scene| {
        let markers =
            [".wh.f", "d/.wh.old", "e/.wh..wh..opq", "d/sub/.wh..wh..opq"].map(Entry::marker);
        let own = [
            Entry::dir("d").mode(0o701),
            Entry::file("d/old", b"again"),
            Entry::dir("d/sub").mode(0o702),
            Entry::dir("e").mode(0o703),
            Entry::file("e/x", b"1"),
            Entry::file("f", b"2"),
        ];
        let base = [base(), vec![Entry::file("e/y", b"")]].concat();
        let stack = scene.stack(&[&base]);
        let expected = stack.apply(&[&markers[..], &own[..]].concat()).shown;
        assert_eq!(expected.names("e"), ["x"]);
        for rotate in 0..own.len() {
            let mut entries: Vec<Entry> = own.to_vec();
            for (n, marker) in markers.iter().enumerate() {
                entries.insert((rotate * 3 + n * 5) % (entries.len() + 1), marker.clone());
            }
            let shown = stack.apply(&entries).shown;
            assert_eq!(
                shown
                    .without_dir_times()
                    .difference(&expected.clone().without_dir_times()),
                None
            );
        }
    });
}
