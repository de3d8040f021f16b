//! One blob that this node shares: its state machine, where its bytes are, and who is in.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use bytes::Bytes;
use eagle_core::{
    Bitfield, FarGroup, Geometry, Metainfo, NodeRole, PieceCheck, PieceHash, PieceIndex, Timestamp,
    swarm::{PeerKey, Swarm},
};
use eagle_store::{
    cache::{CachedBlob, PartialEntry},
    ssi::BlobReader,
};
use libp2p::PeerId;
use tokio::sync::watch;

use super::{metrics::PeerSource, swarm_handle::Counters};

/// Peers that were named for one blob and are not connected yet; more are forgotten, since a
/// tracker names them again.
const MAX_CANDIDATES: usize = 256;

/// Pieces that wait for their hash. A seeder gives a piece and its hash at the same time, over two
/// connections, so more than a few only wait when the hashes have stopped.
const MAX_HELD: usize = 8;

/// Where the bytes of a blob are.
pub(super) enum Source {
    /// Still growing, written through this entry.
    Partial(PartialEntry),
    /// Complete in the cache, and kept there while this lives.
    Cached(CachedBlob),
}

impl Source {
    pub(super) fn reader(&self) -> Arc<dyn BlobReader> {
        match self {
            Self::Partial(entry) => entry.reader(),
            Self::Cached(blob) => blob.reader(),
        }
    }
}

pub(super) struct Blob {
    pub(super) swarm: Swarm,
    pub(super) source: Source,
    metainfo: Metainfo,
    /// Pieces that are here before their hash.
    pub(super) held: Vec<(PeerId, PieceIndex, Bytes)>,
    /// Which call of `join` this is; 0 for a blob that is only served.
    pub(super) generation: u64,
    /// Peers to take in once they are connected, and how they became known.
    pub(super) candidates: HashMap<PeerId, PeerSource>,
    pub(super) counters: Arc<Counters>,
    /// Last time a peer asked for something.
    pub(super) used: Instant,
    pieces: watch::Sender<Arc<Bitfield>>,
    published: u32,
}

impl Blob {
    pub(super) fn new(swarm: Swarm, source: Source, metainfo: Metainfo, generation: u64) -> Self {
        let (pieces, _) = watch::channel(Arc::new(swarm.have().clone()));
        let published = swarm.have().count();
        Self {
            swarm,
            source,
            metainfo,
            held: Vec::new(),
            generation,
            candidates: HashMap::new(),
            counters: Arc::default(),
            used: Instant::now(),
            pieces,
            published,
        }
    }

    pub(super) fn pieces(&self) -> watch::Receiver<Arc<Bitfield>> {
        self.pieces.subscribe()
    }

    /// Tells the handles of new pieces.
    pub(super) fn publish(&mut self) {
        let count = self.swarm.have().count();
        if count != self.published {
            self.published = count;
            self.pieces.send_replace(Arc::new(self.swarm.have().clone()));
        }
    }

    /// A peer that was named to this node is connected; says whether it takes part from now on.
    pub(super) fn name(&mut self, peer: PeerKey, role: NodeRole, group: Option<FarGroup>) -> bool {
        let known = self.swarm.has_peer(peer);
        match role {
            NodeRole::Seeder => self.swarm.handle_seeder(peer, group),
            NodeRole::Proxy => self.swarm.handle_peer(peer, group),
        }
        !known && self.swarm.has_peer(peer)
    }

    /// Whether it is worth connecting to.
    pub(super) fn add_candidate(&mut self, peer: PeerId, source: PeerSource) -> bool {
        if self.candidates.len() >= MAX_CANDIDATES {
            return false;
        }
        self.candidates.entry(peer).or_insert(source);
        true
    }

    /// Takes hashes that continue those already known.
    pub(super) fn add_hashes(&mut self, now: Timestamp, first: u32, hashes: &[PieceHash]) {
        let Some(skip) = self.metainfo.hashes.len().checked_sub(first as usize) else { return };
        for hash in hashes.iter().skip(skip) {
            if self.metainfo.push(*hash).is_err() {
                break;
            }
        }
        let known = u32::try_from(self.metainfo.hashes.len()).unwrap_or(u32::MAX);
        self.swarm.handle_hashes(now, known);
    }

    /// Keeps a piece until its hash is known; false when too many wait already.
    pub(super) fn hold(&mut self, peer: PeerId, piece: PieceIndex, bytes: Bytes) -> bool {
        let room = self.held.len() < MAX_HELD;
        if room {
            self.held.push((peer, piece, bytes));
        }
        room
    }

    /// The pieces whose hash has come meanwhile.
    pub(super) fn take_verifiable(&mut self) -> Vec<(PeerId, PieceIndex, Bytes)> {
        let known = self.metainfo.hashes.len();
        self.held.extract_if(.., |(_, piece, _)| (piece.0 as usize) < known).collect()
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.swarm.geometry()
    }

    /// How to check a piece, once its hash is known.
    pub(super) fn check(&self, piece: PieceIndex) -> Option<PieceCheck> {
        self.metainfo.check(piece)
    }

    pub(super) fn count(&self, piece: PieceIndex, counter: impl Fn(&Counters) -> &std::sync::atomic::AtomicU64) {
        let bytes = u64::from(self.geometry().length(piece));
        counter(&self.counters).fetch_add(bytes, Ordering::Relaxed);
    }
}
