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

/// A user and mount namespace in which the caller is root. Must be called before any thread starts.
pub(crate) fn enter() -> Result<(), Failure> {
    become_root()?;
    propagation(MountPropagationFlags::PRIVATE)
}

/// The same for a process that stays: what is mounted outside meanwhile shows inside.
pub(crate) fn enter_for_keeping() -> Result<(), Failure> {
    become_root()?;
    propagation(MountPropagationFlags::DOWNSTREAM)
}

fn become_root() -> Result<(), Failure> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
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
    Ok(())
}

/// A mount namespace of its own, so that nothing this process mounts can outlive it.
pub(crate) fn enter_mount_namespace() -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| {
        Failure::new(
            Kind::Unsupported,
            format!("cannot enter a mount namespace: {error}"),
        )
    })?;
    propagation(MountPropagationFlags::PRIVATE)
}

fn propagation(kind: MountPropagationFlags) -> Result<(), Failure> {
    mount_change("/", kind | MountPropagationFlags::REC).map_err(|error| {
        Failure::new(
            Kind::Unsupported,
            format!("cannot keep the mounts to this namespace: {error}"),
        )
    })
}
