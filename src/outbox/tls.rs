//! TLS below a WebSocket: the socket and the session beside each other, so that a sender encrypts and writes on
//! the spot, as it would write to a plain socket.
//!
//! What waits for a client waits as shares of the common batch, before it is encrypted: the next piece is
//! encrypted when the socket has taken the one before, so a client that does not read costs
//! [`UNSENT_BYTES_MAX`] of its own and no more.

use std::cell::RefCell;
use std::io::{self, IoSlice, Read as _, Write};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use rustls::ServerConnection;
use tokio::net::TcpStream;

/// What is encrypted at once, and so the most that may wait encrypted: two records, where a small overhead of
/// each is not counted.
const UNSENT_BYTES_MAX: usize = 32 * 1024;

/// Encrypted bytes taken from a socket at once: the longest record.
const READ_BYTES: usize = 16 * 1024;

thread_local! {
    static SEALED: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// A TCP stream and the TLS session on it, after the handshake. Dropping it says goodbye (`close_notify`).
#[derive(Debug)]
pub struct Tls {
    stream: TcpStream,
    /// Taken by whoever holds the outbox's own lock, and by the connection's task to read.
    session: Mutex<ServerConnection>,
}

impl Tls {
    pub(super) fn new(stream: TcpStream, mut session: ServerConnection) -> Self {
        session.set_buffer_limit(Some(UNSENT_BYTES_MAX));
        Self { stream, session: Mutex::new(session) }
    }

    pub(super) const fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Encrypts and writes `bytes`, and before them what waits encrypted. Answers how many of them are taken:
    /// none is taken while the socket has not taken what was encrypted before, but the last that are taken may wait
    /// ([`Tls::has_unsent`]).
    ///
    /// # Errors
    /// `WouldBlock` if none is taken, or what the system says.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let session = &mut *self.session.lock();
        let mut taken = 0;
        loop {
            match write_out(session, &self.stream) {
                Ok(()) if taken == bytes.len() => return Ok(taken),
                Ok(()) => match session.writer().write(&bytes[taken..])? {
                    // Its keys are used up: TLS 1.2 cannot renew them.
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    more => taken += more,
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && taken > 0 => return Ok(taken),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether something waits encrypted.
    pub(super) fn has_unsent(&self) -> bool {
        self.session.lock().wants_write()
    }

    /// Reads what the client sent into `buffer`. Ready with 0 at the end of the stream, announced or not: the end
    /// of a WebSocket is a Close.
    ///
    /// # Errors
    /// What the system says, or that the client broke the protocol.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let session = &mut *self.session.lock();
        loop {
            // First what was decrypted before, perhaps before the connection became a WebSocket.
            match session.reader().read(buffer) {
                Ok(read) => return Poll::Ready(Ok(read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(0)),
                Err(error) => return Poll::Ready(Err(error)),
            }
            let waited = session.wants_write();
            let read = SEALED.with_borrow_mut(|sealed| {
                // No more than `buffer` has room for, so that what is left over is less than one record, which the
                // session keeps.
                let bytes_max = sealed.len().min(buffer.len());
                let sealed = &mut sealed[..bytes_max];
                let received = ready!(super::poll_recv(&self.stream, cx, sealed))?;
                Poll::Ready(unseal(session, &sealed[..received], buffer))
            });
            let read = ready!(read);
            if !waited && session.wants_write() {
                // An answer of TLS itself, such as new keys, or why the session ends.
                match write_out(session, &self.stream) {
                    Ok(()) => {}
                    // The task flushes it.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => cx.waker().wake_by_ref(),
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            let read = read?;
            if read > 0 {
                return Poll::Ready(Ok(read));
            }
        }
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let session = self.session.get_mut();
        session.send_close_notify();
        // A socket that takes no more has a client that learns of the end without it.
        let _ = write_out(session, &self.stream);
    }
}

/// Decrypts what was received into `buffer`; nothing received is the end of the stream.
fn unseal(session: &mut ServerConnection, mut sealed: &[u8], buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    loop {
        // Not more than the session's own buffer takes at once.
        let taken = session.read_tls(&mut sealed)?;
        session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        while filled < buffer.len() {
            match session.reader().read(&mut buffer[filled..]) {
                Ok(0) | Err(_) => break,
                Ok(read) => filled += read,
            }
        }
        // What follows the end that the client announced is not read.
        if sealed.is_empty() || taken == 0 {
            return Ok(filled);
        }
    }
}

/// Writes what waits encrypted.
fn write_out(session: &mut ServerConnection, stream: &TcpStream) -> io::Result<()> {
    while session.wants_write() {
        session.write_tls(&mut Direct(stream))?;
    }
    Ok(())
}

/// A socket that is written to at once or not at all.
struct Direct<'s>(&'s TcpStream);

impl Write for Direct<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        super::send(self.0, bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if let [one] = slices {
            return super::send(self.0, one);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        Ok(rustix::net::sendmsg(self.0, slices, &mut SendAncillaryBuffer::default(), flags)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use bytes::Bytes;
    use rustls::crypto::ring;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::super::{Closing, Outbox, Pulse, farewell};
    use super::*;
    use crate::limits::Limit;
    use crate::protocol::{CloseCode, SocketId};

    async fn pair(bytes_max: usize) -> (Outbox, TlsStream<TcpStream>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let server = server.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client = client.unwrap().with_root_certificates(roots).with_no_client_auth();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let connecting =
            TlsConnector::from(Arc::new(client)).connect("localhost".try_into().unwrap(), stream);
        let (accepted, _) = listener.accept().await.unwrap();
        let (accepted, client) =
            tokio::join!(TlsAcceptor::from(Arc::new(server)).accept(accepted), connecting);
        let outbox =
            Outbox::new(SocketId::new(1, 2), accepted.unwrap().into_inner(), bytes_max, Pulse::default());
        (outbox, client.unwrap())
    }

    async fn flush(outbox: &Outbox) -> Option<Closing> {
        poll_fn(|cx| outbox.poll_flush(cx)).await
    }

    fn unsent_bytes(outbox: &Outbox) -> usize {
        let super::super::Transport::Tls(tls) = &outbox.transport else { panic!("it is TLS") };
        // What it is can only be counted by taking it.
        let mut sealed = Vec::new();
        let session = &mut *tls.session.lock();
        while session.wants_write() {
            session.write_tls(&mut sealed).unwrap();
        }
        sealed.len()
    }

    #[tokio::test]
    async fn a_client_that_reads_slowly_gets_everything_in_order() {
        let (outbox, mut client) = pair(usize::MAX).await;
        let numbers: Vec<u8> = (0..=255).collect();
        let batch = Bytes::from(numbers.repeat(400));
        for _ in 0..200 {
            outbox.send(&batch);
        }
        assert!(outbox.queued_bytes() > 0, "the socket does not take 20 MB at once");
        let reading = tokio::spawn(async move {
            let mut all = vec![0; 200 * 102_400];
            // Odd pieces, and the other task in between.
            for piece in all.chunks_mut(7_777) {
                client.read_exact(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            all
        });
        assert_eq!(flush(&outbox).await, None);
        assert_eq!(outbox.queued_bytes(), 0);
        assert!(reading.await.unwrap().chunks(256).all(|chunk| chunk == numbers));
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_closed_and_costs_no_more_than_its_limit() {
        let (outbox, _client) = pair(100_000).await;
        let batch = Bytes::from(vec![0; 100_000]);
        let mut sends = 0;
        while outbox.closing().is_none() && sends < 10_000 {
            outbox.send(&batch);
            sends += 1;
            assert!(outbox.queued_bytes() <= 310_000);
        }
        assert_eq!(outbox.closing(), Some(Closing::Limit(Limit::OutboxBytes)));
        assert!(outbox.queued_bytes() <= batch.len() + 400, "what has begun and the farewell are kept");
        let unsent = unsent_bytes(&outbox);
        assert!((1..UNSENT_BYTES_MAX + 1000).contains(&unsent), "{unsent}");
    }

    #[tokio::test]
    async fn a_frame_that_has_begun_is_finished_before_the_farewell_and_the_end_is_announced() {
        let (outbox, mut client) = pair(usize::MAX).await;
        let batch = Bytes::from(vec![7; 99_991]);
        while !outbox.state.lock().head_is_cut {
            outbox.send(&batch);
            assert!(outbox.queued_bytes() < 10 * batch.len(), "whole batches only were taken");
        }
        outbox.send(&batch);
        outbox.close(CloseCode::Reconnect, "going away");
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.map(|_| all)
        });
        assert_eq!(flush(&outbox).await, Some(Closing::Code(CloseCode::Reconnect)));
        drop(outbox);
        let all = reading.await.unwrap().expect("an end without a goodbye would be an error");
        let frames = all.strip_suffix(&farewell(CloseCode::Reconnect, "going away")[..]);
        assert_eq!(frames.expect("the farewell comes last").len() % batch.len(), 0, "no frame is cut");
    }

    #[tokio::test]
    async fn what_is_taken_in_and_not_written_is_flushed() {
        let (outbox, mut client) = pair(usize::MAX).await;
        // Small frames, so that the last that is taken is taken whole.
        let frame = Bytes::from(vec![9; 1000]);
        let mut frames = 0;
        while outbox.queued_bytes() == 0 {
            outbox.send(&frame);
            frames += 1;
        }
        let waiting = poll_fn(|cx| Poll::Ready(outbox.poll_flush(cx))).await;
        assert!(waiting.is_pending());
        let reading = tokio::spawn(async move {
            let mut all = vec![0; frames * 1000];
            client.read_exact(&mut all).await.map(|_| all)
        });
        assert_eq!(flush(&outbox).await, None);
        assert!(reading.await.unwrap().unwrap().iter().all(|byte| *byte == 9));
        assert_eq!(unsent_bytes(&outbox), 0);
    }

    #[tokio::test]
    async fn what_a_client_sends_is_read_whatever_the_room_for_it() {
        for room in [1, 3, 100, 5_000, 64 * 1024] {
            let (outbox, mut client) = pair(usize::MAX).await;
            let sent: Vec<u8> = (0..100_000u32).map(|number| (number % 251) as u8).collect();
            let reading = async {
                let (mut all, mut buffer) = (Vec::new(), vec![0; room]);
                loop {
                    match poll_fn(|cx| outbox.poll_read(cx, &mut buffer)).await.unwrap() {
                        0 => return all,
                        read => all.extend_from_slice(&buffer[..read]),
                    }
                }
            };
            let writing = async {
                client.write_all(&sent).await.unwrap();
                client.shutdown().await.unwrap();
            };
            let (read, ()) = tokio::join!(reading, writing);
            assert!(read == sent, "room for {room}");
        }
    }

    #[test]
    fn the_outbox_of_a_plain_connection_has_no_room_for_tls() {
        assert_eq!(size_of::<super::super::Transport>(), size_of::<TcpStream>());
    }
}
