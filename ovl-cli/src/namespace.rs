//! Entering a user namespace, so that an ordinary user can do what the kernel allows there.

use std::fs;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};

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
    let mappers = Mappers::start(uid.as_raw(), gid.as_raw());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|error| match error {
            nix::errno::Errno::ENOSPC => Failure::new(
                Kind::Unsupported,
                "cannot enter a user namespace: there are as many as user.max_user_namespaces allows; raise that limit, or run as root",
            ),
            error => unsupported("enter a user namespace", &error),
        })?;
    let mapped = mappers.map_or((false, false), Mappers::finish);
    let mut files = Vec::new();
    if !mapped.0 {
        files.push(("uid_map", format!("0 {} 1", uid.as_raw())));
    }
    if !mapped.1 {
        // The kernel wants this before a group map by an ordinary user.
        files.push(("setgroups", "deny".to_owned()));
        files.push(("gid_map", format!("0 {} 1", gid.as_raw())));
    }
    for (file, text) in files {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| unsupported("map the user in a user namespace", &error))?;
    }
    Ok(())
}

/// The programs that map the ranges of ids which the administrator gave to a user. They have to run
/// outside the namespace, so they are started before it is entered.
struct Mappers {
    uids: Option<Child>,
    gids: Option<Child>,
}

impl Mappers {
    /// `None` where the user has no ranges.
    fn start(uid: u32, gid: u32) -> Option<Self> {
        let name = user_name(uid);
        let start = |file, program, own| {
            let (first, count) = range(&fs::read_to_string(file).ok()?, uid, name.as_deref())?;
            // It waits until the namespace is there.
            let mut waiting = Command::new("sh");
            waiting.args(["-c", "read -r go && exec \"$0\" \"$@\"", program]);
            waiting.arg(std::process::id().to_string());
            waiting.args(["0", &u32::to_string(&own), "1"]);
            waiting.args(["1", &first.to_string(), &count.to_string()]);
            let quiet = || Stdio::null();
            let waiting = waiting
                .stdin(Stdio::piped())
                .stdout(quiet())
                .stderr(quiet());
            waiting.spawn().ok()
        };
        let uids = start("/etc/subuid", "newuidmap", uid)?;
        let gids = start("/etc/subgid", "newgidmap", gid);
        Some(Self {
            uids: Some(uids),
            gids,
        })
    }

    /// Whether the maps of user and group ids are written. Where they are not, as where the programs
    /// are missing, the user's own id alone is mapped.
    fn finish(self) -> (bool, bool) {
        let finish = |child: Option<Child>| {
            let Some(mut child) = child else {
                return false;
            };
            let told = child.stdin.take().map(|mut input| input.write_all(b"\n"));
            let told = told.is_some_and(|result| result.is_ok());
            let ended = child.wait();
            told && ended.is_ok_and(|status| status.success())
        };
        (finish(self.uids), finish(self.gids))
    }
}

/// The first range of a user in a file of subordinate ids: `name or number:first:count`.
fn range(file: &str, uid: u32, name: Option<&str>) -> Option<(u32, u32)> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let user = fields.next()?;
        if user.parse() != Ok(uid) && Some(user) != name {
            return None;
        }
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (count > 0).then_some((first, count))
    })
}

fn user_name(uid: u32) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
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

#[cfg(test)]
mod tests {
    use super::range;

    #[test]
    fn a_range_is_found_by_name_and_by_number() {
        let file = "other:1:2\nme:100000:65536\nme:5:6\n1001:200000:1000\nbad\nempty:7:0\n";
        assert_eq!(range(file, 1000, Some("me")), Some((100_000, 65_536)));
        assert_eq!(range(file, 1001, None), Some((200_000, 1000)));
        assert_eq!(range(file, 1002, Some("nobody")), None);
        assert_eq!(range(file, 1002, Some("bad")), None);
        assert_eq!(range(file, 1002, Some("empty")), None);
    }
}
