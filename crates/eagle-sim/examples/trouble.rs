//! Prints how long the healthy nodes of a swarm take when some of its nodes are slow (a tenth of the
//! rate) or dead (they download, accept requests and never answer), against the same swarm without:
//! `cargo run --release -p eagle-sim --example trouble`.

use eagle_core::Geometry;
use eagle_sim::{Group, Plan, Report, run};

/// Rate of every healthy node, bytes per second.
const RATE: f64 = 10e6;
const PIECE_LENGTH: u32 = 512 << 10;
const PIECES: u64 = 256;
const SEEDS: u64 = 3;

fn main() {
    let Ok(geometry) = Geometry::new(PIECES * u64::from(PIECE_LENGTH), PIECE_LENGTH) else { return };
    for nodes in [4, 8, 16, 32] {
        let (healthy, _) = slowest(nodes, geometry, 0, 0);
        for (slow, dead) in [(0, 0), (1, 0), (0, 1), (1, 1), (3, 0), (0, 3), (3, 3)] {
            if slow + dead >= nodes - 1 {
                continue;
            }
            let (seconds, duplicates) = slowest(nodes, geometry, slow, dead);
            println!(
                "{nodes:3} nodes, of which {slow} slow, {dead} dead: {:.2} x the time without, {:.2} % duplicate",
                seconds / healthy,
                duplicates * 100.0,
            );
        }
    }
}

/// Time of the slowest healthy node and the share of duplicate pieces, means over the seeds.
fn slowest(nodes: u32, geometry: Geometry, slow: u32, dead: u32) -> (f64, f64) {
    let reports: Vec<Report> = (1..=SEEDS)
        .map(|seed| {
            let mut plan = Plan { seed, ..Plan::cold(nodes - slow, geometry, RATE) };
            plan.seeders.origin_rate = Some(RATE);
            plan.faults.dead = dead;
            let rate = (RATE / 10.0, RATE / 10.0);
            plan.groups.push(Group { count: slow, down: rate, up: rate, ..plan.groups[0].clone() });
            run(&plan)
        })
        .collect();
    let last = |report: &Report| {
        let healthy = report.nodes.iter().filter(|node| node.group == 0).skip(dead as usize);
        healthy.map(|node| node.seconds).fold(0.0, f64::max)
    };
    let duplicates =
        |report: &Report| report.duplicate_pieces as f64 / (u64::from(nodes) * u64::from(geometry.pieces())) as f64;
    let mean = |value: &dyn Fn(&Report) -> f64| reports.iter().map(value).sum::<f64>() / SEEDS as f64;
    (mean(&last), mean(&duplicates))
}
