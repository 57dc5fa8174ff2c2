use std::cell::Cell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use ovl_diff::{ApplyError, ApplyOptions, DeviceNumber, FileKind};
use ovl_testkit::Object;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::fuzz;
use crate::archive::mutation::{Mutation, mutate, mutation, reseal, zoo};
use crate::support::{Applied, CAPABILITY, Entry, Scene, Stack, archive, each};

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

/// Names of files of the layer that is below, which can be linked to.
const FILES_BELOW: &[&str] = &["low/f", "low/d/x", "low/link/x", "usr/f", "a"];
/// Markers that hide some of it.
const HIDING: &[&str] = &[
    ".wh.a",
    ".wh.low",
    ".wh..wh..opq",
    "low/.wh.f",
    "low/.wh.d",
    "low/.wh..wh..opq",
    "low/link/.wh.x",
    "usr/.wh.link",
];

fn entry() -> impl Strategy<Value = Entry> {
    let name = || select(NAMES);
    let kind = prop_oneof![
        4 => name().prop_map(|name| Entry::file(name, name)),
        3 => name().prop_map(Entry::marker),
        3 => select(HIDING).prop_map(Entry::marker),
        4 => name().prop_map(Entry::dir),
        4 => (name(), select(TARGETS)).prop_map(|(name, target)| Entry::symlink(name, target)),
        2 => (name(), select(TARGETS)).prop_map(|(name, target)| Entry::hard_link(name, target)),
        2 => (name(), name()).prop_map(|(name, target)| Entry::hard_link(name, target)),
        4 => (name(), select(FILES_BELOW))
            .prop_map(|(name, target)| Entry::hard_link(name, target)),
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
    /// Leaves out the entries that are refused: nearly all archives have some.
    is_accepted: bool,
    mutations: Vec<Mutation>,
    reseal: bool,
}

fn input() -> impl Strategy<Value = Input> {
    let entries = prop_oneof![
        5 => (vec(entry(), 8..32).prop_map(Some), Just(true)),
        4 => (vec(entry(), 1..10).prop_map(Some), Just(false)),
        1 => (Just(None), Just(false)),
    ];
    let mutations = prop_oneof![2 => Just(Vec::new()), 1 => vec(mutation(), 1..8)];
    (entries, mutations, prop::bool::weighted(0.9)).prop_map(
        |((entries, is_accepted), mutations, reseal)| Input {
            entries,
            is_accepted,
            mutations,
            reseal,
        },
    )
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

/// How many archives were as the test needs them.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    cases: u32,
    refused: u32,
    /// Of entries by chance; the others are of these.
    accepted: u32,
    with_hard_links: u32,
    with_markers_that_hide: u32,
}

impl Counts {
    fn accepted(&mut self, scene: &Scene, entries: &[Entry], applied: &Applied) {
        let is_marker = |entry: &Entry| {
            let name = Path::new(OsStr::from_bytes(&entry.name)).file_name();
            name.is_some_and(|name| name.as_bytes().starts_with(b".wh."))
        };
        let hides = |object: &Object| {
            object.kind == FileKind::CharDevice && object.rdev == DeviceNumber::default()
                || object
                    .xattrs
                    .contains_key(OsStr::new(scene.xattrs.opaque()))
        };
        let hidden = applied.summary.root_opaque || scene.raw(&applied.upper).values().any(hides);
        self.accepted += 1;
        self.with_hard_links += u32::from(entries.iter().any(|entry| entry.typeflag == b'1'));
        self.with_markers_that_hide += u32::from(hidden && entries.iter().any(is_marker));
    }
}

/// Applies, which checks that nothing outside has changed. What was taken comes out again as it is,
/// and is given.
pub(crate) fn check(stack: &Stack<'_>, bytes: &[u8]) -> Result<Option<Applied>, TestCaseError> {
    let scene = stack.scene;
    let applied = match stack.try_apply(bytes, &options(scene)) {
        Ok(applied) => applied,
        Err(ApplyError::Archive(error)) => {
            prop_assert!(error.is_bad_input(), "{error:?}");
            return Ok(None);
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
    Ok(Some(applied))
}

fn options(scene: &Scene) -> ApplyOptions {
    let mut options = ApplyOptions::new(scene.xattrs);
    options.limits.max_output_bytes = 1 << 20;
    options
}

fn check_input(
    stack: &Stack<'_>,
    input: &mut Input,
    counts: &mut Counts,
) -> Result<(), TestCaseError> {
    counts.cases += 1;
    if input.is_accepted
        && let Some(drawn) = input.entries.take()
    {
        let entries = stack.acceptable(drawn, &options(stack.scene));
        let applied = check(stack, &archive(&entries))?;
        prop_assert!(applied.is_some(), "refused, and accepted before");
        counts.accepted(stack.scene, &entries, &applied.unwrap());
        input.entries = Some(entries);
        if input.mutations.is_empty() {
            return Ok(());
        }
    }
    counts.refused += u32::from(check(stack, &bytes(input))?.is_none());
    Ok(())
}

#[test]
fn any_bytes_become_a_layer_or_are_refused_and_nothing_else_changes() {
    each(|scene| {
        let stack = scene.stack(&[&lower()]);
        let what = format!("apply on {}", scene.backend);
        let counted = Cell::new(Counts::default());
        fuzz(&what, 2, scene.cases, &input(), |mut input| {
            let mut counts = counted.get();
            let result = check_input(&stack, &mut input, &mut counts);
            counted.set(counts);
            stack.forget_others();
            result
        });
        let counts = counted.get();

        // Several times as many come by chance.
        let few = counts.cases / 16;
        let accepted = [counts.with_hard_links, counts.with_markers_that_hide];
        let is_enough = counts.refused >= few && accepted.iter().all(|&count| count >= few);
        assert!(is_enough, "on {}: {counts:?}", scene.backend);
        assert!(
            counts.accepted >= 2 * few,
            "on {}: {counts:?}",
            scene.backend
        );
    });
}
