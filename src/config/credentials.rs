//! Credentials in variables: chooses one family of variables and reports the others.
//!
//! A family is a set of variables that hold the id, key and secret of one app: pusherd's own, and those of the servers
//! that it replaces. The `.env` of a Laravel application often has several, because those of an earlier server stay in it.
//! `BROADCAST_CONNECTION` names the one that the application uses.
//!
//! Source: Laravel's `config/broadcasting.php` (`BROADCAST_CONNECTION`, before version 11 `BROADCAST_DRIVER`), Reverb's
//! `config/reverb.php`, Soketi's documentation; `PUSHER_URL`: `Pusher.url=` of pusher-http-ruby, `Pusher.forURL` of
//! pusher-http-node.

#[cfg(test)]
mod tests;

use std::path::Path;

use super::apps::{Located, Pair, check_id, check_key, check_secret};
use super::file;
use super::problems::{Problems, Source};
use super::pusher_url::PusherUrl;
use super::variables::{APP_PREFIX, Variables};
use crate::secret::Secret;

/// The server that a family of variables belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Owner {
    Pusherd,
    Pusher,
    Reverb,
    Soketi,
}

impl Owner {
    /// The owner of the Laravel driver that an application uses with this server.
    const fn driver(self) -> Self {
        match self {
            Self::Soketi => Self::Pusher,
            Self::Pusherd | Self::Pusher | Self::Reverb => self,
        }
    }
}

/// A family of variables that hold the credentials of one app.
#[derive(Debug)]
pub(super) struct Family {
    /// Its name in messages.
    pub(super) name: &'static str,
    owner: Owner,
    form: Form,
}

/// The form of a family.
#[derive(Debug)]
enum Form {
    /// `…ID`, `…KEY`, `…SECRET` or `…SECRET_FILE`, each after `prefix`. If the id is not set, the variable `borrowed_id`
    /// is the id.
    Parts { prefix: &'static str, borrowed_id: Option<&'static str> },
    /// One URL.
    Url(&'static str),
}

const fn parts(name: &'static str, prefix: &'static str, owner: Owner) -> Family {
    Family { name, owner, form: Form::Parts { prefix, borrowed_id: None } }
}

/// Holds all three credentials and the address of the server.
pub(super) const PUSHER_URL: &str = "PUSHER_URL";

/// All families. If nothing else decides, the first complete one is chosen.
static FAMILIES: [Family; 7] = [
    parts("PUSHERD_APP_…", APP_PREFIX, Owner::Pusherd),
    parts("PUSHER_APP_…", "PUSHER_APP_", Owner::Pusher),
    parts("REVERB_APP_…", "REVERB_APP_", Owner::Reverb),
    parts("SOKETI_DEFAULT_APP_…", "SOKETI_DEFAULT_APP_", Owner::Soketi),
    Family { name: PUSHER_URL, owner: Owner::Pusher, form: Form::Url(PUSHER_URL) },
    // Laravel before 5.4, and the SDKs of other languages.
    Family {
        name: "PUSHER_KEY and PUSHER_SECRET",
        owner: Owner::Pusher,
        form: Form::Parts { prefix: "PUSHER_", borrowed_id: Some("PUSHER_APP_ID") },
    },
    // Soketi before 1.0.
    parts("DEFAULT_APP_…", "DEFAULT_APP_", Owner::Soketi),
];

/// The suffixes of the variables of a family.
const PARTS: [&str; 4] = ["ID", "KEY", "SECRET", "SECRET_FILE"];

/// The names of all variables that hold credentials or choose between them.
pub(super) fn names() -> impl Iterator<Item = String> {
    let family_names = |family: &Family| match family.form {
        Form::Parts { prefix, .. } => PARTS.iter().map(|part| format!("{prefix}{part}")).collect(),
        Form::Url(name) => vec![name.to_owned()],
    };
    FAMILIES.iter().flat_map(family_names).chain(DRIVERS.map(str::to_owned))
}

/// The variables that name Laravel's driver. The first that is set is used.
const DRIVERS: [&str; 2] = ["BROADCAST_CONNECTION", "BROADCAST_DRIVER"];

/// The driver that the application broadcasts with.
#[derive(Debug)]
pub(super) struct Driver {
    name: &'static str,
    value: String,
    source: Source,
}

impl Driver {
    fn find(variables: &Variables) -> Option<Self> {
        DRIVERS.into_iter().find_map(|name| {
            // `null` is the name of a driver.
            let (value, source) = variables.raw_text(name)?;
            Some(Self { name, value, source })
        })
    }

    fn owner(&self) -> Option<Owner> {
        match self.value.as_str() {
            "pusher" => Some(Owner::Pusher),
            "reverb" => Some(Owner::Reverb),
            _ => None,
        }
    }

    /// The warning about a driver that does not publish to a Pusher server.
    pub(super) fn warning(&self) -> Option<String> {
        let Self { name, value, source } = self;
        ["log", "null", "redis", "ably"].contains(&value.as_str()).then(|| {
            format!(
                "{source}: is {value}: with this driver Laravel publishes nothing to pusherd; set {name} to reverb or pusher"
            )
        })
    }
}

/// The credentials that were chosen, and reports about the others.
#[derive(Default)]
pub(super) struct CredentialsChoice {
    /// The driver of the application, if it is set.
    pub(super) driver: Option<Driver>,
    /// The chosen credentials; `None` if there are none, they are invalid, or an app has them already.
    pub(super) credentials: Option<Credentials>,
    /// The owner of their family.
    owner: Option<Owner>,
    /// Whether they are invalid, which has been reported.
    pub(super) is_invalid: bool,
    /// Warnings about families that are not used.
    pub(super) warnings: Vec<String>,
    /// The families that hold another app and are not used.
    unused: Vec<&'static Family>,
}

/// The credentials of an app.
pub(super) struct Credentials {
    pub(super) id: Located<String>,
    pub(super) pair: Pair,
}

impl CredentialsChoice {
    /// Chooses the credentials in `variables`. `has_apps` says whether the configuration file has apps.
    pub(super) fn choose(
        variables: &Variables,
        directory: &Path,
        has_apps: bool,
        problems: &mut Problems,
    ) -> Self {
        let mut choice = Self { driver: Driver::find(variables), ..Self::default() };
        let preferred = choice.driver.as_ref().and_then(Driver::owner);
        let mut found: Vec<(&Family, Found)> =
            FAMILIES.iter().filter_map(|it| Some((it, it.find(variables)?))).collect();
        found.sort_by_key(|(family, _)| match family.owner {
            Owner::Pusherd => 0,
            owner if Some(owner) == preferred => 1,
            owner if Some(owner.driver()) == preferred => 2,
            Owner::Pusher | Owner::Reverb | Owner::Soketi => 3,
        });
        let is_complete = |(_, found): &(&Family, Found)| matches!(found, Found::Complete(_));
        let index = match found.first() {
            // pusherd's own variables always count, even if they are incomplete.
            Some((Family { owner: Owner::Pusherd, .. }, _)) => Some(0),
            Some(_) => found.iter().position(is_complete).or((!has_apps).then_some(0)),
            None => None,
        };
        let chosen = index.map(|index| found.remove(index));
        for (family, other) in &found {
            choice.report_unused(family, other, chosen.as_ref(), has_apps);
        }
        match chosen {
            None => {}
            Some((family, Found::Incomplete { source, reason })) => {
                let driver =
                    choice.driver.as_ref().filter(|_| preferred.is_some_and(|owner| owner != family.owner));
                let hint = driver.map(|driver| driver.hint()).unwrap_or_default();
                problems.add(&source, "", format_args!("{reason}{hint}"));
                choice.is_invalid = true;
            }
            Some((family, Found::Complete(_))) => {
                let has_preferred = found.iter().any(|(family, _)| Some(family.owner) == preferred);
                let is_preferred = Some(family.owner.driver()) == preferred;
                if !has_preferred && family.owner != Owner::Pusherd && !is_preferred {
                    let warning = choice.driver.as_ref().and_then(|driver| driver.missing_warning(family));
                    choice.warnings.extend(warning);
                }
                choice.credentials = family.read(variables, directory, problems);
                choice.owner = Some(family.owner);
                choice.is_invalid = choice.credentials.is_none();
            }
        }
        choice
    }

    /// Warns that `family` is not used and why, unless it holds the same app as the chosen one.
    fn report_unused(
        &mut self,
        family: &'static Family,
        found: &Found,
        chosen: Option<&(&'static Family, Found)>,
        has_apps: bool,
    ) {
        let instead = match chosen {
            Some((chosen, Found::Complete(_))) => format!("the app of {} is served", chosen.name),
            Some((_, Found::Incomplete { .. })) => return,
            None if has_apps => "the apps of the file are served".to_owned(),
            None => return,
        };
        let complete = match found {
            // `PUSHER_APP_ID` belongs to `PUSHER_KEY` and `PUSHER_SECRET`.
            Found::Incomplete { source, .. } if chosen.is_some_and(|(chosen, _)| chosen.borrows(source)) => {
                return;
            }
            Found::Incomplete { source, reason } => {
                self.warnings.push(format!("{source}: is not used, as it {reason}; {instead}"));
                return;
            }
            Found::Complete(complete) => complete,
        };
        let Some((chosen, Found::Complete(other))) = chosen else { return };
        if complete.is_same_app(other) {
            return;
        }
        self.unused.push(family);
        let by_driver = self.driver.as_ref().filter(|driver| driver.owner() == Some(chosen.owner.driver()));
        let why = match by_driver {
            _ if chosen.owner == Owner::Pusherd => "it overrides all others".to_owned(),
            _ if chosen.owner == family.owner => "it comes first".to_owned(),
            Some(driver) => format!("{} is {}", driver.name, driver.value),
            None => "it comes first; BROADCAST_CONNECTION=reverb or =pusher chooses".to_owned(),
        };
        self.warnings.push(format!("{}: {} is not used: {instead}, as {why}", complete.source, family.name));
    }

    /// Whether the application uses Reverb's variables.
    pub(super) fn uses_reverb(&self) -> bool {
        self.owner() == Some(Owner::Reverb)
    }

    /// The server whose variables the application uses: that of the chosen credentials, or of its driver.
    pub(super) fn owner(&self) -> Option<Owner> {
        let chosen = self.owner.filter(|owner| *owner != Owner::Pusherd);
        chosen.or_else(|| self.driver.as_ref().and_then(Driver::owner))
    }

    /// Whether the variable `name` belongs to a family that is not used.
    pub(super) fn is_unused(&self, name: &str) -> bool {
        self.unused.iter().any(|family| match family.form {
            Form::Parts { prefix, borrowed_id: None } => name.starts_with(prefix),
            Form::Parts { borrowed_id: Some(_), .. } | Form::Url(_) => false,
        })
    }
}

impl Driver {
    /// The warning if no credentials of this driver are set, and those of `family` are served.
    fn missing_warning(&self, family: &Family) -> Option<String> {
        let Self { value, source, .. } = self;
        let prefix = self.prefix()?;
        Some(format!(
            "{source}: is {value}, and {prefix}ID, {prefix}KEY and {prefix}SECRET are not set; the app of {} is served",
            family.name
        ))
    }

    /// The prefix of the variables of this driver's credentials.
    fn prefix(&self) -> Option<&'static str> {
        match self.owner()? {
            Owner::Reverb => Some("REVERB_APP_"),
            Owner::Pusher => Some("PUSHER_APP_"),
            Owner::Pusherd | Owner::Soketi => None,
        }
    }

    /// The remedy if this driver's own credentials are not set.
    fn hint(&self) -> String {
        let Some(prefix) = self.prefix() else { return String::new() };
        let Self { name, value, .. } = self;
        format!("; {name} is {value}, so set {prefix}ID, {prefix}KEY and {prefix}SECRET")
    }
}

/// The variables of a family that are set.
enum Found {
    /// Some are missing or invalid. `reason` follows the word "it".
    Incomplete { source: Source, reason: String },
    /// All are set.
    Complete(Complete),
}

/// The credentials of a family, for comparison.
struct Complete {
    source: Source,
    id: String,
    key: String,
    /// `None` if it is in a file.
    secret: Option<Secret>,
}

impl Complete {
    fn is_same_app(&self, other: &Self) -> bool {
        let same_secret = match (&self.secret, &other.secret) {
            (Some(secret), Some(other)) => secret == other,
            (None, _) | (_, None) => true,
        };
        self.id == other.id && self.key == other.key && same_secret
    }
}

/// The values of a family: id, key, secret and file of the secret.
type Parts = [Option<(String, Source)>; 4];

impl Family {
    fn find(&self, variables: &Variables) -> Option<Found> {
        let (prefix, parts) = match self.form {
            Form::Url(name) => {
                let (url, source) = variables.non_empty(name)?;
                return Some(match PusherUrl::parse(&url) {
                    Ok(PusherUrl { id, key, secret, .. }) => {
                        Found::Complete(Complete { source, id, key, secret: Some(secret) })
                    }
                    Err(reason) => Found::Incomplete { source, reason },
                });
            }
            Form::Parts { prefix, .. } => (prefix, self.parts(variables)?),
        };
        let first = parts.iter().flatten().next().map(|(_, source)| source.clone());
        let source = self.first_variable(variables).or(first)?;
        let [id, key, secret, secret_file] = parts;
        let has_secret = secret.is_some() || secret_file.is_some();
        let missing = [("ID", id.is_none()), ("KEY", key.is_none()), ("SECRET", !has_secret)];
        let missing: Vec<_> = missing
            .iter()
            .filter(|(_, is_missing)| *is_missing)
            .map(|(part, _)| format!("{prefix}{part}"))
            .collect();
        Some(match (id, key) {
            (Some((id, _)), Some((key, source))) if has_secret => Found::Complete(Complete {
                source,
                id,
                key,
                secret: secret.map(|(secret, _)| Secret::new(&secret)),
            }),
            _ => {
                let are = if missing.len() == 1 { "is" } else { "are" };
                let reason = format!("needs {} beside it, which {are} not set", missing.join(" and "));
                Found::Incomplete { source, reason }
            }
        })
    }

    /// Whether its id may be the variable `source`.
    fn borrows(&self, source: &Source) -> bool {
        matches!(self.form, Form::Parts { borrowed_id: Some(name), .. } if name == source.variable())
    }

    /// The source of the first of its variables that is set.
    fn first_variable(&self, variables: &Variables) -> Option<Source> {
        let Form::Parts { prefix, .. } = self.form else { return None };
        PARTS
            .iter()
            .find_map(|part| variables.non_empty(&format!("{prefix}{part}")))
            .map(|(_, source)| source)
    }

    fn parts(&self, variables: &Variables) -> Option<Parts> {
        let Form::Parts { prefix, borrowed_id } = self.form else { return None };
        self.first_variable(variables)?;
        let [id, key, secret, secret_file] =
            PARTS.map(|part| variables.non_empty(&format!("{prefix}{part}")));
        let id = id.or_else(|| variables.non_empty(borrowed_id?));
        Some([id, key, secret, secret_file])
    }

    /// Reads and checks the credentials.
    fn read(&self, variables: &Variables, directory: &Path, problems: &mut Problems) -> Option<Credentials> {
        let [id, key, secret, secret_file] = match self.form {
            Form::Parts { .. } => self.parts(variables)?,
            Form::Url(name) => {
                let (url, source) = variables.non_empty(name)?;
                let PusherUrl { id, key, secret, .. } = PusherUrl::parse(&url).ok()?;
                let part = |text| Some((text, source.clone()));
                [part(id), part(key), part(secret.expose().to_owned()), None]
            }
        };
        let mut checked = |given: Option<(String, Source)>, check: &dyn Fn(&str) -> Result<(), String>| {
            let (value, source) = given?;
            if let Err(what) = check(&value) {
                problems.add(&source, "", what);
                return None;
            }
            Some(Located { value, source, path: String::new() })
        };
        let id = checked(id, &check_id);
        let key = checked(key, &check_key);
        let secret = match (secret, secret_file) {
            (Some((_, source)), Some((_, file))) => {
                problems.add(&source, "", format_args!("contradicts {}: one of the two", file.variable()));
                None
            }
            (None, Some((path, source))) => {
                let secret = file::read_secret(&directory.join(path));
                match secret.and_then(|secret| check_secret(&secret).map(|()| secret)) {
                    Ok(value) => Some(Located { value, source, path: String::new() }),
                    Err(what) => {
                        problems.add(&source, "", what);
                        None
                    }
                }
            }
            (secret, None) => {
                let secret = checked(secret, &|text| check_secret(&Secret::new(text)));
                secret.map(|Located { value, source, path }| Located {
                    value: Secret::new(&value),
                    source,
                    path,
                })
            }
        };
        Some(Credentials { id: id?, pair: Pair { key: key?, secret: secret? } })
    }
}
