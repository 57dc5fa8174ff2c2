//! Locks, processes, randomness.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, PoisonError};

use ovl_diff::DirHandle;
use ovl_driver::{FsType, Identity, Lock, LockKind, ProcessId, SystemBackend};
use ovl_layout::XattrNamespace;
use rustix::io::Errno;

use super::inode::Ino;
use super::tree::MockDir;
use super::{FIRST_NAMESPACE, MockKernel, Shared, State};

/// One that lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    /// Which one of this number it is.
    pub(super) start_time: u64,
    pub(super) namespace: u64,
}

impl State {
    /// A process of this number: the one that lives, or a new one.
    pub(super) fn start(&mut self, pid: u32, namespace: u64) -> Process {
        let started = self.started + 1;
        let process = *self.processes.entry(pid).or_insert(Process {
            start_time: started,
            namespace,
        });
        self.started = self.started.max(process.start_time);
        process
    }

    pub(super) fn has_namespace(&self, namespace: u64) -> bool {
        let mut all = self.processes.values();
        namespace == FIRST_NAMESPACE || all.any(|process| process.namespace == namespace)
    }
}

/// Who has locked what.
#[derive(Debug, Default)]
pub(super) struct Locks {
    held: BTreeMap<u64, Held>,
    next: u64,
}

#[derive(Debug)]
struct Held {
    ino: Ino,
    kind: LockKind,
    pid: u32,
}

impl Locks {
    fn take(&mut self, ino: Ino, kind: LockKind, pid: u32) -> Option<u64> {
        let excluded = self.held.values().any(|held| {
            held.ino == ino && (held.kind == LockKind::Exclusive || kind == LockKind::Exclusive)
        });
        if excluded {
            return None;
        }
        self.next += 1;
        self.held.insert(self.next, Held { ino, kind, pid });
        Some(self.next)
    }

    pub(super) fn release_process(&mut self, pid: u32) {
        self.held.retain(|_, held| held.pid != pid);
    }
}

/// Releases a lock when it is dropped.
struct Release {
    shared: Arc<Shared>,
    key: u64,
}

impl Drop for Release {
    fn drop(&mut self) {
        self.shared.lock().locks.held.remove(&self.key);
        self.shared.unlocked.notify_all();
    }
}

impl SystemBackend for MockKernel {
    fn fill_random(&self, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        for byte in buffer {
            // xorshift64*: the same numbers in every run.
            state.random ^= state.random >> 12;
            state.random ^= state.random << 25;
            state.random ^= state.random >> 27;
            *byte = (state.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8;
        }
        Ok(())
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(format!("boot-{}", self.state().boot))
    }

    fn this_process(&self) -> io::Result<ProcessId> {
        Ok(self.process)
    }

    fn is_alive(&self, process: ProcessId) -> io::Result<bool> {
        let state = self.state();
        let found = state.processes.get(&process.pid);
        Ok(found.is_some_and(|found| found.start_time == process.start_time))
    }

    fn mount_namespace(&self) -> io::Result<u64> {
        Ok(self.namespace)
    }

    fn is_namespace_alive(&self, namespace: u64) -> io::Result<bool> {
        Ok(self.state().has_namespace(namespace))
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(self.profile().identity.clone())
    }

    fn fs_type(&self, _: &DirHandle) -> io::Result<FsType> {
        Ok(self.profile().fs_type)
    }

    fn has_d_type(&self, _: &DirHandle) -> io::Result<bool> {
        Ok(self.profile().d_type)
    }

    fn keeps_xattrs(&self, _: &DirHandle, namespace: XattrNamespace) -> io::Result<bool> {
        Ok(namespace == XattrNamespace::Trusted || self.profile().user_xattrs)
    }

    fn lock(
        &self,
        dir: &DirHandle,
        name: Option<&OsStr>,
        kind: LockKind,
        wait: bool,
    ) -> io::Result<Option<Lock>> {
        let dir: &MockDir = dir.inner()?;
        let mut state = self.state();
        let mut ino = dir.ino(&state)?;
        if let Some(name) = name {
            ino = state.child(ino, name)?.ok_or(Errno::NOENT)?;
            if !state.inode(ino)?.is_dir() {
                return Err(Errno::NOTDIR.into());
            }
        }
        loop {
            if let Some(key) = state.locks.take(ino, kind, self.process.pid) {
                let release = Release {
                    shared: Arc::clone(&self.shared),
                    key,
                };
                return Ok(Some(Lock::new(ino, release)));
            }
            if !wait {
                return Ok(None);
            }
            let waited = self.shared.unlocked.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
            state.namespace = self.namespace;
        }
    }
}
