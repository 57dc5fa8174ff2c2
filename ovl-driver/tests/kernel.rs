//! The conformance suite on the running kernel, on a tmpfs in a mount namespace of its own: as root
//! directly, for everybody else in a user namespace.
//!
//! Where the kernel allows neither, every case is counted as ignored, and the reason is printed.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use ovl_driver::Kernel;
use ovl_testkit::conformance::{Case, Subject, cases};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // Listing must not depend on what this machine allows.
    let scratch = if arguments.list { Err(String::new()) } else { scratch() };
    if let Err(reason) = &scratch
        && !reason.is_empty()
    {
        eprintln!("SKIPPED: {} real-kernel cases did not run: {reason}", cases().len());
    }
    let trial = |case: Case| {
        let scratch = scratch.clone();
        let ignored = scratch.is_err();
        Trial::test(case.name, move || run(case, &scratch?)).with_ignored_flag(ignored)
    };
    libtest_mimic::run(&arguments, cases().into_iter().map(trial).collect()).exit_code()
}

fn run(case: Case, scratch: &Path) -> Result<(), Failed> {
    let dir = scratch.join(case.name);
    std::fs::create_dir(&dir)?;
    (case.run)(&Subject::new(Kernel::host(), dir));
    Ok(())
}

/// Enters namespaces and mounts a tmpfs that vanishes with this process.
fn scratch() -> Result<PathBuf, String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("cannot {what}: {error}");
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let user = if uid.is_root() { CloneFlags::empty() } else { CloneFlags::CLONE_NEWUSER };
    unshare(user | CloneFlags::CLONE_NEWNS).map_err(|e| failed("enter a new namespace", &e))?;
    if !uid.is_root() {
        let write = |file: &str, text: String| {
            std::fs::write(format!("/proc/self/{file}"), text).map_err(|e| failed(file, &e))
        };
        write("setgroups", "deny".to_owned())?;
        write("uid_map", format!("0 {} 1", uid.as_raw()))?;
        write("gid_map", format!("0 {} 1", gid.as_raw()))?;
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|e| failed("make the mounts private", &e))?;
    // Whatever is under this mount point stays as it is.
    let dir = Path::new("/tmp");
    mount("ovl-tests", dir, "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>)
        .map_err(|e| failed("mount a tmpfs", &e))?;
    Ok(dir.to_owned())
}
