//! What a guest says on its console, counted.

use std::collections::BTreeMap;
use std::fmt;

/// Before the name of a part.
pub(super) const BEGIN: &str = "@begin ";
/// Before how a part ended.
pub(super) const END: &str = "@end ";
/// The guest is done with all of its parts.
pub(super) const DONE: &str = "@done";

/// A line of the table.
#[derive(Debug)]
pub(super) struct Row {
    kernel: String,
    suite: String,
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
    /// How many were skipped for each.
    reasons: BTreeMap<String, usize>,
    /// Whether the guest has said how it ended, and how.
    ended_well: Option<bool>,
    seconds: f64,
}

impl Row {
    fn new(kernel: &str, suite: &str) -> Self {
        Self {
            kernel: kernel.to_owned(),
            suite: suite.to_owned(),
            passed: 0,
            failed: Vec::new(),
            skipped: 0,
            reasons: BTreeMap::new(),
            ended_well: None,
            seconds: 0.0,
        }
    }

    /// A part that ended before the guest said so has failed, whatever was counted.
    fn is_good(&self) -> bool {
        self.ended_well == Some(true) && self.failed.is_empty() && self.passed > 0
    }
}

/// All of a run.
#[derive(Debug, Default)]
pub(super) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Counts a line of the console; `seconds` have gone since the guest's start.
    pub(super) fn line(&mut self, kernel: &str, line: &str, seconds: f64) {
        if let Some(suite) = line.strip_prefix(BEGIN) {
            let mut row = Row::new(kernel, suite);
            row.seconds = -seconds;
            self.rows.push(row);
        }
        let Some(row) = self.rows.last_mut() else {
            return;
        };
        if let Some(how) = line.strip_prefix(END) {
            row.ended_well = Some(how == "passed");
            row.seconds += seconds;
        }
        let told = line
            .strip_prefix("test ")
            .and_then(|line| line.split_once(" ... "));
        match told {
            Some((_, how)) if how.starts_with("ok") => row.passed += 1,
            Some((name, how)) if how.starts_with("FAILED") => row.failed.push(name.to_owned()),
            Some((_, how)) => {
                if let Some(reason) = how.strip_prefix("skipped: ") {
                    row.skipped += 1;
                    *row.reasons.entry(reason.to_owned()).or_default() += 1;
                }
            }
            None => {}
        }
    }

    /// A guest ended before it was done.
    pub(super) fn lost(&mut self, kernel: &str, said: String) {
        let mut row = Row::new(kernel, "the guest itself");
        row.reasons.insert(format!("it said last: {said}"), 1);
        self.rows.push(row);
    }

    /// The suites that failed, or did not come to their ends.
    pub(super) fn bad(&self) -> Vec<String> {
        let bad = self.rows.iter().filter(|row| !row.is_good());
        bad.map(|row| match &row.failed[..] {
            [] => format!("{} on {}", row.suite, row.kernel),
            failed => format!("{} on {}: {}", row.suite, row.kernel, failed.join(", ")),
        })
        .collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = |of: fn(&Row) -> usize| self.rows.iter().map(of).max().unwrap_or(0).max(6);
        let kernel = widest(|row| row.kernel.len());
        let suite = widest(|row| row.suite.len());
        write!(f, "{:kernel$}  {:suite$}", "kernel", "suite")?;
        writeln!(f, "  passed  failed  skipped  seconds")?;
        for row in &self.rows {
            write!(f, "{:kernel$}  {:suite$}", row.kernel, row.suite)?;
            let (passed, failed, skipped) = (row.passed, row.failed.len(), row.skipped);
            write!(f, "  {passed:6}  {failed:6}  {skipped:7}  ")?;
            match row.ended_well {
                Some(_) => write!(f, "{:7.1}", row.seconds)?,
                None => write!(f, "not done")?,
            }
            let mut before = "  ";
            for (reason, count) in &row.reasons {
                write!(f, "{before}{count}: {reason}")?;
                before = "; ";
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::default();
        for (second, line) in lines.iter().enumerate() {
            report.line("6.1", line, second as f64);
        }
        report
    }

    #[test]
    fn lines_of_a_console_are_counted_by_part() {
        let found = report(&[
            "Linux says something",
            "@begin quotas off, xfs",
            "test a ... ok (0.10 s)",
            "test b ... skipped: no tar here",
            "test a (by name) ... skipped: no root here",
            "test c ... skipped: no tar here",
            "@end passed",
            "@begin ext4",
            "test a ... FAILED (0.10 s): no",
            "test c ... ok (0.10 s)",
            "@end failed",
        ]);
        assert_eq!(found.bad(), ["ext4 on 6.1: a"]);
        let shown = found.to_string();
        let rows: Vec<Vec<&str>> = shown
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            rows[1].join(" "),
            "6.1 quotas off, xfs 1 0 3 5.0 1: no root here; 2: no tar here"
        );
        assert_eq!(rows[2].join(" "), "6.1 ext4 1 1 0 3.0");
    }

    #[test]
    fn a_part_that_does_not_end_has_failed() {
        let found = report(&["@begin xfs", "test a ... ok (0.10 s)"]);
        assert_eq!(found.bad(), ["xfs on 6.1"]);
        assert!(found.to_string().contains("not done"));
        assert_eq!(report(&["@begin xfs", "@end passed"]).bad().len(), 1);
        assert!(report(&["test a ... ok (0.10 s)"]).is_empty());
        let mut lost = report(&["@begin xfs", "test a ... ok (0.10 s)", "@end passed"]);
        assert_eq!(lost.bad(), [""; 0]);
        lost.lost("6.1", "Kernel panic".to_owned());
        assert_eq!(lost.bad(), ["the guest itself on 6.1"]);
        assert!(lost.to_string().contains("Kernel panic"));
    }
}
