//! Connecting: finds the servers, opens and checks connections.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, ProtocolVersion, PushInfo, RedisConnectionInfo, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::connections::{ConnectionTasks, Connections, PubSubCommands, ServerConnection};
use super::error::ConnectionError;
use super::keys::{HashTag, Keys};
use super::options::{Options, Server, Servers, TlsOptions};
use super::pipeline::{RequestQueue, execute_requests, round_trip};
use super::probe::probe;
use super::scripts;
use super::subscriptions::{Destination, Subscriptions};
use super::topology::{self, Topology};
use super::{StartError, replies};
use crate::cluster::broker::IncomingSender;
use crate::secret::Secret;
use crate::tls_client::{Authorities, TlsClient, is_server_name};

/// Servers that are remembered in addition to those of the settings, at most.
const KNOWN_SERVERS_MAX: usize = 1000;

pub(super) struct Connector {
    options: Options,
    keys: Keys,
    tls: Option<TlsClient>,
    incoming: IncomingSender,
    /// Servers that others have named: sentinels, or servers of a Redis Cluster.
    known: Vec<Server>,
}

type Connection = (MultiplexedConnection, Pin<Box<dyn Future<Output = ()> + Send>>);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Connector {
    /// Rejects settings that can never work.
    pub(super) fn new(options: Options, keys: Keys, incoming: IncomingSender) -> Result<Self, StartError> {
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
                if !is_server_name(&server.host) {
                    return Err(StartError::ServerName(server.host.clone()));
                }
            }
        }
        if options.database > 0 && matches!(options.servers, Servers::Cluster(_)) {
            return Err(StartError::Database(options.database));
        }
        let tls = options.tls.as_ref().map(tls_client).transpose()?;
        Ok(Self { options, keys, tls, incoming, known: Vec::new() })
    }

    /// Finds the servers, connects to them, and waits until messages arrive from each.
    pub(super) async fn connect(&mut self) -> Result<(Connections, ConnectionTasks), ConnectionError> {
        let (servers, servers_of) = match self.options.servers.clone() {
            Servers::Single(server) => (vec![server], vec![0; HashTag::COUNT]),
            Servers::Sentinels { sentinels, master, username, password } => {
                let login = login(username.as_deref(), password.as_ref());
                (vec![self.master(sentinels, &master, &login).await?], vec![0; HashTag::COUNT])
            }
            Servers::Cluster(seeds) => self.topology(seeds).await?,
        };
        self.connect_to(servers, servers_of).await
    }

    // ---- finding servers ----

    /// The master that the sentinels name.
    async fn master(
        &mut self,
        sentinels: Vec<Server>,
        master: &str,
        login: &RedisConnectionInfo,
    ) -> Result<Server, ConnectionError> {
        let command = |name: &str| {
            let mut pipeline = Pipeline::new();
            pipeline.cmd("SENTINEL").arg(name).arg(master);
            pipeline
        };
        let mut last_error = ConnectionError::NoServer;
        for sentinel in self.candidates(sentinels) {
            let found = match self.query(&sentinel, login, &command("GET-MASTER-ADDR-BY-NAME")).await {
                Ok(values) => replies::single(values).and_then(|value| topology::server(value, &sentinel)),
                Err(error) => {
                    last_error = error;
                    continue;
                }
            };
            let Some(found) = found else {
                last_error = ConnectionError::UnknownMaster(sentinel.to_string(), master.to_owned());
                continue;
            };
            if let Ok(values) = self.query(&sentinel, login, &command("SENTINELS")).await {
                self.remember(replies::single(values).and_then(topology::sentinels).unwrap_or_default());
            }
            return Ok(found);
        }
        Err(last_error)
    }

    /// The masters of a Redis Cluster that have our slots, and which of them has each hash tag.
    async fn topology(&mut self, seeds: Vec<Server>) -> Result<(Vec<Server>, Vec<usize>), ConnectionError> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("CLUSTER").arg("SLOTS");
        for tag in HashTag::all() {
            pipeline.cmd("CLUSTER").arg("KEYSLOT").arg(self.keys.prefix(tag));
        }
        let login = self.login();
        let mut last_error = ConnectionError::NoServer;
        for seed in self.candidates(seeds) {
            let found = match self.query(&seed, &login, &pipeline).await {
                Ok(values) => Topology::read(values, &seed),
                Err(error) => Err(error),
            };
            match found {
                Ok(Topology { masters, servers_of, all }) => {
                    self.remember(all);
                    return Ok((masters, servers_of));
                }
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    /// All known servers, beginning with a random one: a server with an outdated view is not asked first every time.
    fn candidates(&self, mut servers: Vec<Server>) -> Vec<Server> {
        let others = self.known.iter().filter(|server| !servers.contains(server)).cloned();
        servers.extend(others.collect::<Vec<_>>());
        let random = getrandom::u32().unwrap_or_default() as usize;
        let first = random.checked_rem(servers.len()).unwrap_or_default();
        servers.rotate_left(first);
        servers
    }

    fn remember(&mut self, mut servers: Vec<Server>) {
        servers.truncate(KNOWN_SERVERS_MAX);
        self.known = servers;
    }

    // ---- connecting to them ----

    async fn connect_to(
        &self,
        servers: Vec<Server>,
        servers_of: Vec<usize>,
    ) -> Result<(Connections, ConnectionTasks), ConnectionError> {
        let (report, errors) = mpsc::unbounded_channel();
        let mut tasks = ConnectionTasks { tasks: JoinSet::new(), errors };
        let mut connected = Vec::with_capacity(servers.len());
        let mut is_sharded = self.is_cluster();
        for (at, server) in servers.iter().enumerate() {
            let tag = HashTag::all().zip(&servers_of).find(|(_, index)| **index == at);
            let prefix = tag.map(|(tag, _)| self.keys.prefix(tag)).unwrap_or_default();
            let subscriptions =
                Arc::new(Subscriptions::new(server.to_string(), self.incoming.clone(), report.clone()));
            let receiver = Arc::clone(&subscriptions);
            let receive = move |push: PushInfo| {
                receiver.receive(push);
                Ok::<_, ()>(())
            };
            let commands = self.open_lasting(server, config(), &mut tasks).await?;
            let subscription_commands =
                self.open_lasting(server, config().set_push_sender(receive), &mut tasks).await?;
            is_sharded &= self.prepare(server, &prefix, commands.clone()).await?;
            let start = |tasks: &mut ConnectionTasks, connection| {
                let (requests, queued) = RequestQueue::new(report.clone());
                let timeout = self.options.timeout;
                tasks.tasks.spawn(execute_requests(server.to_string(), connection, queued, timeout));
                requests
            };
            let server = ServerConnection {
                commands: start(&mut tasks, commands),
                subscription_commands: start(&mut tasks, subscription_commands),
                subscriptions,
            };
            connected.push((server, prefix));
        }
        let mut probes = Vec::new();
        let nonce = nonce();
        let global = servers_of[HashTag::Global.index()];
        for (at, (server, prefix)) in connected.iter().enumerate() {
            let topic = format!("{prefix}probe:{nonce}");
            let commands = PubSubCommands::of_groups(is_sharded);
            probes.push(self.start_probe(&servers[at], &mut tasks, server, server, commands, topic));
            // Topics of nodes travel from every server to one, between the servers of a Redis Cluster.
            if at != global {
                let topic = self.keys.key(HashTag::Global, &format!("probe:{at}:{nonce}"));
                probes.push(self.start_probe(
                    &servers[at],
                    &mut tasks,
                    server,
                    &connected[global].0,
                    PubSubCommands::PLAIN,
                    topic,
                ));
            }
        }
        for mut received in probes {
            tokio::select! {
                Ok(_) = received.wait_for(|number| *number > 0) => {}
                error = tasks.error() => return Err(error),
            }
        }
        let servers = connected.into_iter().map(|(server, _)| server).collect();
        Ok((Connections { servers, servers_of, is_sharded }, tasks))
    }

    /// Loads the scripts, and rejects a server that cannot be written to (a replica); returns whether a Redis Cluster
    /// supports topics in slots.
    async fn prepare(
        &self,
        server: &Server,
        prefix: &str,
        mut connection: MultiplexedConnection,
    ) -> Result<bool, ConnectionError> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("DEL").arg(format!("{prefix}probe"));
        if self.is_cluster() {
            pipeline.cmd("SPUBLISH").arg(format!("{prefix}probe")).arg("");
        }
        let checks = pipeline.len();
        for script in scripts::ALL {
            pipeline.add_command(script.load());
        }
        let name = server.to_string();
        let values = round_trip(&name, &mut connection, &pipeline, self.options.timeout).await?;
        let mut is_sharded = self.is_cluster();
        for value in &values[..checks] {
            let Value::ServerError(error) = value else { continue };
            // Before Redis 7. Any other error could concern this node alone, and all nodes have to use the same topics.
            if error.details().is_some_and(|details| details.starts_with("unknown command")) {
                is_sharded = false;
            } else {
                return Err(ConnectionError::of(&name, &error.clone().into()));
            }
        }
        Ok(is_sharded)
    }

    /// Starts a task that checks again and again whether messages published through `from` arrive at `to`.
    fn start_probe(
        &self,
        server: &Server,
        tasks: &mut ConnectionTasks,
        from: &ServerConnection,
        to: &ServerConnection,
        commands: PubSubCommands,
        topic: String,
    ) -> watch::Receiver<u64> {
        let (arrived, received) = watch::channel(0);
        to.subscriptions.add(&topic, Destination::Probe(arrived));
        let subscribe = scripts::Call::new(commands.subscribe).arg(&topic);
        let subscribed = to.subscription_commands.send(vec![subscribe], replies::ignore);
        let publisher = from.commands.clone();
        tasks.tasks.spawn(probe(
            server.to_string(),
            publisher,
            commands.publish,
            topic,
            subscribed,
            received.clone(),
        ));
        received
    }

    /// Opens a connection that a task drives until it breaks.
    async fn open_lasting(
        &self,
        server: &Server,
        config: AsyncConnectionConfig,
        tasks: &mut ConnectionTasks,
    ) -> Result<MultiplexedConnection, ConnectionError> {
        let login = self.login().set_db(self.options.database.into()).set_protocol(ProtocolVersion::RESP3);
        let (connection, driver) = self.open(server, &login, config).await?;
        let name = server.to_string();
        tasks.tasks.spawn(async move {
            driver.await;
            ConnectionError::Closed(name)
        });
        Ok(connection)
    }

    /// Sends commands over a connection of their own; an error reply is an error.
    async fn query(
        &self,
        server: &Server,
        login: &RedisConnectionInfo,
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, ConnectionError> {
        let (mut connection, driver) = self.open(server, login, config()).await?;
        let _driver = AbortOnDropHandle::new(tokio::spawn(driver));
        let name = server.to_string();
        let values = round_trip(&name, &mut connection, pipeline, self.options.timeout).await?;
        match values.iter().find(|value| matches!(value, Value::ServerError(_))) {
            Some(Value::ServerError(error)) => Err(ConnectionError::of(&name, &error.clone().into())),
            Some(_) | None => Ok(values),
        }
    }

    /// Connects and authenticates.
    async fn open(
        &self,
        server: &Server,
        login: &RedisConnectionInfo,
        config: AsyncConnectionConfig,
    ) -> Result<Connection, ConnectionError> {
        let name = server.to_string();
        let opening = async {
            let stream = self.stream(server, &name).await?;
            let opened = MultiplexedConnection::new_with_config(login, stream, config).await;
            let (connection, driver) = opened.map_err(|error| ConnectionError::of(&name, &error))?;
            let driver: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(driver);
            Ok((connection, driver))
        };
        let opened = timeout(self.options.timeout, opening).await;
        opened.unwrap_or_else(|_| Err(ConnectionError::Timeout(name.clone(), self.options.timeout)))
    }

    async fn stream(&self, server: &Server, name: &str) -> Result<Box<dyn Stream>, ConnectionError> {
        let connect_error = |error| ConnectionError::Connect(name.to_owned(), error);
        if server.is_unix() {
            return Ok(Box::new(UnixStream::connect(&server.host).await.map_err(connect_error)?));
        }
        let stream = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(connect_error)?;
        stream.set_nodelay(true).map_err(connect_error)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let connected = tls.connect(&server.host, stream).await;
        Ok(Box::new(connected.map_err(|error| ConnectionError::Tls(name.to_owned(), error))?))
    }

    fn login(&self) -> RedisConnectionInfo {
        login(self.options.username.as_deref(), self.options.password.as_ref())
    }

    fn is_cluster(&self) -> bool {
        matches!(self.options.servers, Servers::Cluster(_))
    }
}

/// Reads the certificates of authorities once, so that errors show at the start.
fn tls_client(options: &TlsOptions) -> Result<TlsClient, StartError> {
    if options.accepts_any {
        return Ok(TlsClient::accepting_any());
    }
    let authorities = match &options.ca_file {
        Some(path) => Authorities::of_file(path)?,
        None => Authorities::of_system("TLS to Redis"),
    };
    Ok(TlsClient::verifying(authorities))
}

/// No timeouts of the library: ours come from the settings.
fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None)
}

fn login(username: Option<&str>, password: Option<&Secret>) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default().set_lib_name("pusherd", env!("CARGO_PKG_VERSION"));
    if let Some(username) = username {
        login = login.set_username(username);
    }
    if let Some(password) = password {
        login = login.set_password(password.expose());
    }
    login
}

/// Makes the topics of probes unique to this node.
fn nonce() -> String {
    let mut bytes = [0; 16];
    // Without randomness two nodes would receive each other's probes, which only makes the probes weaker.
    let _ = getrandom::fill(&mut bytes);
    hex::encode(bytes)
}
