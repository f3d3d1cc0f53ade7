//! From the settings to connections: which servers there are now, and who has what.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, ProtocolVersion, PushInfo, RedisConnectionInfo, Value};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::hearing::{Ear, Hearing};
use super::link::{Link, Requests, probe, run, work};
use super::names::{Names, Place};
use super::options::{Options, Password, Server, Servers};
use super::scripts;
use super::trouble::Trouble;
use super::{StartError, replies, tls};
use crate::cluster::driver::{Arriving, Topic};

/// Servers that are remembered besides those of the settings, at most.
const KNOWN_MAX: usize = 1000;

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_unix() {
            true => f.write_str(&self.host),
            false if self.host.contains(':') => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Server {
    fn is_unix(&self) -> bool {
        self.host.starts_with('/')
    }
}

/// Connections that are there, and the topology as it was when they were made. What changes is trouble, and then
/// everything is made anew.
#[derive(Debug)]
pub(super) struct Live {
    links: Vec<Link>,
    /// The link of each place.
    links_of: Vec<usize>,
    /// Topics of groups lie in slots.
    is_sharded: bool,
}

impl Live {
    /// Where what lies there is.
    pub(super) fn link(&self, place: Place) -> &Link {
        &self.links[self.link_of(place)]
    }

    pub(super) fn link_of(&self, place: Place) -> usize {
        self.links_of[place.index()]
    }

    pub(super) fn links(&self) -> &[Link] {
        &self.links
    }

    /// The same for topics of groups.
    pub(super) fn group_verbs(&self) -> Verbs {
        Verbs::of_groups(self.is_sharded)
    }

    /// The commands to send on a topic, to listen to it, and to ignore it.
    pub(super) fn verbs(&self, topic: &Topic) -> Verbs {
        match topic {
            Topic::Group(_) => self.group_verbs(),
            Topic::Nodes | Topic::Node(_) => Verbs::PLAIN,
        }
    }

    pub(super) fn close(&self) {
        self.links.iter().for_each(|link| link.hearing.close());
    }
}

/// Names of commands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verbs {
    pub(super) publish: &'static str,
    pub(super) subscribe: &'static str,
    pub(super) unsubscribe: &'static str,
}

impl Verbs {
    const PLAIN: Self = Self { publish: "PUBLISH", subscribe: "SUBSCRIBE", unsubscribe: "UNSUBSCRIBE" };
    const SHARDED: Self = Self { publish: "SPUBLISH", subscribe: "SSUBSCRIBE", unsubscribe: "SUNSUBSCRIBE" };

    fn of_groups(is_sharded: bool) -> Self {
        if is_sharded { Self::SHARDED } else { Self::PLAIN }
    }
}

/// What keeps connections going. Each of the tasks ends with trouble only; dropped, they end the connections.
#[derive(Debug)]
pub(super) struct Upkeep {
    tasks: JoinSet<Trouble>,
    troubles: mpsc::UnboundedReceiver<Trouble>,
}

impl Upkeep {
    /// The first trouble that there is.
    pub(super) async fn trouble(&mut self) -> Trouble {
        tokio::select! {
            Some(trouble) = self.troubles.recv() => trouble,
            Some(ended) = self.tasks.join_next() => {
                // A task that panicked is trouble, too.
                ended.unwrap_or_else(|_| Trouble::Closed("a task".to_owned()))
            }
            else => Trouble::Closed("a task".to_owned()),
        }
    }

    /// Ends the connections: nothing is answered any more.
    pub(super) async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

pub(super) struct Connector {
    options: Options,
    names: Names,
    tls: Option<TlsConnector>,
    arriving: Arriving,
    /// Servers that others told of: sentinels, or those of a Redis Cluster.
    known: Vec<Server>,
}

type Connection = (MultiplexedConnection, Pin<Box<dyn Future<Output = ()> + Send>>);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Connector {
    /// Refuses settings that can never work.
    pub(super) fn new(options: Options, names: Names, arriving: Arriving) -> Result<Self, StartError> {
        if options.prefix.is_empty() || options.prefix.contains(['{', '}']) {
            return Err(StartError::Prefix(options.prefix));
        }
        let servers = match &options.servers {
            Servers::Single(server) => std::slice::from_ref(server),
            Servers::Sentinels { sentinels, .. } => sentinels,
            Servers::Cluster(servers) => servers,
        };
        if servers.is_empty() {
            return Err(StartError::NoServer);
        }
        if options.tls.is_some() {
            for server in servers {
                ServerName::try_from(server.host.as_str())
                    .map_err(|_| StartError::ServerName(server.host.clone()))?;
            }
        }
        if options.database > 0 && matches!(options.servers, Servers::Cluster(_)) {
            return Err(StartError::Database(options.database));
        }
        let tls = options.tls.as_ref().map(tls::connector).transpose()?;
        Ok(Self { options, names, tls, arriving, known: Vec::new() })
    }

    /// Finds the servers, connects to them, and sees that messages arrive.
    pub(super) async fn connect(&mut self) -> Result<(Live, Upkeep), Trouble> {
        let (servers, links_of) = match self.options.servers.clone() {
            Servers::Single(server) => (vec![server], vec![0; Place::COUNT]),
            Servers::Sentinels { sentinels, master, username, password } => {
                let as_whom = login(username.as_deref(), password.as_ref());
                (vec![self.master(sentinels, &master, &as_whom).await?], vec![0; Place::COUNT])
            }
            Servers::Cluster(seeds) => self.topology(seeds).await?,
        };
        self.link(servers, links_of).await
    }

    /// Where the sentinels say that the master is.
    async fn master(
        &mut self,
        sentinels: Vec<Server>,
        master: &str,
        as_whom: &RedisConnectionInfo,
    ) -> Result<Server, Trouble> {
        let words = |what: &str| {
            let mut pipeline = Pipeline::new();
            pipeline.cmd("SENTINEL").arg(what).arg(master);
            pipeline
        };
        let mut trouble = Trouble::Nobody;
        for sentinel in self.all_known(sentinels) {
            let found = match self.ask(&sentinel, as_whom, &words("GET-MASTER-ADDR-BY-NAME")).await {
                Ok(values) => replies::one(values).and_then(|value| server(value, &sentinel)),
                Err(error) => {
                    trouble = error;
                    continue;
                }
            };
            let Some(found) = found else {
                trouble = Trouble::NoMaster(sentinel.to_string(), master.to_owned());
                continue;
            };
            if let Ok(values) = self.ask(&sentinel, as_whom, &words("SENTINELS")).await {
                self.know(replies::one(values).and_then(sentinels_of).unwrap_or_default());
            }
            return Ok(found);
        }
        Err(trouble)
    }

    /// The masters of a Redis Cluster that have anything of ours, and which of them has each place.
    async fn topology(&mut self, seeds: Vec<Server>) -> Result<(Vec<Server>, Vec<usize>), Trouble> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("CLUSTER").arg("SLOTS");
        for place in Place::all() {
            pipeline.cmd("CLUSTER").arg("KEYSLOT").arg(self.names.begin(place));
        }
        let as_whom = self.login();
        let mut trouble = Trouble::Nobody;
        for seed in self.all_known(seeds) {
            let found = match self.ask(&seed, &as_whom, &pipeline).await {
                Ok(values) => topology(values, &seed),
                Err(error) => Err(error),
            };
            match found {
                Ok(Topology { masters, links_of, all }) => {
                    self.know(all);
                    return Ok((masters, links_of));
                }
                Err(error) => trouble = error,
            }
        }
        Err(trouble)
    }

    /// Connects to servers.
    async fn link(&self, servers: Vec<Server>, links_of: Vec<usize>) -> Result<(Live, Upkeep), Trouble> {
        let (report, troubles) = mpsc::unbounded_channel();
        let mut upkeep = Upkeep { tasks: JoinSet::new(), troubles };
        let mut links = Vec::with_capacity(servers.len());
        let mut is_sharded = self.is_cluster();
        for (at, server) in servers.iter().enumerate() {
            let place = Place::all().zip(&links_of).find(|(_, link)| **link == at);
            let begin = place.map(|(place, _)| self.names.begin(place)).unwrap_or_default();
            let hearing = Arc::new(Hearing::new(server.to_string(), self.arriving.clone(), report.clone()));
            let listener = Arc::clone(&hearing);
            let hear = move |push: PushInfo| {
                listener.hear(push);
                Ok::<_, ()>(())
            };
            let commands = self.keep(server, config(), &mut upkeep).await?;
            let subscriptions = self.keep(server, config().set_push_sender(hear), &mut upkeep).await?;
            is_sharded &= self.prepare(server, &begin, commands.clone()).await?;
            let start = |upkeep: &mut Upkeep, connection| {
                let (requests, taken) = Requests::queue(report.clone());
                upkeep.tasks.spawn(work(server.to_string(), connection, taken, self.options.timeout));
                requests
            };
            let link = Link {
                commands: start(&mut upkeep, commands),
                subscriptions: start(&mut upkeep, subscriptions),
                hearing,
            };
            links.push((link, begin));
        }
        let mut heard = Vec::new();
        let chance = chance();
        let global = links_of[Place::Global.index()];
        for (at, (link, begin)) in links.iter().enumerate() {
            let topic = format!("{begin}probe:{chance}");
            let verbs = Verbs::of_groups(is_sharded);
            heard.push(self.probe(&servers[at], &mut upkeep, link, link, verbs, topic));
            // Topics of nodes go from every server to one, over what connects the servers of a Redis Cluster.
            if at != global {
                let topic = self.names.key(Place::Global, &format!("probe:{at}:{chance}"));
                heard.push(self.probe(
                    &servers[at],
                    &mut upkeep,
                    link,
                    &links[global].0,
                    Verbs::PLAIN,
                    topic,
                ));
            }
        }
        for mut heard in heard {
            tokio::select! {
                Ok(_) = heard.wait_for(|heard| *heard > 0) => {}
                trouble = upkeep.trouble() => return Err(trouble),
            }
        }
        let links = links.into_iter().map(|(link, _)| link).collect();
        Ok((Live { links, links_of, is_sharded }, upkeep))
    }

    /// Has Redis know the scripts, and refuses one that cannot be written to (a replica); whether a Redis Cluster can
    /// have topics in slots.
    async fn prepare(
        &self,
        server: &Server,
        begin: &str,
        mut connection: MultiplexedConnection,
    ) -> Result<bool, Trouble> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("DEL").arg(format!("{begin}probe"));
        if self.is_cluster() {
            pipeline.cmd("SPUBLISH").arg(format!("{begin}probe")).arg("");
        }
        let checks = pipeline.len();
        for script in scripts::ALL {
            pipeline.add_command(script.load());
        }
        let name = server.to_string();
        let values = run(&name, &mut connection, &pipeline, self.options.timeout).await?;
        let mut is_sharded = self.is_cluster();
        for value in &values[..checks] {
            let Value::ServerError(error) = value else { continue };
            // Before Redis 7. Any other error could be that of this node alone, and all have to do the same.
            if error.details().is_some_and(|said| said.starts_with("unknown command")) {
                is_sharded = false;
            } else {
                return Err(Trouble::of(&name, &error.clone().into()));
            }
        }
        Ok(is_sharded)
    }

    /// Looks again and again whether what `from` publishes arrives at `to`.
    fn probe(
        &self,
        server: &Server,
        upkeep: &mut Upkeep,
        from: &Link,
        to: &Link,
        verbs: Verbs,
        topic: String,
    ) -> watch::Receiver<u64> {
        let (hears, heard) = watch::channel(0);
        to.hearing.listen(&topic, Ear::Probe(hears));
        let subscribe = scripts::Call::new(verbs.subscribe).arg(&topic);
        let subscribed = to.subscriptions.ask(vec![subscribe], replies::any);
        let publisher = from.commands.clone();
        let probe = probe(server.to_string(), publisher, verbs.publish, topic, subscribed, heard.clone());
        upkeep.tasks.spawn(probe);
        heard
    }

    /// A connection that lasts.
    async fn keep(
        &self,
        server: &Server,
        config: AsyncConnectionConfig,
        upkeep: &mut Upkeep,
    ) -> Result<MultiplexedConnection, Trouble> {
        let settings = self.login().set_db(self.options.database.into()).set_protocol(ProtocolVersion::RESP3);
        let (connection, driver) = self.open(server, &settings, config).await?;
        let name = server.to_string();
        upkeep.tasks.spawn(async move {
            driver.await;
            Trouble::Closed(name)
        });
        Ok(connection)
    }

    /// Asks a server over a connection of its own; refused answers are trouble.
    async fn ask(
        &self,
        server: &Server,
        as_whom: &RedisConnectionInfo,
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, Trouble> {
        let (mut connection, driver) = self.open(server, as_whom, config()).await?;
        let _driver = AbortOnDropHandle::new(tokio::spawn(driver));
        let name = server.to_string();
        let values = run(&name, &mut connection, pipeline, self.options.timeout).await?;
        match values.iter().find(|value| matches!(value, Value::ServerError(_))) {
            Some(Value::ServerError(error)) => Err(Trouble::of(&name, &error.clone().into())),
            Some(_) | None => Ok(values),
        }
    }

    /// Connects and says who we are.
    async fn open(
        &self,
        server: &Server,
        as_whom: &RedisConnectionInfo,
        config: AsyncConnectionConfig,
    ) -> Result<Connection, Trouble> {
        let name = server.to_string();
        let opening = async {
            let stream = self.stream(server, &name).await?;
            let opened = MultiplexedConnection::new_with_config(as_whom, stream, config).await;
            let (connection, driver) = opened.map_err(|error| Trouble::of(&name, &error))?;
            let driver: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(driver);
            Ok((connection, driver))
        };
        let opened = timeout(self.options.timeout, opening).await;
        opened.unwrap_or_else(|_| Err(Trouble::Timeout(name.clone(), self.options.timeout)))
    }

    async fn stream(&self, server: &Server, name: &str) -> Result<Box<dyn Stream>, Trouble> {
        let refused = |error| Trouble::Connect(name.to_owned(), error);
        if server.is_unix() {
            return Ok(Box::new(UnixStream::connect(&server.host).await.map_err(refused)?));
        }
        let stream = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(refused)?;
        stream.set_nodelay(true).map_err(refused)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let unproven = |error| Trouble::Tls(name.to_owned(), error);
        let proven = ServerName::try_from(server.host.clone())
            .map_err(|error| unproven(std::io::Error::new(std::io::ErrorKind::InvalidInput, error)))?;
        Ok(Box::new(tls.connect(proven, stream).await.map_err(unproven)?))
    }

    fn login(&self) -> RedisConnectionInfo {
        login(self.options.username.as_deref(), self.options.password.as_ref())
    }

    fn is_cluster(&self) -> bool {
        matches!(self.options.servers, Servers::Cluster(_))
    }

    /// Beginning with any of them, so that one which has not heard what changed is not asked for ever.
    fn all_known(&self, mut servers: Vec<Server>) -> Vec<Server> {
        let others = self.known.iter().filter(|server| !servers.contains(server)).cloned();
        servers.extend(others.collect::<Vec<_>>());
        let chance = getrandom::u32().unwrap_or_default() as usize;
        let first = chance.checked_rem(servers.len()).unwrap_or_default();
        servers.rotate_left(first);
        servers
    }

    fn know(&mut self, mut servers: Vec<Server>) {
        servers.truncate(KNOWN_MAX);
        self.known = servers;
    }
}

/// We wait by ourselves, for as long as the settings say.
fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None)
}

fn login(username: Option<&str>, password: Option<&Password>) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default().set_lib_name("pusherd", env!("CARGO_PKG_VERSION"));
    if let Some(username) = username {
        login = login.set_username(username);
    }
    if let Some(Password(password)) = password {
        login = login.set_password(password);
    }
    login
}

/// So that no other node has the same topic.
fn chance() -> String {
    let mut bytes = [0; 16];
    // Without randomness two nodes would hear each other's probes: that is no harm, only less of a probe.
    let _ = getrandom::fill(&mut bytes);
    hex::encode(bytes)
}

struct Topology {
    masters: Vec<Server>,
    /// Where the master of each [`Place`] stands among them.
    links_of: Vec<usize>,
    /// Replicas too.
    all: Vec<Server>,
}

/// Of `CLUSTER SLOTS` and the slots of all places.
fn topology(values: Vec<Value>, asked: &Server) -> Result<Topology, Trouble> {
    let senseless = || Trouble::Senseless(asked.to_string());
    let mut values = values.into_iter();
    let ranges = values.next().and_then(replies::list).ok_or_else(senseless)?;
    let ranges: Option<Vec<_>> = ranges.into_iter().map(|range| slots(range, asked)).collect();
    let ranges = ranges.ok_or_else(senseless)?;
    let (mut masters, mut links_of) = (Vec::new(), Vec::with_capacity(Place::COUNT));
    for slot in values {
        let slot = replies::number(&slot).ok_or_else(senseless)?;
        let found = ranges.iter().find(|(range, _)| range.contains(&slot));
        let master = found.and_then(|(_, servers)| servers.first()).ok_or(Trouble::NoSlot(slot))?;
        let at = masters.iter().position(|known| known == master);
        links_of.push(at.unwrap_or_else(|| {
            masters.push(master.clone());
            masters.len() - 1
        }));
    }
    let all: HashSet<_> = ranges.into_iter().flat_map(|(_, servers)| servers).collect();
    Ok(Topology { masters, links_of, all: all.into_iter().collect() })
}

/// A range of slots, and who has it: the master first.
fn slots(range: Value, asked: &Server) -> Option<(RangeInclusive<u64>, Vec<Server>)> {
    let mut range = replies::list(range)?.into_iter();
    let (first, last) = (replies::number(&range.next()?)?, replies::number(&range.next()?)?);
    Some((first..=last, range.map(|value| server(value, asked)).collect::<Option<_>>()?))
}

/// An address, and what may stand behind it. One without a host is where `asked` is.
fn server(value: Value, asked: &Server) -> Option<Server> {
    let mut values = replies::list(value)?.into_iter();
    let host = values.next()?;
    let host = if host == Value::Nil { String::new() } else { replies::text(host)? };
    let host = if host.is_empty() || host == "?" { asked.host.clone() } else { host };
    Some(Server { host, port: u16::try_from(replies::number(&values.next()?)?).ok()? })
}

/// Of `SENTINEL SENTINELS`.
fn sentinels_of(value: Value) -> Option<Vec<Server>> {
    let sentinel = |fields| {
        let fields: HashMap<_, _> = replies::pairs(fields)?
            .into_iter()
            .filter_map(|(name, value)| Some((replies::text(name)?, replies::text(value)?)))
            .collect();
        Some(Server { host: fields.get("ip")?.clone(), port: fields.get("port")?.parse().ok()? })
    };
    replies::list(value)?.into_iter().map(sentinel).collect()
}
