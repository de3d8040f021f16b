//! A whole download by the swarm state machine alone: choosing whom to ask for what, and taking the answers.
//!
//! `cargo bench -p eagle-core --bench swarm`
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use eagle_core::{
    Bitfield, Geometry, Timestamp,
    swarm::{Action, PeerKey, Swarm, SwarmConfig, SwarmStart, Verdict},
    wire::control::{BlobMessage, HostRate, Load},
};

/// Pieces of the blob: 1 GiB in pieces of 1 MiB.
const PIECES: u32 = 1_024;
/// Time that a piece takes, of the machine's own clock.
const STEP: Duration = Duration::from_millis(1);

/// A node that owns nothing, and so many neighbours that own everything and serve it.
fn begin(neighbours: u64) -> Swarm {
    let geometry = Geometry::new(u64::from(PIECES) << 20, 1 << 20).unwrap();
    let start = SwarmStart {
        geometry,
        have: Bitfield::new(PIECES),
        hashes_known: PIECES,
        download: true,
        spread: false,
        seed: 1,
    };
    let mut swarm = Swarm::new(SwarmConfig::default(), start);
    let bitfield = Bitfield::full(PIECES).to_bytes();
    for peer in (0..neighbours).map(PeerKey) {
        swarm.handle_greeting(peer, None);
        let handshake = BlobMessage::Handshake {
            geometry,
            bitfield: bitfield.clone(),
            load: Load::default(),
            rate: HostRate::UNKNOWN,
        };
        swarm.handle_message(Timestamp(0), peer, handshake);
        swarm.handle_message(Timestamp(0), peer, BlobMessage::Unchoke);
    }
    swarm
}

/// Answers every request at once and with the right bytes until all is there.
fn finish(swarm: &mut Swarm) {
    let mut now = Timestamp(0);
    while !swarm.is_complete() {
        now = now + STEP;
        match swarm.poll_action() {
            Some(Action::Request { peer, id, piece }) => {
                let piece = piece.unwrap();
                if swarm.handle_started(now, id, piece, Load::default()) && swarm.handle_received(now, id, piece) {
                    swarm.handle_verified(now, peer, piece, Verdict::Stored);
                }
            }
            Some(_) => {}
            None => {
                now = now.max(swarm.next_timeout().unwrap());
                swarm.handle_timeout(now);
            }
        }
    }
}

fn download(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("download of 1,024 pieces");
    group.throughput(Throughput::Elements(u64::from(PIECES)));
    for neighbours in [4, 16, 64] {
        group.bench_function(format!("from {neighbours} neighbours"), |bencher| {
            bencher.iter_batched_ref(|| begin(neighbours), finish, BatchSize::LargeInput);
        });
    }
}

criterion_group!(benches, download);
criterion_main!(benches);
