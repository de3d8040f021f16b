//! What a limiter costs a transfer: a turn that need not wait, and one that waits, on virtual time.
//!
//! `cargo bench -p eagle-p2p --bench limiter`
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

use criterion::{Criterion, criterion_group, criterion_main};
use eagle_core::units::Rate;
use eagle_p2p::limits::Limiter;
use tokio::runtime::{Builder, Runtime};

/// A clock that goes on at once when all wait, so that only the work is measured.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

fn take(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("limiter");
    let runtime = runtime();
    let unlimited = Limiter::new(Rate::Unlimited);
    group.bench_function("a turn without a limit", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            let turn = unlimited.turn().await;
            let bytes = turn.bytes();
            turn.moved(bytes);
        });
    });
    let limited = Limiter::new(Rate::Limited(50 << 20));
    group.bench_function("a whole turn at 50 MiB/s, which waits", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            let turn = limited.turn().await;
            let bytes = turn.bytes();
            turn.moved(bytes);
        });
    });
    // What is left of the cells that were taken lasts for many.
    let limited = Limiter::new(Rate::Limited(1 << 30));
    group.bench_function("one byte at 1 GiB/s", |bencher| {
        bencher.to_async(&runtime).iter(|| limited.acquire(1));
    });
}

criterion_group!(benches, take);
criterion_main!(benches);
