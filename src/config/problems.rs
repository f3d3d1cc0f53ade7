//! Where a value was set, and the problems with it.

use std::fmt;
use std::sync::Arc;

use super::warnings::Warning;

/// Where a value was set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// It is a default.
    Default,
    /// In the configuration file of this name.
    File(Arc<str>),
    /// In a variable of the process or of a `.env` file.
    Variable {
        /// The name of the `.env` file; `None`: the environment of the process.
        dotenv: Option<Arc<str>>,
        /// The name of the variable.
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
    /// Whether this is a variable whose name begins with `prefix`.
    pub(super) fn has_variable_prefix(&self, prefix: &str) -> bool {
        match self {
            Self::Variable { name, .. } => name.starts_with(prefix),
            Self::Default | Self::File(_) | Self::Flag(_) => false,
        }
    }

    /// The name of the variable; empty for other sources.
    pub(super) fn variable(&self) -> &str {
        match self {
            Self::Variable { name, .. } => name,
            Self::Default | Self::File(_) | Self::Flag(_) => "",
        }
    }

    /// Whether this is a variable of another program: of another server or of the application.
    pub(super) fn is_foreign_variable(&self) -> bool {
        matches!(self, Self::Variable { .. }) && !self.has_variable_prefix(super::variables::SERVER_PREFIX)
    }

    /// `source: key`, where `key` is the path in a file. A variable and a flag need no key.
    pub(super) fn location(&self, key: &str) -> String {
        match self {
            Self::Default | Self::File(_) if !key.is_empty() => format!("{self}: {}", key.escape_debug()),
            Self::Default | Self::File(_) | Self::Variable { .. } | Self::Flag(_) => self.to_string(),
        }
    }
}

/// The problems of a configuration, each as `source: key: what`, and the warnings. They never contain a secret.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Problems {
    problems: Vec<String>,
    warnings: Vec<String>,
}

impl Problems {
    pub(super) fn add(&mut self, source: &Source, key: &str, what: impl fmt::Display) {
        self.problems.push(format!("{}: {what}", source.location(key)));
    }

    /// Adds a warning about a value that is valid but probably wrong.
    pub(super) fn warn(&mut self, source: &Source, key: &str, what: impl fmt::Display) {
        self.warnings.push(format!("{}: {what}", source.location(key)));
    }

    /// The warnings, in the order of the sources.
    pub(super) fn into_warnings(self) -> impl Iterator<Item = Warning> {
        self.warnings.into_iter().map(Warning::new)
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

/// The name in `known` that `word` is most likely a typo of.
pub(super) fn closest_name<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    // A key at the wrong depth has the right last part. Otherwise two letters may differ, three in long words.
    let distance_max = if word.len() > 8 { 3 } else { 2 };
    let distance = |key: &str| strsim::levenshtein(&word.to_ascii_lowercase(), &key.to_ascii_lowercase());
    known
        .map(|key| (if last(key) == last(word) { 0 } else { distance(key) }, key))
        .filter(|(distance, _)| *distance <= distance_max && *distance * 2 <= word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_its_source_and_its_key() {
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
    fn the_closest_name_differs_by_a_typo_or_by_its_depth() {
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
            assert_eq!(closest_name(word, known.into_iter()), expected, "{word}");
        }
    }
}
