//! Reading replies of Redis, which are not trusted: `None` is a malformed reply.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a reply has one of few kinds, and the library may add more"
)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::Value;

use crate::cluster::coordinator::{CachedMessage, Leases, Record};
use crate::cluster::envelope;
use crate::cluster::group::{Group, MemberId, NodeId, Rejected, Snapshot, Version};

/// Digits of the version before a cached message.
const VERSION_DIGITS: usize = 20;

/// Accepts any reply that is not an error.
#[expect(clippy::unnecessary_wraps, reason = "one of many readers, which may fail")]
pub(super) fn ignore(_: Vec<Value>) -> Option<()> {
    Some(())
}

/// The reply to a single command.
pub(super) fn single(values: Vec<Value>) -> Option<Value> {
    let [value] = <[Value; 1]>::try_from(values).ok()?;
    Some(value)
}

pub(super) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse().ok(),
        _ => None,
    }
}

pub(super) fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        _ => None,
    }
}

pub(super) fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

pub(super) fn list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(values) | Value::Set(values) => Some(values),
        _ => None,
    }
}

/// The reply of `update`.
pub(super) fn update(value: Value) -> Option<Result<Snapshot, Rejected>> {
    let values = list(value)?;
    let word = text(values.first()?.clone())?;
    match word.as_str() {
        "expired" => Some(Err(Rejected::LeaseExpired)),
        "stale" => Some(Err(Rejected::Stale)),
        "ok" => {
            let [_, version, occupied, members] = <[Value; 4]>::try_from(values).ok()?;
            let members = match members {
                Value::Nil => None,
                members => Some(members_by_age(members)?),
            };
            let (version, occupied) = (number(&version)?, number(&occupied)? == 1);
            Some(Ok(Snapshot { version, occupied, members }))
        }
        _ => None,
    }
}

/// The reply of `snapshot`.
pub(super) fn snapshot(value: Value) -> Option<Snapshot> {
    update(value)?.ok()
}

/// A hash of members, sorted by the version of their joining.
fn members_by_age(value: Value) -> Option<Vec<(MemberId, Bytes)>> {
    let mut members = Vec::new();
    for (id, entry) in pairs(value)? {
        let entry = bytes(entry)?;
        let mut parts = entry.splitn(3, |&byte| byte == b' ');
        let joined: Version = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let (_nodes, info) = (parts.next()?, parts.next()?);
        members.push((joined, MemberId::from(text(id)?), entry.slice_ref(info)));
    }
    members.sort_by_key(|(joined, ..)| *joined);
    Some(members.into_iter().map(|(_, id, info)| (id, info)).collect())
}

/// The reply of `occupied`.
pub(super) fn occupied(value: Value) -> Option<Vec<(Group, usize)>> {
    let group = |(name, members): (Value, Value)| {
        Some((Group::from(text(name)?), usize::try_from(number(&members)?).ok()?))
    };
    pairs(value)?.into_iter().map(group).collect()
}

/// The reply of `cached`.
pub(super) fn cached(value: Value) -> Option<Option<CachedMessage>> {
    if value == Value::Nil {
        return Some(None);
    }
    let [versioned, ttl_ms] = <[Value; 2]>::try_from(list(value)?).ok()?;
    let versioned = bytes(versioned)?;
    let version = std::str::from_utf8(versioned.get(..VERSION_DIGITS)?).ok()?.parse().ok()?;
    let ttl = Duration::from_millis(number(&ttl_ms)?);
    Some(Some(CachedMessage { version, message: versioned.slice(VERSION_DIGITS..), ttl }))
}

/// The reply of `claim`: whether the node is the reader, and the number of dropped records.
pub(super) fn claim(value: Value) -> Option<(bool, u64)> {
    let [is_reader, dropped] = <[Value; 2]>::try_from(list(value)?).ok()?;
    Some((number(&is_reader)? == 1, number(&dropped)?))
}

/// The reply of `renew`.
pub(super) fn leases(value: Value) -> Option<Result<Leases, Rejected>> {
    if value == Value::Nil {
        return Some(Err(Rejected::LeaseExpired));
    }
    let [alive, expired] = <[Value; 2]>::try_from(list(value)?).ok()?;
    Some(Ok(Leases { alive: nodes(alive)?, expired: nodes(expired)? }))
}

pub(super) fn nodes(value: Value) -> Option<Vec<NodeId>> {
    list(value)?.into_iter().map(|node| NodeId::parse(&text(node)?)).collect()
}

/// The reply of `XRANGE`. Entries that are not records of this release are skipped, so that they do not hide later
/// ones.
pub(super) fn records(value: Value) -> Option<Vec<Record>> {
    Some(list(value)?.into_iter().filter_map(record).collect())
}

fn record(entry: Value) -> Option<Record> {
    let [_id, fields] = <[Value; 2]>::try_from(list(entry)?).ok()?;
    let (mut group, mut change, mut time_ms) = (None, None, None);
    for (name, value) in pairs(fields)? {
        match bytes(name)?.as_ref() {
            b"group" => group = Some(Arc::from(text(value)?)),
            b"change" => change = Some(bytes(value)?),
            b"time" => time_ms = Some(number(&value)?),
            _ => {}
        }
    }
    Some(Record { transition: envelope::transition(group?, &change?)?, time_ms: time_ms? })
}

pub(super) fn pairs(value: Value) -> Option<Vec<(Value, Value)>> {
    match value {
        Value::Map(pairs) => Some(pairs),
        Value::Array(values) if values.len().is_multiple_of(2) => {
            let mut values = values.into_iter();
            let mut pairs = Vec::with_capacity(values.len() / 2);
            while let (Some(first), Some(second)) = (values.next(), values.next()) {
                pairs.push((first, second));
            }
            Some(pairs)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            Just(Value::Okay),
            any::<i64>().prop_map(Value::Int),
            "[0-9]{0,25}|ok|stale|group|change|time|1 1 x"
                .prop_map(|text| Value::BulkString(text.into_bytes())),
            any::<Vec<u8>>().prop_map(Value::BulkString),
        ];
        leaf.prop_recursive(3, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                prop::collection::vec((inner.clone(), inner), 0..3).prop_map(Value::Map),
            ]
        })
    }

    use proptest::prelude::any;

    proptest! {
        #[test]
        fn reading_a_reply_never_panics(value in value()) {
            let _ = update(value.clone());
            let _ = snapshot(value.clone());
            let _ = occupied(value.clone());
            let _ = cached(value.clone());
            let _ = leases(value.clone());
            let _ = claim(value.clone());
            let _ = nodes(value.clone());
            let _ = records(value);
        }
    }

    #[test]
    fn an_entry_that_is_not_a_record_is_skipped() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let fields = ["group", "g", "change", "0 7 o 0 ", "time", "5"].map(text).to_vec();
        let entries = vec![
            Value::Array(vec![text("6-0"), Value::Array(vec![text("a"), text("b")])]),
            Value::Array(vec![text("7-0"), Value::Array(fields)]),
        ];
        let records = records(Value::Array(entries)).unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!((records[0].transition.version, records[0].time_ms), (7, 5));
    }
}
