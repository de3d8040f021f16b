//! Lists of peers.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{Topology, tracker::FlowReport};

fn zone(name: &str) -> Topology {
    Topology { region: None, zone: Some(name.to_owned()), rack: None }
}

fn peer(role: NodeRole, place: &Topology, pieces: Ownership) -> Candidate {
    Candidate { role, place: Place::from(place), pieces, load: None, age: Duration::ZERO }
}

fn proxy(place: &Topology, pieces: Ownership) -> Candidate {
    peer(NodeRole::Proxy, place, pieces)
}

/// 3 seeders in zone a, then `near` proxies of zone a and `far` ones of zone b, every third with a prefix.
fn swarm(near: usize, far: usize) -> Vec<Candidate> {
    let seeders = (0..3).map(|_| peer(NodeRole::Seeder, &zone("a"), Ownership::Complete));
    let proxies = (3..3 + near + far).map(|i| {
        let pieces = if i % 3 == 0 { Ownership::Prefix(9) } else { Ownership::Empty };
        proxy(&zone(if i < 3 + near { "a" } else { "b" }), pieces)
    });
    seeders.chain(proxies).collect()
}

fn indices(asker: &Candidate, swarm: &[Candidate], limit: usize, seed: u64) -> Vec<usize> {
    let asker = Asker { place: asker.place, pieces: &asker.pieces };
    DefaultPolicy.select(asker, swarm, &Flows::default(), limit, seed)
}

fn select(asker: &Candidate, swarm: &[Candidate], limit: usize, seed: u64) -> Vec<Candidate> {
    indices(asker, swarm, limit, seed).into_iter().map(|index| swarm[index].clone()).collect()
}

fn is_in(candidate: &Candidate, name: &str) -> bool {
    candidate.place == Place::from(&zone(name))
}

fn is_far(candidate: &Candidate) -> bool {
    is_in(candidate, "b")
}

#[test]
fn seeders_come_first_then_near_peers_with_far_ones_among_them() {
    let swarm = swarm(100, 100);
    let chosen = select(&proxy(&zone("a"), Ownership::Prefix(2)), &swarm, 40, 1);
    assert_eq!(chosen.len(), 40);
    assert!(chosen[..2].iter().all(|c| c.role == NodeRole::Seeder));
    assert!(chosen[2..].iter().all(|c| c.role == NodeRole::Proxy));
    assert_eq!(chosen.iter().filter(|c| is_far(c)).count(), 10);
    // A third has something to offer, and most that are named do.
    for (side, least) in [(true, 7), (false, 20)] {
        let offers = chosen[2..].iter().filter(|c| is_far(c) == side && c.pieces != Ownership::Empty).count();
        assert!(offers >= least, "{offers}");
    }
}

#[test]
fn a_seeder_in_another_zone_is_named_last_to_those_who_have_near_peers_enough() {
    let swarm = swarm(100, 100);
    let seeders = |name: &str, near: &[Candidate]| -> Vec<usize> {
        let chosen = select(&proxy(&zone(name), Ownership::Prefix(2)), near, 40, 1);
        let seeders = chosen.iter().enumerate().filter(|(_, c)| c.role == NodeRole::Seeder);
        seeders.map(|(place, _)| place).collect()
    };
    assert_eq!(seeders("a", &swarm), [0, 1]);
    assert_eq!(seeders("b", &swarm), [39]);
    assert_eq!(seeders("c", &swarm), [0, 1]);
}

#[test]
fn links_go_over_the_faster_way_when_every_group_has_some() {
    let mut swarm: Vec<Candidate> = Vec::new();
    for number in 0..60 {
        swarm.push(proxy(&zone(["b", "c", "d"][number % 3]), Ownership::Empty));
    }
    let asker = proxy(&zone("a"), Ownership::Empty);
    let mut flows = Flows::default();
    for (name, rate) in [("b", 1_000), ("c", 1_000_000), ("d", 20_000)] {
        let report = FlowReport { from: zone(name), bytes_per_second: rate, bytes: 1 };
        flows.report(crate::Timestamp(0), &zone("a"), &[report]);
    }
    let asked = Asker { place: asker.place, pieces: &asker.pieces };
    let chosen = DefaultPolicy.select(asked, &swarm, &flows, 12, 5);
    let of = |name: &str| chosen.iter().filter(|index| is_in(&swarm[**index], name)).count();
    assert_eq!((of("b"), of("c"), of("d")), (2, 8, 2));
}

#[test]
fn a_zone_with_few_peers_is_filled_from_afar() {
    let chosen = select(&proxy(&zone("a"), Ownership::Empty), &swarm(4, 100), 40, 1);
    assert_eq!(chosen.len(), 40);
    assert_eq!(chosen.iter().filter(|c| is_far(c)).count(), 34);
}

#[test]
fn who_owns_everything_is_told_only_of_those_who_do_not() {
    let chosen = select(&proxy(&zone("a"), Ownership::Complete), &swarm(10, 10), 40, 1);
    assert_eq!(chosen.len(), 20);
    assert!(chosen.iter().all(|c| !c.pieces.is_complete()));
}

#[test]
fn lists_differ_so_that_nobody_is_known_to_all() {
    let swarm = swarm(200, 0);
    let mut named = BTreeSet::new();
    for seed in 0..40 {
        named.extend(indices(&proxy(&zone("a"), Ownership::Prefix(20)), &swarm, 40, seed));
    }
    assert!(named.len() > 195, "{}", named.len());
}

proptest! {
    #[test]
    fn every_list_is_sound(near in 0usize..60, far in 0usize..60, limit in 1usize..50, seed: u64) {
        let swarm = swarm(near, far);
        let asker = proxy(&zone("a"), Ownership::Prefix(1));
        let chosen = indices(&asker, &swarm, limit, seed);
        prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
        prop_assert_eq!(chosen.len(), swarm.len().min(limit));
        prop_assert_eq!(indices(&asker, &swarm, limit, seed), chosen);
    }

    /// Of however many racks, zones and regions: nobody is left without a source, every group has its links as far as
    /// half of the list goes, and near peers are not crowded out.
    #[test]
    fn every_group_is_linked_and_nobody_starves(
        places in proptest::collection::vec((0u8..3, 0u8..3, 0u8..4, any::<bool>()), 1..120),
        asker in (0u8..3, 0u8..3, 0u8..4),
        limit in 4usize..60,
        seed: u64,
    ) {
        let at = |(region, zone, rack): (u8, u8, u8)| Topology {
            region: Some(format!("r{region}")),
            zone: Some(format!("r{region}z{zone}")),
            rack: Some(format!("k{rack}")),
        };
        let swarm: Vec<Candidate> = places
            .iter()
            .map(|(region, zone, rack, owns)| {
                let pieces = if *owns { Ownership::Prefix(9) } else { Ownership::Empty };
                proxy(&at((*region, *zone, *rack)), pieces)
            })
            .chain([peer(NodeRole::Seeder, &zone("elsewhere"), Ownership::Complete)])
            .collect();
        let asker = proxy(&at(asker), Ownership::Empty);
        let group = |c: &Candidate| c.place.group_seen_from(&asker.place);
        let chosen = select(&asker, &swarm, limit, seed);
        prop_assert_eq!(chosen.len(), limit.min(swarm.len()));
        prop_assert!(chosen.iter().any(|c| c.pieces.offers(&asker.pieces)), "no source");
        let proxies = || swarm.iter().filter(|c| c.role == NodeRole::Proxy);
        let groups: BTreeSet<FarGroup> = proxies().filter_map(group).collect();
        let named: BTreeSet<FarGroup> =
            chosen.iter().filter(|c| c.role == NodeRole::Proxy).filter_map(group).collect();
        prop_assert!(named.len() >= groups.len().min((limit - 1) / 2), "{} of {}", named.len(), groups.len());
        let near = proxies().filter(|c| group(c).is_none()).count();
        let named_near = chosen.iter().filter(|c| c.role == NodeRole::Proxy && group(c).is_none()).count();
        prop_assert!(named_near >= near.min((limit - 1) / 2), "{named_near} of {near}");
    }
}
