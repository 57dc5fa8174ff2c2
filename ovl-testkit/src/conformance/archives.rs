//! Archives into layers and back, and what a layer changes.

use ovl_diff::{ApplyError, ArchiveError, BadReason};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{Base, Error, ErrorKind, ImportOptions};

use super::support::{
    assert_same, changes, create, diff, id, import, mount, try_import, unmount, with_mount,
};
use super::{Subject, list};
use crate::archive::ArchiveBuilder;

list! {
    an_import_shows_what_the_archive_has,
    a_bad_archive_is_refused_and_leaves_nothing,
    changes_made_through_a_mount_are_listed_exactly,
    a_diff_imported_elsewhere_shows_the_same_tree,
    a_replaced_directory_hides_what_was_in_it,
    a_diff_is_the_same_bytes_every_time,
    a_diff_against_any_base_turns_that_base_into_the_layer,
    an_archive_applied_twice_is_the_later_one_on_top,
    applying_to_a_sealed_or_mounted_layer_is_refused,
    an_opaque_root_hides_everything_below,
    an_opaque_directory_over_nothing_leaves_no_mark,
    sizes_count_each_inode_once,
    a_layer_removed_while_it_is_read_gives_no_whole_archive,
}

fn base(store: &Overlay2) {
    let archive = ArchiveBuilder::new()
        .dir("./", 0o755)
        .dir("etc/", 0o755)
        .file("etc/motd", b"hello\n")
        .file("etc/passwd", b"root:x:0:0\n")
        .dir("usr/", 0o755)
        .dir("usr/bin/", 0o755)
        .file("usr/bin/tool", b"#!/bin/sh\n")
        .hard_link("usr/bin/alias", "usr/bin/tool")
        .symlink("bin", "usr/bin")
        .dir("var/", 0o755)
        .dir("var/cache/", 0o700)
        .file("var/cache/one", b"1")
        .file("var/cache/two", b"22")
        .finish();
    import(store, "base", None, &archive);
}

fn an_import_shows_what_the_archive_has(subject: &Subject) {
    let store = subject.store();
    base(&store);
    with_mount(&store, "base", |path| {
        assert_eq!(subject.names(path), ["bin", "etc", "usr", "var"]);
        assert_eq!(subject.read(&path.join("etc/motd")), b"hello\n");
        assert_eq!(subject.mode(&path.join("var/cache")), 0o700);
    });
    let shown = subject.shown(&store, "base");
    assert_eq!(shown[std::path::Path::new("usr/bin/alias")].nlink, 2);
    assert!(
        shown
            .values()
            .all(|object| (object.uid, object.gid) == (0, 0))
    );
    assert!(
        shown
            .values()
            .all(|object| object.mtime.secs == 1_000_000_000),
        "also directories"
    );

    let child = ArchiveBuilder::new()
        .file("bin/new", b"through the link")
        .file("var/cache/three", b"333")
        .file("etc/.wh.motd", b"")
        .finish();
    let applied = import(&store, "child", Some("base"), &child);
    assert_eq!(applied.summary.archive.entries, 3);
    with_mount(&store, "child", |path| {
        assert_eq!(subject.read(&path.join("usr/bin/new")), b"through the link");
        assert_eq!(subject.names(&path.join("etc")), ["passwd"]);
        assert_eq!(
            subject.names(&path.join("var/cache")),
            ["one", "three", "two"]
        );
        assert_eq!(
            subject.mode(&path.join("var/cache")),
            0o700,
            "an implied parent stays closed"
        );
    });
    assert_eq!(
        changes(&store, "child", &Base::Parent),
        [
            "C /etc",
            "D /etc/motd",
            "C /usr",
            "C /usr/bin",
            "A /usr/bin/new",
            "C /var",
            "C /var/cache",
            "A /var/cache/three"
        ]
    );
    subject.assert_clean(&store);
}

fn a_bad_archive_is_refused_and_leaves_nothing(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    let entry = || ArchiveBuilder::new().file("good", b"good");
    let mut truncated = entry().file("cut", &[7; 5000]).finish();
    truncated.truncate(3000);
    type Expected = fn(&BadReason) -> bool;
    let cases: [(&str, Vec<u8>, Expected); 7] = [
        ("..", entry().file("../victim", b"x").finish(), |r| {
            *r == BadReason::PathEscape
        }),
        (
            "inner ..",
            entry().file("a/../../victim", b"x").finish(),
            |r| *r == BadReason::PathEscape,
        ),
        (
            "hard link out",
            entry().hard_link("h", "../victim").finish(),
            |r| *r == BadReason::LinkEscape,
        ),
        (
            "through a link out",
            entry()
                .symlink("l", "../..")
                .file("l/victim", b"x")
                .finish(),
            |r| *r == BadReason::LinkEscape,
        ),
        ("truncated", truncated, |r| {
            matches!(r, BadReason::Truncated { .. })
        }),
        ("text", b"not an archive, just text\n".repeat(40), |r| {
            matches!(r, BadReason::NotAnArchive { .. })
        }),
        ("nothing", Vec::new(), |r| {
            matches!(r, BadReason::NotAnArchive { .. })
        }),
    ];
    let before = subject.names(subject.dir());
    for parent in [None, Some("base")] {
        for (name, archive, expected) in &cases {
            let error = try_import(&store, "bad", parent, archive).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}: {error}");
            let Error::Apply {
                source: ApplyError::Archive(ArchiveError::Bad(bad)),
                ..
            } = &error
            else {
                panic!("{name}: {error:?}");
            };
            assert!(expected(&bad.reason), "{name}: {bad}");
            assert!(!store.contains(&id("bad")).expect("contains"), "{name}");
            assert_eq!(subject.names(subject.dir()), before, "{name}");
            subject.assert_clean(&store);
        }
    }
    assert!(!store.inspect(&id("base")).expect("inspect").sealed);
}

/// Every kind of change that a program makes.
fn change_everything(subject: &Subject, path: &std::path::Path) {
    subject.rewrite(&path.join("etc/motd"), b"good bye\n");
    subject.write(&path.join("etc/new"), b"new");
    subject.chmod(&path.join("usr/bin/tool"), 0o755);
    subject.unlink(&path.join("var/cache/one"));
    subject.mkdir(&path.join("srv"), 0o2750);
    subject.write(&path.join("srv/a"), b"aa");
    subject.link(&path.join("srv/a"), &path.join("srv/b"));
    subject.symlink(&path.join("srv/c"), "../etc/motd");
    subject.fifo(&path.join("srv/d"));
    subject.set_any_xattr(&path.join("srv/a"), b"r\ned\0");
    subject.rename(&path.join("etc/passwd"), &path.join("etc/shadow"));
}

fn changes_made_through_a_mount_are_listed_exactly(subject: &Subject) {
    let store = subject.store();
    base(&store);
    create(&store, "work", Some("base"));
    with_mount(&store, "work", |path| change_everything(subject, path));
    assert_eq!(
        changes(&store, "work", &Base::Parent),
        [
            "C /etc",
            "C /etc/motd",
            "A /etc/new",
            "D /etc/passwd",
            "A /etc/shadow",
            "A /srv",
            "A /srv/a",
            "A /srv/b",
            "A /srv/c",
            "A /srv/d",
            "C /usr",
            "C /usr/bin",
            "C /usr/bin/tool",
            "C /var",
            "C /var/cache",
            "D /var/cache/one",
        ]
    );
    subject.assert_clean(&store);
}

fn a_diff_imported_elsewhere_shows_the_same_tree(subject: &Subject) {
    let store = subject.store();
    base(&store);
    create(&store, "work", Some("base"));
    with_mount(&store, "work", |path| change_everything(subject, path));
    let archive = diff(&store, "work", &Base::Parent);
    import(&store, "again", Some("base"), &archive);
    assert_same(
        &subject.shown(&store, "work"),
        &subject.shown(&store, "again"),
    );
    assert_eq!(
        changes(&store, "again", &Base::Parent),
        changes(&store, "work", &Base::Parent)
    );
    assert_eq!(
        diff(&store, "again", &Base::Parent),
        archive,
        "a fixed point"
    );
    subject.assert_clean(&store);
}

fn a_replaced_directory_hides_what_was_in_it(subject: &Subject) {
    let store = subject.store();
    base(&store);
    create(&store, "work", Some("base"));
    with_mount(&store, "work", |path| {
        subject.remove_tree(&path.join("var/cache"));
        subject.mkdir(&path.join("var/cache"), 0o755);
        subject.write(&path.join("var/cache/two"), b"other");
        subject.remove_tree(&path.join("usr"));
        subject.write(&path.join("usr"), b"a file now");
    });
    assert_eq!(
        changes(&store, "work", &Base::Parent),
        [
            "C /usr",
            "C /var",
            "C /var/cache",
            "D /var/cache/one",
            "C /var/cache/two"
        ]
    );
    let archive = diff(&store, "work", &Base::Parent);
    import(&store, "again", Some("base"), &archive);
    assert_same(
        &subject.shown(&store, "work"),
        &subject.shown(&store, "again"),
    );
    with_mount(&store, "again", |path| {
        assert_eq!(subject.names(&path.join("var/cache")), ["two"]);
        assert_eq!(subject.read(&path.join("usr")), b"a file now");
    });
    subject.assert_clean(&store);
}

fn a_diff_is_the_same_bytes_every_time(subject: &Subject) {
    let store = subject.store();
    base(&store);
    create(&store, "work", Some("base"));
    with_mount(&store, "work", |path| change_everything(subject, path));
    let first = diff(&store, "work", &Base::Parent);
    assert_eq!(diff(&store, "work", &Base::Parent), first);
    mount(&store, "work");
    assert_eq!(
        diff(&store, "work", &Base::Parent),
        first,
        "also while it is mounted"
    );
    unmount(&store, "work");
    subject.assert_clean(&store);
}

fn a_diff_against_any_base_turns_that_base_into_the_layer(subject: &Subject) {
    let store = subject.store();
    base(&store);
    create(&store, "one", Some("base"));
    with_mount(&store, "one", |path| change_everything(subject, path));
    create(&store, "two", Some("one"));
    with_mount(&store, "two", |path| {
        subject.unlink(&path.join("srv/b"));
        subject.write(&path.join("etc/passwd"), b"back");
    });
    create(&store, "stranger", None);
    with_mount(&store, "stranger", |path| {
        subject.mkdir(&path.join("etc"), 0o700);
        subject.write(&path.join("etc/odd"), b"odd");
        subject.write(&path.join("usr"), b"a file");
    });
    // A file whose other name a later layer hides or copies up goes on counting that name; a tree
    // made in one go does not know it.
    let shown = |name| {
        let mut shown = subject.shown(&store, name);
        shown.values_mut().for_each(|object| object.nlink = 0);
        shown
    };
    let wanted = shown("two");
    for (name, base, below) in [
        ("on-one", Base::Layer(id("one")), Some("one")),
        ("on-base", Base::Layer(id("base")), Some("base")),
        ("on-stranger", Base::Layer(id("stranger")), Some("stranger")),
        ("on-nothing", Base::Empty, None),
    ] {
        let archive = diff(&store, "two", &base);
        import(&store, name, below, &archive);
        assert_same(&wanted, &shown(name));
    }
    subject.assert_clean(&store);
}

fn an_archive_applied_twice_is_the_later_one_on_top(subject: &Subject) {
    let store = subject.store();
    base(&store);
    create(&store, "open", Some("base"));
    let apply = |archive: Vec<u8>| {
        let options = ImportOptions::new();
        store
            .apply(&id("open"), &*archive, options, &mut |_| {})
            .expect("apply")
    };
    apply(
        ArchiveBuilder::new()
            .dir("d/", 0o755)
            .file("d/one", b"1")
            .file("etc/motd", b"first")
            .finish(),
    );
    let link = store.inspect(&id("open")).expect("inspect").link;
    let second = ArchiveBuilder::new()
        .file("d/two", b"2")
        .file("d/.wh.one", b"")
        .file("etc/.wh.motd", b"")
        .dir("var/", 0o711)
        .file("var/.wh..wh..opq", b"")
        .finish();
    apply(second);
    let info = store.inspect(&id("open")).expect("inspect");
    assert_eq!(info.link, link, "the link stays");
    assert!(!info.sealed);
    with_mount(&store, "open", |path| {
        assert_eq!(subject.names(&path.join("d")), ["two"]);
        assert_eq!(subject.names(&path.join("etc")), ["passwd"]);
        assert_eq!(subject.names(&path.join("var")), [""; 0]);
    });
    let before = subject.shown(&store, "open");
    let bad = ArchiveBuilder::new()
        .file("x", b"x")
        .file("../y", b"y")
        .finish();
    let error = store.apply(&id("open"), &*bad, ImportOptions::new(), &mut |_| {});
    assert_eq!(
        error.expect_err("it leads out").kind(),
        ErrorKind::InvalidInput
    );
    assert_same(&before, &subject.shown(&store, "open"));
    subject.assert_clean(&store);
}

fn applying_to_a_sealed_or_mounted_layer_is_refused(subject: &Subject) {
    let store = subject.store();
    base(&store);
    create(&store, "open", Some("base"));
    let archive = ArchiveBuilder::new().file("x", b"x").finish();
    let apply = |name: &str| {
        store
            .apply(&id(name), &*archive, ImportOptions::new(), &mut |_| {})
            .map(|_| ())
    };
    let error = apply("base").expect_err("sealed");
    assert!(matches!(error, Error::Sealed { .. }), "{error}");
    mount(&store, "open");
    let error = apply("open").expect_err("mounted");
    assert!(matches!(error, Error::Mounted { .. }), "{error}");
    unmount(&store, "open");
    apply("open").expect("neither");
    subject.assert_clean(&store);
}

fn an_opaque_root_hides_everything_below(subject: &Subject) {
    let store = subject.store();
    base(&store);
    let archive = ArchiveBuilder::new()
        .file("only", b"only")
        .file(".wh..wh..opq", b"")
        .finish();
    import(&store, "cut", Some("base"), &archive);
    create(&store, "child", Some("cut"));
    for name in ["cut", "child"] {
        with_mount(&store, name, |path| {
            assert_eq!(subject.names(path), ["only"], "{name}");
        });
    }
    let info = store.inspect(&id("cut")).expect("inspect");
    assert_eq!(
        (info.parent, info.root_opaque, info.chain),
        (Some(id("base")), true, Vec::new())
    );
    assert_eq!(
        changes(&store, "cut", &Base::Parent),
        ["D /bin", "D /etc", "A /only", "D /usr", "D /var"]
    );
    let error = store
        .remove(&id("base"), false)
        .expect_err("still the parent");
    assert!(matches!(error, Error::HasChildren { .. }), "{error}");
    let archive = diff(&store, "cut", &Base::Parent);
    import(&store, "again", Some("base"), &archive);
    assert_same(
        &subject.shown(&store, "cut"),
        &subject.shown(&store, "again"),
    );
    subject.assert_clean(&store);
}

/// The mark is for the layers below; a bind mount of a base layer would even show it.
fn an_opaque_directory_over_nothing_leaves_no_mark(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    let first = ArchiveBuilder::new().dir("dir", 0o755).file("dir/old", b"");
    let second = ArchiveBuilder::new()
        .dir("dir", 0o711)
        .file("dir/.wh..wh..opq", b"");
    for archive in [first.finish(), second.finish()] {
        let applied = store.apply(&id("base"), &*archive, ImportOptions::new(), &mut |_| {});
        applied.expect("apply");
    }
    let shown = subject.shown(&store, "base");
    let names: Vec<_> = shown
        .keys()
        .skip(1)
        .map(|path| path.display().to_string())
        .collect();
    assert_eq!(names, ["dir"]);
    for object in shown.values() {
        assert!(object.xattrs.is_empty(), "{object:?}");
    }
    subject.assert_clean(&store);
}

fn sizes_count_each_inode_once(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    with_mount(&store, "base", |path| {
        subject.write(&path.join("five"), b"12345");
        subject.link(&path.join("five"), &path.join("again"));
        subject.mkdir(&path.join("dir"), 0o755);
        subject.symlink(&path.join("dir/link"), "four");
        subject.write(&path.join("empty"), b"");
    });
    let size = store.size(&id("base"), &Base::Parent).expect("size");
    assert_eq!((size.apparent, size.inodes), (9, 4));
    create(&store, "top", Some("base"));
    assert_eq!(
        store
            .size(&id("top"), &Base::Parent)
            .expect("size")
            .apparent,
        0
    );
    let all = store.size(&id("top"), &Base::Empty).expect("size");
    assert_eq!((all.apparent, all.inodes), (9, 4));
    subject.assert_clean(&store);
}

/// Output that removes the layer it is made of as soon as something is written.
struct Removing<'a> {
    store: &'a Overlay2,
    bytes: Vec<u8>,
}

impl std::io::Write for Removing<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        if self.store.contains(&id("base")).expect("contains") {
            self.store.remove(&id("base"), false).expect("remove");
        }
        self.bytes.extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn a_layer_removed_while_it_is_read_gives_no_whole_archive(subject: &Subject) {
    let store = subject.store();
    // More than any buffer holds back.
    let archive = ArchiveBuilder::new().file("large", &[7; 3_000_000]);
    import(&store, "base", None, &archive.file("small", b"x").finish());
    let (store, bytes) = (&store, Vec::new());
    let mut output = Removing { store, bytes };
    let result = store.diff(&id("base"), &Base::Parent, &mut output);
    let error = result.expect_err("it is gone");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let refused = try_import(store, "copy", None, &output.bytes).expect_err("no whole archive");
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    store.reclaim().expect("reclaim");
    subject.assert_clean(store);
}
