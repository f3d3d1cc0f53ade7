//! When a silent client is pinged, and when it is given up. Source: protocol.md §2.4.

use std::time::Duration;

use crate::limits::Limit;
use crate::protocol::CloseCode;

/// The clocks of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Timers {
    /// Silence after which the client is pinged.
    pub ping_interval: Duration,
    /// How long it may take to answer.
    pub pong_timeout: Duration,
    /// How long a message may take from its first byte to its last, whatever is said in between.
    pub message_timeout: Duration,
    /// How long a client may take nothing of what waits for it, whatever it says meanwhile.
    pub write_timeout: Duration,
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Signs {
    /// For how long it has been silent.
    pub silence: Duration,
    /// For how long a ping has gone unanswered.
    pub unanswered: Option<Duration>,
    /// For how long a message has begun and not ended.
    pub unfinished: Option<Duration>,
    /// For how long it has taken nothing of what waits for it.
    pub stalled: Option<Duration>,
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
    /// Close with 4100: it has reached a limit.
    Limit(Limit, &'static str),
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
        // Moments are whole seconds: only what is longer than the timeout has surely taken so long.
        if signs.unfinished.is_some_and(|since| since > self.message_timeout) {
            return Verdict::Limit(Limit::MessageTime, "Message not received in time");
        }
        if signs.stalled.is_some_and(|since| since > self.write_timeout) {
            return Verdict::Limit(Limit::WriteTime, "Reading too slowly: nothing was taken in time");
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

    const TIMERS: Timers = Timers {
        ping_interval: Duration::from_secs(50),
        pong_timeout: Duration::from_secs(30),
        message_timeout: Duration::from_secs(60),
        write_timeout: Duration::from_secs(30),
    };

    const SIGNS: Signs = Signs {
        silence: Duration::ZERO,
        unanswered: None,
        unfinished: None,
        stalled: None,
        is_unauthorized: false,
    };

    #[test]
    fn a_message_that_does_not_end_is_closed_however_lively_the_client_is() {
        let verdict = |secs| TIMERS.verdict(Signs { unfinished: Some(SECS(secs)), ..SIGNS });
        assert_eq!(verdict(60), Verdict::Alive);
        assert!(matches!(verdict(61), Verdict::Limit(Limit::MessageTime, _)));
    }

    #[test]
    fn who_takes_nothing_in_time_is_closed_however_lively_the_client_is() {
        let verdict = |secs| TIMERS.verdict(Signs { stalled: Some(SECS(secs)), ..SIGNS });
        assert_eq!(verdict(30), Verdict::Alive);
        assert!(matches!(verdict(31), Verdict::Limit(Limit::WriteTime, _)));
    }

    #[test]
    fn silence_is_answered_with_a_ping_then_a_close() {
        let verdict = |silence, unanswered: Option<u64>| {
            TIMERS.verdict(Signs { silence: SECS(silence), unanswered: unanswered.map(SECS), ..SIGNS })
        };
        assert_eq!(verdict(49, None), Verdict::Alive);
        assert_eq!(verdict(50, None), Verdict::Ping);
        assert_eq!(verdict(79, Some(29)), Verdict::Alive);
        assert!(matches!(verdict(80, Some(30)), Verdict::Close(CloseCode::PongTimeout, _)));
    }

    #[test]
    fn who_proves_nothing_in_time_is_closed() {
        let signs = Signs { is_unauthorized: true, ..SIGNS };
        assert!(matches!(TIMERS.verdict(signs), Verdict::Close(CloseCode::Unauthorized, _)));
    }
}
