//! Which peers an asker is told of, and in which order.
//!
//! `docs/topology.md` describes the whole of it; `scoring.rs` has what makes one peer better than another.

use std::{cmp::Ordering, collections::BTreeMap, time::Duration};

use rand::{Rng as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    flows::Flows,
    ownership::Ownership,
    scoring::{Scored, score},
};
use crate::{Boundary, FarGroup, NodeRole, Place};

/// Seeders at the head of a list: one may be down, two fail seldom at once, and more would only have
/// everybody hang on the seeders. Others follow in the list like any peer.
const SEEDERS_FIRST: usize = 2;
/// Peers near the asker with pieces that it lacks with which it needs no seeder beyond a zone boundary: as many
/// as it greets. That seeder is then named last.
const ENOUGH_NEAR: usize = 16;
/// Peers of each far group that are named before any group has more: one may be gone or full.
const LINKS_PER_GROUP: usize = 2;
/// At least one place in so many belongs to a peer far away, while there are any: random links across
/// boundaries keep the graph connected, and no group starves on the few copies that first came into it.
const FAR_EVERY: usize = 4;

/// Who asks for peers.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Where it is.
    pub place: Place,
    /// What it owns of the blob.
    pub pieces: &'a Ownership,
}

/// How busy a node says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub struct NodeLoad {
    /// Requests for pieces that it serves or holds, over all blobs.
    pub requests: u16,
    /// Upload slots that are free.
    pub free_slots: u16,
}

/// What counts of a peer that could be named to an asker.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What it is in the cluster.
    pub role: NodeRole,
    /// Where it is.
    pub place: Place,
    /// What it owns.
    pub pieces: Ownership,
    /// How busy it is; `None` when it does not say.
    pub load: Option<NodeLoad>,
    /// Time since it joined the swarm.
    pub age: Duration,
}

/// Chooses peers for an asker.
///
/// # What every policy keeps to
/// - At most `limit` of the candidates, each once, the best first. The asker is not to be among the candidates.
/// - The same arguments give the same answer.
/// - Whoever lacks pieces is told of somebody that owns some, if there is anybody.
/// - Of each group beyond a boundary (other racks, zones, regions) somebody is named, as far as there is room in
///   half of the list, so that every group has links to every other.
pub trait PeerPolicy: std::fmt::Debug + Send + Sync + 'static {
    /// Peers for `asker`, by their indices; `flows` is what is known of the rates between zones.
    fn select(&self, asker: Asker<'_>, candidates: &[Candidate], flows: &Flows, limit: usize, seed: u64) -> Vec<usize>;
}

/// The default: near peers by score, with links to each far group among them.
///
/// 1. Seeders, two at most, for those who lack something. To whom a seeder is beyond a zone boundary it is named last,
///    once 16 peers near the asker own something that it lacks: a seeder is for few, and those who are near it spread
///    what is new (`swarm::boundaries`).
/// 2. Then near peers (the asker's rack, or its zone where there are no racks) and far ones in turn. The far have
///    at least a quarter of the places, more when there are many groups, and never more than half.
/// 3. Among the far, each group comes before any has a second peer, in random order, and a second before a third.
///    What places are left go to the narrower boundary first, then over the faster link as peers measured it, then by score.
///
/// Peers that own nothing are named too: in a cold swarm nobody owns anything at first, and whom a node
/// knows then is whom it will exchange pieces with. An asker that owns everything gets no peers that do.
///
/// How often a piece crosses a boundary is decided by the nodes (`swarm::boundaries`): the first owner offers it to
/// one peer in each group. For that it has to know one, which is what the links are for.
#[derive(Debug, Clone, Copy, Default)]
pub struct DefaultPolicy;

impl PeerPolicy for DefaultPolicy {
    fn select(&self, asker: Asker<'_>, candidates: &[Candidate], flows: &Flows, limit: usize, seed: u64) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut seeders, mut near) = (Vec::new(), Vec::new());
        let mut far: BTreeMap<FarGroup, Vec<Scored>> = BTreeMap::new();
        for (index, candidate) in candidates.iter().enumerate() {
            if asker.pieces.is_complete() && candidate.pieces.is_complete() {
                continue;
            }
            let group = candidate.place.group_seen_from(&asker.place);
            let scored = score(asker, index, candidate, rng.next_u64());
            match (candidate.role, group) {
                (NodeRole::Seeder, _) => seeders.push((group.map(|group| group.boundary), scored)),
                (NodeRole::Proxy, None) => near.push(scored),
                (NodeRole::Proxy, Some(group)) => far.entry(group).or_default().push(scored),
            }
        }
        seeders.sort_by(|(a, left), (b, right)| a.cmp(b).then(right.cmp(left)));
        let served = near.iter().filter(|peer| peer.offers).count() >= ENOUGH_NEAR;
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for (boundary, seeder) in seeders {
            let head = !asker.pieces.is_complete() && first.len() < SEEDERS_FIRST;
            let spared = served && boundary > Some(Boundary::Rack);
            if head && !spared { first.push(seeder) } else { last.push(seeder) }
        }
        // Nobody is left without the source.
        let kept = usize::from(first.is_empty() && !asker.pieces.is_complete()).min(last.len());
        let room = limit.saturating_sub(first.len() + kept);
        let far_places = (far.len() * LINKS_PER_GROUP).clamp(room.div_ceil(FAR_EVERY), (room / 2).max(1));
        best_first(&mut near, room, |left, right| right.cmp(left));
        let rate = |scored: Scored| flows.rate(&candidates[scored.index].place, &asker.place).unwrap_or(0);
        let far = far_in_order(far, rate, room, &mut rng);
        let mut chosen = first;
        chosen.extend(in_turn(near, far, room, far_places));
        chosen.extend(last);
        chosen.truncate(limit);
        chosen.into_iter().map(|scored| scored.index).collect()
    }
}

/// Leaves so many of them, in order: of a thousand that a tracker looks at it names a few dozen.
fn best_first<T>(list: &mut Vec<T>, most: usize, mut order: impl FnMut(&T, &T) -> Ordering) {
    if most < list.len() {
        list.select_nth_unstable_by(most, &mut order);
        list.truncate(most);
    }
    list.sort_unstable_by(order);
}

/// Far peers, so many at most besides the links: each group's best in turn, then what is left by distance, rate and score.
fn far_in_order(
    far: BTreeMap<FarGroup, Vec<Scored>>,
    rate: impl Fn(Scored) -> u64,
    most: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<Scored> {
    let mut groups: Vec<(FarGroup, std::vec::IntoIter<Scored>)> = far
        .into_iter()
        .map(|(group, mut members)| {
            // Who is best comes first; the order of the others is made below.
            if LINKS_PER_GROUP < members.len() {
                members.select_nth_unstable_by(LINKS_PER_GROUP, |left, right| right.cmp(left));
            }
            let links = members.len().min(LINKS_PER_GROUP);
            members[..links].sort_unstable_by(|left, right| right.cmp(left));
            (group, members.into_iter())
        })
        .collect();
    groups.shuffle(rng);
    let mut order = Vec::new();
    for _ in 0..LINKS_PER_GROUP {
        order.extend(groups.iter_mut().filter_map(|(_, members)| members.next()));
    }
    let mut rest: Vec<(Boundary, u64, Scored)> = groups
        .into_iter()
        .flat_map(|(group, members)| members.map(move |scored| (group.boundary, scored)))
        .map(|(boundary, scored)| (boundary, rate(scored), scored))
        .collect();
    // Of a group some peers only are looked at one by one, so rates are told apart by their size alone.
    best_first(&mut rest, most, |(boundary, rate, left), (other, other_rate, right)| {
        boundary.cmp(other).then(other_rate.checked_ilog2().cmp(&rate.checked_ilog2())).then(right.cmp(left))
    });
    order.extend(rest.into_iter().map(|(.., scored)| scored));
    order
}

/// Both lists in turn, so that `far_places` of `room` are from the second; where one ends, the other goes on.
fn in_turn(near: Vec<Scored>, far: Vec<Scored>, room: usize, far_places: usize) -> Vec<Scored> {
    let (mut near, mut far) = (near.into_iter(), far.into_iter());
    let mut chosen = Vec::with_capacity(room);
    for place in 0..room {
        let is_far = (place + 1) * far_places / room > place * far_places / room;
        let next = if is_far { far.next().or_else(|| near.next()) } else { near.next().or_else(|| far.next()) };
        match next {
            Some(scored) => chosen.push(scored),
            None => break,
        }
    }
    chosen
}

#[cfg(test)]
mod tests;
