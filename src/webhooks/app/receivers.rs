//! The receivers of an app, and which of them go on when the app changes.

use std::sync::Arc;

use super::super::endpoint::Endpoint;
use super::super::event::Subject;
use crate::apps::{EventTypes, Webhook};
use crate::protocol::Access;

/// A receiver: which events it gets, and the endpoint that sends them.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) webhook: Arc<Webhook>,
    pub(super) endpoint: Arc<Endpoint>,
}

impl Receiver {
    /// Whether it subscribes to one of `types` of `subject`. Events of a user's own channel are never sent.
    pub(super) fn wants(&self, subject: Subject<'_>, types: EventTypes) -> bool {
        match subject {
            Subject::Channel(channel) => {
                channel.access() != Access::User && self.webhook.wants(types, channel)
            }
            Subject::User(_) => self.webhook.event_types.has_any(types),
        }
    }
}

impl AsRef<Webhook> for Receiver {
    fn as_ref(&self) -> &Webhook {
        &self.webhook
    }
}

/// For each webhook in `after`, the one in `before` that it continues: the first with the same URL. If an app has several
/// webhooks with one URL, those that did not change continue themselves, and the others follow their order.
pub(super) fn matching<'b, B: AsRef<Webhook>>(before: &'b [B], after: &[Webhook]) -> Vec<Option<&'b B>> {
    let mut unmatched: Vec<Option<&B>> = before.iter().map(Some).collect();
    let mut take = |is_match: &dyn Fn(&Webhook) -> bool| {
        let slot = unmatched.iter_mut().find(|slot| slot.is_some_and(|before| is_match(before.as_ref())))?;
        slot.take()
    };
    let unchanged: Vec<_> = after.iter().map(|webhook| take(&|before| before == webhook)).collect();
    let or_same_url = |(webhook, unchanged): (&Webhook, Option<&'b B>)| {
        unchanged.or_else(|| take(&|before| before.url == webhook.url))
    };
    after.iter().zip(unchanged).map(or_same_url).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::WebhookUrl;

    /// A webhook with its number before the change.
    struct Numbered(usize, Webhook);

    impl AsRef<Webhook> for Numbered {
        fn as_ref(&self) -> &Webhook {
            &self.1
        }
    }

    /// Webhooks such as `a1`: the letter is the host, the digit a setting.
    fn webhooks(words: &str) -> Vec<Webhook> {
        let webhook = |word: &str| {
            let (host, setting) = word.split_at(1);
            let mut webhook = Webhook::new(WebhookUrl::parse(&format!("http://{host}/hooks")).unwrap());
            webhook.filter.starts_with = setting.into();
            webhook
        };
        words.split_whitespace().map(webhook).collect()
    }

    #[test]
    fn a_receiver_continues_the_webhook_with_its_url() {
        for (before, after, expected) in [
            ("", "a1", &[None][..]),
            ("a1", "", &[]),
            ("a1", "a1", &[Some(0)]),
            ("a1", "a2", &[Some(0)]),
            ("a1", "b1", &[None]),
            ("a1 b1", "b2 c1 a1", &[Some(1), None, Some(0)]),
            // Several with one URL.
            ("a1", "a1 a1", &[Some(0), None]),
            ("a1", "a2 a1", &[None, Some(0)]),
            ("a1 a2", "a2", &[Some(1)]),
            ("a1 a2", "a2 a1", &[Some(1), Some(0)]),
            ("a1 a2 a3", "a4 a2 a5", &[Some(0), Some(1), Some(2)]),
            ("a1 a1", "a2 a1", &[Some(1), Some(0)]),
            ("a1 b1 a2", "a3 a4 a5 b1", &[Some(0), Some(2), None, Some(1)]),
        ] {
            let before: Vec<_> =
                webhooks(before).into_iter().enumerate().map(|(at, webhook)| Numbered(at, webhook)).collect();
            let matched = matching(&before, &webhooks(after));
            let numbers: Vec<_> = matched.into_iter().map(|before| before.map(|before| before.0)).collect();
            assert_eq!(numbers, expected, "{after}");
        }
    }
}
