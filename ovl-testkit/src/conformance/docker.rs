//! The cases of Docker's `graphtest`, and those of its other tests that a layer store can answer,
//! each by the name that it has there.

use ovl_driver::blocking::Overlay2;
use ovl_driver::{Base, ErrorKind, ImportOptions, MountRequest, OpenOptions};
use ovl_mount::UnmountMode;
use ovl_quota::{Bytes, Enforcement};
use rustix::io::Errno;

use super::support::{
    assert_same, changes, create, diff, id, import, layer, mount, try_import, unmount, with_mount,
};
use super::{Subject, list};
use crate::archive::ArchiveBuilder;

list! {
    docker_create_empty,
    docker_create_base,
    docker_create_snap,
    docker_deep_layer_read_of_128,
    docker_diff_and_apply_of_10_files,
    docker_changes_of_20_files,
    docker_set_quota,
    docker_mounts_are_counted_after_a_restart,
    docker_layers_are_released_children_first,
    docker_changes_of_mutated_files,
    docker_changes_of_identical_layers,
    docker_apply_of_exported_changes_twice,
    docker_apply_of_whiteouts_over_three_layers,
    docker_invalid_whiteouts_are_refused,
    docker_hard_links_stay_links,
    docker_the_same_archive_gives_the_same_layer,
    docker_apply_to_a_writable_layer,
}

/// Who the caller may give files to.
fn other_owner(subject: &Subject) -> (u32, u32) {
    let identity = subject.kernel().system().identity().expect("an identity");
    let mapped =
        |ids: &[std::ops::Range<u64>], wanted: u64| ids.iter().any(|ids| ids.contains(&wanted));
    match mapped(&identity.uids, 1) && mapped(&identity.gids, 2) {
        true => (1, 2),
        false => (0, 0),
    }
}

/// `CreateBase`.
fn make_base(subject: &Subject, store: &Overlay2) {
    store.create_writable(&layer("Base", None)).expect("create");
    with_mount(store, "Base", |path| {
        let (uid, gid) = other_owner(subject);
        let (dir, file) = (path.join("a subdir"), path.join("a file"));
        subject.mkdir(&dir, 0o755);
        subject.chown(&dir, uid, gid);
        subject.chmod(&dir, 0o1705);
        subject.write(&file, b"Some data");
        subject.chmod(&file, 0o4222);
    });
}

fn assert_shows_base(subject: &Subject, store: &Overlay2, name: &str) {
    with_mount(store, name, |path| {
        let (dir, file) = (path.join("a subdir"), path.join("a file"));
        assert_eq!(subject.names(path), ["a file", "a subdir"]);
        assert_eq!(subject.mode(&dir), 0o1705);
        assert_eq!(subject.owner(&dir), other_owner(subject));
        assert_eq!(subject.names(&dir), [""; 0]);
        assert_eq!(subject.mode(&file), 0o4222);
        assert_eq!(subject.owner(&file), (0, 0));
        assert_eq!(subject.read(&file), b"Some data");
    });
}

fn docker_create_empty(subject: &Subject) {
    let store = subject.store();
    create(&store, "empty", None);
    assert!(store.contains(&id("empty")).expect("contains"));
    with_mount(&store, "empty", |path| {
        assert_eq!((subject.mode(path), subject.owner(path)), (0o755, (0, 0)));
        assert_eq!(subject.names(path), [""; 0]);
    });
    store.remove(&id("empty"), false).expect("remove");
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

fn docker_create_base(subject: &Subject) {
    let store = subject.store();
    make_base(subject, &store);
    assert_shows_base(subject, &store, "Base");
    store.remove(&id("Base"), false).expect("remove");
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

fn docker_create_snap(subject: &Subject) {
    let store = subject.store();
    make_base(subject, &store);
    create(&store, "Snap", Some("Base"));
    assert_shows_base(subject, &store, "Snap");
    for name in ["Snap", "Base"] {
        store.remove(&id(name), false).expect("children first");
    }
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

/// `DeepLayerRead`: 128 layers on a base is the most that Docker takes.
fn docker_deep_layer_read_of_128(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    with_mount(&store, "base", |path| {
        subject.write(&path.join("testfile.txt"), b"This is a test file");
    });
    let mut below = String::from("base");
    for level in 1..=128 {
        let name = format!("layer-{level}");
        create(&store, &name, Some(&below));
        with_mount(&store, &name, |path| {
            if level > 1 {
                subject.unlink(&path.join("top-id"));
            }
            subject.write(&path.join("top-id"), name.as_bytes());
            let dir = path.join(format!("of-{level}"));
            subject.mkdir(&dir, 0o700);
            subject.write(&dir.join("layer-id"), name.as_bytes());
            subject.write(&dir.join("parent-id"), below.as_bytes());
        });
        below = name;
    }
    with_mount(&store, &below, |path| {
        assert_eq!(
            subject.read(&path.join("testfile.txt")),
            b"This is a test file"
        );
        let mut name = subject.read(&path.join("top-id"));
        for level in (1..=128).rev() {
            let dir = path.join(format!("of-{level}"));
            assert_eq!(subject.read(&dir.join("layer-id")), name);
            name = subject.read(&dir.join("parent-id"));
        }
        assert_eq!(name, b"base");
    });
    subject.assert_clean(&store);
}

/// `DriverTestDiffApply` of Docker's `graphtest`.
fn docker_diff_and_apply_of_10_files(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    let file = |n: u32| format!("directory-0/file-{n}");
    with_mount(&store, "base", |path| {
        subject.mkdir(&path.join("directory-0"), 0o755);
        for n in 0..10 {
            subject.write(&path.join(file(n)), &[n as u8; 64]);
        }
        subject.write(&path.join("file-remove.txt"), b"");
        subject.mkdir(&path.join("var"), 0o700);
        subject.mkdir(&path.join("var/lib"), 0o700);
    });
    create(&store, "upper", Some("base"));
    with_mount(&store, "upper", |path| {
        for n in 0..10 {
            subject.rewrite(&path.join(file(n)), &[n as u8 + 100; 64]);
        }
        subject.unlink(&path.join("file-remove.txt"));
        subject.remove_tree(&path.join("var"));
    });
    let expected = store.size(&id("upper"), &Base::Parent).expect("size");
    let archive = diff(&store, "upper", &Base::Layer(id("base")));
    create(&store, "diff", Some("base"));
    let applied = store.apply(&id("diff"), &*archive, ImportOptions::new(), &mut |_| {});
    assert_eq!(applied.expect("apply").size.apparent, expected.apparent);
    with_mount(&store, "diff", |path| {
        for n in 0..10 {
            assert_eq!(subject.read(&path.join(file(n))), [n as u8 + 100; 64]);
        }
        assert_eq!(subject.names(path), ["directory-0"]);
    });
    subject.assert_clean(&store);
}

/// `DriverTestChanges` of Docker's `graphtest`, which Docker's own driver skips.
fn docker_changes_of_20_files(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    let file = |n: u32| format!("directory-0/file-{n:02}");
    with_mount(&store, "base", |path| {
        subject.mkdir(&path.join("directory-0"), 0o755);
        for n in 0..20 {
            subject.write(&path.join(file(n)), &[n as u8; 64]);
        }
    });
    create(&store, "upper", Some("base"));
    let mut expected = vec![String::from("C /directory-0")];
    with_mount(&store, "upper", |path| {
        for n in 0..20 {
            match n % 3 {
                0 => {
                    subject.rewrite(&path.join(file(n)), &[n as u8 + 1; 64]);
                    expected.push(format!("C /{}", file(n)));
                }
                1 => {
                    let added = format!("directory-0/added-{n:02}");
                    subject.write(&path.join(&added), &[n as u8; 64]);
                    expected.push(format!("A /{added}"));
                }
                _ => {
                    subject.unlink(&path.join(file(n)));
                    expected.push(format!("D /{}", file(n)));
                }
            }
        }
    });
    expected.sort_by(|one, other| one[2..].cmp(&other[2..]));
    assert_eq!(changes(&store, "upper", &Base::Parent), expected);
    subject.assert_clean(&store);
}

/// `SetQuota`, with a tenth of Docker's numbers. Where limits are not kept they are refused.
fn docker_set_quota(subject: &Subject) {
    let store = subject.store();
    const MIB: usize = 1 << 20;
    let limited = layer("zfsTest", None).size(Some(Bytes::new(5 * MIB as u64)));
    let quota = subject.kernel().quota();
    let made = store.create_writable(&limited);
    if quota.enforcement(subject.dir()).expect("a value") != Enforcement::Enforced {
        let error = made.expect_err("nothing would keep the limit");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        return subject.assert_clean(&store);
    }
    made.expect("create");
    let path = mount(&store, "zfsTest");
    subject.write(&path.join("testfile"), &vec![7; 5 * MIB / 2]);
    {
        // Docker's test writes as root, whom ext4 lets pass.
        let _keeps = quota.keep_to_limits().expect("limits can be kept to");
        let tree = subject.tree();
        let dir = tree.open_root(&path).expect("open");
        let file = tree
            .create_file(&dir, "toolarge".as_ref(), 0o600)
            .expect("create");
        let written = tree
            .write_at(&file, 0, &vec![7; 5 * MIB])
            .and_then(|()| tree.sync(ovl_diff::Node::File(&file)));
        let error = written.expect_err("twice the limit");
        let errno = Errno::from_io_error(&error);
        assert!(
            matches!(errno, Some(Errno::DQUOT | Errno::NOSPC)),
            "{error}"
        );
    }
    unmount(&store, "zfsTest");
    subject.assert_clean(&store);
}

/// Docker counts mounts in memory and finds them again in the mount table; here the count survives.
fn docker_mounts_are_counted_after_a_restart(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    let path = mount(&store, "top");
    drop(store);
    let store = subject.store();
    assert_eq!(mount(&store, "top"), path);
    drop(store);
    let options = OpenOptions::new();
    let store = Overlay2::open(
        subject.kernel().clone(),
        &subject.dir().join("home"),
        options,
    );
    let store = store.expect("it is there");
    let put = || store.unmount(&id("top"), UnmountMode::Now);
    assert_eq!(put().expect("unmount"), 1);
    assert_eq!(put().expect("unmount"), 0);
    assert_eq!(put().expect_err("not mounted").kind(), ErrorKind::NotFound);
    subject.assert_clean(&store);
}

/// The layer store's release, in the order of which Docker's driver takes no notice.
fn docker_layers_are_released_children_first(subject: &Subject) {
    let store = subject.store();
    let file = ArchiveBuilder::new().file("file", b"x").finish();
    for (name, parent) in [
        ("l1", None),
        ("l2", Some("l1")),
        ("l3a", Some("l2")),
        ("l3b", Some("l2")),
    ] {
        import(&store, name, parent, &file);
    }
    for (name, removed) in [
        ("l1", false),
        ("l2", false),
        ("l3a", true),
        ("l2", false),
        ("l3b", true),
        ("l1", false),
        ("l2", true),
        ("l1", true),
    ] {
        let result = store.remove(&id(name), false);
        match result {
            Ok(()) => assert!(removed, "{name} has children"),
            Err(error) => assert!(!removed && error.kind() == ErrorKind::Busy, "{error}"),
        }
    }
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

/// `TestChangesDirsMutated`.
fn docker_changes_of_mutated_files(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    with_mount(&store, "base", |path| {
        for dir in ["dir1", "dir2", "dir3"] {
            subject.mkdir(&path.join(dir), 0o755);
            subject.write(&path.join(dir).join("file1"), b"contents");
            subject.write(&path.join(dir).join("file2"), b"contents");
        }
        for file in ["file1", "file2", "file3", "file4"] {
            subject.write(&path.join(file), file.as_bytes());
        }
        subject.symlink(&path.join("symlink1"), "target1");
        subject.symlink(&path.join("symlink2"), "target2");
    });
    create(&store, "upper", Some("base"));
    with_mount(&store, "upper", |path| {
        // Gone, replaced by another kind, changed, and new.
        subject.remove_tree(&path.join("dir1"));
        subject.remove_tree(&path.join("dir2"));
        subject.write(&path.join("dir2"), b"a file");
        subject.mkdir(&path.join("dirnew"), 0o755);
        subject.unlink(&path.join("file1"));
        subject.unlink(&path.join("file2"));
        subject.mkdir(&path.join("file2"), 0o755);
        subject.rewrite(&path.join("file3"), b"FILE3");
        subject.chmod(&path.join("file4"), 0o600);
        subject.write(&path.join("filenew"), b"filenew");
        subject.unlink(&path.join("symlink1"));
        subject.unlink(&path.join("symlink2"));
        subject.symlink(&path.join("symlink2"), "target2change");
        subject.symlink(&path.join("symlinknew"), "targetnew");
    });
    let expected = [
        "D /dir1",
        "C /dir2",
        "A /dirnew",
        "D /file1",
        "C /file2",
        "C /file3",
        "C /file4",
        "A /filenew",
        "D /symlink1",
        "C /symlink2",
        "A /symlinknew",
    ];
    assert_eq!(changes(&store, "upper", &Base::Parent), expected);
    subject.assert_clean(&store);
}

fn some_tree() -> ArchiveBuilder {
    ArchiveBuilder::new()
        .dir("./", 0o755)
        .dir("dir", 0o755)
        .file("dir/file", b"contents")
        .dir("dir/empty", 0o700)
        .symlink("dir/link", "file")
        .hard_link("again", "dir/file")
}

/// `TestChangesWithNoChanges`.
fn docker_changes_of_identical_layers(subject: &Subject) {
    let store = subject.store();
    import(&store, "one", None, &some_tree().finish());
    import(&store, "other", None, &some_tree().finish());
    create(&store, "child", Some("one"));
    for (of, base) in [
        ("child", Base::Parent),
        ("one", Base::Layer(id("other"))),
        ("child", Base::Layer(id("other"))),
    ] {
        assert_eq!(changes(&store, of, &base), [""; 0]);
    }
    subject.assert_clean(&store);
}

/// `TestApplyLayer`, and once more.
fn docker_apply_of_exported_changes_twice(subject: &Subject) {
    let store = subject.store();
    import(&store, "base", None, &some_tree().finish());
    create(&store, "upper", Some("base"));
    with_mount(&store, "upper", |path| {
        subject.remove_tree(&path.join("dir"));
        subject.mkdir(&path.join("dir"), 0o711);
        subject.write(&path.join("dir/new"), b"new");
        subject.chmod(&path.join("again"), 0o600);
    });
    let (archive, shown) = (
        diff(&store, "upper", &Base::Parent),
        subject.shown(&store, "upper"),
    );
    create(&store, "copy", Some("base"));
    for _ in 0..2 {
        let applied = store.apply(&id("copy"), &*archive, ImportOptions::new(), &mut |_| {});
        applied.expect("apply");
        assert_same(&shown, &subject.shown(&store, "copy"));
        assert_eq!(diff(&store, "copy", &Base::Parent), archive);
    }
    subject.assert_clean(&store);
}

/// `TestApplyLayerWhiteouts`.
fn docker_apply_of_whiteouts_over_three_layers(subject: &Subject) {
    let store = subject.store();
    let archive = |names: &[&str]| {
        let files = names.iter().fold(ArchiveBuilder::new(), |archive, name| {
            match name.strip_suffix('/') {
                Some(dir) => archive.dir(dir, 0o755),
                None => archive.file(name, b""),
            }
        });
        files.finish()
    };
    let base = [
        ".baz",
        "bar/",
        "bar/bax",
        "bar/bay/",
        "baz",
        "foo/",
        "foo/.abc",
        "foo/.bcd/",
        "foo/.bcd/a",
        "foo/cde/",
        "foo/cde/def",
        "foo/cde/efg",
        "foo/fgh",
        "foobar",
    ];
    for (number, (layer, expected)) in [
        (
            &base[..],
            &[
                ".baz",
                "bar",
                "bar/bax",
                "bar/bay",
                "baz",
                "foo",
                "foo/.abc",
                "foo/.bcd",
                "foo/.bcd/a",
                "foo/cde",
                "foo/cde/def",
                "foo/cde/efg",
                "foo/fgh",
                "foobar",
            ][..],
        ),
        (
            &[
                ".bay",
                ".wh.baz",
                "foo/",
                "foo/.bce",
                "foo/.wh..wh..opq",
                "foo/cde/",
                "foo/cde/efg",
            ],
            &[
                ".bay",
                ".baz",
                "bar",
                "bar/bax",
                "bar/bay",
                "foo",
                "foo/.bce",
                "foo/cde",
                "foo/cde/efg",
                "foobar",
            ],
        ),
        (
            &[
                ".bay",
                ".wh..baz",
                ".wh.foobar",
                "foo/",
                "foo/.abc",
                "foo/.wh.cde",
                "bar/",
            ],
            &[
                ".bay", "bar", "bar/bax", "bar/bay", "foo", "foo/.abc", "foo/.bce",
            ],
        ),
        (&[".abc", ".wh..wh..opq", "foobar"], &[".abc", "foobar"]),
    ]
    .into_iter()
    .enumerate()
    {
        let below = number.checked_sub(1).map(|below| format!("l{below}"));
        let name = format!("l{number}");
        import(&store, &name, below.as_deref(), &archive(layer));
        let shown = subject.shown(&store, &name);
        let shown: Vec<_> = shown
            .keys()
            .skip(1)
            .map(|path| path.to_string_lossy())
            .collect();
        assert_eq!(shown, expected, "after layer {number}");
    }
    subject.assert_clean(&store);
}

/// `TestUnpackLayerInvalidWhiteouts` and its like.
fn docker_invalid_whiteouts_are_refused(subject: &Subject) {
    let store = subject.store();
    import(&store, "base", None, &some_tree().finish());
    for name in [
        ".wh.",
        ".wh..",
        ".wh...",
        "dir/.wh.",
        "dir/.wh..",
        "dir/.wh...",
    ] {
        let archive = ArchiveBuilder::new().file(name, b"").finish();
        let error = try_import(&store, "top", Some("base"), &archive).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}: {error}");
        assert!(!store.contains(&id("top")).expect("contains"));
    }
    subject.assert_clean(&store);
}

/// `TestCopyHardlink`.
fn docker_hard_links_stay_links(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    with_mount(&store, "base", |path| {
        subject.mkdir(&path.join("z"), 0o755);
        subject.write(&path.join("z/file"), b"file");
        subject.link(&path.join("z/file"), &path.join("a"));
        subject.write(&path.join("single"), b"single");
    });
    import(&store, "copy", None, &diff(&store, "base", &Base::Empty));
    with_mount(&store, "copy", |path| {
        let shown = crate::snapshot_at(subject.tree(), path).expect("it can be read");
        let links = |name: &str| shown[std::path::Path::new(name)].nlink;
        assert_eq!([links("a"), links("z/file"), links("single")], [2, 2, 1]);
    });
    subject.assert_clean(&store);
}

/// `TestRegisterExistingLayer`, as far as a driver knows layers.
fn docker_the_same_archive_gives_the_same_layer(subject: &Subject) {
    let store = subject.store();
    let archive = some_tree().finish();
    let one = import(&store, "one", None, &archive);
    let other = import(&store, "other", None, &archive);
    assert_eq!(one.summary.archive.diff_id, other.summary.archive.diff_id);
    assert_eq!(one.size, other.size);
    assert_same(
        &subject.shown(&store, "one"),
        &subject.shown(&store, "other"),
    );
    assert_eq!(
        diff(&store, "one", &Base::Empty),
        diff(&store, "other", &Base::Empty)
    );
    subject.assert_clean(&store);
}

/// `TestMountApply`: into a layer that a container writes to, which is unmounted for that here.
fn docker_apply_to_a_writable_layer(subject: &Subject) {
    let store = subject.store();
    import(&store, "base", None, &some_tree().finish());
    let writable = layer("fun-mount", Some("base"));
    store.create_writable(&writable).expect("create");
    with_mount(&store, "fun-mount", |path| {
        subject.write(&path.join("written"), b"before");
    });
    let archive = ArchiveBuilder::new()
        .file("newfile.txt", b"applied")
        .finish();
    let apply = || store.apply(&writable.id, &*archive, ImportOptions::new(), &mut |_| {});
    let path = store
        .mount(&writable.id, &MountRequest::new())
        .expect("mount");
    assert_eq!(apply().expect_err("mounted").kind(), ErrorKind::Busy);
    assert!(!subject.exists(&path.join("newfile.txt")));
    unmount(&store, "fun-mount");
    apply().expect("apply");
    with_mount(&store, "fun-mount", |path| {
        assert_eq!(subject.read(&path.join("newfile.txt")), b"applied");
        assert_eq!(subject.read(&path.join("written")), b"before");
    });
    subject.assert_clean(&store);
}
