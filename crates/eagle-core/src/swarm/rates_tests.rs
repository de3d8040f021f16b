//! Nodes of different rates, on virtual time.

use super::*;
use crate::{
    geometry::Geometry,
    wire::{control::HostRate, data::RejectReason},
};

const NOW: Timestamp = Timestamp(0);
const MB: u64 = 1_000_000;

fn swarm(rate: u64, download: bool) -> Swarm {
    let geometry = Geometry::new(64 << 16, 1 << 16).unwrap();
    let have = if download { Bitfield::new(64) } else { Bitfield::full(64) };
    let start = SwarmStart { geometry, have, hashes_known: 64, download, spread: !download, seed: 1 };
    let mut swarm = Swarm::new(SwarmConfig::default(), start);
    swarm.handle_host_rate(NOW, HostRate(rate));
    swarm
}

fn sent(swarm: &mut Swarm) -> Vec<(PeerKey, BlobMessage)> {
    std::iter::from_fn(|| swarm.poll_action())
        .filter_map(|action| match action {
            Action::Send { peer, message } => Some((peer, message)),
            _ => None,
        })
        .collect()
}

/// Peers that were greeted.
fn greeted(swarm: &mut Swarm) -> usize {
    sent(swarm).iter().filter(|(_, message)| matches!(message, BlobMessage::Handshake { .. })).count()
}

/// A peer answers, and says what its rate is.
fn answer(swarm: &mut Swarm, peer: u64, rate: u64, owns: bool) {
    let geometry = swarm.geometry();
    let field = if owns { Bitfield::full(64) } else { Bitfield::new(64) };
    let load = Load::default();
    let handshake = BlobMessage::Handshake { geometry, bitfield: field.to_bytes(), load, rate: HostRate(rate) };
    swarm.handle_message(NOW, PeerKey(peer), handshake);
    swarm.handle_message(NOW, PeerKey(peer), BlobMessage::Unchoke);
    swarm.handle_message(NOW, PeerKey(peer), BlobMessage::Interested);
}

/// A node that knows 12 peers with this rate.
fn among(own: u64, theirs: u64) -> Swarm {
    let mut swarm = swarm(own, true);
    for peer in 0..12 {
        swarm.handle_peer(PeerKey(peer), None);
        answer(&mut swarm, peer, theirs, false);
    }
    swarm
}

#[test]
fn requests_in_flight_go_with_the_rate() {
    let usual = SwarmConfig::default().requests_in_flight;
    assert_eq!(among(10 * MB, 10 * MB).rates.most_requests, usual);
    assert_eq!(among(0, 10 * MB).rates.most_requests, usual, "an unknown rate says nothing");
    assert_eq!(among(10 * MB, 0).rates.most_requests, usual, "an unknown rate says nothing");
    let fast = among(20 * MB, 10 * MB).budget;
    assert!((usual + 1..2 * usual).contains(&fast), "{fast}");
    assert_eq!(among(u64::MAX, 1).budget, 32);
    assert_eq!(among(1, u64::MAX).budget, 2);
}

#[test]
fn one_peer_that_boasts_changes_little() {
    let mut swarm = among(10 * MB, 10 * MB);
    swarm.handle_peer(PeerKey(99), None);
    answer(&mut swarm, 99, u64::MAX, false);
    let usual = SwarmConfig::default().requests_in_flight;
    assert!(swarm.budget >= usual * 2 / 3, "{}", swarm.budget);
}

#[test]
fn a_fast_node_greets_more_peers_when_the_first_turn_out_to_be_slow() {
    for (theirs, wanted) in [(10 * MB, 16), (0, 16), (20 * MB, 16), (5 * MB, 32)] {
        let mut swarm = swarm(10 * MB, true);
        for peer in 0..40 {
            swarm.handle_peer(PeerKey(peer), None);
        }
        assert_eq!(greeted(&mut swarm), 16);
        for peer in 0..40 {
            answer(&mut swarm, peer, theirs, false);
        }
        assert_eq!(swarm.peer_count(), wanted, "at {theirs}");
    }
}

#[test]
fn a_peer_that_left_makes_room_for_a_named_one_unless_that_is_gone_too() {
    let mut swarm = swarm(10 * MB, true);
    for peer in 0..18 {
        swarm.handle_peer(PeerKey(peer), None);
    }
    swarm.handle_peer_left(NOW, PeerKey(16));
    assert_eq!(swarm.peer_count(), 16);
    swarm.handle_peer_left(NOW, PeerKey(0));
    assert!(swarm.has_peer(PeerKey(17)));
    swarm.handle_peer_left(NOW, PeerKey(1));
    assert_eq!(swarm.peer_count(), 15);
    for peer in 100..1_000 {
        swarm.handle_peer(PeerKey(peer), None);
    }
    assert_eq!((swarm.peer_count(), swarm.rates.named.len()), (16, 64));
}

#[test]
fn a_new_limit_is_told_to_all() {
    let mut swarm = among(10 * MB, 10 * MB);
    sent(&mut swarm);
    swarm.handle_host_rate(NOW, HostRate(10 * MB));
    assert!(sent(&mut swarm).is_empty());
    swarm.handle_host_rate(NOW, HostRate(20 * MB));
    assert_eq!(greeted(&mut swarm), 12);
    assert!(swarm.budget > SwarmConfig::default().requests_in_flight);
}

/// A seeder and peers with these rates, all of which want everything.
fn seeder(rates: impl IntoIterator<Item = u64>) -> Swarm {
    let mut seeder = swarm(10 * MB, false);
    for (peer, rate) in (0..).zip(rates) {
        seeder.handle_greeting(PeerKey(peer), None);
        answer(&mut seeder, peer, rate, false);
    }
    seeder
}

#[test]
fn new_pieces_go_to_the_fast() {
    let mut seeder = seeder((0..40).map(|peer| if peer < 33 { 10 * MB } else { MB }));
    assert_eq!(seeder.handle_request(NOW, PeerKey(39), None), Err(RejectReason::NothingToSpread));
    assert!(seeder.handle_request(NOW, PeerKey(0), None).is_ok());
    // A piece that it names it gets, like anybody.
    assert_eq!(seeder.handle_request(NOW, PeerKey(39), Some(PieceIndex(9))), Ok(PieceIndex(9)));
}

#[test]
fn nobody_is_passed_over_for_few_nor_among_equals_nor_for_those_without_use_for_it() {
    let mut few = seeder((0..40).map(|peer| if peer < 31 { 10 * MB } else { MB }));
    assert!(few.handle_request(NOW, PeerKey(39), None).is_ok());
    let mut equals = seeder([10 * MB; 40]);
    assert!(equals.handle_request(NOW, PeerKey(39), None).is_ok());
    let mut done = seeder((0..40).map(|peer| if peer < 33 { 10 * MB } else { MB }));
    for peer in 0..2 {
        done.handle_message(NOW, PeerKey(peer), BlobMessage::NotInterested);
    }
    assert!(done.handle_request(NOW, PeerKey(39), None).is_ok());
}

#[test]
fn fast_ones_that_do_not_ask_hold_nobody_up_for_long() {
    let mut seeder = seeder((0..40).map(|peer| if peer < 33 { 10 * MB } else { MB }));
    let patience = SwarmConfig::default().shortest_stall;
    assert!(seeder.handle_request(NOW, PeerKey(39), None).is_err());
    assert!(seeder.handle_request(NOW + patience / 2, PeerKey(38), None).is_err());
    assert!(seeder.handle_request(NOW + patience, PeerKey(38), None).is_ok());
    assert!(seeder.handle_request(NOW + patience, PeerKey(39), None).is_ok());
    // One asks again: the slow ones wait again.
    assert!(seeder.handle_request(NOW + patience, PeerKey(0), None).is_ok());
    assert!(seeder.handle_request(NOW + patience, PeerKey(39), None).is_err());
}

#[test]
fn the_seeder_is_greeted_however_many_peers_came_first() {
    let mut swarm = swarm(10 * MB, true);
    for peer in 0..200 {
        swarm.handle_peer(PeerKey(peer), None);
        swarm.handle_greeting(PeerKey(peer), None);
        answer(&mut swarm, peer, 10 * MB, false);
    }
    assert_eq!(swarm.peer_count(), SwarmConfig::default().max_peers);
    sent(&mut swarm);
    for seeder in [1000, 1001] {
        swarm.handle_seeder(PeerKey(seeder), None);
        swarm.handle_seeder(PeerKey(seeder), None);
        assert_eq!(greeted(&mut swarm), 1);
    }
    // Whoever calls itself one too is a peer like others.
    for seeder in 2000..2100 {
        swarm.handle_seeder(PeerKey(seeder), None);
    }
    assert_eq!(greeted(&mut swarm), MOST_SEEDERS - 2);
    // One that left makes room.
    swarm.handle_peer_left(NOW, PeerKey(1000));
    swarm.handle_seeder(PeerKey(1000), None);
    assert!(swarm.has_peer(PeerKey(1000)));
}
