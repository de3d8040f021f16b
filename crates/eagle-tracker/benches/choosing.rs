//! What it costs a tracker to choose peers for one asker, by the size of the swarm: looking at its members, and the policy.
//!
//! `cargo bench -p eagle-tracker --bench choosing`
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

use std::time::{Duration, Instant};

use eagle_core::{
    Digest, Geometry, PeerInfo, PieceSet, Place, Timestamp, Topology,
    tracker::{Flows, Ownership},
};
use eagle_tracker::{
    BlobAnnounce, Event,
    policy::{Asker, DefaultPolicy, PeerPolicy as _},
    store::{MemoryStore, PeerStore as _, StoreLimits},
};

/// How long each swarm is asked about.
const TIME: Duration = Duration::from_secs(2);
/// Peers in a list.
const NAMED: usize = 40;
/// Zones of the nodes, and racks of each.
const PLACES: (usize, usize) = (4, 10);
/// Time between two askers: a thousand each second.
const STEP: Duration = Duration::from_millis(1);

fn node(number: usize) -> PeerInfo {
    let (zone, rack) = (number % PLACES.0, number / PLACES.0 % PLACES.1);
    let topology = Topology { region: None, zone: Some(format!("zone-{zone}")), rack: Some(format!("{zone}-{rack}")) };
    PeerInfo { id: format!("node{number}").parse().unwrap(), topology, ..PeerInfo::example() }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("{:>8} {:>10} {:>12} {:>12} {:>12}", "members", "seen", "look µs", "choice µs", "longest µs");
    for members in [50, 500, 1_000, 5_000, 15_000] {
        let limits = StoreLimits {
            ttl: Duration::from_secs(1 << 20),
            peers: members,
            blobs: 1,
            peers_per_blob: members,
            blobs_per_peer: 1,
        };
        let store = MemoryStore::new(limits);
        let (digest, geometry) = (Digest::of(b"blob"), Geometry::auto(1 << 30).unwrap());
        let nodes: Vec<PeerInfo> = (0..members).map(node).collect();
        for (number, node) in nodes.iter().enumerate() {
            let pieces = PieceSet::Prefix(u32::try_from(number).unwrap() % geometry.pieces());
            let blob = BlobAnnounce { digest, geometry, pieces, event: Event::Started, want_peers: true };
            store.announce(node, true, &[blob], Timestamp(0)).await.unwrap();
        }
        let pieces = Ownership::new(&PieceSet::Prefix(7), geometry.pieces()).unwrap();
        let (started, flows) = (Instant::now(), Flows::default());
        let (mut looks, mut choices, mut longest) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let (mut rounds, mut seen, mut now) = (0_u32, 0, Timestamp(0));
        while started.elapsed() < TIME {
            let asker = &nodes[rounds as usize % members];
            now = now + STEP;
            let begun = Instant::now();
            let view = store.view(digest, &asker.id, u64::from(rounds), now).await.unwrap();
            let looked = begun.elapsed();
            seen += view.candidates.len();
            let asker = Asker { place: Place::from(&asker.topology), pieces: &pieces };
            let named = DefaultPolicy.select(asker, &view.candidates, &flows, NAMED, u64::from(rounds));
            let chosen = begun.elapsed();
            assert!(!named.is_empty());
            (looks, choices, longest) = (looks + looked, choices + (chosen - looked), longest.max(chosen));
            rounds += 1;
        }
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        println!(
            "{members:>8} {:>10} {:>12.1} {:>12.1} {:>12.0}",
            seen / rounds as usize,
            micros(looks / rounds),
            micros(choices / rounds),
            micros(longest)
        );
    }
}
