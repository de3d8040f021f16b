//! A page of a long list.

use std::collections::BTreeMap;

/// The first `limit` entries by key of any number that are offered.
pub(super) struct Page<K, V> {
    entries: BTreeMap<K, V>,
    limit: usize,
}

impl<K: Ord, V> Page<K, V> {
    pub(super) fn new(limit: usize) -> Self {
        Self { entries: BTreeMap::new(), limit }
    }

    pub(super) fn wants(&self, key: &K) -> bool {
        self.entries.len() < self.limit || self.entries.last_key_value().is_some_and(|(last, _)| key < last)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.entries.insert(key, value);
        if self.entries.len() > self.limit {
            self.entries.pop_last();
        }
    }

    pub(super) fn into_values(self) -> Vec<V> {
        self.entries.into_values().collect()
    }
}
