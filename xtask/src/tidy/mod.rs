//! The invariants that a program can check.

mod documents;
mod graph;
mod licences;
mod manifests;
mod modules;
mod rows;
mod scan;
mod sources;

pub(crate) use sources::LIBRARIES;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::{cargo, output, root};

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: String,
    line: usize,
    rule: String,
}

impl Finding {
    fn new(file: impl Into<String>, line: usize, rule: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line,
            rule: rule.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// The text files of the repository by name, whether git knows them already or not.
type Files = BTreeMap<String, String>;

pub(crate) fn run() -> Result<()> {
    let files = files()?;
    let metadata = output(cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;

    let mut found = graph::arrows(&metadata, &files);
    found.extend(graph::tokio_in_closures()?);
    found.extend(licences::check(&metadata, &files)?);
    found.extend(manifests::check(&metadata, &files));
    found.extend(modules::check(&metadata, &files));
    found.extend(documents::check(&files));
    found.extend(rows::check(&files));
    for (name, text) in &files {
        found.extend(sources::check(name, text));
    }
    if found.is_empty() {
        println!("tidy: {} files, nothing to complain about", files.len());
        return Ok(());
    }
    found.sort();
    for finding in &found {
        println!("{finding}");
    }
    bail!("{} violations", found.len())
}

fn files() -> Result<Files> {
    let mut git = std::process::Command::new("git");
    // No answer must not look like no files.
    let listed = output(
        git.args(["ls-files", "-coz", "--exclude-standard"])
            .current_dir(root()),
    )?;
    let mut files = Files::new();
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        // Deleted files are still listed, and not every file is text.
        if let Ok(text) = fs::read_to_string(root().join(name)) {
            files.insert(name.to_owned(), text);
        }
    }
    if !files.contains_key("Cargo.toml") {
        bail!("git lists no files of {}", root().display());
    }
    Ok(files)
}

/// The packages of the workspace.
fn members(metadata: &Value) -> impl Iterator<Item = &Value> {
    let is_member = |package: &&Value| {
        list(&metadata["workspace_members"]).any(|member| *member == package["id"])
    };
    list(&metadata["packages"]).filter(is_member)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A path of the metadata as git names it; its last part where it lies elsewhere.
fn relative<'a>(metadata: &Value, path: &'a str) -> &'a str {
    path.strip_prefix(text(metadata, "workspace_root"))
        .map_or(path, |rest| rest.trim_start_matches('/'))
}

/// The first line that begins with these words, the first line of all where there is none.
fn line_of(files: &Files, file: &str, words: &str) -> usize {
    files
        .get(file)
        .and_then(|text| text.lines().position(|line| line.starts_with(words)))
        .map_or(1, |found| found + 1)
}
