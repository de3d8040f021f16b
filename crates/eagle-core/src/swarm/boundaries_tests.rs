//! Who in another zone is told what, and asked for what.

use std::time::Duration;

use super::*;
use crate::{Boundary, wire::control::HostRate};

const FAR: Option<FarGroup> = zone(7);

const fn zone(number: u64) -> Option<FarGroup> {
    Some(FarGroup { boundary: Boundary::Zone, number })
}

fn scene() -> Swarm {
    let geometry = Geometry::new(8 << 16, 1 << 16).unwrap();
    let start =
        SwarmStart { geometry, have: Bitfield::new(8), hashes_known: 8, download: true, spread: false, seed: 3 };
    // Nothing but boundaries has it wake up.
    Swarm::new(SwarmConfig { exchange_below: 0, ..SwarmConfig::default() }, start)
}

fn join(swarm: &mut Swarm, peer: u64, group: Option<FarGroup>, owns: &[u32], load: Load) -> PeerKey {
    let key = PeerKey(peer);
    let mut field = Bitfield::new(8);
    owns.iter().for_each(|index| assert!(field.insert(PieceIndex(*index))));
    swarm.handle_peer(key, group);
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
        join(&mut swarm, peer + 10, zone(8), &[], Load::default());
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

/// A piece came over a boundary and is stored; returns who was told of it, near peers left out.
fn offered_after(swarm: &mut Swarm, from: PeerKey, any: bool) -> Vec<u64> {
    let requested = std::iter::from_fn(|| swarm.poll_action()).find_map(|action| match action {
        Action::Request { peer, id, piece } if peer == from && piece.is_none() == any => Some((id, piece)),
        _ => None,
    });
    let (id, piece) = requested.expect("a request");
    let piece = piece.unwrap_or(PieceIndex(0));
    let now = Timestamp(0) + Duration::from_millis(30);
    assert!(swarm.handle_started(now, id, piece, Load { requests: 0, spreading: any }));
    assert!(swarm.handle_received(now, id, piece));
    swarm.handle_verified(now, from, piece, Verdict::Stored);
    std::iter::from_fn(|| swarm.poll_action())
        .filter_map(|action| match action {
            Action::Send { peer, message: BlobMessage::Have { .. } } => Some(peer.0).filter(|peer| *peer >= 100),
            _ => None,
        })
        .collect()
}

fn at(boundary: Boundary, number: u64) -> Option<FarGroup> {
    Some(FarGroup { boundary, number })
}

/// Peers in our own rack, enough for every boundary to be kept: keys 10 to 20.
fn among_many() -> Swarm {
    let mut swarm = scene();
    for peer in 10..21 {
        join(&mut swarm, peer, None, &[], Load::default());
    }
    swarm
}

/// One peer in each of two racks, zones and regions: keys 100 to 105.
fn surrounded() -> Swarm {
    let mut swarm = among_many();
    for (number, boundary) in (0..).zip(Boundary::ALL) {
        join(&mut swarm, 100 + 2 * number, at(boundary, 1), &[], Load::default());
        join(&mut swarm, 101 + 2 * number, at(boundary, 2), &[], Load::default());
    }
    swarm
}

#[test]
fn what_the_first_source_gave_is_offered_over_every_boundary() {
    let mut swarm = surrounded();
    let seeder = join(&mut swarm, 1, at(Boundary::Zone, 9), &[0], Load { requests: 0, spreading: true });
    // The widest first.
    assert_eq!(offered_after(&mut swarm, seeder, true), [105, 104, 103, 102, 101, 100]);
}

#[test]
fn what_came_over_a_boundary_is_offered_over_the_narrower_ones() {
    for (boundary, expected) in
        [(Boundary::Region, vec![103, 102, 101, 100]), (Boundary::Zone, vec![101, 100]), (Boundary::Rack, vec![])]
    {
        let mut swarm = surrounded();
        let far = join(&mut swarm, 1, at(boundary, 9), &[], Load::default());
        join(&mut swarm, 2, None, &[], Load::default());
        swarm.handle_message(Timestamp(0), far, have(&[0]));
        assert_eq!(offered_after(&mut swarm, far, false), expected, "{boundary:?}");
    }
}

#[test]
fn a_group_that_comes_later_is_offered_what_it_missed() {
    let mut swarm = scene();
    let seeder = join(&mut swarm, 1, None, &[0], Load { requests: 0, spreading: true });
    assert!(offered_after(&mut swarm, seeder, true).is_empty());
    let told = |swarm: &mut Swarm| -> Vec<u64> {
        std::iter::from_fn(|| swarm.poll_action())
            .filter_map(|action| match action {
                Action::Send { peer, message: BlobMessage::Have { pieces, .. } } if pieces == [0] => Some(peer.0),
                _ => None,
            })
            .filter(|peer| *peer >= 100)
            .collect()
    };
    let late = join(&mut swarm, 100, FAR, &[], Load::default());
    assert_eq!(told(&mut swarm), [100]);
    join(&mut swarm, 101, FAR, &[], Load::default());
    assert!(told(&mut swarm).is_empty(), "once for each group");
    // Unless the one that was offered it leaves.
    swarm.handle_peer_left(Timestamp(0), late);
    assert_eq!(told(&mut swarm), [101]);
}

#[test]
fn a_boundary_with_too_many_groups_is_not_kept() {
    let mut swarm = among_many();
    for peer in 21..60 {
        join(&mut swarm, peer, None, &[], Load::default());
    }
    for number in 0..25 {
        join(&mut swarm, 100 + number, at(Boundary::Rack, number), &[], Load::default());
    }
    while swarm.poll_action().is_some() {}
    let racks = (100..125).map(PeerKey).filter_map(|key| swarm.peers.get(&key)).filter(|peer| peer.group.is_some());
    assert_eq!(racks.count(), 0);
    // The wider ones are.
    join(&mut swarm, 200, FAR, &[], Load::default());
    assert_eq!(swarm.peers.get(&PeerKey(200)).unwrap().group, FAR);
}

#[test]
fn a_boundary_is_kept_by_those_who_are_enough() {
    let kept = |swarm: &Swarm| swarm.peers.values().filter(|peer| peer.group.is_some()).count();
    let mut swarm = scene();
    for number in 0..6 {
        join(&mut swarm, 100 + number, at(Boundary::Rack, number), &[], Load::default());
    }
    join(&mut swarm, 200, FAR, &[], Load::default());
    // Seven groups around one node; the zone alone is no more than that node can give to.
    assert_eq!((kept(&swarm), swarm.peers.get(&PeerKey(200)).unwrap().group), (1, FAR));
    for peer in 1..7 {
        join(&mut swarm, peer, None, &[], Load::default());
    }
    assert_eq!(kept(&swarm), 1, "not at the first who would be enough");
    while swarm.poll_action().is_some() {}
    for peer in 7..10 {
        join(&mut swarm, peer, None, &[], Load::default());
    }
    assert_eq!(kept(&swarm), 7);
    // Those in other racks are told what we own when theirs is no longer kept apart.
    while swarm.poll_action().is_some() {}
    for peer in 1..5 {
        swarm.handle_peer_left(Timestamp(0), PeerKey(peer));
    }
    assert_eq!(kept(&swarm), 1);
    let told = std::iter::from_fn(|| swarm.poll_action())
        .filter(|action| matches!(action, Action::Send { peer, message: BlobMessage::Handshake { .. } } if (100..106).contains(&peer.0)));
    assert_eq!(told.count(), 6);
}

#[test]
fn what_a_seeder_owns_does_not_keep_a_node_from_taking_offers() {
    for boundary in Boundary::ALL {
        let mut swarm = among_many();
        join(&mut swarm, 1, None, &[0, 1, 2, 3], Load { requests: 0, spreading: true });
        let far = join(&mut swarm, 100, at(boundary, 1), &[], Load::default());
        while swarm.poll_action().is_some() {}
        swarm.handle_message(Timestamp(0), far, have(&[3]));
        let asked = requests(&mut swarm);
        assert!(asked.contains(&(far, Some(PieceIndex(3)))), "{boundary:?}: {asked:?}");
    }
}

#[test]
fn a_seeder_with_few_near_peers_gives_to_those_far_away_no_less() {
    let geometry = Geometry::new(8 << 16, 1 << 16).unwrap();
    let start =
        SwarmStart { geometry, have: Bitfield::full(8), hashes_known: 8, download: false, spread: true, seed: 3 };
    let mut swarm = Swarm::new(SwarmConfig::default(), start);
    for (peer, group) in [(1, None), (2, FAR)] {
        swarm.handle_greeting(PeerKey(peer), group);
        swarm.handle_message(Timestamp(0), PeerKey(peer), BlobMessage::Interested);
    }
    let mut ask = |peer: u64| swarm.handle_request(Timestamp(0), PeerKey(peer), None).is_ok();
    assert_eq!((ask(1), ask(1), ask(1)), (true, true, false));
    assert_eq!((ask(2), ask(1)), (true, true));
}

#[test]
fn a_seeder_gives_what_is_new_to_near_peers_while_enough_of_them_ask() {
    let geometry = Geometry::new(8 << 16, 1 << 16).unwrap();
    let start =
        SwarmStart { geometry, have: Bitfield::full(8), hashes_known: 8, download: false, spread: true, seed: 3 };
    let mut swarm = Swarm::new(SwarmConfig::default(), start);
    let interested = |swarm: &mut Swarm, peer: u64, group: Option<FarGroup>| {
        let key = PeerKey(peer);
        swarm.handle_greeting(key, group);
        swarm.handle_message(Timestamp(0), key, BlobMessage::Interested);
        key
    };
    let far = interested(&mut swarm, 1, FAR);
    let other_rack = interested(&mut swarm, 2, at(Boundary::Rack, 1));
    for peer in 3..5 {
        interested(&mut swarm, peer, None);
    }
    // Three are nearer, which is not enough.
    let first = swarm.handle_request(Timestamp(0), far, None).unwrap();
    interested(&mut swarm, 5, None);
    assert!(swarm.handle_request(Timestamp(0), far, None).is_err());
    let granted = swarm.handle_request(Timestamp(0), other_rack, None).unwrap();
    assert!(swarm.handle_request(Timestamp(0), far, None).is_err());
    // As long as somebody waits for what it asked for, they do.
    let later = |seconds| Timestamp(0) + Duration::from_secs(seconds);
    assert!(swarm.handle_request(later(2), far, None).is_err());
    for (peer, piece) in [(other_rack, granted), (far, first)] {
        swarm.handle_uploaded(peer, piece, true);
    }
    // Not for ever, when none of them asks.
    assert!(swarm.handle_request(later(2), far, None).is_err());
    assert!(swarm.handle_request(later(4), far, None).is_ok());
}

/// A seeder that has promised every piece is asked for pieces by number, and who gets one so may be the first to.
#[test]
fn what_only_a_seeder_owns_is_offered_although_it_was_asked_for_by_number() {
    for place in [at(Boundary::Zone, 9), None] {
        for owned_besides in [false, true] {
            let mut swarm = surrounded();
            let seeder = PeerKey(1);
            swarm.handle_seeder(seeder, place);
            join(&mut swarm, seeder.0, place, &[0], Load::default());
            swarm.handle_message(Timestamp(0), seeder, have(&[0]));
            if owned_besides {
                swarm.handle_message(Timestamp(0), PeerKey(10), have(&[0]));
            }
            let told = offered_after(&mut swarm, seeder, false);
            let narrower = if place.is_some() { vec![101, 100] } else { vec![] };
            let expected = if owned_besides { narrower } else { vec![105, 104, 103, 102, 101, 100] };
            assert_eq!(told, expected, "{place:?} {owned_besides}");
        }
    }
}

#[test]
fn peers_far_away_take_the_places_that_near_ones_leave() {
    let mut swarm = scene();
    let most = u64::try_from(SwarmConfig::default().max_peers).unwrap();
    for peer in 0..3 {
        join(&mut swarm, peer, None, &[], Load::default());
    }
    for peer in 100..100 + 3 * most {
        swarm.handle_greeting(PeerKey(peer), FAR);
    }
    let count =
        |swarm: &Swarm, far: bool| swarm.peers.values().filter(|peer| peer.group.is_some() == far).count() as u64;
    assert_eq!(count(&swarm, true), 2 * most - 3);
    // Near ones have theirs all the same.
    for peer in 3..2 * most {
        swarm.handle_greeting(PeerKey(peer), None);
    }
    assert_eq!(count(&swarm, false), most);
}
