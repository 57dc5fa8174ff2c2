//! What becomes of a file once it has its name: contents and attributes, on any thread.
//!
//! Names are made in the order of the archive by the thread that reads it. What is left to do to a
//! new file needs nothing but its handle, and nothing else needs the file to be complete, except
//! where [`Files::wait`] says so.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::dress::Dress;
use super::{Stop, data_runs};
use crate::archive::{ArchiveEntry, HOLDABLE, Piece};
use crate::error::{ApplyError, Context as _, TreeError};
use crate::tree::{FileHandle, Node, TreeBackend};
use crate::workers::Workers;

/// Larger files are written while they are read.
pub(super) const SMALL: u64 = 256 * 1024;
/// Pieces that the contents of a small file may come in.
pub(super) const PIECES: usize = 4;
/// Files that a thread takes at once. Each of them is open: with [`Workers`] at its limits, less
/// than 200 are.
const BATCH: usize = 8;
const BATCH_BYTES: u64 = 512 * 1024;
const _: () = assert!(BATCH * PIECES <= HOLDABLE);

/// A file that has a name and nothing else yet.
pub(super) struct NewFile {
    pub(super) entry: ArchiveEntry,
    pub(super) handle: FileHandle,
    pub(super) path: PathBuf,
    pub(super) dress: Dress,
    pub(super) start_writeback: bool,
}

/// A file and what is left of its contents to be written.
pub(super) struct Job {
    pub(super) file: NewFile,
    pub(super) pieces: Vec<(u64, Piece)>,
}

pub(super) type Batch = Vec<Job>;

impl NewFile {
    /// Writes what is no hole, and says where the last of it ends.
    pub(super) fn write(
        &self,
        tree: &dyn TreeBackend,
        offset: u64,
        data: &[u8],
    ) -> Result<Option<u64>, TreeError> {
        let mut end = None;
        for run in data_runs(data, offset) {
            end = Some(offset + run.end as u64);
            tree.write_at(&self.handle, offset + run.start as u64, &data[run])
                .on("write", &self.path)?;
        }
        Ok(end)
    }

    /// What comes after all contents, of which the last that was written ends at `end`. Says whether
    /// the file system can hold the time.
    pub(super) fn finish(&self, tree: &dyn TreeBackend, end: u64) -> Result<bool, Stop> {
        let size = self.entry.size;
        if end < size {
            tree.set_len(&self.handle, size).on("write", &self.path)?;
        }
        let node = Node::File(&self.handle);
        let kept = self.dress.put_on(tree, node, &self.path)?;
        if self.start_writeback && size > 0 {
            tree.start_writeback(&self.handle).on("write", &self.path)?;
        }
        Ok(kept)
    }
}

impl Job {
    fn run(&self, tree: &dyn TreeBackend) -> Result<bool, Stop> {
        let mut end = 0;
        for (offset, piece) in &self.pieces {
            end = self.file.write(tree, *offset, piece)?.unwrap_or(end);
        }
        self.file.finish(tree, end)
    }
}

/// The first failure in the order of the archive, and what else the threads have to tell.
pub(super) struct Failure {
    first: Mutex<Option<(u64, ApplyError)>>,
    /// The entry of it, or as many as there can be.
    index: AtomicU64,
    clamped_times: AtomicU64,
}

impl Default for Failure {
    fn default() -> Self {
        Self {
            first: Mutex::default(),
            index: AtomicU64::new(u64::MAX),
            clamped_times: AtomicU64::default(),
        }
    }
}

impl Failure {
    /// Does what is left to do to some files. What comes after a failure makes no difference.
    pub(super) fn run(&self, tree: &dyn TreeBackend, batch: Batch) {
        for job in batch {
            let entry = &job.file.entry;
            if entry.index > self.index.load(Ordering::Relaxed) {
                continue;
            }
            match job.run(tree) {
                Ok(true) => {}
                Ok(false) => {
                    self.clamped_times.fetch_add(1, Ordering::Relaxed);
                }
                Err(stop) => self.note(entry.index, stop.of(entry)),
            }
        }
    }

    fn note(&self, index: u64, error: ApplyError) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|(before, _)| index < *before) {
            self.index.store(index, Ordering::Relaxed);
            *first = Some((index, error));
        }
    }

    pub(super) fn clamped_times(&self) -> u64 {
        self.clamped_times.load(Ordering::Relaxed)
    }

    pub(super) fn take(self) -> Option<ApplyError> {
        let first = self.first.into_inner();
        let first = first.unwrap_or_else(PoisonError::into_inner);
        first.map(|(_, error)| error)
    }

    fn is_known(&self) -> bool {
        self.index.load(Ordering::Relaxed) < u64::MAX
    }
}

/// The files that are under way.
pub(super) struct Files<'a> {
    workers: &'a Workers<'a, Batch>,
    failure: &'a Failure,
    batch: Batch,
    bytes: u64,
}

impl<'a> Files<'a> {
    pub(super) fn new(workers: &'a Workers<'a, Batch>, failure: &'a Failure) -> Self {
        Self {
            workers,
            failure,
            batch: Batch::new(),
            bytes: 0,
        }
    }

    /// Takes over what is left to do to a file. Whether it fails is known later.
    pub(super) fn submit(&mut self, job: Job) {
        self.bytes += job.file.entry.size;
        self.batch.push(job);
        if self.batch.len() >= BATCH || self.bytes >= BATCH_BYTES {
            self.flush();
        }
    }

    /// Whether any has failed, so that there is no use in going on.
    pub(super) fn have_failed(&self) -> bool {
        self.failure.is_known()
    }

    /// Returns when all are complete, or one has failed.
    pub(super) fn wait(&mut self) {
        self.flush();
        self.workers.wait();
    }

    fn flush(&mut self) {
        self.bytes = 0;
        if !self.batch.is_empty() {
            self.workers.submit(std::mem::take(&mut self.batch));
        }
    }
}
