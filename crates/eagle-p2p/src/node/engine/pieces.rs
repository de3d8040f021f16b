//! Pieces: those that come in are verified and stored, those that are asked for are granted.

use std::time::{Duration, Instant};

use bytes::Bytes;
use eagle_core::{
    Digest, NodeRole, PieceCheck, PieceIndex,
    swarm::{PeerKey, Verdict},
    wire::data::RejectReason,
};
use eagle_store::cache::PartialEntry;
use libp2p::PeerId;
use tracing::{debug, warn};

use super::{Asked, BAN, Engine, Verified};
use crate::{
    channel::ChannelEvent,
    node::{
        blob::Source,
        commands::{Grant, Granted, News},
    },
};

impl Engine {
    pub(super) fn channel_event(&mut self, event: ChannelEvent) {
        match event {
            ChannelEvent::Started { id, piece, load, .. } => {
                if let Some(Asked { digest, id, .. }) = self.requests.get(&id).copied() {
                    self.with(digest, |blob, now| blob.swarm.handle_started(now, id, piece, load));
                }
            }
            ChannelEvent::Progress { id, .. } => {
                if let Some(Asked { digest, id, .. }) = self.requests.get(&id).copied() {
                    self.with(digest, |blob, now| blob.swarm.handle_progress(now, id));
                }
            }
            ChannelEvent::Piece { peer, id, digest, piece, bytes, elapsed, .. } => {
                self.count(peer, digest, bytes.len() as u64, elapsed);
                let Some((digest, id, made)) = self.answered(id) else { return };
                self.parts.piece_seconds.observe(made.elapsed().as_secs_f64());
                let wanted = self.with(digest, |blob, now| {
                    let wanted = blob.swarm.handle_received(now, id, piece);
                    if !wanted {
                        blob.count(piece, |counters| &counters.duplicate);
                    }
                    wanted
                });
                if wanted == Some(true) {
                    self.verify(digest, peer, piece, bytes);
                }
            }
            ChannelEvent::Rejected { id, reason, load, .. } => {
                if let Some((digest, id, _)) = self.answered(id) {
                    self.with(digest, |blob, now| blob.swarm.handle_rejected(now, id, reason, load));
                }
            }
            ChannelEvent::Failed { peer, ids, reason, misbehaved } => {
                debug!(%peer, reason, requests = ids.len(), "data channel lost");
                for id in ids {
                    if let Some((digest, id, _)) = self.answered(id) {
                        self.with(digest, |blob, now| blob.swarm.handle_failed(now, id));
                    }
                }
                if misbehaved {
                    warn!(%peer, reason, "peer banned for {} s", BAN.as_secs());
                    self.parts.network.ban(peer, BAN);
                    self.forget(peer);
                }
            }
        }
    }

    /// Counts what a peer sent, for trackers.
    fn count(&self, peer: PeerId, digest: Digest, bytes: u64, elapsed: Duration) {
        let id = self.peers.get(&peer).and_then(|state| state.id.as_ref());
        let (Some(id), Some(place)) = (id, self.places.peek(&peer)) else { return };
        self.parts.counted.add(digest, id, place, bytes, elapsed);
    }

    /// Checks a piece against its hash and stores it, off this task.
    pub(super) fn verify(&mut self, digest: Digest, peer: PeerId, piece: PieceIndex, bytes: Bytes) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let generation = blob.generation;
        let check = blob.check(piece);
        if check.is_none() && blob.hold(peer, piece, bytes.clone()) {
            return;
        }
        let (Source::Partial(entry), Some(check)) = (&blob.source, check) else {
            let verdict = Verdict::NotStored;
            return self.verified(Verified { digest, generation, peer, piece, verdict });
        };
        let (entry, storing) = (entry.clone(), blob.counters.store());
        self.verifying.spawn(async move {
            let _storing = storing;
            let verdict = check_and_store(&entry, piece, check, bytes).await;
            Verified { digest, generation, peer, piece, verdict }
        });
    }

    pub(super) fn verified(&mut self, verified: Verified) {
        let Verified { digest, generation, peer, piece, verdict } = verified;
        let role = self.peers.get(&peer).map_or(NodeRole::Proxy, |state| state.role);
        // A peer that is gone by now is not there to be banned; any unused key will do for it.
        let key = self.peers.get(&peer).map_or(PeerKey(u64::MAX), |state| state.key);
        if self.blobs.get(&digest).is_none_or(|blob| blob.generation != generation) {
            return;
        }
        self.with(digest, |blob, now| {
            blob.count(piece, |counters| match (verdict, role) {
                (Verdict::Stored, NodeRole::Seeder) => &counters.seeders,
                (Verdict::Stored, NodeRole::Proxy) => &counters.peers,
                (Verdict::Corrupt, _) => &counters.corrupt,
                (Verdict::NotStored, _) => &counters.duplicate,
            });
            blob.swarm.handle_verified(now, key, piece, verdict);
        });
    }

    pub(super) fn grant(&mut self, peer: PeerId, digest: Digest, piece: Option<PieceIndex>) -> Granted {
        let key = self.peers.get(&peer).map(|state| state.key).ok_or(RejectReason::NotHere)?;
        self.with(digest, |blob, now| {
            blob.used = Instant::now();
            let piece = blob.swarm.handle_request(now, key, piece)?;
            let geometry = blob.geometry();
            Ok(Grant {
                piece,
                reader: blob.source.reader(),
                offset: geometry.offset(piece),
                length: geometry.length(piece),
                receiver: blob.swarm.rate_of(key),
            })
        })
        .unwrap_or(Err(RejectReason::NotHere))
    }

    pub(super) fn news(&mut self) {
        for news in self.parts.mailbox.take() {
            match news {
                News::Left { digest, generation } => self.leave(digest, generation),
                News::Uploaded { peer, digest, piece, bytes, sent } => {
                    let key = self.peers.get(&peer).map_or(PeerKey(u64::MAX), |state| state.key);
                    self.with(digest, |blob, _| {
                        blob.counters.uploaded.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
                        blob.swarm.handle_uploaded(key, piece, sent);
                    });
                }
            }
        }
    }
}

async fn check_and_store(entry: &PartialEntry, piece: PieceIndex, check: PieceCheck, bytes: Bytes) -> Verdict {
    let to_hash = bytes.clone();
    let matches = tokio::task::spawn_blocking(move || check.matches(&to_hash)).await;
    match matches {
        Ok(true) => {}
        Ok(false) => return Verdict::Corrupt,
        Err(_) => return Verdict::NotStored,
    }
    match entry.write_piece(piece, bytes).await {
        Ok(()) => Verdict::Stored,
        Err(error) => {
            warn!(%error, blob = %entry.digest().short(), %piece, "piece not stored");
            Verdict::NotStored
        }
    }
}
