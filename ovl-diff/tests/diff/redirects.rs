//! Directories that were renamed, and files whose data is below: `redirect_dir=on`, `metacopy=on`.

use std::ffi::OsStr;

use ovl_diff::{
    Change, DiffError, DirHandle, Layers, Node, Unresolved, ViewDir, changes, changes_of, compare,
    size, size_of, size_of_change, size_of_changes,
};

use super::{names, refused, set_xattr};
use crate::support::{Entry, Scene, archive, each};

const REDIRECT: &str = "trusted.overlay.redirect";
const METACOPY: &str = "trusted.overlay.metacopy";

/// A directory that the kernel has moved here, with its contents from `from` in the layers below.
fn moved(scene: &Scene, parent: &DirHandle, name: &str, from: &[u8]) -> DirHandle {
    let dir = scene.make_dir(parent, name);
    set_xattr(scene, parent, name, REDIRECT, from);
    dir
}

/// A file without data of its own.
fn metacopy(scene: &Scene, dir: &DirHandle, name: &str, of: (&DirHandle, &str), to: Option<&[u8]>) {
    let tree = scene.tree();
    let name = OsStr::new(name);
    let original = tree.metadata(Node::Entry(of.0, OsStr::new(of.1))).unwrap();
    let file = tree.create_file(dir, name, 0o600).unwrap();
    tree.set_len(&file, original.size).unwrap();
    let node = Node::Entry(dir, name);
    tree.set_xattr(node, OsStr::new(METACOPY), b"").unwrap();
    if let Some(to) = to {
        tree.set_xattr(node, OsStr::new(REDIRECT), to).unwrap();
    }
    tree.set_mtime(node, original.mtime).unwrap();
}

/// What applying the native diff shows is what the layers show, and the changes and sizes are those
/// of the comparison of all.
#[track_caller]
fn holds(scene: &Scene, uppers: &[DirHandle], lowers: &[DirHandle]) -> Vec<String> {
    let (view, layers) = (scene.view(), Layers::new(uppers, lowers));
    let tree = ViewDir::new([uppers, lowers].concat());
    let base = ViewDir::new(lowers.to_vec());
    let found = changes_of(view, layers).unwrap();
    assert_eq!(found, compare(view, &tree, &base).unwrap());
    assert_eq!(
        size_of_change(view, layers).unwrap(),
        size_of_changes(view, &tree, &base).unwrap()
    );
    let shown = crate::support::Shown::of(view, &tree);
    let mut bytes = Vec::new();
    let options = ovl_diff::DiffOptions::new();
    ovl_diff::diff_confirmed(view, layers, &options, &mut bytes, || Ok(())).unwrap();
    let applied = scene.stack_of(lowers.to_vec()).apply_bytes(&bytes);
    if let Some(difference) = shown.difference(&applied.shown) {
        panic!("on {}: {difference}", scene.backend);
    }
    found.iter().map(Change::to_string).collect()
}

#[test]
fn a_renamed_directory_is_written_with_all_that_it_shows() {
    each(|scene| {
        let lower = scene.stack(&[&[
            Entry::file("old/kept", b"kept"),
            Entry::file("old/gone", b"gone"),
            Entry::file("old/in/deep", b"deep"),
            Entry::file("elsewhere", b""),
        ]]);
        let upper = scene.layer();
        scene.whiteout(&upper, "old");
        let new = moved(scene, &upper, "new", b"old");
        scene.whiteout(&new, "gone");
        scene.write(&new, "own", b"own");
        let uppers = [upper];
        assert_eq!(
            holds(scene, &uppers, &lower.lowers),
            [
                "A /new",
                "A /new/in",
                "A /new/in/deep",
                "A /new/kept",
                "A /new/own",
                "D /old"
            ]
        );
        assert_eq!(
            names(scene, &uppers[0], &lower.lowers),
            [
                "./",
                "new/",
                "new/in/",
                "new/in/deep",
                "new/kept",
                "new/own",
                ".wh.old"
            ]
        );
        let size_of = size_of(scene.view(), &uppers[0], &lower.lowers).unwrap();
        assert_eq!(size_of.apparent, 3 + 4 + 4);
        assert_eq!(size(scene.view(), &uppers[0]).unwrap().apparent, 3);
    });
}

#[test]
fn a_directory_moved_over_another_hides_that_one() {
    each(|scene| {
        let lower = scene.stack(&[&[
            Entry::file("a/b/x", b"x"),
            Entry::file("taken/y", b"y"),
            Entry::file("taken/z", b"z"),
        ]]);
        let upper = scene.layer();
        let a = scene.make_dir(&upper, "a");
        scene.whiteout(&a, "b");
        moved(scene, &upper, "taken", b"/a/b");
        let uppers = [upper];
        assert_eq!(
            holds(scene, &uppers, &lower.lowers),
            [
                "C /a",
                "D /a/b",
                "C /taken",
                "A /taken/x",
                "D /taken/y",
                "D /taken/z"
            ]
        );
        let names = names(scene, &uppers[0], &lower.lowers);
        assert!(
            names.contains(&"taken/.wh..wh..opq".to_owned()),
            "{names:?}"
        );
    });
}

#[test]
fn redirects_are_followed_through_several_layers() {
    each(|scene| {
        let bottom = scene.stack(&[&[
            Entry::file("one/two/three/f", b"f"),
            Entry::file("one/two/g", b"g"),
        ]]);
        // one/two -> one/zwei, then one -> eins, then eins/zwei -> /drei, then drei/three away.
        let second = scene.layer();
        let one = scene.make_dir(&second, "one");
        scene.whiteout(&one, "two");
        let zwei = moved(scene, &one, "zwei", b"two");
        scene.write(&zwei, "h", b"h");
        let third = scene.layer();
        scene.whiteout(&third, "one");
        moved(scene, &third, "eins", b"one");
        let fourth = scene.layer();
        let eins = scene.make_dir(&fourth, "eins");
        scene.whiteout(&eins, "zwei");
        moved(scene, &fourth, "drei", b"/eins/zwei");
        let fifth = scene.layer();
        let drei = scene.make_dir(&fifth, "drei");
        scene.whiteout(&drei, "three");
        moved(scene, &fifth, "top", b"/drei/three");
        let all = [fifth, fourth, third, second, bottom.lowers[0].clone()];
        let shown = scene.shown(&all.each_ref());
        let paths: Vec<_> = shown.0.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(
            paths,
            ["", "drei", "drei/g", "drei/h", "eins", "top", "top/f"]
        );
        for at in 1..all.len() {
            for from in 0..at {
                holds(scene, &all[from..at], &all[at..]);
            }
        }
        let found = holds(scene, &all[..4], &all[4..]);
        assert!(found.contains(&"D /one".to_owned()), "{found:?}");
    });
}

#[test]
fn a_directory_that_was_moved_back_is_no_change() {
    each(|scene| {
        let lower = scene.stack(&[&[Entry::file("d/f", b"f"), Entry::dir("e")]]);
        let upper = scene.layer();
        moved(scene, &upper, "d", b"/d");
        let meta = scene
            .tree()
            .metadata(Node::Dir(&scene.open(&lower.lowers[0], "d")))
            .unwrap();
        let node = Node::Entry(&upper, OsStr::new("d"));
        scene.tree().set_owner(node, meta.uid, meta.gid).unwrap();
        scene.tree().set_mode(node, meta.mode).unwrap();
        let uppers = [upper];
        assert_eq!(holds(scene, &uppers, &lower.lowers), [""; 0]);
        assert_eq!(names(scene, &uppers[0], &lower.lowers), ["./", "d/"]);
    });
}

#[test]
fn a_file_without_its_data_is_written_with_that_of_the_layers_below() {
    each(|scene| {
        let lower = scene.stack(&[&[
            Entry::file("f", b"the data"),
            Entry::file("d/g", b"more data"),
            Entry::file("d/untouched", b"the same"),
        ]]);
        let lower = lower.lowers[0].clone();
        let below = scene.open(&lower, "d");
        let upper = scene.layer();
        metacopy(scene, &upper, "f", (&lower, "f"), None);
        scene
            .tree()
            .set_mode(Node::Entry(&upper, OsStr::new("f")), 0o4755)
            .unwrap();
        metacopy(scene, &upper, "moved", (&below, "g"), Some(b"/d/g"));
        let dir = scene.make_dir(&upper, "d");
        scene.whiteout(&dir, "g");
        metacopy(scene, &dir, "untouched", (&below, "untouched"), None);
        let mode = scene
            .tree()
            .metadata(Node::Entry(&below, OsStr::new("untouched")))
            .unwrap()
            .mode;
        scene
            .tree()
            .set_mode(Node::Entry(&dir, OsStr::new("untouched")), mode)
            .unwrap();
        // The next layer's is a copy of a copy.
        let above = scene.layer();
        metacopy(scene, &above, "f", (&upper, "f"), None);
        assert_eq!(
            holds(
                scene,
                std::slice::from_ref(&upper),
                std::slice::from_ref(&lower)
            ),
            ["C /d", "D /d/g", "C /f", "A /moved"]
        );
        holds(
            scene,
            std::slice::from_ref(&above),
            &[upper.clone(), lower.clone()],
        );
        holds(
            scene,
            &[above.clone(), upper.clone()],
            std::slice::from_ref(&lower),
        );
        let shown = scene.shown(&[&above, &upper, &lower]);
        assert_eq!(shown.at("f").contents, b"the data");
        assert_eq!(shown.at("moved").contents, b"more data");
        // So is a hard link that an archive makes to it.
        let stack = scene.stack_of(vec![above, upper, lower]);
        let applied = stack.apply(&[Entry::hard_link("link", "f")]);
        assert_eq!(applied.at("link").contents, b"the data");
        assert!(
            scene
                .raw(&applied.upper)
                .values()
                .all(|object| !object.xattrs.contains_key(OsStr::new(METACOPY)))
        );
    });
}

#[test]
fn a_redirect_of_a_file_that_has_data_means_nothing() {
    each(|scene| {
        let lower = scene.stack(&[&[Entry::file("f", b"below")]]);
        let upper = scene.layer();
        scene.write(&upper, "f", b"copied up since");
        set_xattr(scene, &upper, "f", REDIRECT, b"nowhere");
        let found = holds(scene, &[upper], &lower.lowers);
        assert_eq!(found, ["C /f"]);
    });
}

#[test]
fn other_names_of_a_moved_directorys_hard_links_stay_linked() {
    each(|scene| {
        let lower = scene.stack(&[&[
            Entry::file("d/f", b"f"),
            Entry::hard_link("d/g", "d/f"),
            Entry::hard_link("z/outside", "d/f"),
            Entry::file("z/alone", b""),
        ]]);
        let upper = scene.layer();
        scene.whiteout(&upper, "d");
        moved(scene, &upper, "e", b"d");
        let uppers = [upper];
        holds(scene, &uppers, &lower.lowers);
        assert_eq!(
            names(scene, &uppers[0], &lower.lowers),
            ["./", ".wh.d", "e/", "e/f", "e/g", "z/outside"]
        );
    });
}

#[test]
fn what_leads_nowhere_is_refused_with_the_reason() {
    let digest = [&[0, 36, 0, 1][..], &[7; 32]].concat();
    each(|scene| {
        let lower = scene.stack(&[&[
            Entry::file("f", b"f"),
            Entry::dir("d"),
            Entry::file("d/x", b""),
        ]]);
        let lower = &lower.lowers;
        let directory = |from: &[u8]| {
            let upper = scene.layer();
            moved(scene, &upper, "new", from);
            match refused(scene, &upper, lower) {
                DiffError::Elsewhere { path, reason, .. } => {
                    assert_eq!(path, std::path::Path::new("new"));
                    let found = changes(scene.view(), &upper, lower, false);
                    assert!(
                        matches!(found, Err(DiffError::Elsewhere { .. })),
                        "{found:?}"
                    );
                    reason
                }
                other => panic!("{other:?}"),
            }
        };
        let nowhere = ["missing", "f", "/d/missing", "/f/x", "/missing/d"];
        for from in nowhere {
            assert_eq!(directory(from.as_bytes()), Unresolved::Nowhere, "{from}");
        }
        for from in ["", "/", "..", "/d/../d", "d/x", "//d", "/d/"] {
            assert_eq!(directory(from.as_bytes()), Unresolved::Malformed, "{from}");
        }
        let file = |to: Option<&[u8]>, value: &[u8], linked: bool| {
            let upper = scene.layer();
            metacopy(scene, &upper, "f", (&lower[0], "f"), to);
            set_xattr(scene, &upper, "f", METACOPY, value);
            if linked {
                scene
                    .tree()
                    .hard_link(&upper, OsStr::new("f"), &upper, OsStr::new("g"))
                    .unwrap();
            }
            match refused(scene, &upper, lower) {
                DiffError::Elsewhere { reason, .. } => reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(file(Some(b"missing"), b"", false), Unresolved::Nowhere);
        assert_eq!(file(Some(b"/d"), b"", false), Unresolved::Nowhere);
        assert_eq!(file(Some(b"d/x"), b"", false), Unresolved::Malformed);
        assert_eq!(file(None, b"?", false), Unresolved::Malformed);
        assert_eq!(file(None, &digest, false), Unresolved::Digest);
        assert_eq!(file(None, b"", true), Unresolved::HardLinked);
        let other = Unresolved::Size {
            expected: 1,
            found: 0,
        };
        assert_eq!(file(Some(b"/d/x"), b"", false), other);
        // With the place written down, all names have the same data.
        let upper = scene.layer();
        metacopy(scene, &upper, "f", (&lower[0], "f"), Some(b"/f"));
        scene
            .tree()
            .hard_link(&upper, OsStr::new("f"), &upper, OsStr::new("g"))
            .unwrap();
        holds(scene, &[upper], lower);
    });
}

#[test]
fn nothing_is_put_where_it_would_not_show() {
    each(|scene| {
        let bottom = scene.stack(&[&[Entry::file("old/x", b"x")]]);
        let middle = scene.layer();
        scene.whiteout(&middle, "old");
        moved(scene, &middle, "new", b"old");
        let stack = scene.stack_of(vec![middle, bottom.lowers[0].clone()]);
        let applied = stack.apply(&[Entry::marker("new/.wh.x"), Entry::file("new/y", b"y")]);
        assert_eq!(applied.names("new"), ["y"]);
        let stray = archive(&[Entry::marker("old/.wh.x")]);
        let applied = stack.apply_bytes(&stray);
        assert_eq!(applied.names("new"), ["x"]);
    });
}
