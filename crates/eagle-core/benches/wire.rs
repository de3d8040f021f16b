//! Encoding and decoding of the control messages and of the framing of data channels.
//!
//! `cargo bench -p eagle-core --bench wire`
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use eagle_core::{
    Bitfield, Digest, Geometry, PieceIndex,
    wire::{
        control::{self, BlobMessage, ControlMessage, HostRate, Load},
        data::{Answer, Ask},
    },
};

/// Pieces of the blob whose bitfield is sent.
const PIECES: u32 = 2_048;

fn messages() -> [(&'static str, ControlMessage); 3] {
    let digest = Digest::of(b"blob");
    let load = Load { requests: 3, spreading: false };
    let geometry = Geometry::new(u64::from(PIECES) << 20, 1 << 20).unwrap();
    let bitfield = Bitfield::full(PIECES).to_bytes();
    [
        (
            "handshake with 2,048 pieces",
            ControlMessage::Blob(digest, BlobMessage::Handshake { geometry, bitfield, load, rate: HostRate(50 << 20) }),
        ),
        (
            "have of 8 pieces",
            ControlMessage::Blob(digest, BlobMessage::Have { pieces: (1_000..1_008).collect(), load }),
        ),
        ("load", ControlMessage::Blob(digest, BlobMessage::Load(load))),
    ]
}

fn control_messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("control message");
    for (name, message) in messages() {
        let mut encoded = BytesMut::new();
        control::encode(&message, &mut encoded).unwrap();
        assert_eq!(control::decode(&mut encoded.clone()), Ok(Some(message.clone())));
        group.bench_function(format!("encode a {name}"), |bencher| {
            let mut out = BytesMut::with_capacity(control::MAX_MESSAGE);
            bencher.iter(|| {
                out.clear();
                control::encode(black_box(&message), &mut out)
            });
        });
        group.bench_function(format!("decode a {name}"), |bencher| {
            bencher.iter_batched_ref(|| encoded.clone(), control::decode, BatchSize::SmallInput);
        });
    }
}

fn data_frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("data channel");
    let ask = Ask::Request { id: 7, digest: Digest::of(b"blob"), piece: Some(PieceIndex(9)) };
    let load = Load { requests: 3, spreading: false };
    let answer = Answer::Piece { id: 7, piece: PieceIndex(9), length: 1 << 20, load };
    let (mut asked, mut answered) = (BytesMut::new(), BytesMut::new());
    ask.encode(&mut asked);
    answer.encode(&mut answered);
    assert_eq!(Ask::decode(&mut asked.clone()), Ok(Some(ask)));
    assert_eq!(Answer::decode(&mut answered.clone()), Ok(Some(answer)));
    let mut out = BytesMut::with_capacity(asked.len());
    group.bench_function("encode a request", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(&ask).encode(&mut out);
        });
    });
    group.bench_function("decode a request", |bencher| {
        bencher.iter_batched_ref(|| asked.clone(), Ask::decode, BatchSize::SmallInput);
    });
    group.bench_function("encode the header of a piece", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(&answer).encode(&mut out);
        });
    });
    group.bench_function("decode the header of a piece", |bencher| {
        bencher.iter_batched_ref(|| answered.clone(), Answer::decode, BatchSize::SmallInput);
    });
}

criterion_group!(benches, control_messages, data_frames);
criterion_main!(benches);
