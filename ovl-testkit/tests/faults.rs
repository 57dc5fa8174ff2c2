//! Operations that fail, and trees that change under whoever reads them.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ovl_diff::{Node, TreeBackend as _};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Base, CreateLayer, Durability, Error, ErrorKind, ImportOptions, LockKind, MountRequest,
    OpenOptions, SystemBackend as _, UpkeepOptions,
};
use ovl_layout::LayerId;
use ovl_mount::{MountBackend as _, MountError, UnmountMode};
use ovl_testkit::{ArchiveBuilder, Fault, Faulty, KernelProfile, MockKernel, Outcome};

const EIO: i32 = 5;
const EBUSY: i32 = 16;
const EACCES: i32 = 13;
const EMFILE: i32 = 24;

fn id(id: &str) -> LayerId {
    id.parse().unwrap()
}

fn layer(name: &str, parent: Option<&str>) -> CreateLayer {
    CreateLayer::new(id(name)).parent(parent.map(id))
}

/// The kernel's number, wherever in the chain of causes.
fn errno_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.find_map(|error| error.downcast_ref::<std::io::Error>()?.raw_os_error())
}

/// A home with a layer on a layer, on a kernel that fails on order.
fn two_layers() -> (MockKernel, Faulty, Overlay2) {
    let mock = MockKernel::new(KernelProfile::modern());
    let faulty = Faulty::new(mock.kernel());
    let options = OpenOptions::new().create(true);
    let store = Overlay2::open(faulty.kernel(), Path::new("/home"), options).unwrap();
    let archive = ArchiveBuilder::new()
        .dir("dir", 0o755)
        .file("dir/file", b"file")
        .finish();
    let options = ImportOptions::new();
    store
        .import(&layer("base", None), &*archive, options, &mut |_| {})
        .unwrap();
    store.create(&layer("parent", Some("base"))).unwrap();
    (mock, faulty, store)
}

#[test]
fn row_137_a_read_error_on_lower_fails_the_create() {
    for errno in [EIO, EACCES, EMFILE] {
        let (_, faulty, store) = two_layers();
        for call in ["open_file", "read_at"] {
            let mut lower = false;
            faulty.order_where(move |now, subject| {
                let here = match call {
                    "open_file" => now == call && subject == "lower",
                    // Of the file that was opened last.
                    _ => now == call && subject == "an open file" && lower,
                };
                if now == "open_file" {
                    lower = subject == "lower";
                }
                here.then_some(errno)
            });
            let error = store
                .create(&layer("child", Some("parent")))
                .expect_err("nobody knows what the parent stands on");
            assert!(faulty.has_fired(), "{call}");
            assert_eq!(errno_of(&error), Some(errno), "{call}: {error:?}");
            faulty.heal();
            let names: Vec<_> = store.layers().unwrap().layers;
            assert_eq!(names.len(), 2, "nothing was made");
        }
        store.create(&layer("child", Some("parent"))).unwrap();
        let child = store.inspect(&id("child")).unwrap();
        assert_eq!(child.chain, [id("parent"), id("base")]);
    }
}

/// Swaps `dir` of a layer for a link to the victim's at the given call for it, once.
fn swap_at(mock: &MockKernel, faulty: &Faulty, layer: &str, call: &'static str) {
    let (mock, done) = (mock.clone(), AtomicBool::new(false));
    let path = Path::new("/home").join(layer).join("diff");
    faulty.order_where(move |now, subject| {
        if now == call && subject == "dir" && !done.swap(true, Ordering::Relaxed) {
            let diff = mock.open_root(&path).unwrap();
            let home = mock.open_root(Path::new("/")).unwrap();
            let (from, to) = (OsStr::new("dir"), OsStr::new("moved"));
            let mode = ovl_diff::RenameMode::Replace;
            mock.rename(&diff, from, &home, to, mode).unwrap();
            mock.create_symlink(&diff, from, OsStr::new("/victim"))
                .unwrap();
        }
        None
    });
}

#[test]
fn row_180_a_directory_swapped_for_a_link_leads_nobody_out() {
    for call in ["open_dir", "metadata"] {
        let (mock, faulty, store) = two_layers();
        mock.mkdir_all(Path::new("/victim")).unwrap();
        mock.write_file(Path::new("/victim/secret"), b"secret")
            .unwrap();

        swap_at(&mock, &faulty, "base", call);
        let mut archive = Vec::new();
        let exported = store.diff(&id("base"), &Base::Parent, &mut archive);
        assert!(!archive.windows(6).any(|bytes| bytes == b"secret"));
        assert!(
            exported.is_err(),
            "{call}: what changed is no whole archive"
        );

        let (mock, faulty, store) = two_layers();
        mock.mkdir_all(Path::new("/victim")).unwrap();
        mock.write_file(Path::new("/victim/secret"), b"secret")
            .unwrap();
        store.remove(&id("parent"), false).unwrap();
        swap_at(&mock, &faulty, "base", call);
        // Whether the size or the removal sees the link or the directory, it stays in the layer.
        let _ = store.size(&id("base"), &Base::Empty);
        store.remove(&id("base"), false).unwrap();
        store.reclaim().unwrap();
        let secret = mock.read_file(Path::new("/victim/secret")).unwrap();
        assert_eq!(secret, b"secret", "{call}");
    }
}

#[test]
fn a_mount_that_fails_at_any_operation_is_gone_or_held() {
    let (_, faulty, store) = two_layers();
    let mut at = 1;
    loop {
        faulty.order(ovl_testkit::Fault::Once { at, errno: EIO });
        let mounted = store.mount(&id("parent"), &ovl_driver::MountRequest::new());
        let fired = faulty.has_fired();
        faulty.heal();
        let state = store.inspect(&id("parent")).unwrap().mount;
        assert_eq!(mounted.is_ok(), state.is_some(), "operation {at}");
        if mounted.is_ok() {
            store.unmount(&id("parent"), UnmountMode::Now).unwrap();
        }
        if !fired {
            break;
        }
        at += 1;
    }
    assert!(at > 20, "{at} operations");
}

/// Otherwise only `gc` with Docker stopped takes the link away: nobody knows any more whose it is.
#[test]
fn a_link_stays_ours_when_its_layer_cannot_be_looked_at() {
    for errno in [EIO, EACCES, EMFILE] {
        let (_, faulty, store) = two_layers();
        let mut calls = 0;
        // From the link on everything fails, so that nothing is taken back.
        faulty.order_where(move |call, _| {
            calls += u32::from(call == "create_symlink" || calls > 0);
            (calls > 1).then_some(errno)
        });
        store.create(&layer("half", Some("base"))).unwrap_err();
        faulty.heal();
        let mut looked = false;
        faulty.order_where(move |call, subject| {
            let now = call == "open_dir" && subject == "half" && !looked;
            looked |= now;
            now.then_some(errno)
        });
        let _ = store.gc(UpkeepOptions::new());
        faulty.heal();
        store.gc(UpkeepOptions::new()).unwrap();
        let report = store.check().unwrap();
        assert!(report.is_clean(), "{report:#?}");
    }
}

#[test]
fn a_create_that_cannot_take_its_link_back_leaves_what_gc_takes() {
    let (_, faulty, store) = two_layers();
    let mut renames = 0;
    faulty.order_where(move |call, subject| {
        // The one that publishes, and the look at whether it did.
        let publishes = call == "rename" && subject.ends_with(" to half");
        renames += u32::from(publishes);
        (publishes || (renames > 0 && call == "open_dir" && subject == "half")).then_some(EIO)
    });
    store.create(&layer("half", Some("base"))).unwrap_err();
    assert!(faulty.has_fired());
    faulty.heal();
    store.gc(UpkeepOptions::new()).unwrap();
    let report = store.check().unwrap();
    assert!(report.is_clean(), "{report:#?}");
}

/// Another process takes half a layer away and makes a whole one of its name, at any point of `gc`.
#[test]
fn gc_takes_no_layer_that_was_half_of_one_when_it_looked() {
    for at in 1.. {
        let (mock, faulty, store) = two_layers();
        let half = Path::new("/home/half");
        mock.mkdir_all(&half.join("diff")).unwrap();
        let other = mock.as_process(2);
        let options = OpenOptions::new();
        let maker = Overlay2::open(other.kernel(), Path::new("/home"), options).unwrap();
        let made = Arc::new(AtomicBool::new(false));
        let (mut count, done) = (0, made.clone());
        faulty.order_where(move |_, _| {
            count += 1;
            if count != at {
                return None;
            }
            let home = other.open_root(Path::new("/home")).unwrap();
            let (name, kind) = (OsStr::new("half"), LockKind::Exclusive);
            // Who holds it is about to take it away.
            let free = other.lock(&home, Some(name), kind, false);
            if free.is_ok_and(|lock| lock.is_some()) {
                let dir = other.open_dir(&home, name).unwrap();
                other.remove_dir(&dir, OsStr::new("diff")).unwrap();
                other.remove_dir(&home, name).unwrap();
                maker.create(&layer("half", Some("base"))).unwrap();
                done.store(true, Ordering::Relaxed);
            }
            None
        });
        store.gc(UpkeepOptions::new().docker_stopped(true)).unwrap();
        let count = faulty.count();
        faulty.heal();
        let layers = store.layers().unwrap().layers;
        let whole = layers.iter().any(|layer| layer.id == id("half"));
        assert_eq!(whole, made.load(Ordering::Relaxed), "operation {at}");
        assert!(store.check().unwrap().is_clean(), "operation {at}");
        if at > count {
            assert!(count > 100, "{count} operations");
            break;
        }
    }
}

/// A look at the home saw the read error, the next one the damage; neither saw the same twice.
#[test]
fn a_read_error_that_does_not_last_hides_no_damage() {
    for at in 1.. {
        let (mock, faulty, store) = two_layers();
        let base = mock.open_root(Path::new("/home/base")).unwrap();
        mock.unlink(&base, OsStr::new("committed")).unwrap();
        let mut count = 0;
        faulty.order_where(move |call, subject| {
            let here = call == "open_file" && subject == ".ovl-layer";
            count += u32::from(here);
            (here && count == at).then_some(EIO)
        });
        let report = store.check().unwrap();
        assert!(!report.is_sound(), "record {at}: {report:#?}");
        if !faulty.has_fired() {
            break;
        }
    }
}

/// Another process makes a layer of the same id, on another parent, while this one is built.
#[test]
fn a_layer_that_comes_too_late_seals_no_parent() {
    let (mock, faulty, store) = two_layers();
    let other = mock.as_process(2);
    let maker = Overlay2::open(other.kernel(), Path::new("/home"), OpenOptions::new()).unwrap();
    let mut made = false;
    faulty.order_where(move |call, subject| {
        if call == "create_file" && subject == "link" && !made {
            made = true;
            maker.create(&layer("child", Some("base"))).unwrap();
        }
        None
    });
    let error = store.create(&layer("child", Some("parent"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    faulty.heal();
    let parent = store.inspect(&id("parent")).unwrap();
    assert!(!parent.sealed, "nothing stands on it");
    store.create(&layer("second", Some("parent"))).unwrap();
    assert!(store.inspect(&id("parent")).unwrap().sealed);
    assert!(store.check().unwrap().is_clean());
}

/// What a killed process left, and the contents of a layer that failed, may take long to go.
#[test]
fn a_removal_in_staging_is_in_no_layers_way() {
    let big = ArchiveBuilder::new()
        .dir("dir", 0o755)
        .file("dir/last", b"last")
        .finish();
    for is_killed in [true, false] {
        let (mock, faulty, store) = two_layers();
        // The archive is cut short, and nothing is taken back where the process is killed.
        let cut = &big[..big.len() - 1500];
        let mut stopped = false;
        faulty.order_where(move |call, subject| {
            stopped |= is_killed && call == "create_file" && subject == "last";
            stopped.then_some(EIO)
        });
        let options = ImportOptions::new();
        let apply = |store: &Overlay2| {
            let applied = store.apply(&id("parent"), cut, options, &mut |_| {});
            applied.unwrap_err()
        };
        if is_killed {
            apply(&store);
        }
        let neighbour = mock.as_process(2);
        let options = OpenOptions::new();
        let neighbour = Overlay2::open(neighbour.kernel(), Path::new("/home"), options).unwrap();
        let asked = Arc::new(AtomicBool::new(false));
        let done = asked.clone();
        faulty.order_where(move |call, subject| {
            if call == "remove_dir" && subject == "dir" && !done.swap(true, Ordering::Relaxed) {
                neighbour.remove(&id("parent"), false).unwrap();
            }
            None
        });
        match is_killed {
            true => drop(store.gc(UpkeepOptions::new()).unwrap()),
            false => drop(apply(&store)),
        }
        assert!(asked.load(Ordering::Relaxed), "killed: {is_killed}");
        faulty.heal();
        store.gc(UpkeepOptions::new()).unwrap();
        assert!(store.check().unwrap().is_clean(), "killed: {is_killed}");
    }
}

/// Damaged layers, and those of other programs, make the index of children doubtful for good.
#[test]
fn a_mount_in_a_mixed_home_reads_no_other_layer() {
    let (mock, faulty, store) = two_layers();
    store.create(&layer("others", None)).unwrap();
    store.create(&layer("damaged", Some("base"))).unwrap();
    let remove = |layer: &str, file| {
        let dir = mock.open_root(&Path::new("/home").join(layer)).unwrap();
        mock.unlink(&dir, OsStr::new(file)).unwrap();
    };
    remove("others", ".ovl-layer");
    remove("damaged", "link");
    // Another program has made it.
    mock.mkdir_all(Path::new("/home/l/theirs")).unwrap();
    let request = ovl_driver::MountRequest::new();
    let looks_at = |others: &str| {
        faulty.heal();
        store.mount(&id("parent"), &request).unwrap();
        let journal = faulty.journal();
        store.unmount(&id("parent"), UnmountMode::Now).unwrap();
        let mut operations = journal.operations().iter();
        operations.any(|one| one.call == "open_dir" && one.subject == others)
    };
    assert!(looks_at("others"), "nobody has looked yet");
    assert!(!looks_at("others"));
    // What the store itself makes is known.
    store.create(&layer("new", Some("base"))).unwrap();
    assert!(!looks_at("others"));
    // What others make is not.
    mock.mkdir_all(Path::new("/home/l/more")).unwrap();
    assert!(looks_at("others"));
    // A lost mark is found by what is noted.
    store.create(&layer("child", Some("parent"))).unwrap();
    remove("parent", "committed");
    assert!(!looks_at("others"));
    assert!(store.inspect(&id("parent")).unwrap().sealed);
}

/// Its stamp was a file that could have the name of a layer.
#[test]
fn a_parent_may_have_any_name_beside_the_index() {
    let (_, _, store) = two_layers();
    // Brings the index up to date.
    store.remove(&id("parent"), false).unwrap();
    for name in ["current", "seen"] {
        store.create(&layer(name, None)).unwrap();
        store.create(&layer("child", Some(name))).unwrap();
        store.remove(&id(name), false).unwrap_err();
        store.remove(&id("child"), false).unwrap();
        store.remove(&id(name), false).unwrap();
    }
}

#[test]
fn a_layer_may_be_in_use_when_the_kernel_does_not_answer() {
    let (mock, faulty, store) = two_layers();
    let request = ovl_driver::MountRequest::new();
    let path = store.mount(&id("parent"), &request).unwrap();
    mock.write_file(&path.join("file"), b"file").unwrap();
    let root = mock.open_root(&path).unwrap();
    mock.unmount(&path, UnmountMode::Lazy).unwrap();
    let silent = |errno| {
        faulty.order_where(move |now, _| (now == "is_upper_in_use").then_some(errno));
    };
    silent(EIO);
    let errors = [
        store.mount(&id("parent"), &request).map(drop),
        store.create(&layer("child", Some("parent"))),
    ];
    for error in errors {
        assert_eq!(errno_of(&error.unwrap_err()), Some(EIO));
    }
    faulty.heal();
    drop(root);
    let path = store.mount(&id("parent"), &request).unwrap();

    // Nor is a lazy unmount forgotten for that.
    let root = mock.open_root(&path).unwrap();
    silent(EIO);
    store.unmount(&id("parent"), UnmountMode::Lazy).unwrap();
    faulty.heal();
    let error = store.mount(&id("parent"), &request).unwrap_err();
    assert!(matches!(error, Error::StillInUse { .. }), "{error}");
    drop(root);
    store.mount(&id("parent"), &request).unwrap();
    store.unmount(&id("parent"), UnmountMode::Now).unwrap();
}

#[test]
fn a_layer_that_is_gone_is_never_said_to_stay() {
    let calls = [
        "read_link",
        "lock",
        "metadata",
        "unlink",
        "set_mtime",
        "create_file",
        "open_dir",
    ];
    for call in calls {
        let (_, faulty, store) = two_layers();
        let mut gone = false;
        faulty.order_where(move |now, subject| {
            let failed = gone && now == call;
            gone |= now == "rename" && subject.contains("parent");
            failed.then_some(EIO)
        });
        store.remove(&id("parent"), false).unwrap();
        assert!(faulty.has_fired(), "{call}");
        faulty.heal();
        store.reclaim().unwrap();
        assert!(store.check().unwrap().is_clean(), "{call}");
        store.create(&layer("parent", Some("base"))).unwrap();
    }
    // The syncs after it: of the home, the links and the trash.
    for sync in 1..=3 {
        let (mock, _, _) = two_layers();
        let faulty = Faulty::new(mock.kernel());
        let options = OpenOptions::new().durability(Durability::Full);
        let store = Overlay2::open(faulty.kernel(), Path::new("/home"), options).unwrap();
        let (mut gone, mut syncs) = (false, 0);
        faulty.order_where(move |now, subject| {
            gone |= now == "rename" && subject.contains("parent");
            syncs += u32::from(gone && now == "sync");
            (now == "sync" && syncs == sync).then_some(EIO)
        });
        let error = store.remove(&id("parent"), false).unwrap_err();
        assert!(faulty.has_fired(), "{sync}");
        let Error::NotDurable { what, id: gone, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!((*what, gone), ("removed", &id("parent")));
        faulty.heal();
        assert!(!store.contains(&id("parent")).unwrap());
    }
}

/// A reader that passes by keeps a mount busy for a moment.
#[test]
fn a_mount_that_is_busy_for_a_moment_is_taken_down_nevertheless() {
    for times in 1..8 {
        let (_, faulty, store) = two_layers();
        store.mount(&id("parent"), &MountRequest::new()).unwrap();
        let mut left = times;
        faulty.order_where(move |call, _| {
            let busy = call == "unmount" && left > 0;
            left -= u32::from(busy);
            busy.then_some(EBUSY)
        });
        let unmounted = store.unmount(&id("parent"), UnmountMode::Now);
        faulty.heal();
        let held = store.inspect(&id("parent")).unwrap().mount;
        match times {
            // As often as the store waits.
            1..=4 => assert_eq!((unmounted.unwrap(), held), (0, None)),
            _ => {
                let error = unmounted.unwrap_err();
                let busy = matches!(
                    &error,
                    Error::Mount {
                        source: MountError::Busy { .. },
                        ..
                    }
                );
                assert!(busy, "{error:?}");
                assert_eq!(held.map(|mount| mount.holds()), Some(1));
            }
        }
    }
}

#[test]
fn from_an_operation_on_everything_fails_until_the_kernel_is_healed() {
    let (_, faulty, store) = two_layers();
    faulty.order(Fault::From { at: 3, errno: EIO });
    let home = || faulty.kernel().tree().open_root(Path::new("/home"));
    assert!(home().is_ok() && home().is_ok() && !faulty.has_fired());
    for _ in 0..3 {
        let error = home().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(EIO));
    }
    assert!(faulty.has_fired());
    let error = store.create(&layer("child", Some("parent"))).unwrap_err();
    assert_eq!(errno_of(&error), Some(EIO));
    let journal = faulty.journal();
    let (done, failed) = journal.operations().split_at(2);
    assert!(done.iter().all(|one| one.outcome == Outcome::Done));
    let is_fault = |one: &Outcome| matches!(one, Outcome::Fault(_));
    assert!(failed.len() > 3 && failed.iter().all(|one| is_fault(&one.outcome)));
    faulty.heal();
    store.create(&layer("child", Some("parent"))).unwrap();
}

#[test]
fn a_delay_lets_one_operation_take_its_time_and_does_it() {
    let (_, faulty, store) = two_layers();
    let time = Duration::from_millis(30);
    faulty.order(Fault::Delay { at: 2, time });
    let timed = || {
        let start = Instant::now();
        faulty
            .kernel()
            .tree()
            .open_root(Path::new("/home"))
            .unwrap();
        start.elapsed()
    };
    timed();
    assert!(!faulty.has_fired());
    // Never less; how much more, the machine decides.
    assert!(timed() >= time);
    assert!(faulty.has_fired());
    let journal = faulty.journal();
    assert!(
        journal
            .operations()
            .iter()
            .all(|one| one.outcome == Outcome::Done)
    );
    assert!(store.check().unwrap().is_clean());
}

/// The syncs of a layer are made one after the other where there are few, and in threads.
#[test]
fn a_file_that_does_not_reach_the_disk_makes_no_layer() {
    for count in [1, 60] {
        let mut archive = ArchiveBuilder::new();
        for number in 0..count {
            archive = archive.file(&format!("file-{number}"), b"contents");
        }
        let archive = archive.finish();
        let (_, faulty, store) = two_layers();
        faulty.order_where(|call, subject| {
            (call == "sync" && subject.contains("file-0")).then_some(EIO)
        });
        let import = || {
            let options = ImportOptions::new();
            store.import(&layer("new", Some("base")), &*archive, options, &mut |_| {})
        };
        let error = import().unwrap_err();
        assert!(faulty.has_fired());
        assert_eq!(errno_of(&error), Some(EIO), "{count}: {error:?}");
        assert!(!store.contains(&id("new")).unwrap());
        faulty.heal();
        import().unwrap();
        assert!(store.check().unwrap().is_clean());
    }
}

/// Its target would be the new one's, and owner and time the old one's.
#[test]
fn a_link_that_changes_under_a_diff_is_an_error() {
    for is_replaced in [true, false] {
        let (mock, faulty, store) = two_layers();
        let diff = mock.open_root(Path::new("/home/parent/diff")).unwrap();
        let (name, targets) = (OsStr::new("link"), ["old", "new"].map(OsStr::new));
        mock.create_symlink(&diff, name, targets[0]).unwrap();
        let changed = Arc::new(AtomicBool::new(false));
        let done = changed.clone();
        faulty.order_where(move |call, subject| {
            let is_it = call == "read_link" && subject.ends_with("link");
            if is_it && !done.swap(true, Ordering::Relaxed) {
                if is_replaced {
                    mock.unlink(&diff, name).unwrap();
                    mock.create_symlink(&diff, name, targets[1]).unwrap();
                } else {
                    // Which its directory does not show.
                    mock.set_owner(Node::Entry(&diff, name), 7, 7).unwrap();
                }
            }
            None
        });
        let error = store.diff(&id("parent"), &Base::Parent, Vec::new());
        let error = error.unwrap_err();
        assert!(changed.load(Ordering::Relaxed), "{error}");
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        store
            .diff(&id("parent"), &Base::Parent, Vec::new())
            .unwrap();
    }
}
