//! Overlays by `fsopen(2)` and `fsconfig(2)`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags};

use super::{Failure, OVERLAY};
use crate::lack::{Call, Lack};
use crate::plan::Setting;

/// An overlay and the context that it was made in.
pub(super) struct Overlay {
    context: OwnedFd,
    mount: OwnedFd,
}

impl Overlay {
    /// An overlay that is attached nowhere: dropping it before it is leaves nothing behind.
    pub(super) fn detached(
        settings: &[Setting],
        home: Option<&OwnedFd>,
        attributes: MountAttrFlags,
    ) -> Result<Self, Failure> {
        let context = rustix::mount::fsopen(OVERLAY, FsOpenFlags::FSOPEN_CLOEXEC)?;
        let refused = |errno: Errno| Failure::Refused {
            messages: messages(&context),
            source: errno.into(),
        };
        rustix::mount::fsconfig_set_string(&context, "source", OVERLAY).map_err(refused)?;
        for setting in settings {
            match setting {
                Setting::Flag(key) => rustix::mount::fsconfig_set_flag(&context, *key),
                Setting::Text(key, value) => {
                    rustix::mount::fsconfig_set_string(&context, *key, value.as_os_str())
                }
                Setting::Directory(key, path) => {
                    let home = home.ok_or(Errno::BADF)?;
                    let directory = open_beneath(home, path).map_err(|errno| Failure::Layer {
                        layer: path.clone(),
                        source: errno.into(),
                    })?;
                    // The context keeps what it needs of it.
                    rustix::mount::fsconfig_set_fd(&context, *key, &directory)
                }
            }
            .map_err(refused)?;
        }
        rustix::mount::fsconfig_create(&context).map_err(refused)?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let mount = rustix::mount::fsmount(&context, flags, attributes).map_err(refused)?;
        Ok(Self { context, mount })
    }

    pub(super) fn mount(&self) -> &OwnedFd {
        &self.mount
    }

    /// Adds what the kernel says about it.
    pub(super) fn explain(&self, failure: Failure) -> Failure {
        let messages = messages(&self.context);
        match failure {
            Failure::Refused { source, .. } => Failure::Refused { messages, source },
            Failure::WrongAccess { .. } => Failure::WrongAccess { messages },
            failure @ Failure::Layer { .. } => failure,
        }
    }
}

/// What the kernel takes.
pub(super) struct Takes {
    pub(super) strings: Result<(), Lack>,
    pub(super) fds: Result<(), Lack>,
    /// Which of the options that mounts are given are known; `None` where it does not tell.
    pub(super) known: Option<Known>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) index: bool,
    pub(super) redirect_dir: bool,
    pub(super) metacopy: bool,
}

impl Takes {
    fn nothing(why: Lack) -> Self {
        Self {
            strings: Err(why),
            fds: Err(why),
            known: None,
        }
    }
}

/// What the kernel or a filter says who does not have a call; `None` for other errors.
fn lack(error: Errno, call: Call) -> Option<Lack> {
    match error {
        Errno::NOSYS => Some(Lack::NoCall(call)),
        Errno::PERM => Some(Lack::Forbidden(call)),
        _ => None,
    }
}

pub(super) fn probe() -> io::Result<Takes> {
    let open = || rustix::mount::fsopen(OVERLAY, FsOpenFlags::FSOPEN_CLOEXEC);
    let context = match open() {
        Ok(context) => context,
        Err(Errno::PERM) => return Ok(Takes::nothing(Lack::Privilege)),
        Err(Errno::NOSYS) => {
            load_overlayfs();
            return Ok(Takes::nothing(Lack::NoCall(Call::Fsopen)));
        }
        Err(Errno::NODEV) => return Ok(Takes::nothing(Lack::Overlayfs)),
        Err(error) => return Err(error.into()),
    };
    match rustix::mount::fsconfig_set_flag(&context, "ovl-no-such-option") {
        // Before Linux 6.5 any key is taken here, and read only when the file system is created.
        Ok(()) => return Ok(Takes::nothing(Lack::LowerdirPlus)),
        Err(error) => {
            if let Some(lack) = lack(error, Call::Fsconfig) {
                return Ok(Takes::nothing(lack));
            }
        }
    }
    let set = |key, value| rustix::mount::fsconfig_set_string(&context, key, value);
    let known = Known {
        index: set("index", "off").is_ok(),
        redirect_dir: set("redirect_dir", "nofollow").is_ok(),
        metacopy: set("metacopy", "off").is_ok(),
    };
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let calls = can_attach(&context, &root);
    let strings = calls.and_then(|()| {
        let taken = set("lowerdir+", "/");
        taken.map_err(|error| lack(error, Call::Fsconfig).unwrap_or(Lack::LowerdirPlus))
    });
    // A context of its own, where the same directory is not refused as the second of its kind.
    let fds = strings.and_then(|()| {
        let root = open_beneath(&root, Path::new("."))
            .map_err(|error| lack(error, Call::Openat2).unwrap_or(Lack::Fds))?;
        let context = open().map_err(|_| Lack::Fds)?;
        rustix::mount::fsconfig_set_fd(&context, "lowerdir+", &root)
            .map_err(|error| lack(error, Call::FsconfigFd).unwrap_or(Lack::Fds))
    });
    Ok(Takes {
        strings,
        fds,
        known: Some(known),
    })
}

/// Whether the two calls are there that make a mount of a context and attach it. Neither is asked
/// for anything that it could do: there is no file system yet, and no name without a flag.
fn can_attach(context: &OwnedFd, root: &OwnedFd) -> Result<(), Lack> {
    let (flags, attributes) = (FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
    let mounted = rustix::mount::fsmount(context, flags, attributes);
    if let Some(lack) = mounted.err().and_then(|error| lack(error, Call::Fsmount)) {
        return Err(lack);
    }
    let moved = rustix::mount::move_mount(root, "", root, "", MoveMountFlags::empty());
    match moved.err().and_then(|error| lack(error, Call::MoveMount)) {
        Some(lack) => Err(lack),
        None => Ok(()),
    }
}

/// Has the kernel load overlayfs, which `fsopen(2)` does where it is there: only then `/sys` tells
/// its options. The mount cannot be made, since it has no layers; errors do not matter.
fn load_overlayfs() {
    if !super::is_loaded().unwrap_or(true) {
        let _ = rustix::mount::mount(OVERLAY, "/", OVERLAY, MountFlags::RDONLY, c"");
    }
}

/// Opens a directory below another, whatever has been put in its place or on the way to it. Not by
/// `O_PATH`, which the kernel takes as a layer only since 6.16.
fn open_beneath(home: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    // A rename elsewhere in the system makes the kernel give up for safety's sake.
    loop {
        match rustix::fs::openat2(home, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// The log of a file system context, oldest message first. Each read takes one message, which is
/// lost if it does not fit the buffer; the end is `ENODATA`.
fn messages(context: &OwnedFd) -> Vec<String> {
    let mut messages = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(len @ 1..) = rustix::io::read(context, &mut *buffer) {
        let message = String::from_utf8_lossy(&buffer[..len]);
        // `e `, `w ` or `i `: error, warning, information.
        let text = message
            .split_once(' ')
            .filter(|(level, _)| level.len() == 1)
            .map_or(&*message, |(_, text)| text);
        messages.push(text.trim_end().to_owned());
    }
    messages
}
