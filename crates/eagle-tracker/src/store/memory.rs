//! The store in this process's memory.
//!
//! Swarms and nodes are in two tables of shards, each shard behind a mutex that is held for one
//! look-up or one page of work. Locks are taken in one order: a node's membership, then a shard of
//! either table, and never two shards at a time. A node's membership lock makes its announces and its
//! removal follow one another.

mod places;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use eagle_core::{Digest, Geometry, NodeId, PeerInfo, Timestamp};
use indexmap::IndexMap;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use self::places::{MAX_SEEN, Places};
use super::{
    Applied, Candidate, PeerStore, Refusal, StoreError, StoreLimits, StoreStats, SwarmView, is_authority,
    node::{Membership, Node, NodeKey},
    progress,
};
use crate::{
    api::{BlobAnnounce, Event, PeerAt, PeerBlob, PeerSummary, SwarmMember, SwarmSummary},
    ownership::Ownership,
};

/// Shards of each table: many times the cores of a machine, so that they seldom meet.
const SHARDS: usize = 64;
/// Most seeders seen at a time; a cluster has a handful.
const MAX_SEEDERS_SEEN: usize = 32;

/// Swarms and nodes in memory.
#[derive(Debug)]
pub struct MemoryStore {
    limits: StoreLimits,
    hasher: RandomState,
    swarms: Vec<Mutex<HashMap<Arc<Digest>, Swarm>>>,
    nodes: Vec<Mutex<HashMap<NodeId, Arc<Node>>>>,
    node_count: AtomicUsize,
    swarm_count: AtomicUsize,
    entry_count: AtomicUsize,
    /// Shard of nodes that the next sweep visits.
    next_sweep: AtomicUsize,
}

#[derive(Debug)]
struct Swarm {
    geometry: Geometry,
    /// Whether a seeder has vouched for the geometry.
    vouched: bool,
    created: Timestamp,
    grown: Timestamp,
    /// When a peer last joined or owned more.
    changed: Timestamp,
    seeders: Members,
    proxies: Members,
    /// Where the proxies are, when there are many.
    places: Places,
}

/// Dense, so that a random part can be taken without going through all.
type Members = IndexMap<NodeKey, Member>;

#[derive(Debug)]
struct Member {
    pieces: Ownership,
    joined: Timestamp,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(limits: StoreLimits) -> Self {
        Self {
            limits,
            hasher: RandomState::new(),
            swarms: (0..SHARDS).map(|_| Mutex::default()).collect(),
            nodes: (0..SHARDS).map(|_| Mutex::default()).collect(),
            node_count: AtomicUsize::new(0),
            swarm_count: AtomicUsize::new(0),
            entry_count: AtomicUsize::new(0),
            next_sweep: AtomicUsize::new(0),
        }
    }

    fn swarm_shard(&self, digest: &Digest) -> MutexGuard<'_, HashMap<Arc<Digest>, Swarm>> {
        lock(&self.swarms[shard_of(self.hasher.hash_one(digest))])
    }

    fn node_shard(&self, hash: u64) -> MutexGuard<'_, HashMap<NodeId, Arc<Node>>> {
        lock(&self.nodes[shard_of(hash)])
    }

    /// The node, made when there is none; and whether it was there and alive.
    fn node(&self, info: &PeerInfo, now: Timestamp) -> Result<(Arc<Node>, bool), StoreError> {
        let hash = self.hasher.hash_one(&info.id);
        let mut shard = self.node_shard(hash);
        if let Some(node) = shard.get(&info.id) {
            return Ok((Arc::clone(node), node.is_alive(now, self.limits.ttl)));
        }
        if !reserve(&self.node_count, self.limits.peers) {
            return Err(StoreError::Full(self.limits.peers));
        }
        let node = Arc::new(Node::new(info, hash, now));
        shard.insert(info.id.clone(), Arc::clone(&node));
        Ok((node, false))
    }

    fn apply(
        &self,
        info: &PeerInfo,
        full: bool,
        blobs: &[BlobAnnounce],
        now: Timestamp,
    ) -> Result<Applied, StoreError> {
        loop {
            let (node, known) = self.node(info, now)?;
            let mut membership = node.membership();
            if membership.gone {
                continue;
            }
            // Expired and not swept yet, or another program under the same identity: what it had is not to
            // come back to life, and is in the other table of members.
            let known = known && node.info().role == info.role;
            if !known {
                self.leave_all(&node, &mut membership);
            }
            node.announced(info, now);
            let mut kept = std::collections::HashSet::new();
            let mut refused = Vec::new();
            for blob in blobs {
                let outcome = match blob.event {
                    Event::Evicted => {
                        self.leave_one(&node, &mut membership, &blob.digest);
                        continue;
                    }
                    _ => self.join(&node, info, &mut membership, blob, now),
                };
                match outcome {
                    Ok(digest) => drop(full && kept.insert(digest)),
                    Err(refusal) => refused.push((blob.digest, refusal)),
                }
            }
            if full {
                let stale: Vec<Arc<Digest>> = membership.blobs.difference(&kept).cloned().collect();
                for digest in stale {
                    self.leave_one(&node, &mut membership, &digest);
                }
            }
            return Ok(Applied { known, refused });
        }
    }

    /// Puts a node into a swarm or updates what it owns there.
    fn join(
        &self,
        node: &Arc<Node>,
        info: &PeerInfo,
        membership: &mut Membership,
        blob: &BlobAnnounce,
        now: Timestamp,
    ) -> Result<Arc<Digest>, Refusal> {
        let pieces = blob.geometry.pieces();
        let owned = Ownership::new(&blob.pieces, pieces).ok_or(Refusal::Pieces(pieces))?;
        let authority = is_authority(info.role);
        let mut shard = self.swarm_shard(&blob.digest);
        let (digest, swarm) = match shard.get_key_value(&blob.digest) {
            Some((digest, _)) => {
                let digest = Arc::clone(digest);
                // The second look-up is the price of sharing the key.
                let Some(swarm) = shard.get_mut(&blob.digest) else { return Err(Refusal::Pieces(pieces)) };
                (digest, swarm)
            }
            None if membership.blobs.len() >= self.limits.blobs_per_peer => {
                return Err(Refusal::NodeFull(self.limits.blobs_per_peer));
            }
            None if !reserve(&self.swarm_count, self.limits.blobs) => {
                return Err(Refusal::BlobsFull(self.limits.blobs));
            }
            None => {
                let digest = Arc::new(blob.digest);
                let swarm = shard.entry(Arc::clone(&digest)).or_insert_with(|| Swarm::new(blob.geometry, now));
                (digest, swarm)
            }
        };
        if swarm.geometry != blob.geometry {
            if swarm.vouched || !authority {
                return Err(Refusal::Geometry { known: swarm.geometry, announced: blob.geometry });
            }
            // Whoever was here believes in another blob; they come back when they have learned better.
            self.entry_count.fetch_sub(swarm.len(), Ordering::Relaxed);
            *swarm = Swarm::new(blob.geometry, now);
        }
        swarm.vouched |= authority;
        let key = NodeKey(Arc::clone(node));
        let size = swarm.len();
        let members = if authority { &mut swarm.seeders } else { &mut swarm.proxies };
        if let Some(member) = members.get_mut(&key) {
            if member.pieces != owned {
                swarm.changed = now;
            }
            member.pieces = owned;
            return Ok(digest);
        }
        if size >= self.limits.peers_per_blob {
            return Err(Refusal::SwarmFull(self.limits.peers_per_blob));
        }
        if membership.blobs.len() >= self.limits.blobs_per_peer && !membership.blobs.contains(&digest) {
            return Err(Refusal::NodeFull(self.limits.blobs_per_peer));
        }
        self.entry_count.fetch_add(1, Ordering::Relaxed);
        members.insert(key, Member { pieces: owned, joined: now });
        swarm.grown = now;
        swarm.changed = now;
        membership.blobs.insert(Arc::clone(&digest));
        Ok(digest)
    }

    fn leave_one(&self, node: &Arc<Node>, membership: &mut Membership, digest: &Digest) {
        if membership.blobs.remove(digest) {
            self.drop_member(node, digest);
        }
    }

    fn leave_all(&self, node: &Arc<Node>, membership: &mut Membership) {
        for digest in std::mem::take(&mut membership.blobs) {
            self.drop_member(node, &digest);
        }
    }

    fn drop_member(&self, node: &Arc<Node>, digest: &Digest) {
        let mut shard = self.swarm_shard(digest);
        let Some(swarm) = shard.get_mut(digest) else { return };
        let key = NodeKey(Arc::clone(node));
        if swarm.seeders.swap_remove(&key).or_else(|| swarm.proxies.swap_remove(&key)).is_some() {
            self.entry_count.fetch_sub(1, Ordering::Relaxed);
        }
        if swarm.len() == 0 {
            shard.remove(digest);
            self.swarm_count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes a node out of all tables, when `still` says so once nobody else works on it.
    fn remove_node(&self, node: &Arc<Node>, still: impl Fn(&Node) -> bool) {
        let mut membership = node.membership();
        if membership.gone || !still(node) {
            return;
        }
        membership.gone = true;
        self.leave_all(node, &mut membership);
        self.node_shard(self.hasher.hash_one(node.id())).remove(node.id());
        self.node_count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl PeerStore for MemoryStore {
    async fn announce(
        &self,
        node: &PeerInfo,
        full: bool,
        blobs: &[BlobAnnounce],
        now: Timestamp,
    ) -> Result<Applied, StoreError> {
        self.apply(node, full, blobs, now)
    }

    async fn leave(&self, node: &NodeId) {
        let found = self.node_shard(self.hasher.hash_one(node)).get(node).cloned();
        if let Some(node) = found {
            self.remove_node(&node, |_| true);
        }
    }

    async fn view(&self, digest: Digest, asker: &NodeId, seed: u64, now: Timestamp) -> Option<SwarmView> {
        // Before the swarm's shard is locked: never two at a time.
        let asking = self.node_shard(self.hasher.hash_one(asker)).get(asker).map(|node| node.info());
        let mut shard = self.swarm_shard(&digest);
        let swarm = shard.get_mut(&digest)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let seeders = {
            // Members are in no order that matters, so a run from a random place is a random part.
            let (all, most) = (swarm.seeders.len(), swarm.seeders.len().min(MAX_SEEDERS_SEEN));
            let start = if all > most { rng.random_range(0..all) } else { 0 };
            (start..start + most).map(move |position| position % all)
        };
        let proxies = if swarm.proxies.len() > MAX_SEEN {
            swarm.places.refresh(&swarm.proxies, now);
            let place = asking.map(|info| info.topology.clone()).unwrap_or_default();
            swarm.places.sample(swarm.proxies.len(), &place, &mut rng)
        } else {
            swarm.places.clear();
            (0..swarm.proxies.len()).collect()
        };
        let members = seeders.filter_map(|position| swarm.seeders.get_index(position));
        let members = members.chain(proxies.into_iter().filter_map(|position| swarm.proxies.get_index(position)));
        let live = members.filter(|(key, _)| key.0.is_alive(now, self.limits.ttl) && key.0.id() != asker);
        let candidates = live.map(|(key, member)| Candidate {
            info: key.0.info(),
            pieces: member.pieces.clone(),
            load: None,
            age: now - member.joined,
        });
        let candidates = candidates.collect();
        Some(SwarmView { geometry: swarm.geometry, candidates, since_growth: now - swarm.grown })
    }

    async fn swarms(&self, after: Option<Digest>, limit: usize, now: Timestamp) -> Vec<SwarmSummary> {
        let mut page = Page::new(limit);
        for shard in &self.swarms {
            for (digest, swarm) in lock(shard).iter() {
                let digest = **digest;
                if after.is_none_or(|after| digest > after) && page.wants(&digest) {
                    let summary = swarm.summary(digest, now, self.limits.ttl);
                    if summary.peers > 0 {
                        page.insert(digest, summary);
                    }
                }
            }
        }
        page.into_values()
    }

    async fn swarm(
        &self,
        digest: Digest,
        after: Option<&str>,
        limit: usize,
        now: Timestamp,
    ) -> Option<(SwarmSummary, Vec<SwarmMember>)> {
        let shard = self.swarm_shard(&digest);
        let swarm = shard.get(&digest)?;
        let summary = swarm.summary(digest, now, self.limits.ttl);
        if summary.peers == 0 {
            return None;
        }
        let mut page = Page::new(limit);
        for (NodeKey(node), member) in swarm.live(now, self.limits.ttl) {
            if after.is_none_or(|after| node.id().as_str() > after) && page.wants(node.id()) {
                page.insert(node.id().clone(), (Arc::clone(node), member.pieces.clone(), member.joined));
            }
        }
        let pieces = swarm.geometry.pieces();
        drop(shard);
        let members = page.into_values().into_iter().map(|(node, owned, joined)| SwarmMember {
            peer: PeerAt::from(&*node.info()),
            pieces: owned.count(pieces),
            complete: owned.is_complete(),
            owned: Some(owned.to_piece_set()),
            age_seconds: (now - joined).as_secs_f64(),
            last_announce_seconds: (now - node.last_announce()).as_secs_f64(),
            senders: Vec::new(),
        });
        Some((summary, members.collect()))
    }

    async fn active(&self, limit: usize, now: Timestamp) -> Vec<SwarmSummary> {
        let mut page = Page::new(limit);
        for shard in &self.swarms {
            for (digest, swarm) in lock(shard).iter() {
                // The digest only tells apart what changed at the same moment.
                let place = (Reverse(swarm.changed), **digest);
                if page.wants(&place) {
                    page.insert(place, ());
                }
            }
        }
        let digests = page.entries.into_keys().map(|(_, digest)| digest);
        let summaries = digests.filter_map(|digest| {
            let summary = self.swarm_shard(&digest).get(&digest)?.summary(digest, now, self.limits.ttl);
            (summary.peers > 0).then_some(summary)
        });
        summaries.collect()
    }

    async fn node(
        &self,
        node: &NodeId,
        after: Option<Digest>,
        limit: usize,
        now: Timestamp,
    ) -> Option<(PeerSummary, Vec<PeerBlob>)> {
        let node = self.node_shard(self.hasher.hash_one(node)).get(node).cloned()?;
        if !node.is_alive(now, self.limits.ttl) {
            return None;
        }
        let mut page = Page::new(limit);
        for digest in &node.membership().blobs {
            if after.is_none_or(|after| **digest > after) && page.wants(&**digest) {
                page.insert(**digest, ());
            }
        }
        let key = NodeKey(Arc::clone(&node));
        let blobs = page.entries.into_keys().filter_map(|digest| {
            let shard = self.swarm_shard(&digest);
            let swarm = shard.get(&digest)?;
            let member = swarm.seeders.get(&key).or_else(|| swarm.proxies.get(&key))?;
            let pieces = swarm.geometry.pieces();
            Some(PeerBlob { digest, size: swarm.geometry.size(), pieces, owned: member.pieces.count(pieces) })
        });
        let blobs = blobs.collect();
        Some((node.summary(now), blobs))
    }

    async fn nodes(&self, after: Option<&str>, limit: usize, now: Timestamp) -> Vec<PeerSummary> {
        let mut page = Page::new(limit);
        for shard in &self.nodes {
            for (id, node) in lock(shard).iter() {
                let asked_for = after.is_none_or(|after| id.as_str() > after) && page.wants(id);
                if asked_for && node.is_alive(now, self.limits.ttl) {
                    page.insert(id.clone(), Arc::clone(node));
                }
            }
        }
        page.into_values().iter().map(|node| node.summary(now)).collect()
    }

    async fn sweep(&self, now: Timestamp) {
        let index = self.next_sweep.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let expired: Vec<Arc<Node>> =
            lock(&self.nodes[index]).values().filter(|node| !node.is_alive(now, self.limits.ttl)).cloned().collect();
        for node in expired {
            self.remove_node(&node, |node| !node.is_alive(now, self.limits.ttl));
            // Thousands of nodes may expire together; answers go in between.
            tokio::task::yield_now().await;
        }
    }

    fn sweep_parts(&self) -> usize {
        SHARDS
    }

    fn stats(&self) -> StoreStats {
        StoreStats {
            peers: self.node_count.load(Ordering::Relaxed),
            blobs: self.swarm_count.load(Ordering::Relaxed),
            entries: self.entry_count.load(Ordering::Relaxed),
        }
    }
}

impl Swarm {
    fn new(geometry: Geometry, now: Timestamp) -> Self {
        Self {
            geometry,
            vouched: false,
            created: now,
            grown: now,
            changed: now,
            seeders: Members::default(),
            proxies: Members::default(),
            places: Places::default(),
        }
    }

    fn len(&self) -> usize {
        self.seeders.len() + self.proxies.len()
    }

    fn live(&self, now: Timestamp, ttl: Duration) -> impl Iterator<Item = (&NodeKey, &Member)> {
        self.seeders.iter().chain(&self.proxies).filter(move |(key, _)| key.0.is_alive(now, ttl))
    }

    fn summary(&self, digest: Digest, now: Timestamp, ttl: Duration) -> SwarmSummary {
        let seeders = self.seeders.keys().filter(|key| key.0.is_alive(now, ttl)).count();
        let pieces = self.geometry.pieces();
        let (mut peers, mut complete, mut owned) = (0, 0, 0);
        for (_, member) in self.live(now, ttl) {
            peers += 1;
            complete += usize::from(member.pieces.is_complete());
            owned += u64::from(member.pieces.count(pieces));
        }
        SwarmSummary {
            digest,
            geometry: self.geometry,
            pieces,
            peers,
            seeders,
            complete,
            progress: progress(owned, peers, pieces),
            age_seconds: (now - self.created).as_secs_f64(),
            changed_seconds: (now - self.changed).as_secs_f64(),
            bytes_per_second: 0,
        }
    }
}

/// The first `limit` entries by key of any number that are offered.
struct Page<K, V> {
    entries: BTreeMap<K, V>,
    limit: usize,
}

impl<K: Ord, V> Page<K, V> {
    fn new(limit: usize) -> Self {
        Self { entries: BTreeMap::new(), limit }
    }

    fn wants(&self, key: &K) -> bool {
        self.entries.len() < self.limit || self.entries.last_key_value().is_some_and(|(last, _)| key < last)
    }

    fn insert(&mut self, key: K, value: V) {
        self.entries.insert(key, value);
        if self.entries.len() > self.limit {
            self.entries.pop_last();
        }
    }

    fn into_values(self) -> Vec<V> {
        self.entries.into_values().collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shard of a hash: its upper bits, since the tables within use the lower ones.
fn shard_of(hash: u64) -> usize {
    usize::try_from(hash >> 32).unwrap_or_default() % SHARDS
}

/// Counts one more unless that passes the limit.
fn reserve(count: &AtomicUsize, limit: usize) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < limit).then_some(count + 1)).is_ok()
}
