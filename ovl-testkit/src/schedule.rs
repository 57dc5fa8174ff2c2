//! Threads that take turns: every operation on the kernel is made in an order drawn from a seed, so
//! that what happens once in a million runs happens in a test, and happens again.

use std::cell::Cell;
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
    /// How many operations an actor made before any other made one.
    #[must_use]
    pub fn alone(&self, actor: usize) -> usize {
        let first = self.0.iter().take_while(|(who, _)| *who == actor);
        first.count()
    }

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

/// In which order operations are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Order {
    /// What follows from a seed: by chance, by chance with few changes, or by priorities that
    /// change a few times.
    Seed(u64),
    /// One actor makes so many operations; then all others do what they have to, as far as they
    /// need not wait for the first; then the first goes on. Every number up to the count of its
    /// operations is every point at which it can be stopped once.
    Stop {
        /// Which actor.
        actor: usize,
        /// How many operations it makes before.
        after: usize,
    },
}

impl From<u64> for Order {
    fn from(seed: u64) -> Self {
        Self::Seed(seed)
    }
}

/// Runs the actors, one operation at a time, in an order that follows from what is given alone.
///
/// Operations of threads that an actor starts are ordered too, but not always in the same way.
///
/// # Panics
/// As an actor does.
pub fn interleave<T: Send>(order: impl Into<Order>, actors: Vec<Actor<'_, T>>) -> Interleaved<T> {
    let turns = Turns::new(order.into(), actors.len());
    let work = actors.into_iter().enumerate().map(|(number, actor)| {
        let who = Who::Actor(Arc::clone(&turns), number);
        let Actor { kernel, work } = actor;
        Box::new(move || work(ordered(&Faulty::new(kernel), &who))) as Work<'_, T>
    });
    run(&turns, work.collect())
}

/// A kernel for a store that several threads share: in [`interleave_threads`] each thread takes
/// turns of its own. At other times, and for other threads, nothing is ordered.
#[derive(Clone)]
pub struct SharedKernel {
    kernel: Kernel,
    slot: Slot,
}

impl SharedKernel {
    /// This kernel, as one process.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        let slot = Slot::default();
        let who = Who::Thread(Arc::clone(&slot));
        let kernel = ordered(&Faulty::new(kernel), &who);
        Self { kernel, slot }
    }

    /// The bundle that the store takes.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        self.kernel.clone()
    }
}

impl fmt::Debug for SharedKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedKernel")
            .field("kernel", &self.kernel)
            .finish_non_exhaustive()
    }
}

/// As [`interleave`], of threads that share what uses the kernel. That must not make one wait for
/// another while it asks the kernel for something: a store does so only when it looks for its own
/// directories for the first time, and when it gives out project ids.
///
/// # Panics
/// As a thread does.
pub fn interleave_threads<'w, T: Send>(
    order: impl Into<Order>,
    shared: &SharedKernel,
    threads: Vec<Box<dyn FnOnce() -> T + Send + 'w>>,
) -> Interleaved<T> {
    let turns = Turns::new(order.into(), threads.len());
    let set = |turns| *shared.slot.lock().unwrap_or_else(PoisonError::into_inner) = turns;
    set(Some(Arc::clone(&turns)));
    let done = run(&turns, threads);
    set(None);
    done
}

type Work<'w, T> = Box<dyn FnOnce() -> T + Send + 'w>;
type Slot = Arc<Mutex<Option<Arc<Turns>>>>;

thread_local! {
    /// Which of those that take turns this thread is.
    static NUMBER: Cell<Option<usize>> = const { Cell::new(None) };
}

fn run<T: Send>(turns: &Arc<Turns>, all: Vec<Work<'_, T>>) -> Interleaved<T> {
    let results = thread::scope(|scope| {
        let mut started = Vec::new();
        for (number, work) in all.into_iter().enumerate() {
            started.push(scope.spawn(move || {
                NUMBER.set(Some(number));
                let _end = End { turns, number };
                work()
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

/// Whose operations a kernel makes.
#[derive(Clone)]
enum Who {
    Actor(Arc<Turns>, usize),
    /// That of the thread which asks.
    Thread(Slot),
}

impl Who {
    /// None when nobody takes turns.
    fn now(&self) -> Option<(Arc<Turns>, usize)> {
        match self {
            Self::Actor(turns, number) => Some((Arc::clone(turns), *number)),
            Self::Thread(slot) => {
                let turns = slot.lock().unwrap_or_else(PoisonError::into_inner);
                Some((turns.clone()?, NUMBER.get()?))
            }
        }
    }
}

/// The kernel with all its operations in turn.
fn ordered(faulty: &Faulty, who: &Who) -> Kernel {
    let before = who.clone();
    let faulty = faulty.before_each(move |call, subject| {
        if let Some((turns, actor)) = before.now() {
            turns.take(actor, call, subject);
        }
    });
    let kernel = faulty.kernel();
    kernel.clone().with_system(InTurn {
        kernel,
        who: who.clone(),
    })
}

struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    random: Random,
    policy: Policy,
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

enum Policy {
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
    fn new(order: Order, len: usize) -> Self {
        let seed = match order {
            Order::Seed(seed) => seed,
            Order::Stop { .. } => 0,
        };
        let mut random = Random::new(seed);
        let policy = match order {
            Order::Stop { actor, after } => {
                let others = (0..len).filter(|other| *other != actor);
                Policy::Priorities {
                    first: std::iter::once(actor).chain(others).collect(),
                    changes: vec![after],
                }
            }
            Order::Seed(seed) if seed % 3 == 0 => Policy::Chance { stay: 1 },
            Order::Seed(seed) if seed % 3 == 1 => Policy::Chance {
                stay: 2 + random.below(20),
            },
            Order::Seed(_) => {
                let mut left: Vec<usize> = (0..len).collect();
                let mut first = Vec::new();
                while !left.is_empty() {
                    first.push(left.remove(random.below(left.len())));
                }
                let changes = (0..3).map(|_| random.below(RANGE)).collect();
                Policy::Priorities { first, changes }
            }
        };
        Self {
            random,
            policy,
            actors: vec![Status::Busy; len],
            current: None,
            last: 0,
            progress: 0,
            trace: Vec::new(),
            deadlocked: false,
        }
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
        let moves = match self.policy {
            Policy::Chance { stay } => self.random.one_in(stay),
            Policy::Priorities { .. } => true,
        };
        let chosen = match &mut self.policy {
            Policy::Chance { .. } if !moves && able.contains(&self.last) => self.last,
            Policy::Chance { .. } => any,
            Policy::Priorities { first, changes } => {
                // Once, however often somebody ends or waits meanwhile.
                if let Some(due) = changes.iter().position(|change| *change == now) {
                    changes.swap_remove(due);
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
    fn new(order: Order, len: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::new(order, len)),
            changed: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    who: Who,
}

impl fmt::Debug for InTurn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InTurn")
            .field("kernel", &self.kernel)
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
        let Some((turns, actor)) = self.who.now() else {
            return self.kernel.system().lock(dir, name, kind, wait);
        };
        loop {
            let lock = self.kernel.system().lock(dir, name, kind, false)?;
            if lock.is_some() || !wait {
                return Ok(lock);
            }
            if !turns.waits(actor) {
                return Err(Errno::DEADLK.into());
            }
        }
    }
}
