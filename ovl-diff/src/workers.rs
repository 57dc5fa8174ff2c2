//! Threads that help the one that finds the work.

use std::any::Any;
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder};

/// More threads than this gain nothing: the file system takes its locks.
const MAX: usize = 8;
/// As many jobs are not worth a thread.
const FEW: usize = 4;

/// Threads for work on a tree: as many as asked for, or as there are cores for.
pub(crate) fn threads(wanted: Option<NonZeroUsize>) -> usize {
    match wanted {
        Some(wanted) => wanted.get(),
        None => thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX)),
    }
}

/// Jobs, and the threads that run them.
pub(crate) struct Workers<'a, J> {
    queue: &'a Queue<J>,
    run: &'a (dyn Fn(J) + Sync),
    /// Starts another thread, if it can.
    start: &'a dyn Fn() -> bool,
    wanted: Option<NonZeroUsize>,
}

struct Queue<J> {
    state: Mutex<State<J>>,
    /// For the threads: there is a job, or there will be none.
    ready: Condvar,
    /// For the caller: a job is done.
    done: Condvar,
}

struct State<J> {
    jobs: VecDeque<J>,
    /// Jobs that the caller has run itself before there was a thread.
    few: usize,
    /// Threads besides the caller: how many there may be, once that is known, and are.
    most: Option<usize>,
    threads: usize,
    /// Jobs that threads have taken and not done.
    running: usize,
    /// Threads that wait for a job, and whether the caller waits for the end of all: waking nobody
    /// is a system call too.
    idle: usize,
    awaited: bool,
    panic: Option<Box<dyn Any + Send>>,
    closed: bool,
}

/// Calls `body` with workers that call `run` for every job, on up to `wanted` threads, the calling
/// one included. All jobs that were taken are done when it returns.
pub(crate) fn with_workers<J: Send, T>(
    wanted: Option<NonZeroUsize>,
    run: &(dyn Fn(J) + Sync),
    body: impl FnOnce(&Workers<'_, J>) -> T,
) -> T {
    let queue = Queue {
        state: Mutex::new(State {
            jobs: VecDeque::new(),
            few: 0,
            most: None,
            threads: 0,
            running: 0,
            idle: 0,
            awaited: false,
            panic: None,
            closed: false,
        }),
        ready: Condvar::new(),
        done: Condvar::new(),
    };
    thread::scope(|scope| {
        let queue = &queue;
        let start = || {
            let worker = Builder::new().name("ovl-worker".to_owned());
            worker.spawn_scoped(scope, || queue.work(run)).is_ok()
        };
        // Also when `body` panics: the scope waits for the threads.
        let _close = Close(queue);
        body(&Workers {
            queue,
            run,
            start: &start,
            wanted,
        })
    })
}

impl<J> Workers<'_, J> {
    /// Has a job done by some thread. Does it itself when all are busy.
    pub(crate) fn submit(&self, job: J) {
        let mut state = self.queue.state();
        if state.few < FEW {
            state.few += 1;
            drop(state);
            return (self.run)(job);
        }
        let most = *state
            .most
            .get_or_insert_with(|| threads(self.wanted).saturating_sub(1));
        if state.threads < most {
            match (self.start)() {
                true => state.threads += 1,
                false => state.most = Some(state.threads),
            }
        }
        if state.jobs.len() >= 2 * state.threads {
            drop(state);
            return (self.run)(job);
        }
        state.jobs.push_back(job);
        let idle = state.idle > 0;
        drop(state);
        if idle {
            self.queue.ready.notify_one();
        }
    }

    /// Returns when all jobs are done.
    pub(crate) fn wait(&self) {
        let mut state = self.queue.state();
        loop {
            if let Some(panic) = state.panic.take() {
                drop(state);
                resume_unwind(panic);
            }
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                (self.run)(job);
                state = self.queue.state();
            } else if state.running > 0 {
                state.awaited = true;
                let woken = self.queue.done.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                state.awaited = false;
            } else {
                return;
            }
        }
    }
}

impl<J> Queue<J> {
    fn work(&self, run: &(dyn Fn(J) + Sync)) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.running += 1;
                drop(state);
                // A thread that is gone would leave the others waiting.
                let result = catch_unwind(AssertUnwindSafe(|| run(job)));
                state = self.state();
                state.running -= 1;
                if let Err(panic) = result {
                    state.panic.get_or_insert(panic);
                }
                if state.running == 0 && state.awaited {
                    self.done.notify_one();
                }
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                let woken = self.ready.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Close<'a, J>(&'a Queue<J>);

impl<J> Drop for Close<'_, J> {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.ready.notify_all();
    }
}
