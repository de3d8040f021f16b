//! Which peers an asker is told of, and in which order.

use std::{cmp::Reverse, sync::Arc};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::ownership::Ownership;
use crate::{NodeRole, PeerInfo, Topology};

/// Seeders at the head of a list: one may be down, two fail seldom at once, and more would only have
/// everybody hang on the seeders. Others follow in the list like any peer.
const SEEDERS_FIRST: usize = 2;
/// Every so many places of a list belong to a peer far away, while there are any: random links across
/// zones keep the graph connected, and no zone starves on the few copies that first came into it.
const FAR_EVERY: usize = 4;

/// Who asks for peers.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The node.
    pub info: &'a PeerInfo,
    /// What it owns of the blob.
    pub pieces: &'a Ownership,
}

/// A peer that could be named to an asker.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The peer.
    pub info: Arc<PeerInfo>,
    /// What it owns.
    pub pieces: Ownership,
}

/// Chooses peers for an asker.
pub trait PeerPolicy: std::fmt::Debug + Send + Sync + 'static {
    /// At most `limit` of the candidates, the best first. The same arguments give the same answer.
    /// The asker is not named, even if it is a candidate.
    fn select(&self, asker: Asker<'_>, candidates: Vec<Candidate>, limit: usize, seed: u64) -> Vec<Candidate>;
}

/// The default: seeders for those who lack something, then peers of the asker's zone with a share of
/// far ones among them, those with something to offer before those without; at random where equal.
///
/// Peers that own nothing are named too: in a cold swarm nobody owns anything at first, and whom a node
/// knows then is whom it will exchange pieces with. An asker that owns everything gets no peers that do.
#[derive(Debug, Clone, Copy, Default)]
pub struct DefaultPolicy;

struct Scored {
    candidate: Candidate,
    offers: bool,
    distance: u8,
    tie: u64,
}

impl PeerPolicy for DefaultPolicy {
    fn select(&self, asker: Asker<'_>, candidates: Vec<Candidate>, limit: usize, seed: u64) -> Vec<Candidate> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut seeders, mut near, mut far) = (Vec::new(), Vec::new(), Vec::new());
        for candidate in candidates {
            if candidate.info.id == asker.info.id || (asker.pieces.is_complete() && candidate.pieces.is_complete()) {
                continue;
            }
            let offers = candidate.pieces.offers(asker.pieces);
            let distance = asker.info.topology.distance(&candidate.info.topology);
            let scored = Scored { candidate, offers, distance, tie: rng.next_u64() };
            match scored.candidate.info.role {
                NodeRole::Seeder => seeders.push(scored),
                NodeRole::Proxy if distance <= Topology::NEAR => near.push(scored),
                NodeRole::Proxy => far.push(scored),
            }
        }
        seeders.sort_by_key(|s| (Reverse(s.offers), s.distance, s.tie));
        near.sort_by_key(|s| (Reverse(s.offers), s.distance, s.tie));
        // Among far peers distance does not count: a preference would cut off the farthest.
        far.sort_by_key(|s| (Reverse(s.offers), s.tie));

        let first = if asker.pieces.is_complete() { 0 } else { SEEDERS_FIRST.min(seeders.len()) };
        let rest = seeders.split_off(first);
        let mut chosen = seeders;
        let (mut near, mut far) = (near.into_iter(), far.into_iter());
        while chosen.len() < limit {
            let place = chosen.len() - first;
            let next = if place % FAR_EVERY == FAR_EVERY - 1 {
                far.next().or_else(|| near.next())
            } else {
                near.next().or_else(|| far.next())
            };
            match next {
                Some(scored) => chosen.push(scored),
                None => break,
            }
        }
        chosen.extend(rest);
        chosen.truncate(limit);
        chosen.into_iter().map(|scored| scored.candidate).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn peer(number: usize, role: NodeRole, zone: &str, pieces: Ownership) -> Candidate {
        let topology = Topology { region: None, zone: Some(zone.to_owned()), rack: None };
        let id = format!("node{number}").parse().unwrap();
        Candidate { info: Arc::new(PeerInfo { id, role, topology, ..PeerInfo::example() }), pieces }
    }

    /// 3 seeders, then `near` proxies of zone a and `far` ones of zone b, every third with a prefix.
    fn swarm(near: usize, far: usize) -> Vec<Candidate> {
        let seeders = (0..3).map(|i| peer(i, NodeRole::Seeder, "s", Ownership::Complete));
        let proxies = (3..3 + near + far).map(|i| {
            let pieces = if i % 3 == 0 { Ownership::Prefix(9) } else { Ownership::Empty };
            peer(i, NodeRole::Proxy, if i < 3 + near { "a" } else { "b" }, pieces)
        });
        seeders.chain(proxies).collect()
    }

    fn select(asker: &Candidate, swarm: &[Candidate], limit: usize, seed: u64) -> Vec<Candidate> {
        let asker = Asker { info: &asker.info, pieces: &asker.pieces };
        DefaultPolicy.select(asker, swarm.to_vec(), limit, seed)
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
        assert_eq!(chosen.iter().filter(|c| is_far(c)).count(), 9);
        // Who has something to offer comes before who has not, within the near and within the far.
        for side in [true, false] {
            let offers: Vec<bool> =
                chosen[2..].iter().filter(|c| is_far(c) == side).map(|c| c.pieces != Ownership::Empty).collect();
            assert!(offers.is_sorted_by(|a, b| a >= b), "{offers:?}");
        }
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
    }
}
