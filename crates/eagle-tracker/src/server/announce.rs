//! What an announce does: check it, apply it, choose peers, and say when to come back.

use std::{net::IpAddr, time::Duration};

use eagle_core::{Digest, NodeRole, PeerInfo, Place, Timestamp, Topology, peer::is_of_a_host};

use super::{Shared, reply::RequestError};
use crate::{
    api::{
        AnnounceRequest, AnnounceResponse, BlobAnnounce, Event, MAX_ANNOUNCED_BLOBS, MAX_RESPONSE_BYTES, RefusedBlob,
    },
    encoding::NamedPeer,
    ownership::Ownership,
    policy::Asker,
};

/// How long after the last join a swarm counts as growing: a rollout reaches its nodes within this time
/// of each other.
const GROWING: Duration = Duration::from_secs(30);
/// With fewer peers than this, an asker is told to come back soon: it cannot get far with those.
const FEW_PEERS: usize = 5;
/// Bytes of peers in one answer, estimated: half of what a client reads.
const MAX_PEERS_BYTES: usize = MAX_RESPONSE_BYTES / 2;
/// JSON of a peer without its bitmap, bytes: names 80, identity 64, address 47, three labels of 63.
const PEER_BYTES: usize = 400;

/// The answer to an announce.
pub(super) struct Answer {
    /// Without peers.
    pub(super) response: AnnounceResponse,
    /// Peers for each blob.
    pub(super) peers: Vec<(Digest, Vec<NamedPeer>)>,
}

/// Peers for one blob, and whether its swarm is worth asking about again soon.
struct Named {
    peers: Vec<NamedPeer>,
    active: bool,
}

impl Shared {
    /// Applies an announce that came from `source`.
    pub(super) async fn announce(&self, mut request: AnnounceRequest, source: IpAddr) -> Result<Answer, RequestError> {
        if request.blobs.len() > MAX_ANNOUNCED_BLOBS {
            return Err(RequestError::ManyBlobs(request.blobs.len()));
        }
        check_address(&mut request.node, source)?;
        let place = self.place(&mut request.node);
        let now = self.now();
        self.reports.take(now, &request);
        if request.stopped {
            self.store.leave(&request.node.id).await;
            return Ok(Answer { response: self.response(self.config.interval_idle), peers: Vec::new() });
        }
        let applied = self.store.announce(&request.node, request.full, &request.blobs, now).await;
        let applied = applied.map_err(|error| RequestError::Overloaded(error.to_string()))?;
        if let Some(load) = request.load {
            self.store.set_load(&request.node.id, load);
        }
        let mut response = self.response(self.config.interval_idle);
        response.topology = place;
        response.send_full = !applied.known && !request.full;
        response.seeders_version = self.seeders.version(now).await;
        let (mut peers, mut room) = (Vec::new(), MAX_PEERS_BYTES);
        let wanted = request.blobs.iter().filter(|blob| blob.want_peers && blob.event != Event::Evicted);
        for blob in wanted {
            // Who believes in another blob of the same name has nothing to exchange with this swarm.
            let Some(named) = self.peers_for(&request.node, blob, now).await else { continue };
            if named.active {
                response.interval_seconds = self.config.interval_active.as_secs_f64();
            }
            peers.push((blob.digest, within(named.peers, &mut room)));
        }
        self.metrics.announce_errors.inc_by(u64::try_from(applied.refused.len()).unwrap_or(u64::MAX));
        response.refused = applied.refused.into_iter().map(refused).collect();
        Ok(Answer { response, peers })
    }

    /// Puts a node that does not say where it is where the table of networks has its address.
    fn place(&self, node: &mut PeerInfo) -> Option<Topology> {
        if node.topology != Topology::default() {
            return None;
        }
        let place = self.networks.find(node.address.ip())?;
        node.topology = place.clone();
        Some(place.clone())
    }

    fn response(&self, interval: Duration) -> AnnounceResponse {
        AnnounceResponse {
            interval_seconds: interval.as_secs_f64(),
            send_full: false,
            topology: None,
            peers: Vec::new(),
            refused: Vec::new(),
            seeders_version: None,
        }
    }

    async fn peers_for(&self, node: &PeerInfo, blob: &BlobAnnounce, now: Timestamp) -> Option<Named> {
        let seed = rand::random();
        let pieces = Ownership::new(&blob.pieces, blob.geometry.pieces())?;
        let Some(view) = self.store.view(blob.digest, &node.id, seed, now).await else {
            return Some(Named { peers: Vec::new(), active: true });
        };
        if view.geometry != blob.geometry {
            return None;
        }
        let asker = Asker { place: Place::from(&node.topology), pieces: &pieces };
        let (mut candidates, seen) = (view.candidates, view.peers);
        if self.reports.are_shared() {
            self.reports.add_loads(now, &mut candidates, &seen);
        }
        let flows = self.reports.flows();
        let chosen = self.policy.select(asker, &candidates, &flows, self.config.max_peers_per_answer, seed);
        drop(flows);
        let named = |index: usize| NamedPeer { node: seen[index].named(), pieces: candidates[index].pieces.clone() };
        let peers: Vec<NamedPeer> = chosen.into_iter().map(named).collect();
        let active = view.since_growth < GROWING || peers.len() < FEW_PEERS;
        Some(Named { peers, active })
    }
}

/// Puts the address that the tracker sees in place of an unspecified one, and refuses those that nobody
/// can connect to.
fn check_address(node: &mut PeerInfo, source: IpAddr) -> Result<(), RequestError> {
    if node.address.ip().is_unspecified() {
        node.address.set_ip(source);
    }
    if !is_of_a_host(node.address) {
        let role = match node.role {
            NodeRole::Seeder => "seeder",
            NodeRole::Proxy => "proxy",
        };
        return Err(RequestError::Bad(format!(
            "node.address {} is not one that peers can connect to; check the {role}'s listen and advertise settings",
            node.address
        )));
    }
    Ok(())
}

/// The peers as far as there is room for them.
fn within(mut peers: Vec<NamedPeer>, room: &mut usize) -> Vec<NamedPeer> {
    let fitting = peers.iter().map_while(|peer| {
        *room = room.checked_sub(PEER_BYTES + peer.pieces.extra_bytes() * 4 / 3)?;
        Some(())
    });
    let fitting = fitting.count();
    peers.truncate(fitting);
    peers
}

fn refused((digest, refusal): (Digest, crate::store::Refusal)) -> RefusedBlob {
    RefusedBlob { digest, reason: refusal.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(address: &str) -> PeerInfo {
        PeerInfo { address: address.parse().unwrap(), ..PeerInfo::example() }
    }

    #[test]
    fn an_unspecified_address_is_the_one_seen() {
        for (announced, source, known) in [
            ("0.0.0.0:61007", "10.1.2.3", "10.1.2.3:61007"),
            ("[::]:61007", "10.1.2.3", "10.1.2.3:61007"),
            ("0.0.0.0:61007", "fd00::1", "[fd00::1]:61007"),
            ("10.9.9.9:61007", "10.1.2.3", "10.9.9.9:61007"),
        ] {
            let mut node = node(announced);
            check_address(&mut node, source.parse().unwrap()).unwrap();
            assert_eq!(node.address.to_string(), known);
        }
    }

    #[test]
    fn addresses_of_nobody_are_refused() {
        for address in ["224.0.0.1:1", "255.255.255.255:1", "[ff02::1]:1", "10.0.0.1:0", "0.0.0.0:0"] {
            let error = check_address(&mut node(address), "10.1.2.3".parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains("node.address"), "{error}");
        }
    }
}
