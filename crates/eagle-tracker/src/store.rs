//! Where a tracker keeps who owns what.
//!
//! [`PeerStore`] is the interface; [`MemoryStore`] is the backend that every tracker has, [`SharedStore`] the one that several
//! trackers share in Redis. Time is an argument of every call, so that tests run on virtual time.
//!
//! # What every store keeps to
//! - A node is alive until it stops or says nothing for the time to live; an announce keeps all of its
//!   blobs alive. A node that is not alive is in no answer, whether or not [`PeerStore::sweep`] has run.
//! - A node that comes back in another role is another program: it has to say anew what it owns.
//! - All members of a swarm agree on the geometry. The first one sets it; a seeder, which has it from
//!   the origin's own size, overrules a proxy that was first, and who disagrees with a seeder is refused.
//! - Counts of nodes, blobs, peers per blob and blobs per node are bounded; what does not fit is refused
//!   and does not push out what is there.

mod location;
mod memory;
mod redis;
mod seeders;
mod shared;
mod shared_reports;
mod shared_seeders;

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use eagle_core::{Digest, Geometry, NodeId, NodeRole, PeerInfo, Timestamp, tracker::NodeLoad};

pub use eagle_core::tracker::Candidate;

pub use self::{
    location::{RedisUrl, StoreLocation, StoreLocationError},
    memory::MemoryStore,
    redis::VIEW_AGE,
    seeders::{MemorySeeders, SeederStats, SeederStore},
    shared::SharedStore,
    shared_seeders::SharedSeeders,
};
pub(crate) use self::{
    redis::read_member,
    shared_reports::{EXCHANGE_EVERY, SharedReports, Told},
};
use crate::{
    api::{BlobAnnounce, PeerBlob, PeerSummary, SwarmMember, SwarmSummary},
    config::TrackerConfig,
    encoding::NodeRecord,
};

/// Bounds of a store and the lifetime of what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreLimits {
    /// How long a node that says nothing stays alive.
    pub ttl: Duration,
    /// Most nodes.
    pub peers: usize,
    /// Most blobs.
    pub blobs: usize,
    /// Most peers of one blob.
    pub peers_per_blob: usize,
    /// Most blobs of one node.
    pub blobs_per_peer: usize,
}

impl From<&TrackerConfig> for StoreLimits {
    fn from(config: &TrackerConfig) -> Self {
        Self {
            ttl: config.peer_ttl,
            peers: config.max_peers,
            blobs: config.max_blobs,
            peers_per_blob: config.max_peers_per_blob,
            blobs_per_peer: config.max_blobs_per_peer,
        }
    }
}

/// Why a store could not take an announce at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// As many nodes as are allowed are alive.
    #[error("the tracker knows {0} nodes, its limit; raise tracker.max_peers")]
    Full(usize),
}

/// Why a store did not take the announce of one blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The swarm has agreed on another geometry.
    #[error(
        "the swarm has {} bytes in pieces of {}, this announce has {} in pieces of {}",
        known.size(), known.piece_length(), announced.size(), announced.piece_length()
    )]
    Geometry {
        /// What the swarm has agreed on.
        known: Geometry,
        /// What was announced.
        announced: Geometry,
    },
    /// The pieces cannot be those of a blob of this geometry.
    #[error("the pieces do not fit a blob of {0} pieces")]
    Pieces(u32),
    /// The swarm has as many peers as are allowed.
    #[error("the swarm has {0} peers, the limit; raise tracker.max_peers_per_blob")]
    SwarmFull(usize),
    /// The tracker knows as many blobs as are allowed.
    #[error("the tracker knows {0} blobs, its limit; raise tracker.max_blobs")]
    BlobsFull(usize),
    /// The node has announced as many blobs as are allowed.
    #[error("the node has announced {0} blobs, the limit; raise tracker.max_blobs_per_peer")]
    NodeFull(usize),
}

/// What became of an announce.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Whether the node was alive before, in the same role.
    pub known: bool,
    /// The blobs that were not taken.
    pub refused: Vec<(Digest, Refusal)>,
}

/// What a store knows of a swarm for choosing peers.
#[derive(Debug, Clone)]
pub struct SwarmView {
    /// How the blob is cut into pieces.
    pub geometry: Geometry,
    /// Live peers without the asker; of a large swarm a random part, with seeders always in it.
    pub candidates: Vec<Candidate>,
    /// Who they are, in the same order.
    pub peers: Vec<SeenPeer>,
    /// Time since a peer last joined.
    pub since_growth: Duration,
}

/// Who a candidate is. It is looked into when it is named, which most are not.
#[derive(Debug, Clone)]
pub struct SeenPeer(Seen);

#[derive(Debug, Clone)]
enum Seen {
    Node(Arc<memory::Node>),
    Record(Arc<NodeRecord>),
}

impl SeenPeer {
    pub(in crate::store) const fn node(node: Arc<memory::Node>) -> Self {
        Self(Seen::Node(node))
    }

    pub(crate) const fn record(record: Arc<NodeRecord>) -> Self {
        Self(Seen::Record(record))
    }

    /// What is known of it now.
    pub fn named(&self) -> Arc<NodeRecord> {
        match &self.0 {
            Seen::Node(node) => node.record(),
            Seen::Record(record) => Arc::clone(record),
        }
    }
}

/// Sizes of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Nodes, with those that have expired and are not swept yet.
    pub peers: usize,
    /// Blobs that have a peer.
    pub blobs: usize,
    /// Pairs of a blob and a peer.
    pub entries: usize,
}

/// How a store is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreHealth {
    /// What it is: `memory` or `redis`.
    pub kind: &'static str,
    /// Whether what it is kept in is away, and this process's memory stands in.
    pub away: bool,
    /// Calls that failed since the start.
    pub failures: u64,
}

/// A store of swarms and nodes.
///
/// Calls for the same node are applied one after the other. One announce is one call, so that a
/// remote store can send all of it at once.
#[async_trait]
pub trait PeerStore: Debug + Send + Sync + 'static {
    /// Applies an announce: the node lives, the blobs have the state given, those with the event
    /// `evicted` leave; with `full`, all other blobs of the node leave too.
    ///
    /// # Errors
    /// When nothing of it could be taken.
    async fn announce(
        &self,
        node: &PeerInfo,
        full: bool,
        blobs: &[BlobAnnounce],
        now: Timestamp,
    ) -> Result<Applied, StoreError>;

    /// Records how busy a node says it is. A store that several trackers share leaves that to their reports, and names no load.
    fn set_load(&self, _node: &NodeId, _load: NodeLoad) {}

    /// Takes a node out of every swarm.
    async fn leave(&self, node: &NodeId);

    /// Peers that could be named to `asker`; `None` when the blob has no peer at all. `seed` decides
    /// which part of a large swarm is seen.
    async fn view(&self, digest: Digest, asker: &NodeId, seed: u64, now: Timestamp) -> Option<SwarmView>;

    /// At most `limit` swarms that come after a digest, in order.
    async fn swarms(&self, after: Option<Digest>, limit: usize, now: Timestamp) -> Vec<SwarmSummary>;

    /// A swarm with at most `limit` members that come after an identity, in order; `None` when it has no
    /// live member.
    async fn swarm(
        &self,
        digest: Digest,
        after: Option<&str>,
        limit: usize,
        now: Timestamp,
    ) -> Option<(SwarmSummary, Vec<SwarmMember>)>;

    /// At most `limit` swarms that changed last, the latest first: a peer joined, or owns more.
    async fn active(&self, limit: usize, now: Timestamp) -> Vec<SwarmSummary>;

    /// A node with at most `limit` of its blobs that come after a digest, in order; `None` when it is not alive.
    async fn node(
        &self,
        node: &NodeId,
        after: Option<Digest>,
        limit: usize,
        now: Timestamp,
    ) -> Option<(PeerSummary, Vec<PeerBlob>)>;

    /// At most `limit` nodes that come after an identity, in order.
    async fn nodes(&self, after: Option<&str>, limit: usize, now: Timestamp) -> Vec<PeerSummary>;

    /// Frees what expired nodes take: one part of the store per call, or what is left of it, so that no call takes long. Says
    /// whether something is left, for which it is to be called again soon.
    async fn sweep(&self, now: Timestamp) -> bool;

    /// Calls of [`PeerStore::sweep`] that go once through the store.
    fn sweep_parts(&self) -> usize;

    /// Sizes, for metrics.
    fn stats(&self) -> StoreStats;

    /// How the store is doing.
    fn health(&self) -> StoreHealth {
        StoreHealth { kind: "memory", away: false, failures: 0 }
    }
}

/// Whether a role's word on the geometry counts more.
const fn is_authority(role: NodeRole) -> bool {
    matches!(role, NodeRole::Seeder)
}

/// Share of the pieces that the peers of a swarm own on average.
#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn progress(owned: u64, peers: usize, pieces: u32) -> f64 {
    let all = peers as f64 * f64::from(pieces);
    // A blob of no pieces is complete wherever it is.
    if all == 0.0 { 1.0 } else { owned as f64 / all }
}
