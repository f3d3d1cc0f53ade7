//! What clients, proxies and applications are refused: every kind there is, and what the operator is told of it.
//!
//! Each rejection is counted and logged at `debug`. At `info`, or `warn` where it also hits those who did nothing
//! wrong, there is one line a minute for each kind and app, with the number since the last one, an example, and what
//! to do about it. A number that remains is said when its minute is over, so that none is lost.
//!
//! Only a rejection pays for this: two atomic operations, and an allocation once a minute, kind and app. Payloads and
//! secrets are not part of an [`Example`]; what a peer chose is cut to a bound, and escaped by the log.
//!
//! [`Hub::reject`](crate::hub::Hub::reject) is the only caller. Start at [`Rejection`].

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{debug, info, warn};

use crate::limits::Limit;
use crate::protocol::SocketId;

/// How often the operator is told of one kind.
const REPORT_INTERVAL_SECS: u32 = 60;

/// The longest text in an example, in bytes.
const TEXT_BYTES_MAX: usize = 120;

/// The longest reason in an example, in bytes. It is a sentence of ours, with names in it.
const REASON_BYTES_MAX: usize = 300;

/// What is shown of a key, in bytes: enough to tell which, in case that it was a secret.
const KEY_BYTES_MAX: usize = 8;

/// Why something was rejected.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Rejection {
    /// There was too much of it.
    Limit(Limit),
    /// It was wrong.
    Mistake(Mistake),
}

impl From<Limit> for Rejection {
    fn from(limit: Limit) -> Self {
        Self::Limit(limit)
    }
}

impl From<Mistake> for Rejection {
    fn from(mistake: Mistake) -> Self {
        Self::Mistake(mistake)
    }
}

impl Rejection {
    /// How many there are.
    pub const COUNT: usize = Limit::ALL.len() + Mistake::ALL.len();

    /// Its number, below [`Rejection::COUNT`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Limit(limit) => limit as usize,
            Self::Mistake(mistake) => Limit::ALL.len() + mistake as usize,
        }
    }

    /// What happened, as a sentence of the log.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::Limit(limit) => limit.what(),
            Self::Mistake(mistake) => mistake.what(),
        }
    }
}

/// What a client, a proxy or an application can do wrong.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Mistake {
    /// A handshake of TLS on a port without TLS.
    TlsOnPlainPort,
    /// HTTP without TLS on a port with TLS.
    PlainOnTlsPort,
    /// A handshake of TLS that failed, such as of a client that does not trust the certificate.
    TlsHandshake,
    /// HTTP/2 without an upgrade.
    Http2,
    /// A header of the PROXY protocol, where it is not spoken.
    ProxyHeader,
    /// What is no HTTP/1 at all.
    NotHttp,
    /// The head of a request is too long, or has too many headers (431).
    HeadTooLarge,
    /// A request with no `Host`, or with several.
    Host,
    /// A request for a WebSocket without what makes it one (400, 426).
    Upgrade,
    /// A connection to a path that is none (4005).
    ConnectionPath,
    /// A connection with a key that no app has (4001).
    ConnectionKey,
    /// A connection without TLS to an app that takes TLS only (4000).
    TlsOnly,
    /// A connection or a request to an app that is switched off (4003, 403).
    AppDisabled,
    /// A connection by another version of the protocol (4007, 4008).
    ProtocolVersion,
    /// A connection from a page of another origin (4009).
    Origin,
    /// A subscription that is not granted.
    Subscription,
    /// A sign-in that is not granted.
    SignIn,
    /// A client event that is not passed on.
    ClientEvent,
    /// A message that makes no sense.
    Message,
    /// A request to an app that there is not (404).
    RequestApp,
    /// A request to a path that is none (404).
    RequestPath,
    /// A request with a key that the app does not have (401).
    RequestKey,
    /// A request whose clock is too far off (401).
    RequestClock,
    /// A request whose signature does not hold (401).
    RequestSignature,
    /// A request that says something that cannot be (400, 405, 408, 409, 413, 422).
    Request,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::TlsOnPlainPort,
        Self::PlainOnTlsPort,
        Self::TlsHandshake,
        Self::Http2,
        Self::ProxyHeader,
        Self::NotHttp,
        Self::HeadTooLarge,
        Self::Host,
        Self::Upgrade,
        Self::ConnectionPath,
        Self::ConnectionKey,
        Self::TlsOnly,
        Self::AppDisabled,
        Self::ProtocolVersion,
        Self::Origin,
        Self::Subscription,
        Self::SignIn,
        Self::ClientEvent,
        Self::Message,
        Self::RequestApp,
        Self::RequestPath,
        Self::RequestKey,
        Self::RequestClock,
        Self::RequestSignature,
        Self::Request,
    ];

    /// What happened.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::TlsOnPlainPort => "a client speaks TLS to a port without TLS",
            Self::PlainOnTlsPort => "a client speaks plain HTTP to a port with TLS",
            Self::TlsHandshake => "a TLS handshake failed",
            Self::Http2 => "a client or proxy speaks HTTP/2 to a port with HTTP/1.1",
            Self::ProxyHeader => "a proxy sends a PROXY header, which is not expected",
            Self::NotHttp => "a connection speaks something other than HTTP/1.1",
            Self::HeadTooLarge => "a request was rejected: its head is too large",
            Self::Host => "a request was rejected: it must have one Host header",
            Self::Upgrade => "a WebSocket was rejected: the request is no complete upgrade",
            Self::ConnectionPath => "a WebSocket was rejected: unknown path",
            Self::ConnectionKey => "a WebSocket was rejected: unknown app key",
            Self::TlsOnly => "a WebSocket was rejected: the app takes TLS only",
            Self::AppDisabled => "a connection or request was rejected: the app is disabled",
            Self::ProtocolVersion => "a WebSocket was rejected: unsupported protocol version",
            Self::Origin => "a WebSocket was rejected: origin not allowed",
            Self::Subscription => "a subscription was refused",
            Self::SignIn => "a sign-in was rejected",
            Self::ClientEvent => "a client event was rejected",
            Self::Message => "a client's message was rejected",
            Self::RequestApp => "a request was rejected: unknown app",
            Self::RequestPath => "a request was rejected: unknown path",
            Self::RequestKey => "a request was rejected: unknown app key",
            Self::RequestClock => "a request was rejected: its clock is off",
            Self::RequestSignature => "a request was rejected: its signature does not hold",
            Self::Request => "a request was rejected",
        }
    }

    /// What the operator can do about it; `None`: the reason says it.
    #[must_use]
    pub const fn remedy(self) -> Option<&'static str> {
        Some(match self {
            Self::TlsOnPlainPort => {
                "use http and ws for this port (PUSHER_SCHEME=http, forceTLS: false), or set server.tls_cert and \
                 server.tls_key"
            }
            Self::PlainOnTlsPort => "use https and wss for this port (PUSHER_SCHEME=https, forceTLS: true)",
            Self::TlsHandshake => {
                "see the reason; a client must trust the certificate and speak TLS 1.2 or 1.3"
            }
            Self::Http2 => "let the proxy speak HTTP/1.1 to pusherd (nginx: proxy_http_version 1.1)",
            Self::ProxyHeader => {
                "set server.proxy_protocol, with the balancer in server.trusted_proxies, or switch the header off \
                 at the balancer"
            }
            Self::NotHttp => "see what the client or the health check of this address speaks",
            Self::HeadTooLarge => "send fewer or smaller headers; cookies are the usual cause",
            Self::Host => "let the proxy send one Host header (nginx: proxy_set_header Host $host)",
            Self::Upgrade => {
                "let the proxy pass the upgrade on (nginx: proxy_http_version 1.1; proxy_set_header Upgrade \
                 $http_upgrade; proxy_set_header Connection \"upgrade\")"
            }
            Self::ConnectionPath => "connect to /app/{key}, behind the app's path_prefix if it has one",
            Self::ConnectionKey => {
                "compare the key of the client with those of the apps (pusherd config show)"
            }
            Self::TlsOnly => {
                "use wss; behind a proxy that ends TLS, let it send X-Forwarded-Proto and name it in \
                 server.trusted_proxies"
            }
            Self::AppDisabled => "set enabled of the app",
            Self::ProtocolVersion => "use a client of protocol 5, 6 or 7",
            Self::Origin => "add the origin to allowed_origins of the app",
            Self::RequestApp => {
                "compare the app id of the application with those of the apps (pusherd config show)"
            }
            Self::RequestKey => {
                "compare the key of the application with those of the app (pusherd config show)"
            }
            Self::RequestClock => "set the clocks of both machines by NTP, or raise limits.auth_window_secs",
            Self::RequestSignature => "compare the secret of the application with that of the app",
            Self::Subscription
            | Self::SignIn
            | Self::ClientEvent
            | Self::Message
            | Self::RequestPath
            | Self::Request => return None,
        })
    }
}

/// One rejection of many, as the log shows it. All of it is optional, and no text is longer than it may be.
#[derive(Clone, Debug, Default)]
pub struct Example<'e> {
    address: Option<IpAddr>,
    socket: Option<SocketId>,
    value: Option<u64>,
    texts: [Option<Cow<'e, str>>; Text::COUNT],
}

#[derive(Clone, Copy)]
enum Text {
    App,
    Key,
    Path,
    Channel,
    Origin,
    Library,
    Reason,
}

impl Text {
    const COUNT: usize = Self::Reason as usize + 1;

    const fn bytes_max(self) -> usize {
        match self {
            Self::Key => KEY_BYTES_MAX,
            Self::Reason => REASON_BYTES_MAX,
            Self::App | Self::Path | Self::Channel | Self::Origin | Self::Library => TEXT_BYTES_MAX,
        }
    }
}

impl<'e> Example<'e> {
    /// One of whom the address is known.
    #[must_use]
    pub fn from(address: IpAddr) -> Self {
        Self { address: Some(address), ..Self::default() }
    }

    /// Where it came from.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        Self { address: Some(address), ..self }
    }

    /// The connection, by which it is found among the other lines of the log.
    #[must_use]
    pub fn socket(self, socket: SocketId) -> Self {
        Self { socket: Some(socket), ..self }
    }

    /// The app, by its id: one that there is, or what was given as one.
    #[must_use]
    pub fn app(self, id: impl Into<Cow<'e, str>>) -> Self {
        self.text(Text::App, id.into())
    }

    /// The key that was given, of which the first characters are shown.
    #[must_use]
    pub fn key(self, key: impl Into<Cow<'e, str>>) -> Self {
        self.text(Text::Key, key.into())
    }

    /// The path of a request, without its query.
    #[must_use]
    pub fn path(self, path: impl Into<Cow<'e, str>>) -> Self {
        self.text(Text::Path, path.into())
    }

    /// The channel, as it was asked for.
    #[must_use]
    pub fn channel(self, channel: impl Into<Cow<'e, str>>) -> Self {
        self.text(Text::Channel, channel.into())
    }

    /// The origin of a browser's page.
    #[must_use]
    pub fn origin(self, origin: impl Into<Cow<'e, str>>) -> Self {
        self.text(Text::Origin, origin.into())
    }

    /// The library that the client uses, with its version.
    #[must_use]
    pub fn library(self, library: impl Into<Cow<'e, str>>) -> Self {
        self.text(Text::Library, library.into())
    }

    /// What was wrong, as the peer was told.
    #[must_use]
    pub fn reason(self, reason: impl Into<Cow<'e, str>>) -> Self {
        self.text(Text::Reason, reason.into())
    }

    /// The value of the limit that was reached, in its [`Limit::unit`].
    #[must_use]
    pub fn value(self, value: impl Into<Option<u64>>) -> Self {
        Self { value: value.into().or(self.value), ..self }
    }

    fn text(mut self, which: Text, text: Cow<'e, str>) -> Self {
        let end = text.floor_char_boundary(which.bytes_max());
        self.texts[which as usize] = Some(match text {
            Cow::Borrowed(text) => Cow::Borrowed(&text[..end]),
            Cow::Owned(mut text) => {
                text.truncate(end);
                Cow::Owned(text)
            }
        });
        self
    }

    fn get(&self, which: Text) -> Option<&str> {
        self.texts[which as usize].as_deref()
    }

    fn into_owned(self) -> Example<'static> {
        let texts = self.texts.map(|text| text.map(|text| Cow::Owned(text.into_owned())));
        Example { address: self.address, socket: self.socket, value: self.value, texts }
    }
}

/// What the operator has been told of each kind, for one app or for the node, and what not yet.
#[derive(Debug)]
pub struct Reports {
    slots: [Slot; Rejection::COUNT],
    /// An example of each kind of which something has not been told.
    untold: Mutex<Vec<(Rejection, Example<'static>)>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// When the last line was, in seconds and one; 0: never.
    told_secs: AtomicU32,
    /// How many since then.
    count: AtomicU32,
}

impl Slot {
    /// Whether a line is due at `now`; only one of those who ask gets `true`.
    fn is_due(&self, now: Duration) -> bool {
        let now_secs = now.as_secs() as u32 + 1;
        let is_due = |told: u32| {
            (told == 0 || now_secs.saturating_sub(told) >= REPORT_INTERVAL_SECS).then_some(now_secs)
        };
        self.told_secs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_due).is_ok()
    }

    /// How many have not been told, which from now on have.
    fn take(&self) -> u32 {
        self.count.swap(0, Ordering::Relaxed)
    }
}

impl Default for Reports {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| Slot::default()), untold: Mutex::default() }
    }
}

impl Reports {
    /// Logs one rejection: at `debug`, and so that it is noticed if the minute of the last such line is over. Answers
    /// whether [`Reports::flush`] has to be called later, if it was not before.
    #[must_use = "what is not told now has to be told later"]
    pub fn report(&self, rejection: Rejection, example: Example<'_>, now: Duration) -> bool {
        log_each(rejection, &example);
        let slot = &self.slots[rejection.index()];
        let is_first = slot.count.fetch_add(1, Ordering::Relaxed) == 0;
        if slot.is_due(now) {
            log_many(rejection, &example, slot.take());
            return false;
        }
        if !is_first {
            return false;
        }
        let mut untold = self.untold.lock();
        untold.push((rejection, example.into_owned()));
        untold.len() == 1
    }

    /// Tells what has not been told of those kinds whose minute is over, or of `all`; whether something is left.
    pub fn flush(&self, now: Duration, all: bool) -> bool {
        let mut untold = self.untold.lock();
        untold.retain(|(rejection, example)| {
            let slot = &self.slots[rejection.index()];
            if !slot.is_due(now) && !all {
                // Told meanwhile, with the one after it, or not due yet.
                return slot.count.load(Ordering::Relaxed) > 0;
            }
            let count = slot.take();
            if count > 0 {
                log_many(*rejection, example, count);
            }
            false
        });
        !untold.is_empty()
    }
}

/// The fields of a line: those of the example that are there, and `$more` before them.
macro_rules! line {
    ($log:ident, $rejection:expr, $example:expr, $($more:tt)*) => {{
        let (rejection, example): (Rejection, &Example<'_>) = ($rejection, $example);
        let (value, setting, remedy) = match rejection {
            Rejection::Limit(limit) => {
                (example.value.map(|value| format!("{value} {}", limit.unit())), Some(limit.setting()), None)
            }
            Rejection::Mistake(mistake) => (None, None, mistake.remedy()),
        };
        $log!(
            $($more)*
            app = example.get(Text::App),
            limit = value,
            setting,
            address = example.address.map(tracing::field::display),
            socket = example.socket.map(tracing::field::display),
            channel = example.get(Text::Channel),
            path = example.get(Text::Path),
            key = example.get(Text::Key),
            origin = example.get(Text::Origin),
            library = example.get(Text::Library),
            reason = example.get(Text::Reason),
            remedy,
            "{}", rejection.what()
        );
    }};
}

fn log_each(rejection: Rejection, example: &Example<'_>) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        line!(debug, rejection, example,);
    }
}

fn log_many(rejection: Rejection, example: &Example<'_>, count: u32) {
    match rejection {
        Rejection::Limit(limit) if limit.is_shared() => line!(warn, rejection, example, count,),
        Rejection::Limit(_) | Rejection::Mistake(_) => line!(info, rejection, example, count,),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// What is logged while `act` runs, at `info` and above, a line an item.
    fn logged(act: impl FnOnce()) -> Vec<String> {
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Log {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        impl MakeWriter<'_> for Log {
            type Writer = Self;
            fn make_writer(&self) -> Self {
                self.clone()
            }
        }
        let log = Log::default();
        let logs = tracing_subscriber::fmt().with_ansi(false).without_time().with_target(false);
        tracing::subscriber::with_default(logs.with_writer(log.clone()).finish(), act);
        let text = String::from_utf8(log.0.lock().clone()).unwrap();
        text.lines().map(|line| line.trim_start().to_owned()).collect()
    }

    fn example() -> Example<'static> {
        Example::from([192, 0, 2, 1].into())
    }

    #[test]
    fn a_kind_is_told_once_a_minute_with_the_number_since_and_none_is_lost() {
        let reports = Reports::default();
        let report = |kind: Rejection, secs| reports.report(kind, example(), Duration::from_secs(secs));
        let flush = |secs| reports.flush(Duration::from_secs(secs), false);
        let (key, path) = (Mistake::ConnectionKey.into(), Mistake::ConnectionPath.into());
        let lines = logged(|| {
            assert!(!report(key, 0), "told at once");
            assert!(report(key, 1), "to be told later");
            assert!(!report(key, 2) && !report(key, 59), "as is known by then");
            assert!(!report(path, 30), "another kind is told at once");
            assert!(flush(59));
            assert!(!flush(60));
            assert!(report(key, 61));
            assert!(!report(key, 120), "told with the one before");
            assert!(!flush(121));
            assert!(report(key, 122));
            assert!(!reports.flush(Duration::from_secs(123), true), "at the end, all is told");
        });
        let counts =
            lines.iter().map(|line| (line.contains("unknown path"), &line[line.find("count=").unwrap()..]));
        let counts: Vec<_> = counts.map(|(path, rest)| (path, rest.split(' ').next().unwrap())).collect();
        let expected = [
            (false, "count=1"),
            (true, "count=1"),
            (false, "count=3"),
            (false, "count=2"),
            (false, "count=1"),
        ];
        assert_eq!(counts, expected, "{lines:#?}");
    }

    #[test]
    fn a_line_says_what_happened_to_whom_and_what_to_do_and_no_more_than_it_may() {
        let long = "x".repeat(1000);
        let lines = logged(|| {
            let example =
                example().key("demo-key-of-an-app").path(&*long).origin("https://a\u{1b}[31m\nINFO b");
            let _ = Reports::default().report(Mistake::ConnectionKey.into(), example, Duration::ZERO);
            let full = example_of_limit();
            let _ = Reports::default().report(Limit::AppConnections.into(), full, Duration::ZERO);
        });
        let [wrong, full] = &lines[..] else { panic!("{lines:#?}") };
        assert!(wrong.starts_with("INFO a WebSocket was rejected: unknown app key count=1"), "{wrong}");
        assert!(wrong.contains(r#"key="demo-key""#) && wrong.contains("address=192.0.2.1"), "{wrong}");
        assert!(wrong.contains(r"\u{1b}[31m\nINFO") && wrong.contains("remedy="), "{wrong}");
        assert!(wrong.len() < 600, "{wrong}");
        assert_eq!(
            full,
            "WARN an app has as many connections as it may have count=1 app=\"1001\" limit=\"100 connections\" \
             setting=\"limits.connections\" address=192.0.2.1"
        );
    }

    fn example_of_limit() -> Example<'static> {
        example().app("1001").value(100)
    }

    #[test]
    fn a_flood_stores_one_example_and_is_counted_in_full() {
        let reports = Reports::default();
        let lines = logged(|| {
            let report = |secs| reports.report(Mistake::Request.into(), example(), Duration::from_secs(secs));
            let _ = report(0);
            assert_eq!((0..100_000).filter(|_| report(1)).count(), 1);
            assert_eq!(reports.untold.lock().len(), 1);
            assert!(!reports.flush(Duration::from_secs(60), false));
        });
        assert!(lines[1].contains("count=100000"), "{lines:#?}");
    }

    #[test]
    fn every_kind_has_its_number() {
        let limits = Limit::ALL.into_iter().map(Rejection::from);
        let mistakes = Mistake::ALL.into_iter().map(Rejection::from);
        let numbers: Vec<_> = limits.chain(mistakes).map(Rejection::index).collect();
        assert_eq!(numbers, (0..Rejection::COUNT).collect::<Vec<_>>());
    }
}
