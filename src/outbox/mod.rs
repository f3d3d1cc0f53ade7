//! The send queue of one connection: it writes at once, queues (bounded) what the socket does not accept, and closes the
//! connection. One small lock protects it.
//!
//! An [`Outbox`] is all that the registry needs to know of a connection. [`Outbox::send`] writes straight to the
//! socket when the queue is empty: no wake-up, no allocation. Bytes that the socket does not accept are queued as a
//! share of the common batch, and the connection's task is woken to flush them. The task drives
//! [`Outbox::poll_flush`] and [`Outbox::poll_read`]. A TLS connection is written to in the same way, through its
//! session ([`tls::Tls`]). An outbox knows nothing of channels or sessions.
//!
//! Whatever is written is in the connection's [`Form`]. [`Outbox::send`], [`Outbox::send_first`], `reply` and `close` take
//! messages and see to it. [`Outbox::send_if`] and [`Outbox::send_shared`] take bytes of which the caller has made the
//! form: the batches of channels.
//!
//! Pitfalls of the hot path that are answered here: closing a slow reader does not wait for the bytes it does not read
//! ([`Outbox::reset`]), a short read costs no second system call ([`Outbox::poll_read`]), and no connection has a timer
//! of its own ([`Liveness`]).
//!
//! The queues are bounded for each connection, and for the node ([`Budget`]).
//!
//! Start at [`Outbox`]. Its methods to close are in `closing`, replies and charges in `charges`.

mod budget;
mod charges;
mod closing;
mod liveness;
mod state;
#[cfg(test)]
mod tests;
mod tls;
mod transport;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::Interest;

use crate::limits::Limit;
use crate::protocol::SocketId;
use crate::protocol::wire::{Form, Frame};
pub use budget::{Budget, Reservation, SharedBytes};
pub use closing::Closing;
use liveness::WriteProgress;
pub use liveness::{Liveness, Unfinished};
use state::{Accounting, OverBudget, State};
pub use transport::Transport;
use transport::{poll_recv, send};

/// The queue to one client, and the transport behind it.
#[derive(Debug)]
pub struct Outbox {
    socket: SocketId,
    /// When the client was last heard. Written by the connection's task, read by the sweep.
    pub liveness: Liveness,
    /// Whether the client reads what is queued. Written under the lock, read by the sweep.
    write_progress: WriteProgress,
    /// Changes that the client has caused and that other clients, or the cluster, are notified of. Taken by its task.
    charge_changes: AtomicU16,
    /// Bytes that the client has caused to be sent, to itself and to others. Taken by its task.
    charge_bytes: AtomicU32,
    /// More queued bytes than this close the connection as too slow.
    bytes_max: AtomicU32,
    /// The form of everything that is written. Publishers choose the bytes for this client by it.
    form: Form,
    transport: Transport,
    state: Mutex<State>,
}

/// Every client has one, so each byte counts. With the two counters of its `Arc` it fills the block that glibc
/// allocates for it.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Outbox>() <= 152);

impl Outbox {
    /// An outbox in front of a transport. More than `bytes_max` queued bytes close the connection.
    #[must_use]
    pub fn new(
        socket: SocketId,
        transport: impl Into<Transport>,
        bytes_max: usize,
        liveness: Liveness,
    ) -> Self {
        Self {
            socket,
            liveness,
            write_progress: WriteProgress::default(),
            charge_changes: AtomicU16::new(0),
            charge_bytes: AtomicU32::new(0),
            bytes_max: AtomicU32::new(u32::try_from(bytes_max).unwrap_or(u32::MAX)),
            form: Form::Frame,
            transport: transport.into(),
            state: Mutex::new(State::new(Arc::default())),
        }
    }

    /// Changes the limit of queued bytes.
    pub fn set_bytes_max(&self, bytes_max: usize) {
        self.bytes_max.store(u32::try_from(bytes_max).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Wakes the connection's task.
    pub fn wake(&self) {
        self.state.lock().wake();
    }

    /// Takes the memory of the queue from the node's budget.
    #[must_use]
    pub fn with_budget(mut self, budget: &Arc<Budget>) -> Self {
        self.state = Mutex::new(State::new(Arc::clone(budget)));
        self
    }

    /// An outbox without a socket: bytes stay queued until [`Outbox::take_queued`]. For benchmarks and tests.
    #[must_use]
    pub fn detached(socket: SocketId, bytes_max: usize) -> Self {
        Self::new(socket, Transport::Detached, bytes_max, Liveness::default())
    }

    /// Sets the form of everything that is written to the connection. Default: WebSocket frames.
    #[must_use]
    pub const fn with_form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    /// The form of everything that is written to the connection.
    #[must_use]
    pub const fn form(&self) -> Form {
        self.form
    }

    /// The socket id of the client.
    #[must_use]
    pub const fn socket(&self) -> SocketId {
        self.socket
    }

    /// Sends a message: writes it, or queues the part that the socket does not accept. A client with too many queued
    /// bytes is closed (4100). A closing connection sends nothing.
    pub fn send(&self, frame: &Frame) {
        self.send_if(&self.form.of_one(frame), || true);
    }

    /// As [`Outbox::send`], for whole messages that are in the connection's form already, if `wanted` returns `true`
    /// under the lock.
    pub fn send_if(&self, messages: &Bytes, wanted: impl FnOnce() -> bool) {
        self.send_accounted(messages, Accounting::Own, wanted);
    }

    /// As [`Outbox::send_if`], for messages that go to many clients.
    pub fn send_shared(&self, messages: &SharedBytes, wanted: impl FnOnce() -> bool) {
        self.send_accounted(messages.bytes(), Accounting::Shared(messages), wanted);
    }

    fn send_accounted(&self, messages: &Bytes, accounting: Accounting<'_>, wanted: impl FnOnce() -> bool) {
        let mut state = self.state.lock();
        if state.closing.is_some() || !wanted() {
            return;
        }
        if state.is_empty() {
            self.write(&mut state, messages, accounting);
        } else if self.is_full(&state) {
            self.close_for_limit_locked(
                &mut state,
                Limit::OutboxBytes,
                "Reading too slowly: the queue is full",
            );
        } else if let Err(OverBudget) = state.push(messages.clone(), accounting) {
            self.close_over_budget(&mut state);
        }
    }

    /// Sends a message ahead of the queue: for the replies that prove liveness.
    pub fn send_first(&self, frame: &Frame) {
        self.send_ahead(&self.form.of_one(frame));
    }

    /// Sends a control frame of WebSocket, a Ping or a Pong, ahead of the queue. In a form without control frames
    /// nothing is sent: a client of its transport is heard by the requests that it makes.
    pub fn send_control(&self, frame: &Bytes) {
        if self.form.has_control_frames() {
            self.send_ahead(frame);
        }
    }

    fn send_ahead(&self, message: &Bytes) {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return;
        }
        if state.is_empty() {
            self.write(&mut state, message, Accounting::Own);
        } else if !self.is_full(&state)
            && let Err(OverBudget) = state.push_first(message.clone())
        {
            self.close_over_budget(&mut state);
        }
    }

    /// Whether the queue exceeds its limit. The chunk at the head does not count, so that one message larger than the
    /// limit passes, such as the member list of a large presence channel.
    fn is_full(&self, state: &State) -> bool {
        state.bytes_behind_head() > self.bytes_max.load(Ordering::Relaxed) as usize
    }

    /// Runs `act` under the lock, while nothing can be sent: what it changes holds for every later [`Outbox::send_if`].
    pub fn with_sends_blocked(&self, act: impl FnOnce()) {
        let _state = self.state.lock();
        act();
    }

    /// The queued bytes, with an overhead for each chunk.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.state.lock().queued_bytes()
    }

    /// How long the client has read nothing of a queue that is not empty. To be asked once a second.
    #[must_use]
    pub fn stalled_for(&self, now: Duration) -> Option<Duration> {
        self.write_progress.stalled_for(now)
    }

    /// Reserves `bytes` of the node's budget, for input of the client that waits; `None` if the budget is exceeded.
    #[must_use]
    pub fn try_reserve(&self, bytes: usize) -> Option<Reservation> {
        self.state.lock().budget().try_reserve(bytes)
    }

    /// Removes and returns the queue.
    pub fn take_queued(&self) -> Vec<Bytes> {
        self.state.lock().drain()
    }

    /// Writes `messages`, with an empty queue, and queues the rest.
    fn write(&self, state: &mut State, messages: &Bytes, accounting: Accounting<'_>) {
        let written = match &self.transport {
            Transport::Detached => Ok(0),
            Transport::Tcp(stream) => send(stream, messages),
            Transport::Tls(tls) => {
                let taken = tls.send(messages);
                // TLS may accept all bytes and keep the last of them encrypted.
                if taken.as_ref().is_ok_and(|taken| *taken == messages.len()) && tls.has_unsent() {
                    self.write_progress.record(true);
                    state.wake();
                }
                taken
            }
        };
        let written = match written {
            Ok(written) if written == messages.len() => return,
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return self.fail(state),
        };
        // A small rest is copied, so that it does not keep the whole batch in memory.
        let is_copied = written > 0 && messages.len() - written < messages.len() / 4;
        let (rest, accounting) = match accounting {
            Accounting::Own | Accounting::Shared(_) if is_copied => {
                (Bytes::copy_from_slice(&messages[written..]), Accounting::Own)
            }
            Accounting::Own | Accounting::Shared(_) | Accounting::Forced => {
                (messages.slice(written..), accounting)
            }
        };
        match state.push(rest, accounting) {
            Ok(()) => {
                state.head_is_partial = written > 0;
                self.write_progress.record(true);
                state.wake();
            }
            // No Close frame fits into a partly sent frame, and without one the socket accepts nothing more.
            Err(OverBudget) => self.reset_over_budget(state),
        }
    }

    /// Writes the queue. Pending while the socket accepts nothing more. Ready when the queue is empty, with the way in
    /// which the connection is closing, if it is. The task is woken when more is queued or the connection closes.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Option<Closing>> {
        let mut state = self.state.lock();
        if !state.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            state.task = Some(cx.waker().clone());
        }
        let (stream, tls) = match &self.transport {
            Transport::Tcp(stream) => (stream, None),
            Transport::Tls(tls) => (tls.stream(), Some(tls)),
            Transport::Detached => return Poll::Ready(state.closing),
        };
        while state.closing != Some(Closing::Broken) {
            if state.is_empty() && !tls.is_some_and(|tls| tls.has_unsent()) {
                break;
            }
            if ready!(stream.poll_write_ready(cx)).is_err() {
                self.fail(&mut state);
                break;
            }
            let written = stream.try_io(Interest::WRITABLE, || match tls {
                None => state.write_to(stream),
                Some(tls) => tls.send(state.head().unwrap_or_default()),
            });
            match written {
                Ok(written) => {
                    if written > 0 {
                        self.write_progress.record(true);
                    }
                    state.advance(written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.fail(&mut state),
            }
        }
        self.write_progress.record(false);
        state.shrink();
        Poll::Ready(state.closing)
    }

    /// Reads input of the client into `buffer`. Ready with 0 at the end of the stream.
    ///
    /// # Errors
    /// The error of the system, or of TLS.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match &self.transport {
            Transport::Tcp(stream) => poll_recv(stream, cx, buffer),
            Transport::Tls(tls) => tls.poll_read(cx, buffer),
            Transport::Detached => Poll::Pending,
        }
    }

    fn fail(&self, state: &mut State) {
        state.clear();
        state.closing = Some(Closing::Broken);
        self.write_progress.record(false);
        state.wake();
    }
}
