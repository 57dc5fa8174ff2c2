//! Names, handles, opening and listing.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use ovl_diff::{
    DeviceNumber, DirHandle, FileHandle, FileKind, HostTree, Node, NodeKind, RenameMode, Timestamp,
    TreeBackend as _,
};
use rustix::io::Errno;

use super::{Home, is_root, kind, name, number, skip};

#[test]
fn a_name_that_is_not_one_component_is_refused_by_every_step() {
    let home = Home::new();
    let (tree, root) = (home.tree(), &home.root);
    let file = home.file("file", b"");
    let fine = name("fine");
    let refused = |result: io::Result<()>, step: &str, bad: &OsStr| {
        let error = result.expect_err(step);
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{step} {bad:?}");
        assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
    };
    for bad in ["", ".", "..", "/", "a/b", "../x", "/etc", "a/", "nul\0"].map(OsStr::new) {
        let node = Node::Entry(root, bad);
        refused(tree.open_dir(root, bad).map(drop), "open_dir", bad);
        refused(tree.metadata(node).map(drop), "metadata", bad);
        refused(tree.create_dir(root, bad, 0o700), "create_dir", bad);
        refused(
            tree.create_file(root, bad, 0o600).map(drop),
            "create_file",
            bad,
        );
        refused(tree.open_file(root, bad).map(drop), "open_file", bad);
        refused(tree.create_symlink(root, bad, fine), "create_symlink", bad);
        refused(tree.read_link(root, bad).map(drop), "read_link", bad);
        refused(
            tree.create_node(root, bad, NodeKind::Fifo, 0o600),
            "create_node",
            bad,
        );
        refused(tree.hard_link(root, bad, root, fine), "hard_link from", bad);
        refused(
            tree.hard_link(root, name("file"), root, bad),
            "hard_link to",
            bad,
        );
        refused(
            tree.rename(root, bad, root, fine, RenameMode::Replace),
            "rename from",
            bad,
        );
        refused(
            tree.rename(root, name("file"), root, bad, RenameMode::Replace),
            "rename to",
            bad,
        );
        refused(tree.unlink(root, bad), "unlink", bad);
        refused(tree.remove_dir(root, bad), "remove_dir", bad);
        refused(tree.set_owner(node, 0, 0), "set_owner", bad);
        refused(tree.set_mode(node, 0o600), "set_mode", bad);
        refused(tree.set_mtime(node, Timestamp::default()), "set_mtime", bad);
        refused(tree.list_xattrs(node).map(drop), "list_xattrs", bad);
        refused(tree.xattr(node, name("user.x")).map(drop), "xattr", bad);
        refused(tree.set_xattr(node, name("user.x"), b""), "set_xattr", bad);
        refused(tree.remove_xattr(node, name("user.x")), "remove_xattr", bad);
        refused(tree.sync(node), "sync", bad);
    }
    assert_eq!(tree.read_dir(root).unwrap().len(), 1);
    drop(file);
}

#[test]
fn a_handle_of_another_backend_is_refused() {
    let home = Home::new();
    let (tree, dir) = (home.tree(), DirHandle::new("not a descriptor"));
    let file = FileHandle::new(7_u8);
    assert_eq!(kind(tree.read_dir(&dir)), io::ErrorKind::InvalidInput);
    assert_eq!(
        kind(tree.metadata(Node::Dir(&dir))),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(
        kind(tree.metadata(Node::Entry(&dir, name("x")))),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(
        kind(tree.sync(Node::File(&file))),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(
        kind(tree.write_at(&file, 0, b"x")),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(kind(HostTree::dir_fd(&dir)), io::ErrorKind::InvalidInput);
}

#[test]
fn a_root_is_opened_through_links_but_only_by_an_absolute_path() {
    let home = Home::new();
    home.subdir("real");
    home.file("file", b"");
    symlink("real", home.path("link")).unwrap();
    let through = home.tree.open_root(&home.path("link")).unwrap();
    let ino = home.tree.metadata(Node::Dir(&through)).unwrap().ino;
    assert_eq!(ino, fs::metadata(home.path("real")).unwrap().ino());
    assert_eq!(
        kind(home.tree.open_root(Path::new("tmp"))),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(
        number(home.tree.open_root(&home.path("none"))),
        Errno::NOENT
    );
    assert_eq!(
        number(home.tree.open_root(&home.path("file"))),
        Errno::NOTDIR
    );
}

#[test]
fn a_directory_is_opened_only_if_it_is_one() {
    let home = Home::new();
    let (tree, root) = (home.tree(), &home.root);
    home.subdir("dir");
    home.file("file", b"");
    home.fifo("fifo");
    symlink("dir", home.path("link")).unwrap();
    symlink("/", home.path("absolute")).unwrap();
    for link in ["link", "absolute"] {
        let error = number(tree.open_dir(root, name(link)));
        assert!(
            matches!(error, Errno::NOTDIR | Errno::LOOP),
            "{link}: {error}"
        );
    }
    assert_eq!(number(tree.open_dir(root, name("file"))), Errno::NOTDIR);
    assert_eq!(number(tree.open_dir(root, name("fifo"))), Errno::NOTDIR);
    assert_eq!(number(tree.open_dir(root, name("none"))), Errno::NOENT);
    assert_eq!(
        number(tree.open_dir(root, name(&"n".repeat(256)))),
        Errno::NAMETOOLONG
    );
}

#[test]
fn a_directory_of_another_mount_is_not_entered() {
    let tree = HostTree::default();
    let root = tree.open_root(Path::new("/")).unwrap();
    assert_eq!(number(tree.open_dir(&root, name("proc"))), Errno::XDEV);
    assert_eq!(
        number(tree.sync(Node::Entry(&root, name("proc")))),
        Errno::XDEV
    );
}

#[test]
fn handles_stay_valid_when_their_names_change() {
    let home = Home::new();
    let (tree, root) = (home.tree(), &home.root);
    let dir = home.subdir("dir");
    let file = home.file("file", b"contents");
    tree.rename(root, name("dir"), root, name("moved"), RenameMode::Replace)
        .unwrap();
    tree.create_dir(&dir, name("inner"), 0o755).unwrap();
    assert!(home.path("moved/inner").is_dir());
    tree.unlink(root, name("file")).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(tree.read_at(&file, 0, &mut buffer).unwrap(), 8);
    assert_eq!(tree.metadata(Node::File(&file)).unwrap().nlink, 0);
    tree.remove_dir(&dir, name("inner")).unwrap();
    tree.remove_dir(root, name("moved")).unwrap();
    assert_eq!(
        number(tree.create_dir(&dir, name("late"), 0o755)),
        Errno::NOENT
    );
}

#[test]
fn handles_do_not_leak_into_other_programs() {
    let home = Home::new();
    let dir = home.subdir("dir");
    for handle in [&home.root, &dir] {
        let flags = rustix::io::fcntl_getfd(HostTree::dir_fd(handle).unwrap()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[test]
fn a_listing_has_every_entry_with_its_kind_and_inode() {
    let home = Home::new();
    let odd = OsString::from_vec(b"\xff new\nline".to_vec());
    fs::write(home.dir.path().join(&odd), b"").unwrap();
    home.subdir("dir");
    home.fifo("fifo");
    symlink("nowhere", home.path("link")).unwrap();
    let _socket = UnixListener::bind(home.path("socket")).unwrap();
    let mut expected = vec![
        (name("dir"), FileKind::Directory),
        (name("fifo"), FileKind::Fifo),
        (name("link"), FileKind::Symlink),
        (name("socket"), FileKind::Socket),
        (odd.as_os_str(), FileKind::Regular),
    ];
    if is_root() {
        let whiteout = NodeKind::CharDevice(DeviceNumber::default());
        home.tree
            .create_node(&home.root, name("char"), whiteout, 0)
            .unwrap();
        expected.insert(0, (name("char"), FileKind::CharDevice));
    } else {
        skip("listing a device needs root");
    }
    let mut entries = home.tree.read_dir(&home.root).unwrap();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let found: Vec<_> = entries
        .iter()
        .map(|entry| (entry.name.as_os_str(), entry.kind))
        .collect();
    assert_eq!(found, expected);
    for entry in &entries {
        let path = home.dir.path().join(&entry.name);
        assert_eq!(entry.ino, fs::symlink_metadata(path).unwrap().ino());
    }
}

#[test]
fn large_listings_are_whole_again_and_again_and_side_by_side() {
    let home = Home::new();
    let mut expected: Vec<OsString> = (0..3000).map(|i| format!("{i:0>60}").into()).collect();
    for entry in &expected {
        home.tree.create_file(&home.root, entry, 0o600).unwrap();
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..3 {
                    let entries = home.tree.clone().read_dir(&home.root).unwrap();
                    let mut names: Vec<_> = entries.into_iter().map(|entry| entry.name).collect();
                    names.sort();
                    assert_eq!(names, expected);
                }
            });
        }
    });
    home.tree
        .unlink(&home.root, &expected.pop().unwrap())
        .unwrap();
    assert_eq!(
        home.tree.read_dir(&home.root).unwrap().len(),
        expected.len()
    );
}

#[test]
fn only_a_regular_file_is_opened_and_nothing_blocks() {
    let home = Home::new();
    let (tree, root) = (home.tree(), &home.root);
    home.file("file", b"contents");
    home.subdir("dir");
    home.fifo("fifo");
    let _socket = UnixListener::bind(home.path("socket")).unwrap();
    symlink("file", home.path("link")).unwrap();
    assert_eq!(number(tree.open_file(root, name("link"))), Errno::LOOP);
    assert_eq!(number(tree.open_file(root, name("none"))), Errno::NOENT);
    for other in ["dir", "fifo", "socket"] {
        let error = tree.open_file(root, name(other)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{other}");
    }
    let file = tree.open_file(root, name("file")).unwrap();
    assert_eq!(number(tree.write_at(&file, 0, b"x")), Errno::BADF);
}

#[test]
fn a_device_is_described_and_never_opened() {
    let tree = HostTree::default();
    let dev = tree.open_root(Path::new("/dev")).unwrap();
    let null = tree.metadata(Node::Entry(&dev, name("null"))).unwrap();
    assert_eq!(null.kind, FileKind::CharDevice);
    assert_eq!(null.rdev, DeviceNumber { major: 1, minor: 3 });
    assert!(!null.is_whiteout_device());
    assert_eq!(
        kind(tree.open_file(&dev, name("null"))),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(
        kind(tree.sync(Node::Entry(&dev, name("null")))),
        io::ErrorKind::InvalidInput
    );
}
