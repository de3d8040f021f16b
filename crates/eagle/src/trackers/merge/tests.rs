//! What one tracker says stays as it is; of what several say nothing counts twice and nothing is left out.

use eagle_core::{Geometry, PeerInfo, Topology, tracker::NodeLoad};
use eagle_tracker::api::{NodeActivity, PeerAt, SwarmMember};

use super::*;

fn swarm_of(name: &str, peers: usize, changed: f64, rate: u64) -> SwarmSummary {
    let geometry = Geometry::new(200_000, 1 << 16).unwrap();
    SwarmSummary {
        digest: Digest::of(name.as_bytes()),
        geometry,
        pieces: geometry.pieces(),
        peers,
        seeders: 1,
        complete: peers / 2,
        progress: 0.5,
        age_seconds: 60.0,
        changed_seconds: changed,
        bytes_per_second: rate,
    }
}

fn node(id: &str, role: NodeRole, blobs: usize, announced: f64, rates: (u64, u64)) -> PeerSummary {
    let info = PeerInfo { id: id.parse().unwrap(), role, ..PeerInfo::example() };
    PeerSummary {
        peer: PeerAt::from(&info),
        blobs,
        age_seconds: 100.0 - announced,
        last_announce_seconds: announced,
        activity: NodeActivity {
            // What it said last can be told from what it said before.
            load: Some(NodeLoad { requests: if announced < 1.0 { 1 } else { 9 }, free_slots: 0 }),
            received_bytes_per_second: rates.0,
            sent_bytes_per_second: rates.1,
        },
    }
}

fn overview_of(store: &str, blobs: usize, active: Vec<SwarmSummary>) -> Overview {
    Overview {
        version: "0.1.0".to_owned(),
        uptime_seconds: 60.0 * blobs as f64,
        peers: 10,
        seeders: 1,
        blobs,
        entries: 20 * blobs,
        announces_per_second: 1.5,
        bytes_per_second: 1_000 * blobs as u64,
        store: StoreStatus { kind: store.to_owned(), away: false },
        active,
    }
}

#[test]
fn a_swarm_is_that_of_the_tracker_with_most_of_its_peers() {
    // The first tracker of `a` has its peers, the other one its seeder; of `b` some nodes have not noticed that its tracker is back.
    let first = vec![swarm_of("a", 9, 5.0, 100), swarm_of("b", 3, 1.0, 700)];
    let second = vec![swarm_of("c", 2, 3.0, 0), swarm_of("a", 1, 50.0, 40), swarm_of("b", 6, 2.0, 300)];
    for lists in [vec![first.clone(), second.clone()], vec![second, first]] {
        let merged = swarms(lists);
        let seen: Vec<_> = ["a", "b", "c"]
            .map(|name| merged.iter().find(|swarm| swarm.digest == Digest::of(name.as_bytes())).unwrap())
            .map(|swarm| (swarm.peers, swarm.complete, swarm.changed_seconds, swarm.bytes_per_second))
            .into();
        assert_eq!(seen, [(9, 4, 5.0, 100), (6, 3, 2.0, 700), (2, 1, 3.0, 0)]);
        assert_eq!(merged.len(), 3);
        assert!(merged.is_sorted_by_key(|swarm| swarm.digest));
    }
}

#[test]
fn members_of_a_swarm_are_those_of_one_tracker() {
    let page = |peers: usize, rate: u64| {
        let member = |number: usize| SwarmMember {
            peer: node(&format!("n{number}"), NodeRole::Proxy, 1, 0.0, (0, 0)).peer,
            pieces: 1,
            complete: false,
            owned: None,
            age_seconds: 1.0,
            last_announce_seconds: 1.0,
            senders: Vec::new(),
        };
        let summary = swarm_of("a", peers, 1.0, rate);
        Some(SwarmPage { summary, members: (0..peers).map(member).collect(), next: None })
    };
    for said in [vec![page(2, 50), None, page(5, 10)], vec![page(5, 10), page(2, 50)]] {
        let merged = swarm(said).unwrap();
        assert_eq!((merged.summary.peers, merged.members.len(), merged.summary.bytes_per_second), (5, 5, 50));
    }
    assert!(swarm(vec![None, None]).is_none());
}

#[test]
fn a_node_is_once_in_the_list_as_it_last_said() {
    use NodeRole::{Proxy, Seeder};
    let first = vec![node("a", Proxy, 3, 20.0, (500, 10)), node("s", Seeder, 7, 0.5, (0, 90))];
    let second =
        vec![node("a", Proxy, 4, 0.5, (200, 30)), node("b", Proxy, 1, 5.0, (1, 1)), node("s", Seeder, 7, 9.0, (5, 80))];
    for lists in [vec![first.clone(), second.clone()], vec![second, first]] {
        for (are_apart, blobs) in [(true, 7), (false, 4)] {
            let merged = nodes(lists.clone(), are_apart);
            let ids: Vec<&str> = merged.iter().map(|node| node.peer.id.as_str()).collect();
            assert_eq!(ids, ["a", "b", "s"]);
            let (a, s) = (&merged[0], &merged[2]);
            assert_eq!((a.blobs, a.age_seconds, a.last_announce_seconds), (blobs, 99.5, 0.5));
            assert_eq!((a.activity.load.unwrap().requests, s.activity.load.unwrap().requests), (1, 1));
            let rates =
                |node: &PeerSummary| (node.activity.received_bytes_per_second, node.activity.sent_bytes_per_second);
            assert_eq!((rates(a), rates(s)), ((500, 30), (5, 90)));
            // A seeder has announced all of its blobs to both.
            assert_eq!(s.blobs, 7);
        }
    }
}

#[test]
fn announces_are_added_up_and_nothing_else() {
    let one = overview_of("memory", 2, vec![swarm_of("a", 9, 5.0, 0), swarm_of("b", 1, 7.0, 0)]);
    let other = overview_of("memory", 3, vec![swarm_of("c", 2, 1.0, 0), swarm_of("a", 1, 6.0, 0)]);
    let merged = overview(vec![one.clone(), other.clone()]);
    assert_eq!(
        (merged.peers, merged.seeders, merged.blobs, merged.entries, merged.bytes_per_second, merged.uptime_seconds),
        (10, 1, 3, 60, 3_000, 120.0)
    );
    assert!((merged.announces_per_second - 3.0).abs() < f64::EPSILON);
    let active: Vec<_> = merged.active.iter().map(|swarm| (swarm.peers, swarm.changed_seconds)).collect();
    assert_eq!(active, [(2, 1.0), (9, 5.0), (1, 7.0)]);
    assert_eq!((merged.store.kind.as_str(), merged.version.as_str()), ("memory", "0.1.0"));
    assert_eq!(overview(vec![one.clone()]), one);
    assert!(are_apart(&[one.clone(), other]));

    let mut shared = overview_of("redis", 3, Vec::new());
    shared.store.away = true;
    let mixed = overview(vec![one.clone(), shared.clone()]);
    assert_eq!((mixed.store.kind.as_str(), mixed.store.away), ("memory, redis", true));
    assert!(!are_apart(&[shared.clone(), shared.clone()]) && !are_apart(&[one, shared]));
}

#[test]
fn the_swarms_that_changed_last_are_those_of_all() {
    let active = |offset: usize| {
        (0..ACTIVE).map(move |n| swarm_of(&(2 * n + offset).to_string(), 2, (2 * n + offset) as f64, 0))
    };
    let said = vec![overview_of("memory", 100, active(0).collect()), overview_of("memory", 100, active(1).collect())];
    let merged = overview(said);
    let changed: Vec<f64> = merged.active.iter().map(|swarm| swarm.changed_seconds).collect();
    assert_eq!(changed, (0..ACTIVE).map(|n| n as f64).collect::<Vec<_>>());
}

#[test]
fn zones_and_flows_are_known_to_every_tracker() {
    let place = |zone: &str| {
        ZoneName::from(&Topology { region: Some("eu".to_owned()), zone: Some(zone.to_owned()), rack: None })
    };
    let zone = |name: &str, peers, racks: &[(&str, usize)]| {
        let racks = racks.iter().map(|&(rack, peers)| RackSummary { rack: Some(rack.to_owned()), peers }).collect();
        let ZoneName { region, zone } = place(name);
        ZoneSummary { region, zone, peers, seeders: 1, racks }
    };
    let flow = |from: &str, to: &str, rate: u64, bytes: u64| ZoneFlow {
        from: place(from),
        to: place(to),
        bytes_per_second: rate,
        transfer_bytes_per_second: rate / 2,
        bytes,
    };
    let one = TopologyPage {
        zones: vec![zone("a", 5, &[("1", 3), ("2", 2)])],
        flows: vec![flow("a", "b", 100, 9_000), flow("a", "a", 20, 500)],
        next: None,
    };
    let other = TopologyPage {
        zones: vec![zone("a", 4, &[("1", 4)]), zone("b", 2, &[])],
        flows: vec![flow("b", "b", 70, 100), flow("a", "b", 60, 9_500)],
        next: Some(1_000),
    };
    for said in [vec![one.clone(), other.clone()], vec![other, one.clone()]] {
        let merged = topology(said);
        assert_eq!(merged.zones, [zone("a", 5, &[("1", 4), ("2", 2)]), zone("b", 2, &[])]);
        let fastest = ZoneFlow { bytes: 9_500, ..flow("a", "b", 100, 0) };
        assert_eq!(merged.flows, [fastest, flow("b", "b", 70, 100), flow("a", "a", 20, 500)]);
        assert_eq!(merged.next, Some(1_000));
    }
    assert_eq!(topology(vec![one.clone()]), one);
}
