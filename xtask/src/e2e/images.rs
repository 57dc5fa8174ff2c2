//! File systems to test on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::FsKind;
use super::mounts::{assert_mounted, mounts_below};
use crate::{output, run};

/// Room on a file system; the file behind it is sparse.
const IMAGE_LEN: u64 = 3 << 30;

/// A tmpfs that everything lies on; dropping it takes it away with all that is mounted below.
pub(super) struct Scratch {
    dir: tempfile::TempDir,
    mounted: bool,
}

impl Scratch {
    /// The mount namespace must be ours alone.
    pub(super) fn mount() -> Result<Self> {
        // Not where the environment says: the length of this path counts in the scenarios.
        let dir = tempfile::Builder::new()
            .prefix("ovl-e2e")
            .tempdir_in("/tmp")?;
        let mut scratch = Self {
            dir,
            mounted: false,
        };
        let options = Some(c"mode=0755");
        mount(
            "ovl-e2e",
            scratch.path(),
            "tmpfs",
            MountFlags::empty(),
            options,
        )
        .context("cannot mount a tmpfs")?;
        scratch.mounted = true;
        assert_mounted(scratch.path(), FsKind::Tmpfs.magic())?;
        Ok(scratch)
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What is still mounted or attached below; nothing, when all went well.
    pub(super) fn left(&self) -> Result<Vec<String>> {
        let mounts = mounts_below(self.path())?;
        let mut left: Vec<String> = mounts
            .iter()
            .map(|mount| format!("a mount at {}", mount.display()))
            .collect();
        let listed = Command::new("losetup")
            .args(["--noheadings", "--output", "NAME,BACK-FILE"])
            .output()
            .context("cannot run losetup")?;
        let listed = String::from_utf8_lossy(&listed.stdout);
        let path = self.path().to_string_lossy();
        let devices = listed.lines().filter(|line| line.contains(&*path));
        left.extend(devices.map(|line| format!("the loop device {}", line.trim())));
        Ok(left)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.mounted {
            let _ = unmount(self.path(), UnmountFlags::DETACH);
        }
    }
}

/// A mounted file system; dropping it takes it away.
pub(super) struct Image {
    path: PathBuf,
    /// Until the mount holds it.
    device: Option<String>,
    mounted: bool,
}

impl Image {
    pub(super) fn mount(scratch: &Path, fs: FsKind) -> Result<Self> {
        let path = scratch.join(fs.name());
        std::fs::create_dir(&path)?;
        let mut image = Self {
            path,
            device: None,
            mounted: false,
        };
        let device = match fs {
            FsKind::Tmpfs => "ovl-e2e".to_owned(),
            FsKind::Xfs => image.attach(scratch, &["mkfs.xfs", "-q", "-f"])?,
            FsKind::Ext4 => image.attach(scratch, &["mkfs.ext4", "-q", "-F"])?,
        };
        mount(
            &*device,
            &image.path,
            fs.name(),
            MountFlags::empty(),
            None::<&std::ffi::CStr>,
        )
        .with_context(|| format!("cannot mount {device} as {}", fs.name()))?;
        image.mounted = true;
        assert_mounted(&image.path, fs.magic())?;
        // A device in use goes with its last user, so the mount takes it away even when this
        // program is killed and only its mount namespace ends.
        image.detach()?;
        Ok(image)
    }

    fn attach(&mut self, scratch: &Path, mkfs: &[&str]) -> Result<String> {
        let file = scratch.join(format!("{}.image", mkfs[0]));
        File::create(&file)?.set_len(IMAGE_LEN)?;
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&file))?;
        let device = output(
            Command::new("losetup")
                .args(["--find", "--show"])
                .arg(&file),
        )?;
        let device = device.trim().to_owned();
        self.device = Some(device.clone());
        Ok(device)
    }

    fn detach(&mut self) -> Result<()> {
        match self.device.take() {
            Some(device) => run(Command::new("losetup").args(["--detach", &device])),
            None => Ok(()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn unmount(mut self) -> Result<()> {
        unmount(&self.path, UnmountFlags::empty())
            .with_context(|| format!("something is still using {}", self.path.display()))?;
        self.mounted = false;
        // The next one may have the same name.
        std::fs::remove_dir(&self.path)?;
        Ok(())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.mounted {
            let _ = unmount(&self.path, UnmountFlags::DETACH);
        }
        let _ = self.detach();
    }
}
