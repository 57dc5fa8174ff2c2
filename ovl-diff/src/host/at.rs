//! The parts of steps: checked names, metadata, and what system calls relative to a directory
//! cannot do.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, Stat, Statx, StatxFlags, StatxTimestamp,
};
use rustix::io::{Errno, retry_on_intr};

use crate::tree::{DeviceNumber, FileKind, Metadata, Timestamp};

/// The bits of a mode that are not the type.
pub(super) const PERMISSIONS: u32 = 0o7777;
/// How directories are opened.
pub(super) const OPEN_DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
/// Where the open descriptors are found as paths.
const DESCRIPTORS: &str = "/proc/self/fd";
/// Where the kernel describes them.
const DESCRIPTIONS: &str = "/proc/thread-self/fdinfo";

/// A name that is one path component and stays in its directory.
pub(super) fn component(name: &OsStr) -> io::Result<&OsStr> {
    let bytes = name.as_bytes();
    if matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
        let message = format!("{name:?} is not the name of a directory entry");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(name)
}

pub(super) fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & PERMISSIONS)
}

pub(super) fn is(error: &io::Error, number: Errno) -> bool {
    error.raw_os_error() == Some(number.raw_os_error())
}

/// What `openat2(2)` gives for one component: no symbolic link, no other mount.
pub(super) fn open_dir_same_mount(dir: &File, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OPEN_DIR | OFlags::NOFOLLOW;
    let opened = retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::empty()))?;
    if mount_id(dir.as_fd())? != mount_id(opened.as_fd())? {
        return Err(Errno::XDEV.into());
    }
    Ok(opened)
}

/// By `statx(2)` (Linux 5.8), or as `/proc` has it.
fn mount_id(open: BorrowedFd<'_>) -> io::Result<u64> {
    match rustix::fs::statx(open, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID) {
        Ok(stat) if StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID) => {
            return Ok(stat.stx_mnt_id);
        }
        Err(error) if !is_denied(error) => return Err(error.into()),
        _ => {}
    }
    let told = std::fs::read_to_string(format!("{DESCRIPTIONS}/{}", open.as_raw_fd()));
    let line = told.as_ref().ok().and_then(|told| {
        let mut lines = told.lines();
        lines.find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
    });
    line.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            "directories cannot be opened without leaving the mount: that needs openat2(2) \
             (Linux 5.6), mount ids in statx(2) (Linux 5.8) or a mounted /proc",
        )
    })
}

/// What an old kernel answers, and what a filter of system calls answers; the calls that are asked
/// here give neither for any other reason.
fn is_denied(error: Errno) -> bool {
    error == Errno::NOSYS || error == Errno::PERM
}

pub(super) fn entry_metadata(dir: &File, name: &OsStr) -> io::Result<Metadata> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS) {
        Err(error) if is_denied(error) => metadata_of(&rustix::fs::statat(dir, name, flags)?),
        stat => metadata_from(&stat?),
    }
}

pub(super) fn open_metadata(open: impl AsFd) -> io::Result<Metadata> {
    match rustix::fs::statx(&open, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS) {
        Err(error) if is_denied(error) => metadata_of(&rustix::fs::fstat(open)?),
        stat => metadata_from(&stat?),
    }
}

/// The same from `fstatat(2)`, which every kernel has.
fn metadata_of(stat: &Stat) -> io::Result<Metadata> {
    let device = |number| DeviceNumber {
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
    };
    let time = |secs, nanos| -> io::Result<Timestamp> {
        let nanos = u32::try_from(nanos).map_err(|_| malformed("time"))?;
        Ok(Timestamp { secs, nanos })
    };
    Ok(Metadata {
        kind: kind_of(stat.st_mode)?,
        mode: stat.st_mode & PERMISSIONS,
        uid: stat.st_uid,
        gid: stat.st_gid,
        nlink: u32::try_from(stat.st_nlink).map_err(|_| malformed("count of links"))?,
        size: u64::try_from(stat.st_size).map_err(|_| malformed("size"))?,
        blocks: u64::try_from(stat.st_blocks).map_err(|_| malformed("count of blocks"))?,
        ino: stat.st_ino,
        dev: device(stat.st_dev),
        rdev: device(stat.st_rdev),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec)?,
        ctime: time(stat.st_ctime, stat.st_ctime_nsec)?,
    })
}

fn malformed(what: &str) -> io::Error {
    let message = format!("the kernel tells a {what} that cannot be");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn kind_of(mode: u32) -> io::Result<FileKind> {
    file_kind(FileType::from_raw_mode(mode)).ok_or_else(|| {
        let message = format!("the kernel knows no file type {:#o}", mode & !PERMISSIONS);
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

fn metadata_from(stat: &Statx) -> io::Result<Metadata> {
    let mode = u32::from(stat.stx_mode);
    Ok(Metadata {
        kind: kind_of(mode)?,
        mode: mode & PERMISSIONS,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        nlink: stat.stx_nlink,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        ino: stat.stx_ino,
        dev: DeviceNumber {
            major: stat.stx_dev_major,
            minor: stat.stx_dev_minor,
        },
        rdev: DeviceNumber {
            major: stat.stx_rdev_major,
            minor: stat.stx_rdev_minor,
        },
        mtime: timestamp(stat.stx_mtime),
        ctime: timestamp(stat.stx_ctime),
    })
}

/// The kernel rounds seconds down, as [`Timestamp`] does.
fn timestamp(time: StatxTimestamp) -> Timestamp {
    Timestamp {
        secs: time.tv_sec,
        nanos: time.tv_nsec,
    }
}

pub(super) fn file_kind(file_type: FileType) -> Option<FileKind> {
    Some(match file_type {
        FileType::Directory => FileKind::Directory,
        FileType::RegularFile => FileKind::Regular,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Unknown => return None,
    })
}

pub(super) fn require_regular(kind: FileKind) -> io::Result<()> {
    match kind {
        FileKind::Regular => Ok(()),
        FileKind::Symlink => Err(Errno::LOOP.into()),
        _ => {
            let message = format!("expected a regular file, found {kind:?}");
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
    }
}

/// Undoes what the umask, a default ACL and a setgid parent did to the mode of a new entry.
pub(super) fn settle_mode(dir: &File, name: &OsStr, mode: u32) -> io::Result<()> {
    if entry_metadata(dir, name)?.mode == mode & PERMISSIONS {
        return Ok(());
    }
    set_entry_mode(dir, name, mode)
}

/// `fchmodat(2)` follows symbolic links, and `fchmodat2(2)` is Linux 6.6: go through a descriptor
/// that opens nothing and needs no permission on the object.
pub(super) fn set_entry_mode(dir: &File, name: &OsStr, mode: u32) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let object = retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::empty()))?;
    // Before Linux 6.6 some file systems would set it.
    if open_metadata(&object)?.kind == FileKind::Symlink {
        return Err(Errno::OPNOTSUPP.into());
    }
    let path = format!("{DESCRIPTORS}/{}", object.as_raw_fd());
    rustix::fs::chmodat(CWD, path, permissions(mode), AtFlags::empty())
        .map_err(|error| explain(error.into()))
}

/// A path for the calls that know none relative to a descriptor; it has no link but `/proc`'s own.
pub(super) fn entry_path(dir: &File, name: &OsStr) -> PathBuf {
    let mut path = OsString::from(format!("{DESCRIPTORS}/{}/", dir.as_raw_fd()));
    path.push(name);
    path.into()
}

/// Says so when the reason for "no such file" is that the way there is missing.
pub(super) fn explain(error: io::Error) -> io::Error {
    if !is(&error, Errno::NOENT) || rustix::fs::access(DESCRIPTORS, Access::EXISTS).is_ok() {
        return error;
    }
    let message = format!("{DESCRIPTORS} is missing: mount procfs on /proc");
    io::Error::new(io::ErrorKind::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_openat2_directories_are_opened_as_strictly() {
        let root = File::open("/").unwrap();
        let proc = File::open("/proc").unwrap();
        let open = |dir, name| open_dir_same_mount(dir, OsStr::new(name));
        let number = |result: io::Result<OwnedFd>| result.unwrap_err().raw_os_error();
        assert_eq!(
            number(open(&root, "proc")),
            Some(Errno::XDEV.raw_os_error())
        );
        // A symbolic link to a directory, and a magic one.
        assert_eq!(
            number(open(&proc, "net")),
            Some(Errno::NOTDIR.raw_os_error())
        );
        let own = File::open("/proc/self").unwrap();
        assert_eq!(
            number(open(&own, "root")),
            Some(Errno::NOTDIR.raw_os_error())
        );
        assert_eq!(
            number(open(&proc, "version")),
            Some(Errno::NOTDIR.raw_os_error())
        );
        assert_eq!(
            number(open(&proc, "none")),
            Some(Errno::NOENT.raw_os_error())
        );
        let inner = open(&proc, "sys").unwrap();
        assert_eq!(
            mount_id(inner.as_fd()).unwrap(),
            mount_id(proc.as_fd()).unwrap()
        );
    }
}
