//! A kernel whose operations fail when they are told to.

mod backends;
mod errors;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ovl_driver::Kernel;

/// Any kernel, with faults on order: the n-th operation fails, or every one from it on, or the
/// machine stops there. All that is asked of it stands in a journal.
///
/// An operation is one call of one of the four backends. Clones share faults and journal.
///
/// ```
/// use ovl_driver::{CreateLayer, OpenOptions, blocking::Overlay2};
/// use ovl_testkit::{Fault, Faulty, KernelProfile, MockKernel};
///
/// let mock = MockKernel::new(KernelProfile::modern());
/// let faulty = Faulty::new(mock.kernel());
/// let options = OpenOptions::new().create(true);
/// let store = Overlay2::open(faulty.kernel(), "/home".as_ref(), options)?;
/// let base = CreateLayer::new("base".parse()?);
///
/// const EIO: i32 = 5;
/// faulty.order(Fault::Once { at: 9, errno: EIO });
/// assert!(store.create(&base).is_err());
/// println!("{}", faulty.journal());
///
/// // Nothing is half done.
/// faulty.heal();
/// assert!(store.layers()?.layers.is_empty());
/// store.create(&base)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Faulty {
    inner: Kernel,
    shared: Arc<Mutex<State>>,
    /// What is to know of each operation before it is made, and may let it wait.
    before: Option<Arc<Before>>,
}

/// What goes wrong, and when. Operations are counted from 1, beginning with the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// One operation fails and does nothing.
    Once {
        /// Which.
        at: u64,
        /// The error number.
        errno: i32,
    },
    /// All operations from one on fail and do nothing.
    From {
        /// From which.
        at: u64,
        /// The error number.
        errno: i32,
    },
    /// One operation takes its time.
    Delay {
        /// Which.
        at: u64,
        /// How long.
        time: Duration,
    },
    /// The machine stops: this operation and all after it do nothing, until [`Faulty::heal`]. What
    /// a reboot takes away has to be taken away by the kernel below.
    Crash {
        /// At which.
        at: u64,
    },
}

/// One call of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Operation {
    /// The backend's method.
    pub call: &'static str,
    /// The name or path that it concerns.
    pub subject: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Well.
    Done,
    /// The kernel below refused it.
    Refused(String),
    /// A fault that was ordered.
    Fault(String),
}

/// The operations since the last order, as a script: one a line, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal(Vec<Operation>);

impl Journal {
    /// The operations.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.0
    }
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, operation) in self.0.iter().enumerate() {
            let number = index + 1;
            let Operation {
                call,
                subject,
                outcome,
            } = operation;
            let subject = subject.escape_debug();
            match outcome {
                Outcome::Done => writeln!(f, "{number:4} {call} {subject}")?,
                Outcome::Refused(why) => writeln!(f, "{number:4} {call} {subject}: {why}")?,
                Outcome::Fault(why) => writeln!(f, "{number:4} {call} {subject}: FAULT: {why}")?,
            }
        }
        Ok(())
    }
}

type Before = dyn Fn(&str, &str) + Send + Sync;
type Rule = Box<dyn FnMut(&str, &str) -> Option<i32> + Send>;

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    rule: Option<Rule>,
    count: u64,
    stopped: bool,
    fired: bool,
    journal: Vec<Operation>,
}

impl Faulty {
    /// This kernel, without a fault so far.
    #[must_use]
    pub fn new(inner: Kernel) -> Self {
        Self {
            inner,
            shared: Arc::default(),
            before: None,
        }
    }

    /// Tells of each operation before it is made. Nothing is locked meanwhile.
    pub(crate) fn before_each(&self, before: impl Fn(&str, &str) + Send + Sync + 'static) -> Self {
        Self {
            before: Some(Arc::new(before)),
            ..self.clone()
        }
    }

    /// The bundle that a store takes.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        Kernel::from_backend(self.clone())
    }

    /// Orders a fault in place of what was ordered before. Counting and the journal begin anew.
    pub fn order(&self, fault: Fault) {
        *self.state() = State {
            fault: Some(fault),
            ..State::default()
        };
    }

    /// Fails every operation for which the rule gives an error number. It is asked with the
    /// backend's method and the name or path concerned. Counting and the journal begin anew.
    pub fn order_where(&self, rule: impl FnMut(&str, &str) -> Option<i32> + Send + 'static) {
        *self.state() = State {
            rule: Some(Box::new(rule)),
            ..State::default()
        };
    }

    /// Takes all orders back and starts the machine again. Counting and the journal begin anew.
    pub fn heal(&self) {
        *self.state() = State::default();
    }

    /// How many operations there were since the last order.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.state().count
    }

    /// Whether a fault that was ordered has happened.
    #[must_use]
    pub fn has_fired(&self) -> bool {
        self.state().fired
    }

    /// What was asked since the last order.
    #[must_use]
    pub fn journal(&self) -> Journal {
        Journal(self.state().journal.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one operation, or lets it fail.
    fn step<T, E: fmt::Display>(
        &self,
        call: &'static str,
        subject: impl Into<String>,
        failure: impl FnOnce(io::Error) -> E,
        operation: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let subject = subject.into();
        if let Some(before) = &self.before {
            before(call, &subject);
        }
        let fault = self.state().next(call, &subject);
        let (result, is_fault) = match fault {
            Some(Happens::Error(error)) => (Err(failure(error)), true),
            Some(Happens::Later(time)) => {
                std::thread::sleep(time);
                (operation(), false)
            }
            None => (operation(), false),
        };
        let outcome = match &result {
            Ok(_) => Outcome::Done,
            Err(error) if is_fault => Outcome::Fault(error.to_string()),
            Err(error) => Outcome::Refused(error.to_string()),
        };
        self.state().journal.push(Operation {
            call,
            subject,
            outcome,
        });
        result
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Faulty")
            .field("inner", &self.inner)
            .field("fault", &state.fault)
            .field("count", &state.count)
            .finish_non_exhaustive()
    }
}

enum Happens {
    Error(io::Error),
    Later(Duration),
}

impl State {
    fn next(&mut self, call: &str, subject: &str) -> Option<Happens> {
        self.count += 1;
        let now = self.count;
        let errno = io::Error::from_raw_os_error;
        let happens = match self.fault {
            _ if self.stopped => Some(Happens::Error(gone())),
            Some(Fault::Once { at, errno: number }) if at == now => {
                Some(Happens::Error(errno(number)))
            }
            Some(Fault::From { at, errno: number }) if at <= now => {
                Some(Happens::Error(errno(number)))
            }
            Some(Fault::Delay { at, time }) if at == now => Some(Happens::Later(time)),
            Some(Fault::Crash { at }) if at == now => {
                self.stopped = true;
                Some(Happens::Error(gone()))
            }
            _ => {
                let rule = self.rule.as_mut();
                let number = rule.and_then(|rule| rule(call, subject));
                number.map(|number| Happens::Error(errno(number)))
            }
        };
        self.fired |= happens.is_some();
        happens
    }
}

fn gone() -> io::Error {
    io::Error::other("the machine has stopped")
}
