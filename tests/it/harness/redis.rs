//! Redis servers that tests start and stop themselves.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pusherd::cluster::redis::Options;
use pusherd::cluster::redis::options::{Server, Servers};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue, IntoConnectionInfo as _, RedisResult};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{PATIENCE, eventually, in_time};

/// Sentinels run the same program.
const PROGRAM: &str = "redis-server";

/// A running server on a free port of the loopback interface; killed when it is dropped.
pub struct RedisServer {
    /// The port that it listens on.
    pub port: u16,
    folder: TempDir,
    args: Vec<String>,
    process: Child,
}

/// A server that accepts connections.
pub async fn redis_server() -> RedisServer {
    redis_server_with(&[]).await
}

/// As [`redis_server`], with arguments of its own: `--name`, `value` …
pub async fn redis_server_with(args: &[&str]) -> RedisServer {
    let own = ["--save", "", "--appendonly", "no"];
    let args = own.iter().chain(args).map(|arg| (*arg).to_owned());
    RedisServer::start(tempfile::tempdir().unwrap(), args.collect()).await
}

/// A sentinel that monitors a server as `main`, and declares it down after half a second.
pub async fn redis_sentinel(master: &RedisServer) -> RedisServer {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sentinel.conf");
    let text = format!(
        "sentinel monitor main 127.0.0.1 {} 1\nsentinel down-after-milliseconds main 500\n\
         sentinel failover-timeout main 2000\n",
        master.port
    );
    fs::write(&file, text).unwrap();
    let args = [file.to_str().unwrap(), "--sentinel"].map(str::to_owned);
    RedisServer::start(folder, args.to_vec()).await
}

/// A Redis Cluster of three masters that have all slots, each with these arguments.
pub async fn redis_cluster(args: &[&str]) -> Vec<RedisServer> {
    let own = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(redis_server_with(&[&own, args].concat()).await);
    }
    let first = servers[0].port;
    for (at, server) in servers.iter().enumerate() {
        let mut client = server.client().await;
        let slots = (at * 5462..16384.min((at + 1) * 5462)).map(|slot| slot.to_string()).collect::<Vec<_>>();
        let done: RedisResult<()> =
            redis::cmd("CLUSTER").arg("ADDSLOTS").arg(slots).query_async(&mut client).await;
        done.unwrap();
        server.run::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]).await;
        server.run::<()>(&["CLUSTER", "MEET", "127.0.0.1", &first.to_string()]).await;
    }
    for server in &servers {
        eventually("the cluster is whole", async || {
            let info: String = server.run(&["CLUSTER", "INFO"]).await;
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        })
        .await;
    }
    servers
}

impl RedisServer {
    /// Starts on the first free port.
    async fn start(folder: TempDir, args: Vec<String>) -> Self {
        let port = free_port();
        let process = spawn(folder.path(), &args, port);
        let mut server = Self { port, folder, args, process };
        while !server.answers().await {
            server.port = free_port();
            server.process = spawn(server.folder.path(), &server.args, server.port);
        }
        server
    }

    /// Waits until it accepts connections; `false`: its port is in use.
    async fn answers(&mut self) -> bool {
        let log = self.folder.path().join("log");
        in_time("Redis starts", async {
            loop {
                // The last line of the start; a sentinel has another one.
                let text = fs::read_to_string(&log).unwrap_or_default();
                if text.contains("Ready to accept connections") || text.contains("+monitor") {
                    return true;
                }
                if let Some(status) = self.process.try_wait().unwrap() {
                    assert!(text.contains("Address already in use"), "{PROGRAM} ended with {status}: {text}");
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    /// The options to connect to it.
    pub fn options(&self) -> Options {
        Options {
            servers: Servers::Single(self.address()),
            tls: None,
            username: None,
            password: None,
            database: 0,
            prefix: "pusherd".to_owned(),
            timeout: Duration::from_secs(2),
        }
    }

    /// Its address.
    pub fn address(&self) -> Server {
        Server { host: "127.0.0.1".to_owned(), port: self.port }
    }

    /// A file in its directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A connection of an independent client.
    pub async fn client(&self) -> MultiplexedConnection {
        self.client_of("").await
    }

    /// As [`RedisServer::client`], with `user:password@` before the address.
    pub async fn client_of(&self, user: &str) -> MultiplexedConnection {
        let url = format!("redis://{user}127.0.0.1:{}", self.port);
        let client = redis::Client::open(url.as_str().into_connection_info().unwrap()).unwrap();
        let config = AsyncConnectionConfig::new();
        let config = config.set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
        client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
    }

    /// The reply to a command.
    pub async fn run<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        words[1..].iter().for_each(|word| {
            command.arg(*word);
        });
        command.query_async(&mut self.client().await).await.unwrap()
    }

    /// Kills it; its data is lost.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }

    /// Restarts it on the same port.
    pub async fn restart(&mut self) {
        self.kill();
        self.process = spawn(self.folder.path(), &self.args, self.port);
        assert!(self.answers().await, "{} is taken", self.port);
    }

    /// Suspends it: it neither replies nor stops.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Resumes it.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(folder: &Path, args: &[String], port: u16) -> Child {
    let log = fs::File::create(folder.join("log")).unwrap();
    let where_to = ["--bind", "127.0.0.1", "--port", &port.to_string()].map(str::to_owned);
    let spawned = Command::new(PROGRAM)
        .args(args)
        .args(where_to)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log)
        .spawn();
    match spawned {
        Ok(process) => process,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("{PROGRAM} is missing: scripts/test installs it")
        }
        Err(error) => panic!("{PROGRAM}: {error}"),
    }
}

/// A port below those that the system assigns, so that it stays free during a restart. The bus of a Redis Cluster is
/// 10,000 above it.
fn free_port() -> u16 {
    loop {
        let chance = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let port = 12_000 + chance % 10_000;
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}
