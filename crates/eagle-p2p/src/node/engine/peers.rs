//! Peers that come, go and say something, and blobs of the cache that they ask for.

use std::{sync::Arc, time::Instant};

use eagle_core::{
    Bitfield, Digest, FarGroup, Metainfo, NodeRole, Topology,
    swarm::PeerKey,
    wire::control::{BlobMessage, ControlMessage},
};
use eagle_store::cache::CachedBlob;
use libp2p::PeerId;
use tokio::time::timeout;
use tracing::{debug, info};

use super::{Engine, Greeting, LOOKUP_TIMEOUT, MAX_LOOKUPS, Peer};
use crate::{
    identity,
    network::NetworkEvent,
    node::{
        blob::{Blob, Source},
        commands::Command,
        metrics::PeerSource,
    },
};

impl Engine {
    pub(super) fn look_up(&mut self, digest: Digest) {
        if self.lookups.len() >= MAX_LOOKUPS {
            return self.found(digest, None);
        }
        let cache = Arc::clone(&self.parts.cache);
        let commands = self.parts.commands.clone();
        self.lookups.spawn(async move {
            let blob = timeout(LOOKUP_TIMEOUT, cache.get(digest)).await.ok().flatten();
            // Fails only when the node is stopping.
            let _ = commands.send(Command::Found { digest, blob }).await;
        });
    }

    pub(super) fn found(&mut self, digest: Digest, cached: Option<CachedBlob>) {
        let greetings = self.greetings.remove(&digest).unwrap_or_default();
        match (self.blobs.get_mut(&digest), cached) {
            (Some(blob), Some(cached)) if blob.generation == 0 => blob.source = Source::Cached(cached),
            (Some(blob), None) if blob.generation == 0 => self.close(digest),
            (Some(_), _) => {}
            (None, Some(cached)) => {
                // Any geometry fits a complete blob, so the one that the swarm uses is taken.
                let geometry = greetings.first().map(|greeting| greeting.geometry);
                if let Some(geometry) = geometry.filter(|geometry| geometry.size() == cached.size()) {
                    let metainfo = Metainfo::new(digest, geometry);
                    let swarm = self.new_swarm(geometry, Bitfield::full(geometry.pieces()), usize::MAX, false);
                    self.blobs.insert(digest, Blob::new(swarm, Source::Cached(cached), metainfo, 0));
                }
            }
            (None, None) => {}
        }
        for greeting in greetings {
            if self.blobs.contains_key(&digest) {
                self.blob_message(greeting.peer, digest, greeting.message);
            } else {
                self.parts.network.send(greeting.peer, &ControlMessage::Blob(digest, BlobMessage::Leave));
            }
        }
    }

    pub(super) fn network_event(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::Connected { peer, address, data_address, encryption, topology } => {
                let key = PeerKey(self.next_key);
                self.next_key += 1;
                let role = self.roles.get(&peer).copied().unwrap_or(NodeRole::Proxy);
                let id = identity::node_id(&peer).ok();
                self.peers.insert(peer, Peer { key, address, data_address, encryption, role, id });
                self.keys.insert(key, peer);
                let waiting: Vec<(Digest, PeerSource)> = self
                    .blobs
                    .iter_mut()
                    .filter_map(|(digest, blob)| Some((*digest, blob.candidates.remove(&peer)?)))
                    .collect();
                // Whom a tracker has named is where the tracker says.
                let group = match self.roles.contains(&peer) {
                    true => self.far_groups.get(&peer).copied(),
                    false => self.note_group(peer, &topology),
                };
                for (digest, source) in waiting {
                    self.name(digest, key, role, group, source);
                }
            }
            NetworkEvent::Message { peer, message: ControlMessage::Blob(digest, message) } => {
                self.blob_message(peer, digest, message);
            }
            NetworkEvent::Message { .. } => {}
            NetworkEvent::Disconnected { peer } => {
                let shared = self.shared_with(peer);
                self.forget(peer);
                if !shared.is_empty() && self.parts.network.reconnect(peer) {
                    debug!(%peer, blobs = shared.len(), "connecting again under the present cluster key");
                    for digest in shared {
                        if let Some(blob) = self.blobs.get_mut(&digest) {
                            blob.add_candidate(peer, PeerSource::Greeting);
                        }
                    }
                }
            }
            NetworkEvent::Unreachable { peer, reason } => {
                debug!(%peer, reason, "peer not reached");
                for blob in self.blobs.values_mut() {
                    blob.candidates.remove(&peer);
                }
            }
        }
    }

    /// Keeps where a peer is; its group when that is not in our rack.
    pub(super) fn note_group(&mut self, peer: PeerId, topology: &Topology) -> Option<FarGroup> {
        let group = topology.group_seen_from(&self.parts.topology);
        self.places.put(peer, topology.clone());
        match group {
            Some(group) => self.far_groups.put(peer, group),
            None => self.far_groups.pop(&peer),
        };
        group
    }

    /// The blobs that a connected peer takes part in with this node.
    fn shared_with(&self, peer: PeerId) -> Vec<Digest> {
        let Some(state) = self.peers.get(&peer) else { return Vec::new() };
        let shared = self.blobs.iter().filter(|(_, blob)| blob.swarm.has_peer(state.key));
        shared.map(|(digest, _)| *digest).collect()
    }

    pub(super) fn forget(&mut self, peer: PeerId) {
        let Some(state) = self.peers.remove(&peer) else { return };
        self.keys.remove(&state.key);
        let digests: Vec<Digest> = self.blobs.keys().copied().collect();
        for digest in digests {
            self.with(digest, |blob, now| blob.swarm.handle_peer_left(now, state.key));
        }
        for waiting in self.greetings.values_mut() {
            waiting.retain(|greeting| greeting.peer != peer);
        }
    }

    pub(super) fn blob_message(&mut self, peer: PeerId, digest: Digest, message: BlobMessage) {
        let Some(key) = self.peers.get(&peer).map(|state| state.key) else { return };
        let greeted = if let BlobMessage::Handshake { geometry, .. } = &message { Some(*geometry) } else { None };
        let Some(blob) = self.blobs.get_mut(&digest) else {
            if let Some(geometry) = greeted {
                let waiting = self.greetings.entry(digest).or_default();
                let first = waiting.is_empty();
                // A peer greets once; a second greeting before the answer replaces the first.
                waiting.retain(|greeting| greeting.peer != peer);
                waiting.push(Greeting { peer, geometry, message });
                if first {
                    self.look_up(digest);
                }
            }
            return;
        };
        blob.used = Instant::now();
        if greeted.is_some_and(|geometry| geometry != blob.geometry()) {
            // A seeder with other settings, not a liar: just of no use to each other.
            info!(%peer, blob = %digest.short(), "peer uses another piece length for this blob");
            self.parts.network.send(peer, &ControlMessage::Blob(digest, BlobMessage::Leave));
            return;
        }
        if greeted.is_some() {
            let group = self.far_groups.get(&peer).copied();
            let greeted = self.with(digest, |blob, _| {
                let known = blob.swarm.has_peer(key);
                blob.swarm.handle_greeting(key, group);
                !known && blob.swarm.has_peer(key)
            });
            if greeted == Some(true) {
                self.parts.learnt.add(PeerSource::Greeting);
            }
            if self.blobs.get(&digest).is_some_and(|blob| !blob.swarm.has_peer(key)) {
                self.parts.network.send(peer, &ControlMessage::Blob(digest, BlobMessage::Leave));
                return;
            }
        }
        self.with(digest, |blob, now| blob.swarm.handle_message(now, key, message));
    }
}
