//! The state machine on virtual time, one node at a time; whole swarms are simulated in `eagle-sim`.

use std::time::Duration;

use super::*;
use crate::{
    geometry::Geometry,
    wire::{control::HostRate, data::RejectReason},
};

mod anything;
mod hostile;
mod lossy;

const MS: Duration = Duration::from_millis(1);

pub(super) fn geometry(pieces: u32) -> Geometry {
    Geometry::new(u64::from(pieces) << 16, 1 << 16).unwrap()
}

pub(super) fn swarm(pieces: u32, download: bool) -> Swarm {
    let have = if download { Bitfield::new(pieces) } else { Bitfield::full(pieces) };
    let start =
        SwarmStart { geometry: geometry(pieces), have, hashes_known: pieces, download, spread: !download, seed: 7 };
    Swarm::new(SwarmConfig::default(), start)
}

pub(super) fn actions(swarm: &mut Swarm) -> Vec<Action> {
    std::iter::from_fn(|| swarm.poll_action()).collect()
}

fn requests(swarm: &mut Swarm) -> Vec<(PeerKey, RequestId, Option<PieceIndex>)> {
    actions(swarm)
        .into_iter()
        .filter_map(|action| match action {
            Action::Request { peer, id, piece } => Some((peer, id, piece)),
            _ => None,
        })
        .collect()
}

/// A peer that owns these pieces, has answered the handshake and serves us.
pub(super) fn join(swarm: &mut Swarm, now: Timestamp, peer: u64, owns: &[u32], load: Load) -> PeerKey {
    let key = PeerKey(peer);
    let mut field = Bitfield::new(swarm.geometry().pieces());
    for index in owns {
        field.insert(PieceIndex(*index));
    }
    swarm.handle_peer(key, None);
    let handshake = BlobMessage::Handshake {
        geometry: swarm.geometry(),
        bitfield: field.to_bytes(),
        load,
        rate: HostRate::UNKNOWN,
    };
    swarm.handle_message(now, key, handshake);
    swarm.handle_message(now, key, BlobMessage::Unchoke);
    key
}

#[test]
fn the_least_loaded_uploader_is_asked_first() {
    let mut swarm = swarm(4, true);
    swarm.budget = 1;
    let now = Timestamp(0);
    let busy = join(&mut swarm, now, 1, &[], Load { requests: 9, spreading: false });
    let idle = join(&mut swarm, now, 2, &[], Load { requests: 0, spreading: false });
    actions(&mut swarm);
    swarm.budget = 0;
    for key in [busy, idle] {
        let load = Load { requests: if key == busy { 9 } else { 0 }, spreading: false };
        swarm.handle_message(now, key, BlobMessage::Have { pieces: vec![0, 1, 2, 3], load });
    }
    swarm.budget = 1;
    swarm.handle_timeout(now);
    assert_eq!(requests(&mut swarm).iter().map(|(peer, ..)| *peer).collect::<Vec<_>>(), [idle]);
}

#[test]
fn nothing_is_asked_twice_and_nothing_without_a_hash() {
    let mut swarm = Swarm::new(
        SwarmConfig { requests_in_flight: 100, requests_per_peer: 100, ..SwarmConfig::default() },
        SwarmStart {
            geometry: geometry(8),
            have: Bitfield::new(8),
            hashes_known: 3,
            download: true,
            spread: false,
            seed: 1,
        },
    );
    let now = Timestamp(0);
    let all: Vec<u32> = (0..8).collect();
    join(&mut swarm, now, 1, &all, Load::default());
    join(&mut swarm, now, 2, &all, Load::default());
    let mut asked: Vec<u32> = requests(&mut swarm).iter().map(|(.., piece)| piece.unwrap().0).collect();
    asked.sort_unstable();
    assert_eq!(asked, [0, 1, 2]);
    swarm.handle_hashes(now, 8);
    assert_eq!(requests(&mut swarm).len(), 5);
}

#[test]
fn a_spreading_seeder_gives_each_piece_once_before_any_twice() {
    let mut seeder = swarm(6, false);
    let now = Timestamp(0);
    let mut given = Vec::new();
    for peer in 0..3 {
        let key = join(&mut seeder, now, peer, &[], Load::default());
        seeder.handle_message(now, key, BlobMessage::Interested);
        for _ in 0..2 {
            given.push(seeder.handle_request(now, key, None).unwrap().0);
        }
    }
    given.sort_unstable();
    assert_eq!(given, [0, 1, 2, 3, 4, 5]);
    assert!(!seeder.load().spreading);
    assert_eq!(seeder.handle_request(now, PeerKey(0), None), Err(RejectReason::NothingToSpread));
    // What did not arrive is to be given again.
    seeder.handle_uploaded(PeerKey(1), PieceIndex(2), false);
    assert_eq!(seeder.handle_request(now, PeerKey(2), None), Ok(PieceIndex(2)));
}

#[test]
fn a_stalled_request_goes_to_another_peer() {
    let mut swarm = swarm(1, true);
    let start = Timestamp(0);
    let first = join(&mut swarm, start, 1, &[0], Load::default());
    assert_eq!(requests(&mut swarm).len(), 1);
    let second = join(&mut swarm, start, 2, &[0], Load { requests: 5, spreading: false });
    let mut asked_again = false;
    while let Some(at) = swarm.next_timeout() {
        assert!(at <= start + Duration::from_secs(60), "the stall is never noticed");
        swarm.handle_timeout(at);
        if requests(&mut swarm).iter().any(|(peer, ..)| *peer == second) {
            asked_again = true;
            break;
        }
    }
    assert!(asked_again);
    assert_ne!(first, second);
}

#[test]
fn a_corrupt_piece_is_asked_for_again_and_its_sender_banned() {
    let mut swarm = swarm(1, true);
    let now = Timestamp(0);
    let liar = join(&mut swarm, now, 1, &[0], Load::default());
    let (_, id, piece) = requests(&mut swarm)[0];
    assert!(swarm.handle_received(now + MS, id, piece.unwrap()));
    swarm.handle_verified(now + MS, liar, PieceIndex(0), Verdict::Corrupt);
    assert!(actions(&mut swarm).iter().any(|action| matches!(action, Action::Ban { peer, .. } if *peer == liar)));
    swarm.handle_peer_left(now + MS, liar);
    join(&mut swarm, now + MS, 2, &[0], Load::default());
    assert_eq!(requests(&mut swarm).len(), 1);
}

/// Found by `eagle demo`: a second copy was stored while the first was being read.
#[test]
fn a_second_copy_is_not_taken_while_the_first_is_verified() {
    let mut swarm = swarm(1, true);
    let now = Timestamp(0);
    let first = join(&mut swarm, now, 1, &[0], Load::default());
    let (_, id, _) = requests(&mut swarm)[0];
    assert!(swarm.handle_received(now + MS, id, PieceIndex(0)));
    assert!(!swarm.handle_received(now + MS, RequestId(99), PieceIndex(0)));
    assert_eq!(swarm.totals().duplicate_pieces, 1);
    swarm.handle_verified(now + MS, first, PieceIndex(0), Verdict::NotStored);
    assert_eq!(requests(&mut swarm).len(), 1);
}

#[test]
fn what_the_driver_claims_is_stored_by_it_alone() {
    let mut swarm = swarm(1, true);
    assert!(swarm.claim(PieceIndex(0)));
    assert!(!swarm.handle_received(Timestamp(0), RequestId(7), PieceIndex(0)));
}

#[test]
fn messages_that_contradict_the_protocol_ban_their_sender() {
    let other = Geometry::new(3 << 20, 1 << 20).unwrap();
    for message in [
        BlobMessage::Have { pieces: vec![4], load: Load::default() },
        BlobMessage::Handshake { geometry: other, bitfield: vec![0], load: Load::default(), rate: HostRate::UNKNOWN },
        BlobMessage::Handshake {
            geometry: geometry(4),
            bitfield: vec![0; 9],
            load: Load::default(),
            rate: HostRate::UNKNOWN,
        },
        BlobMessage::Handshake {
            geometry: geometry(4),
            bitfield: vec![0xff],
            load: Load::default(),
            rate: HostRate::UNKNOWN,
        },
    ] {
        let mut swarm = swarm(4, true);
        swarm.handle_peer(PeerKey(1), None);
        swarm.handle_message(Timestamp(0), PeerKey(1), message.clone());
        assert!(
            actions(&mut swarm).iter().any(|action| matches!(action, Action::Ban { .. })),
            "{message:?} was accepted"
        );
    }
}

#[test]
fn only_so_many_peers_are_served_and_the_others_get_their_turn() {
    let mut seeder = swarm(4, false);
    seeder.choker = Choker::new(2);
    for peer in 0..6 {
        let key = join(&mut seeder, Timestamp(0), peer, &[], Load::default());
        seeder.handle_message(Timestamp(0), key, BlobMessage::Interested);
    }
    let mut served = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let unchoked: Vec<u64> =
            seeder.peers.iter().filter(|(_, state)| state.unchoked).map(|(key, _)| key.0).collect();
        assert_eq!(unchoked.len(), 2);
        served.extend(unchoked);
        let at = seeder.next_timeout().unwrap();
        seeder.handle_timeout(at);
    }
    assert_eq!(served.len(), 6);
}

#[test]
fn later_swarms_leave_the_requests_to_earlier_ones_but_for_one() {
    let mut swarm = swarm(20, true);
    let now = Timestamp(0);
    let all: Vec<u32> = (0..20).collect();
    let most = swarm.config.requests_in_flight;
    swarm.handle_requested_before(now, most);
    for peer in 0..20 {
        join(&mut swarm, now, peer, &all, Load::default());
    }
    assert_eq!(requests(&mut swarm).len(), 1);
    swarm.handle_requested_before(now, most - 3);
    assert_eq!(requests(&mut swarm).len(), 2);
    swarm.handle_requested_before(now, 0);
    assert_eq!(swarm.requested(), most);
}
