//! `.env` files as Laravel reads them. Pure: text in, variables out.
//!
//! Source: vlucas/phpdotenv 5, `Parser\EntryParser`, `Parser\Lines` and `Loader\Resolver`. phpdotenv rejects a file with a
//! malformed line; this parser reports the line and continues, because most of a Laravel `.env` does not concern pusherd.
//! The crate dotenvy is not used: its dialect differs from phpdotenv's.

use std::fmt;

/// The size limit of a value, after the substitution of variables. Without it, a few nested references could exhaust the
/// memory.
const VALUE_BYTES_MAX: usize = 64 * 1024;
const TOO_LONG: &str = "the value is longer than 64 KiB";

/// The content of a `.env` file. The last of several entries with one name counts. Not `Debug`, because it holds secrets.
#[derive(Default)]
pub(super) struct Dotenv {
    /// Names and values, in the order of the file.
    pub(super) entries: Vec<(String, String)>,
    /// Malformed entries.
    pub(super) malformed: Vec<Malformed>,
    /// Lines that are not entries.
    pub(super) skipped: Option<SkippedLines>,
}

/// Lines that are neither entries nor comments. Their text is not kept, because it may hold a secret.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct SkippedLines {
    /// Their number.
    count: usize,
    /// The number of the first, from 1.
    first: usize,
}

impl fmt::Display for SkippedLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { count: 1, first } => write!(f, "line {first} is not an assignment (NAME=value)"),
            Self { count, first } => {
                write!(f, "{count} lines are not assignments (NAME=value), the first is line {first}")
            }
        }
    }
}

/// A malformed entry.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Malformed {
    /// The name of the variable.
    pub(super) name: String,
    /// The number of its first line, from 1.
    pub(super) line: usize,
    /// The reason.
    pub(super) why: &'static str,
}

/// Parses `text`. `${NAME}` is replaced with the value in `environment`, else with that of an earlier entry.
pub(super) fn parse(text: &str, environment: impl Fn(&str) -> Option<String>) -> Dotenv {
    let mut found = Dotenv::default();
    let mut rest = text;
    let mut line = 0;
    while !rest.is_empty() {
        line += 1;
        let (current, after) = split_line(rest);
        let entry = rest;
        rest = after;
        let trimmed = current.trim_matches(is_space);
        // A name without `=` is a variable without a value.
        if trimmed.is_empty() || trimmed.starts_with('#') || checked_name(trimmed).is_some() {
            continue;
        }
        let Some(name) = trimmed.split_once('=').and_then(|(name, _)| checked_name(name)) else {
            found.skipped.get_or_insert(SkippedLines { count: 0, first: line }).count += 1;
            // `NAME: value`, as in YAML, and `NAME value` are reported if NAME is a variable that pusherd reads.
            let end = trimmed.find(|char: char| char == ':' || is_space(char)).unwrap_or(trimmed.len());
            if let Some(name) = checked_name(&trimmed[..end]) {
                found.malformed.push(Malformed { name: name.to_owned(), line, why: "is not followed by =" });
            }
            continue;
        };
        let value = &entry[entry.find('=').map_or(0, |at| at + 1)..];
        let lookup = |name: &str| {
            let earlier = |(_, value): &(String, String)| value.clone();
            environment(name).or_else(|| found.entries.iter().rfind(|(known, _)| known == name).map(earlier))
        };
        match parse_value(value, &lookup) {
            Ok((value, end)) => {
                // A quoted value may have several lines.
                line += count_lines(&entry[..entry.len() - end.len()]);
                rest = split_line(end).1;
                found.entries.push((name.to_owned(), value));
            }
            Err(why) => found.malformed.push(Malformed { name: name.to_owned(), line, why }),
        }
    }
    found
}

/// The characters that PHP's `trim` and `ctype_space` treat as space.
fn is_space(char: char) -> bool {
    matches!(char, ' ' | '\t' | '\n' | '\r' | '\0' | '\x0b' | '\x0c')
}

/// The first line of `text`, and the text after it.
fn split_line(text: &str) -> (&str, &str) {
    match text.find(['\n', '\r']) {
        None => (text, ""),
        Some(at) => {
            let end = &text[at..];
            (&text[..at], end.strip_prefix("\r\n").unwrap_or(&end[1..]))
        }
    }
}

fn count_lines(text: &str) -> usize {
    text.replace("\r\n", "\n").matches(['\n', '\r']).count()
}

/// The name without `export` and quotes; `None` if it is not valid.
fn checked_name(text: &str) -> Option<&str> {
    let text = text.trim_matches(is_space);
    let text = match text.strip_prefix("export") {
        Some(name) if name.starts_with(is_space) => name.trim_start_matches(is_space),
        _ => text,
    };
    let unquoted = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    let name = unquoted('"').or_else(|| unquoted('\'')).unwrap_or(text);
    let valid = |char: char| char.is_ascii_alphanumeric() || char == '_' || char == '.';
    (!name.is_empty() && name.chars().all(valid)).then_some(name)
}

/// Parses the value at the start of `text`. Returns it and the text after it.
fn parse_value<'t>(
    text: &'t str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<(String, &'t str), &'static str> {
    let (line, _) = split_line(text);
    let start = line.len() - line.trim_start_matches(is_space).len();
    let (value, rest) = match line[start..].chars().next() {
        Some('"') => double_quoted(&text[start + 1..], lookup)?,
        Some('\'') => {
            let (value, _) = line[start + 1..].split_once('\'').ok_or("a quote is not closed")?;
            (value.to_owned(), &text[start + 1 + value.len() + 1..])
        }
        _ => return unquoted(line, &text[line.len()..], lookup),
    };
    let (trailing, _) = split_line(rest);
    match trailing.trim_start_matches(is_space).chars().next() {
        None | Some('#') => Ok((value, rest)),
        Some(_) => Err("more follows the closing quote"),
    }
}

/// Parses a value that ends at the first space or `#`.
fn unquoted<'t>(
    line: &str,
    rest: &'t str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<(String, &'t str), &'static str> {
    let (plain, _) = line.split_once('#').unwrap_or((line, ""));
    let plain = plain.trim_matches(is_space);
    if plain.contains(is_space) {
        return Err("a value with spaces needs quotes");
    }
    let mut value = String::with_capacity(plain.len());
    let mut tail = plain;
    while let Some(char) = tail.chars().next() {
        tail = push_char(&mut value, char, tail, lookup);
        if value.len() > VALUE_BYTES_MAX {
            return Err(TOO_LONG);
        }
    }
    Ok((value, rest))
}

/// Parses a value that ends at the next `"` without a backslash, possibly on a later line.
fn double_quoted<'t>(
    text: &'t str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<(String, &'t str), &'static str> {
    let mut value = String::new();
    let mut tail = text;
    while let Some(char) = tail.chars().next() {
        if value.len() > VALUE_BYTES_MAX {
            return Err(TOO_LONG);
        }
        match char {
            '"' => return Ok((value, &tail[1..])),
            '\\' => {
                let escaped = tail[1..].chars().next().ok_or("a quote is not closed")?;
                value.push(match escaped {
                    '"' | '\\' | '$' => escaped,
                    'f' => '\x0c',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'v' => '\x0b',
                    _ => return Err("an escape sequence that does not exist"),
                });
                tail = &tail[2..];
            }
            '\r' => {
                value.push('\n');
                tail = tail.strip_prefix("\r\n").unwrap_or(&tail[1..]);
            }
            _ => tail = push_char(&mut value, char, tail, lookup),
        }
    }
    Err("a quote is not closed")
}

/// Appends `char`, the first of `tail`, or the value of the `${NAME}` that it begins. Returns the text after it.
fn push_char<'t>(
    value: &mut String,
    char: char,
    tail: &'t str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> &'t str {
    let nested = tail.strip_prefix("${").and_then(|tail| tail.split_once('}'));
    if let Some((name, after)) = nested
        && let Some(resolved) = checked_name(name).filter(|checked| *checked == name).and_then(lookup)
    {
        value.push_str(&resolved);
        return after;
    }
    value.push(char);
    &tail[char.len_utf8()..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn environment(name: &str) -> Option<String> {
        (name == "OUTSIDE").then(|| "out".to_owned())
    }

    fn entries(text: &str) -> Vec<(String, String)> {
        let found = parse(text, environment);
        assert_eq!(found.malformed, [], "{text:?}");
        found.entries
    }

    #[test]
    fn nested_references_are_limited_in_size() {
        let mut text = "A0=0123456789\n".to_owned();
        for at in 1..40 {
            text += &format!("A{at}=${{A{0}}}${{A{0}}}\nB{at}=\"${{A{0}}} ${{A{0}}}\"\n", at - 1);
        }
        let found = parse(&text, |_| None);
        assert!(found.entries.iter().all(|(_, value)| value.len() <= VALUE_BYTES_MAX));
        assert!(found.malformed.iter().any(|malformed| malformed.why == TOO_LONG));
    }

    #[test]
    fn a_value_is_parsed_as_by_laravel() {
        let table = [
            ("A=1", "1"),
            ("A=", ""),
            ("A=\"\"", ""),
            ("A=''", ""),
            ("  A = 1  ", "1"),
            ("export A=1", "1"),
            ("export\tA=1", "1"),
            ("'A'=1", "1"),
            ("\"A\"=1", "1"),
            ("A=1 # comment", "1"),
            ("A=1#comment", "1"),
            ("A=#comment", ""),
            ("A='a#b' # c", "a#b"),
            ("A=\"a#b\" # c", "a#b"),
            ("A=a=b==", "a=b=="),
            ("A=it's", "it's"),
            ("A=a\\nb", "a\\nb"),
            ("A='a\\n\"b'", "a\\n\"b"),
            (r#"A="a\n\t\"b\"\\ \$x""#, "a\n\t\"b\"\\ $x"),
            ("A=\"one\ntwo\"", "one\ntwo"),
            ("A=\"one\r\ntwo\" # c\r", "one\ntwo"),
            ("A=${OUTSIDE}", "out"),
            ("A=\"<${OUTSIDE}>\"", "<out>"),
            ("A='${OUTSIDE}'", "${OUTSIDE}"),
            ("A=\"\\${OUTSIDE}\"", "${OUTSIDE}"),
            ("A=${UNKNOWN}x", "${UNKNOWN}x"),
            ("A=$OUTSIDE", "$OUTSIDE"),
            ("A=${", "${"),
            ("A=\"é ü\"", "é ü"),
        ];
        for (text, expected) in table {
            assert_eq!(entries(text), [("A".to_owned(), expected.to_owned())], "{text:?}");
        }
    }

    #[test]
    fn all_line_ends_are_accepted_and_comments_are_ignored() {
        let text = "# A=0\r\nA=1\r\n\r\n   # B=\"unclosed\rB=2\n\nJUST_A_NAME\nC=\"x\ny\"\nD=${A}${C}\n=5\n";
        let expected = [("A", "1"), ("B", "2"), ("C", "x\ny"), ("D", "1x\ny")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(entries(text), expected);
        assert_eq!(parse(text, environment).skipped, Some(SkippedLines { count: 1, first: 11 }));
    }

    #[test]
    fn lines_that_are_not_assignments_are_counted_and_their_names_are_reported() {
        let text = "# comment\n\nA=1\nexport B\nC: hunter2\n- D=hunter2\nE hunter2\nhunter2/x\n  F : x=1\n";
        let found = parse(text, environment);
        assert_eq!(found.skipped, Some(SkippedLines { count: 5, first: 5 }));
        let named: Vec<_> =
            found.malformed.iter().map(|entry| (entry.name.as_str(), entry.line, entry.why)).collect();
        let why = "is not followed by =";
        assert_eq!(named, [("C", 5, why), ("E", 7, why), ("F", 9, why)]);
        assert_eq!(parse("A=1\nB\n", environment).skipped, None);
    }

    #[test]
    fn a_reference_is_replaced_from_the_environment_or_the_latest_entry() {
        let expected = [("A", "1"), ("A", "2"), ("B", "2"), ("OUTSIDE", "in"), ("C", "out")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(entries("A=1\nA=2\nB=${A}\nOUTSIDE=in\nC=${OUTSIDE}"), expected);
    }

    #[test]
    fn a_malformed_line_is_reported_and_the_rest_is_read() {
        let text = "A=\"x\ny\"\nBAD=one two\nB='open\nC=\"a\"b\nD=\"\\x\"\nE=\"never closed\nF=6\n";
        let found = parse(text, environment);
        let malformed: Vec<_> =
            found.malformed.iter().map(|entry| (entry.name.as_str(), entry.line)).collect();
        assert_eq!(malformed, [("BAD", 3), ("B", 4), ("C", 5), ("D", 6), ("E", 7)]);
        assert_eq!(found.malformed[4].why, "a quote is not closed");
        let read: Vec<_> = found.entries.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(read, ["A", "F"]);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in "\\PC{0,80}") {
            parse(&text, environment);
        }

        #[test]
        fn any_text_of_the_syntax_is_parsed_without_a_panic(text in "(A|=|\"|'|\\\\|\\$\\{|\\}|#| |\n|\r|é|\u{feff}){0,40}") {
            parse(&text, environment);
        }

        #[test]
        fn a_single_quoted_value_is_literal(value in "[^'\r\n]{0,40}") {
            prop_assert_eq!(entries(&format!("A='{value}'\nB=1")), [
                ("A".to_owned(), value),
                ("B".to_owned(), "1".to_owned()),
            ]);
        }
    }
}
