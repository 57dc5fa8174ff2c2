//! Overlays by `fsopen(2)` and `fsconfig(2)`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::{Failure, OVERLAY};
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

/// What a layer can be given as.
#[derive(Clone, Copy, Default)]
pub(super) struct Takes {
    pub(super) strings: bool,
    pub(super) fds: bool,
}

/// `None` when the caller may not ask.
pub(super) fn probe() -> io::Result<Option<Takes>> {
    let open = || rustix::mount::fsopen(OVERLAY, FsOpenFlags::FSOPEN_CLOEXEC);
    let context = match open() {
        Ok(context) => context,
        Err(Errno::PERM) => return Ok(None),
        // No such call before Linux 5.2, or a kernel without overlayfs.
        Err(Errno::NOSYS | Errno::NODEV) => return Ok(Some(Takes::default())),
        Err(error) => return Err(error.into()),
    };
    // Before Linux 6.5 any key is taken here, and read only when the file system is created.
    if rustix::mount::fsconfig_set_flag(&context, "ovl-no-such-option").is_ok() {
        return Ok(Some(Takes::default()));
    }
    let strings = rustix::mount::fsconfig_set_string(&context, "lowerdir+", "/").is_ok();
    // A context of its own, where the same directory is not refused as the second of its kind.
    let root = open_beneath(
        &rustix::fs::open("/", OFlags::PATH, Mode::empty())?,
        Path::new("."),
    );
    let fds = root.is_ok_and(|root| {
        open().is_ok_and(|context| {
            rustix::mount::fsconfig_set_fd(&context, "lowerdir+", &root).is_ok()
        })
    });
    Ok(Some(Takes { strings, fds }))
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
