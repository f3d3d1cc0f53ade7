//! The Markdown pages of the repository, and what is on them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// Directories without pages of ours.
const OTHERS: [&str; 3] = [".git", "target", "node_modules"];

/// The directory of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file of the repository.
pub fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The files of the repository with one of these extensions, by their path in it, in order.
pub fn files(extensions: &[&str]) -> Vec<String> {
    let mut files = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root().join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                if !OTHERS.iter().any(|name| path.ends_with(name)) {
                    directories.push(path);
                }
            } else if extensions.iter().any(|wanted| path.extension().is_some_and(|found| found == *wanted)) {
                files.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

/// Every page.
pub fn pages() -> Vec<Page> {
    files(&["md"]).into_iter().map(|name| Page { text: read(&name), name }).collect()
}

/// A Markdown page.
pub struct Page {
    /// Its path in the repository.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// A code block between fences.
pub struct Block {
    /// What stands behind the fence.
    pub language: String,
    /// The line of the fence.
    pub line: usize,
    pub text: String,
}

impl Page {
    pub fn new(name: &str, text: &str) -> Self {
        Self { name: name.to_owned(), text: text.to_owned() }
    }

    fn events(&self) -> impl Iterator<Item = (Event<'_>, std::ops::Range<usize>)> {
        Parser::new_ext(&self.text, Options::ENABLE_TABLES).into_offset_iter()
    }

    fn line_of(&self, offset: usize) -> usize {
        self.text[..offset].matches('\n').count() + 1
    }

    /// The code blocks. One that is only indented has no language.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut open = false;
        for (event, range) in self.events() {
            match event {
                Event::Start(Tag::CodeBlock(kind)) => {
                    let language = match kind {
                        CodeBlockKind::Fenced(language) => language.into_string(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    blocks.push(Block { language, line: self.line_of(range.start), text: String::new() });
                    open = true;
                }
                Event::End(TagEnd::CodeBlock) => open = false,
                Event::Text(text) if open => blocks.last_mut().unwrap().text.push_str(&text),
                _ => {}
            }
        }
        blocks
    }

    /// What the page links to and shows as pictures, each with its line.
    pub fn links(&self) -> Vec<(usize, String)> {
        let links = self.events().filter_map(|(event, range)| match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                Some((self.line_of(range.start), dest_url.into_string()))
            }
            _ => None,
        });
        links.collect()
    }

    /// What stands as code within its sentences.
    pub fn codes(&self) -> Vec<String> {
        let codes = self.events().filter_map(|(event, _)| match event {
            Event::Code(code) => Some(code.into_string()),
            _ => None,
        });
        codes.collect()
    }

    /// The names by which links reach places of the page: of headings, as GitHub and mdBook make them, and of HTML.
    pub fn anchors(&self) -> BTreeSet<String> {
        let mut anchors = BTreeSet::new();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut heading: Option<String> = None;
        for (event, _) in self.events() {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::End(TagEnd::Heading(_)) => {
                    let slug = slug(&heading.take().unwrap());
                    let times = seen.entry(slug.clone()).and_modify(|times| *times += 1).or_default();
                    anchors.insert(if *times == 0 { slug } else { format!("{slug}-{times}") });
                }
                Event::Html(html) | Event::InlineHtml(html) => {
                    let ids = html.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next());
                    anchors.extend(ids.map(str::to_owned));
                }
                _ => {}
            }
        }
        anchors
    }
}

/// The name of a heading.
fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).flat_map(char::to_lowercase).collect()
}

#[test]
fn headings_are_named_as_github_names_them() {
    let page = Page::new(
        "page.md",
        "# What `serve` does\n## 2.7 Codes, and why\n## Same\n## Same\n<a id=\"own\"></a>\n### What's new?\n",
    );
    let anchors: Vec<_> = page.anchors().into_iter().collect();
    assert_eq!(anchors, ["27-codes-and-why", "own", "same", "same-1", "what-serve-does", "whats-new"]);
}

#[test]
fn every_page_is_looked_at() {
    let names: Vec<_> = pages().into_iter().map(|page| page.name).collect();
    for name in [
        "README.md",
        "CONTRIBUTING.md",
        "docs/protocol.md",
        "tests/CONFORMANCE.md",
        "examples/chat/README.md",
    ] {
        assert!(names.iter().any(|found| found == name), "{name} is not among {names:?}");
    }
}
