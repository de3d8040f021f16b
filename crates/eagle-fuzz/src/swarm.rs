//! The state machine of a swarm: whatever happens in whatever order.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use eagle_core::{
    Bitfield, Boundary, FarGroup, Geometry, PieceIndex, Timestamp,
    swarm::{Action, PeerKey, RequestId, Swarm, SwarmConfig, SwarmStart, Verdict},
    wire::{
        control::{BlobMessage, HostRate, Load, MAX_PEERS_TOLD, PeerAddress},
        data::RejectReason,
    },
};

const PIECES: u32 = 12;
/// More than the machine knows of at a time with this configuration.
const PEERS: u8 = 8;

/// Takes bytes off the input; zeros when there are none left.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn peer(&mut self) -> PeerKey {
        PeerKey(u64::from(self.byte() % PEERS))
    }

    fn piece(&mut self) -> PieceIndex {
        PieceIndex(u32::from(self.byte()) % (PIECES + 2))
    }

    fn request(&mut self) -> RequestId {
        RequestId(u32::from(self.byte()))
    }

    fn load(&mut self) -> Load {
        let byte = self.byte();
        Load { requests: u16::from(byte >> 1), spreading: byte & 1 == 1 }
    }

    fn address(&mut self) -> Option<PeerAddress> {
        let (id, host, port) = (self.byte(), self.byte(), self.byte());
        let ip = IpAddr::from([host, 0, 0, host]);
        Some(PeerAddress { id: format!("peer{id}").parse().ok()?, address: SocketAddr::new(ip, u16::from(port)) })
    }

    fn group(&mut self) -> Option<FarGroup> {
        let byte = self.byte();
        let boundary = Boundary::ALL[usize::from(byte >> 1) % Boundary::ALL.len()];
        (byte & 1 == 1).then(|| FarGroup { boundary, number: u64::from(byte >> 6) })
    }
}

/// Each byte is an event, the bytes after it what it needs.
pub(crate) fn run(bytes: &[u8]) {
    let Ok(geometry) = Geometry::new(u64::from(PIECES) << 16, 1 << 16) else { return };
    let mut input = Input(bytes);
    let first = input.byte();
    let download = first & 1 == 0;
    let start = SwarmStart {
        geometry,
        have: if download { Bitfield::new(PIECES) } else { Bitfield::full(PIECES) },
        hashes_known: if first & 2 == 0 { PIECES } else { 0 },
        download,
        spread: !download,
        seed: u64::from(first),
    };
    let config = SwarmConfig { max_peers: 5, greeted_peers: 3, ..SwarmConfig::default() };
    // Seeders are let in beyond the limit, a few.
    let most_peers = config.max_peers + 4;
    let most_greeted = config.exchange_below;
    let mut swarm = Swarm::new(config, start);
    let mut now = Timestamp(1 << 40);
    let mut owned = swarm.have().count();
    while !input.0.is_empty() {
        event(&mut swarm, &mut now, &mut input, geometry);
        let mut actions = 0;
        while let Some(action) = swarm.poll_action() {
            actions += 1;
            assert!(actions <= 128, "{action:?} and {actions} more after one event");
            match action {
                Action::Request { piece: Some(piece), .. } => {
                    assert!(!swarm.have().contains(piece), "{piece} is owned");
                }
                // Whatever a peer tells: not more than a node greets, each address once.
                Action::Connect { peers, most, .. } => {
                    let addresses: BTreeSet<_> = peers.iter().map(|peer| peer.address).collect();
                    assert!(most <= most_greeted && addresses.len() == peers.len(), "{most} of {peers:?}");
                }
                Action::TellPeers { peer, about } => {
                    assert!(about.len() <= MAX_PEERS_TOLD && !about.contains(&peer));
                    assert!(about.iter().all(|peer| swarm.has_peer(*peer)), "{about:?}");
                }
                _ => {}
            }
        }
        assert!(swarm.peer_count() <= most_peers, "{} peers", swarm.peer_count());
        assert!(swarm.have().count() >= owned, "a piece was lost");
        owned = swarm.have().count();
    }
    // Whoever leaves is forgotten.
    for peer in 0..PEERS {
        swarm.handle_peer_left(now, PeerKey(u64::from(peer)));
        while swarm.poll_action().is_some() {}
    }
    assert_eq!(swarm.peer_count(), 0);
    assert_eq!(swarm.requested(), 0, "requests of peers that have left");
}

fn event(swarm: &mut Swarm, now: &mut Timestamp, input: &mut Input<'_>, geometry: Geometry) {
    let at = *now;
    match input.byte() % 24 {
        0 => swarm.handle_peer(input.peer(), input.group()),
        1 => swarm.handle_seeder(input.peer(), input.group()),
        2 => swarm.handle_greeting(input.peer(), input.group()),
        3 => swarm.handle_peer_left(at, input.peer()),
        4 => {
            let bitfield = vec![input.byte(), input.byte() & 0xf0];
            let (load, rate) = (input.load(), HostRate(u64::from(input.byte()) << 16));
            swarm.handle_message(at, input.peer(), BlobMessage::Handshake { geometry, bitfield, load, rate });
        }
        5 => {
            let pieces = (0..input.byte() % 8).map(|_| input.piece().0).collect();
            swarm.handle_message(at, input.peer(), BlobMessage::Have { pieces, load: input.load() });
        }
        6 => swarm.handle_message(at, input.peer(), BlobMessage::Load(input.load())),
        7 => {
            let message = match input.byte() % 6 {
                0 => BlobMessage::Interested,
                1 => BlobMessage::NotInterested,
                2 => BlobMessage::Choke,
                3 => BlobMessage::Leave,
                4 => BlobMessage::PeersRequest,
                _ => BlobMessage::Unchoke,
            };
            swarm.handle_message(at, input.peer(), message);
        }
        8 => drop(swarm.handle_started(at, input.request(), input.piece(), input.load())),
        9 => swarm.handle_progress(at, input.request()),
        10 => {
            let (id, piece, peer) = (input.request(), input.piece(), input.peer());
            if swarm.handle_received(at, id, piece) {
                let verdict = match input.byte() % 4 {
                    0 => Verdict::Corrupt,
                    1 => Verdict::NotStored,
                    _ => Verdict::Stored,
                };
                swarm.handle_verified(at, peer, piece, verdict);
            }
        }
        11 => {
            let reasons = [
                RejectReason::NotHere,
                RejectReason::Choked,
                RejectReason::NothingToSpread,
                RejectReason::Cancelled,
                RejectReason::Failed,
            ];
            let reason = reasons[usize::from(input.byte()) % reasons.len()];
            swarm.handle_rejected(at, input.request(), reason, input.load());
        }
        12 => swarm.handle_failed(at, input.request()),
        13 => {
            let (peer, piece) = (input.peer(), input.byte());
            let asked = (piece & 1 == 0).then_some(PieceIndex(u32::from(piece) % (PIECES + 2)));
            if let Ok(piece) = swarm.handle_request(at, peer, asked) {
                assert!(swarm.have().contains(piece), "{piece} is given and not owned");
            }
        }
        14 => swarm.handle_uploaded(input.peer(), input.piece(), input.byte() & 1 == 0),
        15 => {
            let piece = input.piece();
            if swarm.claim(piece) {
                swarm.release(at, piece);
            }
        }
        16 => swarm.handle_position(input.piece()),
        17 => swarm.handle_hashes(at, input.piece().0),
        18 => swarm.handle_requested_before(at, usize::from(input.byte() % 16)),
        19 => swarm.handle_node_load(u16::from(input.byte())),
        20 => {
            let until = at + Duration::from_millis(u64::from(input.byte()) * 40);
            let mut wakes = 0;
            while let Some(due) = swarm.next_timeout().filter(|due| *due <= until) {
                *now = due.max(*now);
                swarm.handle_timeout(*now);
                assert!(swarm.next_timeout().is_none_or(|next| next > *now), "woken again for nothing");
                wakes += 1;
                assert!(wakes < 1000, "woken {wakes} times");
                while swarm.poll_action().is_some() {}
            }
            *now = until;
        }
        // A clock that goes back.
        21 => *now = Timestamp(at.0.saturating_sub(u64::from(input.byte()) << 26)),
        22 => swarm.handle_tracker(at),
        _ => {
            let peer = input.peer();
            let told = (0..input.byte() % 64).filter_map(|_| input.address()).collect();
            swarm.handle_message(at, peer, BlobMessage::Peers(told));
        }
    }
}
