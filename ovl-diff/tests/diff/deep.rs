//! Trees that are deeper and wider than a process has descriptors, or a path bytes.

use std::ffi::OsStr;

use ovl_diff::{
    ApplyOptions, DirHandle, ViewDir, changes, compare, copy_layer, diff, diff_trees, fold_layer,
    remove_tree, size, size_of_changes, sync_layer,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{Scene, each};

const DEPTH: usize = 3000;
const WIDTH: usize = 1500;

/// What a process has when nobody has asked for more.
fn limit_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let current = Some(limit.current.unwrap_or(1024).min(1024));
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
}

/// A directory in a directory and so on, with a file in the last.
fn deep(scene: &Scene) -> DirHandle {
    let layer = scene.layer();
    let mut dir = layer.clone();
    for _ in 0..DEPTH {
        dir = scene.make_dir(&dir, "d");
    }
    scene.write(&dir, "f", b"deep");
    layer
}

/// Directories with something to hard link in each.
fn wide(scene: &Scene) -> DirHandle {
    let layer = scene.layer();
    for n in 0..WIDTH {
        let dir = scene.make_dir(&layer, &format!("d{n}"));
        let inner = scene.make_dir(&dir, "e");
        scene.write(&dir, "f", b"1");
        scene
            .tree()
            .hard_link(&dir, OsStr::new("f"), &inner, OsStr::new("g"))
            .unwrap();
    }
    layer
}

fn name_of(scene: &Scene, layer: &DirHandle) -> std::ffi::OsString {
    let ino = scene
        .tree()
        .metadata(ovl_diff::Node::Dir(layer))
        .unwrap()
        .ino;
    let entries = scene.tree().read_dir(&scene.dir).unwrap();
    entries
        .into_iter()
        .find(|entry| entry.ino == ino)
        .unwrap()
        .name
}

fn whole(scene: &Scene, layer: &DirHandle) -> Vec<u8> {
    let mut bytes = Vec::new();
    diff(scene.view(), layer, &[], false, &mut bytes).unwrap();
    bytes
}

/// Everything that walks a tree, on a layer with this many inodes.
fn walk(scene: &Scene, layer: &DirHandle, inodes: u64) {
    let view = scene.view();
    assert_eq!(size(view, layer).unwrap().inodes, inodes);
    sync_layer(scene.tree(), layer).unwrap();
    let bytes = whole(scene, layer);

    let applied = scene.layer();
    let options = ApplyOptions::new(scene.xattrs);
    ovl_diff::apply(scene.tree(), &*bytes, &applied, &[], &options, &mut |_| {}).unwrap();
    assert!(bytes == whole(scene, &applied));
    // The same again, on top.
    let above = scene.layer();
    let lowers = std::slice::from_ref(&applied);
    ovl_diff::apply(scene.tree(), &*bytes, &above, lowers, &options, &mut |_| {}).unwrap();
    assert_eq!(changes(view, &above, lowers, false).unwrap(), []);
    let (tree, base) = (
        ViewDir::new(vec![above.clone()]),
        ViewDir::new(lowers.to_vec()),
    );
    assert_eq!(compare(view, &tree, &base).unwrap(), []);
    let all = compare(view, &tree, &ViewDir::default()).unwrap();
    assert_eq!(
        size_of_changes(view, &tree, &ViewDir::default())
            .unwrap()
            .inodes,
        inodes
    );
    let mut naive = Vec::new();
    let summary = diff_trees(view, &tree, &ViewDir::default(), &mut naive).unwrap();
    assert_eq!(summary.entries, all.len() as u64 + 1);
    assert!(naive == bytes);

    let copy = scene.layer();
    copy_layer(view, layer, &copy).unwrap();
    fold_layer(view, &above, &copy, &[]).unwrap();
    assert_eq!(size(view, &copy).unwrap().inodes, inodes);
    for layer in [layer, &applied, &above, &copy] {
        remove_tree(scene.tree(), &scene.dir, &name_of(scene, layer)).unwrap();
    }
    assert_eq!(scene.tree().read_dir(&scene.dir).unwrap().len(), 1);
}

#[test]
fn row_011_a_deep_tree_costs_few_descriptors() {
    limit_descriptors();
    each(|scene| {
        let layer = deep(scene);
        walk(scene, &layer, DEPTH as u64 + 1);
    });
}

#[test]
fn a_wide_tree_with_many_hard_links_costs_few_descriptors() {
    limit_descriptors();
    each(|scene| {
        let layer = wide(scene);
        walk(scene, &layer, WIDTH as u64 * 3);
    });
}

#[test]
fn hiding_what_is_deep_and_wide_costs_few_descriptors() {
    limit_descriptors();
    each(|scene| {
        let mut entries = Vec::new();
        for n in 0..WIDTH {
            entries.push(crate::support::Entry::marker(format!("d{n}/.wh.f")));
        }
        entries.push(crate::support::Entry::marker(".wh..wh..opq"));
        let (lower, upper) = (wide(scene), scene.layer());
        let options = ApplyOptions::new(scene.xattrs);
        let bytes = crate::support::archive(&entries);
        let lowers = [lower];
        ovl_diff::apply(
            scene.tree(),
            &*bytes,
            &upper,
            &lowers,
            &options,
            &mut |_| {},
        )
        .unwrap();
        assert_eq!(size(scene.view(), &upper).unwrap().inodes, WIDTH as u64);
    });
}

#[test]
fn a_deep_tree_in_many_layers_costs_few_descriptors() {
    limit_descriptors();
    each(|scene| {
        // As many layers as a mount takes, each with the same directories.
        let lowers: Vec<DirHandle> = (0..120)
            .map(|_| {
                let layer = scene.layer();
                let mut dir = layer.clone();
                for name in ["usr", "lib", "a", "b", "c", "d", "e", "f", "g"] {
                    dir = scene.make_dir(&dir, name);
                }
                layer
            })
            .collect();
        let options = ApplyOptions::new(scene.xattrs);
        let upper = scene.layer();
        let path = "usr/lib/a/b/c/d/e/f/g/new";
        let bytes = crate::support::archive(&[
            crate::support::Entry::file(path, b"1"),
            crate::support::Entry::marker("usr/lib/a/.wh.b"),
        ]);
        ovl_diff::apply(
            scene.tree(),
            &*bytes,
            &upper,
            &lowers,
            &options,
            &mut |_| {},
        )
        .unwrap();
        let found = changes(scene.view(), &upper, &lowers, false).unwrap();
        assert_eq!(found.last().unwrap().to_string(), format!("A /{path}"));
        whole(scene, &upper);
    });
}
