//! The transport of a WebSocket: a socket, plain or TLS.

use std::io;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags};
use rustls::ServerConnection;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::tls::Tls;

/// What a WebSocket is carried by.
#[derive(Debug)]
pub enum Transport {
    /// A plain stream, written to directly.
    Tcp(TcpStream),
    /// TLS that this process ends: encrypted and written directly.
    Tls(Box<Tls>),
    /// Nothing: frames stay queued until they are taken.
    Detached,
}

impl From<TcpStream> for Transport {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<(TcpStream, ServerConnection)> for Transport {
    /// A stream after its TLS handshake.
    fn from((stream, session): (TcpStream, ServerConnection)) -> Self {
        Self::Tls(Box::new(Tls::new(stream, session)))
    }
}

impl Transport {
    /// Resets the stream when it is dropped.
    pub(super) fn set_zero_linger(&self) {
        // If this fails, the client only learns of the end later.
        let _ = match self {
            Transport::Tcp(stream) => stream.set_zero_linger(),
            Transport::Tls(tls) => tls.stream().set_zero_linger(),
            Transport::Detached => Ok(()),
        };
    }
}

/// Writes what the socket accepts now.
pub(super) fn send(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
}

/// Reads from a socket into `buffer`. Ready with 0 at the end of the stream.
pub(super) fn poll_recv(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        // A read that does not fill the buffer has emptied the socket. Returning `WouldBlock` clears the readiness, and
        // saves the system call that would return it.
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
