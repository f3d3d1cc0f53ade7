//! Lines of pusherd that pages quote are those that the source writes.
//!
//! Looked at are log lines, warnings, problems and the banner in `console` blocks, and code in sentences that begins with
//! a level. A message must match a string of `src/`. What is interpolated may be anything.

use super::pages::{files, pages, read, root};

/// Levels, as they stand at the beginning of a log line.
const LEVELS: [&str; 4] = ["DEBUG ", "INFO ", "WARN ", "ERROR "];

/// Rows of the banner that are sentences.
const BANNER: [&str; 3] = ["address", "note", "clients"];

/// Code that begins with a level and is a command of Redis.
const OF_REDIS: &str = "INFO commandstats";

/// Strings with less text of their own match too much, unless they are the whole message.
const FIXED_BYTES_MIN: usize = 12;

/// A string of the source: the pieces between what is interpolated.
struct Literal {
    pieces: Vec<String>,
}

impl Literal {
    fn new(text: &str) -> Self {
        let mut pieces = vec![String::new()];
        let mut characters = text.trim_end_matches('\n').chars();
        while let Some(c) = characters.next() {
            let is_doubled = matches!(c, '{' | '}') && characters.clone().next() == Some(c);
            if is_doubled {
                characters.next();
            }
            if c == '{' && !is_doubled {
                while characters.next().is_some_and(|c| c != '}') {}
                pieces.push(String::new());
            } else {
                pieces.last_mut().unwrap().push(c);
            }
        }
        Self { pieces }
    }

    /// Whether this string wrote the message. In front of it may stand what it is about: `.env: NAME: `.
    fn wrote(&self, message: &str) -> bool {
        let [first, others @ ..] = &self.pieces[..] else { return false };
        // A quote may be cut.
        if let Some(start) = message.strip_suffix('…') {
            return start.len() >= FIXED_BYTES_MIN && first.starts_with(start.trim_end());
        }
        if others.is_empty() && message == first {
            return true;
        }
        if self.pieces.iter().map(String::len).sum::<usize>() < FIXED_BYTES_MIN {
            return false;
        }
        let behind_first = message
            .strip_prefix(first.as_str())
            .or_else(|| message.split_once(&format!(": {first}")).map(|(_, rest)| rest));
        let Some(mut rest) = behind_first else { return false };
        let Some((last, middle)) = others.split_last() else { return rest.is_empty() };
        for piece in middle {
            let Some((_, after)) = rest.split_once(piece.as_str()) else { return false };
            rest = after;
        }
        rest.ends_with(last.as_str())
    }
}

/// The strings in Rust code, without those of its tests and comments.
fn literals(code: &str) -> Vec<Literal> {
    let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut literals = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find(['"', '/', '\'']) {
        let (before, here) = rest.split_at(at);
        rest = &here[1..];
        match here.as_bytes()[0] {
            b'/' if rest.starts_with('/') => rest = rest.split_once('\n').map_or("", |(_, after)| after),
            // A character; the others are lifetimes.
            b'\'' => {
                let quoted =
                    ["\\\"'", "\"'", "\\''", "\\\\'"].iter().find_map(|text| rest.strip_prefix(text));
                rest = quoted.unwrap_or(rest);
            }
            b'"' => {
                let hashes = before.len() - before.trim_end_matches('#').len();
                if before[..before.len() - hashes].ends_with('r') {
                    let (text, after) = rest.split_once(&format!("\"{}", "#".repeat(hashes))).unwrap();
                    literals.extend(text.lines().map(|line| Literal::new(line.trim())));
                    rest = after;
                } else {
                    let (text, after) = string(rest);
                    literals.push(Literal::new(&text));
                    rest = after;
                }
            }
            _ => {}
        }
    }
    literals
}

/// The text of a string behind its opening quote, and the code behind its closing one.
fn string(code: &str) -> (String, &str) {
    let mut text = String::new();
    let mut characters = code.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (text, &code[at + 1..]),
            '\\' => match characters.next().unwrap().1 {
                'n' => text.push('\n'),
                '\n' => {
                    let next = characters.clone().find(|(_, c)| !c.is_whitespace()).unwrap().0;
                    while characters.clone().next().is_some_and(|(at, _)| at < next) {
                        characters.next();
                    }
                }
                c => text.push(c),
            },
            c => text.push(c),
        }
    }
    panic!("a string does not end: {code}");
}

/// What a log line says: without its time, level, target and fields. `Err` if its target is no module.
fn message(line: &str) -> Result<Option<&str>, String> {
    let line =
        line.split_once("Z ").map_or(line, |(time, rest)| if time.contains('T') { rest } else { line });
    let Some(rest) = LEVELS.iter().find_map(|level| line.trim_start().strip_prefix(level)) else {
        return Ok(None);
    };
    let mut rest = rest.trim_start();
    if let Some((target, after)) = rest.split_once(": ").filter(|(target, _)| target.starts_with("pusherd::"))
    {
        let file = target.replace("pusherd::", "src/").replace("::", "/");
        if !["pusherd::listening"].contains(&target)
            && ![format!("{file}.rs"), format!("{file}/mod.rs")]
                .iter()
                .any(|file| root().join(file).is_file())
        {
            return Err(format!("there is no module {target}"));
        }
        rest = after;
    }
    let is_field = |word: &str| {
        word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        })
    };
    let fields = rest.match_indices(' ').find(|(at, _)| is_field(&rest[at + 1..]));
    Ok(Some(fields.map_or(rest, |(at, _)| &rest[..at])))
}

/// The messages of pusherd in a session.
fn messages(session: &str) -> Result<Vec<&str>, String> {
    let mut messages = Vec::new();
    let mut is_problem = false;
    for line in session.lines() {
        let row = line.trim_start();
        is_problem &= line.starts_with("  ");
        if let Some(text) = line.strip_prefix("pusherd: ") {
            messages.push(text.strip_prefix("warning: ").unwrap_or(text));
            is_problem = text.ends_with(" in the configuration");
        } else if line.starts_with("valid: ") || (is_problem && line.starts_with("  ")) {
            messages.push(row);
        } else if let Some(text) = BANNER.iter().find_map(|name| row.strip_prefix(name))
            && line.starts_with("  ")
        {
            messages.push(text.trim_start());
        } else {
            messages.extend(message(line)?);
        }
    }
    Ok(messages)
}

/// All strings of the source.
fn source() -> Vec<Literal> {
    let is_source =
        |file: &String| file.starts_with("src/") && !file.ends_with("/tests.rs") && !file.contains("/tests/");
    files(&["rs"]).into_iter().filter(is_source).flat_map(|file| literals(&read(&file))).collect()
}

#[test]
fn every_line_of_pusherd_that_a_page_quotes_is_in_the_source() {
    let source = source();
    let (mut wrong, mut count) = (Vec::new(), 0);
    for page in pages() {
        // What was once logged stays in the list of changes.
        if page.name == "CHANGELOG.md" {
            continue;
        }
        let blocks = page.blocks();
        let sessions =
            blocks.iter().filter(|block| block.language == "console").map(|block| block.text.clone());
        let codes =
            page.codes().into_iter().filter(|code| LEVELS.iter().any(|level| code.starts_with(level)));
        for quote in sessions.chain(codes.filter(|code| code != OF_REDIS)) {
            match messages(&quote) {
                Err(why) => wrong.push(format!("{}: {why}", page.name)),
                Ok(messages) => {
                    count += messages.len();
                    let missing =
                        messages.into_iter().filter(|text| !source.iter().any(|one| one.wrote(text)));
                    wrong.extend(missing.map(|text| format!("{}: nothing writes: {text}", page.name)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 20, "{count} lines");
}

#[test]
fn messages_are_found_in_a_session() {
    let session = "$ pusherd config check\n\
                   pusherd: warning: .env: A: is b\n\
                   pusherd: 1 problem in the configuration\n  x.json: is wrong\n\
                   valid: 1 app on 0.0.0.0:8080; read: .env\n\
                   2026-11-30T22:45:33.439923Z  WARN pusherd::hub: event published app=app-id subscribers=0\n\
                   INFO set PUSHERD_PORT=1 count=2\n\
                   \x20 address  listening on 1\n\
                   \x20 apps     app-id, key app-key\n";
    let expected = [
        ".env: A: is b",
        "1 problem in the configuration",
        "x.json: is wrong",
        "valid: 1 app on 0.0.0.0:8080; read: .env",
        "event published",
        "set PUSHERD_PORT=1",
        "listening on 1",
    ];
    assert_eq!(messages(session), Ok(expected.to_vec()));
    assert_eq!(messages("WARN pusherd::none: stopped"), Err("there is no module pusherd::none".to_owned()));
}

#[test]
fn messages_match_the_strings_that_wrote_them() {
    let code = "// \"a comment of some length\"\nlet c = '\"'; fn f<'a>() { g(\"clients connect to {}, but not \\\n    \
                to {port:?}: {{{}}}\") } h(r#\"a \"raw\" string of text\"#); i(\"stopped\", \"{}: {}\");\n\
                #[cfg(test)]\nmod tests {\n\"only the tests say this\"";
    let literals = literals(code);
    for (text, is_written) in [
        ("clients connect to a:1, but not to 2: {3}", true),
        (".env: NAME: clients connect to a:1, but not to 2: {3}", true),
        ("clients connect to a:1…", false),
        ("clients connect…", true),
        ("clients are told to connect to a:1, but not to 2: {3}", false),
        ("clients connect to a:1, but not to 2: {3} again", false),
        ("a \"raw\" string of text", true),
        ("stopped", true),
        ("it stopped", false),
        ("a: b", false),
        ("a comment of some length", false),
        ("only the tests say this", false),
    ] {
        assert_eq!(literals.iter().any(|literal| literal.wrote(text)), is_written, "{text}");
    }
}
