//! Requests that move to a shorter queue, on virtual time.

use super::*;
use crate::{geometry::Geometry, wire::control::HostRate};

const NOW: Timestamp = Timestamp(0);

/// A node that has asked peer 1, which owns the only piece and has a queue, and has met peer 2.
fn waiting(queue: u16) -> (Swarm, RequestId) {
    let geometry = Geometry::new(1 << 16, 1 << 16).unwrap();
    let start =
        SwarmStart { geometry, have: Bitfield::new(1), hashes_known: 1, download: true, spread: false, seed: 1 };
    let mut swarm = Swarm::new(SwarmConfig::default(), start);
    for (peer, bitfield, requests) in [(1, vec![0x80], queue), (2, vec![0], 0)] {
        swarm.handle_peer(PeerKey(peer), None);
        let load = Load { requests, spreading: false };
        swarm.handle_message(
            NOW,
            PeerKey(peer),
            BlobMessage::Handshake { geometry, bitfield, load, rate: HostRate::UNKNOWN },
        );
        swarm.handle_message(NOW, PeerKey(peer), BlobMessage::Unchoke);
    }
    let asked = actions(&mut swarm).into_iter().find_map(|action| match action {
        Action::Request { peer: PeerKey(1), id, .. } => Some(id),
        _ => None,
    });
    (swarm, asked.unwrap())
}

fn actions(swarm: &mut Swarm) -> Vec<Action> {
    std::iter::from_fn(|| swarm.poll_action()).collect()
}

fn tell(swarm: &mut Swarm, requests: u16) -> Vec<Action> {
    let load = Load { requests, spreading: false };
    swarm.handle_message(NOW, PeerKey(2), BlobMessage::Have { pieces: vec![0], load });
    actions(swarm)
}

#[test]
fn who_waits_asks_the_new_owner_instead() {
    let (mut swarm, first) = waiting(9);
    let actions = tell(&mut swarm, 0);
    assert!(actions.contains(&Action::Cancel { peer: PeerKey(1), id: first }), "{actions:?}");
    assert!(
        actions.iter().any(|action| matches!(action, Action::Request { peer: PeerKey(2), piece: Some(_), .. })),
        "{actions:?}"
    );
}

#[test]
fn nobody_moves_to_a_queue_that_is_as_long_nor_once_the_answer_has_begun() {
    let (mut swarm, _) = waiting(9);
    assert!(!tell(&mut swarm, 9).iter().any(|action| matches!(action, Action::Cancel { .. })));
    let (mut swarm, first) = waiting(9);
    assert!(swarm.handle_started(NOW, first, PieceIndex(0), Load::default()));
    assert!(!tell(&mut swarm, 0).iter().any(|action| matches!(action, Action::Cancel { .. })));
}

#[test]
fn an_answer_that_begins_all_the_same_is_taken_and_the_other_cancelled() {
    let (mut swarm, first) = waiting(9);
    tell(&mut swarm, 0);
    assert!(swarm.handle_started(NOW, first, PieceIndex(0), Load::default()));
    assert!(actions(&mut swarm).iter().any(|action| matches!(action, Action::Cancel { peer: PeerKey(2), .. })));
    assert!(swarm.handle_received(NOW, first, PieceIndex(0)));
    assert_eq!(swarm.totals().duplicate_pieces, 0);
}
