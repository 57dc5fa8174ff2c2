//! What the documents promise.

use super::graph::ARROWS;
use super::{Files, Finding};

/// The two commands of the README.
const COMMANDS: [&str; 2] = ["cargo run --release -- demo", "cargo test --workspace"];

pub(super) fn check(files: &Files) -> Vec<Finding> {
    let text = |name: &str| files.get(name).map_or("", |text| text);
    let mut found = Vec::new();
    for (name, _) in ARROWS {
        if !text("ARCHITECTURE.md").contains(&format!("`{name}`")) {
            let rule = format!("{name} is not on the map");
            found.push(Finding::new("ARCHITECTURE.md", 1, rule));
        }
    }
    for command in COMMANDS {
        let lines = fenced(text("README.md"));
        let lines: Vec<usize> = lines
            .filter(|(_, line)| *line == command)
            .map(|(number, _)| number)
            .collect();
        if lines.len() != 1 {
            let rule = format!("the command {command:?} stands here {} times", lines.len());
            let line = lines.last().copied().unwrap_or(1);
            found.push(Finding::new("README.md", line, rule));
        }
    }
    found
}

/// The lines between fences, with their numbers.
fn fenced(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut inside = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let fence = line.starts_with("```");
        inside ^= fence;
        (inside && !fence).then_some((number + 1, line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(readme: &str) -> Vec<String> {
        let map = ARROWS.map(|(name, _)| format!("`{name}`")).join(" ");
        let files = [("ARCHITECTURE.md", map), ("README.md", readme.to_owned())];
        let files = files.map(|(name, text)| (name.to_owned(), text)).into();
        check(&files).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_command_stands_in_a_fence_exactly_once() {
        let [demo, test] = COMMANDS.map(|command| format!("```\n{command}\n```\n"));
        assert!(rules(&format!("{demo}text\n{test}")).is_empty());
        assert_eq!(rules(&format!("{demo}{test}{demo}")).len(), 1);
        assert_eq!(rules(&demo.replace("```\n", "")).len(), 2);
    }

    #[test]
    fn a_crate_that_is_not_on_the_map_is_found() {
        assert_eq!(check(&Files::new()).len(), ARROWS.len() + COMMANDS.len());
    }
}
