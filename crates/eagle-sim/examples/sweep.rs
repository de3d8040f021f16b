//! Prints the efficiency of a cold swarm while one constant after another is varied, with a seeder
//! that owns the blob and with one that receives it from an origin as fast as it gives:
//! `cargo run --release -p eagle-sim --example sweep -- [NODES] [PIECES] [NAME]`.

use eagle_core::Geometry;
use eagle_sim::{Plan, Report, run};

/// Rate of every node, bytes per second.
const RATE: f64 = 10e6;
const PIECE_LENGTH: u32 = 512 << 10;
const SEEDS: u64 = 3;

fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|arg| arg.parse::<u32>().ok()).collect();
    let only = std::env::args().skip(1).find(|arg| arg.parse::<u32>().is_err()).unwrap_or_default();
    let nodes = numbers.first().copied().unwrap_or(16);
    let pieces = numbers.get(1).copied().unwrap_or(512);
    let Ok(geometry) = Geometry::new(u64::from(pieces) * u64::from(PIECE_LENGTH), PIECE_LENGTH) else { return };
    let show = |name: &str, change: &dyn Fn(&mut Plan)| {
        if !name.contains(&only) {
            return;
        }
        print!("{name:22}");
        for (label, origin_rate) in [("cold origin", Some(RATE)), ("warm seeder", None)] {
            let reports: Vec<Report> = (1..=SEEDS)
                .map(|seed| {
                    let mut plan = Plan { seed, ..Plan::cold(nodes, geometry, RATE) };
                    plan.seeders.origin_rate = origin_rate;
                    change(&mut plan);
                    run(&plan)
                })
                .collect();
            let mean = |value: &dyn Fn(&Report) -> f64| reports.iter().map(value).sum::<f64>() / SEEDS as f64;
            let first = |report: &Report| report.nodes.iter().map(|node| node.first_piece_seconds).sum::<f64>();
            print!(
                "  {label}: efficiency {:.3}, {:.2} copies from the seeder, first piece {:.2} s",
                mean(&Report::efficiency),
                mean(&|report| report.seeder_bytes as f64 / geometry.size() as f64),
                mean(&|report| first(report) / f64::from(nodes)),
            );
        }
        println!();
    };
    show("default", &|_| ());
    for count in [2, 3] {
        show(&format!("spread_requests {count}"), &|plan| plan.config.spread_requests = count);
    }
    for count in [4, 6, 8, 16] {
        show(&format!("requests_in_flight {count}"), &|plan| plan.config.requests_in_flight = count);
    }
    for count in [2, 3] {
        show(&format!("requests_per_peer {count}"), &|plan| plan.config.requests_per_peer = count);
    }
    for count in [1, 2, 8] {
        show(&format!("least_in_flight {count}"), &|plan| plan.config.least_in_flight = count);
    }
    for count in [2, 4, 8, 16] {
        show(&format!("upload_slots {count}"), &|plan| plan.upload_slots = count);
    }
    for window in [0, 16, 128, u32::MAX] {
        show(&format!("window {window}"), &|plan| plan.config.window = window);
    }
}
