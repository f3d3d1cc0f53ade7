//! One server: a connection for commands, another one for what it sends by itself, and who works on them.
//!
//! What is asked at one moment shares a round trip: while one batch is on its way, the next one gathers. So what was
//! asked first is done first.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Arg, Pipeline, RedisError, ServerErrorKind, Value};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::hearing::{Hearing, WAITING_BYTES_MAX};
use super::replies;
use super::scripts::{Call, by_text};
use super::trouble::Trouble;

/// What shares a round trip, at most; more of it could not be there in time over a slow network.
const BATCH_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// How often it is looked whether messages arrive, and how long it is waited for one.
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBE_PATIENCE: Duration = Duration::from_secs(3);

/// Where to ask one server.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) commands: Requests,
    /// For commands that change what is sent.
    pub(super) subscriptions: Requests,
    pub(super) hearing: Arc<Hearing>,
}

/// Calls that are carried out in this order, and what to do with the answers; `None`: they make no sense.
pub(super) struct Request {
    calls: Vec<Call>,
    answer: Box<dyn FnOnce(Vec<Value>) -> Option<()> + Send>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("calls", &self.calls.len()).finish_non_exhaustive()
    }
}

/// The queue in front of a connection.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    queue: mpsc::UnboundedSender<Request>,
    /// What does not wait for the rest: it is little, and says whether this node lives.
    urgent: mpsc::UnboundedSender<Request>,
    /// Bytes of what is in it.
    waiting: Arc<AtomicUsize>,
    troubles: mpsc::UnboundedSender<Trouble>,
}

/// The other end of it.
pub(super) struct Taken {
    queue: mpsc::UnboundedReceiver<Request>,
    urgent: mpsc::UnboundedReceiver<Request>,
    waiting: Arc<AtomicUsize>,
}

impl Requests {
    pub(super) fn queue(troubles: mpsc::UnboundedSender<Trouble>) -> (Self, Taken) {
        let (queue, taken) = mpsc::unbounded_channel();
        let (urgent, urgent_taken) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let requests = Self { queue, urgent, waiting: Arc::clone(&waiting), troubles };
        (requests, Taken { queue: taken, urgent: urgent_taken, waiting })
    }

    /// Asks before everything that waits: for what is in no order with the rest.
    pub(super) fn ask_first<T: Send + 'static>(
        &self,
        calls: Vec<Call>,
        read: impl FnOnce(Vec<Value>) -> Option<T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        self.put(&self.urgent, calls, read)
    }

    /// Puts calls at the end. The answer never comes if the connection is lost before, as it is when too much waits.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        calls: Vec<Call>,
        read: impl FnOnce(Vec<Value>) -> Option<T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        self.put(&self.queue, calls, read)
    }

    fn put<T: Send + 'static>(
        &self,
        queue: &mpsc::UnboundedSender<Request>,
        calls: Vec<Call>,
        read: impl FnOnce(Vec<Value>) -> Option<T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (answer, answered) = oneshot::channel();
        let answer = Box::new(move |values| {
            let _ = answer.send(read(values)?);
            Some(())
        });
        let request = Request { calls, answer };
        let bytes = request.bytes();
        if self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes > WAITING_BYTES_MAX {
            let _ = self.troubles.send(Trouble::Overrun(WAITING_BYTES_MAX));
        } else {
            let _ = queue.send(request);
        }
        answered
    }
}

impl Request {
    /// What it takes while it waits, about.
    fn bytes(&self) -> usize {
        let calls = self.calls.iter().map(|call| call.command.args_iter());
        calls.flatten().map(|argument| if let Arg::Simple(bytes) = argument { bytes.len() } else { 0 }).sum()
    }
}

impl Taken {
    /// All that waits, up to a bound; nothing: nobody can ask any more.
    async fn batch(&mut self, batch: &mut Vec<Request>) {
        let mut bytes = 0;
        while batch.len() < BATCH_MAX && bytes < BATCH_BYTES_MAX {
            let next = match self.urgent.try_recv() {
                Ok(urgent) => Some(urgent),
                Err(_) if batch.is_empty() => tokio::select! {
                    biased;
                    urgent = self.urgent.recv() => urgent,
                    next = self.queue.recv() => next,
                },
                Err(_) => self.queue.try_recv().ok(),
            };
            let Some(request) = next else { break };
            bytes += request.bytes();
            batch.push(request);
        }
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Carries out what is asked, until there is trouble.
///
/// Any error that Redis answers is trouble: it may not have done what it was asked, and a node that asked again at once
/// would do so without end.
pub(super) async fn work(
    server: String,
    mut connection: MultiplexedConnection,
    mut requests: Taken,
    patience: Duration,
) -> Trouble {
    let mut batch = Vec::new();
    loop {
        requests.batch(&mut batch).await;
        if batch.is_empty() {
            // Nobody needs to know.
            return std::future::pending().await;
        }
        let mut pipeline = Pipeline::with_capacity(batch.len());
        let mut scripts = Vec::new();
        let mut answers = Vec::with_capacity(batch.len());
        for Request { calls, answer } in batch.drain(..) {
            answers.push((calls.len(), answer));
            for call in calls {
                scripts.push(call.script);
                pipeline.add_command(call.command);
            }
        }
        let values = match run(&server, &mut connection, &pipeline, patience).await {
            Ok(values) => values,
            Err(trouble) => return trouble,
        };
        // A Redis that was emptied of scripts gets them again, and in their order. Only so, what a script tells may
        // stand behind what was published in the same moment.
        let forgotten: Vec<_> =
            (0..values.len()).filter(|&at| scripts[at].is_some() && is_forgotten(&values[at])).collect();
        let values = if forgotten.is_empty() {
            values
        } else {
            let mut texts = Pipeline::with_capacity(forgotten.len());
            for (at, command) in pipeline.cmd_iter().enumerate() {
                if let Some(script) = scripts[at].filter(|_| is_forgotten(&values[at])) {
                    texts.add_command(by_text(script, command));
                }
            }
            let mut values = values;
            match run(&server, &mut connection, &texts, patience).await {
                Ok(again) => forgotten.into_iter().zip(again).for_each(|(at, value)| values[at] = value),
                Err(trouble) => return trouble,
            }
            values
        };
        let mut values = values.into_iter();
        for (count, answer) in answers {
            let values: Vec<_> = values.by_ref().take(count).collect();
            if let Some(Value::ServerError(error)) = values.iter().find(|value| is_error(value)) {
                return Trouble::of(&server, &RedisError::from(error.clone()));
            }
            if answer(values).is_none() {
                return Trouble::Senseless(server);
            }
        }
    }
}

/// One round trip.
pub(super) async fn run(
    server: &str,
    connection: &mut MultiplexedConnection,
    pipeline: &Pipeline,
    patience: Duration,
) -> Result<Vec<Value>, Trouble> {
    let count = pipeline.len();
    let values = match timeout(patience, connection.send_packed_commands(pipeline, 0, count)).await {
        Ok(Ok(values)) => values,
        Ok(Err(error)) => return Err(Trouble::of(server, &error)),
        Err(_) => return Err(Trouble::Timeout(server.to_owned(), patience)),
    };
    if values.len() == count { Ok(values) } else { Err(Trouble::Senseless(server.to_owned())) }
}

fn is_error(value: &Value) -> bool {
    matches!(value, Value::ServerError(_))
}

fn is_forgotten(value: &Value) -> bool {
    matches!(value, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::NoScript))
}

/// Publishes numbers over one connection that must arrive over another one, or the same server's, until they do not:
/// Redis may take everything and send nothing.
pub(super) async fn probe(
    server: String,
    publisher: Requests,
    publish: &'static str,
    topic: String,
    subscribed: oneshot::Receiver<()>,
    mut heard: watch::Receiver<u64>,
) -> Trouble {
    if subscribed.await.is_err() {
        // Whoever was asked to subscribe says why.
        return std::future::pending().await;
    }
    let mut number = 0_u64;
    loop {
        number += 1;
        drop(publisher.ask_first(vec![Call::new(publish).arg(&topic).arg(number)], replies::any));
        match timeout(PROBE_PATIENCE, heard.wait_for(|heard| *heard >= number)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Trouble::Deaf(server),
        }
        sleep(PROBE_EVERY).await;
    }
}
