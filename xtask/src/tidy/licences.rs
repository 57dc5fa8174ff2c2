//! The licences of everything that is built in. `cargo deny` asks the same and more, and takes
//! minutes to build.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Files, Finding, line_of, list, text};

const POLICY: &str = "deny.toml";

pub(super) fn check(metadata: &Value, files: &Files) -> Result<Vec<Finding>> {
    let policy = files.get(POLICY).context("deny.toml is missing")?;
    let allowed = allowed(policy).context("deny.toml has no list of licences")?;
    let line = line_of(files, POLICY, "allow");
    let mut found = Vec::new();
    for package in list(&metadata["packages"]) {
        let (name, licence) = (text(package, "name"), text(package, "license"));
        if !is_allowed(licence, &allowed) {
            let rule = format!("the licence of {name} is not in the list: {licence:?}");
            found.push(Finding::new(POLICY, line, rule));
        }
    }
    Ok(found)
}

/// The strings of `allow` in the section `[licenses]`.
fn allowed(policy: &str) -> Option<Vec<&str>> {
    let (_, section) = policy.split_once("[licenses]")?;
    let (_, list) = section.split_once("allow = [")?;
    let (list, _) = list.split_once(']')?;
    Some(list.split('"').skip(1).step_by(2).collect())
}

/// Whether an SPDX expression can be met with these licences alone; a slash is an old OR.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any(&mut words, allowed);
    met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut met = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words, allowed);
    }
    met
}

fn all(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    match words.next() {
        Some("(") => any(words, allowed) & words.next_if_eq(&")").is_some(),
        Some(name) => {
            let exception = words.next_if_eq(&"WITH").and_then(|_| words.next());
            let name = exception.map_or(name.to_owned(), |with| format!("{name} WITH {with}"));
            allowed.contains(&&*name)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: [&str; 4] = [
        "MIT",
        "Apache-2.0",
        "Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception",
    ];

    #[test]
    fn one_allowed_choice_is_enough_and_every_part_must_be_allowed() {
        for (expression, expected) in [
            ("MIT", true),
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("MIT OR Apache-2.0 OR LGPL-2.1-or-later", true),
            ("Unlicense OR MIT", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("MIT AND Apache-2.0 OR GPL-3.0-only", true),
            ("(MIT OR Apache-2.0) AND GPL-3.0-only", false),
            ("GPL-3.0-only OR (MIT AND MPL-2.0)", false),
            ("GPL-3.0-only", false),
            ("MIT WITH Classpath-exception-2.0", false),
            ("(MIT", false),
            ("MIT Apache-2.0", false),
            ("", false),
        ] {
            assert_eq!(is_allowed(expression, &ALLOWED), expected, "{expression:?}");
        }
    }

    #[test]
    fn the_list_is_read_from_the_policy() {
        let policy =
            "[bans]\nallow = [\"x\"]\n[licenses]\nallow = [\n    \"MIT\",\n    \"ISC\",\n]\n";
        assert_eq!(allowed(policy).unwrap(), ["MIT", "ISC"]);
        assert!(allowed("[licenses]\n").is_none());
    }
}
