//! Prints how long nodes take without a tracker, with and without peer exchange:
//! `cargo run --release -p eagle-sim --example exchange`.

use std::time::Duration;

use eagle_core::{Geometry, swarm::SwarmConfig};
use eagle_sim::{Group, Plan, Report, Start, run};

/// Rate of every node, bytes per second.
const RATE: f64 = 10e6;
const PIECES: u64 = 40;
const PIECE_LENGTH: u32 = 1 << 20;

fn main() {
    let Ok(geometry) = Geometry::new(PIECES * u64::from(PIECE_LENGTH), PIECE_LENGTH) else { return };
    let cold = Plan::cold(60, geometry, RATE);
    show("60 nodes at once", &cold, Duration::ZERO);
    let mut full = cold.clone();
    full.seeders.max_peers = 20;
    show("60 nodes at once, of which the seeder takes in 20", &full, Duration::ZERO);
    let mut late = cold;
    late.groups.push(Group { count: 50, start: Start::Spread(Duration::from_secs(5)), ..late.groups[0].clone() });
    show("60 nodes at once and 50 within 5 s, the tracker goes after 1 s", &late, Duration::from_secs(1));
}

fn show(what: &str, plan: &Plan, away: Duration) {
    let mut gone = plan.clone();
    gone.tracker.away = Some(away);
    let config = SwarmConfig { exchange_below: 0, ..plan.config.clone() };
    let alone = Plan { config, ..gone.clone() };
    let [there, gone, alone] = [plan, &gone, &alone].map(|plan| slowest(&run(plan)));
    println!("{what}: {there:.1} s with a tracker, {gone:.1} s with exchange, {alone:.1} s with neither");
}

/// The longest that a node took, seconds.
fn slowest(report: &Report) -> f64 {
    report.nodes.iter().map(|node| node.seconds).fold(0.0, f64::max)
}
