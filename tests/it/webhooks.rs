//! Webhooks of a server, and of the webhooks module alone. Source: protocol.md §9.

mod changes;
mod dead_letters;
mod delivery;
mod events;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pusherd::apps::{App, Apps, Webhook};
use pusherd::metrics::Metrics;
use pusherd::protocol::{ChannelName, NameRules};
use pusherd::webhooks::dead_letters::DeadLetter;
use pusherd::webhooks::{Event, Options, Webhooks};
use serde_json::{Value, json};

use crate::harness::{Receiver, Server, Setup, eventually};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

const SHORT: Duration = Duration::from_millis(40);

/// Configures a server that sends all events to `webhooks`, in one order, and retries quickly.
fn configure(setup: &mut Setup, webhooks: impl IntoIterator<Item = Webhook>, debounce: Duration) {
    setup.app.webhooks = webhooks.into_iter().collect();
    // With batching there is one request at a time, so events of all channels are in order.
    (setup.app.webhook_batching, setup.app.webhook_batching_ms) = (true, 1);
    setup.options.webhooks.timing.debounce = debounce;
    setup.options.webhooks.timing.backoff = Duration::from_millis(5);
    setup.options.webhooks.timing.backoff_max = Duration::from_millis(20);
    setup.options.webhooks.timing.probe_interval = Duration::from_millis(5);
}

/// A server and a receiver of all its events.
async fn server_with_receiver(debounce: Duration) -> (Server, Receiver) {
    let receiver = Receiver::start().await;
    let server = Server::with(|setup| configure(setup, [receiver.webhook()], debounce)).await;
    (server, receiver)
}

fn occupied(channel: &str) -> Value {
    json!({ "name": "channel_occupied", "channel": channel })
}

fn vacated(channel: &str) -> Value {
    json!({ "name": "channel_vacated", "channel": channel })
}

/// The dead letters in a file.
fn read_dead_letters(path: &Path) -> Vec<DeadLetter> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The webhooks of one app, without a server.
struct Standalone {
    app: App,
    webhooks: Webhooks,
    metrics: Arc<Metrics>,
}

impl Standalone {
    fn start(webhook: Webhook, change: impl FnOnce(&mut Options)) -> Self {
        let app = || App { webhooks: vec![webhook.clone()], ..App::new("1001", "demo-key", "demo-secret") };
        let mut options = Options::default();
        options.timing.backoff = Duration::from_millis(5);
        options.timing.probe_interval = Duration::from_millis(5);
        change(&mut options);
        let metrics = Arc::new(Metrics::default());
        let webhooks = Webhooks::start(&Apps::new([app()]), options, &metrics).unwrap();
        Self { app: app(), webhooks, metrics }
    }

    fn occupy(&self, channel: &str) {
        let channel = ChannelName::parse(channel, &NameRules::default()).unwrap();
        let mut guard = self.webhooks.lock_subscriptions(&self.app, &channel).unwrap();
        guard.emit(&Event::ChannelOccupied(&channel));
    }

    async fn wait_for(&self, what: &str, is_reached: impl Fn(&pusherd::metrics::Webhooks) -> bool) {
        eventually(what, || async { is_reached(&self.metrics.webhooks) }).await;
    }
}
