//! One small lock in front of a transport: writes at once, queues (bounded) only what would block, and carries
//! the order to close.
//!
//! An [`Outbox`] is all that the registry needs to know of a connection. [`Outbox::send`] writes straight to the
//! socket when nothing waits: no queue, no wake-up, no allocation. What the socket refuses is queued as a share
//! of the common batch, and the connection's task is woken to flush it. Knows nothing of channels or sessions;
//! the task that owns the connection drives [`Outbox::poll_flush`] and [`Outbox::poll_read`]. A connection over
//! TLS is written to in the same way, through its session ([`Tls`]).
//!
//! Pitfalls of the hot path answered here: closing a slow reader does not wait behind what it won't read
//! ([`Outbox::abandon`]), a read that came up short costs no second system call ([`Outbox::poll_read`]), and no
//! connection has a timer of its own ([`Pulse`]).
//!
//! What waits is bounded twice: for each connection, and for the node ([`Budget`]).

mod budget;
mod state;
mod tls;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::net::{RecvFlags, SendFlags};
use rustls::ServerConnection;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::limits::Limit;
use crate::protocol::message::ServerMessage;
use crate::protocol::wire::deflate::Compression;
use crate::protocol::wire::{Frame, pusher, websocket};
use crate::protocol::{CloseCode, SocketId};
pub use budget::{Budget, Held, SharedFrames};
use state::{Counted, OverBudget, State};
use tls::Tls;

/// An evicted connection keeps no more than this of a frame that has begun: above it, its client is not told why.
const EVICTED_HEAD_BYTES: usize = 64 * 1024;

/// The way to one client.
#[derive(Debug)]
pub struct Outbox {
    socket: SocketId,
    /// When the client was heard; written by the connection's task, read by the sweep.
    pub pulse: Pulse,
    /// Whether it takes what waits for it; noted by whoever has the lock, read by the sweep.
    taking: Taking,
    /// What the client has caused since its task looked: changes that others, or the cluster, are told of.
    provoked_changes: AtomicU16,
    /// The same: bytes that were sent to it, and to others because of it.
    provoked_bytes: AtomicU32,
    /// Bytes that may wait before the client counts as too slow.
    bytes_max: u32,
    /// What it has agreed upon: how those who send to many put their frames together for it.
    compression: Compression,
    transport: Transport,
    state: Mutex<State>,
}

/// There is one for every client, so a field more is a decision.
/// With the two counts of its `Arc` it fills what glibc hands out for it.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Outbox>() <= 152);

/// What a WebSocket goes over.
#[derive(Debug)]
pub enum Transport {
    /// A plain stream: written to directly.
    Tcp(TcpStream),
    /// TLS of our own: encrypted and written directly.
    Tls(Box<Tls>),
    /// Nothing: what is sent stays queued until it is taken.
    Detached,
}

impl From<TcpStream> for Transport {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<(TcpStream, ServerConnection)> for Transport {
    /// A stream whose TLS handshake is over.
    fn from((stream, session): (TcpStream, ServerConnection)) -> Self {
        Self::Tls(Box::new(Tls::new(stream, session)))
    }
}

/// How a connection is ending.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closing {
    /// The server closes it; the frames that say so are written or queued.
    Code(CloseCode),
    /// The same, with 4100, because of a limit, which the connection's task counts.
    Limit(Limit),
    /// The transport failed.
    Broken,
}

/// Whether a client takes what waits for it. No clock is looked at when it does: a sweep over all connections notes
/// when it saw first that nothing had been taken since it looked before.
#[derive(Debug, Default)]
struct Taking(AtomicU16);

/// Nothing waits.
const NOTHING_WAITS: u16 = 0;

/// Something has begun to wait, or some of it was taken, since the sweep looked. No moment is this.
const TAKEN: u16 = u16::MAX;

impl Taking {
    fn note(&self, something_waits: bool) {
        self.0.store(if something_waits { TAKEN } else { NOTHING_WAITS }, Ordering::Relaxed);
    }

    fn stalled_for(&self, now: Duration) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            NOTHING_WAITS => None,
            TAKEN => {
                let moment = Lately::moment(now);
                // More may be taken meanwhile: then that is noted.
                let _ = self.0.compare_exchange(TAKEN, moment, Ordering::Relaxed, Ordering::Relaxed);
                Some(Duration::ZERO)
            }
            moment => Lately::elapsed(moment, now),
        }
    }
}

/// Which message has begun and not ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unfinished {
    /// None has ended since this was last asked, so one that had begun then is still the one.
    Same,
    /// One that began after another one had ended.
    New,
}

/// When a client was last heard, in whole seconds of the node's clock: one store a read, and no timer a
/// connection. A sweep over all connections decides what is due.
#[derive(Debug, Default)]
pub struct Pulse {
    heard_secs: AtomicU32,
    /// When the Ping was sent that has not been answered.
    pinged: Lately,
    /// When the message began that has not ended.
    begun: Lately,
    /// 0, or by when the client has to prove that the application lets it in, plus one.
    authorize_by_secs: AtomicU32,
}

/// A moment of the last 9 hours, or none, in two bytes. Whoever notes one looks at it within the timeout that it
/// is for, which no setting makes longer than an hour.
#[derive(Debug, Default)]
struct Lately(AtomicU16);

/// 0 is none, and the last one is free, so a moment is one of so many.
const MOMENTS: u64 = u16::MAX as u64 - 1;

impl Lately {
    const fn moment(now: Duration) -> u16 {
        (now.as_secs() % MOMENTS + 1) as u16
    }

    fn elapsed(moment: u16, now: Duration) -> Option<Duration> {
        let moment = u64::from(moment.checked_sub(1)?);
        let secs = (now.as_secs() % MOMENTS + MOMENTS - moment) % MOMENTS;
        // More than half of the circle is a moment that was noted after `now` was read.
        Some(Duration::from_secs(if secs > MOMENTS / 2 { 0 } else { secs }))
    }

    fn note(&self, now: Duration) {
        self.0.store(Self::moment(now), Ordering::Relaxed);
    }

    fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn since(&self, now: Duration) -> Option<Duration> {
        Self::elapsed(self.0.load(Ordering::Relaxed), now)
    }
}

impl Pulse {
    /// The pulse of a client that was heard `now`, and has to prove that the application lets it in by
    /// `authorize_by`, if the app wants that.
    #[must_use]
    pub fn new(now: Duration, authorize_by: Option<Duration>) -> Self {
        Self {
            heard_secs: AtomicU32::new(now.as_secs() as u32),
            pinged: Lately::default(),
            begun: Lately::default(),
            authorize_by_secs: AtomicU32::new(authorize_by.map_or(0, |by| by.as_secs() as u32 + 1)),
        }
    }

    /// Notes that the client was heard.
    pub fn beat(&self, now: Duration) {
        self.heard_secs.store(now.as_secs() as u32, Ordering::Relaxed);
        self.pinged.forget();
    }

    /// Notes that the client was asked for a sign of life.
    pub fn pinged(&self, now: Duration) {
        self.pinged.note(now);
    }

    /// Notes whether a message of the client's has begun and not ended: the same one as before, or another one.
    pub fn unfinished(&self, message: Option<Unfinished>, now: Duration) {
        match message {
            None => self.begun.forget(),
            Some(Unfinished::Same) if self.begun.since(now).is_some() => {}
            Some(Unfinished::Same | Unfinished::New) => self.begun.note(now),
        }
    }

    /// Notes that the client proved that the application lets it in.
    pub fn authorize(&self) {
        self.authorize_by_secs.store(0, Ordering::Relaxed);
    }

    /// For how long the client has been silent.
    #[must_use]
    pub fn silence(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_secs(self.heard_secs.load(Ordering::Relaxed).into()))
    }

    /// For how long a Ping has gone unanswered, if one has.
    #[must_use]
    pub fn unanswered(&self, now: Duration) -> Option<Duration> {
        self.pinged.since(now)
    }

    /// For how long a message has begun and not ended, if one has.
    #[must_use]
    pub fn unfinished_for(&self, now: Duration) -> Option<Duration> {
        self.begun.since(now)
    }

    /// Whether the client should have proved by now that the application lets it in, and has not.
    #[must_use]
    pub fn is_unauthorized(&self, now: Duration) -> bool {
        let by = self.authorize_by_secs.load(Ordering::Relaxed);
        by > 0 && now >= Duration::from_secs(u64::from(by) - 1)
    }
}

impl Outbox {
    /// An outbox in front of what a WebSocket goes over. More than `bytes_max` waiting closes the connection.
    #[must_use]
    pub fn new(socket: SocketId, transport: impl Into<Transport>, bytes_max: usize, pulse: Pulse) -> Self {
        Self {
            socket,
            pulse,
            taking: Taking::default(),
            provoked_changes: AtomicU16::new(0),
            provoked_bytes: AtomicU32::new(0),
            bytes_max: u32::try_from(bytes_max).unwrap_or(u32::MAX),
            compression: Compression::Off,
            transport: transport.into(),
            state: Mutex::new(State::new(Arc::default())),
        }
    }

    /// The same outbox, which queues nothing beyond what the node's budget has.
    #[must_use]
    pub fn within(mut self, budget: &Arc<Budget>) -> Self {
        self.state = Mutex::new(State::new(Arc::clone(budget)));
        self
    }

    /// An outbox without a socket: what is sent stays queued until [`Outbox::take_queued`]. For whoever drains it
    /// in another way, such as benchmarks and tests.
    #[must_use]
    pub fn detached(socket: SocketId, bytes_max: usize) -> Self {
        Self::new(socket, Transport::Detached, bytes_max, Pulse::default())
    }

    /// The same outbox, of a connection that has agreed upon `compression`.
    #[must_use]
    pub const fn compressing(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// What the connection has agreed upon. Frames may be compressed for it; [`Outbox::say`] compresses none.
    #[must_use]
    pub const fn compression(&self) -> Compression {
        self.compression
    }

    /// Whose outbox it is.
    #[must_use]
    pub const fn socket(&self) -> SocketId {
        self.socket
    }

    /// Answers the client, which has provoked it.
    pub fn say(&self, message: &ServerMessage<'_>) {
        self.answer(pusher::encode(message).bytes());
    }

    /// Answers the client, which has provoked it, with whole frames.
    pub fn answer(&self, frames: &Bytes) {
        self.provoked(frames.len(), 0);
        self.send(frames);
    }

    /// Notes what the client has caused beyond its answers: so many bytes that go to others, and changes that others
    /// are told of.
    pub fn provoked(&self, bytes: usize, changes: u16) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let add = |before: u32| Some(before.saturating_add(bytes));
        let _ = self.provoked_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        if changes > 0 {
            let add = |before: u16| Some(before.saturating_add(changes));
            let _ = self.provoked_changes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }

    /// The bytes and the changes that the client has caused since this was last asked.
    #[must_use]
    pub fn take_provoked(&self) -> (u32, u16) {
        let (bytes, changes) = (&self.provoked_bytes, &self.provoked_changes);
        if bytes.load(Ordering::Relaxed) == 0 && changes.load(Ordering::Relaxed) == 0 {
            return (0, 0);
        }
        (bytes.swap(0, Ordering::Relaxed), changes.swap(0, Ordering::Relaxed))
    }

    /// Sends whole frames: writes them, or queues what the socket does not take now. A client that has let too
    /// much queue up is closed (4100); once a connection is closing nothing is sent any more.
    pub fn send(&self, frames: &Bytes) {
        self.send_if(frames, || true);
    }

    /// As [`Outbox::send`], if `wanted` says so when it is this sender's turn.
    pub fn send_if(&self, frames: &Bytes, wanted: impl FnOnce() -> bool) {
        self.send_counted(frames, Counted::Alone, wanted);
    }

    /// As [`Outbox::send_if`], of frames that go to many.
    pub fn send_shared(&self, frames: &SharedFrames, wanted: impl FnOnce() -> bool) {
        self.send_counted(frames.bytes(), Counted::Shared(frames), wanted);
    }

    fn send_counted(&self, frames: &Bytes, counted: Counted<'_>, wanted: impl FnOnce() -> bool) {
        let mut state = self.state.lock();
        if state.closing.is_some() || !wanted() {
            return;
        }
        if state.is_empty() {
            self.write(&mut state, frames, counted);
        } else if self.is_full(&state) {
            self.close_for(&mut state, Limit::OutboxBytes, "Reading too slowly: the queue is full");
        } else if let Err(OverBudget) = state.push(frames.clone(), counted) {
            self.close_over_budget(&mut state);
        }
    }

    /// Sends a frame ahead of what is queued, where something is: for answers that prove life.
    pub fn send_first(&self, frame: &Bytes) {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return;
        }
        if state.is_empty() {
            self.write(&mut state, frame, Counted::Alone);
        } else if !self.is_full(&state)
            && let Err(OverBudget) = state.push_first(frame.clone())
        {
            self.close_over_budget(&mut state);
        }
    }

    /// Whether more waits than may. The piece that is being written does not count, so that one message larger
    /// than the limit, such as the list of a large presence channel, passes.
    fn is_full(&self, state: &State) -> bool {
        state.bytes_behind_head() > self.bytes_max as usize
    }

    /// Runs `act` while nothing can be sent: what it changes holds for every later [`Outbox::send_if`].
    pub fn between_sends(&self, act: impl FnOnce()) {
        let _state = self.state.lock();
        act();
    }

    /// Closes the connection: says why in an error frame and a Close frame, and wakes its task. The first close
    /// counts.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.close_locked(&mut self.state.lock(), Closing::Code(code), reason);
    }

    /// As [`Outbox::close`], with 4100, because the connection has reached `limit`.
    pub fn close_at(&self, limit: Limit, reason: &str) {
        self.close_for(&mut self.state.lock(), limit, reason);
    }

    /// Closes a connection so that the node has memory again: little of what waits for its client is kept, even if
    /// that cuts a frame and nothing can be said any more.
    pub fn evict(&self) {
        let mut state = self.state.lock();
        if state.head_is_cut && state.head().is_some_and(|head| head.len() > EVICTED_HEAD_BYTES) {
            self.cut_off(&mut state);
        } else {
            self.close_over_budget(&mut state);
        }
    }

    fn close_over_budget(&self, state: &mut State) {
        self.close_for(state, Limit::QueuedBytes, "Reading too slowly: the server needs the memory");
    }

    /// Ends a connection in the middle of a frame, for the node's budget.
    fn cut_off(&self, state: &mut State) {
        self.no_linger();
        state.clear();
        state.closing.get_or_insert(Closing::Limit(Limit::QueuedBytes));
        self.taking.note(false);
        state.wake();
    }

    fn close_for(&self, state: &mut State, limit: Limit, reason: &str) {
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
        // What waits can't be read in time any more; only a frame that has begun must be finished.
        state.keep_begun();
        let farewell = farewell(code, reason);
        self.write_last(state, &farewell);
        state.closing.get_or_insert(closing);
        state.wake();
    }

    /// Answers a client's Close with one of the same code, and lets the task end when it is written.
    pub fn answer_close(&self, code: Option<u16>) {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return;
        }
        let answer = code.map_or_else(websocket::close_without_code, |code| websocket::close(code, ""));
        self.write_last(&mut state, &answer);
        state.closing.get_or_insert(Closing::Code(CloseCode::Normal));
    }

    /// How the connection is ending, if it is.
    #[must_use]
    pub fn closing(&self) -> Option<Closing> {
        self.state.lock().closing
    }

    /// What waits for the client, as it is charged: never less than its bytes.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.state.lock().queued_bytes()
    }

    /// For how long the client has taken nothing of what waits for it, if something does: to be asked about once a
    /// second.
    #[must_use]
    pub fn stalled_for(&self, now: Duration) -> Option<Duration> {
        self.taking.stalled_for(now)
    }

    /// Counts `bytes` of the client's in the node's budget, until the answer is dropped; `None` if it has no more.
    #[must_use]
    pub fn hold(&self, bytes: usize) -> Option<Held> {
        self.state.lock().budget().hold(bytes)
    }

    /// Takes out what is queued.
    pub fn take_queued(&self) -> Vec<Bytes> {
        self.state.lock().take()
    }

    /// Writes, or queues behind what has begun, what is said last.
    fn write_last(&self, state: &mut State, frames: &Bytes) {
        if state.is_empty() {
            self.write(state, frames, Counted::Always);
        } else if let Err(OverBudget) = state.push(frames.clone(), Counted::Always) {
            self.cut_off(state);
        }
    }

    /// Writes `frames` with nothing in front of them, and queues the rest.
    fn write(&self, state: &mut State, frames: &Bytes, counted: Counted<'_>) {
        let written = match &self.transport {
            Transport::Detached => Ok(0),
            Transport::Tcp(stream) => send(stream, frames),
            Transport::Tls(tls) => {
                let taken = tls.send(frames);
                // All may be taken, and the last of it wait encrypted.
                if taken.as_ref().is_ok_and(|taken| *taken == frames.len()) && tls.has_unsent() {
                    self.taking.note(true);
                    state.wake();
                }
                taken
            }
        };
        let written = match written {
            Ok(written) if written == frames.len() => return,
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return self.fail(state),
        };
        // A small rest is copied, so that it does not keep all of the batch in memory.
        let is_copied = written > 0 && frames.len() - written < frames.len() / 4;
        let (rest, counted) = match counted {
            Counted::Alone | Counted::Shared(_) if is_copied => {
                (Bytes::copy_from_slice(&frames[written..]), Counted::Alone)
            }
            Counted::Alone | Counted::Shared(_) | Counted::Always => (frames.slice(written..), counted),
        };
        match state.push(rest, counted) {
            Ok(()) => {
                state.head_is_cut = written > 0;
                self.taking.note(true);
                state.wake();
            }
            // Nothing can be said in the middle of a frame, and to say it where nothing has begun, the socket would
            // have to take more.
            Err(OverBudget) => self.cut_off(state),
        }
    }

    /// Writes what is queued. Pending while the socket takes no more; ready when nothing waits, with how the
    /// connection is ending, if it is. Either way the task is woken when more is queued or the connection closes.
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
                None => state.send(stream),
                Some(tls) => tls.send(state.head().unwrap_or_default()),
            });
            match written {
                Ok(written) => {
                    if written > 0 {
                        self.taking.note(true);
                    }
                    state.advance(written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.fail(&mut state),
            }
        }
        self.taking.note(false);
        state.shrink();
        Poll::Ready(state.closing)
    }

    /// Reads what the client sent into `buffer`. Ready with 0 at the end of the stream.
    ///
    /// # Errors
    /// What the system says, or TLS.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match &self.transport {
            Transport::Tcp(stream) => poll_recv(stream, cx, buffer),
            Transport::Tls(tls) => tls.poll_read(cx, buffer),
            Transport::Detached => Poll::Pending,
        }
    }

    /// Ends the connection: nothing more is written, and the task is woken to drop it.
    pub fn end(&self) {
        self.fail(&mut self.state.lock());
    }

    /// As [`Outbox::end`], and resets the stream when it is dropped, so that its end does not wait behind bytes
    /// that the client does not read.
    pub fn abandon(&self) {
        self.no_linger();
        self.end();
    }

    fn no_linger(&self) {
        // Without it the client learns of the end later, nothing worse.
        let _ = match &self.transport {
            Transport::Tcp(stream) => stream.set_zero_linger(),
            Transport::Tls(tls) => tls.stream().set_zero_linger(),
            Transport::Detached => Ok(()),
        };
    }

    fn fail(&self, state: &mut State) {
        state.clear();
        state.closing = Some(Closing::Broken);
        self.taking.note(false);
        state.wake();
    }
}

fn send(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
}

/// Reads from a socket into `buffer`. Ready with 0 at the end of the stream.
fn poll_recv(stream: &TcpStream, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        // A read that does not fill the buffer has emptied the socket: saying so clears the readiness, and saves
        // the system call that would only answer "would block".
        let mut short = None;
        let read = stream.try_io(Interest::READABLE, || {
            let (read, _) = rustix::net::recv(stream, &mut *buffer, RecvFlags::DONTWAIT)?;
            if (1..buffer.len()).contains(&read) {
                short = Some(read);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(read)
        });
        match (short, read) {
            (Some(read), _) => return Poll::Ready(Ok(read)),
            (None, Ok(read)) => return Poll::Ready(Ok(read)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, Err(error)) => return Poll::Ready(Err(error)),
        }
    }
}

/// What goes before the end: an error frame for Pusher's own codes, and the Close.
fn farewell(code: CloseCode, reason: &str) -> Bytes {
    let close = websocket::close(code.number(), reason);
    if !code.is_pusher() {
        return close;
    }
    let error: Frame = pusher::encode(&ServerMessage::Error { code: Some(code.number()), message: reason });
    [error.bytes().as_ref(), close.as_ref()].concat().into()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    const SOCKET: SocketId = SocketId::new(1, 2);

    async fn pair(bytes_max: usize) -> (Outbox, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        (Outbox::new(SOCKET, stream, bytes_max, Pulse::default()), client)
    }

    async fn flush(outbox: &Outbox) -> Option<Closing> {
        std::future::poll_fn(|cx| outbox.poll_flush(cx)).await
    }

    #[tokio::test]
    async fn a_client_that_reads_gets_everything_in_order() {
        let (outbox, mut client) = pair(usize::MAX).await;
        let numbers: Vec<u8> = (0..=255).collect();
        let batch = Bytes::from(numbers.repeat(400));
        for _ in 0..200 {
            outbox.send(&batch);
        }
        assert!(outbox.queued_bytes() > 0, "the socket does not take 20 MB at once");
        let reading = tokio::spawn(async move {
            let mut all = vec![0; 200 * 102_400];
            client.read_exact(&mut all).await.unwrap();
            all
        });
        assert_eq!(flush(&outbox).await, None);
        assert!(reading.await.unwrap().chunks(256).all(|chunk| chunk == numbers));
        assert_eq!(outbox.queued_bytes(), 0);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_closed_and_costs_no_more_than_its_limit() {
        let (outbox, _client) = pair(100_000).await;
        let batch = Bytes::from(vec![0; 10_000]);
        let mut sends = 0;
        while outbox.closing().is_none() && sends < 10_000 {
            outbox.send(&batch);
            sends += 1;
            assert!(outbox.queued_bytes() <= 130_000);
        }
        assert_eq!(outbox.closing(), Some(Closing::Limit(Limit::OutboxBytes)));
        assert!(outbox.queued_bytes() <= 10_400, "only the frame that has begun and the farewell are kept");
    }

    #[tokio::test]
    async fn after_a_close_nothing_follows() {
        let (outbox, mut client) = pair(1000).await;
        outbox.close(CloseCode::Reconnect, "going away");
        outbox.send(&Bytes::from_static(b"late"));
        outbox.close(CloseCode::PongTimeout, "second");
        assert_eq!(flush(&outbox).await, Some(Closing::Code(CloseCode::Reconnect)));
        drop(outbox);
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, farewell(CloseCode::Reconnect, "going away"));
    }

    #[tokio::test]
    async fn a_frame_that_has_begun_is_finished_before_the_farewell() {
        let (outbox, mut client) = pair(usize::MAX).await;
        let batch = Bytes::from(vec![7; 99_991]);
        while !outbox.state.lock().head_is_cut {
            outbox.send(&batch);
            assert!(outbox.queued_bytes() < 10 * batch.len(), "the socket took whole batches only");
        }
        outbox.send(&batch);
        outbox.close(CloseCode::Reconnect, "going away");
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.map(|_| all)
        });
        assert_eq!(flush(&outbox).await, Some(Closing::Code(CloseCode::Reconnect)));
        drop(outbox);
        let all = reading.await.unwrap().unwrap();
        let farewell = farewell(CloseCode::Reconnect, "going away");
        let frames = all.strip_suffix(&farewell[..]).expect("the farewell comes last");
        assert_eq!(frames.len() % batch.len(), 0, "no frame is cut");
    }

    #[tokio::test]
    async fn a_client_that_is_gone_ends_the_connection() {
        let (outbox, client) = pair(1000).await;
        client.set_zero_linger().unwrap();
        drop(client);
        let mut buffer = [0; 16];
        let read = std::future::poll_fn(|cx| outbox.poll_read(cx, &mut buffer)).await;
        assert!(matches!(read, Ok(0) | Err(_)));
        outbox.send(&Bytes::from_static(b"x"));
        outbox.send(&Bytes::from_static(b"x"));
        assert_eq!(outbox.closing(), Some(Closing::Broken));
    }

    fn within(budget: &Arc<Budget>, id: u32) -> Outbox {
        Outbox::detached(SocketId::new(id, 0), usize::MAX).within(budget)
    }

    #[test]
    fn no_more_waits_for_all_clients_than_the_node_has_for_them() {
        let budget = Arc::new(Budget::new(100_000));
        let outboxes: Vec<_> = (0..20).map(|id| within(&budget, id)).collect();
        for round in 0..10 {
            for outbox in &outboxes {
                outbox.send(&Bytes::from(vec![0; 3000]));
                // A farewell each, beyond the budget.
                assert!(budget.bytes() <= 100_000 + 20 * 400, "{round}");
            }
        }
        let closed = |outbox: &&Outbox| outbox.closing() == Some(Closing::Limit(Limit::QueuedBytes));
        assert!(outboxes.iter().filter(closed).count() > 0);
        for outbox in &outboxes[..10] {
            outbox.take_queued();
        }
        drop(outboxes);
        assert_eq!(budget.bytes(), 0, "taken, closed or dropped: all is given back");
    }

    #[test]
    fn what_many_wait_for_counts_once() {
        let budget = Arc::new(Budget::new(100_000));
        let outboxes: Vec<_> = (0..100).map(|id| within(&budget, id)).collect();
        let batch = SharedFrames::from(Bytes::from(vec![0; 50_000]));
        for outbox in &outboxes {
            outbox.send_shared(&batch, || true);
            assert_eq!((outbox.closing(), outbox.queued_bytes() > 50_000), (None, true));
        }
        assert!((50_000..60_000).contains(&budget.bytes()), "{}", budget.bytes());
        drop(batch);
        outboxes[1..].iter().for_each(|outbox| drop(outbox.take_queued()));
        assert!(budget.bytes() > 50_000, "one still waits for it");
        outboxes[0].take_queued();
        assert_eq!(budget.bytes(), 0);
    }

    #[tokio::test]
    async fn what_is_flushed_is_given_back_to_the_node_byte_by_byte() {
        let (outbox, mut client) = pair(usize::MAX).await;
        let budget = Arc::new(Budget::new(usize::MAX));
        let outbox = outbox.within(&budget);
        for _ in 0..5000 {
            outbox.send(&Bytes::from(vec![7; 1000]));
        }
        assert!(budget.bytes() > 1_000_000 && budget.bytes() == outbox.queued_bytes());
        let reading = tokio::spawn(async move {
            let mut all = vec![0; 5_000_000];
            client.read_exact(&mut all).await.unwrap();
            all
        });
        assert_eq!(flush(&outbox).await, None);
        assert!(reading.await.unwrap().iter().all(|byte| *byte == 7));
        assert_eq!(budget.bytes(), 0);
    }

    #[tokio::test]
    async fn small_frames_that_wait_are_written_together_and_in_order() {
        let (outbox, mut client) = pair(usize::MAX).await;
        // First what the socket does not take at once.
        let mut expected = vec![0; 10_000_000];
        outbox.send(&Bytes::from(expected.clone()));
        for number in 0..10_000u32 {
            let frame = number.to_be_bytes();
            expected.extend_from_slice(&frame);
            outbox.send(&Bytes::copy_from_slice(&frame));
        }
        assert!(outbox.queued_bytes() > 40_000, "they wait");
        let length = expected.len();
        let reading = tokio::spawn(async move {
            let mut all = vec![0; length];
            client.read_exact(&mut all).await.unwrap();
            all
        });
        assert_eq!(flush(&outbox).await, None);
        assert!(reading.await.unwrap() == expected);
    }

    #[tokio::test]
    async fn an_evicted_connection_keeps_nothing_large_and_is_counted() {
        let budget = Arc::new(Budget::new(usize::MAX));
        let (outbox, _client) = pair(usize::MAX).await;
        let outbox = outbox.within(&budget);
        while !outbox.state.lock().head_is_cut {
            outbox.send(&Bytes::from(vec![0; 10_000_000]));
        }
        outbox.evict();
        assert_eq!(outbox.closing(), Some(Closing::Limit(Limit::QueuedBytes)));
        assert_eq!((outbox.queued_bytes(), budget.bytes()), (0, 0));
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_known_by_when_it_was_looked_at() {
        let secs = Duration::from_secs;
        let (outbox, mut client) = pair(usize::MAX).await;
        assert_eq!(outbox.stalled_for(secs(5)), None, "nothing waits");
        let mut sent = 0;
        while outbox.queued_bytes() < 1_000_000 {
            outbox.send(&Bytes::from(vec![0; 100_000]));
            sent += 100_000;
        }
        assert_eq!(outbox.stalled_for(secs(10)), Some(secs(0)));
        assert_eq!(outbox.stalled_for(secs(40)), Some(secs(30)));
        let reading = tokio::spawn(async move {
            let mut all = vec![0; sent];
            client.read_exact(&mut all).await.map(|_| client)
        });
        assert_eq!(flush(&outbox).await, None);
        assert_eq!(outbox.stalled_for(secs(41)), None, "it has taken all");
        drop(reading.await.unwrap());
    }

    #[test]
    fn what_a_client_causes_is_told_once() {
        let outbox = Outbox::detached(SOCKET, usize::MAX);
        outbox.say(&ServerMessage::Pong);
        let (bytes, changes) = outbox.take_provoked();
        assert!((30..60).contains(&bytes) && changes == 0, "{bytes}");
        outbox.send(&Bytes::from_static(b"an event"));
        assert_eq!(outbox.take_provoked(), (0, 0), "others have caused it");
        outbox.provoked(usize::MAX, 3);
        outbox.provoked(7, 0);
        assert_eq!(outbox.take_provoked(), (u32::MAX, 3));
    }

    #[test]
    fn many_small_frames_are_bounded_as_few_large_ones() {
        let outbox = Outbox::detached(SOCKET, 10_000);
        outbox.send(&Bytes::from_static(b"x"));
        for _ in 0..1_000 {
            outbox.send_first(&websocket::pong(b""));
        }
        assert!(outbox.take_queued().len() < 160);
    }

    #[test]
    fn a_pong_overtakes_what_waits_but_not_what_has_begun() {
        let outbox = Outbox::detached(SOCKET, 1000);
        outbox.send(&Bytes::from_static(b"a"));
        outbox.send(&Bytes::from_static(b"b"));
        outbox.send_first(&Bytes::from_static(b"pong"));
        assert_eq!(outbox.take_queued(), ["pong", "a", "b"]);
        outbox.send(&Bytes::from_static(b"a"));
        outbox.state.lock().head_is_cut = true;
        outbox.send_first(&Bytes::from_static(b"pong"));
        assert_eq!(outbox.take_queued(), ["a", "pong"]);
    }

    #[test]
    fn a_pulse_knows_silence_and_unanswered_pings() {
        let secs = Duration::from_secs;
        let pulse = Pulse::new(secs(10), Some(secs(40)));
        assert_eq!((pulse.silence(secs(60)), pulse.unanswered(secs(60))), (secs(50), None));
        pulse.pinged(secs(60));
        assert_eq!(pulse.unanswered(secs(90)), Some(secs(30)));
        pulse.beat(secs(91));
        assert_eq!((pulse.silence(secs(92)), pulse.unanswered(secs(92))), (secs(1), None));
        assert!(!pulse.is_unauthorized(secs(39)) && pulse.is_unauthorized(secs(40)));
        pulse.authorize();
        assert!(!pulse.is_unauthorized(secs(92)));
    }
}
