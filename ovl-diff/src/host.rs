//! Trees of the running system.

mod at;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, FileType, Gid, IFlags, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom,
    Timespec, Timestamps, Uid,
};
use rustix::io::{Errno, retry_on_intr};
use xattr::FileExt as _;

use self::at::{
    OPEN_DIR, PERMISSIONS, component, entry_metadata, entry_path, explain, file_kind, is,
    open_dir_same_mount, open_metadata, permissions, require_regular, set_entry_mode, settle_mode,
};
use crate::tree::{
    DeviceNumber, DirEntry, DirHandle, FileHandle, FileKind, Metadata, Node, NodeKind, PIECE,
    RenameMode, Timestamp, TreeBackend, rest_of_file,
};

/// The bits that `open(2)` with `O_CREAT` grants whatever the usual umask or parent directory says.
const OWNER_PERMISSIONS: u32 = 0o700;
/// What `timespec` allows; more means "now" or "leave alone" to `utimensat(2)`.
const NANOS_PER_SEC: u32 = 1_000_000_000;
/// Bytes for one call of `getdents64(2)`, as glibc's `readdir` has them.
const LISTING_LEN: usize = 32 * 1024;

const OPEN_FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
const CREATE_FILE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The trees of the running system, by file descriptors: every handle is an open descriptor, and
/// every step a system call relative to one.
///
/// - Needs `openat2(2)` (Linux 5.6) or, where a sandbox forbids it, mount ids from `statx(2)`
///   (Linux 5.8).
/// - Modes and extended attributes of a [`Node::Entry`] go through `/proc/self/fd`. Without a mounted
///   `/proc` these steps fail with [`io::ErrorKind::Unsupported`].
/// - A new file whose mode has only owner bits gets no further call to correct its mode: a umask or a
///   default ACL that takes permissions from the owner himself shows in it. All other modes are
///   exact.
/// - A file or directory created where a default ACL is inherits that ACL, as the kernel has it.
///
/// # Examples
///
/// ```
/// use std::ffi::OsStr;
/// use ovl_diff::{HostTree, Node, TreeBackend as _};
///
/// let tree = HostTree::default();
/// let root = tree.open_root("/".as_ref())?;
/// let proc = tree.metadata(Node::Entry(&root, OsStr::new("proc")))?;
/// assert!(proc.is_dir());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct HostTree {}

impl HostTree {
    /// The descriptor behind a directory handle, open for reading. Its position is the backend's.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when another backend made the handle.
    pub fn dir_fd(handle: &DirHandle) -> io::Result<BorrowedFd<'_>> {
        dir_file(handle).map(AsFd::as_fd)
    }

    /// The same directory with a position and locks of its own, see `open(2)` on open file
    /// descriptions, which clones of a handle share.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when another backend made the handle; what `openat(2)` gives.
    pub fn open_again(handle: &DirHandle) -> io::Result<DirHandle> {
        let dir = dir_file(handle)?;
        let opened = retry_on_intr(|| rustix::fs::openat(dir, c".", OPEN_DIR, Mode::empty()))?;
        Ok(dir_handle(opened))
    }
}

/// What a [`DirHandle`] of this backend holds.
struct HostDir {
    file: File,
    /// Clones of the handle share the position of the descriptor, which a listing moves.
    listing: Mutex<()>,
}

/// What a [`FileHandle`] of this backend holds.
struct HostFile(File);

fn dir_file(handle: &DirHandle) -> io::Result<&File> {
    Ok(&handle.inner::<HostDir>()?.file)
}

fn file(handle: &FileHandle) -> io::Result<&File> {
    Ok(&handle.inner::<HostFile>()?.0)
}

/// Why a file cannot be opened.
fn not_opened(dir: &File, name: &OsStr, error: Errno) -> io::Error {
    if matches!(error, Errno::NOENT | Errno::LOOP) {
        return error.into();
    }
    // Sockets, and devices without a driver or on a mount without devices.
    let kind = entry_metadata(dir, name).and_then(|found| require_regular(found.kind));
    kind.err().unwrap_or_else(|| error.into())
}

fn read_file_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A [`Node`] whose handle and name have been checked.
enum Subject<'a> {
    Entry(&'a File, &'a OsStr),
    Open(&'a File),
}

impl<'a> Subject<'a> {
    fn of(node: Node<'a>) -> io::Result<Self> {
        Ok(match node {
            Node::Entry(dir, name) => Self::Entry(dir_file(dir)?, component(name)?),
            Node::Dir(dir) => Self::Open(dir_file(dir)?),
            Node::File(handle) => Self::Open(file(handle)?),
        })
    }
}

impl TreeBackend for HostTree {
    fn open_root(&self, path: &Path) -> io::Result<DirHandle> {
        if !path.is_absolute() {
            let message = format!("the path {path:?} of a tree is not absolute");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(dir_handle(retry_on_intr(|| {
            rustix::fs::open(path, OPEN_DIR, Mode::empty())
        })?))
    }

    fn open_dir(&self, dir: &DirHandle, name: &OsStr) -> io::Result<DirHandle> {
        let (dir, name) = (dir_file(dir)?, component(name)?);
        // One component never leads up. `BENEATH` would refuse, as another mount, a directory that is
        // moved elsewhere meanwhile.
        let confined =
            ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let flags = OPEN_DIR | OFlags::NOFOLLOW;
        let opened =
            retry_on_intr(|| rustix::fs::openat2(dir, name, flags, Mode::empty(), confined));
        match opened {
            Ok(opened) => Ok(dir_handle(opened)),
            // An old kernel, or a sandbox that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => Ok(dir_handle(open_dir_same_mount(dir, name)?)),
            Err(error) => Err(error.into()),
        }
    }

    fn read_dir(&self, dir: &DirHandle) -> io::Result<Vec<DirEntry>> {
        let HostDir { file: dir, listing } = dir.inner()?;
        let _alone = listing.lock().unwrap_or_else(PoisonError::into_inner);
        // Some file systems show what was there when the directory was opened, or went back to its
        // beginning.
        rustix::fs::seek(dir, SeekFrom::Start(0))?;
        let mut buffer = Vec::with_capacity(LISTING_LEN);
        let mut listing = RawDir::new(dir, buffer.spare_capacity_mut());
        let mut entries = Vec::new();
        while let Some(entry) = listing.next() {
            let entry = match entry {
                Err(Errno::INTR) => continue,
                entry => entry?,
            };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match file_kind(entry.file_type()) {
                Some(kind) => kind,
                // A file system without types in its entries.
                None => match entry_metadata(dir, name) {
                    // Removed since.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    metadata => metadata?.kind,
                },
            };
            entries.push(DirEntry {
                name: name.to_owned(),
                kind,
                ino: entry.ino(),
            });
        }
        Ok(entries)
    }

    fn metadata(&self, node: Node<'_>) -> io::Result<Metadata> {
        match Subject::of(node)? {
            Subject::Entry(dir, name) => entry_metadata(dir, name),
            Subject::Open(open) => open_metadata(open),
        }
    }

    fn create_dir(&self, dir: &DirHandle, name: &OsStr, mode: u32) -> io::Result<()> {
        let (dir, name) = (dir_file(dir)?, component(name)?);
        rustix::fs::mkdirat(dir, name, permissions(mode))?;
        settle_mode(dir, name, mode)
    }

    fn create_file(&self, dir: &DirHandle, name: &OsStr, mode: u32) -> io::Result<FileHandle> {
        let (dir, name) = (dir_file(dir)?, component(name)?);
        let mode = mode & PERMISSIONS;
        let created =
            retry_on_intr(|| rustix::fs::openat(dir, name, CREATE_FILE, permissions(mode)))?;
        if mode & !OWNER_PERMISSIONS != 0 {
            rustix::fs::fchmod(&created, permissions(mode))?;
        }
        Ok(FileHandle::new(HostFile(created.into())))
    }

    fn open_file(&self, dir: &DirHandle, name: &OsStr) -> io::Result<FileHandle> {
        let (dir, name) = (dir_file(dir)?, component(name)?);
        match retry_on_intr(|| rustix::fs::openat(dir, name, OPEN_FILE, Mode::empty())) {
            Ok(opened) => {
                let opened = File::from(opened);
                require_regular(open_metadata(&opened)?.kind)?;
                Ok(FileHandle::new(HostFile(opened)))
            }
            Err(error) => Err(not_opened(dir, name, error)),
        }
    }

    fn read_at(&self, handle: &FileHandle, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        read_file_at(file(handle)?, offset, buffer)
    }

    fn read_small_file(&self, dir: &DirHandle, name: &OsStr, max: usize) -> io::Result<Vec<u8>> {
        let (dir, name) = (dir_file(dir)?, component(name)?);
        let opened = match retry_on_intr(|| rustix::fs::openat(dir, name, OPEN_FILE, Mode::empty()))
        {
            Ok(opened) => File::from(opened),
            Err(error) => return Err(not_opened(dir, name, error)),
        };
        let mut contents = Vec::with_capacity(PIECE);
        let read = retry_on_intr(|| rustix::io::pread(&opened, spare_capacity(&mut contents), 0));
        // Nothing else looks like that: directories and pipes refuse such a read, and devices have
        // no contents or no end.
        if !matches!(read, Ok(1..PIECE)) {
            require_regular(open_metadata(&opened)?.kind)?;
        }
        read?;
        rest_of_file(contents, max, |offset, buffer| {
            read_file_at(&opened, offset, buffer)
        })
    }

    fn write_at(&self, handle: &FileHandle, offset: u64, data: &[u8]) -> io::Result<()> {
        file(handle)?.write_all_at(data, offset)
    }

    fn set_len(&self, handle: &FileHandle, len: u64) -> io::Result<()> {
        let file = file(handle)?;
        Ok(retry_on_intr(|| rustix::fs::ftruncate(file, len))?)
    }

    fn next_extent(&self, handle: &FileHandle, offset: u64) -> io::Result<Option<Range<u64>>> {
        let file = file(handle)?;
        let start = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                let size = open_metadata(file)?.size;
                return Ok((offset < size).then_some(offset..size));
            }
            Err(error) => return Err(error.into()),
        };
        match rustix::fs::seek(file, SeekFrom::Hole(start)) {
            Ok(end) => Ok(Some(start..end)),
            // Cut short since.
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn share_data(&self, from: &FileHandle, to: &FileHandle) -> io::Result<()> {
        let (from, to) = (file(from)?, file(to)?);
        match retry_on_intr(|| rustix::fs::ioctl_ficlone(to, from)) {
            Ok(()) => Ok(()),
            // See ioctl_ficlone(2); which of them depends on the file system.
            Err(
                error @ (Errno::OPNOTSUPP
                | Errno::XDEV
                | Errno::INVAL
                | Errno::NOTTY
                | Errno::NOSYS),
            ) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                io::Error::from(error),
            )),
            Err(error) => Err(error.into()),
        }
    }

    fn create_symlink(&self, dir: &DirHandle, name: &OsStr, target: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(
            target,
            dir_file(dir)?,
            component(name)?,
        )?)
    }

    fn read_link(&self, dir: &DirHandle, name: &OsStr) -> io::Result<OsString> {
        let target = rustix::fs::readlinkat(dir_file(dir)?, component(name)?, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    fn create_node(
        &self,
        dir: &DirHandle,
        name: &OsStr,
        kind: NodeKind,
        mode: u32,
    ) -> io::Result<()> {
        let (dir, name) = (dir_file(dir)?, component(name)?);
        let (file_type, device) = match kind {
            NodeKind::Fifo => (FileType::Fifo, DeviceNumber::default()),
            NodeKind::CharDevice(number) => (FileType::CharacterDevice, number),
            NodeKind::BlockDevice(number) => (FileType::BlockDevice, number),
        };
        let device = rustix::fs::makedev(device.major, device.minor);
        rustix::fs::mknodat(dir, name, file_type, permissions(mode), device)?;
        settle_mode(dir, name, mode)
    }

    fn hard_link(
        &self,
        from_dir: &DirHandle,
        from: &OsStr,
        to_dir: &DirHandle,
        to: &OsStr,
    ) -> io::Result<()> {
        let (from_dir, from) = (dir_file(from_dir)?, component(from)?);
        let (to_dir, to) = (dir_file(to_dir)?, component(to)?);
        Ok(rustix::fs::linkat(
            from_dir,
            from,
            to_dir,
            to,
            AtFlags::empty(),
        )?)
    }

    fn rename(
        &self,
        from_dir: &DirHandle,
        from: &OsStr,
        to_dir: &DirHandle,
        to: &OsStr,
        mode: RenameMode,
    ) -> io::Result<()> {
        let (from_dir, from) = (dir_file(from_dir)?, component(from)?);
        let (to_dir, to) = (dir_file(to_dir)?, component(to)?);
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
        };
        Ok(rustix::fs::renameat_with(
            from_dir, from, to_dir, to, flags,
        )?)
    }

    fn unlink(&self, dir: &DirHandle, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(
            dir_file(dir)?,
            component(name)?,
            AtFlags::empty(),
        )?)
    }

    fn remove_dir(&self, dir: &DirHandle, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(
            dir_file(dir)?,
            component(name)?,
            AtFlags::REMOVEDIR,
        )?)
    }

    fn set_owner(&self, node: Node<'_>, uid: u32, gid: u32) -> io::Result<()> {
        // chown(2) takes this number for "leave alone".
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::INVAL.into());
        }
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        Ok(match Subject::of(node)? {
            Subject::Entry(dir, name) => {
                rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
            Subject::Open(open) => rustix::fs::fchown(open, uid, gid),
        }?)
    }

    fn set_mode(&self, node: Node<'_>, mode: u32) -> io::Result<()> {
        match Subject::of(node)? {
            Subject::Entry(dir, name) => set_entry_mode(dir, name, mode),
            Subject::Open(open) => Ok(rustix::fs::fchmod(open, permissions(mode))?),
        }
    }

    fn set_mtime(&self, node: Node<'_>, mtime: Timestamp) -> io::Result<()> {
        if mtime.nanos >= NANOS_PER_SEC {
            return Err(Errno::INVAL.into());
        }
        let time = Timespec {
            tv_sec: mtime.secs,
            tv_nsec: mtime.nanos.into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        Ok(match Subject::of(node)? {
            Subject::Entry(dir, name) => {
                rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            Subject::Open(open) => rustix::fs::futimens(open, &times),
        }?)
    }

    fn list_xattrs(&self, node: Node<'_>) -> io::Result<Vec<OsString>> {
        let names = match Subject::of(node)? {
            Subject::Entry(dir, name) => xattr::list(entry_path(dir, name)),
            Subject::Open(open) => open.list_xattr(),
        };
        match names {
            Ok(names) => Ok(names.collect()),
            Err(error) if is(&error, Errno::OPNOTSUPP) => Ok(Vec::new()),
            Err(error) => Err(explain(error)),
        }
    }

    fn xattr(&self, node: Node<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        let value = match Subject::of(node)? {
            Subject::Entry(dir, entry) => xattr::get(entry_path(dir, entry), name),
            Subject::Open(open) => open.get_xattr(name),
        };
        match value {
            Err(error) if is(&error, Errno::OPNOTSUPP) => Ok(None),
            value => value.map_err(explain),
        }
    }

    fn set_xattr(&self, node: Node<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
        match Subject::of(node)? {
            Subject::Entry(dir, entry) => xattr::set(entry_path(dir, entry), name, value),
            Subject::Open(open) => open.set_xattr(name, value),
        }
        .map_err(explain)
    }

    fn remove_xattr(&self, node: Node<'_>, name: &OsStr) -> io::Result<()> {
        match Subject::of(node)? {
            Subject::Entry(dir, entry) => xattr::remove(entry_path(dir, entry), name),
            Subject::Open(open) => open.remove_xattr(name),
        }
        .map_err(explain)
    }

    fn unprotect(&self, node: Node<'_>) -> io::Result<bool> {
        let opened;
        let open: &File = match node {
            Node::Dir(dir) => dir_file(dir)?,
            Node::File(handle) => file(handle)?,
            Node::Entry(dir, name) => {
                let dir = dir_file(dir)?;
                let kind = entry_metadata(dir, component(name)?)?.kind;
                if !matches!(kind, FileKind::Regular | FileKind::Directory) {
                    return Ok(false);
                }
                let open = || rustix::fs::openat(dir, name, OPEN_FILE, Mode::empty());
                opened = File::from(retry_on_intr(open)?);
                &opened
            }
        };
        let flags = match rustix::fs::ioctl_getflags(open) {
            Err(Errno::NOTTY | Errno::NOTSUP) => return Ok(false),
            flags => flags?,
        };
        let protecting = IFlags::IMMUTABLE | IFlags::APPEND;
        if !flags.intersects(protecting) {
            return Ok(false);
        }
        rustix::fs::ioctl_setflags(open, flags - protecting)?;
        Ok(true)
    }

    fn start_writeback(&self, handle: &FileHandle) -> io::Result<()> {
        // The one safe call that begins to write without waiting; dirty pages stay in memory.
        let advice = rustix::fs::Advice::DontNeed;
        Ok(rustix::fs::fadvise(file(handle)?, 0, None, advice)?)
    }

    fn sync(&self, node: Node<'_>) -> io::Result<()> {
        let fsync = |open: &File| Ok(retry_on_intr(|| rustix::fs::fsync(open))?);
        match node {
            Node::Dir(dir) => fsync(dir_file(dir)?),
            Node::File(handle) => fsync(file(handle)?),
            Node::Entry(dir, name) if self.metadata(node)?.is_dir() => {
                fsync(dir_file(&self.open_dir(dir, name)?)?)
            }
            Node::Entry(dir, name) => fsync(file(&self.open_file(dir, name)?)?),
        }
    }
}

fn dir_handle(opened: OwnedFd) -> DirHandle {
    DirHandle::new(HostDir {
        file: opened.into(),
        listing: Mutex::new(()),
    })
}
