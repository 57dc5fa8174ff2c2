use ovl_driver::{FsType, Identity};
use ovl_quota::Enforcement;

/// What kind of kernel a [`MockKernel`](crate::MockKernel) is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelProfile {
    /// Bytes in a page: the limit of mount data.
    pub page_size: usize,
    /// Whether `fsconfig` takes layers as open directories.
    pub layers_by_fd: bool,
    /// Whether `fsconfig` takes `lowerdir+`.
    pub lowerdir_plus: bool,
    /// Whether overlayfs knows the option `index`.
    pub index: bool,
    /// Who the caller is.
    pub identity: Identity,
    /// What the file system calls itself.
    pub fs_type: FsType,
    /// Whether directory entries tell their types.
    pub d_type: bool,
    /// Whether the file system keeps attributes that everybody may set, as tmpfs does since Linux
    /// 6.6.
    pub user_xattrs: bool,
    /// What project quotas do.
    pub quota: Enforcement,
    /// Whether many changes have the same time, as before Linux 6.13.
    pub coarse_time: bool,
}

impl KernelProfile {
    /// A kernel of today, root, ext4 with enforced quotas.
    #[must_use]
    pub fn modern() -> Self {
        Self {
            page_size: 4096,
            layers_by_fd: true,
            lowerdir_plus: true,
            index: true,
            identity: Identity::root(),
            fs_type: FsType::EXT,
            d_type: true,
            user_xattrs: true,
            quota: Enforcement::Enforced,
            coarse_time: false,
        }
    }

    /// Without the new mount API: everything goes through one data string.
    #[must_use]
    pub fn legacy() -> Self {
        Self {
            layers_by_fd: false,
            lowerdir_plus: false,
            coarse_time: true,
            ..Self::modern()
        }
    }

    /// Linux 6.1 on a tmpfs: neither the new mount API nor attributes that everybody may set.
    #[must_use]
    pub fn legacy_tmpfs() -> Self {
        Self {
            fs_type: FsType::TMPFS,
            user_xattrs: false,
            quota: Enforcement::Unsupported,
            ..Self::legacy()
        }
    }

    /// Linux 6.12: layers are named, and cannot be open directories.
    #[must_use]
    pub fn named_layers() -> Self {
        Self {
            layers_by_fd: false,
            ..Self::modern()
        }
    }

    /// Root of a user namespace that maps nobody else.
    #[must_use]
    pub fn rootless() -> Self {
        let quota = Enforcement::Unsupported;
        Self {
            identity: Identity::single_id(),
            quota,
            ..Self::modern()
        }
    }

    /// Pages of 64 KiB, as some arm64 kernels have.
    #[must_use]
    pub fn large_pages() -> Self {
        Self {
            page_size: 65536,
            layers_by_fd: false,
            lowerdir_plus: false,
            ..Self::modern()
        }
    }

    /// XFS with enforced quotas.
    #[must_use]
    pub fn xfs() -> Self {
        Self {
            fs_type: FsType::XFS,
            ..Self::modern()
        }
    }
}
