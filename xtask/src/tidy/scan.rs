//! Rust source without what is not code.

/// The same text with comments, strings and characters blanked out; lines and columns stay.
pub(super) fn code(text: &str) -> String {
    let symbols: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < symbols.len() {
        let end = skipped(&symbols, at);
        if end == at {
            code.push(symbols[at]);
            at += 1;
        } else {
            code.extend(symbols[at..end].iter().map(|symbol| blank(*symbol)));
            at = end;
        }
    }
    code
}

/// Code without the items under `#[cfg(test)]`.
pub(super) fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut rest = code;
    let mut kept = String::with_capacity(code.len());
    while let Some(start) = rest.find(MARK) {
        let (before, item) = rest.split_at(start);
        let (item, after) = item.split_at(item_len(item));
        kept.push_str(before);
        kept.extend(item.chars().map(blank));
        rest = after;
    }
    kept + rest
}

/// Whether the code has this word, as a word.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    line.split(|symbol: char| !is_part_of_name(symbol))
        .any(|found| found == word)
}

pub(super) fn is_part_of_name(symbol: char) -> bool {
    symbol.is_alphanumeric() || symbol == '_'
}

fn blank(symbol: char) -> char {
    if symbol == '\n' { '\n' } else { ' ' }
}

/// The end of an item with its attributes: a semicolon or a closing brace outside all brackets.
fn item_len(item: &str) -> usize {
    let mut depth = 0_usize;
    for (at, symbol) in item.char_indices() {
        match symbol {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 && symbol == '}' {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

/// The end of what is no code from here on; the start itself where there is code.
fn skipped(symbols: &[char], start: usize) -> usize {
    let follows = |words: &str| {
        let mut rest = symbols[start..].iter();
        words.chars().all(|symbol| rest.next() == Some(&symbol))
    };
    if follows("//") {
        return find(symbols, start, |rest| rest[0] == '\n');
    }
    if follows("/*") {
        return block_comment(symbols, start);
    }
    if symbols[start] == '"' {
        return string(symbols, start);
    }
    if symbols[start] == '\'' {
        return character(symbols, start);
    }
    let begins_word = start == 0 || !is_part_of_name(symbols[start - 1]);
    if begins_word {
        for prefix in ["r", "br", "cr"] {
            if follows(prefix) {
                return raw_string(symbols, start, prefix.len());
            }
        }
    }
    start
}

fn find(symbols: &[char], start: usize, ends: impl Fn(&[char]) -> bool) -> usize {
    (start..symbols.len())
        .find(|at| ends(&symbols[*at..]))
        .unwrap_or(symbols.len())
}

fn block_comment(symbols: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while at < symbols.len() {
        match symbols[at..] {
            ['/', '*', ..] => (at, depth) = (at + 2, depth + 1),
            ['*', '/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(symbols: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while at < symbols.len() {
        match symbols[at] {
            '"' => return at + 1,
            '\\' => at += 2,
            _ => at += 1,
        }
    }
    symbols.len()
}

/// A character, or a lifetime, which is code.
fn character(symbols: &[char], start: usize) -> usize {
    match symbols[start + 1..] {
        ['\\', _, ..] => {
            let end = find(symbols, start + 3, |rest| rest[0] == '\'');
            symbols.len().min(end + 1)
        }
        [_, '\'', ..] => start + 3,
        _ => start,
    }
}

fn raw_string(symbols: &[char], start: usize, prefix: usize) -> usize {
    let opening = find(symbols, start + prefix, |rest| rest[0] != '#');
    if symbols.get(opening) != Some(&'"') {
        return start;
    }
    let hashes = opening - start - prefix;
    let end = find(symbols, opening + 1, |rest| {
        rest.len() > hashes && rest[0] == '"' && rest[1..=hashes].iter().all(|one| *one == '#')
    });
    symbols.len().min(end + hashes + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_characters_are_no_code() {
        for (text, expected) in [
            ("a // x\nb", "a b"),
            ("a /* x /* y */ z */ b", "a b"),
            ("a(\"x // \\\" y\") b", "a( ) b"),
            ("r#\"x\" y\"# b", "b"),
            ("br\"x\" b", "b"),
            ("'\"' b '\\'' c '\\u{7f}' d", "b c d"),
            ("&'a str; 'b: loop", "&'a str; 'b: loop"),
            ("for r in r#type", "for r in r#type"),
            ("\"open", ""),
        ] {
            let found = code(text);
            let words: Vec<&str> = found.split_whitespace().collect();
            assert_eq!(words.join(" "), expected, "{text:?}");
            assert_eq!(found.len(), text.len(), "{text:?}");
        }
    }

    #[test]
    fn only_the_marked_item_is_a_test() {
        let text = "#[cfg(test)]\nuse a;\nfn b() {}\n#[cfg(test)]\n#[x(y)]\nmod c { fn d() { } }\nfn e() {}";
        let left = without_tests(text);
        assert_eq!(left.lines().count(), text.lines().count());
        for (word, expected) in [("a", false), ("b", true), ("d", false), ("e", true)] {
            assert_eq!(has_word(&left, word), expected, "{word}");
        }
    }
}
