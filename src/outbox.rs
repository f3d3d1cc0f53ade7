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

mod tls;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use rustix::net::{RecvFlags, SendFlags};
use rustls::ServerConnection;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::protocol::message::ServerMessage;
use crate::protocol::wire::deflate::Compression;
use crate::protocol::wire::{Frame, pusher, websocket};
use crate::protocol::{CloseCode, SocketId};
use tls::Tls;

/// What a piece in the queue is charged beyond its bytes, so that many small ones are bounded too.
const PIECE_BYTES: usize = 64;

/// The way to one client.
#[derive(Debug)]
pub struct Outbox {
    socket: SocketId,
    /// When the client was heard; written by the connection's task, read by the sweep.
    pub pulse: Pulse,
    /// Bytes that may wait before the client counts as too slow.
    bytes_max: u32,
    /// What it has agreed upon: how those who send to many put their frames together for it.
    compression: Compression,
    transport: Transport,
    state: Mutex<State>,
}

/// There is one for every client, so a field more is a decision.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Outbox>() <= 144);

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

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Bytes>,
    /// What `queue` is charged: its bytes, and [`PIECE_BYTES`] for each piece.
    queued_bytes: usize,
    /// Whether the first bytes of the queue's head are on the wire already.
    head_is_cut: bool,
    closing: Option<Closing>,
    /// The connection's task, where it waits.
    task: Option<Waker>,
}

/// How a connection is ending.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closing {
    /// The server closes it; the frames that say so are written or queued.
    Code(CloseCode),
    /// The same, with 4100, because more waits for the client than may.
    TooSlow,
    /// The transport failed.
    Broken,
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

/// 0 is none, so a moment is one of so many.
const MOMENTS: u64 = u16::MAX as u64;

impl Lately {
    fn note(&self, now: Duration) {
        self.0.store((now.as_secs() % MOMENTS + 1) as u16, Ordering::Relaxed);
    }

    fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn since(&self, now: Duration) -> Option<Duration> {
        let moment = u64::from(self.0.load(Ordering::Relaxed).checked_sub(1)?);
        let secs = (now.as_secs() % MOMENTS + MOMENTS - moment) % MOMENTS;
        // More than half of the circle is a moment that was noted after `now` was read.
        Some(Duration::from_secs(if secs > MOMENTS / 2 { 0 } else { secs }))
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
            bytes_max: u32::try_from(bytes_max).unwrap_or(u32::MAX),
            compression: Compression::Off,
            transport: transport.into(),
            state: Mutex::default(),
        }
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

    /// Sends a message of the server.
    pub fn say(&self, message: &ServerMessage<'_>) {
        self.send(pusher::encode(message).bytes());
    }

    /// Sends whole frames: writes them, or queues what the socket does not take now. A client that has let too
    /// much queue up is closed (4100); once a connection is closing nothing is sent any more.
    pub fn send(&self, frames: &Bytes) {
        self.send_if(frames, || true);
    }

    /// As [`Outbox::send`], if `wanted` says so when it is this sender's turn.
    pub fn send_if(&self, frames: &Bytes, wanted: impl FnOnce() -> bool) {
        let mut state = self.state.lock();
        if state.closing.is_some() || !wanted() {
            return;
        }
        if state.queue.is_empty() {
            self.write(&mut state, frames);
        } else if self.is_full(&state) {
            self.close_locked(&mut state, CloseCode::OverCapacity, "Reading too slowly: the queue is full");
            if state.closing == Some(Closing::Code(CloseCode::OverCapacity)) {
                state.closing = Some(Closing::TooSlow);
            }
        } else {
            state.push(frames.clone());
        }
    }

    /// Sends a frame ahead of what is queued, where something is: for answers that prove life.
    pub fn send_first(&self, frame: &Bytes) {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return;
        }
        if state.queue.is_empty() {
            self.write(&mut state, frame);
        } else if !self.is_full(&state) {
            let at = usize::from(state.head_is_cut);
            state.queued_bytes += charge(frame);
            state.queue.insert(at, frame.clone());
        }
    }

    /// Whether more waits than may. The piece that is being written does not count, so that one message larger
    /// than the limit, such as the list of a large presence channel, passes.
    fn is_full(&self, state: &State) -> bool {
        let behind = state.queued_bytes - state.queue.front().map_or(0, charge);
        behind > self.bytes_max as usize
    }

    /// Runs `act` while nothing can be sent: what it changes holds for every later [`Outbox::send_if`].
    pub fn between_sends(&self, act: impl FnOnce()) {
        let _state = self.state.lock();
        act();
    }

    /// Closes the connection: says why in an error frame and a Close frame, and wakes its task. The first close
    /// counts.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.close_locked(&mut self.state.lock(), code, reason);
    }

    fn close_locked(&self, state: &mut State, code: CloseCode, reason: &str) {
        if state.closing.is_some() {
            return;
        }
        // What waits can't be read in time any more; only a frame that has begun must be finished.
        let kept = usize::from(state.head_is_cut);
        state.queued_bytes -= state.queue.iter().skip(kept).map(charge).sum::<usize>();
        state.queue.truncate(kept);
        let farewell = farewell(code, reason);
        if state.queue.is_empty() {
            self.write(state, &farewell);
        } else {
            state.push(farewell);
        }
        state.closing.get_or_insert(Closing::Code(code));
        state.wake();
    }

    /// Answers a client's Close with one of the same code, and lets the task end when it is written.
    pub fn answer_close(&self, code: Option<u16>) {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            return;
        }
        let answer = code.map_or_else(websocket::close_without_code, |code| websocket::close(code, ""));
        if state.queue.is_empty() {
            self.write(&mut state, &answer);
        } else {
            state.push(answer);
        }
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
        self.state.lock().queued_bytes
    }

    /// Takes out what is queued.
    pub fn take_queued(&self) -> Vec<Bytes> {
        let mut state = self.state.lock();
        state.queued_bytes = 0;
        state.queue.drain(..).collect()
    }

    /// Writes `frames` with nothing in front of them, and queues the rest.
    fn write(&self, state: &mut State, frames: &Bytes) {
        let written = match &self.transport {
            Transport::Detached => Ok(0),
            Transport::Tcp(stream) => send(stream, frames),
            Transport::Tls(tls) => {
                let taken = tls.send(frames);
                // All may be taken, and the last of it wait encrypted.
                if taken.as_ref().is_ok_and(|taken| *taken == frames.len()) && tls.has_unsent() {
                    state.wake();
                }
                taken
            }
        };
        match written {
            Ok(written) if written == frames.len() => {}
            Ok(written) => {
                state.head_is_cut = written > 0;
                state.push(remainder(frames, written));
                state.wake();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                state.push(frames.clone());
                state.wake();
            }
            Err(_) => state.fail(),
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
            let head = state.queue.front();
            if head.is_none() && !tls.is_some_and(|tls| tls.has_unsent()) {
                break;
            }
            if ready!(stream.poll_write_ready(cx)).is_err() {
                state.fail();
                break;
            }
            let head = head.map_or(&[][..], |head| head);
            let written = stream.try_io(Interest::WRITABLE, || match tls {
                None => send(stream, head),
                Some(tls) => tls.send(head),
            });
            match written {
                Ok(written) => state.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => state.fail(),
            }
        }
        if state.queue.is_empty() {
            // An idle connection owns no buffer.
            state.queue = VecDeque::new();
        }
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
        self.state.lock().fail();
    }

    /// As [`Outbox::end`], and resets the stream when it is dropped, so that its end does not wait behind bytes
    /// that the client does not read.
    pub fn abandon(&self) {
        // Without it the client learns of the end later, nothing worse.
        let _ = match &self.transport {
            Transport::Tcp(stream) => stream.set_zero_linger(),
            Transport::Tls(tls) => tls.stream().set_zero_linger(),
            Transport::Detached => Ok(()),
        };
        self.end();
    }
}

impl State {
    fn push(&mut self, bytes: Bytes) {
        self.queued_bytes += charge(&bytes);
        self.queue.push_back(bytes);
    }

    fn advance(&mut self, written: usize) {
        self.queued_bytes -= written;
        let Some(head) = self.queue.front_mut() else { return };
        head.advance(written);
        self.head_is_cut = !head.is_empty();
        if head.is_empty() {
            self.queued_bytes -= PIECE_BYTES;
            self.queue.pop_front();
        }
    }

    fn fail(&mut self) {
        self.queue = VecDeque::new();
        self.queued_bytes = 0;
        self.closing = Some(Closing::Broken);
        self.wake();
    }

    fn wake(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }
}

/// What is left of a batch. A small rest is copied, so that it does not keep all of the batch in memory.
fn remainder(batch: &Bytes, written: usize) -> Bytes {
    let rest = batch.slice(written..);
    if rest.len() < batch.len() / 4 { Bytes::copy_from_slice(&rest) } else { rest }
}

fn charge(bytes: &Bytes) -> usize {
    bytes.len() + PIECE_BYTES
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
        assert_eq!(outbox.closing(), Some(Closing::TooSlow));
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
