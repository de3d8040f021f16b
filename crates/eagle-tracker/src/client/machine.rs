//! When to announce, to which trackers, and what follows from the answers. No I/O and no clock: the same events at the same times,
//! with the same seed, give the same actions.
//!
//! # How it is called
//! Everything takes the time as it is. After any call, [`Machine::poll`] is called until it gives no more actions, and again at
//! [`Machine::next_timeout`]. At most one announce is under way to each tracker; each ends with [`Machine::handle_answer`] or
//! [`Machine::handle_failure`], within a time that the caller bounds.
//!
//! # Which tracker knows of a blob
//! Every node puts the trackers into the same order for a blob by rendezvous hashing of their names, and announces the blob to the first
//! of them. While that one does not answer, the next one stands in, and so on. One that failed is tried again, with growing pauses, by
//! the state that it is to have, and has its blobs back when it answers. Those that stood in keep them for [`OVERLAP`] longer: other nodes
//! may notice later. A seeder announces every blob to every tracker, so that whoever reaches any of them finds it; there are few.
//!
//! # Why node and tracker agree in the end
//! Deltas are enough as long as every announce is answered. After one that is not, the next one is a full state. An announce that was
//! given up may still arrive, after later ones, and undo what they said: it lies in the buffers of a tracker that stood still, for
//! instance. So a tracker that had left an announce unanswered gets the full state once more when nothing old can be on its way any
//! more ([`SETTLE`]), and every tracker gets one now and then ([`REFRESH`]), whatever it was that made it forget or refuse something.

mod tracker;

use std::{fmt::Display, time::Duration};

use eagle_core::{Digest, NodeRole, PeerInfo, Timestamp, rendezvous};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tracing::{debug, info, warn};

use self::tracker::Tracker;
use super::{
    BlobStatus, Found,
    state::{Blobs, State, Urgency, urgency_of},
};
use crate::api::{AnnounceRequest, AnnounceResponse, MAX_PEERS_PER_BLOB};

/// How long an urgent announce waits for more of the same burst: a runtime asks for the layers of an
/// image within a few milliseconds.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// Within what time completed and dropped blobs are announced, spread over it at random.
const SOON: Duration = Duration::from_secs(1);
/// Within what time full states are sent to a tracker that asks for them, spread over it at random, so that
/// thousands of nodes do not send theirs in the same moment.
const SPREAD: Duration = Duration::from_secs(1);
/// Least time between two full states asked for by the same tracker, should it never be content.
const FULL_AT_MOST_EVERY: Duration = Duration::from_secs(2);
/// How long after it answers again a tracker that had left an announce unanswered gets the full state once more, and up to half as
/// long again at random. What lay in its buffers is dealt with in the first of these seconds.
pub(super) const SETTLE: Duration = Duration::from_secs(15);
/// How often a tracker gets the full state without a reason, give or take a tenth: as seldom as the longest interval that it may ask
/// for. A thousand blobs are 60 KB.
pub(super) const REFRESH: Duration = Duration::from_secs(600);
/// First and longest wait after a tracker did not answer; doubles in between.
pub(super) const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Least wait after no tracker answered even when a pull waits for peers.
const URGENT_BACKOFF: Duration = Duration::from_millis(500);
/// How long a tracker may take to answer until others stand in for it: a busy one takes milliseconds, and one that stands still or
/// whose machine is gone is found to have failed only after seconds.
const LATE: Duration = Duration::from_secs(1);
/// How long blobs stay at a tracker that stood in after the one before it answers again, and up to half as long again at random:
/// until every node has noticed, which takes each the longest wait after a failure.
pub(super) const OVERLAP: Duration = Duration::from_secs(20);
/// The same after the list of trackers was replaced: nodes are given another list within minutes of each other.
const OVERLAP_OF_LISTS: Duration = Duration::from_secs(180);
/// Bounds of the interval that a tracker may ask for.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(600));
/// By what trackers are ordered for the list of seeders, so that all nodes take it from the same one.
const SEEDERS_KEY: &[u8] = b"seeders";

/// What is to be done: send an announce to a tracker, by its place in the list.
#[derive(Debug)]
pub(super) struct Announce {
    pub(super) ticket: Ticket,
    pub(super) tracker: usize,
    pub(super) request: AnnounceRequest,
}

/// Names an announce that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// Where the list of seeders that are alive is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeedersFrom {
    /// From the tracker that has just answered.
    This,
    /// From another one, which says when it changes.
    Another,
    /// No tracker that answers knows of any.
    Nobody,
}

/// What this node has, and which tracker knows how much of it.
#[derive(Debug)]
pub(super) struct Machine {
    node: PeerInfo,
    blobs: Blobs,
    trackers: Vec<Tracker>,
    /// Places of the trackers in the order in which they are asked for seeders.
    leaders: Vec<usize>,
    /// When blobs leave the trackers that stood in for others.
    trim: Option<Timestamp>,
    next_ticket: u64,
    rng: ChaCha8Rng,
}

impl Machine {
    /// Announces `node` to trackers of these names. Without any there is never anything to do.
    pub(super) fn new(names: Vec<String>, node: PeerInfo, now: Timestamp, seed: u64) -> Self {
        let leaders = rendezvous::places(&names, SEEDERS_KEY);
        let trackers = names.into_iter().map(|name| Tracker::new(name, now)).collect();
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self { node, blobs: Blobs::new(), trackers, leaders, trim: None, next_ticket: 0, rng }
    }

    /// Announces to trackers of these names from now on. Announces under way are given up: their tickets mean nothing any more, and what they said
    /// is said again.
    pub(super) fn replace_trackers(&mut self, now: Timestamp, names: Vec<String>) {
        self.leaders = rendezvous::places(&names, SEEDERS_KEY);
        let mut before = std::mem::take(&mut self.trackers);
        for name in names {
            let tracker = match before.iter().position(|tracker| tracker.name == name) {
                Some(place) => {
                    let mut kept = before.swap_remove(place);
                    kept.give_up(now);
                    kept
                }
                // Nodes are given another list at about the same time.
                None => Tracker::new(name, now + self.up_to(SOON)),
            };
            self.trackers.push(tracker);
        }
        let digests: Vec<Digest> = self.blobs.keys().copied().collect();
        for digest in digests {
            let wanted = self.blobs.get(&digest).is_some_and(|status| status.want_peers);
            self.place(digest, if wanted { Urgency::Now } else { Urgency::Soon });
        }
        self.keep_stand_ins(now, OVERLAP_OF_LISTS);
        self.hurry_all(now);
    }

    /// Number of blobs.
    pub(super) fn len(&self) -> usize {
        self.blobs.len()
    }

    /// The blobs that the node has said something of.
    pub(super) fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.blobs.keys().copied()
    }

    /// Whether every tracker failed the last time that it was asked.
    pub(super) fn is_alone(&self) -> bool {
        self.trackers.iter().all(|tracker| tracker.down)
    }

    /// The node now owns this of a blob.
    pub(super) fn update(&mut self, now: Timestamp, digest: Digest, status: BlobStatus) {
        let before = self.blobs.get(&digest);
        if before == Some(&status) {
            return;
        }
        let urgency = urgency_of(before, &status);
        if self.blobs.insert(digest, status).is_some() {
            for tracker in &mut self.trackers {
                tracker.state.changed(&digest, urgency);
            }
        } else {
            self.place(digest, urgency);
        }
        self.hurry_all(now);
    }

    /// The node no longer has a blob.
    pub(super) fn remove(&mut self, now: Timestamp, digest: Digest) {
        let Some(status) = self.blobs.remove(&digest) else { return };
        for tracker in &mut self.trackers {
            tracker.state.remove(&digest, status.geometry);
        }
        self.hurry_all(now);
    }

    /// When [`Machine::poll`] has something to do next unless something happens before; `None` for never.
    pub(super) fn next_timeout(&self) -> Option<Timestamp> {
        self.trackers.iter().filter_map(Tracker::next_timeout).chain(self.trim).min()
    }

    /// What is to be done now.
    pub(super) fn poll(&mut self, now: Timestamp) -> Option<Announce> {
        if self.trim.take_if(|trim| *trim <= now).is_some() {
            self.trim(now);
        }
        for place in 0..self.trackers.len() {
            if self.trackers[place].turns_late(now) {
                debug!(tracker = self.trackers[place].name, "no answer yet; other trackers stand in");
                self.trackers[place].late = true;
                self.replace(now, place);
            }
        }
        let refresh = now + REFRESH.mul_f64(self.rng.random_range(0.9..1.1));
        for (place, tracker) in self.trackers.iter_mut().enumerate() {
            tracker.begin(now, &self.node, &self.blobs);
            let ticket = Ticket(self.next_ticket);
            if let Some(request) = tracker.next_request(now, ticket, refresh) {
                self.next_ticket += 1;
                return Some(Announce { ticket, tracker: place, request });
            }
        }
        None
    }

    /// A tracker has answered; the peers that it named. Answers to what was given up count for nothing.
    pub(super) fn handle_answer(&mut self, now: Timestamp, ticket: Ticket, response: AnnounceResponse) -> Vec<Found> {
        let Some((place, asked)) = self.answered(ticket) else { return Vec::new() };
        let tracker = &mut self.trackers[place];
        for refused in &response.refused {
            if tracker.state.refused_first(refused.digest) {
                let reason: String = refused.reason.chars().filter(|c| !c.is_control()).take(200).collect();
                warn!(digest = %refused.digest, "the tracker refuses this node's announce of a blob: {reason}");
            }
        }
        tracker.seeders = response.seeders_version;
        let interval = Duration::try_from_secs_f64(response.interval_seconds).unwrap_or(INTERVAL.1);
        let mut wait = interval.clamp(INTERVAL.0, INTERVAL.1).mul_f64(self.rng.random_range(0.9..1.1));
        if response.send_full && !asked.full {
            tracker.state.forget_tracker();
            let since = tracker.last_full.map_or(FULL_AT_MOST_EVERY, |at| now - at);
            let spread = SPREAD.mul_f64(self.rng.random_range(0.0..1.0));
            wait = wait.min(spread.max(FULL_AT_MOST_EVERY.saturating_sub(since)));
        }
        if std::mem::take(&mut tracker.late) && !tracker.down {
            self.keep_stand_ins(now, OVERLAP);
        }
        if let Some(round) = &mut self.trackers[place].round {
            round.wait = round.wait.min(wait);
            if round.requests.is_empty() {
                let wait = round.wait;
                self.arrived(now, place, wait);
            }
        }
        // Not more than were asked for, whatever the tracker says.
        let named = response.peers.into_iter().take(asked.blobs).map(|blob| {
            let peers = blob.peers.into_iter().map(|peer| peer.info);
            let peers = peers.filter(|peer| peer.id != self.node.id).take(MAX_PEERS_PER_BLOB);
            Found { digest: blob.digest, peers: peers.collect() }
        });
        named.filter(|found| !found.peers.is_empty()).collect()
    }

    /// A tracker did not answer, or not as a tracker. The next ones stand in at once.
    pub(super) fn handle_failure(&mut self, now: Timestamp, ticket: Ticket, problem: &dyn Display) {
        let Some((place, _)) = self.answered(ticket) else { return };
        let (first, longest) = BACKOFF;
        let tracker = &mut self.trackers[place];
        tracker.round = None;
        tracker.state.forget_tracker();
        tracker.unanswered = true;
        tracker.late = false;
        let backoff = first.saturating_mul(1 << tracker.failures.min(10)).min(longest);
        tracker.failures = tracker.failures.saturating_add(1);
        tracker.wait_until(now + backoff.mul_f64(self.rng.random_range(0.5..1.0)));
        if std::mem::replace(&mut tracker.down, true) {
            debug!(tracker = tracker.name, "the tracker still fails: {problem}");
        } else {
            warn!(
                tracker = tracker.name,
                "announce failed: {problem}; pulls go on with other trackers, the peers they know, the seeders and the origin"
            );
            self.replace(now, place);
        }
        self.hurry_all(now);
    }

    /// Whom to ask for the list of seeders, after this tracker has answered. All nodes take it from the same tracker, as far as that
    /// answers. When another one finds a change first, that one is asked soon.
    pub(super) fn seeders_from(&mut self, now: Timestamp, tracker: usize) -> SeedersFrom {
        let knows = |place: &&usize| self.trackers.get(**place).is_some_and(|t| !t.down && t.seeders.is_some());
        let Some(leader) = self.leaders.iter().find(knows).copied() else { return SeedersFrom::Nobody };
        if leader == tracker {
            return SeedersFrom::This;
        }
        let said = self.trackers[tracker].seeders;
        let wait = SOON + self.up_to(SOON);
        let leader = &mut self.trackers[leader];
        if said.is_some() && said != leader.seeders {
            leader.due = leader.due.min(now + wait);
        }
        SeedersFrom::Another
    }

    /// What tells a tracker that the node stops, and the trackers that may list it.
    pub(super) fn farewell(&self) -> (AnnounceRequest, Vec<usize>) {
        let told = (0..self.trackers.len()).filter(|place| self.trackers[*place].told);
        (State::stopped(&self.node), told.collect())
    }

    /// The trackers that are to know of a blob: the first of its order and, while that does not serve, those that stand in.
    fn places(&self, digest: &Digest) -> Vec<usize> {
        if self.trackers.len() < 2 || self.node.role == NodeRole::Seeder {
            return (0..self.trackers.len()).collect();
        }
        let names: Vec<&str> = self.trackers.iter().map(|tracker| tracker.name.as_str()).collect();
        let mut places = rendezvous::places(&names, digest.as_bytes());
        if let Some(serving) = places.iter().position(|place| self.trackers[*place].serves()) {
            places.truncate(serving + 1);
        }
        places
    }

    /// Puts a blob where it is to be known.
    fn place(&mut self, digest: Digest, urgency: Urgency) {
        for place in self.places(&digest) {
            self.trackers[place].state.place(digest, urgency);
        }
    }

    /// Lets others stand in for a tracker that has just ceased to serve.
    fn replace(&mut self, now: Timestamp, place: usize) {
        let digests: Vec<Digest> = self.trackers[place].state.digests().copied().collect();
        for digest in digests {
            let wanted = self.blobs.get(&digest).is_some_and(|status| status.want_peers);
            self.place(digest, if wanted { Urgency::Now } else { Urgency::Soon });
        }
        self.hurry_all(now);
    }

    /// A tracker serves again, or there are others: those that had its blobs keep them for a while.
    fn keep_stand_ins(&mut self, now: Timestamp, overlap: Duration) {
        if self.trackers.len() > 1 {
            self.trim = self.trim.max(Some(now + overlap + self.up_to(overlap / 2)));
        }
    }

    /// Takes blobs from trackers that need not know of them.
    fn trim(&mut self, now: Timestamp) {
        for (digest, status) in &self.blobs {
            let places = self.places(digest);
            for (place, tracker) in self.trackers.iter_mut().enumerate() {
                if !places.contains(&place) {
                    tracker.state.remove(digest, status.geometry);
                }
            }
        }
        self.hurry_all(now);
    }

    /// The announce under way, if it is this one, and its tracker.
    fn answered(&mut self, ticket: Ticket) -> Option<(usize, tracker::Asked)> {
        let mut trackers = self.trackers.iter_mut().enumerate();
        trackers.find_map(|(place, tracker)| Some((place, tracker.answered(ticket)?)))
    }

    /// A tracker has all that it is to know.
    fn arrived(&mut self, now: Timestamp, place: usize, wait: Duration) {
        let settle = now + SETTLE + self.up_to(SETTLE / 2);
        let tracker = &mut self.trackers[place];
        tracker.round = None;
        tracker.failures = 0;
        tracker.wait_until(now + wait);
        if std::mem::take(&mut tracker.unanswered) {
            tracker.refresh = tracker.refresh.min(settle);
        }
        if std::mem::take(&mut tracker.down) {
            info!(tracker = tracker.name, "the tracker answers again");
            self.keep_stand_ins(now, OVERLAP);
        }
        self.hurry(now, place);
    }

    fn hurry_all(&mut self, now: Timestamp) {
        for place in 0..self.trackers.len() {
            self.hurry(now, place);
        }
    }

    /// Announces sooner where updates ask for it. A tracker that does not answer is tried in its own time while another stands in.
    fn hurry(&mut self, now: Timestamp, place: usize) {
        let (tracker, alone) = (&self.trackers[place], self.is_alone());
        let (urgency, down) = (tracker.state.urgency(), tracker.down);
        // Once for each cause: the earliest of many random times is no random time.
        if urgency <= tracker.hurried || (down && !alone) {
            return;
        }
        let wait = match urgency {
            Urgency::Now => DEBOUNCE,
            Urgency::Soon => self.up_to(SOON).max(DEBOUNCE),
            Urgency::Regular => return,
        };
        let wait = if down { wait.max(URGENT_BACKOFF) } else { wait };
        let tracker = &mut self.trackers[place];
        tracker.hurried = urgency;
        tracker.due = tracker.due.min(now + wait);
    }

    /// A random part of a duration.
    fn up_to(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(self.rng.random_range(0.0..1.0))
    }
}

#[cfg(test)]
#[cfg(feature = "server")]
mod lossy_tests;
#[cfg(test)]
#[cfg(feature = "server")]
mod restart_tests;
