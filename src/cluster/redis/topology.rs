//! Which servers there are: replies of sentinels and of a Redis Cluster.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::RangeInclusive;

use redis::Value;

use super::error::ConnectionError;
use super::keys::HashTag;
use super::options::Server;
use super::replies;

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_unix() {
            true => f.write_str(&self.host),
            false if self.host.contains(':') => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Server {
    pub(super) fn is_unix(&self) -> bool {
        self.host.starts_with('/')
    }
}

/// The servers of a Redis Cluster.
pub(super) struct Topology {
    /// Masters of the slots that we use.
    pub(super) masters: Vec<Server>,
    /// The index of the master of each [`HashTag`].
    pub(super) servers_of: Vec<usize>,
    /// All servers, replicas included.
    pub(super) all: Vec<Server>,
}

impl Topology {
    /// Reads the replies to `CLUSTER SLOTS` and to `CLUSTER KEYSLOT` for each hash tag.
    pub(super) fn read(values: Vec<Value>, asked: &Server) -> Result<Self, ConnectionError> {
        let malformed = || ConnectionError::MalformedReply(asked.to_string());
        let mut values = values.into_iter();
        let ranges = values.next().and_then(replies::list).ok_or_else(malformed)?;
        let ranges: Option<Vec<_>> = ranges.into_iter().map(|range| slots(range, asked)).collect();
        let ranges = ranges.ok_or_else(malformed)?;
        let (mut masters, mut servers_of) = (Vec::new(), Vec::with_capacity(HashTag::COUNT));
        for slot in values {
            let slot = replies::number(&slot).ok_or_else(malformed)?;
            let found = ranges.iter().find(|(range, _)| range.contains(&slot));
            let master = found
                .and_then(|(_, servers)| servers.first())
                .ok_or(ConnectionError::UnassignedSlot(slot))?;
            let at = masters.iter().position(|known| known == master);
            servers_of.push(at.unwrap_or_else(|| {
                masters.push(master.clone());
                masters.len() - 1
            }));
        }
        let all: HashSet<_> = ranges.into_iter().flat_map(|(_, servers)| servers).collect();
        Ok(Self { masters, servers_of, all: all.into_iter().collect() })
    }
}

/// A range of slots and its servers, the master first.
fn slots(range: Value, asked: &Server) -> Option<(RangeInclusive<u64>, Vec<Server>)> {
    let mut range = replies::list(range)?.into_iter();
    let (first, last) = (replies::number(&range.next()?)?, replies::number(&range.next()?)?);
    Some((first..=last, range.map(|value| server(value, asked)).collect::<Option<_>>()?))
}

/// An address; further elements are ignored. An address without a host has that of the server that was `asked`.
pub(super) fn server(value: Value, asked: &Server) -> Option<Server> {
    let mut values = replies::list(value)?.into_iter();
    let host = values.next()?;
    let host = if host == Value::Nil { String::new() } else { replies::text(host)? };
    let host = if host.is_empty() || host == "?" { asked.host.clone() } else { host };
    Some(Server { host, port: u16::try_from(replies::number(&values.next()?)?).ok()? })
}

/// Reads the reply to `SENTINEL SENTINELS`.
pub(super) fn sentinels(value: Value) -> Option<Vec<Server>> {
    let sentinel = |fields| {
        let fields: HashMap<_, _> = replies::pairs(fields)?
            .into_iter()
            .filter_map(|(name, value)| Some((replies::text(name)?, replies::text(value)?)))
            .collect();
        Some(Server { host: fields.get("ip")?.clone(), port: fields.get("port")?.parse().ok()? })
    };
    replies::list(value)?.into_iter().map(sentinel).collect()
}
