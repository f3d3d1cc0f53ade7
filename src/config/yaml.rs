//! Limits the expanded size of YAML before it is parsed into values. Pure.
//!
//! An alias (`*name`) is replaced with a copy of the node that its anchor (`&name`) marks. A few lines of aliases to aliases
//! can exhaust the memory, and deep nesting the stack.

use std::collections::HashMap;

use yaml_rust2::parser::{Event, Parser};

/// The depth limit, the same as for JSON.
const DEPTH_MAX: usize = 128;

/// Checks that `text` has at most `bytes_max` bytes with its aliases expanded. Invalid YAML passes: the parser reports it.
pub(super) fn check(text: &str, bytes_max: u64) -> Result<(), String> {
    let mut parser = Parser::new_from_str(text);
    let mut written = 0;
    // For each open list and table: its anchor, and the size before it.
    let mut open: Vec<(usize, u64)> = Vec::new();
    let mut sizes: HashMap<usize, u64> = HashMap::new();
    while let Ok((event, _)) = parser.next_token() {
        match event {
            Event::Scalar(text, _, anchor, _) => {
                let size = 1 + text.len() as u64;
                sizes.insert(anchor, size);
                written += size;
            }
            // An alias within its own anchor is not defined yet, and counts nothing.
            Event::Alias(anchor) => written += 1 + sizes.get(&anchor).copied().unwrap_or_default(),
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                open.push((anchor, written));
                written += 1;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some((anchor, before)) = open.pop() {
                    sizes.insert(anchor, written - before);
                }
            }
            Event::Nothing | Event::StreamStart | Event::DocumentStart | Event::DocumentEnd => {}
            Event::StreamEnd => break,
        }
        if open.len() > DEPTH_MAX {
            return Err(format!("is nested deeper than {DEPTH_MAX}"));
        }
        if written > bytes_max {
            return Err(format!("is larger than {} KiB with its aliases written out", bytes_max / 1024));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_aliases_are_limited_by_their_expanded_size() {
        let mut bomb = "a0: &a0 [lol, lol, lol]\n".to_owned();
        for at in 1..30 {
            bomb += &format!("a{at}: &a{at} [{}]\n", vec![format!("*a{}", at - 1); 9].join(", "));
        }
        let long = format!("a: &a {}\nb: [{}]", "x".repeat(1000), vec!["*a"; 2000].join(","));
        for text in [&bomb, &long, &format!("{bomb}: [")] {
            assert_eq!(
                check(text, 1024 * 1024).unwrap_err(),
                "is larger than 1024 KiB with its aliases written out"
            );
        }
    }

    #[test]
    fn deep_nesting_is_rejected() {
        let brackets = "[".repeat(200) + &"]".repeat(200);
        for text in ["- ".repeat(100_000) + "x", "? ".repeat(100_000), brackets] {
            assert_eq!(check(&text, 1024 * 1024).unwrap_err(), "is nested deeper than 128");
        }
    }

    #[test]
    fn usual_files_are_accepted() {
        let apps = "limits: &limits\n  presence_members: 5\napps:\n- id: '1'\n  limits: *limits\n- id: '2'\n  limits: *limits\n";
        for text in ["", "a", apps, "a: &a [*a]", "a: *none", "a: [", "a: 1\n---\nb: 2", &"[".repeat(100)] {
            assert_eq!(check(text, 1024), Ok(()), "{text}");
        }
    }
}
