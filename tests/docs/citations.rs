//! Comments that cite the wire specification, `protocol.md §4.2`, cite a section that it has.

use std::collections::BTreeSet;

use super::pages::{files, read};

/// The sections of the specification: the numbers that its headings begin with.
fn sections() -> BTreeSet<String> {
    let page = read("docs/protocol.md");
    let headings = page.lines().filter_map(|line| line.strip_prefix("## ").or(line.strip_prefix("### ")));
    headings.map(|heading| heading.split(' ').next().unwrap().trim_end_matches('.').to_owned()).collect()
}

/// The number at the start of a text, `4` or `4.2`, and what follows it.
fn number(text: &str) -> Option<(&str, &str)> {
    let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let mut end = digits(text);
    if end == 0 {
        return None;
    }
    if let Some(rest) = text[end..].strip_prefix('.') {
        let more = digits(rest);
        end += if more == 0 { 0 } else { 1 + more };
    }
    Some((&text[..end], &text[end..]))
}

/// The sections that a text cites from its start on: `§1.4 (8), §2.7 and §8.10`, `§§2-6`, `§4.1 to §4.4`.
fn cited(text: &str) -> Vec<&str> {
    let mut sections = Vec::new();
    let mut rest = text.trim_start();
    while let Some((section, after)) =
        rest.strip_prefix('§').and_then(|rest| number(rest.trim_start_matches('§')))
    {
        sections.push(section);
        rest = after;
        if let Some((section, after)) = rest.strip_prefix('-').and_then(number) {
            sections.push(section);
            rest = after;
        }
        if let Some((_, after)) = rest.strip_prefix(" (").and_then(|rest| rest.split_once(')')) {
            rest = after;
        }
        rest = [", ", " and ", " to "].iter().find_map(|joint| rest.strip_prefix(joint)).unwrap_or(rest);
    }
    sections
}

/// The code with comments of several lines made one.
fn joined(code: &str) -> String {
    let lines = code.lines().map(|line| {
        let line = line.trim_start();
        ["//! ", "/// ", "// "].iter().find_map(|mark| line.strip_prefix(mark)).unwrap_or(line)
    });
    lines.collect::<Vec<_>>().join(" ")
}

#[test]
fn every_section_that_the_code_cites_is_in_the_specification() {
    let sections = sections();
    let (mut wrong, mut count) = (Vec::new(), 0);
    // Not this file, whose examples are none.
    for file in files(&["rs"]).into_iter().filter(|file| !file.starts_with("tests/docs")) {
        let code = joined(&read(&file));
        for (at, name) in code.match_indices("protocol.md") {
            // The page itself is named, or the form of a citation.
            if code[..at].ends_with("docs/") || code[at..].starts_with("protocol.md §…") {
                continue;
            }
            let cited = cited(&code[at + name.len()..]);
            if cited.is_empty() {
                wrong.push(format!("{file}: protocol.md is cited without a section"));
            }
            let missing = cited.iter().filter(|section| !sections.contains(**section));
            wrong.extend(missing.map(|section| format!("{file}: protocol.md has no §{section}")));
            count += cited.len();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 60, "only {count} sections are cited");
}

#[test]
fn every_section_that_the_specification_and_the_page_of_conformance_name_is_there() {
    let sections = sections();
    for page in ["docs/protocol.md", "tests/CONFORMANCE.md"] {
        let text = read(page);
        let named = text.match_indices('§').filter(|(at, _)| !text[..*at].ends_with('§'));
        for section in named.flat_map(|(at, _)| cited(&text[at..])) {
            assert!(sections.contains(section), "{page}: there is no §{section}");
        }
    }
}

#[test]
fn sections_are_numbered_without_a_gap() {
    let page = read("docs/protocol.md");
    let (mut chapter, mut section) = (None, 0);
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let next = chapter.map_or(0, |chapter: u32| chapter + 1);
            assert!(heading.starts_with(&format!("{next}. ")), "{heading}: it should be {next}");
            (chapter, section) = (Some(next), 0);
        } else if let Some(heading) = line.strip_prefix("### ") {
            section += 1;
            let number = format!("{}.{section} ", chapter.unwrap());
            assert!(heading.starts_with(&number), "{heading}: it should be {number}");
        }
    }
}

#[test]
fn citations_are_read_in_every_form() {
    for (text, sections) in [
        (" §2.7; 10xx: RFC 6455 §7.4.1.", vec!["2.7"]),
        (" §3.1 and §3.2; the alphabet", vec!["3.1", "3.2"]),
        (" §0 and §§2-6.", vec!["0", "2", "6"]),
        (" §1.4 (8), §2.7, §8.10.", vec!["1.4", "2.7", "8.10"]),
        (" §4.1 to §4.4", vec!["4.1", "4.4"]),
        (", which says §1", vec![]),
    ] {
        assert_eq!(cited(text), sections, "{text}");
    }
    assert_eq!(joined("//! Source: protocol.md §3,\n//! §4.1.\n    // x"), "Source: protocol.md §3, §4.1. x");
}
