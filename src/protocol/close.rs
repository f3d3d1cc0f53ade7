//! The codes a connection is closed with, and refusals that leave it open.

/// Why the server ends a connection, as clients act upon it: 40xx stay away, 41xx come back after a second,
/// 42xx come back at once; below 4000 the WebSocket layer speaks.
///
/// 4002 (unassigned), 4006 (no client triggers it), 4202 (every WebSocket client answers pings) and all of 43xx
/// (pusher-js would never come back) are never raised.
///
/// Source: protocol.md §2.7; 10xx: RFC 6455 §7.4.1.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum CloseCode {
    /// 1000: the answer to a client that closes.
    Normal,
    /// 1002: the client broke RFC 6455.
    ProtocolError,
    /// 1003: binary frames are outside the protocol.
    Unsupported,
    /// 1007: a text message was not UTF-8.
    InvalidPayload,
    /// 1009: a message longer than the app allows.
    TooBig,
    /// 4000: the app takes TLS connections only.
    TlsOnly,
    /// 4001: no app has this key.
    UnknownApp,
    /// 4003: the app is switched off.
    AppDisabled,
    /// 4004: the app has as many connections as it may have.
    OverQuota,
    /// 4005: a WebSocket upgrade on a path that is not an app's.
    PathNotFound,
    /// 4007: a protocol version that is not spoken here.
    UnsupportedProtocol,
    /// 4008: the app requires a protocol version and none was given.
    NoProtocol,
    /// 4009: origin not allowed, not authorised in time, or disconnected by the application.
    Unauthorized,
    /// 4100: the node is full, or the client is slower (or faster) than its limits, or the only node restarts.
    OverCapacity,
    /// 4200: the node is going away, and there are others; reconnect at once.
    Reconnect,
    /// 4201: silence, and no answer to a ping.
    PongTimeout,
}

impl CloseCode {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::ProtocolError => 1002,
            Self::Unsupported => 1003,
            Self::InvalidPayload => 1007,
            Self::TooBig => 1009,
            Self::TlsOnly => 4000,
            Self::UnknownApp => 4001,
            Self::AppDisabled => 4003,
            Self::OverQuota => 4004,
            Self::PathNotFound => 4005,
            Self::UnsupportedProtocol => 4007,
            Self::NoProtocol => 4008,
            Self::Unauthorized => 4009,
            Self::OverCapacity => 4100,
            Self::Reconnect => 4200,
            Self::PongTimeout => 4201,
        }
    }

    /// Whether the code is Pusher's own: then an error frame with the same number goes before the close.
    #[must_use]
    pub const fn is_pusher(self) -> bool {
        self.number() >= 4000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_makes_pusher_js_give_up_by_accident() {
        let all = [
            CloseCode::Normal,
            CloseCode::ProtocolError,
            CloseCode::Unsupported,
            CloseCode::InvalidPayload,
            CloseCode::TooBig,
            CloseCode::TlsOnly,
            CloseCode::UnknownApp,
            CloseCode::AppDisabled,
            CloseCode::OverQuota,
            CloseCode::PathNotFound,
            CloseCode::UnsupportedProtocol,
            CloseCode::NoProtocol,
            CloseCode::Unauthorized,
            CloseCode::OverCapacity,
            CloseCode::Reconnect,
            CloseCode::PongTimeout,
        ];
        for code in all {
            assert!(code.number() < 4300, "{code:?}");
            assert_eq!(code.is_pusher(), (4000..4300).contains(&code.number()));
        }
    }
}
