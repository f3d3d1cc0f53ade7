//! Responses that may be long: they are encoded in chunks, and other tasks run in between. A list of half a million
//! channels takes the memory of one chunk and does not block other tasks.
//!
//! A response of one chunk, as nearly all are, is sent with its length. A longer one is streamed at the speed of the
//! client, at most for as long as a request body may take to arrive.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};

use super::Api;
use super::list_permits::ListPermit;
use super::signed::BODY_TIMEOUTS;

/// A chunk is sent when it has this size.
const CHUNK_BYTES: usize = 64 * 1024;

/// The source of a response.
pub(super) trait Chunks: Send + 'static {
    /// Appends a part of the response, in about a millisecond. Returns whether there is more.
    fn push(&mut self, out: &mut Vec<u8>) -> bool;
}

/// A response in JSON. The permit is released when the response ends.
pub(super) async fn respond(api: &Api, mut source: impl Chunks, permit: Option<ListPermit>) -> Response {
    let (mut chunk, mut is_done) = (Vec::new(), false);
    while !is_done && chunk.len() < CHUNK_BYTES {
        is_done = fill(&mut source, &mut chunk).await;
    }
    let body = if is_done { Body::from(chunk) } else { Body::new(stream(api, chunk, source, permit)) };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Appends a part of the response and lets other tasks run. Returns whether it was the last.
async fn fill(source: &mut impl Chunks, chunk: &mut Vec<u8>) -> bool {
    let is_more = source.push(chunk);
    if is_more {
        yield_now().await;
    }
    !is_more
}

/// Streams the first chunk and the rest.
fn stream(
    api: &Api,
    mut chunk: Vec<u8>,
    mut source: impl Chunks,
    permit: Option<ListPermit>,
) -> StreamedBody {
    let (sender, receiver) = mpsc::channel(1);
    let until = Instant::now() + api.0.options.read_timeout * BODY_TIMEOUTS;
    api.0.tasks.spawn(async move {
        let _permit = permit;
        let sent = timeout_at(until, async {
            let mut is_done = false;
            // Sending fails if the client has disconnected.
            while sender.send(Ok(std::mem::take(&mut chunk).into())).await.is_ok() && !is_done {
                while !is_done && chunk.len() < CHUNK_BYTES {
                    is_done = fill(&mut source, &mut chunk).await;
                }
            }
        });
        if sent.await.is_err() {
            // End the body with an error, so that the client does not mistake a part for the whole list.
            let _ = sender.try_send(Err(io::ErrorKind::TimedOut.into()));
        }
    });
    StreamedBody(receiver)
}

/// The body of a streamed response.
struct StreamedBody(mpsc::Receiver<io::Result<Bytes>>);

impl HttpBody for StreamedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts the parts that were encoded.
    struct Parts(Arc<AtomicUsize>);

    impl Chunks for Parts {
        fn push(&mut self, out: &mut Vec<u8>) -> bool {
            out.push(b'x');
            self.0.fetch_add(1, Ordering::Relaxed) < 999
        }
    }

    #[tokio::test]
    async fn other_tasks_run_after_each_part_of_a_long_response() {
        let encoded = Arc::new(AtomicUsize::new(0));
        // For instance a publish, of which each step is a turn.
        let publish = tokio::spawn({
            let encoded = Arc::clone(&encoded);
            async move {
                let mut seen = Vec::new();
                for _ in 0..10 {
                    seen.push(encoded.load(Ordering::Relaxed));
                    yield_now().await;
                }
                seen
            }
        });
        let (mut source, mut response) = (Parts(Arc::clone(&encoded)), Vec::new());
        while !fill(&mut source, &mut response).await {}
        assert_eq!((response.len(), encoded.load(Ordering::Relaxed)), (1000, 1000));
        let seen = publish.await.unwrap();
        let at_most_one_part = seen.windows(2).all(|turns| turns[1] - turns[0] <= 1);
        assert!(at_most_one_part && seen[0] <= 1 && seen[9] < 1000, "{seen:?}");
    }
}
