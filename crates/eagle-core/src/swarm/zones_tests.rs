//! Who in another zone is told what, and asked for what.

use std::time::Duration;

use super::*;
use crate::wire::control::HostRate;

const FAR: Option<FarZone> = Some(FarZone(7));

fn scene() -> Swarm {
    let geometry = Geometry::new(8 << 16, 1 << 16).unwrap();
    let start =
        SwarmStart { geometry, have: Bitfield::new(8), hashes_known: 8, download: true, spread: false, seed: 3 };
    Swarm::new(SwarmConfig::default(), start)
}

fn join(swarm: &mut Swarm, peer: u64, zone: Option<FarZone>, owns: &[u32], load: Load) -> PeerKey {
    let key = PeerKey(peer);
    let mut field = Bitfield::new(8);
    owns.iter().for_each(|index| assert!(field.insert(PieceIndex(*index))));
    swarm.handle_peer(key, zone);
    let handshake = BlobMessage::Handshake {
        geometry: swarm.geometry(),
        bitfield: field.to_bytes(),
        load,
        rate: HostRate::UNKNOWN,
    };
    swarm.handle_message(Timestamp(0), key, handshake);
    swarm.handle_message(Timestamp(0), key, BlobMessage::Unchoke);
    key
}

fn requests(swarm: &mut Swarm) -> Vec<(PeerKey, Option<PieceIndex>)> {
    std::iter::from_fn(|| swarm.poll_action())
        .filter_map(|action| match action {
            Action::Request { peer, piece, .. } => Some((peer, piece)),
            _ => None,
        })
        .collect()
}

fn have(pieces: &[u32]) -> BlobMessage {
    BlobMessage::Have { pieces: pieces.to_vec(), load: Load::default() }
}

#[test]
fn what_a_far_peer_offers_is_asked_there_unless_a_near_peer_owns_it() {
    let mut swarm = scene();
    let near = join(&mut swarm, 1, None, &[0], Load::default());
    let far = join(&mut swarm, 2, FAR, &[0, 1, 2, 3], Load::default());
    assert_eq!(requests(&mut swarm), [(near, Some(PieceIndex(0)))]);
    swarm.handle_message(Timestamp(0), far, have(&[0, 3]));
    assert_eq!(requests(&mut swarm), [(far, Some(PieceIndex(3)))]);
}

#[test]
fn what_no_near_peer_owns_is_fetched_from_afar_after_a_while() {
    let mut swarm = scene();
    join(&mut swarm, 1, None, &[], Load::default());
    let far = join(&mut swarm, 2, FAR, &[5], Load::default());
    assert_eq!(requests(&mut swarm), []);
    let due = swarm.next_timeout().unwrap();
    swarm.handle_timeout(due);
    assert_eq!(requests(&mut swarm), [(far, Some(PieceIndex(5)))]);
}

#[test]
fn a_node_without_near_peers_asks_afar_at_once() {
    let mut swarm = scene();
    let far = join(&mut swarm, 2, FAR, &[5], Load::default());
    assert_eq!(requests(&mut swarm), [(far, Some(PieceIndex(5)))]);
}

#[test]
fn a_new_piece_is_offered_to_one_peer_in_each_other_zone() {
    let mut swarm = scene();
    let spreading = Load { requests: 0, spreading: true };
    join(&mut swarm, 1, FAR, &[0], spreading);
    join(&mut swarm, 2, None, &[], Load::default());
    for peer in 3..6 {
        join(&mut swarm, peer, FAR, &[], Load::default());
        join(&mut swarm, peer + 10, Some(FarZone(8)), &[], Load::default());
    }
    while swarm.poll_action().is_some() {}
    let now = Timestamp(0) + Duration::from_millis(30);
    let id = RequestId(0);
    assert!(swarm.handle_started(now, id, PieceIndex(0), spreading));
    assert!(swarm.handle_received(now, id, PieceIndex(0)));
    swarm.handle_verified(now, PeerKey(1), PieceIndex(0), Verdict::Stored);
    swarm.handle_timeout(now + Duration::from_millis(10));
    let told: Vec<u64> = std::iter::from_fn(|| swarm.poll_action())
        .filter_map(|action| match action {
            Action::Send { peer, message: BlobMessage::Have { .. } } => Some(peer.0),
            _ => None,
        })
        .collect();
    assert_eq!(told.len(), 4, "{told:?}");
    assert_eq!(told.iter().filter(|peer| (3..6).contains(*peer)).count(), 1, "{told:?}");
    assert_eq!(told.iter().filter(|peer| (13..16).contains(*peer)).count(), 1, "{told:?}");
    assert!(told.contains(&1) && told.contains(&2), "{told:?}");
}
