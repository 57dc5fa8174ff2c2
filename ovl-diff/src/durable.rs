//! Making a whole layer durable.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::error::{Context as _, TreeError};
use crate::handles::FewHandles;
use crate::tree::{DirEntry, DirHandle, FileKind, Node, TreeBackend};

/// Syncs under way at once. Each of them waits for a commit of the file system's journal and a flush
/// of the disk, which the kernel does once for all that wait.
const THREADS: usize = 32;
/// As many are not worth a thread.
const FEW: usize = 8;
/// Syncs that are found before others are done.
const AHEAD: usize = 256;

/// Waits until all files and directories below `root`, and `root` itself, are on disk. Nothing else
/// on the file system is waited for.
///
/// Every file is synced by itself, many at a time. It is quicker when their data is on its way
/// already: [`TreeBackend::start_writeback`].
///
/// # Errors
///
/// The first step that fails.
pub fn sync_layer(tree: &dyn TreeBackend, root: &DirHandle) -> Result<(), TreeError> {
    let tree = FewHandles::new(tree, 1);
    let mut walk = Walk {
        tree: &tree,
        levels: vec![Level::open(&tree, root.clone(), PathBuf::new())?],
    };
    let mut first = Vec::new();
    while first.len() < FEW {
        match walk.next()? {
            Some(job) => first.push(job),
            None => return first.iter().try_for_each(|job| job.run(&tree)),
        }
    }
    let (sender, receiver) = sync_channel(AHEAD);
    let (receiver, failed) = (Arc::new(Mutex::new(receiver)), Mutex::new(None));
    thread::scope(|scope| {
        let mut threads = 0;
        for _ in 0..THREADS {
            let (tree, receiver, failed) = (&tree, Arc::clone(&receiver), &failed);
            let worker = move || work(tree, &receiver, failed);
            // One that cannot be had is made up for by the others.
            threads += usize::from(thread::Builder::new().spawn_scoped(scope, worker).is_ok());
        }
        // The threads alone receive: should all of them panic, sending ends.
        drop(receiver);
        // Its end ends the threads.
        let sender = sender;
        match threads {
            0 => walk.run_all(first),
            _ => walk.send_all(first, &sender),
        }
    })?;
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn work(tree: &FewHandles<'_>, jobs: &Mutex<Receiver<Job>>, failed: &Mutex<Option<TreeError>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
        // After a failure the others are only taken from the walk.
        if lock().is_some() {
            continue;
        }
        if let Err(error) = job.run(tree) {
            lock().get_or_insert(error);
        }
    }
}

/// One thing to be synced.
struct Job {
    dir: DirHandle,
    /// A file in it; the directory itself where there is none.
    file: Option<OsString>,
    path: PathBuf,
}

impl Job {
    fn run(&self, tree: &FewHandles<'_>) -> Result<(), TreeError> {
        let node = match &self.file {
            Some(name) => Node::Entry(&self.dir, name),
            None => Node::Dir(&self.dir),
        };
        tree.sync(node).on("sync", &self.path)
    }
}

struct Level {
    dir: DirHandle,
    entries: Vec<DirEntry>,
    path: PathBuf,
}

impl Level {
    fn open(tree: &FewHandles<'_>, dir: DirHandle, path: PathBuf) -> Result<Self, TreeError> {
        let entries = tree.read_dir(&dir).on("list", &path)?;
        Ok(Self { dir, entries, path })
    }
}

/// Finds what is to be synced: files before the directories that name them.
struct Walk<'a> {
    tree: &'a FewHandles<'a>,
    levels: Vec<Level>,
}

impl Walk<'_> {
    fn next(&mut self) -> Result<Option<Job>, TreeError> {
        loop {
            let Some(level) = self.levels.last_mut() else {
                return Ok(None);
            };
            let Some(entry) = level.entries.pop() else {
                let done = self.levels.pop();
                return Ok(done.map(|done| Job {
                    dir: done.dir,
                    file: None,
                    path: done.path,
                }));
            };
            let path = level.path.join(&entry.name);
            match entry.kind {
                FileKind::Directory => {
                    let dir = self
                        .tree
                        .open_dir(&level.dir, &entry.name)
                        .on("open", &path)?;
                    self.levels.push(Level::open(self.tree, dir, path)?);
                }
                FileKind::Regular => {
                    return Ok(Some(Job {
                        dir: level.dir.clone(),
                        file: Some(entry.name),
                        path,
                    }));
                }
                // The others are all in their inode, which the directory's sync takes along.
                _ => {}
            }
        }
    }

    fn run_all(&mut self, first: Vec<Job>) -> Result<(), TreeError> {
        first.iter().try_for_each(|job| job.run(self.tree))?;
        while let Some(job) = self.next()? {
            job.run(self.tree)?;
        }
        Ok(())
    }

    fn send_all(&mut self, first: Vec<Job>, jobs: &SyncSender<Job>) -> Result<(), TreeError> {
        for job in first {
            // Nobody receives only when every thread has panicked, which is told when they end.
            let _ = jobs.send(job);
        }
        while let Some(job) = self.next()? {
            let _ = jobs.send(job);
        }
        Ok(())
    }
}
