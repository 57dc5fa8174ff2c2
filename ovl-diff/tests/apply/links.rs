//! Symbolic and hard links.

use std::path::Path;

use ovl_diff::{BadReason, FileKind};

use crate::support::{CAPABILITY, Entry, Scene, Seen, at, each, make_socket};

#[test]
fn row_022_nothing_is_written_through_a_link_that_leads_out() {
    each(|scene| {
        let inner = |name: &str| {
            [
                Entry::file(format!("{name}/file"), b"bad"),
                Entry::dir(format!("{name}/dir")),
                Entry::file(format!("{name}/deep/er/file"), b"bad"),
                Entry::marker(format!("{name}/.wh.hello")),
                Entry::marker(format!("{name}/.wh..wh..opq")),
                Entry::symlink(format!("{name}/link"), "x"),
                Entry::hard_link(format!("{name}/link"), "good"),
                Entry::hard_link("link", format!("{name}/hello")),
            ]
        };
        let link = Entry::symlink("d/l", "../../victim");
        for entry in inner("d/l") {
            let entries = [Entry::file("good", b""), link.clone(), entry.clone()];
            assert_eq!(
                scene.stack(&[]).refused(&entries),
                BadReason::LinkEscape,
                "{entry:?}"
            );
            // The same with the link in a layer below.
            let stack = scene.stack(&[&[link.clone(), Entry::file("good", b"")]]);
            assert_eq!(stack.refused(&[entry]), BadReason::LinkEscape);
        }
        // The number of layers' directories up does not matter, nor does a way back in.
        for target in ["../../../../../../..", "../../layer-0", "x/../../../victim"] {
            let entries = [
                Entry::symlink("d/l", target),
                Entry::file("d/l/file", b"bad"),
            ];
            assert_eq!(
                scene.stack(&[]).refused(&entries),
                BadReason::LinkEscape,
                "{target}"
            );
        }
        // An absolute one leads to the layer's own root.
        let entries = [
            Entry::symlink("l", "/victim"),
            Entry::file("l/file", b"good"),
        ];
        assert_eq!(
            scene.stack(&[]).apply(&entries).at("victim/file").contents,
            b"good"
        );
    });
}

#[test]
fn row_023_a_file_replaces_a_link_and_is_not_written_through_it() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::file("target", b"kept"),
            Entry::symlink("soft", "target"),
            Entry::hard_link("hard", "target"),
            Entry::symlink("out", "../victim/hello"),
            Entry::file("soft", b"1"),
            Entry::file("hard", b"2"),
            Entry::file("out", b"3"),
        ]);
        assert_eq!(applied.at("target").contents, b"kept");
        for (name, contents) in [("soft", b"1"), ("hard", b"2"), ("out", b"3")] {
            assert_eq!(
                (applied.at(name).kind, &*applied.at(name).contents),
                (FileKind::Regular, &contents[..])
            );
        }
    });
}

#[test]
fn row_024_a_directory_replaces_a_link_to_one() {
    each(|scene| {
        let below = [
            Entry::dir("real"),
            Entry::file("real/x", b""),
            Entry::symlink("low", "real"),
        ];
        let applied = scene.stack(&[&below]).apply(&[
            Entry::symlink("d", "../victim"),
            Entry::dir("d").mode(0).owner(5, 6),
            Entry::dir("low").mode(0o700),
            Entry::file("low/y", b""),
        ]);
        let dir = applied.at("d");
        assert_eq!(
            (dir.kind, dir.mode, dir.owner()),
            (FileKind::Directory, 0, (5, 6))
        );
        assert_eq!(applied.names("low"), ["y"]);
        assert_eq!(applied.names("real"), ["x"]);
        assert_eq!(applied.at("real").mode, 0o755);
    });
}

#[test]
fn row_025_the_attributes_of_a_link_are_its_own() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::file("target", b"").mode(0o600).mtime(5, 0),
            Entry::symlink("link", "target")
                .owner(3, 4)
                .mtime(6, 7)
                .mode(0o4777),
            Entry::symlink("out", "../victim").owner(3, 4).mode(0),
        ]);
        let target = applied.at("target");
        assert_eq!(
            (target.mode, target.owner(), target.mtime),
            (0o600, (0, 0), at(5, 0))
        );
        let link = applied.at("link");
        assert_eq!(
            (link.owner(), link.mtime, &*link.contents),
            ((3, 4), at(6, 7), &b"target"[..])
        );
    });
}

#[test]
fn row_026_links_that_lead_to_each_other_are_refused() {
    each(|scene| {
        let circle = [
            Entry::symlink("a", "b"),
            Entry::symlink("b", "/c/x"),
            Entry::symlink("c", "a"),
        ];
        for last in [
            Entry::file("a/f", b""),
            Entry::hard_link("h", "b/f"),
            Entry::marker("c/.wh.f"),
        ] {
            let entries = [&circle[..], &[last]].concat();
            assert_eq!(scene.stack(&[]).refused(&entries), BadReason::TooManyLinks);
        }
        // As many as the kernel takes, and one more.
        let chain = |len: usize| -> Vec<Entry> {
            let links = (0..len).map(|n| Entry::symlink(format!("l{n}"), format!("l{}", n + 1)));
            links.chain([Entry::file("l0/f", b"")]).collect()
        };
        let applied = scene.stack(&[]).apply(&chain(40));
        assert!(applied.names("l40").contains(&String::from("f")));
        assert_eq!(
            scene.stack(&[]).refused(&chain(41)),
            BadReason::TooManyLinks
        );
        // Links that grow on the way.
        let text = vec!["l"; scene.longest_link() / 2].join("/");
        let grows = [Entry::symlink("l", text), Entry::file("l/f", b"")];
        let reason = scene.stack(&[]).refused(&grows);
        assert!(
            matches!(reason, BadReason::TooManyLinks | BadReason::PathTooDeep),
            "{reason:?}"
        );
    });
}

#[test]
fn row_027_an_absolute_link_on_the_way_leads_to_the_root_of_the_layer() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::dir("var"),
            Entry::symlink("var/run", "/run"),
            Entry::file("var/run/pid", b"1"),
            Entry::symlink("var/lock", "//run//./lock/"),
            Entry::dir("var/lock/x"),
        ]);
        assert_eq!(applied.names("run"), ["lock", "pid"]);
        assert_eq!(applied.names("run/lock"), ["x"]);
        assert_eq!(applied.at("run").mode, 0o755);
        assert_eq!(applied.at("var/run").contents, b"/run");
    });
}

#[test]
fn row_028_the_text_of_a_link_is_kept_as_it_is_or_refused() {
    each(|scene| {
        let longest = "x/".repeat(scene.longest_link() / 2) + "y";
        let texts = [
            "..",
            "../../../../etc/passwd",
            "a\nb",
            "\u{1b}[0m",
            " ",
            "/",
            &longest,
        ];
        for text in texts {
            let applied = scene.stack(&[]).apply(&[Entry::symlink("l", text)]);
            assert_eq!(applied.at("l").contents, text.as_bytes());
        }
        if longest.len() < 4095 {
            let reason = scene
                .stack(&[])
                .refused(&[Entry::symlink("l", longest + "z")]);
            let expected = matches!(reason, BadReason::LinkTargetTooLong { len: 1024, .. });
            assert!(expected, "{reason:?}");
        }
        let longer = Entry::symlink("l", "x".repeat(4096));
        assert_eq!(
            scene.stack(&[]).refused(&[longer]),
            BadReason::BadLinkTarget
        );
        let reason = scene.stack(&[]).refused(&[Entry::symlink("l", "")]);
        assert!(matches!(reason, BadReason::EmptyName { .. }), "{reason:?}");
    });
}

#[test]
fn row_029_a_hard_link_out_of_the_layer_is_refused() {
    each(|scene| {
        for target in [
            "../victim/hello",
            "/../victim/hello",
            "d/../../victim/hello",
            "d/../f",
            "..",
        ] {
            let entries = [
                Entry::dir("d"),
                Entry::file("f", b""),
                Entry::hard_link("h", target),
            ];
            assert_eq!(
                scene.stack(&[]).refused(&entries),
                BadReason::LinkEscape,
                "{target}"
            );
        }
    });
}

#[test]
fn row_030_an_absolute_hard_link_means_the_root_of_the_layer() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::file("usr/bin/perl", b"1"),
            Entry::hard_link("usr/bin/perl5", "/usr/bin/perl"),
            Entry::hard_link("a", "./usr//bin/perl5"),
        ]);
        assert_eq!(applied.at("usr/bin/perl5").linked_to, Path::new("a"));
        assert_eq!(applied.at("usr/bin/perl").linked_to, Path::new("a"));
    });
}

#[test]
fn row_031_the_way_to_a_hard_links_target_stays_in_the_layer() {
    each(|scene| {
        // The prefix of a path as text would say that this is inside.
        let sibling = scene.make_dir(&scene.dir, "layer-0-evil");
        scene.write(&sibling, "f", b"bad");
        let out = [
            Entry::symlink("l", "../layer-0-evil"),
            Entry::hard_link("h", "l/f"),
        ];
        assert_eq!(scene.stack(&[]).refused(&out), BadReason::LinkEscape);
        let applied = scene.stack(&[]).apply(&[
            Entry::file("real/f", b"good"),
            Entry::symlink("l", "/real"),
            Entry::hard_link("h", "l/f"),
        ]);
        assert_eq!(applied.at("real/f").linked_to, Path::new("h"));
    });
}

#[test]
fn row_032_a_hard_link_to_a_symbolic_link_links_that() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::file("target", b"").mode(0o600).mtime(1, 0),
            Entry::symlink("soft", "target").mtime(2, 0).owner(3, 4),
            Entry::hard_link("hard", "soft")
                .mode(0o777)
                .owner(9, 9)
                .mtime(9, 0),
            Entry::symlink("out", "../victim/hello"),
            Entry::hard_link("hard-out", "out").mode(0),
        ]);
        let hard = applied.at("hard");
        assert_eq!(
            (hard.kind, &*hard.contents),
            (FileKind::Symlink, &b"target"[..])
        );
        assert_eq!(applied.at("soft").linked_to, Path::new("hard"));
        assert_eq!((hard.owner(), hard.mtime), ((3, 4), at(2, 0)));
        assert_eq!(
            (applied.at("target").mode, applied.at("target").mtime),
            (0o600, at(1, 0))
        );
        assert_eq!(applied.at("hard-out").kind, FileKind::Symlink);
    });
}

#[test]
fn row_033_a_hard_link_to_a_directory_is_refused() {
    each(|scene| {
        let stack = scene.stack(&[&[Entry::dir("below")]]);
        for target in ["d", "d/", "below", "/", ".", "implied"] {
            let entries = [
                Entry::dir("d"),
                Entry::file("implied/f", b""),
                Entry::hard_link("h", target),
            ];
            assert_eq!(stack.refused(&entries), BadReason::BadHardLink, "{target}");
        }
    });
}

#[test]
fn row_034_a_hard_link_to_itself_or_to_nothing_is_refused() {
    each(|scene| {
        let stack = scene.stack(&[&[Entry::file("low", b""), Entry::dir("dir")]]);
        for (name, target) in [
            ("f", "f"),
            ("f", "./f"),
            ("dir/f", "/dir/f"),
            ("h", "later"),
            ("h", "missing/f"),
            ("low", "low"),
            ("h", ".wh.low"),
        ] {
            let entries = [
                Entry::file("f", b""),
                Entry::file("dir/f", b""),
                Entry::hard_link(name, target),
            ];
            assert_eq!(
                stack.refused(&entries),
                BadReason::DanglingHardLink,
                "{name} {target}"
            );
        }
        let hidden = [Entry::marker(".wh.dir"), Entry::hard_link("h", "dir/f")];
        assert_eq!(stack.refused(&hidden), BadReason::DanglingHardLink);
    });
}

#[test]
fn row_034_a_hard_link_that_takes_the_place_of_its_targets_directory_is_refused() {
    each(|scene| {
        let entries = [Entry::file("d/f", b"1"), Entry::hard_link("d", "d/f")];
        assert_eq!(
            scene.stack(&[]).refused(&entries),
            BadReason::DanglingHardLink
        );
        let entries = [Entry::file("d/e/f", b"1"), Entry::hard_link("d", "d/e/f")];
        assert_eq!(
            scene.stack(&[]).refused(&entries),
            BadReason::DanglingHardLink
        );
        // The same when the directory is only below.
        let stack = scene.stack(&[&[Entry::file("d/f", b"1")]]);
        let reason = stack.refused(&[Entry::hard_link("d", "d/f")]);
        assert_eq!(reason, BadReason::DanglingHardLink);
    });
}

#[test]
fn row_035_a_hard_link_to_a_lower_layers_file_copies_it_up() {
    each(|scene| {
        let base = [
            Entry::dir("d").mode(0o750).owner(1, 2).mtime(10, 0),
            Entry::file("d/f", b"contents")
                .mode(0o4755)
                .owner(3, 4)
                .mtime(20, 30)
                .xattr("user.k", b"v")
                .xattr("security.capability", CAPABILITY)
                .xattr("trusted.overlay.x", b"escaped"),
            Entry::hard_link("d/other", "d/f"),
            Entry::symlink("d/soft", "f").mtime(40, 0),
            Entry::char_device("d/dev", 1, 3).mode(0o666),
            Entry::fifo("d/fifo"),
        ];
        let stack = scene.stack(&[&base, &[Entry::file("x", b"")]]);
        for (from, to) in [
            ("d/f", "d/link"),
            ("d/f", "new/deep/link"),
            ("d/soft", "l"),
            ("d/dev", "l"),
            ("d/fifo", "l"),
        ] {
            let below = stack.apply(&[]);
            let applied = stack.apply(&[Entry::hard_link(to, from)]);
            let (was, is, link) = (below.at(from), applied.at(from), applied.at(to));
            assert_eq!(is.linked_to, link.linked_to, "{from}");
            let expected = Seen {
                linked_to: is.linked_to.clone(),
                ..was.clone()
            };
            assert_eq!((is, link), (&expected, &expected));
            let dir = applied.at("d");
            assert_eq!(
                (dir.mode, dir.owner(), dir.mtime),
                (0o750, (1, 2), at(10, 0))
            );
            // As when the kernel copies up: other names of the lower file stay apart.
            assert_ne!(applied.at("d/other").linked_to, is.linked_to);
        }
        // Twice the same file is one copy.
        let applied = stack.apply(&[
            Entry::hard_link("a", "d/f"),
            Entry::hard_link("b", "d/f"),
            Entry::hard_link("c", "a"),
        ]);
        for name in ["a", "b", "c", "d/f"] {
            assert_eq!(applied.at(name).linked_to, Path::new("a"), "{name}");
        }
    });
}

#[test]
fn row_035_a_socket_below_cannot_be_copied_up() {
    let Some(scene) = Scene::host() else { return };
    let stack = scene.stack(&[&[Entry::dir("run")]]);
    let run = scene.open(&stack.lowers[0], "run");
    make_socket(&run, "s");
    let reason = stack.refused(&[Entry::hard_link("l", "run/s")]);
    assert_eq!(reason, BadReason::BadHardLink);
}

#[test]
fn row_036_a_hard_link_carries_no_contents_and_gives_no_rights() {
    each(|scene| {
        let mut link = Entry::hard_link("link", "tool");
        link.content = b"hidden".to_vec();
        let entries = [Entry::file("tool", b"1").mode(0o4755), link];
        let reason = scene.stack(&[]).refused(&entries);
        assert!(
            matches!(reason, BadReason::PayloadOnSpecial { .. }),
            "{reason:?}"
        );
    });
}

#[test]
fn row_037_the_attributes_of_a_hard_links_own_header_do_not_count() {
    each(|scene| {
        let stack = scene.stack(&[&[Entry::file("low", b"").mode(0o600).owner(1, 2).mtime(3, 0)]]);
        let applied = stack.apply(&[
            Entry::file("f", b"")
                .mode(0o600)
                .owner(1, 2)
                .mtime(3, 0)
                .xattr("user.a", b"1"),
            Entry::hard_link("h", "f")
                .mode(0o6777)
                .owner(8, 9)
                .mtime(10, 0)
                .xattr("user.b", b"2"),
            Entry::hard_link("l", "low")
                .mode(0o6777)
                .owner(8, 9)
                .mtime(10, 0)
                .xattr("user.b", b"2"),
        ]);
        for name in ["f", "h", "low", "l"] {
            let seen = applied.at(name);
            assert_eq!(
                (seen.mode, seen.owner(), seen.mtime),
                (0o600, (1, 2), at(3, 0)),
                "{name}"
            );
            assert_eq!(seen.xattr("user.b"), None, "{name}");
        }
    });
}

#[test]
fn row_038_a_hard_link_to_a_whiteout_is_refused() {
    each(|scene| {
        let stack = scene.stack(&[&[
            Entry::file("f", b""),
            Entry::dir("d"),
            Entry::file("d/f", b""),
        ]]);
        for target in ["f", ".wh.f"] {
            let entries = [Entry::marker(".wh.f"), Entry::hard_link("h", target)];
            let reason = stack.refused(&entries);
            assert!(
                matches!(reason, BadReason::BadHardLink | BadReason::DanglingHardLink),
                "{reason:?}"
            );
        }
        let entries = [
            Entry::marker("d/.wh..wh..opq"),
            Entry::hard_link("h", "d/.wh..wh..opq"),
        ];
        let reason = stack.refused(&entries);
        assert_eq!(reason, BadReason::DanglingHardLink);
        let opaque = [
            Entry::marker("d/.wh..wh..opq"),
            Entry::hard_link("h", "d/f"),
        ];
        assert_eq!(stack.refused(&opaque), BadReason::DanglingHardLink);
        // One that a layer below holds hides its name too.
        let lower = stack.apply(&[Entry::marker(".wh.f")]).upper;
        let mut lowers = vec![lower];
        lowers.extend_from_slice(&stack.lowers);
        let reason = scene
            .stack_of(lowers)
            .refused(&[Entry::hard_link("h", "f")]);
        assert_eq!(reason, BadReason::DanglingHardLink);
    });
}

#[test]
fn a_hard_link_to_what_has_the_name_already_changes_nothing() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::file("f", b"1"),
            Entry::hard_link("h", "f"),
            Entry::hard_link("h", "f"),
            Entry::symlink("l", "."),
            Entry::hard_link("l/f", "h"),
        ]);
        assert_eq!(applied.names(""), ["f", "h", "l"]);
        assert_eq!(applied.at("h").contents, b"1");
    });
}
