//! Peer exchange of one node on virtual time.

use std::{net::SocketAddr, time::Duration};

use super::{tests::*, *};
use crate::{
    peer::{NodeId, Topology},
    wire::control::{HostRate, MAX_PEERS_TOLD, PeerAddress},
};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn somebody(number: u16) -> PeerAddress {
    let id: NodeId = format!("peer{number}").parse().unwrap();
    PeerAddress { id, address: SocketAddr::from(([10, 0, 0, 1], number)) }
}

fn told(numbers: std::ops::Range<u16>) -> BlobMessage {
    BlobMessage::Peers(numbers.map(somebody).collect())
}

/// Lets time pass, and returns who was asked for peers, and when.
fn questions(swarm: &mut Swarm, now: &mut Timestamp, time: Duration) -> Vec<(Duration, PeerKey)> {
    let (from, until) = (*now, *now + time);
    let mut asked = Vec::new();
    let mut note = |swarm: &mut Swarm, now: Timestamp| {
        for action in actions(swarm) {
            if let Action::Send { peer, message: BlobMessage::PeersRequest } = action {
                asked.push((now - from, peer));
            }
        }
    };
    note(swarm, *now);
    while let Some(due) = swarm.next_timeout().filter(|due| *due <= until) {
        *now = due;
        swarm.handle_timeout(*now);
        note(swarm, *now);
    }
    *now = until;
    asked
}

/// Whom to connect to, and how many of them.
fn connects(swarm: &mut Swarm) -> Vec<(usize, usize)> {
    let connects = actions(swarm).into_iter().filter_map(|action| match action {
        Action::Connect { peers, most, .. } => Some((peers.len(), most)),
        _ => None,
    });
    connects.collect()
}

fn tells(swarm: &mut Swarm) -> Vec<(PeerKey, Vec<PeerKey>)> {
    let tells = actions(swarm).into_iter().filter_map(|action| match action {
        Action::TellPeers { peer, about } => Some((peer, about)),
        _ => None,
    });
    tells.collect()
}

#[test]
fn who_knows_too_few_asks_each_in_turn_and_ever_more_seldom() {
    let mut swarm = swarm(4, true);
    let mut now = Timestamp(0);
    for peer in 1..=3 {
        join(&mut swarm, now, peer, &[], Load::default());
    }
    let asked = questions(&mut swarm, &mut now, 29 * SECOND);
    let times: Vec<u128> = asked.iter().map(|(at, _)| at.as_millis()).collect();
    assert_eq!(times, [250, 1250, 3250], "then all have been asked");
    let whom: std::collections::BTreeSet<PeerKey> = asked.iter().map(|(_, peer)| *peer).collect();
    assert_eq!(whom.len(), 3);
    // Much later they are asked again, once in about half a minute in all.
    let asked = questions(&mut swarm, &mut now, 600 * SECOND);
    assert!((15..=20).contains(&asked.len()), "{asked:?}");
}

#[test]
fn nobody_is_asked_while_a_tracker_names_peers_or_enough_are_known() {
    let mut swarm = swarm(4, true);
    let mut now = Timestamp(0);
    join(&mut swarm, now, 1, &[], Load::default());
    for _ in 0..20 {
        swarm.handle_tracker(now);
        assert_eq!(questions(&mut swarm, &mut now, 4 * SECOND), []);
    }
    // Then it falls silent.
    assert_eq!(questions(&mut swarm, &mut now, 2 * SECOND), [(SECOND, PeerKey(1))]);
    // An answer that comes when a tracker has named peers is not needed.
    swarm.handle_tracker(now);
    swarm.handle_message(now, PeerKey(1), told(0..5));
    assert_eq!(connects(&mut swarm), []);
    let enough = u64::try_from(swarm.config.exchange_below).unwrap();
    for peer in 2..=enough {
        join(&mut swarm, now, peer, &[], Load::default());
    }
    assert_eq!(questions(&mut swarm, &mut now, 600 * SECOND), []);
    swarm.handle_peer_left(now, PeerKey(2));
    assert!(!questions(&mut swarm, &mut now, SECOND).is_empty());
}

#[test]
fn a_seeder_is_asked_first_and_one_that_had_no_room_too() {
    let mut swarm = swarm(4, true);
    let mut now = Timestamp(0);
    join(&mut swarm, now, 1, &[], Load::default());
    swarm.handle_seeder(PeerKey(9), None);
    join(&mut swarm, now, 9, &[0], Load::default());
    // Greeted, and answered by `Leave`.
    swarm.handle_peer(PeerKey(5), None);
    swarm.handle_message(now, PeerKey(5), BlobMessage::Leave);
    let asked = questions(&mut swarm, &mut now, 10 * SECOND);
    assert_eq!(asked.iter().map(|(_, peer)| *peer).collect::<Vec<_>>(), [PeerKey(9), PeerKey(5), PeerKey(1)]);
    // Whoever has no room is all that another one knows.
    let mut swarm = tests::swarm(4, true);
    swarm.handle_seeder(PeerKey(5), None);
    swarm.handle_message(now, PeerKey(5), BlobMessage::Leave);
    assert_eq!(questions(&mut swarm, &mut now, SECOND), [(Duration::from_millis(250), PeerKey(5))]);
    swarm.handle_peer_left(now, PeerKey(5));
    assert_eq!(swarm.next_timeout(), None, "it is gone");
}

#[test]
fn who_is_complete_or_has_nothing_to_fetch_asks_nobody() {
    // A seeder that is still fetching has its own source.
    let start = SwarmStart {
        geometry: geometry(4),
        have: Bitfield::new(4),
        hashes_known: 0,
        download: false,
        spread: true,
        seed: 7,
    };
    for mut swarm in [Swarm::new(SwarmConfig::default(), start), swarm(0, true)] {
        let mut now = Timestamp(0);
        join(&mut swarm, now, 1, &[], Load::default());
        assert_eq!(questions(&mut swarm, &mut now, 100 * SECOND), []);
    }
    let mut swarm = swarm(4, true);
    swarm.config.exchange_below = 0;
    let mut now = Timestamp(0);
    join(&mut swarm, now, 1, &[], Load::default());
    assert_eq!(questions(&mut swarm, &mut now, 100 * SECOND), []);
}

/// A member that lies decides neither when nor how often a node dials.
#[test]
fn only_the_first_answer_to_a_question_is_taken_and_only_as_much_as_is_lacking() {
    let mut swarm = swarm(4, true);
    let mut now = Timestamp(0);
    for peer in 1..=2 {
        join(&mut swarm, now, peer, &[], Load::default());
    }
    swarm.handle_message(now, PeerKey(1), told(1..50));
    assert_eq!(connects(&mut swarm), [], "nobody has asked");
    let asked = questions(&mut swarm, &mut now, SECOND);
    let (other, peer) = (PeerKey(3 - asked[0].1.0), asked[0].1);
    swarm.handle_message(now, other, told(1..50));
    assert_eq!(connects(&mut swarm), [], "another one was asked");
    swarm.handle_message(now, peer, told(1..50));
    assert_eq!(connects(&mut swarm), [(49, 14)]);
    // Not even when it comes again as if new.
    swarm.handle_message(now, peer, BlobMessage::Leave);
    join(&mut swarm, now, peer.0, &[], Load::default());
    for _ in 0..10 {
        swarm.handle_message(now, peer, told(1..50));
    }
    assert_eq!(connects(&mut swarm), []);
}

#[test]
fn addresses_of_nobody_and_the_same_again_are_left_out() {
    let mut swarm = swarm(4, true);
    let mut now = Timestamp(0);
    join(&mut swarm, now, 1, &[], Load::default());
    questions(&mut swarm, &mut now, SECOND);
    let mut peers: Vec<PeerAddress> =
        ["0.0.0.0:1", "[::]:1", "224.0.0.1:1", "255.255.255.255:1", "10.0.0.9:0", "[ff02::1]:1", "[::ffff:0.0.0.0]:1"]
            .iter()
            .zip(100..)
            .map(|(address, number)| PeerAddress { address: address.parse().unwrap(), ..somebody(number) })
            .collect();
    peers.extend([somebody(1), somebody(1)]);
    peers.push(PeerAddress { address: somebody(1).address, ..somebody(2) });
    peers.push(PeerAddress { address: somebody(3).address, ..somebody(1) });
    peers.push(somebody(4));
    swarm.handle_message(now, PeerKey(1), BlobMessage::Peers(peers));
    let connects = actions(&mut swarm).into_iter().find_map(|action| match action {
        Action::Connect { peers, .. } => Some(peers),
        _ => None,
    });
    assert_eq!(connects, Some(vec![somebody(1), somebody(4)]));
}

#[test]
fn an_answer_names_others_that_take_part() {
    let mut seeder = swarm(6, false);
    let now = Timestamp(0);
    for peer in 1..=3 {
        join(&mut seeder, now, peer, &[], Load::default());
    }
    // Named to us, and not heard of so far.
    seeder.handle_peer(PeerKey(4), None);
    join(&mut seeder, now, 5, &[], Load { requests: 0, spreading: true });
    seeder.handle_message(now, PeerKey(1), BlobMessage::PeersRequest);
    let mut told = tells(&mut seeder);
    told[0].1.sort_unstable();
    assert_eq!(told, [(PeerKey(1), vec![PeerKey(2), PeerKey(3)])]);
    // Not again at once, also when it left and came back; and others are answered.
    seeder.handle_message(now, PeerKey(1), BlobMessage::Leave);
    join(&mut seeder, now, 1, &[], Load::default());
    seeder.handle_message(now + 9 * SECOND, PeerKey(1), BlobMessage::PeersRequest);
    assert_eq!(tells(&mut seeder), []);
    seeder.handle_message(now + 10 * SECOND, PeerKey(1), BlobMessage::PeersRequest);
    // Somebody who is not in the swarm.
    seeder.handle_message(now, PeerKey(77), BlobMessage::PeersRequest);
    assert_eq!(
        tells(&mut seeder).iter().map(|(peer, about)| (peer.0, about.len())).collect::<Vec<_>>(),
        [(1, 2), (77, 3)]
    );
}

#[test]
fn answers_and_what_is_remembered_of_questions_are_bounded() {
    let mut seeder = swarm(6, false);
    seeder.config.max_peers = 100;
    let mut now = Timestamp(0);
    for peer in 0..100 {
        seeder.handle_greeting(PeerKey(peer), None);
        join(&mut seeder, now, peer, &[], Load::default());
    }
    let mut answers = 0;
    for peer in 0..5_000 {
        seeder.handle_message(now, PeerKey(peer), BlobMessage::PeersRequest);
        for (_, about) in tells(&mut seeder) {
            assert_eq!(about.len(), MAX_PEERS_TOLD);
            answers += 1;
        }
    }
    assert_eq!(answers, 1024);
    now = now + 10 * SECOND;
    seeder.handle_message(now, PeerKey(4_999), BlobMessage::PeersRequest);
    assert_eq!(tells(&mut seeder).len(), 1);
}

#[test]
fn most_of_an_answer_is_near_who_asks() {
    let place = |zone: &str| Topology { zone: Some(zone.to_owned()), ..Topology::default() };
    let group = |zone: &str| place(zone).group_seen_from(&place("here"));
    let mut seeder = swarm(6, false);
    seeder.config.max_peers = 300;
    let now = Timestamp(0);
    let handshake = || BlobMessage::Handshake {
        geometry: geometry(6),
        bitfield: vec![0],
        load: Load::default(),
        rate: HostRate::UNKNOWN,
    };
    for peer in 0..200 {
        seeder.handle_greeting(PeerKey(peer), group(if peer % 2 == 0 { "a" } else { "b" }));
        seeder.handle_message(now, PeerKey(peer), handshake());
    }
    seeder.handle_message(now, PeerKey(0), BlobMessage::PeersRequest);
    let told = tells(&mut seeder);
    let near = told[0].1.iter().filter(|peer| peer.0 % 2 == 0).count();
    assert_eq!((told[0].1.len(), near), (50, 38));
}
