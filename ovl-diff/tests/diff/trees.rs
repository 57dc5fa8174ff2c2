//! Copies, folds and removals.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use ovl_diff::{
    FileKind, Node, TreeError, copy_layer, copy_root_attributes, fold_layer, remove_tree,
};
use ovl_testkit::differences;

use super::set_xattr;
use crate::support::{DEFAULT_ACL, Entry, Scene, at, each, make_socket};

#[test]
fn a_copied_layer_keeps_what_the_kernel_needs_and_of_where_it_came_from_no_more() {
    each(|scene| {
        let from = scene.layer();
        let dir = scene.make_dir(&from, "d");
        scene.set_opaque(&dir);
        scene.whiteout(&from, "w");
        scene.write(&from, "f", b"data");
        scene.write(&from, "whole", b"data");
        scene.write(&from, "xw", b"");
        for (name, attribute, value) in [
            ("xw", "whiteout", &b""[..]),
            ("f", "metacopy", b""),
            ("f", "redirect", b"/g"),
            ("d", "redirect", b"e"),
            ("d", "origin", b"handle"),
            ("f", "origin", b"handle"),
            ("whole", "origin", b"handle"),
            ("d", "impure", b"y"),
            ("f", "nlink", b"U+1"),
            ("d", "overlay.opaque", b"user's"),
        ] {
            set_xattr(
                scene,
                &from,
                name,
                &format!("trusted.overlay.{attribute}"),
                value,
            );
        }
        let to = scene.layer();
        copy_layer(scene.view(), &from, &to).unwrap();
        let mut expected = scene.raw(&from);
        for (path, object) in &mut expected {
            // It says which file that is whose data is below.
            let needed = path.as_os_str() == "f";
            let gone = ["impure", "nlink", "origin"].into_iter();
            for gone in gone.filter(|gone| !needed || *gone != "origin") {
                object
                    .xattrs
                    .remove(OsStr::new(&format!("trusted.overlay.{gone}")));
            }
            // The root's own attributes are not contents, but filling it has changed its time.
            assert!(!path.as_os_str().is_empty() || object.xattrs.is_empty());
        }
        assert_eq!(differences(&expected, &scene.raw(&to)), None);
    });
}

#[test]
fn a_copied_layer_is_independent_of_the_original() {
    each(|scene| {
        let entries = [
            Entry::file("f", vec![7; 300_000]),
            Entry::hard_link("d/g", "f"),
            Entry::dir("d").mtime(5, 0),
        ];
        let from = scene.stack(&[]).apply(&entries).upper;
        let to = scene.layer();
        copy_layer(scene.view(), &from, &to).unwrap();
        assert_eq!(
            scene.shown(&[&from]).at("d/g"),
            scene.shown(&[&to]).at("d/g")
        );
        let before = scene.raw(&from);
        scene
            .tree()
            .set_mode(Node::Entry(&to, OsStr::new("f")), 0)
            .unwrap();
        assert_eq!(differences(&before, &scene.raw(&from)), None);
    });
}

#[test]
fn a_copy_leaves_sockets_out() {
    let Some(scene) = Scene::host() else { return };
    let (from, to) = (scene.layer(), scene.layer());
    make_socket(&from, "s");
    scene
        .tree()
        .hard_link(&from, OsStr::new("s"), &from, OsStr::new("t"))
        .unwrap();
    scene.write(&from, "f", b"");
    copy_layer(scene.view(), &from, &to).unwrap();
    assert_eq!(scene.shown(&[&to]).names(""), ["f"]);
}

#[test]
fn a_default_acl_of_the_target_does_not_leak_into_a_copy() {
    let Some(scene) = Scene::host() else { return };
    if !scene.has_acls {
        crate::support::skip("POSIX ACLs: the temporary directory has none");
        return;
    }
    let entries = [
        Entry::dir("d"),
        Entry::dir("d/e"),
        Entry::file("d/f", b"").mode(0o640),
        Entry::file("g", b""),
    ];
    let (from, to) = (scene.stack(&[]).apply(&entries).upper, scene.layer());
    let acl = OsStr::new("system.posix_acl_default");
    scene
        .tree()
        .set_xattr(Node::Dir(&to), acl, DEFAULT_ACL)
        .unwrap();
    copy_layer(scene.view(), &from, &to).unwrap();
    let raw = scene.raw(&to);
    assert!(
        raw.iter()
            .all(|(path, object)| path == Path::new("") || object.xattrs.is_empty()),
        "{raw:?}"
    );
}

#[test]
fn a_new_roots_attributes_are_those_of_the_root_below() {
    each(|scene| {
        let from = scene
            .stack(&[])
            .apply(&[Entry::dir("./")
                .mode(0o1750)
                .owner(3, 4)
                .mtime(5, 6)
                .xattr("user.k", b"v")])
            .upper;
        scene.set_opaque(&from);
        let to = scene.layer();
        copy_root_attributes(scene.view(), &from, &to).unwrap();
        let raw = &scene.raw(&to)[Path::new("")];
        assert_eq!(
            (raw.mode, raw.uid, raw.gid, raw.mtime),
            (0o1750, 3, 4, at(5, 6))
        );
        assert_eq!(raw.xattrs.keys().collect::<Vec<_>>(), ["user.k"]);
    });
}

#[test]
fn folding_hides_and_shows_what_both_did() {
    each(|scene| {
        let base = [
            Entry::dir("d"),
            Entry::file("d/low", b"1"),
            Entry::file("f", b"2"),
            Entry::dir("e"),
            Entry::file("e/low", b""),
        ];
        let middle = [
            Entry::file("d/mid", b"3"),
            Entry::marker(".wh.f"),
            Entry::file("own", b"4"),
            Entry::file("e", b"a file"),
        ];
        let cases: [(&[Entry], &[&str]); 7] = [
            (&[Entry::marker("d/.wh.mid")], &["d", "d/low", "e", "own"]),
            (&[Entry::marker("d/.wh.low")], &["d", "d/mid", "e", "own"]),
            (&[Entry::marker(".wh.d"), Entry::marker(".wh.own")], &["e"]),
            (
                &[Entry::marker("d/.wh..wh..opq"), Entry::file("d/new", b"")],
                &["d", "d/new", "e", "own"],
            ),
            (
                &[Entry::file("f/x", b"")],
                &["d", "d/low", "d/mid", "e", "f", "f/x", "own"],
            ),
            // Over a file that has hidden a directory.
            (
                &[Entry::dir("e"), Entry::file("e/new", b"")],
                &["d", "d/low", "d/mid", "e", "e/new", "own"],
            ),
            (&[Entry::file("d", b"now a file")], &["d", "e", "own"]),
        ];
        for (entries, expected) in cases {
            let stack = scene.stack(&[&base, &middle]);
            let above = stack.apply(entries);
            let into = scene.layer();
            copy_root_attributes(scene.view(), &stack.lowers[0], &into).unwrap();
            copy_layer(scene.view(), &stack.lowers[0], &into).unwrap();
            fold_layer(scene.view(), &above.upper, &into, &stack.lowers[1..]).unwrap();
            let shown = scene.shown(&[&into, &stack.lowers[1]]);
            let paths: Vec<_> = shown
                .0
                .keys()
                .skip(1)
                .map(|path| path.to_str().unwrap())
                .collect();
            assert_eq!(paths, expected, "{entries:?}");
            assert_eq!(shown.difference(&above.shown), None, "{entries:?}");
        }
    });
}

#[test]
fn folding_into_a_redirected_directory_is_refused() {
    each(|scene| {
        let (above, into) = (scene.layer(), scene.layer());
        scene.make_dir(&above, "d");
        scene.make_dir(&into, "d");
        set_xattr(scene, &into, "d", "trusted.overlay.redirect", b"x");
        let error = fold_layer(scene.view(), &above, &into, &[]).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::Unsupported);
    });
}

#[test]
fn removing_takes_a_whole_tree_and_nothing_else() {
    each(|scene| {
        let parent = scene.layer();
        let dir = scene.make_dir(&parent, "tree");
        scene.write(&dir, ".ovl-deep-1", b"in the way of nothing");
        for n in 0..50 {
            let inner = scene.make_dir(&dir, &format!("d{n}"));
            scene.write(&inner, "f", b"");
            scene.tree().set_mode(Node::Dir(&inner), 0).unwrap();
        }
        for (name, target) in [("l1", "../../victim"), ("l2", "/"), ("l3", "tree")] {
            scene
                .tree()
                .create_symlink(&dir, OsStr::new(name), OsStr::new(target))
                .unwrap();
        }
        scene.whiteout(&dir, "w");
        scene.write(&parent, "other", b"stays");
        remove_tree(scene.tree(), &parent, OsStr::new("tree")).unwrap();
        assert_eq!(scene.shown(&[&parent]).names(""), ["other"]);
        let victim = scene.open(&scene.dir, "victim");
        assert_eq!(scene.shown(&[&victim]).names(""), ["hello"]);
    });
}

#[test]
fn removing_what_is_no_directory_is_an_error_and_changes_nothing() {
    each(|scene| {
        let parent = scene.layer();
        scene.write(&parent, "f", b"");
        scene
            .tree()
            .create_symlink(&parent, OsStr::new("l"), OsStr::new("../victim"))
            .unwrap();
        for (name, kind) in [
            ("none", io::ErrorKind::NotFound),
            ("f", io::ErrorKind::NotADirectory),
        ] {
            let error: TreeError =
                remove_tree(scene.tree(), &parent, OsStr::new(name)).unwrap_err();
            assert_eq!(error.source.kind(), kind);
            assert_eq!(error.path, Path::new(name));
        }
        remove_tree(scene.tree(), &parent, OsStr::new("l")).unwrap_err();
        let shown = scene.shown(&[&parent]);
        assert_eq!(
            (shown.names("").len(), shown.at("l").kind),
            (2, FileKind::Symlink)
        );
    });
}
