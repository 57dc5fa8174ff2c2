//! Volatile mounts over a restart of the machine, which only a mock can have.

use std::path::Path;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    CreateLayer, Dirty, Durability, Error, Hold, ImportOptions, MountRequest, OpenOptions,
};
use ovl_layout::LayerId;
use ovl_mount::{OverlayOptions, UnmountMode};
use ovl_testkit::{ArchiveBuilder, Fault, Faulty, KernelProfile, MockKernel};

/// A kernel with a layer `top` on another, that stops while `top` is mounted.
fn stopped_under(request: &MountRequest) -> (MockKernel, Overlay2) {
    let kernel = MockKernel::new(KernelProfile::modern());
    let store = open(&kernel);
    let base = CreateLayer::new("base".parse().unwrap());
    store.create(&base).unwrap();
    let top = CreateLayer::new("top".parse().unwrap()).parent(Some("base".parse().unwrap()));
    store.create(&top).unwrap();
    let path = store.mount(&"top".parse().unwrap(), request).unwrap();
    kernel.write_file(&path.join("file"), b"written").unwrap();
    drop(store);
    kernel.reboot();
    let store = open(&kernel);
    (kernel, store)
}

fn open(kernel: &MockKernel) -> Overlay2 {
    let options = OpenOptions::new().create(true);
    Overlay2::open(kernel.kernel(), Path::new("/home"), options).unwrap()
}

fn volatile() -> MountRequest {
    let options = OverlayOptions::default().with("volatile").unwrap();
    MountRequest::new().options(options)
}

#[test]
fn a_machine_that_stops_under_a_volatile_mount_leaves_a_question() {
    let (kernel, store) = stopped_under(&volatile().hold(Hold::Process));
    let top = "top".parse().unwrap();
    for request in [MountRequest::new(), volatile()] {
        let error = store.mount(&top, &request).unwrap_err();
        assert!(matches!(error, Error::Dirty { .. }), "{error}");
    }
    let accept = MountRequest::new().dirty(Some(Dirty::Accept));
    let path = store.mount(&top, &accept).unwrap();
    assert_eq!(kernel.read_file(&path.join("file")).unwrap(), b"written");
}

#[test]
fn the_note_of_a_volatile_mount_is_on_disk() {
    let kernel = MockKernel::new(KernelProfile::modern());
    let store = open(&kernel);
    let base = CreateLayer::new("base".parse().unwrap());
    store.create(&base).unwrap();
    let top = CreateLayer::new("top".parse().unwrap()).parent(Some("base".parse().unwrap()));
    store.create(&top).unwrap();
    let top = "top".parse().unwrap();
    // Noted before by a store that waits for nothing.
    let options = OpenOptions::new().durability(Durability::None);
    let hasty = Overlay2::open(kernel.kernel(), Path::new("/home"), options).unwrap();
    for store in [&hasty, &store] {
        store.mount(&top, &volatile()).unwrap();
        // The mock lists nothing through a mount.
        store.unmount(&top, UnmountMode::Now).unwrap();
    }
    let unsynced = kernel.unsynced(Path::new("/home/top")).unwrap();
    assert!(!unsynced.contains(&".ovl-layer".into()), "{unsynced:?}");
}

#[test]
fn a_machine_that_stops_under_any_other_mount_leaves_none() {
    let (kernel, store) = stopped_under(&MountRequest::new());
    let path = store
        .mount(&"top".parse().unwrap(), &MountRequest::new())
        .unwrap();
    assert_eq!(kernel.read_file(&path.join("file")).unwrap(), b"written");
}

/// Stopped at each operation, `top` is either noted or on disk, with nothing that could come back.
#[test]
fn what_a_durable_layer_has_waited_for_is_no_question_after_the_machine_stops() {
    let make = |kernel: &MockKernel, durability| {
        let options = OpenOptions::new().create(true).durability(durability);
        Overlay2::open(kernel.kernel(), Path::new("/home"), options).unwrap()
    };
    let top: LayerId = "top".parse().unwrap();
    let child = CreateLayer::new("child".parse().unwrap()).parent(Some(top.clone()));
    for made in [Durability::None, Durability::Layer] {
        for at in 1.. {
            let kernel = MockKernel::new(KernelProfile::modern());
            let store = make(&kernel, made);
            let base = CreateLayer::new("base".parse().unwrap());
            store.create(&base).unwrap();
            let layer = CreateLayer::new(top.clone()).parent(Some(base.id));
            store.create(&layer).unwrap();
            let path = store.mount(&top, &volatile()).unwrap();
            kernel.write_file(&path.join("file"), b"written").unwrap();
            store.unmount(&top, UnmountMode::Now).unwrap();

            let faulty = Faulty::new(kernel.kernel());
            let options = OpenOptions::new().durability(Durability::Layer);
            let durable = Overlay2::open(faulty.kernel(), Path::new("/home"), options).unwrap();
            faulty.order(Fault::Crash { at });
            let created = durable.create(&child);
            let is_over = !faulty.has_fired();
            let record = kernel.read_file("/home/top/.ovl-layer".as_ref()).unwrap();
            let noted = String::from_utf8(record).unwrap().contains("\nvolatile ");
            let pending = kernel.unsynced("/home/top".as_ref()).unwrap();
            let at_risk = |part| pending.iter().any(|path| path.starts_with(part));
            if !noted {
                assert!(!at_risk("diff") && !at_risk("work"), "{at}: {pending:?}");
            }
            faulty.heal();
            if is_over {
                created.unwrap();
                assert!(!noted && pending.is_empty(), "{pending:?}");
                kernel.reboot();
                let store = open(&kernel);
                let path = store.mount(&child.id, &MountRequest::new()).unwrap();
                assert_eq!(kernel.read_file(&path.join("file")).unwrap(), b"written");
                store.unmount(&child.id, UnmountMode::Now).unwrap();
                assert!(store.check().unwrap().is_clean());
                break;
            }
        }
    }
}

/// A copy that nobody synced is no safer than what it was made of; one that was, is.
#[test]
fn what_is_applied_to_a_layer_that_was_mounted_volatile_is_as_safe_as_its_copy() {
    for durability in [Durability::None, Durability::Layer] {
        let kernel = MockKernel::new(KernelProfile::modern());
        let options = OpenOptions::new().create(true).durability(durability);
        let store = Overlay2::open(kernel.kernel(), Path::new("/home"), options).unwrap();
        let base = CreateLayer::new("base".parse().unwrap());
        store.create(&base).unwrap();
        let top = CreateLayer::new("top".parse().unwrap()).parent(Some(base.id));
        store.create(&top).unwrap();
        let path = store.mount(&top.id, &volatile()).unwrap();
        kernel.write_file(&path.join("file"), b"written").unwrap();
        store.unmount(&top.id, UnmountMode::Now).unwrap();
        let archive = ArchiveBuilder::new().file("other", b"applied").finish();
        let applied = store.apply(&top.id, &*archive, ImportOptions::new(), &mut |_| {});
        applied.unwrap();
        kernel.reboot();
        let store = open(&kernel);
        let mounted = store.mount(&top.id, &MountRequest::new());
        match durability {
            Durability::None => {
                let error = mounted.unwrap_err();
                assert!(matches!(error, Error::Dirty { .. }), "{error}");
            }
            _ => drop(mounted.unwrap()),
        }
    }
}
