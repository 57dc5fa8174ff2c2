//! Project quotas of the mock.

use std::path::Path;

use ovl_diff::{Node, RenameMode, TreeBackend as _};
use ovl_driver::{CreateLayer, ErrorKind, OpenOptions, blocking::Overlay2};
use ovl_mount::Access;
use ovl_quota::{Bytes, Limits, ProjectId, QuotaBackend as _};
use ovl_testkit::{Faulty, KernelProfile, MockKernel, Survivors};
use rustix::io::Errno;

use crate::overlay::{MERGED, home, try_mount};
use crate::trees::{assert_errno, name};

fn tagged(profile: KernelProfile) -> (MockKernel, ProjectId) {
    let kernel = MockKernel::new(profile);
    kernel.mkdir_all(Path::new("/h/layer")).unwrap();
    let project = ProjectId::new(7).unwrap();
    kernel
        .assign_project(Path::new("/h/layer"), Some(project))
        .unwrap();
    (kernel, project)
}

#[test]
fn what_is_made_in_a_tagged_directory_counts_and_is_limited() {
    for (profile, errno) in [
        (KernelProfile::modern(), Errno::DQUOT),
        (KernelProfile::xfs(), Errno::NOSPC),
    ] {
        let (kernel, project) = tagged(profile);
        let _keeps = kernel.keep_to_limits().unwrap();
        let home = Path::new("/h");
        let limits = Limits::UNLIMITED.bytes(Some(Bytes::new(5 << 20)));
        kernel.set_limits(home, project, &limits).unwrap();
        kernel.mkdir_all(Path::new("/h/layer/diff")).unwrap();
        assert_eq!(
            kernel.project_of(Path::new("/h/layer/diff")).unwrap(),
            Some(project)
        );
        kernel
            .write_file(Path::new("/h/layer/diff/half"), &vec![1; 3 << 20])
            .unwrap();
        assert_errno(
            kernel.write_file(Path::new("/h/layer/diff/more"), &vec![1; 3 << 20]),
            errno,
        );
        let usage = kernel.usage(home, project).unwrap();
        assert!(
            usage.bytes.get() >= 3 << 20 && usage.bytes.get() <= 5 << 20,
            "{usage:?}"
        );
        kernel
            .set_limits(home, project, &Limits::UNLIMITED)
            .unwrap();
        kernel
            .write_file(Path::new("/h/layer/diff/now"), &vec![1; 3 << 20])
            .unwrap();
    }
}

/// As measured: ext4 gives what fits, XFS nothing of a piece that does not fit as a whole.
#[test]
fn a_write_past_the_limit_keeps_what_fits() {
    const LIMIT: u64 = 64 << 10;
    for (profile, errno, fits) in [
        (KernelProfile::modern(), Errno::DQUOT, LIMIT - 2 * 4096),
        (KernelProfile::xfs(), Errno::NOSPC, 4096),
    ] {
        let (kernel, project) = tagged(profile);
        let _keeps = kernel.keep_to_limits().unwrap();
        let home = Path::new("/h");
        let limits = Limits::UNLIMITED.bytes(Some(Bytes::new(LIMIT)));
        kernel.set_limits(home, project, &limits).unwrap();
        let used = || kernel.usage(home, project).unwrap().bytes.get();
        let dir = kernel.open_root(Path::new("/h/layer")).unwrap();
        // A page for another file beside that of the directory.
        kernel.write_file(Path::new("/h/layer/a"), b"a").unwrap();
        let file = kernel.create_file(&dir, name("file"), 0o600).unwrap();
        kernel.write_at(&file, 0, &[1]).unwrap();
        assert_errno(kernel.write_at(&file, 1, &[2; 200_000]), errno);
        let size = kernel.metadata(Node::File(&file)).unwrap().size;
        assert_eq!((size, used()), (fits, fits + 2 * 4096));
        // What has a page can be written again.
        kernel.write_at(&file, 0, &vec![3; fits as usize]).unwrap();
        // Small pieces go as far as there is room.
        let mut pieces = (size..1 << 20).step_by(4096);
        let written = pieces.try_for_each(|at| kernel.write_at(&file, at, &[4; 4096]));
        assert_errno(written, errno);
        assert_eq!(used(), LIMIT);
    }
}

#[test]
fn what_is_open_counts_without_a_name() {
    let (kernel, project) = tagged(KernelProfile::xfs());
    let home = Path::new("/h");
    let usage = || {
        let usage = kernel.usage(home, project).unwrap();
        (usage.bytes.get(), usage.inodes)
    };
    let dir = kernel.open_root(Path::new("/h/layer")).unwrap();
    let file = kernel.create_file(&dir, name("file"), 0o600).unwrap();
    kernel.write_at(&file, 0, &[1; 4096]).unwrap();
    kernel.create_dir(&dir, name("dir"), 0o700).unwrap();
    let inner = kernel.open_dir(&dir, name("dir")).unwrap();
    kernel.unlink(&dir, name("file")).unwrap();
    kernel.remove_dir(&dir, name("dir")).unwrap();
    assert_eq!(usage(), (3 * 4096, 3));
    let fork = kernel.fork();
    let usage_there = fork.usage(home, project).unwrap();
    assert_eq!(usage_there.inodes, 1, "nothing is open in a copy");
    let limits = Limits::UNLIMITED.inodes(Some(3));
    kernel.set_limits(home, project, &limits).unwrap();
    let more = || kernel.create_dir(&dir, name("more"), 0o700);
    assert_errno(more(), Errno::NOSPC);
    drop(inner);
    more().unwrap();
    drop(file);
    assert_eq!(usage(), (2 * 4096, 2));
}

#[test]
fn inodes_are_limited_too() {
    let (kernel, project) = tagged(KernelProfile::modern());
    let _keeps = kernel.keep_to_limits().unwrap();
    let limits = Limits::UNLIMITED.inodes(Some(3));
    kernel
        .set_limits(Path::new("/h"), project, &limits)
        .unwrap();
    // The tagged directory itself is one.
    kernel.write_file(Path::new("/h/layer/a"), b"").unwrap();
    kernel.write_file(Path::new("/h/layer/b"), b"").unwrap();
    assert_errno(
        kernel.write_file(Path::new("/h/layer/c"), b""),
        Errno::DQUOT,
    );
}

#[test]
fn root_exceeds_limits_on_ext4_unless_it_gives_that_up() {
    for (profile, exceeds) in [
        (KernelProfile::modern(), true),
        (KernelProfile::xfs(), false),
    ] {
        let (kernel, project) = tagged(profile);
        let limits = Limits::UNLIMITED.inodes(Some(1));
        let home = Path::new("/h");
        kernel.set_limits(home, project, &limits).unwrap();
        let write = |name: &str| kernel.write_file(&Path::new("/h/layer").join(name), b"x");
        assert_eq!(write("a").is_ok(), exceeds);
        let keeps = kernel.keep_to_limits().unwrap();
        write("b").unwrap_err();
        drop(keeps);
        assert_eq!(write("c").is_ok(), exceeds);
    }
}

#[test]
fn limits_are_on_disk_with_a_later_change_that_is_synced() {
    let limits = Limits::UNLIMITED.inodes(Some(3));
    for (synced, later) in [(false, false), (true, false), (false, true), (true, true)] {
        let (kernel, project) = tagged(KernelProfile::modern());
        kernel.sync_all();
        let (home, layer) = (Path::new("/h"), Path::new("/h/layer"));
        kernel.set_limits(home, project, &limits).unwrap();
        let pending = kernel.pending();
        let [pending] = &*pending else {
            panic!("{pending:?}");
        };
        assert_eq!(pending.to_string(), "limits of project 7");
        let dir = kernel.open_root(layer).unwrap();
        if later {
            kernel.create_dir(&dir, name("new"), 0o755).unwrap();
        }
        if synced {
            kernel.sync(Node::Dir(&dir)).unwrap();
        }
        let found = |kernel: &MockKernel| kernel.usage(home, project).unwrap().limits;
        let kept = kernel.fork();
        kept.crash(&Survivors::Everything);
        assert_eq!(found(&kept), limits);
        kernel.crash(&Survivors::Nothing);
        let expected = if synced && later {
            limits
        } else {
            Limits::UNLIMITED
        };
        assert_eq!(found(&kernel), expected, "{synced}, {later}");
    }
}

#[test]
fn what_overlayfs_makes_in_a_work_directory_of_another_project_stays_there() {
    let kernel = home();
    let upper = Path::new("/h/top/diff");
    kernel.assign_project(upper, ProjectId::new(7)).unwrap();
    try_mount(&kernel, Access::Writable).unwrap();
    let merged = kernel.open_root(Path::new(MERGED)).unwrap();
    let dir = kernel.open_dir(&merged, name("dir")).unwrap();
    let file = Node::Entry(&merged, name("file"));
    assert_errno(kernel.create_dir(&dir, name("new"), 0o755), Errno::XDEV);
    assert_errno(kernel.unlink(&merged, name("file")), Errno::XDEV);
    assert_errno(kernel.set_mode(file, 0o600), Errno::XDEV);
    kernel.metadata(file).unwrap();
    // What begins in the upper directory may be there.
    kernel.create_dir(&merged, name("new"), 0o755).unwrap();
}

#[test]
fn without_its_work_directory_overlayfs_copies_files_up_and_nothing_else() {
    let kernel = home();
    try_mount(&kernel, Access::Writable).unwrap();
    let work = kernel.open_root(Path::new("/h/top/work")).unwrap();
    kernel.remove_dir(&work, name("work")).unwrap();
    let merged = kernel.open_root(Path::new(MERGED)).unwrap();
    let dir = kernel.open_dir(&merged, name("dir")).unwrap();
    let file = Node::Entry(&merged, name("file"));
    assert_errno(kernel.create_dir(&dir, name("new"), 0o755), Errno::NOENT);
    assert_errno(kernel.unlink(&dir, name("inner")), Errno::NOENT);
    kernel.set_mode(file, 0o600).unwrap();
    assert_errno(kernel.unlink(&merged, name("file")), Errno::NOENT);
    kernel.create_dir(&merged, name("new"), 0o755).unwrap();
}

#[test]
fn nothing_is_moved_or_linked_into_a_project() {
    let (kernel, _) = tagged(KernelProfile::modern());
    kernel.write_file(Path::new("/h/file"), b"x").unwrap();
    let (home, layer) = (
        kernel.open_root(Path::new("/h")).unwrap(),
        kernel.open_root(Path::new("/h/layer")).unwrap(),
    );
    let moved = kernel.rename(
        &home,
        name("file"),
        &layer,
        name("file"),
        RenameMode::Replace,
    );
    assert_errno(moved, Errno::XDEV);
    assert_errno(
        kernel.hard_link(&home, name("file"), &layer, name("file")),
        Errno::XDEV,
    );
    kernel.write_file(Path::new("/h/layer/own"), b"x").unwrap();
    kernel
        .rename(&layer, name("own"), &home, name("out"), RenameMode::Replace)
        .unwrap();
}

/// Found by the model: an unlimited layer was made without a project, and never got one.
#[test]
fn a_writable_layer_is_not_made_without_a_project_when_quotas_cannot_be_read_for_once() {
    let kernel = Faulty::new(MockKernel::new(KernelProfile::modern()).kernel());
    let options = OpenOptions::new().create(true);
    let store = Overlay2::open(kernel.kernel(), Path::new("/home"), options).unwrap();
    let layer = CreateLayer::new("layer".parse().unwrap());
    kernel.order_where(|call, _| (call == "project_of").then_some(5));
    let error = store.create_writable(&layer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Other, "{error}");
    kernel.heal();
    store.create_writable(&layer).unwrap();
    assert!(store.quota(&layer.id).unwrap().is_some());
}
