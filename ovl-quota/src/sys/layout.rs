//! Structures as the kernel's headers lay them out.

use std::mem::{offset_of, size_of};

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FsXattr {
    pub(crate) fsx_xflags: u32,
    fsx_extsize: u32,
    fsx_nextents: u32,
    pub(crate) fsx_projid: u32,
    fsx_cowextsize: u32,
    fsx_pad: [u8; 8],
}

impl FsXattr {
    /// `FS_XFLAG_PROJINHERIT`.
    pub(crate) const PROJINHERIT: u32 = 0x200;
}

/// `struct fs_disk_quota` of `linux/dqblk_xfs.h`. Blocks are of 512 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FsDiskQuota {
    d_version: i8,
    d_flags: i8,
    d_fieldmask: u16,
    pub(crate) d_id: u32,
    pub(crate) d_blk_hardlimit: u64,
    d_blk_softlimit: u64,
    pub(crate) d_ino_hardlimit: u64,
    d_ino_softlimit: u64,
    pub(crate) d_bcount: u64,
    pub(crate) d_icount: u64,
    d_itimer: i32,
    d_btimer: i32,
    d_iwarns: u16,
    d_bwarns: u16,
    d_itimer_hi: i8,
    d_btimer_hi: i8,
    d_rtbtimer_hi: i8,
    d_padding2: i8,
    d_rtb_hardlimit: u64,
    d_rtb_softlimit: u64,
    d_rtbcount: u64,
    d_rtbtimer: i32,
    d_rtbwarns: u16,
    d_padding3: i16,
    d_padding4: [u8; 8],
}

impl FsDiskQuota {
    /// The request that sets the hard limits of a project, in blocks of 512 bytes and inodes, and
    /// clears its soft limits. 0 is no limit.
    pub(crate) fn limits(project: u32, blocks: u64, inodes: u64) -> Self {
        Self {
            d_version: 1,     // FS_DQUOT_VERSION
            d_flags: 2,       // FS_PROJ_QUOTA
            d_fieldmask: 0xf, // FS_DQ_ISOFT | FS_DQ_IHARD | FS_DQ_BSOFT | FS_DQ_BHARD
            d_id: project,
            d_blk_hardlimit: blocks,
            d_ino_hardlimit: inodes,
            ..Self::default()
        }
    }

    /// Whether the record says nothing: any directory of the project would count as an inode.
    pub(crate) fn is_left_over(&self) -> bool {
        let counts = [self.d_bcount, self.d_icount, self.d_rtbcount];
        let limits = [
            self.d_blk_hardlimit,
            self.d_blk_softlimit,
            self.d_ino_hardlimit,
            self.d_ino_softlimit,
            self.d_rtb_hardlimit,
            self.d_rtb_softlimit,
        ];
        counts.into_iter().chain(limits).all(|number| number == 0)
    }
}

/// `struct fs_qfilestatv` of `linux/dqblk_xfs.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct FsQfilestatv {
    qfs_ino: u64,
    qfs_nblks: u64,
    qfs_nextents: u32,
    qfs_pad: u32,
}

/// `struct fs_quota_statv` of `linux/dqblk_xfs.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FsQuotaStatv {
    qs_version: i8,
    qs_pad1: u8,
    pub(crate) qs_flags: u16,
    qs_incoredqs: u32,
    qs_uquota: FsQfilestatv,
    qs_gquota: FsQfilestatv,
    qs_pquota: FsQfilestatv,
    qs_btimelimit: i32,
    qs_itimelimit: i32,
    qs_rtbtimelimit: i32,
    qs_bwarnlimit: u16,
    qs_iwarnlimit: u16,
    qs_rtbwarnlimit: u16,
    qs_pad3: u16,
    qs_pad4: u32,
    qs_pad2: [u64; 7],
}

impl FsQuotaStatv {
    /// `FS_QUOTA_PDQ_ACCT`: project usage is counted.
    pub(crate) const ACCOUNTED: u16 = 0x10;
    /// `FS_QUOTA_PDQ_ENFD`: project limits are kept.
    pub(crate) const ENFORCED: u16 = 0x20;

    /// An empty structure that asks for `FS_QSTATV_VERSION1`.
    pub(crate) fn request() -> Self {
        Self {
            qs_version: 1,
            ..Self::default()
        }
    }
}

const _: () = {
    assert!(size_of::<FsXattr>() == 28);
    assert!(offset_of!(FsXattr, fsx_xflags) == 0);
    assert!(offset_of!(FsXattr, fsx_extsize) == 4);
    assert!(offset_of!(FsXattr, fsx_nextents) == 8);
    assert!(offset_of!(FsXattr, fsx_projid) == 12);
    assert!(offset_of!(FsXattr, fsx_cowextsize) == 16);
    assert!(offset_of!(FsXattr, fsx_pad) == 20);
};

const _: () = {
    assert!(size_of::<FsDiskQuota>() == 112);
    assert!(offset_of!(FsDiskQuota, d_version) == 0);
    assert!(offset_of!(FsDiskQuota, d_flags) == 1);
    assert!(offset_of!(FsDiskQuota, d_fieldmask) == 2);
    assert!(offset_of!(FsDiskQuota, d_id) == 4);
    assert!(offset_of!(FsDiskQuota, d_blk_hardlimit) == 8);
    assert!(offset_of!(FsDiskQuota, d_blk_softlimit) == 16);
    assert!(offset_of!(FsDiskQuota, d_ino_hardlimit) == 24);
    assert!(offset_of!(FsDiskQuota, d_ino_softlimit) == 32);
    assert!(offset_of!(FsDiskQuota, d_bcount) == 40);
    assert!(offset_of!(FsDiskQuota, d_icount) == 48);
    assert!(offset_of!(FsDiskQuota, d_itimer) == 56);
    assert!(offset_of!(FsDiskQuota, d_btimer) == 60);
    assert!(offset_of!(FsDiskQuota, d_iwarns) == 64);
    assert!(offset_of!(FsDiskQuota, d_bwarns) == 66);
    assert!(offset_of!(FsDiskQuota, d_itimer_hi) == 68);
    assert!(offset_of!(FsDiskQuota, d_padding2) == 71);
    assert!(offset_of!(FsDiskQuota, d_rtb_hardlimit) == 72);
    assert!(offset_of!(FsDiskQuota, d_rtb_softlimit) == 80);
    assert!(offset_of!(FsDiskQuota, d_rtbcount) == 88);
    assert!(offset_of!(FsDiskQuota, d_rtbtimer) == 96);
    assert!(offset_of!(FsDiskQuota, d_rtbwarns) == 100);
    assert!(offset_of!(FsDiskQuota, d_padding3) == 102);
    assert!(offset_of!(FsDiskQuota, d_padding4) == 104);
};

const _: () = {
    assert!(size_of::<FsQfilestatv>() == 24);
    assert!(offset_of!(FsQfilestatv, qfs_nblks) == 8);
    assert!(offset_of!(FsQfilestatv, qfs_nextents) == 16);
    assert!(offset_of!(FsQfilestatv, qfs_pad) == 20);

    assert!(size_of::<FsQuotaStatv>() == 160);
    assert!(offset_of!(FsQuotaStatv, qs_version) == 0);
    assert!(offset_of!(FsQuotaStatv, qs_pad1) == 1);
    assert!(offset_of!(FsQuotaStatv, qs_flags) == 2);
    assert!(offset_of!(FsQuotaStatv, qs_incoredqs) == 4);
    assert!(offset_of!(FsQuotaStatv, qs_uquota) == 8);
    assert!(offset_of!(FsQuotaStatv, qs_gquota) == 32);
    assert!(offset_of!(FsQuotaStatv, qs_pquota) == 56);
    assert!(offset_of!(FsQuotaStatv, qs_btimelimit) == 80);
    assert!(offset_of!(FsQuotaStatv, qs_itimelimit) == 84);
    assert!(offset_of!(FsQuotaStatv, qs_rtbtimelimit) == 88);
    assert!(offset_of!(FsQuotaStatv, qs_bwarnlimit) == 92);
    assert!(offset_of!(FsQuotaStatv, qs_iwarnlimit) == 94);
    assert!(offset_of!(FsQuotaStatv, qs_rtbwarnlimit) == 96);
    assert!(offset_of!(FsQuotaStatv, qs_pad3) == 98);
    assert!(offset_of!(FsQuotaStatv, qs_pad4) == 100);
    assert!(offset_of!(FsQuotaStatv, qs_pad2) == 104);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_left_over_only_without_any_count_and_limit() {
        assert!(FsDiskQuota::limits(7, 0, 0).is_left_over());
        assert!(!FsDiskQuota::limits(7, 8, 0).is_left_over());
        assert!(!FsDiskQuota::limits(7, 0, 1).is_left_over());
        for set in [
            |quota: &mut FsDiskQuota| quota.d_icount = 1,
            |quota: &mut FsDiskQuota| quota.d_bcount = 8,
            |quota: &mut FsDiskQuota| quota.d_blk_softlimit = 8,
            |quota: &mut FsDiskQuota| quota.d_ino_softlimit = 1,
        ] {
            let mut quota = FsDiskQuota::limits(7, 0, 0);
            set(&mut quota);
            assert!(!quota.is_left_over(), "{quota:?}");
        }
    }
}
