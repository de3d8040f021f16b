//! Whole swarms on virtual time.

use std::time::Duration;

use eagle_core::Geometry;
use eagle_sim::{Churn, ChurnKind, Faults, Group, Plan, Start, run};

const PIECE: u64 = 1 << 18;

fn plan(nodes: u32, pieces: u64) -> Plan {
    Plan::cold(nodes, Geometry::new(pieces * PIECE, 1 << 18).expect("a valid geometry"), 10e6)
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
        let copies = report.seeder_bytes as f64 / (512 * PIECE) as f64;
        assert!(copies <= 1.25, "the seeder sent each piece {copies:.2} times");
        assert!(report.duplicate_pieces <= 512 * u64::from(nodes) / 100);
        assert_eq!(report.cross_zone_bytes, 0);
    }
}

#[test]
fn control_traffic_is_a_small_part() {
    let geometry = Geometry::new(64 << 22, 4 << 20).expect("a valid geometry");
    let report = run(&Plan::cold(16, geometry, 10e6));
    let share = report.control_bytes as f64 / report.delivered_bytes as f64;
    assert!(share <= 0.01, "{share:.4}");
}

#[test]
fn pieces_travel_while_the_origin_still_delivers() {
    let mut plan = plan(8, 256);
    plan.seeders.origin_rate = Some(5e6);
    // The origin at half the rate decides: twice the ideal of the nodes, and little more.
    let efficiency = run(&plan).efficiency();
    assert!(efficiency >= 0.9, "{efficiency:.3}");
}

#[test]
fn every_survivor_finishes_whatever_goes_wrong() {
    for seed in 0..20 {
        let mut plan = Plan { seed, ..plan(12, 64) };
        plan.faults = Faults { corrupt: 0.05, lost_requests: 0.02, vanish: 3, ..Faults::default() };
        plan.groups[0].start = Start::Spread(Duration::from_secs(6));
        let report = run(&plan);
        assert_eq!(report.nodes.len(), 9);
        assert!(report.nodes.iter().all(|node| node.seconds.is_finite()), "seed {seed}: {:?}", report.nodes);
    }
}

#[test]
fn nodes_that_vanish_or_become_slow_are_counted_apart() {
    let mut plan = plan(20, 128);
    plan.churn = vec![
        Churn { at: Duration::from_secs(1), fraction: 0.25, kind: ChurnKind::Vanish(Duration::from_secs(2)) },
        Churn { at: Duration::from_secs(1), fraction: 0.2, kind: ChurnKind::Slow(0.1) },
    ];
    let report = run(&plan);
    assert_eq!(report.nodes.len(), 15);
    let slow = report.nodes.iter().filter(|node| node.bound_seconds > 2.0 * report.ideal_seconds).count();
    assert_eq!(slow, 3);
    assert!(report.nodes.iter().all(|node| node.seconds.is_finite() && node.seconds >= node.bound_seconds));
}

#[test]
fn zones_have_links_of_their_own() {
    let mut plan = plan(4, 64);
    plan.groups = (0..2).map(|zone| Group { zone, ..plan.groups[0].clone() }).collect();
    plan.links.zone_rate = Some(1e6);
    let report = run(&plan);
    assert!(report.cross_zone_bytes >= 64 * PIECE, "{}", report.cross_zone_bytes);
    // The far zone gets everything over one slow link.
    let last = report.seconds().expect("nodes").max;
    assert!(last >= 64.0 * PIECE as f64 / 1e6, "{last}");
}

#[test]
fn two_blobs_share_a_node() {
    let mut plan = plan(6, 128);
    plan.blobs.push(plan.blobs[0]);
    plan.seeders.count = 2;
    let report = run(&plan);
    assert_eq!(report.delivered_bytes, 6 * 2 * 128 * PIECE + report.duplicate_pieces * PIECE);
    assert!(report.efficiency() >= 0.85, "{:.3}", report.efficiency());
}

#[test]
fn nodes_start_when_the_plan_says() {
    let mut plan = plan(200, 8);
    plan.groups[0].start = Start::Poisson(Duration::from_secs(100));
    let starts: Vec<f64> = run(&plan).nodes.iter().map(|node| node.start).collect();
    let last = starts.iter().copied().fold(0.0, f64::max);
    // Mean 100 s, standard deviation 7 s.
    assert!((65.0..135.0).contains(&last), "{last}");
    assert!(starts.contains(&0.0));
}

/// Bad nodes take no longer to be found out than a few pieces take, and what they were given first
/// is given again.
#[test]
fn slow_and_dead_nodes_hold_nobody_up() {
    let (nodes, pieces) = (16, 256);
    let healthy = run(&plan(nodes, pieces)).seconds().expect("nodes").max;
    for (slow, dead) in [(1, 0), (0, 1), (2, 1)] {
        let mut plan = plan(nodes - slow, pieces);
        plan.faults.dead = dead;
        plan.groups.push(Group { count: slow, down: (1e6, 1e6), up: (1e6, 1e6), ..plan.groups[0].clone() });
        let report = run(&plan);
        let others = report.nodes.iter().filter(|node| node.group == 0).skip(dead as usize);
        let slowest = others.map(|node| node.seconds).fold(0.0, f64::max);
        assert!(slowest <= healthy * 1.2, "{slow} slow, {dead} dead: {slowest:.2} s against {healthy:.2} s");
        let all = u64::from(nodes) * pieces;
        assert!(report.duplicate_pieces <= all / 100, "{} duplicates of {all}", report.duplicate_pieces);
    }
}
