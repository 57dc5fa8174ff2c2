//! What can go wrong, and the exit code that says so.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::process::ExitCode;

use ovl_driver::{Error, ErrorKind};

/// A failure of the program.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    source: Box<dyn StdError + Send + Sync>,
    layer: Option<String>,
}

/// The kinds of failure, by exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Other,
    Usage,
    NotFound,
    AlreadyExists,
    Busy,
    Unsupported,
    InvalidInput,
    NoSpace,
    Damaged,
    /// Nobody reads the output any more: no failure of ours.
    BrokenPipe,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::BrokenPipe => 0,
            Self::Other => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::AlreadyExists => 4,
            Self::Busy => 5,
            Self::Unsupported => 6,
            Self::InvalidInput => 7,
            Self::NoSpace => 8,
            Self::Damaged => 9,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Other | Self::BrokenPipe => "other",
            Self::Usage => "usage",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::Busy => "busy",
            Self::Unsupported => "unsupported",
            Self::InvalidInput => "invalid-input",
            Self::NoSpace => "no-space",
            Self::Damaged => "damaged",
        }
    }
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            source: message.into().into(),
            layer: None,
        }
    }

    /// A text of the command line that the library refuses.
    pub(crate) fn input(error: impl StdError + Send + Sync + 'static) -> Self {
        Self {
            kind: Kind::InvalidInput,
            source: error.into(),
            layer: None,
        }
    }

    /// An operation on a file of the user's.
    pub(crate) fn io(operation: &str, path: &std::path::Path, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            _ => Kind::Other,
        };
        Self::new(
            kind,
            format!("cannot {operation} {}: {error}", path.display()),
        )
    }

    /// Writing to standard output.
    pub(crate) fn output(error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::BrokenPipe => Kind::BrokenPipe,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            _ => Kind::Other,
        };
        Self::new(kind, format!("cannot write the output: {error}"))
    }

    /// An error and all its causes on one line, control characters escaped.
    pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
        let mut words = error.to_string();
        let mut next = error.source();
        while let Some(source) = next {
            let text = source.to_string();
            // A transparent variant repeats what it wraps.
            if !words.ends_with(&text) {
                words = format!("{words}: {text}");
            }
            next = source.source();
        }
        let escape = |symbol: char| match symbol.is_control() {
            true => symbol.escape_default().to_string(),
            false => symbol.to_string(),
        };
        words.chars().map(escape).collect()
    }

    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(self.kind.code())
    }

    /// Says on standard error what went wrong.
    pub(crate) fn report(&self, json: bool) {
        if self.kind == Kind::BrokenPipe {
            return;
        }
        if json {
            let error = serde_json::json!({
                "error": { "kind": self.kind.name(), "message": self.to_string(), "layer": self.layer }
            });
            eprintln!("{error}");
        } else {
            eprintln!("ovl: {self}");
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::AlreadyExists => Kind::AlreadyExists,
            ErrorKind::Busy => Kind::Busy,
            ErrorKind::Unsupported => Kind::Unsupported,
            ErrorKind::InvalidInput => Kind::InvalidInput,
            ErrorKind::NoSpace => Kind::NoSpace,
            ErrorKind::Damaged => Kind::Damaged,
            _ => Kind::Other,
        };
        let layer = error.layer().map(ToString::to_string);
        let kind = if is_broken_pipe(&error) {
            Kind::BrokenPipe
        } else {
            kind
        };
        Self {
            kind,
            source: error.into(),
            layer,
        }
    }
}

fn is_broken_pipe(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe) {
            return true;
        }
        next = error.source();
    }
    false
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Self::chain(&*self.source))
    }
}
