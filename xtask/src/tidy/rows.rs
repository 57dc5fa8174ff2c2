//! The tables of bad inputs: every row is there, and every test that they name.

use super::{Files, Finding};

/// `<!-- rows 124 to 187 -->` says what a table must have.
const RANGE: &str = "<!-- rows ";

pub(super) fn check(files: &Files) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, text) in files {
        if name.ends_with("ROWS.md") {
            table(name, text, files, &mut found);
        }
    }
    found
}

fn table(name: &str, text: &str, files: &Files, found: &mut Vec<Finding>) {
    let expected: Vec<String> = text.lines().filter_map(range).flatten().collect();
    if expected.is_empty() {
        found.push(Finding::new(name, 1, "it does not say which rows it has"));
        return;
    }
    let mut rows = Vec::new();
    for (line, number, tests) in text.lines().enumerate().filter_map(row) {
        rows.push(number);
        if tests.is_empty() {
            found.push(Finding::new(
                name,
                line,
                format!("row {number} has no test"),
            ));
        }
        for test in tests {
            if !is_test(test, files) {
                found.push(Finding::new(name, line, format!("there is no test {test}")));
            }
        }
    }
    for row in expected {
        if !rows.contains(&&*row) {
            found.push(Finding::new(name, 1, format!("row {row} is missing")));
        }
    }
}

/// All rows of a range; only the last of several numbers with dots counts up.
fn range(line: &str) -> Option<Vec<String>> {
    let rows = line.trim().strip_prefix(RANGE)?.strip_suffix(" -->")?;
    let (first, last) = rows.split_once(" to ")?;
    let start = first.rfind('.').map_or(0, |dot| dot + 1);
    let (section, first) = first.split_at(start);
    let (first, last): (u32, u32) = (
        first.parse().ok()?,
        last.strip_prefix(section)?.parse().ok()?,
    );
    Some(
        (first..=last)
            .map(|row| format!("{section}{row}"))
            .collect(),
    )
}

/// Line, number and named tests of a table's row.
fn row((index, line): (usize, &str)) -> Option<(usize, &str, Vec<&str>)> {
    let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
    let number = cells.next()?;
    if !number.starts_with(|digit: char| digit.is_ascii_digit()) {
        return None;
    }
    let tests = cells.nth(1)?.split('`').skip(1).step_by(2);
    Some((index + 1, number, tests.collect()))
}

fn is_test(test: &str, files: &Files) -> bool {
    let function = format!("fn {test}(");
    let named = format!("\"{test}\"");
    let mut sources = files.iter().filter(|(name, _)| name.ends_with(".rs"));
    sources.any(|(_, text)| text.contains(&function) || text.contains(&named))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(table: &str) -> Vec<String> {
        let files = Files::from([
            ("a/ROWS.md".to_owned(), table.to_owned()),
            (
                "a/tests/b.rs".to_owned(),
                "fn one() {}\n(\"two\", two)".to_owned(),
            ),
        ]);
        let found = check(&files);
        found.into_iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn a_missing_row_and_a_missing_test_are_found() {
        let head = "<!-- rows 7 to 8 -->\n| row | outcome | test |\n|---|---|---|\n";
        let good = format!("{head}| 7 | x | `one`, `two` |\n| 8 | y | `two` |\n");
        assert_eq!(rules(&good), [""; 0]);
        let sections = format!("{good}<!-- rows 1.2.9 to 1.2.10 -->\n| 1.2.9 | z | `one` |\n");
        assert_eq!(rules(&sections), ["row 1.2.10 is missing"]);
        let lost = format!("{head}| 7 | x | `one` |\n");
        assert_eq!(rules(&lost), ["row 8 is missing"]);
        let other = format!("{head}| 7 | x | `three` |\n| 8 | y | |\n");
        assert_eq!(
            rules(&other),
            ["there is no test three", "row 8 has no test"]
        );
        assert_eq!(
            rules("| 7 | x | `one` |"),
            ["it does not say which rows it has"]
        );
    }
}
