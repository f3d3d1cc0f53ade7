//! Where settings are read from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The configuration file in the working directory, read if no other file is named.
pub(super) const LOCAL_FILE: &str = "config/pusherd.toml";

/// The configuration file that is read if [`LOCAL_FILE`] does not exist.
const SYSTEM_FILE: &str = "/etc/pusherd/pusherd.toml";

/// The directory of dead letters if it exists and neither a setting nor systemd names another.
const STATE_DIRECTORY: &str = "/var/lib/pusherd";

/// The `.env` file in the working directory, read if no other file is named.
pub(super) const DOTENV_FILE: &str = ".env";

/// Where settings are read from. Not `Debug`, because variables hold secrets.
pub struct Sources {
    /// Values of flags, by flag (`--port`).
    pub flags: BTreeMap<&'static str, String>,
    /// The configuration file that the command line names.
    pub config: Option<PathBuf>,
    /// The `.env` file that the command line names.
    pub env_file: Option<PathBuf>,
    /// Whether to open the files that settings name: certificates and the file of dead letters. Only `serve` and
    /// `config` need them; the other commands work without permission to read the key, and while the files are invalid.
    pub opens_files: bool,
    /// The variables of the process.
    pub(super) environment: Vec<(OsString, OsString)>,
    /// The working directory, from which relative paths start.
    pub(super) directory: PathBuf,
    /// [`SYSTEM_FILE`].
    pub(super) system_file: PathBuf,
    /// [`STATE_DIRECTORY`].
    pub(super) state_directory: PathBuf,
}

impl Sources {
    /// The environment and the working directory of this process, without flags.
    #[must_use]
    pub fn from_process() -> Self {
        Self::new(std::env::vars_os(), PathBuf::new())
    }

    /// This environment and this working directory, without flags.
    #[must_use]
    pub fn new(environment: impl IntoIterator<Item = (OsString, OsString)>, directory: PathBuf) -> Self {
        Self {
            flags: BTreeMap::new(),
            config: None,
            env_file: None,
            opens_files: true,
            environment: environment.into_iter().collect(),
            directory,
            system_file: PathBuf::from(SYSTEM_FILE),
            state_directory: PathBuf::from(STATE_DIRECTORY),
        }
    }

    /// The file that was named, else the first of `defaults` that exists.
    pub(super) fn find<'p>(&'p self, named: Option<&'p Path>, defaults: &[&'p Path]) -> Option<&'p Path> {
        // A file whose existence cannot be checked is read, so that the error is reported.
        let exists = |path: &&&Path| self.directory.join(path).try_exists().unwrap_or(true);
        named.or_else(|| defaults.iter().find(exists).copied())
    }
}
