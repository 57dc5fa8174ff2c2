//! The law: applying the diff of a layer, native or naive, shows what the layer showed.

mod kernel;
mod layers;
mod model;

use std::ffi::OsStr;

use ovl_diff::{
    Change, DirHandle, Node, ViewDir, changes, compare, copy_layer, copy_root_attributes, diff,
    diff_trees, fold_layer, remove_tree, size,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::support::{Scene, Shown, each};
use layers::{Layer, build, build_without_sockets, layer};

type Verdict = Result<(), TestCaseError>;

/// Runs a property with random input on every backend, with what it makes removed after each case.
fn hold<S: Strategy>(input: S, property: impl Fn(&Scene, &S::Value) -> Verdict) {
    each(|scene| hold_on(scene, &input, &property));
}

fn hold_on<S: Strategy>(
    scene: &Scene,
    input: &S,
    property: &impl Fn(&Scene, &S::Value) -> Verdict,
) {
    let config = Config {
        cases: scene.cases,
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(input, |input| {
        let result = property(scene, &input);
        scene.clear();
        result
    });
    if let Err(error) = result {
        panic!("on {}: {error}", scene.backend);
    }
}

fn same(what: &str, one: &Shown, other: &Shown) -> Verdict {
    match one.difference(other) {
        None => Ok(()),
        Some(difference) => Err(TestCaseError::fail(format!("{what}: {difference}"))),
    }
}

fn build_all(scene: &Scene, layers: &[Layer]) -> Vec<DirHandle> {
    layers.iter().map(|layer| build(scene, layer)).collect()
}

fn merged(upper: &DirHandle, lowers: &[DirHandle]) -> ViewDir {
    let mut parts = vec![upper.clone()];
    parts.extend_from_slice(lowers);
    ViewDir::new(parts)
}

fn native(scene: &Scene, upper: &DirHandle, lowers: &[DirHandle], root_opaque: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    diff(scene.view(), upper, lowers, root_opaque, &mut bytes).unwrap();
    bytes
}

fn naive(scene: &Scene, tree: &ViewDir, base: &ViewDir) -> Vec<u8> {
    let mut bytes = Vec::new();
    diff_trees(scene.view(), tree, base, &mut bytes).unwrap();
    bytes
}

#[test]
fn applying_the_native_diff_shows_the_layer() {
    hold(
        (vec(layer(), 0..3), layer(), any::<bool>()),
        |scene, (lowers, upper, root_opaque)| {
            let (lowers, upper) = (build_all(scene, lowers), build(scene, upper));
            let root_opaque = *root_opaque && !lowers.is_empty();
            let shown = match root_opaque {
                true => scene.shown(&[&upper]),
                false => Shown::of(scene.view(), &merged(&upper, &lowers)),
            };
            let bytes = native(scene, &upper, &lowers, root_opaque);
            prop_assert!(
                bytes == native(scene, &upper, &lowers, root_opaque),
                "not deterministic"
            );
            let stack = scene.stack_of(lowers);
            let applied = stack.apply_bytes(&bytes);
            prop_assert_eq!(applied.summary.root_opaque, root_opaque);
            same(
                "native",
                &shown.without_sockets(),
                &applied.shown.without_sockets(),
            )?;
            let again = native(scene, &applied.upper, &stack.lowers, root_opaque);
            prop_assert!(bytes == again, "the diff of what was applied is another");
            Ok(())
        },
    );
}

#[test]
fn applying_the_naive_diff_shows_the_tree() {
    // Of a layer on its parents, and of trees that have nothing to do with each other.
    let input = (vec(layer(), 0..3), vec(layer(), 1..3), any::<bool>());
    hold(input, |scene, (lowers, uppers, related)| {
        let (lowers, mut tree) = (build_all(scene, lowers), build_all(scene, uppers));
        if *related {
            tree.extend_from_slice(&lowers);
        }
        let (tree, base) = (ViewDir::new(tree), ViewDir::new(lowers.clone()));
        let shown = Shown::of(scene.view(), &tree).without_sockets();
        let bytes = naive(scene, &tree, &base);
        prop_assert!(bytes == naive(scene, &tree, &base), "not deterministic");
        let applied = scene.stack_of(lowers).apply_bytes(&bytes);
        let applied = applied.shown.without_sockets();
        same(
            "naive",
            &shown.without_dir_times(),
            &applied.without_dir_times(),
        )
    });
}

#[test]
fn the_changes_of_a_layer_are_the_differences_of_what_shows() {
    hold(
        (vec(layer(), 0..3), layer(), any::<bool>()),
        |scene, (lowers, upper, root_opaque)| {
            let (lowers, upper) = (build_all(scene, lowers), build(scene, upper));
            let tree = match root_opaque {
                true => ViewDir::new(vec![upper.clone()]),
                false => merged(&upper, &lowers),
            };
            let native = changes(scene.view(), &upper, &lowers, *root_opaque).unwrap();
            let naive = compare(scene.view(), &tree, &ViewDir::new(lowers)).unwrap();
            prop_assert_eq!(&native, &naive);
            let in_order = naive.is_sorted_by(|one: &Change, other| one.path() < other.path());
            prop_assert!(in_order, "{naive:?}");
            prop_assert_eq!(compare(scene.view(), &tree, &tree).unwrap(), []);
            Ok(())
        },
    );
}

#[test]
fn a_copy_of_a_layer_is_the_same_on_disk() {
    hold(layer(), |scene, layer| {
        let (from, to) = (build(scene, layer), scene.layer());
        copy_root_attributes(scene.view(), &from, &to).unwrap();
        copy_layer(scene.view(), &from, &to).unwrap();
        let mut original = scene.raw(&from);
        original.retain(|_, object| object.kind != ovl_diff::FileKind::Socket);
        if let Some(difference) = ovl_testkit::differences(&original, &scene.raw(&to)) {
            return Err(TestCaseError::fail(difference));
        }
        prop_assert_eq!(shape(scene, &from), shape(scene, &to));
        Ok(())
    });
}

/// Which names are hard links of which.
fn shape(scene: &Scene, layer: &DirHandle) -> Vec<std::path::PathBuf> {
    let shown = scene.shown(&[layer]).without_sockets();
    shown.0.into_values().map(|seen| seen.linked_to).collect()
}

#[test]
fn a_folded_layer_shows_what_both_showed() {
    let input = (vec(layer(), 0..3), layer(), layer());
    hold(input, |scene, (lowers, middle, above)| {
        // A copy has no sockets, and so does not hide what they hid.
        let middle = build_without_sockets(scene, middle);
        let lowers = build_all(scene, lowers);
        let below = merged(&middle, &lowers).parts().to_vec();
        // What is folded comes from an archive, so it has no marks that hide nothing.
        let archive = native(scene, &build(scene, above), &below, false);
        let above = scene.stack_of(below).apply_bytes(&archive);
        let into = scene.layer();
        copy_layer(scene.view(), &middle, &into).unwrap();
        fold_layer(scene.view(), &above.upper, &into, &lowers).unwrap();
        let shown = Shown::of(scene.view(), &merged(&into, &lowers));
        same("folded", &above.shown, &shown)?;
        // And so does the diff of it.
        let bytes = native(scene, &into, &lowers, false);
        same(
            "diff",
            &shown,
            &scene.stack_of(lowers).apply_bytes(&bytes).shown,
        )
    });
}

#[test]
fn sizes_do_not_depend_on_the_way() {
    hold((vec(layer(), 0..3), layer()), |scene, (lowers, upper)| {
        let (lowers, upper) = (build_all(scene, lowers), build(scene, upper));
        let copy = scene.layer();
        copy_layer(scene.view(), &upper, &copy).unwrap();
        let (one, other) = (
            size(scene.view(), &upper).unwrap(),
            size(scene.view(), &copy).unwrap(),
        );
        prop_assert_eq!(one.apparent, other.apparent);
        let merged = merged(&upper, &lowers);
        let all = ovl_diff::size_of_changes(scene.view(), &merged, &ViewDir::default()).unwrap();
        let shown = Shown::of(scene.view(), &merged);
        let inodes: std::collections::BTreeSet<_> = shown
            .0
            .iter()
            .skip(1)
            .map(|(_, seen)| &seen.linked_to)
            .collect();
        prop_assert_eq!(all.inodes, inodes.len() as u64);
        Ok(())
    });
}

#[test]
fn a_removed_tree_is_gone() {
    hold(layer(), |scene, layer| {
        let dir = build(scene, layer);
        let ino = scene.tree().metadata(Node::Dir(&dir)).unwrap().ino;
        let entries = scene.tree().read_dir(&scene.dir).unwrap();
        let name = entries
            .into_iter()
            .find(|entry| entry.ino == ino)
            .unwrap()
            .name;
        remove_tree(scene.tree(), &scene.dir, &name).unwrap();
        let left = scene.tree().read_dir(&scene.dir).unwrap();
        prop_assert!(left.iter().all(|entry| entry.name == OsStr::new("victim")));
        Ok(())
    });
}
