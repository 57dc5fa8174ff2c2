//! Operations that fail, and trees that change under whoever reads them.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ovl_diff::TreeBackend as _;
use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Base, CreateLayer, ErrorKind, ImportOptions, LockKind, OpenOptions, SystemBackend as _,
    UpkeepOptions,
};
use ovl_layout::LayerId;
use ovl_mount::UnmountMode;
use ovl_testkit::{ArchiveBuilder, Faulty, KernelProfile, MockKernel};

const EIO: i32 = 5;
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
