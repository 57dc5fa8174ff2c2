//! Which errors a call can give.

const EPERM: i32 = 1;
const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
const ENOLCK: i32 = 37;
const ENOSYS: i32 = 38;
const EOPNOTSUPP: i32 = 95;
const EDQUOT: i32 = 122;

use super::Operation;

impl Operation {
    /// Whether the call changes something, or what of it is on disk. Between two calls that do not,
    /// a machine that stops leaves the same behind.
    #[must_use]
    pub fn is_change(&self) -> bool {
        matches!(
            self.call,
            "create_dir"
                | "create_file"
                | "write_at"
                | "set_len"
                | "share_data"
                | "create_symlink"
                | "create_node"
                | "hard_link"
                | "rename"
                | "unlink"
                | "remove_dir"
                | "set_owner"
                | "set_mode"
                | "set_mtime"
                | "set_xattr"
                | "remove_xattr"
                | "unprotect"
                | "sync"
                | "mount"
                | "unmount"
                | "assign_project"
                | "set_limits"
        )
    }

    /// The error numbers that Linux gives for the call on a machine with a fault, a full disk, too
    /// few resources or a strict security module. `EINTR` is none: the backends for the host go on
    /// after it. Nor are `ENOENT`, `EEXIST` and the like, which say something of the tree and not
    /// of the machine.
    ///
    /// | Calls | Errors |
    /// |---|---|
    /// | opening a file or directory | `EIO`, `EACCES`, `EMFILE` |
    /// | listing a directory, looking at an object, reading a link or an attribute | `EIO`, `EACCES` |
    /// | reading and syncing | `EIO` (syncing also `ENOSPC`, of delayed allocation) |
    /// | making anything | `ENOSPC`, `EDQUOT`, `EIO`, `EROFS` (files also `EMFILE`; devices `EPERM`) |
    /// | writing, changing lengths | `ENOSPC`, `EDQUOT`, `EIO` |
    /// | renaming | `ENOSPC`, `EIO`, `EACCES` |
    /// | removing | `EIO`, `EACCES`, `EROFS` (directories also `EBUSY`) |
    /// | changing attributes | `EPERM`, `EIO`, `EROFS` (extended ones also `ENOSPC`) |
    /// | mounting | `ENOSYS`, `EINVAL`, `EPERM`, `ENOMEM`, `EIO` |
    /// | unmounting | `EBUSY`, `EPERM` |
    /// | looking at mounts | `EIO`, `EMFILE` |
    /// | reading projects and limits | `EIO`, `EMFILE`; not `EPERM`, which says that there are none for the caller |
    /// | setting projects and limits | `EPERM`, `EIO`, `EOPNOTSUPP`, `ENOSPC` |
    /// | locks | `EIO`, `EMFILE`, `ENOLCK` |
    /// | anything else of the system | `EIO`, `EMFILE` |
    #[must_use]
    pub fn plausible_errors(&self) -> &'static [i32] {
        match self.call {
            "open_root" | "open_dir" | "open_file" => &[EIO, EACCES, EMFILE],
            "read_dir" | "metadata" | "read_link" | "list_xattrs" | "xattr" => &[EIO, EACCES],
            "read_at" | "next_extent" | "start_writeback" => &[EIO],
            "sync" => &[EIO, ENOSPC],
            "create_file" => &[ENOSPC, EDQUOT, EIO, EROFS, EMFILE],
            "create_node" => &[ENOSPC, EDQUOT, EIO, EROFS, EPERM],
            "create_dir" | "create_symlink" | "hard_link" => &[ENOSPC, EDQUOT, EIO, EROFS],
            "write_at" | "set_len" | "share_data" => &[ENOSPC, EDQUOT, EIO],
            "rename" => &[ENOSPC, EIO, EACCES],
            "unlink" => &[EIO, EACCES, EROFS],
            "remove_dir" => &[EIO, EACCES, EROFS, EBUSY],
            "set_owner" | "set_mode" | "set_mtime" | "unprotect" => &[EPERM, EIO, EROFS],
            "set_xattr" | "remove_xattr" => &[EPERM, EIO, EROFS, ENOSPC],
            "mount" => &[ENOSYS, EINVAL, EPERM, ENOMEM, EIO],
            "unmount" => &[EBUSY, EPERM],
            "assign_project" | "set_limits" => &[EPERM, EIO, EOPNOTSUPP, ENOSPC],
            "project_of" | "inherits" | "enforcement" | "usage" | "used_ids" => &[EIO, EMFILE],
            "keep_to_limits" => &[EPERM, EIO],
            "lock" => &[EIO, EMFILE, ENOLCK],
            _ => &[EIO, EMFILE],
        }
    }
}
