//! The operations of a store, and short scripts of them.

use std::ffi::OsStr;
use std::path::Path;

use ovl_diff::TreeBackend as _;
use ovl_driver::blocking::Overlay2;
use ovl_driver::{Base, Error, Hold, InitOptions, MountRequest, OpenOptions, UpkeepOptions};
use ovl_mount::{OverlayOptions, Strategy, UnmountMode};
use ovl_quota::{Bytes, Limits};
use ovl_testkit::Fault;

use super::scene::{HOME, Scene, apply, archive, id, import, layer, second};

/// Gives what the operation says, where that does not depend on times and on chance.
pub(super) type Step = fn(&Scene) -> Result<String, Error>;

/// Something to do with a home.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// What is done before, without a fault.
    pub(super) prepare: fn(&Scene),
    pub(super) steps: &'static [Step],
    /// The errors by which a step says that it has been done already.
    pub(super) done: &'static [&'static str],
    /// Layers whose contents nobody waits for until they are sealed.
    pub(super) unsure: &'static [&'static str],
    /// Whether it writes to a mount that is volatile.
    pub(super) volatile: bool,
    /// Whether it sets limits.
    pub(super) limits: bool,
}

const CASE: Case = Case {
    name: "",
    prepare: |_| {},
    steps: &[],
    done: &[],
    unsure: &[],
    volatile: false,
    limits: false,
};

fn said<T>(result: Result<T, Error>) -> Result<String, Error> {
    result.map(|_| String::new())
}

fn mount(scene: &Scene, name: &str) -> Result<String, Error> {
    said(scene.store.mount(&id(name), &MountRequest::new()))
}

fn mount_as(scene: &Scene, name: &str, strategy: Strategy) -> Result<String, Error> {
    let request = MountRequest::new().strategy(Some(strategy));
    said(scene.store.mount(&id(name), &request))
}

fn volatile() -> MountRequest {
    let options = OverlayOptions::default().with("volatile").unwrap();
    MountRequest::new().options(options)
}

fn remove(scene: &Scene, name: &str, force: bool) -> Result<String, Error> {
    said(scene.store.remove(&id(name), force))
}

fn write(scene: &Scene, path: &str) {
    // Not counted: containers write so, not the store.
    let path = Path::new(HOME).join(path);
    // A step may be made again.
    let _ = scene.mock.write_file(&path, b"written");
}

fn open(scene: &Scene, home: &str) -> Result<String, Error> {
    let options = OpenOptions::new().create(true);
    said(Overlay2::open(
        scene.faulty.kernel(),
        home.as_ref(),
        options,
    ))
}

fn unlink(scene: &Scene, path: &str) {
    let path = Path::new(HOME).join(path);
    let dir = scene.mock.open_root(path.parent().unwrap()).unwrap();
    scene.mock.unlink(&dir, path.file_name().unwrap()).unwrap();
}

/// Leaves what a process that was killed leaves, at two points.
fn leave_something(scene: &Scene) {
    scene.store.create(&layer("gone", Some("base"))).unwrap();
    scene.store.remove(&id("gone"), false).unwrap();
    for call in ["create_symlink", "rename"] {
        let mut at = 0;
        scene.faulty.order_where(move |now, _| {
            at += u32::from(now == call || at > 0);
            (at > 1).then_some(5)
        });
        scene
            .store
            .create(&layer("half", Some("base")))
            .unwrap_err();
        scene.faulty.heal();
    }
    mount(scene, "lone").unwrap();
    unlink(scene, ".ovl/holds/lone");
}

/// Takes away what a repair gives back.
fn damage(scene: &Scene) {
    unlink(scene, "top/lower");
    unlink(scene, "base/committed");
    unlink(scene, "work/link");
    unlink(scene, "open/.ovl-layer");
    scene.mock.sync_all();
}

/// Archives, comparisons, questions.
pub(super) const READING: &[Case] = &[
    Case {
        name: "open",
        steps: &[|scene| open(scene, HOME)],
        ..CASE
    },
    Case {
        name: "diff",
        steps: &[|scene| {
            let mut archive = Vec::new();
            scene.store.diff(&id("mid"), &Base::Parent, &mut archive)?;
            Ok(format!("{archive:?}"))
        }],
        ..CASE
    },
    Case {
        name: "diff of everything",
        steps: &[|scene| {
            let mut archive = Vec::new();
            scene.store.diff(&id("top"), &Base::Empty, &mut archive)?;
            Ok(format!("{archive:?}"))
        }],
        ..CASE
    },
    Case {
        name: "diff of two",
        steps: &[|scene| {
            let (mut archive, base) = (Vec::new(), Base::Layer(id("open")));
            scene.store.diff(&id("top"), &base, &mut archive)?;
            Ok(format!("{archive:?}"))
        }],
        ..CASE
    },
    Case {
        name: "changes",
        steps: &[|scene| {
            let changes = scene.store.changes(&id("mid"), &Base::Parent)?;
            Ok(format!("{changes:?}"))
        }],
        ..CASE
    },
    Case {
        name: "size",
        steps: &[|scene| {
            let size = scene.store.size(&id("top"), &Base::Parent)?;
            Ok(format!("{size:?}"))
        }],
        ..CASE
    },
    Case {
        name: "inspect",
        steps: &[|scene| {
            let info = scene.store.inspect(&id("work"))?;
            Ok(format!("{:?} {:?}", info.chain, info.sealed))
        }],
        ..CASE
    },
    Case {
        name: "layers and contains",
        steps: &[
            |scene| {
                let list = scene.store.layers()?;
                match list.broken.is_empty() {
                    true => Ok(format!("{:?}", list.layers)),
                    // It names those that it cannot tell of.
                    false => Ok(String::new()),
                }
            },
            |scene| Ok(scene.store.contains(&id("base"))?.to_string()),
        ],
        ..CASE
    },
    Case {
        name: "status, quota and plan",
        steps: &[
            |scene| said(scene.store.status()),
            |scene| said(scene.store.quota(&id("work"))),
            |scene| {
                let plan = scene.store.plan(&id("work"), &MountRequest::new())?;
                Ok(format!("{:?}", plan.target()))
            },
        ],
        ..CASE
    },
    Case {
        name: "check",
        prepare: leave_something,
        steps: &[|scene| {
            let report = scene.store.check()?;
            let kinds: Vec<_> = report.findings.iter().map(|one| one.kind).collect();
            Ok(format!("{kinds:?}"))
        }],
        ..CASE
    },
];

/// Making layers and taking them away.
pub(super) const LAYERS: &[Case] = &[
    Case {
        name: "open a new home",
        steps: &[|scene| open(scene, "/fresh")],
        ..CASE
    },
    Case {
        name: "init",
        steps: &[|scene| {
            let options = InitOptions::new().max_depth(200);
            let kernel = scene.faulty.kernel();
            said(Overlay2::init(kernel, "/fresh".as_ref(), &options))
        }],
        ..CASE
    },
    Case {
        name: "create",
        steps: &[|scene| said(scene.store.create(&layer("new", None)))],
        done: &["AlreadyExists"],
        ..CASE
    },
    Case {
        name: "create on an open layer",
        steps: &[|scene| said(scene.store.create(&layer("new", Some("open"))))],
        done: &["AlreadyExists"],
        ..CASE
    },
    Case {
        name: "create writable",
        steps: &[|scene| {
            let new = layer("new", Some("top")).size(Some(Bytes::new(1 << 22)));
            said(scene.store.create_writable(&new.inodes(Some(50))))
        }],
        done: &["AlreadyExists"],
        limits: true,
        ..CASE
    },
    Case {
        name: "import",
        steps: &[|scene| said(import(&scene.store, &layer("new", None), &archive(b"new")))],
        done: &["AlreadyExists"],
        ..CASE
    },
    Case {
        name: "import on an open layer",
        steps: &[|scene| said(import(&scene.store, &layer("new", Some("open")), &second()))],
        done: &["AlreadyExists"],
        ..CASE
    },
    Case {
        name: "apply",
        steps: &[|scene| said(apply(&scene.store, &id("bare"), &second()))],
        ..CASE
    },
    Case {
        name: "apply over contents",
        steps: &[|scene| said(apply(&scene.store, &id("open"), &second()))],
        ..CASE
    },
    Case {
        name: "apply to a limited layer",
        steps: &[|scene| said(apply(&scene.store, &id("work"), &archive(b"work")))],
        ..CASE
    },
    Case {
        name: "remove",
        steps: &[|scene| remove(scene, "open", false)],
        done: &["LayerNotFound"],
        ..CASE
    },
    Case {
        name: "remove a limited layer",
        steps: &[
            |scene| remove(scene, "work", false),
            |scene| said(scene.store.reclaim()),
        ],
        done: &["LayerNotFound"],
        ..CASE
    },
    Case {
        name: "remove a mounted layer",
        prepare: |scene| drop(mount(scene, "open").unwrap()),
        steps: &[|scene| remove(scene, "open", true)],
        done: &["LayerNotFound"],
        ..CASE
    },
    Case {
        name: "reclaim",
        prepare: |scene| drop(remove(scene, "open", false).unwrap()),
        steps: &[|scene| said(scene.store.reclaim())],
        ..CASE
    },
    Case {
        name: "gc",
        prepare: leave_something,
        steps: &[|scene| {
            let garbage = scene.store.gc(UpkeepOptions::new())?;
            let kinds: Vec<_> = garbage.items.iter().map(|one| one.kind).collect();
            Ok(format!("{kinds:?}"))
        }],
        ..CASE
    },
    Case {
        name: "repair",
        prepare: damage,
        steps: &[|scene| {
            // What it could not look at it leaves, and says so.
            let first = scene.store.repair(UpkeepOptions::new())?;
            match first.left.is_sound() {
                true => Ok(String::new()),
                false => said(scene.store.repair(UpkeepOptions::new())),
            }
        }],
        ..CASE
    },
    Case {
        name: "set limits",
        steps: &[|scene| {
            let limits = Limits::UNLIMITED.bytes(Some(Bytes::new(1 << 24)));
            said(scene.store.set_limits(&id("work"), limits))
        }],
        limits: true,
        ..CASE
    },
    Case {
        name: "limit a layer without a project",
        steps: &[|scene| {
            let change = |now: Limits| now.inodes(Some(60));
            said(scene.store.change_limits(&id("open"), change))
        }],
        limits: true,
        ..CASE
    },
];

/// Mounting.
pub(super) const MOUNTS: &[Case] = &[
    Case {
        name: "mount",
        steps: &[|scene| mount(scene, "work")],
        ..CASE
    },
    Case {
        name: "mount by lowerdir+",
        steps: &[|scene| mount_as(scene, "work", Strategy::LowerdirPlus)],
        ..CASE
    },
    Case {
        name: "mount with relative paths",
        steps: &[|scene| mount_as(scene, "work", Strategy::MountRelative)],
        ..CASE
    },
    Case {
        name: "mount a base",
        steps: &[|scene| mount(scene, "lone")],
        ..CASE
    },
    Case {
        name: "mount a sealed layer",
        steps: &[|scene| mount(scene, "top")],
        ..CASE
    },
    Case {
        name: "mount volatile",
        steps: &[|scene| said(scene.store.mount(&id("work"), &volatile()))],
        volatile: true,
        ..CASE
    },
    Case {
        name: "mount twice",
        prepare: |scene| drop(mount(scene, "work").unwrap()),
        steps: &[|scene| {
            let request = MountRequest::new().hold(Hold::Process);
            said(scene.store.mount(&id("work"), &request))
        }],
        ..CASE
    },
    Case {
        name: "unmount one of two",
        prepare: |scene| {
            mount(scene, "work").unwrap();
            mount(scene, "work").unwrap();
        },
        steps: &[|scene| said(scene.store.unmount(&id("work"), UnmountMode::Now))],
        done: &["NotMounted"],
        ..CASE
    },
    Case {
        name: "unmount",
        prepare: |scene| drop(mount(scene, "work").unwrap()),
        steps: &[|scene| said(scene.store.unmount(&id("work"), UnmountMode::Now))],
        done: &["NotMounted"],
        ..CASE
    },
    Case {
        name: "unmount volatile",
        prepare: |scene| drop(scene.store.mount(&id("work"), &volatile()).unwrap()),
        steps: &[|scene| said(scene.store.unmount(&id("work"), UnmountMode::Now))],
        done: &["NotMounted"],
        volatile: true,
        ..CASE
    },
    Case {
        name: "unmount lazily",
        prepare: |scene| drop(mount(scene, "work").unwrap()),
        steps: &[|scene| said(scene.store.unmount(&id("work"), UnmountMode::Lazy))],
        done: &["NotMounted"],
        ..CASE
    },
    Case {
        name: "unmount all",
        prepare: |scene| {
            mount(scene, "work").unwrap();
            mount(scene, "lone").unwrap();
        },
        steps: &[|scene| said(scene.store.unmount_all(UnmountMode::Now))],
        ..CASE
    },
];

/// Several operations.
pub(super) const SCRIPTS: &[Case] = &[
    Case {
        name: "build and stand on it",
        steps: &[
            |scene| said(scene.store.create(&layer("a", Some("top")))),
            |scene| said(apply(&scene.store, &id("a"), &archive(b"a"))),
            |scene| said(scene.store.create_writable(&layer("b", Some("a")))),
        ],
        done: &["AlreadyExists"],
        ..CASE
    },
    Case {
        name: "write and commit",
        steps: &[
            |scene| mount(scene, "work"),
            |scene| {
                write(scene, "work/merged/dir/written");
                said(scene.store.unmount(&id("work"), UnmountMode::Now))
            },
            |scene| said(scene.store.create(&layer("commit", Some("work")))),
        ],
        done: &["AlreadyExists", "NotMounted"],
        unsure: &["work"],
        ..CASE
    },
    Case {
        name: "the same name again",
        steps: &[
            |scene| {
                said(import(
                    &scene.store,
                    &layer("again", None),
                    &archive(b"one"),
                ))
            },
            |scene| remove(scene, "again", false),
            |scene| {
                said(import(
                    &scene.store,
                    &layer("again", Some("base")),
                    &second(),
                ))
            },
            |scene| said(scene.store.reclaim()),
        ],
        done: &["AlreadyExists", "LayerNotFound"],
        ..CASE
    },
    Case {
        name: "a stack comes and goes",
        steps: &[
            |scene| said(import(&scene.store, &layer("a", None), &archive(b"a"))),
            |scene| said(import(&scene.store, &layer("b", Some("a")), &second())),
            |scene| remove(scene, "b", false),
            |scene| remove(scene, "a", false),
            |scene| said(scene.store.gc(UpkeepOptions::new())),
        ],
        done: &["AlreadyExists", "LayerNotFound"],
        ..CASE
    },
];

/// All of them.
pub(super) fn all() -> impl Iterator<Item = &'static Case> {
    READING.iter().chain(LAYERS).chain(MOUNTS).chain(SCRIPTS)
}

/// A fault that never comes: the journal begins anew.
pub(super) const NO_FAULT: Fault = Fault::Once {
    at: u64::MAX,
    errno: 5,
};

#[test]
fn each_case_has_a_name_of_its_own() {
    let mut names: Vec<&OsStr> = all().map(|case| OsStr::new(case.name)).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
