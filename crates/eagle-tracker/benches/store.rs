//! What the store in memory costs a tracker of a large cluster: announces of what is known, and nodes that expire, together and one by one.
//!
//! `cargo bench -p eagle-tracker --bench store`
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

use std::time::{Duration, Instant};

use eagle_core::{Digest, Geometry, PeerInfo, PieceSet, Timestamp, Topology};
use eagle_tracker::{
    BlobAnnounce, Event,
    store::{MemoryStore, PeerStore as _, StoreLimits},
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// The cluster that is aimed at: nodes, blobs, and blobs of a node.
const CLUSTER: (usize, usize, usize) = (15_000, 5_000, 500);
/// Blobs in an announce, and announces that are measured.
const ANNOUNCES: (usize, usize) = (25, 50_000);
/// One node in so many goes on when the others fall silent.
const SURVIVORS: usize = 20;
/// How long a silent node is alive.
const TTL: Duration = Duration::from_secs(90);

fn node(number: usize) -> PeerInfo {
    let topology = Topology {
        region: None,
        zone: Some(format!("zone-{}", number % 4)),
        rack: Some(format!("rack-{}", number % 97)),
    };
    PeerInfo { id: format!("node{number}").parse().unwrap(), topology, ..PeerInfo::example() }
}

/// What a node has: a run of blobs from a place of its own, spread over all.
fn blobs(node: usize, digests: &[Digest], count: usize) -> Vec<BlobAnnounce> {
    let own = |number: usize| BlobAnnounce {
        digest: digests[(node * 31 + number * 9) % digests.len()],
        geometry: Geometry::auto(32 << 20).unwrap(),
        pieces: PieceSet::Complete,
        event: Event::Progress,
        want_peers: false,
    };
    (0..count).map(own).collect()
}

/// Sweeps until nothing is left; prints what it took.
async fn sweep(store: &MemoryStore, now: Timestamp, what: &str) {
    let (before, began) = (store.stats(), Instant::now());
    let (mut calls, mut longest) = (0_u32, Duration::ZERO);
    for _ in 0..store.sweep_parts() {
        loop {
            let call = Instant::now();
            let more = store.sweep(now).await;
            longest = longest.max(call.elapsed());
            calls += 1;
            if !more {
                break;
            }
        }
    }
    let (took, after) = (began.elapsed(), store.stats());
    let entries = before.entries - after.entries;
    println!(
        "{what}: {} nodes, {entries} pairs: {:.3} s in {calls} calls, {:.2} us a pair, longest call {:.2} ms",
        before.peers - after.peers,
        took.as_secs_f64(),
        took.as_secs_f64() * 1e6 / entries as f64,
        longest.as_secs_f64() * 1e3
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (nodes, blob_count, own) = CLUSTER;
    let limits = StoreLimits { ttl: TTL, peers: nodes, blobs: blob_count, peers_per_blob: nodes, blobs_per_peer: own };
    let store = MemoryStore::new(limits);
    let digests: Vec<Digest> = (0..blob_count).map(|number| Digest::of(&number.to_le_bytes())).collect();
    let infos: Vec<PeerInfo> = (0..nodes).map(node).collect();
    for (number, info) in infos.iter().enumerate() {
        store.announce(info, true, &blobs(number, &digests, own), Timestamp(0)).await.unwrap();
    }

    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for at_a_time in [1, ANNOUNCES.0] {
        // Made before, since making them takes longer.
        let announces: Vec<_> = (0..ANNOUNCES.1)
            .map(|_| {
                let number = rng.random_range(0..nodes);
                let first = rng.random_range(0..own - at_a_time);
                (number, blobs(number, &digests, own)[first..first + at_a_time].to_vec())
            })
            .collect();
        let began = Instant::now();
        for (number, blobs) in &announces {
            let applied = store.announce(&infos[*number], false, blobs, Timestamp(1)).await.unwrap();
            assert!(applied.known && applied.refused.is_empty());
        }
        let micros = began.elapsed().as_secs_f64() * 1e6 / announces.len() as f64;
        println!("an announce of {at_a_time} known: {micros:.2} us, {:.3} us a blob", micros / at_a_time as f64);
    }

    // A handful of nodes, then nearly all.
    let (soon, later) = (Timestamp(0) + TTL, Timestamp(0) + TTL + TTL / 2);
    for info in infos.iter().skip(100) {
        store.announce(info, false, &[], Timestamp(0) + (TTL - Duration::from_secs(1))).await.unwrap();
    }
    sweep(&store, soon + Duration::from_secs(1), "few expire").await;
    for info in infos.iter().skip(100).step_by(SURVIVORS) {
        store.announce(info, false, &[], later).await.unwrap();
    }
    sweep(&store, soon + TTL, "nearly all expire").await;
}
