//! Kernels that do not wait for the disk where they should: the power cuts must show it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use ovl_diff::{
    DirEntry, DirHandle, FileHandle, HostTree, Metadata, Node, NodeKind, RenameMode, Timestamp,
    TreeBackend,
};

/// Which syncs do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Variant {
    /// Those of files, and nothing begins to write them either.
    NoDataSync,
    /// Those of directories.
    NoDirectorySync,
    /// The last one of whatever is published, replaced or removed. In its place is what
    /// `sync_file_range(2)` does: data is written back, but no journal and no disk's cache.
    SyncFileRange,
}

/// The host's trees, but for some syncs.
#[derive(Debug)]
pub(super) struct Broken {
    variant: Variant,
    tree: HostTree,
    /// A layer has just got its name, or lost it.
    is_last: AtomicBool,
}

impl Broken {
    pub(super) fn new(variant: Variant) -> Self {
        Self {
            variant,
            tree: HostTree::default(),
            is_last: AtomicBool::new(false),
        }
    }
}

/// Methods that the host's trees do.
macro_rules! as_host {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($argument: $type),*) -> io::Result<$result> {
            self.tree.$name($($argument),*)
        })*
    };
}

impl TreeBackend for Broken {
    as_host! {
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
    }

    fn rename(
        &self,
        from_dir: &DirHandle,
        from: &OsStr,
        to_dir: &DirHandle,
        to: &OsStr,
        mode: RenameMode,
    ) -> io::Result<()> {
        self.tree.rename(from_dir, from, to_dir, to, mode)?;
        // Small files are replaced on the way.
        if mode != RenameMode::Replace {
            self.is_last.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    fn start_writeback(&self, file: &FileHandle) -> io::Result<()> {
        match self.variant {
            Variant::NoDataSync => Ok(()),
            _ => self.tree.start_writeback(file),
        }
    }

    fn sync(&self, node: Node<'_>) -> io::Result<()> {
        let is_dir = match node {
            Node::Dir(_) => true,
            Node::File(_) => false,
            Node::Entry(..) => self.tree.metadata(node)?.is_dir(),
        };
        let nothing = match self.variant {
            Variant::NoDataSync => !is_dir,
            Variant::NoDirectorySync => is_dir,
            // A directory has no data.
            Variant::SyncFileRange => is_dir && self.is_last.swap(false, Ordering::SeqCst),
        };
        match nothing {
            true => Ok(()),
            false => self.tree.sync(node),
        }
    }
}
