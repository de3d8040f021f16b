//! Where the members of a large swarm are.
//!
//! Of a large swarm only a part is looked at for each asker, so that naming peers costs the same however many there are. A part taken
//! blindly has nobody of a zone of ten nodes among ten thousand: neither would these ten find each other, nor would anybody have
//! a link to them. So members are kept apart by their labels, and the part has some of each place, with most of them near the asker.
//!
//! The index is made anew every few seconds and not with each change. What it says of a member that has moved or left meanwhile costs a
//! place in a list at most; who joined since is looked at besides.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use eagle_core::{FarGroup, Timestamp, Topology};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::Members;

/// Most proxies seen at a time. A list has 40 of them, so there is a choice of ten for each; all 15,000 of a large swarm
/// would take a millisecond for each asker.
pub(super) const MAX_SEEN: usize = 500;
/// Of each place beyond a boundary, as far as half of all suffices for that: two are named, and some may be gone.
const FAR_EACH: usize = 4;
/// Of those who joined since the index was made.
const NEWCOMERS: usize = 50;
/// How old the index may be: making it looks at every member, and nodes seldom move.
const AGE: Duration = Duration::from_secs(10);
/// Most places that are told apart; labels come from the nodes. Of more, first racks are taken together, then zones, then all.
const MAX_PLACES: usize = 256;

/// Members by where they are.
#[derive(Debug, Default)]
pub(super) struct Places {
    groups: Vec<(Topology, Vec<u32>)>,
    /// Of how many members.
    indexed: usize,
    made: Option<Timestamp>,
}

impl Places {
    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Makes the index anew if it is old, or half of the members are not in it.
    pub(super) fn refresh(&mut self, members: &Members, now: Timestamp) {
        let fresh = self.made.is_some_and(|made| now - made < AGE) && members.len() <= self.indexed * 2;
        if fresh {
            return;
        }
        let kept: [Keep; 4] = [
            |place| Cow::Borrowed(place),
            |place| Cow::Owned(Topology { rack: None, ..place.clone() }),
            |place| Cow::Owned(Topology { rack: None, zone: None, ..place.clone() }),
            |_| Cow::Owned(Topology::default()),
        ];
        for keep in kept {
            if let Some(groups) = group(members, keep) {
                *self = Self { groups, indexed: members.len(), made: Some(now) };
                return;
            }
        }
    }

    /// Positions of members that an asker at this place is to see, each once.
    pub(super) fn sample(&self, members: usize, place: &Topology, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let mut near: Vec<&[u32]> = Vec::new();
        let mut far: BTreeMap<FarGroup, Vec<&[u32]>> = BTreeMap::new();
        for (there, positions) in &self.groups {
            match there.group_seen_from(place) {
                None => near.push(positions),
                Some(group) => far.entry(group).or_default().push(positions),
            }
        }
        let mut seen: Vec<usize> = Vec::with_capacity(MAX_SEEN);
        let newcomers = members.saturating_sub(self.indexed);
        let first = if newcomers > NEWCOMERS { rng.random_range(0..=newcomers - NEWCOMERS) } else { 0 };
        seen.extend((0..newcomers.min(NEWCOMERS)).map(|place| self.indexed + first + place));
        let each = (MAX_SEEN / 2 / far.len().max(1)).clamp(1, FAR_EACH);
        let mut links: Vec<u32> = Vec::new();
        for group in far.values() {
            links.extend(run(group, each, rng));
        }
        // More places than there is room for: some of them, others for another asker.
        let few = [links.as_slice()];
        seen.extend(run(&few, MAX_SEEN / 2, rng).map(whole));
        // Near ones as far as there are any, then more of those far away, of all places alike.
        seen.extend(run(&near, MAX_SEEN.saturating_sub(seen.len()), rng).map(whole));
        let room = MAX_SEEN.saturating_sub(seen.len());
        if room > 0 {
            let known: std::collections::HashSet<usize> = seen.iter().copied().collect();
            let all: Vec<&[u32]> = far.into_values().flatten().collect();
            // Those known already are passed over, so a few less may come of it.
            seen.extend(run(&all, room, rng).map(whole).filter(|position| !known.contains(position)));
        }
        seen
    }
}

/// What of a node's labels tells its place from others.
type Keep = fn(&Topology) -> Cow<'_, Topology>;

/// Members by their places as far as these are told apart; `None` when there are too many.
fn group(members: &Members, keep: Keep) -> Option<Vec<(Topology, Vec<u32>)>> {
    let mut groups: HashMap<Topology, Vec<u32>> = HashMap::new();
    for ((key, _), position) in members.iter().zip(0..) {
        let info = key.0.info();
        let place = keep(&info.topology);
        if let Some(group) = groups.get_mut(&*place) {
            group.push(position);
        } else if groups.len() < MAX_PLACES {
            groups.insert(place.into_owned(), vec![position]);
        } else {
            return None;
        }
    }
    Some(groups.into_iter().collect())
}

/// A position as it is used. Half the size is kept: there are millions.
const fn whole(position: u32) -> usize {
    position as usize
}

/// At most so many of the lists together, one after another from a random place on: members are in no order that matters.
fn run<'a>(lists: &'a [&'a [u32]], most: usize, rng: &mut ChaCha8Rng) -> impl Iterator<Item = u32> + use<'a> {
    let all: usize = lists.iter().map(|list| list.len()).sum();
    let start = if all > most { rng.random_range(0..all) } else { 0 };
    let round = || lists.iter().flat_map(|list| list.iter().copied());
    // Whole lists before the start are passed over at once by the iterators of slices.
    round().skip(start).chain(round()).take(all.min(most))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use eagle_core::PeerInfo;
    use rand::SeedableRng as _;

    use super::*;
    use crate::{
        ownership::Ownership,
        store::{
            memory::Member,
            node::{Node, NodeKey},
        },
    };

    fn place(zone: &str, rack: usize) -> Topology {
        Topology { region: Some("eu".to_owned()), zone: Some(zone.to_owned()), rack: Some(rack.to_string()) }
    }

    fn members(places: impl Iterator<Item = Topology>) -> Members {
        let member = |(number, topology): (usize, Topology)| {
            let info = PeerInfo { id: format!("node{number}").parse().unwrap(), topology, ..PeerInfo::example() };
            let node = Node::new(&info, number as u64, Timestamp(0));
            (NodeKey(Arc::new(node)), Member { pieces: Ownership::Empty, joined: Timestamp(0) })
        };
        places.enumerate().map(member).collect()
    }

    fn sample(members: &Members, asker: &Topology, seed: u64) -> Vec<String> {
        let mut places = Places::default();
        places.refresh(members, Timestamp(0));
        let positions = places.sample(members.len(), asker, &mut ChaCha8Rng::seed_from_u64(seed));
        let distinct: std::collections::HashSet<_> = positions.iter().collect();
        assert_eq!(distinct.len(), positions.len(), "each once");
        assert!(positions.len() <= MAX_SEEN);
        let zone = |position: usize| members.get_index(position).unwrap().0.0.info().topology.zone.clone().unwrap();
        positions.into_iter().map(zone).collect()
    }

    #[test]
    fn a_small_zone_is_seen_by_itself_and_by_all_others() {
        // Ten nodes in one zone, 10,000 in another.
        let members = members((0..10_010).map(|n| place(if n % 1_001 == 0 { "b" } else { "a" }, n % 3)));
        for seed in 0..20 {
            let from = |zone, rack| sample(&members, &place(zone, rack), seed).iter().filter(|z| *z == "b").count();
            assert_eq!(from("b", 0), 10, "whoever is there sees them all");
            assert!((4..50).contains(&from("a", 1)), "{}", from("a", 1));
            assert!(sample(&members, &place("b", 0), seed).len() > MAX_SEEN * 9 / 10);
        }
    }

    #[test]
    fn labels_without_end_are_taken_together() {
        let racks = members((0..2_000).map(|n| place(if n % 2 == 0 { "a" } else { "b" }, n)));
        let seen = sample(&racks, &place("a", 0), 1);
        let far = seen.iter().filter(|zone| *zone == "b").count();
        assert!(far >= FAR_EACH && seen.len() > MAX_SEEN / 2, "{far} of {}", seen.len());
        let zones = members((0..2_000).map(|n| place(&format!("zone{n}"), 0)));
        assert!(sample(&zones, &place("zone1", 0), 1).len() > MAX_SEEN / 2);
        let regions = members((0..2_000).map(|n| Topology { region: Some(n.to_string()), ..place("a", 0) }));
        assert_eq!(sample(&regions, &place("a", 0), 1).len(), MAX_SEEN);
    }

    #[test]
    fn who_joined_since_is_seen_and_who_left_is_passed_over() {
        let mut all = members((0..2_000).map(|_| place("a", 0)));
        let mut places = Places::default();
        places.refresh(&all, Timestamp(0));
        let more = members((0..2_100).map(|_| place("a", 0)));
        let mut seen = |members: &Members| {
            places.refresh(members, Timestamp(1));
            places.sample(members.len(), &place("a", 0), &mut ChaCha8Rng::seed_from_u64(3))
        };
        assert_eq!(seen(&more).iter().filter(|position| **position >= 2_000).count(), NEWCOMERS);
        all.truncate(1_000);
        assert!(seen(&all).iter().filter(|position| all.get_index(**position).is_some()).count() > 0);
        // Twice as many as were known: made anew.
        assert!(!seen(&members((0..5_000).map(|_| place("b", 0)))).is_empty());
        assert_eq!(places.indexed, 5_000);
    }
}
