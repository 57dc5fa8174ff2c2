//! Building tests of the copy, and running them for no longer than is needed.

use std::fmt;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal};

/// So many of the tests that notice are named, or as many as do within this time of the first.
const NAMED: usize = 3;
const OTHERS: Duration = Duration::from_secs(4);

/// Tests that take longer than all others together have this in their names.
const SLOW: &str = "exhaustive";

/// Which of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which<'a> {
    Quick,
    Slow,
    /// The one of this very name: not every harness takes several.
    Named(&'a str),
}

impl Which<'_> {
    /// The arguments of a test program.
    fn arguments(self) -> Vec<String> {
        let arguments: &[&str] = match self {
            Self::Quick => &["--skip", SLOW],
            Self::Slow => &[SLOW],
            Self::Named(name) => &["--exact", name],
        };
        arguments.iter().map(|&one| one.to_owned()).collect()
    }
}

/// Tests of a package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tests {
    pub(super) package: String,
    /// None for all.
    pub(super) target: Option<Target>,
}

/// One test program of a package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Lib,
    Bins,
    Docs,
    Test(String),
    Example(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lib => f.write_str("lib"),
            Self::Bins => f.write_str("bins"),
            Self::Docs => f.write_str("doc"),
            Self::Test(name) => write!(f, "test {name}"),
            Self::Example(name) => write!(f, "example {name}"),
        }
    }
}

impl Target {
    /// As it is displayed.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text.split_once(' ') {
            None if text == "lib" => Self::Lib,
            None if text == "bins" => Self::Bins,
            None if text == "doc" => Self::Docs,
            Some(("test", name)) => Self::Test(name.to_owned()),
            Some(("example", name)) => Self::Example(name.to_owned()),
            _ => return None,
        })
    }

    /// By the line in which cargo says what it runs.
    fn running(line: &str) -> Option<Self> {
        let line = line.trim_start();
        if line.starts_with("Doc-tests ") {
            return Some(Self::Docs);
        }
        let what = line.strip_prefix("Running ")?;
        let stem = |path: &str| {
            let file = path.split(' ').next()?;
            Some(Path::new(file).file_stem()?.to_str()?.to_owned())
        };
        if let Some(path) = what.strip_prefix("unittests ") {
            return match path {
                _ if path.starts_with("src/lib.rs") => Some(Self::Lib),
                _ if path.starts_with("examples/") => Some(Self::Example(stem(path)?)),
                _ => Some(Self::Bins),
            };
        }
        Some(Self::Test(stem(what.strip_prefix("tests/")?)?))
    }
}

impl Tests {
    pub(super) fn all(package: &str) -> Self {
        Self {
            package: package.to_owned(),
            target: None,
        }
    }

    fn command(&self, dir: &Path) -> Command {
        let mut test = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        test.args(["test", "-p", &self.package])
            .current_dir(dir.join("tree"))
            .env("CARGO_TARGET_DIR", dir.join("target"))
            // Nobody debugs them, and they run longer than the compiler does.
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .env("CARGO_INCREMENTAL", "1")
            .stdin(Stdio::null());
        match &self.target {
            None => &mut test,
            Some(Target::Lib) => test.arg("--lib"),
            Some(Target::Bins) => test.arg("--bins"),
            Some(Target::Docs) => test.arg("--doc"),
            Some(Target::Test(name)) => test.args(["--test", name]),
            Some(Target::Example(name)) => test.args(["--example", name]),
        };
        test
    }
}

/// How a run came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Passed,
    /// By itself, or because enough had failed.
    Failed,
    TimedOut,
}

pub(super) fn build(dir: &Path, tests: &Tests) -> Result<()> {
    if tests.target == Some(Target::Docs) {
        return Ok(());
    }
    let output = tests.command(dir).args(["--quiet", "--no-run"]).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it does not compile:\n{errors}");
    Ok(())
}

/// Runs tests and gives what they print.
pub(super) fn run(
    dir: &Path,
    tests: &Tests,
    which: Which<'_>,
    patience: Duration,
) -> Result<(Ended, String)> {
    let log = dir.join("log");
    let output = fs::File::create(&log)?;
    let mut test = tests.command(dir);
    test.args(["--no-fail-fast", "--"]).args(which.arguments());
    let mut child = test
        .stdout(output.try_clone()?)
        .stderr(output)
        // It and the test programs end together.
        .process_group(0)
        .spawn()?;
    let read = || -> Result<String> { Ok(String::from_utf8_lossy(&fs::read(&log)?).into_owned()) };
    let (start, mut first_failure) = (Instant::now(), None);
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break match status.success() {
                true => Ended::Passed,
                false => Ended::Failed,
            };
        }
        let failed = failed(&read()?, &tests.package).len();
        if failed > 0 {
            first_failure.get_or_insert_with(Instant::now);
        }
        let is_known = first_failure.is_some_and(|first: Instant| first.elapsed() > OTHERS);
        let is_late = start.elapsed() > patience;
        if failed >= NAMED || is_known || is_late {
            rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL)?;
            child.wait()?;
            break match failed {
                0 => Ended::TimedOut,
                _ => Ended::Failed,
            };
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    Ok((ended, read()?))
}

/// The first tests that failed, and whose they are.
pub(super) fn failed(log: &str, package: &str) -> Vec<(Tests, String)> {
    let mut tests = Tests::all(package);
    let mut failed: Vec<(Tests, String)> = Vec::new();
    for line in log.lines() {
        if let Some(target) = Target::running(line) {
            tests.target = Some(target);
        } else if let Some(name) = failed_test(line)
            && failed.len() < NAMED
            && !failed.iter().any(|(_, known)| *known == name)
        {
            failed.push((tests.clone(), name));
        }
    }
    failed
}

fn failed_test(line: &str) -> Option<String> {
    let name = line.strip_prefix("test ")?.strip_suffix("FAILED")?.trim();
    Some(name.trim_end_matches("...").trim().to_owned())
}

/// How many tests passed.
pub(super) fn count(log: &str) -> usize {
    let passed = log.lines().filter_map(|line| {
        let counts = line.strip_prefix("test result: ok. ")?;
        counts.split(' ').next()?.parse::<usize>().ok()
    });
    passed.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn failed_tests_belong_to_what_ran_last() {
        let log = "     Running unittests src/lib.rs (target/debug/deps/a-1)\n\
                   test one ... ok\n\
                   test result: ok. 1 passed; 0 failed\n     \
                   Running tests/main.rs (target/debug/deps/main-1)\n\
                   test two ... FAILED\n   \
                   Doc-tests a\n\
                   test src/lib.rs - f (line 3) ... FAILED\n";
        let test = |target, name: &str| {
            let tests = Tests {
                package: "a".to_owned(),
                target: Some(target),
            };
            (tests, name.to_owned())
        };
        let expected = [
            test(Target::Test("main".to_owned()), "two"),
            test(Target::Docs, "src/lib.rs - f (line 3)"),
        ];
        assert_eq!(failed(log, "a"), expected);
        assert_eq!(count(log), 1);
        for (tests, _) in expected {
            let target = tests.target.unwrap();
            assert_eq!(Target::parse(&target.to_string()), Some(target));
        }
    }
}
