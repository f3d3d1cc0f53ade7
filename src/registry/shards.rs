//! A sharded map that can be scanned one shard at a time.
//!
//! The maps of a node have hundreds of thousands of entries. A scan over all of them lets other tasks run between two
//! shards, and holds no lock there. dashmap offers that only with `unsafe`.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::RwLock;

/// The number of shards: enough that cores seldom contend for one, and that scanning one of a million entries takes a
/// millisecond.
pub(super) const SHARDS: usize = 256;

/// A table shrinks when its capacity is this many times its length.
const SHRINK_FACTOR: usize = 8;

/// A table with this capacity or less does not shrink.
const CAPACITY_MIN: usize = 64;

type Shard<K, V> = RwLock<HashTable<(K, V)>>;

/// See the module's documentation. Values are cheap to clone.
#[derive(Debug)]
pub(super) struct Shards<K, V> {
    shards: Box<[Shard<K, V>]>,
    hasher: RandomState,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        Self { shards, hasher: RandomState::new() }
    }
}

impl<K: Eq + Hash, V: Clone> Shards<K, V> {
    /// The shard for a hash. The table uses the highest and lowest bits of the hash, so the shard uses others.
    fn shard(&self, hash: u64) -> &Shard<K, V> {
        &self.shards[(hash >> 40) as usize % SHARDS]
    }

    /// The value of `key`.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash).read();
        shard.find(hash, |(found, _)| found == key).map(|(_, value)| value.clone())
    }

    /// Whether there is a value of `key`.
    pub(super) fn contains(&self, key: &K) -> bool {
        let hash = self.hasher.hash_one(key);
        self.shard(hash).read().find(hash, |(found, _)| found == key).is_some()
    }

    /// The value of `key`, inserted if it is missing.
    pub(super) fn get_or_insert(&self, key: &K, make: impl FnOnce() -> (K, V)) -> V {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash).write();
        let entry = shard.entry(hash, |(found, _)| found == key, |(key, _)| self.hasher.hash_one(key));
        entry.or_insert_with(make).get().1.clone()
    }

    /// Inserts a value. Returns `false` if the key exists.
    pub(super) fn insert(&self, key: K, value: V) -> bool {
        let hash = self.hasher.hash_one(&key);
        let mut shard = self.shard(hash).write();
        match shard.entry(hash, |(found, _)| *found == key, |(key, _)| self.hasher.hash_one(key)) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert((key, value));
                true
            }
        }
    }

    /// Removes the value of `key`, if `condition` holds for it.
    pub(super) fn remove_if(&self, key: &K, condition: impl FnOnce(&V) -> bool) {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash).write();
        let Ok(found) = shard.find_entry(hash, |(found, _)| found == key) else { return };
        if condition(&found.get().1) {
            found.remove();
            let capacity = shard.capacity();
            if capacity > CAPACITY_MIN && shard.len() < capacity / SHRINK_FACTOR {
                let len = shard.len();
                shard.shrink_to(2 * len, |(key, _)| self.hasher.hash_one(key));
            }
        }
    }

    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Whether the map is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.read().is_empty())
    }

    /// Calls `each` for the values of the shard with this number. The shard is locked in the meantime.
    pub(super) fn for_each_in_shard(&self, number: usize, mut each: impl FnMut(&V)) {
        if let Some(shard) = self.shards.get(number) {
            shard.read().iter().for_each(|(_, value)| each(value));
        }
    }

    /// The values of the shard with this number whose key `is_wanted`. `None` if there is no such shard.
    pub(super) fn collect_shard(&self, number: usize, is_wanted: impl Fn(&K) -> bool) -> Option<Vec<V>> {
        let shard = self.shards.get(number)?.read();
        let wanted = shard.iter().filter(|(key, _)| is_wanted(key));
        Some(wanted.map(|(_, value)| value.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_value_until_it_is_removed() {
        let map = Shards::default();
        assert!(map.insert(1, 'a') && !map.insert(1, 'b'));
        assert_eq!(map.get_or_insert(&1, || unreachable!()), 'a');
        assert_eq!(map.get_or_insert(&2, || (2, 'c')), 'c');
        assert_eq!((map.get(&1), map.get(&3), map.contains(&2), map.len()), (Some('a'), None, true, 2));
        map.remove_if(&1, |value| *value == 'x');
        assert!(map.contains(&1), "another one has come in its place");
        map.remove_if(&1, |value| *value == 'a');
        map.remove_if(&2, |_| true);
        assert!(map.is_empty());
    }

    #[test]
    fn a_scan_by_shards_finds_all_entries_and_a_small_table_shrinks() {
        let map = Shards::default();
        (0..100_000u32).for_each(|key| assert!(map.insert(key, key)));
        let mut all = Vec::new();
        let mut number = 0;
        while let Some(some) = map.collect_shard(number, |key| key % 2 == 0) {
            assert!(some.len() < 100_000 / SHARDS, "a shard has its share");
            all.extend(some);
            number += 1;
        }
        all.sort_unstable();
        assert!(all.iter().copied().eq((0..100_000).step_by(2)));
        (10..100_000).for_each(|key| map.remove_if(&key, |_| true));
        let capacity: usize = map.shards.iter().map(|shard| shard.read().capacity()).sum();
        assert!(map.len() == 10 && capacity < 100_000 / 4, "capacity {capacity}");
    }
}
