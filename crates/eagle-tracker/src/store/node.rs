//! A node as the memory store keeps it.

use std::{
    collections::HashSet,
    hash::{Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use eagle_core::{Digest, NodeId, PeerInfo, Timestamp};

use crate::api::{NodeActivity, PeerAt, PeerSummary};

/// A node that has announced itself.
#[derive(Debug)]
pub(super) struct Node {
    id: NodeId,
    /// Hash of `id` under the store's key: swarms look nodes up by it, without hashing 52 characters.
    hash: u64,
    info: RwLock<Arc<PeerInfo>>,
    pub(super) joined: Timestamp,
    last_announce: AtomicU64,
    /// Held while an announce of the node is applied, or the node is taken out.
    membership: Mutex<Membership>,
}

/// The swarms of a node.
#[derive(Debug, Default)]
pub(super) struct Membership {
    /// Shared with the keys of the swarm table: 8 bytes for each swarm of a node.
    pub(super) blobs: HashSet<Arc<Digest>>,
    /// The node is out of the table; an announce that still holds it must start anew.
    pub(super) gone: bool,
}

impl Node {
    pub(super) fn new(info: &PeerInfo, hash: u64, now: Timestamp) -> Self {
        Self {
            id: info.id.clone(),
            hash,
            info: RwLock::new(Arc::new(info.clone())),
            joined: now,
            last_announce: AtomicU64::new(now.0),
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
        now - self.last_announce() < ttl
    }

    pub(super) fn summary(&self, now: Timestamp) -> PeerSummary {
        PeerSummary {
            peer: PeerAt::from(&*self.info()),
            blobs: self.membership().blobs.len(),
            age_seconds: (now - self.joined).as_secs_f64(),
            last_announce_seconds: (now - self.last_announce()).as_secs_f64(),
            activity: NodeActivity::default(),
        }
    }

    pub(super) fn membership(&self) -> MutexGuard<'_, Membership> {
        self.membership.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A node as key of a swarm's members.
#[derive(Debug, Clone)]
pub(super) struct NodeKey(pub(super) Arc<Node>);

impl Hash for NodeKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl PartialEq for NodeKey {
    fn eq(&self, other: &Self) -> bool {
        // A node leaves every swarm before it can be made again, so the same node is the same allocation.
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for NodeKey {}
