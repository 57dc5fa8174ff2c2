//! Several processes at once, with every operation on the kernel in an order that is drawn: whatever
//! the order, one wins, counts are right, nobody is told of damage, and nobody waits forever.

use std::cell::Cell;
use std::env;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Base, CreateLayer, Durability, Error, ErrorKind, Hold, ImportOptions, Kernel, MountRequest,
    OpenOptions, UpkeepOptions,
};
use ovl_layout::LayerId;
use ovl_mount::{MountBackend as _, UnmountMode};
use ovl_quota::{Bytes, Limits};
use ovl_testkit::{
    Actor, ArchiveBuilder, Interleaved, KernelProfile, MockKernel, Order, SharedKernel, interleave,
    interleave_threads,
};

/// Orders that each test tries.
const ORDERS: u64 = 250;
/// How many it tries instead.
const COUNT: &str = "OVL_SCHEDULES";
/// The only one to try: that of a failure.
const SEED: &str = "OVL_SCHEDULE_SEED";

fn id(text: &str) -> LayerId {
    text.parse().unwrap()
}

fn layer(text: &str, parent: Option<&str>) -> CreateLayer {
    CreateLayer::new(id(text)).parent(parent.map(id))
}

fn open(kernel: Kernel) -> Overlay2 {
    // Syncs are many, and no two processes meet in them.
    let options = OpenOptions::new().create(true).durability(Durability::None);
    Overlay2::open(kernel, Path::new("/home"), options).unwrap()
}

fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

type Work<'w, T> = Box<dyn FnOnce(&Overlay2) -> T + Send + 'w>;

/// One home, and processes that work on it in many orders.
struct Race {
    mock: MockKernel,
    /// Another process than those that race, or the one that has all threads.
    store: Overlay2,
    shared: SharedKernel,
    /// Operations of the actor that is stopped, before it was.
    alone: Cell<usize>,
}

impl Race {
    fn new(prepare: impl Fn(&Overlay2)) -> Self {
        let mock = MockKernel::new(KernelProfile::modern());
        let shared = SharedKernel::new(mock.kernel());
        let store = open(shared.kernel());
        prepare(&store);
        Self {
            mock,
            store,
            shared,
            alone: Cell::new(0),
        }
    }

    /// Each as a process of its own, with a store of its own.
    fn run<T: Send>(&self, order: impl Into<Order>, all: Vec<Work<'_, T>>) -> Vec<T> {
        let order = order.into();
        let pids = 2000..;
        let actors = all.into_iter().zip(pids).map(|(work, pid)| {
            let kernel = self.mock.as_process(pid).kernel();
            Actor::new(kernel, move |kernel| work(&open(kernel)))
        });
        self.ended(order, interleave(order, actors.collect()))
    }

    /// Each as a thread of one process, with the one store.
    fn run_threads<T: Send>(&self, order: Order, all: Vec<Work<'_, T>>) -> Vec<T> {
        let store = &self.store;
        let threads = all.into_iter().map(|work| {
            let thread: Box<dyn FnOnce() -> T + Send + '_> = Box::new(move || work(store));
            thread
        });
        let done = interleave_threads(order, &self.shared, threads.collect());
        self.ended(order, done)
    }

    fn ended<T>(&self, order: Order, done: Interleaved<T>) -> Vec<T> {
        assert!(!done.deadlocked, "all wait for each other:\n{}", done.trace);
        if let Order::Stop { actor, .. } = order {
            self.alone.set(done.trace.alone(actor));
        }
        done.results
    }

    fn layers(&self) -> Vec<String> {
        let list = self.store.layers().unwrap();
        assert!(list.broken.is_empty(), "{:?}", list.broken);
        list.layers.iter().map(|one| one.id.to_string()).collect()
    }

    fn holds(&self, name: &str) -> u64 {
        let info = self.store.inspect(&id(name)).unwrap();
        info.mount.map_or(0, |mount| mount.holds())
    }

    /// The home is sound, and clean once it is cleaned.
    fn ends_well(&self) {
        let report = self.store.check().unwrap();
        assert!(report.is_sound(), "{report:#?}");
        self.layers();
        self.store.gc(UpkeepOptions::new()).unwrap();
        let report = self.store.check().unwrap();
        assert!(report.is_clean(), "{report:#?}");
    }
}

fn retold(order: &str, race: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(race)) {
        println!("{order}");
        resume_unwind(panic);
    }
}

/// Tries a race in many orders. Afterwards the home is sound, and clean once it is cleaned.
fn in_many_orders(prepare: impl Fn(&Overlay2), race: impl Fn(&Race, u64)) {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number(SEED) {
        Some(seed) => seed..seed + 1,
        None => 0..number(COUNT).unwrap_or(ORDERS),
    };
    for seed in seeds {
        let one = Race::new(&prepare);
        retold(
            &format!("order {seed}: {SEED}={seed} tries it again"),
            || {
                race(&one, seed);
                one.ends_well();
            },
        );
    }
}

/// Stops each of so many actors once, at every point that it comes to, while the others do all that
/// they can.
fn at_every_point(
    actors: usize,
    prepare: impl Fn(&Overlay2),
    race: impl Fn(&Race, Order),
) -> usize {
    let mut points = 0;
    for actor in 0..actors {
        for after in 0.. {
            let (one, order) = (Race::new(&prepare), Order::Stop { actor, after });
            retold(&format!("{order:?}"), || race(&one, order));
            points += 1;
            if one.alone.get() < after {
                break;
            }
        }
    }
    points
}

fn archive() -> Vec<u8> {
    let archive = ArchiveBuilder::new().dir("dir", 0o755);
    archive.file("dir/file", b"contents").finish()
}

fn import(store: &Overlay2, name: &str, parent: Option<&str>) -> Result<(), Error> {
    let (archive, options) = (archive(), ImportOptions::new());
    let made = store.import(&layer(name, parent), &*archive, options, &mut |_| {});
    made.map(drop)
}

fn apply(store: &Overlay2, name: &str) -> Result<(), Error> {
    let (archive, options) = (archive(), ImportOptions::new());
    let applied = store.apply(&id(name), &*archive, options, &mut |_| {});
    applied.map(drop)
}

fn mount(store: &Overlay2, name: &str) -> Result<(), Error> {
    store.mount(&id(name), &MountRequest::new()).map(drop)
}

fn unmount(store: &Overlay2, name: &str) -> Result<u64, Error> {
    store.unmount(&id(name), UnmountMode::Now)
}

#[test]
fn of_three_makers_of_a_layer_one_wins() {
    in_many_orders(
        |store| store.create(&layer("base", None)).unwrap(),
        |race, seed| {
            let results = race.run::<Option<ErrorKind>>(
                seed,
                vec![
                    Box::new(|store| kind(store.create(&layer("new", None)))),
                    Box::new(|store| kind(store.create_writable(&layer("new", Some("base"))))),
                    Box::new(|store| kind(import(store, "new", Some("base")))),
                ],
            );
            let won = results.iter().filter(|result| result.is_none()).count();
            assert_eq!(won, 1, "{results:?}");
            let others = results.iter().flatten();
            assert!(
                others
                    .into_iter()
                    .all(|kind| *kind == ErrorKind::AlreadyExists)
            );
            let has_parent = results[0].is_some();
            let info = race.store.inspect(&id("new")).unwrap();
            assert_eq!(info.parent.is_some(), has_parent);
        },
    );
}

#[test]
fn a_child_has_its_parent_or_is_not_made() {
    in_many_orders(
        |store| store.create(&layer("base", None)).unwrap(),
        |race, seed| {
            let results = race.run::<Option<ErrorKind>>(
                seed,
                vec![
                    Box::new(|store| kind(store.create(&layer("one", Some("base"))))),
                    Box::new(|store| kind(import(store, "other", Some("base")))),
                    Box::new(|store| kind(store.remove(&id("base"), false))),
                ],
            );
            let layers = race.layers();
            let made = ["one", "other"].map(|name| layers.iter().any(|one| one == name));
            assert_eq!(made, [results[0].is_none(), results[1].is_none()]);
            let removed = results[2].is_none();
            assert_eq!(layers.contains(&"base".to_owned()), !removed);
            assert!(!(removed && made.contains(&true)), "{results:?}");
            assert!(removed || results[2] == Some(ErrorKind::Busy));
            for result in &results[..2] {
                assert!(
                    matches!(result, None | Some(ErrorKind::NotFound)),
                    "{results:?}"
                );
            }
            if made.contains(&true) {
                assert!(race.store.inspect(&id("base")).unwrap().sealed);
            }
        },
    );
}

#[test]
fn the_last_child_goes_before_its_parent_does() {
    in_many_orders(
        |store| {
            store.create(&layer("base", None)).unwrap();
            store.create(&layer("child", Some("base"))).unwrap();
        },
        |race, seed| {
            let results = race.run::<Option<ErrorKind>>(
                seed,
                vec![
                    Box::new(|store| kind(store.remove(&id("child"), false))),
                    Box::new(|store| kind(store.create(&layer("new", Some("base"))))),
                    Box::new(|store| {
                        let first = kind(store.remove(&id("base"), false));
                        first.and_then(|_| kind(store.remove(&id("base"), true)))
                    }),
                ],
            );
            assert_eq!(results[0], None);
            let layers = race.layers();
            let made = results[1].is_none();
            let expected = if made { vec!["base", "new"] } else { vec![] };
            match results[2] {
                None => assert!(!made && layers.is_empty(), "{results:?} {layers:?}"),
                Some(kind) => {
                    assert_eq!(kind, ErrorKind::Busy);
                    let expected = if made { expected } else { vec!["base"] };
                    assert_eq!(layers, expected, "{results:?}");
                }
            }
        },
    );
}

#[test]
fn mounts_are_counted_and_no_mounted_layer_is_removed() {
    in_many_orders(
        |store| {
            store.create(&layer("base", None)).unwrap();
            store.create(&layer("work", Some("base"))).unwrap();
        },
        |race, seed| {
            let hold = |store: &Overlay2| {
                match mount(store, "work") {
                    Ok(()) => unmount(store, "work").unwrap(),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                        return Some(error.kind());
                    }
                };
                None
            };
            let results = race.run::<Option<ErrorKind>>(
                seed,
                vec![
                    Box::new(hold),
                    Box::new(hold),
                    Box::new(|store| kind(store.remove(&id("work"), false))),
                ],
            );
            assert!(
                matches!(results[2], None | Some(ErrorKind::Busy)),
                "{results:?}"
            );
            assert_eq!(
                race.layers().len(),
                if results[2].is_none() { 1 } else { 2 }
            );
            assert_eq!(race.mock.mounts_below(Path::new("/home")).unwrap(), []);
            if results[2].is_some() {
                assert_eq!(results[..2], [None, None]);
            }
        },
    );
}

#[test]
fn a_mount_stays_for_as_long_as_somebody_holds_it() {
    in_many_orders(
        |store| store.create(&layer("work", None)).unwrap(),
        |race, seed| {
            race.run::<()>(
                seed,
                vec![
                    Box::new(|store| mount(store, "work").unwrap()),
                    Box::new(|store| {
                        mount(store, "work").unwrap();
                        unmount(store, "work").unwrap();
                    }),
                    Box::new(|store| {
                        let request = MountRequest::new().hold(Hold::Process);
                        store.mount(&id("work"), &request).unwrap();
                    }),
                ],
            );
            assert_eq!(race.holds("work"), 2);
            // The process that holds it.
            race.mock.kill(2002);
            assert_eq!(race.holds("work"), 1);
            assert_eq!(unmount(&race.store, "work").unwrap(), 0);
        },
    );
}

#[test]
fn cleaning_up_takes_nothing_that_is_being_made() {
    in_many_orders(
        |store| {
            store.create(&layer("base", None)).unwrap();
            store.create(&layer("gone", None)).unwrap();
            store.remove(&id("gone"), false).unwrap();
        },
        |race, seed| {
            race.run::<()>(
                seed,
                vec![
                    Box::new(|store| import(store, "new", Some("base")).unwrap()),
                    Box::new(|store| {
                        store.gc(UpkeepOptions::new()).unwrap();
                        store.reclaim().unwrap();
                    }),
                    Box::new(|store| {
                        store.gc(UpkeepOptions::new()).unwrap();
                        store.create_writable(&layer("other", None)).unwrap();
                    }),
                ],
            );
            assert_eq!(race.layers(), ["base", "new", "other"]);
        },
    );
}

#[test]
fn whoever_opens_a_home_takes_away_what_the_dead_left_and_nothing_else() {
    in_many_orders(
        |store| store.create(&layer("base", None)).unwrap(),
        |race, seed| {
            // As a process leaves it that is killed.
            let staging = Path::new("/home/.ovl/staging/AAAAAAAAAAAAAAAAAAAAAAAAAA");
            race.mock.mkdir_all(&staging.join("diff")).unwrap();
            race.run::<()>(
                seed,
                vec![
                    Box::new(|store| import(store, "new", Some("base")).unwrap()),
                    // Every actor opens the home first.
                    Box::new(|store| assert!(store.check().unwrap().is_sound())),
                    Box::new(|store| store.create(&layer("other", Some("base"))).unwrap()),
                ],
            );
            assert_eq!(race.layers(), ["base", "new", "other"]);
            assert!(race.store.check().unwrap().is_clean());
        },
    );
}

#[test]
fn whoever_looks_or_repairs_while_others_work_finds_no_damage() {
    in_many_orders(
        |store| {
            store.create(&layer("base", None)).unwrap();
            store.create(&layer("old", Some("base"))).unwrap();
        },
        |race, seed| {
            race.run::<()>(
                seed,
                vec![
                    Box::new(|store| {
                        store.create(&layer("new", Some("base"))).unwrap();
                        store.remove(&id("old"), false).unwrap();
                    }),
                    Box::new(|store| {
                        let report = store.check().unwrap();
                        assert!(report.is_sound(), "{report:#?}");
                        let list = store.layers().unwrap();
                        assert!(list.broken.is_empty(), "{list:?}");
                    }),
                    Box::new(|store| {
                        let repaired = store.repair(UpkeepOptions::new()).unwrap();
                        assert!(repaired.left.is_sound(), "{repaired:#?}");
                    }),
                ],
            );
            assert_eq!(race.layers(), ["base", "new"]);
        },
    );
}

#[test]
fn an_archive_comes_whole_or_not_at_all_and_never_under_a_child() {
    in_many_orders(
        |store| store.create(&layer("work", None)).unwrap(),
        |race, seed| {
            let results = race.run::<Option<ErrorKind>>(
                seed,
                vec![
                    Box::new(|store| kind(apply(store, "work"))),
                    Box::new(|store| kind(store.create(&layer("child", Some("work"))))),
                    Box::new(|store| kind(mount(store, "work"))),
                ],
            );
            for result in &results {
                assert!(
                    matches!(result, None | Some(ErrorKind::Busy)),
                    "{results:?}"
                );
            }
            let changes = race.store.changes(&id("work"), &Base::Empty).unwrap();
            assert_eq!(changes.len(), if results[0].is_none() { 2 } else { 0 });
            let child = results[1].is_none();
            assert_eq!(race.store.inspect(&id("work")).unwrap().sealed, child);
            if results[2].is_none() {
                let mount = race.store.inspect(&id("work")).unwrap().mount.unwrap();
                let read_only = mount.access == ovl_mount::Access::ReadOnly;
                assert!(read_only || !child, "a child on a layer that is written to");
                unmount(&race.store, "work").unwrap();
            }
        },
    );
}

#[test]
fn a_layer_moves_into_its_project_once() {
    in_many_orders(
        |store| store.create(&layer("work", None)).unwrap(),
        |race, seed| {
            let limits = |mib: u64| Limits::UNLIMITED.bytes(Some(Bytes::new(mib << 20)));
            let set =
                |mib| move |store: &Overlay2| kind(store.set_limits(&id("work"), limits(mib)));
            let results = race.run::<Option<ErrorKind>>(
                seed,
                vec![
                    Box::new(set(1)),
                    Box::new(set(2)),
                    Box::new(|store| {
                        kind(mount(store, "work").and_then(|()| unmount(store, "work")))
                    }),
                ],
            );
            for result in &results {
                assert!(
                    matches!(result, None | Some(ErrorKind::Busy)),
                    "{results:?}"
                );
            }
            let quota = race.store.quota(&id("work")).unwrap();
            let limit = quota.map(|quota| quota.usage.unwrap().limits);
            let possible: Vec<_> = [1, 2]
                .into_iter()
                .zip(&results)
                .filter(|(_, result)| result.is_none())
                .map(|(mib, _)| limits(mib))
                .collect();
            match limit {
                None => assert!(possible.is_empty(), "{results:?}"),
                Some(limit) => assert!(possible.contains(&limit), "{limit:?} {results:?}"),
            }
        },
    );
}

#[test]
fn a_layer_is_removed_once_and_its_id_is_free() {
    in_many_orders(
        |store| store.create_writable(&layer("one", None)).unwrap(),
        |race, seed| {
            let remove = |store: &Overlay2| {
                let removed = kind(store.remove(&id("one"), false));
                store.reclaim().unwrap();
                removed
            };
            let results = race.run::<Option<ErrorKind>>(
                seed,
                vec![
                    Box::new(remove),
                    Box::new(remove),
                    Box::new(|store| kind(store.create_writable(&layer("one", None)))),
                ],
            );
            let removed = results[..2].iter().filter(|one| one.is_none()).count();
            let made = usize::from(results[2].is_none());
            assert_eq!(race.layers().len(), 1 + made - removed, "{results:?}");
            assert!((1..=2).contains(&removed));
        },
    );
}

/// `gc` takes a note for one of a layer that is gone, and the layer is there again.
#[test]
fn whoever_cleans_up_takes_no_first_note_of_a_layer_made_meanwhile() {
    let points = at_every_point(
        2,
        |store| store.create(&layer("first", None)).unwrap(),
        |race, order| {
            let note = Path::new("/home/.ovl/holds/new");
            race.mock.write_file(note, b"of long ago").unwrap();
            race.run::<()>(
                order,
                vec![
                    Box::new(|store| drop(store.gc(UpkeepOptions::new()).unwrap())),
                    Box::new(|store| {
                        store.create(&layer("new", None)).unwrap();
                        mount(store, "new").unwrap();
                    }),
                ],
            );
            assert_eq!(race.holds("new"), 1);
            race.ends_well();
            assert_eq!(unmount(&race.store, "new").unwrap(), 0);
        },
    );
    assert!(points > 100, "{points} points");
}

#[test]
fn a_layer_of_the_same_id_keeps_its_holds_when_the_old_one_goes() {
    let points = at_every_point(
        2,
        |store| store.create(&layer("one", None)).unwrap(),
        |race, order| {
            let made = race.run::<bool>(
                order,
                vec![
                    Box::new(|store| {
                        let removed = kind(store.remove(&id("one"), false));
                        assert!(matches!(removed, None | Some(ErrorKind::Busy)));
                        removed.is_none()
                    }),
                    Box::new(|store| {
                        let made = store.create(&layer("one", None)).is_ok();
                        if made {
                            mount(store, "one").unwrap();
                        }
                        made
                    }),
                ],
            )[1];
            if made {
                assert_eq!(race.holds("one"), 1);
                assert_eq!(unmount(&race.store, "one").unwrap(), 0);
            }
            race.ends_well();
        },
    );
    assert!(points > 80, "{points} points");
}

#[test]
fn a_layer_is_made_and_mounted_beside_removals_and_upkeep() {
    in_many_orders(
        |store| {
            store.create(&layer("base", None)).unwrap();
            store.create(&layer("old", Some("base"))).unwrap();
            mount(store, "old").unwrap();
            unmount(store, "old").unwrap();
        },
        |race, seed| {
            race.run::<()>(
                seed,
                vec![
                    Box::new(|store| {
                        store.create(&layer("new", Some("base"))).unwrap();
                        mount(store, "new").unwrap();
                    }),
                    Box::new(|store| {
                        store.remove(&id("old"), true).unwrap();
                        store.gc(UpkeepOptions::new()).unwrap();
                    }),
                    Box::new(|store| {
                        store.gc(UpkeepOptions::new()).unwrap();
                        store.repair(UpkeepOptions::new()).unwrap();
                    }),
                ],
            );
            assert_eq!(race.layers(), ["base", "new"]);
            assert_eq!(race.holds("new"), 1);
            assert_eq!(unmount(&race.store, "new").unwrap(), 0);
        },
    );
}

/// A chain whose layers the store has found in order already.
fn known_chain(store: &Overlay2) {
    store.create(&layer("base", None)).unwrap();
    for name in ["mid", "side"] {
        store.create(&layer(name, Some("base"))).unwrap();
    }
    for name in ["work", "other"] {
        store.create(&layer(name, Some("mid"))).unwrap();
    }
    mount(store, "work").unwrap();
    unmount(store, "work").unwrap();
}

#[test]
fn threads_of_one_store_do_as_processes_do() {
    let points = at_every_point(3, known_chain, |race, order| {
        race.run_threads::<()>(
            order,
            vec![
                Box::new(|store| {
                    mount(store, "work").unwrap();
                    mount(store, "other").unwrap();
                    unmount(store, "work").unwrap();
                }),
                Box::new(|store| {
                    store.remove(&id("side"), false).unwrap();
                    store.create(&layer("new", Some("mid"))).unwrap();
                }),
                Box::new(|store| {
                    mount(store, "work").unwrap();
                    store.gc(UpkeepOptions::new()).unwrap();
                }),
            ],
        );
        assert_eq!(race.layers(), ["base", "mid", "new", "other", "work"]);
        assert_eq!((race.holds("work"), race.holds("other")), (1, 1));
        race.store.unmount_all(UnmountMode::Now).unwrap();
        race.ends_well();
    });
    assert!(points > 300, "{points} points");
}

/// Whether it was read before or after, the store believes in nothing that is not so.
#[test]
fn damage_beside_a_mount_is_found_by_the_next() {
    for known in [false, true] {
        let points = at_every_point(
            2,
            |store| {
                known_chain(store);
                if !known {
                    // What was remembered goes with the layer's time.
                    apply(store, "work").unwrap();
                }
            },
            |race, order| {
                race.run_threads::<()>(
                    order,
                    vec![
                        // It may have come first.
                        Box::new(|store| drop(mount(store, "work"))),
                        Box::new(|store| {
                            let tree = store.kernel().tree();
                            let mid = tree.open_root(Path::new("/home/mid")).unwrap();
                            tree.unlink(&mid, OsStr::new("lower")).unwrap();
                        }),
                    ],
                );
                for name in ["other", "other"] {
                    let error = mount(&race.store, name).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
                }
            },
        );
        assert!(points > 30, "{points} points");
    }
}

#[test]
fn the_same_seed_gives_the_same_order_and_others_another() {
    let trace = |seed| {
        let mock = MockKernel::new(KernelProfile::modern());
        open(mock.kernel());
        let create = |name: &'static str, pid| {
            let kernel = mock.as_process(pid).kernel();
            Actor::new(kernel, move |kernel| {
                open(kernel).create(&layer(name, None)).unwrap();
            })
        };
        let done = interleave(seed, vec![create("a", 2000), create("b", 2001)]);
        done.trace
    };
    assert_eq!(trace(0).to_string(), trace(0).to_string());
    let switches: Vec<usize> = (0..6).map(|seed| trace(seed).switches()).collect();
    assert!(switches[0] > 20 && switches[2] < 10, "{switches:?}");
}

#[test]
fn who_waits_for_each_other_is_told() {
    let mock = MockKernel::new(KernelProfile::modern());
    mock.mkdir_all(Path::new("/a")).unwrap();
    mock.mkdir_all(Path::new("/b")).unwrap();
    let lock_both = |first: &'static str, second: &'static str, pid| {
        Actor::new(mock.as_process(pid).kernel(), move |kernel: Kernel| {
            let root = kernel.tree().open_root(Path::new("/")).unwrap();
            let lock = |name: &str| {
                let kind = ovl_driver::LockKind::Exclusive;
                kernel.system().lock(&root, Some(name.as_ref()), kind, true)
            };
            let _first = lock(first);
            lock(second).is_ok()
        })
    };
    let deadlocks = (0..60).filter(|seed| {
        let actors = vec![lock_both("a", "b", 2000), lock_both("b", "a", 2001)];
        let done = interleave(*seed, actors);
        assert_eq!(done.deadlocked, done.results.contains(&false));
        done.deadlocked
    });
    let deadlocks = deadlocks.count();
    assert!((1..60).contains(&deadlocks), "{deadlocks} of 60");
}
