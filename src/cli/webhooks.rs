//! `pusherd webhooks`: replays dead letters, and verifies signatures.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use super::{EXIT_CONFIG, Webhooks, WebhooksCommand, print, print_error};
use crate::apps::App;
use crate::config::{Settings, load};
use crate::webhooks::dead_letters::DeadLetterFile;
use crate::webhooks::replay::Replay;

/// The maximum size of a body that is verified.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

impl Webhooks {
    /// Runs the subcommand.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        let mut sources = self.files.sources();
        sources.opens_files = false;
        let settings = match load(&sources) {
            Ok(settings) => settings,
            Err(problems) => {
                print_error(problems);
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
                print_error(text);
                ExitCode::FAILURE
            }
        }
    }
}

/// Sends all dead letters of a file in order. Each is marked as delivered at once, so that an interrupted replay leaves
/// the undelivered ones.
fn replay(settings: &Settings, path: &Path, fresh_time: bool) -> Result<String, String> {
    let name = path.display();
    let file = DeadLetterFile::open(path).map_err(|error| format!("{name} cannot be replayed: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let allowed = settings.server.options.webhooks.allowed_addresses.clone();
    let mut replay = Replay::new(&settings.apps, allowed, fresh_time);
    let (mut remaining, mut delivered) = (0, 0);
    for (number, line) in (1..).zip(&file.lines()) {
        file.verify(line).map_err(|error| format!("{delivered} delivered, then stopped: {name}: {error}"))?;
        let outcome = match &line.dead_letter {
            Ok(dead_letter) => match runtime.block_on(replay.send(dead_letter)) {
                Ok(()) => {
                    delivered += 1;
                    file.mark_delivered(line).map_err(|error| {
                        format!(
                            "{delivered} delivered, but the last of them cannot be marked in {name}: {error}"
                        )
                    })?;
                    print(format_args!("{number}: delivered to {}\n", dead_letter.url));
                    continue;
                }
                Err(error) => format!("not delivered to {}: {error}", dead_letter.url),
            },
            Err(reason) => format!("skipped: {reason}"),
        };
        print(format_args!("{number}: {outcome}\n"));
        remaining += 1;
    }
    // Does not wait for a DNS lookup that is still running.
    runtime.shutdown_background();
    file.compact().map_err(|error| {
        format!("{delivered} delivered, {remaining} left, but {name} cannot be compacted: {error}")
    })?;
    if remaining == 0 {
        return Ok(format!("{delivered} delivered, none left"));
    }
    Err(format!("{delivered} delivered, {remaining} left in {name}"))
}

/// Verifies the signature of a body with the secret that is configured for `key`.
fn verify(apps: &[App], key: &str, signature: &str, path: Option<&Path>) -> Result<String, String> {
    let body = read_body(path)?;
    let app = apps.iter().find(|app| app.secret(key).is_some());
    let Some((app, secret)) = app.and_then(|app| Some((app, app.secret(key)?))) else {
        return Err(format!("no app has the key {key}"));
    };
    let signature = signature.trim();
    if secret.verifies_webhook(signature, &body) {
        return Ok(format!("valid: {} bytes, signed for app {} with key {key}", body.len(), app.id));
    }
    let bytes = body.len();
    // Frequent mistakes, each of which is verified before it is named.
    let bare = body.strip_suffix(b"\n").map(|body| body.strip_suffix(b"\r").unwrap_or(body));
    let other =
        apps.iter().flat_map(|app| &app.keys).find(|pair| pair.secret.verifies_webhook(signature, &body));
    let hint = if bare.is_some_and(|bare| secret.verifies_webhook(signature, bare)) {
        "; it is valid for the body without the line end at its end".to_owned()
    } else if let Some(pair) = other {
        format!("; it was made with the secret of key {}", pair.key)
    } else {
        String::new()
    };
    Err(format!("not valid for these {bytes} bytes with the secret of key {key}{hint}"))
}

/// Reads a file or standard input.
fn read_body(path: Option<&Path>) -> Result<Vec<u8>, String> {
    let path = path.filter(|path| *path != Path::new("-"));
    let name = path.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
    let read = |mut from: Box<dyn Read>| -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        from.by_ref().take(BODY_BYTES_MAX + 1).read_to_end(&mut body)?;
        Ok(body)
    };
    let body = match path {
        Some(path) => File::open(path).and_then(|file| read(Box::new(file))),
        None => read(Box::new(io::stdin())),
    };
    let body = body.map_err(|error| format!("{name} cannot be read: {error}"))?;
    if body.len() as u64 > BODY_BYTES_MAX {
        return Err(format!("{name} is larger than {} MiB", BODY_BYTES_MAX / 1024 / 1024));
    }
    Ok(body)
}
