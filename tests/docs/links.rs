//! Links within the repository lead somewhere.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::pages::{Page, pages, root};

/// What is wrong with a link from the page `from`. Other hosts are not asked.
fn fault(from: &Page, to: &str, pages: &BTreeMap<&str, &Page>) -> Option<String> {
    if ["https://", "http://", "mailto:"].iter().any(|scheme| to.starts_with(scheme)) {
        return None;
    }
    let (path, anchor) = to.split_once('#').map_or((to, None), |(path, anchor)| (path, Some(anchor)));
    if path.starts_with('/') {
        return Some("starts at the root of a site; say it from the page on".to_owned());
    }
    let target = if path.is_empty() {
        PathBuf::from(&from.name)
    } else {
        let Some(target) = resolved(&Path::new(&from.name).with_file_name(path)) else {
            return Some("leaves the repository".to_owned());
        };
        target
    };
    if !root().join(&target).exists() && target != Path::new(&from.name) {
        return Some(format!("there is no {}", target.display()));
    }
    let anchor = anchor?;
    let name = target.to_str().unwrap();
    let page = if name == from.name { Some(&from) } else { pages.get(name) };
    match page {
        Some(page) if page.anchors().contains(anchor) => None,
        Some(_) => Some(format!("{name} has no heading #{anchor}")),
        None => Some(format!("{name} is not a page and has no #{anchor}")),
    }
}

/// A path without `..`; `None` if it leaves the repository.
fn resolved(path: &Path) -> Option<PathBuf> {
    let mut resolved = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir if !resolved.pop() => return None,
            Component::ParentDir | Component::CurDir => {}
            Component::Normal(name) => resolved.push(name),
            Component::Prefix(_) | Component::RootDir => return None,
        }
    }
    Some(resolved)
}

#[test]
fn every_link_within_the_repository_leads_somewhere() {
    let pages = pages();
    let by_name: BTreeMap<_, _> = pages.iter().map(|page| (page.name.as_str(), page)).collect();
    let mut wrong = Vec::new();
    for page in &pages {
        for (line, to) in page.links() {
            wrong.extend(fault(page, &to, &by_name).map(|why| format!("{}:{line}: {to}: {why}", page.name)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_page_under_docs_is_a_chapter_of_the_book_once() {
    let pages = pages();
    let contents = pages.iter().find(|page| page.name == "docs/SUMMARY.md").unwrap();
    let mut chapters: Vec<_> = contents.links().into_iter().map(|(_, to)| format!("docs/{to}")).collect();
    let names = pages.iter().map(|page| page.name.clone());
    let names: Vec<_> = names.filter(|name| name.starts_with("docs/") && *name != contents.name).collect();
    chapters.sort();
    assert_eq!(chapters, names);
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let other = Page::new("docs/other.md", "# There\n");
    let pages = BTreeMap::from([("docs/other.md", &other)]);
    let from = Page::new("docs/page.md", "# Here\n");
    let fault = |to| fault(&from, to, &pages);
    for right in
        ["#here", "page.md#here", "../README.md", "../src/lib.rs", "../tests", "https://example.com/x#y"]
    {
        assert_eq!(fault(right), None, "{right}");
    }
    for (wrong, why) in [
        ("#nowhere", "docs/page.md has no heading #nowhere"),
        ("../README.md#here", "README.md is not a page and has no #here"),
        ("nothing.md", "there is no docs/nothing.md"),
        ("../docs/nothing/../none.md", "there is no docs/none.md"),
        ("../../outside.md", "leaves the repository"),
        ("/docs/page.md", "starts at the root of a site; say it from the page on"),
        ("../src/lib.rs#L1", "src/lib.rs is not a page and has no #L1"),
    ] {
        assert_eq!(fault(wrong).as_deref(), Some(why), "{wrong}");
    }
}

#[test]
fn links_are_found_wherever_they_stand() {
    let page = Page::new(
        "page.md",
        "[a](one) `[no](code)`\n\n| x |\n|---|\n| [b](two) |\n\n- ![c](three.svg)\n\n[d][e]\n\n[e]: four\n",
    );
    assert_eq!(
        page.links(),
        [(1, "one".to_owned()), (5, "two".to_owned()), (7, "three.svg".to_owned()), (9, "four".to_owned())]
    );
}
