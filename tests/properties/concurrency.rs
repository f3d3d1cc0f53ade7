//! Many tasks on many threads, each with connections of its own that come, go, publish and sign in. When all are done,
//! nobody is left over, no count is off, and everybody has heard every publisher's events in order and without a gap.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pusherd::apps::App;
use pusherd::hub::{ChannelQuery, Hub, SignIn};
use pusherd::outbox::Outbox;
use pusherd::protocol::message::{Event, Source};
use pusherd::protocol::{ChannelName, Member, NameRules, SocketId, UserId};
use pusherd::webhooks::Webhooks;
use serde_json::Value;

use super::properties::naive;

const CHANNELS: [&str; 3] = ["x", "presence-r", "cache-c"];
const ACTORS: u32 = 6;
/// Connections that an actor has, one after the other.
const ROUNDS: u32 = 150;
/// Connections that are there all the time: so many that a channel is delivered in turns.
const STAYERS: u32 = 40;
/// Users of the actors, who have several connections at a time.
const USERS: u32 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_many_do_at_once_nobody_is_left_over_and_nothing_is_lost() {
    let (hub, app) = (
        Hub::new(pusherd::observers::Observers::default(), Arc::default(), Webhooks::default()),
        Arc::new(App::new("1", "key", "secret")),
    );
    let stayers: Vec<_> = (0..STAYERS).map(|id| outbox(id, 0)).collect();
    for outbox in &stayers {
        for channel in CHANNELS {
            join(&hub, &app, outbox, channel, "stayer");
        }
    }
    let actors: Vec<_> =
        (1..=ACTORS).map(|actor| tokio::spawn(act(hub.clone(), Arc::clone(&app), actor))).collect();
    let mut published: BTreeMap<Publisher, u32> = BTreeMap::new();
    for actor in actors {
        published.extend(actor.await.unwrap());
    }

    // What was published last may still be on its way.
    let everything: u32 = published.values().sum();
    for outbox in &stayers {
        let mut heard = Heard::default();
        let until = tokio::time::Instant::now() + Duration::from_secs(20);
        while heard.events < everything {
            assert!(tokio::time::Instant::now() < until, "{} of {everything} events came", heard.events);
            heard.take(outbox);
            tokio::task::yield_now().await;
        }
        heard.take(outbox);
        assert_eq!(heard.last, published, "all of them, in order");
        assert_eq!(heard.members, BTreeSet::new(), "every member that joined has left");
    }
    for channel in CHANNELS {
        let found = hub.channel(&app, &name(channel), ChannelQuery::default()).await.unwrap();
        assert_eq!(found.subscriptions, STAYERS as usize, "{channel}");
    }
    let there = hub.users(&app, &name("presence-r")).await.unwrap();
    let there: Vec<_> = there.iter().map(|user| user.as_str().to_owned()).collect();
    assert_eq!(there, ["stayer"]);
    for user in (0..USERS).map(user) {
        assert_eq!(hub.terminate_user(&app, &user).await, Ok(0), "nobody is signed in as {user}");
    }
    for outbox in &stayers {
        hub.leave_chunk(&app, &mut CHANNELS.map(name).to_vec(), outbox.socket());
    }
    let mut channels = hub.channels(&app, "", ChannelQuery::default()).await.unwrap();
    while let Some(some) = channels.next_chunk() {
        assert_eq!(some, []);
    }
}

/// A channel and who publishes in it.
type Publisher = (String, u32);

/// Does everything that a client and an application do; how many events it has published in which channel.
async fn act(hub: Hub, app: Arc<App>, actor: u32) -> BTreeMap<Publisher, u32> {
    let mut published: BTreeMap<Publisher, u32> =
        CHANNELS.map(|channel| ((channel.to_owned(), actor), 0)).into_iter().collect();
    let mut random = actor;
    let mut below = |end: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16) % end
    };
    for round in 0..ROUNDS {
        let outbox = outbox(round, actor);
        let who = user(below(USERS));
        let mut there: BTreeMap<&str, u32> = BTreeMap::new();
        let signs_in = below(2) == 0;
        if signs_in {
            let sign_in = SignIn {
                user: &who,
                user_data: "{}",
                previous_watchlist: &[],
                watchlist: &[],
                truncated_to: None,
            };
            hub.sign_in(&app, &outbox, &sign_in);
        }
        let mut heard = Heard::default();
        for _ in 0..below(12) {
            let channel = CHANNELS[below(3) as usize];
            let count = published.get_mut(&(channel.to_owned(), actor)).unwrap();
            match below(4) {
                0 => {
                    join(&hub, &app, &outbox, channel, who.as_str());
                    there.entry(channel).or_insert(*count);
                }
                1 => {
                    hub.leave(&app, &name(channel), outbox.socket());
                    if let Some(since) = there.remove(channel) {
                        heard.take(&outbox);
                        heard.left(channel, actor, since);
                    }
                }
                _ => {
                    let data = format!("\"{actor} {count}\"");
                    *count += 1;
                    let channel = &name(channel);
                    let event = Event { channel, name: "e", data: &data, except: None, source: Source::App };
                    hub.publish(&app, [event]).await.unwrap();
                }
            }
        }
        hub.leave_chunk(&app, &mut CHANNELS.map(name).to_vec(), outbox.socket());
        if signs_in {
            hub.sign_out(&app, outbox.socket(), &who, &[]);
        }
        heard.take(&outbox);
        for (channel, since) in there {
            heard.left(channel, actor, since);
        }
        tokio::task::yield_now().await;
        heard.take(&outbox);
        assert_eq!(heard.last, BTreeMap::new(), "nothing comes to who has left");
    }
    published
}

/// What a connection has heard.
#[derive(Debug, Default)]
struct Heard {
    events: u32,
    /// The number behind the last of each publisher.
    last: BTreeMap<Publisher, u32>,
    /// The first of each publisher.
    first: BTreeMap<Publisher, u32>,
    /// Users who have come since.
    members: BTreeSet<String>,
    /// Channels whose acknowledgement has come.
    acknowledged: BTreeSet<String>,
}

impl Heard {
    fn take(&mut self, outbox: &Outbox) {
        for (_, payload) in naive::frames(&outbox.take_queued().concat()) {
            let frame: Value = serde_json::from_slice(&payload).unwrap();
            if frame["event"] == "pusher:signin_success" {
                continue;
            }
            let text = |key: &str| frame[key].as_str().unwrap().to_owned();
            let (channel, data) = (text("channel"), text("data"));
            let user =
                || serde_json::from_str::<Value>(&data).unwrap()["user_id"].as_str().unwrap().to_owned();
            match text("event").as_str() {
                "e" => self.event(channel, &data),
                "pusher_internal:member_added" => assert!(self.members.insert(user()), "{} twice", user()),
                // Who was there before may go.
                "pusher_internal:member_removed" => drop(self.members.remove(&user())),
                "pusher_internal:subscription_succeeded" => drop(self.acknowledged.insert(channel)),
                "pusher:cache_miss" => {}
                other => panic!("{other}"),
            }
        }
    }

    fn event(&mut self, channel: String, data: &str) {
        assert!(self.acknowledged.contains(&channel), "nothing comes ahead of the acknowledgement");
        let (publisher, number) = data.split_once(' ').unwrap();
        let number: u32 = number.parse().unwrap();
        let publisher = (channel, publisher.parse().unwrap());
        self.events += 1;
        self.first.entry(publisher.clone()).or_insert(number);
        let next = self.last.entry(publisher).or_insert(number);
        assert_eq!(*next, number, "without a gap");
        *next += 1;
    }

    /// The connection has left a channel, into which it had come when `actor` had published so many.
    fn left(&mut self, channel: &str, actor: u32, since: u32) {
        let own = (channel.to_owned(), actor);
        let is_cached = channel.starts_with("cache-");
        if let Some(first) = self.first.get(&own)
            && !is_cached
        {
            assert_eq!(*first, since, "its own first event since it came");
        }
        self.last.retain(|(of, _), _| of != channel);
        self.first.retain(|(of, _), _| of != channel);
        self.acknowledged.remove(channel);
        if channel.starts_with("presence-") {
            self.members.clear();
        }
    }
}

fn name(channel: &str) -> ChannelName {
    ChannelName::parse(channel, &NameRules::default()).unwrap()
}

fn user(number: u32) -> UserId {
    UserId::parse(&format!("u{number}"), 128).unwrap()
}

fn outbox(number: u32, actor: u32) -> Arc<Outbox> {
    Arc::new(Outbox::detached(SocketId::new(number, actor), usize::MAX))
}

fn join(hub: &Hub, app: &Arc<App>, outbox: &Arc<Outbox>, channel: &str, user: &str) {
    let member = channel
        .starts_with("presence-")
        .then(|| Member { id: UserId::parse(user, 128).unwrap(), info: "null".into() });
    hub.join(app, outbox, &name(channel), member).unwrap();
}
