//! Whether the neighbours that a tracker names keep a swarm in one part.

use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::{Asker, Candidate, DefaultPolicy, Flows, Ownership, PeerPolicy as _};
use crate::{NodeRole, Place, Topology, swarm::SwarmConfig};

/// Peers in an answer, the tracker's default.
const ANSWER: usize = 40;
/// Candidates that the tracker's store shows the policy at most.
const SEEN: usize = 128;

fn node(zone: usize) -> Candidate {
    let topology = Topology { region: None, zone: Some(format!("zone{zone}")), rack: None };
    let place = Place::from(&topology);
    Candidate { role: NodeRole::Proxy, place, pieces: Ownership::Empty, load: None, age: Duration::ZERO }
}

/// Nodes join one after the other and each asks once, the worst case: it knows only who came before.
/// Returns the links that come about when every node greets and accepts as many peers as it may.
fn links(nodes: usize, zones: usize, seed: u64) -> Vec<Vec<usize>> {
    let SwarmConfig { max_peers, greeted_peers, .. } = SwarmConfig::default();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let all: Vec<Candidate> = (0..nodes).map(|_| node(rng.random_range(0..zones))).collect();
    let mut links = vec![Vec::new(); nodes];
    for (number, asker) in all.iter().enumerate() {
        // One of each of as many equal parts, as the store does it.
        let parts = number.min(SEEN);
        let seen = (0..parts).map(|part| rng.random_range(part * number / parts..(part + 1) * number / parts));
        let seen: Vec<usize> = seen.collect();
        let candidates: Vec<Candidate> = seen.iter().map(|other| all[*other].clone()).collect();
        let asker = Asker { place: asker.place, pieces: &asker.pieces };
        for named in DefaultPolicy.select(asker, &candidates, &Flows::default(), ANSWER, rng.random()) {
            let other = seen[named];
            if links[number].len() < greeted_peers && links[other].len() < max_peers {
                links[number].push(other);
                links[other].push(number);
            }
        }
    }
    links
}

fn reached(links: &[Vec<usize>]) -> usize {
    let mut seen = vec![false; links.len()];
    let mut todo = vec![0];
    while let Some(node) = todo.pop() {
        if !std::mem::replace(&mut seen[node], true) {
            todo.extend(&links[node]);
        }
    }
    seen.iter().filter(|seen| **seen).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Without the seeders, which know many, and with every node's neighbours bounded.
    #[test]
    fn every_node_reaches_every_other(nodes in 2usize..400, zones in 1usize..6, seed: u64) {
        let links = links(nodes, zones, seed);
        prop_assert!(links.iter().all(|peers| peers.len() <= SwarmConfig::default().max_peers));
        prop_assert_eq!(reached(&links), nodes);
    }
}

#[test]
fn so_do_those_of_a_large_swarm() {
    for (zones, seed) in [(1, 1), (4, 2)] {
        let links = links(3_000, zones, seed);
        assert_eq!(reached(&links), 3_000, "{zones} zones");
    }
}

/// The check can fail: nodes that know no one outside their zone are not connected.
#[test]
fn zones_without_links_are_seen_as_parts() {
    assert_eq!(reached(&[vec![1], vec![0], vec![3], vec![2]]), 2);
}
