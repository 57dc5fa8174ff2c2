//! The contract of `TreeBackend` on the running system.

mod attributes;
mod contents;
mod entries;
mod opening;

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use ovl_diff::{DirHandle, FileHandle, HostTree, Node, NodeKind, TreeBackend};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::support::{is_root, skip};

struct Home {
    dir: TempDir,
    tree: HostTree,
    root: DirHandle,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = HostTree::default();
        let root = tree.open_root(dir.path()).unwrap();
        Self { dir, tree, root }
    }

    fn tree(&self) -> &dyn TreeBackend {
        &self.tree
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn entry<'a>(&'a self, entry: &'a str) -> Node<'a> {
        Node::Entry(&self.root, name(entry))
    }

    fn file(&self, entry: &str, contents: &[u8]) -> FileHandle {
        fs::write(self.path(entry), contents).unwrap();
        self.tree.open_file(&self.root, name(entry)).unwrap()
    }

    fn subdir(&self, entry: &str) -> DirHandle {
        self.tree
            .create_dir(&self.root, name(entry), 0o755)
            .unwrap();
        self.tree.open_dir(&self.root, name(entry)).unwrap()
    }

    fn subdir_at(&self, path: &str) -> DirHandle {
        self.tree.open_root(&self.path(path)).unwrap()
    }

    fn fifo(&self, entry: &str) {
        self.tree
            .create_node(&self.root, name(entry), NodeKind::Fifo, 0o600)
            .unwrap();
    }

    fn mode(&self, entry: &str) -> u32 {
        fs::symlink_metadata(self.path(entry))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    }
}

fn name(name: &str) -> &OsStr {
    OsStr::new(name)
}

fn number<T: fmt::Debug>(result: io::Result<T>) -> Errno {
    let error = result.unwrap_err();
    Errno::from_io_error(&error).unwrap_or_else(|| panic!("{error:?} has no error number"))
}

fn kind<T: fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}
