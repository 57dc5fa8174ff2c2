mod context;
mod holders;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::backend::{Holder, MountBackend, MountError, MountFeatures, MountInfo, UnmountMode};
use crate::lack::Lack;
use crate::mountinfo;
use crate::options::OverlayOptions;
use crate::plan::{Access, DataLimit, MountAction, MountPlan, OverlayCall, Strategy};
use crate::sys;
use context::Overlay;

/// File system type, and the source that the mount table shows, as Docker has it.
const OVERLAY: &str = "overlay";

/// The running kernel.
///
/// - A mount point and the `diff` of a bind mount must be directories, not symbolic links to one.
/// - No call changes the working directory of the process: what must run in another one runs in a
///   thread of its own that ends with the call.
/// - Every new mount is made private. A mount made *on* a shared mount still appears in that
///   mount's peers, since the kernel copies it before anything can be said about it; only a home
///   on a private mount prevents that.
///
/// Features are probed once a value, at the first call that has the privilege to.
///
/// # Privileges
///
/// [`mount`](MountBackend::mount) and [`unmount`](MountBackend::unmount) need `CAP_SYS_ADMIN` in
/// the user namespace that owns the mount namespace. Without it `features` reports neither
/// `layers_by_fd` nor `lowerdir_plus`; everything else works without privileges. `/proc` must be mounted.
///
/// # Kernel
///
/// 4.0 for more than one lower layer; `index`, `redirect_dir` and `metacopy` are named only where the
/// kernel knows them. Later features are found by trying: `fsopen(2)` with layers
/// as open directories (6.13) or as `lowerdir+` (6.8), and for bind mounts `open_tree(2)` with `mount_setattr(2)` (5.12), by which a
/// read-only bind mount is never writable for a moment.
#[derive(Clone, Debug, Default)]
pub struct HostMount {
    features: OnceLock<MountFeatures>,
}

impl MountBackend for HostMount {
    fn features(&self) -> io::Result<MountFeatures> {
        if let Some(features) = self.features.get() {
            return Ok(*features);
        }
        // First, because it loads the overlay module.
        let takes = context::probe()?;
        let known = match takes.known {
            Some(known) => known,
            None => context::Known {
                index: has_parameter("index")?,
                // The option is older, but not this value of it.
                redirect_dir: has_parameter("redirect_always_follow")?,
                metacopy: has_parameter("metacopy")?,
            },
        };
        let mut features = MountFeatures::new(DataLimit::for_page_size(rustix::param::page_size()))
            .layers_by_fd(true)
            .lowerdir_plus(true)
            .index(known.index)
            .redirect_dir(known.redirect_dir)
            .metacopy(known.metacopy)
            .user_namespace(in_user_namespace()?);
        for (strategy, taken) in [
            (Strategy::LayersByFd, takes.fds),
            (Strategy::LowerdirPlus, takes.strings),
        ] {
            if let Err(why) = taken {
                features = features.without(strategy, why);
            }
        }
        // Another caller may ask later.
        match takes.strings {
            Err(Lack::Privilege) => Ok(features),
            _ => Ok(*self.features.get_or_init(|| features)),
        }
    }

    fn mount(&self, plan: &MountPlan) -> Result<(), MountError> {
        carry_out(plan).map_err(|failure| match failure {
            Failure::Refused { messages, source } => MountError::mount(plan, messages, source),
            Failure::Layer { layer, source } => MountError::layer(plan, &layer, source),
            Failure::WrongAccess { messages } => MountError::wrong_access(plan, messages),
        })
    }

    fn unmount(&self, target: &Path, mode: UnmountMode) -> Result<(), MountError> {
        let flags = match mode {
            UnmountMode::Now => UnmountFlags::NOFOLLOW,
            UnmountMode::Lazy => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        };
        let result = rustix::io::retry_on_intr(|| rustix::mount::unmount(target, flags));
        result.map_err(|error| {
            // Also the answer for a mount that a more privileged mount namespace has locked.
            let locked = error == Errno::INVAL && matches!(self.mount_at(target), Ok(Some(_)));
            if locked {
                let (target, source) = (target.to_owned(), error.into());
                return MountError::Unmount { target, source };
            }
            // Nobody is named where nobody can be: what is wrong is that somebody is there.
            let holders = || self.holders(target).unwrap_or_default();
            MountError::unmount(target, error.into()).with_holders(holders)
        })
    }

    /// Looks through `/proc`. Mappings are found by the path that the mount has for the caller.
    fn holders(&self, target: &Path) -> io::Result<Vec<Holder>> {
        match self.mount_at(target)? {
            Some(mount) => holders::of(&mount),
            None => Ok(Vec::new()),
        }
    }

    /// The path may lead through symbolic links; [`MountInfo::target`] is the resolved one.
    fn mount_at(&self, path: &Path) -> io::Result<Option<MountInfo>> {
        match mount_root_id(path) {
            Ok(RootId::NoMount) => Ok(None),
            Ok(RootId::Mount(id)) => Ok(mount_table()?.into_iter().find(|mount| mount.id == id)),
            // Before Linux 5.8, or a file system that does not answer.
            Ok(RootId::Unknown) | Err(_) => {
                let (path, mounts) = (resolve_parent(path), mount_table()?.into_iter());
                Ok(mounts.rev().find(|mount| mount.target == path))
            }
        }
    }

    /// Without the table, which has all paths of every overlay in it, where `statx(2)` tells.
    fn is_mounted(&self, path: &Path) -> io::Result<bool> {
        match mount_root_id(path) {
            Ok(RootId::NoMount) => Ok(false),
            Ok(RootId::Mount(_)) => Ok(true),
            Ok(RootId::Unknown) | Err(_) => Ok(self.mount_at(path)?.is_some()),
        }
    }

    fn mount_of(&self, path: &Path) -> io::Result<Option<MountInfo>> {
        let path = fs::canonicalize(path)?;
        for path in path.ancestors() {
            if let Some(mount) = self.mount_at(path)? {
                return Ok(Some(mount));
            }
        }
        // The root of a process may be no mount.
        Ok(None)
    }

    /// The path may lead through symbolic links; the targets are resolved ones.
    fn mounts_below(&self, path: &Path) -> io::Result<Vec<MountInfo>> {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut mounts = mount_table()?;
        mounts.retain(|mount| mount.target != path && mount.target.starts_with(&path));
        Ok(mounts)
    }

    /// Asks for a mount that cannot be: the kernel looks whether the upper directory is in use
    /// before it finds that the work directory is the same one (`ovl_get_upper()` of
    /// `fs/overlayfs/super.c`). It leaves a line in the kernel's log. Before Linux 4.13 nothing
    /// marks a directory as in use.
    fn is_upper_in_use(&self, upper: &Path) -> io::Result<bool> {
        let target = open_directory(upper, OFlags::NOFOLLOW)?;
        let ask = || {
            // Relative, so that no byte of the path needs an escape.
            let data = c"index=on,lowerdir=.,upperdir=.,workdir=.";
            let answer = rustix::mount::mount(
                OVERLAY,
                fd_path(&target),
                OVERLAY,
                MountFlags::empty(),
                data,
            );
            Ok(answer.err())
        };
        match in_directory(Some(upper), ask) {
            Ok(Some(Errno::BUSY)) => Ok(true),
            Ok(Some(Errno::INVAL)) => Ok(false),
            Ok(Some(error)) => Err(error.into()),
            Ok(None) => Err(io::Error::other(
                "overlayfs took one directory as upper and as work directory",
            )),
            Err(Failure::Refused { source, .. } | Failure::Layer { source, .. }) => Err(source),
            Err(Failure::WrongAccess { .. }) => Err(Errno::INVAL.into()),
        }
    }
}

/// Why nothing is mounted.
enum Failure {
    Refused {
        messages: Vec<String>,
        source: io::Error,
    },
    Layer {
        layer: PathBuf,
        source: io::Error,
    },
    WrongAccess {
        messages: Vec<String>,
    },
}

impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Self {
        let messages = Vec::new();
        Self::Refused { messages, source }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

fn carry_out(plan: &MountPlan) -> Result<(), Failure> {
    let target = open_directory(plan.target(), OFlags::NOFOLLOW)?;
    match plan.action() {
        MountAction::Overlay(OverlayCall::Data { data, working_dir }) => {
            let (path, flags) = (fd_path(&target), mount_flags(plan.options()));
            in_directory(working_dir.as_deref(), || {
                rustix::mount::mount(OVERLAY, &path, OVERLAY, flags, data.as_c_str())?;
                Ok(())
            })?;
            settle(plan, |_| Ok(()))
        }
        MountAction::Overlay(OverlayCall::Settings {
            settings,
            working_dir,
        }) => {
            let attributes = mount_attributes(plan.options());
            let overlay = in_directory(working_dir.as_deref(), || {
                Overlay::detached(settings, None, attributes)
            })?;
            place(plan, overlay.mount(), &target).map_err(|error| overlay.explain(error))
        }
        MountAction::Overlay(OverlayCall::Layers { home, settings }) => {
            let home = open_directory(home, OFlags::empty())?;
            let attributes = mount_attributes(plan.options());
            let overlay = Overlay::detached(settings, Some(&home), attributes)?;
            place(plan, overlay.mount(), &target).map_err(|error| overlay.explain(error))
        }
        MountAction::Bind { source } => {
            let source = open_directory(source, OFlags::NOFOLLOW)?;
            let bound = detached_bind(plan, &source).map_err(Failure::from);
            match bound.and_then(|mount| place(plan, &mount, &target)) {
                // A kernel, or a system call filter, that does not have one of the calls.
                Err(Failure::Refused { source: error, .. })
                    if matches!(errno_of(&error), Some(Errno::NOSYS | Errno::PERM)) =>
                {
                    rustix::mount::mount_bind(fd_path(&source), fd_path(&target))?;
                    settle(plan, |root| restrict_bind(plan, root))
                }
                result => result,
            }
        }
    }
}

/// A bind mount that is attached nowhere, with all its attributes.
fn detached_bind(plan: &MountPlan, source: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = rustix::mount::open_tree(source, "", flags)?;
    let mut attributes = mount_attributes(plan.options());
    if plan.access() == Access::ReadOnly {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    sys::mount_setattr(mount.as_fd(), attributes, MountPropagationFlags::PRIVATE)?;
    Ok(mount)
}

/// Attaches a mount once it is known to be as planned.
fn place(plan: &MountPlan, mount: &OwnedFd, target: &OwnedFd) -> Result<(), Failure> {
    check_access(plan, mount)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", target, "", flags)?;
    // Only now: a mount that is moved onto a shared one becomes shared again.
    make_private(mount).inspect_err(|_| detach(mount))?;
    Ok(())
}

/// Finishes what `mount(2)` has attached already, or takes it away again.
fn settle(
    plan: &MountPlan,
    restrict: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
) -> Result<(), Failure> {
    let root = open_directory(plan.target(), OFlags::NOFOLLOW).inspect_err(|_| {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let _ = rustix::mount::unmount(plan.target(), flags);
    })?;
    let finish = || {
        restrict(&root)?;
        check_access(plan, &root)?;
        Ok(make_private(&root)?)
    };
    finish().inspect_err(|_| detach(&root))
}

/// Sets the attributes of an attached bind mount. A remount replaces them all, and in a user
/// namespace must repeat those that are locked.
fn restrict_bind(plan: &MountPlan, root: &OwnedFd) -> Result<(), Errno> {
    let mut flags = mount_flags(plan.options());
    if plan.access() == Access::ReadOnly {
        flags |= MountFlags::RDONLY;
    }
    if flags.is_empty() {
        return Ok(());
    }
    // Access times need no mention: a remount that names none of their flags keeps them.
    let present = rustix::fs::fstatvfs(root)?.f_flag;
    for (bit, flag) in [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (ST_NOSYMFOLLOW, MountFlags::NOSYMFOLLOW),
    ] {
        if present.contains(bit) {
            flags |= flag;
        }
    }
    rustix::mount::mount_remount(fd_path(root), MountFlags::BIND | flags, "")
}

/// `ST_NOSYMFOLLOW` of `include/linux/statfs.h` (Linux 5.10).
const ST_NOSYMFOLLOW: StatVfsMountFlags = StatVfsMountFlags::from_bits_retain(0x2000);

/// Overlayfs comes up read-only, without an error, when it cannot use the work directory.
fn check_access(plan: &MountPlan, mount: &OwnedFd) -> Result<(), Failure> {
    let flags = rustix::fs::fstatvfs(mount)?.f_flag;
    match (plan.access(), flags.contains(StatVfsMountFlags::RDONLY)) {
        (Access::Writable, false) | (Access::ReadOnly, true) => Ok(()),
        (Access::Writable, true) | (Access::ReadOnly, false) => Err(Failure::WrongAccess {
            messages: Vec::new(),
        }),
    }
}

fn make_private(mount: &OwnedFd) -> io::Result<()> {
    let private = MountPropagationFlags::PRIVATE;
    match sys::mount_setattr(mount.as_fd(), MountAttrFlags::empty(), private) {
        // Linux 5.12, or a system call filter. The other way goes through `/proc`.
        Err(error) if matches!(errno_of(&error), Some(Errno::NOSYS | Errno::PERM)) => {
            Ok(rustix::mount::mount_change(fd_path(mount), private)?)
        }
        result => result,
    }
}

/// Takes away a mount that nobody can have begun to use. Lazily, since `mount` itself uses it.
fn detach(mount: &OwnedFd) {
    let _ = rustix::mount::unmount(fd_path(mount), UnmountFlags::DETACH);
}

/// Runs `call` with `directory` as its working directory, in a thread that ends with it: threads
/// share theirs with the process unless they have left it for good.
fn in_directory<T: Send>(
    directory: Option<&Path>,
    call: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    let Some(directory) = directory else {
        return call();
    };
    let directory = open_directory(directory, OFlags::empty())?;
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("ovl-mount".to_owned())
            .spawn_scoped(scope, || {
                enter(&directory)?;
                call()
            })?;
        let result = thread.join();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Only for threads that end afterwards.
fn enter(directory: &OwnedFd) -> io::Result<()> {
    sys::unshare_fs()?;
    #[expect(
        clippy::disallowed_methods,
        reason = "the line above gave this thread a working directory of its own"
    )]
    rustix::process::fchdir(directory)?;
    Ok(())
}

fn open_directory(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The one name by which `mount(2)` and `umount2(2)` reach exactly what is open, whatever has been
/// put at its path since. `thread-self`, because threads can have mount namespaces of their own.
fn fd_path(fd: &OwnedFd) -> PathBuf {
    format!("/proc/thread-self/fd/{}", fd.as_raw_fd()).into()
}

fn mount_flags(options: OverlayOptions) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::NODEV, options.nodev);
    flags.set(MountFlags::NOSUID, options.nosuid);
    flags.set(MountFlags::NOEXEC, options.noexec);
    flags
}

fn mount_attributes(options: OverlayOptions) -> MountAttrFlags {
    let mut attributes = MountAttrFlags::empty();
    attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, options.nodev);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID, options.nosuid);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, options.noexec);
    attributes
}

/// Whether the overlay module has a parameter, which it has since it knows the option. Where there
/// is no telling, as without `/sys`, the kernel is taken for a newer one.
fn has_parameter(name: &str) -> io::Result<bool> {
    let parameters = Path::new("/sys/module/overlay/parameters");
    if fs::exists(parameters)? {
        return fs::exists(parameters.join(name));
    }
    // The module has had parameters since Linux 4.10.
    Ok(!(fs::exists("/sys/module")? && is_loaded()?))
}

fn is_loaded() -> io::Result<bool> {
    let types = fs::read_to_string("/proc/filesystems")?;
    Ok(types.lines().any(|line| line == "nodev\toverlay"))
}

/// `PROC_USER_INIT_INO` of `include/linux/proc_ns.h`.
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

fn in_user_namespace() -> io::Result<bool> {
    if let Ok(namespace) = rustix::fs::stat("/proc/thread-self/ns/user") {
        return Ok(namespace.st_ino != INITIAL_USER_NAMESPACE);
    }
    match fs::read_to_string("/proc/thread-self/uid_map") {
        // The initial namespace maps all there is onto itself.
        Ok(map) => Ok(!map.split_whitespace().eq(["0", "0", "4294967295"])),
        // A kernel without user namespaces; without /proc there is no telling.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::metadata("/proc/thread-self").map(|_| false)
        }
        Err(error) => Err(error),
    }
}

enum RootId {
    /// The path is not the root of a mount, or there is nothing there.
    NoMount,
    /// The number of the mount whose root it is.
    Mount(u64),
    /// The kernel does not tell.
    Unknown,
}

/// Finds the mount that a path leads to, which the table alone cannot tell when mounts are stacked
/// or hidden, or the path leads through a symbolic link.
fn mount_root_id(path: &Path) -> io::Result<RootId> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let status = match rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::MNT_ID) {
        Ok(status) => status,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(RootId::NoMount),
        Err(error) => return Err(error.into()),
    };
    let told = status.stx_attributes_mask;
    if !told.contains(StatxAttributes::MOUNT_ROOT)
        || status.stx_mask & StatxFlags::MNT_ID.bits() == 0
    {
        return Ok(RootId::Unknown);
    }
    if status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        Ok(RootId::Mount(status.stx_mnt_id))
    } else {
        Ok(RootId::NoMount)
    }
}

/// The path as the mount table writes it; a symbolic link at its end is not followed.
fn resolve_parent(path: &Path) -> PathBuf {
    let resolved = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => fs::canonicalize(parent).map(|parent| parent.join(name)),
        _ => Ok(path.to_owned()),
    };
    resolved.unwrap_or_else(|_| path.to_owned())
}

fn mount_table() -> io::Result<Vec<MountInfo>> {
    let mut file = File::open("/proc/thread-self/mountinfo")?;
    // In large pieces: the kernel writes a line anew that does not fit.
    let (mut table, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => table.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    mountinfo::parse(&table).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn errno_of(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw_os_error)
}
