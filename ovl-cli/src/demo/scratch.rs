//! Where the demo works: memory that vanishes with the process, where that will do.

use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::fail::Failure;
use crate::namespace::Entered;

pub(super) struct Scratch {
    path: PathBuf,
    on_disk: bool,
}

impl Scratch {
    /// A tmpfs over the directory for temporary files, which only this process sees; a directory in
    /// it where tmpfs cannot carry overlay's attributes.
    pub(super) fn new(entered: Entered) -> Result<Self, Failure> {
        let temporary = std::env::temp_dir();
        let temporary = temporary
            .canonicalize()
            .map_err(|e| Failure::io("find", &temporary, &e))?;
        let attribute = match entered {
            Entered::No => "trusted.ovl",
            Entered::Own => "user.ovl",
        };
        let fits =
            |path: &Path| rustix::fs::setxattr(path, attribute, b"y", XattrFlags::empty()).is_ok();
        let mounted = mount(
            "ovl-demo",
            &temporary,
            "tmpfs",
            MountFlags::empty(),
            Some(c"mode=0755"),
        );
        if mounted.is_ok() {
            if fits(&temporary) {
                return Ok(Self {
                    path: temporary,
                    on_disk: false,
                });
            }
            unmount(&temporary, UnmountFlags::DETACH)
                .map_err(|error| Failure::io("unmount", &temporary, &error.into()))?;
        }
        let path = temporary.join(format!("ovl-demo-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| Failure::io("create", &path, &error))?;
        Ok(Self {
            path,
            on_disk: true,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn kind(&self) -> &'static str {
        if self.on_disk { "disk" } else { "tmpfs" }
    }

    /// Takes everything away, and says so when that fails.
    pub(super) fn remove(mut self) -> Result<(), Failure> {
        self.take_away()
    }

    fn take_away(&mut self) -> Result<(), Failure> {
        let path = std::mem::take(&mut self.path);
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        match self.on_disk {
            true => std::fs::remove_dir_all(&path).map_err(|e| Failure::io("remove", &path, &e)),
            false => unmount(&path, UnmountFlags::DETACH)
                .map_err(|error| Failure::io("unmount", &path, &error.into())),
        }
    }
}

impl Drop for Scratch {
    /// After an error, which is the one to report.
    fn drop(&mut self) {
        let _ = self.take_away();
    }
}
