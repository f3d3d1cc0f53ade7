//! When a silent client is pinged, and when it is closed. Source: protocol.md §2.4.

use std::time::Duration;

use crate::limits::Limit;
use crate::protocol::CloseCode;

/// The timeouts of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// A client that is silent for this long is pinged.
    pub ping_interval: Duration,
    /// The time in which a client must answer a ping.
    pub pong_timeout: Duration,
    /// The time from the first byte of a message to its last, whatever else the client sends in between.
    pub message_timeout: Duration,
    /// The time in which a client must read something of what is queued for it, whatever it sends in the meantime.
    pub write_timeout: Duration,
}

/// The state of a connection that the timeouts apply to.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionState {
    /// The time since the client last sent something.
    pub silence: Duration,
    /// The time since an unanswered ping was sent.
    pub unanswered: Option<Duration>,
    /// The time since an unfinished message began.
    pub unfinished: Option<Duration>,
    /// The time for which the client has read nothing although something is queued.
    pub stalled: Option<Duration>,
    /// Whether the client has not been authorised within the timeout of the app.
    pub is_unauthorized: bool,
}

/// The decision about a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Do nothing.
    Alive,
    /// Send a WebSocket Ping, which every client answers.
    Ping,
    /// Close with 4100, because of the limit.
    Limit(Limit, &'static str),
    /// Close with this code.
    Close(CloseCode, &'static str),
}

impl Timeouts {
    /// Decides about a connection. Any frame of the client resets its silence. The activity timeout that the client
    /// received does not matter here.
    #[must_use]
    pub fn verdict(&self, state: ConnectionState) -> Verdict {
        if state.is_unauthorized {
            return Verdict::Close(CloseCode::Unauthorized, "Connection not authorized within timeout");
        }
        // The coarse clock has whole seconds: only a longer time than the timeout is certain to have reached it.
        if state.unfinished.is_some_and(|since| since > self.message_timeout) {
            return Verdict::Limit(Limit::MessageTime, "Message not received in time");
        }
        if state.stalled.is_some_and(|since| since > self.write_timeout) {
            return Verdict::Limit(Limit::WriteTime, "Reading too slowly: nothing was taken in time");
        }
        match state.unanswered {
            Some(waited) if waited >= self.pong_timeout => {
                Verdict::Close(CloseCode::PongTimeout, "Pong reply not received in time")
            }
            Some(_) => Verdict::Alive,
            None if state.silence >= self.ping_interval => Verdict::Ping,
            None => Verdict::Alive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECS: fn(u64) -> Duration = Duration::from_secs;

    const TIMEOUTS: Timeouts = Timeouts {
        ping_interval: Duration::from_secs(50),
        pong_timeout: Duration::from_secs(30),
        message_timeout: Duration::from_secs(60),
        write_timeout: Duration::from_secs(30),
    };

    const STATE: ConnectionState = ConnectionState {
        silence: Duration::ZERO,
        unanswered: None,
        unfinished: None,
        stalled: None,
        is_unauthorized: false,
    };

    #[test]
    fn an_unfinished_message_closes_the_connection_however_active_the_client_is() {
        let verdict = |secs| TIMEOUTS.verdict(ConnectionState { unfinished: Some(SECS(secs)), ..STATE });
        assert_eq!(verdict(60), Verdict::Alive);
        assert!(matches!(verdict(61), Verdict::Limit(Limit::MessageTime, _)));
    }

    #[test]
    fn a_client_that_reads_nothing_in_time_is_closed_however_active_it_is() {
        let verdict = |secs| TIMEOUTS.verdict(ConnectionState { stalled: Some(SECS(secs)), ..STATE });
        assert_eq!(verdict(30), Verdict::Alive);
        assert!(matches!(verdict(31), Verdict::Limit(Limit::WriteTime, _)));
    }

    #[test]
    fn silence_is_answered_with_a_ping_then_a_close() {
        let verdict = |silence, unanswered: Option<u64>| {
            TIMEOUTS.verdict(ConnectionState {
                silence: SECS(silence),
                unanswered: unanswered.map(SECS),
                ..STATE
            })
        };
        assert_eq!(verdict(49, None), Verdict::Alive);
        assert_eq!(verdict(50, None), Verdict::Ping);
        assert_eq!(verdict(79, Some(29)), Verdict::Alive);
        assert!(matches!(verdict(80, Some(30)), Verdict::Close(CloseCode::PongTimeout, _)));
    }

    #[test]
    fn a_client_that_is_not_authorised_in_time_is_closed() {
        let state = ConnectionState { is_unauthorized: true, ..STATE };
        assert!(matches!(TIMEOUTS.verdict(state), Verdict::Close(CloseCode::Unauthorized, _)));
    }
}
