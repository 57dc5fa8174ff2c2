//! What this machine allows, found out without `ovl`: whatever it answered would excuse its own
//! failures. Where these say yes, a test must pass.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Or why not.
pub(crate) type Answer = Result<(), String>;

/// Nobody in particular.
pub(crate) const USER: &str = "65534";

/// A program with rights of its own may enter a namespace where others, as `ovl` here, get one
/// without any rights.
const NAMESPACES: &str = "
    limit=/proc/sys/kernel/apparmor_restrict_unprivileged_userns
    ! grep -qs 1 $limit || { echo \"$limit is 1\" >&2; exit 1; }
    unshare --user --map-root-user --mount true";

/// A directory in place of another takes an attribute, which not every tmpfs has for users. Leaves
/// nothing that only root of its namespace can remove.
const OVERLAY: &str = "
    mkdir -p lower/dir upper work merged
    mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work$xattrs o merged
    rmdir merged/dir; mkdir merged/dir; test -e upper/dir; umount merged; rm -r work";

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Root, and not of a user namespace that lacks most owners.
pub(crate) fn has_all_ids() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether whoever runs the tests is root, or becomes it in a user namespace.
pub(crate) fn root() -> &'static Answer {
    static ANSWER: OnceLock<Answer> = OnceLock::new();
    ANSWER.get_or_init(|| match is_root() {
        true => Ok(()),
        false => ask(Command::new("sh").args(["-c", NAMESPACES])),
    })
}

/// Whether [`in_namespaces`] a tmpfs mounts, and an overlay on it.
pub(crate) fn mounts_on_tmpfs() -> &'static Answer {
    static ANSWER: OnceLock<Answer> = OnceLock::new();
    ANSWER.get_or_init(|| own_mount("mount -t tmpfs t .; cd \"$PWD\""))
}

/// Whether [`in_namespaces`] an overlay mounts on the file system of temporary files.
pub(crate) fn mounts_on_temporary_files() -> &'static Answer {
    static ANSWER: OnceLock<Answer> = OnceLock::new();
    ANSWER.get_or_init(|| own_mount(":"))
}

/// What a test needs as an ordinary user.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Needs {
    Nothing,
    Namespaces,
    /// An overlay on the file system of `/tmp`.
    Mounts,
}

/// Whether [`user`] has that.
pub(crate) fn user_has(needs: Needs) -> &'static Answer {
    static ANSWERS: [OnceLock<Answer>; 3] = [const { OnceLock::new() }; 3];
    ANSWERS[needs as usize].get_or_init(|| {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let mount = format!(
            "{NAMESPACES}; xattrs=,userxattr; export xattrs
             mkdir -m 700 mine; cd mine; unshare --user --map-root-user --mount sh -euc '{OVERLAY}'"
        );
        let script = match needs {
            Needs::Nothing => ":",
            Needs::Namespaces => NAMESPACES,
            Needs::Mounts => &mount,
        };
        ask(user("").args(["-euc", script]).current_dir(dir.path()))
    })
}

/// `unshare` for whatever mounts something: that vanishes with it.
pub(crate) fn in_namespaces() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
}

/// A shell of an ordinary user, after something that root does in a mount namespace of its own.
pub(crate) fn user(setup: &str) -> Command {
    if !is_root() {
        return Command::new("sh");
    }
    let user =
        format!("{setup} exec setpriv --reuid {USER} --regid {USER} --clear-groups sh \"$@\"");
    let mut command = Command::new("env");
    // A root that cannot mount can still be a user.
    if !setup.is_empty() {
        command.args(["unshare", "--mount"]);
    }
    command.args(["sh", "-c", &user, "sh"]);
    command
}

/// Whether Linux is at least this one.
pub(crate) fn is_linux(wanted: (u32, u32)) -> bool {
    let system = rustix::system::uname();
    let release = system.release().to_str().unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok());
    (next().unwrap(), next().unwrap()) >= wanted
}

fn own_mount(before: &str) -> Answer {
    let dir = tempfile::tempdir().unwrap();
    let xattrs = if has_all_ids() { "" } else { ",userxattr" };
    let mut command = in_namespaces();
    command.args(["sh", "-euc", &format!("{before}; {OVERLAY}")]);
    ask(command.env("xattrs", xattrs).current_dir(dir.path()))
}

fn ask(command: &mut Command) -> Answer {
    let output = command.stdin(Stdio::null()).output().map_err(|error| {
        let program = command.get_program();
        format!("cannot run {}: {error}", Path::new(program).display())
    })?;
    let errors = String::from_utf8_lossy(&output.stderr);
    match (output.status.success(), errors.trim()) {
        (true, _) => Ok(()),
        (false, "") => Err(output.status.to_string()),
        (false, errors) => Err(errors.to_owned()),
    }
}
