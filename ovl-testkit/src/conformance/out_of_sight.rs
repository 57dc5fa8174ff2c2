//! Mounts that are not to be seen any more, and that something still writes through.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use ovl_diff::{DirHandle, FileHandle};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Error, ErrorKind, FindingKind, ImportOptions, LockKind, MountRequest, OpenOptions,
    UpkeepOptions,
};
use ovl_mount::{MountError, UnmountMode};

use super::damage::findings;
use super::support::{create, id, layer, mount, with_mount};
use super::{Subject, list};
use crate::Faulty;
use crate::archive::ArchiveBuilder;

list! {
    a_layer_unmounted_behind_the_stores_back_is_not_used_until_nobody_uses_it,
    an_unheld_mount_in_use_goes_lazily_and_is_not_forgotten,
    a_damaged_layer_that_is_mounted_elsewhere_is_not_removed,
    a_held_layer_whose_mount_is_out_of_sight_is_only_removed_by_force,
    the_kernel_is_only_asked_who_uses_a_layer_that_is_locked,
    the_note_of_a_mount_that_is_gone_goes_when_rubbish_is_collected,
    an_empty_note_says_nothing_of_another_programs_mount,
    a_note_of_what_is_no_layer_any_more_ends_no_check,
}

/// A layer `top` that is mounted, and a file in it that is open.
fn in_use(subject: &Subject, store: &Overlay2) -> (PathBuf, (DirHandle, FileHandle)) {
    create(store, "base", None);
    create(store, "top", Some("base"));
    let path = mount(store, "top");
    subject.write(&path.join("open"), b"");
    let root = subject.tree().open_root(&path).expect("open");
    let file = subject.tree().open_file(&root, OsStr::new("open"));
    let file = file.expect("open");
    (path, (root, file))
}

#[track_caller]
fn assert_still_used(store: &Overlay2) {
    let again = store.mount(&id("top"), &MountRequest::new());
    let child = store.create(&layer("child", Some("top")));
    let archive = ArchiveBuilder::new().file("new", b"new").finish();
    let applied = store.apply(&id("top"), &*archive, ImportOptions::new(), &mut |_| {});
    for error in [again.err(), child.err(), applied.err()] {
        let error = error.expect("it is still written to");
        assert!(matches!(error, Error::StillInUse { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Busy);
    }
    assert_eq!(store.inspect(&id("top")).expect("inspect").mount, None);
    let none = store.unmount(&id("top"), UnmountMode::Now);
    assert_eq!(none.expect_err("not mounted").kind(), ErrorKind::NotFound);
    assert_eq!(findings(store), []);
}

fn a_layer_unmounted_behind_the_stores_back_is_not_used_until_nobody_uses_it(subject: &Subject) {
    let store = subject.store();
    let (path, uses) = in_use(subject, &store);
    // As by `umount -l`, or by a store that was killed before it could note it.
    let unmounted = subject.kernel().mount().unmount(&path, UnmountMode::Lazy);
    unmounted.expect("lazily");
    assert_still_used(&store);
    assert_still_used(&store);
    drop(uses);
    with_mount(&store, "top", |path| {
        assert_eq!(subject.names(path), ["open"]);
    });
    create(&store, "child", Some("top"));
    subject.assert_clean(&store);
}

/// As after a kill between the mount and the note of its hold.
fn let_go(subject: &Subject, store: &Overlay2) {
    let holds = store.layout().store_dir().join("holds/top");
    let noted = String::from_utf8(subject.read(&holds)).expect("text");
    let noted = noted.replace("persistent 1", "persistent 0");
    subject.rewrite(&holds, noted.as_bytes());
}

fn an_unheld_mount_in_use_goes_lazily_and_is_not_forgotten(subject: &Subject) {
    let store = subject.store();
    let (path, uses) = in_use(subject, &store);
    let_go(subject, &store);
    let now = store.unmount(&id("top"), UnmountMode::Now);
    let busy = matches!(
        &now,
        Err(Error::Mount {
            source: MountError::Busy { .. },
            ..
        })
    );
    assert!(busy, "{now:?}");
    let lazily = store.unmount(&id("top"), UnmountMode::Lazy);
    assert!(
        matches!(lazily, Err(Error::NotMounted { .. })),
        "nobody had a hold to release: {lazily:?}"
    );
    assert!(!subject.exists(&path), "it is gone all the same");
    assert_still_used(&store);
    drop(uses);
    with_mount(&store, "top", |_| {});
    subject.assert_clean(&store);
}

fn a_damaged_layer_that_is_mounted_elsewhere_is_not_removed(subject: &Subject) {
    let store = subject.store();
    let (path, uses) = in_use(subject, &store);
    let unmounted = subject.kernel().mount().unmount(&path, UnmountMode::Lazy);
    unmounted.expect("lazily");
    // As from a mount namespace that this process cannot look into.
    let holds = store.layout().store_dir().join("holds/top");
    let noted = String::from_utf8(subject.read(&holds)).expect("text");
    let lines = noted
        .lines()
        .map(|line| match line.starts_with("namespace ") {
            true => "namespace 2\n".to_owned(),
            false => format!("{line}\n"),
        });
    subject.rewrite(&holds, lines.collect::<String>().as_bytes());
    subject.unlink(&store.layout().layer(&id("top")).dir().join("lower"));
    let error = store.remove(&id("top"), false).expect_err("it is mounted");
    assert!(matches!(error, Error::MountedElsewhere { .. }), "{error}");
    drop(uses);
    store.remove(&id("top"), false).expect("nobody uses it");
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

fn a_held_layer_whose_mount_is_out_of_sight_is_only_removed_by_force(subject: &Subject) {
    let store = subject.store();
    let (path, uses) = in_use(subject, &store);
    let unmounted = subject.kernel().mount().unmount(&path, UnmountMode::Lazy);
    unmounted.expect("lazily");
    let error = store.remove(&id("top"), false).expect_err("it is held");
    assert!(matches!(error, Error::StillInUse { .. }), "{error}");
    store.remove(&id("top"), true).expect("by force");
    drop(uses);
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

fn the_note_of_a_mount_that_is_gone_goes_when_rubbish_is_collected(subject: &Subject) {
    let store = subject.store();
    let (path, uses) = in_use(subject, &store);
    drop(uses);
    let unmounted = subject.kernel().mount().unmount(&path, UnmountMode::Now);
    unmounted.expect("nobody uses it");
    let kinds: Vec<_> = findings(&store).iter().map(|one| one.kind).collect();
    assert_eq!(kinds, [FindingKind::StaleHolds]);
    store.gc(UpkeepOptions::new()).expect("gc");
    assert!(!subject.exists(&store.layout().store_dir().join("holds/top")));
    subject.assert_clean(&store);
}

/// As after a kill while the note was made.
fn an_empty_note_says_nothing_of_another_programs_mount(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    mount(&store, "top");
    let holds = store.layout().store_dir().join("holds/top");
    subject.rewrite(&holds, b"");
    assert!(store.inspect(&id("top")).expect("inspect").mount.is_some());
    let error = store.mount(&id("top"), &MountRequest::new());
    let error = error.expect_err("nobody knows whose it is");
    assert!(matches!(error, Error::ForeignMount { .. }), "{error}");
    assert_eq!(findings(&store), []);
    let path = store.layout().layer(&id("top")).merged().to_owned();
    let unmounted = subject.kernel().mount().unmount(&path, UnmountMode::Now);
    unmounted.expect("nobody uses it");
    with_mount(&store, "top", |_| {});
    subject.assert_clean(&store);
}

fn a_note_of_what_is_no_layer_any_more_ends_no_check(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let path = mount(&store, "top");
    let unmounted = subject.kernel().mount().unmount(&path, UnmountMode::Now);
    unmounted.expect("nobody uses it");
    let dir = store.layout().layer(&id("top")).dir().to_owned();
    let away = subject.dir().join("away");
    for replace in [
        (|subject: &Subject, dir: &Path| subject.symlink(dir, "../away")) as fn(&Subject, &Path),
        |subject, dir| subject.write(dir, b""),
    ] {
        subject.rename(&dir, &away);
        replace(subject, &dir);
        let kinds: Vec<_> = findings(&store).iter().map(|one| one.kind).collect();
        assert!(kinds.contains(&FindingKind::StaleHolds), "{kinds:?}");
        let garbage = store.gc(UpkeepOptions::new().dry_run(true));
        garbage.expect("gc");
        subject.unlink(&dir);
        subject.rename(&away, &dir);
    }
    with_mount(&store, "top", |_| {});
    subject.assert_clean(&store);
}

/// Asking marks the upper directory as in use for a moment, and a mount that is made in that moment
/// has no mark of its own, ever: the layer could be mounted a second time.
fn the_kernel_is_only_asked_who_uses_a_layer_that_is_locked(subject: &Subject) {
    let faulty = Faulty::new(subject.kernel().clone());
    let home = subject.store().home().to_owned();
    let store = Overlay2::open(faulty.kernel(), &home, OpenOptions::new()).expect("open");
    let (path, uses) = in_use(subject, &store);
    let tree = subject.tree();
    // As for the moment between the note of a mount and the mount.
    let unmounted = subject.kernel().mount().unmount(&path, UnmountMode::Lazy);
    unmounted.expect("lazily");
    let asked = || {
        let journal = faulty.journal();
        let operations = journal.operations().iter();
        let asked = operations.filter(|one| one.call == "is_upper_in_use");
        asked.count()
    };
    let look = |is_locked: bool| {
        faulty.heal();
        let layers = store.layers().expect("layers").layers;
        let top = layers.iter().find(|layer| layer.id == id("top"));
        assert_eq!(top.expect("top").mounted, is_locked);
        let mount = store.inspect(&id("top")).expect("inspect").mount;
        assert_eq!(mount.is_some(), is_locked);
        assert_eq!(findings(&store), []);
        asked()
    };
    let dir = tree.open_root(&home).expect("open");
    let system = subject.kernel().system();
    let lock = system.lock(&dir, Some(OsStr::new("top")), LockKind::Exclusive, false);
    let lock = lock.expect("lock").expect("nobody else has it");
    assert_eq!(look(true), 0, "asked while somebody may be mounting it");
    drop(lock);
    assert_ne!(look(false), 0, "the kernel knows");
    drop(uses);
}
