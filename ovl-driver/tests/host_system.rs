//! The contract of `SystemBackend` on the running system.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use ovl_diff::{DirHandle, HostTree, TreeBackend as _};
use ovl_driver::{FsType, HostSystem, Identity, LockKind, ProcessId, SystemBackend as _};
use ovl_layout::XattrNamespace;
use rustix::process::{Pid, WaitId, WaitIdOptions};
use tempfile::TempDir;

fn system() -> HostSystem {
    HostSystem::default()
}

fn home() -> (TempDir, DirHandle) {
    let temp = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        fs::create_dir(temp.path().join(name)).unwrap();
    }
    let dir = HostTree::default().open_root(temp.path()).unwrap();
    (temp, dir)
}

fn name(name: &str) -> Option<&OsStr> {
    Some(OsStr::new(name))
}

/// Whether the lock could be got by somebody else now.
fn free(dir: &DirHandle, name: Option<&OsStr>, kind: LockKind) -> bool {
    system().lock(dir, name, kind, false).unwrap().is_some()
}

#[test]
fn an_exclusive_lock_excludes_all_others_until_it_is_dropped() {
    let (temp, dir) = home();
    let lock = system()
        .lock(&dir, name("a"), LockKind::Exclusive, false)
        .unwrap()
        .unwrap();
    assert_eq!(
        lock.ino(),
        fs::metadata(temp.path().join("a")).unwrap().ino()
    );
    let other = HostTree::default().open_root(temp.path()).unwrap();
    for dir in [&dir, &other] {
        assert!(!free(dir, name("a"), LockKind::Exclusive));
        assert!(!free(dir, name("a"), LockKind::Shared));
        assert!(free(dir, name("b"), LockKind::Exclusive));
        assert!(free(dir, None, LockKind::Exclusive));
    }
    drop(lock);
    assert!(free(&other, name("a"), LockKind::Exclusive));
}

#[test]
fn shared_locks_share() {
    let (_temp, dir) = home();
    let first = system()
        .lock(&dir, name("a"), LockKind::Shared, true)
        .unwrap()
        .unwrap();
    let second = system()
        .lock(&dir, name("a"), LockKind::Shared, false)
        .unwrap()
        .unwrap();
    assert!(!free(&dir, name("a"), LockKind::Exclusive));
    drop(first);
    assert!(!free(&dir, name("a"), LockKind::Exclusive));
    drop(second);
    assert!(free(&dir, name("a"), LockKind::Exclusive));
}

#[test]
fn a_directory_locked_by_name_and_as_itself_is_locked_once() {
    let (temp, dir) = home();
    let inner = HostTree::default().open_dir(&dir, OsStr::new("a")).unwrap();
    let lock = system()
        .lock(&inner, None, LockKind::Exclusive, false)
        .unwrap()
        .unwrap();
    assert_eq!(
        lock.ino(),
        fs::metadata(temp.path().join("a")).unwrap().ino()
    );
    assert!(!free(&dir, name("a"), LockKind::Exclusive));
    assert!(!free(&inner, None, LockKind::Exclusive));
    // The handle it was made from is not the lock.
    drop(inner);
    assert!(!free(&dir, name("a"), LockKind::Exclusive));
    drop(lock);
    assert!(free(&dir, name("a"), LockKind::Exclusive));
}

#[test]
fn a_lock_stays_with_the_object_when_its_name_changes() {
    let (temp, dir) = home();
    let lock = system()
        .lock(&dir, name("a"), LockKind::Exclusive, false)
        .unwrap()
        .unwrap();
    fs::rename(temp.path().join("a"), temp.path().join("moved")).unwrap();
    fs::create_dir(temp.path().join("a")).unwrap();
    assert!(free(&dir, name("a"), LockKind::Exclusive));
    assert!(!free(&dir, name("moved"), LockKind::Exclusive));
    let present = fs::metadata(temp.path().join("a")).unwrap().ino();
    assert_ne!(lock.ino(), present);
}

#[test]
fn waiting_gets_the_lock_once_the_holder_drops_it() {
    let (_temp, dir) = home();
    let lock = system()
        .lock(&dir, None, LockKind::Exclusive, true)
        .unwrap()
        .unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let lock = system()
                .lock(&dir, None, LockKind::Exclusive, true)
                .unwrap();
            sender.send(lock.is_some()).unwrap();
        });
        assert!(!free(&dir, None, LockKind::Exclusive));
        assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Empty));
        drop(lock);
        assert_eq!(receiver.recv(), Ok(true));
    });
}

#[test]
fn dropping_unlocks_at_once_while_other_threads_start_programs() {
    let (_temp, dir) = home();
    std::thread::scope(|scope| {
        let programs = scope.spawn(|| {
            for _ in 0..50 {
                Command::new("true").status().unwrap();
            }
        });
        while !programs.is_finished() {
            assert!(free(&dir, name("a"), LockKind::Exclusive));
        }
    });
}

#[test]
fn only_a_directory_inside_is_locked() {
    let (temp, dir) = home();
    fs::write(temp.path().join("file"), b"").unwrap();
    symlink("a", temp.path().join("link")).unwrap();
    let kind = |dir: &DirHandle, entry| {
        system()
            .lock(dir, name(entry), LockKind::Shared, false)
            .unwrap_err()
            .kind()
    };
    assert_eq!(kind(&dir, "none"), io::ErrorKind::NotFound);
    assert_eq!(kind(&dir, "file"), io::ErrorKind::NotADirectory);
    for bad in ["..", "a/../..", "", "/"] {
        assert_eq!(kind(&dir, bad), io::ErrorKind::InvalidInput);
    }
    assert!(
        system()
            .lock(&dir, name("link"), LockKind::Shared, false)
            .is_err()
    );
    let foreign = DirHandle::new("of another backend");
    assert_eq!(kind(&foreign, "a"), io::ErrorKind::InvalidInput);
    let itself = system().lock(&foreign, None, LockKind::Shared, false);
    assert_eq!(itself.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(
        system().fs_type(&foreign).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}

#[test]
fn this_process_is_alive_and_none_with_another_start_time() {
    let this = system().this_process().unwrap();
    assert_eq!(this.pid, std::process::id());
    assert_eq!(system().this_process().unwrap(), this);
    assert!(system().is_alive(this).unwrap());
    for start_time in [0, this.start_time - 1, this.start_time + 1, u64::MAX] {
        assert!(!system().is_alive(ProcessId { start_time, ..this }).unwrap());
    }
    for pid in [0, i32::MAX.unsigned_abs(), u32::MAX] {
        assert!(!system().is_alive(ProcessId { pid, ..this }).unwrap());
    }
}

#[test]
fn a_process_is_dead_from_its_end_and_not_only_from_its_burial() {
    let mut child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    // The program's name is still this one's or already "cat"; neither has a parenthesis.
    let start_time = stat
        .rsplit(") ")
        .next()
        .unwrap()
        .split(' ')
        .nth(19)
        .unwrap();
    let process = ProcessId {
        pid: child.id(),
        start_time: start_time.parse().unwrap(),
    };
    assert!(system().is_alive(process).unwrap());
    drop(child.stdin.take());
    let pid = Pid::from_child(&child);
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    rustix::process::waitid(WaitId::Pid(pid), ended)
        .unwrap()
        .unwrap();
    assert!(!system().is_alive(process).unwrap());
    child.wait().unwrap();
    assert!(!system().is_alive(process).unwrap());
}

#[test]
fn random_bytes_fill_the_whole_buffer() {
    system().fill_random(&mut []).unwrap();
    let mut buffer = vec![0; 100_000];
    system().fill_random(&mut buffer).unwrap();
    for chunk in buffer.chunks(32) {
        assert!(chunk.iter().any(|&byte| byte != 0));
    }
    let (one, other) = buffer.split_at(50_000);
    assert_ne!(one, other);
}

#[test]
fn the_boot_has_one_id() {
    let id = system().boot_id().unwrap();
    assert_eq!(id, system().boot_id().unwrap());
    assert_eq!(id.len(), 36);
    assert!(
        id.bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-'),
        "{id}"
    );
}

#[test]
fn the_identity_is_that_of_this_process_in_its_namespace() {
    let identity = system().identity().unwrap();
    assert_eq!(identity.uid, rustix::process::geteuid().as_raw());
    assert_eq!(identity.gid, rustix::process::getegid().as_raw());
    let namespace = fs::read_link("/proc/self/ns/user").unwrap();
    let initial = namespace == Path::new("user:[4026531837]");
    assert_eq!(identity.user_namespace, !initial);
    if initial {
        assert_eq!(identity.uids, Identity::root().uids);
        assert_eq!(identity.gids, Identity::root().gids);
    }
}

#[test]
fn the_file_system_type_is_that_of_the_directory() {
    let tree = HostTree::default();
    let proc = tree.open_root(Path::new("/proc")).unwrap();
    assert_eq!(system().fs_type(&proc).unwrap(), FsType(0x9fa0));
    let (temp, dir) = home();
    let expected = rustix::fs::statfs(temp.path()).unwrap().f_type;
    assert_eq!(
        i128::from(system().fs_type(&dir).unwrap().0),
        i128::from(expected)
    );
}

#[test]
fn entries_tell_their_types_and_reading_them_leaves_the_handle_alone() {
    let (temp, dir) = home();
    for number in 0..500 {
        fs::write(temp.path().join(format!("file-{number}")), "").unwrap();
    }
    assert!(system().has_d_type(&dir).unwrap());
    assert!(system().has_d_type(&dir).unwrap());
    assert_eq!(HostTree::default().read_dir(&dir).unwrap().len(), 502);
    let empty = HostTree::default()
        .open_root(&temp.path().join("a"))
        .unwrap();
    assert!(system().has_d_type(&empty).unwrap());
}

#[test]
fn a_file_system_says_which_attributes_it_keeps() {
    let (_temp, dir) = home();
    // Without privilege root's are not shown, but there is a place for them.
    for namespace in [XattrNamespace::Trusted, XattrNamespace::User] {
        assert!(system().keeps_xattrs(&dir, namespace).unwrap());
    }
    let proc = HostTree::default().open_root("/proc".as_ref()).unwrap();
    for namespace in [XattrNamespace::Trusted, XattrNamespace::User] {
        assert!(!system().keeps_xattrs(&proc, namespace).unwrap());
    }
}
