//! Directory handles that cost a bounded number of the backend's, however deep or wide a tree is.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::tree::{
    DeviceNumber, DirEntry, DirHandle, FileHandle, Metadata, Node, NodeKind, RenameMode, Timestamp,
    TreeBackend,
};

/// Directories that are open at once, at most and at least.
const MAX_OPEN: usize = 256;
const MIN_OPEN: usize = 32;
/// Of the 1024 descriptors that a process can have by default, those that are for directories: the
/// roots of a stack of layers, up to 500, and what is open below them. Less than 200 are for files.
const FOR_DIRECTORIES: usize = 768;
/// On a long way down, one directory in so many stays open longer, so that the way back is short.
const SPACING: usize = 32;

/// The same tree with handles that are closed when many others have been opened since, and opened
/// again by their names when they are needed.
///
/// So a name on the way to an open directory must keep its meaning. Where another program changes
/// it, the handle fails; it never stands for another directory. Handles of the backend itself are
/// taken too, and never closed.
pub(crate) struct FewHandles<'a> {
    tree: &'a dyn TreeBackend,
    /// The directories that are open, and some that were, in the order of their opening, with their
    /// depths.
    open: Mutex<VecDeque<(Weak<Dir>, usize)>>,
    /// How many of them there may be.
    most: usize,
}

/// What a handle of this tree holds.
struct Handle(Arc<Dir>);

struct Dir {
    /// `None` only while it is dropped.
    parent: Option<Parent>,
    name: OsString,
    /// Below a directory that the backend itself has opened, from 1.
    depth: usize,
    state: Mutex<State>,
}

enum Parent {
    /// Opened by the backend itself.
    Given(DirHandle),
    Dir(Arc<Dir>),
}

#[derive(Default)]
struct State {
    handle: Option<DirHandle>,
    /// Which directory it was when it was closed.
    identity: Option<(DeviceNumber, u64)>,
}

impl Dir {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self) -> Option<DirHandle> {
        self.state().handle.clone()
    }
}

/// One by one: dropping the last handle of a deep tree would drop its parents within each other.
impl Drop for Dir {
    fn drop(&mut self) {
        let mut parent = self.parent.take();
        while let Some(Parent::Dir(dir)) = parent {
            parent = Arc::into_inner(dir).and_then(|mut dir| dir.parent.take());
        }
    }
}

impl<'a> FewHandles<'a> {
    /// For work on as many roots, which the caller has opened and keeps open.
    pub(crate) fn new(tree: &'a dyn TreeBackend, roots: usize) -> Self {
        let left = FOR_DIRECTORIES.saturating_sub(roots);
        Self {
            tree,
            open: Mutex::default(),
            most: left.clamp(MIN_OPEN, MAX_OPEN),
        }
    }

    /// The backend's own handle.
    fn real(&self, handle: &DirHandle) -> io::Result<DirHandle> {
        match handle.inner::<Handle>() {
            Ok(Handle(dir)) => dir.handle().map_or_else(|| self.reopen(dir), Ok),
            Err(_) => Ok(handle.clone()),
        }
    }

    fn reopen(&self, dir: &Arc<Dir>) -> io::Result<DirHandle> {
        let mut closed = vec![dir.clone()];
        let mut next = dir.parent.as_ref();
        let mut handle = loop {
            match next {
                Some(Parent::Given(handle)) => break handle.clone(),
                Some(Parent::Dir(dir)) => match dir.handle() {
                    Some(handle) => break handle,
                    None => {
                        closed.push(dir.clone());
                        next = dir.parent.as_ref();
                    }
                },
                None => return Err(io::Error::from(io::ErrorKind::NotFound)),
            }
        };
        for dir in closed.iter().rev() {
            handle = self.tree.open_dir(&handle, &dir.name)?;
            let metadata = self.tree.metadata(Node::Dir(&handle))?;
            if dir
                .state()
                .identity
                .is_some_and(|was| was != (metadata.dev, metadata.ino))
            {
                return Err(io::Error::other("another directory has its name now"));
            }
            self.keep(dir, handle.clone())?;
        }
        Ok(handle)
    }

    fn keep(&self, dir: &Arc<Dir>, handle: DirHandle) -> io::Result<()> {
        dir.state().handle = Some(handle);
        let mut surplus = Vec::new();
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if open.len() >= self.most {
                open.retain(|(dir, _)| dir.strong_count() > 0);
                let mut excess = open.len().saturating_sub(self.most / 4 * 3);
                for spacing in [SPACING, usize::MAX] {
                    open.retain(|(dir, depth)| {
                        let close = excess > 0 && depth % spacing != 0;
                        if close {
                            excess -= 1;
                            surplus.push(dir.clone());
                        }
                        !close
                    });
                }
            }
            open.push_back((Arc::downgrade(dir), dir.depth));
        }
        for dir in surplus.iter().filter_map(Weak::upgrade) {
            let Some(handle) = dir.state().handle.take() else {
                continue;
            };
            let metadata = self.tree.metadata(Node::Dir(&handle))?;
            dir.state().identity = Some((metadata.dev, metadata.ino));
        }
        Ok(())
    }

    fn with<T>(
        &self,
        node: Node<'_>,
        step: impl FnOnce(Node<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        match node {
            Node::Entry(dir, name) => step(Node::Entry(&self.real(dir)?, name)),
            Node::Dir(dir) => step(Node::Dir(&self.real(dir)?)),
            Node::File(_) => step(node),
        }
    }
}

impl fmt::Debug for FewHandles<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FewHandles").field(&self.tree).finish()
    }
}

impl TreeBackend for FewHandles<'_> {
    fn open_root(&self, path: &Path) -> io::Result<DirHandle> {
        self.tree.open_root(path)
    }

    fn open_dir(&self, dir: &DirHandle, name: &OsStr) -> io::Result<DirHandle> {
        let handle = self.tree.open_dir(&self.real(dir)?, name)?;
        let (parent, depth) = match dir.inner::<Handle>() {
            Ok(Handle(dir)) => (Parent::Dir(dir.clone()), dir.depth + 1),
            Err(_) => (Parent::Given(dir.clone()), 1),
        };
        let dir = Arc::new(Dir {
            parent: Some(parent),
            name: name.to_owned(),
            depth,
            state: Mutex::default(),
        });
        self.keep(&dir, handle)?;
        Ok(DirHandle::new(Handle(dir)))
    }

    fn read_dir(&self, dir: &DirHandle) -> io::Result<Vec<DirEntry>> {
        self.tree.read_dir(&self.real(dir)?)
    }

    fn metadata(&self, node: Node<'_>) -> io::Result<Metadata> {
        self.with(node, |node| self.tree.metadata(node))
    }

    fn create_dir(&self, dir: &DirHandle, name: &OsStr, mode: u32) -> io::Result<()> {
        self.tree.create_dir(&self.real(dir)?, name, mode)
    }

    fn create_file(&self, dir: &DirHandle, name: &OsStr, mode: u32) -> io::Result<FileHandle> {
        self.tree.create_file(&self.real(dir)?, name, mode)
    }

    fn open_file(&self, dir: &DirHandle, name: &OsStr) -> io::Result<FileHandle> {
        self.tree.open_file(&self.real(dir)?, name)
    }

    fn read_at(&self, file: &FileHandle, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.tree.read_at(file, offset, buffer)
    }

    fn write_at(&self, file: &FileHandle, offset: u64, data: &[u8]) -> io::Result<()> {
        self.tree.write_at(file, offset, data)
    }

    fn set_len(&self, file: &FileHandle, len: u64) -> io::Result<()> {
        self.tree.set_len(file, len)
    }

    fn next_extent(&self, file: &FileHandle, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.tree.next_extent(file, offset)
    }

    fn share_data(&self, from: &FileHandle, to: &FileHandle) -> io::Result<()> {
        self.tree.share_data(from, to)
    }

    fn create_symlink(&self, dir: &DirHandle, name: &OsStr, target: &OsStr) -> io::Result<()> {
        self.tree.create_symlink(&self.real(dir)?, name, target)
    }

    fn read_link(&self, dir: &DirHandle, name: &OsStr) -> io::Result<OsString> {
        self.tree.read_link(&self.real(dir)?, name)
    }

    fn create_node(
        &self,
        dir: &DirHandle,
        name: &OsStr,
        kind: NodeKind,
        mode: u32,
    ) -> io::Result<()> {
        self.tree.create_node(&self.real(dir)?, name, kind, mode)
    }

    fn hard_link(
        &self,
        from_dir: &DirHandle,
        from: &OsStr,
        to_dir: &DirHandle,
        to: &OsStr,
    ) -> io::Result<()> {
        self.tree
            .hard_link(&self.real(from_dir)?, from, &self.real(to_dir)?, to)
    }

    fn rename(
        &self,
        from_dir: &DirHandle,
        from: &OsStr,
        to_dir: &DirHandle,
        to: &OsStr,
        mode: RenameMode,
    ) -> io::Result<()> {
        self.tree
            .rename(&self.real(from_dir)?, from, &self.real(to_dir)?, to, mode)
    }

    fn unlink(&self, dir: &DirHandle, name: &OsStr) -> io::Result<()> {
        self.tree.unlink(&self.real(dir)?, name)
    }

    fn remove_dir(&self, dir: &DirHandle, name: &OsStr) -> io::Result<()> {
        self.tree.remove_dir(&self.real(dir)?, name)
    }

    fn set_owner(&self, node: Node<'_>, uid: u32, gid: u32) -> io::Result<()> {
        self.with(node, |node| self.tree.set_owner(node, uid, gid))
    }

    fn set_mode(&self, node: Node<'_>, mode: u32) -> io::Result<()> {
        self.with(node, |node| self.tree.set_mode(node, mode))
    }

    fn set_mtime(&self, node: Node<'_>, mtime: Timestamp) -> io::Result<()> {
        self.with(node, |node| self.tree.set_mtime(node, mtime))
    }

    fn list_xattrs(&self, node: Node<'_>) -> io::Result<Vec<OsString>> {
        self.with(node, |node| self.tree.list_xattrs(node))
    }

    fn xattr(&self, node: Node<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        self.with(node, |node| self.tree.xattr(node, name))
    }

    fn set_xattr(&self, node: Node<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
        self.with(node, |node| self.tree.set_xattr(node, name, value))
    }

    fn remove_xattr(&self, node: Node<'_>, name: &OsStr) -> io::Result<()> {
        self.with(node, |node| self.tree.remove_xattr(node, name))
    }

    fn unprotect(&self, node: Node<'_>) -> io::Result<bool> {
        self.with(node, |node| self.tree.unprotect(node))
    }

    fn start_writeback(&self, file: &FileHandle) -> io::Result<()> {
        self.tree.start_writeback(file)
    }

    fn sync(&self, node: Node<'_>) -> io::Result<()> {
        self.with(node, |node| self.tree.sync(node))
    }
}
