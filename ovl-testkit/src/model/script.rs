//! Scripts: what they are made of, and how they are drawn.

use std::fmt;
use std::path::Path;

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;

use super::machine::constructor;
use super::reference::{Answer, Body, FILL, Model, Tree, edited, has_parent};
use super::run::foresee;

const LAYERS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Few, so that they meet.
const PATHS: [&str; 9] = ["x", "x", "y", "y", "z", "x/x", "x/y", "y/x", "x/x/x"];
const MODES: [u32; 4] = [0o755, 0o700, 0o644, 0o600];

/// One step. `user` is 0 or 1, one of two processes with the home open.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the names of the fields are those of the operations"
)]
pub enum Step {
    /// `create`.
    Create {
        user: usize,
        layer: &'static str,
        parent: Option<&'static str>,
    },
    /// `create_writable`, with a limit in MiB.
    CreateWritable {
        user: usize,
        layer: &'static str,
        parent: Option<&'static str>,
        limit: Option<u64>,
    },
    /// `import`.
    Import {
        user: usize,
        layer: &'static str,
        parent: Option<&'static str>,
        archive: Archive,
    },
    /// `apply`.
    Apply {
        user: usize,
        layer: &'static str,
        archive: Archive,
    },
    /// `diff`, and `import` of that on the base: both show the same.
    Copy {
        user: usize,
        from: &'static str,
        base: Against,
        to: &'static str,
    },
    /// `mount`.
    Mount {
        user: usize,
        layer: &'static str,
        /// The process holds it, and nobody when that ends.
        own: bool,
        noexec: bool,
    },
    /// Changes through a mount, if the layer is mounted.
    Write {
        layer: &'static str,
        edits: Vec<Edit>,
    },
    /// `unmount`.
    Unmount {
        user: usize,
        layer: &'static str,
        lazy: bool,
    },
    /// `unmount_all`.
    UnmountAll { user: usize },
    /// `set_limits`, in MiB.
    SetLimit {
        user: usize,
        layer: &'static str,
        limit: Option<u64>,
    },
    /// `remove`.
    Remove {
        user: usize,
        layer: &'static str,
        force: bool,
    },
    /// `reclaim`.
    Reclaim { user: usize },
    /// `gc`.
    Gc { user: usize },
    /// `check`.
    Check { user: usize },
    /// `repair`.
    Repair { user: usize },
    /// Somebody damages a layer that is not mounted, or what is noted of it. `check` tells, what
    /// cannot be trusted is not mounted, and `repair` gives back what has one right answer; what has
    /// none is put back by hand.
    Damage {
        user: usize,
        layer: &'static str,
        harm: Harm,
    },
    /// The store is opened again by the same process.
    Reopen { user: usize },
    /// A process is killed, and another one opens the store.
    Kill { user: usize },
    /// The machine is started anew.
    Reboot,
    /// The power goes, and of what was not synced is there what a journal has by chance, all or
    /// nothing.
    CutPower { seed: u64 },
    /// The process of the next step is killed before its n-th operation.
    KillAt { operation: u64 },
    /// The n-th operation of the next step fails.
    FailAt { operation: u64, errno: i32 },
}

/// What an archive holds: first what it hides, then what it puts there. What cannot be, such as a
/// file in a file, is left out when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// Whiteouts.
    pub hide: Vec<&'static str>,
    /// Directories that hide what was in them.
    pub opaque: Vec<&'static str>,
    /// Objects.
    pub put: Vec<Put>,
    /// Whether it ends in the middle.
    pub cut: bool,
}

/// One object of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "paths, modes and contents")]
pub enum Put {
    /// A directory.
    Dir { path: &'static str, mode: u32 },
    /// A file with one byte.
    File { path: &'static str, contents: u8 },
    /// A symbolic link.
    Symlink { path: &'static str },
}

/// What a layer is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Against {
    /// Its parent.
    Parent,
    /// Nothing.
    Empty,
    /// This layer.
    Layer(&'static str),
}

/// What becomes of a file of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// `lower` is gone.
    NoLower,
    /// `lower` names what is no link.
    BadLower,
    /// `lower` names one layer too few.
    ShortLower,
    /// `link` is gone.
    NoLink,
    /// The link in `l` is gone.
    NoLinkEntry,
    /// The mark of a layer that others stand on is gone.
    NoMark,
    /// The note of who holds the mount says nothing that can be read.
    BadHolds,
}

/// One change of a mounted tree.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "paths, modes and contents")]
pub enum Edit {
    /// `mkdir`.
    MakeDir { path: &'static str, mode: u32 },
    /// A new file with one byte.
    MakeFile { path: &'static str, contents: u8 },
    /// A new symbolic link.
    MakeSymlink { path: &'static str },
    /// `rename`.
    Rename {
        from: &'static str,
        to: &'static str,
    },
    /// `unlink`, `rmdir` of a directory.
    Delete { path: &'static str },
    /// A directory with all in it.
    DeleteAll { path: &'static str },
    /// `chmod`, not of symbolic links.
    SetMode { path: &'static str, mode: u32 },
    /// `chown`, where the id is mapped.
    SetOwner { path: &'static str, uid: u32 },
    /// The attribute `user.colour`, not of symbolic links.
    SetColour { path: &'static str, value: u8 },
    /// A file of 2 MiB that goes away again.
    Fill { path: &'static str },
}

/// A whole script. It prints as a test to paste.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script(
    /// The steps.
    pub Vec<Step>,
);

impl Script {
    /// The test to paste, on the machine that an expression makes: that of
    /// [`Machine::constructor`](super::Machine::constructor).
    #[must_use]
    pub fn as_test(&self, machine: &str) -> String {
        let steps: Vec<_> = self.0.iter().map(as_code).collect();
        // Formatted, but for the steps. Not every script has all kinds of steps.
        format!(
            "#[test]
#[allow(unused_imports)]
fn regression() {{
    use ovl_testkit::KernelProfile;
    use ovl_testkit::model::{{
        Against::*, Archive, Edit::*, Harm::*, MockMachine, Put::*, Step::*, replay,
    }};
    let mut machine = {machine};
    #[rustfmt::skip]
    let script = [
        {},
    ];
    replay(&mut machine, &script).unwrap();
}}
",
            steps.join(",\n        ")
        )
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_test(&constructor("modern")))
    }
}

/// What `Debug` says is Rust but for its lists.
pub(super) fn as_code(step: &Step) -> String {
    format!("{step:?}").replace(": [", ": vec![")
}

/// Scripts of up to `len` steps. Most of them name a layer that the step can be done with, as far as
/// the model tells without the faults; every fourth names any.
pub fn scripts(len: usize) -> impl Strategy<Value = Script> {
    let first = (
        archive(),
        of(Just("a")),
        of(select(&["a", "b"][..])),
        any::<bool>(),
    );
    let first = first.prop_map(|(archive, below_b, below_c, own)| {
        let (user, limit) = (0, own.then_some(1));
        vec![
            Step::Import {
                user,
                layer: "a",
                parent: None,
                archive,
            },
            Step::Create {
                user,
                layer: "b",
                parent: below_b,
            },
            Step::CreateWritable {
                user,
                layer: "c",
                parent: below_c,
                limit,
            },
            Step::Mount {
                user,
                layer: "c",
                own,
                noexec: false,
            },
        ]
    });
    let steps = (first, 0..=4_usize, vec(step(), 1..=len));
    steps.prop_map(|(mut steps, made, rest)| {
        steps.truncate(made);
        steps.extend(rest);
        Script(aimed(steps))
    })
}

fn step() -> impl Strategy<Value = Step> {
    let who = || (0..2_usize, select(&LAYERS[..]));
    let parent = || of(select(&LAYERS[..]));
    let limit = || of(select(&[1_u64, 3][..]));
    let by = || 0..2_usize;
    prop_oneof![
        12 => (who(), parent())
            .prop_map(|((user, layer), parent)| Step::Create { user, layer, parent }),
        8 => (who(), parent(), limit()).prop_map(|((user, layer), parent, limit)| {
            Step::CreateWritable { user, layer, parent, limit }
        }),
        8 => (who(), parent(), archive()).prop_map(|((user, layer), parent, archive)| {
            Step::Import { user, layer, parent, archive }
        }),
        8 => (who(), archive())
            .prop_map(|((user, layer), archive)| Step::Apply { user, layer, archive }),
        10 => (who(), against(), select(&LAYERS[..]))
            .prop_map(|((user, from), base, to)| Step::Copy { user, from, base, to }),
        24 => (who(), any::<bool>(), 0..16_u8).prop_map(|((user, layer), own, odd)| {
            Step::Mount { user, layer, own, noexec: odd == 0 }
        }),
        40 => (select(&LAYERS[..]), vec(edit(), 1..9))
            .prop_map(|(layer, edits)| Step::Write { layer, edits }),
        14 => (who(), any::<bool>())
            .prop_map(|((user, layer), lazy)| Step::Unmount { user, layer, lazy }),
        1 => by().prop_map(|user| Step::UnmountAll { user }),
        3 => (who(), limit())
            .prop_map(|((user, layer), limit)| Step::SetLimit { user, layer, limit }),
        8 => (who(), 0..4_u8)
            .prop_map(|((user, layer), odd)| Step::Remove { user, layer, force: odd == 0 }),
        1 => by().prop_map(|user| Step::Reclaim { user }),
        1 => by().prop_map(|user| Step::Gc { user }),
        1 => by().prop_map(|user| Step::Check { user }),
        1 => by().prop_map(|user| Step::Repair { user }),
        8 => (who(), harm()).prop_map(|((user, layer), harm)| Step::Damage { user, layer, harm }),
        4 => by().prop_map(|user| Step::Reopen { user }),
        1 => by().prop_map(|user| Step::Kill { user }),
        1 => Just(Step::Reboot),
        2 => any::<u64>().prop_map(|seed| Step::CutPower { seed }),
        8 => operation().prop_map(|operation| Step::KillAt { operation }),
        8 => (operation(), select(&[5, 12, 28][..]))
            .prop_map(|(operation, errno)| Step::FailAt { operation, errno }),
    ]
}

/// Some operations of the store make ten calls, others more than a hundred.
fn operation() -> impl Strategy<Value = u64> {
    prop_oneof![1..12_u64, 1..30_u64, 1..100_u64, 1..200_u64]
}

fn harm() -> impl Strategy<Value = Harm> {
    select(
        &[
            Harm::NoLower,
            Harm::BadLower,
            Harm::ShortLower,
            Harm::NoLink,
            Harm::NoLinkEntry,
            Harm::NoMark,
            Harm::NoMark,
            Harm::BadHolds,
        ][..],
    )
}

fn against() -> impl Strategy<Value = Against> {
    prop_oneof![
        Just(Against::Parent),
        Just(Against::Empty),
        select(&LAYERS[..]).prop_map(Against::Layer),
    ]
}

fn path() -> impl Strategy<Value = &'static str> {
    select(&PATHS[..])
}

fn mode() -> impl Strategy<Value = u32> {
    select(&MODES[..])
}

fn archive() -> impl Strategy<Value = Archive> {
    let put = prop_oneof![
        (path(), mode()).prop_map(|(path, mode)| Put::Dir { path, mode }),
        (path(), 0..3_u8).prop_map(|(path, contents)| Put::File { path, contents }),
        path().prop_map(|path| Put::Symlink { path }),
    ];
    (
        vec(path(), 0..3),
        vec(path(), 0..2),
        vec(put, 0..5),
        0..16_u8,
    )
        .prop_map(|(hide, opaque, put, odd)| Archive {
            hide,
            opaque,
            put,
            cut: odd == 0,
        })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => (path(), mode()).prop_map(|(path, mode)| Edit::MakeDir { path, mode }),
        4 => (path(), 0..3_u8).prop_map(|(path, contents)| Edit::MakeFile { path, contents }),
        1 => path().prop_map(|path| Edit::MakeSymlink { path }),
        3 => (path(), path()).prop_map(|(from, to)| Edit::Rename { from, to }),
        2 => path().prop_map(|path| Edit::Delete { path }),
        1 => path().prop_map(|path| Edit::DeleteAll { path }),
        2 => (select(&["", "x", "x/x"][..]), mode())
            .prop_map(|(path, mode)| Edit::SetMode { path, mode }),
        1 => (path(), 0..2_u32).prop_map(|(path, uid)| Edit::SetOwner { path, uid }),
        1 => (path(), 0..3_u8).prop_map(|(path, value)| Edit::SetColour { path, value }),
        3 => path().prop_map(|path| Edit::Fill { path }),
    ]
}

fn aimed(mut steps: Vec<Step>) -> Vec<Step> {
    let mut model = Model {
        enforced: true,
        ..Model::default()
    };
    let mut ordered = false;
    for (number, step) in steps.iter_mut().enumerate() {
        let heeds_orders = !matches!(
            step,
            Step::Write { .. } | Step::Damage { .. } | Step::Kill { .. } | Step::CutPower { .. }
        );
        if ordered && !heeds_orders && number.is_multiple_of(2) {
            let user = number / 2 % 2;
            *step = Step::Reopen { user };
        }
        if number % 4 != 3 {
            aim(&model, number, step);
        }
        foresee(&mut model, step);
        ordered = matches!(step, Step::KillAt { .. } | Step::FailAt { .. });
    }
    steps
}

/// Has a step name layers that it can be done with, if there are any.
fn aim(model: &Model, number: usize, step: &mut Step) {
    let among = |name: &mut &'static str, fits: &dyn Fn(&str) -> bool| {
        let fitting: Vec<_> = LAYERS.into_iter().filter(|name| fits(name)).collect();
        if let Some(chosen) = fitting.get(number % fitting.len().max(1)) {
            *name = chosen;
        }
    };
    let there = |name: &str| model.layers.contains_key(name);
    let mounted = |name: &str| {
        model
            .layers
            .get(name)
            .is_some_and(|one| one.mount.is_some())
    };
    let open = |name: &str| model.layers.get(name).is_some_and(|one| !one.sealed);
    let writable = |name: &str| mounted(name) && open(name);
    let is_small = |name: &str| {
        let limit = model.layers.get(name).and_then(|one| one.project?);
        limit.is_some_and(|limit| limit <= FILL)
    };
    let parent = |name: &mut Option<&'static str>| {
        if let Some(name) = name {
            among(name, &|name| there(name) && !writable(name));
        }
    };
    match step {
        Step::Create {
            layer, parent: on, ..
        }
        | Step::CreateWritable {
            layer, parent: on, ..
        }
        | Step::Import {
            layer, parent: on, ..
        } => {
            among(layer, &|name| !there(name));
            parent(on);
        }
        Step::Copy { from, base, to, .. } => {
            among(to, &|name| !there(name));
            among(from, &there);
            if let Against::Layer(base) = base {
                among(base, &|name| {
                    there(name) && name != *from && !writable(name)
                });
            }
        }
        Step::Apply { layer, .. } | Step::SetLimit { layer, .. } => {
            among(layer, &|name| open(name) && !mounted(name));
        }
        Step::Mount { layer, .. } if number.is_multiple_of(4) => among(layer, &there),
        Step::Mount { layer, .. } => among(layer, &open),
        Step::Write { layer, edits } => {
            among(layer, &writable);
            if edits.iter().any(|edit| matches!(edit, Edit::Fill { .. })) {
                among(layer, &|name| writable(name) && is_small(name));
            }
            if let Some(layer) = model.layers.get(*layer) {
                aim_edits(layer.tree.clone(), number, edits);
            }
        }
        Step::Unmount { layer, .. } => among(layer, &mounted),
        Step::Damage { layer, harm, .. } => among(layer, &|name| {
            let has_it = match harm {
                Harm::NoLower | Harm::BadLower | Harm::ShortLower => model.depth(name) > 0,
                Harm::NoMark => model.has_children(name),
                Harm::NoLink | Harm::NoLinkEntry | Harm::BadHolds => true,
            };
            there(name) && !mounted(name) && has_it
        }),
        Step::Remove { layer, .. } => {
            let parents = model
                .layers
                .values()
                .filter_map(|one| one.parent.as_deref());
            among(layer, &|name| {
                there(name) && !mounted(name) && !parents.clone().any(|parent| parent == name)
            });
        }
        _ => {}
    }
}

/// Has edits name what they can be done with: something that is there, or a place for it.
fn aim_edits(mut tree: Tree, number: usize, edits: &mut [Edit]) {
    for (at, edit) in (number..).zip(edits) {
        let among = |path: &mut &'static str, fits: &dyn Fn(&Path) -> bool| {
            let fitting: Vec<_> = PATHS
                .into_iter()
                .filter(|path| fits(Path::new(path)))
                .collect();
            if let Some(chosen) = fitting.get(at % fitting.len().max(1)) {
                *path = *chosen;
            }
        };
        let free = |path: &Path| !tree.contains_key(path) && has_parent(&tree, path);
        let there = |path: &Path| tree.contains_key(path);
        match edit {
            // Some are left as they are.
            _ if at % 4 == 3 => {}
            Edit::MakeDir { path, .. }
            | Edit::MakeFile { path, .. }
            | Edit::MakeSymlink { path }
            | Edit::Fill { path } => among(path, &free),
            Edit::Rename { from, to } => {
                among(from, &there);
                among(to, &|path| {
                    path != Path::new(from) && has_parent(&tree, path)
                });
            }
            Edit::Delete { path } | Edit::SetOwner { path, .. } | Edit::SetColour { path, .. } => {
                among(path, &there);
            }
            Edit::DeleteAll { path } => {
                among(path, &|path| {
                    tree.get(path).is_some_and(|found| found.body == Body::Dir)
                });
            }
            Edit::SetMode { .. } => {}
        }
        if let Answer::Done(changed) = edited(tree.clone(), edit, None) {
            tree = changed;
        }
    }
}
