//! The tests of archives and layers on a file system of their own.

use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};

use crate::cargo;

/// What a filter can ask for alone.
pub(super) const NAME: &str = "rows";
/// Tells the tests of `ovl-diff` where to work.
const TEST_DIR: &str = "OVL_TEST_DIR";
const TESTS: [&str; 3] = ["apply::", "diff::", "host_tree::"];

/// Builds them, for they are run from within a mount namespace.
pub(super) fn build() -> Result<()> {
    crate::run(cargo().args(TEST).arg("--no-run"))
}

const TEST: [&str; 7] = [
    "test", "--quiet", "--locked", "-p", "ovl-diff", "--test", "main",
];

/// Runs them on the file system at `dir`, through a mount that opens no devices.
pub(super) fn run(dir: &Path) -> Result<()> {
    let dir = dir.join("rows");
    std::fs::create_dir(&dir)?;
    mount_bind(&dir, &dir).context("cannot mount the tests' directory")?;
    let result = run_mounted(&dir);
    unmount(&dir, UnmountFlags::empty()).context("cannot unmount the tests' directory")?;
    std::fs::remove_dir(&dir)?;
    result
}

fn run_mounted(dir: &Path) -> Result<()> {
    mount_remount(dir, MountFlags::BIND | MountFlags::NODEV, c"")
        .context("cannot mount without devices")?;
    let mut tests = cargo();
    tests.args(TEST).arg("--").args(TESTS);
    crate::run(tests.env(TEST_DIR, dir).env("TMPDIR", dir))
}
