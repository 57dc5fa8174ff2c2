//! Who holds a layer's mount: one small file a mounted layer, void after the next boot.

use std::fmt::{self, Write as _};

use ovl_mount::Access;

use crate::system::ProcessId;

/// No mount namespace has this number.
const NOWHERE: u64 = 0;
const FIRST_LINE: &str = "ovl-holds 1";

/// The holds on one mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holds {
    /// The boot in which the mount was made.
    pub(crate) boot: String,
    /// The mount namespace in which it was made.
    pub(crate) namespace: u64,
    pub(crate) access: Access,
    pub(crate) label: Option<String>,
    /// As text: only compared and shown.
    pub(crate) options: String,
    pub(crate) persistent: u64,
    pub(crate) processes: Vec<(ProcessId, u64)>,
}

impl Holds {
    /// Of a mount that was unmounted lazily while something used it.
    pub(crate) fn detached(boot: String) -> Self {
        Self {
            boot,
            namespace: NOWHERE,
            access: Access::Writable,
            label: None,
            options: String::new(),
            persistent: 0,
            processes: Vec::new(),
        }
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.namespace == NOWHERE
    }

    pub(crate) fn total(&self) -> u64 {
        let processes = self.processes.iter().map(|(_, count)| *count);
        processes.fold(self.persistent, u64::saturating_add)
    }

    pub(crate) fn add(&mut self, process: Option<ProcessId>) {
        match process {
            None => self.persistent = self.persistent.saturating_add(1),
            Some(process) => match self.processes.iter_mut().find(|(id, _)| *id == process) {
                Some((_, count)) => *count = count.saturating_add(1),
                None => self.processes.push((process, 1)),
            },
        }
    }

    /// What the file of a mount without holds gets for the first one: the last line of a kind counts.
    pub(crate) fn line_of_first(process: Option<ProcessId>) -> String {
        match process {
            None => "persistent 1\n".to_owned(),
            Some(ProcessId { pid, start_time }) => format!("process {pid} {start_time} 1\n"),
        }
    }

    /// Takes one hold away: the calling process's own, or else one that lasts. `false` when there is
    /// none but those of other processes.
    pub(crate) fn release(&mut self, process: Option<ProcessId>) -> bool {
        let mut own = self.processes.iter_mut();
        match own.find(|(id, _)| Some(*id) == process) {
            Some((_, count)) => {
                *count = count.saturating_sub(1);
                self.processes.retain(|(_, count)| *count > 0);
                true
            }
            None if self.persistent > 0 => {
                self.persistent -= 1;
                true
            }
            None => false,
        }
    }

    /// Reads the file; `None` when it does not hold what it should.
    pub(crate) fn parse(contents: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(contents).ok()?.strip_suffix('\n')?;
        let mut lines = text.split('\n');
        if lines.next() != Some(FIRST_LINE) {
            return None;
        }
        let mut holds = Self {
            boot: String::new(),
            namespace: NOWHERE,
            access: Access::ReadOnly,
            label: None,
            options: String::new(),
            persistent: 0,
            processes: Vec::new(),
        };
        for line in lines {
            let (key, value) = line.split_once(' ')?;
            match key {
                "boot" => value.clone_into(&mut holds.boot),
                "namespace" => holds.namespace = value.parse().ok()?,
                "access" if value == "writable" => holds.access = Access::Writable,
                "access" if value == "read-only" => holds.access = Access::ReadOnly,
                "label" => holds.label = Some(value.to_owned()),
                "options" => value.clone_into(&mut holds.options),
                "persistent" => holds.persistent = value.parse().ok()?,
                "process" => {
                    let mut numbers = value.split(' ');
                    let pid = numbers.next()?.parse().ok()?;
                    let start_time = numbers.next()?.parse().ok()?;
                    let count = numbers.next()?.parse().ok()?;
                    holds.processes.push((ProcessId { pid, start_time }, count));
                }
                _ => return None,
            }
        }
        let mut counts = holds.processes.iter().map(|(_, count)| *count);
        let is_countable = counts
            .try_fold(holds.persistent, u64::checked_add)
            .is_some();
        (!holds.boot.is_empty() && is_countable).then_some(holds)
    }
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = match self.access {
            Access::Writable => "writable",
            Access::ReadOnly => "read-only",
        };
        let Self {
            boot, namespace, ..
        } = self;
        writeln!(
            f,
            "{FIRST_LINE}\nboot {boot}\nnamespace {namespace}\naccess {access}"
        )?;
        if let Some(label) = &self.label {
            writeln!(f, "label {label}")?;
        }
        if !self.options.is_empty() {
            writeln!(f, "options {}", self.options)?;
        }
        writeln!(f, "persistent {}", self.persistent)?;
        for (ProcessId { pid, start_time }, count) in &self.processes {
            writeln!(f, "process {pid} {start_time} {count}")?;
        }
        Ok(())
    }
}

/// Label and options in words, for an error.
pub(crate) fn describe(label: Option<&str>, options: &str) -> String {
    let mut words = String::new();
    match label {
        Some(label) => {
            let _ = write!(words, "the label {label}");
        }
        None => words.push_str("no label"),
    }
    match options {
        "" => words.push_str(" and no options"),
        options => {
            let _ = write!(words, " and the options {options}");
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32) -> ProcessId {
        ProcessId { pid, start_time: 7 }
    }

    fn holds() -> Holds {
        Holds {
            boot: "b".to_owned(),
            namespace: 4,
            access: Access::Writable,
            label: Some("u:r:t:s0".to_owned()),
            options: "nodev".to_owned(),
            persistent: 2,
            processes: vec![(process(1), 3)],
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let written = holds();
        assert_eq!(Holds::parse(written.to_string().as_bytes()), Some(written));
    }

    #[test]
    fn a_file_cut_anywhere_is_never_read_as_other_holds() {
        let whole = holds();
        let text = whole.to_string();
        for len in 0..text.len() {
            if let Some(found) = Holds::parse(&text.as_bytes()[..len]) {
                assert!(found.total() < whole.total(), "cut at {len}: {found:?}");
            }
        }
    }

    #[test]
    fn counts_that_nobody_can_add_up_are_no_holds() {
        let noted = |persistent: u64, counts: &[u64]| {
            let processes = counts.iter().map(|&count| (process(1), count)).collect();
            let holds = Holds {
                persistent,
                processes,
                ..holds()
            };
            Holds::parse(holds.to_string().as_bytes())
        };
        for (persistent, counts) in [
            (u64::MAX, &[1][..]),
            (1, &[u64::MAX]),
            (0, &[u64::MAX / 2 + 1, u64::MAX / 2 + 1]),
        ] {
            assert_eq!(noted(persistent, counts), None, "{persistent}, {counts:?}");
        }
        for holder in [None, Some(process(1))] {
            let mut most = noted(0, &[u64::MAX]).expect("just fits");
            most.add(holder);
            assert_eq!(most.total(), u64::MAX, "held, and not by nobody");
        }
    }

    #[test]
    fn the_first_hold_is_added_at_the_end_of_the_file() {
        for process in [None, Some(process(5))] {
            let none = Holds {
                persistent: 0,
                processes: Vec::new(),
                ..holds()
            };
            let (before, line) = (none.to_string(), Holds::line_of_first(process));
            for len in 0..line.len() {
                let cut = Holds::parse(format!("{before}{}", &line[..len]).as_bytes());
                assert!(cut.is_none_or(|found| found == none), "cut at {len}");
            }
            let mut one = none;
            one.add(process);
            assert_eq!(
                Holds::parse(format!("{before}{line}").as_bytes()),
                Some(one)
            );
        }
    }

    #[test]
    fn a_process_releases_its_own_hold_first() {
        let mut holds = holds();
        assert!(holds.release(Some(process(1))));
        assert_eq!((holds.persistent, holds.total()), (2, 4));
        for left in [3, 2] {
            assert!(holds.release(Some(process(9))));
            assert_eq!(holds.total(), left);
        }
        assert!(
            !holds.release(Some(process(9))),
            "the others are not its to release"
        );
        assert_eq!(holds.total(), 2);
    }
}
