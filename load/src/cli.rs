//! Command line of `pusherload`.

use clap::{Args, Parser, Subcommand};
use std::net::Ipv4Addr;

#[derive(Parser)]
#[command(
    version,
    args_override_self = true,
    about = "Light load generator for Pusher-protocol servers (loopback only)"
)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub cmd: Cmd,
}

#[derive(Args, Clone)]
pub struct Common {
    #[arg(long, global = true, default_value = "127.0.0.1")]
    pub host: Ipv4Addr,
    #[arg(long, global = true, default_value_t = 6001)]
    pub port: u16,
    /// WebSockets go to this address instead (HTTP stays on --host).
    #[arg(long, global = true)]
    pub ws_host: Option<Ipv4Addr>,
    /// WebSockets go to this port instead (HTTP stays on --port).
    #[arg(long, global = true)]
    pub ws_port: Option<u16>,
    /// WebSockets by TLS, the certificate not verified; HTTP stays plain.
    #[arg(long, global = true)]
    pub tls: bool,
    /// Offer permessage-deflate (without context takeover) for WebSockets.
    #[arg(long, global = true)]
    pub deflate: bool,
    #[arg(long, global = true, default_value = "app-id")]
    pub app_id: String,
    #[arg(long, global = true, default_value = "app-key")]
    pub key: String,
    #[arg(long, global = true, default_value = "app-secret")]
    pub secret: String,
    /// Process to meter (CPU of all its threads, memory).
    #[arg(long, global = true)]
    pub server_pid: Option<i32>,
    /// Meter its descendants too.
    #[arg(long, global = true)]
    pub tree: bool,
    /// Name of the target in the report.
    #[arg(long, global = true)]
    pub name: Option<String>,
    /// JSON line only.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Source addresses to spread connections over (0: one per 4000; churn 64).
    #[arg(long, global = true, default_value_t = 0)]
    pub src_ips: usize,
    /// Destination addresses to spread over (the server must listen on 0.0.0.0).
    #[arg(long, global = true, default_value_t = 1)]
    pub dst_ips: usize,
    /// Connections being opened at once.
    #[arg(long, global = true, default_value_t = 64)]
    pub open_window: usize,
    #[arg(long, global = true, default_value_t = 10.0)]
    pub open_timeout: f64,
    /// Sleep this many µs after each batch of events instead of blocking in epoll:
    /// fewer wake-ups (for server and generator), latency up by as much.
    #[arg(long, global = true, default_value_t = 0)]
    pub poll_us: u64,
    /// Pin the generator to this CPU.
    #[arg(long, global = true)]
    pub cpu: Option<usize>,
    /// Print each new kind of error as it happens.
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

#[derive(Args, Clone)]
pub struct Traffic {
    /// Event data in bytes, before JSON escaping (at least 34).
    #[arg(long, default_value_t = 100)]
    pub size: usize,
    /// Plain text as event data instead of a JSON object (no quotes to escape).
    #[arg(long)]
    pub plain: bool,
    /// Published messages per second on a fixed schedule; 0: closed loop.
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// Closed loop: messages published but not yet delivered to all.
    #[arg(long, default_value_t = 8)]
    pub inflight: usize,
    /// Closed loop: count a message as done at its HTTP response already.
    #[arg(long)]
    pub until_response: bool,
    /// Keep-alive HTTP connections (0: --inflight, or 32 with --rate).
    #[arg(long, default_value_t = 0)]
    pub http_conns: usize,
    /// Poisson arrivals instead of even spacing (with --rate).
    #[arg(long)]
    pub poisson: bool,
    /// Measured seconds.
    #[arg(long, default_value_t = 10.0)]
    pub duration: f64,
    /// Seconds of traffic before.
    #[arg(long, default_value_t = 2.0)]
    pub warmup: f64,
    /// After publishing stops: give up after so many seconds without a delivery.
    #[arg(long, default_value_t = 3.0)]
    pub drain: f64,
}

#[derive(Subcommand)]
pub enum Cmd {
    /// Publish to channels with subscribers: throughput, latency, loss, CPU.
    Fanout {
        #[arg(long, default_value_t = 1000)]
        conns: usize,
        #[arg(long, default_value_t = 1)]
        channels: usize,
        /// public, private or presence channels.
        #[arg(long, default_value = "public")]
        kind: String,
        #[command(flatten)]
        t: Traffic,
    },
    /// Open connections and hold them: memory and CPU of doing nothing.
    Idle {
        #[arg(long, default_value_t = 10000)]
        conns: usize,
        /// Seconds to hold.
        #[arg(long, default_value_t = 10.0)]
        hold: f64,
        /// All on one channel instead of one channel each.
        #[arg(long)]
        shared: bool,
        /// Private channels (signed).
        #[arg(long)]
        private: bool,
        /// Threads with their own descriptor tables (0: as many as the file limit needs).
        #[arg(long, default_value_t = 0)]
        shards: usize,
        /// After holding: one publish to every channel, and the memory then.
        #[arg(long)]
        then_fanout: bool,
        /// After that: a client frame of 100 bytes from every connection, and the memory then.
        #[arg(long)]
        then_frames: bool,
    },
    /// Connections that each send a frame of 100 bytes now and then that needs no answer.
    Receive {
        #[arg(long, default_value_t = 1000)]
        conns: usize,
        /// Frames per second of all connections together.
        #[arg(long, default_value_t = 4000.0)]
        rate: f64,
        /// Connections that send at the same moment: 1 wakes the server for every frame, more give one of its
        /// wake-ups as many connections, with one frame each.
        #[arg(long, default_value_t = 1)]
        burst: usize,
        /// Bytes of a frame's payload (at least 40).
        #[arg(long, default_value_t = 100)]
        size: usize,
        #[arg(long, default_value_t = 10.0)]
        duration: f64,
        #[arg(long, default_value_t = 2.0)]
        warmup: f64,
    },
    /// A saturated big channel, and what a small one beside it notices.
    Fairness {
        /// Subscribers of the saturated channel.
        #[arg(long, default_value_t = 14000)]
        big: usize,
        /// Subscribers of the other one.
        #[arg(long, default_value_t = 5)]
        small: usize,
        /// Messages per second in the small channel, published by a thread of its own.
        #[arg(long, default_value_t = 100.0)]
        small_rate: f64,
        #[command(flatten)]
        t: Traffic,
    },
    /// Connect, subscribe to a private channel, close; again and again.
    Churn {
        /// Concurrent connections.
        #[arg(long, default_value_t = 32)]
        workers: usize,
        #[arg(long, default_value_t = 10.0)]
        duration: f64,
        #[arg(long, default_value_t = 2.0)]
        warmup: f64,
    },
    /// HTTP publish throughput: no subscriber, one subscriber, batches of ten.
    Publish {
        /// Keep-alive connections, one request outstanding on each.
        #[arg(long, default_value_t = 16)]
        workers: usize,
        /// Channels without subscribers to go round.
        #[arg(long, default_value_t = 100)]
        channels: usize,
        #[arg(long, default_value_t = 100)]
        size: usize,
        #[arg(long)]
        plain: bool,
        /// Seconds for each mode.
        #[arg(long, default_value_t = 5.0)]
        duration: f64,
        #[arg(long, default_value_t = 1.0)]
        warmup: f64,
        /// Which: all, nosub, onesub or batch.
        #[arg(long, default_value = "all")]
        mode: String,
    },
    /// Pairs on private channels sending client events back and forth.
    ClientEvents {
        #[arg(long, default_value_t = 100)]
        pairs: usize,
        #[arg(long, default_value_t = 100)]
        size: usize,
        #[arg(long, default_value_t = 10.0)]
        duration: f64,
        #[arg(long, default_value_t = 2.0)]
        warmup: f64,
    },
    /// Members joining and leaving one presence channel.
    Presence {
        #[arg(long, default_value_t = 100)]
        members: usize,
        /// Joins not yet answered at any time.
        #[arg(long, default_value_t = 32)]
        window: usize,
        /// Leave by unsubscribing instead of closing.
        #[arg(long)]
        unsubscribe: bool,
        #[arg(long, default_value_t = 60.0)]
        timeout: f64,
    },
    /// Mostly idle connections, some rooms with steady traffic: tail latency.
    Mixed {
        #[arg(long, default_value_t = 5000)]
        conns: usize,
        /// Share of connections in rooms.
        #[arg(long, default_value_t = 0.2)]
        active: f64,
        #[arg(long, default_value_t = 20)]
        rooms: usize,
        /// Without --rate: find saturation first, then run at this share of it.
        #[arg(long, default_value_t = 0.5)]
        load: f64,
        #[command(flatten)]
        t: Traffic,
    },
    /// Fan-out with a subscriber that never reads.
    Slow {
        #[arg(long, default_value_t = 100)]
        conns: usize,
        /// Subscribers that never read.
        #[arg(long, default_value_t = 1)]
        slow: usize,
        #[command(flatten)]
        t: Traffic,
    },
    /// Run a scenario against several running servers in turn.
    Compare {
        /// NAME=HOST:PORT:PID[,tree][,tls][,ws-port=..][,app-id=..][,key=..][,secret=..], repeated.
        #[arg(long = "target", short = 't', required = true)]
        targets: Vec<String>,
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// Seconds between runs.
        #[arg(long, default_value_t = 2.0)]
        settle: f64,
        /// All numeric fields, not only the main ones.
        #[arg(long)]
        all: bool,
        /// Scenario and its options, after `--`.
        #[arg(last = true, required = true)]
        scenario: Vec<String>,
    },
}
