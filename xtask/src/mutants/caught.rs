//! Which test noticed which fault: the table `caught.tsv`, that `--record` writes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::Result;

use super::list::{MUTANTS, Mutant};
use super::tests_run::{Target, Tests};

const TABLE: &str = include_str!("caught.tsv");

/// A test of each fault, by the fault's name.
pub(super) struct Caught(BTreeMap<String, (Tests, String)>);

impl Caught {
    pub(super) fn known() -> Self {
        Self(TABLE.lines().filter_map(row).collect())
    }

    pub(super) fn of(&self, mutant: &Mutant) -> Option<&(Tests, String)> {
        self.0.get(mutant.name)
    }

    pub(super) fn note(&mut self, mutant: &Mutant, test: &(Tests, String)) {
        self.0.insert(mutant.name.to_owned(), test.clone());
    }

    /// In the order of the faults.
    pub(super) fn write(&self) -> Result<()> {
        let mut table = String::new();
        for mutant in MUTANTS {
            if let Some((tests, test)) = self.of(mutant)
                && let Some(target) = &tests.target
            {
                let (name, package) = (mutant.name, &tests.package);
                writeln!(table, "{name}\t{package}\t{target}\t{test}")?;
            }
        }
        fs::write(crate::root().join("xtask/src/mutants/caught.tsv"), table)?;
        Ok(())
    }
}

/// Fault, package, test program, test.
fn row(line: &str) -> Option<(String, (Tests, String))> {
    let mut cells = line.split('\t');
    let mut next = || cells.next();
    let (fault, package, target, test) = (next()?, next()?, next()?, next()?);
    let tests = Tests {
        package: package.to_owned(),
        target: Some(Target::parse(target)?),
    };
    Some((fault.to_owned(), (tests, test.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_of_a_fault_that_there_is() {
        for line in TABLE.lines() {
            let (fault, _) = row(line).unwrap();
            assert!(MUTANTS.iter().any(|mutant| mutant.name == fault), "{line}");
        }
    }
}
