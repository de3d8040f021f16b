//! Whole swarms on virtual time.

use std::time::Duration;

use eagle_core::Geometry;
use eagle_sim::{Faults, Plan, run};

fn plan(nodes: u32, pieces: u64) -> Plan {
    Plan::cold(nodes, Geometry::new(pieces << 18, 1 << 18).expect("a valid geometry"), 10e6)
}

#[test]
fn the_same_plan_gives_the_same_trace() {
    let plan = plan(8, 64);
    let (first, second) = (run(&plan), run(&plan));
    assert_eq!(first, second);
    let other = run(&Plan { seed: 2, ..plan });
    assert_ne!(first.trace, other.trace);
}

#[test]
fn a_cold_swarm_comes_near_the_ideal() {
    for (nodes, least) in [(1, 0.95), (2, 0.90), (6, 0.90), (16, 0.90)] {
        let report = run(&plan(nodes, 512));
        let efficiency = report.efficiency();
        assert!(efficiency >= least, "{nodes} nodes: {efficiency:.3} is below {least}");
        assert!(report.seeder_pieces <= 512 * 5 / 4, "the seeder sent {} pieces of 512", report.seeder_pieces);
        assert!(report.duplicate_pieces <= 512 * u64::from(nodes) / 100);
    }
}

#[test]
fn pieces_travel_while_the_origin_still_delivers() {
    let report = run(&Plan { origin_rate: Some(5e6), ..plan(8, 256) });
    // The origin at half the rate decides: twice the ideal, and little more.
    let slowest = 1.0 / report.efficiency() * report.ideal_seconds;
    let origin = (256 << 18) as f64 / 5e6;
    assert!(slowest <= origin * 1.1, "{slowest:.1} s against {origin:.1} s of the origin alone");
}

#[test]
fn every_survivor_finishes_whatever_goes_wrong() {
    for seed in 0..20 {
        let faults = Faults { corrupt: 0.05, lost_requests: 0.02, vanish: 3 };
        let report = run(&Plan { faults, seed, stagger: Duration::from_millis(500), ..plan(12, 64) });
        assert_eq!(report.seconds.len(), 9);
        assert!(report.seconds.iter().all(|time| time.is_finite()), "seed {seed}: {:?}", report.seconds);
    }
}
