//! What every member's manifest inherits.

use serde_json::Value;

use super::graph::FOR_TESTS;
use super::{Files, Finding, members, relative, text};

const INHERITED: [&str; 4] = ["version", "edition", "rust-version", "license"];

pub(super) fn check(metadata: &Value, files: &Files) -> Vec<Finding> {
    let mut found = Vec::new();
    for package in members(metadata) {
        let name = relative(metadata, text(package, "manifest_path"));
        found.extend(manifest(name, files.get(name).map_or("", |text| text)));
    }
    found
}

/// One manifest, line by line: cargo's own output does not tell what was inherited.
fn manifest(name: &str, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut section = "";
    let mut missing: Vec<String> = INHERITED
        .map(|key| format!("[package] {key}.workspace = true"))
        .into();
    missing.push("[lints] workspace = true".to_owned());
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        }
        let shown = format!("[{section}] {line}");
        missing.retain(|one| *one != shown);
        let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        if !may_stand(section, key.trim(), value.trim()) {
            let rule = format!("{line:?}: versions and places stand in the root's manifest");
            found.push(Finding::new(name, number + 1, rule));
        }
    }
    for line in missing {
        found.push(Finding::new(name, 1, format!("{line:?} is missing")));
    }
    found
}

fn may_stand(section: &str, key: &str, value: &str) -> bool {
    let last_two = || section.rsplit_once('.').map(|(table, _)| table);
    if last_two().is_some_and(|table| table.ends_with("dependencies")) {
        return !matches!(key, "version" | "path" | "git" | "registry");
    }
    if !section.ends_with("dependencies") {
        return true;
    }
    let has = |word: &str| {
        value
            .split(|symbol: char| !symbol.is_alphanumeric())
            .any(|found| found == word)
    };
    let inherits = (key.ends_with(".workspace") || has("workspace")) && has("true");
    let by_path = section == "dev-dependencies" && key == FOR_TESTS && has("path");
    (inherits || by_path) && !has("version")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "[package]\nversion.workspace = true\nedition.workspace = true\n\
        rust-version.workspace = true\nlicense.workspace = true\n[lints]\nworkspace = true\n";

    fn rules(more: &str) -> Vec<String> {
        manifest("a/Cargo.toml", &format!("{WHOLE}{more}"))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn what_is_not_inherited_is_found() {
        assert!(rules("").is_empty());
        let found = manifest(
            "a/Cargo.toml",
            &WHOLE.replace("edition.workspace", "edition"),
        );
        assert_eq!(found.len(), 1, "{found:?}");
        // In the wrong section it is not there.
        let found = manifest("a/Cargo.toml", &WHOLE.replace("[lints]", "[other]"));
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn versions_stand_in_the_root_only() {
        for good in [
            "[dependencies]\nrustix.workspace = true\n",
            "[dependencies]\ntokio = { workspace = true, optional = true }\n",
            "[dev-dependencies]\novl-testkit = { path = \"../ovl-testkit\" }\n",
            "[dependencies.tokio]\nworkspace = true\n",
            "[dependencies]\n# rustix = \"1\"\n",
            "[features]\nversion = []\n",
        ] {
            assert!(rules(good).is_empty(), "{good}");
        }
        for bad in [
            "[dependencies]\nrustix = \"1\"\n",
            "[dependencies]\nrustix = { version = \"1\" }\n",
            "[build-dependencies]\nrustix = { workspace = true, version = \"1\" }\n",
            "[target.'cfg(unix)'.dependencies]\nrustix = \"1\"\n",
            "[dependencies.rustix]\nversion = \"1\"\n",
            "[dependencies]\novl-testkit = { path = \"../ovl-testkit\" }\n",
            "[dev-dependencies]\novl-testkit = { path = \"../ovl-testkit\", version = \"0.1\" }\n",
        ] {
            assert_eq!(rules(bad).len(), 1, "{bad}");
        }
        assert!(rules("[dependencies]\nrustix = \"1\"\n")[0].starts_with("a/Cargo.toml:9: "));
    }
}
