//! Lists of peers.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{Topology, tracker::FlowReport};

fn peer(number: usize, role: NodeRole, zone: &str, pieces: Ownership) -> Candidate {
    let topology = Topology { region: None, zone: Some(zone.to_owned()), rack: None };
    let id = format!("node{number}").parse().unwrap();
    let info = Arc::new(PeerInfo { id, role, topology, ..PeerInfo::example() });
    Candidate { info, pieces, load: None, age: Duration::ZERO }
}

/// 3 seeders in zone a, then `near` proxies of zone a and `far` ones of zone b, every third with a prefix.
fn swarm(near: usize, far: usize) -> Vec<Candidate> {
    let seeders = (0..3).map(|i| peer(i, NodeRole::Seeder, "a", Ownership::Complete));
    let proxies = (3..3 + near + far).map(|i| {
        let pieces = if i % 3 == 0 { Ownership::Prefix(9) } else { Ownership::Empty };
        peer(i, NodeRole::Proxy, if i < 3 + near { "a" } else { "b" }, pieces)
    });
    seeders.chain(proxies).collect()
}

fn select(asker: &Candidate, swarm: &[Candidate], limit: usize, seed: u64) -> Vec<Candidate> {
    let asker = Asker { info: &asker.info, pieces: &asker.pieces };
    DefaultPolicy.select(asker, swarm.to_vec(), &Flows::default(), limit, seed)
}

fn is_far(candidate: &Candidate) -> bool {
    candidate.info.topology.zone.as_deref() == Some("b")
}

#[test]
fn seeders_come_first_then_near_peers_with_far_ones_among_them() {
    let swarm = swarm(100, 100);
    let chosen = select(&peer(3, NodeRole::Proxy, "a", Ownership::Prefix(2)), &swarm, 40, 1);
    assert_eq!(chosen.len(), 40);
    assert!(chosen[..2].iter().all(|c| c.info.role == NodeRole::Seeder));
    assert!(chosen[2..].iter().all(|c| c.info.role == NodeRole::Proxy));
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
    let seeders = |zone: &str, near: &[Candidate]| -> Vec<usize> {
        let chosen = select(&peer(900, NodeRole::Proxy, zone, Ownership::Prefix(2)), near, 40, 1);
        let seeders = chosen.iter().enumerate().filter(|(_, c)| c.info.role == NodeRole::Seeder);
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
        swarm.push(peer(number, NodeRole::Proxy, ["b", "c", "d"][number % 3], Ownership::Empty));
    }
    let asker = peer(900, NodeRole::Proxy, "a", Ownership::Empty);
    let zone = |name: &str| Topology { zone: Some(name.to_owned()), ..Topology::default() };
    let mut flows = Flows::default();
    for (name, rate) in [("b", 1_000), ("c", 1_000_000), ("d", 20_000)] {
        let report = FlowReport { from: zone(name), bytes_per_second: rate, bytes: 1 };
        flows.report(crate::Timestamp(0), &zone("a"), &[report]);
    }
    let asked = Asker { info: &asker.info, pieces: &asker.pieces };
    let chosen = DefaultPolicy.select(asked, swarm, &flows, 12, 5);
    let of = |name: &str| chosen.iter().filter(|c| c.info.topology.zone.as_deref() == Some(name)).count();
    assert_eq!((of("b"), of("c"), of("d")), (2, 8, 2));
}

#[test]
fn a_zone_with_few_peers_is_filled_from_afar() {
    let chosen = select(&peer(3, NodeRole::Proxy, "a", Ownership::Empty), &swarm(4, 100), 40, 1);
    assert_eq!(chosen.len(), 40);
    assert_eq!(chosen.iter().filter(|c| is_far(c)).count(), 35);
}

#[test]
fn who_owns_everything_is_told_only_of_those_who_do_not() {
    let chosen = select(&peer(3, NodeRole::Proxy, "a", Ownership::Complete), &swarm(10, 10), 40, 1);
    assert_eq!(chosen.len(), 19);
    assert!(chosen.iter().all(|c| !c.pieces.is_complete()));
}

#[test]
fn lists_differ_so_that_nobody_is_known_to_all() {
    let swarm = swarm(200, 0);
    let mut named = BTreeSet::new();
    for number in 0..40 {
        let asker = peer(1000 + number, NodeRole::Proxy, "a", Ownership::Prefix(20));
        named.extend(select(&asker, &swarm, 40, number as u64).into_iter().map(|c| c.info.id.clone()));
    }
    assert!(named.len() > 195, "{}", named.len());
}

proptest! {
    #[test]
    fn every_list_is_sound(near in 0usize..60, far in 0usize..60, limit in 1usize..50, seed: u64) {
        let swarm = swarm(near, far);
        let asker = peer(3, NodeRole::Proxy, "a", Ownership::Prefix(1));
        let chosen = select(&asker, &swarm, limit, seed);
        let ids: Vec<_> = chosen.iter().map(|c| c.info.id.clone()).collect();
        prop_assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
        prop_assert!(!ids.contains(&asker.info.id));
        let others = swarm.iter().filter(|c| c.info.id != asker.info.id).count();
        prop_assert_eq!(chosen.len(), others.min(limit));
        let again: Vec<_> = select(&asker, &swarm, limit, seed).iter().map(|c| c.info.id.clone()).collect();
        prop_assert_eq!(ids, again);
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
            .enumerate()
            .map(|(number, (region, zone, rack, owns))| {
                let pieces = if *owns { Ownership::Prefix(9) } else { Ownership::Empty };
                let mut candidate = peer(number, NodeRole::Proxy, "", pieces);
                let info = PeerInfo { topology: at((*region, *zone, *rack)), ..(*candidate.info).clone() };
                candidate.info = Arc::new(info);
                candidate
            })
            .chain([peer(990, NodeRole::Seeder, "elsewhere", Ownership::Complete)])
            .collect();
        let mut asker_peer = peer(991, NodeRole::Proxy, "", Ownership::Empty);
        asker_peer.info = Arc::new(PeerInfo { topology: at(asker), ..(*asker_peer.info).clone() });
        let group = |c: &Candidate| c.info.topology.group_seen_from(&asker_peer.info.topology);
        let chosen = select(&asker_peer, &swarm, limit, seed);
        prop_assert_eq!(chosen.len(), limit.min(swarm.len()));
        prop_assert!(chosen.iter().any(|c| c.pieces.offers(&asker_peer.pieces)), "no source");
        let proxies = || swarm.iter().filter(|c| c.info.role == NodeRole::Proxy);
        let groups: BTreeSet<FarGroup> = proxies().filter_map(group).collect();
        let named: BTreeSet<FarGroup> =
            chosen.iter().filter(|c| c.info.role == NodeRole::Proxy).filter_map(group).collect();
        prop_assert!(named.len() >= groups.len().min((limit - 1) / 2), "{} of {}", named.len(), groups.len());
        let near = proxies().filter(|c| group(c).is_none()).count();
        let named_near = chosen.iter().filter(|c| c.info.role == NodeRole::Proxy && group(c).is_none()).count();
        prop_assert!(named_near >= near.min((limit - 1) / 2), "{named_near} of {near}");
    }
}
