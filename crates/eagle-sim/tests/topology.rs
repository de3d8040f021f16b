//! Small clusters in several places, each beside the same nodes that do not know where they are.

use std::time::Duration;

use eagle_core::Geometry;
use eagle_sim::{Group, Plan, Report, run};

const RATE: f64 = 10e6;

/// A plan of groups: number of nodes, region, zone, racks.
fn plan(pieces: u64, groups: &[(u32, u16, u16, u16)]) -> Plan {
    let geometry = Geometry::new(pieces << 18, 1 << 18).expect("a valid geometry");
    let mut plan = Plan::cold(1, geometry, RATE);
    let one = plan.groups[0].clone();
    plan.groups = groups
        .iter()
        .map(|&(count, region, zone, racks)| Group { count, region, zone, racks, ..one.clone() })
        .collect();
    plan.links.zone_latency = Duration::from_millis(2);
    plan.links.region_latency = Duration::from_millis(10);
    plan
}

fn slowest(report: &Report) -> f64 {
    report.seconds().expect("nodes").max
}

/// Bytes over the least that brings everything into each of so many places.
fn over_least(plan: &Plan, bytes: u64, places: usize) -> f64 {
    bytes as f64 / (plan.size() as f64 * (places - 1) as f64)
}

/// The report with places known, and without.
fn both(plan: &Plan) -> (Report, Report) {
    let aware = run(plan);
    assert!(aware.nodes.iter().all(|node| node.seconds.is_finite()));
    (aware, run(&Plan { labels: false, ..plan.clone() }))
}

#[test]
fn a_thin_link_between_regions_is_crossed_about_once() {
    let mut plan = plan(128, &[(12, 0, 0, 0), (12, 1, 1, 0)]);
    // What one node has.
    plan.links.region_rate = Some(RATE);
    let (aware, blind) = both(&plan);
    let crossed = over_least(&plan, aware.cross_region_bytes, 2);
    assert!(crossed <= 1.05, "{crossed:.3}");
    assert!(over_least(&plan, blind.cross_region_bytes, 2) > 3.0);
    assert!(slowest(&blind) >= 3.0 * slowest(&aware), "{:.1} against {:.1}", slowest(&blind), slowest(&aware));
}

#[test]
fn each_boundary_is_crossed_about_once_at_every_level() {
    let mut plan = plan(128, &[(8, 0, 0, 2), (8, 0, 1, 2), (8, 1, 2, 2), (8, 1, 3, 2)]);
    plan.links.zone_rate = Some(4.0 * RATE);
    plan.links.region_rate = Some(2.0 * RATE);
    let (aware, blind) = both(&plan);
    let sites = plan.sites();
    assert_eq!((sites.racks, sites.zones, sites.regions), (9, 4, 2));
    // The seeders' own rack is one of those counted, and fed by nobody.
    let racks = over_least(&plan, aware.cross_rack_bytes, sites.racks);
    let zones = over_least(&plan, aware.cross_zone_bytes, sites.zones);
    let regions = over_least(&plan, aware.cross_region_bytes, sites.regions);
    assert!(racks <= 1.5 && zones <= 1.1 && regions <= 1.1, "{racks:.3} {zones:.3} {regions:.3}");
    assert!(over_least(&plan, blind.cross_zone_bytes, sites.zones) > 3.0);
    assert!(slowest(&aware) <= 1.05 * slowest(&blind), "{:.1} against {:.1}", slowest(&aware), slowest(&blind));
}

/// The few nodes of a small zone know few of the large one, and most first owners know none of them.
#[test]
fn a_small_zone_does_not_starve_wherever_the_seeder_is() {
    for seeder in [0, 1] {
        let mut plan = plan(128, &[(5, 0, 0, 0), (35, 0, 1, 0)]);
        plan.seeders.zone = Some(seeder);
        let (aware, blind) = both(&plan);
        let crossed = over_least(&plan, aware.cross_zone_bytes, 2);
        assert!(crossed <= 1.25, "{crossed:.3}");
        assert!(slowest(&aware) <= 1.1 * slowest(&blind), "{:.1} against {:.1}", slowest(&aware), slowest(&blind));
    }
}

/// Where few are together, copies that cross once would have to be passed on by too few: boundaries open by themselves, or the seeder
/// gives to all. The second figure is how much of the saving is left, over the least of any plan.
#[test]
fn few_nodes_to_a_place_are_no_slower_than_without_places() {
    let zones = |counts: &[u32]| -> Vec<(u32, u16, u16, u16)> {
        counts.iter().zip(0..).map(|(count, zone)| (*count, 0, zone, 0)).collect()
    };
    let plans = [
        ("racks of 5", vec![(50, 0, 0, 10)], 5.0),
        ("racks of 6", vec![(36, 0, 0, 6)], 1.1),
        ("zones of 2", zones(&[2; 8]), 2.5),
        ("zones of 3", zones(&[3; 6]), 3.2),
        ("two zones of 3", zones(&[3; 2]), 1.6),
        ("zones of 10", zones(&[10; 4]), 1.3),
        ("one alone", zones(&[30, 1]), 1.1),
        ("zones of 10, warm", zones(&[10; 4]), 1.3),
    ];
    let mut failed = Vec::new();
    for (name, groups, most) in plans {
        let mut plan = plan(128, &groups);
        // A seeder that has the blob promises all of it at once.
        plan.seeders.origin_rate = Some(RATE).filter(|_| !name.contains("warm"));
        let (aware, blind) = both(&plan);
        let sites = plan.sites();
        let crossed = if sites.zones > 1 {
            over_least(&plan, aware.cross_zone_bytes, sites.zones)
        } else {
            over_least(&plan, aware.cross_rack_bytes, sites.racks)
        };
        let (slow, usual) = (slowest(&aware), slowest(&blind));
        println!("{name}: {slow:.2} against {usual:.2} s, {:.3}; crossed {crossed:.2}", slow / usual);
        if slow > 1.05 * usual || crossed > most {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "slower, or more over boundaries, than they should be: {failed:?}");
}

/// More racks than a node can offer to: racks are not kept apart, and nobody waits for ever.
#[test]
fn a_rack_for_each_node_is_no_hindrance() {
    let plan = plan(64, &[(40, 0, 0, 40)]);
    let (aware, blind) = both(&plan);
    assert!(slowest(&aware) <= 1.2 * slowest(&blind), "{:.1} against {:.1}", slowest(&aware), slowest(&blind));
}
