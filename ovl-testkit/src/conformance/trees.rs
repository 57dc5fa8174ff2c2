//! What a mounted tree answers to changes: rules of Linux that the differential run has found.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use ovl_diff::{Node, NodeKind, RenameMode, Timestamp};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{Base, FsType, MountRequest};
use ovl_mount::OverlayOptions;
use rustix::io::Errno;

use super::support::{create, id, mount, unmount, with_mount};
use super::{Skip, Subject, list};

list! {
    redirects_are_refused_by_mounts_that_do_not_follow_them,
    renames_onto_what_is_there_are_refused_as_by_the_kernel,
    a_refused_rename_moves_nothing_and_ext4_alone_touches_the_directory,
    an_exchange_of_two_names_of_one_file_changes_nothing,
    what_exists_is_told_before_what_is_read_only,
    new_objects_take_the_group_of_a_setgid_directory,
    whiteouts_of_one_mount_are_one_inode,
    small_files_are_read_whole_or_refused,
    a_directory_lists_what_came_since_it_was_opened,
}

impl Subject {
    fn set_mtime(&self, dir: &Path, time: Timestamp) {
        let handle = self.tree().open_root(dir).expect("a directory");
        let set = self.tree().set_mtime(Node::Dir(&handle), time);
        set.unwrap_or_else(|error| panic!("set the time of {}: {error}", dir.display()));
    }

    fn mtime(&self, dir: &Path) -> Timestamp {
        let handle = self.tree().open_root(dir).expect("a directory");
        let found = self.tree().metadata(Node::Dir(&handle));
        found.expect("it is open").mtime
    }
}

/// A directory of this layer and one of the layer below, on a writable mount.
fn two_directories(subject: &Subject) -> (Overlay2, PathBuf) {
    let store = subject.store();
    create(&store, "base", None);
    with_mount(&store, "base", |path| {
        subject.mkdir(&path.join("lower"), 0o755);
        subject.write(&path.join("lower/file"), b"");
        subject.write(&path.join("file"), b"");
    });
    create(&store, "top", Some("base"));
    let path = mount(&store, "top");
    subject.mkdir(&path.join("upper"), 0o755);
    subject.write(&path.join("upper/file"), b"");
    (store, path)
}

fn try_rename(subject: &Subject, from: &Path, to: &Path) -> Option<Errno> {
    let open = |path: &Path| {
        let parent = path.parent().expect("a path with a parent");
        subject.tree().open_root(parent).expect("it is there")
    };
    let (from_dir, to_dir) = (open(from), open(to));
    let (from, to) = (
        from.file_name().unwrap_or_default(),
        to.file_name().unwrap_or_default(),
    );
    let renamed = subject
        .tree()
        .rename(&from_dir, from, &to_dir, to, RenameMode::Replace);
    renamed.err().and_then(|error| Errno::from_io_error(&error))
}

fn redirects_are_refused_by_mounts_that_do_not_follow_them(subject: &Subject) {
    let identity = subject.kernel().system().identity().expect("an identity");
    if identity.user_namespace {
        subject.skip(Skip::whole(
            "redirects are attributes that anybody can write here, and never followed",
        ));
        return;
    }
    let features = subject.kernel().mount().features().expect("features");
    if !features.redirect_dir {
        return subject.skip(Skip::whole("the kernel makes no redirects"));
    }
    let (store, _) = two_directories(subject);
    unmount(&store, "top");
    let options = OverlayOptions::default()
        .with("redirect_dir=on")
        .expect("it is one");
    let request = MountRequest::new().options(options);
    let path = store.mount(&id("top"), &request).expect("mount");
    subject.rename(&path.join("lower"), &path.join("moved"));
    assert_eq!(subject.names(&path.join("moved")), ["file"]);
    unmount(&store, "top");
    with_mount(&store, "top", |path| {
        let dir = subject.tree().open_root(path).expect("open");
        let opened = subject.tree().open_dir(&dir, "moved".as_ref());
        let error = opened.expect_err("it would show what is below another name");
        assert_eq!(Errno::from_io_error(&error), Some(Errno::PERM), "{error}");
    });
    subject.assert_clean(&store);
}

fn renames_onto_what_is_there_are_refused_as_by_the_kernel(subject: &Subject) {
    let (store, path) = two_directories(subject);
    let at = |name: &str| path.join(name);
    subject.link(&at("upper/file"), &at("same"));
    for (from, to, expected) in [
        ("lower", "lower", None),
        ("upper", "upper", None),
        ("same", "upper/file", None),
        ("missing", "upper", Some(Errno::NOENT)),
        ("upper", "upper/inside", Some(Errno::INVAL)),
        ("upper/file", "upper", Some(Errno::NOTEMPTY)),
        ("file", "upper", Some(Errno::ISDIR)),
        ("upper", "file", Some(Errno::NOTDIR)),
        ("lower", "file", Some(Errno::NOTDIR)),
        ("lower", "moved", Some(Errno::XDEV)),
        ("upper", "lower", Some(Errno::NOTEMPTY)),
    ] {
        let found = try_rename(subject, &at(from), &at(to));
        assert_eq!(found, expected, "{from} to {to}");
    }
    // Two names of one inode: nothing was done.
    assert_eq!(subject.names(&path), ["file", "lower", "same", "upper"]);
    unmount(&store, "top");
    subject.assert_clean(&store);
}

fn a_refused_rename_moves_nothing_and_ext4_alone_touches_the_directory(subject: &Subject) {
    let (store, path) = two_directories(subject);
    let at = |name: &str| path.join(name);
    // The new one is of the upper layer alone, and its going would leave a whiteout.
    subject.remove_tree(&at("lower"));
    subject.mkdir(&at("lower"), 0o755);
    subject.mkdir(&at("upper/full"), 0o755);
    subject.write(&at("upper/full/file"), b"");
    // Going, this one would leave nothing.
    subject.mkdir(&at("upper/plain"), 0o755);
    let dirs = [path.clone(), at("upper"), at("upper/full"), at("lower")];
    let old = Timestamp { secs: 1, nanos: 7 };
    for dir in &dirs {
        subject.set_mtime(dir, old);
    }
    // What the file systems say is the same but for XFS.
    let tree = subject.tree();
    let root = tree.open_root(subject.dir()).expect("open");
    let fs_type = subject.kernel().system().fs_type(&root).expect("a type");
    let occupied = match fs_type {
        FsType::XFS => Errno::EXIST,
        _ => Errno::NOTEMPTY,
    };
    for (from, touches) in [("upper/plain", false), ("lower", fs_type == FsType::EXT)] {
        let found = try_rename(subject, &at(from), &at("upper/full"));
        assert_eq!(found, Some(occupied), "{from}");
        let touched = dirs.iter().filter(|dir| subject.mtime(dir) != old);
        let touched: Vec<_> = touched.collect();
        let expected = if touches { vec![&path] } else { Vec::new() };
        assert_eq!(touched, expected, "{from} on {}", fs_type.name());
    }
    assert_eq!(subject.names(&path), ["file", "lower", "upper"]);
    assert_eq!(subject.names(&at("lower")), [""; 0]);
    assert_eq!(subject.names(&at("upper")), ["file", "full", "plain"]);
    assert_eq!(subject.names(&at("upper/full")), ["file"]);
    unmount(&store, "top");
    subject.assert_clean(&store);
}

fn an_exchange_of_two_names_of_one_file_changes_nothing(subject: &Subject) {
    let (store, top) = two_directories(subject);
    create(&store, "plain", None);
    let old = Timestamp { secs: 1, nanos: 1 };
    // A base layer's mount is a bind, where the file system is asked itself.
    for root in [&top, &mount(&store, "plain")] {
        let (file, dir) = (root.join("new"), root.join("dir"));
        subject.write(&file, b"x");
        subject.mkdir(&dir, 0o755);
        subject.link(&file, &dir.join("other"));
        subject.set_mtime(&dir, old);
        let tree = subject.tree();
        let (root, inner) = [root, &dir]
            .map(|dir| tree.open_root(dir).expect("open"))
            .into();
        let (new, other) = (OsStr::new("new"), OsStr::new("other"));
        for (from, to) in [
            ((&root, new), (&inner, other)),
            ((&inner, other), (&inner, other)),
        ] {
            let done = tree.rename(from.0, from.1, to.0, to.1, RenameMode::Exchange);
            done.expect("exchange");
            assert_eq!(subject.mtime(&dir), old);
        }
    }
    for name in ["top", "plain"] {
        unmount(&store, name);
    }
    subject.assert_clean(&store);
}

fn what_exists_is_told_before_what_is_read_only(subject: &Subject) {
    let (store, _) = two_directories(subject);
    unmount(&store, "top");
    create(&store, "child", Some("top"));
    for layer in ["base", "top"] {
        let path = mount(&store, layer);
        let tree = subject.tree();
        let dir = tree.open_root(&path).expect("open");
        let name = |name: &'static str| OsStr::new(name);
        let told = |result: std::io::Result<()>| {
            result.err().and_then(|error| Errno::from_io_error(&error))
        };
        let file = |name| tree.create_file(&dir, name, 0o600).map(drop);
        assert_eq!(told(file(name("file"))), Some(Errno::EXIST));
        assert_eq!(told(file(name("new"))), Some(Errno::ROFS));
        assert_eq!(
            told(tree.create_dir(&dir, name("file"), 0o700)),
            Some(Errno::EXIST)
        );
        let link = |from, to| told(tree.hard_link(&dir, name(from), &dir, name(to)));
        assert_eq!(link("missing", "file"), Some(Errno::NOENT));
        assert_eq!(link("file", "lower"), Some(Errno::EXIST));
        assert_eq!(link("file", "new"), Some(Errno::ROFS));
        let gone = |at| told(tree.remove_xattr(Node::Entry(&dir, name(at)), name("user.none")));
        assert_eq!(gone("file"), Some(Errno::ROFS));
        assert_eq!(gone("missing"), Some(Errno::NOENT));
        drop(dir);
        unmount(&store, layer);
    }
    let path = mount(&store, "child");
    let dir = subject.tree().open_root(&path).expect("open");
    let linked = subject
        .tree()
        .hard_link(&dir, "lower".as_ref(), &dir, "file".as_ref());
    let error = linked.expect_err("it exists, and is a directory");
    assert_eq!(Errno::from_io_error(&error), Some(Errno::EXIST), "{error}");
    drop(dir);
    unmount(&store, "child");
    subject.assert_clean(&store);
}

fn new_objects_take_the_group_of_a_setgid_directory(subject: &Subject) {
    let identity = subject.kernel().system().identity().expect("an identity");
    if !identity.gids.iter().any(|ids| ids.contains(&7)) {
        subject.skip(Skip::whole("there is no second group here"));
        return;
    }
    let (store, path) = two_directories(subject);
    for dir in ["lower", "upper"] {
        let dir = path.join(dir);
        subject.chown(&dir, 0, 7);
        subject.chmod(&dir, 0o2755);
        subject.write(&dir.join("new"), b"");
        subject.mkdir(&dir.join("dir"), 0o755);
        assert_eq!(subject.owner(&dir.join("new")), (0, 7));
        assert_eq!(subject.owner(&dir.join("dir")), (0, 7));
        assert_eq!(subject.owner(&dir.join("file")), (0, 0));
    }
    unmount(&store, "top");
    subject.assert_clean(&store);
}

fn whiteouts_of_one_mount_are_one_inode(subject: &Subject) {
    let (store, path) = two_directories(subject);
    subject.unlink(&path.join("lower/file"));
    subject.unlink(&path.join("file"));
    unmount(&store, "top");
    let size = store.size(&id("top"), &Base::Parent).expect("size");
    // Two directories, a file, and both whiteouts.
    assert_eq!(size.inodes, 4);
    subject.assert_clean(&store);
}

fn small_files_are_read_whole_or_refused(subject: &Subject) {
    const MAX: usize = 40_000;
    let store = subject.store();
    create(&store, "base", None);
    with_mount(&store, "base", |path| {
        let tree = subject.tree();
        let dir = tree.open_root(path).expect("open");
        let read = |name: &str| tree.read_small_file(&dir, OsStr::new(name), MAX);
        for len in [0, 1, 4096, 16_383, 16_384, 16_385, 32_768, MAX] {
            let contents: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            subject.write(&path.join("file"), &contents);
            assert!(read("file").expect("read") == contents, "{len} bytes");
            subject.unlink(&path.join("file"));
        }
        subject.write(&path.join("long"), &[7; MAX + 1]);
        subject.mkdir(&path.join("dir"), 0o755);
        tree.create_symlink(&dir, "symlink".as_ref(), "long".as_ref())
            .expect("symlink");
        tree.create_node(&dir, "fifo".as_ref(), NodeKind::Fifo, 0o644)
            .expect("fifo");
        for (name, kind) in [
            ("long", io::ErrorKind::InvalidData),
            ("dir", io::ErrorKind::InvalidInput),
            ("fifo", io::ErrorKind::InvalidInput),
            ("none", io::ErrorKind::NotFound),
        ] {
            let error = read(name).expect_err("not such a file");
            assert_eq!(error.kind(), kind, "{name}: {error}");
        }
        let error = read("symlink").expect_err("not a file");
        assert_eq!(Errno::from_io_error(&error), Some(Errno::LOOP), "{error}");
    });
    subject.assert_clean(&store);
}

fn a_directory_lists_what_came_since_it_was_opened(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    with_mount(&store, "base", |path| {
        let tree = subject.tree();
        let dir = tree.open_root(path).expect("open");
        let names = || {
            let entries = tree.read_dir(&dir).expect("list");
            let mut names: Vec<_> = entries.into_iter().map(|entry| entry.name).collect();
            names.sort();
            names
        };
        assert!(names().is_empty());
        let mut expected = Vec::new();
        // More than one call of the system gives.
        for number in 0..2000 {
            let name = OsString::from(format!("a name that is not as short as most-{number:04}"));
            let file = tree.create_file(&dir, &name, 0o600);
            file.expect("create");
            expected.push(name);
        }
        for _ in 0..2 {
            assert!(names() == expected);
        }
        // Clones share what the system has open, and each shows everything.
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..8).for_each(|_| assert!(names() == expected)));
            }
        });
        tree.unlink(&dir, &expected.remove(0)).expect("unlink");
        assert!(names() == expected);
    });
    subject.assert_clean(&store);
}
