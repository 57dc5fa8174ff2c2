//! What is left behind in a home, by whom, and who takes it away. Row numbers are those of the
//! catalogue of bad inputs.

use std::path::Path;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Durability, Error, ErrorKind, FindingKind, MountRequest, OpenOptions, Remedy, Severity,
    UpkeepOptions,
};
use ovl_layout::names;
use ovl_mount::UnmountMode;
use tar::EntryType;

use super::damage::{as_docker, assert_shows_base, findings, kinds, layer_file, stack};
use super::support::{chain, create, id, import, layer, mount, unmount, with_mount};
use super::{Subject, list};
use crate::Faulty;
use crate::archive::ArchiveBuilder;

list! {
    row_112_what_a_layer_holds_is_out_of_reach_for_others,
    row_112_a_home_and_layers_that_others_may_enter_are_told,
    row_128_one_newline_after_a_lower_file_is_tolerated_and_told,
    row_131_a_dangling_link_is_told_and_reclaimed,
    row_132_a_second_link_is_told_and_reclaimed,
    row_134_a_layer_with_an_empty_link_file_is_removed_and_no_other,
    row_146_a_mount_that_nobody_holds_is_told_and_reclaimed,
    row_149_unknown_things_in_a_home_are_told_and_stay,
    row_150_half_a_layer_goes_when_nobody_else_is_at_work,
    row_152_files_that_others_may_write_to_are_told,
    a_home_of_docker_without_damage_is_clean,
    what_processes_that_are_gone_left_is_told_with_its_space,
    files_that_were_never_put_in_place_are_told_and_go,
    a_layer_removed_under_gc_is_no_error,
    a_base_layer_that_docker_is_still_making_into_a_child_is_found,
    links_that_are_not_understood_stay,
    a_leftover_that_cannot_go_is_in_nobodys_way,
    a_mount_with_a_damaged_link_file_can_be_unmounted,
    an_unrelated_layer_that_is_damaged_hides_no_child,
}

fn row_112_what_a_layer_holds_is_out_of_reach_for_others(subject: &Subject) {
    let store = stack(subject);
    // Its root is open, and it has a program of root's in it.
    let archive = ArchiveBuilder::new()
        .dir("./", 0o777)
        .entry("su", EntryType::Regular, 0o4755, "", b"#!")
        .finish();
    import(&store, "imported", Some("base"), &archive);
    let writable = store.create_writable(&layer("writable", Some("base")));
    writable.expect("create");
    let layers = ["base", "middle", "top", "imported", "writable"];
    let closed = |dir: &Path| subject.mode(dir) & 0o007 == 0;
    for name in layers {
        let layer = store.layout().layer(&id(name));
        assert!(closed(layer.dir()), "{name}");
        subject.chmod(layer.diff(), 0o777);
        with_mount(&store, name, |_| assert!(closed(layer.dir()), "{name}"));
    }
    for dir in [store.home(), &store.layout().store_dir()] {
        assert!(closed(dir), "{}", dir.display());
    }
    // Docker's first homes let others pass, and closed each layer.
    subject.chmod(store.home(), 0o711);
    assert_eq!(kinds(&store), []);
}

fn row_112_a_home_and_layers_that_others_may_enter_are_told(subject: &Subject) {
    let store = stack(subject);
    for name in ["base", "top"] {
        subject.chmod(store.layout().layer(&id(name)).dir(), 0o701);
    }
    assert_eq!(kinds(&store), [], "nobody comes as far as that");
    subject.chmod(store.home(), 0o701);
    let found = findings(&store);
    assert_eq!(kinds(&store), [FindingKind::Enterable], "{found:#?}");
    assert_eq!(found[0].path, store.home());
    let problem = &found[0].problem;
    assert!(
        problem.contains("0701") && problem.contains("2 of"),
        "{problem}"
    );
}

fn row_128_one_newline_after_a_lower_file_is_tolerated_and_told(subject: &Subject) {
    let store = stack(subject);
    let file = layer_file(&store, "top", "lower");
    let contents = [&*subject.read(&file), b"\n"].concat();
    subject.rewrite(&file, &contents);
    assert_shows_base(subject, &store);
    let found = findings(&store);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        (found[0].severity(), &found[0].path),
        (Severity::Note, &file)
    );
}

fn row_131_a_dangling_link_is_told_and_reclaimed(subject: &Subject) {
    let store = stack(subject);
    let link = store.layout().link_dir().join("DANGLINGDANGLINGDANGLINGDA");
    subject.symlink(&link, "../gone/diff");
    let found = findings(&store);
    assert_eq!(kinds(&store), [FindingKind::DanglingLink], "{found:#?}");
    // Docker may be about to make the layer.
    let kept = store.gc(UpkeepOptions::new()).expect("gc");
    assert_eq!((kept.items.len(), kept.kept.len()), (0, 1));
    let options = UpkeepOptions::new().docker_stopped(true);
    let would = store.gc(options.dry_run(true)).expect("gc");
    assert_eq!(would.items.len(), 1);
    assert_eq!(subject.names(&store.layout().link_dir()).len(), 4);
    assert_eq!(store.gc(options).expect("gc"), would);
    assert_eq!(subject.names(&store.layout().link_dir()).len(), 3);
    assert_eq!(kinds(&store), []);
    assert_shows_base(subject, &store);
}

fn row_132_a_second_link_is_told_and_reclaimed(subject: &Subject) {
    let store = stack(subject);
    let link = store.layout().link_dir().join("SECONDSECONDSECONDSECONDSE");
    subject.symlink(&link, "../base/diff");
    assert_eq!(kinds(&store), [FindingKind::SecondLink]);
    assert_shows_base(subject, &store);
    let options = UpkeepOptions::new().docker_stopped(true);
    assert_eq!(store.gc(options).expect("gc").items.len(), 1);
    assert_eq!(kinds(&store), []);
    assert_shows_base(subject, &store);
}

fn row_134_a_layer_with_an_empty_link_file_is_removed_and_no_other(subject: &Subject) {
    let store = as_docker(subject, stack(subject));
    subject.rewrite(&layer_file(&store, "top", "link"), b"");
    store.remove(&id("top"), false).expect("it can be removed");
    store.reclaim().expect("reclaim");
    // Nothing said which link was its own: it stays, and is told.
    assert_eq!(subject.names(&store.layout().link_dir()).len(), 3);
    assert_eq!(kinds(&store), [FindingKind::DanglingLink]);
    store.inspect(&id("middle")).expect("the others are whole");
}

fn row_146_a_mount_that_nobody_holds_is_told_and_reclaimed(subject: &Subject) {
    let store = stack(subject);
    mount(&store, "top");
    let holds = store.layout().store_dir().join(names::HOLDS).join("top");
    let text = String::from_utf8(subject.read(&holds)).expect("text");
    // As a process leaves it that is killed between noting its intent and its hold.
    subject.rewrite(
        &holds,
        text.replace("persistent 1", "persistent 0").as_bytes(),
    );
    assert_eq!(kinds(&store), [FindingKind::UnheldMount]);
    let garbage = store.gc(UpkeepOptions::new()).expect("gc");
    assert_eq!(garbage.items.len(), 1);
    assert_eq!(kinds(&store), []);
    subject.assert_clean(&store);
    // A mount that is held is nobody's garbage.
    mount(&store, "top");
    assert_eq!(store.gc(UpkeepOptions::new()).expect("gc").items, []);
    unmount(&store, "top");
}

fn row_149_unknown_things_in_a_home_are_told_and_stay(subject: &Subject) {
    let store = stack(subject);
    let home = store.home().to_owned();
    for name in ["tempdirs", ".hidden", "plugin%dir"] {
        subject.mkdir(&home.join(name), 0o700);
        subject.write(&home.join(name).join("data"), b"somebody's");
    }
    subject.write(&home.join("file"), b"somebody's");
    subject.mkdir(&home.join("check-overlayfs-support123"), 0o700);
    let found = findings(&store);
    let notes = found.iter().filter(|one| one.severity() == Severity::Note);
    assert_eq!((notes.count(), found.len()), (4, 5), "{found:#?}");
    let options = UpkeepOptions::new().docker_stopped(true);
    let garbage = store.gc(options).expect("gc");
    assert_eq!(garbage.items.len(), 1, "{garbage:#?}");
    assert_eq!(garbage.items[0].kind, FindingKind::Probe);
    for name in ["tempdirs/data", ".hidden/data", "plugin%dir/data", "file"] {
        assert_eq!(subject.read(&home.join(name)), b"somebody's");
    }
    // What is no layer is not removed as one either.
    let error = store
        .remove(&id("tempdirs"), true)
        .expect_err("it is no layer");
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(subject.exists(&home.join("tempdirs/data")));
}

fn row_150_half_a_layer_goes_when_nobody_else_is_at_work(subject: &Subject) {
    let store = stack(subject);
    let half = store.home().join("half");
    subject.mkdir(&half, 0o710);
    subject.mkdir(&half.join("diff"), 0o755);
    subject.write(&half.join("diff/file"), &[7; 10_000]);
    let found = findings(&store);
    assert_eq!(kinds(&store), [FindingKind::HalfLayer], "{found:#?}");
    assert_eq!(
        found[0].remedy,
        Remedy::Nothing,
        "it may be a layer that lost its small files"
    );
    let options = UpkeepOptions::new().docker_stopped(true);
    assert_eq!(
        store.gc(options).expect("gc"),
        store.gc(options.dry_run(true)).expect("gc")
    );
    assert!(subject.exists(&half.join("diff/file")));
    subject.unlink(&half.join("diff/file"));
    let error = store.mount(&id("half"), &MountRequest::new());
    assert_eq!(
        error.expect_err("it is no layer").kind(),
        ErrorKind::Damaged
    );
    assert_eq!(store.gc(UpkeepOptions::new()).expect("gc").kept.len(), 1);
    assert_eq!(store.gc(options).expect("gc").items.len(), 1);
    assert!(!subject.exists(&half));
    assert_eq!(kinds(&store), []);
}

fn row_152_files_that_others_may_write_to_are_told(subject: &Subject) {
    let store = stack(subject);
    let file = layer_file(&store, "top", "lower");
    subject.chmod(&file, 0o666);
    let found = findings(&store);
    assert_eq!(kinds(&store), [FindingKind::Writable], "{found:#?}");
    assert!(found[0].problem.contains("0666"), "{found:#?}");
    assert_shows_base(subject, &store);
}

fn a_home_of_docker_without_damage_is_clean(subject: &Subject) {
    let store = as_docker(subject, stack(subject));
    assert_eq!(findings(&store), []);
    // A permanent mount point, as Docker's versions up to 17.12 left, is no damage.
    subject.mkdir(store.layout().layer(&id("base")).merged(), 0o700);
    assert_eq!(findings(&store), []);
    assert_eq!(subject.names(store.home()), ["base", "l", "middle", "top"]);
}

fn what_processes_that_are_gone_left_is_told_with_its_space(subject: &Subject) {
    let store = stack(subject);
    store.remove(&id("top"), false).expect("remove");
    let own = store.layout().store_dir();
    let staged = own.join(names::STAGING).join("ABANDONEDABANDONEDABANDONE");
    subject.mkdir(&staged, 0o700);
    subject.mkdir(&staged.join("diff"), 0o755);
    subject.write(&staged.join("diff/file"), &[7; 10_000]);
    subject.write(&own.join(names::HOLDS).join("gone"), b"");
    let found = findings(&store);
    let expected = [
        FindingKind::Staging,
        FindingKind::Trash,
        FindingKind::StaleHolds,
    ];
    assert_eq!(kinds(&store), expected, "{found:#?}");
    assert!(found.iter().all(|one| one.ours), "{found:#?}");
    let garbage = store.gc(UpkeepOptions::new()).expect("gc");
    assert!(garbage.bytes() >= 10_000, "{garbage:#?}");
    assert_eq!(findings(&store), []);
    let _ = store
        .unmount_all(UnmountMode::Now)
        .expect("nothing is mounted");
    subject.assert_clean(&store);
}

/// A process is killed while it writes a layer's record anew.
fn files_that_were_never_put_in_place_are_told_and_go(subject: &Subject) {
    let store = stack(subject);
    let unfinished = layer_file(&store, "middle", ".tmp-.ovl-layer");
    subject.write(&unfinished, b"ovl-lay");
    let other = layer_file(&store, "middle", ".tmp-notes");
    subject.write(&other, b"somebody's");
    let found = findings(&store);
    assert_eq!(kinds(&store), [FindingKind::Unfinished], "{found:#?}");
    assert_eq!((&found[0].path, found[0].ours), (&unfinished, true));
    let items = store.gc(UpkeepOptions::new()).expect("gc").items;
    assert_eq!(items.len(), 1, "{items:#?}");
    assert!(!subject.exists(&unfinished) && subject.exists(&other));
    with_mount(&store, "top", |_| {});
    subject.assert_clean(&store);
}

/// Another process removes the layer between the last look and the lock.
fn a_layer_removed_under_gc_is_no_error(subject: &Subject) {
    let store = stack(subject);
    let unfinished = layer_file(&store, "top", ".tmp-.ovl-layer");
    let faulty = Faulty::new(subject.kernel().clone());
    let options = OpenOptions::new().durability(Durability::None);
    let watched = Overlay2::open(faulty.kernel(), store.home(), options).expect("it opens");
    subject.write(&unfinished, b"ovl-lay");
    faulty.heal();
    watched.gc(UpkeepOptions::new()).expect("gc");
    let journal = faulty.journal();
    let locks = journal.operations().iter();
    let mut left = locks
        .filter(|one| one.call == "lock" && one.subject == "top")
        .count();

    subject.write(&unfinished, b"ovl-lay");
    let other = subject.open("home").expect("it opens");
    faulty.order_where(move |call, about| {
        if call == "lock" && about == "top" {
            left -= 1;
            if left == 0 {
                other.remove(&id("top"), false).expect("remove");
            }
        }
        None
    });
    let collected = watched.gc(UpkeepOptions::new());
    collected.unwrap_or_else(|error| panic!("gc: {}", chain(&error)));
    assert!(!store.contains(&id("top")).expect("contains"));
    create(&store, "top", Some("middle"));
    subject.assert_clean(&store);
}

fn a_base_layer_that_docker_is_still_making_into_a_child_is_found(subject: &Subject) {
    let store = stack(subject);
    create(&store, "other", None);
    // Docker makes the link and the `link` file first, and `lower` when those are on disk.
    let dir = store.home().join("docker");
    subject.mkdir(&dir, 0o710);
    subject.mkdir(&dir.join("diff"), 0o755);
    let link = "DOCKERDOCKERDOCKERDOCKERDO";
    subject.symlink(&store.layout().link_dir().join(link), "../docker/diff");
    subject.write(&dir.join("link"), link.as_bytes());
    store.remove(&id("other"), false).expect("remove");
    let lower = subject.read(&layer_file(&store, "top", "lower"));
    let top = store.inspect(&id("top")).expect("inspect").link;
    let lower = format!("l/{top}:{}", String::from_utf8_lossy(&lower));
    subject.write(&dir.join("lower"), lower.as_bytes());
    let error = store
        .remove(&id("top"), true)
        .expect_err("Docker's layer stands on it");
    assert!(matches!(error, Error::HasChildren { .. }), "{error}");
}

fn links_that_are_not_understood_stay(subject: &Subject) {
    let store = stack(subject);
    let dir = store.layout().link_dir();
    subject.symlink(&dir.join("ABSOLUTEABSOLUTEABSOLUTEAB"), "/etc");
    subject.write(&dir.join("FILEFILEFILEFILEFILEFILEFI"), b"somebody's");
    let found = findings(&store);
    assert!(
        found.iter().all(|one| one.severity() == Severity::Note),
        "{found:#?}"
    );
    let options = UpkeepOptions::new().docker_stopped(true);
    assert_eq!(store.gc(options).expect("gc").items, []);
    assert_eq!(subject.names(&dir).len(), 5);
}

fn a_leftover_that_cannot_go_is_in_nobodys_way(subject: &Subject) {
    let store = stack(subject);
    let staging = store.layout().store_dir().join(names::STAGING);
    subject.write(&staging.join("file"), b"nobody makes files here");
    let trash = store.layout().store_dir().join(names::TRASH);
    subject.write(&trash.join("file"), b"nor here");
    drop(store);
    let store = subject.open("home").expect("it opens");
    create(&store, "more", None);
    store.gc(UpkeepOptions::new()).expect("gc");
    assert_eq!(
        (subject.names(&staging), subject.names(&trash)),
        (vec![], vec![])
    );
    assert_eq!(kinds(&store), []);
}

fn a_mount_with_a_damaged_link_file_can_be_unmounted(subject: &Subject) {
    let store = stack(subject);
    let file = layer_file(&store, "top", "link");
    let right = subject.read(&file);
    for all in [false, true] {
        mount(&store, "top");
        subject.rewrite(&file, b"");
        if all {
            assert_eq!(
                store.unmount_all(UnmountMode::Now).expect("unmount"),
                [id("top")]
            );
        } else {
            assert_eq!(
                store
                    .unmount(&id("top"), UnmountMode::Now)
                    .expect("unmount"),
                0
            );
        }
        subject.rewrite(&file, &right);
    }
    subject.assert_clean(&store);
}

fn an_unrelated_layer_that_is_damaged_hides_no_child(subject: &Subject) {
    let store = stack(subject);
    create(&store, "unrelated", Some("base"));
    let store = as_docker(subject, store);
    subject.rewrite(&layer_file(&store, "unrelated", "lower"), b"");
    let mark = layer_file(&store, "middle", "committed");
    subject.unlink(&mark);
    for force in [false, true] {
        let error = store
            .remove(&id("middle"), force)
            .expect_err("top stands on it");
        assert!(matches!(error, Error::HasChildren { .. }), "{error}");
    }
    with_mount(&store, "middle", |_| {
        assert!(subject.exists(&mark), "sealed before it is mounted");
    });
    // Nobody can say that nothing stands on this one.
    let error = store
        .remove(&id("top"), false)
        .expect_err("unrelated may stand on it");
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    store
        .remove(&id("unrelated"), false)
        .expect("what is damaged can go");
    store
        .remove(&id("top"), false)
        .expect("nothing stands on it");
}
