//! The input of a client: frames are decoded and handled in order, and their charges applied.

use std::time::Duration;

use bytes::Bytes;

use super::backpressure::UNREAD_REPLY_BYTES_MAX;
use super::{Connection, Established, READ_BYTES};
use crate::limits::Limit;
use crate::observers::{Fact, Kind};
use crate::outbox::Unfinished;
use crate::protocol::CloseCode;
use crate::protocol::wire::pusher;
use crate::protocol::wire::websocket::{self, Incoming, Violation};
use crate::rejections::Example;
use crate::session::Throttle;

impl Connection {
    /// Decodes and handles input of the client.
    pub(super) fn receive(&mut self, bytes: &mut [u8]) {
        if !bytes.is_empty() {
            self.decode(bytes);
        }
    }

    /// Decodes and handles `bytes`, after the input that was left when the connection was paused.
    pub(super) fn decode(&mut self, bytes: &mut [u8]) {
        if self.ignores_input {
            return;
        }
        let now = self.endpoint.0.hub.now();
        let limit = |established: &Established| established.session.app().limits.message_bytes_max;
        // A rejected or closing client can only send a Close.
        let message_bytes_max = self.established.as_deref().map_or(READ_BYTES, limit);
        let mut decoder = std::mem::take(&mut self.decoder);
        if self.established.is_none() {
            decoder.skip_compressed();
        }
        // Of several pings in a row only the last is answered, as RFC 6455 §5.5.3 allows: a flood of them costs one reply
        // for each read.
        let mut pong = None;
        // Whether a message was completed, and whether any frame was.
        let (mut message_completed, mut frame_completed) = (false, false);
        let decoded = decoder.feed(bytes, message_bytes_max, |incoming| {
            frame_completed = true;
            message_completed |= matches!(incoming, Incoming::Text(_) | Incoming::Binary);
            self.outbox.liveness.heard(now);
            self.handle(incoming, &mut pong, now)
        });
        let is_paused = self.backpressure.as_ref().is_some_and(|backpressure| backpressure.stops_decoding());
        // Between the fragments of a message only its last frame completes anything. A message that waits because of
        // backpressure is complete.
        let unfinished = (decoder.is_unfinished() && !is_paused).then(|| {
            let is_new = message_completed || (frame_completed && !decoder.is_fragmented());
            if is_new { Unfinished::New } else { Unfinished::Same }
        });
        self.outbox.liveness.set_unfinished(unfinished, now);
        if is_paused {
            self.reserve(decoder.buffered_bytes());
        }
        self.decoder = decoder;
        if let Some(pong) = pong {
            self.reply_to_ping(&pong);
            self.apply_charges(now);
        }
        if let Err(violation) = decoded {
            self.ignores_input = true;
            if let (Violation::TooBig { .. }, Some(established)) = (violation, &self.established) {
                let example = Example::from(established.address).socket(self.outbox.socket());
                self.endpoint.0.hub.reject(Limit::MessageBytes, Some(established.session.app()), example);
            }
            self.outbox.close(violation.code(), &violation.to_string());
        }
    }

    /// Reserves memory for input that has been read and is handled later.
    fn reserve(&mut self, bytes: usize) {
        let reservation = self.outbox.try_reserve(bytes);
        if reservation.is_none() {
            self.outbox.evict();
        } else if let Some(backpressure) = &mut self.backpressure {
            backpressure._reservation = reservation;
        }
    }

    /// Replies ahead of the queue.
    fn reply_to_ping(&self, pong: &Bytes) {
        self.outbox.charge(pong.len(), 0);
        self.outbox.send_control(pong);
    }

    /// Charges the session for what the client has caused. Returns whether more input is handled now.
    fn apply_charges(&mut self, now: Duration) -> bool {
        let (bytes, changes) = self.outbox.take_charges();
        if bytes == 0 && changes == 0 {
            return true;
        }
        let Some(established) = &mut self.established else { return true };
        let session = &mut established.session;
        match session.charge(bytes, changes, now) {
            Throttle::Continue => {}
            Throttle::Pause(wait, limit) => {
                let example = Example::from(established.address).socket(self.outbox.socket());
                self.endpoint.0.hub.reject(limit, Some(session.app()), example);
                self.backpressure.get_or_insert_default().charge_delay =
                    Some(Box::pin(tokio::time::sleep(wait)));
            }
            Throttle::Close(limit) => {
                self.outbox.close_for_limit(limit, "Too much was asked for");
                self.begin_teardown();
                return true;
            }
        }
        if self.outbox.queued_bytes() > UNREAD_REPLY_BYTES_MAX {
            self.backpressure.get_or_insert_default().unread_replies = true;
        }
        !self.backpressure.as_ref().is_some_and(|backpressure| backpressure.stops_decoding())
    }

    /// Handles one message. Returns whether the next one is handled now.
    fn handle(&mut self, incoming: Incoming<'_>, pong: &mut Option<Bytes>, now: Duration) -> bool {
        if !matches!(incoming, Incoming::Ping(_))
            && let Some(pong) = pong.take()
        {
            self.reply_to_ping(&pong);
        }
        match incoming {
            Incoming::Text(text) => {
                let Some(established) = &mut self.established else { return true };
                let session = &mut established.session;
                self.endpoint.0.hub.observers().observe(Kind::MessageReceived, || Fact::MessageReceived {
                    app: (&*session.app().id.0).into(),
                    socket: self.outbox.socket(),
                    bytes: text.len(),
                    text: Some(text.into()),
                });
                let action = match session.admit(now) {
                    Some(close) => {
                        let example = Example::from(established.address).socket(self.outbox.socket());
                        self.endpoint.0.hub.reject(Limit::Messages, Some(session.app()), example);
                        close
                    }
                    None => match pusher::decode(text) {
                        Ok(message) => session.receive(message, now),
                        Err(error) => session.malformed(error, now),
                    },
                };
                self.perform(action);
                return self.apply_charges(now);
            }
            Incoming::Fragment => self.admit_frame(now),
            Incoming::Binary => {
                self.close(CloseCode::Unsupported, "binary frames are not part of the protocol")
            }
            Incoming::Ping(payload) => {
                *pong = Some(websocket::pong(payload));
                self.admit_frame(now);
            }
            Incoming::Pong => self.admit_frame(now),
            Incoming::Close(code) => {
                if self.outbox.closing().is_some() {
                    // The reply to the server's Close: nothing is left to wait for.
                    self.outbox.disconnect();
                } else {
                    self.outbox.reply_to_close(code);
                }
                self.ignores_input = true;
                return false;
            }
        }
        true
    }

    /// Counts a frame that is not a whole message.
    fn admit_frame(&mut self, now: Duration) {
        let Some(established) = &mut self.established else { return };
        if let Some(close) = established.session.admit_frame(now) {
            let example = Example::from(established.address).socket(self.outbox.socket());
            self.endpoint.0.hub.reject(Limit::Messages, Some(established.session.app()), example);
            self.perform(close);
        }
    }
}
