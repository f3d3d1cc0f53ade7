//! Answers that may be long: they are put together in pieces, and other work has its turn in between. So a list of half
//! a million channels holds nobody up, and costs the memory of a piece.
//!
//! An answer of one piece, as nearly all are, is sent with its length. A longer one is sent as it is made, in chunks, no
//! faster than its client takes it, and for so long at most as a body may take to arrive.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout, timeout_at};

use super::signed::BODY_TIMEOUTS;
use super::{Api, ApiError};
use crate::apps::{App, AppId, Apps};
use crate::limits::Count;

/// A piece is sent when it has so many bytes.
const PIECE_BYTES: usize = 64 * 1024;

/// Lists of an app that are made or waited for at once.
const AT_ONCE: u32 = 16;

/// Whose turn it is to list channels: one request of each app at a time, in order.
#[derive(Debug)]
pub(super) struct Lists(HashMap<AppId, Line>);

#[derive(Debug)]
struct Line {
    turn: Arc<Semaphore>,
    /// Those whose turn it is or will be.
    standing: Arc<Count>,
}

/// The turn of a request, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _turn: Option<OwnedSemaphorePermit>,
    standing: Arc<Count>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.standing.give_back();
    }
}

impl Lists {
    pub(super) fn of(apps: &Apps) -> Self {
        let line = || Line { turn: Arc::new(Semaphore::new(1)), standing: Arc::default() };
        Self(apps.iter().map(|app| (app.id.clone(), line())).collect())
    }

    /// Waits for the turn of a request, for `patience` at most.
    pub(super) async fn turn(&self, app: &App, patience: Duration) -> Result<Turn, ApiError> {
        let line = self.0.get(&app.id).expect("every app has a line");
        if !line.standing.take(Some(AT_ONCE)) {
            return Err(ApiError::TooManyLists(AT_ONCE));
        }
        let mut turn = Turn { _turn: None, standing: Arc::clone(&line.standing) };
        match timeout(patience, Arc::clone(&line.turn).acquire_owned()).await {
            Ok(permit) => turn._turn = permit.ok(),
            Err(_) => return Err(ApiError::TooManyLists(AT_ONCE)),
        }
        Ok(turn)
    }
}

/// What an answer is made of.
pub(super) trait Parts: Send + 'static {
    /// Appends some more of it, in a millisecond or so; whether there is more.
    fn push(&mut self, out: &mut Vec<u8>) -> bool;
}

/// An answer in JSON. With it, `turn` is given back.
pub(super) async fn answer(api: &Api, mut parts: impl Parts, turn: Option<Turn>) -> Response {
    let (mut piece, mut is_done) = (Vec::new(), false);
    while !is_done && piece.len() < PIECE_BYTES {
        is_done = fill(&mut parts, &mut piece).await;
    }
    let body = if is_done { Body::from(piece) } else { Body::new(send(api, piece, parts, turn)) };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Appends some more, and lets other work have its turn; whether that was all.
async fn fill(parts: &mut impl Parts, piece: &mut Vec<u8>) -> bool {
    let is_more = parts.push(piece);
    if is_more {
        yield_now().await;
    }
    !is_more
}

/// Sends what is there, and then what comes.
fn send(api: &Api, mut piece: Vec<u8>, mut parts: impl Parts, turn: Option<Turn>) -> Pieces {
    let (pieces, taken) = mpsc::channel(1);
    let until = Instant::now() + api.0.options.read_timeout * BODY_TIMEOUTS;
    api.0.tasks.spawn(async move {
        let _turn = turn;
        let sent = timeout_at(until, async {
            let mut is_done = false;
            // An error is a client that is gone.
            while pieces.send(Ok(std::mem::take(&mut piece).into())).await.is_ok() && !is_done {
                while !is_done && piece.len() < PIECE_BYTES {
                    is_done = fill(&mut parts, &mut piece).await;
                }
            }
        });
        if sent.await.is_err() {
            // Nobody takes half a list for a whole one.
            let _ = pieces.try_send(Err(io::ErrorKind::TimedOut.into()));
        }
    });
    Pieces(taken)
}

/// The body of a long answer.
struct Pieces(mpsc::Receiver<io::Result<Bytes>>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn lists() -> (Lists, Arc<App>) {
        let apps = Apps::new([App::new("1", "k", "s"), App::new("2", "k2", "s")]);
        (Lists::of(&apps), Arc::clone(apps.by_id("1").unwrap()))
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_of_an_app_has_its_turn_at_a_time() {
        let (lists, app) = lists();
        let first = lists.turn(&app, PATIENCE).await.unwrap();
        let begin = Instant::now();
        assert!(matches!(lists.turn(&app, PATIENCE).await, Err(ApiError::TooManyLists(_))));
        assert_eq!(begin.elapsed(), PATIENCE, "and is told so when it has waited long enough");
        lists.turn(&App::new("2", "k2", "s"), PATIENCE).await.unwrap();
        drop(first);
        lists.turn(&app, Duration::ZERO).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_wait_for_their_turn_and_the_next_is_told_at_once() {
        let (lists, app) = lists();
        let _first = lists.turn(&app, PATIENCE).await.unwrap();
        let turns = (1..AT_ONCE).map(|_| lists.turn(&app, PATIENCE));
        let mut turns: Vec<_> = turns.map(Box::pin).collect();
        for turn in &mut turns {
            let _ = timeout(Duration::ZERO, turn).await;
        }
        let begin = Instant::now();
        let refused = lists.turn(&app, PATIENCE).await.unwrap_err();
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert!(refused.to_string().contains("16 at most"), "{refused}");
        // Who hangs up gives its place back.
        drop(turns.pop());
        assert!(timeout(Duration::ZERO, lists.turn(&app, PATIENCE)).await.is_err(), "it waits");
    }
}
