//! pusherd: a WebSocket server daemon that speaks the Pusher Channels protocol.
//!
//! This page is for developers; operators read the pages under `docs/`.
//!
//! # The path of an event
//!
//! ```text
//! POST /apps/{id}/events
//!  → server::connection hyper reads the head: a request has one `Host`, and is no upgrade
//!  → http::Service      the routes that publish are matched by hand, all others by axum's router
//!  → http::signed       finds the app, checks the HMAC, then reads the body; handlers only ever get a `Signed`
//!  → http::trigger      JSON → checked names and sizes (`http::fields`), the socket to exclude
//!  → hub.publish        → hub::backend → hub::local on a single node
//!      → registry       one queue a channel: queued messages are joined once and written to every subscriber; once more
//!                       for each other form that a subscriber has, such as compressed frames (`protocol::wire::Form`)
//!  → outbox             one small lock in front of a socket: `send(2)` at once, or queued and flushed by the task
//! ```
//!
//! The other way round, from a client:
//!
//! ```text
//! socket → pusher::connection → protocol::wire (frame, then message) → session.receive → Action
//!        → hub.join, hub.leave, hub.publish_from_client → as above; then session.subscribed
//! ```
//!
//! What applications are told of both, by HTTP:
//!
//! ```text
//! hub: webhooks.lock_subscriptions (a `DeliveryGuard`) → the registry decides → guard.emit
//!  → webhooks::debounce   a falling edge (vacated, removed, offline) is held, and dropped if the rising edge follows
//!  → webhooks::queue      one for each receiver, bounded, fair; pairs that were not sent cancel out
//!  → webhooks::endpoint   signed, sent, retried; in order for each channel → webhooks::dead_letters
//! ```
//!
//! In a cluster, events are published to the broker and come back, also to the node that published them; a join waits
//! for the coordinator:
//!
//! ```text
//! hub.publish → hub::backend → hub::clustered → cluster::node → Broker::publish, or Coordinator::publish_cached
//!   a message → cluster::node, the receive loop → hub::clustered → registry.deliver → outbox
//! hub.join    → hub::backend → hub::clustered, pending (in a presence channel, first a check of its capacity)
//!             → cluster::local_groups: an edge? → Coordinator::update, one script in Redis
//!   its reply, and the transitions on the group's topic → cluster::local_groups → entered → registry.join
//! records     → hub::clustered::records → webhooks → as above
//! ```
//!
//! What happens is watched in one place. The modules report it as facts, and a watcher registers a filter:
//!
//! ```text
//! hub, pusher, http, webhooks: observers.observe(kind, || fact)
//!  → observers            nobody wants the kind: nothing more; otherwise the fact is built, and compared with each filter
//!    → an `Observer`      called at once: the log at `debug`
//!    → a `Watch`          a bounded queue; what does not fit is missed and counted, for this watcher only
//! ```
//!
//! # The map
//!
//! From the inside out: a module uses only modules that stand above it, and of those only the ones that its row names.
//! `tests/it/tidy.rs` reads this table and checks every path in the code against it.
//!
//! | module | what it is for | may use |
//! | --- | --- | --- |
//! | [`protocol`] | names, messages and their positions, signatures, close codes; the codecs of the wires. Pure. | nothing |
//! | [`limits`] | the token bucket, the permits of a limit, the name of every limit. Pure. | nothing |
//! | [`rejections`] | what clients, proxies and applications are refused, and how the operator learns of it | protocol, limits |
//! | [`machine`] | how much memory the machine has and this process uses | nothing |
//! | [`secret`] | a password or another text that is never printed | nothing |
//! | [`bounded_file`] | a file that an operator names, read with bounds | nothing |
//! | [`pem`] | why a file of certificates or a key cannot be used, and how to convert it | nothing |
//! | [`tls_client`] | TLS to other servers: the certificates that are trusted, and the handshake | bounded_file, pem |
//! | [`addresses`] | the address of a client behind proxies, and how many connections each address has | limits |
//! | [`apps`] | an app: its settings, its state, and where it is found; apps may be replaced at run time | protocol, limits, rejections |
//! | [`session`] | what one client may do: message and time in, action out. Pure. | protocol, limits, rejections, apps |
//! | [`outbox`] | one lock in front of a socket, plain or TLS; the order to close it; what may wait on a node | protocol, limits |
//! | [`metrics`] | every counter, typed | rejections |
//! | [`observers`] | everything that happens, as typed facts for those who watch; the log at `debug` | protocol, rejections, metrics |
//! | [`webhooks`] | events for applications over HTTP: debouncing, fair queues, signing, retries, probes, dead letters | protocol, tls_client, metrics, observers, apps |
//! | [`cluster`] | the shared state of several nodes and the messages between them; the engines | protocol, limits, secret, tls_client, metrics |
//! | [`registry`] | channels on this node; signed-in users. Synchronous, sharded. | protocol, limits, outbox |
//! | [`hub`] | join, leave, publish, query: the one way from transports to registry, cluster and webhooks | protocol, limits, rejections, apps, outbox, metrics, observers, webhooks, cluster, registry |
//! | [`http`] | Pusher's REST API and health routes | protocol, limits, rejections, machine, addresses, apps, metrics, observers, hub |
//! | [`pusher`] | the WebSocket upgrade, the task of a connection, the sweep over all of them | protocol, limits, rejections, machine, addresses, apps, session, outbox, metrics, observers, hub |
//! | [`server`] | builds the modules, binds, accepts, does TLS handshakes, drains | protocol, limits, rejections, machine, bounded_file, pem, addresses, apps, outbox, metrics, observers, webhooks, cluster, hub, http, pusher |
//! | [`config`] | files and environment → checked settings, for the `Options` of each module; the only reader of the environment but for `SSL_CERT_FILE` and `SSL_CERT_DIR` | protocol, limits, secret, bounded_file, tls_client, addresses, apps, webhooks, cluster, http, pusher, server |
//! | [`cli`] | the command line | protocol, limits, tls_client, apps, webhooks, cluster, http, pusher, server, config |
//!
//! rustls is named in [`server`] (its certificate and handshakes), [`outbox`] (the session of a WebSocket) and
//! [`tls_client`] (connections to other servers) only.
//!
//! The rules of the wire stand in `docs/protocol.md`, which comments cite as `protocol.md §…`; how to add a setting, a
//! close code, a webhook event, a metric or a test stands in `CONTRIBUTING.md`.
//!
//! # Invariants
//!
//! - Bytes become checked types at one edge and bytes again at one edge. Between them nobody checks again.
//! - The session, `protocol` and `limits` have no clock, no randomness and no I/O; the registry never waits.
//! - An `Arc<App>` is a snapshot of an app's settings and never changes. [`apps::Apps::replace`] puts other snapshots in place of
//!   all at once; a connection, which keeps its snapshot, asks [`apps::App::is_replaced`]. What an app has (permits, rates, counters)
//!   is in its state, which all its snapshots share.
//! - Locks are taken in this order: partition of the cluster, delivery guard of webhooks, channel (or user), outbox. No shard of
//!   a map stays locked meanwhile.
//! - In a cluster, the coordinator decides membership and presence, in one order for each group; nodes follow it and
//!   never anticipate a decision. A single node has none of this, and pays one branch.
//! - Webhook events of a channel are emitted under its delivery guard, in the order in which the registry decided
//!   them; an app without webhooks has no delivery guard.
//! - A receiver of webhooks that is changed while the server runs keeps its queue. One that is removed gets no further
//!   event, and sends what it has queued.
//! - All messages of a channel, including the acknowledgements of joins, have one order.
//! - Whatever forms connections have, a message is queued and cached once, as a [`protocol::wire::Frame`], and its text
//!   is passed between nodes. Everything that is written to a connection is in the form of its outbox.
//! - Exactly one driver delivers the messages of a channel. A publisher never waits for a subscriber, only for the driver,
//!   and only while the channel has more than 256 KiB undelivered.
//! - An idle connection owns no buffer, no timer and no compressor: no message is compressed or inflated with the state of
//!   the one before. (For TLS, rustls keeps a read buffer of 4 KiB.)
//! - Frames for a slow client are queued unencrypted, as shares of the batch; at most 32 KiB are kept encrypted.
//! - Work on all channels, connections or cached events yields after a millisecond or so.
//! - Connections and channels are counted by permits, which are released when they are dropped.
//! - A connection is pending until it is an accepted WebSocket or a request on it was signed. Pending connections are
//!   limited in number (`server::pending`) and time (`server::connection`).
//! - What is rejected is counted and reported by [`hub::Hub::reject`], and nowhere else. Sessions and the registry
//!   only say so.
//! - No fact is built, cloned or queued while nobody watches its kind. A watcher never holds up what it watches, and payloads
//!   are in the facts of those who ask for them only.
//!
//! # Where the hot path's pitfalls are answered
//!
//! | pitfall | answer |
//! | --- | --- |
//! | acknowledge after joining loses messages | `registry::channel`, `Channel::join`: both under the channel's lock |
//! | hyper wakes itself once a POST | `server::repoll` |
//! | axum's WebSocket holds a 128 KiB buffer | `protocol::wire::websocket` and `pusher::connection` instead of it |
//! | hyper's leftover buffer pins 4 KB | `server::stream`, `into_transport`: the bytes are copied, the buffer dropped |
//! | `try_read` pays a second `recv` | [`outbox::Outbox::poll_read`] |
//! | a slow reader's FIN waits behind megabytes | [`outbox::Outbox::reset`] |
//! | socket options for every connection | [`server::bind`]: on the listener, inherited |
//! | a small remainder pins a batch | `outbox`, `Outbox::write`: copied when it is small |
//! | encrypted bytes cannot be shared between clients | `outbox::tls`: the next chunk is encrypted when the socket has accepted the one before |
//! | leaving by linear search | `registry::channel`, `Subscribers::positions` |
//! | a timer a connection | [`outbox::Liveness`], [`pusher::Endpoint::watch`] |
//! | compressing or encoding for every connection | `registry::channel`, `Batch::in_form`: each form once a batch, when the first subscriber needs it; [`protocol::wire::Form`] |
//! | `yield_now` costs a poll | `hub::local`, `Shared::drive`: after the last chunk only if more is pending |
//! | publishers held up by their own fan-out | [`registry::Drive::deliver_inline`]: up to 32 subscribers only, 64 deliveries a turn |
//! | closed-loop figures without deliveries, memory of a used process | the method, not the code |
//!
//! What it all costs, and what was tried: `docs/performance.md`. `scripts/instructions` counts instructions and
//! allocations against `benches/instructions.tsv`, in CI too; a rise of more than 5 % does not land.
//!
//! # Libraries that were asked for, and where they are not used
//!
//! - **tokio-tungstenite** copies every payload into a buffer per connection, so delivery and receiving do not go
//!   through it. Its core, tungstenite, checks the upgrade, and it is the client in the tests.
//! - **axum** routes all HTTP but the paths by which applications publish, which [`http::Service`] matches by
//!   hand: router, extractors and boxed futures were a tenth of a publish's instructions. The accept loop is our own
//!   over hyper, because a connection that becomes a WebSocket is taken out of it down to the TCP stream.
//! - **dashmap** is the map of users; no guard of it lives while a user is locked. Channels and connections are in
//!   `registry::shards`, over hashbrown's table: their maps are walked through a shard at a time, which dashmap offers
//!   with `unsafe` only.
//!
//! # Design choices
//!
//! - One message leads to one `session::Action`, which is returned.
//! - WebSocket framing is pure and lives with the wires, so that a batch holds finished frames and the decoder is
//!   a fuzz target; the transport only feeds it.
//! - An encoded message is a finished WebSocket frame, although there are other forms: nearly all connections write it
//!   as it is, and the others make their form of the text in it.
//! - Liveness is decided by a pure function (`session::liveness`) over two numbers of each connection, in a sweep:
//!   a deadline in every session would need a timer for every connection.

pub mod addresses;
pub mod apps;
pub mod bounded_file;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod http;
pub mod hub;
pub mod limits;
pub mod machine;
pub mod metrics;
pub mod observers;
pub mod outbox;
pub mod pem;
pub mod protocol;
pub mod pusher;
pub mod registry;
pub mod rejections;
pub mod secret;
pub mod server;
pub mod session;
pub mod tls_client;
pub mod webhooks;
