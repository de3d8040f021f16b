//! Hashing a piece, sets of pieces, and the choice of the rarest.
//!
//! `cargo bench -p eagle-core --bench pieces`
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use eagle_core::{
    Bitfield, Geometry, PieceHash, PieceIndex,
    digest::Algorithm,
    swarm::{PieceChoice, PiecePicker as _, RarestFirst},
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// Bytes of the piece that is hashed.
const PIECE: u32 = 1 << 20;
/// Pieces of the blob whose sets are worked with: 2 GiB in pieces of 1 MiB.
const PIECES: u32 = 2_048;

/// Every piece whose number leaves a remainder below `most` when divided by `of`.
fn some(most: u32, of: u32) -> Bitfield {
    let mut field = Bitfield::new(PIECES);
    for piece in (0..PIECES).filter(|piece| piece % of < most) {
        field.insert(PieceIndex(piece));
    }
    field
}

fn hashes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash of a piece of 1 MiB");
    group.throughput(Throughput::Bytes(u64::from(PIECE)));
    let bytes = vec![0xa5; PIECE as usize];
    let geometry = Geometry::new(2 * u64::from(PIECE), PIECE).unwrap();
    for (name, algorithm) in [("sha256", Algorithm::Sha256), ("sha512", Algorithm::Sha512)] {
        let start = PieceHash::start(algorithm);
        group.bench_function(name, |bencher| {
            bencher.iter(|| start.then(&geometry, PieceIndex(0), black_box(&bytes)));
        });
    }
}

fn sets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sets of 2,048 pieces");
    let (half, third) = (some(1, 2), some(1, 3));
    let bytes = half.to_bytes();
    group.bench_function("to bytes", |bencher| bencher.iter(|| black_box(&half).to_bytes()));
    group.bench_function("from bytes", |bencher| bencher.iter(|| Bitfield::from_bytes(PIECES, black_box(&bytes))));
    group.bench_function("union", |bencher| {
        bencher.iter(|| {
            let mut both = black_box(&half).clone();
            both.union(&third);
            both
        });
    });
    group.bench_function("whether one has what the other lacks", |bencher| {
        // Nothing is found, so all is looked at.
        bencher.iter(|| black_box(&half).any_without(&[black_box(&half)]));
    });
    group.bench_function("the first that is missing", |bencher| {
        let all_but_the_last = some(PIECES - 1, PIECES);
        bencher.iter(|| black_box(&all_but_the_last).first_missing(0));
    });
}

/// One step of the picker: of a peer that owns half, with a fifth on its way.
fn rarest(criterion: &mut Criterion) {
    let (theirs, busy) = (some(1, 2), some(1, 5));
    let availability: Vec<u16> = (0..PIECES).map(|piece| u16::try_from(piece % 17).unwrap() + 1).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (name, window) in [("rarest of 2,048 pieces", 0), ("rarest in a window of 64 pieces", 64)] {
        criterion.bench_function(name, |bencher| {
            let unwanted = [&busy];
            let choice = PieceChoice {
                theirs: &theirs,
                unwanted: &unwanted,
                availability: &availability,
                position: PieceIndex(100),
                window,
            };
            bencher.iter(|| RarestFirst.pick(black_box(&choice), &mut rng).unwrap());
        });
    }
}

criterion_group!(benches, hashes, sets, rarest);
criterion_main!(benches);
