use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstatfs, open};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::backend::{Enforcement, KeepsToLimits, QuotaBackend};
use crate::device::device_of;
use crate::limits::{Limits, Usage};
use crate::project::{ProjectId, ProjectRange};
use crate::sys::{self, FsDiskQuota, FsQuotaStatv, FsXattr, Target};
use crate::units::{BasicBlocks, Bytes};

/// The quotas of XFS and ext4, by system calls.
///
/// It keeps no state: every call opens the directory that it is about and asks the kernel.
///
/// # Kernel
///
/// Both file systems understand the quota commands of XFS, in blocks of 512 bytes. They go through
/// `quotactl_fd(2)` (Linux 5.14). Where it is missing, or a system call filter refuses it, they go
/// through `quotactl(2)` with the block device of the mount, which must be in `/dev`; else they
/// fail with [`io::ErrorKind::Unsupported`].
///
/// Only hard limits are set, and soft limits cleared: with both at the same size XFS would not
/// reduce its preallocations on the way to the limit.
///
/// # Compatibility
///
/// Docker's driver sets hard and soft limit, on XFS only, and makes a device node
/// `backingFsBlockDev` in the home. Limits that it has set are read here and the other way round.
///
/// # References
///
/// `quotactl(2)`, `FS_IOC_FSSETXATTR(2const)`, `xfs_quota(8)`; `linux/dqblk_xfs.h`, `linux/fs.h`.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct HostQuota;

impl HostQuota {
    /// The host's quotas.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl QuotaBackend for HostQuota {
    fn project_of(&self, dir: &Path) -> io::Result<Option<ProjectId>> {
        let Some(xattr) = xattr_of(&open_dir(dir)?)? else {
            return Ok(None);
        };
        match xattr.fsx_projid {
            0 => Ok(None),
            id => project(id).map(Some),
        }
    }

    fn inherits(&self, dir: &Path) -> io::Result<bool> {
        let xattr = xattr_of(&open_dir(dir)?)?;
        Ok(xattr.is_some_and(|xattr| xattr.fsx_xflags & FsXattr::PROJINHERIT != 0))
    }

    fn assign_project(&self, dir: &Path, project: Option<ProjectId>) -> io::Result<()> {
        let dir = open_dir(dir)?;
        // What else is in the structure is set too, so it has to be what it was.
        let before = sys::xattr(dir.as_fd())?;
        let mut after = before;
        match project {
            Some(project) => {
                after.fsx_projid = project.get();
                after.fsx_xflags |= FsXattr::PROJINHERIT;
            }
            None => {
                after.fsx_projid = 0;
                after.fsx_xflags &= !FsXattr::PROJINHERIT;
            }
        }
        sys::set_xattr(dir.as_fd(), after).inspect_err(|_| {
            // ext4 sets the flag before it looks at the id: a refused id would leave a directory
            // that inherits. This needs no new id; should it fail too, the first error says why.
            let _ = sys::set_xattr(dir.as_fd(), before);
        })
    }

    fn enforcement(&self, home: &Path) -> io::Result<Enforcement> {
        let dir = open_dir(home)?;
        let has_projects = knows_projects(&dir)?;
        let absent = if has_projects {
            Enforcement::Off
        } else {
            Enforcement::Unsupported
        };
        let home = match Home::new(dir) {
            // No block device below a file system that has no quotas is no surprise.
            Err(error) if error.kind() == io::ErrorKind::Unsupported && !has_projects => {
                return Ok(absent);
            }
            home => home?,
        };
        match sys::state(home.target()) {
            Ok(state) if state.qs_flags & FsQuotaStatv::ENFORCED != 0 => Ok(Enforcement::Enforced),
            Ok(state) if state.qs_flags & FsQuotaStatv::ACCOUNTED != 0 => {
                Ok(Enforcement::AccountingOnly)
            }
            Ok(_) => Ok(absent),
            Err(error) => match error.raw_os_error() {
                // No quota is on, or the file system knows none; it knows no project quotas.
                Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL | libc::ESRCH) => Ok(absent),
                _ => Err(error),
            },
        }
    }

    fn set_limits(&self, home: &Path, project: ProjectId, limits: &Limits) -> io::Result<()> {
        let limits = limits
            .rounded()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let blocks = limits
            .bytes
            .map_or(0, |bytes| bytes.to_blocks_floor().get());
        let quota = FsDiskQuota::limits(project.get(), blocks, limits.inodes.unwrap_or(0));
        sys::set_limits(Home::open(home)?.target(), &quota)
    }

    fn usage(&self, home: &Path, project: ProjectId) -> io::Result<Usage> {
        match sys::quota(Home::open(home)?.target(), project.get()) {
            Ok(quota) => Ok(usage(&quota)),
            // XFS keeps no record of a project that was never used.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Usage::default()),
            Err(error) => Err(error),
        }
    }

    fn used_ids(&self, home: &Path, range: ProjectRange) -> io::Result<Vec<ProjectId>> {
        let home = Home::open(home)?;
        let mut ids = Vec::new();
        let mut from = Some(range.first());
        while let Some(id) = from.filter(|&id| range.contains(id)) {
            let quota = match sys::next_quota(home.target(), id.get()) {
                Ok(quota) => quota,
                // After the last one. The manual page says ESRCH, but that is: quotas are off.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => return Err(error),
            };
            let found = project(quota.d_id)?;
            // An answer that is not ahead of the question would never end.
            if found < id || !range.contains(found) {
                break;
            }
            // ext4 takes its records off the disk a while after the last file is gone.
            if !quota.is_left_over() {
                ids.push(found);
            }
            from = ProjectId::new(found.get() + 1);
        }
        Ok(ids)
    }

    /// ext4 lets whoever has `CAP_SYS_RESOURCE` exceed limits, so that is given up: capabilities
    /// belong to threads.
    fn keep_to_limits(&self) -> io::Result<KeepsToLimits> {
        let mut sets = capabilities(None)?;
        if !sets.effective.contains(CapabilitySet::SYS_RESOURCE) {
            return Ok(KeepsToLimits::default());
        }
        sets.effective.remove(CapabilitySet::SYS_RESOURCE);
        set_capabilities(None, sets)?;
        Ok(KeepsToLimits::new(WithoutResource))
    }
}

/// Gives the thread its capability back.
struct WithoutResource;

impl Drop for WithoutResource {
    fn drop(&mut self) {
        // What is permitted can always be made effective.
        if let Ok(mut sets) = capabilities(None) {
            sets.effective.insert(CapabilitySet::SYS_RESOURCE);
            let _ = set_capabilities(None, sets);
        }
    }
}

/// A file system whose quotas are asked for.
struct Home {
    dir: OwnedFd,
    /// Set where `quotactl_fd` is missing.
    device: Option<CString>,
}

impl Home {
    fn open(home: &Path) -> io::Result<Self> {
        Self::new(open_dir(home)?)
    }

    fn new(dir: OwnedFd) -> io::Result<Self> {
        let device = if sys::has_quotactl_fd() {
            None
        } else {
            Some(device_of(dir.as_fd())?)
        };
        Ok(Self { dir, device })
    }

    fn target(&self) -> Target<'_> {
        match &self.device {
            Some(device) => Target::Device(device),
            None => Target::Fd(self.dir.as_fd()),
        }
    }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// `None` on file systems without project ids, such as overlay.
fn xattr_of(dir: &OwnedFd) -> io::Result<Option<FsXattr>> {
    match sys::xattr(dir.as_fd()) {
        Ok(xattr) => Ok(Some(xattr)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOTTY | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Whether the file system is XFS or ext4, by the magic numbers of `linux/magic.h`.
fn knows_projects(dir: &OwnedFd) -> io::Result<bool> {
    const XFS: i64 = 0x5846_5342;
    const EXT4: i64 = 0xef53;
    let magic = fstatfs(dir)?.f_type;
    #[allow(
        clippy::useless_conversion,
        reason = "narrower than 64 bits on some machines"
    )]
    let magic = i64::from(magic);
    Ok(matches!(magic, XFS | EXT4))
}

fn project(id: u32) -> io::Result<ProjectId> {
    ProjectId::new(id).ok_or_else(|| {
        let message = format!("the kernel answered with the invalid project id {id}");
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

fn usage(quota: &FsDiskQuota) -> Usage {
    let bytes = |blocks| {
        BasicBlocks::new(blocks)
            .to_bytes()
            .unwrap_or(Bytes::new(u64::MAX))
    };
    let limit = |value: u64| (value != 0).then_some(value);
    let limits = Limits::new(
        limit(quota.d_blk_hardlimit).map(bytes),
        limit(quota.d_ino_hardlimit),
    );
    Usage::new(bytes(quota.d_bcount), quota.d_icount, limits)
}
