//! Ids, homes, and several users of one home at once: rows 138 to 187 of the catalogue of bad inputs,
//! as far as no other module has them.

use std::io::{self, Read};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Durability, Error, ErrorKind, ImportOptions, InitOptions, MountRequest, Severity,
};
use ovl_layout::{LayerId, LayerIdError};
use ovl_mount::{Strategy, UnmountMode};

use super::support::{chain, create, id, import, layer, mount, try_import, unmount, with_mount};
use super::{Subject, list};
use crate::archive::ArchiveBuilder;

list! {
    row_138_a_layer_too_deep_is_refused_with_the_numbers,
    row_139_mount_data_of_a_page_is_refused_and_nothing_is_mounted,
    row_148_a_seal_without_children_is_no_damage,
    row_156_an_empty_id_is_never_removed,
    row_157_ids_that_are_no_names_are_refused,
    row_158_ids_that_differ_in_case_are_two_layers,
    row_159_creating_an_existing_layer_changes_nothing,
    row_160_a_parent_that_is_not_there_leaves_nothing,
    row_167_a_home_of_any_bytes_works,
    row_168_a_home_inside_a_layer_is_another_home,
    row_172_two_stores_work_on_one_home,
    row_173_of_many_makers_of_one_id_one_wins,
    row_174_a_child_and_the_removal_of_its_parent_exclude_each_other,
    row_175_mounts_and_unmounts_in_any_order_end_at_zero,
    row_176_a_mounted_layer_is_removed_by_force_only,
    row_177_an_upper_is_never_mounted_twice,
    row_182_of_many_imports_of_one_id_one_wins,
    row_184_whoever_looks_while_others_work_sees_no_damage,
    row_185_an_import_that_waits_keeps_nobody_else_waiting,
    row_187_no_operation_touches_the_process,
}

fn archive() -> Vec<u8> {
    ArchiveBuilder::new().file("file", b"contents").finish()
}

fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

fn row_138_a_layer_too_deep_is_refused_with_the_numbers(subject: &Subject) {
    let home = subject.dir().join("home");
    let options = InitOptions::new().max_depth(3);
    let store = Overlay2::init(subject.kernel().clone(), &home, &options).expect("init");
    create(&store, "l0", None);
    for depth in 1..=3 {
        create(
            &store,
            &format!("l{depth}"),
            Some(&format!("l{}", depth - 1)),
        );
    }
    let error = store
        .create(&layer("l4", Some("l3")))
        .expect_err("too deep");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let words = chain(&error);
    assert!(
        words.contains("on 4 layers") && words.contains("allows 3"),
        "{words}"
    );
    assert!(!store.contains(&id("l4")).expect("contains"));
    with_mount(&store, "l3", |_| {});
    subject.assert_clean(&store);
}

fn row_139_mount_data_of_a_page_is_refused_and_nothing_is_mounted(subject: &Subject) {
    // Longer than the kernel's page with as many layers as Docker allows.
    let name = "home-".repeat(20);
    let home = subject.dir().join(name);
    let options = InitOptions::new().durability(Durability::None);
    let store = Overlay2::init(subject.kernel().clone(), &home, &options).expect("init");
    create(&store, "l0", None);
    for depth in 1..=128 {
        let parent = format!("l{}", depth - 1);
        create(&store, &format!("l{depth}"), Some(&parent));
    }
    let limit = store.status().expect("status").features.data_limit.bytes();
    let request = MountRequest::new().strategy(Some(Strategy::MountAbsolute));
    let (mut fits, mut refused) = (0, 0);
    for depth in [1, 8, 16, 32, 64, 128] {
        let layer = id(&format!("l{depth}"));
        let mounted = store.mount(&layer, &request);
        match mounted {
            Ok(_) => {
                store.unmount(&layer, UnmountMode::Now).expect("unmount");
                fits += 1;
            }
            Err(error) => {
                let words = chain(&error);
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{words}");
                assert!(words.contains(&format!("takes {limit}")), "{words}");
                assert!(store.inspect(&layer).expect("inspect").mount.is_none());
                refused += 1;
            }
        }
    }
    assert!(
        fits > 0 && (refused > 0 || limit > 4095),
        "{fits}, {refused}"
    );
    subject.assert_clean(&store);
}

fn row_148_a_seal_without_children_is_no_damage(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "child", Some("base"));
    store.remove(&id("child"), false).expect("remove");
    store.reclaim().expect("reclaim");
    assert!(
        store
            .check()
            .expect("check")
            .of(Severity::Damage)
            .next()
            .is_none()
    );
    // Nothing unseals: who stood on it may be somewhere else by now.
    assert!(store.inspect(&id("base")).expect("inspect").sealed);
    subject.assert_clean(&store);
}

fn row_156_an_empty_id_is_never_removed(subject: &Subject) {
    assert_eq!("".parse::<LayerId>(), Err(LayerIdError::Empty));
    let store = subject.store();
    create(&store, "base", None);
    assert_eq!(store.layers().expect("layers").layers.len(), 1);
}

fn row_157_ids_that_are_no_names_are_refused(_: &Subject) {
    let long = "x".repeat(129);
    let bad = [
        ".",
        "..",
        "a/b",
        "/abs",
        "../x",
        "l",
        "-x",
        ".hidden",
        ".ovl",
        "a\0b",
        "a\nb",
        "a b",
        "a%b",
        "ä",
        "backingFsBlockDev",
        "check-overlayfs-support1",
        "metacopy-check2",
        "opaque-bug-check3",
        "userxattr-check4",
        &long,
    ];
    for text in bad {
        let error = text.parse::<LayerId>().expect_err(text);
        assert!(!error.to_string().is_empty());
    }
    for text in ["x", "3f9c-init", "a.b_c-d", "L", &long[..128]] {
        text.parse::<LayerId>().expect(text);
    }
}

fn row_158_ids_that_differ_in_case_are_two_layers(subject: &Subject) {
    let store = subject.store();
    create(&store, "Layer", None);
    create(&store, "layer", None);
    store.remove(&id("Layer"), false).expect("remove");
    assert!(store.contains(&id("layer")).expect("contains"));
}

fn row_159_creating_an_existing_layer_changes_nothing(subject: &Subject) {
    let store = subject.store();
    import(&store, "base", None, &archive());
    let before = store.inspect(&id("base")).expect("inspect");
    for result in [
        store.create(&layer("base", None)),
        store.create_writable(&layer("base", None)),
        try_import(&store, "base", None, &archive()).map(|_| ()),
        store.create(&layer("base", Some("base"))),
    ] {
        assert_eq!(kind(result), Some(ErrorKind::AlreadyExists));
    }
    assert_eq!(store.inspect(&id("base")).expect("inspect"), before);
    subject.assert_clean(&store);
}

fn row_160_a_parent_that_is_not_there_leaves_nothing(subject: &Subject) {
    let store = subject.store();
    create(&store, "other", None);
    for (name, parent) in [("child", "missing"), ("self", "self")] {
        let error = store
            .create(&layer(name, Some(parent)))
            .expect_err("no parent");
        assert!(matches!(error, Error::ParentNotFound { .. }), "{error}");
        let imported = try_import(&store, name, Some(parent), &archive());
        assert_eq!(kind(imported), Some(ErrorKind::NotFound));
    }
    assert_eq!(store.layers().expect("layers").layers.len(), 1);
    subject.assert_clean(&store);
}

fn row_167_a_home_of_any_bytes_works(subject: &Subject) {
    for name in [
        "a:b", "a,b", "a\\b", "a b", "a\"b", "a\nb", "a%b", "a=b", "ä", "a'b",
    ] {
        let store = subject.open(name).expect(name);
        import(&store, "base", None, &archive());
        create(&store, "top", Some("base"));
        with_mount(&store, "top", |path| {
            assert_eq!(subject.read(&path.join("file")), b"contents", "{name:?}");
            subject.write(&path.join("new"), b"new");
        });
        let new = store.layout().layer(&id("top")).diff().join("new");
        assert_eq!(subject.read(&new), b"new", "{name:?}");
        subject.assert_clean(&store);
    }
}

fn row_168_a_home_inside_a_layer_is_another_home(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    // The contents of a layer are a directory like any other; a layer's own directory is not one.
    let inside = store.layout().layer(&id("base"));
    let options = ovl_driver::OpenOptions::new().create(true);
    let opened = Overlay2::open(subject.kernel().clone(), inside.dir(), options);
    assert_eq!(kind(opened), Some(ErrorKind::InvalidInput));
    assert!(store.check().expect("check").is_clean());
}

fn row_172_two_stores_work_on_one_home(subject: &Subject) {
    let (one, two) = (subject.store(), subject.store());
    create(&one, "base", None);
    create(&two, "top", Some("base"));
    let path = mount(&one, "top");
    assert_eq!(mount(&two, "top"), path);
    let again = one.remove(&id("top"), false);
    assert_eq!(kind(again), Some(ErrorKind::Busy));
    unmount(&two, "top");
    unmount(&two, "top");
    assert_eq!(
        kind(one.unmount(&id("top"), UnmountMode::Now)),
        Some(ErrorKind::NotFound)
    );
    subject.assert_clean(&one);
}

/// Runs the same in many threads at once.
fn at_once<T: Send>(threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let start = Barrier::new(threads);
    thread::scope(|scope| {
        let spawn = |number| {
            let (start, work) = (&start, &work);
            scope.spawn(move || {
                start.wait();
                work(number)
            })
        };
        let threads: Vec<_> = (0..threads).map(spawn).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, T>| thread.join().expect("no panic");
        threads.into_iter().map(join).collect()
    })
}

fn row_173_of_many_makers_of_one_id_one_wins(subject: &Subject) {
    let store = subject.store();
    for round in 0..4 {
        let name = format!("layer{round}");
        let results = at_once(16, |_| store.create(&layer(&name, None)));
        let won = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(won, 1, "{results:?}");
        let lost = results.into_iter().filter_map(kind);
        assert!(
            lost.into_iter()
                .all(|kind| kind == ErrorKind::AlreadyExists)
        );
    }
    subject.assert_clean(&store);
}

fn row_174_a_child_and_the_removal_of_its_parent_exclude_each_other(subject: &Subject) {
    let store = subject.store();
    for round in 0..16 {
        let (parent, child) = (format!("parent{round}"), format!("child{round}"));
        create(&store, &parent, None);
        let results = at_once(2, |number| match number {
            0 => store.create(&layer(&child, Some(&parent))),
            _ => store.remove(&id(&parent), false),
        });
        let there = [&child, &parent].map(|name| store.contains(&id(name)).expect("contains"));
        match (&results[0], &results[1]) {
            (Ok(()), Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
                assert_eq!(there, [true, true]);
                with_mount(&store, &child, |_| {});
            }
            (Err(error), Ok(())) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                assert_eq!(there, [false, false]);
            }
            other => panic!("{other:?}"),
        }
    }
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

fn row_175_mounts_and_unmounts_in_any_order_end_at_zero(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let request = MountRequest::new();
    let counts = at_once(8, |number| {
        let mut balance = 0_i64;
        for turn in 0..40 {
            // More unmounts than mounts in some of the threads.
            match (turn + number) % (2 + number % 2) {
                0 => {
                    store.mount(&id("top"), &request).expect("mount");
                    balance += 1;
                }
                _ => match store.unmount(&id("top"), UnmountMode::Lazy) {
                    Ok(_) => balance -= 1,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
                },
            }
        }
        balance
    });
    let left: i64 = counts.iter().sum();
    let state = store.inspect(&id("top")).expect("inspect").mount;
    let holds = state.map_or(0, |state| state.holds());
    assert_eq!(Ok(holds), u64::try_from(left));
    for _ in 0..left {
        unmount(&store, "top");
    }
    subject.assert_clean(&store);
}

fn row_176_a_mounted_layer_is_removed_by_force_only(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    mount(&store, "top");
    let error = store.remove(&id("top"), false).expect_err("it is mounted");
    assert!(matches!(error, Error::Mounted { .. }), "{error}");
    store.remove(&id("top"), true).expect("by force");
    assert_eq!(kind(store.inspect(&id("top"))), Some(ErrorKind::NotFound));
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

fn row_177_an_upper_is_never_mounted_twice(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let paths = at_once(8, |_| mount(&store, "top"));
    assert!(paths.windows(2).all(|pair| pair[0] == pair[1]));
    let mounts = subject.kernel().mount().mounts_below(store.home());
    assert_eq!(mounts.expect("mounts").len(), 1);
    at_once(8, |_| unmount(&store, "top"));
    subject.assert_clean(&store);
}

fn row_182_of_many_imports_of_one_id_one_wins(subject: &Subject) {
    let store = subject.store();
    let results = at_once(8, |_| try_import(&store, "base", None, &archive()));
    let won = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(won, 1);
    let lost = results.into_iter().filter_map(kind);
    assert!(
        lost.into_iter()
            .all(|kind| kind == ErrorKind::AlreadyExists)
    );
    assert_eq!(subject.shown(&store, "base").len(), 2);
    subject.assert_clean(&store);
}

fn row_184_whoever_looks_while_others_work_sees_no_damage(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) || looks == 0 {
                let list = store.layers().expect("layers");
                assert!(list.broken.is_empty(), "{list:?}");
                let report = store.check().expect("check");
                assert!(report.is_sound(), "{report:#?}");
                looks += 1;
            }
        });
        for round in 0..20 {
            let name = format!("layer{round}");
            import(&store, &name, Some("base"), &archive());
            create(&store, "open", Some(&name));
            let options = ImportOptions::new();
            let applied = store.apply(&id("open"), &*archive(), options, &mut |_| {});
            applied.expect("apply");
            store.remove(&id("open"), false).expect("remove");
            store.remove(&id(&name), false).expect("remove");
            store.reclaim().expect("reclaim");
        }
        done.store(true, Ordering::Relaxed);
        looking.join().expect("no panic");
    });
    subject.assert_clean(&store);
}

/// Says when it is first read, and then waits to be told to go on.
struct Waiting {
    reached: Sender<()>,
    go: Receiver<()>,
    rest: io::Cursor<Vec<u8>>,
}

impl Read for Waiting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.reached.send(()).is_ok() {
            // Whether told or left alone, the rest comes now.
            let _ = self.go.recv();
        }
        self.rest.read(buffer)
    }
}

fn row_185_an_import_that_waits_keeps_nobody_else_waiting(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    let ((reached, at), (go, told)) = (channel(), channel());
    let rest = io::Cursor::new(archive());
    let go_on = told;
    let source = Waiting {
        reached,
        go: go_on,
        rest,
    };
    thread::scope(|scope| {
        let importing = scope.spawn(|| {
            let options = ImportOptions::new();
            store.import(&layer("slow", Some("base")), source, options, &mut |_| {})
        });
        at.recv().expect("the import reads");
        // All of this needs locks on the home, the parent, or both.
        create(&store, "other", Some("base"));
        with_mount(&store, "other", |_| {});
        import(&store, "another", Some("base"), &archive());
        store.remove(&id("another"), false).expect("remove");
        store.reclaim().expect("reclaim");
        store.layers().expect("layers");
        assert!(store.check().expect("check").is_clean());
        // But the parent is in use.
        assert_eq!(
            kind(store.remove(&id("base"), false)),
            Some(ErrorKind::Busy)
        );
        drop(at);
        drop(go);
        importing.join().expect("no panic").expect("import");
    });
    subject.assert_clean(&store);
}

fn row_187_no_operation_touches_the_process(subject: &Subject) {
    let look = || {
        let dir = rustix::process::getcwd(Vec::new()).expect("a working directory");
        let namespaces = ["mnt", "user", "pid"].map(|name| {
            rustix::fs::readlink(format!("/proc/self/ns/{name}"), Vec::new()).expect("a namespace")
        });
        (dir, namespaces)
    };
    let before = look();
    let store = subject.store();
    import(&store, "base", None, &archive());
    create(&store, "top", Some("base"));
    for strategy in ovl_mount::Strategy::ALL {
        let request = MountRequest::new().strategy(Some(strategy));
        if store.mount(&id("top"), &request).is_ok() {
            unmount(&store, "top");
        }
        assert_eq!(look(), before, "{strategy:?}");
    }
    store.remove(&id("top"), false).expect("remove");
    store.reclaim().expect("reclaim");
    assert_eq!(look(), before);
}
