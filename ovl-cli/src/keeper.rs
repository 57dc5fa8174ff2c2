//! A process that keeps an ordinary user's mounts.
//!
//! A mount namespace ends with its last process, and the mounts in it with it. So the first `mount`
//! of an ordinary user starts a process that does nothing but live in a user and mount namespace;
//! every later command of that user enters it. It ends by itself when no layer is mounted there any
//! more. From outside, its mounts are under `/proc/<its number>/root`.
//!
//! Every command that uses a keeper holds the file `lock` shared for as long as it runs, however
//! long that is, and nobody but a keeper that is about to end ever takes it alone, without waiting.
//! Those that would start one take turns on the file `start`.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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
    running: Running,
    _lock: File,
}

/// A process and its namespaces, which stay while they are open.
struct Running {
    pid: u32,
    user: File,
    mounts: File,
}

impl Keeper {
    /// The user's keeper, if there is one.
    pub(crate) fn find() -> Result<Option<Self>, Failure> {
        let Some(place) = Place::existing()? else {
            return Ok(None);
        };
        let lock = place.lock("lock", FlockOperation::LockShared)?;
        let running = place.keeper()?;
        Ok(running.map(|running| Self {
            running,
            _lock: lock,
        }))
    }

    /// The user's keeper, started if there is none.
    pub(crate) fn find_or_start() -> Result<Self, Failure> {
        let place = Place::make()?;
        // From here on no keeper ends by itself: neither one that is found nor one that is started.
        let lock = place.lock("lock", FlockOperation::LockShared)?;
        if let Some(running) = place.keeper()? {
            return Ok(Self {
                running,
                _lock: lock,
            });
        }
        let _turn = place.lock("start", FlockOperation::LockExclusive)?;
        let running = match place.keeper()? {
            Some(running) => running,
            None => place.start()?,
        };
        Ok(Self {
            running,
            _lock: lock,
        })
    }

    /// Where its root is seen by everybody else.
    pub(crate) fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.running.pid).into()
    }

    /// Enters its namespaces. The working directory stays.
    pub(crate) fn join(&self) -> Result<(), Failure> {
        let Running { pid, user, mounts } = &self.running;
        let failed = |error: &dyn std::fmt::Display| cannot_enter(*pid, error);
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

    fn lock(&self, name: &str, kind: FlockOperation) -> Result<File, Failure> {
        let path = self.0.join(name);
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

    /// Number and start time of the keeper that was noted last.
    fn noted(&self) -> Option<(u32, String)> {
        let text = fs::read_to_string(self.note()).ok()?;
        let (pid, started) = text.trim_end().split_once(' ')?;
        Some((pid.parse().ok()?, started.to_owned()))
    }

    /// Takes the note of this process away. One that nobody could note is not the keeper, and
    /// there may be another.
    fn forget_own(&self) {
        let own = std::process::id();
        let is_own = self
            .noted()
            .is_some_and(|(pid, started)| pid == own && start_time(own) == Some(started));
        if is_own {
            let _ = fs::remove_file(self.note());
        }
    }

    /// The keeper that runs.
    fn keeper(&self) -> Result<Option<Running>, Failure> {
        let Some((pid, started)) = self.noted() else {
            return Ok(None);
        };
        let runs = || start_time(pid).is_some_and(|since| since == started);
        if !runs() {
            return Ok(None);
        }
        match Running::open(pid) {
            Ok(running) => Ok(Some(running)),
            // It is ending: its namespaces go before it does.
            Err(error) if error.kind() == io::ErrorKind::NotFound || !runs() => Ok(None),
            Err(error) => Err(cannot_enter(pid, &error)),
        }
    }

    fn start(&self) -> Result<Running, Failure> {
        let program = std::env::current_exe().map_err(|error| cannot_start(&error))?;
        let mut keeper = Command::new(program);
        // A group of its own, so that a signal to the caller's does not end it.
        keeper.arg(COMMAND).current_dir("/").process_group(0);
        let (output, errors) = (Stdio::piped(), Stdio::inherit());
        let keeper = keeper.stdin(Stdio::null()).stdout(output).stderr(errors);
        let mut keeper = keeper.spawn().map_err(|error| cannot_start(&error))?;
        let noted = self.note_when_ready(&mut keeper);
        if noted.is_err() {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
        noted
    }

    /// The note comes last: after it others may mount there, and the keeper has to stay.
    fn note_when_ready(&self, keeper: &mut Child) -> Result<Running, Failure> {
        let pid = keeper.id();
        let mut ready = String::new();
        if let Some(mut output) = keeper.stdout.take() {
            let read = output.read_to_string(&mut ready);
            read.map_err(|error| cannot_start(&error))?;
        }
        let started = start_time(pid).filter(|_| ready == "ready\n");
        let started = started.ok_or_else(|| cannot_start(&"it ended at once"))?;
        let running = Running::open(pid).map_err(|error| cannot_start(&error))?;
        // Renamed, because it is read without a lock.
        let (note, new) = (self.note(), self.0.join("keeper.new"));
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let written = options
            .open(&new)
            .and_then(|mut file| writeln!(file, "{pid} {started}"))
            .and_then(|()| fs::rename(&new, &note));
        written.map_err(|error| Failure::io("write", &note, &error))?;
        Ok(running)
    }
}

impl Running {
    fn open(pid: u32) -> io::Result<Self> {
        let open = |name| File::open(format!("/proc/{pid}/ns/{name}"));
        Ok(Self {
            pid,
            user: open("user")?,
            mounts: open("mnt")?,
        })
    }
}

fn cannot_start(error: &dyn std::fmt::Display) -> Failure {
    let message = format!("cannot start a process that keeps the mounts: {error}");
    Failure::new(Kind::Unsupported, message)
}

fn cannot_enter(pid: u32, error: &dyn std::fmt::Display) -> Failure {
    let message = format!("cannot enter the namespace of process {pid}: {error}");
    Failure::new(Kind::Unsupported, message)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the process is this program's own, and has one thread yet"
)]
fn change_dir(dir: &Path) -> io::Result<()> {
    std::env::set_current_dir(dir)
}

/// When a process that still runs started, in clock ticks since boot.
fn start_time(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program is in brackets and may hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    // One that has ended is there until somebody asks for its end, and init may take its time.
    let runs = !matches!(fields.next()?, "Z" | "X");
    fields.nth(18).filter(|_| runs).map(str::to_owned)
}

/// Lives in namespaces of its own until no layer is mounted there.
pub(crate) fn run(inside: Option<&Path>) -> Result<(), Failure> {
    let Some(place) = inside else {
        // Only a process that was started in its namespace lets its user look into it.
        let place = Place::make()?;
        // Whoever has it open reads on in the namespace in which it was opened.
        let outside = File::open(MOUNTS);
        let outside = outside.map_err(|e| Failure::io("open", Path::new(MOUNTS), &e))?;
        namespace::enter_for_keeping()?;
        let program = std::env::current_exe();
        let program = program.map_err(|e| Failure::io("find", Path::new("ovl"), &e))?;
        let mut again = Command::new(&program);
        again.args([COMMAND, "--inside"]).arg(&place.0);
        let error = again.stdin(outside).exec();
        return Err(Failure::io("run", &program, &error));
    };
    let place = Place(place.to_owned());
    let failed = |error: &io::Error| Failure::io("read", Path::new(MOUNTS), error);
    close_inherited();
    let outside = io::stdin().as_fd().try_clone_to_owned();
    let mut mounts =
        Mounts::now(outside.map_err(|e| failed(&e))?.into()).map_err(|e| failed(&e))?;
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
        if mounts.of_layers() {
            continue;
        }
        // Whoever is about to mount holds the lock.
        let path = place.0.join("lock");
        let Ok(lock) = File::options().read(true).write(true).open(&path) else {
            return Ok(());
        };
        let kind = FlockOperation::NonBlockingLockExclusive;
        if rustix::fs::flock(&lock, kind).is_ok() && !mounts.of_layers() {
            place.forget_own();
            return Ok(());
        }
    }
}

/// Whatever the caller's shell has open, as a lock or the end of a pipe, ends with the caller.
fn close_inherited() {
    let Ok(open) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let names: Vec<_> = open.flatten().map(|entry| entry.file_name()).collect();
    let numbers = names
        .iter()
        .filter_map(|name| name.to_str()?.parse::<i32>().ok());
    // The list's own is closed already.
    for number in numbers.filter(|number| *number > 2) {
        let _ = nix::unistd::close(number);
    }
}

const MOUNTS: &str = "/proc/self/mountinfo";

/// Tells the mounts that were made in this namespace from the host's, which it was made with or
/// which came in later: Docker's, and root's own, also end in `merged`.
struct Mounts {
    /// The table of the namespace outside.
    outside: File,
    /// Those that were there from the beginning. The kernel gives numbers of mounts again.
    before: HashSet<Line>,
}

/// Number and mount point, as the table has them.
type Line = (Vec<u8>, Vec<u8>);

impl Mounts {
    fn now(outside: File) -> io::Result<Self> {
        let before = merged(File::open(MOUNTS)?)?.into_iter().collect();
        Ok(Self { outside, before })
    }

    /// Whether a layer is mounted in this namespace; when that cannot be told, one may be.
    fn of_layers(&mut self) -> bool {
        // In this order: what comes in between the two is outside already.
        let inside = File::open(MOUNTS).and_then(merged);
        match (inside, merged(&self.outside)) {
            (Ok(inside), Ok(outside)) => self.has_own(inside, &outside),
            _ => true,
        }
    }

    /// Whether a mount point has more mounts than came from outside.
    fn has_own(&mut self, inside: Vec<Line>, outside: &[Line]) -> bool {
        let inside: HashSet<Line> = inside.into_iter().collect();
        self.before.retain(|line| inside.contains(line));
        inside.iter().any(|(_, target)| {
            fn on<'l>(target: &[u8], lines: impl IntoIterator<Item = &'l Line>) -> usize {
                lines.into_iter().filter(|line| line.1 == target).count()
            }
            on(target, &inside) > on(target, outside).max(on(target, &self.before))
        })
    }
}

/// All mounts on a directory of this name.
fn merged<T: io::Read + io::Seek>(mut table: T) -> io::Result<Vec<Line>> {
    let mut bytes = Vec::new();
    table.rewind()?;
    table.read_to_end(&mut bytes)?;
    let lines = bytes.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let (id, target) = (fields.next()?, fields.nth(3)?);
        let merged = target.ends_with(b"/merged");
        merged.then(|| (id.to_owned(), target.to_owned()))
    });
    Ok(lines.collect())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn line(id: u32, target: &str) -> Line {
        (id.to_string().into_bytes(), target.as_bytes().to_owned())
    }

    fn mounts(before: &[Line]) -> Mounts {
        Mounts {
            outside: File::open("/dev/null").unwrap(),
            before: before.iter().cloned().collect(),
        }
    }

    #[test]
    fn mounts_are_found_by_their_name_whatever_their_bytes() {
        let table = b"21 1 0:5 / /a rw - proc p rw\n30 21 0:6 / /\xff\\040/merged ro - x y\n\n";
        let found = merged(Cursor::new(table)).unwrap();
        assert_eq!(found, [(b"30".to_vec(), b"/\xff\\040/merged".to_vec())]);
    }

    #[test]
    fn mounts_from_outside_are_not_ones_own() {
        let (host, own) = (line(30, "/d/merged"), line(31, "/h/merged"));
        let mut at_first = mounts(std::slice::from_ref(&host));
        // There from the beginning; unmounted outside; come in later.
        assert!(!at_first.has_own(vec![host.clone()], std::slice::from_ref(&host)));
        assert!(!at_first.has_own(vec![host.clone()], &[]));
        let later = line(40, "/d/merged");
        let both = [host.clone(), later];
        assert!(!at_first.has_own(both.to_vec(), &[host.clone(), line(9, "/d/merged")]));
        assert!(at_first.has_own(vec![host.clone(), own.clone()], std::slice::from_ref(&host)));
        // One's own, under one from outside.
        assert!(at_first.has_own(vec![own, line(41, "/h/merged")], &[line(9, "/h/merged")]));
        // The number and the place of one that is gone.
        assert!(!at_first.has_own(vec![], &[]));
        assert!(at_first.has_own(vec![host], &[]));
    }
}
