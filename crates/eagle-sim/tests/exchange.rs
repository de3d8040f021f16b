//! Swarms without a tracker, on virtual time. The example `exchange` has larger ones.

use std::time::Duration;

use eagle_core::{Geometry, swarm::SwarmConfig};
use eagle_sim::{Group, Plan, Report, Start, run};

/// 10 pieces, of which one takes 0.1 s: a node takes 1 s at best.
fn plan(nodes: u32) -> Plan {
    Plan::cold(nodes, Geometry::new(10 << 20, 1 << 20).expect("a valid geometry"), 10e6)
}

/// Nobody is asked for others.
fn without_exchange(plan: &Plan) -> Plan {
    let config = SwarmConfig { exchange_below: 0, ..plan.config.clone() };
    Plan { config, ..plan.clone() }
}

/// The longest that a node of a group took, seconds.
fn slowest(report: &Report, group: usize) -> f64 {
    let nodes = report.nodes.iter().filter(|node| node.group == group);
    nodes.map(|node| node.seconds).fold(0.0, f64::max)
}

/// All trackers go in the middle of a pull, and most of 50 nodes come then, which know the seeder and nobody else.
#[test]
fn who_comes_when_the_trackers_are_gone_is_hardly_worse_off() {
    let mut plan = plan(60);
    let late = Group { count: 50, start: Start::Spread(Duration::from_secs(2)), ..plan.groups[0].clone() };
    plan.groups.push(late);
    let there = run(&plan);
    plan.tracker.away = Some(Duration::from_millis(500));
    let (gone, alone) = (run(&plan), run(&without_exchange(&plan)));
    let [there, gone, alone] = [there, gone, alone].map(|report| slowest(&report, 1));
    assert!(gone < 1.5 * there, "{gone:.1} s against {there:.1} s with a tracker");
    assert!(alone > 3.0 * gone, "{alone:.1} s without exchange, {gone:.1} s with it");
}

/// There is no tracker at all, and the seeder has room for a third of the nodes.
#[test]
fn a_cold_swarm_needs_no_tracker() {
    let mut plan = plan(60);
    let there = slowest(&run(&plan), 0);
    plan.seeders.max_peers = 20;
    plan.tracker.away = Some(Duration::ZERO);
    let report = run(&plan);
    let gone = slowest(&report, 0);
    assert!(gone < 3.0 * there, "{gone:.1} s against {there:.1} s with a tracker");
    assert!(report.seeder_bytes < 4 * plan.size(), "the seeder gave {} bytes", report.seeder_bytes);
}
