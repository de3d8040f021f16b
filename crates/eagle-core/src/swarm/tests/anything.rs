//! Whatever happens in whatever order, the state machine keeps what it promises.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::wire::control::MAX_PEERS_TOLD;

const PIECES: u32 = 10;
const PEERS: u64 = 4;

/// Something that happens to a swarm, from a hostile or unlucky outside.
#[derive(Debug, Clone)]
enum Happening {
    Join(u64, Vec<u8>),
    Greeted(u64),
    Leave(u64),
    Message(u64, BlobMessage),
    Started(u32, u32),
    Progress(u32),
    Received(u32, u32),
    Verified(u64, u32, Verdict),
    Rejected(u32, RejectReason),
    Failed(u32),
    Asked(u64, Option<u32>),
    Uploaded(u64, u32, bool),
    Claim(u32),
    Release(u32),
    Position(u32),
    Hashes(u32),
    Earlier(usize),
    Tracker,
    /// A peer tells of so many others.
    Told(u64, u16),
    /// The clock moves on, and everything that is due happens.
    Pause(Duration),
    /// The clock jumps back by this much.
    Back(Duration),
    /// The alarm rings although nothing is due.
    Alarm,
}

fn happening() -> impl Strategy<Value = Happening> {
    let peer = 0..PEERS;
    let piece = 0..PIECES + 2;
    let id = 0u32..40;
    let load = (0u16..20, any::<bool>()).prop_map(|(requests, spreading)| Load { requests, spreading });
    let message = prop_oneof![
        (proptest::collection::vec(0..PIECES + 2, 0..4), load.clone())
            .prop_map(|(pieces, load)| BlobMessage::Have { pieces, load }),
        load.prop_map(BlobMessage::Load),
        Just(BlobMessage::Interested),
        Just(BlobMessage::NotInterested),
        Just(BlobMessage::Choke),
        Just(BlobMessage::Unchoke),
        Just(BlobMessage::Unchoke),
        Just(BlobMessage::Leave),
        Just(BlobMessage::PeersRequest),
    ];
    let reason = prop_oneof![
        Just(RejectReason::NotHere),
        Just(RejectReason::Choked),
        Just(RejectReason::NothingToSpread),
        Just(RejectReason::Cancelled),
        Just(RejectReason::Failed)
    ];
    let verdict = prop_oneof![Just(Verdict::Stored), Just(Verdict::Corrupt), Just(Verdict::NotStored)];
    prop_oneof![
        (peer.clone(), any::<[u8; 2]>()).prop_map(|(peer, bits)| Happening::Join(peer, vec![bits[0], bits[1] & 0xc0])),
        peer.clone().prop_map(Happening::Greeted),
        peer.clone().prop_map(Happening::Leave),
        (peer.clone(), message).prop_map(|(peer, message)| Happening::Message(peer, message)),
        (id.clone(), piece.clone()).prop_map(|(id, piece)| Happening::Started(id, piece)),
        id.clone().prop_map(Happening::Progress),
        (id.clone(), piece.clone()).prop_map(|(id, piece)| Happening::Received(id, piece)),
        (peer.clone(), piece.clone(), verdict).prop_map(|(peer, piece, v)| Happening::Verified(peer, piece, v)),
        (id.clone(), reason).prop_map(|(id, reason)| Happening::Rejected(id, reason)),
        id.prop_map(Happening::Failed),
        (peer.clone(), proptest::option::of(piece.clone())).prop_map(|(peer, piece)| Happening::Asked(peer, piece)),
        (peer.clone(), piece.clone(), any::<bool>()).prop_map(|(peer, piece, ok)| Happening::Uploaded(peer, piece, ok)),
        piece.clone().prop_map(Happening::Claim),
        piece.clone().prop_map(Happening::Release),
        piece.clone().prop_map(Happening::Position),
        piece.prop_map(Happening::Hashes),
        (0usize..12).prop_map(Happening::Earlier),
        (0u64..8000).prop_map(|ms| Happening::Pause(Duration::from_millis(ms))),
        (0u64..8000).prop_map(|ms| Happening::Back(Duration::from_millis(ms))),
        Just(Happening::Tracker),
        (peer, 0u16..60).prop_map(|(peer, count)| Happening::Told(peer, count)),
        Just(Happening::Alarm),
    ]
}

fn happen(swarm: &mut Swarm, now: &mut Timestamp, happening: Happening) -> Result<(), TestCaseError> {
    let at = *now;
    match happening {
        Happening::Join(peer, bitfield) => {
            swarm.handle_greeting(PeerKey(peer), None);
            let handshake = BlobMessage::Handshake {
                geometry: geometry(PIECES),
                bitfield,
                load: Load::default(),
                rate: HostRate::UNKNOWN,
            };
            swarm.handle_message(at, PeerKey(peer), handshake);
        }
        Happening::Greeted(peer) => swarm.handle_peer(PeerKey(peer), None),
        Happening::Leave(peer) => swarm.handle_peer_left(at, PeerKey(peer)),
        Happening::Message(peer, message) => swarm.handle_message(at, PeerKey(peer), message),
        Happening::Started(id, piece) => {
            swarm.handle_started(at, RequestId(id), PieceIndex(piece), Load::default());
        }
        Happening::Progress(id) => swarm.handle_progress(at, RequestId(id)),
        Happening::Received(id, piece) => {
            swarm.handle_received(at, RequestId(id), PieceIndex(piece));
        }
        Happening::Verified(peer, piece, verdict) => {
            swarm.handle_verified(at, PeerKey(peer), PieceIndex(piece), verdict);
        }
        Happening::Rejected(id, reason) => swarm.handle_rejected(at, RequestId(id), reason, Load::default()),
        Happening::Failed(id) => swarm.handle_failed(at, RequestId(id)),
        Happening::Asked(peer, piece) => {
            if let Ok(piece) = swarm.handle_request(at, PeerKey(peer), piece.map(PieceIndex)) {
                prop_assert!(swarm.have().contains(piece));
            }
        }
        Happening::Uploaded(peer, piece, ok) => swarm.handle_uploaded(PeerKey(peer), PieceIndex(piece), ok),
        Happening::Claim(piece) => {
            swarm.claim(PieceIndex(piece));
        }
        Happening::Release(piece) => swarm.release(at, PieceIndex(piece)),
        Happening::Position(piece) => swarm.handle_position(PieceIndex(piece)),
        Happening::Hashes(known) => swarm.handle_hashes(at, known),
        Happening::Earlier(requests) => swarm.handle_requested_before(at, requests),
        Happening::Tracker => swarm.handle_tracker(at),
        Happening::Told(peer, count) => {
            let peers = (0..count).map(exchange_tests::somebody).collect();
            swarm.handle_message(at, PeerKey(peer), BlobMessage::Peers(peers));
        }
        Happening::Pause(pause) => {
            let until = at + pause;
            let mut wakes = 0;
            while let Some(due) = swarm.next_timeout().filter(|due| *due <= until) {
                *now = due.max(*now);
                swarm.handle_timeout(*now);
                prop_assert!(swarm.next_timeout().is_none_or(|next| next > *now), "woken again for nothing");
                wakes += 1;
                prop_assert!(wakes < 500, "woken {wakes} times in {pause:?}");
                check(swarm)?;
            }
            *now = until;
        }
        Happening::Back(by) => *now = Timestamp(at.0.saturating_sub(u64::try_from(by.as_nanos()).unwrap())),
        Happening::Alarm => swarm.handle_timeout(at),
    }
    Ok(())
}

/// What holds after every event.
fn check(swarm: &mut Swarm) -> Result<(), TestCaseError> {
    let done = actions(swarm);
    // To each peer a handful of messages and a request, its cancel, or a ban for each of its requests.
    prop_assert!(done.len() <= 64, "{} actions after one event", done.len());
    for action in done {
        if let Action::Connect { peers, most, .. } = &action {
            prop_assert!(peers.len() <= MAX_PEERS_TOLD && (1..=swarm.config.exchange_below).contains(most));
        }
        if let Action::TellPeers { peer, about } = &action {
            prop_assert!(about.len() <= MAX_PEERS_TOLD && !about.contains(peer));
            prop_assert!(about.iter().all(|peer| swarm.peers.contains_key(peer)));
        }
        if let Action::Request { piece: Some(piece), peer, .. } = action {
            prop_assert!(!swarm.have().contains(piece), "{piece} is owned");
            prop_assert!(!swarm.unknown.contains(piece), "{piece} has no hash");
            // A request that failed at once may have taken the piece from the peer's list.
            prop_assert!(swarm.peers.contains_key(&peer));
        }
    }
    let limits = &swarm.config;
    prop_assert!(swarm.requests.chosen() <= limits.requests_in_flight + 1);
    prop_assert!(
        swarm.requests.len()
            <= usize::try_from(PEERS).unwrap() * (limits.requests_per_peer + 1 + limits.least_in_flight)
    );
    prop_assert!(swarm.requests.given_up() <= 64);
    let mut in_flight = std::collections::BTreeMap::<PeerKey, usize>::new();
    for (_, request) in swarm.requests.iter() {
        *in_flight.entry(request.peer).or_default() += 1;
    }
    for (key, state) in swarm.peers.iter() {
        prop_assert_eq!(state.in_flight, in_flight.get(key).copied().unwrap_or(0));
        prop_assert!(state.in_flight >= state.any_in_flight);
        prop_assert!(state.uploads <= limits.requests_held_per_peer);
    }
    for piece in swarm.geometry().all() {
        let owners = swarm.peers.values().filter(|state| state.have.contains(piece)).count();
        prop_assert_eq!(usize::from(swarm.availability[piece.0 as usize]), owners);
        // Nothing stays taken that nobody brings.
        let brought = swarm.requests.wants(piece) || swarm.settling.contains(piece);
        prop_assert!(!swarm.busy.contains(piece) || brought, "{piece} is lost");
    }
    Ok(())
}

proptest! {
    /// Whatever happens in whatever order, the machine neither panics, nor loses what it owns, nor
    /// asks for what it owns or for more than it may, nor loses sight of a piece, nor wakes its driver
    /// without getting anywhere; clocks that stand still or go back included.
    #[test]
    fn survives_anything(happenings in proptest::collection::vec(happening(), 0..200), seeder: bool) {
        let mut swarm = swarm(PIECES, !seeder);
        let mut now = Timestamp(1 << 40);
        let mut owned = swarm.have().count();
        for happening in happenings {
            happen(&mut swarm, &mut now, happening)?;
            check(&mut swarm)?;
            prop_assert!(swarm.have().count() >= owned);
            owned = swarm.have().count();
        }
    }
}
