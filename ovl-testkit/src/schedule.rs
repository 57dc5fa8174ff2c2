//! Threads that take turns: every operation on the kernel is made in an order drawn from a seed, so
//! that what happens once in a million runs happens in a test, and happens again.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use ovl_diff::DirHandle;
use ovl_driver::{FsType, Identity, Kernel, Lock, LockKind, ProcessId, SystemBackend};
use ovl_layout::XattrNamespace;
use rustix::io::Errno;

use crate::faulty::Faulty;
use crate::random::Random;

/// One of those that take turns.
pub struct Actor<'w, T> {
    kernel: Kernel,
    work: Box<dyn FnOnce(Kernel) -> T + Send + 'w>,
}

impl<'w, T> Actor<'w, T> {
    /// Work to be done on a thread of its own, as one process. It must use the kernel that it is
    /// given, and may wait for the others by that kernel's locks only: whatever else several actors
    /// share must never make one wait.
    pub fn new(kernel: Kernel, work: impl FnOnce(Kernel) -> T + Send + 'w) -> Self {
        Self {
            kernel,
            work: Box::new(work),
        }
    }
}

impl<T> fmt::Debug for Actor<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Actor")
            .field("kernel", &self.kernel)
            .finish_non_exhaustive()
    }
}

/// What was done in which order: one operation a line, with the number of the actor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace(Vec<(usize, String)>);

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (actor, operation)) in self.0.iter().enumerate() {
            writeln!(
                f,
                "{number:5} {:indent$}{actor}: {operation}",
                "",
                indent = actor * 4
            )?;
        }
        Ok(())
    }
}

impl Trace {
    /// How often an operation of one actor followed one of another.
    #[must_use]
    pub fn switches(&self) -> usize {
        self.0.windows(2).filter(|two| two[0].0 != two[1].0).count()
    }
}

/// What came of an order.
#[derive(Debug)]
#[non_exhaustive]
pub struct Interleaved<T> {
    /// What the actors gave.
    pub results: Vec<T>,
    /// What was done.
    pub trace: Trace,
    /// Whether all who were left waited for each other. Their locks have failed with `EDEADLK` then.
    pub deadlocked: bool,
}

/// Runs the actors, one operation at a time, in an order that follows from the seed alone: by
/// chance, by chance with few changes, or by priorities that change a few times.
///
/// Operations of threads that an actor starts are ordered too, but not always in the same way.
///
/// # Panics
/// As an actor does.
pub fn interleave<T: Send>(seed: u64, actors: Vec<Actor<'_, T>>) -> Interleaved<T> {
    let turns = Arc::new(Turns {
        state: Mutex::new(State::new(seed, actors.len())),
        changed: Condvar::new(),
    });
    let results = thread::scope(|scope| {
        let mut started = Vec::new();
        for (number, actor) in actors.into_iter().enumerate() {
            let turns = Arc::clone(&turns);
            started.push(scope.spawn(move || {
                let kernel = turns.ordered(number, actor.kernel);
                let _end = End {
                    turns: &turns,
                    number,
                };
                (actor.work)(kernel)
            }));
        }
        let ended: Vec<_> = started.into_iter().map(|thread| thread.join()).collect();
        ended.into_iter().collect::<Result<Vec<T>, _>>()
    });
    let state = turns.state();
    Interleaved {
        results: results.unwrap_or_else(|panic| resume_unwind(panic)),
        trace: Trace(state.trace.clone()),
        deadlocked: state.deadlocked,
    }
}

struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    random: Random,
    order: Order,
    actors: Vec<Status>,
    /// Whose turn it is.
    current: Option<usize>,
    /// Who had the last turn.
    last: usize,
    /// How often somebody has got on: what a lock that is held by others may have changed by.
    progress: u64,
    trace: Vec<(usize, String)>,
    deadlocked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    /// It has the turn, or has not come to its first operation.
    Busy,
    Ready,
    /// It waits for a lock, which it has not got when this much was done.
    Waits(u64),
    Ended,
}

enum Order {
    /// The turn goes on to anybody once in so many operations.
    Chance { stay: usize },
    /// Whoever is first in the list; at the given operations, the first goes to its end.
    Priorities {
        first: Vec<usize>,
        changes: Vec<usize>,
    },
}

/// Operations among which priorities change.
const RANGE: usize = 250;

impl State {
    fn new(seed: u64, len: usize) -> Self {
        let mut state = Self {
            random: Random::new(seed),
            order: Order::Chance { stay: 1 },
            actors: vec![Status::Busy; len],
            current: None,
            last: 0,
            progress: 0,
            trace: Vec::new(),
            deadlocked: false,
        };
        state.order = match seed % 3 {
            0 => Order::Chance { stay: 1 },
            1 => Order::Chance {
                stay: 2 + state.random.below(20),
            },
            _ => {
                let mut left: Vec<usize> = (0..len).collect();
                let mut first = Vec::new();
                while !left.is_empty() {
                    first.push(left.remove(state.random.below(left.len())));
                }
                let changes = (0..3).map(|_| state.random.below(RANGE)).collect();
                Order::Priorities { first, changes }
            }
        };
        state
    }

    /// Gives the turn to somebody, when nobody has it and all who go on have come to a point.
    fn pass(&mut self) {
        if self.current.is_some() || self.actors.contains(&Status::Busy) {
            return;
        }
        let progress = self.progress;
        let can = |actor: &usize| match self.actors[*actor] {
            Status::Ready => true,
            Status::Waits(since) => since < progress,
            Status::Busy | Status::Ended => false,
        };
        let able: Vec<usize> = (0..self.actors.len()).filter(can).collect();
        if able.is_empty() {
            self.deadlocked |= self.actors.iter().any(|one| *one != Status::Ended);
            return;
        }
        let any = *self.random.of(&able);
        let now = self.trace.len();
        let moves = match self.order {
            Order::Chance { stay } => self.random.one_in(stay),
            Order::Priorities { .. } => true,
        };
        let chosen = match &mut self.order {
            Order::Chance { .. } if !moves && able.contains(&self.last) => self.last,
            Order::Chance { .. } => any,
            Order::Priorities { first, changes } => {
                if changes.contains(&now) {
                    first.rotate_left(1);
                }
                let chosen = first.iter().find(|actor| able.contains(actor));
                chosen.copied().unwrap_or(any)
            }
        };
        self.current = Some(chosen);
        self.last = chosen;
    }
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel with all its operations in turn.
    fn ordered(self: &Arc<Self>, actor: usize, kernel: Kernel) -> Kernel {
        let faulty = Faulty::new(kernel);
        let turns = Arc::clone(self);
        faulty.order_where(move |call, subject| {
            turns.take(actor, call, subject);
            None
        });
        let kernel = faulty.kernel();
        kernel.clone().with_system(InTurn {
            kernel,
            turns: Arc::clone(self),
            actor,
        })
    }

    /// Waits for the turn to make an operation.
    fn take(&self, actor: usize, call: &str, subject: &str) {
        let mut state = self.state();
        if !matches!(state.actors[actor], Status::Waits(_)) {
            state.actors[actor] = Status::Ready;
            state.progress += 1;
        }
        if state.current == Some(actor) {
            state.current = None;
        }
        loop {
            state.pass();
            self.changed.notify_all();
            if state.deadlocked || state.current == Some(actor) {
                break;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.actors[actor] = Status::Busy;
        state
            .trace
            .push((actor, format!("{call} {}", subject.escape_debug())));
    }

    /// An operation has found a lock taken. `false` when nobody will ever release it.
    fn waits(&self, actor: usize) -> bool {
        let mut state = self.state();
        let since = state.progress;
        state.actors[actor] = Status::Waits(since);
        !state.deadlocked
    }
}

/// Ends an actor, even when it panics.
struct End<'t> {
    turns: &'t Turns,
    number: usize,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        state.actors[self.number] = Status::Ended;
        state.progress += 1;
        if state.current == Some(self.number) {
            state.current = None;
        }
        state.pass();
        self.turns.changed.notify_all();
    }
}

/// Has locks waited for in turn: the kernel below would not know that others have to go on.
#[derive(Clone)]
struct InTurn {
    kernel: Kernel,
    turns: Arc<Turns>,
    actor: usize,
}

impl fmt::Debug for InTurn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InTurn")
            .field("kernel", &self.kernel)
            .field("actor", &self.actor)
            .finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
impl SystemBackend for InTurn {
    fn fill_random(&self, buffer: &mut [u8]) -> io::Result<()> {
        self.kernel.system().fill_random(buffer)
    }

    fn boot_id(&self) -> io::Result<String> {
        self.kernel.system().boot_id()
    }

    fn this_process(&self) -> io::Result<ProcessId> {
        self.kernel.system().this_process()
    }

    fn is_alive(&self, process: ProcessId) -> io::Result<bool> {
        self.kernel.system().is_alive(process)
    }

    fn mount_namespace(&self) -> io::Result<u64> {
        self.kernel.system().mount_namespace()
    }

    fn is_namespace_alive(&self, namespace: u64) -> io::Result<bool> {
        self.kernel.system().is_namespace_alive(namespace)
    }

    fn identity(&self) -> io::Result<Identity> {
        self.kernel.system().identity()
    }

    fn fs_type(&self, dir: &DirHandle) -> io::Result<FsType> {
        self.kernel.system().fs_type(dir)
    }

    fn has_d_type(&self, dir: &DirHandle) -> io::Result<bool> {
        self.kernel.system().has_d_type(dir)
    }

    fn keeps_xattrs(&self, dir: &DirHandle, namespace: XattrNamespace) -> io::Result<bool> {
        self.kernel.system().keeps_xattrs(dir, namespace)
    }

    fn lock(
        &self,
        dir: &DirHandle,
        name: Option<&OsStr>,
        kind: LockKind,
        wait: bool,
    ) -> io::Result<Option<Lock>> {
        loop {
            let lock = self.kernel.system().lock(dir, name, kind, false)?;
            if lock.is_some() || !wait {
                return Ok(lock);
            }
            if !self.turns.waits(self.actor) {
                return Err(Errno::DEADLK.into());
            }
        }
    }
}
