//! Volatile mounts: what they leave behind, and who decides about it.

use std::path::PathBuf;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Dirty, Durability, Error, ErrorKind, FindingKind, ImportOptions, MountRequest, OpenOptions,
    Remedy, UpkeepOptions,
};
use ovl_layout::{LayerRecord, SealReason, names};
use ovl_mount::{MountError, OverlayOptions, UnmountMode};
use rustix::io::Errno;

use super::support::{chain, create, id, layer, mount, unmount, with_mount};
use super::{Skip, Subject, list};
use crate::Faulty;

list! {
    a_volatile_mount_is_forgotten_in_the_same_boot,
    a_mount_that_syncs_ends_what_a_volatile_one_began,
    the_kernels_mark_of_a_volatile_mount_refuses_the_next_one,
    row_145_a_mark_of_a_volatile_mount_that_nobody_noted_refuses_the_next,
    a_layer_that_was_volatile_when_the_machine_stopped_is_refused,
    what_is_accepted_is_the_layers_contents,
    what_is_discarded_is_gone_and_the_root_keeps_its_attributes,
    layers_on_a_dirty_one_are_refused_until_it_is_accepted,
    what_is_not_dirty_is_not_discarded,
    a_durable_layer_on_one_that_was_mounted_volatile_waits_for_it,
    what_is_dirty_stays_so_when_it_is_sealed_again,
    what_is_dirty_stays_so_when_its_record_is_mended,
    volatile_changes_nothing_without_an_upper_layer,
    a_layer_of_another_program_is_not_mounted_volatile,
    a_volatile_mount_that_fails_leaves_no_note,
    a_mark_that_cannot_be_read_is_not_taken_for_none,
    a_mark_that_may_not_be_read_is_no_reason_against_a_check,
}

fn volatile() -> MountRequest {
    let options = OverlayOptions::default().with("volatile");
    MountRequest::new().options(options.expect("an option"))
}

fn record_path(store: &Overlay2, layer: &str) -> PathBuf {
    store.layout().layer(&id(layer)).dir().join(names::RECORD)
}

fn record(subject: &Subject, store: &Overlay2, layer: &str) -> LayerRecord {
    let contents = subject.read(&record_path(store, layer));
    LayerRecord::parse_file(&contents).expect("a record")
}

fn boot(subject: &Subject) -> String {
    subject.kernel().system().boot_id().expect("a boot id")
}

/// Whether an error says no more than that the kernel knows no such option.
fn is_unknown(error: &Error) -> bool {
    let Error::Mount { source, .. } = error else {
        return false;
    };
    let source = std::error::Error::source(source);
    let error = source.and_then(|error| error.downcast_ref::<std::io::Error>());
    error.and_then(Errno::from_io_error) == Some(Errno::INVAL)
}

/// A base and a layer on it that was mounted volatile, with one file from then. None where Linux is
/// older than 5.10.
fn written(subject: &Subject) -> Option<Overlay2> {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    write_volatile(subject, &store)?;
    Some(store)
}

fn write_volatile(subject: &Subject, store: &Overlay2) -> Option<()> {
    let path = match store.mount(&id("top"), &volatile()) {
        Ok(path) => path,
        Err(error) if is_unknown(&error) => {
            // What is refused so for any other reason is refused by each kernel.
            with_mount(store, "top", |_| {});
            subject.skip(Skip::whole("the kernel knows no volatile mounts"));
            return None;
        }
        Err(error) => panic!("{}", chain(&error)),
    };
    subject.write(&path.join("file"), b"written");
    unmount(store, "top");
    Some(())
}

/// As if the machine had stopped since, which a real one must not for this.
fn stopped(subject: &Subject) -> Option<Overlay2> {
    let store = written(subject)?;
    let mut record = record(subject, &store, "top");
    record.volatile = Some("another-boot".to_owned());
    subject.rewrite(&record_path(&store, "top"), record.to_string().as_bytes());
    Some(store)
}

#[track_caller]
fn assert_dirty<T>(result: Result<T, Error>, layer: &str) {
    let Err(error) = result else {
        panic!("{layer} is dirty");
    };
    let of_layer = matches!(&error, Error::Dirty { id: found, .. } if *found == id(layer));
    assert!(of_layer, "{}", chain(&error));
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

fn a_volatile_mount_is_forgotten_in_the_same_boot(subject: &Subject) {
    let Some(store) = written(subject) else {
        return;
    };
    let noted = record(subject, &store, "top").volatile;
    assert_eq!(noted, Some(boot(subject)));
    for request in [volatile(), volatile(), MountRequest::new()] {
        let path = store.mount(&id("top"), &request);
        let path = path.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(subject.read(&path.join("file")), b"written");
        unmount(&store, "top");
    }
    subject.assert_clean(&store);
}

fn a_mount_that_syncs_ends_what_a_volatile_one_began(subject: &Subject) {
    let Some(store) = written(subject) else {
        return;
    };
    mount(&store, "top");
    // While it lasts nothing is synced yet.
    assert!(record(subject, &store, "top").volatile.is_some());
    store
        .unmount(&id("top"), UnmountMode::Lazy)
        .expect("unmount");
    assert!(
        record(subject, &store, "top").volatile.is_some(),
        "somebody may still use it"
    );
    with_mount(&store, "top", |_| {});
    assert_eq!(record(subject, &store, "top").volatile, None);

    store.mount(&id("top"), &volatile()).expect("mount");
    unmount(&store, "top");
    mount(&store, "top");
    store.unmount_all(UnmountMode::Now).expect("unmount");
    assert_eq!(record(subject, &store, "top").volatile, None);
    subject.assert_clean(&store);
}

fn the_kernels_mark_of_a_volatile_mount_refuses_the_next_one(subject: &Subject) {
    let Some(store) = written(subject) else {
        return;
    };
    let work = store.layout().layer(&id("top")).work().to_owned();
    assert!(subject.exists(&work.join("work/incompat/volatile")));
    for request in [volatile(), MountRequest::new()] {
        // Past the store, which would clear the mark.
        let plan = store.plan(&id("top"), &request).expect("plan");
        subject.mkdir(plan.target(), 0o700);
        let error = subject.kernel().mount().mount(&plan);
        let error = error.expect_err("the mark is there");
        let MountError::Mount { source, .. } = &error else {
            panic!("{}", chain(&error));
        };
        assert_eq!(source.kind(), std::io::ErrorKind::InvalidInput);
        subject.rmdir(plan.target());
    }
    subject.assert_clean(&store);
}

fn row_145_a_mark_of_a_volatile_mount_that_nobody_noted_refuses_the_next(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let work = store.layout().layer(&id("top")).work().to_owned();
    for name in ["work", "work/incompat", "work/incompat/volatile"] {
        subject.mkdir(&work.join(name), 0o700);
    }
    let mark = work.join("work/incompat/volatile");
    let error = store.mount(&id("top"), &MountRequest::new());
    let error = error.expect_err("what was written may be lost");
    assert!(
        matches!(&error, Error::Dirty { mark: found, .. } if *found == mark),
        "{}",
        chain(&error)
    );
    let findings = store.check().expect("check").findings;
    assert!(findings.iter().any(|found| found.path == mark));
    assert_eq!(
        store.repair(UpkeepOptions::new()).expect("repair").mended,
        []
    );
    assert!(subject.exists(&mark), "only people can decide");
    subject.remove_tree(&work.join("work/incompat"));
    with_mount(&store, "top", |_| {});
    subject.assert_clean(&store);
}

fn a_layer_that_was_volatile_when_the_machine_stopped_is_refused(subject: &Subject) {
    let Some(store) = stopped(subject) else {
        return;
    };
    for request in [MountRequest::new(), volatile()] {
        assert_dirty(store.mount(&id("top"), &request), "top");
    }
    assert_dirty(store.create(&layer("child", Some("top"))), "top");
    let (archive, options) = ([0; 1024], ImportOptions::new());
    let applied = store.apply(&id("top"), &archive[..], options, &mut |_| {});
    assert_dirty(applied, "top");
    let findings = store.check().expect("check").findings;
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!(findings[0].kind, FindingKind::Volatile);
    assert!(!store.inspect(&id("top")).expect("inspect").sealed);
    store.remove(&id("top"), false).expect("it can be removed");
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

fn what_is_accepted_is_the_layers_contents(subject: &Subject) {
    let Some(store) = stopped(subject) else {
        return;
    };
    let request = MountRequest::new().dirty(Some(Dirty::Accept));
    let path = store.mount(&id("top"), &request);
    let path = path.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(subject.read(&path.join("file")), b"written");
    unmount(&store, "top");
    assert_eq!(record(subject, &store, "top").volatile, None);
    with_mount(&store, "top", |path| {
        assert_eq!(subject.names(path), ["file"]);
    });
    subject.assert_clean(&store);

    // And is at stake again.
    let store = stopped_again(subject, store);
    let request = volatile().dirty(Some(Dirty::Accept));
    store.mount(&id("top"), &request).expect("accepted");
    unmount(&store, "top");
    let noted = record(subject, &store, "top").volatile;
    assert_eq!(noted, Some(boot(subject)));
    subject.assert_clean(&store);
}

fn stopped_again(subject: &Subject, store: Overlay2) -> Overlay2 {
    let mut record = record(subject, &store, "top");
    record.volatile = Some("yet-another-boot".to_owned());
    subject.rewrite(&record_path(&store, "top"), record.to_string().as_bytes());
    store
}

fn what_is_discarded_is_gone_and_the_root_keeps_its_attributes(subject: &Subject) {
    let Some(store) = stopped(subject) else {
        return;
    };
    let diff = store.layout().layer(&id("top")).diff().to_owned();
    subject.chmod(&diff, 0o711);
    subject.mkdir(&diff.join("dir"), 0o755);
    subject.write(&diff.join("dir/inner"), b"x");
    subject.symlink(&diff.join("link"), "/");
    let request = MountRequest::new().dirty(Some(Dirty::Discard));
    let path = store.mount(&id("top"), &request);
    let path = path.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(subject.names(&path), [""; 0]);
    assert_eq!(subject.mode(&path), 0o711);
    subject.write(&path.join("new"), b"x");
    unmount(&store, "top");
    with_mount(&store, "top", |path| {
        assert_eq!(subject.names(path), ["new"]);
    });
    subject.assert_clean(&store);
}

fn layers_on_a_dirty_one_are_refused_until_it_is_accepted(subject: &Subject) {
    let Some(store) = written(subject) else {
        return;
    };
    create(&store, "child", Some("top"));
    create(&store, "grandchild", Some("child"));
    let store = stopped_again(subject, store);
    for answer in [None, Some(Dirty::Accept), Some(Dirty::Discard)] {
        let request = MountRequest::new().dirty(answer);
        for name in ["child", "grandchild"] {
            assert_dirty(store.mount(&id(name), &request), "top");
        }
    }
    let discard = MountRequest::new().dirty(Some(Dirty::Discard));
    let error = store.mount(&id("top"), &discard);
    let error = error.expect_err("others stand on it");
    assert!(matches!(error, Error::Sealed { .. }), "{}", chain(&error));

    let accept = MountRequest::new().dirty(Some(Dirty::Accept));
    store.mount(&id("top"), &accept).expect("accepted");
    unmount(&store, "top");
    with_mount(&store, "grandchild", |path| {
        assert_eq!(subject.read(&path.join("file")), b"written");
    });
    subject.assert_clean(&store);
}

fn what_is_not_dirty_is_not_discarded(subject: &Subject) {
    let Some(store) = written(subject) else {
        return;
    };
    let discard = MountRequest::new().dirty(Some(Dirty::Discard));
    let path = store.mount(&id("top"), &discard).expect("nothing is dirty");
    assert_eq!(subject.read(&path.join("file")), b"written");
    unmount(&store, "top");
    subject.assert_clean(&store);
}

fn durable(subject: &Subject) -> Overlay2 {
    let options = OpenOptions::new().durability(Durability::Layer);
    let store = Overlay2::open(
        subject.kernel().clone(),
        &subject.dir().join("home"),
        options,
    );
    store.expect("it opens")
}

fn a_durable_layer_on_one_that_was_mounted_volatile_waits_for_it(subject: &Subject) {
    for between in [None, Some("between")] {
        let Some(store) = written(subject) else {
            return;
        };
        let work = store.layout().layer(&id("top")).work().to_owned();
        if let Some(name) = between {
            // Seals it, and waits for nothing.
            create(&store, name, Some("top"));
            let noted = record(subject, &store, "top").volatile;
            assert_eq!(noted, Some(boot(subject)));
            assert!(subject.exists(&work.join("work/incompat/volatile")));
        }
        create(&durable(subject), "child", between.or(Some("top")));
        assert_eq!(record(subject, &store, "top").volatile, None);
        // Without the note nobody could say whose the mark is.
        assert_eq!(subject.names(&work), [""; 0]);
        with_mount(&store, "child", |path| {
            assert_eq!(subject.read(&path.join("file")), b"written");
        });
        subject.assert_clean(&store);
        subject.remove_tree(store.home());
    }
}

fn what_is_dirty_stays_so_when_it_is_sealed_again(subject: &Subject) {
    let Some(store) = written(subject) else {
        return;
    };
    create(&store, "child", Some("top"));
    let store = stopped_again(subject, store);
    let committed = record_path(&store, "top").with_file_name(names::COMMITTED);
    subject.unlink(&committed);
    let mended = durable(subject).repair(UpkeepOptions::new());
    assert_eq!(mended.expect("repair").mended.len(), 1);
    assert!(subject.exists(&committed));
    assert_dirty(store.mount(&id("child"), &MountRequest::new()), "top");
    let kinds = store.check().expect("check").findings.into_iter();
    let kinds: Vec<_> = kinds.map(|one| one.kind).collect();
    assert_eq!(kinds, [FindingKind::Volatile]);
}

fn what_is_dirty_stays_so_when_its_record_is_mended(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    // The record alone says it: no mark of the kernel bears it out.
    let mut right = record(subject, &store, "top");
    (right.volatile, right.unsynced) = (Some("another-boot".to_owned()), true);
    right.sealed = Some(SealReason::Import);
    let mut wrong = right.clone();
    wrong.parent = Some(id("top"));
    let path = record_path(&store, "top");
    subject.rewrite(&path, wrong.to_string().as_bytes());
    subject.write(&path.with_file_name(names::COMMITTED), b"");
    let kinds = |findings: &[ovl_driver::Finding]| -> Vec<_> {
        let kinds = findings.iter().map(|one| (one.kind, one.remedy));
        kinds.collect()
    };
    let findings = store.check().expect("check").findings;
    let dirty = (FindingKind::Volatile, Remedy::Nothing);
    assert_eq!(
        kinds(&findings),
        [(FindingKind::Record, Remedy::Repair), dirty],
        "{findings:#?}"
    );
    let repaired = store.repair(UpkeepOptions::new()).expect("repair");
    assert_eq!(repaired.mended, findings[..1]);
    assert_eq!(kinds(&repaired.left.findings), [dirty]);
    assert_eq!(record(subject, &store, "top"), right);
    assert_dirty(store.mount(&id("top"), &MountRequest::new()), "top");
    let accept = MountRequest::new().dirty(Some(Dirty::Accept));
    store.mount(&id("top"), &accept).expect("accepted");
    unmount(&store, "top");
    subject.assert_clean(&store);

    // A chain for which the record does not vouch is no right answer, and neither is the other way.
    for depth in [0, 2] {
        let mut wrong = record(subject, &store, "top");
        (wrong.parent, wrong.depth) = (Some(id("top")), depth);
        subject.rewrite(&path, wrong.to_string().as_bytes());
        let repaired = store.repair(UpkeepOptions::new()).expect("repair");
        assert_eq!(repaired.mended, [], "{depth}");
        assert!(!repaired.left.is_sound());
    }
}

fn volatile_changes_nothing_without_an_upper_layer(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    store.mount(&id("base"), &volatile()).expect("a bind mount");
    unmount(&store, "base");
    create(&store, "middle", Some("base"));
    create(&store, "top", Some("middle"));
    for name in ["base", "middle"] {
        store.mount(&id(name), &volatile()).expect("read-only");
        unmount(&store, name);
        assert_eq!(record(subject, &store, name).volatile, None, "{name}");
    }
    subject.assert_clean(&store);
}

fn a_layer_of_another_program_is_not_mounted_volatile(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    subject.unlink(&record_path(&store, "top"));
    let error = store.mount(&id("top"), &volatile());
    let error = error.expect_err("there is no record to note it in");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", chain(&error));
    with_mount(&store, "top", |path| {
        subject.write(&path.join("file"), b"x");
    });
    subject.assert_clean(&store);
}

/// A store on the same home in which one call fails, once.
fn failing(subject: &Subject, call: &'static str, about: &'static str) -> Overlay2 {
    let faulty = Faulty::new(subject.kernel().clone());
    let options = OpenOptions::new().durability(Durability::None);
    let store = Overlay2::open(faulty.kernel(), &subject.dir().join("home"), options);
    let store = store.expect("it opens");
    let mut done = false;
    faulty.order_where(move |now, subject| {
        let fails = !done && now == call && subject.contains(about);
        done |= fails;
        fails.then_some(Errno::IO.raw_os_error())
    });
    store
}

fn a_volatile_mount_that_fails_leaves_no_note(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    // Before the kernel is asked, and by it.
    for (call, about) in [
        ("create_dir", "merged"),
        ("create_file", "top"),
        ("mount", "top"),
    ] {
        let error = failing(subject, call, about).mount(&id("top"), &volatile());
        let error = error.expect_err("a fault");
        assert!(chain(&error).contains("os error 5"), "{}", chain(&error));
        assert_eq!(record(subject, &store, "top").volatile, None, "{call}");
    }
    if write_volatile(subject, &store).is_none() {
        return;
    }
    subject.assert_clean(&store);

    // The question of another boot stays too.
    let store = stopped_again(subject, store);
    let request = volatile().dirty(Some(Dirty::Accept));
    let error = failing(subject, "mount", "top").mount(&id("top"), &request);
    error.expect_err("a fault");
    assert_dirty(store.mount(&id("top"), &volatile()), "top");
    let path = store.mount(&id("top"), &request).expect("accepted");
    assert_eq!(subject.read(&path.join("file")), b"written");
    unmount(&store, "top");
    subject.assert_clean(&store);
}

fn a_mark_that_cannot_be_read_is_not_taken_for_none(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let work = store.layout().layer(&id("top")).work().to_owned();
    for name in ["work", "work/incompat", "work/incompat/volatile"] {
        subject.mkdir(&work.join(name), 0o700);
    }
    let error = failing(subject, "open_dir", "incompat").mount(&id("top"), &MountRequest::new());
    let error = error.expect_err("a fault");
    assert!(chain(&error).contains("os error 5"), "{}", chain(&error));
    assert!(subject.exists(&work.join("work/incompat/volatile")));
    assert_dirty(store.mount(&id("top"), &MountRequest::new()), "top");
    store.remove(&id("top"), false).expect("it can be removed");
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

/// The kernel leaves a directory with mode 0000, into which only root looks.
fn a_mark_that_may_not_be_read_is_no_reason_against_a_check(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let faulty = Faulty::new(subject.kernel().clone());
    let options = OpenOptions::new().durability(Durability::None);
    let watched = Overlay2::open(faulty.kernel(), store.home(), options).expect("it opens");
    let refuse = |errno: Errno| {
        faulty.order_where(move |call, about| {
            (call == "open_dir" && about == "work").then_some(errno.raw_os_error())
        });
    };
    refuse(Errno::ACCESS);
    let report = watched.check();
    let report = report.unwrap_or_else(|error| panic!("check: {}", chain(&error)));
    assert!(report.is_clean(), "{report:#?}");
    let garbage = watched.gc(UpkeepOptions::new().dry_run(true));
    let garbage = garbage.unwrap_or_else(|error| panic!("gc: {}", chain(&error)));
    assert_eq!(garbage.items, []);
    // What writes does not take it for granted.
    let archive = [0; 1024];
    let apply = || {
        let options = ImportOptions::new();
        watched.apply(&id("top"), &archive[..], options, &mut |_| {})
    };
    let errors = [
        watched.mount(&id("top"), &MountRequest::new()).err(),
        watched.create(&layer("child", Some("top"))).err(),
        apply().err(),
    ];
    for error in errors {
        let error = error.expect("there may be a mark");
        assert!(chain(&error).contains("os error 13"), "{}", chain(&error));
    }
    refuse(Errno::IO);
    let error = watched.check().expect_err("a fault");
    assert!(
        matches!(&error, Error::Io { path, .. } if path.ends_with("work")),
        "{}",
        chain(&error)
    );
    subject.assert_clean(&store);
}
