//! What happens on a server, as those see it who watch it.

use std::sync::Arc;

use pusherd::limits::Limit;
use pusherd::observers::{Fact, Filter, Kind, Kinds, Observers, OwnedFact, Publisher, Watch, Watched};
use pusherd::protocol::CloseCode;
use pusherd::rejections::{Field, Mistake, Rejection};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{DEMO, Key, NEWS, Receiver, Request, Server, channel_auth, in_time, webhook};

const ROOM: &str = "private-room";

async fn next(watch: &mut Watch) -> Arc<OwnedFact> {
    match in_time("something happens", watch.recv()).await {
        Watched::Fact(fact) => fact,
        Watched::Missed(missed) => panic!("{missed} missed"),
    }
}

/// The next fact must match; evaluates to what is checked of it.
macro_rules! expect {
    ($watch:expr, $pattern:pat => $checked:expr) => {{
        let fact = next(&mut $watch).await;
        let $pattern = &*fact else { panic!("not {}: {fact:?}", stringify!($pattern)) };
        $checked
    }};
}

async fn watched_server(receiver: Option<&Receiver>) -> (Server, Observers) {
    let mut observers = None;
    let server = Server::with(|setup| {
        setup.app.webhooks.extend(receiver.map(Receiver::webhook));
        observers = Some(setup.options.observers.clone());
    })
    .await;
    (server, observers.unwrap())
}

#[tokio::test]
async fn a_watcher_sees_the_whole_story_of_a_client_in_order() {
    let mut receiver = Receiver::start().await;
    let (server, observers) = watched_server(Some(&receiver)).await;
    let story = Kinds::of(&[
        Kind::Connected,
        Kind::Disconnected,
        Kind::Subscribed,
        Kind::Unsubscribed,
        Kind::SignedIn,
        Kind::SignedOut,
        Kind::Published,
        Kind::Rejected,
        Kind::SignatureMismatch,
        Kind::ApiRequest,
    ]);
    let mut watch = observers.watch(Filter::of(story).app("1001"), 100);
    let mut webhooks = observers.watch(Filter::of(Kinds::of(&[Kind::WebhookSent])), 100);

    let upgrade = server.upgrade("/app/demo-key?client=js&version=8.4.0", &[("origin", "https://a.test")]);
    let mut client = upgrade.await.established().await;
    let id = client.id.clone();
    expect!(watch, Fact::Connected { socket, address, origin, library, .. } => {
        assert_eq!((socket.to_string(), address.is_loopback()), (id.clone(), true));
        assert_eq!((origin.as_deref(), library.as_deref()), (Some("https://a.test"), Some("js 8.4.0")));
    });

    client.ask_with(ROOM, "demo-key:00").await;
    let [reason, _] = client.expect_unauthorized(ROOM).await;
    expect!(watch, Fact::Rejected { rejection: Rejection::Mistake(mistake), example } => {
        assert_eq!((*mistake, example.get(Field::Channel)), (Mistake::Subscription, Some(ROOM)));
        assert_eq!(example.get(Field::Reason), Some(&*reason), "as the client was told");
        assert_eq!(example.socket.unwrap().to_string(), id);
    });
    expect!(watch, Fact::SignatureMismatch { string_to_sign: None, .. } => ());

    client.subscribe(ROOM).await;
    expect!(watch, Fact::Subscribed { channel, again: false, .. } => assert_eq!(channel.as_str(), ROOM));
    let occupied = receiver.event().await;
    assert_eq!(occupied["name"], "channel_occupied");
    expect!(webhooks, Fact::WebhookSent { url, events: 1, body: None, .. } => {
        assert_eq!(**url, receiver.url("/hooks"));
    });

    server.publish(ROOM, "paid", "the payload").await;
    expect!(watch, Fact::Published { event, publisher: Publisher::App, subscribers: 1, data: None, .. } => {
        assert_eq!(event, "paid");
    });
    expect!(watch, Fact::ApiRequest { method, path, status: 200, address: Some(_), .. } => {
        assert_eq!((&**method, &**path), ("POST", "/apps/1001/events"));
    });
    client.expect(json!({ "event": "paid", "channel": ROOM, "data": "the payload" })).await;
    server.publish(NEWS, "paid", "the payload").await;
    expect!(watch, Fact::Published { channel, subscribers: 0, .. } => assert_eq!(channel.as_str(), NEWS));
    expect!(watch, Fact::ApiRequest { .. } => ());

    client.whisper(ROOM, "client-typing", json!("the payload")).await;
    expect!(watch, Fact::Published { publisher: Publisher::Client { socket, user: None }, .. } => {
        assert_eq!(socket.to_string(), id);
    });

    let forged = Key { secret: "wrong-secret", ..DEMO };
    server.send(Request::get("/apps/1001/channels").signed_with(&forged)).await.rejected(401);
    expect!(watch, Fact::SignatureMismatch { socket: None, string_to_sign: Some(text), .. } => {
        assert!(text.starts_with("GET\n/apps/1001/channels\n"), "{text}");
    });
    expect!(watch, Fact::Rejected { rejection: Rejection::Mistake(Mistake::RequestSignature), .. } => ());
    expect!(watch, Fact::ApiRequest { method, status: 401, .. } => assert_eq!(method, "GET"));

    client.sign_in(json!({ "id": "7" })).await;
    expect!(watch, Fact::SignedIn { user, .. } => assert_eq!(user.as_str(), "7"));

    client.send_message(Message::binary(vec![1])).await;
    client.expect_close(1003).await;
    expect!(watch, Fact::Unsubscribed { channel, .. } => assert_eq!(channel.as_str(), ROOM));
    expect!(watch, Fact::SignedOut { user, .. } => assert_eq!(user.as_str(), "7"));
    expect!(watch, Fact::Disconnected { socket, code, reason: None, .. } => {
        assert_eq!((socket.to_string(), *code), (id, Some(CloseCode::Unsupported)));
    });
    assert_eq!(server.metrics.facts_missed.get(), 0);
}

#[tokio::test]
async fn facts_have_no_secrets_and_payloads_only_for_those_who_ask() {
    let mut receiver = Receiver::start().await;
    let (server, observers) = watched_server(Some(&receiver)).await;
    let mut without = observers.watch(Filter::of(Kinds::ALL), 100);
    let mut with = observers.watch(Filter::of(Kinds::ALL).payloads(true), 100);
    let mut client = server.connect().await;
    let auth = channel_auth(&client.id, ROOM, None);
    let signature = auth.split_once(':').unwrap().1;
    client.ask_with(ROOM, auth.replace(':', ":f")).await;
    client.expect_unauthorized(ROOM).await;
    client.subscribe(ROOM).await;
    receiver.event().await;
    server.publish(ROOM, "paid", "the payload").await;
    client.expect(json!({ "event": "paid", "channel": ROOM, "data": "the payload" })).await;
    client.whisper(ROOM, "client-typing", json!("the payload")).await;
    client.sign_in(json!({ "id": "7", "user_info": { "name": "the payload" } })).await;
    let forged = Key { secret: "wrong-secret", ..DEMO };
    let request = Request::get("/apps/1001/channels").signed_with(&forged);
    let forged = request.value("auth_signature").to_owned();
    server.send(request).await.rejected(401);
    client.close().await;
    let mut texts = [String::new(), String::new()];
    for (text, watch) in texts.iter_mut().zip([&mut without, &mut with]) {
        loop {
            let fact = next(watch).await;
            *text += &format!("{fact:?}\n");
            if fact.kind() == Kind::Disconnected {
                break;
            }
        }
    }
    let [without, with] = texts;
    for secret in ["the payload", "demo-secret", "wrong-secret", signature, &*forged, "user_info"] {
        assert!(!without.contains(secret), "{secret}: {without}");
    }
    for secret in ["demo-secret", "wrong-secret", &*forged] {
        assert!(!with.contains(secret), "{secret}: {with}");
    }
    assert!(with.matches("the payload").count() >= 4, "message, event, client event, sign-in: {with}");
    assert!(with.contains("channel_occupied"), "the body of the webhook: {with}");
}

#[tokio::test]
async fn a_failed_webhook_and_a_limit_are_facts_and_each_watcher_sees_its_own_app() {
    let observers = Observers::default();
    let server = Server::with(|setup| {
        // Nothing listens there.
        setup.app.webhooks.push(webhook("http://127.0.0.1:1/"));
        setup.options.observers = observers.clone();
    })
    .await;
    let mut failed = observers.watch(Filter::of(Kinds::of(&[Kind::WebhookFailed])).app("1001"), 10);
    let mut limits = observers.watch(Filter::of(Kinds::of(&[Kind::Rejected])).channel(&"n".repeat(300)), 10);
    let mut other = observers.watch(Filter::of(Kinds::ALL).app("1002"), 10);
    let mut client = server.connect().await;
    client.ask(&"n".repeat(300)).await;
    expect!(limits, Fact::Rejected { rejection: Rejection::Limit(limit), .. } => {
        assert_eq!(*limit, Limit::ChannelNameBytes);
    });
    client.ask(NEWS).await;
    expect!(failed, Fact::WebhookFailed { url, error, events: 1, body: None, .. } => {
        assert!(url == "http://127.0.0.1:1/" && !error.is_empty(), "{url}: {error}");
    });
    assert!(other.try_recv().is_none());
    server.connect_to("/app/other-key").await;
    expect!(other, Fact::Connected { app, .. } => assert_eq!(app, "1002"));
}
