//! Pieces cross each boundary once: who is told of them beyond it, and who asks there.
//!
//! Nodes that are in one rack exchange pieces freely. What lies beyond is in groups: the other racks of
//! the zone, the other zones of the region, the other regions. Whoever a new piece comes to first, in the
//! whole swarm, in a region, in a zone, offers it to one peer in each group within that, at once, by a
//! `Have`: the one that the first source gave it to offers it to each other region, zone and rack that it
//! sees, one that took it from another zone to the other racks of its own. Nobody else tells peers beyond a
//! boundary what is new: those hear in longer intervals, by a further handshake, of what was owned for so
//! long that it should be everywhere. Whatever a node then still misses near itself it fetches from afar,
//! one piece now and then, the more often the more is missing.
//!
//! A boundary with more groups than those on our side can give to is not kept: all behind it are near (`kept.rs`).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use rand::RngExt as _;

use super::{Action, PeerKey, PieceChoice, Swarm, peers::PeerState, reach::Reach};
use crate::{
    Boundary, FarGroup,
    bitfield::Bitfield,
    geometry::PieceIndex,
    time::Timestamp,
    wire::control::{BlobMessage, Load, MAX_HAVE},
};

/// Near peers with whom a node fetches one missing piece from afar per time of patience. More peers
/// share the task, so each does so less often, and what one fetched is among them before most try.
const NEAR_PER_RESCUE: u32 = 5;
/// Pieces that nobody near owns for one that is being fetched from afar: nodes that choose among so many
/// seldom choose the same. Where few know a peer far away, this is how most comes to them: 10 nodes beside 990 took 12.5 s and
/// 1.22 times the least crossed with 8, 15.4 s and 1.11 with 24, 17.2 s and 1.12 with 32 (simulated).
const MISSING_PER_RESCUE: u32 = 24;
/// Shortest mean time between two tries, each of which looks at all peers: with pieces that take no time to speak of there would be
/// no end of them.
const LEAST_RESCUE_PERIOD: Duration = Duration::from_millis(20);
/// Times that a request may take before it counts as stalled, until a piece counts as known everywhere:
/// it has to come into the other zones and be passed on twice there. With 1 instead of 2, 1.46
/// times the least crossed and not 1.27 (simulated, 4 zones of 150 nodes, 16 peers per rescue).
const PATIENCES: u32 = 2;
/// Peers of each group that are greeted even when there are [`super::SwarmConfig::greeted_peers`]:
/// who knows none of a group cannot offer a piece there.
const FAR_PEERS: usize = 3;
/// Peers greeted beyond boundaries in all, however many groups there are: one and a half times the near ones.
const MOST_FAR_GREETED: usize = 24;
/// Requests in flight up to which offers are taken: each waits in the queue of the one node that has the piece so far,
/// so those of a node that is alone in its group are many.
const MOST_OFFERS: usize = 40;

/// What is on this side of a boundary.
#[derive(Debug, Clone)]
struct Side {
    /// Pieces that somebody there owns.
    owned: Bitfield,
    /// Who would give them.
    peers: u32,
}

impl Side {
    fn new(pieces: u32) -> Self {
        Self { owned: Bitfield::new(pieces), peers: 0 }
    }

    fn with(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.owned.union(&other.owned);
        both.peers += other.peers;
        both
    }
}

/// What a swarm keeps in mind of what lies beyond its rack.
#[derive(Debug)]
pub(super) struct Boundaries {
    /// How far pieces came that are to be offered beyond boundaries.
    reach: BTreeMap<PieceIndex, Reach>,
    /// Whom in each group each piece was offered. As many groups as there are peers at most.
    offered: BTreeMap<FarGroup, BTreeMap<PieceIndex, PeerKey>>,
    /// Owned for so long that peers far away may be told.
    settled: Bitfield,
    /// Owned, and since when, but not yet among those.
    recent: VecDeque<(Timestamp, PieceIndex)>,
    /// When peers far away were last told.
    told_at: Timestamp,
    /// Not before then is a missing piece fetched over each boundary.
    rescue_at: BTreeMap<Boundary, Timestamp>,
    /// The widest boundary that is not kept, and with it all that are narrower.
    pub(super) open: Option<Boundary>,
}

impl Boundaries {
    pub(super) fn new(have: &Bitfield) -> Self {
        Self {
            reach: BTreeMap::new(),
            offered: BTreeMap::new(),
            settled: have.clone(),
            recent: VecDeque::new(),
            told_at: Timestamp(0),
            rescue_at: BTreeMap::new(),
            open: None,
        }
    }

    /// This piece is here and came from so far; it is to be verified.
    pub(super) fn note_reach(&mut self, piece: PieceIndex, reach: Reach) {
        if reach > Reach::Over(Boundary::Rack) {
            self.reach.insert(piece, reach);
        } else {
            self.reach.remove(&piece);
        }
    }
}

impl Swarm {
    /// Whether a peer of another group is greeted although there are many near ones.
    pub(super) fn lacks_peers_of(&self, group: FarGroup) -> bool {
        let (mut known, mut groups, mut far) = (0, BTreeSet::from([group]), 0);
        for other in self.peers.values().filter_map(|state| state.group) {
            known += usize::from(other == group);
            groups.insert(other);
            far += 1;
        }
        // Who knows few of its own has room for more.
        let near = self.peers.len() - far;
        let spare = self.config.greeted_peers.saturating_sub(near);
        let all = MOST_FAR_GREETED + spare;
        let most = (all / groups.len()).clamp(1, FAR_PEERS.max(2 * spare));
        known < most && (known == 0 || far < all)
    }

    /// Whether there is a place for one more peer. Those beyond boundaries have as many places of their own as
    /// near ones, and those that near ones leave: the few nodes of a small group are known to many of a large one, and still
    /// to each other. Who of a large group knows none of a small one cannot offer it anything.
    pub(super) fn has_room_for(&self, place: Option<FarGroup>) -> bool {
        let far = self.effective(place).is_some();
        let all = self.peers.len();
        all < self.config.max_peers
            || far && all < self.config.max_peers * 2
            || self.peers.values().filter(|state| state.group.is_some() == far).count() < self.config.max_peers
    }

    pub(super) fn has_far_peers(&self) -> bool {
        self.peers.values().any(|state| state.group.is_some())
    }

    /// What a new peer is told that we own.
    pub(super) fn shown_to(&self, place: Option<FarGroup>) -> &Bitfield {
        if self.effective(place).is_some() && self.download { &self.boundaries.settled } else { &self.have }
    }

    /// How long a new piece has to come into the other groups by offers.
    fn far_patience(&self) -> Duration {
        let stall = self.requests.service_time().saturating_mul(self.config.stall_factor);
        stall.max(self.config.shortest_stall) * PATIENCES
    }

    /// A piece is owned: if we are the first to, one peer in each other group is offered it.
    pub(super) fn offer(&mut self, now: Timestamp, piece: PieceIndex) {
        if !self.download {
            return;
        }
        let reach = self.boundaries.reach.get(&piece).copied().unwrap_or_default();
        self.boundaries.recent.push_back((now, piece));
        self.settle_recent(now);
        // Who was offered least, at random among equals.
        let mut chosen: BTreeMap<FarGroup, (u32, u32, PeerKey)> = BTreeMap::new();
        for (&key, state) in self.peers.iter() {
            let Some(group) = state
                .group
                .filter(|group| reach.is_over(group.boundary) && !state.load.spreading && !state.have.contains(piece))
            else {
                continue;
            };
            let score = (state.offered, self.rng.random(), key);
            let best = chosen.entry(group).or_insert(score);
            *best = score.min(*best);
        }
        if chosen.is_empty() {
            return;
        }
        let load = self.load();
        // The widest first: from there it has the farthest to go.
        for (group, (.., peer)) in chosen.into_iter().rev() {
            self.boundaries.offered.entry(group).or_default().insert(piece, peer);
            if let Some(state) = self.peers.get_mut(&peer) {
                state.offered += 1;
            }
            let message = BlobMessage::Have { pieces: vec![piece.0], load };
            self.actions.push_back(Action::Send { peer, message });
        }
        // Near peers hear of it an interval later, so that the requests from afar come first.
        self.haves_sent_at = now;
    }

    /// A peer said what it owns: it is offered what its group was not. Groups become known after the first
    /// pieces have come, and whoever was offered one may have gone.
    pub(super) fn offer_what_was_not(&mut self, peer: PeerKey) {
        let Some((state, group)) = self.peers.get(&peer).and_then(|state| Some((state, state.group?))) else { return };
        if !self.download || state.load.spreading || self.boundaries.reach.is_empty() {
            return;
        }
        let offered = self.boundaries.offered.entry(group).or_default();
        let missed = self.boundaries.reach.iter().filter(|(piece, reach)| {
            reach.is_over(group.boundary)
                && self.have.contains(**piece)
                && !state.have.contains(**piece)
                && !offered.contains_key(piece)
        });
        let pieces: Vec<u32> = missed.map(|(piece, _)| piece.0).take(MAX_HAVE).collect();
        if pieces.is_empty() {
            return;
        }
        offered.extend(pieces.iter().map(|piece| (PieceIndex(*piece), peer)));
        let load = self.load();
        self.actions.push_back(Action::Send { peer, message: BlobMessage::Have { pieces, load } });
    }

    /// A peer is gone: what it was offered is offered to another of its group, unless it said that it has it.
    pub(super) fn take_offers_back(&mut self, peer: PeerKey, state: &PeerState) {
        let Some(group) = state.group else { return };
        if let Some(offered) = self.boundaries.offered.get_mut(&group) {
            offered.retain(|piece, to| *to != peer || state.have.contains(*piece));
        }
        let another = self.peers.iter().filter(|(_, other)| other.group == Some(group));
        match another.min_by_key(|(key, other)| (other.offered, **key)).map(|(key, _)| *key) {
            Some(other) => self.offer_what_was_not(other),
            None => drop(self.boundaries.offered.remove(&group)),
        }
    }

    fn settle_recent(&mut self, now: Timestamp) {
        let patience = self.far_patience();
        while let Some(&(_, piece)) = self.boundaries.recent.front().filter(|(since, _)| now >= *since + patience) {
            self.boundaries.recent.pop_front();
            self.boundaries.settled.insert(piece);
        }
    }

    /// A peer said by a `Have` that it owns these pieces; one far away thereby offers them.
    pub(super) fn note_offers(&mut self, peer: PeerKey, pieces: &[u32], load: Load) {
        if let Some(state) = self.peers.get_mut(&peer).filter(|state| state.group.is_some() && !load.spreading) {
            for piece in pieces {
                state.offers.insert(PieceIndex(*piece));
            }
        }
    }

    /// Tells peers far away what should be everywhere by now.
    pub(super) fn tell_far_peers(&mut self, now: Timestamp) {
        if self.next_far_news().is_none_or(|at| now < at) {
            return;
        }
        self.settle_recent(now);
        self.boundaries.told_at = now;
        let bitfield = self.boundaries.settled.to_bytes();
        let message = self.handshake(bitfield);
        for (&peer, state) in self.peers.iter() {
            if state.group.is_some() && !state.load.spreading && self.boundaries.settled.any_without(&[&state.have]) {
                self.actions.push_back(Action::Send { peer, message: message.clone() });
            }
        }
    }

    fn next_far_news(&self) -> Option<Timestamp> {
        let patience = self.far_patience();
        let (since, _) = self.boundaries.recent.front().filter(|_| self.has_far_peers())?;
        Some((*since + patience).max(self.boundaries.told_at + patience))
    }

    /// When news for other groups, or a fetch from there, are due.
    pub(super) fn next_far(&self) -> Option<Timestamp> {
        let rescues = self.boundaries.rescue_at.values().copied().min();
        let rescue = rescues.filter(|_| self.download && !self.have.is_full());
        [self.next_far_news(), rescue].into_iter().flatten().min()
    }

    /// Asks far away for what was offered to us, and now and then for what nobody nearer owns.
    pub(super) fn ask_afar(&mut self, now: Timestamp) {
        if !self.has_far_peers() || !self.needs_more() {
            self.boundaries.rescue_at.clear();
            return;
        }
        if !self.may_ask_afar(now) {
            return;
        }
        // What is on our side of the boundary, and how many nodes that may stand for. A seeder gives each piece once,
        // so that it owns one does not mean that it comes to us.
        let (mut inside, mut seeders) = (Side::new(self.geometry.pieces()), Side::new(self.geometry.pieces()));
        self.add_owned(None, &mut inside, &mut seeders);
        let mut nodes = inside.peers;
        for boundary in Boundary::ALL {
            let keys: Vec<(PeerKey, FarGroup)> = self
                .peers
                .iter()
                .filter_map(|(key, state)| Some((*key, state.group.filter(|group| group.boundary == boundary)?)))
                .collect();
            if keys.is_empty() {
                self.boundaries.rescue_at.remove(&boundary);
                continue;
            }
            self.take_offers(now, &keys, &inside);
            if boundary == Boundary::Rack {
                // Of those in no rack it is as far away as other racks are.
                self.ask_over(now, boundary, &keys, &inside, nodes);
            } else {
                self.ask_over(now, boundary, &keys, &inside.with(&seeders), nodes);
            }
            self.add_owned(Some(boundary), &mut inside, &mut seeders);
            let groups = keys.iter().map(|(_, group)| group.number).collect::<BTreeSet<_>>().len();
            nodes =
                nodes.saturating_add(1).saturating_mul(u32::try_from(groups).unwrap_or(u32::MAX).saturating_add(1)) - 1;
        }
    }

    /// Whether there is an offer to take, or it is time to look for what is missing: this is asked after every
    /// event, and seldom so.
    fn may_ask_afar(&self, now: Timestamp) -> bool {
        let (mut nearer, mut widest) = (None::<Option<Boundary>>, None);
        let mut nearest_seeder = None::<Option<Boundary>>;
        for (&key, state) in self.peers.iter() {
            let boundary = state.group.map(|group| group.boundary);
            if boundary.is_some() && state.offers.any_without(&[&self.have, &self.busy]) {
                return true;
            }
            widest = widest.max(boundary);
            if !state.choking && !state.service.is_shunned() {
                let nearest = if self.is_seeder(key, state) { &mut nearest_seeder } else { &mut nearer };
                *nearest = Some(nearest.map_or(boundary, |nearest| nearest.min(boundary)));
            }
        }
        let due = |boundary: Boundary| {
            let seeder = nearest_seeder.filter(|_| boundary > Boundary::Rack);
            let alone = [nearer, seeder].into_iter().flatten().all(|nearest| nearest >= Some(boundary));
            alone || self.boundaries.rescue_at.get(&boundary).is_none_or(|at| now >= *at)
        };
        let present = |boundary: &Boundary| {
            self.peers.values().any(|state| state.group.is_some_and(|group| group.boundary == *boundary))
        };
        // Of a boundary that nobody is behind any more the time is forgotten when it comes.
        let over = || self.boundaries.rescue_at.values().any(|at| now >= *at);
        widest.is_some() && (Boundary::ALL.into_iter().filter(present).any(due) || over())
    }

    /// Adds what the peers behind a boundary own, or the near ones.
    fn add_owned(&self, boundary: Option<Boundary>, nodes: &mut Side, seeders: &mut Side) {
        for (&key, state) in self.peers.iter() {
            if state.group.map(|group| group.boundary) == boundary && !state.choking && !state.service.is_shunned() {
                let side = if self.is_seeder(key, state) { &mut *seeders } else { &mut *nodes };
                side.owned.union(&state.have);
                side.peers += 1;
            }
        }
    }

    /// Asks for what is offered to us and nobody on our side owns. Offers come as new pieces do, to one node of many: they
    /// need no place among the others.
    fn take_offers(&mut self, now: Timestamp, keys: &[(PeerKey, FarGroup)], inside: &Side) {
        let mut room =
            (self.budget + self.config.least_in_flight).max(MOST_OFFERS).saturating_sub(self.requests.chosen());
        for (peer, _) in keys {
            while room > 0 && self.ask_one_afar(now, *peer, &inside.owned, true) {
                room -= 1;
            }
        }
    }

    /// Asks beyond a boundary for what is missing on our side of it, when it is time.
    fn ask_over(
        &mut self,
        now: Timestamp,
        boundary: Boundary,
        keys: &[(PeerKey, FarGroup)],
        inside: &Side,
        nodes: u32,
    ) {
        let alone = inside.peers == 0;
        let rescue_at = self.boundaries.rescue_at.get(&boundary).copied();
        if !alone && rescue_at.is_some_and(|at| now < at) {
            return;
        }
        let due = alone || rescue_at.is_some();
        let first = self.rng.random_range(0..keys.len());
        let mut asked = false;
        for place in 0..keys.len() {
            let wanted = due && (alone || !asked) && self.requests.chosen() < self.budget;
            asked |= wanted && self.ask_one_afar(now, keys[(first + place) % keys.len()].0, &inside.owned, false);
        }
        if !due || asked || rescue_at.is_some_and(|at| now >= at) {
            let missing = self.missing_over(boundary, &inside.owned);
            let seldom = self.far_patience() / NEAR_PER_RESCUE;
            let often = self.requests.service_time().saturating_mul(MISSING_PER_RESCUE) / missing.max(1);
            let period = seldom.min(often).saturating_mul(nodes.max(1)).max(LEAST_RESCUE_PERIOD);
            let at = now + period.mul_f64(self.rng.random_range(0.5..1.5));
            self.boundaries.rescue_at.insert(boundary, at);
        }
    }

    /// Pieces that peers behind a boundary own, and nobody on our side.
    fn missing_over(&self, boundary: Boundary, inside: &Bitfield) -> u32 {
        let (mut beyond, mut seeders) = (Side::new(self.geometry.pieces()), Side::new(self.geometry.pieces()));
        self.add_owned(Some(boundary), &mut beyond, &mut seeders);
        let missing = beyond.owned.iter_without(&[inside, &self.have, &self.busy]).count();
        u32::try_from(missing).unwrap_or(u32::MAX)
    }

    fn ask_one_afar(&mut self, now: Timestamp, peer: PeerKey, inside: &Bitfield, offers: bool) -> bool {
        let Some(state) = self.peers.get(&peer) else { return false };
        let most = self.config.requests_per_peer + usize::from(offers);
        let may = state.serves()
            && !state.load.spreading
            && !state.service.is_shunned()
            && state.in_flight - state.any_in_flight < most;
        if !may {
            return false;
        }
        let choice = PieceChoice {
            theirs: if offers { &state.offers } else { &state.have },
            unwanted: &[&self.have, &self.busy, &self.unknown, inside],
            availability: &self.availability,
            position: self.position,
            // A reader's next pieces are the same for all: they would all fetch them at once.
            window: if offers { self.config.window } else { 0 },
        };
        let Some(piece) = self.picker.pick(&choice, &mut self.rng) else { return false };
        self.request(now, peer, Some(piece));
        true
    }
}
