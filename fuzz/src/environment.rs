//! Variables: any value is a setting or an error that names the variable, no output contains a secret, and a `.env` file
//! with the same variables gives the same result.

use std::ffi::OsString;
use std::fs;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use pusherd::config::{Sources, load, reference};

use super::naive::Folder;

const SECRET: &str = "hunter2hunter2";

/// A URL of Redis that contains it.
const SECRET_URL: &str = "rediss://me:hunter2hunter2@redis.test:6380/2";

/// All variables of the reference except those that name files.
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let reference = reference();
    let words =
        reference.split('`').filter(|word| word.chars().all(|char| char.is_ascii_uppercase() || char == '_'));
    let named: Vec<_> =
        words.filter(|word| word.contains('_') && !word.contains("FILE")).map(str::to_owned).collect();
    assert!(named.len() > 50);
    named
});

/// Values with a meaning, which the fuzzer would seldom find by chance.
#[derive(Arbitrary, Debug)]
enum Text {
    Any(String),
    Number(u64),
    Switch(bool),
    Quoted(String),
    List(Vec<Item>),
    Word(Item),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Item {
    Null,
    Empty,
    Members,
    Off,
    Json,
    Debug,
    Both,
    Network,
    Address,
    Origin,
    Star,
    Prefix,
    Secret,
    Link,
    Broker,
    Server,
    Socket,
    Url,
    SecretUrl,
}

impl Item {
    const fn text(self) -> &'static str {
        match self {
            Self::Null => "(null)",
            Self::Empty => "(empty)",
            Self::Members => "members",
            Self::Off => "off",
            Self::Json => "json",
            Self::Debug => "debug",
            Self::Both => "both",
            Self::Network => "10.0.0.0/8",
            Self::Address => "::1",
            Self::Origin => "https://*.example.com",
            Self::Star => "*",
            Self::Prefix => "/rt",
            Self::Secret => SECRET,
            Self::Link => "tcp://10.0.0.1:6001",
            Self::Broker => "redis",
            Self::Server => "redis.test:6379",
            Self::Socket => "/run/redis.sock",
            Self::Url => "redis://redis.test:6380/2",
            Self::SecretUrl => SECRET_URL,
        }
    }
}

impl Text {
    fn text(&self) -> String {
        match self {
            Self::Any(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Switch(is) => is.to_string(),
            Self::Quoted(text) => format!("\"{text}\""),
            Self::List(items) => items.iter().map(|item| item.text()).collect::<Vec<_>>().join(","),
            Self::Word(item) => item.text().to_owned(),
        }
    }
}

/// See the module.
pub fn holds(data: &[u8]) {
    let mut rest = Unstructured::new(data);
    let mut given: Vec<(u8, Text)> = Vec::new();
    while !rest.is_empty() && given.len() < 50 {
        let Ok(variable) = rest.arbitrary() else { break };
        given.push(variable);
    }
    let name = |at: &u8| NAMES[usize::from(*at) % NAMES.len()].clone();
    let mut variables: Vec<(String, String)> =
        given.iter().map(|(at, value)| (name(at), value.text())).collect();
    variables.retain(|(_, value)| !value.contains('\0') && !value.contains('\u{fffd}'));
    variables.sort();
    variables.dedup_by(|one, other| one.0 == other.0);

    let directory = Folder::new();
    let environment = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let sources = Sources::new(environment, directory.path().to_owned());
    let result = load(&sources).map(|settings| format!("{:?} {}", settings.apps, settings.show()));
    if let Err(problems) = &result {
        for problem in problems.iter() {
            assert!(variables.iter().any(|(name, _)| problem.contains(name.as_str())), "of which? {problem}");
        }
    }
    let output = result.map_err(|problems| problems.to_string());
    let is_secret = |name: &str| name.contains("SECRET") || name.contains("PASSWORD");
    let in_url = |name: &str, value: &str| name.ends_with("REDIS_URL") && value == SECRET_URL;
    let others = variables
        .iter()
        .any(|(name, value)| !is_secret(name) && !in_url(name, value) && value.contains(SECRET));
    let (Ok(text) | Err(text)) = &output;
    assert!(others || !text.contains(SECRET), "a secret is shown: {text}");

    // Every value can be written in double quotes.
    let escape = |value: &str| {
        value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('$', "\\$")
            .replace('\n', "\\n")
            .replace('\r', "\\r")
    };
    let lines = variables.iter().map(|(name, value)| format!("{name}=\"{}\"\n", escape(value)));
    fs::write(directory.path().join(".env"), lines.collect::<String>()).unwrap();
    let of_file = load(&Sources::new([], directory.path().to_owned()));
    let of_file = of_file.map(|settings| format!("{:?} {}", settings.apps, settings.show()));
    let of_file = of_file.map_err(|problems| problems.to_string());
    let same = |text: &String| text.replace(".env: ", "environment: ");
    assert_eq!(output.as_ref().map(same).map_err(same), of_file.as_ref().map(same).map_err(same));
}
