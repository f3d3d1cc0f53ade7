//! Close codes.

/// The code of a Close frame. Clients act on its range: 40xx do not reconnect, 41xx reconnect after a second, 42xx
/// reconnect immediately. Codes below 4000 belong to the WebSocket layer.
///
/// pusherd never sends 4002 (unassigned), 4006 (no client triggers it), 4202 (every WebSocket client answers pings) and
/// 43xx (pusher-js would never reconnect).
///
/// Source: protocol.md §2.7; 10xx: RFC 6455 §7.4.1.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum CloseCode {
    /// 1000: the reply to a client that closes.
    Normal,
    /// 1002: the client violated RFC 6455.
    ProtocolError,
    /// 1003: the client sent a binary frame, which the protocol does not have.
    Unsupported,
    /// 1007: a text message was not UTF-8.
    InvalidPayload,
    /// 1009: a message longer than the app allows.
    TooBig,
    /// 4000: the app takes TLS connections only.
    TlsOnly,
    /// 4001: no app has this key.
    UnknownApp,
    /// 4003: the app is disabled.
    AppDisabled,
    /// 4004: the app has reached its connection limit.
    OverQuota,
    /// 4005: a WebSocket upgrade on a path that is not an app's.
    PathNotFound,
    /// 4007: an unsupported protocol version.
    UnsupportedProtocol,
    /// 4008: the app requires a protocol version and none was given.
    NoProtocol,
    /// 4009: origin not allowed, not authorised in time, or disconnected by the application.
    Unauthorized,
    /// 4100: the node is at its capacity, the client reached a limit, or the only node shuts down.
    OverCapacity,
    /// 4200: the node shuts down and other nodes are available.
    Reconnect,
    /// 4201: the client was silent and did not answer a ping.
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

    /// Whether the code is one of Pusher's: then a `pusher:error` frame with the same number precedes the Close.
    #[must_use]
    pub const fn is_pusher(self) -> bool {
        self.number() >= 4000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_close_code_stops_pusher_js_from_reconnecting_by_accident() {
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
