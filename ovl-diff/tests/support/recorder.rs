//! A tree that counts what is done to another, and notes which directories are opened.

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ovl_diff::{
    DirEntry, DirHandle, FileHandle, Metadata, Node, NodeKind, RenameMode, Timestamp, TreeBackend,
};

/// Passes every step on.
#[derive(Debug)]
pub(crate) struct Recorder<'a> {
    tree: &'a dyn TreeBackend,
    pub(crate) steps: AtomicUsize,
    /// Paths that were opened as a whole.
    pub(crate) roots: Mutex<Vec<PathBuf>>,
    /// Names that were opened as directories.
    pub(crate) dirs: Mutex<Vec<OsString>>,
    /// Names of links that were read.
    pub(crate) links: Mutex<Vec<OsString>>,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(tree: &'a dyn TreeBackend) -> Self {
        Self {
            tree,
            steps: AtomicUsize::new(0),
            roots: Mutex::default(),
            dirs: Mutex::default(),
            links: Mutex::default(),
        }
    }

    fn step(&self) -> &'a dyn TreeBackend {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.tree
    }
}

macro_rules! pass_on {
    ($(fn $name:ident($($arg:ident: $kind:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($arg: $kind),*) -> io::Result<$result> {
            self.step().$name($($arg),*)
        })*
    };
}

impl TreeBackend for Recorder<'_> {
    fn open_root(&self, path: &Path) -> io::Result<DirHandle> {
        self.roots.lock().unwrap().push(path.to_owned());
        self.step().open_root(path)
    }

    fn open_dir(&self, dir: &DirHandle, name: &OsStr) -> io::Result<DirHandle> {
        self.dirs.lock().unwrap().push(name.to_owned());
        self.step().open_dir(dir, name)
    }

    fn read_link(&self, dir: &DirHandle, name: &OsStr) -> io::Result<OsString> {
        self.links.lock().unwrap().push(name.to_owned());
        self.step().read_link(dir, name)
    }

    pass_on! {
        fn read_dir(dir: &DirHandle) -> Vec<DirEntry>;
        fn metadata(node: Node<'_>) -> Metadata;
        fn create_dir(dir: &DirHandle, name: &OsStr, mode: u32) -> ();
        fn create_file(dir: &DirHandle, name: &OsStr, mode: u32) -> FileHandle;
        fn open_file(dir: &DirHandle, name: &OsStr) -> FileHandle;
        fn read_at(file: &FileHandle, offset: u64, buffer: &mut [u8]) -> usize;
        fn write_at(file: &FileHandle, offset: u64, data: &[u8]) -> ();
        fn set_len(file: &FileHandle, len: u64) -> ();
        fn next_extent(file: &FileHandle, offset: u64) -> Option<Range<u64>>;
        fn share_data(from: &FileHandle, to: &FileHandle) -> ();
        fn create_symlink(dir: &DirHandle, name: &OsStr, target: &OsStr) -> ();
        fn create_node(dir: &DirHandle, name: &OsStr, kind: NodeKind, mode: u32) -> ();
        fn hard_link(from_dir: &DirHandle, from: &OsStr, to_dir: &DirHandle, to: &OsStr) -> ();
        fn rename(from_dir: &DirHandle, from: &OsStr, to_dir: &DirHandle, to: &OsStr, mode: RenameMode) -> ();
        fn unlink(dir: &DirHandle, name: &OsStr) -> ();
        fn remove_dir(dir: &DirHandle, name: &OsStr) -> ();
        fn set_owner(node: Node<'_>, uid: u32, gid: u32) -> ();
        fn set_mode(node: Node<'_>, mode: u32) -> ();
        fn set_mtime(node: Node<'_>, mtime: Timestamp) -> ();
        fn list_xattrs(node: Node<'_>) -> Vec<OsString>;
        fn xattr(node: Node<'_>, name: &OsStr) -> Option<Vec<u8>>;
        fn set_xattr(node: Node<'_>, name: &OsStr, value: &[u8]) -> ();
        fn remove_xattr(node: Node<'_>, name: &OsStr) -> ();
        fn unprotect(node: Node<'_>) -> bool;
        fn start_writeback(file: &FileHandle) -> ();
        fn sync(node: Node<'_>) -> ();
    }
}
