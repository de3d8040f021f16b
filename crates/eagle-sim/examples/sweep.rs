//! Prints the efficiency of a cold swarm while one constant after another is varied:
//! `cargo run --release -p eagle-sim --example sweep -- NODES PIECES`.

use eagle_core::{Geometry, swarm::SwarmConfig};
use eagle_sim::{Plan, run};

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<u32>().ok());
    let nodes = numbers.next().unwrap_or(16);
    let pieces = numbers.next().unwrap_or(512);
    let piece_length = 512 << 10;
    let Ok(geometry) = Geometry::new(u64::from(pieces) * u64::from(piece_length), piece_length) else { return };
    let show = |name: &str, change: &dyn Fn(&mut Plan)| {
        let mut efficiency = Vec::new();
        let mut last = None;
        for seed in 1..=3 {
            let mut plan = Plan { seed, ..Plan::cold(nodes, geometry, 10e6) };
            change(&mut plan);
            let report = run(&plan);
            efficiency.push(report.efficiency());
            last = Some(report);
        }
        if let Some(report) = last {
            println!(
                "{name:28} efficiency {:.3} {:.3} {:.3}, seeder sent {:.3} copies, {} duplicates, {} control messages, first piece {:.2} s",
                efficiency[0],
                efficiency[1],
                efficiency[2],
                report.seeder_pieces as f64 / f64::from(pieces),
                report.duplicate_pieces,
                report.control_messages,
                report.first_piece_seconds.iter().sum::<f64>() / f64::from(nodes),
            );
        }
    };
    show("default", &|_| ());
    for count in [1, 2, 3, 4] {
        show(&format!("spread_requests {count}"), &|plan| plan.config.spread_requests = count);
    }
    for count in [2, 3, 6, 8] {
        show(&format!("requests_in_flight {count}"), &|plan| plan.config.requests_in_flight = count);
    }
    for count in [1, 3, 4] {
        show(&format!("requests_per_peer {count}"), &|plan| plan.config.requests_per_peer = count);
    }
    for count in [2, 4, 16] {
        show(&format!("upload_slots {count}"), &|plan| plan.upload_slots = count);
    }
    for window in [16, 128, u32::MAX] {
        show(&format!("window {window}"), &|plan| plan.config = SwarmConfig { window, ..SwarmConfig::default() });
    }
}
