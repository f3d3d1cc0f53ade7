//! The changelog has the form of keepachangelog.com, and a section for this version.

use super::pages::read;

const KINDS: [&str; 6] = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];

/// The versions of a changelog, in its order; what is wrong with it instead.
fn versions(text: &str) -> Result<Vec<&str>, String> {
    let mut versions = Vec::new();
    let mut kinds: Vec<usize> = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let (version, date) = heading.split_once(" - ").unwrap_or((heading, "unreleased"));
            let version = version.trim_matches(['[', ']']);
            let is_date = date.len() == 10 && date.split('-').all(|part| part.parse::<u16>().is_ok());
            if !is_date && date != "unreleased" {
                return Err(format!("{heading}: {date} is no date"));
            }
            versions.push(version);
            kinds.clear();
        } else if let Some(kind) = line.strip_prefix("### ") {
            let place =
                KINDS.iter().position(|known| *known == kind).ok_or_else(|| format!("{kind} is no kind"))?;
            if kinds.contains(&place) {
                return Err(format!("{kind} stands twice in a version"));
            }
            kinds.push(place);
        }
    }
    let numbers =
        |version: &str| version.split('.').map(|part| part.parse().unwrap_or(u32::MAX)).collect::<Vec<_>>();
    match versions.windows(2).find(|pair| numbers(pair[0]) <= numbers(pair[1])) {
        Some(pair) => Err(format!("{} stands before {}", pair[0], pair[1])),
        None => Ok(versions),
    }
}

#[test]
fn the_changelog_has_this_version_and_its_form() {
    let text = read("CHANGELOG.md");
    let versions = versions(&text).unwrap();
    assert!(versions.contains(&env!("CARGO_PKG_VERSION")), "{versions:?}");
}

#[test]
fn every_manifest_and_lock_file_has_this_version() {
    let version = format!("version = \"{}\"", env!("CARGO_PKG_VERSION"));
    for (file, name) in
        [("fuzz/Cargo.lock", "pusherd"), ("load/Cargo.lock", "pusherload"), ("load/Cargo.toml", "pusherload")]
    {
        let text = read(file);
        let mut lines = text.lines().skip_while(|line| *line != format!("name = \"{name}\""));
        assert_eq!(lines.nth(1), Some(version.as_str()), "{file}");
    }
}

#[test]
fn a_changelog_of_another_form_is_found() {
    assert_eq!(
        versions("# C\n## 0.2.0 - unreleased\n### Added\n### Fixed\n## 0.1.0 - 2026-11-22\n"),
        Ok(vec!["0.2.0", "0.1.0"])
    );
    for (wrong, why) in [
        ("## 0.1.0 - 2026-11-22\n## 0.2.0 - unreleased\n", "0.1.0 stands before 0.2.0"),
        ("## 0.1.0 - soon\n", "0.1.0 - soon: soon is no date"),
        ("## 0.1.0\n### News\n", "News is no kind"),
        ("## 0.1.0\n### Added\n### Added\n", "Added stands twice in a version"),
    ] {
        assert_eq!(versions(wrong), Err(why.to_owned()));
    }
}
