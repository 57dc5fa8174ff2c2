//! What a layer changes and takes.

use std::ffi::OsStr;

use ovl_diff::{
    ChangeKind, DirHandle, Node, ViewDir, changes, compare, copy_root_attributes, size,
    size_of_changes,
};

use crate::support::{Entry, Scene, Stack, at, each};

fn base() -> Vec<Entry> {
    vec![
        Entry::dir("a").mtime(9, 0),
        Entry::dir("a/b"),
        Entry::file("a/b/c", b"ccc"),
        Entry::file("a/d", b"d"),
        Entry::dir("a-"),
        Entry::symlink("l", "a"),
        Entry::file("x", b"xx"),
    ]
}

/// Both ways to list; they must agree.
#[track_caller]
fn listed(stack: &Stack<'_>, upper: &DirHandle) -> Vec<String> {
    let view = stack.scene.view();
    let native = changes(view, upper, &stack.lowers, false).unwrap();
    let mut parts = vec![upper.clone()];
    parts.extend_from_slice(&stack.lowers);
    let base = ViewDir::new(stack.lowers.clone());
    assert_eq!(native, compare(view, &ViewDir::new(parts), &base).unwrap());
    native.iter().map(ToString::to_string).collect()
}

#[test]
fn changes_are_listed_with_their_parents_in_order() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let cases: [(&[Entry], &[&str]); 9] = [
            (&[], &[]),
            (
                &[Entry::file("a/b/new", b"")],
                &["C /a", "C /a/b", "A /a/b/new"],
            ),
            (&[Entry::marker("a/.wh.b")], &["C /a", "D /a/b"]),
            (&[Entry::marker(".wh.a")], &["D /a"]),
            (&[Entry::dir("a").mode(0o700)], &["C /a"]),
            // Only its time.
            (&[Entry::dir("a").mtime(10, 0)], &[]),
            (
                &[
                    Entry::file("a", b""),
                    Entry::file("a-/y", b""),
                    Entry::dir("x"),
                ],
                &["C /a", "C /a-", "A /a-/y", "C /x"],
            ),
            (
                &[
                    Entry::marker("a/.wh..wh..opq"),
                    Entry::dir("a/b"),
                    Entry::file("a/e", b""),
                ],
                &["C /a", "C /a/b", "D /a/b/c", "D /a/d", "A /a/e"],
            ),
            (
                &[
                    Entry::dir("n"),
                    Entry::dir("n/m"),
                    Entry::file("n\n\u{1b}", b""),
                ],
                &["A /n", "A /n/m", "A /n\\n\\u{1b}"],
            ),
        ];
        for (entries, expected) in cases {
            let upper = stack.apply(entries).upper;
            assert_eq!(listed(&stack, &upper), expected, "{entries:?}");
        }
    });
}

#[test]
fn what_was_copied_up_and_is_the_same_is_not_listed() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let upper = stack.apply(&base()).upper;
        assert_eq!(listed(&stack, &upper), [""; 0]);
        // The same size and time is not the same contents.
        let upper = stack
            .apply(&[
                Entry::file("a/b/c", b"CCC"),
                Entry::symlink("l", "b"),
                Entry::file("x", b"xx").xattr("user.k", b"v"),
            ])
            .upper;
        let expected = ["C /a", "C /a/b", "C /a/b/c", "C /l", "C /x"];
        assert_eq!(listed(&stack, &upper), expected);
        for other in [
            Entry::file("x", b"xx").mtime(1_000_000_000, 1),
            Entry::file("x", b"xx").mode(0o600),
            Entry::file("x", b"xx").owner(1, 0),
            Entry::file("x", b"xx").owner(0, 1),
            Entry::file("x", b"xxx"),
        ] {
            assert_eq!(listed(&stack, &stack.apply(&[other]).upper), ["C /x"]);
        }
    });
}

#[test]
fn an_opaque_root_deletes_what_it_has_not() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let upper = scene
            .stack(&[])
            .apply(&[Entry::dir("a").mtime(9, 0), Entry::file("x", b"new")])
            .upper;
        let found = changes(scene.view(), &upper, &stack.lowers, true).unwrap();
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["C /a", "D /a/b", "D /a/d", "D /a-", "D /l", "C /x"]);
        let view = scene.view();
        let tree = ViewDir::new(vec![upper]);
        let base = ViewDir::new(stack.lowers);
        let naive: Vec<_> = compare(view, &tree, &base)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(naive, found);
    });
}

#[test]
fn a_link_of_the_container_is_not_followed() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let upper = scene.layer();
        copy_root_attributes(scene.view(), &stack.lowers[0], &upper).unwrap();
        for (name, target) in [("a", "../victim"), ("x", "../victim/hello"), ("out", "/")] {
            scene
                .tree()
                .create_symlink(&upper, OsStr::new(name), OsStr::new(target))
                .unwrap();
        }
        assert_eq!(listed(&stack, &upper), ["C /a", "A /out", "C /x"]);
        let found = size(scene.view(), &upper).unwrap();
        assert_eq!(found.apparent, 9 + 15 + 1);
    });
}

#[test]
fn a_change_says_what_it_is() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let upper = stack.apply(&[Entry::marker(".wh.x")]).upper;
        let found = changes(scene.view(), &upper, &stack.lowers, false).unwrap();
        assert_eq!(found[0].kind(), ChangeKind::Deleted);
        assert_eq!(found[0].path().to_str(), Some("x"));
        assert_eq!(found[0].kind().symbol(), 'D');
    });
}

#[test]
fn sizes_count_each_inode_once_and_directories_not() {
    each(|scene| {
        let upper = scene
            .stack(&[])
            .apply(&[
                Entry::file("five", b"12345"),
                Entry::hard_link("d/again", "five"),
                Entry::symlink("d/link", "four"),
                Entry::file("empty", b""),
                Entry::fifo("p"),
                Entry::char_device("c", 1, 3),
            ])
            .upper;
        let found = size(scene.view(), &upper).unwrap();
        assert_eq!((found.apparent, found.inodes), (5 + 4, 6));
        let all = ViewDir::new(vec![upper]);
        let other = size_of_changes(scene.view(), &all, &ViewDir::default()).unwrap();
        assert_eq!(
            (other.apparent, other.inodes),
            (found.apparent, found.inodes)
        );
        assert_eq!(size(scene.view(), &scene.layer()).unwrap().apparent, 0);
    });
}

#[test]
fn the_size_of_changes_counts_what_is_added_or_modified() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let upper = stack
            .apply(&[
                Entry::file("a/b/c", b"cccc"),
                Entry::file("new", b"12"),
                Entry::hard_link("other", "new"),
                Entry::marker(".wh.x"),
                Entry::file("a/d", b"d"),
            ])
            .upper;
        let view = scene.view();
        let tree = ViewDir::new(vec![upper, stack.lowers[0].clone()]);
        let found = size_of_changes(view, &tree, &ViewDir::new(stack.lowers)).unwrap();
        // `a`, `a/b`, `a/b/c` and one new file.
        assert_eq!((found.apparent, found.inodes), (4 + 2, 4));
    });
}

#[test]
fn a_whiteout_takes_nothing_and_holes_are_allocated_not() {
    each(|scene| {
        let upper = scene.layer();
        scene.whiteout(&upper, "w");
        let file = scene
            .tree()
            .create_file(&upper, OsStr::new("f"), 0o600)
            .unwrap();
        scene.tree().set_len(&file, 1 << 30).unwrap();
        let found = size(scene.view(), &upper).unwrap();
        assert_eq!((found.apparent, found.inodes), (1 << 30, 2));
        assert!(found.allocated < 1 << 20, "{found:?}");
    });
}

#[test]
fn listing_changes_changes_nothing() {
    each(|scene| {
        let stack = scene.stack(&[&base()]);
        let upper = stack.apply(&base()).upper;
        let before = (scene.raw(&upper), scene.raw(&stack.lowers[0]));
        listed(&stack, &upper);
        let dir = scene.open(&upper, "a");
        assert_eq!(
            scene.tree().metadata(Node::Dir(&dir)).unwrap().mtime,
            at(9, 0)
        );
        assert!(before == (scene.raw(&upper), scene.raw(&stack.lowers[0])));
    });
}

#[test]
fn relinked_names_are_in_a_comparisons_archive() {
    each(|scene| {
        let relinks: [fn(&Scene, &DirHandle); 3] = [
            // `b` becomes a hard link of `a`, which is nothing new by itself.
            |scene, tree| {
                scene.tree().unlink(tree, OsStr::new("b")).unwrap();
                link(scene, tree, "a", "b");
            },
            // A new name of an old file.
            |scene, tree| link(scene, tree, "a", "new"),
            // Hard links come apart.
            |scene, tree| {
                scene.tree().unlink(tree, OsStr::new("d")).unwrap();
                scene.write(tree, "d", b"1");
                let node = Node::Entry(tree, OsStr::new("d"));
                scene.tree().set_mtime(node, at(1_000_000_000, 0)).unwrap();
            },
        ];
        for relink in relinks {
            let one = [
                Entry::dir("./"),
                Entry::file("a", b"1"),
                Entry::file("b", b"1"),
                Entry::file("c", b"1"),
                Entry::hard_link("d", "c"),
            ];
            let stack = scene.stack(&[&one]);
            let tree = scene.stack(&[]).apply(&one).upper;
            relink(scene, &tree);
            let shown = scene.shown(&[&tree]);
            let base = ViewDir::new(stack.lowers.clone());
            let mut bytes = Vec::new();
            ovl_diff::diff_trees(scene.view(), &ViewDir::new(vec![tree]), &base, &mut bytes)
                .unwrap();
            let applied = stack.apply_bytes(&bytes).shown;
            let difference = shown
                .without_dir_times()
                .difference(&applied.without_dir_times());
            assert_eq!(difference, None);
        }
    });
}

fn link(scene: &Scene, tree: &DirHandle, from: &str, to: &str) {
    scene
        .tree()
        .hard_link(tree, OsStr::new(from), tree, OsStr::new(to))
        .unwrap();
}
