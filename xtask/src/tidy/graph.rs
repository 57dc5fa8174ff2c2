//! Who uses whom.

use anyhow::Result;
use serde_json::Value;

use super::{Files, Finding, line_of, list, members, relative, text};
use crate::{cargo, output};

/// Who may use whom, as DESIGN and ARCHITECTURE.md draw it.
pub(super) const ARROWS: [(&str, &[&str]); 8] = [
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

/// The only crate that tests of any other may use against the arrows.
pub(super) const FOR_TESTS: &str = "ovl-testkit";

/// Crates that never have tokio among their dependencies, whatever their features.
const WITHOUT_TOKIO: [&str; 5] = [
    "ovl-layout",
    "ovl-mount",
    "ovl-quota",
    "ovl-diff",
    "ovl-testkit",
];

/// The direct dependencies of our crates.
pub(super) fn arrows(metadata: &Value, files: &Files) -> Vec<Finding> {
    let mut found = Vec::new();
    for package in members(metadata) {
        let (name, manifest) = (text(package, "name"), text(package, "manifest_path"));
        let manifest = relative(metadata, manifest);
        let Some((_, may_use)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            let rule = format!("the crate {name} is not in the map of the house");
            found.push(Finding::new(manifest, 1, rule));
            continue;
        };
        for dependency in list(&package["dependencies"]) {
            let used = text(dependency, "name");
            if let Some(rule) = broken_by(name, may_use, used, dependency) {
                found.push(Finding::new(manifest, line_of(files, manifest, used), rule));
            }
        }
    }
    found
}

fn broken_by(name: &str, may_use: &[&str], used: &str, dependency: &Value) -> Option<String> {
    let in_tests = dependency["kind"] == "dev";
    if in_tests && used == FOR_TESTS {
        let by_path_only = dependency["req"] == "*" && dependency["path"].is_string();
        return (!by_path_only).then(|| format!("{used} is for tests by path, without a version"));
    }
    if ARROWS.iter().any(|(known, _)| *known == used) && !may_use.contains(&used) {
        return Some(format!("{name} must not use {used}"));
    }
    if in_tests {
        return None;
    }
    if name == "ovl-layout" && used != "thiserror" {
        return Some(format!("{name} depends on {used} beside thiserror"));
    }
    let may_use_tokio = match name {
        "ovl-driver" => dependency["optional"] == true,
        _ => name == "ovl-cli",
    };
    (used == "tokio" && !may_use_tokio)
        .then(|| "tokio only in ovl-cli, and as an option in ovl-driver".to_owned())
}

/// What comes with the dependencies.
pub(super) fn tokio_in_closures() -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for name in WITHOUT_TOKIO {
        let mut tree = cargo();
        tree.args(["tree", "--locked", "--edges", "normal", "--prefix", "none"]);
        tree.args(["--all-features", "--target", "all", "--package", name]);
        if has_tokio(&output(&mut tree)?) {
            let rule = format!("tokio is among the dependencies of {name}");
            found.push(Finding::new(format!("{name}/Cargo.toml"), 1, rule));
        }
    }
    Ok(found)
}

fn has_tokio(tree: &str) -> bool {
    tree.lines()
        .any(|line| line.split(' ').next() == Some("tokio"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(name: &str, dependency: Value) -> Vec<String> {
        let metadata = json!({
            "workspace_root": "/repo",
            "workspace_members": ["one"],
            "packages": [
                {
                    "id": "one", "name": name, "manifest_path": format!("/repo/{name}/Cargo.toml"),
                    "dependencies": [dependency],
                },
                {"id": "foreign", "name": "foreign", "dependencies": [{"name": "tokio"}]},
            ],
        });
        let manifest = "[dependencies]\ntokio = \"1\"\n".to_owned();
        let files = Files::from([(format!("{name}/Cargo.toml"), manifest)]);
        arrows(&metadata, &files)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn an_arrow_against_the_map_is_found_in_every_kind_of_dependency() {
        for kind in [json!(null), json!("build"), json!("dev")] {
            let found = rules("ovl-mount", json!({"name": "ovl-diff", "kind": kind}));
            assert_eq!(
                found,
                ["ovl-mount/Cargo.toml:1: ovl-mount must not use ovl-diff"]
            );
            assert!(rules("ovl-mount", json!({"name": "ovl-layout", "kind": kind})).is_empty());
        }
        assert_eq!(rules("ovl-new", json!({"name": "anyhow"})).len(), 1);
    }

    #[test]
    fn tests_use_the_testkit_by_path_and_nothing_else_does() {
        let by_path =
            json!({"name": "ovl-testkit", "kind": "dev", "req": "*", "path": "/repo/ovl-testkit"});
        assert!(rules("ovl-diff", by_path).is_empty());
        let version = json!({"name": "ovl-testkit", "kind": "dev", "req": "^0.1", "path": "/repo/ovl-testkit"});
        assert_eq!(rules("ovl-diff", version).len(), 1);
        let normal =
            json!({"name": "ovl-testkit", "kind": null, "req": "*", "path": "/repo/ovl-testkit"});
        assert_eq!(rules("ovl-diff", normal).len(), 1);
    }

    #[test]
    fn the_layout_depends_on_thiserror_alone_but_its_tests_need_not() {
        assert!(rules("ovl-layout", json!({"name": "thiserror", "kind": null})).is_empty());
        assert_eq!(
            rules("ovl-layout", json!({"name": "rustix", "kind": null})).len(),
            1
        );
        assert!(rules("ovl-layout", json!({"name": "proptest", "kind": "dev"})).is_empty());
    }

    #[test]
    fn tokio_is_an_option_of_the_driver() {
        let tokio = |optional: bool| json!({"name": "tokio", "kind": null, "optional": optional});
        assert!(rules("ovl-driver", tokio(true)).is_empty());
        assert_eq!(
            rules("ovl-driver", tokio(false)),
            ["ovl-driver/Cargo.toml:2: tokio only in ovl-cli, and as an option in ovl-driver"]
        );
        assert_eq!(rules("xtask", tokio(false)).len(), 1);
        assert!(rules("ovl-cli", tokio(false)).is_empty());
        assert!(has_tokio("ovl-driver v0.1.0 (/x)\ntokio v1.54.0\n"));
        assert!(!has_tokio("tokio-free v1.0.0\n"));
    }
}
