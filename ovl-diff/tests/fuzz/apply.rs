use std::ffi::OsStr;

use ovl_diff::{ApplyError, ApplyOptions, remove_tree};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::fuzz;
use crate::archive::mutation::{Mutation, mutate, mutation, reseal, zoo};
use crate::support::{CAPABILITY, Entry, Scene, Stack, archive, each};

/// Names that lead somewhere, and some that must not.
pub(crate) const NAMES: &[&str] = &[
    "a",
    "a/b",
    "a/b/c",
    "b",
    "b/c/d",
    "l",
    "l/x",
    "l/l/y",
    "m",
    "m/hello",
    "out/hello",
    "low/f",
    "low/d/x",
    "low/link/x",
    "./",
    ".",
    "/a",
    "./a//b/",
    "../victim/hello",
    "a/../../victim/hello",
    ".wh.a",
    ".wh.l",
    ".wh.low",
    "low/.wh.f",
    "low/.wh.d",
    "l/.wh.x",
    "out/.wh.hello",
    ".wh..wh..opq",
    "a/.wh..wh..opq",
    "low/.wh..wh..opq",
    "l/.wh..wh..opq",
    ".wh.",
    ".wh..",
    ".wh..wh.plnk/1",
    ".wh.a/b",
];
pub(crate) const TARGETS: &[&str] = &[
    "a",
    "b",
    "l",
    "m",
    ".",
    "..",
    "/",
    "/a",
    "a/b",
    "../a",
    "../victim",
    "../../victim",
    "/../victim/hello",
    "../victim/hello",
    "low",
    "low/f",
    "low/d",
    "out",
    "b/../../victim",
    "",
];

/// The layer that is below.
pub(crate) fn lower() -> Vec<Entry> {
    vec![
        Entry::dir("low")
            .mode(0o700)
            .owner(5, 6)
            .xattr("user.k", b"v"),
        Entry::file("low/f", b"low"),
        Entry::file("low/d/x", b"x"),
        Entry::symlink("low/link", "d"),
        Entry::symlink("out", "../victim"),
        Entry::symlink("usr", "/low"),
        Entry::fifo("a"),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let name = || select(NAMES);
    let kind = prop_oneof![
        4 => name().prop_map(|name| Entry::file(name, name)),
        3 => name().prop_map(Entry::marker),
        4 => name().prop_map(Entry::dir),
        4 => (name(), select(TARGETS)).prop_map(|(name, target)| Entry::symlink(name, target)),
        3 => (name(), select(TARGETS)).prop_map(|(name, target)| Entry::hard_link(name, target)),
        2 => (name(), name()).prop_map(|(name, target)| Entry::hard_link(name, target)),
        1 => name().prop_map(Entry::fifo),
        1 => (name(), 0..3_u32).prop_map(|(name, minor)| Entry::char_device(name, 0, minor)),
        1 => name().prop_map(|name| Entry::block_device(name, 8, 1)),
    ];
    let xattr = select(vec![
        None,
        None,
        None,
        Some(("user.k", b"v".to_vec())),
        Some(("trusted.overlay.opaque", b"y".to_vec())),
        Some(("trusted.overlay.redirect", b"/low".to_vec())),
        Some(("security.capability", CAPABILITY.to_vec())),
    ]);
    let mode = select(vec![0o755, 0o644, 0, 0o7777]);
    (kind, mode, 0..3_u64, xattr).prop_map(|(entry, mode, owner, xattr)| {
        let entry = entry.mode(mode).owner(owner * 1000, owner);
        match xattr {
            Some((name, value)) => entry.xattr(name, value),
            None => entry,
        }
    })
}

/// What is applied: entries, or one of everything, with some bytes changed.
#[derive(Clone, Debug)]
struct Input {
    entries: Option<Vec<Entry>>,
    mutations: Vec<Mutation>,
    reseal: bool,
}

fn input() -> impl Strategy<Value = Input> {
    let entries = prop_oneof![
        4 => vec(entry(), 1..10).prop_map(Some),
        1 => Just(None),
    ];
    let mutations = prop_oneof![2 => Just(Vec::new()), 1 => vec(mutation(), 1..8)];
    (entries, mutations, prop::bool::weighted(0.9)).prop_map(|(entries, mutations, reseal)| Input {
        entries,
        mutations,
        reseal,
    })
}

fn bytes(input: &Input) -> Vec<u8> {
    let mut bytes = match &input.entries {
        Some(entries) => archive(entries),
        None => zoo(),
    };
    mutate(&mut bytes, &input.mutations);
    if input.reseal {
        reseal(&mut bytes);
    }
    bytes
}

/// Removes what the last case has made; that must work whatever it was.
fn clean(scene: &Scene) {
    for entry in scene.tree().read_dir(&scene.dir).unwrap() {
        if entry.name != "victim" && entry.name != "layer-0" {
            remove_tree(scene.tree(), &scene.dir, &entry.name).unwrap();
        }
    }
}

/// Applies, which checks that nothing outside has changed. What was taken comes out again as it is.
pub(crate) fn check(stack: &Stack<'_>, bytes: &[u8]) -> Result<(), TestCaseError> {
    let scene = stack.scene;
    let mut options = ApplyOptions::new(scene.xattrs);
    options.limits.max_output_bytes = 1 << 20;
    let applied = match stack.try_apply(bytes, &options) {
        Ok(applied) => applied,
        Err(ApplyError::Archive(error)) => {
            prop_assert!(error.is_bad_input(), "{error:?}");
            return Ok(());
        }
        Err(error) => return Err(TestCaseError::fail(format!("{error:?}"))),
    };
    let mut again = Vec::new();
    let root_opaque = applied.summary.root_opaque;
    ovl_diff::diff(
        scene.view(),
        &applied.upper,
        &stack.lowers,
        root_opaque,
        &mut again,
    )
    .map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
    let again = stack.apply_bytes(&again);
    prop_assert_eq!(applied.shown.difference(&again.shown), None);
    let name = OsStr::new("layer-0");
    prop_assert!(scene.tree().open_dir(&scene.dir, name).is_ok());
    Ok(())
}

#[test]
fn any_bytes_become_a_layer_or_are_refused_and_nothing_else_changes() {
    each(|scene| {
        let stack = scene.stack(&[&lower()]);
        let what = format!("apply on {}", scene.backend);
        fuzz(&what, 2, scene.cases, &input(), |input| {
            let result = check(&stack, &bytes(&input));
            clean(scene);
            result
        });
    });
}
