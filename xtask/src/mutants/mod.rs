//! Faults put into the code one at a time, in a copy of the tree: `cargo test` must notice each.
//!
//! A test counts where it passes without a fault, which is tried first. The test that noticed a
//! fault the last time (`caught.tsv`) is tried before whole packages.

mod caught;
mod list;
mod tests_run;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use rustix::fs::FlockOperation;

use caught::Caught;
use list::{MUTANTS, Mutant};
use tests_run::{Ended, Tests, Which};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only the faults whose name has this in it, or one of these
    #[arg(long)]
    only: Vec<String>,
    /// Write down which test noticed which fault, to be tried first from then on
    #[arg(long)]
    record: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    let wanted = |mutant: &&Mutant| {
        let mut only = options.only.iter();
        options.only.is_empty() || only.any(|only| mutant.name.contains(only))
    };
    let chosen: Vec<&Mutant> = MUTANTS.iter().filter(wanted).collect();
    ensure!(!chosen.is_empty(), "no fault has such a name");
    let mut caught = Caught::known();
    let mut scratch = Scratch::new()?;
    // Before the long part.
    for mutant in &chosen {
        mutant.applied(&scratch.read(mutant)?)?;
    }
    scratch.control(&chosen, &caught, options.only.is_empty())?;
    let mut rows = Vec::new();
    for (number, mutant) in chosen.iter().enumerate() {
        let begun = Instant::now();
        let outcome = scratch.try_out(mutant, caught.of(mutant))?;
        let (word, is_noticed) = match &outcome {
            Outcome::Caught(tests) => {
                caught.note(mutant, &tests[0]);
                ("caught", true)
            }
            // Nothing but its hanging shows it.
            Outcome::Hangs(_) if mutant.hangs() => ("hangs", true),
            Outcome::Hangs(_) => ("HANGS", false),
            Outcome::Missed => ("MISSED", false),
        };
        println!(
            "{:3}/{} {word:6} {:50} {:3.0} s  {outcome}",
            number + 1,
            chosen.len(),
            mutant.name,
            begun.elapsed().as_secs_f64(),
        );
        rows.push((mutant, word, outcome, is_noticed));
    }
    println!("\n| Fault | File | Noticed by |\n|---|---|---|");
    for (mutant, word, outcome, _) in &rows {
        println!(
            "| {} | `{}` | {word}: {outcome} |",
            mutant.name, mutant.file
        );
    }
    let noticed = rows.iter().filter(|(.., is_noticed)| *is_noticed).count();
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    println!("\n{noticed} of {} noticed in {minutes:.1} min", rows.len());
    if options.record {
        caught.write()?;
    }
    let names = rows.iter().filter(|(.., is_noticed)| !is_noticed);
    let names: Vec<_> = names.map(|(mutant, ..)| mutant.name).collect();
    ensure!(names.is_empty(), "not noticed: {}", names.join(", "));
    Ok(())
}

/// What came of a fault.
enum Outcome {
    Caught(Vec<(Tests, String)>),
    /// A test that ends without the fault does not end with it.
    Hangs(Tests),
    Missed,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Caught(tests) => {
                let tests = tests
                    .iter()
                    .map(|(tests, name)| format!("{}: {name}", tests.package));
                f.write_str(&tests.collect::<Vec<_>>().join(", "))
            }
            Self::Hangs(tests) => write!(f, "the tests of {} do not end", tests.package),
            Self::Missed => f.write_str("nothing"),
        }
    }
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

/// The copy of the tree. It stays for the next run, which builds only what has changed.
struct Scratch {
    dir: PathBuf,
    /// One run at a time.
    _lock: fs::File,
    /// Packages whose tests pass without a fault, and how long they take.
    sound: Vec<(&'static str, Duration)>,
}

impl Scratch {
    fn new() -> Result<Self> {
        let dir = crate::root().join("target/mutants");
        fs::create_dir_all(dir.join("tree"))?;
        let lock = fs::File::create(dir.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .context("another run is at work")?;
        copy_tree(&dir.join("tree"))?;
        Ok(Self {
            dir,
            _lock: lock,
            sound: Vec::new(),
        })
    }

    fn path(&self, mutant: &Mutant) -> PathBuf {
        self.dir.join("tree").join(mutant.file)
    }

    fn read(&self, mutant: &Mutant) -> Result<String> {
        fs::read_to_string(self.path(mutant)).with_context(|| mutant.file.to_owned())
    }

    /// Without a fault everything passes: of each package that will be used, the tests that are
    /// known to notice, or all.
    fn control(&mut self, chosen: &[&Mutant], caught: &Caught, whole: bool) -> Result<()> {
        if whole {
            let packages = chosen.iter().flat_map(|mutant| mutant.packages());
            for package in packages.collect::<BTreeSet<_>>() {
                self.package_is_sound(package)?;
            }
        }
        let known = chosen.iter().filter_map(|mutant| caught.of(mutant));
        let targets: BTreeSet<_> = known.clone().map(|(tests, _)| tests.clone()).collect();
        for tests in targets {
            let names = known.clone().filter(|(of, _)| *of == tests);
            let names: BTreeSet<_> = names.map(|(_, name)| name.as_str()).collect();
            tests_run::build(&self.dir, &tests)?;
            for name in names {
                let which = Which::Named(name);
                let (ended, log) = tests_run::run(&self.dir, &tests, which, PATIENCE)?;
                ensure!(
                    ended == Ended::Passed && tests_run::count(&log) == 1,
                    "without a fault, {name} of {} does not pass, or is not there any more:\n{log}",
                    tests.package
                );
            }
        }
        Ok(())
    }

    /// Sees that all tests of a package pass without a fault, and gives how long they take.
    fn package_is_sound(&mut self, package: &'static str) -> Result<Duration> {
        if let Some((_, time)) = self.sound.iter().find(|(name, _)| *name == package) {
            return Ok(*time);
        }
        let tests = Tests::all(package);
        tests_run::build(&self.dir, &tests)?;
        let begun = Instant::now();
        for which in [Which::Quick, Which::Slow] {
            let (ended, log) = tests_run::run(&self.dir, &tests, which, PATIENCE)?;
            ensure!(
                ended == Ended::Passed,
                "without a fault, the tests of {package} do not pass:\n{log}"
            );
        }
        let time = begun.elapsed();
        println!(
            "        without a fault, the tests of {package} pass in {:.0} s",
            time.as_secs_f64()
        );
        self.sound.push((package, time));
        Ok(time)
    }

    /// Tries one fault: on the test that noticed it before, then on all.
    fn try_out(&mut self, mutant: &Mutant, known: Option<&(Tests, String)>) -> Result<Outcome> {
        let original = self.read(mutant)?;
        let path = self.path(mutant);
        let applied = mutant.applied(&original)?;
        if let Some((tests, name)) = known {
            fs::write(&path, &applied)?;
            let outcome = self.noticed(mutant, tests, Which::Named(name), PATIENCE / 4);
            fs::write(&path, &original)?;
            if let Some(outcome) = outcome? {
                return Ok(outcome);
            }
        }
        for which in [Which::Quick, Which::Slow] {
            for package in mutant.packages() {
                let time = self.package_is_sound(package)?;
                fs::write(&path, &applied)?;
                let patience = (time * 5).max(PATIENCE / 4);
                let outcome = self.noticed(mutant, &Tests::all(package), which, patience);
                fs::write(&path, &original)?;
                if let Some(outcome) = outcome? {
                    return Ok(outcome);
                }
            }
        }
        Ok(Outcome::Missed)
    }

    fn noticed(
        &self,
        mutant: &Mutant,
        tests: &Tests,
        which: Which<'_>,
        patience: Duration,
    ) -> Result<Option<Outcome>> {
        // The compiler must not find it, and its time is not the tests'.
        tests_run::build(&self.dir, tests).with_context(|| mutant.name)?;
        let (ended, log) = tests_run::run(&self.dir, tests, which, patience)?;
        let failed = tests_run::failed(&log, &tests.package);
        Ok(match ended {
            Ended::Passed => None,
            _ if !failed.is_empty() => Some(Outcome::Caught(failed)),
            Ended::TimedOut => Some(Outcome::Hangs(tests.clone())),
            Ended::Failed => {
                bail!("{}: no test failed, but the run did:\n{log}", mutant.name);
            }
        })
    }
}

/// How long the tests of one package may take at most, once they are built.
const PATIENCE: Duration = Duration::from_secs(600);

/// The files that git knows, as they are now; what is the same already stays as old as it is.
fn copy_tree(to: &Path) -> Result<()> {
    let mut list = Command::new("git");
    list.args(["ls-files", "-coz", "--exclude-standard"]);
    let listed = crate::output(list.current_dir(crate::root()))?;
    let mut wanted = BTreeSet::new();
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (crate::root().join(name), to.join(name));
        if !from.is_file() {
            continue;
        }
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        let contents = fs::read(&from)?;
        if fs::read(&to).ok().as_ref() != Some(&contents) {
            fs::write(&to, contents).with_context(|| name.to_owned())?;
        }
        fs::set_permissions(&to, fs::metadata(&from)?.permissions())?;
        wanted.insert(to);
    }
    remove_others(to, &wanted)
}

fn remove_others(dir: &Path, wanted: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            remove_others(&path, wanted)?;
        } else if !wanted.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_still_stands_where_it_is_said_to() {
        for mutant in MUTANTS {
            let text = fs::read_to_string(crate::root().join(mutant.file)).unwrap();
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
}
