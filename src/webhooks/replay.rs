//! Replay of dead letters.

use std::collections::HashSet;

use bytes::Bytes;
use ipnet::IpNet;

use super::client::{Client, IdleConnection};
use super::dead_letters::DeadLetter;
use super::signer::Signer;
use super::{Timing, unix_ms};
use crate::apps::{App, Webhook};

/// Why a dead letter was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The app is not configured.
    #[error("unknown app {0}")]
    UnknownApp(String),
    /// The app has no webhook for the URL.
    #[error("app {0} has no webhook for {1}")]
    UnknownWebhook(String, String),
    /// The webhook is ambiguous: a dead letter contains neither the query nor the headers, which may be secret.
    #[error("app {0} has several webhooks for {1}, which differ in their query or headers")]
    AmbiguousWebhook(String, String),
    /// The time in the body cannot be replaced.
    #[error("the body does not start with its time")]
    MissingTime,
    /// An earlier dead letter for the same receiver failed, and events must not overtake each other.
    #[error("an earlier request to {0} failed")]
    ReceiverFailed(String),
    /// The attempt failed.
    #[error("{0}")]
    Failed(String),
}

/// Sends dead letters in order, each once.
#[derive(Debug)]
pub struct Replay<'a> {
    apps: &'a [App],
    client: Client,
    fresh_time: bool,
    /// Receivers that did not respond, or with 5xx or 429, by app and URL.
    failed_receivers: HashSet<(String, String)>,
    idle: Option<(String, IdleConnection)>,
}

impl<'a> Replay<'a> {
    /// A replay to the webhooks of `apps`. With `fresh_time`, the current time replaces the time in the body.
    #[must_use]
    pub fn new(apps: &'a [App], allowed_addresses: Vec<IpNet>, fresh_time: bool) -> Self {
        let client = Client::new(allowed_addresses, Timing::default().request_timeout);
        Self { apps, client, fresh_time, failed_receivers: HashSet::new(), idle: None }
    }

    /// Sends one dead letter, signed with the app's oldest key.
    ///
    /// # Errors
    /// It was not delivered.
    pub async fn send(&mut self, dead_letter: &DeadLetter) -> Result<(), ReplayError> {
        let (app, webhook) = self.find_webhook(dead_letter)?;
        let receiver = (dead_letter.app_id.clone(), dead_letter.url.clone());
        if self.failed_receivers.contains(&receiver) {
            return Err(ReplayError::ReceiverFailed(receiver.1));
        }
        let body =
            if self.fresh_time { with_time(&dead_letter.body, unix_ms())? } else { dead_letter.body.clone() };
        let signed = Signer::for_app(app).sign(Bytes::from(body), dead_letter.event_ids.iter().copied());
        let mut idle = match self.idle.take() {
            Some((url, idle)) if url == dead_letter.url => idle,
            Some(_) | None => IdleConnection::default(),
        };
        let sent = self.client.post(webhook, &signed, &mut idle, Timing::default().request_timeout).await;
        self.idle = Some((dead_letter.url.clone(), idle));
        sent.map_err(|error| {
            if error.is_receiver_failure() {
                self.failed_receivers.insert(receiver);
            }
            ReplayError::Failed(error.to_string())
        })
    }

    fn find_webhook(&self, dead_letter: &DeadLetter) -> Result<(&'a App, &'a Webhook), ReplayError> {
        let DeadLetter { app_id, url, .. } = dead_letter;
        let app = self.apps.iter().find(|app| *app.id.0 == **app_id);
        let app = app.ok_or_else(|| ReplayError::UnknownApp(app_id.clone()))?;
        let mut found = app.webhooks.iter().filter(|webhook| webhook.url.to_string() == *url);
        let first = found.next().ok_or_else(|| ReplayError::UnknownWebhook(app_id.clone(), url.clone()))?;
        // Webhooks that differ only in their filters or event types are the same receiver.
        if found.any(|other| (&other.url, &other.headers) != (&first.url, &first.headers)) {
            return Err(ReplayError::AmbiguousWebhook(app_id.clone(), url.clone()));
        }
        Ok((app, first))
    }
}

/// Replaces the time in the body of a webhook.
fn with_time(body: &str, time_ms: u64) -> Result<String, ReplayError> {
    const START: &str = r#"{"time_ms":"#;
    let rest = body.strip_prefix(START).ok_or(ReplayError::MissingTime)?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Err(ReplayError::MissingTime);
    }
    Ok(format!("{START}{time_ms}{}", &rest[digits..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::{WebhookUrl, webhook_header};

    #[test]
    fn a_fresh_time_changes_nothing_else_in_the_body() {
        let body = r#"{"time_ms":1700000000123,"events":[{"name":"x","data":"{\"time_ms\":1}"}]}"#;
        let fresh = with_time(body, 42).unwrap();
        assert_eq!(fresh, r#"{"time_ms":42,"events":[{"name":"x","data":"{\"time_ms\":1}"}]}"#);
        for body in ["", "{}", r#"{"time_ms":x}"#, r#"{"events":[],"time_ms":1}"#] {
            assert!(with_time(body, 42).is_err(), "{body}");
        }
    }

    #[test]
    fn webhooks_with_equal_urls_and_headers_are_one_receiver() {
        let webhook = |url, header: Option<&str>| {
            let mut webhook = Webhook::new(WebhookUrl::parse(url).unwrap());
            let headers = header.map(|value| webhook_header("X-Env", value).unwrap());
            webhook.headers.extend(headers.map(|(name, value)| (Some(name), value)));
            webhook
        };
        let dead_letter = DeadLetter {
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
            assert_eq!(
                replay.find_webhook(&dead_letter).err().map(|error| error.to_string()).as_deref(),
                expected
            );
        }
    }
}
