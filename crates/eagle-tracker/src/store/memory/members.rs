//! The members of a swarm, by where they are.
//!
//! Of a large swarm only a part is looked at for each asker, so that naming peers costs the same however many there are. A part taken
//! blindly has nobody of a zone of ten nodes among ten thousand: neither would these ten find each other, nor would anybody have
//! a link to them. So members of a large swarm are kept apart by their labels, and the part has some of each place, with most of them near the asker.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use eagle_core::{Boundary, FarGroup, Place, Timestamp, tracker::Ownership};
use hashbrown::HashTable;
use rand::{RngExt as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use super::swarm::Swarm;
use crate::store::memory::node::Node;

/// Most members seen at a time. A list has 40 of them, so there is a choice of three for each; each costs a fraction of a
/// microsecond, since its node is seldom in the processor's cache.
pub(super) const MAX_SEEN: usize = 128;
/// Of each place beyond a boundary, as far as half of all suffices for that: two are named, and some may be gone.
const FAR_EACH: usize = 4;
/// Most places that are told apart; labels come from the nodes. Of more, first racks are taken together, then zones, then all.
const MAX_PLACES: usize = 256;
/// Places are told apart from [`MAX_SEEN`] members on, and until there are so many times fewer: not anew with every change.
const FEWER: usize = 2;
/// Tables that are less than one part in so many full give memory back.
const SPARSE: usize = 8;
/// An odd number near 2^64 over the golden ratio: multiplied by it, addresses that differ in few bits differ in many.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Members, each once, in no order that matters.
#[derive(Debug, Default)]
pub(super) struct Members {
    groups: Vec<Group>,
    /// What tells the place of each group from others; apart from the groups, since all are looked through.
    keys: Vec<u64>,
    detail: Detail,
    /// Where each member is.
    positions: HashTable<Position>,
}

/// Members at one place.
#[derive(Debug)]
struct Group {
    place: Place,
    members: Vec<Member>,
}

/// A member, with what choosing peers needs of most without a look at what the node owns.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) node: Arc<Node>,
    /// When it joined, in tenths of a second: half of the size of the time, and there are millions of members.
    joined: u32,
    /// Whether it owns every piece.
    complete: bool,
}

impl Member {
    pub(super) fn new(node: Arc<Node>, pieces: &Ownership, now: Timestamp) -> Self {
        let joined = u32::try_from((now - Timestamp(0)).as_millis() / 100).unwrap_or(u32::MAX);
        Self { node, joined, complete: pieces.is_complete() }
    }

    /// Time since it joined, to a tenth of a second.
    pub(super) fn age(&self, now: Timestamp) -> Duration {
        now - (Timestamp(0) + Duration::from_millis(100) * self.joined)
    }

    /// What it owns of the blob; nothing when it has left.
    pub(super) fn pieces(&self, swarm: &Arc<Swarm>) -> Option<Ownership> {
        if self.complete {
            return Some(Ownership::Complete);
        }
        self.node.membership().of(swarm).map(|entry| entry.pieces.clone())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    group: u32,
    index: u32,
}

/// Which labels tell places apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Detail {
    Racks,
    Zones,
    Regions,
    #[default]
    None,
}

impl Detail {
    const fn coarser(self) -> Self {
        match self {
            Self::Racks => Self::Zones,
            Self::Zones => Self::Regions,
            Self::Regions | Self::None => Self::None,
        }
    }

    /// The part of a place that counts.
    fn of(self, place: &Place) -> Place {
        match self {
            Self::Racks => *place,
            Self::Zones => place.without(Boundary::Rack),
            Self::Regions => place.without(Boundary::Zone),
            Self::None => Place::default(),
        }
    }

    /// The same as one number.
    const fn key(self, place: &Place) -> u64 {
        match self {
            Self::Racks => place.within(Boundary::Rack),
            Self::Zones => place.within(Boundary::Zone),
            Self::Regions => place.within(Boundary::Region),
            Self::None => 0,
        }
    }
}

/// A node leaves every swarm before it can be made again, so the same node is the same allocation.
fn hash_of(node: &Arc<Node>) -> u64 {
    let product = (Arc::as_ptr(node).addr() as u64).wrapping_mul(SPREAD);
    product ^ (product >> 32)
}

/// A position as it is kept: half of its size, since there are millions. No swarm has 2^32 members.
fn short(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

impl Members {
    pub(super) fn len(&self) -> usize {
        self.positions.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.all().map(|member| &member.node)
    }

    fn all(&self) -> impl Iterator<Item = &Member> {
        self.groups.iter().flat_map(|group| &group.members)
    }

    /// Takes in a node that is no member.
    pub(super) fn insert(&mut self, member: Member, place: &Place) {
        if self.detail == Detail::None && self.groups.len() <= 1 && self.len() == MAX_SEEN {
            self.arrange(Detail::Racks);
        }
        self.put(member, place);
    }

    /// Lets a node go; says whether it was a member.
    pub(super) fn remove(&mut self, node: &Arc<Node>) -> bool {
        self.take(node).is_some()
    }

    /// Lets all nodes go that the sweep takes out of their swarms. Those that leave by themselves are gone too, but what they had is
    /// with whoever takes them out.
    pub(super) fn remove_swept(&mut self) -> Vec<Member> {
        let mut gone = Vec::new();
        for group in &mut self.groups {
            gone.extend(group.members.extract_if(.., |member| member.node.is_swept()));
            if group.members.len() < group.members.capacity() / SPARSE {
                group.members.shrink_to(group.members.len() * 2);
            }
        }
        if gone.is_empty() {
            return gone;
        }
        if self.detail != Detail::None && self.all().count() < MAX_SEEN / FEWER {
            self.arrange(Detail::None);
        } else {
            self.index();
        }
        gone
    }

    /// A member is elsewhere now.
    pub(super) fn moved(&mut self, node: &Arc<Node>, place: &Place) {
        if let Some(member) = self.take(node) {
            self.insert(member, place);
        }
    }

    /// A member owns every piece now, or no longer does.
    pub(super) fn set_complete(&mut self, node: &Arc<Node>, complete: bool) {
        let Self { groups, positions, .. } = self;
        let found = positions.find(hash_of(node), |at| Arc::ptr_eq(&at.member(groups).node, node)).copied();
        if let Some(at) = found {
            groups[at.group()].members[at.index()].complete = complete;
        }
    }

    fn take(&mut self, node: &Arc<Node>) -> Option<Member> {
        let Self { groups, positions, .. } = self;
        let found = positions.find_entry(hash_of(node), |at| Arc::ptr_eq(&at.member(groups).node, node)).ok()?;
        let (at, _) = found.remove();
        let members = &mut groups[at.group()].members;
        let last = Position { index: short(members.len() - 1), ..at };
        let taken = members.swap_remove(at.index());
        if let Some(moved) = members.get(at.index())
            && let Some(position) = positions.find_mut(hash_of(&moved.node), |position| *position == last)
        {
            *position = at;
        }
        if members.len() < members.capacity() / SPARSE {
            members.shrink_to(members.len() * 2);
        }
        if self.detail != Detail::None && self.len() < MAX_SEEN / FEWER {
            self.arrange(Detail::None);
        } else if self.positions.len() < self.positions.capacity() / SPARSE {
            let Self { groups, positions, .. } = self;
            positions.shrink_to(positions.len() * 2, |at| hash_of(&at.member(groups).node));
        }
        Some(taken)
    }

    /// Members that an asker at this place is to see, each once, so many at most.
    pub(super) fn sample(&self, most: usize, place: &Place, rng: &mut ChaCha8Rng) -> Vec<Member> {
        if self.len() <= most {
            return self.all().cloned().collect();
        }
        let mut near: Vec<&[Member]> = Vec::new();
        let mut far: BTreeMap<FarGroup, Vec<&[Member]>> = BTreeMap::new();
        for Group { place: there, members } in self.groups.iter().filter(|group| !group.members.is_empty()) {
            match there.group_seen_from(place) {
                None => near.push(members),
                Some(group) => far.entry(group).or_default().push(members),
            }
        }
        let each = (most / 2 / far.len().max(1)).clamp(1, FAR_EACH);
        let links: Vec<&Member> = far.values().flat_map(|group| some(group, each, rng)).collect();
        // More places than there is room for: some of them, others for another asker.
        let mut seen: Vec<&Member> = some(&[&links], most / 2, rng).into_iter().copied().collect();
        // Near ones as far as there are any, then more of those far away, of all places alike.
        seen.extend(some(&near, most.saturating_sub(seen.len()), rng));
        let room = most.saturating_sub(seen.len());
        if room > 0 {
            let known: HashSet<*const Member> = seen.iter().map(|member| std::ptr::from_ref(*member)).collect();
            let all: Vec<&[Member]> = far.into_values().flatten().collect();
            // As many more as may be known already, and whoever is too many is left out at random.
            let mut more = some(&all, room + links.len(), rng);
            more.retain(|member| !known.contains(&std::ptr::from_ref(*member)));
            more.shuffle(rng);
            seen.extend(more.into_iter().take(room));
        }
        seen.into_iter().cloned().collect()
    }

    /// Tells members apart by other labels.
    fn arrange(&mut self, detail: Detail) {
        let before = std::mem::take(self);
        self.detail = detail;
        for member in before.groups.into_iter().flat_map(|group| group.members) {
            let place = member.node.place();
            self.put(member, &place);
        }
    }

    fn put(&mut self, member: Member, place: &Place) {
        let group = loop {
            match self.group(place) {
                Some(group) => break group,
                None => self.coarsen(),
            }
        };
        let members = &mut self.groups[group].members;
        let position = Position { group: short(group), index: short(members.len()) };
        let hash = hash_of(&member.node);
        members.push(member);
        let groups = &self.groups;
        self.positions.insert_unique(hash, position, |at| hash_of(&at.member(groups).node));
    }

    /// The group of a place, made where there is none; `None` where there are too many for that.
    fn group(&mut self, place: &Place) -> Option<usize> {
        let key = self.detail.key(place);
        if let Some(group) = self.keys.iter().position(|known| *known == key) {
            return Some(group);
        }
        let new = Group { place: self.detail.of(place), members: Vec::new() };
        if self.groups.len() < MAX_PLACES {
            self.groups.push(new);
            self.keys.push(key);
            return Some(self.groups.len() - 1);
        }
        let empty = self.groups.iter().position(|group| group.members.is_empty())?;
        (self.groups[empty], self.keys[empty]) = (new, key);
        Some(empty)
    }

    /// Takes places together that differ in their narrowest labels only. In the end there is one for all.
    fn coarsen(&mut self) {
        self.detail = self.detail.coarser();
        let mut groups: Vec<Group> = Vec::new();
        self.keys.clear();
        for old in std::mem::take(&mut self.groups) {
            let key = self.detail.key(&old.place);
            if let Some(known) = self.keys.iter().position(|known| *known == key) {
                groups[known].members.extend(old.members);
            } else {
                self.keys.push(key);
                groups.push(Group { place: self.detail.of(&old.place), members: old.members });
            }
        }
        self.groups = groups;
        self.index();
    }

    /// Notes anew where everybody is.
    fn index(&mut self) {
        let Self { groups, positions, .. } = self;
        let hash = |at: &Position| hash_of(&at.member(groups).node);
        *positions = HashTable::with_capacity(groups.iter().map(|group| group.members.len()).sum());
        for (group, number) in groups.iter().zip(0..) {
            for (member, index) in group.members.iter().zip(0..) {
                positions.insert_unique(hash_of(&member.node), Position { group: number, index }, hash);
            }
        }
    }
}

impl Position {
    const fn group(self) -> usize {
        self.group as usize
    }

    const fn index(self) -> usize {
        self.index as usize
    }

    fn member(self, groups: &[Group]) -> &Member {
        &groups[self.group()].members[self.index()]
    }
}

/// At most so many of the lists together: one at random of each of as many equal parts. Members are about in the order in which they joined, and
/// those who came first know many others already: whoever saw a run of these alone might find nobody with room for it.
fn some<'a, T>(lists: &[&'a [T]], most: usize, rng: &mut ChaCha8Rng) -> Vec<&'a T> {
    let all: usize = lists.iter().map(|list| list.len()).sum();
    if all <= most {
        return lists.iter().flat_map(|list| list.iter()).collect();
    }
    let mut chosen = Vec::with_capacity(most);
    let (mut list, mut before) = (0, 0);
    for part in 0..most {
        let position = rng.random_range(part * all / most..(part + 1) * all / most);
        while position - before >= lists[list].len() {
            before += lists[list].len();
            list += 1;
        }
        chosen.push(&lists[list][position - before]);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use eagle_core::{PeerInfo, Topology};
    use rand::SeedableRng as _;

    use super::*;

    fn place(zone: &str, rack: usize) -> Topology {
        Topology { region: Some("eu".to_owned()), zone: Some(zone.to_owned()), rack: Some(rack.to_string()) }
    }

    fn node(number: usize, topology: Topology) -> Arc<Node> {
        let info = PeerInfo { id: format!("node{number}").parse().unwrap(), topology, ..PeerInfo::example() };
        Arc::new(Node::new(&info, Timestamp(0)))
    }

    fn member(node: &Arc<Node>) -> Member {
        Member::new(Arc::clone(node), &Ownership::Empty, Timestamp(0))
    }

    fn zone_of(node: &Node) -> String {
        node.record().info().topology.zone.clone().unwrap()
    }

    fn members(places: impl Iterator<Item = Topology>) -> Members {
        let mut members = Members::default();
        for (number, topology) in places.enumerate() {
            members.insert(member(&node(number, topology.clone())), &Place::from(&topology));
        }
        members
    }

    fn sample(members: &Members, asker: &Topology, seed: u64) -> Vec<String> {
        let seen = members.sample(MAX_SEEN, &Place::from(asker), &mut ChaCha8Rng::seed_from_u64(seed));
        let distinct: HashSet<_> = seen.iter().map(|member| Arc::as_ptr(&member.node)).collect();
        assert_eq!(distinct.len(), seen.len(), "each once");
        assert!(seen.len() <= MAX_SEEN);
        seen.iter().map(|member| zone_of(&member.node)).collect()
    }

    /// Whether every member is found where it is.
    fn assert_sound(members: &Members) {
        assert_eq!(members.iter().count(), members.len());
        for (number, group) in members.groups.iter().enumerate() {
            for (index, member) in group.members.iter().enumerate() {
                let at = Position { group: short(number), index: short(index) };
                assert!(members.positions.find(hash_of(&member.node), |position| *position == at).is_some());
                assert_eq!(members.keys[number], members.detail.key(&member.node.place()));
            }
        }
    }

    #[test]
    fn a_small_zone_is_seen_by_itself_and_by_all_others() {
        // Ten nodes in one zone, 10,000 in another.
        let members = members((0..10_010).map(|n| place(if n % 1_001 == 0 { "b" } else { "a" }, n % 3)));
        assert_sound(&members);
        for seed in 0..20 {
            let from = |zone, rack| sample(&members, &place(zone, rack), seed).iter().filter(|z| *z == "b").count();
            assert_eq!(from("b", 0), 10, "whoever is there sees them all");
            assert!((4..11).contains(&from("a", 1)), "{}", from("a", 1));
            assert!(sample(&members, &place("b", 0), seed).len() > MAX_SEEN * 9 / 10);
        }
    }

    #[test]
    fn labels_without_end_are_taken_together() {
        let racks = members((0..2_000).map(|n| place(if n % 2 == 0 { "a" } else { "b" }, n)));
        assert_eq!(racks.detail, Detail::Zones);
        assert_sound(&racks);
        let seen = sample(&racks, &place("a", 0), 1);
        let far = seen.iter().filter(|zone| *zone == "b").count();
        assert!(far >= FAR_EACH && seen.len() > MAX_SEEN / 2, "{far} of {}", seen.len());
        let zones = members((0..2_000).map(|n| place(&format!("zone{n}"), 0)));
        assert!(sample(&zones, &place("zone1", 0), 1).len() > MAX_SEEN / 2);
        let regions = members((0..2_000).map(|n| Topology { region: Some(n.to_string()), ..place("a", 0) }));
        assert_eq!(sample(&regions, &place("a", 0), 1).len(), MAX_SEEN);
    }

    #[test]
    fn members_come_and_go_one_by_one() {
        let mut members = Members::default();
        let nodes: Vec<_> = (0..1_000).map(|n| node(n, place(["a", "b", "c"][n % 3], n % 40))).collect();
        for node in &nodes {
            members.insert(member(node), &node.place());
        }
        assert_eq!((members.len(), members.detail, members.groups.len()), (1_000, Detail::Racks, 120));
        assert_sound(&members);
        // From both ends and from the middle.
        for number in (0..500).chain((700..1_000).rev()) {
            assert!(members.remove(&nodes[number]) && !members.remove(&nodes[number]));
        }
        assert_sound(&members);
        assert!(sample(&members, &place("a", 0), 1).len() > MAX_SEEN * 9 / 10);
        for node in &nodes[500..650] {
            assert!(members.remove(node));
        }
        // So few are all seen, wherever they are.
        assert_eq!((members.len(), members.detail), (50, Detail::None));
        assert_sound(&members);
        assert_eq!(sample(&members, &place("a", 0), 1).len(), 50);
        assert!(members.groups.iter().all(|group| group.members.capacity() <= 256));
    }

    #[test]
    fn places_that_nobody_is_at_any_more_give_way() {
        let mut members = Members::default();
        for n in 0..=MAX_SEEN {
            let node = node(n, place("a", 0));
            members.insert(member(&node), &node.place());
        }
        for n in 0..2 * MAX_PLACES {
            let guest = node(n, place("b", n));
            members.insert(member(&guest), &guest.place());
            assert!(members.remove(&guest));
        }
        assert_eq!(members.detail, Detail::Racks);
        assert_sound(&members);
    }
}
