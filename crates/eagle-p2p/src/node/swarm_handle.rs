//! What a caller holds of a swarm that it joined.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use eagle_core::{Bitfield, Digest, Geometry, NodeRole, PeerInfo, PieceHash, PieceIndex};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    commands::{Command, Joined, Mailbox, News, SwarmCommand},
    metrics::PeerSource,
};

/// Totals of one swarm, bytes unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SwarmCounters {
    /// Verified bytes that came from other proxies.
    pub bytes_from_peers: u64,
    /// Verified bytes that came from seeders.
    pub bytes_from_seeders: u64,
    /// Bytes sent to peers.
    pub uploaded: u64,
    /// Bytes that came although they were owned already.
    pub duplicate: u64,
    /// Bytes that did not match their hash.
    pub corrupt: u64,
    /// Pieces that are being checked and stored now.
    pub storing: u64,
    /// Requests that seeders have not answered.
    pub asked_of_seeders: u64,
    /// Requests that other nodes have not answered.
    pub asked_of_peers: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) peers: AtomicU64,
    pub(super) seeders: AtomicU64,
    pub(super) uploaded: AtomicU64,
    pub(super) duplicate: AtomicU64,
    pub(super) corrupt: AtomicU64,
    pub(super) storing: AtomicU64,
    /// Of seeders, and of other nodes.
    pub(super) asked: [AtomicU64; 2],
}

impl Counters {
    /// One more piece is being stored, until what is returned is dropped.
    pub(super) fn store(self: &Arc<Self>) -> Storing {
        self.storing.fetch_add(1, Ordering::Relaxed);
        Storing(Arc::clone(self))
    }

    pub(super) fn asked(&self, role: NodeRole) -> &AtomicU64 {
        let [seeders, peers] = &self.asked;
        if role == NodeRole::Seeder { seeders } else { peers }
    }
}

/// Counts a piece that is being stored.
#[derive(Debug)]
pub(super) struct Storing(Arc<Counters>);

impl Drop for Storing {
    fn drop(&mut self) {
        self.0.storing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A swarm that this node takes part in; clones are the same swarm.
///
/// When the last clone is dropped the node leaves. If the blob is in the cache by then, peers are
/// served from there.
#[derive(Debug, Clone)]
pub struct SwarmHandle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    digest: Digest,
    geometry: Geometry,
    generation: u64,
    pieces: watch::Receiver<Arc<Bitfield>>,
    counters: Arc<Counters>,
    commands: mpsc::Sender<Command>,
    mailbox: Arc<Mailbox>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.mailbox.put(News::Left { digest: self.digest, generation: self.generation });
    }
}

impl SwarmHandle {
    pub(super) fn new(
        digest: Digest,
        geometry: Geometry,
        joined: Joined,
        commands: mpsc::Sender<Command>,
        mailbox: Arc<Mailbox>,
    ) -> Self {
        let Joined { generation, pieces, counters } = joined;
        Self(Arc::new(Inner { digest, geometry, generation, pieces, counters, commands, mailbox }))
    }

    /// A handle to no swarm.
    pub(super) fn detached(
        digest: Digest,
        geometry: Geometry,
        commands: mpsc::Sender<Command>,
        mailbox: Arc<Mailbox>,
    ) -> Self {
        let (_, pieces) = watch::channel(Arc::new(Bitfield::new(geometry.pieces())));
        let joined = Joined { generation: 0, pieces, counters: Arc::default() };
        Self::new(digest, geometry, joined, commands, mailbox)
    }

    /// The blob.
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// Its size and piece length.
    pub fn geometry(&self) -> Geometry {
        self.0.geometry
    }

    /// Tells of peers that have, or want, this blob; unconnected ones are dialled.
    pub async fn add_peers(&self, peers: Vec<PeerInfo>) {
        self.send(SwarmCommand::AddPeers(peers, PeerSource::Metainfo)).await;
    }

    /// As [`SwarmHandle::add_peers`], of peers that a tracker has named: while it does, peers are not asked for others.
    pub async fn add_peers_of_tracker(&self, peers: Vec<PeerInfo>) {
        self.send(SwarmCommand::AddPeers(peers, PeerSource::Tracker)).await;
    }

    /// Tells the hashes of the pieces from `first` on, as a seeder gave them. Those known already
    /// are left as they are, and a gap is not taken.
    pub async fn add_hashes(&self, first: u32, hashes: Vec<PieceHash>) {
        self.send(SwarmCommand::AddHashes { first, hashes }).await;
    }

    /// Tells that the caller wrote and verified a piece through the entry.
    pub async fn add_piece(&self, piece: PieceIndex) {
        self.send(SwarmCommand::AddPiece(piece)).await;
    }

    /// Keeps a piece from being fetched from peers, since the caller fetches it; false when it is
    /// owned or on its way. Give it back by [`SwarmHandle::add_piece`] or [`SwarmHandle::release`].
    pub async fn claim(&self, piece: PieceIndex) -> bool {
        let (reply, answer) = oneshot::channel();
        self.send(SwarmCommand::Claim { piece, reply }).await;
        answer.await.unwrap_or(false)
    }

    /// Gives up a piece that was claimed.
    pub async fn release(&self, piece: PieceIndex) {
        self.send(SwarmCommand::Release(piece)).await;
    }

    /// Tells the first piece that a reader still waits for; pieces from there on come first.
    pub async fn set_position(&self, piece: PieceIndex) {
        self.send(SwarmCommand::Position(piece)).await;
    }

    /// The pieces that are owned and verified, as they come in. The sender is gone once the node
    /// has left the swarm or stopped.
    pub fn pieces(&self) -> watch::Receiver<Arc<Bitfield>> {
        self.0.pieces.clone()
    }

    /// Totals so far.
    pub fn counters(&self) -> SwarmCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.0.counters;
        SwarmCounters {
            bytes_from_peers: read(&counters.peers),
            bytes_from_seeders: read(&counters.seeders),
            uploaded: read(&counters.uploaded),
            duplicate: read(&counters.duplicate),
            corrupt: read(&counters.corrupt),
            storing: read(&counters.storing),
            asked_of_seeders: read(counters.asked(NodeRole::Seeder)),
            asked_of_peers: read(counters.asked(NodeRole::Proxy)),
        }
    }

    /// Leaves the swarm now rather than when the last clone is dropped.
    pub async fn leave(&self) {
        self.send(SwarmCommand::Leave).await;
    }

    async fn send(&self, command: SwarmCommand) {
        let (digest, generation) = (self.0.digest, self.0.generation);
        // Fails only when the node is stopping, and then nobody waits for the effect.
        let _ = self.0.commands.send(Command::ToSwarm { digest, generation, command }).await;
    }
}
