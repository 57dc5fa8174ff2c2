//! A process that works on a home until it is killed, and what must be there afterwards.
//!
//! The process says in a log what it is about to do and, afterwards, that it is done. From that and
//! from the seeds of the contents alone follows what every layer has to show.

mod contents;
mod home;
mod model;
mod worker;

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Error, Result, bail};
use ovl_layout::LayerId;

pub(crate) use home::{Home, assert_clean};
pub(crate) use model::{Ending, Model};
pub(crate) use worker::{WorkerOptions, work, work_with};

/// What the process does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Open,
    List,
    Import {
        id: LayerId,
        parent: Option<LayerId>,
        seed: u64,
    },
    Create {
        id: LayerId,
        parent: Option<LayerId>,
    },
    CreateWritable {
        id: LayerId,
        parent: Option<LayerId>,
    },
    Mount {
        id: LayerId,
        persistent: bool,
    },
    Write {
        id: LayerId,
        seed: u64,
    },
    Unmount {
        id: LayerId,
    },
    UnmountAll,
    Apply {
        id: LayerId,
        seed: u64,
    },
    Remove {
        id: LayerId,
        force: bool,
    },
    Reclaim,
    Gc,
    Diff {
        id: LayerId,
    },
    /// Tells what was found by the diff.
    Digest {
        id: LayerId,
        digest: u64,
    },
}

impl Step {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::List => "list",
            Self::Import { .. } => "import",
            Self::Create { .. } => "create",
            Self::CreateWritable { .. } => "create-writable",
            Self::Mount { .. } => "mount",
            Self::Write { .. } => "write",
            Self::Unmount { .. } => "unmount",
            Self::UnmountAll => "unmount-all",
            Self::Apply { .. } => "apply",
            Self::Remove { .. } => "remove",
            Self::Reclaim => "reclaim",
            Self::Gc => "gc",
            Self::Diff { .. } => "diff",
            Self::Digest { .. } => "digest",
        }
    }

    /// Whether it makes a layer, or takes one away, so that it is so after a power cut too.
    pub(crate) fn is_lasting(&self) -> bool {
        matches!(
            self,
            Self::Import { .. }
                | Self::Create { .. }
                | Self::CreateWritable { .. }
                | Self::Apply { .. }
                | Self::Remove { .. }
        )
    }
}

/// Words that [`FromStr`] reads again.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Self::Open | Self::List | Self::UnmountAll | Self::Reclaim | Self::Gc => {
                f.write_str(name)
            }
            Self::Import { id, parent, seed } => {
                write!(f, "{name} {id} {} {seed}", or_dash(parent.as_ref()))
            }
            Self::Create { id, parent } | Self::CreateWritable { id, parent } => {
                write!(f, "{name} {id} {}", or_dash(parent.as_ref()))
            }
            Self::Mount { id, persistent } => write!(f, "{name} {id} {persistent}"),
            Self::Write { id, seed } | Self::Apply { id, seed } => {
                write!(f, "{name} {id} {seed}")
            }
            Self::Remove { id, force } => write!(f, "{name} {id} {force}"),
            Self::Unmount { id } | Self::Diff { id } => write!(f, "{name} {id}"),
            Self::Digest { id, digest } => write!(f, "{name} {id} {digest}"),
        }
    }
}

fn or_dash(parent: Option<&LayerId>) -> &str {
    parent.map_or("-", LayerId::as_str)
}

impl FromStr for Step {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split(' ');
        let mut word = || words.next().with_context(|| format!("{text:?} is cut off"));
        let name = word()?;
        let mut id = || -> Result<LayerId> { Ok(word()?.parse()?) };
        let step = match name {
            "open" => Self::Open,
            "list" => Self::List,
            "unmount-all" => Self::UnmountAll,
            "reclaim" => Self::Reclaim,
            "gc" => Self::Gc,
            "unmount" => Self::Unmount { id: id()? },
            "diff" => Self::Diff { id: id()? },
            "mount" => Self::Mount {
                id: id()?,
                persistent: word()?.parse()?,
            },
            "remove" => Self::Remove {
                id: id()?,
                force: word()?.parse()?,
            },
            "digest" => Self::Digest {
                id: id()?,
                digest: word()?.parse()?,
            },
            "write" => Self::Write {
                id: id()?,
                seed: word()?.parse()?,
            },
            "apply" => Self::Apply {
                id: id()?,
                seed: word()?.parse()?,
            },
            "create" | "create-writable" | "import" => {
                let id = id()?;
                let parent = match word()? {
                    "-" => None,
                    parent => Some(parent.parse()?),
                };
                match name {
                    "create" => Self::Create { id, parent },
                    "import" => Self::Import {
                        id,
                        parent,
                        seed: word()?.parse()?,
                    },
                    _ => Self::CreateWritable { id, parent },
                }
            }
            _ => bail!("{text:?} is no step"),
        };
        Ok(step)
    }
}

/// What a log says.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// What was done, in order.
    pub(crate) done: Vec<Step>,
    /// What was begun and not finished.
    pub(crate) pending: Option<Step>,
    /// How many steps were refused because of what others do or hold.
    pub(crate) refused: usize,
    /// An error that must not happen.
    pub(crate) bug: Option<String>,
}

impl FromStr for Log {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut log = Self::default();
        // What has no end of line was being written.
        for line in text
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'))
        {
            match line.split_once(' ') {
                Some(("begin", step)) => log.pending = Some(step.parse()?),
                Some(("bug", text)) => log.bug = Some(text.to_owned()),
                _ if line == "done" => log.done.extend(log.pending.take()),
                _ if line == "refused" => {
                    log.refused += 1;
                    log.pending = None;
                }
                _ => bail!("{line:?} is no line of a log"),
            }
        }
        Ok(log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_as_they_are_written() -> Result<()> {
        let (id, parent): (LayerId, LayerId) = ("a".parse()?, "b".parse()?);
        let steps = [
            Step::Open,
            Step::Import {
                id: id.clone(),
                parent: None,
                seed: u64::MAX,
            },
            Step::CreateWritable {
                id: id.clone(),
                parent: Some(parent),
            },
            Step::Mount {
                id: id.clone(),
                persistent: true,
            },
            Step::Remove { id, force: false },
        ];
        for step in steps {
            assert_eq!(step.to_string().parse::<Step>()?, step);
        }
        Ok(())
    }

    #[test]
    fn a_log_ends_with_what_was_not_finished() -> Result<()> {
        let log: Log = "begin open\ndone\nbegin diff a\nrefused\nbegin gc\nbeg".parse()?;
        assert_eq!((log.done, log.refused), (vec![Step::Open], 1));
        assert_eq!(log.pending, Some(Step::Gc));
        Ok(())
    }
}
