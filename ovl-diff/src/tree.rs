//! The trait through which every tree operation goes, and the values it speaks in.

use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Single steps on a directory tree.
///
/// Everything that must be right after a crash or against a hostile tree (apply, diff, publish,
/// recovery) is built above this trait from these steps, so that a mock of it proves them.
///
/// - A step names its subject by a handle of the backend and at most one path component. No step
///   follows a symbolic link, except [`open_root`](Self::open_root).
/// - A name that is empty, `.`, `..` or holds `/` or NUL is refused with
///   [`io::ErrorKind::InvalidInput`]. So is a handle of another backend.
/// - Modes are given exactly: a step that creates is not subject to the umask of the process.
/// - Errors carry the kernel's error number where there is one
///   ([`io::Error::raw_os_error`]): `EEXIST`, `ENOENT`, `ENOTDIR`, `ELOOP` (a symbolic link where
///   another kind was asked for), `EXDEV`, `ENOTEMPTY`, `EISDIR`, `ENODATA`, `ENOTSUP` and so on.
///
/// Handles stay valid when what they name is renamed or unlinked, as file descriptors do.
pub trait TreeBackend: fmt::Debug + Send + Sync {
    /// Opens the directory at an absolute path, following symbolic links.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `EACCES` and what else `openat2(2)` gives.
    fn open_root(&self, path: &Path) -> io::Result<DirHandle>;

    /// Opens a directory inside another, on the same mount.
    ///
    /// # Errors
    /// `ENOTDIR` or `ELOOP` for a symbolic link, `ENOTDIR` for other kinds, `EXDEV` for a mount
    /// point, `ENOENT`.
    fn open_dir(&self, dir: &DirHandle, name: &OsStr) -> io::Result<DirHandle>;

    /// Lists a directory without `.` and `..`, in no particular order.
    ///
    /// # Errors
    /// What `getdents64(2)` gives.
    fn read_dir(&self, dir: &DirHandle) -> io::Result<Vec<DirEntry>>;

    /// The metadata of an object; of a symbolic link itself, not of its target.
    ///
    /// # Errors
    /// `ENOENT` and what else `statx(2)` gives.
    fn metadata(&self, node: Node<'_>) -> io::Result<Metadata>;

    /// Creates a directory with exactly these permission bits.
    ///
    /// # Errors
    /// `EEXIST`, `ENOSPC`, `EDQUOT`, `ENAMETOOLONG`.
    fn create_dir(&self, dir: &DirHandle, name: &OsStr, mode: u32) -> io::Result<()>;

    /// Creates a regular file that must not exist, open for writing only, with exactly these
    /// permission bits.
    ///
    /// # Errors
    /// `EEXIST`, `ENOSPC`, `EDQUOT`, `ENAMETOOLONG`.
    fn create_file(&self, dir: &DirHandle, name: &OsStr, mode: u32) -> io::Result<FileHandle>;

    /// Opens a regular file for reading. Never blocks on a FIFO or device; but opening a device can
    /// have effects, so whoever may meet one looks at the kind first.
    ///
    /// # Errors
    /// `ELOOP` for a symbolic link, [`io::ErrorKind::InvalidInput`] for any other kind, `ENOENT`.
    fn open_file(&self, dir: &DirHandle, name: &OsStr) -> io::Result<FileHandle>;

    /// Reads at an offset; 0 bytes only at the end of the file or for an empty buffer.
    ///
    /// # Errors
    /// What `pread(2)` gives, except `EINTR`.
    fn read_at(&self, file: &FileHandle, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// The contents of a regular file of at most `max` bytes.
    ///
    /// # Errors
    /// As [`open_file`](Self::open_file) and [`read_at`](Self::read_at), which the default is made
    /// of; [`io::ErrorKind::InvalidData`] for a longer file.
    fn read_small_file(&self, dir: &DirHandle, name: &OsStr, max: usize) -> io::Result<Vec<u8>> {
        let file = self.open_file(dir, name)?;
        let mut contents = vec![0; PIECE];
        let len = self.read_at(&file, 0, &mut contents)?;
        contents.truncate(len);
        rest_of_file(contents, max, |offset, buffer| {
            self.read_at(&file, offset, buffer)
        })
    }

    /// Writes all of `data` at an offset.
    ///
    /// # Errors
    /// What `pwrite(2)` gives, except `EINTR`; part of the data may have been written.
    fn write_at(&self, file: &FileHandle, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Sets the length of a file; growth is a hole.
    ///
    /// # Errors
    /// `EFBIG`, `EINVAL`.
    fn set_len(&self, file: &FileHandle, len: u64) -> io::Result<()>;

    /// The first extent of data at or after `offset`, without what of it lies before `offset`;
    /// `None` when only a hole is left. A backend that knows no holes calls the whole rest data.
    ///
    /// # Errors
    /// What `lseek(2)` gives for `SEEK_DATA` and `SEEK_HOLE`, except `ENXIO`.
    fn next_extent(&self, file: &FileHandle, offset: u64) -> io::Result<Option<Range<u64>>>;

    /// Makes an empty file share all data blocks of another.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the file system cannot; the caller copies then.
    fn share_data(&self, from: &FileHandle, to: &FileHandle) -> io::Result<()>;

    /// Creates a symbolic link with this text.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT` for an empty target, `ENAMETOOLONG`.
    fn create_symlink(&self, dir: &DirHandle, name: &OsStr, target: &OsStr) -> io::Result<()>;

    /// The text of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` when it is none.
    fn read_link(&self, dir: &DirHandle, name: &OsStr) -> io::Result<OsString>;

    /// Creates a FIFO or a device with exactly these permission bits.
    ///
    /// # Errors
    /// `EPERM` for a device in a user namespace (character device 0:0 is allowed there), `EEXIST`.
    fn create_node(
        &self,
        dir: &DirHandle,
        name: &OsStr,
        kind: NodeKind,
        mode: u32,
    ) -> io::Result<()>;

    /// Gives an object that is not a directory another name. Links a symbolic link itself.
    ///
    /// # Errors
    /// `EEXIST`, `EMLINK`, `EXDEV` (also into another quota project), `EPERM` for a directory.
    fn hard_link(
        &self,
        from_dir: &DirHandle,
        from: &OsStr,
        to_dir: &DirHandle,
        to: &OsStr,
    ) -> io::Result<()>;

    /// Renames atomically.
    ///
    /// # Errors
    /// `EEXIST` with [`RenameMode::NoReplace`], `ENOENT`, `EXDEV`, `ENOTEMPTY`, `EBUSY`.
    fn rename(
        &self,
        from_dir: &DirHandle,
        from: &OsStr,
        to_dir: &DirHandle,
        to: &OsStr,
        mode: RenameMode,
    ) -> io::Result<()>;

    /// Removes a name that is not a directory.
    ///
    /// # Errors
    /// `EISDIR`, `ENOENT`, `EPERM` (immutable), `EBUSY` (mount point).
    fn unlink(&self, dir: &DirHandle, name: &OsStr) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOTEMPTY`, `ENOTDIR`, `ENOENT`, `EBUSY` (mount point).
    fn remove_dir(&self, dir: &DirHandle, name: &OsStr) -> io::Result<()>;

    /// Sets owner and group. The kernel clears setuid, setgid and `security.capability`.
    ///
    /// # Errors
    /// `EPERM`, `EINVAL` for an id that the user namespace does not map.
    fn set_owner(&self, node: Node<'_>, uid: u32, gid: u32) -> io::Result<()>;

    /// Sets the permission bits, including setuid, setgid and sticky.
    ///
    /// # Errors
    /// `ENOTSUP` for a symbolic link.
    fn set_mode(&self, node: Node<'_>, mode: u32) -> io::Result<()>;

    /// Sets the modification time; and the access time to the same.
    ///
    /// # Errors
    /// `EINVAL` for `nanos` of 1,000,000,000 and more.
    fn set_mtime(&self, node: Node<'_>, mtime: Timestamp) -> io::Result<()>;

    /// The names of all extended attributes that the caller may see, in no particular order.
    ///
    /// # Errors
    /// What `listxattr(2)` gives; a file system without attributes has an empty list.
    fn list_xattrs(&self, node: Node<'_>) -> io::Result<Vec<OsString>>;

    /// The value of an extended attribute, `None` when it has none of that name.
    ///
    /// # Errors
    /// What `getxattr(2)` gives, except `ENODATA` and `ENOTSUP`.
    fn xattr(&self, node: Node<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>>;

    /// Sets an extended attribute, new or not.
    ///
    /// # Errors
    /// `ENOTSUP`, `EPERM` (`user.*` on anything but files and directories), `ENOSPC` (too large for
    /// ext4), `ERANGE`, `E2BIG`.
    fn set_xattr(&self, node: Node<'_>, name: &OsStr, value: &[u8]) -> io::Result<()>;

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA` when there is none.
    fn remove_xattr(&self, node: Node<'_>, name: &OsStr) -> io::Result<()>;

    /// Takes away the flags that keep a regular file, or the entries of a directory, from being
    /// removed: immutable and append-only. Tells whether there were any; what has no flags has none.
    ///
    /// # Errors
    /// `EPERM` without `CAP_LINUX_IMMUTABLE`.
    fn unprotect(&self, node: Node<'_>) -> io::Result<bool>;

    /// Begins to write a file's data to disk, and does not wait. A hint: nothing is promised by it.
    ///
    /// # Errors
    /// What `posix_fadvise(2)` gives.
    fn start_writeback(&self, file: &FileHandle) -> io::Result<()>;

    /// Waits until an open file's data and metadata, or an open directory's entries, are durable.
    /// [`Node::Entry`] opens the regular file or directory first.
    ///
    /// # Errors
    /// What `fsync(2)` gives; a lost write is reported once.
    fn sync(&self, node: Node<'_>) -> io::Result<()>;
}

/// Most small files are shorter.
pub(crate) const PIECE: usize = 16 * 1024;

/// Reads on after the first piece, which a shorter file does not fill.
pub(crate) fn rest_of_file(
    mut contents: Vec<u8>,
    max: usize,
    read_at: impl Fn(u64, &mut [u8]) -> io::Result<usize>,
) -> io::Result<Vec<u8>> {
    let mut is_whole = contents.len() < PIECE;
    loop {
        let len = contents.len();
        if len > max {
            let message = format!("it has {len} bytes or more, at most {max} are expected");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        if is_whole {
            return Ok(contents);
        }
        contents.resize(len + PIECE, 0);
        let more = read_at(len as u64, &mut contents[len..])?;
        contents.truncate(len + more);
        // The end, on every file system that holds layers.
        is_whole = more < PIECE;
    }
}

/// An open directory of some backend.
#[derive(Clone)]
pub struct DirHandle(Arc<dyn Any + Send + Sync>);

/// An open regular file of some backend.
#[derive(Clone)]
pub struct FileHandle(Arc<dyn Any + Send + Sync>);

macro_rules! handle {
    ($name:ident) => {
        impl $name {
            /// Wraps what the backend needs to find the object again.
            pub fn new<T: Any + Send + Sync>(inner: T) -> Self {
                Self(Arc::new(inner))
            }

            /// What [`new`](Self::new) was given.
            ///
            /// # Errors
            /// [`io::ErrorKind::InvalidInput`] when another backend made the handle.
            pub fn inner<T: Any + Send + Sync>(&self) -> io::Result<&T> {
                self.0.downcast_ref().ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::InvalidInput,
                        concat!("this ", stringify!($name), " belongs to another backend"),
                    )
                })
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:p})", stringify!($name), Arc::as_ptr(&self.0))
            }
        }
    };
}

handle!(DirHandle);
handle!(FileHandle);

/// The subject of a step that works on any object.
#[derive(Clone, Copy, Debug)]
pub enum Node<'a> {
    /// A name in a directory; a symbolic link is the subject itself.
    Entry(&'a DirHandle, &'a OsStr),
    /// An open directory.
    Dir(&'a DirHandle),
    /// An open file.
    File(&'a FileHandle),
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: OsString,
    /// The kind of the object.
    pub kind: FileKind,
    /// Its inode number.
    pub ino: u64,
}

/// The kind of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device. Number 0:0 is overlayfs's whiteout.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// What [`TreeBackend::create_node`] can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
}

/// A device number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// Selects the driver.
    pub major: u32,
    /// Selects the device.
    pub minor: u32,
}

/// What is known of an object without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The kind.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky; no type bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Names of the inode.
    pub nlink: u32,
    /// Apparent size in bytes; of a symbolic link, the length of its text.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// The inode number.
    pub ino: u64,
    /// The file system's device.
    pub dev: DeviceNumber,
    /// The device that a device node stands for.
    pub rdev: DeviceNumber,
    /// The last change of the contents.
    pub mtime: Timestamp,
    /// The last change of contents or metadata; not settable.
    pub ctime: Timestamp,
}

impl Metadata {
    /// Whether this is overlayfs's whiteout device.
    #[must_use]
    pub fn is_whiteout_device(&self) -> bool {
        self.kind == FileKind::CharDevice && self.rdev == DeviceNumber::default()
    }

    /// Whether as much is allocated as the size says: such a file has no holes. Others may have
    /// none either, where the file system compresses.
    pub(crate) fn is_dense(&self) -> bool {
        self.blocks.saturating_mul(512) >= self.size
    }

    /// Whether this is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }
}

/// A point in time, relative to the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds, rounded down; negative before 1970.
    pub secs: i64,
    /// Nanoseconds after `secs`, below 1,000,000,000.
    pub nanos: u32,
}

/// How [`TreeBackend::rename`] treats what already has the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces it.
    Replace,
    /// Fails with `EEXIST`.
    NoReplace,
    /// Swaps the two; both must exist.
    Exchange,
}
