//! Locks, processes and boots.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use ovl_diff::TreeBackend as _;
use ovl_driver::{LockKind, SystemBackend as _};
use ovl_testkit::{KernelProfile, MockKernel};

use crate::trees::name;

#[test]
fn an_exclusive_lock_excludes_and_shared_ones_do_not() {
    let kernel = MockKernel::new(KernelProfile::modern());
    kernel.mkdir_all(Path::new("/d")).unwrap();
    let root = kernel.open_root(Path::new("/")).unwrap();
    let lock = |kind| kernel.lock(&root, Some(name("d")), kind, false).unwrap();
    let shared = lock(LockKind::Shared).unwrap();
    let other = lock(LockKind::Shared).unwrap();
    assert_eq!(shared.ino(), other.ino());
    assert!(lock(LockKind::Exclusive).is_none());
    drop((shared, other));
    let exclusive = lock(LockKind::Exclusive).unwrap();
    assert!(lock(LockKind::Shared).is_none());
    drop(exclusive);
    assert!(lock(LockKind::Shared).is_some());
    assert!(
        kernel
            .lock(&root, Some(name("absent")), LockKind::Shared, false)
            .is_err()
    );
}

#[test]
fn a_waiting_lock_is_given_when_its_holder_is_killed() {
    let kernel = MockKernel::new(KernelProfile::modern());
    let other = kernel.as_process(7);
    let root = kernel.open_root(Path::new("/")).unwrap();
    let held = other
        .lock(&root, None, LockKind::Exclusive, true)
        .unwrap()
        .unwrap();
    let (sender, receiver) = mpsc::channel();
    let waiting = kernel.clone();
    let waiter = std::thread::spawn(move || {
        let root = waiting.open_root(Path::new("/")).unwrap();
        let lock = waiting
            .lock(&root, None, LockKind::Exclusive, true)
            .unwrap();
        sender.send(lock.is_some()).unwrap();
    });
    assert!(
        receiver.recv_timeout(Duration::from_millis(20)).is_err(),
        "it is held"
    );
    kernel.kill(7);
    assert!(receiver.recv().unwrap());
    waiter.join().unwrap();
    drop(held);
}

#[test]
fn a_killed_process_is_dead_and_a_boot_ends_all_others() {
    let kernel = MockKernel::new(KernelProfile::modern());
    let other = kernel.as_process(7).this_process().unwrap();
    assert!(kernel.is_alive(other).unwrap());
    kernel.kill(7);
    assert!(!kernel.is_alive(other).unwrap());
    let boot = kernel.boot_id().unwrap();
    kernel.mkdir_all(Path::new("/kept")).unwrap();
    kernel.reboot();
    assert_ne!(kernel.boot_id().unwrap(), boot);
    kernel.open_root(Path::new("/kept")).unwrap();
}
