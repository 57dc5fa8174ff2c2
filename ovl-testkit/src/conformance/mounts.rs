//! Mounting: counts, access, refusals.

use std::ffi::OsStr;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Base, CreateLayer, Durability, Error, ErrorKind, Hold, ImportOptions, InitOptions, MountRequest,
};

use super::damage::findings;
use ovl_mount::{Access, HeldAs, MountError, OverlayOptions, PlanError, UnmountMode};

use super::support::{chain, create, id, import, layer, mount, unmount, with_mount};
use super::{Subject, list};
use crate::archive::ArchiveBuilder;

list! {
    a_mount_lasts_as_long_as_it_is_held,
    unmounting_what_is_not_mounted_is_not_found,
    a_busy_mount_stays_held_until_it_is_unmounted_lazily,
    a_layer_deeper_than_the_store_allows_is_read_and_not_mounted,
    a_guarded_mount_ends_with_its_guard,
    a_lazily_unmounted_layer_is_not_used_until_nobody_uses_it,
    a_sealed_layer_mounts_read_only,
    an_open_layer_mounts_writable_with_and_without_a_parent,
    a_layer_mounted_writable_takes_no_children,
    a_mounted_layer_is_not_removed_unless_forced,
    other_options_than_the_mounts_are_refused,
    a_mount_that_nobody_holds_is_replaced,
    a_mount_that_is_not_ours_is_left_alone,
    an_unreadable_hold_file_is_damage_and_unmounts_nothing,
    a_layer_that_is_being_replaced_is_in_use,
    the_mount_point_goes_with_the_mount,
    a_hold_of_this_process_counts,
    unmounting_all_takes_every_layers_mount_and_nothing_else,
    what_is_mounted_on_a_mount_is_nowhere_else_and_goes_with_it,
}

fn a_mount_lasts_as_long_as_it_is_held(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let path = mount(&store, "top");
    assert_eq!(mount(&store, "top"), path);
    assert_eq!(mount(&store, "top"), path);
    subject.write(&path.join("file"), b"x");
    assert_eq!(
        store
            .unmount(&id("top"), UnmountMode::Now)
            .expect("unmount"),
        2
    );
    assert_eq!(
        store
            .unmount(&id("top"), UnmountMode::Now)
            .expect("unmount"),
        1
    );
    assert_eq!(subject.read(&path.join("file")), b"x");
    assert_eq!(
        store
            .unmount(&id("top"), UnmountMode::Now)
            .expect("unmount"),
        0
    );
    assert!(!subject.exists(&path));
    subject.assert_clean(&store);
}

fn unmounting_what_is_not_mounted_is_not_found(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    with_mount(&store, "base", |_| {});
    for _ in 0..2 {
        let error = store
            .unmount(&id("base"), UnmountMode::Now)
            .expect_err("not mounted");
        assert!(matches!(error, Error::NotMounted { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    mount(&store, "base");
    unmount(&store, "base");
    subject.assert_clean(&store);
}

fn a_busy_mount_stays_held_until_it_is_unmounted_lazily(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let path = mount(&store, "top");
    subject.write(&path.join("open"), b"x");
    let root = subject.tree().open_root(&path).expect("open");
    let file = subject
        .tree()
        .open_file(&root, OsStr::new("open"))
        .expect("open");
    let error = store
        .unmount(&id("top"), UnmountMode::Now)
        .expect_err("a file is open");
    assert_eq!(error.kind(), ErrorKind::Busy);
    let Error::Mount {
        source: MountError::Busy { holders, .. },
        ..
    } = &error
    else {
        panic!("{error}");
    };
    let this = subject.kernel().system().this_process().expect("a process");
    let own = holders.iter().find(|holder| holder.pid == this.pid);
    let own = own.unwrap_or_else(|| panic!("not among {holders:?}"));
    assert_eq!(own.held_as, HeldAs::OpenFile);
    let words = chain(&error);
    assert!(words.contains(&format!("process {}", this.pid)), "{words}");
    let state = store
        .inspect(&id("top"))
        .expect("inspect")
        .mount
        .expect("still mounted");
    assert_eq!(state.holds(), 1);
    assert_eq!(
        store
            .unmount(&id("top"), UnmountMode::Lazy)
            .expect("lazily"),
        0
    );
    assert!(!subject.exists(&path));
    drop((root, file));
    // The next mount finds that it is over.
    with_mount(&store, "top", |_| {});
    subject.assert_clean(&store);
}

fn a_lazily_unmounted_layer_is_not_used_until_nobody_uses_it(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let path = mount(&store, "top");
    subject.write(&path.join("open"), b"");
    let root = subject.tree().open_root(&path).expect("open");
    let file = subject.tree().open_file(&root, OsStr::new("open"));
    let file = file.expect("open");
    let lazily = store.unmount(&id("top"), UnmountMode::Lazy);
    assert_eq!(lazily.expect("lazily"), 0);
    assert_eq!(store.inspect(&id("top")).expect("inspect").mount, None);
    let again = store.mount(&id("top"), &MountRequest::new());
    let child = store.create(&CreateLayer::new(id("child")).parent(Some(id("top"))));
    for error in [again.expect_err("used"), child.expect_err("used")] {
        assert!(matches!(error, Error::StillInUse { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Busy);
    }
    let none = store.unmount(&id("top"), UnmountMode::Now);
    assert_eq!(none.expect_err("not mounted").kind(), ErrorKind::NotFound);
    assert_eq!(findings(&store), []);
    drop((root, file));
    assert_eq!(findings(&store), []);
    with_mount(&store, "top", |path| {
        assert_eq!(subject.read(&path.join("open")), b"");
    });
    create(&store, "child", Some("top"));
    subject.assert_clean(&store);
}

fn a_layer_deeper_than_the_store_allows_is_read_and_not_mounted(subject: &Subject) {
    let home = subject.dir().join("home");
    let deep = InitOptions::new().max_depth(3).durability(Durability::None);
    let store = Overlay2::init(subject.kernel().clone(), &home, &deep).expect("a home");
    let names = ["s0", "s1", "s2", "s3"];
    create(&store, names[0], None);
    for pair in names.windows(2) {
        create(&store, pair[1], Some(pair[0]));
    }
    with_mount(&store, "s3", |_| {});
    drop(store);
    // As when somebody has put the layers of another home there.
    let settings = home.join(".ovl/settings");
    let text = String::from_utf8(subject.read(&settings)).expect("text");
    let shallow = text.replace("max-depth 3", "max-depth 2");
    assert_ne!(text, shallow, "the settings have a depth");
    subject.rewrite(&settings, shallow.as_bytes());

    let store = subject.open("home").expect("it opens");
    let request = MountRequest::new();
    let errors = [
        store.mount(&id("s3"), &request).map(drop).err(),
        store.plan(&id("s3"), &request).map(drop).err(),
    ];
    for error in errors {
        let error = error.expect("three are below");
        let Error::Plan {
            source: PlanError::TooDeep {
                depth, max_depth, ..
            },
            ..
        } = &error
        else {
            panic!("{}", chain(&error));
        };
        assert_eq!((*depth, *max_depth), (3, 2));
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    store.inspect(&id("s3")).expect("it can be read");
    store
        .changes(&id("s3"), &Base::Parent)
        .expect("and compared");
    with_mount(&store, "s2", |_| {});
    subject.assert_clean(&store);
}

fn a_guarded_mount_ends_with_its_guard(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let request = MountRequest::new();
    let one = store.mount_guarded(&id("top"), &request).expect("mount");
    let two = store.mount_guarded(&id("top"), &request).expect("mount");
    assert_eq!((one.id(), one.path()), (&id("top"), two.path()));
    subject.write(&one.path().join("file"), b"kept");
    let kept = one.path().to_owned();
    drop(one);
    assert_eq!(subject.read(&kept.join("file")), b"kept", "one guard lives");
    assert_eq!(two.unmount(UnmountMode::Now).expect("unmount"), 0);
    assert!(!subject.exists(&kept));
    subject.assert_clean(&store);

    // One that is busy stays held, and can be released later.
    let guard = store.mount_guarded(&id("top"), &request).expect("mount");
    let root = subject.tree().open_root(guard.path()).expect("open");
    let file = subject.tree().open_file(&root, OsStr::new("file"));
    let file = file.expect("open");
    drop(guard);
    let mount = store.inspect(&id("top")).expect("inspect").mount;
    assert_eq!(mount.expect("still mounted").holds(), 1);
    drop((root, file));
    unmount(&store, "top");
    subject.assert_clean(&store);
}

fn a_sealed_layer_mounts_read_only(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    with_mount(&store, "base", |path| {
        subject.write(&path.join("file"), b"base");
    });
    create(&store, "middle", Some("base"));
    with_mount(&store, "middle", |path| {
        subject.write(&path.join("other"), b"middle");
    });
    create(&store, "top", Some("middle"));
    for name in ["base", "middle"] {
        let path = mount(&store, name);
        assert_eq!(subject.read(&path.join("file")), b"base");
        let root = subject.tree().open_root(&path).expect("open");
        let refused = subject.tree().create_file(&root, OsStr::new("new"), 0o644);
        let error = refused.expect_err("it is sealed");
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ReadOnlyFilesystem,
            "{name}: {error}"
        );
        drop(root);
        let state = store
            .inspect(&id(name))
            .expect("inspect")
            .mount
            .expect("mounted");
        assert_eq!(state.access, Access::ReadOnly);
        unmount(&store, name);
    }
    subject.assert_clean(&store);
}

fn an_open_layer_mounts_writable_with_and_without_a_parent(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    with_mount(&store, "base", |path| {
        subject.write(&path.join("in-base"), b"1");
    });
    create(&store, "top", Some("base"));
    with_mount(&store, "top", |path| {
        subject.write(&path.join("in-top"), b"2");
        subject.unlink(&path.join("in-base"));
    });
    let diff = |name| store.layout().layer(&id(name)).diff().to_owned();
    assert_eq!(subject.names(&diff("base")), ["in-base"]);
    assert_eq!(subject.names(&diff("top")), ["in-base", "in-top"]);
    with_mount(&store, "top", |path| {
        assert_eq!(subject.names(path), ["in-top"]);
    });
    subject.assert_clean(&store);
}

fn a_layer_mounted_writable_takes_no_children(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    mount(&store, "base");
    let error = store
        .create(&layer("child", Some("base")))
        .expect_err("it can still change");
    assert!(
        matches!(&error, Error::Mounted { id: parent, .. } if *parent == id("base")),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(!store.inspect(&id("base")).expect("inspect").sealed);
    unmount(&store, "base");
    create(&store, "child", Some("base"));
    mount(&store, "base");
    create(&store, "sibling", Some("base"));
    unmount(&store, "base");
    subject.assert_clean(&store);
}

fn a_mounted_layer_is_not_removed_unless_forced(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let path = mount(&store, "top");
    let error = store.remove(&id("top"), false).expect_err("it is mounted");
    assert!(matches!(error, Error::Mounted { .. }), "{error}");
    subject.write(&path.join("still"), b"here");
    store.remove(&id("top"), true).expect("forced");
    assert!(!store.contains(&id("top")).expect("contains"));
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

fn other_options_than_the_mounts_are_refused(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    mount(&store, "top");
    let nodev = OverlayOptions::default().with("nodev").expect("an option");
    let request = MountRequest::new().options(nodev);
    let error = store
        .mount(&id("top"), &request)
        .expect_err("mounted without");
    assert!(matches!(error, Error::MountedDifferently { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Busy);
    unmount(&store, "top");
    store.mount(&id("top"), &request).expect("mount");
    unmount(&store, "top");
    subject.assert_clean(&store);
}

fn a_mount_that_nobody_holds_is_replaced(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let path = mount(&store, "top");
    // As after a kill between the mount and the note of its hold.
    let holds = store.layout().store_dir().join("holds/top");
    let let_go = || {
        let noted = String::from_utf8(subject.read(&holds)).expect("text");
        let noted = noted.replace("persistent 1", "persistent 0");
        subject.rewrite(&holds, noted.as_bytes());
    };
    let_go();
    assert_eq!(mount(&store, "top"), path);
    let state = store
        .inspect(&id("top"))
        .expect("inspect")
        .mount
        .expect("mounted");
    assert_eq!(state.holds(), 1);
    // It is in nobody's way: not in that of an archive, and not in that of a child.
    let_go();
    let archive = crate::archive::ArchiveBuilder::new()
        .file("new", b"new")
        .finish();
    let applied = store.apply(&id("top"), &*archive, ImportOptions::new(), &mut |_| {});
    applied.expect("nobody holds the mount");
    mount(&store, "top");
    let_go();
    create(&store, "child", Some("top"));
    subject.assert_clean(&store);
}

fn the_mount_point_goes_with_the_mount(subject: &Subject) {
    let store = subject.store();
    import(&store, "base", None, &[0; 1024]);
    create(&store, "top", Some("base"));
    for name in ["base", "top"] {
        let merged = store.layout().layer(&id(name)).merged().to_owned();
        assert!(!subject.exists(&merged));
        with_mount(&store, name, |path| assert_eq!(path, merged));
        assert!(!subject.exists(&merged), "{name}");
    }
    subject.assert_clean(&store);
}

fn a_hold_of_this_process_counts(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let request = MountRequest::new().hold(Hold::Process);
    store.mount(&id("top"), &request).expect("mount");
    store
        .mount(&id("top"), &MountRequest::new())
        .expect("mount");
    let state = store
        .inspect(&id("top"))
        .expect("inspect")
        .mount
        .expect("mounted");
    assert_eq!((state.persistent, state.holds()), (1, 2));
    unmount(&store, "top");
    unmount(&store, "top");
    subject.assert_clean(&store);
}

fn unmounting_all_takes_every_layers_mount_and_nothing_else(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "one", Some("base"));
    create(&store, "two", Some("base"));
    assert_eq!(
        store.unmount_all(UnmountMode::Now).expect("nothing to do"),
        []
    );
    for name in ["base", "one", "one"] {
        mount(&store, name);
    }
    let mut unmounted = store.unmount_all(UnmountMode::Now).expect("unmount");
    unmounted.sort();
    assert_eq!(unmounted, [id("base"), id("one")]);
    let error = store
        .unmount(&id("one"), UnmountMode::Now)
        .expect_err("no hold is left");
    assert!(matches!(error, Error::NotMounted { .. }), "{error}");
    subject.assert_clean(&store);
}

fn a_mount_that_is_not_ours_is_left_alone(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    let holds = store.layout().store_dir().join("holds/top");
    // As another program, or a person, would have mounted it; also where the store had before a boot.
    for is_noted in [false, true] {
        create(&store, "top", Some("base"));
        let path = mount(&store, "top");
        subject.write(&path.join("kept"), b"kept");
        if is_noted {
            let noted = String::from_utf8(subject.read(&holds)).expect("text");
            let boot = noted.lines().find(|line| line.starts_with("boot "));
            let noted = noted.replace(boot.expect("a boot"), "boot another");
            subject.rewrite(&holds, noted.as_bytes());
        } else {
            subject.unlink(&holds);
        }
        let request = MountRequest::new();
        let errors = [
            store.mount(&id("top"), &request).err(),
            store.unmount(&id("top"), UnmountMode::Now).err(),
            store.remove(&id("top"), false).err(),
            store.create(&layer("child", Some("top"))).err(),
        ];
        for error in errors {
            let error = error.expect("somebody else uses it");
            assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        }
        assert_eq!(subject.read(&path.join("kept")), b"kept");
        store.remove(&id("top"), true).expect("forced");
        store.reclaim().expect("reclaim");
    }
    subject.assert_clean(&store);
}

fn an_unreadable_hold_file_is_damage_and_unmounts_nothing(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let path = mount(&store, "top");
    subject.write(&path.join("kept"), b"kept");
    subject.rewrite(&store.layout().store_dir().join("holds/top"), b"garbage");
    let errors = [
        store.mount(&id("top"), &MountRequest::new()).err(),
        store.unmount(&id("top"), UnmountMode::Now).err(),
        store.remove(&id("top"), false).err(),
    ];
    for error in errors {
        let error = error.expect("nobody knows who holds it");
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    }
    assert_eq!(subject.read(&path.join("kept")), b"kept");
    store.remove(&id("top"), true).expect("forced");
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

/// An archive that tries to use the layer it is applied to.
struct Using<'a> {
    store: &'a ovl_driver::blocking::Overlay2,
    archive: &'a [u8],
}

impl std::io::Read for Using<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (store, top) = (self.store, id("top"));
        let archive = ArchiveBuilder::new().file("other", b"o").finish();
        let options = ImportOptions::new();
        let errors = [
            store.mount(&top, &MountRequest::new()).err(),
            store.remove(&top, true).err(),
            store.apply(&top, &*archive, options, &mut |_| {}).err(),
        ];
        for error in errors {
            let error = error.expect("an archive is being applied");
            assert!(matches!(error, Error::InFlight { .. }), "{error}");
            assert_eq!(error.kind(), ErrorKind::Busy);
        }
        self.archive.read(buffer)
    }
}

fn a_layer_that_is_being_replaced_is_in_use(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    with_mount(&store, "top", |path| {
        subject.write(&path.join("before"), b"b");
    });
    let archive = ArchiveBuilder::new().file("applied", b"a").finish();
    let (using, options) = (&store, ImportOptions::new());
    let source = Using {
        store: using,
        archive: &archive,
    };
    store
        .apply(&id("top"), source, options, &mut |_| {})
        .expect("apply");
    with_mount(&store, "top", |path| {
        assert_eq!(subject.names(path), ["applied", "before"]);
    });
    let diff = store.layout().layer(&id("top")).dir().to_owned();
    assert!(!subject.exists(&diff.join("replaces")));
    subject.assert_clean(&store);
}

fn what_is_mounted_on_a_mount_is_nowhere_else_and_goes_with_it(subject: &Subject) {
    let store = subject.store();
    create(&store, "lone", None);
    // A bind: its directory is to be seen in two places, and what is mounted there in one.
    let lone = mount(&store, "lone");
    let inner = subject.open("home/lone/merged/inner").expect("a home");
    create(&inner, "base", None);
    create(&inner, "top", Some("base"));
    let top = mount(&inner, "top");
    subject.write(&top.join("file"), b"x");
    let below = store.layout().layer(&id("lone")).diff().to_owned();
    let below = below.join(top.strip_prefix(&lone).expect("it is mounted there"));
    assert_eq!(subject.names(&below), [""; 0]);
    assert_eq!(subject.names(&top), ["file"]);

    let now = store.unmount(&id("lone"), UnmountMode::Now);
    let error = now.expect_err("something is mounted on it");
    assert_eq!(error.kind(), ErrorKind::Busy, "{}", chain(&error));
    let lazily = store.unmount(&id("lone"), UnmountMode::Lazy);
    assert_eq!(lazily.expect("lazily"), 0);
    let left = subject.kernel().mount().mounts_below(subject.dir());
    assert_eq!(left.expect("mounts can be listed"), []);

    // What was noted of the inner mount is void.
    assert_eq!(mount(&store, "lone"), lone);
    assert_eq!(inner.inspect(&id("top")).expect("inspect").mount, None);
    with_mount(&inner, "top", |path| {
        assert_eq!(subject.names(path), ["file"]);
    });
    subject.assert_clean(&inner);
    unmount(&store, "lone");
    subject.assert_clean(&store);
}
