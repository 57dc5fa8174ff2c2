//! Processes that end, whose numbers others get, and those in other mount namespaces.

use std::path::Path;

use ovl_diff::TreeBackend as _;
use ovl_driver::blocking::Overlay2;
use ovl_driver::{CreateLayer, Error, Hold, MountRequest, OpenOptions, SystemBackend as _};
use ovl_layout::LayerId;
use ovl_mount::{MountBackend as _, UnmountMode};
use ovl_testkit::{KernelProfile, MockKernel};

fn open(kernel: &MockKernel) -> Overlay2 {
    let options = OpenOptions::new().create(true);
    Overlay2::open(kernel.kernel(), Path::new("/home"), options).unwrap()
}

fn id(name: &str) -> LayerId {
    name.parse().unwrap()
}

fn with_layer() -> (MockKernel, Overlay2) {
    let kernel = MockKernel::new(KernelProfile::modern());
    let store = open(&kernel);
    store.create(&CreateLayer::new(id("layer"))).unwrap();
    (kernel, store)
}

#[test]
fn a_number_does_not_make_a_process() {
    let kernel = MockKernel::new(KernelProfile::modern());
    let one = kernel.as_process(77);
    assert_eq!(
        one.this_process().unwrap(),
        kernel.as_process(77).this_process().unwrap()
    );
    kernel.kill(77);
    let other = kernel.as_process(77);
    let (one, other) = (one.this_process().unwrap(), other.this_process().unwrap());
    assert_eq!(one.pid, other.pid);
    assert!(!kernel.is_alive(one).unwrap());
    assert!(kernel.is_alive(other).unwrap());
}

#[test]
fn a_process_that_got_the_number_of_a_holder_holds_nothing() {
    let (kernel, store) = with_layer();
    let holder = open(&kernel.as_process(77));
    let request = MountRequest::new().hold(Hold::Process);
    holder.mount(&id("layer"), &request).unwrap();
    let child = CreateLayer::new(id("child")).parent(Some(id("layer")));
    assert!(matches!(store.create(&child), Err(Error::Mounted { .. })));
    kernel.kill(77);
    let other = kernel.as_process(77);
    store.create(&child).unwrap();
    let left = other.mounts_below(Path::new("/home")).unwrap();
    assert_eq!(left, []);
}

#[test]
fn a_layer_that_is_mounted_in_another_namespace_is_free_when_that_ends() {
    let (kernel, store) = with_layer();
    let elsewhere = kernel.as_process_in(2000, 7);
    let there = open(&elsewhere);
    let path = there.mount(&id("layer"), &MountRequest::new()).unwrap();
    assert_eq!(kernel.mount_at(&path).unwrap(), None);
    elsewhere.write_file(&path.join("seen"), b"").unwrap();

    let request = MountRequest::new();
    let refused = |result: Result<(), Error>| {
        assert!(
            matches!(&result, Err(Error::MountedElsewhere { id, .. }) if id.as_str() == "layer"),
            "{result:?}"
        );
    };
    refused(store.mount(&id("layer"), &request).map(drop));
    refused(store.remove(&id("layer"), false));
    // A second process keeps the namespace.
    let second = kernel.as_process_in(2001, 7);
    assert!(second.mount_at(&path).unwrap().is_some());
    kernel.kill(2000);
    refused(store.mount(&id("layer"), &request).map(drop));
    kernel.kill(2001);
    let here = store.mount(&id("layer"), &request).unwrap();
    kernel.read_file(&here.join("seen")).unwrap();
    store.unmount(&id("layer"), UnmountMode::Now).unwrap();
}

#[test]
fn a_new_namespace_has_copies_that_go_with_the_mount_point() {
    let (kernel, store) = with_layer();
    let path = store.mount(&id("layer"), &MountRequest::new()).unwrap();
    let elsewhere = kernel.as_process_in(2000, 7);
    elsewhere.write_file(&path.join("file"), b"").unwrap();
    // With the last hold the mount point goes.
    store.unmount(&id("layer"), UnmountMode::Now).unwrap();
    assert_eq!(elsewhere.mount_at(&path).unwrap(), None);
    let upper = store.layout().layer(&id("layer")).diff().to_owned();
    assert!(!kernel.is_upper_in_use(&upper).unwrap());
}

#[test]
fn a_copy_that_is_used_is_not_forgotten_by_a_kernel_that_does_not_tell_which_file_systems_live() {
    let (kernel, store) = with_layer();
    let top = CreateLayer::new(id("top")).parent(Some(id("layer")));
    store.create(&top).unwrap();
    let path = store.mount(&id("top"), &MountRequest::new()).unwrap();
    let elsewhere = kernel.as_process_in(2000, 7);
    elsewhere.write_file(&path.join("file"), b"").unwrap();
    let inside = elsewhere.open_root(&path).unwrap();
    assert_eq!(kernel.is_file_system_alive((0, 1)).unwrap(), None);
    store.unmount(&id("top"), UnmountMode::Now).unwrap();
    let again = store.mount(&id("top"), &MountRequest::new());
    assert!(matches!(again, Err(Error::StillInUse { .. })), "{again:?}");
    drop(inside);
    store.mount(&id("top"), &MountRequest::new()).unwrap();
}
