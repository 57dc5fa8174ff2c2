//! The conformance suite on the running kernel, on a tmpfs in a mount namespace of its own: as root
//! directly, for everybody else in a user namespace.
//!
//! Where the kernel allows neither, every case is counted as ignored, and the reason is printed.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests"
)]

mod asynchronous;
mod docker_home;
mod host;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use ovl_driver::Kernel;
use ovl_testkit::conformance::{Skip, Subject, cases};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // Before a namespace makes everybody that.
    let is_root = rustix::process::geteuid().is_root();
    // Listing must not depend on what this machine allows.
    let scratch = if arguments.list {
        Err(String::new())
    } else {
        scratch()
    };
    if let Err(reason) = &scratch
        && !reason.is_empty()
    {
        let others = asynchronous::CASES.len() + host::CASES.len() + docker_home::CASES.len();
        let count = cases().len() + others;
        eprintln!("SKIPPED: {count} real-kernel cases did not run: {reason}");
    } else if !is_root {
        let count = docker_home::CASES.len();
        eprintln!("SKIPPED: {count} cases on Docker's own home did not run: they need to be root");
    }
    let trial = |name: &'static str, run: Box<dyn FnOnce(&Path) + Send>| {
        let scratch = scratch.clone();
        let ignored = scratch.is_err();
        let run = move || {
            let dir = scratch?.join(name);
            std::fs::create_dir(&dir)?;
            run(&dir);
            Ok::<(), Failed>(())
        };
        Trial::test(name, run).with_ignored_flag(ignored)
    };
    let mut trials: Vec<Trial> = cases()
        .into_iter()
        .map(|case| {
            let run = move |dir: &Path| {
                let subject = Subject::new(Kernel::host(), dir).editing(ovl_testkit::edit_file);
                (case.run)(&subject);
                for Skip { part, reason, .. } in subject.skips() {
                    let part = part.map(|part| format!(" ({part})")).unwrap_or_default();
                    eprintln!("SKIPPED: {}{part}: {reason}", case.name);
                }
            };
            trial(case.name, Box::new(run))
        })
        .collect();
    for &(name, run) in asynchronous::CASES {
        trials.push(trial(name, Box::new(move |dir| run(&Kernel::host(), dir))));
    }
    for &(name, run) in host::CASES {
        trials.push(trial(name, Box::new(run)));
    }
    for &(name, run) in docker_home::CASES {
        trials.push(trial(name, Box::new(run)).with_ignored_flag(scratch.is_err() || !is_root));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Enters namespaces and mounts a tmpfs that vanishes with this process.
fn scratch() -> Result<PathBuf, String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("cannot {what}: {error}");
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let user = if uid.is_root() {
        CloneFlags::empty()
    } else {
        CloneFlags::CLONE_NEWUSER
    };
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
    mount(
        "ovl-tests",
        dir,
        "tmpfs",
        MountFlags::empty(),
        None::<&std::ffi::CStr>,
    )
    .map_err(|e| failed("mount a tmpfs", &e))?;
    Ok(dir.to_owned())
}
