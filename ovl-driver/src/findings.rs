//! What `check` finds and what `gc` reclaims.

use std::fmt;
use std::path::PathBuf;

use ovl_layout::LayerId;

/// One thing in a home that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// The layer concerned, where there is one.
    pub layer: Option<LayerId>,
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it, as a sentence without its subject.
    pub problem: String,
    /// What mends it.
    pub remedy: Remedy,
    /// Whether this store knows it as its own. What is not may be another program's work in
    /// progress, and is only touched on request.
    pub ours: bool,
    /// Bytes on disk that are free when it is reclaimed.
    pub bytes: u64,
}

impl Finding {
    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self.kind {
            FindingKind::Unmarked if !self.ours => Severity::Note,
            FindingKind::Link
            | FindingKind::Lower
            | FindingKind::Record
            | FindingKind::Unmarked
            | FindingKind::Contents
            | FindingKind::LinkEntry
            | FindingKind::Holds
            | FindingKind::Volatile => Severity::Damage,
            FindingKind::DanglingLink
            | FindingKind::SecondLink
            | FindingKind::Staging
            | FindingKind::Trash
            | FindingKind::StaleHolds
            | FindingKind::Unfinished
            | FindingKind::UnheldMount
            | FindingKind::Probe
            | FindingKind::HalfLayer => Severity::Leftover,
            FindingKind::Rewritten
            | FindingKind::Writable
            | FindingKind::Enterable
            | FindingKind::TooDeepForDocker
            | FindingKind::Unknown => Severity::Note,
        }
    }
}

/// Says where, what, and what mends it.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = ovl_diff::EscapedPath(&self.path);
        write!(f, "{}: {path}: {}", self.severity(), self.problem)
    }
}

/// What kind of thing was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// A layer's `link` file is missing, unreadable or another layer's.
    Link,
    /// A layer's link under `l/` is missing or leads elsewhere.
    LinkEntry,
    /// A layer's `lower` file does not say what the layer stands on.
    Lower,
    /// Our record of a layer cannot be read, or its parents lead back to the layer.
    Record,
    /// A layer that others stand on is not marked as sealed. A note on a layer of Docker's, whose
    /// old versions made no marks.
    Unmarked,
    /// A layer's contents are not there.
    Contents,
    /// Nobody can tell who holds a mount.
    Holds,
    /// A writable layer lost data when the machine stopped under a volatile mount.
    Volatile,
    /// A link under `l/` that leads to no layer.
    DanglingLink,
    /// A link under `l/` beside a layer's own.
    SecondLink,
    /// A layer, or a home's settings, that were never finished, of a process that is gone.
    Staging,
    /// A removed layer.
    Trash,
    /// A note of holds on a mount that is gone.
    StaleHolds,
    /// A small file of a layer that a process wrote anew and did not put in place.
    Unfinished,
    /// A mount that nobody holds.
    UnheldMount,
    /// A directory in which Docker tried out the kernel.
    Probe,
    /// A layer's directory without what makes it a layer.
    HalfLayer,
    /// Another program has written the layer anew: our record of it is void.
    Rewritten,
    /// Others may write to it.
    Writable,
    /// Others may enter the home and layers in it, and run setuid programs that containers made.
    Enterable,
    /// Docker cannot use the layer: it has more layers below than Docker mounts.
    TooDeepForDocker,
    /// Something that no layer store puts there.
    Unknown,
}

impl FindingKind {
    /// A short name that stays the same, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::LinkEntry => "link-entry",
            Self::Lower => "lower",
            Self::Record => "record",
            Self::Unmarked => "unmarked",
            Self::Contents => "contents",
            Self::Holds => "holds",
            Self::Volatile => "volatile",
            Self::DanglingLink => "dangling-link",
            Self::SecondLink => "second-link",
            Self::Staging => "staging",
            Self::Trash => "trash",
            Self::StaleHolds => "stale-holds",
            Self::Unfinished => "unfinished",
            Self::UnheldMount => "unheld-mount",
            Self::Probe => "probe",
            Self::HalfLayer => "half-layer",
            Self::Rewritten => "rewritten",
            Self::Writable => "writable",
            Self::Enterable => "enterable",
            Self::TooDeepForDocker => "too-deep-for-docker",
            Self::Unknown => "unknown",
        }
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// A layer cannot be used, or shows something else than it should.
    Damage,
    /// Space that nobody uses.
    Leftover,
    /// Worth knowing; nothing needs to be done.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Damage => "damage",
            Self::Leftover => "leftover",
            Self::Note => "note",
        })
    }
}

/// What mends a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Remedy {
    /// There is one right answer, and repairing gives it.
    Repair,
    /// Nobody needs it any more, and reclaiming takes it away.
    Reclaim,
    /// Only people can decide.
    Nothing,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Repair => "repair",
            Self::Reclaim => "reclaim",
            Self::Nothing => "nothing",
        })
    }
}

/// What is found in a home.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// The layers looked at.
    pub layers: u64,
    /// What is not as it should be, the worst first.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether nothing is damaged. Leftovers and notes do no harm.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.of(Severity::Damage).next().is_none()
    }

    /// Whether there is nothing to mend and nothing to reclaim.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.is_sound() && self.of(Severity::Leftover).next().is_none()
    }

    /// The findings of one severity.
    pub fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        let found = self.findings.iter();
        found.filter(move |finding| finding.severity() == severity)
    }
}

/// What a repair has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Repaired {
    /// What was mended.
    pub mended: Vec<Finding>,
    /// How the home is now.
    pub left: CheckReport,
}

/// What was reclaimed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Garbage {
    /// One by one.
    pub items: Vec<Finding>,
    /// Leftovers of other programs, kept because those may be at work.
    pub kept: Vec<Finding>,
}

impl Garbage {
    /// Bytes on disk that are free now, or would be.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.items.iter().map(|item| item.bytes).sum()
    }
}

/// How far repairing and reclaiming may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpkeepOptions {
    /// No other program works on the home: what others left may be touched.
    pub docker_stopped: bool,
    /// Nothing is changed.
    pub dry_run: bool,
}

impl UpkeepOptions {
    /// Only what this store knows as its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether what others left may be touched.
    #[must_use]
    pub fn docker_stopped(self, docker_stopped: bool) -> Self {
        Self {
            docker_stopped,
            ..self
        }
    }

    /// Sets whether nothing is changed.
    #[must_use]
    pub fn dry_run(self, dry_run: bool) -> Self {
        Self { dry_run, ..self }
    }
}
