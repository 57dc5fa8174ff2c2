//! A kernel whose caller is killed before a given call: nothing that it still asks for happens.

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ovl_diff::{
    DirEntry, DirHandle, FileHandle, Metadata, Node, NodeKind, RenameMode, Timestamp, TreeBackend,
};
use ovl_driver::Kernel;
use ovl_quota::{Enforcement, KeepsToLimits, Limits, ProjectId, ProjectRange, QuotaBackend, Usage};
use ovl_testkit::MockKernel;
use rustix::io::Errno;

/// A process on a mock kernel, as its store sees it.
#[derive(Clone, Debug)]
pub(crate) struct Mortal {
    kernel: MockKernel,
    left: Arc<AtomicU64>,
}

impl Mortal {
    pub(crate) fn new(kernel: MockKernel) -> Self {
        let left = Arc::new(AtomicU64::new(u64::MAX));
        Self { kernel, left }
    }

    /// What its store is opened with.
    pub(crate) fn kernel(&self) -> Kernel {
        self.kernel
            .kernel()
            .with_tree(self.clone())
            .with_quota(self.clone())
    }

    /// Lets it make this many more calls on trees and quotas.
    pub(crate) fn dies_after(&self, calls: u64) {
        self.left.store(calls, Ordering::Relaxed);
    }

    fn alive(&self) -> io::Result<&MockKernel> {
        let step = |left: u64| left.checked_sub(1);
        match self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step)
        {
            Ok(_) => Ok(&self.kernel),
            Err(_) => Err(Errno::IO.into()),
        }
    }
}

/// Passes calls on while the process lives.
macro_rules! while_alive {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($argument: $kind),*) -> io::Result<$result> {
            self.alive()?.$name($($argument),*)
        })*
    };
}

impl TreeBackend for Mortal {
    while_alive! {
        open_root(path: &Path) -> DirHandle;
        open_dir(dir: &DirHandle, name: &OsStr) -> DirHandle;
        read_dir(dir: &DirHandle) -> Vec<DirEntry>;
        metadata(node: Node<'_>) -> Metadata;
        create_dir(dir: &DirHandle, name: &OsStr, mode: u32) -> ();
        create_file(dir: &DirHandle, name: &OsStr, mode: u32) -> FileHandle;
        open_file(dir: &DirHandle, name: &OsStr) -> FileHandle;
        read_at(file: &FileHandle, offset: u64, buffer: &mut [u8]) -> usize;
        write_at(file: &FileHandle, offset: u64, data: &[u8]) -> ();
        set_len(file: &FileHandle, len: u64) -> ();
        next_extent(file: &FileHandle, offset: u64) -> Option<Range<u64>>;
        share_data(from: &FileHandle, to: &FileHandle) -> ();
        create_symlink(dir: &DirHandle, name: &OsStr, target: &OsStr) -> ();
        read_link(dir: &DirHandle, name: &OsStr) -> OsString;
        create_node(dir: &DirHandle, name: &OsStr, kind: NodeKind, mode: u32) -> ();
        hard_link(from_dir: &DirHandle, from: &OsStr, to_dir: &DirHandle, to: &OsStr) -> ();
        rename(
            from_dir: &DirHandle,
            from: &OsStr,
            to_dir: &DirHandle,
            to: &OsStr,
            mode: RenameMode
        ) -> ();
        unlink(dir: &DirHandle, name: &OsStr) -> ();
        remove_dir(dir: &DirHandle, name: &OsStr) -> ();
        set_owner(node: Node<'_>, uid: u32, gid: u32) -> ();
        set_mode(node: Node<'_>, mode: u32) -> ();
        set_mtime(node: Node<'_>, mtime: Timestamp) -> ();
        list_xattrs(node: Node<'_>) -> Vec<OsString>;
        xattr(node: Node<'_>, name: &OsStr) -> Option<Vec<u8>>;
        set_xattr(node: Node<'_>, name: &OsStr, value: &[u8]) -> ();
        remove_xattr(node: Node<'_>, name: &OsStr) -> ();
        unprotect(node: Node<'_>) -> bool;
        start_writeback(file: &FileHandle) -> ();
        sync(node: Node<'_>) -> ();
    }
}

impl QuotaBackend for Mortal {
    while_alive! {
        project_of(dir: &Path) -> Option<ProjectId>;
        inherits(dir: &Path) -> bool;
        assign_project(dir: &Path, project: Option<ProjectId>) -> ();
        enforcement(home: &Path) -> Enforcement;
        set_limits(home: &Path, project: ProjectId, limits: &Limits) -> ();
        usage(home: &Path, project: ProjectId) -> Usage;
        used_ids(home: &Path, range: ProjectRange) -> Vec<ProjectId>;
        keep_to_limits() -> KeepsToLimits;
    }
}
