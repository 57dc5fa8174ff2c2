//! Making, linking, renaming and removing entries.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use ovl_diff::{DeviceNumber, FileKind, NodeKind, RenameMode, TreeBackend as _, remove_tree};
use rustix::fs::IFlags;
use rustix::io::Errno;

use super::{Home, is_root, name, number, skip};

/// Run it under any umask: the results are the same.
#[test]
fn new_objects_have_exactly_the_mode_asked_for() {
    let home = Home::new();
    let (tree, root) = (home.tree(), &home.root);
    let modes = [
        0, 0o111, 0o600, 0o644, 0o700, 0o755, 0o777, 0o1777, 0o2775, 0o4755, 0o7777,
    ];
    for mode in modes {
        let (dir, file, fifo) = (
            format!("dir-{mode:o}"),
            format!("file-{mode:o}"),
            format!("fifo-{mode:o}"),
        );
        tree.create_dir(root, name(&dir), mode).unwrap();
        let handle = tree.create_file(root, name(&file), mode).unwrap();
        tree.create_node(root, name(&fifo), NodeKind::Fifo, mode)
            .unwrap();
        for created in [dir, file, fifo] {
            assert_eq!(home.mode(&created), mode, "{created}");
        }
        tree.write_at(&handle, 0, b"writable whatever the mode")
            .unwrap();
    }
}

#[test]
fn a_setgid_parent_does_not_change_the_modes_of_new_objects() {
    let home = Home::new();
    home.tree
        .create_dir(&home.root, name("parent"), 0o2777)
        .unwrap();
    let parent = home.tree.open_dir(&home.root, name("parent")).unwrap();
    home.tree.create_dir(&parent, name("dir"), 0o700).unwrap();
    home.tree.create_file(&parent, name("file"), 0o600).unwrap();
    home.tree
        .create_node(&parent, name("fifo"), NodeKind::Fifo, 0o600)
        .unwrap();
    assert_eq!(home.mode("parent/dir"), 0o700);
    assert_eq!(home.mode("parent/file"), 0o600);
    assert_eq!(home.mode("parent/fifo"), 0o600);
}

#[test]
fn creating_never_replaces_and_never_follows() {
    let home = Home::new();
    let (tree, root) = (home.tree(), &home.root);
    home.file("file", b"kept");
    home.subdir("dir");
    symlink("target", home.path("dangling")).unwrap();
    for taken in ["file", "dir", "dangling"].map(OsStr::new) {
        assert_eq!(number(tree.create_dir(root, taken, 0o755)), Errno::EXIST);
        assert_eq!(number(tree.create_file(root, taken, 0o644)), Errno::EXIST);
        assert_eq!(
            number(tree.create_symlink(root, taken, name("x"))),
            Errno::EXIST
        );
        assert_eq!(
            number(tree.create_node(root, taken, NodeKind::Fifo, 0o644)),
            Errno::EXIST
        );
        assert_eq!(
            number(tree.hard_link(root, name("file"), root, taken)),
            Errno::EXIST
        );
    }
    assert!(!home.path("target").exists());
    assert_eq!(fs::read(home.path("file")).unwrap(), b"kept");
}

#[test]
fn a_symbolic_link_keeps_its_text_to_the_byte() {
    let home = Home::new();
    let (tree, root) = (home.tree(), &home.root);
    let texts = ["x", "../..//a/./b/", "/absolute", &"d/".repeat(500)].map(OsString::from);
    let odd = OsString::from_vec(b"\xfe\n\xff".to_vec());
    for (i, text) in texts.iter().chain([&odd]).enumerate() {
        let link = OsString::from(format!("link-{i}"));
        tree.create_symlink(root, &link, text).unwrap();
        assert_eq!(&tree.read_link(root, &link).unwrap(), text);
    }
    home.file("file", b"");
    assert_eq!(
        number(tree.create_symlink(root, name("empty"), name(""))),
        Errno::NOENT
    );
    let long = "x".repeat(5000);
    assert_eq!(
        number(tree.create_symlink(root, name("long"), name(&long))),
        Errno::NAMETOOLONG
    );
    assert_eq!(number(tree.read_link(root, name("file"))), Errno::INVAL);
    assert_eq!(number(tree.read_link(root, name("none"))), Errno::NOENT);
}

#[test]
fn devices_are_made_with_their_numbers() {
    let home = Home::new();
    let (tree, root) = (home.tree(), &home.root);
    let large = DeviceNumber {
        major: 259,
        minor: 70_000,
    };
    if !is_root() {
        skip("making devices needs root");
        let error = number(tree.create_node(root, name("b"), NodeKind::BlockDevice(large), 0o600));
        assert_eq!(error, Errno::PERM);
        return;
    }
    let whiteout = NodeKind::CharDevice(DeviceNumber::default());
    tree.create_node(root, name("whiteout"), whiteout, 0)
        .unwrap();
    tree.create_node(root, name("char"), NodeKind::CharDevice(large), 0o666)
        .unwrap();
    tree.create_node(root, name("block"), NodeKind::BlockDevice(large), 0o660)
        .unwrap();
    assert!(
        tree.metadata(home.entry("whiteout"))
            .unwrap()
            .is_whiteout_device()
    );
    let char = tree.metadata(home.entry("char")).unwrap();
    assert_eq!(
        (char.kind, char.rdev, char.mode),
        (FileKind::CharDevice, large, 0o666)
    );
    let block = tree.metadata(home.entry("block")).unwrap();
    assert_eq!(
        (block.kind, block.rdev, block.mode),
        (FileKind::BlockDevice, large, 0o660)
    );
}

#[test]
fn a_hard_link_is_another_name_of_the_object_itself() {
    let home = Home::new();
    let (tree, root) = (home.tree(), &home.root);
    home.file("file", b"contents");
    let dir = home.subdir("dir");
    symlink("file", home.path("link")).unwrap();
    tree.hard_link(root, name("file"), &dir, name("second"))
        .unwrap();
    tree.hard_link(root, name("link"), &dir, name("same-link"))
        .unwrap();
    assert_eq!(tree.metadata(home.entry("file")).unwrap().nlink, 2);
    assert_eq!(tree.metadata(home.entry("link")).unwrap().nlink, 2);
    assert_eq!(tree.read_link(&dir, name("same-link")).unwrap(), "file");
    assert_eq!(
        number(tree.hard_link(root, name("dir"), root, name("x"))),
        Errno::PERM
    );
    assert_eq!(
        number(tree.hard_link(root, name("none"), root, name("x"))),
        Errno::NOENT
    );
}

#[test]
fn renaming_replaces_refuses_or_swaps_as_asked() {
    let home = Home::new();
    let (tree, root) = (home.tree(), &home.root);
    home.file("a", b"a");
    home.file("b", b"b");
    let dir = home.subdir("dir");
    let rename = |from, to, mode| tree.rename(root, name(from), root, name(to), mode);
    assert_eq!(
        number(rename("a", "b", RenameMode::NoReplace)),
        Errno::EXIST
    );
    rename("a", "b", RenameMode::Exchange).unwrap();
    assert_eq!(fs::read(home.path("a")).unwrap(), b"b");
    assert_eq!(fs::read(home.path("b")).unwrap(), b"a");
    rename("a", "dir", RenameMode::Exchange).unwrap();
    assert!(home.path("a").is_dir() && home.path("dir").is_file());
    rename("dir", "b", RenameMode::Replace).unwrap();
    assert_eq!(fs::read(home.path("b")).unwrap(), b"b");
    tree.rename(root, name("b"), &dir, name("moved"), RenameMode::NoReplace)
        .unwrap();
    assert!(home.path("a/moved").is_file());
    for mode in [
        RenameMode::Replace,
        RenameMode::NoReplace,
        RenameMode::Exchange,
    ] {
        assert_eq!(number(rename("none", "x", mode)), Errno::NOENT);
    }
    assert_eq!(
        number(rename("a", "none", RenameMode::Exchange)),
        Errno::NOENT
    );
    home.subdir("other");
    let error = number(rename("other", "a", RenameMode::Replace));
    assert!(matches!(error, Errno::NOTEMPTY | Errno::EXIST), "{error}");
    let proc = tree.open_root(Path::new("/proc")).unwrap();
    let away = tree.rename(root, name("a"), &proc, name("x"), RenameMode::Replace);
    assert_eq!(number(away), Errno::XDEV);
}

#[test]
fn removing_takes_the_name_and_never_what_a_link_points_to() {
    let home = Home::new();
    let (tree, root) = (home.tree(), &home.root);
    let dir = home.subdir("dir");
    tree.create_file(&dir, name("file"), 0o600).unwrap();
    symlink("dir", home.path("link")).unwrap();
    assert_eq!(number(tree.unlink(root, name("dir"))), Errno::ISDIR);
    assert_eq!(number(tree.unlink(root, name("none"))), Errno::NOENT);
    assert_eq!(number(tree.remove_dir(root, name("dir"))), Errno::NOTEMPTY);
    assert_eq!(number(tree.remove_dir(root, name("link"))), Errno::NOTDIR);
    assert_eq!(number(tree.remove_dir(root, name("none"))), Errno::NOENT);
    tree.unlink(root, name("link")).unwrap();
    assert!(home.path("dir/file").exists());
    tree.unlink(&dir, name("file")).unwrap();
    tree.remove_dir(root, name("dir")).unwrap();
    assert!(tree.read_dir(root).unwrap().is_empty());
}

#[test]
fn immutable_files_and_directories_are_removed_with_their_tree() {
    let home = Home::new();
    fs::create_dir_all(home.path("tree/a/b")).unwrap();
    for file in ["tree/a/b/immutable", "tree/a/b/append", "tree/a/plain"] {
        fs::write(home.path(file), "contents").unwrap();
    }
    let set = |path: &str, flags| {
        let file = fs::File::open(home.path(path)).unwrap();
        // The others say how the file system keeps the file, and stay.
        let flags = flags | rustix::fs::ioctl_getflags(&file)?;
        rustix::fs::ioctl_setflags(file, flags)
    };
    let (immutable, append) = (IFlags::IMMUTABLE, IFlags::APPEND);
    if let Err(error) = set("tree/a/b/immutable", immutable) {
        skip(&format!("no immutable files here: {error}"));
        return;
    }
    set("tree/a/b/append", append).unwrap();
    set("tree/a/b", immutable).unwrap();
    set("tree/a", append).unwrap();
    set("tree", immutable).unwrap();
    assert_eq!(
        number(home.tree().unlink(&home.subdir_at("tree/a"), name("plain"))),
        Errno::PERM
    );
    remove_tree(home.tree(), &home.root, name("tree")).unwrap();
    assert!(home.tree().read_dir(&home.root).unwrap().is_empty());
}

#[test]
fn an_immutable_tree_deeper_than_any_path_is_removed() {
    let home = Home::new();
    let (tree, mut dir, depth) = (home.tree(), home.root.clone(), 300);
    let mut dirs = Vec::new();
    for _ in 0..depth {
        tree.create_dir(&dir, name("deep"), 0o755).unwrap();
        dir = tree.open_dir(&dir, name("deep")).unwrap();
        dirs.push(dir.clone());
    }
    for (index, _) in dirs.iter().enumerate().filter(|(index, _)| index % 50 == 0) {
        let path: std::path::PathBuf = vec!["deep"; index + 1].iter().collect();
        let file = fs::File::open(home.path(path.to_str().unwrap())).unwrap();
        let flags = rustix::fs::ioctl_getflags(&file).map(|flags| flags | IFlags::IMMUTABLE);
        let set = flags.and_then(|flags| rustix::fs::ioctl_setflags(file, flags));
        if let Err(error) = set {
            skip(&format!("no immutable directories here: {error}"));
            return;
        }
    }
    drop(dirs);
    remove_tree(tree, &home.root, name("deep")).unwrap();
    assert!(tree.read_dir(&home.root).unwrap().is_empty());
}

/// Whoever opens it sees the directory or none, wherever it goes meanwhile.
#[test]
fn a_directory_that_moves_away_is_never_taken_for_another_mount() {
    const MOVES: usize = 20_000;
    let home = Home::new();
    let (here, there) = (home.subdir("here"), home.subdir("there"));
    let (tree, moving) = (home.tree(), name("moving"));
    tree.create_dir(&here, moving, 0o700).unwrap();
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            for _ in 0..MOVES {
                for (from, to) in [(&here, &there), (&there, &here)] {
                    let mode = RenameMode::NoReplace;
                    tree.rename(from, moving, to, moving, mode).unwrap();
                }
            }
        });
        while !mover.is_finished() {
            let opened = tree.open_dir(&here, moving);
            if opened.is_err() {
                assert_eq!(number(opened), Errno::NOENT);
            }
        }
    });
}
