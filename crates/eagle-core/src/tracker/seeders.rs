//! Which seeders of a cluster are alive: those that said so lately.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{NodeId, Timestamp};

/// Bits of a version: as many as every reader of JSON keeps (IEEE 754 doubles, RFC 8259, 6).
const VERSION_BITS: u32 = 53;

/// What a seeder says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeederInfo {
    /// Its identity as a peer.
    pub id: NodeId,
    /// Where it is reached by proxies and by other seeders.
    pub url: String,
    /// Where it keeps blobs, as it is configured: seeders with the same place in an object store share what is there.
    #[serde(default)]
    pub storage: String,
    /// Most bytes of blobs that it keeps on its own disk.
    #[serde(default)]
    pub capacity: u64,
    /// What it does.
    #[serde(default)]
    pub state: SeederState,
}

/// What a seeder does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeederState {
    /// It serves.
    #[default]
    Up,
    /// It is about to end, and is asked when no other is left.
    Draining,
}

/// A seeder and since when it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownSeeder {
    /// What it said last.
    pub info: SeederInfo,
    /// When it was heard of first.
    pub first: Timestamp,
    /// When it was heard of last.
    pub last: Timestamp,
}

/// As many seeders as are allowed are alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tracker knows {0} seeders, the most that it keeps")]
pub struct SeedersFull(pub usize);

/// The seeders that one place knows of.
#[derive(Debug)]
pub struct Seeders {
    lifetime: Duration,
    limit: usize,
    known: BTreeMap<NodeId, KnownSeeder>,
    latest: Timestamp,
    /// Of the list as it is; asked for with every announce.
    version: Option<u64>,
}

impl Seeders {
    /// None, and never more than `limit`; each is forgotten when it is silent for `lifetime`.
    pub const fn new(lifetime: Duration, limit: usize) -> Self {
        Self { lifetime, limit, known: BTreeMap::new(), latest: Timestamp(0), version: None }
    }

    /// Notes that a seeder is alive. Another one at the same address, which is given, is forgotten: it was there before.
    ///
    /// # Errors
    /// When too many are.
    pub fn heard(&mut self, info: SeederInfo, now: Timestamp) -> Result<Option<NodeId>, SeedersFull> {
        let now = self.advance(now);
        if let Some(known) = self.known.get_mut(&info.id)
            && known.info.url == info.url
        {
            if known.info.state != info.state {
                self.version = None;
            }
            (known.info, known.last) = (info, now);
            return Ok(None);
        }
        self.version = None;
        // There is at most one: whoever came to an address has taken the place of the one before.
        let before = self.known.iter().find(|(id, known)| **id != info.id && known.info.url == info.url);
        let before = before.map(|(id, _)| id.clone());
        self.known.retain(|id, known| *id != info.id && known.info.url != info.url);
        if self.known.len() >= self.limit {
            self.expire(now);
        }
        if self.known.len() >= self.limit {
            return Err(SeedersFull(self.limit));
        }
        self.known.insert(info.id.clone(), KnownSeeder { info, first: now, last: now });
        Ok(before)
    }

    /// Forgets a seeder that ends.
    pub fn leave(&mut self, id: &NodeId) {
        self.known.remove(id);
        self.version = None;
    }

    /// A seeder that is alive.
    pub fn get(&mut self, id: &NodeId, now: Timestamp) -> Option<&SeederInfo> {
        let now = self.advance(now);
        self.known.get(id).filter(|known| now - known.last < self.lifetime).map(|known| &known.info)
    }

    /// Those that are alive, in the order of their identities.
    pub fn live(&mut self, now: Timestamp) -> Vec<KnownSeeder> {
        self.expire(now);
        self.known.values().cloned().collect()
    }

    /// Forgets those that are silent.
    pub fn expire(&mut self, now: Timestamp) {
        let now = self.advance(now);
        let before = self.known.len();
        self.known.retain(|_, known| now - known.last < self.lifetime);
        if self.known.len() < before {
            self.version = None;
        }
    }

    /// Number of those that are known, with those that are silent and not forgotten yet.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// A number for the list of those that are alive, which changes when the list does: the same at every tracker that knows the same
    /// seeders, in whatever order it heard of them. `None` when nobody is alive.
    pub fn version(&mut self, now: Timestamp) -> Option<u64> {
        self.expire(now);
        if self.known.is_empty() {
            return None;
        }
        let known = &self.known;
        Some(*self.version.get_or_insert_with(|| version(known.values().map(|known| &known.info))))
    }

    fn advance(&mut self, now: Timestamp) -> Timestamp {
        self.latest = self.latest.max(now);
        self.latest
    }
}

/// A number for a list of seeders, by what proxies need to know of them.
pub fn version<'a>(seeders: impl Iterator<Item = &'a SeederInfo>) -> u64 {
    let mut parts: Vec<(&str, SeederState)> = seeders.map(|info| (info.url.as_str(), info.state)).collect();
    parts.sort_unstable_by_key(|(url, state)| (*url, *state == SeederState::Draining));
    let mut hash = Sha256::new();
    for (url, state) in parts {
        hash.update((url.len() as u64).to_le_bytes());
        hash.update(url);
        hash.update([u8::from(state == SeederState::Draining)]);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let first = hash.first_chunk::<8>().map_or(0, |first| u64::from_le_bytes(*first));
    first >> (u64::BITS - VERSION_BITS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIFETIME: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Timestamp {
        Timestamp(0) + Duration::from_secs(seconds)
    }

    fn info(id: &str, url: &str) -> SeederInfo {
        let (id, url, storage) = (id.parse().unwrap(), url.to_owned(), "fs:".to_owned());
        SeederInfo { id, url, storage, capacity: 1 << 40, state: SeederState::Up }
    }

    fn urls(seeders: &mut Seeders, now: Timestamp) -> Vec<String> {
        seeders.live(now).into_iter().map(|known| known.info.url).collect()
    }

    #[test]
    fn who_is_silent_is_forgotten_and_who_moves_is_one() {
        let mut seeders = Seeders::new(LIFETIME, 3);
        seeders.heard(info("a", "http://1"), at(0)).unwrap();
        seeders.heard(info("b", "http://2"), at(5)).unwrap();
        let both = seeders.version(at(5));
        seeders.heard(info("b", "http://2"), at(6)).unwrap();
        assert_eq!(seeders.version(at(9)), both, "nothing new");
        assert_eq!(urls(&mut seeders, at(10)), ["http://2"]);
        assert_ne!(seeders.version(at(10)), both);
        // The clock was set back: nobody comes back to life, nobody dies.
        assert_eq!(urls(&mut seeders, at(1)), ["http://2"]);
        // Started again without its identity, and then with another address.
        assert_eq!(seeders.heard(info("c", "http://2"), at(11)), Ok(Some("b".parse().unwrap())));
        assert_eq!(seeders.get(&"b".parse().unwrap(), at(11)), None);
        seeders.heard(info("c", "http://3"), at(12)).unwrap();
        assert_eq!(urls(&mut seeders, at(12)), ["http://3"]);
        seeders.heard(info("d", "http://4"), at(12)).unwrap();
        seeders.heard(info("e", "http://5"), at(15)).unwrap();
        assert_eq!(seeders.heard(info("f", "http://6"), at(15)), Err(SeedersFull(3)));
        seeders.leave(&"e".parse().unwrap());
        seeders.heard(info("f", "http://6"), at(15)).unwrap();
    }

    #[test]
    fn who_drains_is_another_list() {
        let (up, mut draining) = (info("a", "http://1"), info("a", "http://1"));
        draining.state = SeederState::Draining;
        assert_ne!(version([&up].into_iter()), version([&draining].into_iter()));
    }

    proptest! {
        #[test]
        fn all_who_know_the_same_seeders_agree(
            heard in proptest::collection::vec((0u8..6, 0u64..20), 0..30), seed: u64,
        ) {
            let seeder = |number: u8| info(&format!("id{number}"), &format!("http://host-{number}:55008"));
            let (mut one, mut other) = (Seeders::new(LIFETIME, 10), Seeders::new(LIFETIME, 10));
            for (number, seconds) in &heard {
                one.heard(seeder(*number), at(*seconds)).unwrap();
            }
            // The same who are alive at the end, told in another order.
            let latest = heard.iter().map(|(_, seconds)| *seconds).max().unwrap_or(0);
            let mut alive = one.live(at(latest));
            alive.sort_by_key(|known| known.info.id.as_str().bytes().map(u64::from).sum::<u64>() ^ seed);
            for known in alive {
                other.heard(known.info, at(latest)).unwrap();
            }
            prop_assert_eq!(one.version(at(latest)), other.version(at(latest)));
            prop_assert!(one.version(at(latest)).is_none_or(|version| version < 1 << VERSION_BITS));
        }
    }
}
