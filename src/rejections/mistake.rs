//! Mistakes of clients, proxies and applications, with a remedy for each.

/// What a client, a proxy or an application did wrong.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Mistake {
    /// A TLS handshake on a plain port.
    TlsOnPlainPort,
    /// HTTP without TLS on a TLS port.
    PlainOnTlsPort,
    /// A failed TLS handshake, for instance of a client that does not trust the certificate.
    TlsHandshake,
    /// HTTP/2 without an upgrade.
    Http2,
    /// A header of the PROXY protocol, if that is not enabled.
    ProxyHeader,
    /// Bytes that are not HTTP/1.
    NotHttp,
    /// A request whose head is too long, or has too many headers (431).
    HeadTooLarge,
    /// A request with no `Host`, or with several.
    Host,
    /// An incomplete WebSocket upgrade (400, 426).
    Upgrade,
    /// A WebSocket at an unknown path (4005).
    ConnectionPath,
    /// A WebSocket with an unknown app key (4001).
    ConnectionKey,
    /// A plain WebSocket to an app that requires TLS (4000).
    TlsOnly,
    /// A WebSocket or a request to a disabled app (4003, 403).
    AppDisabled,
    /// A WebSocket with an unsupported version of the protocol (4007, 4008).
    ProtocolVersion,
    /// A WebSocket of a page whose origin is not allowed (4009).
    Origin,
    /// A refused subscription.
    Subscription,
    /// A rejected sign-in.
    SignIn,
    /// A rejected client event.
    ClientEvent,
    /// An invalid message.
    Message,
    /// A request to an unknown app (404).
    RequestApp,
    /// A request to an unknown path (404).
    RequestPath,
    /// A request with a key that is not one of the app's (401).
    RequestKey,
    /// A request whose clock is too far off (401).
    RequestClock,
    /// A request with an invalid signature (401).
    RequestSignature,
    /// Another invalid request (400, 405, 408, 409, 413, 422).
    Request,
}

impl Mistake {
    /// All mistakes, in the order of their indexes.
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

    /// What happened, as a sentence of the log.
    #[must_use]
    pub const fn description(self) -> &'static str {
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

    /// How the operator can fix it; `None`: the reason says it.
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
