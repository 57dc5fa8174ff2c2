//! The system calls and structures of project quotas that no dependency has.
//!
//! The only module of this crate with unsafe code.

#![allow(
    unsafe_code,
    reason = "quotactl(2), quotactl_fd(2) and two ioctls have no safe wrapper"
)]

mod layout;

use std::ffi::{CStr, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

pub(crate) use layout::{FsDiskQuota, FsQuotaStatv, FsXattr};

/// `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR` of `linux/fs.h`.
const FSGETXATTR: Opcode = opcode::read::<FsXattr>(b'X', 31);
const FSSETXATTR: Opcode = opcode::write::<FsXattr>(b'X', 32);

/// Quota commands of `linux/dqblk_xfs.h`, for projects: `QCMD(XQM_CMD(n), PRJQUOTA)`.
#[derive(Clone, Copy)]
struct Command(libc::c_uint);

impl Command {
    const GET: Self = Self::xqm(3);
    const SET_LIMITS: Self = Self::xqm(4);
    const STATE: Self = Self::xqm(8);
    const GET_NEXT: Self = Self::xqm(9);

    const fn xqm(number: u8) -> Self {
        const PRJQUOTA: libc::c_uint = 2;
        Self((((b'X' as libc::c_uint) << 8) + number as libc::c_uint) << 8 | PRJQUOTA)
    }
}

/// Which file system a quota command is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// The one with this open file: `quotactl_fd(2)`.
    Fd(BorrowedFd<'a>),
    /// The one on this block device: `quotactl(2)`.
    Device(&'a CStr),
}

/// Whether `quotactl_fd(2)` is there: not before Linux 5.14, and not where a system call filter
/// keeps it away. `ENOSYS` of a real call would not tell, a file system answers so too.
pub(crate) fn has_quotactl_fd() -> bool {
    // SAFETY: the call wants a file descriptor, a command, an id and an address that the command
    // reads or writes. -1 is no file descriptor, so that it fails before it looks at the address.
    let status = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            -1 as libc::c_int,
            Command::STATE.0,
            0 as libc::c_uint,
            ptr::null_mut::<c_void>(),
        )
    };
    status == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EBADF)
}

/// The state of project quotas. Fails with `ENOSYS` if they are off.
pub(crate) fn state(target: Target<'_>) -> io::Result<FsQuotaStatv> {
    let mut state = FsQuotaStatv::request();
    // SAFETY: Q_XGETQSTATV writes one `fs_quota_statv`, which `FsQuotaStatv` is laid out as; any
    // bytes are valid in it.
    unsafe { quotactl(target, Command::STATE, 0, ptr::from_mut(&mut state).cast()) }?;
    Ok(state)
}

/// Usage and limits of a project.
pub(crate) fn quota(target: Target<'_>, project: u32) -> io::Result<FsDiskQuota> {
    let mut quota = FsDiskQuota::default();
    // SAFETY: Q_XGETQUOTA writes one `fs_disk_quota`, which `FsDiskQuota` is laid out as; any bytes
    // are valid in it.
    unsafe {
        quotactl(
            target,
            Command::GET,
            project,
            ptr::from_mut(&mut quota).cast(),
        )
    }?;
    Ok(quota)
}

/// Usage and limits of the first project at or after this one that has any.
pub(crate) fn next_quota(target: Target<'_>, project: u32) -> io::Result<FsDiskQuota> {
    let mut quota = FsDiskQuota::default();
    // SAFETY: Q_XGETNEXTQUOTA writes one `fs_disk_quota`, which `FsDiskQuota` is laid out as; any
    // bytes are valid in it.
    unsafe {
        quotactl(
            target,
            Command::GET_NEXT,
            project,
            ptr::from_mut(&mut quota).cast(),
        )
    }?;
    Ok(quota)
}

/// Sets the limits of a project.
pub(crate) fn set_limits(target: Target<'_>, quota: &FsDiskQuota) -> io::Result<()> {
    let mut request = *quota;
    // SAFETY: Q_XSETQLIM reads one `fs_disk_quota`, which `FsDiskQuota` is laid out as.
    unsafe {
        quotactl(
            target,
            Command::SET_LIMITS,
            quota.d_id,
            ptr::from_mut(&mut request).cast(),
        )
    }
}

/// Project id and flags of an open file.
pub(crate) fn xattr(file: BorrowedFd<'_>) -> io::Result<FsXattr> {
    // SAFETY: FS_IOC_FSGETXATTR writes one `fsxattr`, which `FsXattr` is laid out as; any bytes are
    // valid in it.
    let request = unsafe { Getter::<FSGETXATTR, FsXattr>::new() };
    // SAFETY: the request fits the opcode, see above. A device that takes the number for something
    // else is out of reach: callers open directories only.
    Ok(unsafe { ioctl(file, request) }?)
}

/// Sets project id and flags of an open file.
pub(crate) fn set_xattr(file: BorrowedFd<'_>, xattr: FsXattr) -> io::Result<()> {
    // SAFETY: FS_IOC_FSSETXATTR reads one `fsxattr`, which `FsXattr` is laid out as.
    let request = unsafe { Setter::<FSSETXATTR, FsXattr>::new(xattr) };
    // SAFETY: the request fits the opcode, see above. A device that takes the number for something
    // else is out of reach: callers open directories only.
    Ok(unsafe { ioctl(file, request) }?)
}

/// # Safety
///
/// `address` is valid for what `command` reads or writes there.
unsafe fn quotactl(
    target: Target<'_>,
    command: Command,
    id: libc::c_uint,
    address: *mut c_void,
) -> io::Result<()> {
    let status = match target {
        Target::Fd(fd) => {
            // SAFETY: the call wants an open file descriptor, which is borrowed, a command, an id
            // and an address, which the caller vouches for.
            unsafe {
                libc::syscall(
                    libc::SYS_quotactl_fd,
                    fd.as_raw_fd(),
                    command.0,
                    id,
                    address,
                )
            }
        }
        Target::Device(path) => {
            // SAFETY: the call wants a command, a path that ends in NUL, which a `CStr` does, an id
            // and an address, which the caller vouches for.
            unsafe { libc::syscall(libc::SYS_quotactl, command.0, path.as_ptr(), id, address) }
        }
    };
    if status == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, FSGETXATTR, FSSETXATTR};

    #[test]
    fn numbers_are_those_that_docker_uses() {
        assert_eq!(Command::GET.0, 0x0058_0302);
        assert_eq!(Command::SET_LIMITS.0, 0x0058_0402);
        assert_eq!(Command::STATE.0, 0x0058_0802);
        assert_eq!(Command::GET_NEXT.0, 0x0058_0902);
        if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
            assert_eq!(FSGETXATTR, 0x801c_581f);
            assert_eq!(FSSETXATTR, 0x401c_5820);
        }
    }
}
