//! Entering a user namespace, so that an ordinary user can do what the kernel allows there.

use std::fs;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};

use crate::fail::{Failure, Kind};

/// Whether the program entered a namespace of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    /// It runs with the privileges it was started with.
    No,
    /// Mounts vanish when it ends.
    Own,
}

/// For anybody but root: a user and mount namespace in which the caller is root. Must be called
/// before any thread starts.
pub(crate) fn enter_unless_root() -> Result<Entered, Failure> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if uid.is_root() {
        return Ok(Entered::No);
    }
    let unsupported = |what: &str, error: &dyn std::fmt::Display| {
        let hint = "run as root, or allow unprivileged user namespaces";
        Failure::new(Kind::Unsupported, format!("cannot {what}: {error}; {hint}"))
    };
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|error| unsupported("enter a user namespace", &error))?;
    // The kernel wants this before a group map by an ordinary user.
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {} 1", uid.as_raw())),
        ("gid_map", format!("0 {} 1", gid.as_raw())),
    ] {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| unsupported("map the user in a user namespace", &error))?;
    }
    private()?;
    Ok(Entered::Own)
}

/// A mount namespace of its own, so that nothing this process mounts can outlive it.
pub(crate) fn enter_mount_namespace() -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| {
        Failure::new(
            Kind::Unsupported,
            format!("cannot enter a mount namespace: {error}"),
        )
    })?;
    private()
}

fn private() -> Result<(), Failure> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", flags).map_err(|error| {
        Failure::new(
            Kind::Unsupported,
            format!("cannot make the mounts private: {error}"),
        )
    })
}
