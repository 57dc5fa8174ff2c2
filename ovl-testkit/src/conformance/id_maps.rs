//! Homes whose owners on disk are not those inside containers.
//!
//! A user namespace that lacks the ids of the map cannot have such a home at all. There each case
//! checks that, and that nothing is left of the attempt, instead of what it says.

use std::path::PathBuf;

use ovl_diff::{ApplyError, ArchiveError, ArchiveReader, BadReason, DiffError, IdKind, ReadLimits};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{Base, Error, ErrorKind, ImportOptions, InitOptions, OpenOptions};
use ovl_layout::{IdMap, IdMaps};

use super::support::{chain, create, diff, id, import, mount, try_import, unmount, with_mount};
use super::{Subject, list};
use crate::archive::ArchiveBuilder;

list! {
    the_mapped_root_owns_the_directories_of_its_home,
    an_applied_layer_has_the_owners_of_an_imported_one,
    a_mapped_home_gives_the_same_archives_as_any_other,
    an_id_outside_the_map_is_refused_with_the_numbers_and_leaves_nothing,
    an_id_outside_the_map_can_be_squashed_to_the_mapped_root,
    files_of_host_ids_have_container_ids_in_a_diff,
    a_host_id_outside_the_map_never_gives_a_whole_archive,
    the_kernels_work_directory_is_the_mapped_roots_after_every_mount,
    access_control_lists_have_host_ids_on_disk_only,
    a_home_opens_only_with_the_id_maps_that_it_has,
    a_home_of_docker_takes_the_id_maps_of_its_layers_only,
}

const ROOT: (u32, u32) = (100_000, 200_000);

fn maps() -> IdMaps {
    let map = |text: &str| text.parse::<IdMap>().expect("the case uses valid maps");
    IdMaps {
        uids: map("0:100000:65536"),
        gids: map("0:200000:65536"),
    }
}

/// A home with id maps; none where there cannot be one.
fn mapped(subject: &Subject) -> Option<Overlay2> {
    let home = subject.dir().join("mapped");
    let options = InitOptions::new().id_maps(maps());
    let identity = subject.kernel().system().identity().expect("an identity");
    let has_root = |ranges: &[std::ops::Range<u64>], root: u32| {
        ranges.iter().any(|range| range.contains(&root.into()))
    };
    let made = Overlay2::init(subject.kernel().clone(), &home, &options);
    if has_root(&identity.uids, ROOT.0) && has_root(&identity.gids, ROOT.1) {
        return Some(made.unwrap_or_else(|error| panic!("{}", chain(&error))));
    }
    let error = made.expect_err("a home that nobody here can use is refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", chain(&error));
    assert!(chain(&error).contains("100000"), "{}", chain(&error));
    assert!(!subject.exists(&home), "nothing is made");
    let options = OpenOptions::new().create(true).id_maps(Some(maps()));
    let opened = Overlay2::open(subject.kernel().clone(), &home, options);
    assert_eq!(opened.err().map(|e| e.kind()), Some(ErrorKind::Unsupported));
    assert!(!subject.exists(&home), "nothing is made");
    None
}

/// A base and a child by several owners, the child with implied directories and a whiteout.
fn archives() -> [Vec<u8>; 2] {
    let base = ArchiveBuilder::new()
        .owned_by(1, 2)
        .dir("./", 0o755)
        .owned_by(0, 0)
        .dir("etc/", 0o755)
        .owned_by(1000, 1001)
        .file("etc/motd", b"hello\n")
        .file("etc/gone", b"")
        .hard_link("etc/alias", "etc/motd")
        .owned_by(65_535, 65_535)
        .symlink("link", "etc/motd")
        .finish();
    let child = ArchiveBuilder::new()
        .owned_by(7, 8)
        .file("etc/new", b"new")
        .file("etc/.wh.gone", b"")
        .finish();
    [base, child]
}

fn import_both(store: &Overlay2) {
    let [base, child] = archives();
    import(store, "base", None, &base);
    import(store, "child", Some("base"), &child);
}

fn the_mapped_root_owns_the_directories_of_its_home(subject: &Subject) {
    let Some(store) = mapped(subject) else { return };
    let process = subject.kernel().system().identity().expect("ids").uid;
    create(&store, "base", None);
    create(&store, "work", Some("base"));
    let ours = (process, ROOT.1);
    assert_eq!(subject.owner(store.home()), ours);
    assert_eq!(subject.mode(store.home()), 0o710);
    let links = store.layout().link_dir();
    assert_eq!(subject.owner(&links).0, process);
    assert_ne!(
        subject.owner(&links).1,
        ROOT.1,
        "the links are the process's"
    );
    assert_eq!(subject.mode(&links), 0o700);
    for name in ["base", "work"] {
        let paths = store.layout().layer(&id(name));
        assert_eq!(subject.owner(paths.dir()), ours, "{name}");
        assert_eq!(subject.mode(paths.dir()), 0o710, "{name}");
        assert_eq!(subject.owner(paths.diff()), ROOT, "{name}");
        assert_eq!(subject.mode(paths.diff()), 0o755, "{name}");
    }
    let work = store.layout().layer(&id("work"));
    assert_eq!(subject.owner(work.work()), ROOT);
    assert_eq!(subject.mode(work.work()), 0o700);
    mount(&store, "work");
    assert_eq!(
        subject.owner(work.merged()),
        ROOT,
        "what shows there is the layer's root"
    );
    unmount(&store, "work");

    // A child's root is its parent's.
    let base = ArchiveBuilder::new().owned_by(3, 4).dir("./", 0o700);
    import(&store, "other", None, &base.finish());
    create(&store, "its-child", Some("other"));
    let diff = store.layout().layer(&id("its-child")).diff().to_owned();
    assert_eq!(subject.owner(&diff), (ROOT.0 + 3, ROOT.1 + 4));
    subject.assert_clean(&store);
}

fn an_applied_layer_has_the_owners_of_an_imported_one(subject: &Subject) {
    let Some(store) = mapped(subject) else { return };
    let process = subject.kernel().system().identity().expect("ids").uid;
    let [base, child] = archives();
    import(&store, "base", None, &base);
    create(&store, "open", Some("base"));
    let options = ImportOptions::new();
    for _ in 0..2 {
        let applied = store.apply(&id("open"), &*child, options, &mut |_| {});
        applied.unwrap_or_else(|error| panic!("{}", chain(&error)));
        let paths = store.layout().layer(&id("open"));
        assert_eq!(subject.owner(paths.dir()), (process, ROOT.1));
        assert_eq!(subject.owner(paths.work()), ROOT);
        assert_eq!(subject.owner(paths.diff()), (ROOT.0 + 1, ROOT.1 + 2));
        let new = subject.owner(&paths.diff().join("etc/new"));
        assert_eq!(new, (ROOT.0 + 7, ROOT.1 + 8));
    }
    import(&store, "child", Some("base"), &child);
    assert_eq!(
        diff(&store, "open", &Base::Parent),
        diff(&store, "child", &Base::Parent)
    );
    subject.assert_clean(&store);
}

fn a_mapped_home_gives_the_same_archives_as_any_other(subject: &Subject) {
    let Some(store) = mapped(subject) else { return };
    let plain = subject.store();
    import_both(&store);
    import_both(&plain);
    let etc = store.layout().layer(&id("child")).diff().join("etc");
    assert_eq!(
        subject.owner(&etc),
        ROOT,
        "an implied directory is as below"
    );
    assert_eq!(
        subject.owner(&etc.join("new")),
        (ROOT.0 + 7, ROOT.1 + 8),
        "the owner on disk"
    );
    for layer in ["base", "child"] {
        for base in [Base::Parent, Base::Empty] {
            assert_eq!(
                diff(&store, layer, &base),
                diff(&plain, layer, &base),
                "{layer} against {base:?}"
            );
        }
    }
    subject.assert_clean(&store);
}

fn an_id_outside_the_map_is_refused_with_the_numbers_and_leaves_nothing(subject: &Subject) {
    let Some(store) = mapped(subject) else { return };
    create(&store, "base", None);
    let cases = [
        ((65_536, 0), IdKind::User, 65_536, "uid map 0:100000:65536"),
        ((0, 70_000), IdKind::Group, 70_000, "gid map 0:200000:65536"),
    ];
    for ((uid, gid), kind, number, words) in cases {
        let archive = ArchiveBuilder::new().file("good", b"good");
        let archive = archive.owned_by(uid, gid).file("foreign", b"x").finish();
        for parent in [None, Some("base")] {
            let error = try_import(&store, "bad", parent, &archive).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}", chain(&error));
            assert!(chain(&error).contains(words), "{}", chain(&error));
            let Error::Apply {
                source: ApplyError::Archive(ArchiveError::Bad(bad)),
                ..
            } = &error
            else {
                panic!("{error:?}");
            };
            assert_eq!((bad.index, &*bad.name), (1, &b"foreign"[..]));
            assert!(
                matches!(bad.reason, BadReason::NoHostId { kind: k, id, .. } if (k, id) == (kind, number)),
                "{bad}"
            );
            assert!(!store.contains(&id("bad")).expect("contains"));
            subject.assert_clean(&store);
        }
    }
}

fn an_id_outside_the_map_can_be_squashed_to_the_mapped_root(subject: &Subject) {
    let Some(store) = mapped(subject) else { return };
    let archive = ArchiveBuilder::new().owned_by(70_000, 5).file("f", b"");
    let archive = archive.finish();
    let options = ImportOptions::new().squash(true);
    let layer = ovl_driver::CreateLayer::new(id("base"));
    let applied = store.import(&layer, &*archive, options, &mut |_| {});
    let applied = applied.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(applied.summary.squashed, 1);
    let file = store.layout().layer(&layer.id).diff().join("f");
    assert_eq!(subject.owner(&file), (ROOT.0, ROOT.1 + 5));
}

/// The owners that an archive gives its members.
fn owners(archive: &[u8]) -> Vec<(String, u32, u32)> {
    let mut reader = ArchiveReader::new(archive, ReadLimits::default());
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().expect("a good archive") {
        let name = String::from_utf8_lossy(&entry.path);
        let name = name.trim_end_matches('/').to_owned();
        found.push((name, entry.uid, entry.gid));
    }
    found
}

fn files_of_host_ids_have_container_ids_in_a_diff(subject: &Subject) {
    let Some(store) = mapped(subject) else { return };
    import_both(&store);
    create(&store, "work", Some("child"));
    with_mount(&store, "work", |path| {
        assert_eq!(
            subject.owner(&path.join("etc/motd")),
            (ROOT.0 + 1000, ROOT.1 + 1001)
        );
        subject.write(&path.join("written"), b"by the container");
        subject.chown(&path.join("written"), ROOT.0 + 33, ROOT.1 + 44);
        subject.mkdir(&path.join("made"), 0o755);
        subject.chown(&path.join("made"), ROOT.0, ROOT.1);
        subject.chown(&path.join("etc/new"), ROOT.0 + 9, ROOT.1 + 8);
        subject.unlink(&path.join("link"));
    });
    let found = owners(&diff(&store, "work", &Base::Parent));
    let of = |name: &str| {
        let found = found.iter().find(|(found, ..)| found == name);
        let (_, uid, gid) = found.unwrap_or_else(|| panic!("{name} is not in the archive"));
        (*uid, *gid)
    };
    assert_eq!(of("written"), (33, 44));
    assert_eq!(of("made"), (0, 0));
    assert_eq!(of("etc"), (0, 0));
    assert_eq!(of("etc/new"), (9, 8));
    assert_eq!(of(".wh.link"), (0, 0), "a whiteout has no owner");
    // The other way to compare knows the same.
    let whole = owners(&diff(&store, "work", &Base::Layer(id("base"))));
    assert!(whole.contains(&("written".to_owned(), 33, 44)), "{whole:?}");
    subject.assert_clean(&store);
}

fn a_host_id_outside_the_map_never_gives_a_whole_archive(subject: &Subject) {
    let Some(store) = mapped(subject) else { return };
    import_both(&store);
    create(&store, "work", Some("child"));
    let path = store.layout().layer(&id("work")).diff().join("foreign");
    subject.write(&path, b"x");
    let cases = [
        ((0, ROOT.1), IdKind::User, 0),
        ((ROOT.0, ROOT.1 - 1), IdKind::Group, ROOT.1 - 1),
        ((ROOT.0 + 65_536, ROOT.1), IdKind::User, ROOT.0 + 65_536),
    ];
    for ((uid, gid), kind, number) in cases {
        subject.chown(&path, uid, gid);
        for base in [Base::Parent, Base::Layer(id("base")), Base::Empty] {
            let mut output = Vec::new();
            let error = store.diff(&id("work"), &base, &mut output);
            let error = error.expect_err("an id that nobody inside has");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}", chain(&error));
            let Error::Diff {
                source:
                    DiffError::NoContainerId {
                        path, kind: k, id, ..
                    },
                ..
            } = &error
            else {
                panic!("{}", chain(&error));
            };
            assert_eq!(*path, PathBuf::from("foreign"));
            assert_eq!((*k, *id), (kind, number));
            let read = try_import(&store, "copy", Some("base"), &output);
            assert_eq!(
                read.expect_err("an archive cut short").kind(),
                ErrorKind::InvalidInput
            );
        }
        // Listing names no owners.
        let changes = store.changes(&id("work"), &Base::Parent);
        assert_eq!(changes.expect("changes").len(), 1);
        store.size(&id("work"), &Base::Parent).expect("a size");
    }
    subject.assert_clean(&store);
}

fn the_kernels_work_directory_is_the_mapped_roots_after_every_mount(subject: &Subject) {
    let Some(store) = mapped(subject) else { return };
    create(&store, "base", None);
    create(&store, "work", Some("base"));
    let inner = store.layout().layer(&id("work")).work().join("work");
    // The kernel makes it anew each time.
    for _ in 0..2 {
        with_mount(&store, "work", |path| {
            assert_eq!(subject.owner(&inner), ROOT);
            subject.mkdir(&path.join("d"), 0o755);
            subject.remove_tree(&path.join("d"));
        });
    }
    // Nothing is made for a read-only mount.
    create(&store, "child", Some("work"));
    let sealed = store.layout().layer(&id("work"));
    subject.chown(sealed.work(), 5, 5);
    with_mount(&store, "work", |_| {
        assert_eq!(subject.owner(sealed.work()), (5, 5));
    });
    subject.assert_clean(&store);
}

/// `u::rw-,u:USER:r--,g::r--,g:GROUP:r-x,m::r-x,o::---`.
fn acl(user: u32, group: u32) -> Vec<u8> {
    let entries = [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, user),
        (4, 4, u32::MAX),
        (8, 5, group),
        (16, 5, u32::MAX),
        (32, 0, u32::MAX),
    ];
    let mut value = vec![2, 0, 0, 0];
    for (tag, perm, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&perm.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

fn access_control_lists_have_host_ids_on_disk_only(subject: &Subject) {
    let Some(store) = mapped(subject) else { return };
    let plain = subject.store();
    let (access, default) = ("system.posix_acl_access", "system.posix_acl_default");
    let archive = |user, group| {
        ArchiveBuilder::new()
            .dir("./", 0o755)
            .xattr(default, &acl(user, group))
            .dir("d/", 0o750)
            .xattr(access, &acl(user, group))
            .entry("f", tar::EntryType::Regular, 0o650, "", b"")
            .finish()
    };
    for store in [&store, &plain] {
        import(store, "base", None, &archive(7, 8));
    }
    let root = store.layout().layer(&id("base")).diff().to_owned();
    let on_disk = Some(acl(ROOT.0 + 7, ROOT.1 + 8));
    assert_eq!(subject.xattr(&root.join("f"), access), on_disk);
    assert_eq!(subject.xattr(&root.join("d"), default), on_disk);
    let archived = diff(&store, "base", &Base::Parent);
    // Also where the file system shows the same lists in a form of its own, as XFS does.
    assert_eq!(archived, diff(&plain, "base", &Base::Parent));
    import(&store, "again", None, &archived);
    assert_eq!(diff(&store, "again", &Base::Parent), archived);

    let error = try_import(&store, "bad", None, &archive(7, 70_000)).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}", chain(&error));
    assert!(
        chain(&error).contains("gid 70000 of the access control list"),
        "{}",
        chain(&error)
    );
    subject.set_xattr(&root.join("f"), access, &acl(7, ROOT.1));
    let error = store.diff(&id("base"), &Base::Parent, Vec::new());
    let error = error.expect_err("an id that nobody inside has");
    assert!(chain(&error).contains("uid 7 on disk"), "{}", chain(&error));
    subject.assert_clean(&store);
}

fn a_home_opens_only_with_the_id_maps_that_it_has(subject: &Subject) {
    let Some(store) = mapped(subject) else { return };
    let open = |name: &str, maps: Option<IdMaps>| {
        let options = OpenOptions::new().create(true).id_maps(maps);
        Overlay2::open(subject.kernel().clone(), &subject.dir().join(name), options)
    };
    for maps in [None, Some(maps())] {
        let opened = open("mapped", maps).expect("it has these maps");
        assert_eq!(opened.settings().id_maps, store.settings().id_maps);
    }
    let error = open("mapped", Some(IdMaps::default())).expect_err("other maps");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}", chain(&error));
    let words = "uid map 0:100000:65536 and gid map 0:200000:65536, not uid map none";
    assert!(chain(&error).contains(words), "{}", chain(&error));

    drop(subject.store());
    open("home", Some(IdMaps::default())).expect("it has no maps");
    let error = open("home", Some(maps())).expect_err("other maps");
    assert!(matches!(error, Error::Settings { .. }), "{}", chain(&error));
    // One that is made on the way has what was asked for.
    let made = open("new", Some(maps())).expect("a new home");
    assert_eq!(made.settings().id_maps, maps());
    assert_eq!(subject.owner(made.home()).1, ROOT.1);
}

fn a_home_of_docker_takes_the_id_maps_of_its_layers_only(subject: &Subject) {
    if mapped(subject).is_none() {
        return;
    }
    let store = subject.store();
    subject.remove_tree(&store.layout().store_dir());
    let init = || {
        let options = InitOptions::new().id_maps(maps());
        Overlay2::init(subject.kernel().clone(), store.home(), &options)
    };
    // Without layers there is nothing that could have others.
    let adopted = init().expect("an empty home takes any maps");
    assert_eq!(subject.owner(adopted.home()).1, ROOT.1);
    create(&adopted, "base", None);
    subject.remove_tree(&store.layout().store_dir());
    // Archives would get the owners on disk.
    let error = subject.open("home").expect_err("nobody says which maps");
    assert!(
        matches!(error, Error::MapsUnknown { group: 200_000, .. }),
        "{}",
        chain(&error)
    );
    init().expect("its layers have these maps");
    subject.remove_tree(&store.layout().store_dir());
    subject.chown(store.home(), 0, 0);
    let error = init().expect_err("its layers have others");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}", chain(&error));
    assert!(chain(&error).contains("200000"), "{}", chain(&error));
    assert!(!subject.exists(&store.layout().store_dir()));
}
