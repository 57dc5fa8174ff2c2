//! Which lines of the libraries the tests reach: `-C instrument-coverage` and LLVM's tools, those of
//! the toolchain (`rustup component add llvm-tools`) or Debian's (`llvm-19` or later).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::tidy::LIBRARIES;

/// Files with a smaller part of their lines reached are listed.
const ENOUGH: f64 = 85.0;
/// Debian's packages that read the profiles of the compilers that this builds with.
const VERSIONS: [&str; 4] = ["22", "21", "20", "19"];

#[derive(Clone, Copy, Debug, Default)]
struct Lines {
    all: u64,
    reached: u64,
}

impl Lines {
    #[allow(clippy::cast_precision_loss, reason = "nothing has so many lines")]
    fn percent(self) -> f64 {
        100.0 * self.reached as f64 / self.all.max(1) as f64
    }
}

pub(crate) fn run() -> Result<()> {
    let (profdata, cov) = (tool("llvm-profdata")?, tool("llvm-cov")?);
    let dir = crate::root().join("target/coverage");
    let profiles = dir.join("profiles");
    // Those of an earlier run count for nothing.
    if profiles.exists() {
        fs::remove_dir_all(&profiles)?;
    }
    fs::create_dir_all(&profiles)?;
    let programs = programs(&dir, &profiles)?;
    // All tests but those in documentation, which rustdoc builds into programs of its own.
    crate::run(test(&dir, &profiles).arg("--no-fail-fast"))?;
    let merged = dir.join("all.profdata");
    let mut merge = Command::new(profdata);
    merge.args(["merge", "-sparse", "-o"]).arg(&merged);
    for entry in fs::read_dir(&profiles)? {
        merge.arg(entry?.path());
    }
    crate::run(&mut merge)?;
    let mut export = Command::new(cov);
    export.args(["export", "-summary-only", "-instr-profile"]);
    export.arg(&merged);
    for (number, program) in programs.iter().enumerate() {
        // The first one has no name of its own.
        if number > 0 {
            export.arg("-object");
        }
        export.arg(program);
    }
    let exported = crate::output(&mut export)?;
    print(&by_file(&serde_json::from_str(&exported)?)?);
    Ok(())
}

/// Of the toolchain, or of the system.
fn tool(name: &str) -> Result<PathBuf> {
    let mut sysroot = Command::new("rustc");
    let sysroot = crate::output(
        sysroot
            .args(["--print", "sysroot"])
            .current_dir(crate::root()),
    )?;
    let target = Path::new(sysroot.trim()).join("lib/rustlib");
    for entry in fs::read_dir(&target).into_iter().flatten() {
        let path = entry?.path().join("bin").join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let names = VERSIONS.iter().map(|version| format!("{name}-{version}"));
    names
        .map(PathBuf::from)
        .find(|name| {
            let version = Command::new(name).arg("--version").output();
            version.is_ok_and(|output| output.status.success())
        })
        .with_context(|| {
            format!("there is no {name}: rustup component add llvm-tools, or apt install llvm-19")
        })
}

fn test(dir: &Path, profiles: &Path) -> Command {
    let mut test = crate::cargo();
    test.args(["test", "--lib", "--bins", "--tests"]);
    for package in LIBRARIES {
        test.args(["-p", package]);
    }
    // The program runs the libraries too.
    test.args(["-p", "ovl-cli"])
        .env("CARGO_TARGET_DIR", dir)
        .env("RUSTFLAGS", "-C instrument-coverage")
        // Processes of one program add up in one file.
        .env("LLVM_PROFILE_FILE", profiles.join("%4m.profraw"));
    test
}

/// The programs that the tests are, and the program that they start.
fn programs(dir: &Path, profiles: &Path) -> Result<Vec<PathBuf>> {
    let mut build = test(dir, profiles);
    let built = crate::output(build.args(["--no-run", "--message-format=json"]))?;
    let mut programs = Vec::new();
    for line in built.lines() {
        let message: Value = serde_json::from_str(line)?;
        programs.extend(message["executable"].as_str().map(PathBuf::from));
    }
    ensure!(!programs.is_empty(), "cargo names no test program");
    Ok(programs)
}

/// Of each file of the libraries, relative to the repository.
fn by_file(export: &Value) -> Result<BTreeMap<String, Lines>> {
    let files = export["data"][0]["files"].as_array();
    let mut all = BTreeMap::new();
    for file in files.context("llvm-cov exports no files")? {
        let name = file["filename"].as_str().unwrap_or_default();
        let Ok(name) = Path::new(name).strip_prefix(crate::root()) else {
            continue;
        };
        let name = name.to_string_lossy().into_owned();
        if !LIBRARIES
            .iter()
            .any(|package| name.starts_with(&format!("{package}/src/")))
        {
            continue;
        }
        let count = |what: &str| file["summary"]["lines"][what].as_u64();
        let lines = Lines {
            all: count("count").context("llvm-cov counts no lines")?,
            reached: count("covered").context("llvm-cov counts no lines")?,
        };
        all.insert(name, lines);
    }
    Ok(all)
}

fn print(files: &BTreeMap<String, Lines>) {
    println!("\n| Crate | Lines | Reached | |\n|---|---:|---:|---:|");
    for package in LIBRARIES {
        let own = files
            .iter()
            .filter(|(name, _)| name.starts_with(&format!("{package}/")));
        let sum = own.fold(Lines::default(), |sum, (_, lines)| Lines {
            all: sum.all + lines.all,
            reached: sum.reached + lines.reached,
        });
        let (all, reached, percent) = (sum.all, sum.reached, sum.percent());
        println!("| {package} | {all} | {reached} | {percent:.1} % |");
    }
    println!("\nFiles of which less than {ENOUGH} % is reached:");
    for (name, lines) in files.iter().filter(|(_, lines)| lines.percent() < ENOUGH) {
        let (all, missed, percent) = (lines.all, lines.all - lines.reached, lines.percent());
        println!("{percent:5.1} %  {missed:4} of {all:4} lines not  {name}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_libraries_are_counted_and_others_are_not() {
        let root = crate::root();
        let file = |name: &str, all: u64, reached: u64| {
            serde_json::json!({
                "filename": root.join(name),
                "summary": { "lines": { "count": all, "covered": reached } },
            })
        };
        let files = [
            file("ovl-diff/src/apply.rs", 200, 150),
            file("ovl-diff/tests/main.rs", 10, 10),
            file("ovl-cli/src/main.rs", 10, 10),
            file("/rustc/library/core/src/option.rs", 10, 10),
        ];
        let export = serde_json::json!({ "data": [{ "files": files }] });
        let found = by_file(&export).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["ovl-diff/src/apply.rs"]);
        let percent = found["ovl-diff/src/apply.rs"].percent();
        assert!((percent - 75.0).abs() < 0.01, "{percent}");
        by_file(&serde_json::json!({})).unwrap_err();
    }
}
