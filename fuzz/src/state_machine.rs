//! Sessions, registry and users against a naive model: connections of two apps perform any operations in any order, and
//! deliveries may be delayed. Afterwards each connection has received, for each channel and in order, exactly what was
//! published since it subscribed; member lists, counts and caches equal the model; and when all connections are closed,
//! registry and users are empty.
//!
//! The first byte of the input selects whether deliveries are delayed. The rest is a list of [`Op`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use pusherd::apps::{App, AppLimits};
use pusherd::limits::Rate;
use pusherd::outbox::Outbox;
use pusherd::protocol::message::{Event, ServerMessage, Source};
use pusherd::protocol::wire::pusher::{decode, encode};
use pusherd::protocol::wire::{Form, Frame};
use pusherd::protocol::{ChannelName, NameRules, SocketId};
use pusherd::registry::{
    CacheLimits, ChannelInfo, ChannelKey, ChannelPermits, Drive, Join, JoinError, Pass, Registry, Users,
};
use pusherd::session::{Action, Session};
use serde_json::{Value, json};

use super::naive;

/// Most operations in a run.
const OPS: usize = 300;
/// Connections that act individually.
const ACTORS: usize = 8;
/// Further connections, which subscribe to a channel together, so that a pass takes more than one turn.
const CROWD: usize = 70;
/// Distinct users in a presence channel.
const MEMBERS: usize = 2;
/// Channels of one connection.
const SUBSCRIPTIONS: usize = 5;
const CACHE_TTL: Duration = Duration::from_secs(30);
/// How long a user counts as online after the last connection ended.
const LINGER: Duration = Duration::from_secs(2);

const USERS: [&str; 4] = ["u0", "u1", "u2", "u3"];
const CHANNELS: [&str; 9] = [
    "x",
    "private-p",
    "presence-r",
    "cache-c",
    "private-cache-q",
    "presence-cache-s",
    "private-encrypted-e",
    "#server-to-user-u1",
    "not a channel",
];

/// One operation.
#[derive(Arbitrary, Clone, Debug)]
enum Op {
    Subscribe {
        who: u8,
        channel: u8,
        user: u8,
        proof: Proof,
    },
    Unsubscribe {
        who: u8,
        channel: u8,
    },
    Whisper {
        who: u8,
        channel: u8,
    },
    SignIn {
        who: u8,
        user: u8,
        watches: u8,
        forged: bool,
    },
    /// Rare, so that connections stay open for a while.
    Disconnect {
        who: u8,
        chance: u8,
    },
    /// Events published in order, like a batch.
    Publish {
        app: bool,
        events: Vec<(u8, Option<u8>)>,
    },
    Crowd {
        channel: u8,
        chance: u8,
    },
    Pass {
        secs: u8,
    },
    /// A part of the delayed deliveries.
    Deliver {
        which: u8,
    },
}

/// The signature of a request to subscribe.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Proof {
    Good,
    /// As the signed-in user, without `channel_data`.
    Bare,
    Forged,
    None,
}

/// A received frame in words, with its channel: `""` if it has none.
type Word = (String, String);

/// A connection, as the transport has it, and the frames that it should have received.
struct Client {
    outbox: Arc<Outbox>,
    session: Session,
    signed_in: Option<usize>,
    watches: Vec<usize>,
    heard: Vec<Word>,
    expected: Vec<Word>,
}

/// The model of a channel.
#[derive(Default)]
struct Channel {
    /// Connections, each with its user on presence channels.
    subscribers: BTreeMap<usize, Option<String>>,
    /// Users and their info, in order of joining.
    roster: Vec<(String, String)>,
    /// The cached event and when it expires.
    cached: Option<(String, Duration)>,
}

/// The model of a user.
#[derive(Default)]
struct User {
    connections: BTreeSet<usize>,
    watchers: BTreeSet<usize>,
    online: bool,
    left: Duration,
}

struct World {
    registry: Registry,
    users: Users,
    lags: bool,
    now: Duration,
    sockets: u32,
    events: u32,
    apps: [Arc<App>; 2],
    clients: BTreeMap<usize, Client>,
    /// By the index of the app and of the channel.
    channels: BTreeMap<(usize, usize), Channel>,
    people: BTreeMap<(usize, usize), User>,
    /// Users whose last connection ended, and when they go offline.
    leaving: Vec<(Duration, (usize, usize))>,
    drives: Vec<(Drive, Option<Pass>)>,
    /// The outboxes of closed connections.
    gone: Vec<Arc<Outbox>>,
}

/// See the module.
pub fn holds(data: &[u8]) {
    let [lags, rest @ ..] = data else { return };
    let mut world = World::new(lags & 1 == 1);
    let mut rest = Unstructured::new(rest);
    for _ in 0..OPS {
        // Read one by one: an arbitrary list of `Op` is often short.
        let Ok(op) = Op::arbitrary(&mut rest) else { break };
        world.act(op);
        if rest.is_empty() {
            break;
        }
    }
    world.deliver_and_compare();
    world.end();
}

fn permits(app: &App) -> ChannelPermits<'_> {
    ChannelPermits { held: &app.state.channels, max: None }
}

fn cache(app: &App) -> CacheLimits<'_> {
    CacheLimits { ttl: CACHE_TTL, permits: permits(app), bytes_max: usize::MAX }
}

fn of_app(who: usize) -> usize {
    usize::from(who < ACTORS && who % 3 == 2)
}

/// Every second connection has lines of text, the others have frames.
fn form_of(who: usize) -> Form {
    if who.is_multiple_of(2) { Form::Frame } else { Form::Text }
}

fn is_presence(channel: usize) -> bool {
    CHANNELS[channel].starts_with("presence-")
}

/// Whether it is a user's own channel, which belongs to the sign-in.
fn is_users(channel: usize) -> bool {
    CHANNELS[channel].starts_with('#')
}

fn needs_proof(channel: usize) -> bool {
    is_presence(channel) || CHANNELS[channel].starts_with("private-")
}

fn is_cached(channel: usize) -> bool {
    CHANNELS[channel].contains("cache-")
}

fn is_counted(app: usize, channel: usize) -> bool {
    app == 1 && !is_presence(channel) && !is_users(channel)
}

fn name(channel: usize) -> Option<ChannelName> {
    ChannelName::parse(CHANNELS[channel], &NameRules::default()).ok()
}

impl World {
    fn new(lags: bool) -> Self {
        let fast = Rate { per_second: 1_000_000, burst: 1_000_000 };
        let app = |id: &str| App {
            limits: AppLimits {
                presence_members_max: MEMBERS,
                channels_per_connection_max: SUBSCRIPTIONS,
                messages: fast,
                client_events: fast,
                cache_ttl: CACHE_TTL,
                ..AppLimits::default()
            },
            subscription_counts: id == "1",
            ..App::new(id, "key", "secret")
        };
        Self {
            registry: Registry::default(),
            users: Users::default(),
            lags,
            now: Duration::from_secs(100),
            sockets: 0,
            events: 0,
            apps: [Arc::new(app("0")), Arc::new(app("1"))],
            clients: BTreeMap::new(),
            channels: BTreeMap::new(),
            people: BTreeMap::new(),
            leaving: Vec::new(),
            drives: Vec::new(),
            gone: Vec::new(),
        }
    }

    fn act(&mut self, op: Op) {
        let actor = |who: u8| usize::from(who) % ACTORS;
        let channel = |channel: u8| usize::from(channel) % CHANNELS.len();
        match op {
            Op::Subscribe { who, channel: at, user, proof } => {
                self.subscribe(actor(who), channel(at), usize::from(user) % USERS.len(), proof);
            }
            Op::Unsubscribe { who, channel: at } => self.unsubscribe(actor(who), channel(at)),
            Op::Whisper { who, channel: at } => self.whisper(actor(who), channel(at)),
            Op::SignIn { who, user, watches, forged } => {
                self.sign_in(actor(who), usize::from(user) % USERS.len(), watches, forged);
            }
            Op::Disconnect { chance, .. } | Op::Crowd { chance, .. } if chance >= 64 => {}
            Op::Disconnect { who, .. } => self.disconnect(actor(who)),
            Op::Publish { app, events } => {
                for (at, except) in events.into_iter().take(10) {
                    let drive = self.publish(usize::from(app), channel(at), except.map(actor));
                    self.drive(drive);
                }
            }
            Op::Crowd { channel: at, .. } => {
                for who in ACTORS..ACTORS + CROWD {
                    self.subscribe(who, channel(at), 0, Proof::Good);
                }
            }
            Op::Pass { secs } => {
                // Around the time that users linger, and more than the time that an event is cached.
                const SECS: [u64; 8] = [0, 1, 1, 1, 2, 3, 6, 31];
                self.pass(Duration::from_secs(SECS[usize::from(secs) % SECS.len()]));
            }
            Op::Deliver { which } => self.deliver(usize::from(which)),
        }
    }

    /// The connection, which is opened if it does not exist. Socket ids are never reused.
    fn client(&mut self, who: usize) -> &mut Client {
        self.sockets += 1;
        let socket = SocketId::new(self.sockets, 7);
        let app = Arc::clone(&self.apps[of_app(who)]);
        self.clients.entry(who).or_insert_with(|| Client {
            outbox: Arc::new(Outbox::detached(socket, usize::MAX).with_form(form_of(who))),
            session: Session::new(socket, app),
            signed_in: None,
            watches: Vec::new(),
            heard: Vec::new(),
            expected: Vec::new(),
        })
    }

    fn key(&self, app: usize, channel: usize) -> ChannelKey {
        ChannelKey { app: Arc::clone(&self.apps[app].id.0), channel: name(channel).unwrap() }
    }

    /// Decodes a message and passes it to the session.
    fn receive(&mut self, who: usize, message: &Value) -> Done {
        let now = self.now;
        let text = message.to_string();
        let client = self.client(who);
        match client.session.receive(decode(&text).unwrap(), now) {
            Action::Join { channel, member } => {
                Done::Join(channel, member.map(|member| (member.id.as_str().to_owned(), member)))
            }
            Action::Leave { channel } => Done::Leave(channel),
            Action::Publish { channel, name, data, user } => {
                Done::Publish(channel, name.into_owned(), data.to_owned(), user)
            }
            Action::SignIn { signed_in, previous_watchlist, .. } => {
                Done::SignIn(signed_in, previous_watchlist)
            }
            Action::Refuse { .. } | Action::Reject { .. } | Action::Error { .. } | Action::Nothing => {
                Done::Refused
            }
            other => panic!("{other:?}"),
        }
    }

    fn subscribe(&mut self, who: usize, at: usize, user: usize, proof: Proof) {
        let app = of_app(who);
        let socket = self.client(who).outbox.socket();
        let signed_in = self.clients[&who].signed_in;
        let channel_data = (is_presence(at) && !matches!(proof, Proof::Bare))
            .then(|| json!({ "user_id": USERS[user], "user_info": who }).to_string());
        let sign = |secret| {
            let data = channel_data.as_ref().map(|data| format!(":{data}")).unwrap_or_default();
            json!(format!("key:{}", naive::hmac(secret, &format!("{socket}:{}{data}", CHANNELS[at]))))
        };
        let auth = match proof {
            _ if !needs_proof(at) => Value::Null,
            Proof::Good | Proof::Bare => sign("secret"),
            Proof::Forged => sign("wrong"),
            Proof::None => Value::Null,
        };
        let data = json!({ "channel": CHANNELS[at], "auth": auth, "channel_data": channel_data });
        let done = self.receive(who, &json!({ "event": "pusher:subscribe", "data": data }));

        // The expected decision.
        let is_good = matches!(proof, Proof::Good | Proof::Bare);
        let member = match (is_presence(at), proof) {
            (false, _) => None,
            (true, Proof::Bare) => signed_in.map(|user| (USERS[user].to_owned(), "null".to_owned())),
            (true, _) => Some((USERS[user].to_owned(), who.to_string())),
        };
        let proven = match CHANNELS[at] {
            "not a channel" => false,
            "#server-to-user-u1" => signed_in == Some(1),
            name if name.starts_with("private-") => is_good,
            name if name.starts_with("presence-") => is_good && member.is_some(),
            _ => true,
        };
        let taken = self.channels.iter().filter(|((of, at), channel)| {
            *of == app && !is_users(*at) && channel.subscribers.contains_key(&who)
        });
        let taken = taken.count();
        let there = self.channels.get(&(app, at)).and_then(|channel| channel.subscribers.get(&who));
        let user_id = member.as_ref().map(|(id, _)| id.clone());
        let may =
            proven && there.map_or(taken < SUBSCRIPTIONS || is_users(at), |as_user| *as_user == user_id);
        let Done::Join(channel, as_member) = done else {
            assert!(!may, "{who} was refused {}", CHANNELS[at]);
            return;
        };
        assert!(may, "{who} was let into {}", CHANNELS[at]);
        assert_eq!(as_member.as_ref().map(|(id, _)| id), user_id.as_ref());
        self.join(who, at, channel, as_member.map(|(_, member)| member), member);
    }

    fn join(
        &mut self,
        who: usize,
        at: usize,
        channel: ChannelName,
        as_member: Option<pusherd::protocol::Member>,
        member: Option<(String, String)>,
    ) {
        let (app, now) = (of_app(who), self.now);
        let outbox = Arc::clone(&self.clients[&who].outbox);
        let user = as_member.as_ref().map(|member| member.id.clone());
        let permits = permits(&self.apps[app]);
        let wish = Join {
            member: as_member,
            members_max: MEMBERS,
            counts: app == 1,
            permits,
            acknowledgement: None,
        };
        let joined = self.registry.join(&self.key(app, at), &outbox, &wish, now);
        let known = self.channels.entry((app, at)).or_default();
        let is_new = |(id, _): &(String, String)| !known.roster.iter().any(|(other, _)| other == id);
        let added = member.clone().filter(is_new);
        let again = known.subscribers.contains_key(&who);
        if !again && added.is_some() && known.roster.len() >= MEMBERS {
            assert!(matches!(joined, Err(JoinError::TooManyMembers)));
            return;
        }
        let joined = joined.unwrap();
        self.clients.get_mut(&who).unwrap().session.subscribed(channel, user);
        assert_eq!(joined.already_subscribed, again);
        assert_eq!(joined.occupied, known.subscribers.is_empty());
        assert_eq!(joined.member_added, added.is_some());
        let cached = known.cached.as_ref().filter(|(_, until)| *until > now).map(|(event, _)| event.clone());
        assert_eq!(joined.cache_miss, !again && is_cached(at) && cached.is_none());
        let mut others = Vec::new();
        if let Some((id, info)) = added {
            others = known.subscribers.keys().copied().collect();
            known.roster.push((id, info));
        }
        let ids: Vec<_> = known.roster.iter().map(|(id, info)| format!("{id}={info}")).collect();
        let acknowledged = if is_presence(at) { format!("in {}", ids.join(",")) } else { "in".to_owned() };
        known.subscribers.insert(who, member.clone().map(|(id, _)| id));
        let count = known.subscribers.len();
        let all: Vec<_> = known.subscribers.keys().copied().collect();

        for other in others {
            self.expect(other, at, format!("+{}", member.as_ref().unwrap().0));
        }
        self.expect(who, at, acknowledged);
        if !again {
            if is_cached(at) {
                self.expect(who, at, cached.unwrap_or_else(|| "miss".to_owned()));
            }
            if is_counted(app, at) {
                all.iter().for_each(|who| self.expect(*who, at, format!("count {count}")));
            }
        }
        self.drive(joined.drive);
    }

    /// A sign-in subscribes the connection to its user's own channel. Its acknowledgement replaces that of the subscription.
    fn join_own(&mut self, who: usize, at: usize, user_data: &str) {
        let (app, now) = (of_app(who), self.now);
        let outbox = Arc::clone(&self.clients[&who].outbox);
        let permits = permits(&self.apps[app]);
        let told = encode(&ServerMessage::SignedIn { user_data });
        let wish =
            Join { member: None, members_max: 0, counts: false, permits, acknowledgement: Some(&told) };
        let joined = self.registry.join(&self.key(app, at), &outbox, &wish, now).unwrap();
        let known = self.channels.entry((app, at)).or_default();
        let is_new = known.subscribers.insert(who, None).is_none();
        assert_eq!(joined.already_subscribed, !is_new);
        self.drive(joined.drive);
        self.expect_of_connection(who, "signed in".to_owned());
    }

    fn unsubscribe(&mut self, who: usize, at: usize) {
        let done =
            self.receive(who, &json!({ "event": "pusher:unsubscribe", "data": { "channel": CHANNELS[at] } }));
        let there =
            self.channels.get(&(of_app(who), at)).is_some_and(|known| known.subscribers.contains_key(&who));
        match done {
            Done::Leave(channel) => {
                assert!(there && channel.as_str() == CHANNELS[at]);
                self.leave(who, at);
            }
            // A signed-in connection stays in its user's own channel.
            _ => assert!(!there || is_users(at)),
        }
    }

    fn leave(&mut self, who: usize, at: usize) {
        let (app, now) = (of_app(who), self.now);
        let socket = self.clients[&who].outbox.socket();
        let left = self.registry.leave(&self.key(app, at), socket, app == 1, now).expect("a subscriber");
        let known = self.channels.get_mut(&(app, at)).unwrap();
        let user = known.subscribers.remove(&who).unwrap();
        assert_eq!(left.vacated, known.subscribers.is_empty());
        let is_last =
            user.as_ref().filter(|id| !known.subscribers.values().any(|other| other.as_ref() == Some(id)));
        let gone = is_last.cloned();
        assert_eq!(left.member_removed.map(|id| id.as_str().to_owned()), gone);
        let all: Vec<_> = known.subscribers.keys().copied().collect();
        if let Some(gone) = &gone {
            known.roster.retain(|(id, _)| id != gone);
        }
        // Nothing of the channel arrives after this.
        self.hear(who);
        let client = self.clients.get_mut(&who).unwrap();
        let of_channel = |words: &[Word]| {
            let words = words.iter().filter(|(channel, _)| channel == CHANNELS[at]).cloned();
            words.partition::<Vec<Word>, _>(is_acknowledgement)
        };
        let (told, heard) = of_channel(&client.heard);
        let (to_tell, expected) = of_channel(&client.expected);
        assert_eq!(told, to_tell, "{who}");
        assert!(expected.starts_with(&heard), "{who} heard {heard:?} of {expected:?}");
        assert!(self.lags || heard.len() == expected.len(), "{who} heard {heard:?} of {expected:?}");
        client.expected.retain(|(channel, _)| channel != CHANNELS[at]);
        client.heard.retain(|(channel, _)| channel != CHANNELS[at]);

        for other in &all {
            if let Some(gone) = &gone {
                self.expect(*other, at, format!("-{gone}"));
            }
            if is_counted(app, at) {
                self.expect(*other, at, format!("count {}", all.len()));
            }
        }
        self.drive(left.drive);
    }

    fn whisper(&mut self, who: usize, at: usize) {
        self.events += 1;
        let app = of_app(who);
        let message = json!({ "event": "client-e", "channel": CHANNELS[at], "data": self.events });
        let done = self.receive(who, &message);
        let subscribers =
            self.channels.get(&(app, at)).map(|known| known.subscribers.clone()).unwrap_or_default();
        let takes =
            CHANNELS[at].starts_with("private-") && !CHANNELS[at].contains("encrypted") || is_presence(at);
        let Done::Publish(channel, name, data, user) = done else {
            assert!(!takes || !subscribers.contains_key(&who), "{who} may not whisper in {}", CHANNELS[at]);
            return;
        };
        assert!(takes && subscribers.contains_key(&who), "{who} may whisper in {}", CHANNELS[at]);
        let by = subscribers[&who].as_ref().map(|id| format!(" by {id}")).unwrap_or_default();
        for other in subscribers.keys().filter(|other| **other != who) {
            self.expect(*other, at, format!("client-e {}{by}", self.events));
        }
        let except = Some(self.clients[&who].outbox.socket());
        let source = Source::Client(user.as_ref());
        let event = Event { channel: &channel, name: &name, data: &data, except, source };
        let published = self.registry.publish(&self.apps[app].id.0, &event, cache(&self.apps[app]), self.now);
        self.drive(published.drive);
    }

    fn publish(&mut self, app: usize, at: usize, except: Option<usize>) -> Option<Drive> {
        let channel = name(at)?;
        self.events += 1;
        let data = format!("\"{}\"", self.events);
        let word = format!("e \"{}\"", self.events);
        let socket = except.and_then(|who| self.clients.get(&who)).map(|client| client.outbox.socket());
        let known = self.channels.entry((app, at)).or_default();
        if is_cached(at) {
            known.cached = Some((word.clone(), self.now + CACHE_TTL));
        }
        for who in known.subscribers.keys().copied().collect::<Vec<_>>() {
            if Some(who) != except {
                self.expect(who, at, word.clone());
            }
        }
        let event = Event { channel: &channel, name: "e", data: &data, except: socket, source: Source::App };
        self.registry.publish(&self.apps[app].id.0, &event, cache(&self.apps[app]), self.now).drive
    }

    fn sign_in(&mut self, who: usize, user: usize, watches: u8, forged: bool) {
        let app = of_app(who);
        let watches: Vec<usize> = (0..USERS.len()).filter(|at| watches & (1 << at) != 0).collect();
        let watched: Vec<_> = watches.iter().map(|at| USERS[*at]).collect();
        let user_data = json!({ "id": USERS[user], "watchlist": watched }).to_string();
        let socket = self.client(who).outbox.socket();
        let secret = if forged { "wrong" } else { "secret" };
        let auth = format!("key:{}", naive::hmac(secret, &format!("{socket}::user::{user_data}")));
        let data = json!({ "auth": auth, "user_data": user_data });
        let done = self.receive(who, &json!({ "event": "pusher:signin", "data": data }));
        let may = !forged && self.clients[&who].signed_in.is_none_or(|before| before == user);
        let Done::SignIn(signed_in, before) = done else { return assert!(!may) };
        assert!(may);
        let client = &self.clients[&who];
        let outbox = Arc::clone(&client.outbox);
        assert_eq!(before.len(), client.watches.len());

        // The same steps as the hub's.
        let id = &Arc::clone(&self.apps[app].id.0);
        self.users.sign_in(id, &signed_in.member.id, &outbox);
        let own = CHANNELS.iter().position(|name| *name == format!("#server-to-user-{}", USERS[user]));
        if let Some(at) = own {
            self.join_own(who, at, &user_data);
        }
        self.users.unwatch(id, &before, outbox.socket());
        self.users.watch(id, &signed_in.watchlist, &outbox);

        let person = self.people.entry((app, user)).or_default();
        person.connections.insert(who);
        if !person.online {
            person.online = true;
            for watcher in person.watchers.clone() {
                self.expect_of_connection(watcher, format!("online {}", USERS[user]));
            }
        }
        for at in std::mem::take(&mut self.clients.get_mut(&who).unwrap().watches) {
            self.people.entry((app, at)).or_default().watchers.remove(&who);
        }
        let (mut online, mut offline) = (Vec::new(), Vec::new());
        for at in &watches {
            let person = self.people.entry((app, *at)).or_default();
            person.watchers.insert(who);
            if person.online { online.push(USERS[*at]) } else { offline.push(USERS[*at]) }
        }
        let groups = [("online", online), ("offline", offline)];
        let told = groups.iter().filter(|(_, users)| !users.is_empty());
        let told: Vec<_> = told.map(|(name, users)| format!("{name} {}", users.join(","))).collect();
        if !told.is_empty() {
            self.expect_of_connection(who, told.join(" "));
        }
        let client = self.clients.get_mut(&who).unwrap();
        (client.signed_in, client.watches) = (Some(user), watches);
    }

    fn disconnect(&mut self, who: usize) {
        let app = of_app(who);
        let Some(client) = self.clients.get_mut(&who) else { return };
        let mut left: Vec<_> =
            client.session.take_subscriptions().iter().map(|name| name.as_str().to_owned()).collect();
        left.sort();
        let there = self
            .channels
            .iter()
            .filter(|((of, _), known)| *of == app && known.subscribers.contains_key(&who));
        let there: Vec<usize> = there.map(|((_, at), _)| *at).collect();
        let mut expected: Vec<_> =
            there.iter().filter(|at| !is_users(**at)).map(|at| CHANNELS[*at].to_owned()).collect();
        expected.sort();
        assert_eq!(left, expected, "the session knows where {who} is");
        for at in there {
            self.leave(who, at);
        }
        self.hear(who);
        let client = self.clients.remove(&who).unwrap();
        assert_eq!(client.heard, client.expected, "{who}");
        self.gone.push(Arc::clone(&client.outbox));
        let Some(user) = client.signed_in else { return };
        let id = &self.apps[app].id.0;
        let signed_in = client.session.signed_in().unwrap();
        self.users.sign_out(id, &signed_in.member.id, client.outbox.socket(), self.now);
        self.users.unwatch(id, &signed_in.watchlist, client.outbox.socket());
        let person = self.people.get_mut(&(app, user)).unwrap();
        person.connections.remove(&who);
        person.left = self.now;
        if person.connections.is_empty() {
            self.leaving.push((self.now + LINGER, (app, user)));
        }
        for at in client.watches {
            self.people.get_mut(&(app, at)).unwrap().watchers.remove(&who);
        }
    }

    /// Time passes.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        for due in self.registry.counts_due() {
            self.drive(due.send(self.now).1);
        }
        while self.users.expire_lingering(self.now) {}
        self.registry.expire(self.now);
        let due = self.leaving.iter().take_while(|(due, _)| *due <= self.now).count();
        for (_, (app, user)) in self.leaving.drain(..due) {
            let person = self.people.get_mut(&(app, user)).unwrap();
            if person.online && person.connections.is_empty() && person.left + LINGER <= self.now {
                person.online = false;
                for watcher in &person.watchers {
                    let word = (String::new(), format!("offline {}", USERS[user]));
                    self.clients.get_mut(watcher).unwrap().expected.push(word);
                }
            }
        }
        for who in self.clients.keys().copied().collect::<Vec<_>>() {
            self.hear(who);
        }
    }

    fn drive(&mut self, drive: Option<Drive>) {
        let Some(drive) = drive else { return };
        if self.lags {
            return self.drives.push((drive, None));
        }
        if let Err(drive) = drive.deliver_inline() {
            self.drives.push((drive, None));
            while !self.drives.is_empty() {
                self.deliver(0);
            }
        }
    }

    /// One turn of one of the delayed deliveries.
    fn deliver(&mut self, which: usize) {
        if self.drives.is_empty() {
            return;
        }
        let which = which % self.drives.len();
        let (drive, pass) = &mut self.drives[which];
        match pass {
            Some(current) => {
                if !current.deliver_next() {
                    *pass = None;
                }
            }
            None => match drive.next_pass() {
                Some(next) => *pass = Some(next),
                None => drop(self.drives.remove(which)),
            },
        }
    }

    fn expect(&mut self, who: usize, at: usize, word: String) {
        self.clients.get_mut(&who).unwrap().expected.push((CHANNELS[at].to_owned(), word));
    }

    fn expect_of_connection(&mut self, who: usize, word: String) {
        self.clients.get_mut(&who).unwrap().expected.push((String::new(), word));
    }

    fn hear(&mut self, who: usize) {
        let client = self.clients.get_mut(&who).unwrap();
        let bytes = client.outbox.take_queued().concat();
        if client.outbox.form() == Form::Text {
            assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "whole lines");
            client.heard.extend(bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(word));
        } else {
            client.heard.extend(naive::frames(&bytes).into_iter().map(|(_, payload)| word(&payload)));
        }
        if !self.lags {
            assert_eq!(client.heard, client.expected, "{who}");
        }
    }

    /// Delivers everything and compares with the model.
    fn deliver_and_compare(&mut self) {
        while !self.drives.is_empty() {
            self.deliver(0);
        }
        for who in self.clients.keys().copied().collect::<Vec<_>>() {
            self.hear(who);
            let client = &self.clients[&who];
            let by_channel = |words: &[Word]| {
                let mut sorted = words.to_vec();
                sorted.sort_by_key(|word| (word.0.clone(), is_acknowledgement(word)));
                sorted
            };
            assert_eq!(by_channel(&client.heard), by_channel(&client.expected), "{who}");
        }
        for ((app, at), known) in &self.channels {
            let key = self.key(*app, *at);
            let ChannelInfo { subscriptions, users, cache } = self.registry.info(&key, self.now);
            assert_eq!(subscriptions, known.subscribers.len());
            assert_eq!(users, known.roster.len());
            let cached = known.cached.as_ref().filter(|(_, until)| *until > self.now);
            let cached = cached.map(|(word, until)| (word[2..].to_owned(), *until - self.now));
            let data = |event: &Frame| {
                let [data] = pusherd::protocol::json::pick(event.text(), ["data"]).unwrap();
                data.unwrap().get().to_owned()
            };
            assert_eq!(cache.map(|(event, left)| (data(&event), left)), cached);
            let ids: Vec<_> = self.registry.users(&key).iter().map(|id| id.as_str().to_owned()).collect();
            assert_eq!(ids, known.roster.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>());
        }
        for (index, app) in self.apps.iter().enumerate() {
            let mut scan = self.registry.occupied(&app.id.0, "");
            let occupied = std::iter::from_fn(|| scan.next_chunk(self.now)).flatten();
            let mut occupied: Vec<_> = occupied.map(|(name, _)| name.to_string()).collect();
            occupied.sort();
            let known = self.channels.iter().filter(|((of, at), known)| {
                *of == index && !known.subscribers.is_empty() && !CHANNELS[*at].starts_with('#')
            });
            let mut known: Vec<_> = known.map(|((_, at), _)| CHANNELS[*at].to_owned()).collect();
            known.sort();
            assert_eq!(occupied, known);
            for (at, user) in USERS.iter().enumerate() {
                let id = pusherd::protocol::UserId::parse(user, 10).unwrap();
                let connections = self.users.connections(&app.id.0, &id).len();
                assert_eq!(
                    connections,
                    self.people.get(&(index, at)).map_or(0, |person| person.connections.len())
                );
            }
        }
    }

    /// Closes all connections and checks that nothing is left.
    fn end(mut self) {
        for who in self.clients.keys().copied().collect::<Vec<_>>() {
            self.disconnect(who);
        }
        while !self.drives.is_empty() {
            self.deliver(0);
        }
        self.pass(CACHE_TTL.max(LINGER));
        for outbox in &self.gone {
            assert_eq!(outbox.queued_bytes(), 0, "something came for {} which had gone", outbox.socket());
        }
        assert!(self.registry.is_empty(), "{} channels are left", self.registry.len());
        assert!(self.users.is_empty(), "{} users are left", self.users.len());
    }
}

/// An [`Action`] without borrowed data.
enum Done {
    Join(ChannelName, Option<(String, pusherd::protocol::Member)>),
    Leave(ChannelName),
    Publish(ChannelName, String, String, Option<pusherd::protocol::UserId>),
    SignIn(pusherd::session::SignedIn, Vec<pusherd::protocol::UserId>),
    Refused,
}

/// Acknowledgements are sent immediately. The first one precedes everything else of the channel; a repeated one may overtake
/// delayed deliveries.
fn is_acknowledgement((_, word): &Word) -> bool {
    word.starts_with("in")
}

/// A frame in words.
fn word(payload: &[u8]) -> Word {
    let frame: Value = serde_json::from_slice(payload).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (event, data) = (text(&frame["event"]), &frame["data"]);
    let inner = || -> Value { serde_json::from_str(data.as_str().unwrap()).unwrap() };
    let said = match event.strip_prefix("pusher_internal:").unwrap_or(&event) {
        "subscription_succeeded" => {
            let presence = &inner()["presence"];
            match presence["ids"].as_array() {
                None => "in".to_owned(),
                Some(ids) => {
                    assert_eq!(presence["count"], ids.len());
                    assert_eq!(presence["hash"].as_object().unwrap().len(), ids.len());
                    let known = |id: &Value| format!("{}={}", text(id), presence["hash"][text(id)]);
                    format!("in {}", ids.iter().map(known).collect::<Vec<_>>().join(","))
                }
            }
        }
        "member_added" => format!("+{}", text(&inner()["user_id"])),
        "member_removed" => format!("-{}", text(&inner()["user_id"])),
        "subscription_count" => format!("count {}", inner()["subscription_count"]),
        "pusher:cache_miss" => "miss".to_owned(),
        "pusher:signin_success" => "signed in".to_owned(),
        "watchlist_events" => {
            let inner = inner();
            let group = |group: &Value| {
                let users: Vec<_> = group["user_ids"].as_array().unwrap().iter().map(text).collect();
                format!("{} {}", text(&group["name"]), users.join(","))
            };
            inner["events"].as_array().unwrap().iter().map(group).collect::<Vec<_>>().join(" ")
        }
        _ => {
            let by = frame["user_id"].as_str().map(|id| format!(" by {id}")).unwrap_or_default();
            format!("{event} {data}{by}")
        }
    };
    (text(&frame["channel"]), said)
}
