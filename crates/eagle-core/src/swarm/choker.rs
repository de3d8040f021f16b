//! Who is served: a bounded number of interested peers, in turn.
//!
//! Nodes of a cluster cooperate, so there is no tit-for-tat (BEP 3): the longest waiting peer gets
//! the next place, and once a round those served longest make room when others wait.

use std::{collections::BTreeMap, time::Duration};

use super::{PeerKey, peers::Peers};
use crate::time::Timestamp;

#[derive(Debug)]
pub(super) struct Choker {
    places: usize,
    last_round: Timestamp,
    /// Interested peers that wait, and since when they do.
    waiting: BTreeMap<PeerKey, Timestamp>,
    /// Peers that are served, and since when.
    serving: BTreeMap<PeerKey, Timestamp>,
}

impl Choker {
    pub(super) fn new(places: usize) -> Self {
        Self { places: places.max(1), last_round: Timestamp(0), waiting: BTreeMap::new(), serving: BTreeMap::new() }
    }

    pub(super) fn forget(&mut self, peer: PeerKey) {
        self.waiting.remove(&peer);
        self.serving.remove(&peer);
    }

    pub(super) fn next_round(&self, interval: Duration) -> Option<Timestamp> {
        (!self.waiting.is_empty()).then(|| self.last_round + interval)
    }

    pub(super) fn round_due(&self, now: Timestamp, interval: Duration) -> bool {
        self.next_round(interval).is_some_and(|at| now >= at)
    }

    /// Decides anew who is served; returns the peers for whom that changed.
    pub(super) fn rechoke(&mut self, now: Timestamp, interval: Duration, peers: &Peers) -> Vec<(PeerKey, bool)> {
        let mut changes = Vec::new();
        for (&key, state) in peers.iter() {
            if !state.interested {
                self.waiting.remove(&key);
                // An uninterested peer keeps its place as long as nobody needs it: the next piece
                // may make it interested again, and then it need not wait for an unchoke.
            } else if !self.serving.contains_key(&key) {
                self.waiting.entry(key).or_insert(now);
            }
        }
        if self.round_due(now, interval) {
            self.last_round = now;
            let room = self.places.saturating_sub(self.serving.len());
            let leave = self.waiting.len().saturating_sub(room).min(self.places.div_ceil(4));
            for key in Self::oldest(&self.serving, leave) {
                self.serving.remove(&key);
                self.waiting.insert(key, now);
                changes.push((key, false));
            }
        }
        let mut idle: Vec<PeerKey> =
            self.serving.keys().filter(|key| peers.get(key).is_none_or(|peer| !peer.interested)).copied().collect();
        for key in Self::oldest(&self.waiting, self.waiting.len()) {
            if self.serving.len() >= self.places {
                let Some(out) = idle.pop() else { break };
                self.serving.remove(&out);
                changes.push((out, false));
            }
            if changes.iter().any(|(changed, _)| *changed == key) {
                continue;
            }
            self.waiting.remove(&key);
            self.serving.insert(key, now);
            changes.push((key, true));
        }
        changes
    }

    fn oldest(map: &BTreeMap<PeerKey, Timestamp>, count: usize) -> Vec<PeerKey> {
        let mut keys: Vec<_> = map.iter().map(|(key, since)| (*since, *key)).collect();
        keys.sort_unstable();
        keys.into_iter().take(count).map(|(_, key)| key).collect()
    }
}
