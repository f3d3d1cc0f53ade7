//! TLS below a WebSocket: a socket and its TLS session. A sender encrypts and writes directly, as to a plain socket.
//!
//! Frames are queued as shares of the common batch, before they are encrypted. The next chunk is encrypted when the
//! socket has accepted the one before, so a client that does not read costs [`UNSENT_BYTES_MAX`] of its own at most.

use std::cell::RefCell;
use std::io::{self, IoSlice, Read as _, Write};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use rustls::ServerConnection;
use tokio::net::TcpStream;

/// The most bytes that are encrypted at once, and so the most that are kept encrypted: two records. The overhead of a
/// record is not counted.
const UNSENT_BYTES_MAX: usize = 32 * 1024;

/// Encrypted bytes read from a socket at once: the longest record.
const READ_BYTES: usize = 16 * 1024;

thread_local! {
    static ENCRYPTED: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// A TCP stream and its TLS session, after the handshake. Dropping it sends `close_notify`.
#[derive(Debug)]
pub struct Tls {
    stream: TcpStream,
    /// Locked under the outbox's own lock to write, and by the connection's task to read.
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

    /// Encrypts and writes `bytes`, after the records that are not sent yet. Returns how many bytes are accepted: none
    /// while earlier records are unsent. The last accepted bytes may stay encrypted ([`Tls::has_unsent`]).
    ///
    /// # Errors
    /// `WouldBlock` if no byte is accepted, or the error of the system.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let session = &mut *self.session.lock();
        let mut accepted = 0;
        loop {
            match write_records(session, &self.stream) {
                Ok(()) if accepted == bytes.len() => return Ok(accepted),
                Ok(()) => match session.writer().write(&bytes[accepted..])? {
                    // The session has used up its keys: TLS 1.2 cannot renew them.
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    more => accepted += more,
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && accepted > 0 => {
                    return Ok(accepted);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether encrypted bytes are unsent.
    pub(super) fn has_unsent(&self) -> bool {
        self.session.lock().wants_write()
    }

    /// Reads input of the client into `buffer`. Ready with 0 at the end of the stream, with or without `close_notify`:
    /// a WebSocket ends with a Close.
    ///
    /// # Errors
    /// The error of the system, or a violation of TLS by the client.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let session = &mut *self.session.lock();
        loop {
            // First the bytes that were decrypted before, perhaps before the upgrade.
            match session.reader().read(buffer) {
                Ok(read) => return Poll::Ready(Ok(read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(0)),
                Err(error) => return Poll::Ready(Err(error)),
            }
            let waited = session.wants_write();
            let read = ENCRYPTED.with_borrow_mut(|encrypted| {
                // At most as many bytes as fit into `buffer`, so that the rest is less than one record, which the
                // session keeps.
                let bytes_max = encrypted.len().min(buffer.len());
                let encrypted = &mut encrypted[..bytes_max];
                let received = ready!(super::poll_recv(&self.stream, cx, encrypted))?;
                Poll::Ready(decrypt(session, &encrypted[..received], buffer))
            });
            let read = ready!(read);
            if !waited && session.wants_write() {
                // TLS itself replies, for instance with new keys or an alert.
                match write_records(session, &self.stream) {
                    Ok(()) => {}
                    // The connection's task flushes it.
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
        // If the socket accepts nothing more, the client only learns of the end without `close_notify`.
        let _ = write_records(session, &self.stream);
    }
}

/// Decrypts received bytes into `buffer`; no received bytes mean the end of the stream.
fn decrypt(session: &mut ServerConnection, mut encrypted: &[u8], buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    loop {
        // Not more than the session's buffer accepts at once.
        let accepted = session.read_tls(&mut encrypted)?;
        session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        while filled < buffer.len() {
            match session.reader().read(&mut buffer[filled..]) {
                Ok(0) | Err(_) => break,
                Ok(read) => filled += read,
            }
        }
        // Bytes after `close_notify` are ignored.
        if encrypted.is_empty() || accepted == 0 {
            return Ok(filled);
        }
    }
}

/// Writes the encrypted bytes that are unsent.
fn write_records(session: &mut ServerConnection, stream: &TcpStream) -> io::Result<()> {
    while session.wants_write() {
        session.write_tls(&mut NonBlocking(stream))?;
    }
    Ok(())
}

/// A socket as a writer that does not block.
struct NonBlocking<'s>(&'s TcpStream);

impl Write for NonBlocking<'_> {
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

    use super::super::closing::last_messages;
    use super::super::{Closing, Liveness, Outbox};
    use super::*;
    use crate::limits::Limit;
    use crate::protocol::wire::Form;
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
            Outbox::new(SocketId::new(1, 2), accepted.unwrap().into_inner(), bytes_max, Liveness::default());
        (outbox, client.unwrap())
    }

    async fn flush(outbox: &Outbox) -> Option<Closing> {
        poll_fn(|cx| outbox.poll_flush(cx)).await
    }

    fn unsent_bytes(outbox: &Outbox) -> usize {
        let super::super::Transport::Tls(tls) = &outbox.transport else { panic!("it is TLS") };
        // Their number is only known by taking them.
        let mut encrypted = Vec::new();
        let session = &mut *tls.session.lock();
        while session.wants_write() {
            session.write_tls(&mut encrypted).unwrap();
        }
        encrypted.len()
    }

    #[tokio::test]
    async fn a_client_that_reads_slowly_gets_everything_in_order() {
        let (outbox, mut client) = pair(usize::MAX).await;
        let numbers: Vec<u8> = (0..=255).collect();
        let batch = Bytes::from(numbers.repeat(400));
        for _ in 0..200 {
            outbox.send_if(&batch, || true);
        }
        assert!(outbox.queued_bytes() > 0, "the socket does not accept 20 MB at once");
        let reading = tokio::spawn(async move {
            let mut all = vec![0; 200 * 102_400];
            // Odd chunks, with the other task in between.
            for chunk in all.chunks_mut(7_777) {
                client.read_exact(chunk).await.unwrap();
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
            outbox.send_if(&batch, || true);
            sends += 1;
            assert!(outbox.queued_bytes() <= 310_000);
        }
        assert_eq!(outbox.closing(), Some(Closing::Limit(Limit::OutboxBytes)));
        assert!(
            outbox.queued_bytes() <= batch.len() + 400,
            "the partly sent frame and the closing frames are kept"
        );
        let unsent = unsent_bytes(&outbox);
        assert!((1..UNSENT_BYTES_MAX + 1000).contains(&unsent), "{unsent}");
    }

    #[tokio::test]
    async fn a_partly_sent_frame_is_completed_before_the_closing_frames_and_close_notify() {
        let (outbox, mut client) = pair(usize::MAX).await;
        let batch = Bytes::from(vec![7; 99_991]);
        while !outbox.state.lock().head_is_partial {
            outbox.send_if(&batch, || true);
            assert!(outbox.queued_bytes() < 10 * batch.len(), "the socket accepted whole batches only");
        }
        outbox.send_if(&batch, || true);
        outbox.close(CloseCode::Reconnect, "going away");
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.map(|_| all)
        });
        assert_eq!(flush(&outbox).await, Some(Closing::Code(CloseCode::Reconnect)));
        drop(outbox);
        let all = reading.await.unwrap().expect("an end without `close_notify` would be an error");
        let frames = all.strip_suffix(&last_messages(Form::Frame, CloseCode::Reconnect, "going away")[..]);
        assert_eq!(frames.expect("the closing frames come last").len() % batch.len(), 0, "no frame is cut");
    }

    #[tokio::test]
    async fn encrypted_bytes_that_were_not_written_are_flushed() {
        let (outbox, mut client) = pair(usize::MAX).await;
        // Small frames, so that the last accepted one is accepted whole.
        let frame = Bytes::from(vec![9; 1000]);
        let mut frames = 0;
        while outbox.queued_bytes() == 0 {
            outbox.send_if(&frame, || true);
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
    async fn input_is_read_whatever_the_size_of_the_buffer() {
        for buffer_bytes in [1, 3, 100, 5_000, 64 * 1024] {
            let (outbox, mut client) = pair(usize::MAX).await;
            let sent: Vec<u8> = (0..100_000u32).map(|number| (number % 251) as u8).collect();
            let reading = async {
                let (mut all, mut buffer) = (Vec::new(), vec![0; buffer_bytes]);
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
            assert!(read == sent, "a buffer of {buffer_bytes} bytes");
        }
    }

    #[test]
    fn tls_adds_nothing_to_the_size_of_a_plain_transport() {
        assert_eq!(size_of::<super::super::Transport>(), size_of::<TcpStream>());
    }
}
