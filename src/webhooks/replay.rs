//! Sending dead letters again.

use std::collections::HashSet;

use bytes::Bytes;
use ipnet::IpNet;

use super::client::{Client, KeptAlive};
use super::dead_letters::DeadLetter;
use super::endpoint::Signer;
use super::{Timing, unix_ms};
use crate::apps::{App, Webhook};

/// Why a dead letter is still one.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The configuration has no such app.
    #[error("there is no app {0}")]
    NoApp(String),
    /// The app has no such webhook.
    #[error("app {0} has no webhook for {1}")]
    NoWebhook(String, String),
    /// A letter holds neither the query nor the headers, which may be secrets.
    #[error("app {0} has several webhooks for {1}, which differ in their query or headers")]
    SeveralWebhooks(String, String),
    /// The body has no time to be changed.
    #[error("the body does not begin with its time")]
    NoTime,
    /// The receiver failed with an earlier letter: nothing overtakes it.
    #[error("not tried, as {0} failed before")]
    NotTried(String),
    /// It was tried.
    #[error("{0}")]
    Failed(String),
}

/// Sends letters one after the other, each once.
#[derive(Debug)]
pub struct Replay<'a> {
    apps: &'a [App],
    client: Client,
    fresh_time: bool,
    /// Receivers that did not answer, or with 5xx or 429, by app and URL.
    failing: HashSet<(String, String)>,
    kept: Option<(String, KeptAlive)>,
}

impl<'a> Replay<'a> {
    /// Sends to the webhooks of `apps`. `fresh_time`: with the time of now in the body instead of the event's.
    #[must_use]
    pub fn new(apps: &'a [App], allowed_addresses: Vec<IpNet>, fresh_time: bool) -> Self {
        let client = Client::new(allowed_addresses, Timing::default().timeout);
        Self { apps, client, fresh_time, failing: HashSet::new(), kept: None }
    }

    /// Sends one letter, signed anew with the app's oldest key.
    ///
    /// # Errors
    /// Why it is not delivered.
    pub async fn send(&mut self, letter: &DeadLetter) -> Result<(), ReplayError> {
        let (app, webhook) = self.find(letter)?;
        let receiver = (letter.app_id.clone(), letter.url.clone());
        if self.failing.contains(&receiver) {
            return Err(ReplayError::NotTried(receiver.1));
        }
        let body = if self.fresh_time { with_time(&letter.body, unix_ms())? } else { letter.body.clone() };
        let signed = Signer::of(app).sign(Bytes::from(body), letter.event_ids.iter().copied());
        let mut kept = match self.kept.take() {
            Some((url, kept)) if url == letter.url => kept,
            Some(_) | None => KeptAlive::default(),
        };
        let sent = self.client.post(webhook, &signed, &mut kept, Timing::default().timeout).await;
        self.kept = Some((letter.url.clone(), kept));
        sent.map_err(|error| {
            if error.is_of_the_receiver() {
                self.failing.insert(receiver);
            }
            ReplayError::Failed(error.to_string())
        })
    }

    fn find(&self, letter: &DeadLetter) -> Result<(&'a App, &'a Webhook), ReplayError> {
        let DeadLetter { app_id, url, .. } = letter;
        let app = self.apps.iter().find(|app| *app.id.0 == **app_id);
        let app = app.ok_or_else(|| ReplayError::NoApp(app_id.clone()))?;
        let mut found = app.webhooks.iter().filter(|webhook| webhook.url.to_string() == *url);
        let first = found.next().ok_or_else(|| ReplayError::NoWebhook(app_id.clone(), url.clone()))?;
        // Those that only hear of other things get the same requests.
        if found.any(|other| (&other.url, &other.headers) != (&first.url, &first.headers)) {
            return Err(ReplayError::SeveralWebhooks(app_id.clone(), url.clone()));
        }
        Ok((app, first))
    }
}

/// The body of a webhook with another time.
fn with_time(body: &str, time_ms: u64) -> Result<String, ReplayError> {
    const START: &str = r#"{"time_ms":"#;
    let rest = body.strip_prefix(START).ok_or(ReplayError::NoTime)?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Err(ReplayError::NoTime);
    }
    Ok(format!("{START}{time_ms}{}", &rest[digits..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::{WebhookUrl, webhook_header};

    #[test]
    fn only_the_time_of_a_body_changes() {
        let body = r#"{"time_ms":1700000000123,"events":[{"name":"x","data":"{\"time_ms\":1}"}]}"#;
        let fresh = with_time(body, 42).unwrap();
        assert_eq!(fresh, r#"{"time_ms":42,"events":[{"name":"x","data":"{\"time_ms\":1}"}]}"#);
        for body in ["", "{}", r#"{"time_ms":x}"#, r#"{"events":[],"time_ms":1}"#] {
            assert!(with_time(body, 42).is_err(), "{body}");
        }
    }

    #[test]
    fn webhooks_that_only_hear_of_other_things_are_one_receiver() {
        let webhook = |url, header: Option<&str>| {
            let mut webhook = Webhook::new(WebhookUrl::parse(url).unwrap());
            let headers = header.map(|value| webhook_header("X-Env", value).unwrap());
            webhook.headers.extend(headers.map(|(name, value)| (Some(name), value)));
            webhook
        };
        let letter = DeadLetter {
            app_id: "1001".to_owned(),
            url: "http://app.test/hooks".to_owned(),
            time_ms: 0,
            attempts: 1,
            error: String::new(),
            event_ids: Vec::new(),
            body: String::new(),
        };
        let plain = "http://app.test/hooks";
        for (webhooks, expected) in [
            (vec![], Some("app 1001 has no webhook for http://app.test/hooks")),
            (vec![webhook(plain, None), webhook("http://app.test/x", None)], None),
            (vec![webhook(plain, Some("a")), webhook(plain, Some("a"))], None),
            (
                vec![webhook(plain, Some("a")), webhook(plain, Some("b"))],
                Some(
                    "app 1001 has several webhooks for http://app.test/hooks, which differ in their query or headers",
                ),
            ),
            (
                vec![webhook(plain, None), webhook("http://app.test/hooks?a", None)],
                Some(
                    "app 1001 has several webhooks for http://app.test/hooks, which differ in their query or headers",
                ),
            ),
        ] {
            let apps = [App { webhooks, ..App::new("1001", "demo-key", "demo-secret") }];
            let replay = Replay::new(&apps, Vec::new(), false);
            assert_eq!(replay.find(&letter).err().map(|error| error.to_string()).as_deref(), expected);
        }
    }
}
