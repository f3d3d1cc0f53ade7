//! The bytes of a batch, made once for all subscribers.

use std::cell::OnceCell;

use bytes::Bytes;

use super::queue::Pending;
use super::subscribers::Subscriber;
use crate::outbox::SharedFrames;
use crate::protocol::SocketId;
use crate::protocol::wire::deflate::{self, Compression};

/// Messages of a channel that are delivered together.
#[derive(Debug)]
pub(super) struct Batch {
    /// The number of the first message.
    first: u64,
    messages: Vec<Pending>,
    /// All messages, uncompressed.
    plain: SharedFrames,
    /// The form for connections with compression, made when the first of them is served.
    compressed: OnceCell<Compressed>,
    /// Connections that do not receive all messages.
    excepted: Vec<SocketId>,
}

/// The messages of a batch, each compressed if that makes it smaller.
#[derive(Debug)]
struct Compressed {
    all: SharedFrames,
    /// The end of each message in `all`.
    ends: Vec<usize>,
}

impl Compressed {
    /// Compresses the whole batch without a pause: its size is bounded by 64 KiB and the longest message. The threshold
    /// is the same for all connections of an app.
    fn new(messages: &[Pending], plain: &Bytes, bytes_min: u32) -> Self {
        if !deflate::is_worthwhile(messages.iter().map(|message| &message.frame), bytes_min) {
            let mut end = 0;
            let ends = messages.iter().map(|message| {
                end += message.frame.bytes().len();
                end
            });
            return Self { ends: ends.collect(), all: plain.clone().into() };
        }
        let mut all = Vec::with_capacity(plain.len() / 2);
        let ends = messages.iter().map(|message| {
            deflate::push(&mut all, &message.frame, bytes_min);
            all.len()
        });
        let ends = ends.collect();
        all.shrink_to_fit();
        Self { ends, all: Bytes::from(all).into() }
    }

    /// The message at `index` in the batch.
    fn message(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.all.bytes()[start..self.ends[index]]
    }
}

impl Batch {
    pub(super) fn new(first: u64, messages: Vec<Pending>, bytes: usize) -> Self {
        let plain = match &messages[..] {
            [one] => one.frame.bytes().clone(),
            many => {
                let mut plain = Vec::with_capacity(bytes);
                many.iter().for_each(|message| plain.extend_from_slice(message.frame.bytes()));
                Bytes::from(plain)
            }
        };
        let excepted = messages.iter().filter_map(|message| message.except).collect();
        Self { first, messages, plain: plain.into(), compressed: OnceCell::new(), excepted }
    }

    /// The bytes for a subscriber: nearly always those that all subscribers share.
    pub(super) fn frames_for(&self, subscriber: &Subscriber) -> Frames<'_> {
        let gets_all = subscriber.since <= self.first && !self.excepted.contains(&subscriber.outbox.socket());
        let (messages, plain) = (&self.messages, &self.plain);
        match subscriber.outbox.compression() {
            Compression::Off if gets_all => Frames::All(plain),
            Compression::Off => self.select(subscriber, |index| messages[index].frame.bytes()),
            Compression::Deflate { bytes_min } => {
                let compressed =
                    self.compressed.get_or_init(|| Compressed::new(messages, plain.bytes(), bytes_min));
                if gets_all {
                    return Frames::All(&compressed.all);
                }
                self.select(subscriber, |index| compressed.message(index))
            }
        }
    }

    /// The messages for a subscriber that does not receive all of them, in the form that `form` returns.
    fn select<'f>(&self, subscriber: &Subscriber, form: impl Fn(usize) -> &'f [u8]) -> Frames<'_> {
        let socket = subscriber.outbox.socket();
        let mut own = Vec::with_capacity(self.plain.bytes().len());
        for ((index, message), number) in self.messages.iter().enumerate().zip(self.first..) {
            if number >= subscriber.since && message.except != Some(socket) {
                own.extend_from_slice(form(index));
            }
        }
        if own.is_empty() { Frames::None } else { Frames::Some(own.into()) }
    }
}

/// The part of a batch for one subscriber.
pub(super) enum Frames<'b> {
    /// All messages, shared with other subscribers.
    All(&'b SharedFrames),
    /// Some of the messages, copied for this subscriber.
    Some(Bytes),
    /// No message.
    None,
}
