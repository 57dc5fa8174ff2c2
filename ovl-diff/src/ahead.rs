//! Small files that are read before it is their turn, by other threads.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::emit::{SmallFile, read_small};
use crate::error::{Context as _, DiffError};
use crate::levels::Level;
use crate::tree::{DirHandle, FileKind, Metadata};
use crate::view::{Found, Look, View};
use crate::workers::Workers;

/// Larger files are read when it is their turn.
const SMALL: u64 = 128 * 1024;
/// Names that are looked up before their turn; with [`SMALL`], that bounds the memory: 4 MiB.
const AHEAD: usize = 32;
/// Files that a thread takes at once.
const BATCH: usize = 8;
/// Fewer are read when it is their turn: to wake a thread costs more.
const FEW: usize = 4;

pub(crate) type Batch = Vec<Arc<Ticket>>;

/// A file that some thread reads.
pub(crate) struct Ticket {
    dir: DirHandle,
    name: OsString,
    path: PathBuf,
    metadata: Metadata,
    state: Mutex<State>,
    done: Condvar,
}

enum State {
    /// With memory for the contents, which comes from the caller and goes back: threads that free
    /// each other's memory wait for each other.
    Waiting(Vec<u8>),
    Running {
        /// Somebody waits for the end: waking nobody is a system call too.
        awaited: bool,
    },
    Done(Result<Option<SmallFile>, DiffError>),
}

impl Ticket {
    /// Reads the file, unless somebody does or has. Whether it was to be done.
    pub(crate) fn run(&self, view: View<'_>) -> bool {
        let memory = {
            let mut state = self.state();
            let State::Waiting(memory) = &mut *state else {
                return false;
            };
            let memory = std::mem::take(memory);
            *state = State::Running { awaited: false };
            memory
        };
        // After a panic whoever needs the file tries again, and meets it.
        let mut outcome = Outcome(self, State::Waiting(Vec::new()));
        let (path, metadata) = (&self.path, &self.metadata);
        outcome.1 = State::Done(read_small(
            view, &self.dir, &self.name, path, metadata, memory,
        ));
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Outcome<'a>(&'a Ticket, State);

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.1, State::Waiting(Vec::new()));
        let before = std::mem::replace(&mut *self.0.state(), outcome);
        if matches!(before, State::Running { awaited: true }) {
            self.0.done.notify_one();
        }
    }
}

/// A name whose turn it is.
pub(crate) struct Next {
    pub(crate) name: OsString,
    pub(crate) look: Look,
    /// What was read of it before its turn.
    pub(crate) file: Option<SmallFile>,
}

/// The next names of a directory, up to the next directory in it.
#[derive(Default)]
pub(crate) struct Ahead {
    names: VecDeque<(OsString, Look, Option<Arc<Ticket>>)>,
    /// Memory of files that are written.
    free: Vec<Vec<u8>>,
}

impl Ahead {
    /// The next name of `level`, which is at `path`.
    pub(crate) fn next(
        &mut self,
        view: View<'_>,
        workers: &Workers<'_, Batch>,
        level: &mut Level,
        path: &Path,
    ) -> Result<Option<Next>, DiffError> {
        if self.names.len() <= AHEAD / 2 {
            self.look_ahead(view, workers, level, path)?;
        }
        let Some((name, look, ticket)) = self.names.pop_front() else {
            return Ok(None);
        };
        let file = match ticket {
            Some(ticket) => self.obtain(view, &ticket)?,
            None => None,
        };
        Ok(Some(Next { name, look, file }))
    }

    /// Takes back the memory of a file.
    pub(crate) fn recycle(&mut self, file: SmallFile) {
        self.free.push(file.into_memory());
    }

    fn look_ahead(
        &mut self,
        view: View<'_>,
        workers: &Workers<'_, Batch>,
        level: &mut Level,
        path: &Path,
    ) -> Result<(), DiffError> {
        let is_dir = |look: &Look| matches!(look.found, Found::Directory(..));
        let mut batch = Batch::new();
        // What is in a directory comes before the names after it.
        while self.names.len() < AHEAD
            && !self.names.back().is_some_and(|(_, look, _)| is_dir(look))
            && let Some(name) = level.names.pop()
        {
            let path = path.join(&name);
            let look = view.look(&level.tree, &name).on("look at", &path)?;
            let ticket = match &look.found {
                Found::Object(dir, metadata) if is_small(metadata) => Some(Arc::new(Ticket {
                    dir: dir.clone(),
                    name: name.clone(),
                    path,
                    metadata: *metadata,
                    state: Mutex::new(State::Waiting(self.free.pop().unwrap_or_default())),
                    done: Condvar::new(),
                })),
                _ => None,
            };
            batch.extend(ticket.clone());
            if batch.len() == BATCH {
                workers.submit(std::mem::take(&mut batch));
            }
            self.names.push_back((name, look, ticket));
        }
        if batch.len() >= FEW {
            workers.submit(batch);
        }
        Ok(())
    }

    /// What a ticket is for. Until it is there, the last ones are read here.
    fn obtain(&self, view: View<'_>, ticket: &Ticket) -> Result<Option<SmallFile>, DiffError> {
        let mut later = self
            .names
            .iter()
            .rev()
            .filter_map(|(.., later)| later.as_ref());
        loop {
            let state = ticket.state();
            match &*state {
                State::Waiting(_) => {
                    drop(state);
                    ticket.run(view);
                    continue;
                }
                State::Running { .. } => {
                    drop(state);
                    if later.any(|later| later.run(view)) {
                        continue;
                    }
                }
                State::Done(_) => drop(state),
            }
            let mut state = ticket.state();
            while let State::Running { awaited } = &mut *state {
                *awaited = true;
                let woken = ticket.done.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
            }
            if matches!(*state, State::Done(_))
                && let State::Done(read) =
                    std::mem::replace(&mut *state, State::Waiting(Vec::new()))
            {
                return read;
            }
        }
    }
}

fn is_small(metadata: &Metadata) -> bool {
    metadata.kind == FileKind::Regular
        && metadata.nlink == 1
        && metadata.size <= SMALL
        && metadata.is_dense()
}
