//! Several nodes are one server: whoever is connected to whichever of them sees the same.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use pusherd::cluster::driver::{Driver, Topic};
use pusherd::limits::Limit;
use pusherd::server::Shutdown;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{
    Answer, Client, NEWS, Node, OTHER, Request, Server, Setup, eventually, in_time, nodes, nodes_with,
};
use crate::presence::{ROOM, user};
use crate::watchlist::sign_in;

const EVENTS: &str = "/apps/1001/events";

/// A subscriber of `channel` on each node.
async fn subscribers(nodes: &[Node], channel: &str) -> Vec<Client> {
    join_all(nodes.iter().map(async |node| {
        let mut client = node.connect().await;
        client.subscribe(channel).await;
        client
    }))
    .await
}

/// Shows that nothing else came to any of `clients` before this publish.
async fn marker(server: &Server, channel: &str, clients: &mut [&mut Client]) {
    server.publish(channel, "marker", "").await;
    for client in clients {
        client.expect(json!({ "event": "marker", "channel": channel, "data": "" })).await;
    }
}

/// Waits until a node answers so.
async fn answers(server: &Server, target: &str, expected: Value) {
    eventually(format_args!("{target} is {expected}"), async || {
        let answer = server.get(target).await;
        answer.status == 200 && answer.ok() == expected
    })
    .await;
}

// ---- messages ----

#[tokio::test]
async fn all_subscribers_of_a_channel_see_one_order_whichever_node_they_are_on() {
    let nodes: [Node; 3] = nodes().await;
    let mut clients = subscribers(&nodes, NEWS).await;
    // The answers of one node take longer than those of the others.
    nodes[1].link.delay(Duration::from_millis(2));
    let publishers = nodes.iter().zip(0..).map(async |(node, by): (&Node, usize)| {
        for number in 0..40 {
            node.publish(NEWS, "n", &format!("{by}/{number}")).await;
        }
    });
    join_all(publishers).await;
    let mut seen = Vec::new();
    for client in &mut clients {
        let mut order = Vec::new();
        for _ in 0..3 * 40 {
            order.push(client.next().await["data"].as_str().unwrap().to_owned());
        }
        client.fence().await;
        seen.push(order);
    }
    assert!(seen.iter().all(|order| *order == seen[0]), "{seen:?}");
    for by in 0..3 {
        let of: Vec<_> = seen[0].iter().filter_map(|data| data.strip_prefix(&format!("{by}/"))).collect();
        let numbers: Vec<_> = (0..40).map(|number| number.to_string()).collect();
        assert_eq!(of, numbers, "what one publishes keeps its order");
    }
}

#[tokio::test]
async fn the_socket_that_an_event_is_of_is_left_out_whichever_node_it_is_on() {
    let nodes: [Node; 2] = nodes().await;
    let [mut one, mut two] = subscribers(&nodes, NEWS).await.try_into().ok().unwrap();
    for node in &nodes {
        let event = json!({ "name": "e", "channel": NEWS, "data": "", "socket_id": one.id });
        node.publish_json(event).await;
        two.expect(json!({ "event": "e", "channel": NEWS, "data": "" })).await;
    }
    let batch = json!({ "batch": [
        { "name": "a", "channel": NEWS, "data": "", "socket_id": two.id },
        { "name": "b", "channel": NEWS, "data": "", "socket_id": one.id },
    ] });
    nodes[0].post_json("/apps/1001/batch_events", batch).await.ok();
    one.expect(json!({ "event": "a", "channel": NEWS, "data": "" })).await;
    two.expect(json!({ "event": "b", "channel": NEWS, "data": "" })).await;
    marker(&nodes[1], NEWS, &mut [&mut one, &mut two]).await;
}

#[tokio::test]
async fn client_events_reach_all_nodes_and_not_their_sender() {
    let nodes: [Node; 2] = nodes().await;
    let mut here = nodes[0].connect().await;
    let [mut beside, mut there] = [nodes[0].connect().await, nodes[1].connect().await];
    let room = "private-room";
    for client in [&mut here, &mut beside, &mut there] {
        client.subscribe(room).await;
    }
    here.whisper(room, "client-x", json!({ "on": true })).await;
    for client in [&mut beside, &mut there] {
        let data = json!({ "on": true });
        let frame = client.next().await;
        assert_eq!(frame["event"], "client-x", "{frame}");
        let given = &frame["data"];
        assert!(*given == data || given.as_str() == Some(&data.to_string()), "{frame}");
    }
    marker(&nodes[1], room, &mut [&mut here, &mut beside, &mut there]).await;
}

#[tokio::test]
async fn who_is_subscribed_has_missed_nothing_and_hears_nothing_twice() {
    let nodes: [Node; 2] = nodes().await;
    let publishing = async {
        for number in 0..300_u32 {
            nodes[0].publish(NEWS, "n", &number.to_string()).await;
        }
    };
    let subscribing = async {
        for _ in 0..10 {
            let mut client = nodes[1].connect().await;
            client.subscribe(NEWS).await;
            let number = |frame: Value| frame["data"].as_str().unwrap().parse::<u32>().unwrap();
            let first = number(client.next().await);
            for next in first + 1..first + 5 {
                assert_eq!(number(client.next().await), next);
            }
        }
    };
    tokio::select! {
        () = subscribing => {}
        () = publishing => panic!("the subscribers were too slow"),
    }
}

#[tokio::test]
async fn a_cache_channel_has_one_event_for_all_nodes() {
    let channel = "cache-btc";
    let nodes: [Node; 3] = nodes().await;
    let price = |price: &str| json!({ "event": "price", "channel": channel, "data": price });
    let mut early = nodes[0].connect().await;
    early.subscribe(channel).await;
    assert_eq!(early.next().await["event"], "pusher:cache_miss");
    nodes[0].publish(channel, "price", "1").await;
    early.expect(price("1")).await;
    nodes[1].publish(channel, "price", "2").await;
    early.expect(price("2")).await;
    for node in &nodes {
        let [mut first, mut second] = node.connect_many().await;
        for client in [&mut first, &mut second] {
            client.subscribe(channel).await;
            client.expect(price("2")).await;
            client.fence().await;
        }
        let info = node.get_json(&format!("/apps/1001/channels/{channel}?info=cache")).await;
        assert_eq!(info["cache"]["data"], "2", "{info}");
    }
    early.fence().await;
    // What is kept outlives its subscribers, and the node that it was published on.
    let [one, two, three] = nodes;
    drop(early);
    two.crash_with_expired_lease();
    let nobody = json!({ "occupied": false });
    answers(&one, &format!("/apps/1001/channels/{channel}"), nobody).await;
    let mut late = three.connect().await;
    late.subscribe(channel).await;
    late.expect(price("2")).await;
    // What clients say is not kept.
    late.fence().await;
}

#[tokio::test]
async fn a_cached_event_that_a_node_has_missed_is_made_good() {
    let nodes: [Node; 2] = nodes().await;
    let mut client = nodes[0].connect().await;
    client.send(json!({ "event": "pusher:subscribe", "data": { "channel": "cache-x" } })).await;
    client.expect_subscribed("cache-x").await;
    client.expect_event("pusher:cache_miss", "cache-x").await;
    nodes[0].link.cut();
    nodes[0].is_ready(false).await;
    nodes[1].publish("cache-x", "e", "missed").await;
    nodes[0].link.mend();
    let missed = json!({ "event": "e", "channel": "cache-x", "data": "missed" });
    client.expect(missed.clone()).await;
    let mut late = nodes[0].connect().await;
    late.subscribe("cache-x").await;
    late.expect(missed).await;
    marker(&nodes[1], "cache-x", &mut [&mut client, &mut late]).await;
}

#[tokio::test]
async fn what_makes_no_sense_is_dropped() {
    let [node]: [Node; 1] = nodes().await;
    let mut client = node.connect().await;
    client.subscribe(NEWS).await;
    let topics = [Topic::Group("c/1001/news".into()), Topic::Nodes];
    for topic in topics {
        for garbage in
            ["", "e", "\u{1}", "\u{1}\u{1}", "\u{1}m", "\u{1}me\u{fffd}", "mex", "mx1234567", "c", "?"]
        {
            node.link.publish(vec![(topic.clone(), garbage.into())]).await.unwrap();
        }
        for byte in 0..=255 {
            node.link.publish(vec![(topic.clone(), vec![1, byte, 0xff, 0].into())]).await.unwrap();
        }
    }
    marker(&node, NEWS, &mut [&mut client]).await;
    node.is_ready(true).await;
}

// ---- presence ----

#[tokio::test]
async fn members_are_those_of_all_nodes_each_told_of_once() {
    let nodes: [Node; 3] = nodes().await;
    let mut watching = nodes[0].connect().await;
    watching.join(ROOM, user("1")).await;
    let mut first = nodes[1].connect().await;
    let there = first.join(ROOM, json!({ "user_id": "7", "user_info": { "name": "Zoë" } })).await;
    assert_eq!(
        there,
        json!({ "ids": ["1", "7"], "hash": { "1": null, "7": { "name": "Zoë" } }, "count": 2 })
    );
    watching.expect_added("7", json!({ "name": "Zoë" })).await;
    // Another tab, on another node: who they are is what the first one has said.
    let mut second = nodes[2].connect().await;
    let there = second.join(ROOM, json!({ "user_id": "7", "user_info": { "name": "other" } })).await;
    assert_eq!(there["hash"]["7"], json!({ "name": "Zoë" }));
    marker(&nodes[0], ROOM, &mut [&mut watching, &mut first, &mut second]).await;

    first.close().await;
    nodes[1].has_subscriptions(ROOM, 2).await;
    marker(&nodes[1], ROOM, &mut [&mut watching, &mut second]).await;
    second.unsubscribe(ROOM).await;
    watching.expect_removed("7").await;
    second.fence().await;
    marker(&nodes[2], ROOM, &mut [&mut watching]).await;
}

/// Who is in the room, as a client was told: the list it got, and what followed.
#[derive(Debug)]
struct Roster(BTreeMap<String, Value>);

impl Roster {
    async fn of(client: &mut Client, channel_data: Value) -> Self {
        let there = client.join(ROOM, channel_data).await;
        let members = there["hash"].as_object().unwrap();
        assert_eq!(there["count"], json!(members.len()));
        Self(members.clone().into_iter().collect())
    }

    /// Takes frames, each of which must fit, until these are there.
    async fn becomes(&mut self, client: &mut Client, node: &Node, ids: &[&str]) {
        // Nodes are given some beats to say again whom they have, so it is asked for more than once.
        in_time(format_args!("{ids:?} are there"), async {
            while !self.0.keys().map(String::as_str).eq(ids.iter().copied()) {
                node.publish(ROOM, "marker", "").await;
                self.follow(client).await;
            }
        })
        .await;
    }

    /// Takes frames up to the marker, each of which must fit.
    async fn follow(&mut self, client: &mut Client) {
        loop {
            let frame = client.next().await;
            let data = || serde_json::from_str::<Value>(frame["data"].as_str().unwrap()).unwrap();
            let id = || data()["user_id"].as_str().unwrap().to_owned();
            match frame["event"].as_str().unwrap() {
                "pusher_internal:member_added" => {
                    let before = self.0.insert(id(), data()["user_info"].clone());
                    assert_eq!(before, None, "who is there does not come: {frame}");
                }
                "pusher_internal:member_removed" => {
                    assert!(self.0.remove(&id()).is_some(), "who is not there does not go: {frame}");
                }
                "marker" => return,
                _ => panic!("{frame}"),
            }
        }
    }
}

#[tokio::test]
async fn the_list_and_what_follows_it_fit_together_however_people_come_and_go() {
    let nodes: [Node; 3] = nodes().await;
    nodes[1].link.delay(Duration::from_millis(3));
    nodes[2].link.delay(Duration::from_millis(1));
    let coming_and_going = nodes.iter().zip(0..).map(async |(node, at): (&Node, usize)| {
        // Of some users there are connections on several nodes.
        for round in 0..25 {
            let mut client = node.connect().await;
            client.join(ROOM, user(&format!("u{}", (round * (at + 1)) % 7))).await;
            match round % 3 {
                0 => client.unsubscribe(ROOM).await,
                1 => client.reset(),
                _ => client.close().await,
            }
        }
    });
    let watching = nodes.iter().zip(0..).map(async |(node, at): (&Node, usize)| {
        let mut watching = Vec::new();
        for number in 0..6 {
            let mut client = node.connect().await;
            let roster = Roster::of(&mut client, user(&format!("w{at}-{number}"))).await;
            watching.push((client, roster));
        }
        watching
    });
    let (_, watching) = tokio::join!(join_all(coming_and_going), join_all(watching));
    let mut watching: Vec<_> = watching.into_iter().flatten().collect();
    nodes[0].has_subscriptions(ROOM, 18).await;
    let users = "/apps/1001/channels/presence-room?info=user_count";
    answers(&nodes[1], users, json!({ "occupied": true, "user_count": 18 })).await;
    nodes[2].publish(ROOM, "marker", "").await;
    let all: Vec<_> = (0..3).flat_map(|at| (0..6).map(move |number| format!("w{at}-{number}"))).collect();
    for (client, roster) in &mut watching {
        roster.follow(client).await;
        assert_eq!(roster.0.keys().cloned().collect::<Vec<_>>(), all);
    }
}

#[tokio::test]
async fn a_presence_channel_is_full_on_all_nodes() {
    let nodes: [Node; 3] = nodes_with(|setup| setup.app.limits.presence_members_max = 100).await;
    let mut members = Vec::new();
    for number in 0..99 {
        let mut client = nodes[0].connect().await;
        client.join(ROOM, user(&number.to_string())).await;
        members.push(client);
    }
    let mut watching = nodes[0].connect().await;
    let mut roster = Roster::of(&mut watching, user("99")).await;
    // A node that has nobody there does not know it yet, one that has does.
    for _ in 0..2 {
        let mut refused = nodes[1].connect().await;
        refused.ask_as(ROOM, &user("100").to_string()).await;
        refused.expect_refusal(ROOM, "LimitReached", 4100, Value::Null).await;
        // It may ask again.
        refused.ask_as(ROOM, &user("100").to_string()).await;
        refused.expect_refusal(ROOM, "LimitReached", 4100, Value::Null).await;
        refused.fence().await;
        let mut another_tab = nodes[1].connect().await;
        let there = another_tab.join(ROOM, user("7")).await;
        assert_eq!(there["count"], 100);
        members.push(another_tab);
    }
    nodes[1].wait_for_rejections(Limit::PresenceMembers, 4).await;
    let users = nodes[2].get_json("/apps/1001/channels/presence-room/users").await;
    assert_eq!(users["users"].as_array().unwrap().len(), 100);
    // Who was told of those who were refused was told that they are gone, too.
    nodes[2].publish(ROOM, "marker", "").await;
    roster.follow(&mut watching).await;
    assert_eq!(roster.0.len(), 100);
    assert!(!roster.0.contains_key("100"));
    // A place that becomes free is anybody's.
    members.remove(0).close().await;
    answers(
        &nodes[1],
        "/apps/1001/channels/presence-room?info=user_count",
        json!({ "occupied": true, "user_count": 99 }),
    )
    .await;
    let mut accepted = nodes[2].connect().await;
    assert_eq!(accepted.join(ROOM, user("100")).await["count"], 100);
}

/// A new client that asks to join; whether it may.
async fn asks_to_join(node: &Node, id: String) -> (Client, bool) {
    let mut client = node.connect().await;
    client.ask_as(ROOM, &user(&id).to_string()).await;
    loop {
        match client.next().await["event"].as_str().unwrap() {
            "pusher_internal:subscription_succeeded" => return (client, true),
            "pusher:subscription_error" => return (client, false),
            _ => {}
        }
    }
}

#[tokio::test]
async fn of_those_who_race_for_the_last_places_no_more_get_one_than_there_are() {
    const MAX: usize = 4;
    let small = |setup: &mut Setup| setup.app.limits.presence_members_max = MAX;
    for round in 0..5 {
        let nodes: [Node; 3] = nodes_with(small).await;
        nodes[round % 3].link.delay(Duration::from_millis(2));
        let asking = nodes.iter().zip(0..).flat_map(|(node, at): (&Node, usize)| {
            (0..4).map(move |number| asks_to_join(node, format!("{at}-{number}")))
        });
        let asked = join_all(asking).await;
        let got = asked.iter().filter(|(_, got)| *got).count();
        assert!((1..=MAX).contains(&got), "{got}");
        let users = "/apps/1001/channels/presence-room?info=user_count";
        answers(&nodes[0], users, json!({ "occupied": true, "user_count": got })).await;
    }
}

// ---- counts, users ----

#[tokio::test]
async fn subscribers_are_told_how_many_there_are_on_all_nodes() {
    let nodes: [Node; 2] = nodes_with(|setup| setup.app.subscription_counts = true).await;
    let [mut one, mut two, mut three] =
        [nodes[0].connect().await, nodes[1].connect().await, nodes[1].connect().await];
    one.subscribe(NEWS).await;
    one.expect_count(NEWS, 1).await;
    two.subscribe(NEWS).await;
    one.expect_count(NEWS, 2).await;
    two.reaches_count(2).await;
    three.subscribe(NEWS).await;
    for client in [&mut one, &mut two, &mut three] {
        client.reaches_count(3).await;
    }
    three.unsubscribe(NEWS).await;
    for client in [&mut one, &mut two] {
        client.reaches_count(2).await;
    }
    // Back at once: what the other node has is known again.
    let [leave, join] = ["unsubscribe", "subscribe"]
        .map(|what| json!({ "event": format!("pusher:{what}"), "data": { "channel": NEWS } }));
    for _ in 0..20 {
        one.send_all([leave.clone(), join.clone()]).await;
        while one.next().await["event"] != "pusher_internal:subscription_succeeded" {}
        one.reaches_count(2).await;
    }
    two.reset();
    one.reaches_count(1).await;
    marker(&nodes[1], NEWS, &mut [&mut one]).await;
}

impl Client {
    /// The next frames are counts of `news`, until this one.
    async fn reaches_count(&mut self, count: usize) {
        while self.next_count().await != Some(count) {}
    }

    async fn next_count(&mut self) -> Option<usize> {
        let data = self.expect_event("pusher_internal:subscription_count", NEWS).await;
        data["subscription_count"].as_u64().map(|count| count as usize)
    }
}

#[tokio::test]
async fn who_watches_a_user_is_told_of_connections_on_all_nodes() {
    let nodes: [Node; 2] = nodes().await;
    let mut watching = sign_in(&nodes[0], "7", json!(["8", "9"])).await;
    assert_eq!(watching.expect_watched().await, json!([["offline", ["8", "9"]]]));
    let there = sign_in(&nodes[1], "8", Value::Null).await;
    assert_eq!(watching.expect_watched().await, json!([["online", ["8"]]]));
    let here = sign_in(&nodes[0], "8", Value::Null).await;
    let mut late = sign_in(&nodes[1], "6", json!(["8", "9"])).await;
    assert_eq!(late.expect_watched().await, json!([["offline", ["9"]], ["online", ["8"]]]));
    there.close().await;
    nodes[0].has_connections(3).await;
    watching.fence().await;
    // A reload that comes back on another node is not told.
    here.close().await;
    nodes[0].has_connections(2).await;
    let back = sign_in(&nodes[1], "8", Value::Null).await;
    let nine = sign_in(&nodes[1], "9", Value::Null).await;
    for client in [&mut watching, &mut late] {
        assert_eq!(client.expect_watched().await, json!([["online", ["9"]]]));
    }
    nine.close().await;
    for client in [&mut watching, &mut late] {
        assert_eq!(client.expect_watched().await, json!([["offline", ["9"]]]));
    }
    back.reset();
    for client in [&mut watching, &mut late] {
        assert_eq!(client.expect_watched().await, json!([["offline", ["8"]]]));
        client.fence().await;
    }
}

#[tokio::test]
async fn a_user_is_terminated_on_all_nodes_and_nobody_else() {
    let nodes: [Node; 2] = nodes().await;
    let mut gone = [sign_in(&nodes[0], "7", Value::Null).await, sign_in(&nodes[1], "7", Value::Null).await];
    let mut other = sign_in(&nodes[1], "8", Value::Null).await;
    let mut again = sign_in(&nodes[1], "7", Value::Null).await;
    nodes[0].post_json("/apps/1001/users/7/terminate_connections", json!({})).await.ok();
    for client in gone.iter_mut().chain([&mut again]) {
        client.expect_close(4009).await;
    }
    other.fence().await;
    nodes[0].has_connections(1).await;
    // Who is on no node is terminated as well.
    nodes[0].post_json("/apps/1001/users/nobody/terminate_connections", json!({})).await.ok();
    let mut back = sign_in(&nodes[0], "7", Value::Null).await;
    back.fence().await;
}

#[tokio::test]
async fn members_of_presence_channels_are_terminated_on_all_nodes_where_the_app_says_so() {
    for is_so in [true, false] {
        let nodes: [Node; 2] = nodes_with(|setup| setup.app.terminate_presence_members = is_so).await;
        let mut other = nodes[1].connect().await;
        other.join(ROOM, user("8")).await;
        let mut members = Vec::new();
        for node in &nodes {
            let mut member = node.connect().await;
            member.join(ROOM, user("7")).await;
            members.push(member);
        }
        other.expect_added("7", Value::Null).await;
        let mut both = sign_in(&nodes[1], "7", Value::Null).await;
        both.join("presence-own", user("7")).await;
        nodes[0].post_json("/apps/1001/users/7/terminate_connections", json!({})).await.ok();
        both.expect_close(4009).await;
        if is_so {
            for member in &mut members {
                assert_eq!(member.expect_close(4009).await, "Disconnected by the application");
            }
            other.expect_removed("7").await;
            other.fence().await;
            nodes[0].has_connections(1).await;
        } else {
            marker(&nodes[0], ROOM, &mut members.iter_mut().chain([&mut other]).collect::<Vec<_>>()).await;
            nodes[0].has_connections(3).await;
        }
    }
}

#[tokio::test]
async fn an_event_to_a_user_reaches_who_is_signed_in_on_whichever_node_once_subscribed_or_not() {
    let nodes: [Node; 3] = nodes().await;
    nodes[1].link.delay(Duration::from_millis(2));
    let event = |name: &str| json!({ "event": name, "channel": "#server-to-user-7", "data": "" });
    let mut watching = sign_in(&nodes[2], "8", json!(["7"])).await;
    watching.expect_watched().await;
    for round in 0..5 {
        // As soon as the client knows that it is signed in, it is reached from every node.
        let mut client = sign_in(&nodes[1], "7", Value::Null).await;
        for node in &nodes {
            node.publish("#server-to-user-7", "unasked", "").await;
            client.expect(event("unasked")).await;
        }
        client.subscribe("#server-to-user-7").await;
        let mut beside = sign_in(&nodes[0], "7", Value::Null).await;
        nodes[2].publish("#server-to-user-7", "asked", "").await;
        for client in [&mut client, &mut beside] {
            client.expect(event("asked")).await;
            client.fence().await;
        }
        let own = Request::get("/apps/1001/channels/%23server-to-user-7").with("info", "subscription_count");
        let answer = json!({ "occupied": true, "subscription_count": 2 });
        assert_eq!(nodes[2].send(own.signed()).await.ok(), answer, "round {round}");
        assert_eq!(nodes[0].get_json("/apps/1001/channels").await, json!({ "channels": {} }));
        client.close().await;
        beside.close().await;
        nodes[2].has_connections(1).await;
    }
    // Who only watches the user got none of it, and does not occupy the channel.
    while watching.expect_watched().await != json!([["offline", ["7"]]]) {}
    answers(&nodes[2], "/apps/1001/channels/%23server-to-user-7", json!({ "occupied": false })).await;
}

#[tokio::test]
async fn whoever_signs_in_and_subscribes_at_once_is_told_both_in_order() {
    let nodes: [Node; 2] = nodes().await;
    nodes[0].link.delay(Duration::from_millis(5));
    let mut client = nodes[0].connect().await;
    let (first, second) = (r#"{"id":"7"}"#, r#"{"id":"7","watchlist":["8"]}"#);
    let subscribe = json!({ "event": "pusher:subscribe", "data": { "channel": "#server-to-user-7" } });
    let sign_ins = [client.signed_sign_in(first), subscribe, client.signed_sign_in(second)];
    client.send_all(sign_ins).await;
    // Of two that wait, the later one is answered.
    client.expect_signed_in(second).await;
    client.expect_subscribed("#server-to-user-7").await;
    assert_eq!(client.expect_watched().await, json!([["offline", ["8"]]]));
    nodes[1].publish("#server-to-user-7", "e", "").await;
    client.expect(json!({ "event": "e", "channel": "#server-to-user-7", "data": "" })).await;
    client.sign_in(json!({ "id": "7" })).await;
    client.fence().await;
}

#[tokio::test]
async fn a_user_gets_what_is_sent_to_them_on_all_nodes() {
    const MINE: &str = "#server-to-user-7";
    let nodes: [Node; 2] = nodes().await;
    let mut other = sign_in(&nodes[1], "8", Value::Null).await;
    let [mut here, mut there] =
        [sign_in(&nodes[0], "7", Value::Null).await, sign_in(&nodes[1], "7", Value::Null).await];
    for client in [&mut here, &mut there] {
        client.subscribe(MINE).await;
    }
    for node in &nodes {
        node.publish(MINE, "hello", "1").await;
        for client in [&mut here, &mut there] {
            client.expect(json!({ "event": "hello", "channel": MINE, "data": "1" })).await;
        }
    }
    other.fence().await;
    assert_eq!(nodes[0].get_json("/apps/1001/channels").await, json!({ "channels": {} }));
}

// ---- questions ----

#[tokio::test]
async fn whichever_node_is_asked_the_answer_is_that_of_the_cluster() {
    let nodes: [Node; 3] = nodes().await;
    let mut clients = Vec::new();
    for (node, id) in nodes.iter().zip(["1", "2", "2"]) {
        let mut client = node.connect().await;
        client.subscribe(NEWS).await;
        client.join(ROOM, user(id)).await;
        clients.push(client);
    }
    let mut beside = nodes[2].connect().await;
    beside.subscribe(NEWS).await;
    beside.subscribe("private-alone").await;
    let [presence, counted] = [
        json!({ "occupied": true, "user_count": 2, "subscription_count": 3 }),
        json!({ "occupied": true, "subscription_count": 4 }),
    ];
    for node in &nodes {
        let get = async |target: &str| node.get_json(&format!("/apps/1001/{target}")).await;
        assert_eq!(get("connections").await, json!({ "connections": 4 }));
        let all = json!({ "news": {}, "presence-room": {}, "private-alone": {} });
        assert_eq!(get("channels").await, json!({ "channels": all }));
        let some = json!({ "presence-room": { "user_count": 2 } });
        assert_eq!(
            get("channels?filter_by_prefix=presence-&info=user_count").await,
            json!({ "channels": some })
        );
        let all = json!({
            "news": { "subscription_count": 4 },
            "presence-room": { "subscription_count": 3 },
            "private-alone": { "subscription_count": 1 },
        });
        assert_eq!(get("channels?info=subscription_count").await, json!({ "channels": all }));
        assert_eq!(get("channels/news?info=subscription_count").await, counted);
        assert_eq!(get("channels/presence-room?info=user_count,subscription_count").await, presence);
        assert_eq!(get("channels/nobody").await, json!({ "occupied": false }));
        assert_eq!(
            get("channels/presence-room/users").await,
            json!({ "users": [{ "id": "1" }, { "id": "2" }] })
        );
        let event = json!({ "name": "e", "data": "", "channels": [ROOM, NEWS], "info": "user_count,subscription_count" });
        let info = node.post_json(EVENTS, event).await.ok();
        let mut presence = presence.clone();
        presence.as_object_mut().unwrap().remove("occupied");
        assert_eq!(
            info,
            json!({ "channels": { "presence-room": presence, "news": { "subscription_count": 4 } } })
        );
        // Another app's are its own.
        let theirs = Request::get("/apps/1002/channels").signed_with(&OTHER);
        assert_eq!(node.send(theirs).await.ok(), json!({ "channels": {} }));
    }
}

// ---- the end of a node ----

#[tokio::test]
async fn a_node_that_dies_is_cleared_away_once_its_lease_has_run_out() {
    let short = |setup: &mut Setup| {
        setup.app.subscription_counts = true;
        setup.options.cluster.timing.lease = Duration::from_secs(2);
    };
    let [one, two, three]: [Node; 3] = nodes_with(short).await;
    let mut watching = one.connect().await;
    watching.join(ROOM, user("1")).await;
    let mut counting = three.connect().await;
    counting.subscribe(NEWS).await;
    let mut dying = two.connect().await;
    dying.join(ROOM, user("7")).await;
    dying.join("presence-other", user("7")).await;
    dying.subscribe(NEWS).await;
    let mut also = three.connect().await;
    also.join(ROOM, user("8")).await;
    watching.expect_added("7", Value::Null).await;
    watching.expect_added("8", Value::Null).await;
    counting.reaches_count(2).await;
    one.has_connections(4).await;

    let begin = Instant::now();
    two.crash();
    watching.expect_removed("7").await;
    also.expect_removed("7").await;
    assert!(begin.elapsed() > Duration::from_secs(1), "it might have come back: {:?}", begin.elapsed());
    counting.reaches_count(1).await;
    let left = json!({ "channels": { "presence-room": {}, "news": {} } });
    answers(&one, "/apps/1001/channels", left).await;
    one.has_connections(3).await;
    marker(&three, ROOM, &mut [&mut watching, &mut also]).await;
    watching.fence().await;
    for client in [watching, also, counting] {
        client.close().await;
    }
    eventually("nothing is left", async || one.broker.is_empty()).await;
}

#[tokio::test]
async fn a_node_that_stops_takes_its_members_with_it_at_once() {
    let [one, two]: [Node; 2] = nodes().await;
    let mut watching = one.connect().await;
    watching.join(ROOM, user("1")).await;
    let mut leaving = two.connect().await;
    leaving.join(ROOM, user("7")).await;
    watching.expect_added("7", Value::Null).await;
    two.signal(Shutdown::Graceful).await;
    watching.expect_removed("7").await;
    one.has_connections(1).await;
    leaving.expect_close(4200).await;
    two.ended().await;
    watching.close().await;
    let broker = one.broker.clone();
    one.stop().await;
    assert!(broker.is_empty());
}

#[tokio::test]
async fn a_node_that_was_given_up_comes_back_and_nobody_is_doubled() {
    let nodes: [Node; 2] = nodes_with(|setup| setup.app.subscription_counts = true).await;
    let mut watching = nodes[0].connect().await;
    let mut roster = Roster::of(&mut watching, user("1")).await;
    let mut paused = nodes[1].connect().await;
    let mut theirs = Roster::of(&mut paused, user("7")).await;
    let mut counting = nodes[1].connect().await;
    counting.subscribe(NEWS).await;
    for _ in 0..3 {
        nodes[1].link.expire();
        let there = json!({ "occupied": true, "user_count": 2, "subscription_count": 2 });
        answers(
            &nodes[0],
            "/apps/1001/channels/presence-room?info=user_count,subscription_count",
            there.clone(),
        )
        .await;
        // Whatever was said meanwhile, it fits together.
        nodes[1].publish(ROOM, "marker", "").await;
        roster.follow(&mut watching).await;
        theirs.follow(&mut paused).await;
    }
    // Who comes and goes afterwards does so as before.
    let mut late = nodes[1].connect().await;
    late.join(ROOM, user("8")).await;
    late.close().await;
    let there = json!({ "occupied": true, "user_count": 2, "subscription_count": 2 });
    answers(&nodes[0], "/apps/1001/channels/presence-room?info=user_count,subscription_count", there).await;
    paused.close().await;
    let alone = json!({ "occupied": true, "user_count": 1, "subscription_count": 1 });
    answers(&nodes[0], "/apps/1001/channels/presence-room?info=user_count,subscription_count", alone).await;
    nodes[0].publish(ROOM, "marker", "").await;
    roster.follow(&mut watching).await;
    assert_eq!(roster.0.keys().collect::<Vec<_>>(), ["1"]);
}

// ---- trouble with the broker ----

/// Asks to publish.
async fn publishing(server: &Server, channel: &str) -> Answer {
    server.post_json(EVENTS, json!({ "name": "e", "channel": channel, "data": "" })).await
}

#[tokio::test]
async fn without_its_broker_a_node_keeps_its_sockets_and_refuses_what_it_cannot_do() {
    let nodes: [Node; 2] = nodes().await;
    let mut clients = subscribers(&nodes, NEWS).await;
    nodes[0].link.cut();
    nodes[0].is_ready(false).await;
    nodes[1].is_ready(true).await;
    let refused = publishing(&nodes[0], NEWS).await;
    refused.rejected(503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    for target in ["channels", "channels/news", "channels/presence-room/users", "connections"] {
        nodes[0].get(&format!("/apps/1001/{target}")).await.rejected(503);
    }
    nodes[0].post_json("/apps/1001/users/7/terminate_connections", json!({})).await.rejected(503);
    clients[0].fence().await;
    // New connections are taken, and subscribed when the broker is there again.
    let mut waiting = nodes[0].connect().await;
    waiting.ask(NEWS).await;
    waiting.fence().await;
    nodes[0].link.mend();
    waiting.expect_subscribed(NEWS).await;
    nodes[0].is_ready(true).await;
    publishing(&nodes[0], NEWS).await.ok();
    for client in clients.iter_mut().chain([&mut waiting]) {
        client.expect(json!({ "event": "e", "channel": NEWS, "data": "" })).await;
        client.fence().await;
    }
}

#[tokio::test]
async fn where_that_is_wanted_a_node_without_its_broker_delivers_to_its_own() {
    let local = |setup: &mut Setup| setup.options.cluster.local_when_broker_lost = true;
    let nodes: [Node; 2] = nodes_with(local).await;
    let mut clients = subscribers(&nodes, "private-room").await;
    let mut beside = nodes[0].connect().await;
    beside.subscribe("private-room").await;
    nodes[0].link.cut();
    nodes[0].is_ready(false).await;
    publishing(&nodes[0], "private-room").await.ok();
    let event = json!({ "event": "e", "channel": "private-room", "data": "" });
    clients[0].expect(event.clone()).await;
    beside.expect(event).await;
    beside.whisper("private-room", "client-x", json!(1)).await;
    assert_eq!(clients[0].next().await["event"], "client-x");
    beside.fence().await;
    clients[1].fence().await;
    nodes[0].link.mend();
    nodes[0].is_ready(true).await;
    marker(&nodes[0], "private-room", &mut clients.iter_mut().chain([&mut beside]).collect::<Vec<_>>()).await;
}

/// What is repaired when a broker is there again: everybody in the room, and the count of `news`.
async fn repairs(break_it: impl AsyncFn(&[Node; 2])) {
    let nodes: [Node; 2] = nodes_with(|setup| setup.app.subscription_counts = true).await;
    let mut watching = nodes[0].connect().await;
    let mut roster = Roster::of(&mut watching, user("here")).await;
    let mut elsewhere = nodes[1].connect().await;
    let mut theirs = Roster::of(&mut elsewhere, user("there")).await;
    let mut counting = nodes[1].connect().await;
    counting.subscribe(NEWS).await;
    let mut leaving = Vec::new();
    for (node, id) in nodes.iter().zip(["a", "b"]) {
        let mut client = node.connect().await;
        client.join(ROOM, user(id)).await;
        client.subscribe(NEWS).await;
        leaving.push(client);
    }
    counting.reaches_count(3).await;
    break_it(&nodes).await;
    drop(leaving);
    let mut late = Vec::new();
    for (node, id) in nodes.iter().zip(["c", "d"]) {
        let mut client = node.connect().await;
        client.ask_as(ROOM, &user(id).to_string()).await;
        late.push(client);
    }
    for node in &nodes {
        node.link.mend();
        node.is_ready(true).await;
    }
    for node in &nodes {
        let there = json!({ "occupied": true, "user_count": 4, "subscription_count": 4 });
        answers(node, "/apps/1001/channels/presence-room?info=user_count,subscription_count", there).await;
        let counted = json!({ "occupied": true, "subscription_count": 1 });
        answers(node, "/apps/1001/channels/news?info=subscription_count", counted).await;
    }
    counting.reaches_count(1).await;
    let there = ["c", "d", "here", "there"];
    roster.becomes(&mut watching, &nodes[1], &there).await;
    theirs.becomes(&mut elsewhere, &nodes[1], &there).await;
    marker(&nodes[0], NEWS, &mut [&mut counting]).await;
}

#[tokio::test]
async fn what_one_node_missed_is_made_good() {
    repairs(async |nodes: &[Node; 2]| nodes[0].link.cut()).await;
}

#[tokio::test]
async fn what_all_nodes_missed_is_made_good() {
    repairs(async |nodes: &[Node; 2]| nodes.iter().for_each(|node| node.link.cut())).await;
}

#[tokio::test]
async fn what_a_node_missed_that_was_given_up_meanwhile_is_made_good() {
    repairs(async |nodes: &[Node; 2]| {
        nodes[0].link.cut();
        nodes[0].link.expire();
    })
    .await;
}

#[tokio::test]
async fn what_the_broker_forgot_is_said_anew() {
    repairs(async |nodes: &[Node; 2]| nodes[0].broker.forget_all()).await;
}

#[tokio::test]
async fn what_the_broker_forgot_while_it_was_away_is_said_anew() {
    repairs(async |nodes: &[Node; 2]| {
        nodes.iter().for_each(|node| node.link.cut());
        nodes[0].broker.forget_all();
    })
    .await;
}
