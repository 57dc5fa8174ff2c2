//! Plain trees: the error numbers of Linux.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use ovl_diff::{DeviceNumber, DirHandle, Node, NodeKind, RenameMode, Timestamp, TreeBackend};
use ovl_testkit::{KernelProfile, MockKernel};
use rustix::io::Errno;

pub(crate) fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

pub(crate) fn kernel() -> (MockKernel, DirHandle) {
    let kernel = MockKernel::new(KernelProfile::modern());
    kernel.mkdir_all(Path::new("/d")).unwrap();
    let dir = kernel.open_root(Path::new("/d")).unwrap();
    (kernel, dir)
}

#[track_caller]
pub(crate) fn assert_errno<T: std::fmt::Debug>(result: io::Result<T>, errno: Errno) {
    let error = result.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{error}");
}

#[test]
fn names_that_are_no_single_component_are_refused() {
    let (kernel, dir) = kernel();
    for bad in ["", ".", "..", "a/b", "a\0b"] {
        assert_eq!(
            kernel
                .create_dir(&dir, name(bad), 0o755)
                .unwrap_err()
                .kind(),
            io::ErrorKind::InvalidInput
        );
    }
    assert_errno(
        kernel.create_dir(&dir, name(&"n".repeat(256)), 0o755),
        Errno::NAMETOOLONG,
    );
    kernel
        .create_dir(&dir, name(&"n".repeat(255)), 0o755)
        .unwrap();
}

#[test]
fn a_link_is_never_followed_except_to_the_root() {
    let (kernel, dir) = kernel();
    kernel.create_dir(&dir, name("real"), 0o755).unwrap();
    kernel
        .create_symlink(&dir, name("link"), name("real"))
        .unwrap();
    assert_errno(kernel.open_dir(&dir, name("link")), Errno::NOTDIR);
    assert_errno(kernel.open_file(&dir, name("link")), Errno::LOOP);
    assert_errno(
        kernel.set_mode(Node::Entry(&dir, name("link")), 0o600),
        Errno::OPNOTSUPP,
    );
    kernel.open_root(Path::new("/d/link")).unwrap();
    kernel
        .create_symlink(&dir, name("loop"), name("loop"))
        .unwrap();
    assert_errno(kernel.open_root(Path::new("/d/loop")), Errno::LOOP);
}

#[test]
fn removing_and_renaming_keep_the_rules() {
    let (kernel, dir) = kernel();
    kernel.create_dir(&dir, name("full"), 0o755).unwrap();
    kernel.write_file(Path::new("/d/full/file"), b"x").unwrap();
    kernel.create_dir(&dir, name("empty"), 0o755).unwrap();
    kernel.write_file(Path::new("/d/file"), b"y").unwrap();
    let rename = |from, to, mode| kernel.rename(&dir, name(from), &dir, name(to), mode);
    assert_errno(kernel.remove_dir(&dir, name("full")), Errno::NOTEMPTY);
    assert_errno(kernel.unlink(&dir, name("empty")), Errno::ISDIR);
    assert_errno(kernel.remove_dir(&dir, name("file")), Errno::NOTDIR);
    assert_errno(
        rename("empty", "full", RenameMode::Replace),
        Errno::NOTEMPTY,
    );
    assert_errno(rename("file", "empty", RenameMode::Replace), Errno::ISDIR);
    assert_errno(rename("empty", "file", RenameMode::Replace), Errno::NOTDIR);
    assert_errno(rename("full", "empty", RenameMode::NoReplace), Errno::EXIST);
    assert_errno(rename("absent", "x", RenameMode::Replace), Errno::NOENT);
    let full = kernel.open_dir(&dir, name("full")).unwrap();
    let inside = kernel.rename(&dir, name("full"), &full, name("self"), RenameMode::Replace);
    assert_errno(inside, Errno::INVAL);
    rename("full", "empty", RenameMode::Exchange).unwrap();
    assert_eq!(kernel.read_file(Path::new("/d/empty/file")).unwrap(), b"x");
    // The handle has moved along.
    assert_eq!(kernel.read_dir(&full).unwrap().len(), 1);
}

#[test]
fn an_open_file_outlives_its_name() {
    let (kernel, dir) = kernel();
    kernel
        .write_file(Path::new("/d/file"), b"still here")
        .unwrap();
    let file = kernel.open_file(&dir, name("file")).unwrap();
    kernel.unlink(&dir, name("file")).unwrap();
    let mut buffer = [0; 10];
    assert_eq!(kernel.read_at(&file, 0, &mut buffer).unwrap(), 10);
    assert_eq!(&buffer, b"still here");
    assert_errno(kernel.open_file(&dir, name("file")), Errno::NOENT);
}

#[test]
fn changing_the_owner_takes_setuid_and_capabilities_away() {
    let (kernel, dir) = kernel();
    let file = kernel.create_file(&dir, name("file"), 0o6755).unwrap();
    let node = Node::File(&file);
    kernel
        .set_xattr(node, name("security.capability"), &[1; 20])
        .unwrap();
    kernel.set_owner(node, 1, 2).unwrap();
    assert_eq!(kernel.metadata(node).unwrap().mode, 0o755);
    assert_eq!(kernel.list_xattrs(node).unwrap(), [""; 0]);
}

#[test]
fn attributes_belong_to_some_kinds_only() {
    let (kernel, dir) = kernel();
    kernel
        .create_symlink(&dir, name("link"), name("x"))
        .unwrap();
    let link = Node::Entry(&dir, name("link"));
    assert_errno(kernel.set_xattr(link, name("user.a"), b""), Errno::PERM);
    kernel.set_xattr(link, name("trusted.a"), b"v").unwrap();
    assert_eq!(
        kernel.xattr(link, name("trusted.a")).unwrap().unwrap(),
        b"v"
    );
    assert_errno(
        kernel.set_xattr(Node::Dir(&dir), name("plain"), b""),
        Errno::OPNOTSUPP,
    );
    assert_errno(
        kernel.remove_xattr(Node::Dir(&dir), name("user.none")),
        Errno::NODATA,
    );
    assert_errno(
        kernel.set_mtime(
            link,
            Timestamp {
                secs: 0,
                nanos: 1_000_000_000,
            },
        ),
        Errno::INVAL,
    );
}

#[test]
fn a_user_namespace_has_no_devices_no_trusted_attributes_and_one_owner() {
    let kernel = MockKernel::new(KernelProfile::rootless());
    let dir = kernel.open_root(Path::new("/")).unwrap();
    let device = NodeKind::CharDevice(DeviceNumber { major: 1, minor: 3 });
    assert_errno(
        kernel.create_node(&dir, name("null"), device, 0o666),
        Errno::PERM,
    );
    let whiteout = NodeKind::CharDevice(DeviceNumber::default());
    kernel
        .create_node(&dir, name("whiteout"), whiteout, 0)
        .unwrap();
    assert_errno(
        kernel.set_xattr(Node::Dir(&dir), name("trusted.a"), b""),
        Errno::PERM,
    );
    assert_errno(kernel.set_owner(Node::Dir(&dir), 1, 0), Errno::INVAL);
    kernel.set_owner(Node::Dir(&dir), 0, 0).unwrap();
}

#[test]
fn holes_are_neither_read_nor_counted() {
    let (kernel, dir) = kernel();
    let file = kernel.create_file(&dir, name("sparse"), 0o644).unwrap();
    kernel.write_at(&file, 1 << 20, b"data").unwrap();
    kernel.set_len(&file, 1 << 30).unwrap();
    let metadata = kernel.metadata(Node::File(&file)).unwrap();
    assert_eq!((metadata.size, metadata.blocks), (1 << 30, 8));
    let extent = kernel.next_extent(&file, 0).unwrap().unwrap();
    assert_eq!(extent, (1 << 20)..(1 << 20) + 4096);
    assert_eq!(kernel.next_extent(&file, extent.end).unwrap(), None);
    let mut buffer = [1; 8];
    kernel.read_at(&file, (1 << 20) + 2, &mut buffer).unwrap();
    assert_eq!(&buffer, b"ta\0\0\0\0\0\0");
}
