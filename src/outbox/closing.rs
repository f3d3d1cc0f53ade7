//! The end of a connection: a close with a code, an eviction, a reset.

use bytes::Bytes;

use super::Outbox;
use super::state::{Accounting, OverBudget, State};
use crate::limits::Limit;
use crate::protocol::CloseCode;
use crate::protocol::message::ServerMessage;
use crate::protocol::wire::{Form, pusher, websocket};

/// The longest partly sent frame that an evicted connection completes. With a longer one it is reset without a code.
const EVICTED_FRAME_BYTES_MAX: usize = 64 * 1024;

/// How a connection is closing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closing {
    /// The server closes it with this code; its last messages are written or queued.
    Code(CloseCode),
    /// The server closes it with 4100 because of this limit, which the connection's task counts.
    Limit(Limit),
    /// The transport failed.
    Broken,
}

impl Outbox {
    /// Closes the connection with an error message and a Close frame, and wakes its task. Only the first close counts.
    /// In a form without control frames there is no Close: the task ends the response after the error.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.close_locked(&mut self.state.lock(), Closing::Code(code), reason);
    }

    /// As [`Outbox::close`], with 4100, because the connection has reached `limit`.
    pub fn close_for_limit(&self, limit: Limit, reason: &str) {
        self.close_for_limit_locked(&mut self.state.lock(), limit, reason);
    }

    /// Closes the connection to free memory of the node. Its queue is dropped; a long partly sent frame is cut, and the
    /// connection reset.
    pub fn evict(&self) {
        let mut state = self.state.lock();
        if state.head_is_partial && state.head().is_some_and(|head| head.len() > EVICTED_FRAME_BYTES_MAX) {
            self.reset_over_budget(&mut state);
        } else {
            self.close_over_budget(&mut state);
        }
    }

    pub(super) fn close_over_budget(&self, state: &mut State) {
        self.close_for_limit_locked(
            state,
            Limit::QueuedBytes,
            "Reading too slowly: the server needs the memory",
        );
    }

    /// Resets the connection within a frame, because the node's budget is exceeded.
    pub(super) fn reset_over_budget(&self, state: &mut State) {
        self.transport.set_zero_linger();
        state.clear();
        state.closing.get_or_insert(Closing::Limit(Limit::QueuedBytes));
        self.write_progress.record(false);
        state.wake();
    }

    pub(super) fn close_for_limit_locked(&self, state: &mut State, limit: Limit, reason: &str) {
        self.close_locked(state, Closing::Limit(limit), reason);
    }

    fn close_locked(&self, state: &mut State, closing: Closing, reason: &str) {
        if state.closing.is_some() {
            return;
        }
        let code = match closing {
            Closing::Code(code) => code,
            Closing::Limit(_) => CloseCode::OverCapacity,
            Closing::Broken => return,
        };
        // The client can't read the queue in time. Only a partly sent frame must be completed.
        state.drop_unstarted();
        self.write_closing(state, &last_messages(self.form, code, reason));
        state.closing.get_or_insert(closing);
        state.wake();
    }

    /// Replies to a client's Close with one of the same code, if the form has one. The task ends when it is written.
    pub fn reply_to_close(&self, code: Option<u16>) {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return;
        }
        if self.form.has_control_frames() {
            let answer = code.map_or_else(websocket::close_without_code, |code| websocket::close(code, ""));
            self.write_closing(&mut state, &answer);
        }
        state.closing.get_or_insert(Closing::Code(CloseCode::Normal));
    }

    /// How the connection is closing, if it is.
    #[must_use]
    pub fn closing(&self) -> Option<Closing> {
        self.state.lock().closing
    }

    /// Disconnects: nothing more is written, and the task is woken to drop the connection.
    pub fn disconnect(&self) {
        self.fail(&mut self.state.lock());
    }

    /// As [`Outbox::disconnect`], and resets the stream when it is dropped, so that its FIN does not wait behind bytes
    /// that the client does not read.
    pub fn reset(&self) {
        self.transport.set_zero_linger();
        self.disconnect();
    }

    /// Writes the last messages, or queues them behind a partly sent one.
    fn write_closing(&self, state: &mut State, messages: &Bytes) {
        if messages.is_empty() {
            return;
        }
        if state.is_empty() {
            self.write(state, messages, Accounting::Forced);
        } else if let Err(OverBudget) = state.push(messages.clone(), Accounting::Forced) {
            self.reset_over_budget(state);
        }
    }
}

/// The last messages of a connection: an error for Pusher's own codes, and the Close if the form has one.
pub(super) fn last_messages(form: Form, code: CloseCode, reason: &str) -> Bytes {
    let mut messages = Vec::new();
    if code.is_pusher() {
        let error = ServerMessage::Error { code: Some(code.number()), message: reason };
        messages.extend_from_slice(&form.of_one(&pusher::encode(&error)));
    }
    if form.has_control_frames() {
        messages.extend_from_slice(&websocket::close(code.number(), reason));
    }
    messages.into()
}
