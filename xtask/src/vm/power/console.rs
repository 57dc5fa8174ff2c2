//! What a worker in the guest tells the host, line by line.
//!
//! Two workers and the kernel share the console, and a cut ends it at any byte: a line counts only
//! when it is whole.

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;

use crate::e2e::{FsKind, Log};

const MARK: char = '@';

/// What a line is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The home is as it must be; what follows describes it.
    Sound,
    /// A line that describes the home.
    Home(String),
    /// All of the home is described, and work begins.
    Started,
    /// A line of the worker's log.
    Log(String),
    /// Nothing more is done.
    Resting,
    /// The home is not as it must be.
    Lost(String),
    /// Something else that must not happen.
    Failed(String),
}

impl Told {
    /// The line for the console.
    pub(super) fn line(&self, fs: FsKind) -> String {
        let (kind, text) = match self {
            Self::Sound => ("sound", ""),
            Self::Home(text) => ("home", &**text),
            Self::Started => ("started", ""),
            Self::Log(text) => ("log", &**text),
            Self::Resting => ("resting", ""),
            Self::Lost(text) => ("lost", &**text),
            Self::Failed(text) => ("failed", &**text),
        };
        let text = text.replace(['\n', '\r'], " ");
        let length = text.len();
        format!("{MARK}{} {kind} {text} {length}{MARK}", fs.name())
    }

    /// Reads a line of the console; `None` for one that is not a worker's or not whole.
    pub(super) fn read(line: &str) -> Option<(FsKind, Self)> {
        let line = line.strip_prefix(MARK)?.strip_suffix(MARK)?;
        let (line, length) = line.rsplit_once(' ')?;
        let (fs, line) = line.split_once(' ')?;
        let (kind, text) = line.split_once(' ')?;
        if length.parse() != Ok(text.len()) {
            return None;
        }
        let text = text.to_owned();
        let told = match kind {
            "sound" => Self::Sound,
            "home" => Self::Home(text),
            "started" => Self::Started,
            "log" => Self::Log(text),
            "resting" => Self::Resting,
            "lost" => Self::Lost(text),
            "failed" => Self::Failed(text),
            _ => return None,
        };
        Some((FsKind::from_str(fs, false).ok()?, told))
    }

    /// Whether a worker may have meant this, so that it must not be passed over.
    pub(super) fn is_meant(line: &str) -> bool {
        let mark = |fs: &FsKind| line.contains(&format!("{MARK}{} ", fs.name()));
        FsKind::value_variants().iter().any(mark)
    }
}

/// All that is known of the home on a disk: how it was found last, and what was done since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    pub(super) home: Vec<String>,
    log: Vec<String>,
    /// A description that is not whole yet.
    next: Option<Vec<String>>,
}

impl Ledger {
    pub(super) fn take(&mut self, told: &Told) -> Result<()> {
        match told {
            Told::Sound => self.next = Some(Vec::new()),
            Told::Home(line) => {
                let next = self.next.as_mut();
                next.context("a home is described out of order")?
                    .push(line.clone());
            }
            Told::Started => {
                self.home = self.next.take().context("work begins out of order")?;
                self.log.clear();
            }
            Told::Log(line) => self.log.push(line.clone()),
            Told::Resting | Told::Lost(_) | Told::Failed(_) => {}
        }
        Ok(())
    }

    /// The power goes.
    pub(super) fn cut(&mut self) {
        self.next = None;
    }

    /// What was done since.
    pub(super) fn log(&self) -> Result<Log> {
        let lines = self.log.iter().map(|line| format!("{line}\n"));
        lines.collect::<String>().parse()
    }

    /// Lines for a disk that carries ledgers to the guest.
    pub(super) fn write(&self, fs: FsKind) -> String {
        let home = self.home.iter().map(|line| ("home", line));
        let log = self.log.iter().map(|line| ("log", line));
        home.chain(log)
            .map(|(kind, line)| format!("{} {kind} {line}\n", fs.name()))
            .collect()
    }

    /// The one of a file system among such lines.
    pub(super) fn read(text: &str, fs: FsKind) -> Result<Self> {
        let mut ledger = Self::default();
        for line in text.lines() {
            match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
                [name, _, _] if name != fs.name() => {}
                [_, "home", line] => ledger.home.push(line.to_owned()),
                [_, "log", line] => ledger.log.push(line.to_owned()),
                _ => bail!("{line:?} is no line of a ledger"),
            }
        }
        Ok(ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_are_read() {
        let told = Told::Log("begin import a - 12345".to_owned());
        let line = told.line(FsKind::Xfs);
        assert_eq!(Told::read(&line), Some((FsKind::Xfs, told)));
        for end in 0..line.len() {
            assert_eq!(Told::read(&line[..end]), None);
            assert_eq!(Told::read(&line[..end].replace("123", "12")), None);
        }
        let mixed = line.replace("import", "im[  1.0] XFS: port");
        assert_eq!(Told::read(&mixed), None);
        assert!(Told::is_meant(&mixed));
        let empty = Told::Started;
        assert_eq!(
            Told::read(&empty.line(FsKind::Ext4)),
            Some((FsKind::Ext4, empty))
        );
    }

    #[test]
    fn a_ledger_is_what_was_described_last_and_done_since() -> Result<()> {
        let mut ledger = Ledger::default();
        let home = |text: &str| Told::Home(text.to_owned());
        let log = |text: &str| Told::Log(text.to_owned());
        for told in [
            Told::Sound,
            home("layer a"),
            Told::Started,
            log("begin open"),
            log("done"),
            Told::Sound,
            home("layer b"),
        ] {
            ledger.take(&told)?;
        }
        // The power went while the home was described.
        ledger.cut();
        assert_eq!(
            (&ledger.home[..], ledger.log.len()),
            (&["layer a".to_owned()][..], 2)
        );
        assert!(ledger.clone().take(&Told::Started).is_err());
        let text = ledger.write(FsKind::Xfs) + &Ledger::default().write(FsKind::Ext4);
        assert_eq!(Ledger::read(&text, FsKind::Xfs)?, ledger);
        assert_eq!(Ledger::read(&text, FsKind::Ext4)?, Ledger::default());
        Ok(())
    }
}
