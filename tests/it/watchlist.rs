//! Watchlists. Source: protocol.md §6.3.

use std::time::Duration;

use pusherd::apps::App;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{Client, Server};

impl Client {
    /// Expects watchlist events in the next frame and returns them as `[[name, ids], …]`, sorted by name.
    pub async fn expect_watched(&mut self) -> Value {
        let frame = self.next().await;
        assert_eq!(frame, json!({ "event": "pusher_internal:watchlist_events", "data": frame["data"] }));
        let data: Value = serde_json::from_str(frame["data"].as_str().unwrap()).unwrap();
        let mut events: Vec<_> = data["events"].as_array().unwrap().iter().collect();
        events.sort_by_key(|event| event["name"].as_str().unwrap().to_owned());
        let event = |event: &&Value| {
            assert_eq!(**event, json!({ "name": event["name"], "user_ids": event["user_ids"] }));
            let mut ids = event["user_ids"].as_array().unwrap().clone();
            ids.sort_by_key(|id| id.as_str().unwrap().to_owned());
            json!([event["name"], ids])
        };
        events.iter().map(event).collect()
    }
}

/// Signs a new connection in.
pub async fn sign_in(server: &Server, id: &str, watchlist: Value) -> Client {
    let mut client = server.connect().await;
    client.sign_in(json!({ "id": id, "watchlist": watchlist })).await;
    client
}

#[tokio::test]
async fn signing_in_sends_the_state_of_all_watched_users() {
    let server = Server::start().await;
    let _eight = sign_in(&server, "8", json!([])).await;
    let mut watching = sign_in(&server, "7", json!(["8", "9"])).await;
    assert_eq!(watching.expect_watched().await, json!([["offline", ["9"]], ["online", ["8"]]]));
    watching.fence().await;
}

#[tokio::test]
async fn an_empty_group_is_omitted_and_an_empty_watchlist_sends_nothing() {
    let server = Server::start().await;
    let _eight = sign_in(&server, "8", json!([])).await;
    assert_eq!(sign_in(&server, "7", json!(["8"])).await.expect_watched().await, json!([["online", ["8"]]]));
    assert_eq!(sign_in(&server, "7", json!(["9"])).await.expect_watched().await, json!([["offline", ["9"]]]));
    for watchlist in [json!([]), json!(null)] {
        sign_in(&server, "7", watchlist).await.fence().await;
    }
}

#[tokio::test]
async fn the_first_sign_in_and_the_end_of_the_last_connection_are_sent() {
    let server = Server::start().await;
    let mut watching = sign_in(&server, "7", json!(["8"])).await;
    assert_eq!(watching.expect_watched().await, json!([["offline", ["8"]]]));
    let first = sign_in(&server, "8", Value::Null).await;
    assert_eq!(watching.expect_watched().await, json!([["online", ["8"]]]));
    let second = sign_in(&server, "8", Value::Null).await;
    watching.fence().await;
    first.close().await;
    server.has_connections(2).await;
    watching.fence().await;
    second.reset();
    assert_eq!(watching.expect_watched().await, json!([["offline", ["8"]]]));
    let _third = sign_in(&server, "8", Value::Null).await;
    assert_eq!(watching.expect_watched().await, json!([["online", ["8"]]]));
}

#[tokio::test]
async fn all_watchers_receive_a_change_and_nobody_else() {
    let server = Server::start().await;
    let mut one = sign_in(&server, "1", json!(["8"])).await;
    let mut one_again = sign_in(&server, "1", json!(["8"])).await;
    let mut two = sign_in(&server, "2", json!(["9", "8"])).await;
    let mut elsewhere = sign_in(&server, "3", json!(["9"])).await;
    let mut nobody = sign_in(&server, "4", json!([])).await;
    for client in [&mut one, &mut one_again, &mut two, &mut elsewhere] {
        client.expect_watched().await;
    }
    let _eight = sign_in(&server, "8", Value::Null).await;
    for client in [&mut one, &mut one_again, &mut two] {
        assert_eq!(client.expect_watched().await, json!([["online", ["8"]]]));
    }
    elsewhere.fence().await;
    nobody.fence().await;
}

#[tokio::test]
async fn a_page_reload_is_not_sent() {
    let server = Server::start().await;
    let reloading = sign_in(&server, "8", Value::Null).await;
    let mut watching = sign_in(&server, "7", json!(["8", "9"])).await;
    watching.expect_watched().await;
    reloading.close().await;
    server.has_connections(1).await;
    let _back = sign_in(&server, "8", Value::Null).await;
    // An event about the reload would arrive before this one.
    let leaving = sign_in(&server, "9", Value::Null).await;
    assert_eq!(watching.expect_watched().await, json!([["online", ["9"]]]));
    let begin = Instant::now();
    leaving.close().await;
    assert_eq!(watching.expect_watched().await, json!([["offline", ["9"]]]));
    assert!(begin.elapsed() > Duration::from_secs(1), "users linger for two seconds: {:?}", begin.elapsed());
}

#[tokio::test]
async fn a_member_of_a_presence_channel_is_not_online() {
    let server = Server::start().await;
    let mut member = server.connect().await;
    member.join("presence-room", json!({ "user_id": "8" })).await;
    let mut watching = sign_in(&server, "7", json!(["8"])).await;
    assert_eq!(watching.expect_watched().await, json!([["offline", ["8"]]]));
}

#[tokio::test]
async fn ids_may_be_integers_and_invalid_and_duplicate_ids_are_ignored() {
    let server = Server::start().await;
    let watchlist = json!([8, "8", "9", null, true, {}, [], "", 1.5, "9"]);
    let mut watching = sign_in(&server, "7", watchlist).await;
    assert_eq!(watching.expect_watched().await, json!([["offline", ["8", "9"]]]));
    let _eight = sign_in(&server, "8", Value::Null).await;
    assert_eq!(watching.expect_watched().await, json!([["online", ["8"]]]));
    watching.fence().await;
}

#[tokio::test]
async fn signing_in_again_replaces_the_watchlist() {
    let server = Server::start().await;
    let mut watching = sign_in(&server, "7", json!(["8"])).await;
    watching.expect_watched().await;
    watching.sign_in(json!({ "id": "7", "watchlist": ["9"] })).await;
    assert_eq!(watching.expect_watched().await, json!([["offline", ["9"]]]));
    let _eight = sign_in(&server, "8", Value::Null).await;
    watching.fence().await;
    let _nine = sign_in(&server, "9", Value::Null).await;
    assert_eq!(watching.expect_watched().await, json!([["online", ["9"]]]));
}

#[tokio::test]
async fn above_100_ids_the_first_100_are_watched_and_an_error_is_sent() {
    let server = Server::start().await;
    let ids: Vec<String> = (1000..1101).map(|id| id.to_string()).collect();
    let mut watching = server.connect().await;
    watching.sign_in(json!({ "id": "7", "watchlist": ids })).await;
    let mut frames = [watching.next().await, watching.next().await];
    frames.sort_by_key(|frame| frame["event"].as_str().unwrap().to_owned());
    let [error, events] = frames;
    assert_eq!(error["event"], "pusher:error");
    assert_eq!(error["data"]["code"], json!(4302));
    let data: Value = serde_json::from_str(events["data"].as_str().unwrap()).unwrap();
    assert_eq!(data["events"][0]["user_ids"], json!(ids[..100]));
    let _cut = sign_in(&server, "1100", Value::Null).await;
    watching.fence().await;
    let _kept = sign_in(&server, "1099", Value::Null).await;
    assert_eq!(watching.expect_watched().await, json!([["online", ["1099"]]]));

    let mut enough = sign_in(&server, "70", json!(ids[..100])).await;
    enough.expect_watched().await;
    enough.fence().await;
}

#[tokio::test]
async fn an_app_that_disables_watchlists_sends_nothing() {
    let server = Server::with_app(|app: &mut App| app.watchlist = false).await;
    let mut watching = sign_in(&server, "7", json!(["8", "9"])).await;
    let _eight = sign_in(&server, "8", Value::Null).await;
    watching.fence().await;
}

#[tokio::test]
async fn a_user_may_watch_itself() {
    let server = Server::start().await;
    let mut watching = sign_in(&server, "7", json!(["7"])).await;
    assert_eq!(watching.expect_watched().await, json!([["online", ["7"]]]));
    watching.fence().await;
}
