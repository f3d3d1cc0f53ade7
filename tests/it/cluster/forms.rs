//! Messages between nodes have no form: each node writes them in the forms of its own subscribers.

use std::sync::Arc;

use bytes::Bytes;
use pusherd::apps::{App, Apps};
use pusherd::cluster::memory::MemoryServer;
use pusherd::cluster::node::{Cluster, Timing};
use pusherd::hub::Hub;
use pusherd::outbox::Outbox;
use pusherd::protocol::message::{Event, Source};
use pusherd::protocol::wire::{Form, Frame};
use pusherd::protocol::{ChannelName, NameRules, SocketId};
use pusherd::webhooks::Webhooks;
use serde_json::{Value, json};

use crate::harness::{DEMO, Node, eventually, nodes};

const CHANNEL: &str = "private-forms";

/// A node without transports: tests subscribe outboxes to its hub.
struct Bare {
    hub: Hub,
    apps: Arc<Apps>,
}

impl Bare {
    async fn start(broker: &MemoryServer) -> Self {
        let (client, incoming) = broker.connect();
        let cluster = Cluster::new(Arc::clone(&client) as _, client, Timing::default(), Arc::default());
        let apps = Arc::new(Apps::new([App::new(DEMO.app_id, DEMO.key, DEMO.secret)]));
        let (webhooks, known) = (Webhooks::default(), Arc::clone(&apps));
        let hub = Hub::in_cluster(
            pusherd::observers::Observers::default(),
            Arc::default(),
            webhooks,
            known,
            cluster.clone(),
            false,
        );
        tokio::spawn(async move { cluster.run(incoming).await });
        eventually("the node is ready", async || hub.is_ready()).await;
        Self { hub, apps }
    }

    async fn subscribe(&self, id: u32, form: Form) -> Subscriber {
        let outbox = Arc::new(Outbox::detached(SocketId::new(id, 0), usize::MAX).with_form(form));
        self.hub.join(&self.apps.by_id(DEMO.app_id).unwrap(), &outbox, &channel(), None).unwrap();
        let mut subscriber = Subscriber { outbox, unread: Vec::new() };
        subscriber
            .expect(json!({ "event": "pusher_internal:subscription_succeeded", "channel": CHANNEL, "data": "{}" }))
            .await;
        subscriber
    }
}

fn channel() -> ChannelName {
    ChannelName::parse(CHANNEL, &NameRules::default()).unwrap()
}

struct Subscriber {
    outbox: Arc<Outbox>,
    unread: Vec<Bytes>,
}

impl Subscriber {
    /// Checks that the next message is this one, in the form of the subscriber.
    async fn expect(&mut self, message: Value) {
        let outbox = &self.outbox;
        if self.unread.is_empty() {
            let what = format_args!("{message} in {:?}", outbox.form());
            eventually(what, async || outbox.queued_bytes() > 0).await;
            self.unread = outbox.take_queued();
        }
        let bytes = self.unread.remove(0);
        let text = match outbox.form() {
            Form::Text => std::str::from_utf8(&bytes).unwrap().strip_suffix('\n').expect("a line").to_owned(),
            Form::Frame | Form::DeflatedFrame { .. } => {
                let (head, text) = bytes.split_at(bytes.iter().position(|byte| *byte == b'{').unwrap());
                let text = std::str::from_utf8(text).unwrap();
                assert_eq!(head, &Frame::from_text(text).bytes()[..head.len()], "the head of a frame");
                text.to_owned()
            }
        };
        assert!(!text.contains('\n') || outbox.form() == Form::Frame, "one line: {text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), message);
    }
}

#[tokio::test]
async fn a_message_of_another_node_reaches_subscribers_of_each_form() {
    let [node]: [Node; 1] = nodes().await;
    let bare = Bare::start(&node.broker).await;
    let mut frame = bare.subscribe(1, Form::Frame).await;
    let mut text = bare.subscribe(2, Form::Text).await;
    let event = |data: &str| json!({ "event": "e", "channel": CHANNEL, "data": data });

    node.publish(CHANNEL, "e", "to all").await;
    for subscriber in [&mut frame, &mut text] {
        subscriber.expect(event("to all")).await;
    }
    for (socket, data) in [(text.outbox.socket(), "but text"), (frame.outbox.socket(), "but frame")] {
        let body = json!({ "name": "e", "channel": CHANNEL, "data": data, "socket_id": socket.to_string() });
        node.publish_json(body).await;
    }
    frame.expect(event("but text")).await;
    text.expect(event("but frame")).await;

    // A client event is passed on as the client has written it.
    let mut client = node.connect().await;
    client.subscribe(CHANNEL).await;
    client
        .send_text("{\"event\":\"client-e\",\"channel\":\"private-forms\",\"data\":{\n\"a\": 1\r\n}}")
        .await;
    for subscriber in [&mut frame, &mut text] {
        subscriber.expect(json!({ "event": "client-e", "channel": CHANNEL, "data": { "a": 1 } })).await;
    }

    // And the other way round.
    let app = bare.apps.by_id(DEMO.app_id).unwrap();
    let (channel, except) = (channel(), Some(text.outbox.socket()));
    let from_bare = Event { channel: &channel, name: "e", data: "\"back\"", except, source: Source::App };
    bare.hub.publish(&app, [from_bare]).await.unwrap();
    client.expect(event("back")).await;
    frame.expect(event("back")).await;
    node.publish(CHANNEL, "e", "last").await;
    text.expect(event("last")).await;
}
