//! The three system calls that need unsafe code; nothing else in the crate does.

#![expect(
    unsafe_code,
    reason = "rustix has no safe unshare, no mount_setattr and no ustat"
)]

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

/// Gives the calling thread a working directory, root and umask of its own (`unshare(2)`,
/// `CLONE_FS`).
pub(crate) fn unshare_fs() -> io::Result<()> {
    // SAFETY: the callee requires that no thread is left without descriptors that another one
    // opened, which only `CLONE_FILES` can do; this call unshares `CLONE_FS` and nothing else.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.map_err(io::Error::from)
}

/// Sets attributes and propagation of one mount in one step (`mount_setattr(2)`, Linux 5.12).
///
/// Works on a mount that is attached nowhere yet, which `mount(2)` cannot remount. Attributes are
/// only added, so those that a user namespace has locked stay.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    set: MountAttrFlags,
    propagation: MountPropagationFlags,
) -> io::Result<()> {
    let attr = MountAttr {
        attr_set: set.bits().into(),
        attr_clr: 0,
        propagation: propagation.bits().into(),
        userns_fd: 0,
    };
    // SAFETY: the kernel reads a NUL-terminated path and `size_of::<MountAttr>()` bytes; both
    // pointers are to values that outlive the call, and the kernel writes through neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether the kernel has a file system with a device number (`ustat(2)`): `EINVAL` when it has not.
#[cfg(target_arch = "x86_64")]
pub(crate) fn ustat(device: u64) -> io::Result<()> {
    // Twice the size of `struct ustat` of `include/linux/types.h`, and as aligned.
    let mut answer = [0_u64; 8];
    // The kernel takes the lower half, in which the library's numbers are the kernel's.
    let device = u32::try_from(device).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes a `struct ustat` of 32 bytes at the pointer, which is to a larger
    // value that outlives the call, and reads nothing.
    let result = unsafe { libc::syscall(libc::SYS_ustat, device, answer.as_mut_ptr()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn ustat(_: u64) -> io::Result<()> {
    Err(rustix::io::Errno::NOSYS.into())
}

/// `struct mount_attr` of `include/uapi/linux/mount.h`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const _: () = {
    // MOUNT_ATTR_SIZE_VER0.
    assert!(size_of::<MountAttr>() == 32);
    assert!(align_of::<MountAttr>() == align_of::<u64>());
    assert!(offset_of!(MountAttr, attr_set) == 0);
    assert!(offset_of!(MountAttr, attr_clr) == 8);
    assert!(offset_of!(MountAttr, propagation) == 16);
    assert!(offset_of!(MountAttr, userns_fd) == 24);
};
