//! What the engine is told by the rest of the node.

use std::sync::{Mutex, PoisonError};

use eagle_core::{
    Bitfield, Digest, Metainfo, PeerInfo, PieceHash, PieceIndex,
    wire::{control::HostRate, data::RejectReason},
};
use eagle_store::{
    cache::{CachedBlob, PartialEntry},
    ssi::BlobReader,
};
use libp2p::PeerId;
use std::sync::Arc;
use tokio::sync::{Notify, oneshot, watch};

use super::{metrics::PeerSource, swarm_handle::Counters};

/// A command for the engine.
pub(super) enum Command {
    Join {
        entry: PartialEntry,
        metainfo: Metainfo,
        download: bool,
        reply: oneshot::Sender<Joined>,
    },
    ToSwarm {
        digest: Digest,
        generation: u64,
        command: SwarmCommand,
    },
    /// What the cache has of a blob that a peer greeted us about.
    Found {
        digest: Digest,
        blob: Option<CachedBlob>,
    },
    Upload {
        peer: PeerId,
        digest: Digest,
        piece: Option<PieceIndex>,
        reply: oneshot::Sender<Granted>,
    },
}

/// A command for one swarm.
pub(super) enum SwarmCommand {
    /// Peers, and who named them.
    AddPeers(Vec<PeerInfo>, PeerSource),
    AddHashes {
        first: u32,
        hashes: Vec<PieceHash>,
    },
    AddPiece(PieceIndex),
    Claim {
        piece: PieceIndex,
        reply: oneshot::Sender<bool>,
    },
    Release(PieceIndex),
    Position(PieceIndex),
    Leave,
}

/// What a swarm's handle needs.
pub(super) struct Joined {
    pub(super) generation: u64,
    pub(super) pieces: watch::Receiver<Arc<Bitfield>>,
    pub(super) counters: Arc<Counters>,
}

/// The engine's answer to a request for a piece.
pub(super) type Granted = Result<Grant, RejectReason>;

/// A piece that may be sent.
pub(super) struct Grant {
    pub(super) piece: PieceIndex,
    pub(super) reader: Arc<dyn BlobReader>,
    pub(super) offset: u64,
    pub(super) length: u32,
    /// What the receiver can take.
    pub(super) receiver: HostRate,
}

/// News that come from places that cannot wait (`Drop`, callbacks). Bounded by what they are about:
/// one per swarm handle and one per upload that is under way.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    news: Mutex<Vec<News>>,
    notify: Notify,
}

#[derive(Debug)]
pub(super) enum News {
    Left { digest: Digest, generation: u64 },
    Uploaded { peer: PeerId, digest: Digest, piece: PieceIndex, bytes: u64, sent: bool },
}

impl Mailbox {
    pub(super) fn put(&self, news: News) {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).push(news);
        self.notify.notify_one();
    }

    /// Waits until there may be news. Cancellation-safe.
    pub(super) async fn wait(&self) {
        self.notify.notified().await;
    }

    pub(super) fn take(&self) -> Vec<News> {
        std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
