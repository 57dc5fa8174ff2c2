//! Metadata, owners, modes, times and extended attributes.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use ovl_diff::{FileKind, HostTree, Node, Timestamp, TreeBackend as _};
use rustix::io::Errno;

use super::{Home, is_root, name, number, skip};

#[test]
fn metadata_is_what_stat_says_of_the_object_itself() {
    let home = Home::new();
    let file = home.file("file", &[7; 5000]);
    let dir = home.subdir("dir");
    fs::hard_link(home.path("file"), home.path("second")).unwrap();
    symlink("file", home.path("link")).unwrap();
    let subjects = [
        ("file", FileKind::Regular, home.entry("second")),
        ("file", FileKind::Regular, Node::File(&file)),
        ("dir", FileKind::Directory, Node::Dir(&dir)),
        ("link", FileKind::Symlink, home.entry("link")),
    ];
    for (path, kind, node) in subjects {
        let found = home.tree.metadata(node).unwrap();
        let expected = fs::symlink_metadata(home.path(path)).unwrap();
        assert_eq!(found.kind, kind);
        assert_eq!(found.is_dir(), expected.is_dir());
        assert_eq!(found.mode, expected.mode() & 0o7777);
        assert_eq!((found.uid, found.gid), (expected.uid(), expected.gid()));
        assert_eq!(u64::from(found.nlink), expected.nlink());
        assert_eq!(
            (found.size, found.blocks),
            (expected.size(), expected.blocks())
        );
        assert_eq!(found.ino, expected.ino());
        let dev = rustix::fs::makedev(found.dev.major, found.dev.minor);
        assert_eq!(dev, expected.dev());
        let time = |time: Timestamp| (time.secs, i64::from(time.nanos));
        assert_eq!(time(found.mtime), (expected.mtime(), expected.mtime_nsec()));
        assert_eq!(time(found.ctime), (expected.ctime(), expected.ctime_nsec()));
    }
    assert_eq!(home.tree.metadata(home.entry("link")).unwrap().size, 4);
    assert_eq!(number(home.tree.metadata(home.entry("none"))), Errno::NOENT);
}

#[test]
fn the_owner_is_set_on_the_object_itself() {
    let home = Home::new();
    let tree = home.tree();
    let file = home.file("file", b"");
    let dir = home.subdir("dir");
    symlink("file", home.path("link")).unwrap();
    for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX)] {
        assert_eq!(
            number(tree.set_owner(home.entry("link"), uid, gid)),
            Errno::INVAL
        );
        assert_eq!(
            number(tree.set_owner(Node::File(&file), uid, gid)),
            Errno::INVAL
        );
    }
    if !is_root() {
        skip("changing owners needs root");
        let other = rustix::process::geteuid().as_raw() + 1;
        let error = number(tree.set_owner(Node::File(&file), other, other));
        assert!(matches!(error, Errno::PERM | Errno::INVAL), "{error}");
        return;
    }
    let owner = |path| {
        let metadata = fs::symlink_metadata(home.path(path)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    tree.set_owner(home.entry("link"), 11, 12).unwrap();
    assert_eq!((owner("link"), owner("file")), ((11, 12), (0, 0)));
    tree.set_mode(Node::File(&file), 0o6755).unwrap();
    tree.set_owner(Node::File(&file), 21, 3_000_000_000)
        .unwrap();
    assert_eq!(
        (owner("file"), home.mode("file")),
        ((21, 3_000_000_000), 0o755)
    );
    tree.set_owner(Node::Dir(&dir), 31, 32).unwrap();
    assert_eq!(owner("dir"), (31, 32));
    tree.set_owner(home.entry("dir"), 0, 0).unwrap();
    assert_eq!(owner("dir"), (0, 0));
}

#[test]
fn the_mode_is_set_on_anything_but_a_link() {
    let home = Home::new();
    let tree = home.tree();
    let file = home.file("file", b"");
    let dir = home.subdir("dir");
    home.fifo("fifo");
    let _socket = UnixListener::bind(home.path("socket")).unwrap();
    symlink("file", home.path("link")).unwrap();
    tree.set_mode(Node::File(&file), 0o4711).unwrap();
    tree.set_mode(Node::Dir(&dir), 0o1777).unwrap();
    assert_eq!((home.mode("file"), home.mode("dir")), (0o4711, 0o1777));
    for entry in ["file", "dir", "fifo", "socket"] {
        // Twice, since the second time there is no permission left.
        for mode in [0, 0o7531, 0] {
            tree.set_mode(home.entry(entry), mode).unwrap();
            assert_eq!(home.mode(entry), mode, "{entry}");
        }
    }
    assert_eq!(
        number(tree.set_mode(home.entry("link"), 0o777)),
        Errno::OPNOTSUPP
    );
    assert_eq!(home.mode("file"), 0);
    assert_eq!(
        number(tree.set_mode(home.entry("none"), 0o777)),
        Errno::NOENT
    );
}

#[test]
fn times_are_set_to_the_nanosecond_and_before_the_epoch() {
    let home = Home::new();
    let tree = home.tree();
    let file = home.file("file", b"");
    let dir = home.subdir("dir");
    home.fifo("fifo");
    symlink("file", home.path("link")).unwrap();
    let subjects = [
        ("file", Node::File(&file)),
        ("dir", Node::Dir(&dir)),
        ("fifo", home.entry("fifo")),
        ("link", home.entry("link")),
    ];
    for (i, (path, node)) in subjects.into_iter().enumerate() {
        let offset = i64::try_from(i).unwrap();
        for (secs, nanos) in [
            (1_600_000_000 + offset, 123_456_789),
            (-1 - offset, 999_999_999),
        ] {
            let mtime = Timestamp { secs, nanos };
            tree.set_mtime(node, mtime).unwrap();
            assert_eq!(tree.metadata(node).unwrap().mtime, mtime, "{path}");
            let metadata = fs::symlink_metadata(home.path(path)).unwrap();
            assert_eq!(
                (metadata.atime(), metadata.atime_nsec()),
                (secs, i64::from(nanos))
            );
        }
    }
    // The link is the last one, and the file was left as it was.
    assert_eq!(tree.metadata(Node::File(&file)).unwrap().mtime.secs, -1);
    // The second and third mean "now" and "leave alone" to the kernel.
    for nanos in [1_000_000_000, 0x3fff_ffff, 0x3fff_fffe, u32::MAX] {
        let mtime = Timestamp { secs: 5, nanos };
        assert_eq!(
            number(tree.set_mtime(Node::File(&file), mtime)),
            Errno::INVAL
        );
        assert_eq!(
            number(tree.set_mtime(home.entry("link"), mtime)),
            Errno::INVAL
        );
    }
    assert_eq!(
        number(tree.set_mtime(home.entry("none"), Timestamp::default())),
        Errno::NOENT
    );
}

/// Asked without what is tested.
fn user_xattrs(home: &Home) -> bool {
    home.subdir("probe");
    let supported = xattr::set(home.path("probe"), "user.probe", b"").is_ok();
    if !supported {
        skip("user attributes: the file system of the temporary directory has none");
    }
    supported
}

#[test]
fn attributes_are_set_listed_read_and_removed() {
    let home = Home::new();
    if !user_xattrs(&home) {
        return;
    }
    let tree = home.tree();
    let file = home.file("file", b"");
    let dir = home.subdir("dir");
    home.subdir("by-name");
    let (a, b) = (name("user.a"), OsStr::from_bytes(b"user.\xff=\n"));
    let large = vec![b'\n'; 500];
    for node in [Node::File(&file), Node::Dir(&dir), home.entry("by-name")] {
        let visible = |node| {
            let mut names = tree.list_xattrs(node).unwrap();
            names.retain(|name| name.as_bytes().starts_with(b"user."));
            names.sort();
            names
        };
        assert!(visible(node).is_empty());
        assert_eq!(tree.xattr(node, a).unwrap(), None);
        assert_eq!(number(tree.remove_xattr(node, a)), Errno::NODATA);
        tree.set_xattr(node, a, b"").unwrap();
        assert_eq!(tree.xattr(node, a).unwrap().as_deref(), Some(&b""[..]));
        tree.set_xattr(node, a, &large).unwrap();
        tree.set_xattr(node, b, b"\0binary\0").unwrap();
        assert_eq!(tree.xattr(node, a).unwrap().as_ref(), Some(&large));
        assert_eq!(
            tree.xattr(node, b).unwrap().as_deref(),
            Some(&b"\0binary\0"[..])
        );
        assert_eq!(visible(node), [a, b]);
        tree.remove_xattr(node, a).unwrap();
        assert_eq!(visible(node), [b]);
        assert_eq!(
            number(tree.set_xattr(node, name("nonsense.a"), b"")),
            Errno::OPNOTSUPP
        );
        assert_eq!(
            number(tree.set_xattr(node, a, &vec![0; 70_000])),
            Errno::TOOBIG
        );
        assert_eq!(
            number(tree.set_xattr(node, name(&"user.x".repeat(50)), b"")),
            Errno::RANGE
        );
    }
    let none = home.entry("none");
    assert_eq!(number(tree.list_xattrs(none)), Errno::NOENT);
    assert_eq!(number(tree.xattr(none, a)), Errno::NOENT);
    assert_eq!(number(tree.set_xattr(none, a, b"")), Errno::NOENT);
    assert_eq!(number(tree.remove_xattr(none, a)), Errno::NOENT);
}

#[test]
fn attributes_of_links_and_special_files_are_their_own() {
    let home = Home::new();
    if !user_xattrs(&home) {
        return;
    }
    let tree = home.tree();
    let file = home.file("file", b"");
    tree.set_xattr(Node::File(&file), name("user.of-file"), b"1")
        .unwrap();
    let has_trusted = is_root() && xattr::set(home.path("probe"), "trusted.probe", b"").is_ok();
    symlink("file", home.path("link")).unwrap();
    home.fifo("fifo");
    for own in ["link", "fifo"] {
        let node = home.entry(own);
        assert!(
            !tree
                .list_xattrs(node)
                .unwrap()
                .contains(&"user.of-file".into())
        );
        assert_eq!(tree.xattr(node, name("user.of-file")).unwrap(), None);
        assert_eq!(
            number(tree.set_xattr(node, name("user.a"), b"1")),
            Errno::PERM
        );
        let trusted = name("trusted.a");
        if has_trusted {
            tree.set_xattr(node, trusted, b"1").unwrap();
            assert_eq!(
                tree.xattr(node, trusted).unwrap().as_deref(),
                Some(&b"1"[..])
            );
            assert!(
                tree.list_xattrs(node)
                    .unwrap()
                    .contains(&"trusted.a".into())
            );
            assert_eq!(tree.xattr(Node::File(&file), trusted).unwrap(), None);
            tree.remove_xattr(node, trusted).unwrap();
            assert_eq!(tree.xattr(node, trusted).unwrap(), None);
        }
    }
    if !has_trusted {
        skip("trusted attributes of links need root in the initial user namespace");
    }
}

#[test]
fn a_file_system_without_attributes_has_an_empty_list() {
    let tree = HostTree::default();
    let proc = tree.open_root(Path::new("/proc")).unwrap();
    let version = tree.open_file(&proc, name("version")).unwrap();
    let entry = Node::Entry(&proc, name("version"));
    for node in [Node::Dir(&proc), Node::File(&version), entry] {
        assert_eq!(tree.list_xattrs(node).unwrap(), Vec::<OsString>::new());
        assert_eq!(tree.xattr(node, name("user.a")).unwrap(), None);
    }
}
