//! Files that no crate has: a test in one never runs.

use std::collections::BTreeSet;

use serde_json::Value;

use super::scan::code;
use super::{Files, Finding, list, members, relative, text};

pub(super) fn check(metadata: &Value, files: &Files) -> Vec<Finding> {
    let mut found = Vec::new();
    for package in members(metadata) {
        let manifest = relative(metadata, text(package, "manifest_path"));
        let folder = manifest.trim_end_matches("Cargo.toml");
        let roots = list(&package["targets"])
            .map(|target| relative(metadata, text(target, "src_path")).to_owned());
        // Their package is outside of the workspace.
        let fuzzed = format!("{folder}fuzz/fuzz_targets/");
        let fuzzed = files.keys().filter(|name| name.starts_with(&fuzzed));
        let reached = reached(roots.chain(fuzzed.cloned()).collect(), files);
        let lost = files.keys().filter(|name| {
            name.starts_with(folder) && name.ends_with(".rs") && !reached.contains(*name)
        });
        for name in lost {
            let rule = "no module declares this file, so nothing in it is built or run";
            found.push(Finding::new(name, 1, rule));
        }
    }
    found
}

/// The files that stand in the module trees with these roots.
fn reached(roots: Vec<String>, files: &Files) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<(String, bool)> = roots.into_iter().map(|root| (root, true)).collect();
    while let Some((name, is_root)) = next.pop() {
        let Some(text) = files.get(&name) else {
            continue;
        };
        let (dir, file) = name.rsplit_once('/').unwrap_or(("", &name));
        let inner = match file {
            _ if is_root => dir.to_owned(),
            "mod.rs" => dir.to_owned(),
            _ => format!("{dir}/{}", file.trim_end_matches(".rs")),
        };
        for module in declared(text) {
            let candidates = [
                module.path.map(|path| format!("{dir}/{path}")),
                Some(format!("{inner}/{}.rs", module.name)),
                Some(format!("{inner}/{}/mod.rs", module.name)),
            ];
            let file = candidates
                .into_iter()
                .flatten()
                .find(|candidate| files.contains_key(candidate));
            next.extend(
                file.filter(|file| !reached.contains(file))
                    .map(|file| (file, false)),
            );
        }
        reached.insert(name);
    }
    reached
}

struct Module<'a> {
    name: String,
    path: Option<&'a str>,
}

/// The `mod name;` of a file, with the `#[path]` of the line before. Files of modules inside of
/// inline modules are not looked for.
fn declared(text: &str) -> Vec<Module<'_>> {
    let code = code(text);
    let mut before = "";
    let mut modules = Vec::new();
    for (line, raw) in code.lines().zip(text.lines()) {
        let declaration = line.trim().strip_suffix(';');
        let name = declaration.and_then(|line| match *line.split(' ').collect::<Vec<_>>() {
            ["mod", name] | [_, "mod", name] => Some(name.to_owned()),
            _ => None,
        });
        if let Some(name) = name {
            let path = before.trim().strip_prefix("#[path = \"");
            let path = path.and_then(|path| path.strip_suffix("\"]"));
            modules.push(Module { name, path });
        }
        before = raw;
    }
    modules
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lost(files: &[(&str, &str)]) -> Vec<String> {
        let metadata = json!({
            "workspace_root": "/repo",
            "workspace_members": ["a"],
            "packages": [{
                "id": "a", "manifest_path": "/repo/a/Cargo.toml",
                "targets": [{"src_path": "/repo/a/src/lib.rs"}, {"src_path": "/repo/a/tests/main.rs"}],
            }],
        });
        let files = files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        let found = check(&metadata, &files.collect());
        found.into_iter().map(|finding| finding.file).collect()
    }

    #[test]
    fn a_test_file_that_is_not_declared_is_found_at_every_depth() {
        let all = [
            ("a/src/lib.rs", "pub mod x;\n"),
            ("a/src/x.rs", "mod y;\n"),
            ("a/src/x/y.rs", ""),
            (
                "a/tests/main.rs",
                "mod one;\n#[path = \"odd.rs\"]\nmod two;\n",
            ),
            ("a/tests/one/mod.rs", "pub(crate) mod deep;\n"),
            ("a/tests/one/deep.rs", ""),
            ("a/tests/odd.rs", ""),
        ];
        assert!(lost(&all).is_empty());
        let forgotten = [
            ("a/tests/new.rs", ""),
            ("a/tests/one/new.rs", ""),
            ("a/src/new.rs", ""),
        ];
        assert_eq!(lost(&[&all[..], &forgotten].concat()).len(), 3);
    }

    #[test]
    fn a_declaration_in_a_comment_is_none() {
        let files = [("a/src/lib.rs", "// mod x;\n"), ("a/src/x.rs", "")];
        assert_eq!(lost(&files), ["a/src/x.rs"]);
    }
}
