//! A node as the memory store keeps it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use eagle_core::{Digest, NodeId, PeerInfo, Timestamp, tracker::Ownership};
use hashbrown::HashTable;

use super::swarm::Swarm;
use crate::api::{NodeActivity, PeerAt, PeerSummary};

/// A node that has announced itself.
#[derive(Debug)]
pub(super) struct Node {
    id: NodeId,
    info: RwLock<Arc<PeerInfo>>,
    pub(super) joined: Timestamp,
    last_announce: AtomicU64,
    /// It is out of the table of nodes, and leaves its swarms.
    gone: AtomicBool,
    /// Held while an announce of the node is applied, or the node is taken out.
    membership: Mutex<Membership>,
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
    pub(super) pieces: Ownership,
    /// When it joined the swarm.
    pub(super) joined: Timestamp,
}

impl Node {
    pub(super) fn new(info: &PeerInfo, now: Timestamp) -> Self {
        Self {
            id: info.id.clone(),
            info: RwLock::new(Arc::new(info.clone())),
            joined: now,
            last_announce: AtomicU64::new(now.0),
            gone: AtomicBool::new(false),
            membership: Mutex::default(),
        }
    }

    pub(super) fn id(&self) -> &NodeId {
        &self.id
    }

    pub(super) fn info(&self) -> Arc<PeerInfo> {
        Arc::clone(&self.info.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records an announce and what the node now says of itself.
    pub(super) fn announced(&self, info: &PeerInfo, now: Timestamp) {
        self.last_announce.fetch_max(now.0, Ordering::Relaxed);
        if **self.info.read().unwrap_or_else(PoisonError::into_inner) != *info {
            *self.info.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(info.clone());
        }
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

    pub(super) fn summary(&self, now: Timestamp) -> PeerSummary {
        PeerSummary {
            peer: PeerAt::from(&*self.info()),
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

    /// What the node has of a blob with this hash under the store's key.
    pub(super) fn get_mut(&mut self, hash: u64, digest: &Digest) -> Option<&mut Entry> {
        self.blobs.find_mut(hash, |entry| entry.swarm.digest == *digest)
    }

    /// What the node has in a swarm.
    pub(super) fn of(&self, swarm: &Arc<Swarm>) -> Option<&Entry> {
        self.blobs.find(swarm.hash, |entry| Arc::ptr_eq(&entry.swarm, swarm))
    }

    pub(super) fn contains(&self, hash: u64, digest: &Digest) -> bool {
        self.blobs.find(hash, |entry| entry.swarm.digest == *digest).is_some()
    }

    /// Adds what the node has of a blob that it has nothing of so far.
    pub(super) fn insert(&mut self, entry: Entry) {
        self.blobs.insert_unique(entry.swarm.hash, entry, |entry| entry.swarm.hash);
    }

    pub(super) fn remove(&mut self, hash: u64, digest: &Digest) -> Option<Entry> {
        let found = self.blobs.find_entry(hash, |entry| entry.swarm.digest == *digest).ok()?;
        Some(found.remove().0)
    }

    /// Everything, one by one.
    pub(super) fn into_entries(self) -> impl Iterator<Item = Entry> {
        self.blobs.into_iter()
    }
}
