//! The credentials that are in variables: which family of them is used, and what is said of the others.
//!
//! A family is a set of variables that hold the id, key and secret of one app: pusherd's own, and those of the servers
//! that it replaces. The `.env` of a Laravel application often has several, as a move from one server to the next leaves
//! the old one behind. `BROADCAST_CONNECTION` tells which of them the application uses itself.
//!
//! Source: Laravel's `config/broadcasting.php` (`BROADCAST_CONNECTION`, before version 11 `BROADCAST_DRIVER`), Reverb's
//! `config/reverb.php`, Soketi's documentation; `PUSHER_URL`: `Pusher.url=` of pusher-http-ruby, `Pusher.forURL` of
//! pusher-http-node.

#[cfg(test)]
mod tests;

use std::path::Path;

use super::apps::{Pair, Placed, check_id, check_key, check_secret};
use super::file;
use super::problem::{Problems, Source};
use super::pusher_url::PusherUrl;
use super::secret::Secret;
use super::variables::{APP_PREFIX, Variables};

/// Whose variables they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Owner {
    Pusherd,
    Pusher,
    Reverb,
    Soketi,
}

impl Owner {
    /// Whose driver an application uses for it.
    const fn driver(self) -> Self {
        match self {
            Self::Soketi => Self::Pusher,
            Self::Pusherd | Self::Pusher | Self::Reverb => self,
        }
    }
}

/// Variables that hold the credentials of one app.
#[derive(Debug)]
pub(super) struct Family {
    /// What it is called in messages.
    pub(super) name: &'static str,
    owner: Owner,
    form: Form,
}

/// How a family is written.
#[derive(Debug)]
enum Form {
    /// `…ID`, `…KEY`, `…SECRET` or `…SECRET_FILE`, each after `prefix`. Without an id of its own, the one of the variable
    /// `borrowed_id` counts.
    Parts { prefix: &'static str, borrowed_id: Option<&'static str> },
    /// One URL.
    Url(&'static str),
}

const fn parts(name: &'static str, prefix: &'static str, owner: Owner) -> Family {
    Family { name, owner, form: Form::Parts { prefix, borrowed_id: None } }
}

/// Holds all three credentials, and where clients connect to.
pub(super) const PUSHER_URL: &str = "PUSHER_URL";

/// All families; where nothing else decides, the first counts that is whole.
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

/// The parts that credentials have in variables.
const PARTS: [&str; 4] = ["ID", "KEY", "SECRET", "SECRET_FILE"];

/// The names of all variables that say which credentials count, or hold them.
pub(super) fn names() -> impl Iterator<Item = String> {
    let of_family = |family: &Family| match family.form {
        Form::Parts { prefix, .. } => PARTS.iter().map(|part| format!("{prefix}{part}")).collect(),
        Form::Url(name) => vec![name.to_owned()],
    };
    FAMILIES.iter().flat_map(of_family).chain(DRIVERS.map(str::to_owned))
}

/// The variables that name Laravel's driver, the first that is set counts.
const DRIVERS: [&str; 2] = ["BROADCAST_CONNECTION", "BROADCAST_DRIVER"];

/// What the application broadcasts by.
#[derive(Debug)]
pub(super) struct Driver {
    name: &'static str,
    value: String,
    source: Source,
}

impl Driver {
    fn find(variables: &Variables) -> Option<Self> {
        DRIVERS.into_iter().find_map(|name| {
            // `null` is a driver here, and not the absence of one.
            let (value, source) = variables.written(name)?;
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

    /// What to say where Laravel sends nothing to any server of this protocol.
    pub(super) fn remark(&self) -> Option<String> {
        let Self { name, value, source } = self;
        ["log", "null", "redis", "ably"].contains(&value.as_str()).then(|| {
            format!(
                "{source}: is {value}: with this driver Laravel sends nothing to pusherd; set {name} to reverb or pusher"
            )
        })
    }
}

/// What the variables say of credentials.
#[derive(Default)]
pub(super) struct Choice {
    /// What the application broadcasts by, if it says so.
    pub(super) driver: Option<Driver>,
    /// The credentials that count; `None`: there are none, they were refused, or an app has them.
    pub(super) taken: Option<Credentials>,
    /// Whose they are.
    owner: Option<Owner>,
    /// Whether they were refused, which has been reported.
    pub(super) refused: bool,
    /// What was left, and why.
    pub(super) remarks: Vec<String>,
    /// The families that were left and hold another app.
    left: Vec<&'static Family>,
}

/// The credentials of an app.
pub(super) struct Credentials {
    pub(super) id: Placed<String>,
    pub(super) pair: Pair,
}

impl Choice {
    /// Looks for credentials in `variables`; with `has_apps`, the file has some as well.
    pub(super) fn make(
        variables: &Variables,
        directory: &Path,
        has_apps: bool,
        problems: &mut Problems,
    ) -> Self {
        let mut choice = Self { driver: Driver::find(variables), ..Self::default() };
        let wanted = choice.driver.as_ref().and_then(Driver::owner);
        let mut found: Vec<(&Family, Found)> =
            FAMILIES.iter().filter_map(|it| Some((it, it.find(variables)?))).collect();
        found.sort_by_key(|(family, _)| match family.owner {
            Owner::Pusherd => 0,
            owner if Some(owner) == wanted => 1,
            owner if Some(owner.driver()) == wanted => 2,
            Owner::Pusher | Owner::Reverb | Owner::Soketi => 3,
        });
        let is_whole = |(_, found): &(&Family, Found)| matches!(found, Found::Whole(_));
        let place = match found.first() {
            // What is pusherd's own was written for pusherd: nothing else is meant.
            Some((Family { owner: Owner::Pusherd, .. }, _)) => Some(0),
            Some(_) => found.iter().position(is_whole).or((!has_apps).then_some(0)),
            None => None,
        };
        let taken = place.map(|place| found.remove(place));
        for (family, other) in &found {
            choice.leave(family, other, taken.as_ref(), has_apps);
        }
        match taken {
            None => {}
            Some((family, Found::Part { source, lacks })) => {
                let driver =
                    choice.driver.as_ref().filter(|_| wanted.is_some_and(|owner| owner != family.owner));
                let hint = driver.map(|driver| driver.hint()).unwrap_or_default();
                problems.add(&source, "", format_args!("{lacks}{hint}"));
                choice.refused = true;
            }
            Some((family, Found::Whole(_))) => {
                let has_wanted = found.iter().any(|(family, _)| Some(family.owner) == wanted);
                if !has_wanted && family.owner != Owner::Pusherd && Some(family.owner.driver()) != wanted {
                    choice.remarks.extend(choice.driver.as_ref().and_then(|driver| driver.lacks_all(family)));
                }
                choice.taken = family.read(variables, directory, problems);
                choice.owner = Some(family.owner);
                choice.refused = choice.taken.is_none();
            }
        }
        choice
    }

    /// Says why what was `found` of `family` does not count, unless it says the same as what does.
    fn leave(
        &mut self,
        family: &'static Family,
        found: &Found,
        taken: Option<&(&'static Family, Found)>,
        has_apps: bool,
    ) {
        let instead = match taken {
            Some((taken, Found::Whole(_))) => format!("the app of {} is served", taken.name),
            Some((_, Found::Part { .. })) => return,
            None if has_apps => "the apps of the file are served".to_owned(),
            None => return,
        };
        let whole = match found {
            // `PUSHER_APP_ID` beside `PUSHER_KEY` and `PUSHER_SECRET` lacks nothing.
            Found::Part { source, .. } if taken.is_some_and(|(taken, _)| taken.borrows(source)) => return,
            Found::Part { source, lacks } => {
                self.remarks.push(format!("{source}: is left, as it {lacks}; {instead}"));
                return;
            }
            Found::Whole(whole) => whole,
        };
        let Some((taken, Found::Whole(other))) = taken else { return };
        if whole.is_same_app(other) {
            return;
        }
        self.left.push(family);
        let by_driver = self.driver.as_ref().filter(|driver| driver.owner() == Some(taken.owner.driver()));
        let why = match by_driver {
            _ if taken.owner == Owner::Pusherd => "it goes above all others".to_owned(),
            _ if taken.owner == family.owner => "it goes first".to_owned(),
            Some(driver) => format!("{} is {}", driver.name, driver.value),
            None => "it goes first; BROADCAST_CONNECTION=reverb or =pusher would choose".to_owned(),
        };
        self.remarks.push(format!("{}: {} is left: {instead}, as {why}", whole.source, family.name));
    }

    /// Whether the application uses Reverb's variables, or would use them.
    pub(super) fn is_of_reverb(&self) -> bool {
        self.owner() == Some(Owner::Reverb)
    }

    /// Whose variables the application uses: of the credentials that count, or of its driver.
    pub(super) fn owner(&self) -> Option<Owner> {
        let of_credentials = self.owner.filter(|owner| *owner != Owner::Pusherd);
        of_credentials.or_else(|| self.driver.as_ref().and_then(Driver::owner))
    }

    /// Whether the variable `name` is about an app that is not served.
    pub(super) fn is_left(&self, name: &str) -> bool {
        self.left.iter().any(|family| match family.form {
            Form::Parts { prefix, borrowed_id: None } => name.starts_with(prefix),
            Form::Parts { borrowed_id: Some(_), .. } | Form::Url(_) => false,
        })
    }
}

impl Driver {
    /// What to say where there is nothing of this driver's own credentials, and those of `family` are served.
    fn lacks_all(&self, family: &Family) -> Option<String> {
        let Self { value, source, .. } = self;
        let prefix = self.prefix()?;
        Some(format!(
            "{source}: is {value}, and {prefix}ID, {prefix}KEY and {prefix}SECRET are not set; the app of {} is served",
            family.name
        ))
    }

    /// What the variables of this driver's credentials begin with.
    fn prefix(&self) -> Option<&'static str> {
        match self.owner()? {
            Owner::Reverb => Some("REVERB_APP_"),
            Owner::Pusher => Some("PUSHER_APP_"),
            Owner::Pusherd | Owner::Soketi => None,
        }
    }

    /// What to set where this driver's own credentials are not there.
    fn hint(&self) -> String {
        let Some(prefix) = self.prefix() else { return String::new() };
        let Self { name, value, .. } = self;
        format!("; {name} is {value}, so set {prefix}ID, {prefix}KEY and {prefix}SECRET")
    }
}

/// What there is of a family.
enum Found {
    /// Not all: where something is, and what it lacks, in words that follow "it".
    Part { source: Source, lacks: String },
    /// All.
    Whole(Whole),
}

/// The credentials of a family, to compare.
struct Whole {
    source: Source,
    id: String,
    key: String,
    /// `None` where it is in a file.
    secret: Option<Secret>,
}

impl Whole {
    fn is_same_app(&self, other: &Self) -> bool {
        let same_secret = match (&self.secret, &other.secret) {
            (Some(secret), Some(other)) => secret == other,
            (None, _) | (_, None) => true,
        };
        self.id == other.id && self.key == other.key && same_secret
    }
}

/// The variables of a family that are set: id, key, secret, file of the secret.
type Parts = [Option<(String, Source)>; 4];

impl Family {
    fn find(&self, variables: &Variables) -> Option<Found> {
        let (prefix, parts) = match self.form {
            Form::Url(name) => {
                let (url, source) = variables.get_filled(name)?;
                return Some(match PusherUrl::parse(&url) {
                    Ok(PusherUrl { id, key, secret, .. }) => {
                        Found::Whole(Whole { source, id, key, secret: Some(secret) })
                    }
                    Err(why) => Found::Part { source, lacks: why },
                });
            }
            Form::Parts { prefix, .. } => (prefix, self.parts(variables)?),
        };
        let first = parts.iter().flatten().next().map(|(_, source)| source.clone());
        let source = self.own_part(variables).or(first)?;
        let [id, key, secret, secret_file] = parts;
        let has_secret = secret.is_some() || secret_file.is_some();
        let missing = [("ID", id.is_none()), ("KEY", key.is_none()), ("SECRET", !has_secret)];
        let missing: Vec<_> =
            missing.iter().filter(|(_, lacks)| *lacks).map(|(part, _)| format!("{prefix}{part}")).collect();
        Some(match (id, key) {
            (Some((id, _)), Some((key, source))) if has_secret => Found::Whole(Whole {
                source,
                id,
                key,
                secret: secret.map(|(secret, _)| Secret::new(&secret)),
            }),
            _ => {
                let are = if missing.len() == 1 { "is" } else { "are" };
                let lacks = format!("needs {} beside it, which {are} not set", missing.join(" and "));
                Found::Part { source, lacks }
            }
        })
    }

    /// Whether its id may be the one of the variable `source`.
    fn borrows(&self, source: &Source) -> bool {
        matches!(self.form, Form::Parts { borrowed_id: Some(name), .. } if name == source.variable())
    }

    /// The first of its own variables that is set.
    fn own_part(&self, variables: &Variables) -> Option<Source> {
        let Form::Parts { prefix, .. } = self.form else { return None };
        PARTS
            .iter()
            .find_map(|part| variables.get_filled(&format!("{prefix}{part}")))
            .map(|(_, source)| source)
    }

    fn parts(&self, variables: &Variables) -> Option<Parts> {
        let Form::Parts { prefix, borrowed_id } = self.form else { return None };
        self.own_part(variables)?;
        let [id, key, secret, secret_file] =
            PARTS.map(|part| variables.get_filled(&format!("{prefix}{part}")));
        let id = id.or_else(|| variables.get_filled(borrowed_id?));
        Some([id, key, secret, secret_file])
    }

    /// Checks what there is.
    fn read(&self, variables: &Variables, directory: &Path, problems: &mut Problems) -> Option<Credentials> {
        let [id, key, secret, secret_file] = match self.form {
            Form::Parts { .. } => self.parts(variables)?,
            Form::Url(name) => {
                let (url, source) = variables.get_filled(name)?;
                let PusherUrl { id, key, secret, .. } = PusherUrl::parse(&url).ok()?;
                let at = |text| Some((text, source.clone()));
                [at(id), at(key), at(secret.expose().to_owned()), None]
            }
        };
        let mut checked = |given: Option<(String, Source)>, check: &dyn Fn(&str) -> Result<(), String>| {
            let (value, source) = given?;
            if let Err(what) = check(&value) {
                problems.add(&source, "", what);
                return None;
            }
            Some(Placed { value, source, at: String::new() })
        };
        let id = checked(id, &check_id);
        let key = checked(key, &check_key);
        let secret = match (secret, secret_file) {
            (Some((_, source)), Some((_, file))) => {
                problems.add(&source, "", format_args!("contradicts {}: one of the two", file.variable()));
                None
            }
            (None, Some((path, source))) => {
                let secret = file::secret(&directory.join(path));
                match secret.and_then(|secret| check_secret(&secret).map(|()| secret)) {
                    Ok(value) => Some(Placed { value, source, at: String::new() }),
                    Err(what) => {
                        problems.add(&source, "", what);
                        None
                    }
                }
            }
            (secret, None) => {
                let secret = checked(secret, &|text| check_secret(&Secret::new(text)));
                secret.map(|Placed { value, source, at }| Placed { value: Secret::new(&value), source, at })
            }
        };
        Some(Credentials { id: id?, pair: Pair { key: key?, secret: secret? } })
    }
}
