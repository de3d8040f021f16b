//! Prints when the first layer and when the whole image is complete, with one seeder for all layers and
//! with one for each: `cargo run --release -p eagle-sim --example layers`.

use eagle_core::Geometry;
use eagle_sim::{Plan, Report, run};

/// Rate of every node, bytes per second.
const RATE: f64 = 10e6;
const PIECE_LENGTH: u32 = 512 << 10;
const PIECES: u64 = 128;
const LAYERS: u32 = 4;
const NODES: u32 = 16;
const SEEDS: u64 = 3;

fn main() {
    let Ok(geometry) = Geometry::new(PIECES * u64::from(PIECE_LENGTH), PIECE_LENGTH) else { return };
    for seeders in [1, 2, LAYERS] {
        let reports: Vec<Report> = (1..=SEEDS)
            .map(|seed| {
                let mut plan = Plan { seed, ..Plan::cold(NODES, geometry, RATE) };
                plan.blobs = vec![geometry; LAYERS as usize];
                plan.seeders.count = seeders;
                plan.seeders.origin_rate = Some(RATE);
                run(&plan)
            })
            .collect();
        let mean = |value: &dyn Fn(&Report) -> f64| reports.iter().map(value).sum::<f64>() / SEEDS as f64;
        let of_nodes = |report: &Report, value: fn(&eagle_sim::NodeReport) -> f64| {
            report.nodes.iter().map(value).sum::<f64>() / f64::from(NODES)
        };
        println!(
            "{LAYERS} layers, {seeders} seeders: first layer {:.1} s, image {:.1} s, efficiency of the slowest {:.3}",
            mean(&|report| of_nodes(report, |node| node.first_blob_seconds)),
            mean(&|report| of_nodes(report, |node| node.seconds)),
            mean(&Report::efficiency),
        );
    }
}
