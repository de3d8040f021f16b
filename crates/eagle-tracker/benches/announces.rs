//! Writing and reading announces and their answers, in both encodings.
//!
//! `cargo bench -p eagle-tracker --bench announces`
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use eagle_core::{Digest, Geometry, PeerInfo, PieceSet, Topology};
use eagle_tracker::{AnnounceRequest, AnnounceResponse, BlobAnnounce, BlobPeers, Event, SwarmPeer, encoding::Encoding};

/// Blobs of an announce in full: a node with a cache in use.
const BLOBS: u32 = 200;
/// Peers in an answer.
const NAMED: usize = 40;

fn node(number: usize) -> PeerInfo {
    let topology = Topology { region: None, zone: Some(format!("zone-{}", number % 4)), rack: None };
    PeerInfo { id: format!("12D3KooW{number:044}").parse().unwrap(), topology, ..PeerInfo::example() }
}

fn blob(number: u32, want_peers: bool) -> BlobAnnounce {
    let pieces = if want_peers { PieceSet::Prefix(7) } else { PieceSet::Complete };
    BlobAnnounce {
        digest: Digest::of(&number.to_le_bytes()),
        geometry: Geometry::auto(64 << 20).unwrap(),
        pieces,
        event: if want_peers { Event::Progress } else { Event::Completed },
        want_peers,
    }
}

fn requests(criterion: &mut Criterion) {
    let progress = AnnounceRequest { blobs: vec![blob(0, true)], ..AnnounceRequest::of(node(0)) };
    let blobs = (0..BLOBS).map(|number| blob(number, false)).collect();
    let full = AnnounceRequest { blobs, full: true, ..AnnounceRequest::of(node(0)) };
    let mut group = criterion.benchmark_group("announce");
    for (what, request) in [("1 blob", progress), ("200 blobs", full)] {
        for (name, encoding) in [("protobuf", Encoding::Protobuf), ("JSON", Encoding::Json)] {
            let bytes = encoding.encode_request(&request).unwrap();
            assert_eq!(encoding.decode_request(&bytes).unwrap(), request);
            group.throughput(Throughput::Elements(request.blobs.len() as u64));
            group.bench_function(format!("decode {what}, {name}"), |bencher| {
                bencher.iter(|| encoding.decode_request(black_box(&bytes)));
            });
            group.bench_function(format!("encode {what}, {name}"), |bencher| {
                bencher.iter(|| encoding.encode_request(black_box(&request)));
            });
        }
    }
}

fn answers(criterion: &mut Criterion) {
    let peers = (1..=NAMED).map(|number| SwarmPeer { info: node(number), pieces: PieceSet::Prefix(9) }).collect();
    let response = AnnounceResponse {
        interval_seconds: 10.0,
        send_full: false,
        topology: None,
        peers: vec![BlobPeers { digest: Digest::of(b"blob"), peers }],
        refused: Vec::new(),
        seeders_version: Some(3),
    };
    let mut group = criterion.benchmark_group("answer with 40 peers");
    for (name, encoding) in [("protobuf", Encoding::Protobuf), ("JSON", Encoding::Json)] {
        let bytes = encoding.encode_response(&response).unwrap();
        assert_eq!(encoding.decode_response(&bytes).unwrap(), response);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("encode, {name}"), |bencher| {
            bencher.iter(|| encoding.encode_response(black_box(&response)));
        });
        group.bench_function(format!("decode, {name}"), |bencher| {
            bencher.iter(|| encoding.decode_response(black_box(&bytes)));
        });
    }
}

criterion_group!(benches, requests, answers);
criterion_main!(benches);
