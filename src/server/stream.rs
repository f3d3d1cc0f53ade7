//! The transport of an HTTP connection: a stream, with TLS or without, that neither waits for ever nor ends too
//! abruptly.

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

/// How long what a client still sends is taken from it, after it was told no and before its connection ends.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// The longest head of a request.
pub(super) const HEAD_BYTES: usize = 16 * 1024;

/// The most headers of a request: hyper's own limit.
pub(super) const HEADERS: usize = 100;

/// A TCP stream, or TLS of our own on one: in a box, so that the plain one does not have room for it.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// How much has been written to a stream. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A stream with three manners of its own.
///
/// - A client that does not take its answers is given up after a while.
/// - On shutdown, what the client still sends is read and thrown away for a moment: ending a connection with
///   unread bytes resets it, and a client in the middle of its body would lose the answer that refuses it.
/// - hyper answers what it cannot read with an empty 400, 414 or 431: here they get words.
#[derive(Debug)]
pub(super) struct PatientStream {
    stream: Stream,
    write_timeout: Duration,
    written: Progress,
    /// Bytes that were read since the last answer.
    read_bytes: usize,
    /// What is still to be written instead of an answer of hyper's own.
    instead: Option<Bytes>,
    /// Set while a write waits: when it is given up.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Set once the stream is shut down: until when it is read.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl PatientStream {
    /// `written` is told what has been.
    pub(super) fn new(stream: Stream, write_timeout: Duration, written: Progress) -> Self {
        Self { stream, write_timeout, written, read_bytes: 0, instead: None, stalled: None, lingering: None }
    }

    /// Passes on how much was written, as [`PatientStream::in_time`] does.
    fn wrote(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.written.0.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        self.in_time(cx, written)
    }

    /// Writes what stands for an answer of `bytes`, and says that this was written.
    fn poll_write_instead(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<usize>> {
        while let Some(words) = self.instead.as_mut().filter(|words| !words.is_empty()) {
            let written = Pin::new(&mut self.stream).poll_write(cx, words);
            if let Poll::Ready(Ok(written)) = written {
                words.advance(written);
            }
            ready!(self.wrote(cx, written))?;
        }
        self.instead = None;
        Poll::Ready(Ok(bytes))
    }

    /// Passes on how a write went, unless it has waited too long.
    fn in_time<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// What is below an upgraded connection, and what the client sent before it saw the answer. (Of TLS, the session
/// holds what has not been read from it.)
pub(super) fn take_apart(upgraded: Upgraded) -> Option<(Transport, Bytes)> {
    let parts = upgraded.downcast::<TokioIo<PatientStream>>().ok()?;
    let transport = match parts.io.into_inner().stream {
        Either::Left(stream) => stream.into(),
        Either::Right(stream) => stream.into_inner().into(),
    };
    // hyper's buffer is as large as the largest head; only what is in it is kept.
    Some((transport, Bytes::copy_from_slice(&parts.read_buf)))
}

/// What is written instead of `answer`, if that is one of hyper's own: those have no body, and the server's have.
/// `read_bytes` is how much was read of the request.
fn words_for(answer: &[u8], read_bytes: usize) -> Option<Bytes> {
    // Looked at for every answer, so by one byte first.
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

impl AsyncRead for PatientStream {
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

impl AsyncWrite for PatientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let read_bytes = std::mem::take(&mut self.read_bytes);
        if self.instead.is_none() {
            self.instead = words_for(bytes, read_bytes);
        }
        if self.instead.is_some() {
            return self.poll_write_instead(cx, bytes.len());
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS may have taken in what it has not written yet.
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.in_time(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            let shut_down = Pin::new(&mut self.stream).poll_shutdown(cx);
            ready!(self.in_time(cx, shut_down))?;
        }
        let Self { stream, lingering, .. } = &mut *self;
        let until = lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut waste = [0; 4096];
        loop {
            if until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut waste = ReadBuf::new(&mut waste);
            if ready!(Pin::new(&mut *stream).poll_read(cx, &mut waste)).is_err() || waste.filled().is_empty()
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
    async fn a_client_that_takes_its_answer_makes_progress_and_one_that_does_not_makes_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let progress = Progress::default();
        let mut stream =
            PatientStream::new(Either::Left(stream), Duration::from_millis(50), progress.clone());
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
