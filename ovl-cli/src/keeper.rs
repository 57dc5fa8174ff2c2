//! A process that keeps an ordinary user's mounts.
//!
//! A mount namespace ends with its last process, and the mounts in it with it. So the first `mount`
//! of an ordinary user starts a process that does nothing but live in a user and mount namespace;
//! every later command of that user enters it. It ends by itself when nothing is mounted there any
//! more. From outside, its mounts are under `/proc/<its number>/root`.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use rustix::fs::FlockOperation;

use crate::fail::{Failure, Kind};
use crate::namespace;

/// The hidden command of the keeper.
const COMMAND: &str = "keep-mounts";
/// How long a keeper without mounts may live on.
const TICK: Duration = Duration::from_millis(500);

/// A running keeper. While this lives, it does not end.
pub(crate) struct Keeper {
    pid: u32,
    _lock: File,
}

impl Keeper {
    /// The user's keeper, if there is one.
    pub(crate) fn find() -> Result<Option<Self>, Failure> {
        let Some(place) = Place::existing()? else {
            return Ok(None);
        };
        let lock = place.lock(FlockOperation::LockShared)?;
        Ok(place.keeper().map(|pid| Self { pid, _lock: lock }))
    }

    /// The user's keeper, started if there is none.
    pub(crate) fn find_or_start() -> Result<Self, Failure> {
        let place = Place::make()?;
        let lock = place.lock(FlockOperation::LockExclusive)?;
        let pid = match place.keeper() {
            Some(pid) => pid,
            None => place.start()?,
        };
        Ok(Self { pid, _lock: lock })
    }

    /// Where its root is seen by everybody else.
    pub(crate) fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.pid).into()
    }

    /// Enters its namespaces. The working directory stays.
    pub(crate) fn join(&self) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            let message = format!(
                "cannot enter the namespace of process {}: {error}",
                self.pid
            );
            Failure::new(Kind::Unsupported, message)
        };
        let open = |name| File::open(format!("/proc/{}/ns/{name}", self.pid));
        let (user, mounts) = (open("user"), open("mnt"));
        let (user, mounts) = (
            user.map_err(|e| failed(&e))?,
            mounts.map_err(|e| failed(&e))?,
        );
        let dir = std::env::current_dir();
        setns(user, CloneFlags::CLONE_NEWUSER).map_err(|e| failed(&e))?;
        setns(mounts, CloneFlags::CLONE_NEWNS).map_err(|e| failed(&e))?;
        match dir {
            Ok(dir) => change_dir(&dir).map_err(|e| failed(&e)),
            // It was removed; whatever path is relative to it leads nowhere.
            Err(_) => Ok(()),
        }
    }
}

/// Where the keeper of a user is noted.
struct Place(PathBuf);

impl Place {
    fn path() -> PathBuf {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        match set("XDG_RUNTIME_DIR").map(PathBuf::from) {
            Some(dir) if dir.is_absolute() => dir.join("ovl"),
            _ => format!("/tmp/ovl-{}", rustix::process::geteuid().as_raw()).into(),
        }
    }

    fn existing() -> Result<Option<Self>, Failure> {
        let place = Self(Self::path());
        match fs::symlink_metadata(&place.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::io("look at", &place.0, &error)),
            Ok(found) => {
                // Anybody may make names in /tmp.
                let ours = found.uid() == rustix::process::geteuid().as_raw();
                match ours && found.is_dir() && found.mode() & 0o077 == 0 {
                    true => Ok(Some(place)),
                    false => Err(Failure::new(
                        Kind::Unsupported,
                        format!(
                            "{} is not a directory of yours alone; set XDG_RUNTIME_DIR to one",
                            place.0.display()
                        ),
                    )),
                }
            }
        }
    }

    fn make() -> Result<Self, Failure> {
        let path = Self::path();
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Failure::io("create", &path, &error));
            }
            _ => {}
        }
        let gone = || Failure::new(Kind::Other, format!("{} is gone again", path.display()));
        Self::existing()?.ok_or_else(gone)
    }

    fn lock(&self, kind: FlockOperation) -> Result<File, Failure> {
        let path = self.0.join("lock");
        let failed = |error: io::Error| Failure::io("lock", &path, &error);
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false);
        let file = file.open(&path).map_err(failed)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, kind))
            .map_err(|error| failed(error.into()))?;
        Ok(file)
    }

    fn note(&self) -> PathBuf {
        self.0.join("keeper")
    }

    /// The number of the keeper that runs.
    fn keeper(&self) -> Option<u32> {
        let text = fs::read_to_string(self.note()).ok()?;
        let (pid, started) = text.trim_end().split_once(' ')?;
        let pid = pid.parse().ok()?;
        (start_time(pid)? == started).then_some(pid)
    }

    fn start(&self) -> Result<u32, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            let message = format!("cannot start a process that keeps the mounts: {error}");
            Failure::new(Kind::Unsupported, message)
        };
        let program = std::env::current_exe().map_err(|error| failed(&error))?;
        let mut keeper = Command::new(program);
        // A group of its own, so that a signal to the caller's does not end it.
        keeper.arg(COMMAND).current_dir("/").process_group(0);
        let (output, errors) = (Stdio::piped(), Stdio::inherit());
        let keeper = keeper.stdin(Stdio::null()).stdout(output).stderr(errors);
        let mut keeper = keeper.spawn().map_err(|error| failed(&error))?;
        let pid = keeper.id();
        let mut ready = String::new();
        if let Some(mut output) = keeper.stdout.take() {
            let read = output.read_to_string(&mut ready);
            read.map_err(|error| failed(&error))?;
        }
        if ready != "ready\n" {
            let _ = keeper.kill();
            let _ = keeper.wait();
            return Err(failed(&"it ended at once"));
        }
        let started = start_time(pid).ok_or_else(|| failed(&"it ended at once"))?;
        let note = self.note();
        let written = fs::write(&note, format!("{pid} {started}\n"))
            .and_then(|()| fs::set_permissions(&note, Permissions::from_mode(0o600)));
        written.map_err(|error| Failure::io("write", &note, &error))?;
        Ok(pid)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the process is this program's own, and has one thread yet"
)]
fn change_dir(dir: &Path) -> io::Result<()> {
    std::env::set_current_dir(dir)
}

/// When a process started, in clock ticks since boot.
fn start_time(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program is in brackets and may hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19).map(str::to_owned)
}

/// Lives in namespaces of its own until nothing is mounted there.
pub(crate) fn run(inside: Option<&Path>) -> Result<(), Failure> {
    let Some(place) = inside else {
        // Only a process that was started in its namespace lets its user look into it.
        let place = Place::make()?;
        namespace::enter_for_keeping()?;
        let program = std::env::current_exe();
        let program = program.map_err(|e| Failure::io("find", Path::new("ovl"), &e))?;
        let mut again = Command::new(&program);
        let error = again.args([COMMAND, "--inside"]).arg(&place.0).exec();
        return Err(Failure::io("run", &program, &error));
    };
    let place = Place(place.to_owned());
    let mut output = io::stdout();
    let told = output.write_all(b"ready\n").and_then(|()| output.flush());
    told.map_err(|error| Failure::output(&error))?;
    // Whoever started this reads to the end.
    let null = File::options().write(true).open("/dev/null");
    let null = null.map_err(|error| Failure::io("open", Path::new("/dev/null"), &error))?;
    rustix::stdio::dup2_stdout(&null).map_err(|error| Failure::output(&error.into()))?;
    rustix::stdio::dup2_stderr(&null).map_err(|error| Failure::output(&error.into()))?;
    loop {
        std::thread::sleep(TICK);
        if has_mounts() {
            continue;
        }
        // Whoever is about to mount holds the lock.
        let path = place.0.join("lock");
        let Ok(lock) = File::options().read(true).write(true).open(&path) else {
            return Ok(());
        };
        let kind = FlockOperation::NonBlockingLockExclusive;
        if rustix::fs::flock(&lock, kind).is_ok() && !has_mounts() {
            let _ = fs::remove_file(place.note());
            return Ok(());
        }
    }
}

/// Whether a layer is mounted in this namespace; when that cannot be told, one may be.
fn has_mounts() -> bool {
    let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else {
        return true;
    };
    let mut targets = table.lines().filter_map(|line| line.split(' ').nth(4));
    targets.any(|target| target.ends_with("/merged"))
}
