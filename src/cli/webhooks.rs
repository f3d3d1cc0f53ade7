//! `pusherd webhooks`: what was sent, or was not, from the command line.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use super::{EXIT_CONFIG, Webhooks, WebhooksCommand, complain, print};
use crate::apps::App;
use crate::config::{Settings, load};
use crate::webhooks::dead_letters::DeadLetterFile;
use crate::webhooks::replay::Replay;

/// The longest body that is checked.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

impl Webhooks {
    /// Does what it says.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        let mut sources = self.files.sources();
        sources.reads_certificate = false;
        let settings = match load(&sources) {
            Ok(settings) => settings,
            Err(problems) => {
                complain(problems);
                return ExitCode::from(EXIT_CONFIG);
            }
        };
        let done = match &self.command {
            WebhooksCommand::Replay { file, fresh_time } => replay(&settings, file, *fresh_time),
            WebhooksCommand::Verify { key, signature, file } => {
                verify(&settings.apps, key, signature, file.as_deref())
            }
        };
        match done {
            Ok(text) => {
                print(text + "\n");
                ExitCode::SUCCESS
            }
            Err(text) => {
                complain(text);
                ExitCode::FAILURE
            }
        }
    }
}

/// Sends all letters of a file, one after the other. Each is struck out when it is delivered, so that whatever ends this
/// leaves in the file what could not be sent.
fn replay(settings: &Settings, path: &Path, fresh_time: bool) -> Result<String, String> {
    let shown = path.display();
    let file = DeadLetterFile::open(path).map_err(|error| format!("{shown} cannot be replayed: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let allowed = settings.server.options.webhooks.allowed_addresses.clone();
    let mut replay = Replay::new(&settings.apps, allowed, fresh_time);
    let (mut left, mut delivered) = (0, 0);
    for (number, line) in (1..).zip(&file.lines()) {
        file.check(line)
            .map_err(|error| format!("{delivered} delivered, then {shown} was given up: {error}"))?;
        let outcome = match &line.letter {
            Ok(letter) => match runtime.block_on(replay.send(letter)) {
                Ok(()) => {
                    delivered += 1;
                    file.strike(line).map_err(|error| {
                        format!(
                            "{delivered} delivered, but the last of them cannot be taken out of {shown}: {error}"
                        )
                    })?;
                    print(format_args!("{number}: delivered to {}\n", letter.url));
                    continue;
                }
                Err(error) => format!("not delivered to {}: {error}", letter.url),
            },
            Err(why) => format!("skipped: {why}"),
        };
        print(format_args!("{number}: {outcome}\n"));
        left += 1;
    }
    // A name that is still being looked up would hold up the end.
    runtime.shutdown_background();
    file.close_gaps().map_err(|error| {
        format!(
            "{delivered} delivered, {left} left, but {shown} keeps the room of those that are gone: {error}"
        )
    })?;
    if left == 0 {
        return Ok(format!("{delivered} delivered, none left"));
    }
    Err(format!("{delivered} delivered, {left} left in {shown}"))
}

/// Whether `signature` is that of a body, by the secret that the settings have for `key`.
fn verify(apps: &[App], key: &str, signature: &str, path: Option<&Path>) -> Result<String, String> {
    let body = body(path)?;
    let app = apps.iter().find(|app| app.secret(key).is_some());
    let Some((app, secret)) = app.and_then(|app| Some((app, app.secret(key)?))) else {
        return Err(format!("no app has the key {key}"));
    };
    let signature = signature.trim();
    if secret.verifies_webhook(signature, &body) {
        return Ok(format!("valid: {} bytes, signed for app {} with key {key}", body.len(), app.id));
    }
    let bytes = body.len();
    // The usual reasons, each tried before it is named.
    let bare = body.strip_suffix(b"\n").map(|body| body.strip_suffix(b"\r").unwrap_or(body));
    let other =
        apps.iter().flat_map(|app| &app.keys).find(|pair| pair.secret.verifies_webhook(signature, &body));
    let hint = if bare.is_some_and(|bare| secret.verifies_webhook(signature, bare)) {
        "; it is that of the body without the line end after it, which was not sent".to_owned()
    } else if let Some(pair) = other {
        format!("; it was made with the secret of key {}", pair.key)
    } else {
        String::new()
    };
    Err(format!("not valid: this is not the signature of these {bytes} bytes with the secret of {key}{hint}"))
}

/// The bytes of a file, or of standard input.
fn body(path: Option<&Path>) -> Result<Vec<u8>, String> {
    let path = path.filter(|path| *path != Path::new("-"));
    let shown = path.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
    let read = |mut from: Box<dyn Read>| -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        from.by_ref().take(BODY_BYTES_MAX + 1).read_to_end(&mut body)?;
        Ok(body)
    };
    let body = match path {
        Some(path) => File::open(path).and_then(|file| read(Box::new(file))),
        None => read(Box::new(io::stdin())),
    };
    let body = body.map_err(|error| format!("{shown} cannot be read: {error}"))?;
    if body.len() as u64 > BODY_BYTES_MAX {
        return Err(format!("{shown} is larger than {} MiB", BODY_BYTES_MAX / 1024 / 1024));
    }
    Ok(body)
}
