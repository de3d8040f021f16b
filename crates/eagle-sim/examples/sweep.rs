//! Prints the efficiency of a cold swarm while one constant after another is varied, with a seeder
//! that owns the blob and with one that receives it from an origin as fast as it gives:
//! `cargo run --release -p eagle-sim --example sweep -- [NODES] [PIECES]`.

use eagle_core::Geometry;
use eagle_sim::{Plan, Report, run};

/// Rate of every node, bytes per second.
const RATE: f64 = 10e6;
const PIECE_LENGTH: u32 = 512 << 10;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<u32>().ok());
    let nodes = numbers.next().unwrap_or(16);
    let pieces = numbers.next().unwrap_or(512);
    let Ok(geometry) = Geometry::new(u64::from(pieces) * u64::from(PIECE_LENGTH), PIECE_LENGTH) else { return };
    let show = |name: &str, change: &dyn Fn(&mut Plan)| {
        print!("{name:22}");
        for (label, origin_rate) in [("cold origin", Some(RATE)), ("warm seeder", None)] {
            let reports: Vec<Report> = (1..=3)
                .map(|seed| {
                    let mut plan = Plan { seed, origin_rate, ..Plan::cold(nodes, geometry, RATE) };
                    change(&mut plan);
                    run(&plan)
                })
                .collect();
            let mean = |value: &dyn Fn(&Report) -> f64| reports.iter().map(value).sum::<f64>() / 3.0;
            print!(
                "  {label}: efficiency {:.3}, {:.2} copies from the seeder, first piece {:.2} s",
                mean(&Report::efficiency),
                mean(&|report| report.seeder_pieces as f64 / f64::from(pieces)),
                mean(&|report| report.first_piece_seconds.iter().sum::<f64>() / f64::from(nodes)),
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
    for window in [16, 128, u32::MAX] {
        show(&format!("window {window}"), &|plan| plan.config.window = window);
    }
}
