//! The invariants that a program can check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{cargo, output, root};

/// Who may use whom; a crate that is not named may use none of ours.
const ARROWS: [(&str, &[&str]); 8] = [
    ("ovl-layout", &[]),
    ("ovl-mount", &["ovl-layout"]),
    ("ovl-quota", &[]),
    ("ovl-diff", &["ovl-layout"]),
    (
        "ovl-driver",
        &["ovl-layout", "ovl-mount", "ovl-quota", "ovl-diff"],
    ),
    (
        "ovl-testkit",
        &[
            "ovl-layout",
            "ovl-mount",
            "ovl-quota",
            "ovl-diff",
            "ovl-driver",
        ],
    ),
    (
        "ovl-cli",
        &[
            "ovl-layout",
            "ovl-mount",
            "ovl-quota",
            "ovl-diff",
            "ovl-driver",
        ],
    ),
    (
        "xtask",
        &[
            "ovl-layout",
            "ovl-mount",
            "ovl-quota",
            "ovl-diff",
            "ovl-driver",
            "ovl-testkit",
            "ovl-cli",
        ],
    ),
];

/// Crates that never see tokio, whatever their features.
const WITHOUT_TOKIO: [&str; 5] = [
    "ovl-layout",
    "ovl-mount",
    "ovl-quota",
    "ovl-diff",
    "ovl-testkit",
];

const LIBRARIES: [&str; 6] = [
    "ovl-layout",
    "ovl-mount",
    "ovl-quota",
    "ovl-diff",
    "ovl-driver",
    "ovl-testkit",
];

/// What no library does outside its tests, and the one file that may.
const FORBIDDEN: [(&str, Option<&str>); 8] = [
    ("println!", None),
    ("eprintln!", None),
    ("print!(", None),
    ("std::env::", None),
    ("env::var", None),
    ("set_current_dir", None),
    ("umask(", None),
    ("chdir(", Some("ovl-mount/src/host.rs")),
];

const LICENCES: [&str; 9] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense OR MIT",
];

const MAX_LINES: usize = 900;

pub(crate) fn run() -> Result<()> {
    let mut found = Vec::new();
    let metadata = output(cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    arrows(&metadata, &mut found)?;
    licences(&metadata, &mut found)?;
    tokio(&mut found)?;
    let listed = std::process::Command::new("git")
        .args(["ls-files", "-co", "--exclude-standard"])
        .current_dir(root())
        .output()
        .context("cannot run git")?;
    for name in String::from_utf8_lossy(&listed.stdout).lines() {
        let Ok(text) = fs::read_to_string(root().join(name)) else {
            continue;
        };
        file(name, &text, &mut found);
    }
    members(&mut found)?;
    documents(&mut found)?;
    if found.is_empty() {
        println!("tidy: nothing to complain about");
        return Ok(());
    }
    for line in &found {
        println!("{line}");
    }
    bail!("{} violations", found.len())
}

/// Dependencies between our own crates, and those of ovl-layout.
fn arrows(metadata: &Value, found: &mut Vec<String>) -> Result<()> {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let members: BTreeSet<&str> = list(&metadata["workspace_members"])
        .filter_map(Value::as_str)
        .collect();
    for package in list(&metadata["packages"]) {
        let id = package["id"].as_str().context("a package without id")?;
        if !members.contains(id) {
            continue;
        }
        let name = package["name"].as_str().context("a package without name")?;
        let Some(may_use) = allowed.get(name) else {
            found.push(format!(
                "{name}/Cargo.toml: the crate is not in the map of the house"
            ));
            continue;
        };
        for dependency in list(&package["dependencies"]) {
            let used = dependency["name"].as_str().unwrap_or_default();
            let dev = dependency["kind"] == "dev";
            let ours = allowed.contains_key(used);
            if dev && used == "ovl-testkit" {
                if dependency["req"] != "*" {
                    found.push(format!(
                        "{name}/Cargo.toml: ovl-testkit by path only, no version"
                    ));
                }
            } else if ours && !may_use.contains(&used) {
                found.push(format!("{name}/Cargo.toml: must not use {used}"));
            } else if name == "ovl-layout" && !dev && used != "thiserror" {
                found.push(format!(
                    "{name}/Cargo.toml: depends on {used} beside thiserror"
                ));
            }
        }
    }
    Ok(())
}

fn licences(metadata: &Value, found: &mut Vec<String>) -> Result<()> {
    for package in list(&metadata["packages"]) {
        let licence = package["license"].as_str().unwrap_or("none");
        if !is_allowed(licence) {
            let name = package["name"].as_str().context("a package without name")?;
            found.push(format!("deny.toml: the licence of {name} is {licence}"));
        }
    }
    Ok(())
}

/// Whether one of the alternatives asks for nothing but allowed licences.
fn is_allowed(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], "").replace('/', " OR ");
    plain.split(" OR ").any(|choice| {
        choice
            .split(" AND ")
            .all(|licence| LICENCES.contains(&licence.trim()))
    })
}

fn tokio(found: &mut Vec<String>) -> Result<()> {
    for name in WITHOUT_TOKIO {
        let tree = output(cargo().args([
            "tree", "--locked", "-p", name, "-e", "normal", "--prefix", "none",
        ]))?;
        if tree.lines().any(|line| line.starts_with("tokio ")) {
            found.push(format!(
                "{name}/Cargo.toml: tokio is among its dependencies"
            ));
        }
    }
    Ok(())
}

/// What one file must not hold.
fn file(name: &str, text: &str, found: &mut Vec<String>) {
    let this = name == "xtask/src/tidy.rs";
    // Split, so that this file does not hold them.
    let machine = [
        ("/work/", "main"),
        ("/work/", "shared"),
        ("/root/", ".cargo"),
        ("/dev/", "shm/"),
    ]
    .map(|(dir, rest)| [dir, rest].concat());
    for (number, line) in text.lines().enumerate() {
        let mut complain = |what: &str| found.push(format!("{name}:{}: {what}", number + 1));
        if machine.iter().any(|path| line.contains(path)) {
            complain("a path of a machine");
        }
        if name.ends_with(".rs") && !this {
            for word in [
                "TODO",
                "FIXME",
                "XXX",
                "HACK",
                "todo!",
                "unimplemented!",
                "#[ignore",
            ] {
                if line.contains(word) {
                    complain(&format!("{word} has no place here"));
                }
            }
        }
    }
    if !name.ends_with(".rs") {
        return;
    }
    if text.lines().count() > MAX_LINES {
        found.push(format!(
            "{name}: more than {MAX_LINES} lines; do two things share the file?"
        ));
    }
    let Some((package, path)) = name.split_once('/') else {
        return;
    };
    if !LIBRARIES.contains(&package) || !path.starts_with("src/") {
        return;
    }
    for (number, line) in code(text) {
        for (word, exception) in FORBIDDEN {
            if line.contains(word) && exception != Some(name) {
                found.push(format!("{name}:{number}: a library must not use {word}"));
            }
        }
        let in_sys = ["ovl-mount/src/sys/", "ovl-quota/src/sys/"]
            .iter()
            .any(|dir| name.starts_with(dir));
        if !in_sys && has_word(line, "unsafe") {
            found.push(format!("{name}:{number}: unsafe code belongs in sys/"));
        }
    }
    if path == "src/lib.rs" {
        let level = if matches!(package, "ovl-mount" | "ovl-quota") {
            "deny"
        } else {
            "forbid"
        };
        if !text.contains(&format!("#![{level}(unsafe_code)]")) {
            found.push(format!("{name}: #![{level}(unsafe_code)] is missing"));
        }
    }
}

/// Numbered lines of code: no comments, nothing from the tests at a file's end on.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.contains("#[cfg(test)]"))
        .map(|(number, line)| (number + 1, line.trim_start()))
        .filter(|(_, line)| !line.starts_with("//"))
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|symbol: char| !symbol.is_alphanumeric() && symbol != '_')
        .any(|found| found == word)
}

/// What every member inherits, and that no test file is forgotten.
fn members(found: &mut Vec<String>) -> Result<()> {
    for (name, _) in ARROWS {
        let dir = root().join(name);
        let manifest = fs::read_to_string(dir.join("Cargo.toml"))?;
        for line in [
            "edition.workspace = true",
            "rust-version.workspace = true",
            "license.workspace = true",
            "[lints]\nworkspace = true",
        ] {
            if !manifest.contains(line) {
                found.push(format!("{name}/Cargo.toml: {line:?} is missing"));
            }
        }
        let inherits = |line: &str| line.contains("workspace = true") || line.contains("path = ");
        let dependencies = manifest.split("dependencies]\n").skip(1);
        for line in
            dependencies.flat_map(|part| part.lines().take_while(|line| !line.starts_with('[')))
        {
            if line.contains('=') && !line.starts_with('#') && !inherits(line) {
                found.push(format!(
                    "{name}/Cargo.toml: {line:?}: versions stand in the root"
                ));
            }
        }
        let tests = dir.join("tests");
        let Ok(entries) = fs::read_dir(&tests) else {
            continue;
        };
        let main = fs::read_to_string(tests.join("main.rs")).unwrap_or_default();
        for entry in entries.flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let module = file.strip_suffix(".rs").unwrap_or(&file);
            let is_root = manifest.contains(&format!("path = \"tests/{file}\""));
            let used = is_root || is_used(&tests, &main, module)?;
            let is_code = file.ends_with(".rs") || entry.path().join("mod.rs").exists();
            if is_code && !used {
                found.push(format!("{name}/tests/{file}: no test binary has it"));
            }
        }
    }
    Ok(())
}

/// Whether a test binary or a module of one names the module.
fn is_used(tests: &Path, main: &str, module: &str) -> Result<bool> {
    let declaration = format!("mod {module};");
    if main.contains(&declaration) {
        return Ok(true);
    }
    for entry in fs::read_dir(tests)?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if text.contains(&declaration) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn documents(found: &mut Vec<String>) -> Result<()> {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md"))?;
    for (name, _) in ARROWS {
        if !architecture.contains(name) {
            found.push(format!("ARCHITECTURE.md: {name} is not on the map"));
        }
    }
    let readme = fs::read_to_string(root().join("README.md"))?;
    for command in ["cargo run --release -- demo", "cargo test --workspace"] {
        let times = readme.lines().filter(|line| *line == command).count();
        if times != 1 {
            found.push(format!(
                "README.md: the command {command:?} stands there {times} times"
            ));
        }
    }
    Ok(())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(name: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        file(name, text, &mut found);
        found
    }

    #[test]
    fn libraries_do_not_print_but_their_comments_and_tests_may() {
        assert_eq!(
            complaints("ovl-diff/src/x.rs", "fn f() { println!() }").len(),
            1
        );
        assert!(
            complaints("ovl-diff/src/x.rs", "// println!\n#[cfg(test)]\nprintln!()").is_empty()
        );
        assert!(complaints("ovl-cli/src/x.rs", "fn f() { println!() }").is_empty());
    }

    #[test]
    fn unsafe_code_is_found_outside_sys() {
        assert_eq!(
            complaints("ovl-mount/src/host.rs", "unsafe { call() }").len(),
            1
        );
        assert!(complaints("ovl-mount/src/sys/mod.rs", "unsafe { call() }").is_empty());
        assert!(complaints("ovl-mount/src/plan.rs", "let unsafe_word = 1;").is_empty());
        assert_eq!(complaints("ovl-diff/src/lib.rs", "//! Docs.").len(), 1);
    }

    #[test]
    fn a_licence_is_allowed_when_one_choice_is() {
        assert!(is_allowed("MIT OR Apache-2.0"));
        assert!(is_allowed("MIT/Apache-2.0"));
        assert!(is_allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!is_allowed("GPL-3.0-only"));
        assert!(!is_allowed("MPL-2.0 OR LGPL-3.0"));
    }

    #[test]
    fn a_long_file_is_found() {
        assert_eq!(
            complaints("ovl-cli/src/x.rs", &"\n".repeat(MAX_LINES + 1)).len(),
            1
        );
    }
}
