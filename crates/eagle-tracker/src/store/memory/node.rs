//! A node as the memory store keeps it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use eagle_core::{
    Digest, NodeId, NodeRole, PeerInfo, PieceSet, Place, Timestamp,
    tracker::{NodeLoad, Ownership},
};
use hashbrown::HashTable;

use super::swarm::Swarm;
use crate::{
    api::{NodeActivity, PeerAt, PeerSummary},
    encoding::NodeRecord,
};

/// A node that has announced itself.
///
/// What choosing peers looks at comes first, together: of a hundred nodes that are looked at for one answer few are in the processor's
/// cache.
#[derive(Debug)]
#[repr(C)]
pub(in crate::store) struct Node {
    last_announce: AtomicU64,
    known: RwLock<Known>,
    /// How busy it says it is, in the form of [`packed`].
    load: AtomicU64,
    /// It is out of the table of nodes, and leaves its swarms.
    gone: AtomicBool,
    /// The sweep takes it out of its swarms, a swarm at a time, and nobody else does.
    swept: AtomicBool,
    /// A swarm that it is in had a wrong geometry and is over.
    overruled: AtomicBool,
    id: NodeId,
    pub(super) joined: Timestamp,
    /// Held while an announce of the node is applied, or the node is taken out.
    membership: Mutex<Membership>,
}

/// What a node said of itself last.
#[derive(Debug)]
struct Known {
    role: NodeRole,
    place: Place,
    record: Arc<NodeRecord>,
}

/// What counts of a node when peers are chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Glance {
    pub(super) role: NodeRole,
    pub(super) place: Place,
    pub(super) load: Option<NodeLoad>,
}

/// A load as one number, so that none is seen half: requests, free slots, and whether there is one.
const fn packed(load: Option<NodeLoad>) -> u64 {
    match load {
        Some(NodeLoad { requests, free_slots }) => 1 << 32 | (requests as u64) << 16 | free_slots as u64,
        None => 0,
    }
}

fn unpacked(number: u64) -> Option<NodeLoad> {
    let [_, _, _, known, r0, r1, f0, f1] = number.to_be_bytes();
    (known == 1).then(|| NodeLoad { requests: u16::from_be_bytes([r0, r1]), free_slots: u16::from_be_bytes([f0, f1]) })
}

/// The swarms of a node.
///
/// What it owns is kept here and not with the swarms: an announce of many blobs then looks at memory of one node that lies close together.
#[derive(Debug, Default)]
pub(super) struct Membership {
    blobs: HashTable<Entry>,
}

/// What a node has of a blob.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) swarm: Arc<Swarm>,
    /// Hash of digest and geometry under the store's key: so that an announce of what is known does not have to look at the swarm, which
    /// would be the slowest part of it.
    pub(super) tag: u64,
    pub(super) pieces: Ownership,
    /// When it joined the swarm.
    pub(super) joined: Timestamp,
}

impl Node {
    pub(super) fn new(info: &PeerInfo, now: Timestamp) -> Self {
        Self {
            last_announce: AtomicU64::new(now.0),
            known: RwLock::new(Known {
                role: info.role,
                place: Place::from(&info.topology),
                record: Arc::new(NodeRecord::new(info.clone())),
            }),
            load: AtomicU64::new(packed(None)),
            gone: AtomicBool::new(false),
            swept: AtomicBool::new(false),
            overruled: AtomicBool::new(false),
            id: info.id.clone(),
            joined: now,
            membership: Mutex::default(),
        }
    }

    pub(super) fn id(&self) -> &NodeId {
        &self.id
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::store) fn record(&self) -> Arc<NodeRecord> {
        Arc::clone(&self.known().record)
    }

    pub(super) fn place(&self) -> Place {
        self.known().place
    }

    /// Records an announce and what the node now says of itself. Gives what it was and where before.
    pub(super) fn announced(&self, info: &PeerInfo, place: Place, now: Timestamp) -> (NodeRole, Place) {
        self.last_announce.fetch_max(now.0, Ordering::Relaxed);
        let known = self.known();
        let last = (known.role, known.place);
        // Its name is the same, and so are its labels where the place is.
        let same = last == (info.role, place) && known.record.info().address == info.address;
        drop(known);
        if !same {
            let record = Arc::new(NodeRecord::new(info.clone()));
            *self.known.write().unwrap_or_else(PoisonError::into_inner) = Known { role: info.role, place, record };
        }
        last
    }

    /// What counts of it now; nothing when it is not alive.
    pub(super) fn glance(&self, now: Timestamp, ttl: Duration) -> Option<Glance> {
        if !self.is_alive(now, ttl) {
            return None;
        }
        let known = self.known();
        let load = unpacked(self.load.load(Ordering::Relaxed));
        Some(Glance { role: known.role, place: known.place, load })
    }

    pub(super) fn last_announce(&self) -> Timestamp {
        Timestamp(self.last_announce.load(Ordering::Relaxed))
    }

    pub(super) fn is_alive(&self, now: Timestamp, ttl: Duration) -> bool {
        now - self.last_announce() < ttl && !self.is_gone()
    }

    /// Whether it is out of the table; who still holds it has to look anew.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Called with the membership held.
    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    pub(super) fn set_load(&self, load: NodeLoad) {
        self.load.store(packed(Some(load)), Ordering::Relaxed);
    }

    pub(super) fn is_swept(&self) -> bool {
        self.swept.load(Ordering::Acquire)
    }

    /// Called by the sweep, when it is gone.
    pub(super) fn set_swept(&self) {
        self.swept.store(true, Ordering::Release);
    }

    /// Says that a swarm is over that it is in.
    pub(super) fn set_overruled(&self) {
        self.overruled.store(true, Ordering::Release);
    }

    /// Forgets what it has of swarms that are over, if there are any.
    pub(super) fn drop_overruled(&self, membership: &mut Membership) {
        if self.overruled.load(Ordering::Relaxed) && self.overruled.swap(false, Ordering::AcqRel) {
            membership.blobs.retain(|entry| !entry.swarm.is_over());
        }
    }

    pub(super) fn summary(&self, now: Timestamp) -> PeerSummary {
        PeerSummary {
            peer: PeerAt::from(self.record().info()),
            blobs: self.membership().len(),
            age_seconds: (now - self.joined).as_secs_f64(),
            last_announce_seconds: (now - self.last_announce()).as_secs_f64(),
            activity: NodeActivity::default(),
        }
    }

    pub(super) fn membership(&self) -> MutexGuard<'_, Membership> {
        self.membership.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Membership {
    pub(super) fn len(&self) -> usize {
        self.blobs.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.blobs.iter()
    }

    /// What the node has of a blob in the swarm of a geometry, by the hashes of both under the store's key. That there is another with the
    /// same 64 bits of a key that nobody knows is left to chance.
    pub(super) fn tagged(&mut self, hash: u64, tag: u64) -> Option<&mut Entry> {
        self.blobs.find_mut(hash, |entry| entry.tag == tag)
    }

    /// Whether the node has what it announces, as far as that is told without reading a bitmap.
    pub(super) fn is_known(&self, hash: u64, tag: u64, announced: &PieceSet) -> bool {
        self.blobs.find(hash, |entry| entry.tag == tag).is_some_and(|entry| match (&entry.pieces, announced) {
            (Ownership::Complete, PieceSet::Complete) => true,
            (Ownership::Prefix(known), PieceSet::Prefix(announced)) => known == announced,
            _ => false,
        })
    }

    /// The same, taken out.
    pub(super) fn take_tagged(&mut self, hash: u64, tag: u64) -> Option<Entry> {
        Some(self.blobs.find_entry(hash, |entry| entry.tag == tag).ok()?.remove().0)
    }

    /// Makes room for so many more.
    pub(super) fn reserve(&mut self, more: usize) {
        self.blobs.reserve(more, |entry| entry.swarm.hash);
    }

    /// What the node has in a swarm.
    pub(super) fn of(&self, swarm: &Arc<Swarm>) -> Option<&Entry> {
        self.blobs.find(swarm.hash, |entry| Arc::ptr_eq(&entry.swarm, swarm))
    }

    pub(super) fn contains(&self, hash: u64, digest: &Digest) -> bool {
        self.blobs.find(hash, |entry| entry.swarm.digest == *digest).is_some()
    }

    /// Adds what the node has of a blob with this hash that it has nothing of so far.
    pub(super) fn insert(&mut self, hash: u64, entry: Entry) {
        self.blobs.insert_unique(hash, entry, |entry| entry.swarm.hash);
    }

    pub(super) fn remove(&mut self, hash: u64, digest: &Digest) -> Option<Entry> {
        let found = self.blobs.find_entry(hash, |entry| entry.swarm.digest == *digest).ok()?;
        Some(found.remove().0)
    }

    /// Takes out so many, or what there is.
    pub(super) fn take_some(&mut self, most: usize) -> Vec<Entry> {
        self.blobs.extract_if(|_| true).take(most).collect()
    }

    /// Everything, one by one.
    pub(super) fn into_entries(self) -> impl Iterator<Item = Entry> {
        self.blobs.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_the_same_as_a_number() {
        let loads = [(0, 0), (1, 0), (0, 1), (u16::MAX, u16::MAX), (258, 772)];
        for load in
            loads.map(|(requests, free_slots)| Some(NodeLoad { requests, free_slots })).into_iter().chain([None])
        {
            assert_eq!(unpacked(packed(load)), load);
        }
    }
}
