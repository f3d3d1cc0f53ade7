//! Where a value came from, and what is wrong with it.

use std::fmt;
use std::sync::Arc;

use super::advice::Advice;

/// Where a value was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// Nowhere: it is built in.
    Default,
    /// In the configuration file of this name.
    File(Arc<str>),
    /// In a variable, of the process or of the `.env` file of this name.
    Variable {
        /// The `.env` file; `None`: the environment of the process.
        dotenv: Option<Arc<str>>,
        /// The variable's name.
        name: Arc<str>,
    },
    /// On the command line, by this flag.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(name) => f.write_str(name),
            Self::Variable { dotenv: Some(file), name } => write!(f, "{file}: {name}"),
            Self::Variable { dotenv: None, name } => write!(f, "environment: {name}"),
            Self::Flag(flag) => write!(f, "command line: {flag}"),
        }
    }
}

impl Source {
    /// Whether it is a variable whose name begins with `prefix`.
    pub(super) fn is_variable_of(&self, prefix: &str) -> bool {
        match self {
            Self::Variable { name, .. } => name.starts_with(prefix),
            Self::Default | Self::File(_) | Self::Flag(_) => false,
        }
    }

    /// The name of the variable that it is; empty: it is none.
    pub(super) fn variable(&self) -> &str {
        match self {
            Self::Variable { name, .. } => name,
            Self::Default | Self::File(_) | Self::Flag(_) => "",
        }
    }

    /// Whether it is a variable that was written for another server, or for the application.
    pub(super) fn is_of_others(&self) -> bool {
        matches!(self, Self::Variable { .. }) && !self.is_variable_of(super::variables::SERVER_PREFIX)
    }

    /// `source: key`, where `key` is the path in a file; a variable and a flag are their own key.
    pub(super) fn at(&self, key: &str) -> String {
        match self {
            Self::Default | Self::File(_) if !key.is_empty() => format!("{self}: {}", key.escape_debug()),
            Self::Default | Self::File(_) | Self::Variable { .. } | Self::Flag(_) => self.to_string(),
        }
    }
}

/// Everything that is wrong with a configuration, each as `source: key: what`, and beside it what is only remarkable.
/// Never holds a secret.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Problems {
    problems: Vec<String>,
    remarks: Vec<String>,
}

impl Problems {
    pub(super) fn add(&mut self, source: &Source, key: &str, what: impl fmt::Display) {
        self.problems.push(format!("{}: {what}", source.at(key)));
    }

    /// Notes what works, but was hardly meant.
    pub(super) fn remark(&mut self, source: &Source, key: &str, what: impl fmt::Display) {
        self.remarks.push(format!("{}: {what}", source.at(key)));
    }

    /// What was noted, in the order of the sources.
    pub(super) fn remarks(self) -> impl Iterator<Item = Advice> {
        self.remarks.into_iter().map(|text| Advice { loud: false, text })
    }

    /// The problems, in the order of the sources.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.problems.iter().map(String::as_str)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.problems.len() == 1 { "problem" } else { "problems" };
        writeln!(f, "{} {noun} in the configuration", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "  {problem}"))
    }
}

impl std::error::Error for Problems {}

/// The one of `known` that whoever wrote `word` most likely meant.
pub(super) fn closest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    // A key at the wrong depth is right but for its path; else two letters may differ, three in long words.
    let far = if word.len() > 8 { 3 } else { 2 };
    known
        .map(|key| (if last(key) == last(word) { 0 } else { distance(word, key) }, key))
        .filter(|(distance, _)| *distance <= far && *distance * 2 <= word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, key)| key)
}

/// How many letters must be put in, taken out or exchanged (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_ascii_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_ascii_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let exchanged = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = exchanged.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_its_source_once_and_its_key() {
        let mut problems = Problems::default();
        problems.add(&Source::File("p.toml".into()), "server.port", "must be a number");
        let name: Arc<str> = "PUSHERD_PORT".into();
        problems.add(&Source::Variable { dotenv: None, name: name.clone() }, "server.port", "no");
        problems.add(&Source::Variable { dotenv: Some(".env".into()), name }, "server.port", "no");
        problems.add(&Source::Flag("--port"), "server.port", "no");
        assert_eq!(
            problems.to_string(),
            "4 problems in the configuration\n  p.toml: server.port: must be a number\n  \
             environment: PUSHERD_PORT: no\n  .env: PUSHERD_PORT: no\n  command line: --port: no\n"
        );
    }

    #[test]
    fn the_closest_key_is_a_typo_or_the_wrong_depth_away() {
        let known = ["host", "port", "limits.presence_members", "drain_secs"];
        let table = [
            ("prot", Some("port")),
            ("presence_members", Some("limits.presence_members")),
            ("server.drain_secs", Some("drain_secs")),
            ("drain_sec", Some("drain_secs")),
            ("Host", Some("host")),
            ("tls", None),
            ("x", None),
            ("", None),
        ];
        for (word, expected) in table {
            assert_eq!(closest(word, known.into_iter()), expected, "{word}");
        }
    }
}
