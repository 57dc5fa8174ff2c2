//! The running system.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, OnceLock};

use ovl_diff::{DirHandle, HostTree, Node, TreeBackend as _};
use ovl_layout::XattrNamespace;
use rustix::fs::{FileType, FlockOperation, RawDir};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::Pid;
use rustix::rand::GetRandomFlags;

use crate::system::{FsType, Identity, Lock, LockKind, ProcessId, SystemBackend};

/// Inode number of the initial user namespace: `PROC_USER_INIT_INO` in `linux/proc_ns.h`.
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// The running system. Directory handles must be those of [`HostTree`].
///
/// Needs a mounted `/proc`. Process numbers are those that this `/proc` shows: processes that share
/// a store must share a process namespace to recognise each other.
///
/// # Examples
///
/// ```
/// use ovl_driver::{HostSystem, SystemBackend as _};
///
/// let system = HostSystem::default();
/// assert!(system.is_alive(system.this_process()?)?);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct HostSystem {
    /// No process outlives its boot.
    boot_id: Arc<OnceLock<String>>,
}

impl SystemBackend for HostSystem {
    fn fill_random(&self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            // A signal may cut a long request short.
            filled += retry_on_intr(|| {
                rustix::rand::getrandom(&mut buffer[filled..], GetRandomFlags::empty())
            })?;
        }
        Ok(())
    }

    fn boot_id(&self) -> io::Result<String> {
        if let Some(id) = self.boot_id.get() {
            return Ok(id.clone());
        }
        let id = read("/proc/sys/kernel/random/boot_id")?;
        Ok(self
            .boot_id
            .get_or_init(|| id.trim_end().to_owned())
            .clone())
    }

    fn this_process(&self) -> io::Result<ProcessId> {
        let path = "/proc/self/stat";
        let stat = ProcessStat::parse(&read_bytes(path).map_err(|error| at(path, error))?)
            .ok_or_else(|| malformed(path))?;
        Ok(ProcessId {
            pid: stat.pid,
            start_time: stat.start_time,
        })
    }

    fn is_alive(&self, process: ProcessId) -> io::Result<bool> {
        let path = format!("/proc/{}/stat", process.pid);
        match read_bytes(&path) {
            Ok(text) => {
                let stat = ProcessStat::parse(&text).ok_or_else(|| malformed(&path))?;
                Ok(stat.start_time == process.start_time && !stat.dead)
            }
            // Gone, or hidden by the mount options of /proc. A hidden one counts as the process
            // meant: what it holds must not be taken from it.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) || error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) =>
            {
                exists(process.pid)
            }
            Err(error) => Err(at(&path, error)),
        }
    }

    fn mount_namespace(&self) -> io::Result<u64> {
        // Threads can have mount namespaces of their own. The text of the link has the number, see
        // namespaces(7), and costs less than looking behind it.
        let path = "/proc/thread-self/ns/mnt";
        let link =
            rustix::fs::readlink(path, Vec::new()).map_err(|error| at(path, error.into()))?;
        let number = link.to_str().ok().and_then(|link| {
            let number = link.strip_prefix("mnt:[")?.strip_suffix(']')?;
            number.parse().ok()
        });
        number.ok_or_else(|| malformed(path))
    }

    fn is_namespace_alive(&self, namespace: u64) -> io::Result<bool> {
        for entry in std::fs::read_dir("/proc")?.flatten() {
            // Others are gone meanwhile, no processes, or somebody else's.
            let found = std::fs::metadata(entry.path().join("ns/mnt"));
            if found.is_ok_and(|found| found.ino() == namespace) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn identity(&self) -> io::Result<Identity> {
        let path = "/proc/self/ns/user";
        let user_namespace = match fs::metadata(path) {
            Ok(namespace) => namespace.ino() != INITIAL_USER_NAMESPACE,
            Err(error) if without_namespaces(&error) => false,
            Err(error) => return Err(at(path, error)),
        };
        Ok(Identity {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            user_namespace,
            uids: mapped_ids("/proc/self/uid_map")?,
            gids: mapped_ids("/proc/self/gid_map")?,
        })
    }

    fn fs_type(&self, dir: &DirHandle) -> io::Result<FsType> {
        let dir = HostTree::dir_fd(dir)?;
        let stat = retry_on_intr(|| rustix::fs::fstatfs(dir))?;
        // The numbers have 32 bits; the field's width and sign depend on the architecture.
        Ok(FsType(stat.f_type as u32))
    }

    fn has_d_type(&self, dir: &DirHandle) -> io::Result<bool> {
        // A descriptor of its own: reading moves the position.
        let dir = HostTree::open_again(dir)?;
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut entries = RawDir::new(HostTree::dir_fd(&dir)?, &mut buffer);
        // One file system answers alike for all entries: the first piece of a long list is enough.
        let mut found = false;
        while let Some(entry) = entries.next() {
            if entry?.file_type() == FileType::Unknown {
                return Ok(false);
            }
            found = true;
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(found)
    }

    fn keeps_xattrs(&self, dir: &DirHandle, namespace: XattrNamespace) -> io::Result<bool> {
        let mut value = [0; 0];
        match rustix::fs::fgetxattr(HostTree::dir_fd(dir)?, namespace.opaque(), &mut value) {
            Ok(_) | Err(Errno::NODATA) => Ok(true),
            Err(Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn lock(
        &self,
        dir: &DirHandle,
        name: Option<&OsStr>,
        kind: LockKind,
        wait: bool,
    ) -> io::Result<Option<Lock>> {
        // Locks belong to open file descriptions, so each has its own.
        let tree = HostTree::default();
        let opened = match name {
            Some(name) => tree.open_dir(dir, name)?,
            None => HostTree::open_again(dir)?,
        };
        let ino = tree.metadata(Node::Dir(&opened))?.ino;
        let locked = flock(HostTree::dir_fd(&opened)?, kind, wait)?;
        Ok(locked.then(|| Lock::new(ino, Held(opened.clone())).with_dir(opened)))
    }
}

/// A locked directory. Closing it would unlock only when no process forked meanwhile has a copy of
/// the descriptor, as one has until it runs its program, and nobody else here has the handle.
struct Held(DirHandle);

impl Drop for Held {
    fn drop(&mut self) {
        // What cannot fail on a descriptor that was locked.
        let unlock = |dir| rustix::fs::flock(dir, FlockOperation::Unlock).ok();
        let _ = HostTree::dir_fd(&self.0).ok().and_then(unlock);
    }
}

/// Whether the lock was got.
fn flock(opened: BorrowedFd<'_>, kind: LockKind, wait: bool) -> io::Result<bool> {
    let operation = match (kind, wait) {
        (LockKind::Shared, true) => FlockOperation::LockShared,
        (LockKind::Shared, false) => FlockOperation::NonBlockingLockShared,
        (LockKind::Exclusive, true) => FlockOperation::LockExclusive,
        (LockKind::Exclusive, false) => FlockOperation::NonBlockingLockExclusive,
    };
    match retry_on_intr(|| rustix::fs::flock(opened, operation)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) if !wait => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What `/proc/<pid>/stat` says, see `proc_pid_stat(5)`.
#[derive(Debug, PartialEq)]
struct ProcessStat {
    pid: u32,
    start_time: u64,
    dead: bool,
}

impl ProcessStat {
    fn parse(text: &[u8]) -> Option<Self> {
        // The second field is the program's name in parentheses, which may hold any byte.
        let name_end = text.iter().rposition(|&byte| byte == b')')?;
        let pid = text.split(|&byte| byte == b' ').next()?;
        let pid = str::from_utf8(pid).ok()?.parse().ok()?;
        let fields: Vec<&str> = str::from_utf8(&text[name_end + 1..])
            .ok()?
            .split_ascii_whitespace()
            .collect();
        // The first here is field 3.
        let field = |number: usize| fields.get(number - 3).copied();
        let threads: u64 = field(20)?.parse().ok()?;
        let dead = match field(3)? {
            // A process whose first thread has ended looks like one until the others end too.
            "Z" => threads <= 1,
            "X" | "x" => true,
            _ => false,
        };
        Some(Self {
            pid,
            start_time: field(22)?.parse().ok()?,
            dead,
        })
    }
}

fn exists(pid: u32) -> io::Result<bool> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(false);
    };
    match rustix::process::test_kill_process(pid) {
        Ok(()) | Err(Errno::PERM) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The ids inside the namespace that a map gives, see `user_namespaces(7)`.
fn mapped_ids(path: &str) -> io::Result<Vec<Range<u64>>> {
    match read(path) {
        Ok(text) => parse_id_map(&text).ok_or_else(|| malformed(path)),
        Err(error) if without_namespaces(&error) => {
            Ok(std::iter::once(0..u64::from(u32::MAX)).collect())
        }
        Err(error) => Err(error),
    }
}

fn parse_id_map(text: &str) -> Option<Vec<Range<u64>>> {
    text.lines()
        .map(|line| {
            let numbers: Vec<u64> = line
                .split_ascii_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()
                .ok()?;
            let [inside, _outside, count] = numbers[..] else {
                return None;
            };
            Some(inside..inside.checked_add(count)?)
        })
        .collect()
}

/// Whether what is missing is user namespaces, and not `/proc`.
fn without_namespaces(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound && fs::metadata("/proc/self/stat").is_ok()
}

fn read(path: &str) -> io::Result<String> {
    fs::read_to_string(path).map_err(|error| at(path, error))
}

/// In pieces that hold such a file as a whole: each read makes the kernel write it anew.
fn read_bytes(path: &str) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let (mut contents, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(contents),
            Ok(len) => contents.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn at(path: &str, error: io::Error) -> io::Error {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => " (is procfs mounted on /proc?)",
        _ => "",
    };
    io::Error::new(error.kind(), format!("{path}: {error}{hint}"))
}

fn malformed(path: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{path} is not in the form of proc(5)"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(name: &str, state: &str, threads: u32) -> Vec<u8> {
        let fields = format!(
            "77 ({name}) {state} 1 77 77 0 -1 4194560 9 0 0 0 1 2 0 0 20 0 {threads} 0 123456 99 7"
        );
        fields.into_bytes()
    }

    #[test]
    fn the_start_time_is_found_behind_any_program_name() {
        let expected = ProcessStat {
            pid: 77,
            start_time: 123_456,
            dead: false,
        };
        for name in ["sleep", "a b", ") Z 1 (", "new\nline)", ""] {
            assert_eq!(
                ProcessStat::parse(&stat(name, "S", 1)).as_ref(),
                Some(&expected),
                "{name}"
            );
        }
        let mut bytes = stat("X", "R", 3);
        bytes[4] = 0xff;
        assert_eq!(ProcessStat::parse(&bytes), Some(expected));
    }

    #[test]
    fn a_zombie_is_dead_unless_other_threads_run_on() {
        let dead = |state, threads| ProcessStat::parse(&stat("x", state, threads)).unwrap().dead;
        assert!(dead("Z", 1) && dead("X", 1) && dead("x", 1));
        assert!(!dead("Z", 2) && !dead("S", 1) && !dead("D", 1));
    }

    #[test]
    fn a_short_process_line_is_not_guessed_at() {
        assert_eq!(ProcessStat::parse(b""), None);
        assert_eq!(ProcessStat::parse(b"77 (x) S 1 77"), None);
        assert_eq!(ProcessStat::parse(b"no number (x) S"), None);
    }

    #[test]
    fn an_id_map_gives_the_ids_inside() {
        let whole = "         0          0 4294967295\n";
        assert_eq!(
            parse_id_map(whole),
            Some(std::iter::once(0..4_294_967_295).collect())
        );
        let split = "0 1000 1\n1 100000 65536\n";
        assert_eq!(parse_id_map(split), Some(vec![0..1, 1..65_537]));
        assert_eq!(parse_id_map(""), Some(vec![]));
        assert_eq!(parse_id_map("0 0\n"), None);
        assert_eq!(parse_id_map("0 x 1\n"), None);
        assert_eq!(parse_id_map(&format!("{} 0 1\n", u64::MAX)), None);
    }
}
