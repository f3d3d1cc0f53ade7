//! Requests to one server: a queue for each connection, and the task that sends them as pipelines.
//!
//! Requests that wait at the same time share a round trip: while one batch is in flight, the next one gathers. Requests
//! are carried out in the order in which they were sent.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Arg, Pipeline, RedisError, ServerErrorKind, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::error::ConnectionError;
use super::scripts::{Call, by_text};
use super::subscriptions::QUEUED_BYTES_MAX;

/// The largest batch; a larger one might not finish within the timeout on a slow network.
const BATCH_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Calls that are carried out in this order, and the function that reads their replies; it returns `None` if they are
/// malformed.
pub(super) struct Request {
    calls: Vec<Call>,
    reply: Box<dyn FnOnce(Vec<Value>) -> Option<()> + Send>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("calls", &self.calls.len()).finish_non_exhaustive()
    }
}

/// The queue in front of a connection.
#[derive(Clone, Debug)]
pub(super) struct RequestQueue {
    normal: mpsc::UnboundedSender<Request>,
    /// Small requests that decide whether this node is alive: they overtake the others.
    urgent: mpsc::UnboundedSender<Request>,
    queued_bytes: Arc<AtomicUsize>,
    errors: mpsc::UnboundedSender<ConnectionError>,
}

/// The end of the queue that the connection's task holds.
pub(super) struct QueuedRequests {
    normal: mpsc::UnboundedReceiver<Request>,
    urgent: mpsc::UnboundedReceiver<Request>,
    queued_bytes: Arc<AtomicUsize>,
}

impl RequestQueue {
    pub(super) fn new(errors: mpsc::UnboundedSender<ConnectionError>) -> (Self, QueuedRequests) {
        let (normal, queued_normal) = mpsc::unbounded_channel();
        let (urgent, queued_urgent) = mpsc::unbounded_channel();
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let queue = Self { normal, urgent, queued_bytes: Arc::clone(&queued_bytes), errors };
        (queue, QueuedRequests { normal: queued_normal, urgent: queued_urgent, queued_bytes })
    }

    /// Sends calls ahead of those that wait. Only for calls whose order does not matter.
    pub(super) fn send_urgent<T: Send + 'static>(
        &self,
        calls: Vec<Call>,
        read: impl FnOnce(Vec<Value>) -> Option<T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        self.enqueue(&self.urgent, calls, read)
    }

    /// Sends calls behind those that wait. There is no reply if the connection ends before, as it does when too many
    /// bytes wait.
    pub(super) fn send<T: Send + 'static>(
        &self,
        calls: Vec<Call>,
        read: impl FnOnce(Vec<Value>) -> Option<T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        self.enqueue(&self.normal, calls, read)
    }

    fn enqueue<T: Send + 'static>(
        &self,
        queue: &mpsc::UnboundedSender<Request>,
        calls: Vec<Call>,
        read: impl FnOnce(Vec<Value>) -> Option<T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let reply = Box::new(move |values| {
            let _ = sender.send(read(values)?);
            Some(())
        });
        let request = Request { calls, reply };
        let bytes = request.bytes();
        if self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > QUEUED_BYTES_MAX {
            let _ = self.errors.send(ConnectionError::QueueFull(QUEUED_BYTES_MAX));
        } else {
            let _ = queue.send(request);
        }
        receiver
    }
}

impl Request {
    /// The memory that it uses in the queue, approximately.
    fn bytes(&self) -> usize {
        let calls = self.calls.iter().map(|call| call.command.args_iter());
        calls.flatten().map(|argument| if let Arg::Simple(bytes) = argument { bytes.len() } else { 0 }).sum()
    }
}

impl QueuedRequests {
    /// Waits for requests, and moves all up to a bound into `batch`. It stays empty if all senders were dropped.
    async fn next_batch(&mut self, batch: &mut Vec<Request>) {
        let mut bytes = 0;
        while batch.len() < BATCH_MAX && bytes < BATCH_BYTES_MAX {
            let next = match self.urgent.try_recv() {
                Ok(urgent) => Some(urgent),
                Err(_) if batch.is_empty() => tokio::select! {
                    biased;
                    urgent = self.urgent.recv() => urgent,
                    next = self.normal.recv() => next,
                },
                Err(_) => self.normal.try_recv().ok(),
            };
            let Some(request) = next else { break };
            bytes += request.bytes();
            batch.push(request);
        }
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Carries requests out until there is an error.
///
/// Any error reply ends the connection: the command may not have been carried out, and a retry at once could go on
/// without end.
pub(super) async fn execute_requests(
    server: String,
    mut connection: MultiplexedConnection,
    mut requests: QueuedRequests,
    reply_timeout: Duration,
) -> ConnectionError {
    let mut batch = Vec::new();
    loop {
        requests.next_batch(&mut batch).await;
        if batch.is_empty() {
            // All queues are dropped, so this is no error.
            return std::future::pending().await;
        }
        let mut pipeline = Pipeline::with_capacity(batch.len());
        let mut scripts = Vec::new();
        let mut readers = Vec::with_capacity(batch.len());
        for Request { calls, reply } in batch.drain(..) {
            readers.push((calls.len(), reply));
            for call in calls {
                scripts.push(call.script);
                pipeline.add_command(call.command);
            }
        }
        let values = match round_trip(&server, &mut connection, &pipeline, reply_timeout).await {
            Ok(values) => values,
            Err(error) => return error,
        };
        // A Redis that has lost its scripts gets their texts, in the same order. Only in this case, what a script
        // publishes can come behind messages of the same batch.
        let unknown: Vec<_> =
            (0..values.len()).filter(|&at| scripts[at].is_some() && is_unknown_script(&values[at])).collect();
        let values = if unknown.is_empty() {
            values
        } else {
            let mut texts = Pipeline::with_capacity(unknown.len());
            for (at, command) in pipeline.cmd_iter().enumerate() {
                if let Some(script) = scripts[at].filter(|_| is_unknown_script(&values[at])) {
                    texts.add_command(by_text(script, command));
                }
            }
            let mut values = values;
            match round_trip(&server, &mut connection, &texts, reply_timeout).await {
                Ok(again) => unknown.into_iter().zip(again).for_each(|(at, value)| values[at] = value),
                Err(error) => return error,
            }
            values
        };
        let mut values = values.into_iter();
        for (count, reply) in readers {
            let values: Vec<_> = values.by_ref().take(count).collect();
            if let Some(Value::ServerError(error)) = values.iter().find(|value| is_error(value)) {
                return ConnectionError::of(&server, &RedisError::from(error.clone()));
            }
            if reply(values).is_none() {
                return ConnectionError::MalformedReply(server);
            }
        }
    }
}

/// Sends a pipeline and reads its replies.
pub(super) async fn round_trip(
    server: &str,
    connection: &mut MultiplexedConnection,
    pipeline: &Pipeline,
    reply_timeout: Duration,
) -> Result<Vec<Value>, ConnectionError> {
    let count = pipeline.len();
    let values = match timeout(reply_timeout, connection.send_packed_commands(pipeline, 0, count)).await {
        Ok(Ok(values)) => values,
        Ok(Err(error)) => return Err(ConnectionError::of(server, &error)),
        Err(_) => return Err(ConnectionError::Timeout(server.to_owned(), reply_timeout)),
    };
    if values.len() == count { Ok(values) } else { Err(ConnectionError::MalformedReply(server.to_owned())) }
}

fn is_error(value: &Value) -> bool {
    matches!(value, Value::ServerError(_))
}

fn is_unknown_script(value: &Value) -> bool {
    matches!(value, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::NoScript))
}
