//! Contents of files and their way to the disk.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, symlink};
use std::path::Path;

use ovl_diff::{Node, TreeBackend as _};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{Home, kind, name, number, skip};

const MIB: u64 = 1024 * 1024;

#[test]
fn data_is_written_and_read_where_told() {
    let home = Home::new();
    let tree = home.tree();
    let file = tree.create_file(&home.root, name("file"), 0o600).unwrap();
    tree.write_at(&file, 5, b"world").unwrap();
    tree.write_at(&file, 0, b"hello").unwrap();
    tree.write_at(&file, 100, b"").unwrap();
    assert_eq!(fs::read(home.path("file")).unwrap(), b"helloworld");
    tree.set_len(&file, 12).unwrap();
    let read = tree.open_file(&home.root, name("file")).unwrap();
    let mut buffer = [9; 4];
    assert_eq!(tree.read_at(&read, 8, &mut buffer).unwrap(), 4);
    assert_eq!(&buffer, b"ld\0\0");
    assert_eq!(tree.read_at(&read, 11, &mut buffer).unwrap(), 1);
    assert_eq!(tree.read_at(&read, 12, &mut buffer).unwrap(), 0);
    assert_eq!(tree.read_at(&read, 0, &mut []).unwrap(), 0);
    tree.set_len(&file, 2).unwrap();
    assert_eq!(fs::read(home.path("file")).unwrap(), b"he");
    let error = number(tree.set_len(&file, u64::MAX));
    assert!(matches!(error, Errno::INVAL | Errno::FBIG), "{error}");
}

#[test]
fn extents_of_data_are_found_between_holes() {
    let home = Home::new();
    let tree = home.tree();
    let file = tree.create_file(&home.root, name("file"), 0o600).unwrap();
    assert_eq!(tree.next_extent(&file, 0).unwrap(), None);
    tree.set_len(&file, 4 * MIB).unwrap();
    tree.write_at(&file, MIB, &[1; 65536]).unwrap();
    tree.write_at(&file, 2 * MIB, &[2; 65536]).unwrap();
    let first = tree.next_extent(&file, 0).unwrap().unwrap();
    // The same without what is tested.
    let theirs = fs::File::create(home.path("theirs")).unwrap();
    theirs.set_len(4 * MIB).unwrap();
    theirs.write_all_at(&[1; 65536], MIB).unwrap();
    if rustix::fs::seek(&theirs, SeekFrom::Data(0)) != Ok(MIB) {
        skip("extents: the file system of the temporary directory knows no holes");
        assert_eq!(first, 0..4 * MIB);
        return;
    }
    let second = 2 * MIB..2 * MIB + 65536;
    assert_eq!(first, MIB..MIB + 65536);
    assert_eq!(
        tree.next_extent(&file, MIB + 4096).unwrap(),
        Some(MIB + 4096..first.end)
    );
    assert_eq!(
        tree.next_extent(&file, first.end).unwrap(),
        Some(second.clone())
    );
    assert_eq!(tree.next_extent(&file, second.end).unwrap(), None);
    assert_eq!(tree.next_extent(&file, 4 * MIB).unwrap(), None);
    assert_eq!(tree.next_extent(&file, u64::MAX).unwrap(), None);
}

#[test]
fn data_is_shared_or_the_file_system_is_said_to_be_unable() {
    let home = Home::new();
    let from = home.file("from", &[5; 10_000]);
    let to = home
        .tree
        .create_file(&home.root, name("to"), 0o600)
        .unwrap();
    // The same without what is tested.
    let theirs = fs::File::create(home.path("theirs")).unwrap();
    let theirs = rustix::fs::ioctl_ficlone(theirs, fs::File::open(home.path("from")).unwrap());
    match home.tree.share_data(&from, &to) {
        Ok(()) => assert_eq!(fs::read(home.path("to")).unwrap(), [5; 10_000]),
        Err(error) => {
            assert!(theirs.is_err(), "{error:?}");
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            assert_eq!(fs::read(home.path("to")).unwrap(), b"");
            skip("sharing data: the file system of the temporary directory cannot");
        }
    }
    let proc = home.tree.open_root(Path::new("/proc")).unwrap();
    let elsewhere = home.tree.open_file(&proc, name("version")).unwrap();
    let error = home.tree.share_data(&elsewhere, &to).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error:?}");
}

#[test]
fn files_and_directories_are_synced_open_or_by_name() {
    let home = Home::new();
    let tree = home.tree();
    let file = tree.create_file(&home.root, name("file"), 0o600).unwrap();
    tree.write_at(&file, 0, b"durable").unwrap();
    let read = tree.open_file(&home.root, name("file")).unwrap();
    home.subdir("dir");
    home.fifo("fifo");
    symlink("file", home.path("link")).unwrap();
    symlink("dir", home.path("dir-link")).unwrap();
    for node in [
        Node::File(&file),
        Node::File(&read),
        Node::Dir(&home.root),
        home.entry("file"),
        home.entry("dir"),
    ] {
        tree.sync(node).unwrap();
    }
    assert_eq!(number(tree.sync(home.entry("link"))), Errno::LOOP);
    assert_eq!(number(tree.sync(home.entry("dir-link"))), Errno::LOOP);
    assert_eq!(
        kind(tree.sync(home.entry("fifo"))),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(number(tree.sync(home.entry("none"))), Errno::NOENT);
    assert!(
        fs::symlink_metadata(home.path("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
}
