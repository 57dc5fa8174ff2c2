//! Making, finding and removing layers; several of them are the cases of Docker's `graphtest`.

use ovl_driver::{Error, ErrorKind, ImportOptions, LockKind, MountRequest, UpkeepOptions};
use ovl_layout::{DOCKER_MAX_DEPTH, LayerRecord, LinkId, LowerChain};
use ovl_mount::{PlanError, Strategy};

use super::support::{chain, changes, create, id, layer, mount, unmount, with_mount};
use super::{Skip, Subject, list};
use crate::ArchiveBuilder;

list! {
    an_empty_layer_mounts_as_an_empty_directory,
    a_base_layer_keeps_what_is_written_to_it,
    a_child_shows_what_its_parent_has,
    a_stack_of_128_shows_every_layer_by_every_strategy,
    a_layer_on_129_layers_is_refused_and_leaves_nothing,
    an_id_that_exists_is_refused_and_keeps_its_contents,
    a_missing_parent_is_refused_and_leaves_nothing,
    a_missing_layer_is_not_found_by_any_operation,
    a_parent_is_sealed_and_cannot_be_removed,
    a_removed_layer_is_gone_and_its_id_is_free,
    a_home_is_only_made_where_there_is_nothing,
    what_a_killed_process_left_in_staging_is_taken_away,
    a_link_that_a_killed_removal_left_goes_with_the_trash,
    a_mount_keeps_the_note_of_a_child_that_is_being_made,
    settings_that_were_never_finished_are_reclaimed,
    two_handles_on_one_home_see_the_same_layers,
    the_list_says_who_stands_on_whom,
}

fn an_empty_layer_mounts_as_an_empty_directory(subject: &Subject) {
    let store = subject.store();
    create(&store, "empty", None);
    assert!(store.contains(&id("empty")).expect("contains"));
    with_mount(&store, "empty", |path| {
        assert_eq!(subject.mode(path), 0o755);
        assert_eq!(subject.names(path), [""; 0]);
    });
    store.remove(&id("empty"), false).expect("remove");
    assert!(!store.contains(&id("empty")).expect("contains"));
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

fn a_base_layer_keeps_what_is_written_to_it(subject: &Subject) {
    let store = subject.store();
    store.create_writable(&layer("Base", None)).expect("create");
    with_mount(&store, "Base", |path| {
        subject.mkdir(&path.join("a subdir"), 0o1705);
        subject.write(&path.join("a file"), b"Some data");
        subject.chmod(&path.join("a file"), 0o4222);
    });
    with_mount(&store, "Base", |path| {
        assert_eq!(subject.names(path), ["a file", "a subdir"]);
        assert_eq!(subject.mode(&path.join("a subdir")), 0o1705);
        assert_eq!(subject.mode(&path.join("a file")), 0o4222);
        assert_eq!(subject.read(&path.join("a file")), b"Some data");
    });
    subject.assert_clean(&store);
}

fn a_child_shows_what_its_parent_has(subject: &Subject) {
    let store = subject.store();
    create(&store, "Base", None);
    with_mount(&store, "Base", |path| {
        subject.mkdir(&path.join("a subdir"), 0o705);
        subject.write(&path.join("a file"), b"Some data");
        subject.chmod(path, 0o711);
    });
    create(&store, "Snap", Some("Base"));
    with_mount(&store, "Snap", |path| {
        assert_eq!(subject.names(path), ["a file", "a subdir"]);
        assert_eq!(subject.mode(&path.join("a subdir")), 0o705);
        assert_eq!(subject.read(&path.join("a file")), b"Some data");
        assert_eq!(
            subject.mode(path),
            0o711,
            "the root has the attributes of its parent's"
        );
    });
    assert_eq!(changes(&store, "Snap", &ovl_driver::Base::Parent), [""; 0]);
    subject.assert_clean(&store);
}

/// A base and `depth` layers on it; each adds a file and replaces a common one.
fn stack(subject: &Subject, store: &ovl_driver::blocking::Overlay2, depth: usize) {
    create(store, "s0", None);
    let mut below = String::from("s0");
    for level in 0..=depth {
        let name = format!("s{level}");
        if level > 0 {
            create(store, &name, Some(&below));
        }
        // Written where the mount would put it: a mount each would only take longer.
        let diff = store.layout().layer(&id(&name)).diff().to_owned();
        subject.write(&diff.join(format!("layer-{level}")), name.as_bytes());
        subject.write(&diff.join("top"), name.as_bytes());
        below = name;
    }
}

fn a_stack_of_128_shows_every_layer_by_every_strategy(subject: &Subject) {
    let store = subject.store();
    stack(subject, &store, DOCKER_MAX_DEPTH);
    let top = format!("s{DOCKER_MAX_DEPTH}");
    let features = subject.kernel().mount().features().expect("features");
    for strategy in Strategy::ALL {
        let request = MountRequest::new().strategy(Some(strategy));
        let path = match store.mount(&id(&top), &request) {
            Ok(path) => path,
            Err(Error::Plan {
                source: PlanError::DataTooLong { len, limit, .. },
                ..
            }) => {
                assert_eq!(
                    strategy,
                    Strategy::MountAbsolute,
                    "the others must hold 128 layers"
                );
                assert!(len > limit && limit == features.data_limit.bytes());
                continue;
            }
            Err(Error::Plan {
                source: PlanError::NoStrategy { .. },
                ..
            }) => {
                match strategy {
                    Strategy::LayersByFd => assert!(!features.layers_by_fd),
                    Strategy::LowerdirPlus => assert!(!features.lowerdir_plus),
                    _ => panic!("every kernel has {strategy}"),
                }
                subject.skip(Skip::part(
                    strategy.as_str(),
                    "this kernel does not mount so",
                ));
                continue;
            }
            Err(error) => panic!("{strategy}: {}", chain(&error)),
        };
        for level in 0..=DOCKER_MAX_DEPTH {
            let found = subject.read(&path.join(format!("layer-{level}")));
            assert_eq!(found, format!("s{level}").as_bytes(), "{strategy}");
        }
        assert_eq!(
            subject.read(&path.join("top")),
            top.as_bytes(),
            "{strategy}"
        );
        unmount(&store, &top);
    }
    subject.assert_clean(&store);
}

fn a_layer_on_129_layers_is_refused_and_leaves_nothing(subject: &Subject) {
    let store = subject.store();
    stack(subject, &store, DOCKER_MAX_DEPTH);
    let error = store
        .create(&layer("over", Some("s128")))
        .expect_err("one too many");
    assert!(
        matches!(&error, Error::Depth { source, .. } if source.depth == 129),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(!store.contains(&id("over")).expect("contains"));
    let info = store.inspect(&id("s128")).expect("inspect");
    assert!(!info.sealed, "a refused child does not seal its parent");
    subject.assert_clean(&store);
}

fn an_id_that_exists_is_refused_and_keeps_its_contents(subject: &Subject) {
    let store = subject.store();
    create(&store, "one", None);
    create(&store, "other", None);
    with_mount(&store, "one", |path| {
        subject.write(&path.join("kept"), b"kept");
    });
    for parent in [None, Some("other"), Some("missing")] {
        let error = store.create(&layer("one", parent)).expect_err("it exists");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    }
    with_mount(&store, "one", |path| {
        assert_eq!(subject.read(&path.join("kept")), b"kept");
    });
    assert!(!store.inspect(&id("other")).expect("inspect").sealed);
    subject.assert_clean(&store);
}

fn a_missing_parent_is_refused_and_leaves_nothing(subject: &Subject) {
    let store = subject.store();
    let error = store
        .create(&layer("child", Some("missing")))
        .expect_err("no parent");
    assert!(matches!(error, Error::ParentNotFound { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(!store.contains(&id("child")).expect("contains"));
    subject.assert_clean(&store);
}

fn a_missing_layer_is_not_found_by_any_operation(subject: &Subject) {
    let store = subject.store();
    let missing = id("missing");
    let base = ovl_driver::Base::Parent;
    let errors = [
        store.mount(&missing, &MountRequest::new()).err(),
        store.unmount(&missing, ovl_mount::UnmountMode::Now).err(),
        store.remove(&missing, false).err(),
        store.inspect(&missing).err(),
        store.plan(&missing, &MountRequest::new()).err(),
        store.changes(&missing, &base).err(),
        store.size(&missing, &base).err(),
        store.diff(&missing, &base, Vec::new()).err(),
    ];
    for error in errors {
        let error = error.expect("there is no such layer");
        assert!(matches!(error, Error::LayerNotFound { .. }), "{error}");
    }
    subject.assert_clean(&store);
}

fn a_parent_is_sealed_and_cannot_be_removed(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "child", Some("base"));
    create(&store, "grandchild", Some("child"));
    for (name, sealed) in [("base", true), ("child", true), ("grandchild", false)] {
        assert_eq!(
            store.inspect(&id(name)).expect("inspect").sealed,
            sealed,
            "{name}"
        );
    }
    for force in [false, true] {
        let error = store
            .remove(&id("child"), force)
            .expect_err("it has a child");
        let named = matches!(&error, Error::HasChildren { children, .. } if children == &[id("grandchild")]);
        assert!(named, "{error}");
        assert_eq!(error.kind(), ErrorKind::Busy);
    }
    for name in ["grandchild", "child", "base"] {
        store.remove(&id(name), false).expect("children first");
    }
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

fn a_removed_layer_is_gone_and_its_id_is_free(subject: &Subject) {
    let store = subject.store();
    create(&store, "again", None);
    with_mount(&store, "again", |path| {
        subject.write(&path.join("old"), b"old");
    });
    store.remove(&id("again"), false).expect("remove");
    assert_eq!(store.layers().expect("layers").layers, []);
    create(&store, "again", None);
    with_mount(&store, "again", |path| {
        assert_eq!(subject.names(path), [""; 0]);
    });
    assert_eq!(store.reclaim().expect("reclaim").layers, 1);
    subject.assert_clean(&store);
}

fn a_home_is_only_made_where_there_is_nothing(subject: &Subject) {
    subject.mkdir(&subject.dir().join("full"), 0o755);
    subject.write(&subject.dir().join("full/file"), b"");
    let error = subject.open("full").expect_err("it is not empty");
    assert!(matches!(error, Error::NotAHome { .. }), "{error}");
    assert_eq!(subject.names(&subject.dir().join("full")), ["file"]);

    let options = ovl_driver::OpenOptions::new();
    let path = subject.dir().join("absent");
    let open = |path| {
        ovl_driver::blocking::Overlay2::open(subject.kernel().clone(), path, options.clone())
    };
    let error = open(&path).expect_err("nobody asked for one");
    assert!(matches!(error, Error::HomeNotFound { .. }), "{error}");
    assert!(!subject.exists(&path));
}

fn what_a_killed_process_left_in_staging_is_taken_away(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    let staging = store.layout().store_dir().join("staging");
    let leftover = staging.join("AAAAAAAAAAAAAAAAAAAAAAAAAA");
    subject.mkdir(&leftover, 0o700);
    subject.mkdir(&leftover.join("diff"), 0o755);
    subject.write(&leftover.join("diff/half"), b"ha");
    let link = store.layout().link_dir().join("AAAAAAAAAAAAAAAAAAAAAAAAAA");
    subject.symlink(&link, "../never/diff");
    drop(store);

    let store = subject.store();
    create(&store, "child", Some("base"));
    assert_eq!(subject.names(&staging), [""; 0]);
    assert!(!subject.exists(&link));
    subject.assert_clean(&store);
}

/// Else the parent could be removed from under the child.
fn a_mount_keeps_the_note_of_a_child_that_is_being_made(subject: &Subject) {
    let store = subject.store();
    create(&store, "parent", None);
    // Another process has noted its child and not published it yet.
    let link: LinkId = "AAAAAAAAAAAAAAAAAAAAAAAAAA".parse().expect("a link");
    let own = store.layout().store_dir();
    let staged = own.join("staging").join(link.as_str());
    subject.mkdir(&staged, 0o700);
    let record = LayerRecord::new(link, Some(id("parent")), &LowerChain::default());
    subject.write(&staged.join(".ovl-layer"), record.to_string().as_bytes());
    let children = own.join("children").join("parent");
    subject.mkdir(&children, 0o700);
    subject.write(&children.join(link.as_str()), b"");
    let staging = subject.tree().open_root(&own.join("staging"));
    let staging = staging.expect("open");
    let (system, name) = (subject.kernel().system(), link.as_str().as_ref());
    let lock = system.lock(&staging, Some(name), LockKind::Exclusive, false);
    let lock = lock.expect("lock").expect("nobody has locked it");

    let mounted = store.mount(&id("parent"), &MountRequest::new());
    let error = mounted.expect_err("the parent may be sealed at any moment");
    assert!(matches!(error, Error::InFlight { .. }), "{error}");
    let archive = ArchiveBuilder::new().finish();
    let applied = store.apply(&id("parent"), &*archive, ImportOptions::new(), &mut |_| {});
    let error = applied.expect_err("the parent may be sealed at any moment");
    assert!(matches!(error, Error::InFlight { .. }), "{error}");
    assert_eq!(subject.names(&children), [link.as_str()]);

    drop(lock);
    drop(store);
    let store = subject.store();
    create(&store, "child", Some("parent"));
    let error = store
        .remove(&id("parent"), false)
        .expect_err("it has a child");
    assert!(matches!(error, Error::HasChildren { .. }), "{error}");
    subject.assert_clean(&store);
}

fn settings_that_were_never_finished_are_reclaimed(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    let path = store
        .layout()
        .store_dir()
        .join(".tmp-settings-0123456789abcdef");
    subject.write(&path, b"ovl-set");
    let report = store.check().expect("check");
    assert!(report.is_sound() && !report.is_clean(), "{report:?}");
    let garbage = store.gc(UpkeepOptions::new()).expect("gc");
    assert_eq!(garbage.items.len(), 1, "{garbage:?}");
    assert!(!subject.exists(&path));
    assert_eq!(store.check().expect("check").findings, []);
}

fn two_handles_on_one_home_see_the_same_layers(subject: &Subject) {
    let (one, other) = (subject.store(), subject.store());
    create(&one, "base", None);
    create(&other, "child", Some("base"));
    let path = mount(&one, "child");
    assert_eq!(mount(&other, "child"), path);
    unmount(&one, "child");
    assert!(
        subject
            .kernel()
            .mount()
            .mount_at(&path)
            .expect("mounts")
            .is_some()
    );
    unmount(&other, "child");
    assert!(
        subject
            .kernel()
            .mount()
            .mount_at(&path)
            .expect("mounts")
            .is_none()
    );
    subject.assert_clean(&one);
}

fn the_list_says_who_stands_on_whom(subject: &Subject) {
    let store = subject.store();
    create(&store, "b", None);
    create(&store, "a", Some("b"));
    create(&store, "c", Some("a"));
    mount(&store, "c");
    let list = store.layers().expect("layers").layers;
    let lines: Vec<_> = list
        .iter()
        .map(|one| {
            (
                one.id.as_str(),
                one.parent.as_ref().map(|id| id.as_str()),
                one.depth,
                one.sealed,
                one.mounted,
            )
        })
        .collect();
    assert_eq!(
        lines,
        [
            ("a", Some("b"), 1, true, false),
            ("b", None, 0, true, false),
            ("c", Some("a"), 2, false, true)
        ]
    );
    let info = store.inspect(&id("c")).expect("inspect");
    assert_eq!(info.chain, [id("a"), id("b")]);
    assert_eq!(info.mount.expect("mounted").persistent, 1);
    unmount(&store, "c");
    subject.assert_clean(&store);
}

fn a_link_that_a_killed_removal_left_goes_with_the_trash(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "gone", None);
    let link = store.inspect(&id("gone")).expect("inspect").link;
    store.remove(&id("gone"), false).expect("remove");
    // As if the removal had ended before it came to the link.
    subject.symlink(&store.layout().link(link), "../gone/diff");
    store.reclaim().expect("reclaim");
    assert!(!subject.exists(&store.layout().link(link)));
    subject.assert_clean(&store);
}
