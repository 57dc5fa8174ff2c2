//! Operations that fail, and trees that change under whoever reads them.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ovl_diff::TreeBackend as _;
use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Base, CreateLayer, Error, ImportOptions, MountRequest, OpenOptions, UpkeepOptions,
};
use ovl_layout::LayerId;
use ovl_mount::{MountError, UnmountMode};
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
