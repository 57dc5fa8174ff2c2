//! What a file must and must not hold.

use super::Finding;
use super::scan::{code, has_word, is_part_of_name, without_tests};

pub(crate) const LIBRARIES: [&str; 6] = [
    "ovl-layout",
    "ovl-mount",
    "ovl-quota",
    "ovl-diff",
    "ovl-driver",
    "ovl-testkit",
];

/// What no library does outside its tests. Names begin where a name begins.
const FORBIDDEN: [&str; 11] = [
    "println!",
    "eprintln!",
    "print!",
    "eprint!",
    "io::stdout",
    "io::stderr",
    "std::env",
    "env::",
    "set_current_dir",
    "umask(",
    "umask;",
];

/// Calls that change the working directory, and where a thread that has its own may do so.
const CHANGES_DIR: [&str; 2] = ["chdir", "fchdir"];
const MAY_CHANGE_DIR: [&str; 2] = ["ovl-mount/src/host.rs", "ovl-mount/src/sys/"];

/// Where unsafe code lives.
const UNSAFE: [&str; 2] = ["ovl-mount/src/sys/", "ovl-quota/src/sys/"];

/// Words that put work off. In two pieces, so that this file does not hold them.
const UNFINISHED: [[&str; 2]; 7] = [
    ["TO", "DO"],
    ["FIX", "ME"],
    ["XX", "X"],
    ["HA", "CK"],
    ["to", "do!"],
    ["unimple", "mented!"],
    ["#[ig", "nore"],
];

/// Directories of one machine, in two pieces as well.
const MACHINE: [[&str; 2]; 3] = [["/wo", "rk/"], ["/ro", "ot/"], ["/dev/", "shm/"]];

const MAX_LINES: usize = 900;

pub(super) fn check(name: &str, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut complain = |rule: String| found.push(Finding::new(name, number + 1, rule));
        for pieces in MACHINE {
            // A document may say that a shared memory file system is a good place.
            let is_advice = pieces == MACHINE[2] && name.ends_with(".md");
            if !is_advice && begins_path(line, &pieces.concat()) {
                complain("a path of one machine".to_owned());
            }
        }
        for word in UNFINISHED.map(|pieces| pieces.concat()) {
            if line.contains(&word) {
                complain(format!("{word} has no place here"));
            }
        }
    }
    if name.ends_with(".rs") {
        rust(name, text, &mut found);
    }
    found
}

fn rust(name: &str, text: &str, found: &mut Vec<Finding>) {
    if text.lines().count() > MAX_LINES {
        let rule = format!("more than {MAX_LINES} lines; do two things share the file?");
        found.push(Finding::new(name, MAX_LINES + 1, rule));
    }
    let code = code(text);
    let in_any = |places: &[&str]| places.iter().any(|place| name.starts_with(place));
    for (number, line) in code.lines().enumerate() {
        if has_word(line, "unsafe") && !in_any(&UNSAFE) {
            let rule = "unsafe code belongs in sys/ of ovl-mount and ovl-quota";
            found.push(Finding::new(name, number + 1, rule));
        }
    }
    let Some((package, path)) = name.split_once('/') else {
        return;
    };
    if matches!(path, "src/lib.rs" | "src/main.rs") {
        let has_unsafe = in_any(&UNSAFE.map(|dir| dir.trim_end_matches("sys/")));
        let level = if has_unsafe { "deny" } else { "forbid" };
        let attribute = format!("#![{level}(unsafe_code)]");
        if !code.contains(&attribute) {
            found.push(Finding::new(name, 1, format!("{attribute} is missing")));
        }
    }
    if !LIBRARIES.contains(&package) || !path.starts_with("src/") {
        return;
    }
    for (number, line) in without_tests(&code).lines().enumerate() {
        let mut complain = |what: &str| {
            let rule = format!("a library must not use {what}");
            found.push(Finding::new(name, number + 1, rule));
        };
        let used = FORBIDDEN.iter().find(|what| has_name(line, what));
        used.into_iter().for_each(|what| complain(what));
        let changes = CHANGES_DIR.iter().find(|call| has_word(line, call));
        changes
            .filter(|_| !in_any(&MAY_CHANGE_DIR))
            .into_iter()
            .for_each(|call| complain(call));
    }
}

/// Whether a line has these symbols, and not as a part of a longer name.
fn has_name(line: &str, what: &str) -> bool {
    let ends_in_name = what.ends_with(is_part_of_name);
    line.match_indices(what).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + what.len()..]);
        let goes_on = ends_in_name && after.starts_with(is_part_of_name);
        !goes_on && !before.ends_with(is_part_of_name)
    })
}

/// Whether an absolute path begins with this directory somewhere in the line.
fn begins_path(line: &str, dir: &str) -> bool {
    let goes_on = |symbol: char| is_part_of_name(symbol) || ".-/<>{}$*~".contains(symbol);
    line.match_indices(dir)
        .any(|(at, _)| !line[..at].ends_with(goes_on))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(name: &str, text: &str) -> Vec<String> {
        check(name, text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn libraries_do_not_print_but_their_comments_strings_and_tests_may() {
        let lib = "ovl-diff/src/x.rs";
        assert_eq!(
            rules(lib, "fn f() {\n    println!();\n}"),
            ["ovl-diff/src/x.rs:2: a library must not use println!"]
        );
        for quiet in [
            "// println!()",
            "const X: &str = \"println!()\";",
            "#[cfg(test)]\nmod tests { fn f() { println!() } }",
        ] {
            assert!(rules(lib, quiet).is_empty(), "{quiet}");
        }
        assert_eq!(
            rules(lib, "#[cfg(test)]\nuse a;\nfn f() { eprint!() }").len(),
            1
        );
        assert!(rules("ovl-cli/src/x.rs", "fn f() { println!() }").is_empty());
        assert!(rules("ovl-diff/tests/x.rs", "fn f() { println!() }").is_empty());
    }

    #[test]
    fn libraries_leave_the_process_alone() {
        for call in [
            "std::env::var(\"X\")",
            "use std::env;",
            "env::args()",
            "std::io::stdout()",
            "set_current_dir(x)",
            "rustix::process::umask(x)",
            "rustix::process::chdir(x)",
            "fchdir(x)",
        ] {
            assert_eq!(rules("ovl-driver/src/x.rs", call).len(), 1, "{call}");
        }
        assert!(rules("ovl-mount/src/host.rs", "fchdir(x)").is_empty());
        assert!(rules("ovl-mount/src/sys/mod.rs", "chdir(x)").is_empty());
        assert!(rules("ovl-diff/src/x.rs", "env!(\"X\"); std::environment();").is_empty());
    }

    #[test]
    fn unsafe_code_is_found_outside_sys() {
        for place in [
            "ovl-mount/src/host.rs",
            "ovl-cli/src/x.rs",
            "ovl-diff/tests/x.rs",
        ] {
            assert_eq!(rules(place, "unsafe { call() }").len(), 1, "{place}");
        }
        assert!(rules("ovl-mount/src/sys/mod.rs", "unsafe { call() }").is_empty());
        assert!(rules("ovl-mount/src/plan.rs", "let unsafe_word = 1; // unsafe").is_empty());
    }

    #[test]
    fn every_crate_says_what_unsafe_code_it_has() {
        let forbid = "#![forbid(unsafe_code)]";
        for root in [
            "ovl-diff/src/lib.rs",
            "ovl-cli/src/main.rs",
            "xtask/src/main.rs",
        ] {
            assert_eq!(rules(root, "//! Docs.").len(), 1);
            assert_eq!(rules(root, &format!("// {forbid}")).len(), 1);
            assert!(rules(root, forbid).is_empty());
        }
        assert!(rules("ovl-quota/src/lib.rs", "#![deny(unsafe_code)]").is_empty());
    }

    #[test]
    fn unfinished_work_is_found() {
        for word in UNFINISHED.map(|pieces| pieces.concat()) {
            assert!(!rules("ovl-cli/src/x.rs", &format!("a\n// {word}")).is_empty());
        }
    }

    #[test]
    fn a_path_of_one_machine_is_found_and_part_of_another_is_not() {
        for dir in MACHINE.map(|pieces| pieces.concat()) {
            assert_eq!(rules("a.toml", &format!("x = \"{dir}main\"")).len(), 1);
            assert!(rules("a.toml", &format!("x = \"home/id{dir}x\"")).is_empty());
            assert!(rules("a.rs", &format!("x = \"{{home}}{dir}x\"")).is_empty());
        }
        let [.., shm] = MACHINE.map(|pieces| pieces.concat());
        assert!(rules("README.md", &format!("use {shm}x")).is_empty());
    }

    #[test]
    fn a_long_file_is_found() {
        assert!(rules("ovl-cli/src/x.rs", &"\n".repeat(MAX_LINES)).is_empty());
        assert_eq!(
            rules("ovl-cli/src/x.rs", &"\n".repeat(MAX_LINES + 1)).len(),
            1
        );
    }
}
