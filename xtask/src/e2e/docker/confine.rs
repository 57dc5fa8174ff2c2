//! What a Docker daemon would write outside of its root is kept away from the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, mount};

use super::super::FsKind;
use super::super::mounts::assert_mounted;

/// The daemon's sockets and small files; short, as paths of sockets must be.
pub(super) const STATE: &str = "/run/ovl-e2e";

/// The control group that the containers are in.
pub(super) const CGROUP: &str = "/ovl-e2e";

/// Places that dockerd, containerd and runc write to whatever they are told.
const PRIVATE: [&str; 3] = ["/run", "/opt", "/etc/docker"];

/// A command that runs in namespaces of its own and ends with all that it has started, when it is
/// done and also when this process is killed.
pub(in crate::e2e) fn confined(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(["--mount", "--pid", "--net", "--ipc", "--uts"])
        .args(["--fork", "--kill-child=KILL", "--mount-proc"])
        .arg(program);
    command
}

/// Makes the namespaces of [`confined`] ready for a daemon. Dropping it takes away what no namespace
/// does.
pub(in crate::e2e) struct Confinement(());

impl Confinement {
    pub(in crate::e2e) fn enter() -> Result<Self> {
        ensure!(
            std::process::id() == 1,
            "a daemon needs a process namespace of its own"
        );
        for dir in PRIVATE {
            ensure!(Path::new(dir).is_dir(), "there is no directory {dir}");
            let options = Some(c"mode=0755");
            mount("ovl-e2e", dir, "tmpfs", MountFlags::empty(), options)
                .with_context(|| format!("cannot mount a tmpfs at {dir}"))?;
            assert_mounted(Path::new(dir), FsKind::Tmpfs.magic())?;
        }
        mount_cgroups()?;
        Ok(Self(()))
    }
}

impl Drop for Confinement {
    fn drop(&mut self) {
        // Control groups belong to no namespace. One hierarchy is at the root, several below it.
        let root = Path::new("/sys/fs/cgroup");
        for dir in directories(root).into_iter().chain([root.to_owned()]) {
            remove_group(&dir.join(&CGROUP[1..]));
        }
    }
}

/// Takes away a control group with those in it, also those that a killed run has left. What has
/// processes stays.
fn remove_group(dir: &Path) {
    for inner in directories(dir) {
        remove_group(&inner);
    }
    let _ = fs::remove_dir(dir);
}

fn directories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    entries.map(|entry| entry.path()).collect()
}

/// Containers need control groups; where nobody has mounted them, they are mounted here.
fn mount_cgroups() -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mounted = table
        .lines()
        .filter_map(|line| line.split(" - ").nth(1))
        .any(|rest| rest.starts_with("cgroup"));
    if mounted {
        return Ok(());
    }
    let (dir, options) = ("/sys/fs/cgroup", None::<&std::ffi::CStr>);
    mount("ovl-e2e", dir, "cgroup2", MountFlags::empty(), options)
        .context("no control groups are mounted, and they cannot be")
}
