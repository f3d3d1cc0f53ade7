//! What one server sends by itself: messages, in the order in which they come.

use std::collections::HashMap;

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::{mpsc, watch};

use super::trouble::Trouble;
use crate::cluster::driver::{Arriving, Incoming, Topic};

/// In each direction, so much may wait. Where nothing is taken for so long, the node starts anew instead of growing.
pub(super) const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// See the module's documentation. Of one connection: the next one begins with nothing.
#[derive(Debug)]
pub(super) struct Hearing {
    server: String,
    arriving: Arriving,
    troubles: mpsc::UnboundedSender<Trouble>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Nothing arrives any more.
    is_closed: bool,
    topics: HashMap<Vec<u8>, Listened>,
}

#[derive(Debug)]
struct Listened {
    ear: Ear,
    /// `false`: it is only waited for the server to say that it sends no more.
    is_wanted: bool,
    /// So often it was asked to send no more, and has not said so yet.
    leaving: u32,
}

/// Who hears a topic.
#[derive(Debug)]
pub(super) enum Ear {
    /// The node.
    Node(Topic),
    /// The probe that messages arrive: the last number that did.
    Probe(watch::Sender<u64>),
}

impl Hearing {
    pub(super) fn new(server: String, arriving: Arriving, troubles: mpsc::UnboundedSender<Trouble>) -> Self {
        Self { server, arriving, troubles, state: Mutex::default() }
    }

    /// What arrives on the topic of this name is for `ear`.
    pub(super) fn listen(&self, name: &str, ear: Ear) {
        let mut state = self.state.lock();
        let leaving = state.topics.get(name.as_bytes()).map_or(0, |listened| listened.leaving);
        state.topics.insert(name.into(), Listened { ear, is_wanted: true, leaving });
    }

    /// It is for nobody any more; whether the server has to be told.
    pub(super) fn ignore(&self, name: &str) -> bool {
        let mut state = self.state.lock();
        let Some(listened) = state.topics.get_mut(name.as_bytes()).filter(|listened| listened.is_wanted)
        else {
            return false;
        };
        listened.is_wanted = false;
        listened.leaving += 1;
        true
    }

    /// Nothing arrives from now on.
    pub(super) fn close(&self) {
        *self.state.lock() = State { is_closed: true, topics: HashMap::new() };
    }

    /// Something has come.
    pub(super) fn hear(&self, push: PushInfo) {
        let PushInfo { kind, data } = push;
        let mut data = data.into_iter();
        let (Some(Value::BulkString(name)), about) = (data.next(), data.next()) else { return };
        match (kind, about) {
            (PushKind::Message | PushKind::SMessage, Some(Value::BulkString(message))) => {
                self.message(&name, message);
            }
            (PushKind::Unsubscribe | PushKind::SUnsubscribe, _) => self.left(&name),
            _ => {}
        }
    }

    fn message(&self, name: &[u8], message: Vec<u8>) {
        let mut state = self.state.lock();
        if state.is_closed {
            return;
        }
        match state.topics.get(name) {
            Some(Listened { ear: Ear::Node(topic), is_wanted: true, .. }) => {
                // Under the lock, so that nothing comes behind what is said when it is closed.
                let waiting = self.arriving.push(Incoming::Message(topic.clone(), message.into()));
                if waiting > WAITING_BYTES_MAX {
                    state.is_closed = true;
                    let _ = self.troubles.send(Trouble::Overrun(WAITING_BYTES_MAX));
                }
            }
            Some(Listened { ear: Ear::Probe(heard), .. }) => {
                if let Some(number) =
                    std::str::from_utf8(&message).ok().and_then(|digits| digits.parse().ok())
                {
                    heard.send_replace(number);
                }
            }
            Some(_) | None => {}
        }
    }

    /// The server sends nothing more on a topic: because it was told so, or because a Redis Cluster has moved the slot.
    fn left(&self, name: &[u8]) {
        let mut state = self.state.lock();
        let Some(listened) = state.topics.get_mut(name) else { return };
        let Some(leaving) = listened.leaving.checked_sub(1) else {
            let _ = self.troubles.send(Trouble::Moved(self.server.clone()));
            return;
        };
        listened.leaving = leaving;
        if leaving == 0 && !listened.is_wanted {
            state.topics.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::cluster::driver::{Arrivals, queue};

    fn hearing() -> (Hearing, Arrivals, mpsc::UnboundedReceiver<Trouble>) {
        let (arriving, arrivals) = queue();
        let (troubles, trouble) = mpsc::unbounded_channel();
        (Hearing::new("server".to_owned(), arriving, troubles), arrivals, trouble)
    }

    fn push(kind: PushKind, name: &str, message: &[u8]) -> PushInfo {
        let data = vec![Value::BulkString(name.into()), Value::BulkString(message.to_vec())];
        PushInfo { kind, data }
    }

    #[tokio::test]
    async fn only_what_is_listened_to_arrives() {
        let (hearing, mut arrivals, mut trouble) = hearing();
        let topic = Topic::Group(Arc::from("g"));
        hearing.listen("a", Ear::Node(topic.clone()));
        hearing.hear(push(PushKind::Message, "b", b"0"));
        hearing.hear(push(PushKind::SMessage, "a", b"1"));
        assert!(hearing.ignore("a") && !hearing.ignore("a") && !hearing.ignore("b"));
        hearing.hear(push(PushKind::SMessage, "a", b"2"));
        // Listened to again before the server has said that it sends no more.
        hearing.listen("a", Ear::Node(topic.clone()));
        hearing.hear(push(PushKind::SUnsubscribe, "a", b""));
        hearing.hear(push(PushKind::SMessage, "a", b"3"));
        assert!(trouble.try_recv().is_err());
        hearing.close();
        hearing.hear(push(PushKind::SMessage, "a", b"4"));
        for message in ["1", "3"] {
            let message = Incoming::Message(topic.clone(), Bytes::from(message));
            assert_eq!(arrivals.recv().await, Some(message));
        }
        drop(hearing);
        assert_eq!(arrivals.recv().await, None);
    }

    #[test]
    fn a_topic_that_ends_by_itself_has_moved() {
        let (hearing, _arrivals, mut trouble) = hearing();
        hearing.listen("a", Ear::Node(Topic::Nodes));
        hearing.hear(push(PushKind::SUnsubscribe, "a", b""));
        assert!(matches!(trouble.try_recv(), Ok(Trouble::Moved(_))));
    }

    #[tokio::test]
    async fn a_node_that_takes_nothing_is_not_waited_for_for_ever() {
        let (hearing, mut arrivals, mut trouble) = hearing();
        hearing.listen("a", Ear::Node(Topic::Nodes));
        let message = vec![0; 1024 * 1024];
        for _ in 0..100 {
            hearing.hear(push(PushKind::Message, "a", &message));
        }
        assert!(matches!(trouble.try_recv(), Ok(Trouble::Overrun(_))));
        drop(hearing);
        let mut bytes = 0;
        while let Some(incoming) = arrivals.recv().await {
            if let Incoming::Message(_, message) = incoming {
                bytes += message.len();
            }
        }
        assert!(bytes <= WAITING_BYTES_MAX + message.len(), "{bytes}");
    }
}
