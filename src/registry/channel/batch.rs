//! The bytes of a batch, in the forms that its subscribers have. Each is made once for all of them.

use std::cell::OnceCell;
use std::mem::discriminant;

use bytes::Bytes;

use super::queue::Pending;
use super::subscribers::Subscriber;
use crate::outbox::SharedBytes;
use crate::protocol::SocketId;
use crate::protocol::wire::Form;

/// Messages of a channel that are delivered together.
#[derive(Debug)]
pub(super) struct Batch {
    /// The number of the first message.
    first: u64,
    messages: Vec<Pending>,
    /// All messages as frames, joined at once: nearly all connections have this form.
    frames: SharedBytes,
    /// The other forms.
    forms: Forms,
    /// Connections that do not receive all messages.
    excepted: Vec<SocketId>,
}

/// The forms of a batch, in the order in which they were first needed: a list that ends with an empty cell. It has no
/// place for a form that nobody has, and needs no number for each.
type Forms = OnceCell<Box<Made>>;

/// One form of a batch.
#[derive(Debug)]
struct Made {
    form: Form,
    /// `None`: the bytes of the frames.
    messages: Option<Messages>,
    next: Forms,
}

impl Made {
    fn new(form: Form, messages: &[Pending], frames: &Bytes) -> Self {
        let differs = form.differs(messages.iter().map(|message| &message.frame));
        let messages = differs.then(|| Messages::new(form, messages, frames.len()));
        Self { form, messages, next: OnceCell::new() }
    }
}

/// The messages of a batch in one form.
#[derive(Debug)]
struct Messages {
    all: SharedBytes,
    /// The end of each message in `all`.
    ends: Vec<usize>,
}

impl Messages {
    /// Encodes the whole batch without a pause: its size is bounded by 64 KiB and the longest message.
    fn new(form: Form, messages: &[Pending], frames_bytes: usize) -> Self {
        let mut all = Vec::with_capacity(if form.is_deflated() { frames_bytes / 2 } else { frames_bytes });
        let ends = messages.iter().map(|message| {
            form.append(&mut all, &message.frame);
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
        let frames = match &messages[..] {
            [one] => one.frame.bytes().clone(),
            many => {
                let mut frames = Vec::with_capacity(bytes);
                many.iter().for_each(|message| frames.extend_from_slice(message.frame.bytes()));
                Bytes::from(frames)
            }
        };
        let excepted = messages.iter().filter_map(|message| message.except).collect();
        Self { first, messages, frames: frames.into(), forms: OnceCell::new(), excepted }
    }

    /// The bytes for a subscriber: nearly always those that all subscribers with its form share.
    pub(super) fn part_for(&self, subscriber: &Subscriber) -> Part<'_> {
        let gets_all = subscriber.since <= self.first && !self.excepted.contains(&subscriber.outbox.socket());
        if gets_all && subscriber.outbox.form() == Form::Frame {
            return Part::All(&self.frames);
        }
        self.uncommon_part(subscriber, gets_all)
    }

    /// The part of a subscriber with another form, or of one that does not receive all messages. Not inlined, so that it
    /// takes no registers from the common case.
    #[inline(never)]
    fn uncommon_part(&self, subscriber: &Subscriber, gets_all: bool) -> Part<'_> {
        let form = subscriber.outbox.form();
        let messages = if form == Form::Frame { None } else { self.in_form(form) };
        match messages {
            None if gets_all => Part::All(&self.frames),
            None => self.select(subscriber, |index| self.messages[index].frame.bytes()),
            Some(messages) if gets_all => Part::All(&messages.all),
            Some(messages) => self.select(subscriber, |index| messages.message(index)),
        }
    }

    /// The messages in a form, made if this is the first subscriber that has it. `None`: they are the same as the frames.
    ///
    /// The values of a form do not distinguish it. Connections may have negotiated different thresholds for compression,
    /// when the setting has changed in between: then the threshold of the first subscriber decides for all.
    fn in_form(&self, form: Form) -> Option<&Messages> {
        let mut forms = &self.forms;
        loop {
            let make = || Box::new(Made::new(form, &self.messages, self.frames.bytes()));
            let made = forms.get_or_init(make);
            if discriminant(&made.form) == discriminant(&form) {
                return made.messages.as_ref();
            }
            forms = &made.next;
        }
    }

    /// The messages for a subscriber that does not receive all of them, in the form that `message` returns.
    fn select<'m>(&self, subscriber: &Subscriber, message: impl Fn(usize) -> &'m [u8]) -> Part<'_> {
        let socket = subscriber.outbox.socket();
        let mut own = Vec::with_capacity(self.frames.bytes().len());
        for ((index, pending), number) in self.messages.iter().enumerate().zip(self.first..) {
            if number >= subscriber.since && pending.except != Some(socket) {
                own.extend_from_slice(message(index));
            }
        }
        if own.is_empty() { Part::None } else { Part::Some(own.into()) }
    }
}

/// The part of a batch for one subscriber, in its form.
pub(super) enum Part<'b> {
    /// All messages, shared with other subscribers.
    All(&'b SharedBytes),
    /// Some of the messages, copied for this subscriber.
    Some(Bytes),
    /// No message.
    None,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::outbox::Outbox;
    use crate::protocol::wire::Frame;

    fn subscriber(id: u32, form: Form) -> Subscriber {
        let outbox = Outbox::detached(SocketId::new(id, 0), usize::MAX).with_form(form);
        Subscriber::new(Arc::new(outbox), 0, None)
    }

    fn batch(texts: &[&str]) -> Batch {
        let pending = |text: &&str| Pending { frame: Frame::from_text(text), except: None };
        Batch::new(0, texts.iter().map(pending).collect(), 0)
    }

    /// The forms that were made, in order.
    fn made(batch: &Batch) -> Vec<Form> {
        let made = std::iter::successors(batch.forms.get(), |made| made.next.get());
        made.map(|made| made.form).collect()
    }

    /// Where the bytes for a subscriber that gets all messages are, and the bytes.
    fn all(batch: &Batch, form: Form) -> (*const u8, Bytes) {
        let Part::All(messages) = batch.part_for(&subscriber(1, form)) else { panic!("not all messages") };
        (messages.bytes().as_ptr(), messages.bytes().clone())
    }

    #[test]
    fn each_form_is_made_once_and_only_if_a_subscriber_has_it() {
        let deflated = Form::DeflatedFrame { bytes_min: 10 };
        let long = format!("[{}1]", "1, ".repeat(50));
        let batch = batch(&[&long, "2"]);
        assert_eq!(all(&batch, Form::Frame).0, all(&batch, Form::Frame).0);
        assert_eq!(made(&batch), [], "the frames are there from the start");
        let text = all(&batch, Form::Text);
        assert_eq!(text.1, format!("{long}\n2\n"));
        assert_eq!(made(&batch), [Form::Text]);
        let compressed = all(&batch, deflated);
        assert!(compressed.1.len() < long.len() / 2, "{} bytes", compressed.1.len());
        assert_eq!(made(&batch), [Form::Text, deflated]);
        for _ in 0..3 {
            assert_eq!(all(&batch, Form::Text).0, text.0, "the same bytes");
            assert_eq!(all(&batch, deflated).0, compressed.0, "the same bytes");
        }
        assert_eq!(made(&batch), [Form::Text, deflated]);
    }

    #[test]
    fn a_form_that_changes_nothing_shares_the_frames() {
        let batch = batch(&["1", "2"]);
        let deflated = Form::DeflatedFrame { bytes_min: 10 };
        assert_eq!(all(&batch, deflated).0, all(&batch, Form::Frame).0);
    }

    #[test]
    fn of_two_thresholds_that_of_the_first_subscriber_decides() {
        let long = format!("[{}1]", "1, ".repeat(50));
        let (never, always) =
            (Form::DeflatedFrame { bytes_min: 10_000 }, Form::DeflatedFrame { bytes_min: 0 });
        for (first, second, is_compressed) in [(never, always, false), (always, never, true)] {
            let batch = batch(&[&long]);
            let (bytes, same) = (all(&batch, first), all(&batch, second));
            assert_eq!(bytes.0, same.0);
            assert_eq!(bytes.1[0] == 0xc1, is_compressed);
            assert_eq!(made(&batch), [first]);
        }
    }
}
