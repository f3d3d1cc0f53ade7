//! When a silent client is pinged, and when it is given up. Source: protocol.md §2.4.

use std::time::Duration;

use crate::protocol::CloseCode;

/// The clocks of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Timers {
    /// Silence after which the client is pinged.
    pub ping_interval: Duration,
    /// How long it may take to answer.
    pub pong_timeout: Duration,
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Signs {
    /// For how long it has been silent.
    pub silence: Duration,
    /// For how long a ping has gone unanswered.
    pub unanswered: Option<Duration>,
    /// Whether it should have proved by now that the application lets it in, and has not.
    pub is_unauthorized: bool,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Nothing.
    Alive,
    /// Send a WebSocket Ping: the only one that every client answers.
    Ping,
    /// Close.
    Close(CloseCode, &'static str),
}

impl Timers {
    /// Decides about a connection. Any sign of life resets it; what the client was told of its own timeout does
    /// not count.
    #[must_use]
    pub fn verdict(&self, signs: Signs) -> Verdict {
        if signs.is_unauthorized {
            return Verdict::Close(CloseCode::Unauthorized, "Connection not authorized within timeout");
        }
        match signs.unanswered {
            Some(waited) if waited >= self.pong_timeout => {
                Verdict::Close(CloseCode::PongTimeout, "Pong reply not received in time")
            }
            Some(_) => Verdict::Alive,
            None if signs.silence >= self.ping_interval => Verdict::Ping,
            None => Verdict::Alive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECS: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn silence_is_answered_with_a_ping_then_a_close() {
        let timers = Timers { ping_interval: SECS(50), pong_timeout: SECS(30) };
        let verdict = |silence, unanswered: Option<u64>| {
            let unanswered = unanswered.map(SECS);
            timers.verdict(Signs { silence: SECS(silence), unanswered, is_unauthorized: false })
        };
        assert_eq!(verdict(49, None), Verdict::Alive);
        assert_eq!(verdict(50, None), Verdict::Ping);
        assert_eq!(verdict(79, Some(29)), Verdict::Alive);
        assert!(matches!(verdict(80, Some(30)), Verdict::Close(CloseCode::PongTimeout, _)));
    }

    #[test]
    fn who_proves_nothing_in_time_is_closed() {
        let timers = Timers { ping_interval: SECS(50), pong_timeout: SECS(30) };
        let signs = Signs { silence: SECS(0), unanswered: None, is_unauthorized: true };
        assert!(matches!(timers.verdict(signs), Verdict::Close(CloseCode::Unauthorized, _)));
    }
}
