//! The connections of each address, and their limits.
//!
//! IPv6 addresses are counted by their /64, the smallest network that a customer gets.
//!
//! An address has an entry while it has a connection, and afterwards while its rate is remembered. At most
//! [`IDLE_ENTRIES_MAX`] entries are idle, so that an attacker with many addresses does not grow the table. Above that,
//! those with a full bucket are evicted, and if that is not enough, all idle ones: a limit for each address does not
//! stop an attacker with so many of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Addresses, Options};
use crate::limits::{Limit, Rate, TokenBucket};

/// Entries without a connection that are kept for their rate: 4 MB.
pub(super) const IDLE_ENTRIES_MAX: usize = 65_536;

/// The burst of new connections of an address, in seconds of its rate: for an office whose network comes back.
const BURST_SECS: u32 = 10;

/// The unit that is counted as one address.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Address {
    /// An IPv4 address.
    V4([u8; 4]),
    /// The network part of an IPv6 address.
    V6([u8; 8]),
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) entries: HashMap<Address, Entry>,
    /// Entries without a connection.
    pub(super) idle: usize,
}

#[derive(Debug, Default)]
pub(super) struct Entry {
    unauthenticated: u32,
    websockets: u32,
    new_connections: TokenBucket,
}

impl Entry {
    const fn is_idle(&self) -> bool {
        self.unauthenticated == 0 && self.websockets == 0
    }

    const fn count(&mut self, kind: ConnectionKind) -> &mut u32 {
        match kind {
            ConnectionKind::Unauthenticated => &mut self.unauthenticated,
            ConnectionKind::WebSocket => &mut self.websockets,
        }
    }
}

/// The kind of a connection, counted separately.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConnectionKind {
    /// Neither a WebSocket nor a connection with signed requests.
    Unauthenticated,
    /// A WebSocket.
    WebSocket,
}

/// A connection of an address, counted until this is dropped.
#[derive(Debug)]
pub struct AddressPermit {
    addresses: Arc<Addresses>,
    address: Address,
    kind: ConnectionKind,
}

impl Addresses {
    /// Acquires a permit for a connection of `client`, which counts as new if `is_new`. `None`: the address has no
    /// limits.
    ///
    /// # Errors
    /// [`Limit::AddressConnections`] or [`Limit::AddressRate`].
    pub fn try_acquire(
        self: &Arc<Self>,
        client: IpAddr,
        kind: ConnectionKind,
        is_new: bool,
        now: Duration,
    ) -> Result<Option<AddressPermit>, Limit> {
        let Options { connections_max, unlimited, .. } = &self.options;
        let rate = self.rate();
        let is_limited = connections_max.is_some() || rate.is_some();
        let client = client.to_canonical();
        if !is_limited
            || self.is_trusted_proxy(client)
            || unlimited.iter().any(|network| network.contains(&client))
        {
            return Ok(None);
        }
        let address = Address::from(client);
        let mut table = self.table.lock();
        let table = &mut *table;
        if let Some(rate) = rate {
            table.evict_idle(rate, now);
        }
        let entry = match table.entries.entry(address) {
            MapEntry::Occupied(there) => there.into_mut(),
            MapEntry::Vacant(vacant) => {
                table.idle += 1;
                vacant.insert(Entry::default())
            }
        };
        // The first connection of an address is never rejected, so an entry is never added for nothing.
        if connections_max.is_some_and(|max| *entry.count(kind) >= max) {
            return Err(Limit::AddressConnections);
        }
        if is_new && rate.is_some_and(|rate| !entry.new_connections.try_acquire(rate, now)) {
            return Err(Limit::AddressRate);
        }
        if entry.is_idle() {
            table.idle -= 1;
        }
        *entry.count(kind) += 1;
        Ok(Some(AddressPermit { addresses: Arc::clone(self), address, kind }))
    }

    fn rate(&self) -> Option<Rate> {
        let per_second = self.options.new_per_second?;
        Some(Rate { per_second, burst: per_second.saturating_mul(BURST_SECS) })
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut table = self.addresses.table.lock();
        let Some(entry) = table.entries.get_mut(&self.address) else { return };
        *entry.count(self.kind) -= 1;
        if !entry.is_idle() {
            return;
        }
        if self.addresses.options.new_per_second.is_some() {
            table.idle += 1;
        } else {
            table.entries.remove(&self.address);
        }
    }
}

impl Table {
    /// Evicts entries without connections, if there are too many.
    fn evict_idle(&mut self, rate: Rate, now: Duration) {
        if self.idle <= IDLE_ENTRIES_MAX {
            return;
        }
        self.entries.retain(|_, entry| !entry.is_idle() || !entry.new_connections.is_full(rate, now));
        self.idle = self.entries.values().filter(|entry| entry.is_idle()).count();
        // If few were evicted, the next scans would cost more than the remaining entries are worth.
        if self.idle > IDLE_ENTRIES_MAX / 2 {
            self.entries.retain(|_, entry| !entry.is_idle());
            self.idle = 0;
        }
        self.entries.shrink_to(IDLE_ENTRIES_MAX);
    }
}
