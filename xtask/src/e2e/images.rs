//! File systems to test on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::FsKind;
use crate::{output, run};

/// Room on a file system; the file behind it is sparse.
const IMAGE_LEN: u64 = 3 << 30;

/// A mounted file system; dropping it takes mount and loop device away.
pub(super) struct Image {
    path: PathBuf,
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
        let (device, magic) = match fs {
            FsKind::Tmpfs => ("ovl-e2e".to_owned(), 0x0102_1994),
            FsKind::Xfs => (
                image.attach(scratch, &["mkfs.xfs", "-q", "-f"])?,
                0x5846_5342,
            ),
            FsKind::Ext4 => (image.attach(scratch, &["mkfs.ext4", "-q", "-F"])?, 0xef53),
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
        // Nothing may be written before it is certain where it goes.
        let found = rustix::fs::statfs(&image.path)?.f_type;
        ensure!(
            found == magic,
            "{} is not mounted at {}",
            fs.name(),
            image.path.display()
        );
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

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn unmount(mut self) -> Result<()> {
        unmount(&self.path, UnmountFlags::empty())
            .with_context(|| format!("something is still using {}", self.path.display()))?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.mounted {
            let _ = unmount(&self.path, UnmountFlags::DETACH);
        }
        if let Some(device) = &self.device {
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
    }
}

/// The loop devices in use.
pub(super) fn loop_devices() -> Result<Vec<String>> {
    let listed = output(Command::new("losetup").args(["--noheadings", "--output", "NAME"]))?;
    Ok(listed.lines().map(|line| line.trim().to_owned()).collect())
}
