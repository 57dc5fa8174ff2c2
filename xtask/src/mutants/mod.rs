//! Faults put into the code one at a time, in a copy of the tree: `cargo test` must notice each.

mod list;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use rustix::process::{Pid, Signal};

use list::{MUTANTS, Mutant};

/// A test run that takes longer hangs, which is noticed too.
const PATIENCE: Duration = Duration::from_secs(600);

/// So many of the tests that notice are named, or as many as do within this time of the first.
const NAMED: usize = 3;
const OTHERS: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only the faults whose name has this in it
    #[arg(long)]
    only: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let wanted = |mutant: &&Mutant| {
        let only = options.only.as_deref();
        only.is_none_or(|only| mutant.name.contains(only))
    };
    let chosen: Vec<&Mutant> = MUTANTS.iter().filter(wanted).collect();
    ensure!(!chosen.is_empty(), "no fault has such a name");
    let scratch = tempfile::Builder::new().prefix("ovl-mutants-").tempdir()?;
    copy_tree(scratch.path())?;
    // Before the long part.
    for mutant in &chosen {
        mutant.applied(&read(scratch.path(), mutant)?)?;
    }
    let mut missed = Vec::new();
    for mutant in &chosen {
        let original = read(scratch.path(), mutant)?;
        let path = scratch.path().join(mutant.file);
        fs::write(&path, mutant.applied(&original)?)?;
        let outcome = try_out(scratch.path(), mutant);
        fs::write(&path, original)?;
        match outcome? {
            Some(tests) => println!("caught  {:45} {}", mutant.name, tests.join(", ")),
            None => {
                println!("MISSED  {:45} {}", mutant.name, mutant.file);
                missed.push(mutant.name);
            }
        }
    }
    println!("{} of {} caught", chosen.len() - missed.len(), chosen.len());
    ensure!(missed.is_empty(), "not caught: {}", missed.join(", "));
    Ok(())
}

impl Mutant {
    /// The file's text with the fault in it.
    fn applied(&self, text: &str) -> Result<String> {
        let count = text.matches(self.from).count();
        ensure!(
            count == 1,
            "{}: what it changes stands {count} times in {}",
            self.name,
            self.file
        );
        Ok(text.replacen(self.from, self.to, 1))
    }
}

fn read(scratch: &Path, mutant: &Mutant) -> Result<String> {
    fs::read_to_string(scratch.join(mutant.file)).with_context(|| mutant.file.to_owned())
}

/// The files that git knows, as they are now.
fn copy_tree(to: &Path) -> Result<()> {
    let mut list = Command::new("git");
    list.args(["ls-files", "-coz", "--exclude-standard"]);
    let listed = crate::output(list.current_dir(crate::root()))?;
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (crate::root().join(name), to.join(name));
        if !from.is_file() {
            continue;
        }
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::copy(&from, &to).with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// The first tests that fail, of the first package in which any does; `None` when all pass.
fn try_out(scratch: &Path, mutant: &Mutant) -> Result<Option<Vec<String>>> {
    for package in mutant.packages() {
        let log = scratch.join("log");
        let output = fs::File::create(&log)?;
        let mut test = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        let mut child = test
            .args(["test", "--no-fail-fast", "-p", package])
            .env("CARGO_TARGET_DIR", scratch.join("target"))
            .current_dir(scratch)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // It and the test programs end together.
            .process_group(0)
            .spawn()?;
        let status = wait(&mut child, &log)?;
        let failed = failed_tests(&log)?;
        match status {
            Some(status) if status.success() => {}
            _ if !failed.is_empty() => return Ok(Some(failed)),
            Some(_) => {
                let text = fs::read_to_string(&log)?;
                // A fault must be one that the compiler does not find.
                bail!("{}: no test failed, but the run did:\n{text}", mutant.name);
            }
            None => return Ok(Some(vec![format!("the tests of {package} do not end")])),
        }
    }
    Ok(None)
}

/// Waits for the end of a test run, and ends it where enough is known: `None`.
fn wait(child: &mut Child, log: &Path) -> Result<Option<ExitStatus>> {
    let (start, mut first_failure) = (Instant::now(), None);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let failed = failed_tests(log)?.len();
        if failed > 0 {
            first_failure.get_or_insert_with(Instant::now);
        }
        let is_known = first_failure.is_some_and(|first: Instant| first.elapsed() > OTHERS);
        if failed >= NAMED || is_known || start.elapsed() > PATIENCE {
            rustix::process::kill_process_group(Pid::from_child(child), Signal::KILL)?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn failed_tests(log: &Path) -> Result<Vec<String>> {
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let mut failed: Vec<String> = text.lines().filter_map(failed_test).collect();
    failed.dedup();
    failed.truncate(NAMED);
    Ok(failed)
}

fn failed_test(line: &str) -> Option<String> {
    let name = line.strip_prefix("test ")?.strip_suffix("FAILED")?.trim();
    Some(name.trim_end_matches("...").trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_still_stands_where_it_is_said_to() {
        for mutant in MUTANTS {
            let text = read(&crate::root(), mutant).unwrap();
            mutant.applied(&text).unwrap();
            assert_ne!(mutant.from, mutant.to, "{}", mutant.name);
        }
    }

    #[test]
    fn no_two_faults_have_one_name() {
        let mut names: Vec<_> = MUTANTS.iter().map(|mutant| mutant.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), MUTANTS.len());
    }

    #[test]
    fn failed_tests_are_found_in_both_harnesses_words() {
        let found = |line| failed_test(line);
        assert_eq!(found("test a::b ... FAILED"), Some("a::b".to_owned()));
        assert_eq!(
            found("test case_1      ... FAILED"),
            Some("case_1".to_owned())
        );
        assert_eq!(found("test a::b ... ok"), None);
        assert_eq!(found("test result: FAILED. 1 passed"), None);
    }
}
