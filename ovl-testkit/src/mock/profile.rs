use ovl_driver::{FsType, Identity};
use ovl_mount::RedirectDir;
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
    /// Whether overlayfs knows the option `index`, as it does since Linux 4.13.
    pub index: bool,
    /// Whether it knows `redirect_dir`, as since Linux 4.10.
    pub redirect_dir: bool,
    /// Whether it knows `metacopy`, as since Linux 4.19.
    pub metacopy: bool,
    /// Whether it knows `xino`, as since Linux 4.17.
    pub xino: bool,
    /// Whether it knows `volatile`, as since Linux 5.10.
    pub volatile: bool,
    /// Whether it knows `userxattr`, as since Linux 5.11. Root of a user namespace cannot mount
    /// without.
    pub userxattr: bool,
    /// Whether merged views keep a user's own `trusted.overlay.` attributes, escaped, as since
    /// Linux 6.7.
    pub escapes_xattrs: bool,
    /// What becomes of redirects in mounts that do not say: a choice of whoever built or loaded
    /// the module.
    pub default_redirect: RedirectDir,
    /// Whether mounts that do not say copy metadata alone up.
    pub default_metacopy: bool,
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
            redirect_dir: true,
            metacopy: true,
            xino: true,
            volatile: true,
            userxattr: true,
            escapes_xattrs: true,
            default_redirect: RedirectDir::Follow,
            default_metacopy: false,
            identity: Identity::root(),
            fs_type: FsType::EXT,
            d_type: true,
            user_xattrs: true,
            quota: Enforcement::Enforced,
            coarse_time: false,
        }
    }

    /// Linux 6.1, without the new mount API: everything goes through one data string.
    #[must_use]
    pub fn legacy() -> Self {
        Self {
            layers_by_fd: false,
            lowerdir_plus: false,
            escapes_xattrs: false,
            coarse_time: true,
            ..Self::modern()
        }
    }

    /// Linux 4.19: one data string, and no options of later kernels.
    #[must_use]
    pub fn linux_4_19() -> Self {
        Self {
            volatile: false,
            userxattr: false,
            ..Self::legacy()
        }
    }

    /// Linux 4.4: overlayfs has no options but the layers, and makes no redirects.
    #[must_use]
    pub fn linux_4_4() -> Self {
        Self {
            index: false,
            redirect_dir: false,
            metacopy: false,
            xino: false,
            default_redirect: RedirectDir::NoFollow,
            ..Self::linux_4_19()
        }
    }

    /// A kernel built with `CONFIG_OVERLAY_FS_REDIRECT_DIR` and `CONFIG_OVERLAY_FS_METACOPY`:
    /// mounts that do not say otherwise write redirects, and leave data below.
    #[must_use]
    pub fn redirect_on() -> Self {
        Self {
            default_redirect: RedirectDir::On,
            default_metacopy: true,
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
