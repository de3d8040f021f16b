//! Peers that are named to this node, by trackers, seeders and other peers, and those that it tells of.

use std::net::{IpAddr, SocketAddr};

use eagle_core::{
    Digest, FarGroup, NodeRole, PeerInfo,
    swarm::PeerKey,
    wire::control::{BlobMessage, ControlMessage, PeerAddress},
};

use super::Engine;
use crate::{identity, node::metrics::PeerSource};

impl Engine {
    /// Takes in peers that a tracker or a seeder has named; unconnected ones are dialled.
    pub(super) fn add_peers(&mut self, digest: Digest, peers: Vec<PeerInfo>, source: PeerSource) {
        if source == PeerSource::Tracker {
            self.with(digest, |blob, now| blob.swarm.handle_tracker(now));
        }
        for peer in peers {
            let Some(id) = identity::peer_id(&peer.id) else { continue };
            if id == self.parts.network.local_peer_id() {
                continue;
            }
            self.roles.put(id, peer.role);
            let group = self.note_group(id, &peer.topology);
            if let Some(state) = self.peers.get_mut(&id) {
                state.role = peer.role;
                let key = state.key;
                self.name(digest, key, peer.role, group, source);
            } else if self.blobs.get_mut(&digest).is_some_and(|blob| blob.add_candidate(id, source)) {
                self.parts.network.connect(id, peer.address);
            }
        }
    }

    /// A peer that was named is connected.
    pub(super) fn name(
        &mut self,
        digest: Digest,
        peer: PeerKey,
        role: NodeRole,
        group: Option<FarGroup>,
        source: PeerSource,
    ) {
        if self.with(digest, |blob, _| blob.name(peer, role, group)) == Some(true) {
            self.parts.learnt.add(source);
        }
    }

    /// Tells a peer where others are, as far as they say where they listen.
    pub(super) fn tell_peers(&self, digest: Digest, peer: PeerKey, about: &[PeerKey]) {
        let Some(to) = self.keys.get(&peer) else { return };
        let told = about.iter().filter_map(|other| {
            let state = self.peers.get(self.keys.get(other)?)?;
            Some(PeerAddress { id: state.id.clone()?, address: state.address? })
        });
        let told: Vec<PeerAddress> = told.collect();
        if !told.is_empty() {
            self.parts.network.send(*to, &ControlMessage::Blob(digest, BlobMessage::Peers(told)));
        }
    }

    /// Dials peers that another one has told of. What trackers have said of them counts, what it says does not: they count as proxies,
    /// and say themselves where they are.
    pub(super) fn connect_told(&mut self, digest: Digest, from: PeerKey, peers: Vec<PeerAddress>, most: usize) {
        let teller = self.keys.get(&from).and_then(|peer| self.peers.get(peer)).map(|state| state.data_address.ip());
        let Some(teller) = teller else { return };
        let mut left = most;
        for PeerAddress { id, address } in peers {
            if left == 0 {
                return;
            }
            let Some(peer) = identity::peer_id(&id).filter(|_| is_beyond(address, teller)) else { continue };
            if peer == self.parts.network.local_peer_id() {
                continue;
            }
            let Some(blob) = self.blobs.get_mut(&digest) else { return };
            if let Some(state) = self.peers.get(&peer) {
                if !blob.swarm.has_peer(state.key) {
                    let (key, role) = (state.key, state.role);
                    let group = self.far_groups.get(&peer).copied();
                    self.name(digest, key, role, group, PeerSource::Exchange);
                    left -= 1;
                }
            } else if !blob.candidates.contains_key(&peer) && blob.add_candidate(peer, PeerSource::Exchange) {
                self.parts.network.connect(peer, address);
                left -= 1;
            }
        }
    }
}

/// Whether an address is the same host for this node as for the one that tells of it: loopback is each one's own.
fn is_beyond(address: SocketAddr, teller: IpAddr) -> bool {
    !address.ip().to_canonical().is_loopback() || teller.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_far_away_has_this_machine_dialled() {
        let (here, there) = (IpAddr::from([127, 0, 0, 9]), IpAddr::from([10, 0, 0, 1]));
        for own in ["127.0.0.1:22", "[::1]:22", "[::ffff:127.0.0.1]:22"] {
            assert!(!is_beyond(own.parse().unwrap(), there), "{own}");
            assert!(is_beyond(own.parse().unwrap(), here), "{own}");
        }
        assert!(is_beyond("10.0.0.2:1".parse().unwrap(), there));
    }
}
