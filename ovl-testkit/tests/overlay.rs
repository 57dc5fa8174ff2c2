//! Overlay mounts: what they show, where changes go, what is refused.

use std::path::Path;

use ovl_diff::{DeviceNumber, Node, NodeKind, RenameMode, TreeBackend as _};
use ovl_layout::{LayerId, Layout, LinkId, LowerChain};
use ovl_mount::{Access, MountBackend as _, MountError, OverlayOptions, OverlaySpec, UnmountMode};
use ovl_testkit::{KernelProfile, MockKernel};
use rustix::io::Errno;

use crate::trees::{assert_errno, name};

const LINK: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A home with a lower layer `base` and an upper one `top`, both with some contents.
pub(crate) fn home() -> MockKernel {
    let kernel = MockKernel::new(KernelProfile::modern());
    for dir in [
        "/h/l",
        "/h/base/diff/dir",
        "/h/top/diff",
        "/h/top/work",
        "/h/top/merged",
        "/m",
    ] {
        kernel.mkdir_all(Path::new(dir)).unwrap();
    }
    kernel
        .write_file(Path::new("/h/base/diff/file"), b"below")
        .unwrap();
    kernel
        .write_file(Path::new("/h/base/diff/dir/inner"), b"inner")
        .unwrap();
    let links = kernel.open_root(Path::new("/h/l")).unwrap();
    kernel
        .create_symlink(&links, name(LINK), name("../base/diff"))
        .unwrap();
    kernel
}

pub(crate) fn try_mount(kernel: &MockKernel, access: Access) -> Result<(), MountError> {
    let id: LayerId = "top".parse().unwrap();
    let chain: LowerChain = [LINK.parse::<LinkId>().unwrap()].into_iter().collect();
    let features = kernel.features().unwrap();
    let spec = OverlaySpec::new(&id, &chain, access).options(OverlayOptions::default());
    kernel.mount(&spec.plan(&Layout::new("/h"), &features).unwrap())
}

fn mounted() -> MockKernel {
    let kernel = home();
    try_mount(&kernel, Access::Writable).unwrap();
    kernel
}

pub(crate) const MERGED: &str = "/h/top/merged";

fn upper(kernel: &MockKernel, path: &str) -> Option<ovl_diff::Metadata> {
    let path = Path::new("/h/top/diff").join(path);
    let dir = kernel.open_root(path.parent().unwrap()).ok()?;
    kernel
        .metadata(Node::Entry(&dir, path.file_name().unwrap()))
        .ok()
}

#[test]
fn reading_copies_nothing_up_and_changing_copies_the_way_there() {
    let kernel = mounted();
    assert_eq!(
        kernel
            .read_file(&Path::new(MERGED).join("dir/inner"))
            .unwrap(),
        b"inner"
    );
    assert!(upper(&kernel, "dir").is_none());
    let dir = kernel.open_root(&Path::new(MERGED).join("dir")).unwrap();
    kernel
        .set_mode(Node::Entry(&dir, name("inner")), 0o600)
        .unwrap();
    assert!(upper(&kernel, "dir").unwrap().is_dir());
    assert_eq!(upper(&kernel, "dir/inner").unwrap().mode, 0o600);
    // The mark of a copy is there, and the merged view does not show it.
    let below = kernel.open_root(Path::new("/h/top/diff/dir")).unwrap();
    let marks = kernel
        .list_xattrs(Node::Entry(&below, name("inner")))
        .unwrap();
    assert_eq!(marks, ["trusted.overlay.origin"]);
    assert_eq!(
        kernel
            .list_xattrs(Node::Entry(&dir, name("inner")))
            .unwrap(),
        [""; 0]
    );
}

#[test]
fn deleting_leaves_a_whiteout_and_making_a_directory_over_it_an_opaque_one() {
    let kernel = mounted();
    let root = kernel.open_root(Path::new(MERGED)).unwrap();
    let dir = kernel.open_dir(&root, name("dir")).unwrap();
    assert_errno(kernel.remove_dir(&root, name("dir")), Errno::NOTEMPTY);
    kernel.unlink(&dir, name("inner")).unwrap();
    assert!(upper(&kernel, "dir/inner").unwrap().is_whiteout_device());
    kernel.remove_dir(&root, name("dir")).unwrap();
    assert!(upper(&kernel, "dir").unwrap().is_whiteout_device());
    kernel.create_dir(&root, name("dir"), 0o755).unwrap();
    let diff = kernel.open_root(Path::new("/h/top/diff/dir")).unwrap();
    let opaque = kernel
        .xattr(Node::Dir(&diff), name("trusted.overlay.opaque"))
        .unwrap();
    assert_eq!(opaque.unwrap(), b"y");
    assert_eq!(
        kernel
            .read_dir(&kernel.open_dir(&root, name("dir")).unwrap())
            .unwrap(),
        []
    );
}

#[test]
fn what_is_only_in_the_upper_layer_goes_without_a_whiteout() {
    let kernel = mounted();
    let root = kernel.open_root(Path::new(MERGED)).unwrap();
    kernel
        .write_file(&Path::new(MERGED).join("new"), b"")
        .unwrap();
    kernel.unlink(&root, name("new")).unwrap();
    assert!(upper(&kernel, "new").is_none());
}

#[test]
fn a_directory_with_something_below_is_not_renamed() {
    let kernel = mounted();
    let root = kernel.open_root(Path::new(MERGED)).unwrap();
    let rename = |from, to| kernel.rename(&root, name(from), &root, name(to), RenameMode::Replace);
    assert_errno(rename("dir", "moved"), Errno::XDEV);
    rename("file", "moved").unwrap();
    assert!(upper(&kernel, "file").unwrap().is_whiteout_device());
    assert_eq!(
        kernel.read_file(&Path::new(MERGED).join("moved")).unwrap(),
        b"below"
    );
    kernel.create_dir(&root, name("own"), 0o755).unwrap();
    rename("own", "elsewhere").unwrap();
}

#[test]
fn a_whiteout_cannot_be_made_through_the_mount() {
    let kernel = mounted();
    let root = kernel.open_root(Path::new(MERGED)).unwrap();
    let whiteout = NodeKind::CharDevice(DeviceNumber::default());
    assert_errno(
        kernel.create_node(&root, name("w"), whiteout, 0),
        Errno::PERM,
    );
}

#[test]
fn private_attributes_set_by_a_user_are_escaped() {
    let kernel = mounted();
    let root = kernel.open_root(Path::new(MERGED)).unwrap();
    let node = Node::Entry(&root, name("file"));
    kernel
        .set_xattr(node, name("trusted.overlay.opaque"), b"user's")
        .unwrap();
    assert_eq!(
        kernel.list_xattrs(node).unwrap(),
        ["trusted.overlay.opaque"]
    );
    let diff = kernel.open_root(Path::new("/h/top/diff")).unwrap();
    let stored = Node::Entry(&diff, name("file"));
    let value = kernel
        .xattr(stored, name("trusted.overlay.overlay.opaque"))
        .unwrap();
    assert_eq!(value.unwrap(), b"user's");
}

#[test]
fn a_mount_is_busy_while_something_on_it_is_open() {
    let kernel = mounted();
    let target = Path::new(MERGED);
    let root = kernel.open_root(target).unwrap();
    let busy = kernel.unmount(target, UnmountMode::Now).unwrap_err();
    assert!(matches!(busy, MountError::Busy { .. }), "{busy}");
    kernel.unmount(target, UnmountMode::Lazy).unwrap();
    assert!(kernel.mount_at(target).unwrap().is_none());
    assert!(
        !kernel.read_dir(&root).unwrap().is_empty(),
        "who has it open keeps it"
    );
    let gone = kernel.unmount(target, UnmountMode::Now).unwrap_err();
    assert!(matches!(gone, MountError::NotMounted { .. }), "{gone}");
}

#[test]
fn an_upper_directory_is_mounted_once_at_a_time() {
    let kernel = mounted();
    let error = try_mount(&kernel, Access::Writable).unwrap_err();
    let MountError::Mount { source, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(source.raw_os_error(), Some(Errno::BUSY.raw_os_error()));
}

#[test]
fn a_mount_without_an_upper_layer_is_read_only() {
    let kernel = home();
    try_mount(&kernel, Access::ReadOnly).unwrap();
    assert!(
        kernel
            .mount_at(Path::new(MERGED))
            .unwrap()
            .unwrap()
            .read_only
    );
    let root = kernel.open_root(Path::new(MERGED)).unwrap();
    assert_errno(kernel.create_dir(&root, name("new"), 0o755), Errno::ROFS);
    assert_errno(kernel.unlink(&root, name("file")), Errno::ROFS);
    assert_errno(
        kernel.set_mode(Node::Entry(&root, name("file")), 0o600),
        Errno::ROFS,
    );
}

#[test]
fn a_mount_point_is_neither_removed_nor_crossed() {
    let kernel = mounted();
    let layer = kernel.open_root(Path::new("/h/top")).unwrap();
    assert_errno(kernel.remove_dir(&layer, name("merged")), Errno::BUSY);
    assert_errno(kernel.open_dir(&layer, name("merged")), Errno::XDEV);
    let moved = kernel.rename(
        &layer,
        name("merged"),
        &layer,
        name("x"),
        RenameMode::Replace,
    );
    assert_errno(moved, Errno::BUSY);
}
