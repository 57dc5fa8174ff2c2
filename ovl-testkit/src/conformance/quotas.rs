//! Sizes of writable layers. Where the kernel under test enforces no project quotas, the cases
//! hold it to refusing limits with the reason.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use ovl_diff::Node;
use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    CreateLayer, Durability, Error, ErrorKind, ImportOptions, InitOptions, LayerQuota,
    MountRequest, OpenOptions,
};
use ovl_layout::{LayerRecord, names};
use ovl_quota::{Bytes, Enforcement, Limits, ProjectId, ProjectRange};
use rustix::io::Errno;

use super::support::{chain, create, diff, id, import, layer, mount, unmount};
use super::{Subject, list};
use crate::ArchiveBuilder;

list! {
    docker_status_names_and_values_come_in_dockers_order,
    a_home_that_is_not_there_can_be_probed,
    docker_metadata_names_the_paths_of_a_layer,
    only_writable_layers_take_limits,
    a_limit_that_no_kernel_keeps_is_refused_before_anything_is_made,
    a_limit_is_kept_or_refused_with_the_reason,
    a_home_that_new_directories_inherit_from_refuses_limits,
    a_default_size_without_enforcement_fails_at_open,
    a_default_size_holds_for_writable_layers_that_ask_for_none,
    writable_layers_have_projects_of_their_own_and_others_none,
    a_limited_layer_is_full_when_an_archive_does_not_fit,
    applying_an_archive_keeps_project_and_limits,
    a_project_is_free_again_when_its_layer_is_gone,
    a_layer_that_cannot_be_made_gives_its_project_back,
    what_a_killed_process_staged_gives_its_project_back,
    projects_begin_after_the_base_of_the_home,
    limits_of_a_mounted_layer_can_be_changed,
    a_layer_without_a_project_moves_into_one_when_it_is_limited,
    a_layer_that_was_mounted_volatile_moves_into_a_project_as_what_it_is,
    a_full_layer_is_over_quota_where_its_mount_has_no_room,
    a_file_counts_up_to_the_limit_and_until_it_is_closed,
}

const MIB: u64 = 1 << 20;

fn enforced(subject: &Subject) -> bool {
    let found = subject.kernel().quota().enforcement(subject.dir());
    found.expect("the state of quotas is a value") == Enforcement::Enforced
}

fn sized(name: &str, mib: u64) -> CreateLayer {
    layer(name, None).size(Some(Bytes::new(mib * MIB)))
}

fn quota(store: &Overlay2, name: &str) -> LayerQuota {
    let found = store.quota(&id(name)).expect("the quota can be read");
    found.unwrap_or_else(|| panic!("{name} has no project"))
}

fn project(store: &Overlay2, name: &str) -> ProjectId {
    quota(store, name).project
}

fn limits(store: &Overlay2, name: &str) -> Limits {
    quota(store, name)
        .usage
        .expect("the usage can be read")
        .limits
}

fn bytes(mib: u64) -> Limits {
    Limits::UNLIMITED.bytes(Some(Bytes::new(mib * MIB)))
}

fn archive(name: &str, len: u64) -> Vec<u8> {
    let len = usize::try_from(len).expect("small");
    let contents = vec![7; len];
    ArchiveBuilder::new().file(name, &contents).finish()
}

fn apply(store: &Overlay2, name: &str, archive: &[u8]) -> Result<(), Error> {
    let options = ImportOptions::new();
    store
        .apply(&id(name), archive, options, &mut |_| {})
        .map(drop)
}

/// The projects that the file system knows of.
fn used(subject: &Subject) -> Vec<ProjectId> {
    let range = ProjectRange::after_base(None).expect("a range");
    let used = subject.kernel().quota().used_ids(subject.dir(), range);
    used.expect("the projects can be listed")
}

/// What was removed may count a while longer: XFS frees files when it gets round to it.
#[track_caller]
fn eventually(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "it never came");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Error>, words: &str) {
    let error = result.expect_err("limits are refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", chain(&error));
    assert!(chain(&error).contains(words), "{}", chain(&error));
}

fn docker_status_names_and_values_come_in_dockers_order(subject: &Subject) {
    let status = subject.store().status().expect("a home has a status");
    let pairs = status.docker_pairs();
    let userxattr = if status.user_namespace {
        "true"
    } else {
        "false"
    };
    assert_eq!(pairs[0], ("Backing Filesystem", status.backing_fs.name()));
    assert_eq!(
        pairs[1..],
        [
            ("Supports d_type", "true"),
            ("Using metacopy", "false"),
            ("Native Overlay Diff", "true"),
            ("userxattr", userxattr),
        ]
    );
}

fn a_home_that_is_not_there_can_be_probed(subject: &Subject) {
    let home = subject.dir().join("home");
    let before = Overlay2::probe(subject.kernel().clone(), &home).expect("the parent is there");
    assert_eq!(subject.names(subject.dir()), [""; 0], "nothing is made");
    assert_eq!(before.home, home);
    let store = subject.store();
    assert_eq!(store.status().expect("a status"), before);
    let now = Overlay2::probe(subject.kernel().clone(), &home).expect("the home is there");
    assert_eq!(now, before);
    let lost = subject.dir().join("lost/home");
    let error = Overlay2::probe(subject.kernel().clone(), &lost).expect_err("no parent");
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
}

fn docker_metadata_names_the_paths_of_a_layer(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "middle", Some("base"));
    create(&store, "top", Some("middle"));
    let pairs = |name| {
        let info = store.inspect(&id(name)).expect("a layer");
        let pairs = info.docker_pairs().into_iter();
        let text = |(key, value): (&str, std::ffi::OsString)| {
            format!("{key}={}", value.into_string().expect("plain paths"))
        };
        pairs.map(text).collect::<Vec<_>>()
    };
    let home = store.home().display().to_string();
    let own = |name: &str| {
        [
            format!("WorkDir={home}/{name}/work"),
            format!("MergedDir={home}/{name}/merged"),
            format!("UpperDir={home}/{name}/diff"),
        ]
    };
    assert_eq!(pairs("base"), own("base"));
    let lowers = format!("LowerDir={home}/middle/diff:{home}/base/diff");
    assert_eq!(pairs("top"), [&own("top")[..], &[lowers]].concat());
}

fn only_writable_layers_take_limits(subject: &Subject) {
    let store = subject.store();
    for limited in [sized("layer", 1), layer("layer", None).inodes(Some(10))] {
        let options = ImportOptions::new();
        let imported = store.import(&limited, &*archive("a", 1), options, &mut |_| {});
        for result in [store.create(&limited), imported.map(drop)] {
            let error = result.expect_err("it takes no limits");
            assert!(matches!(error, Error::NotWritable { .. }), "{error:?}");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("only writable layers"));
        }
    }
    assert!(!store.contains(&id("layer")).expect("a look"));
    subject.assert_clean(&store);
}

fn a_limit_that_no_kernel_keeps_is_refused_before_anything_is_made(subject: &Subject) {
    let store = subject.store();
    for limited in [
        layer("layer", None).size(Some(Bytes::ZERO)),
        layer("layer", None).size(Some(Bytes::new(u64::MAX))),
        layer("layer", None).inodes(Some(0)),
    ] {
        let error = store.create_writable(&limited).expect_err("no such limit");
        assert!(matches!(error, Error::Quota { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    assert!(!subject.exists(&store.layout().store_dir().join(names::STAGING)));
}

fn a_limit_is_kept_or_refused_with_the_reason(subject: &Subject) {
    let store = subject.store();
    let limited = sized("layer", 5).inodes(Some(100));
    if !enforced(subject) {
        let reason = subject.kernel().quota().enforcement(subject.dir());
        let reason = reason.expect("a value").to_string();
        assert_refused(store.create_writable(&limited), &reason);
        assert!(!store.contains(&id("layer")).expect("a look"));
        let plain = layer("layer", None);
        store.create_writable(&plain).expect("no limit, no need");
        assert_eq!(store.quota(&id("layer")).expect("no project"), None);
        assert_refused(store.set_limits(&id("layer"), bytes(5)), &reason);
        return subject.assert_clean(&store);
    }
    store.create_writable(&limited).expect("limits are kept");
    assert_eq!(limits(&store, "layer"), bytes(5).inodes(Some(100)));
    let info = store.inspect(&id("layer")).expect("a layer");
    assert_eq!(info.quota, Some(quota(&store, "layer")));
    let path = mount(&store, "layer");
    subject.write(&path.join("fits"), &vec![7; 3 << 20]);
    unmount(&store, "layer");
    let usage = quota(&store, "layer").usage.expect("the usage");
    assert!((3 * MIB..5 * MIB).contains(&usage.bytes.get()), "{usage}");
    assert!((3..100).contains(&usage.inodes), "{usage}");
    subject.assert_clean(&store);
}

fn a_home_that_new_directories_inherit_from_refuses_limits(subject: &Subject) {
    if !enforced(subject) {
        return assert_refused(
            subject.store().create_writable(&sized("layer", 5)),
            "quotas",
        );
    }
    let tag = |name: &str| {
        let quota = subject.kernel().quota();
        let tagged = quota.assign_project(&subject.dir().join(name), ProjectId::new(7));
        tagged.expect("a directory can be tagged");
    };
    subject.mkdir(&subject.dir().join("home"), 0o710);
    tag("home");
    let store = subject.store();
    let reason = store.status().expect("a status").quota;
    let reason = reason.expect_err("quotas cannot be used here");
    assert!(reason.contains("chattr -P"), "{reason}");
    assert_refused(store.create_writable(&sized("layer", 5)), "chattr -P");
    let plain = store.create_writable(&layer("layer", None));
    plain.expect("no limit, no need");
    let found = store.quota(&id("layer")).expect("a look");
    assert_eq!(found, None, "the home's project is not the layer's");
    apply(&store, "layer", &archive("file", MIB)).expect("applied");
    store.remove(&id("layer"), false).expect("removed");
    store.reclaim().expect("reclaimed");
    subject.assert_clean(&store);
    // Tagged when its staging was there already.
    let late = subject.open("late").expect("a home");
    late.create_writable(&layer("early", None)).expect("made");
    tag("late");
    let late = subject.open("late").expect("it opens");
    let stuck = late.create_writable(&layer("layer", None));
    assert_refused(stuck, "chattr -P");
    subject.assert_clean(&late);
    // The advice is taken: what the store has inherited meanwhile is in nobody's way.
    drop(store);
    let untagged = subject.kernel().quota();
    let untagged = untagged.assign_project(&subject.dir().join("home"), None);
    untagged.expect("a directory can be untagged");
    let store = subject.open("home").expect("it opens");
    let made = ["one", "two"].map(|name| {
        let made = store.create_writable(&sized(name, 5));
        made.unwrap_or_else(|error| panic!("{}", chain(&error)));
        project(&store, name)
    });
    assert_ne!(made[0], made[1], "a layer has a project of its own");
    store.remove(&id("one"), false).expect("removed");
    store.reclaim().expect("reclaimed");
    subject.assert_clean(&store);
}

fn a_default_size_without_enforcement_fails_at_open(subject: &Subject) {
    let home = subject.dir().join("home");
    let size = Some(Bytes::new(5 * MIB));
    let options = InitOptions::new().durability(Durability::None).size(size);
    let made = Overlay2::init(subject.kernel().clone(), &home, &options);
    if enforced(subject) {
        let store = made.expect("it is kept");
        assert_eq!(store.settings().size, Some(5 * MIB));
        return;
    }
    assert_refused(made, "default size");
    let options = OpenOptions::new().create(true).size(size);
    let made = Overlay2::open(subject.kernel().clone(), &home, options);
    assert_refused(made, "default size");
    assert_eq!(subject.names(subject.dir()), [""; 0], "no home is made");
    drop(subject.store());
    let opened = Overlay2::open(
        subject.kernel().clone(),
        &home,
        OpenOptions::new().size(size),
    );
    assert_refused(opened, "default size");
    // A settings file that came with a disk from elsewhere.
    let settings = home.join(names::STORE_DIR).join(names::SETTINGS);
    let text = String::from_utf8(subject.read(&settings)).expect("text");
    let text = text.replace("\nend\n", "\nsize 5242880\nend\n");
    subject.rewrite(&settings, text.as_bytes());
    assert_refused(subject.open("home"), "default size");
}

fn a_default_size_holds_for_writable_layers_that_ask_for_none(subject: &Subject) {
    if !enforced(subject) {
        return a_default_size_without_enforcement_fails_at_open(subject);
    }
    let home = subject.dir().join("home");
    let options = InitOptions::new().size(Some(Bytes::new(5 * MIB)));
    let store = Overlay2::init(subject.kernel().clone(), &home, &options).expect("a home");
    let make = |store: &Overlay2, layer: &CreateLayer| {
        let made = store.create_writable(layer);
        made.unwrap_or_else(|error| panic!("{}", chain(&error)));
    };
    make(&store, &layer("default", None));
    make(&store, &layer("inodes", None).inodes(Some(50)));
    make(&store, &sized("own", 9));
    store.create(&layer("plain", None)).expect("no limits");
    let opened = Overlay2::open(
        subject.kernel().clone(),
        &home,
        OpenOptions::new().size(Some(Bytes::new(7 * MIB))),
    );
    make(&opened.expect("it opens"), &layer("opening", None));
    assert_eq!(limits(&store, "default"), bytes(5));
    assert_eq!(limits(&store, "inodes"), bytes(5).inodes(Some(50)));
    assert_eq!(limits(&store, "own"), bytes(9));
    assert_eq!(limits(&store, "opening"), bytes(7));
    assert_eq!(store.quota(&id("plain")).expect("a look"), None);
}

fn writable_layers_have_projects_of_their_own_and_others_none(subject: &Subject) {
    let store = subject.store();
    import(&store, "base", None, &archive("a", 1));
    create(&store, "plain", Some("base"));
    for name in ["one", "two"] {
        let made = store.create_writable(&layer(name, Some("base")));
        made.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
    let of = |path: &std::path::Path| {
        let project = subject.kernel().quota().project_of(path);
        project.expect("a directory")
    };
    for name in ["base", "plain"] {
        assert_eq!(of(store.layout().layer(&id(name)).dir()), None);
    }
    if !enforced(subject) {
        assert_eq!(store.quota(&id("one")).expect("a look"), None);
        return;
    }
    let (one, two) = (project(&store, "one"), project(&store, "two"));
    assert_ne!(one, two);
    assert_eq!(limits(&store, "one"), Limits::UNLIMITED);
    // The kernel moves files between them at a copy-up.
    let paths = store.layout().layer(&id("one"));
    assert_eq!((of(paths.diff()), of(paths.work())), (Some(one), Some(one)));
    for dir in [names::STAGING, names::TRASH] {
        assert_eq!(of(&store.layout().store_dir().join(dir)), None);
    }
}

fn a_limited_layer_is_full_when_an_archive_does_not_fit(subject: &Subject) {
    let store = subject.store();
    if !enforced(subject) {
        return assert_refused(store.create_writable(&sized("layer", 5)), "quotas");
    }
    store.create_writable(&sized("layer", 5)).expect("limits");
    let number = project(&store, "layer");
    let error = apply(&store, "layer", &archive("large", 6 * MIB)).expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let Error::OverQuota { project, usage, .. } = &error else {
        panic!("{}", chain(&error));
    };
    assert_eq!((*project, usage.limits), (number, bytes(5)));
    let words = chain(&error);
    for part in ["layer", &number.to_string(), "5 MiB", "large"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    // Nothing stays of it, the limits do.
    eventually(|| {
        let usage = quota(&store, "layer").usage.expect("the usage");
        usage.bytes.get() < MIB
    });
    assert_eq!(limits(&store, "layer"), bytes(5));
    assert!(
        store
            .changes(&id("layer"), &Default::default())
            .expect("changes")
            .is_empty()
    );
    subject.assert_clean(&store);
}

fn applying_an_archive_keeps_project_and_limits(subject: &Subject) {
    let store = subject.store();
    let made = match enforced(subject) {
        true => store.create_writable(&sized("layer", 5).inodes(Some(100))),
        false => store.create_writable(&layer("layer", None)),
    };
    made.expect("a layer");
    let before = store.quota(&id("layer")).expect("a look");
    for (name, len) in [("one", 2 * MIB), ("two", MIB / 2)] {
        let applied = apply(&store, "layer", &archive(name, len));
        applied.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
    let after = store.quota(&id("layer")).expect("a look");
    assert_eq!(
        before.as_ref().map(|quota| quota.project),
        after.as_ref().map(|quota| quota.project)
    );
    subject.assert_clean(&store);
    let Some(LayerQuota { usage, project, .. }) = after else {
        return assert!(!enforced(subject));
    };
    let usage = usage.expect("the usage");
    assert_eq!(usage.limits, bytes(5).inodes(Some(100)));
    eventually(|| {
        let usage = quota(&store, "layer").usage.expect("the usage");
        (5 * MIB / 2..3 * MIB).contains(&usage.bytes.get())
    });
    let of = subject
        .kernel()
        .quota()
        .project_of(store.layout().layer(&id("layer")).diff());
    assert_eq!(of.expect("a directory"), Some(project));
}

fn a_project_is_free_again_when_its_layer_is_gone(subject: &Subject) {
    let store = subject.store();
    if !enforced(subject) {
        return assert_refused(store.create_writable(&sized("layer", 5)), "quotas");
    }
    store.create_writable(&sized("layer", 5)).expect("limits");
    let first = project(&store, "layer");
    apply(&store, "layer", &archive("file", MIB)).expect("it fits");
    store.remove(&id("layer"), false).expect("removed");
    // What is in the trash still counts.
    store.create_writable(&layer("early", None)).expect("made");
    assert_ne!(project(&store, "early"), first);
    store.reclaim().expect("reclaimed");
    let usage = subject.kernel().quota().usage(store.home(), first);
    assert_eq!(usage.expect("the usage").limits, Limits::UNLIMITED);
    eventually(|| {
        let usage = subject.kernel().quota().usage(store.home(), first);
        usage.expect("the usage").is_empty()
    });
    store.create_writable(&layer("next", None)).expect("made");
    assert_eq!(project(&store, "next"), first);
    assert_eq!(limits(&store, "next"), Limits::UNLIMITED);
    // A store that is opened anew finds out which are taken.
    let again = subject.open("home").expect("it opens");
    again.create_writable(&layer("last", None)).expect("made");
    let all = ["early", "next", "last"].map(|name| project(&again, name));
    assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
    subject.assert_clean(&again);
}

fn a_layer_that_cannot_be_made_gives_its_project_back(subject: &Subject) {
    let store = subject.store();
    if !enforced(subject) {
        return assert_refused(store.create_writable(&sized("layer", 5)), "quotas");
    }
    // A file system that others used keeps their limits, and may forget them meanwhile.
    let before = used(subject);
    store.create_writable(&layer("first", None)).expect("made");
    // The layer's directory is one inode already.
    let tight = layer("layer", None).inodes(Some(1));
    let error = store.create_writable(&tight).expect_err("nothing fits");
    assert!(
        matches!(error, Error::OverQuota { .. }),
        "{}",
        chain(&error)
    );
    subject.assert_clean(&store);
    let first = project(&store, "first");
    eventually(|| {
        let used = used(subject);
        used.contains(&first) && used.iter().all(|id| *id == first || before.contains(id))
    });
    store.create_writable(&layer("second", None)).expect("made");
    let second = project(&store, "second");
    assert_ne!(second, first);
    if before.is_empty() {
        assert_eq!(second.get(), first.get() + 1, "no id is lost");
    }
}

fn what_a_killed_process_staged_gives_its_project_back(subject: &Subject) {
    let store = subject.store();
    if !enforced(subject) {
        return assert_refused(store.create_writable(&sized("layer", 5)), "quotas");
    }
    // A layer whose name in staging is its link, as it is until it is published.
    store.create_writable(&sized("killed", 5)).expect("made");
    store.create_writable(&sized("kept", 5)).expect("made");
    let (killed, kept) = (project(&store, "killed"), project(&store, "kept"));
    let link = store.inspect(&id("killed")).expect("a layer").link;
    let staging = store.layout().store_dir().join(names::STAGING);
    let from = store.layout().layer(&id("killed"));
    subject.rename(from.dir(), &staging.join(link.as_str()));
    // A copy for `kept`, as it is until the two are swapped.
    let copy = staging.join("AAAAAAAAAAAAAAAAAAAAAAAAAA");
    subject.mkdir(&copy, 0o700);
    subject.write(&copy.join("replaces"), b"kept");
    let assigned = subject.kernel().quota().assign_project(&copy, Some(kept));
    assigned.expect("a directory can be tagged");
    drop(store);
    let store = subject.open("home").expect("it opens");
    store.reclaim().expect("the first that writes cleans up");
    subject.assert_clean(&store);
    let usage = subject.kernel().quota().usage(store.home(), killed);
    assert_eq!(usage.expect("the usage").limits, Limits::UNLIMITED);
    assert_eq!(limits(&store, "kept"), bytes(5));
}

fn projects_begin_after_the_base_of_the_home(subject: &Subject) {
    let home = subject.dir().join("home");
    let init = |base| {
        let base = ProjectId::new(base);
        let options = InitOptions::new().project_base(base);
        Overlay2::init(subject.kernel().clone(), &home, &options)
    };
    let none = init(u32::MAX - 1).expect_err("no ids are left");
    assert!(matches!(none, Error::Settings { .. }), "{none:?}");
    assert_eq!(subject.names(subject.dir()), [""; 0]);
    let store = init(70_000).expect("a home");
    store.create_writable(&layer("layer", None)).expect("made");
    match enforced(subject) {
        true => assert_eq!(project(&store, "layer").get(), 70_002),
        false => assert_eq!(store.quota(&id("layer")).expect("a look"), None),
    }
}

fn limits_of_a_mounted_layer_can_be_changed(subject: &Subject) {
    let store = subject.store();
    if !enforced(subject) {
        return assert_refused(store.create_writable(&sized("layer", 5)), "quotas");
    }
    store.create_writable(&layer("layer", None)).expect("made");
    let number = project(&store, "layer");
    let path = mount(&store, "layer");
    for changed in [bytes(2), bytes(9).inodes(Some(50)), Limits::UNLIMITED] {
        store.set_limits(&id("layer"), changed).expect("changed");
        assert_eq!(limits(&store, "layer"), changed);
    }
    store.set_limits(&id("layer"), bytes(1)).expect("changed");
    subject.write(&path.join("small"), b"x");
    unmount(&store, "layer");
    let full = apply(&store, "layer", &archive("large", 2 * MIB));
    let full = full.expect_err("the new limit holds");
    assert!(matches!(full, Error::OverQuota { .. }), "{}", chain(&full));
    assert_eq!(project(&store, "layer"), number);
    let error = store.set_limits(&id("layer"), Limits::UNLIMITED.inodes(Some(0)));
    assert!(matches!(error, Err(Error::Quota { .. })), "{error:?}");
    assert_eq!(limits(&store, "layer"), bytes(1));
}

fn a_layer_without_a_project_moves_into_one_when_it_is_limited(subject: &Subject) {
    let store = subject.store();
    import(&store, "base", None, &archive("a", 1));
    create(&store, "open", Some("base"));
    apply(&store, "open", &archive("file", MIB)).expect("applied");
    let before = diff(&store, "open", &Default::default());
    if !enforced(subject) {
        return assert_refused(store.set_limits(&id("open"), bytes(5)), "quotas");
    }
    let lifted = store.set_limits(&id("open"), Limits::UNLIMITED);
    lifted.expect("there is nothing to lift");
    assert_eq!(store.quota(&id("open")).expect("a look"), None);
    mount(&store, "open");
    let mounted = store.set_limits(&id("open"), bytes(5));
    assert!(matches!(mounted, Err(Error::Mounted { .. })), "{mounted:?}");
    unmount(&store, "open");
    let sealed = store.set_limits(&id("base"), bytes(5));
    assert!(
        matches!(sealed, Err(Error::NotWritable { .. })),
        "{sealed:?}"
    );
    let tight = store.set_limits(
        &id("open"),
        Limits::UNLIMITED.bytes(Some(Bytes::new(65536))),
    );
    assert!(matches!(tight, Err(Error::OverQuota { .. })), "{tight:?}");
    assert_eq!(store.quota(&id("open")).expect("a look"), None);
    store.set_limits(&id("open"), bytes(5)).expect("limited");
    assert_eq!(limits(&store, "open"), bytes(5));
    let usage = quota(&store, "open").usage.expect("the usage");
    assert!(usage.bytes.get() >= MIB, "{usage}");
    assert_eq!(diff(&store, "open", &Default::default()), before);
    subject.assert_clean(&store);
}

/// The copy loses no note: neither that contents are torn, nor that they may be after this boot.
fn a_layer_that_was_mounted_volatile_moves_into_a_project_as_what_it_is(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "open", Some("base"));
    if !enforced(subject) {
        return assert_refused(store.set_limits(&id("open"), bytes(5)), "quotas");
    }
    let durable = OpenOptions::new().durability(Durability::Layer);
    let durable = Overlay2::open(subject.kernel().clone(), store.home(), durable);
    let durable = durable.expect("it opens");
    let file = store.layout().layer(&id("open")).dir().join(names::RECORD);
    let record = || LayerRecord::parse_file(&subject.read(&file)).expect("a record");
    let boot = subject.kernel().system().boot_id().expect("a boot id");
    // As a mount leaves it.
    let note = |boot: &str| {
        let mut noted = record();
        noted.volatile = Some(boot.to_owned());
        subject.rewrite(&file, noted.to_string().as_bytes());
    };
    note("another-boot");
    for store in [&store, &durable] {
        let error = store.set_limits(&id("open"), bytes(5));
        let error = error.expect_err("nobody has accepted what is left of it");
        assert!(matches!(error, Error::Dirty { .. }), "{}", chain(&error));
    }
    assert_eq!(store.quota(&id("open")).expect("a look"), None);
    assert_eq!(record().volatile.as_deref(), Some("another-boot"));

    note(&boot);
    store.set_limits(&id("open"), bytes(5)).expect("limited");
    assert_eq!(record().volatile, Some(boot.clone()));
    // What is waited for is safe.
    store.remove(&id("open"), false).expect("remove");
    create(&store, "open", Some("base"));
    note(&boot);
    durable.set_limits(&id("open"), bytes(5)).expect("limited");
    assert_eq!(record().volatile, None);
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

fn a_full_layer_is_over_quota_where_its_mount_has_no_room(subject: &Subject) {
    let store = subject.store();
    if !enforced(subject) {
        return assert_refused(store.create_writable(&sized("layer", 5)), "quotas");
    }
    import(&store, "base", None, &archive("a", 1));
    let made = store.create_writable(&layer("layer", Some("base")));
    made.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let usage = quota(&store, "layer").usage.expect("the usage");
    // No room for the mount point, and then for that but not for what the kernel makes.
    for more in [0, 1] {
        let limits = Limits::UNLIMITED.inodes(Some(usage.inodes + more));
        store.set_limits(&id("layer"), limits).expect("limited");
        match store.mount(&id("layer"), &MountRequest::new()) {
            // ext4 lets root exceed limits.
            Ok(_) => unmount(&store, "layer"),
            Err(Error::OverQuota { usage, .. }) => assert_eq!(usage.limits, limits),
            Err(error) => panic!("{}", chain(&error)),
        }
        subject.assert_clean(&store);
    }
    let lifted = store.set_limits(&id("layer"), Limits::UNLIMITED);
    lifted.expect("lifted");
    mount(&store, "layer");
    unmount(&store, "layer");
    subject.assert_clean(&store);
}

fn a_file_counts_up_to_the_limit_and_until_it_is_closed(subject: &Subject) {
    let store = subject.store();
    if !enforced(subject) {
        return assert_refused(store.create_writable(&sized("layer", 5)), "quotas");
    }
    store.create_writable(&sized("layer", 5)).expect("limits");
    let used = || quota(&store, "layer").usage.expect("the usage").bytes.get();
    let path = mount(&store, "layer");
    let tree = subject.tree();
    let dir = tree.open_root(&path).expect("open");
    let name = OsStr::new("file");
    let file = tree.create_file(&dir, name, 0o600).expect("create");
    // Root has the privilege to exceed it, on ext4.
    let keeps = subject.kernel().quota().keep_to_limits();
    let keeps = keeps.expect("limits can be kept to");
    let mut pieces = (0..2 * 5 * MIB).step_by(65536);
    let written = pieces.try_for_each(|at| tree.write_at(&file, at, &[7; 65536]));
    let error = written.expect_err("twice the limit");
    let errno = Errno::from_io_error(&error);
    assert!(
        matches!(errno, Some(Errno::DQUOT | Errno::NOSPC)),
        "{error}"
    );
    let size = tree.metadata(Node::File(&file)).expect("look").size;
    assert!((4 * MIB..5 * MIB).contains(&size), "what fits is kept");
    assert!(used() >= size && used() <= 5 * MIB, "{} bytes", used());
    tree.unlink(&dir, name).expect("unlink");
    assert!(used() >= size, "somebody can read it");
    drop((keeps, file));
    eventually(|| used() < MIB);
    drop(dir);
    unmount(&store, "layer");
    subject.assert_clean(&store);
}
