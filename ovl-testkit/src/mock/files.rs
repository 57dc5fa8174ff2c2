//! Short ways to make, read and change files by their paths.

use std::io;
use std::path::{Path, PathBuf};

use ovl_diff::{FileHandle, FileKind, Node, TreeBackend as _};
use rustix::io::Errno;

use super::MockKernel;
use super::tree::{MockDir, MockFile};
use crate::edit::{Edit, not_regular};

impl MockKernel {
    /// Makes a directory and those above it.
    ///
    /// # Errors
    /// `ENOTDIR` when a file is in the way.
    pub fn mkdir_all(&self, path: &Path) -> io::Result<()> {
        let mut made = PathBuf::from("/");
        for name in path.iter().skip(1) {
            let dir = self.open_root(&made)?;
            match self.create_dir(&dir, name, 0o755) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => made.push(name),
            }
        }
        Ok(())
    }

    /// Writes a file that does not exist. One that does is changed by [`edit`](Self::edit).
    ///
    /// # Errors
    /// As creating and writing a file gives.
    pub fn write_file(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::INVAL.into());
        };
        let file = self.create_file(&self.open_root(parent)?, name, 0o644)?;
        self.write_at(&file, 0, contents)
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// As opening a file gives.
    pub fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::INVAL.into());
        };
        let file = self.open_file(&self.open_root(parent)?, name)?;
        let size = self.metadata(Node::File(&file))?.size;
        let mut contents = vec![0; usize::try_from(size).unwrap_or(0)];
        let len = self.read_at(&file, 0, &mut contents)?;
        contents.truncate(len);
        Ok(contents)
    }

    /// Opens a file that exists for writing, as `open(2)` with `O_WRONLY` does: in a merged view, it
    /// is copied up with its data. The last name is not followed.
    ///
    /// ```
    /// use ovl_diff::TreeBackend as _;
    /// use ovl_testkit::{KernelProfile, MockKernel};
    ///
    /// let kernel = MockKernel::new(KernelProfile::modern());
    /// kernel.write_file("/log".as_ref(), b"one\n")?;
    /// let file = kernel.open_for_writing("/log".as_ref())?;
    /// kernel.write_at(&file, 4, b"two\n")?;
    /// assert_eq!(kernel.read_file("/log".as_ref())?, b"one\ntwo\n");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidInput` for what is no regular file; `EROFS`; what copying up gives, such as `EDQUOT`.
    pub fn open_for_writing(&self, path: &Path) -> io::Result<FileHandle> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::INVAL.into());
        };
        let mut state = self.state();
        let here: MockDir = state.walk(parent, self.process.pid)?;
        let found = here.lookup(&state, name)?.ok_or(Errno::NOENT)?;
        if state.inode(found)?.kind() != FileKind::Regular {
            return Err(not_regular());
        }
        here.writable()?;
        let ino = match here.overlay() {
            None => found,
            Some((overlay, path)) => state.copy_up_data(overlay, path, name)?,
        };
        Ok(MockFile::open(&state, &here.mount, (ino, ino), true)?)
    }

    /// Changes a file that exists in place: one [`open_for_writing`](Self::open_for_writing), and
    /// one write or truncation. As on Linux, either takes the file's `security.capability` away,
    /// whoever does it, and lets root's setuid bit be.
    ///
    /// ```
    /// use ovl_testkit::{Edit, KernelProfile, MockKernel};
    ///
    /// let kernel = MockKernel::new(KernelProfile::modern());
    /// kernel.write_file("/file".as_ref(), b"contents")?;
    /// kernel.edit("/file".as_ref(), Edit::Truncate(4))?;
    /// assert_eq!(kernel.read_file("/file".as_ref())?, b"cont");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`open_for_writing`](Self::open_for_writing), and as writing gives.
    pub fn edit(&self, path: &Path, edit: Edit<'_>) -> io::Result<()> {
        let file = self.open_for_writing(path)?;
        match edit {
            Edit::Write { offset, bytes } => self.write_at(&file, offset, bytes),
            Edit::Truncate(len) => self.set_len(&file, len),
        }
    }
}
