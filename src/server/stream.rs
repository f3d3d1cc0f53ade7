//! The transport of an HTTP connection: a stream, plain or TLS, with a write timeout and a graceful end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::outbox::Transport;

/// How long further input is discarded after an error response, before the connection closes.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// The longest head of a request, in bytes.
pub(super) const HEAD_BYTES: usize = 16 * 1024;

/// The most headers of a request: hyper's limit.
pub(super) const HEADERS: usize = 100;

/// A TCP stream, or TLS on one: boxed, so that the plain one reserves no memory for it.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// The number of bytes written to a stream. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// The bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A stream with three additions.
///
/// - A write has a timeout, so that a client that does not read its responses is disconnected.
/// - On shutdown, further input is discarded for a short time. Closing a connection with unread bytes resets it, and a
///   client in the middle of its body would lose the error response.
/// - hyper responds to an unparsable request with an empty 400, 414 or 431: it is replaced by one with a body.
#[derive(Debug)]
pub(super) struct HttpStream {
    stream: Stream,
    write_timeout: Duration,
    written: Progress,
    /// The bytes read since the last response.
    read_bytes: usize,
    /// The unwritten rest of a replacement for a response of hyper.
    replacement: Option<Bytes>,
    /// When a pending write times out.
    write_deadline: Option<Pin<Box<Sleep>>>,
    /// When the stream stops discarding input, once it is shut down.
    linger_deadline: Option<Pin<Box<Sleep>>>,
}

impl HttpStream {
    /// Counts the written bytes in `written`.
    pub(super) fn new(stream: Stream, write_timeout: Duration, written: Progress) -> Self {
        Self {
            stream,
            write_timeout,
            written,
            read_bytes: 0,
            replacement: None,
            write_deadline: None,
            linger_deadline: None,
        }
    }

    /// Counts the result of a write, then applies [`HttpStream::with_write_timeout`] to it.
    fn after_write(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.written.0.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        self.with_write_timeout(cx, written)
    }

    /// Writes the replacement for a response of `bytes` bytes, and returns that number.
    fn poll_write_replacement(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<usize>> {
        while let Some(replacement) = self.replacement.as_mut().filter(|replacement| !replacement.is_empty())
        {
            let written = Pin::new(&mut self.stream).poll_write(cx, replacement);
            if let Poll::Ready(Ok(written)) = written {
                replacement.advance(written);
            }
            ready!(self.after_write(cx, written))?;
        }
        self.replacement = None;
        Poll::Ready(Ok(bytes))
    }

    /// Returns the result of a write, or an error if the write has been pending for too long.
    fn with_write_timeout<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_deadline = None;
            return written;
        }
        let timeout = self.write_timeout;
        let write_deadline = self.write_deadline.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(write_deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// The transport of an upgraded connection, and the bytes that the client sent before it saw the response. (A TLS session
/// holds its unread bytes itself.)
pub(super) fn into_transport(upgraded: Upgraded) -> Option<(Transport, Bytes)> {
    let parts = upgraded.downcast::<TokioIo<HttpStream>>().ok()?;
    let transport = match parts.io.into_inner().stream {
        Either::Left(stream) => stream.into(),
        Either::Right(stream) => stream.into_inner().into(),
    };
    // hyper's buffer has the capacity of the largest head, so only its content is kept.
    Some((transport, Bytes::copy_from_slice(&parts.read_buf)))
}

/// The replacement for `answer`, if that is a response of hyper itself: those have no body, and the server's have one.
/// `read_bytes` is the number of bytes read of the request.
fn replacement_for(answer: &[u8], read_bytes: usize) -> Option<Bytes> {
    // This runs for every response, so one byte is checked first.
    if answer.get(9) != Some(&b'4') || memchr::memmem::find(answer, b"\r\ncontent-length: 0\r\n").is_none() {
        return None;
    }
    let (status, sentence) = match answer.get(9..12)? {
        b"431" | b"414" if read_bytes >= HEAD_BYTES => (
            "431 Request Header Fields Too Large",
            format!(
                "The head of the request is longer than {HEAD_BYTES} bytes, which is the most that is taken \
                 ({read_bytes} bytes were read). Cookies are the usual cause."
            ),
        ),
        b"431" | b"414" => (
            "431 Request Header Fields Too Large",
            format!("The request has more than {HEADERS} headers, which is the most that is taken."),
        ),
        b"400" => {
            ("400 Bad Request", "This is no valid request of HTTP/1.1, which this port speaks.".to_owned())
        }
        _ => return None,
    };
    let length = sentence.len() + 1;
    Some(Bytes::from(format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n{sentence}\n"
    )))
}

impl AsyncRead for HttpStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.read_bytes = self.read_bytes.saturating_add(buf.filled().len() - before);
        read
    }
}

impl AsyncWrite for HttpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let read_bytes = std::mem::take(&mut self.read_bytes);
        if self.replacement.is_none() {
            self.replacement = replacement_for(bytes, read_bytes);
        }
        if self.replacement.is_some() {
            return self.poll_write_replacement(cx, bytes.len());
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.after_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.after_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS may have accepted bytes that it has not written yet.
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.with_write_timeout(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger_deadline.is_none() {
            let shut_down = Pin::new(&mut self.stream).poll_shutdown(cx);
            ready!(self.with_write_timeout(cx, shut_down))?;
        }
        let Self { stream, linger_deadline, .. } = &mut *self;
        let until = linger_deadline.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut discarded = [0; 4096];
        loop {
            if until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut discarded = ReadBuf::new(&mut discarded);
            if ready!(Pin::new(&mut *stream).poll_read(cx, &mut discarded)).is_err()
                || discarded.filled().is_empty()
            {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_write_times_out_unless_the_client_reads_its_response() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let progress = Progress::default();
        let mut stream = HttpStream::new(Either::Left(stream), Duration::from_millis(50), progress.clone());
        let answer = vec![0; 100_000_000];
        let error = stream.write_all(&answer).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let taken = progress.bytes();
        assert!((1..100_000_000).contains(&taken));
        client.read_exact(&mut vec![0; taken as usize]).await.unwrap();
        stream.write_all(&answer[..10]).await.unwrap();
        assert_eq!(progress.bytes(), taken + 10);
    }
}
