//! The store in this process's memory.
//!
//! Swarms and nodes are in two tables of shards, each shard behind a mutex that is held for one look-up. What a node owns is with the
//! node, and who is in a swarm with the swarm, each behind a mutex of its own. Locks are taken in one order: a node's membership,
//! then the roll of a swarm or a shard of either table, and never two of these at a time. The state of the sweep is locked before
//! all of them, the nodes that are made and nobody yet after them. A node's membership makes its announces and its
//! removal follow one another.

mod lists;
mod members;
mod node;
mod page;
mod swarm;
mod sweep;

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::{BuildHasher as _, Hash as _, Hasher as _},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use eagle_core::{Digest, Geometry, NodeId, PeerInfo, Place, Timestamp, tracker::NodeLoad};
use hashbrown::{HashTable, hash_table};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

pub(super) use self::node::Node;
use self::{
    members::{MAX_SEEN, Member, Members},
    node::{Entry, Membership},
    swarm::Swarm,
    sweep::Sweep,
};
use super::{
    Applied, Candidate, PeerStore, Refusal, SeenPeer, StoreError, StoreLimits, StoreStats, SwarmView, is_authority,
};
use crate::{
    api::{BlobAnnounce, Event, PeerBlob, PeerSummary, SwarmMember, SwarmSummary},
    ownership::Ownership,
};

/// Shards of each table: many times the cores of a machine, so that they seldom meet.
const SHARDS: usize = 64;
/// Most seeders seen at a time; a cluster has a handful.
const MAX_SEEDERS_SEEN: usize = 32;

/// Nodes that are made together, so that they lie together: between them would be the tables of what they have, and every look at another
/// node at another page of memory. The processor knows where a thousand pages are; finding any other takes longer than the look.
const NODES_AT_A_TIME: usize = 256;

/// Swarms and nodes in memory.
#[derive(Debug)]
pub struct MemoryStore {
    limits: StoreLimits,
    hasher: RandomState,
    swarms: Vec<Mutex<HashTable<Arc<Swarm>>>>,
    nodes: Vec<Mutex<HashMap<NodeId, Arc<Node>>>>,
    node_count: AtomicUsize,
    swarm_count: AtomicUsize,
    entry_count: AtomicUsize,
    /// Nodes that are made and nobody is yet.
    vacant: Mutex<Vec<Arc<Node>>>,
    sweep: Mutex<Sweep>,
}

/// Of the digest of a blob, and of digest and geometry, under the store's key.
type Hashes = (u64, u64);

/// A node whose announce is being applied.
struct Applying<'a> {
    node: &'a Arc<Node>,
    /// Whether its word on the geometry counts more.
    authority: bool,
    place: Place,
    membership: &'a mut Membership,
    /// Of an announce of everything: what the node had and has not said again so far.
    before: Membership,
    now: Timestamp,
}

impl Applying<'_> {
    /// Blobs that the node has.
    fn blobs(&self) -> usize {
        self.membership.len() + self.before.len()
    }

    /// How many blobs at the beginning of an announce are as they are known.
    ///
    /// All are looked at even so, with nothing done in between: the processor then waits for many places in memory at a time and
    /// not for one after the other.
    fn settled(&self, blobs: &[BlobAnnounce], hashes: &[Hashes]) -> usize {
        let mut settled = 0;
        for (number, (blob, (hash, tag))) in blobs.iter().zip(hashes).enumerate() {
            let same = self.membership.is_known(*hash, *tag, &blob.pieces);
            settled += usize::from(same && settled == number && blob.event != Event::Evicted);
        }
        settled
    }

    fn remove(&mut self, hash: u64, digest: &Digest) -> Option<Entry> {
        self.membership.remove(hash, digest).or_else(|| self.before.remove(hash, digest))
    }
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
            vacant: Mutex::default(),
            sweep: Mutex::default(),
        }
    }

    /// All of a digest counts: whoever announces can make digests that agree in a part.
    fn hash(&self, digest: &Digest) -> u64 {
        self.hasher.hash_one(digest.as_bytes())
    }

    /// The same, and the hash of digest and geometry.
    fn hashes(&self, digest: &Digest, geometry: &Geometry) -> Hashes {
        let mut hasher = self.hasher.build_hasher();
        digest.as_bytes().hash(&mut hasher);
        let hash = hasher.finish();
        hasher.write_u64(geometry.size());
        hasher.write_u32(geometry.piece_length());
        (hash, hasher.finish())
    }

    fn swarm_shard(&self, hash: u64) -> MutexGuard<'_, HashTable<Arc<Swarm>>> {
        lock(&self.swarms[shard_of(hash)])
    }

    fn node_shard(&self, id: &NodeId) -> MutexGuard<'_, HashMap<NodeId, Arc<Node>>> {
        lock(&self.nodes[shard_of(self.hasher.hash_one(id))])
    }

    fn find_node(&self, id: &NodeId) -> Option<Arc<Node>> {
        self.node_shard(id).get(id).cloned()
    }

    fn find_swarm(&self, digest: &Digest) -> Option<Arc<Swarm>> {
        let hash = self.hash(digest);
        self.swarm_shard(hash).find(hash, |swarm| swarm.digest == *digest).cloned()
    }

    /// The node, made when there is none; and whether it was there and alive.
    fn node(&self, info: &PeerInfo, now: Timestamp) -> Result<(Arc<Node>, bool), StoreError> {
        let mut shard = self.node_shard(&info.id);
        if let Some(node) = shard.get(&info.id) {
            return Ok((Arc::clone(node), node.is_alive(now, self.limits.ttl)));
        }
        if !reserve(&self.node_count, self.limits.peers) {
            return Err(StoreError::Full(self.limits.peers));
        }
        let node = self.new_node(info, now);
        shard.insert(node.id().clone(), Arc::clone(&node));
        Ok((node, false))
    }

    /// A node, beside others in memory.
    fn new_node(&self, info: &PeerInfo, now: Timestamp) -> Arc<Node> {
        let mut vacant = lock(&self.vacant);
        if vacant.is_empty() {
            vacant.extend((0..NODES_AT_A_TIME).map(|_| Arc::new(Node::new(info, now))));
        }
        let mut node = vacant.pop().unwrap_or_else(|| Arc::new(Node::new(info, now)));
        drop(vacant);
        if let Some(node) = Arc::get_mut(&mut node) {
            *node = Node::new(info, now);
        }
        node
    }

    fn apply(
        &self,
        info: &PeerInfo,
        full: bool,
        blobs: &[BlobAnnounce],
        now: Timestamp,
    ) -> Result<Applied, StoreError> {
        let place = Place::from(&info.topology);
        let hashes: Vec<Hashes> = blobs.iter().map(|blob| self.hashes(&blob.digest, &blob.geometry)).collect();
        loop {
            let (node, known) = self.node(info, now)?;
            let mut membership = node.membership();
            if node.is_gone() {
                continue;
            }
            let (last_role, last_place) = node.announced(info, place, now);
            // Expired and not swept yet, or another program under the same identity: what it had is not to
            // come back to life, and is among the other members.
            let known = known && last_role == info.role;
            if !known {
                self.leave_all(&node, std::mem::take(&mut membership));
            }
            let authority = is_authority(info.role);
            if last_place != place {
                membership.iter().for_each(|entry| entry.swarm.roll().members(authority).moved(&node, &place));
            }
            node.drop_overruled(&mut membership);
            let mut before = Membership::default();
            if full {
                std::mem::swap(&mut before, &mut membership);
                membership.reserve(blobs.len().min(self.limits.blobs_per_peer));
            }
            let mut applying = Applying { node: &node, authority, place, membership: &mut membership, before, now };
            let mut refused = Vec::new();
            for (blob, hashes) in blobs.iter().zip(&hashes).skip(applying.settled(blobs, &hashes)) {
                if blob.event == Event::Evicted {
                    if let Some(entry) = applying.remove(hashes.0, &blob.digest) {
                        self.leave_one(&node, &entry);
                    }
                } else if let Err(refusal) = self.update(&mut applying, *hashes, blob) {
                    refused.push((blob.digest, refusal));
                }
            }
            self.leave_all(&node, applying.before);
            return Ok(Applied { known, refused });
        }
    }

    /// Records what a node has of a blob; it joins the swarm where it is no member.
    fn update(&self, applying: &mut Applying<'_>, hashes: Hashes, blob: &BlobAnnounce) -> Result<(), Refusal> {
        let pieces = blob.geometry.pieces();
        let owned = Ownership::new(&blob.pieces, pieces).ok_or(Refusal::Pieces(pieces))?;
        let (hash, tag) = hashes;
        if let Some(entry) = applying.before.take_tagged(hash, tag) {
            applying.membership.insert(hash, entry);
        }
        if let Some(entry) = applying.membership.tagged(hash, tag) {
            if entry.pieces != owned {
                entry.swarm.set_changed(applying.now);
                entry.swarm.subtract(&entry.pieces);
                entry.swarm.add(&owned);
                if entry.pieces.is_complete() != owned.is_complete() {
                    let mut roll = entry.swarm.roll();
                    roll.members(applying.authority).set_complete(applying.node, owned.is_complete());
                }
                entry.pieces = owned;
            }
            return Ok(());
        }
        self.join(applying, hashes, blob, owned)
    }

    /// Puts a node into a swarm.
    fn join(
        &self,
        applying: &mut Applying<'_>,
        (hash, tag): Hashes,
        blob: &BlobAnnounce,
        pieces: Ownership,
    ) -> Result<(), Refusal> {
        let authority = applying.authority;
        // Of a swarm that is over, which counts until another one has taken its place.
        let has_place =
            applying.membership.contains(hash, &blob.digest) || applying.before.contains(hash, &blob.digest);
        let has_room = has_place || applying.blobs() < self.limits.blobs_per_peer;
        let no_room = Refusal::NodeFull(self.limits.blobs_per_peer);
        loop {
            let Some(swarm) = self.find_or_make(hash, blob, has_room, applying.now)? else { return Err(no_room) };
            let mut roll = swarm.roll();
            if swarm.is_over() {
                continue;
            }
            if swarm.geometry != blob.geometry && (roll.vouched || !authority) {
                return Err(Refusal::Geometry { known: swarm.geometry, announced: blob.geometry });
            }
            if swarm.geometry == blob.geometry && roll.len() >= self.limits.peers_per_blob {
                roll.vouched |= authority;
                return Err(Refusal::SwarmFull(self.limits.peers_per_blob));
            }
            if !has_room {
                return Err(no_room);
            }
            if swarm.geometry != blob.geometry {
                // Whoever is here believes in another blob; they come back when they have learned better.
                swarm.set_over();
                self.forget_entries(roll.len());
                let members = [std::mem::take(&mut roll.seeders), std::mem::take(&mut roll.proxies)];
                drop(roll);
                members.iter().flat_map(Members::iter).for_each(|node| node.set_overruled());
                drop(members);
                self.forget(&swarm);
                continue;
            }
            roll.vouched |= authority;
            roll.grown = applying.now;
            let member = Member::new(Arc::clone(applying.node), &pieces, applying.now);
            roll.members(authority).insert(member, &applying.place);
            drop(roll);
            swarm.add(&pieces);
            swarm.set_changed(applying.now);
            self.entry_count.fetch_add(1, Ordering::Relaxed);
            // That of a swarm that is over.
            drop(applying.remove(hash, &blob.digest));
            applying.membership.insert(hash, Entry { swarm, tag, pieces, joined: applying.now });
            return Ok(());
        }
    }

    /// The swarm of a blob, made where there is none if `make`.
    fn find_or_make(
        &self,
        hash: u64,
        blob: &BlobAnnounce,
        make: bool,
        now: Timestamp,
    ) -> Result<Option<Arc<Swarm>>, Refusal> {
        let mut shard = self.swarm_shard(hash);
        let found = shard.entry(hash, |swarm| swarm.digest == blob.digest, |swarm| swarm.hash);
        if let hash_table::Entry::Occupied(found) = &found
            && !found.get().is_over()
        {
            return Ok(Some(Arc::clone(found.get())));
        }
        if !make {
            return Ok(None);
        }
        if !reserve(&self.swarm_count, self.limits.blobs) {
            return Err(Refusal::BlobsFull(self.limits.blobs));
        }
        let swarm = Arc::new(Swarm::new(blob.digest, hash, blob.geometry, now));
        match found {
            hash_table::Entry::Occupied(mut over) => *over.get_mut() = Arc::clone(&swarm),
            hash_table::Entry::Vacant(place) => drop(place.insert(Arc::clone(&swarm))),
        }
        Ok(Some(swarm))
    }

    /// Takes a swarm that is over out of the table, unless another one has taken its place there.
    fn forget(&self, swarm: &Arc<Swarm>) {
        self.swarm_count.fetch_sub(1, Ordering::Relaxed);
        if let Ok(found) = self.swarm_shard(swarm.hash).find_entry(swarm.hash, |other| Arc::ptr_eq(other, swarm)) {
            found.remove();
        }
    }

    /// So many pairs of a blob and a node are no more.
    fn forget_entries(&self, count: usize) {
        self.entry_count.fetch_sub(count, Ordering::Relaxed);
    }

    fn leave_one(&self, node: &Arc<Node>, entry: &Entry) {
        let swarm = &entry.swarm;
        let mut roll = swarm.roll();
        if swarm.is_over() {
            return;
        }
        if roll.seeders.remove(node) || roll.proxies.remove(node) {
            self.forget_entries(1);
            swarm.subtract(&entry.pieces);
        }
        if roll.len() == 0 {
            swarm.set_over();
            drop(roll);
            self.forget(swarm);
        }
    }

    fn leave_all(&self, node: &Arc<Node>, membership: Membership) {
        membership.into_entries().for_each(|entry| self.leave_one(node, &entry));
    }

    /// Takes a node out of the table of nodes, when `still` says so once nobody else works on it. What it has stays with it, for whoever
    /// takes it out of its swarms. Says whether it was there.
    fn remove_node(&self, node: &Arc<Node>, still: impl Fn(&Node) -> bool) -> bool {
        let membership = node.membership();
        if node.is_gone() || !still(node) {
            return false;
        }
        node.set_gone();
        self.node_shard(node.id()).remove(node.id());
        drop(membership);
        self.node_count.fetch_sub(1, Ordering::Relaxed);
        true
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        // Nodes and swarms hold each other.
        for shard in &self.nodes {
            lock(shard).values().for_each(|node| drop(std::mem::take(&mut *node.membership())));
        }
        lock(&self.sweep).release();
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

    fn set_load(&self, node: &NodeId, load: NodeLoad) {
        if let Some(node) = self.find_node(node) {
            node.set_load(load);
        }
    }

    async fn leave(&self, node: &NodeId) {
        if let Some(node) = self.find_node(node) {
            // At once, since whoever waits for it may give up in between.
            if self.remove_node(&node, |_| true) {
                let membership = std::mem::take(&mut *node.membership());
                self.leave_all(&node, membership);
            }
        }
    }

    async fn view(&self, digest: Digest, asker: &NodeId, seed: u64, now: Timestamp) -> Option<SwarmView> {
        let asker = self.find_node(asker);
        let place = asker.as_ref().map(|asker| asker.place()).unwrap_or_default();
        let swarm = self.find_swarm(&digest)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let roll = swarm.roll();
        let mut seen = roll.seeders.sample(MAX_SEEDERS_SEEN, &place, &mut rng);
        seen.extend(roll.proxies.sample(MAX_SEEN, &place, &mut rng));
        let since_growth = now - roll.grown;
        drop(roll);
        // As in `settled`: their memory is fetched for many at a time.
        let alive = seen.iter().filter(|member| member.node.is_alive(now, self.limits.ttl)).count();
        let (mut candidates, mut peers) = (Vec::with_capacity(alive), Vec::with_capacity(alive));
        for member in seen {
            if asker.as_ref().is_some_and(|asker| Arc::ptr_eq(asker, &member.node)) {
                continue;
            }
            let Some(glance) = member.node.glance(now, self.limits.ttl) else { continue };
            // Who has left meanwhile owns nothing.
            let Some(pieces) = member.pieces(&swarm) else { continue };
            let (role, age) = (glance.role, member.age(now));
            candidates.push(Candidate { role, place: glance.place, pieces, load: glance.load, age });
            peers.push(SeenPeer::node(member.node));
        }
        Some(SwarmView { geometry: swarm.geometry, candidates, peers, since_growth })
    }

    async fn swarms(&self, after: Option<Digest>, limit: usize, now: Timestamp) -> Vec<SwarmSummary> {
        self.list_swarms(after, limit, now).await
    }

    async fn swarm(
        &self,
        digest: Digest,
        after: Option<&str>,
        limit: usize,
        now: Timestamp,
    ) -> Option<(SwarmSummary, Vec<SwarmMember>)> {
        self.list_members(digest, after, limit, now)
    }

    async fn active(&self, limit: usize, now: Timestamp) -> Vec<SwarmSummary> {
        self.list_active(limit, now).await
    }

    async fn node(
        &self,
        node: &NodeId,
        after: Option<Digest>,
        limit: usize,
        now: Timestamp,
    ) -> Option<(PeerSummary, Vec<PeerBlob>)> {
        self.list_blobs(node, after, limit, now)
    }

    async fn nodes(&self, after: Option<&str>, limit: usize, now: Timestamp) -> Vec<PeerSummary> {
        self.list_nodes(after, limit, now)
    }

    async fn sweep(&self, now: Timestamp) -> bool {
        self.sweep_part(now)
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
