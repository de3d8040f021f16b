//! When to announce, to which tracker, and what follows from the answers. No I/O and no clock: the same events at the same times,
//! with the same seed, give the same actions.
//!
//! # How it is called
//! Everything takes the time as it is. After any call, [`Machine::poll`] is called until it gives no more actions, and again at
//! [`Machine::next_timeout`]. At most one announce and one probe are under way at a time; each ends with
//! [`Machine::handle_answer`], [`Machine::handle_failure`] or [`Machine::handle_probe`], within a time that the caller bounds.
//!
//! # Why node and tracker agree in the end
//! Deltas are enough as long as every announce is answered. After one that is not, the next one is a full state, and so is the first
//! one to another tracker. An announce that was given up may still arrive, after later ones, and undo what they said: it lies in
//! the buffers of a tracker that stood still, for instance. So a tracker that had left an announce unanswered gets the full state
//! once more when nothing old can be on its way any more ([`SETTLE`]), and every tracker gets one now and then ([`REFRESH`]),
//! whatever it was that made it forget or refuse something.

use std::{collections::VecDeque, fmt::Display, time::Duration};

use eagle_core::{Digest, PeerInfo, Timestamp};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tracing::{debug, info, warn};

use super::{
    BlobStatus, Found,
    state::{State, Urgency},
};
use crate::api::{AnnounceRequest, AnnounceResponse, MAX_PEERS_PER_BLOB};

/// How long an urgent announce waits for more of the same burst: a runtime asks for the layers of an
/// image within a few milliseconds.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// Within what time completed and dropped blobs are announced, spread over it at random.
const SOON: Duration = Duration::from_secs(1);
/// Within what time full states are sent to a tracker that comes up, spread over it at random, so that
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
/// First and longest wait after no tracker answered; doubles in between.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Least wait after no tracker answered even when a pull waits for peers.
const URGENT_BACKOFF: Duration = Duration::from_millis(500);
/// How often trackers before the one in use are probed.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(10);
/// Bounds of the interval that a tracker may ask for.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(600));

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Send an announce to a tracker, by its place in the list.
    Announce { ticket: Ticket, tracker: usize, request: AnnounceRequest },
    /// Find the first of this many trackers that answers.
    Probe { trackers: usize },
}

/// Names an announce that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// What this node has, and which tracker knows how much of it.
#[derive(Debug)]
pub(super) struct Machine {
    state: State,
    node: PeerInfo,
    trackers: Vec<Tracker>,
    /// Index of the tracker in use.
    current: usize,
    /// Rounds in which no tracker answered, since one last did.
    failures: u32,
    last_full: Option<Timestamp>,
    /// When the next round begins.
    due: Timestamp,
    /// When the full state is due whatever the tracker knows.
    refresh: Timestamp,
    round: Option<Round>,
    next_ticket: u64,
    probing: bool,
    probe_due: Timestamp,
    /// A better tracker that answered a probe during a round.
    better: Option<usize>,
    rng: ChaCha8Rng,
}

#[derive(Debug)]
struct Tracker {
    /// Its URL, for the log.
    name: String,
    /// Whether it failed last time, so that an outage is logged once.
    down: bool,
    /// Whether it may still list this node.
    told: bool,
    /// Whether it may have announces before it that it has not answered in time.
    unanswered: bool,
}

/// One attempt to bring a tracker up to date: the one in use, and if that fails the others.
#[derive(Debug)]
struct Round {
    tracker: usize,
    /// Those to try if it fails.
    others: VecDeque<usize>,
    /// What it is to know; the first of these next.
    requests: VecDeque<AnnounceRequest>,
    asked: Option<Asked>,
    /// The shortest wait that its answers came to.
    wait: Duration,
}

/// An announce under way.
#[derive(Debug, Clone, Copy)]
struct Asked {
    ticket: Ticket,
    full: bool,
    blobs: usize,
}

impl Machine {
    /// Announces `node` to trackers of these names, the preferred one first. Without any there is never anything to do.
    pub(super) fn new(trackers: Vec<String>, node: PeerInfo, now: Timestamp, seed: u64) -> Self {
        let tracker = |name| Tracker { name, down: false, told: false, unanswered: false };
        Self {
            state: State::new(),
            node,
            trackers: trackers.into_iter().map(tracker).collect(),
            current: 0,
            failures: 0,
            last_full: None,
            due: now + DEBOUNCE,
            refresh: now + REFRESH,
            round: None,
            next_ticket: 0,
            probing: false,
            probe_due: now + PROBE_EVERY,
            better: None,
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Number of blobs.
    pub(super) fn len(&self) -> usize {
        self.state.len()
    }

    /// Whether no tracker answered the last time that all were asked.
    pub(super) const fn is_alone(&self) -> bool {
        self.failures > 0
    }

    /// The node now owns this of a blob.
    pub(super) fn update(&mut self, now: Timestamp, digest: Digest, status: BlobStatus) {
        self.state.update(digest, status);
        self.hurry(now);
    }

    /// The node no longer has a blob.
    pub(super) fn remove(&mut self, now: Timestamp, digest: Digest) {
        self.state.remove(digest);
        self.hurry(now);
    }

    /// When [`Machine::poll`] has something to do next unless something happens before; `None` for never.
    pub(super) fn next_timeout(&self) -> Option<Timestamp> {
        let round = (self.round.is_none() && !self.trackers.is_empty()).then(|| self.due.min(self.refresh));
        let probe = self.may_probe().then_some(self.probe_due);
        round.into_iter().chain(probe).min()
    }

    /// What is to be done now.
    pub(super) fn poll(&mut self, now: Timestamp) -> Option<Action> {
        if self.trackers.is_empty() {
            return None;
        }
        if self.round.is_none() && self.due.min(self.refresh) <= now {
            let others = (0..self.trackers.len()).filter(|index| *index != self.current).collect();
            self.begin(now, self.current, others);
        }
        if let Some(action) = self.next_request(now) {
            return Some(action);
        }
        if self.may_probe() && self.probe_due <= now {
            self.probing = true;
            return Some(Action::Probe { trackers: self.current });
        }
        None
    }

    /// A tracker has answered; the peers that it named. Answers to what was given up count for nothing.
    pub(super) fn handle_answer(&mut self, now: Timestamp, ticket: Ticket, response: AnnounceResponse) -> Vec<Found> {
        let Some(asked) = self.answered(ticket) else { return Vec::new() };
        for refused in &response.refused {
            if self.state.refused_first(refused.digest) {
                let reason: String = refused.reason.chars().filter(|c| !c.is_control()).take(200).collect();
                warn!(digest = %refused.digest, "the tracker refuses this node's announce of a blob: {reason}");
            }
        }
        let interval = Duration::try_from_secs_f64(response.interval_seconds).unwrap_or(INTERVAL.1);
        let mut wait = interval.clamp(INTERVAL.0, INTERVAL.1).mul_f64(self.rng.random_range(0.9..1.1));
        if response.send_full && !asked.full {
            self.state.forget_tracker();
            let since = self.last_full.map_or(FULL_AT_MOST_EVERY, |at| now - at);
            wait = wait.min(self.up_to(SPREAD).max(FULL_AT_MOST_EVERY.saturating_sub(since)));
        }
        if let Some(round) = &mut self.round {
            round.wait = round.wait.min(wait);
            if round.requests.is_empty() {
                let (tracker, wait) = (round.tracker, round.wait);
                self.arrived(now, tracker, wait);
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

    /// A tracker did not answer, or not as a tracker.
    pub(super) fn handle_failure(&mut self, now: Timestamp, ticket: Ticket, problem: &dyn Display) {
        if self.answered(ticket).is_none() {
            return;
        }
        let Some(mut round) = self.round.take() else { return };
        self.state.forget_tracker();
        let tracker = &mut self.trackers[round.tracker];
        tracker.unanswered = true;
        if std::mem::replace(&mut tracker.down, true) {
            debug!(tracker = tracker.name, "the tracker still fails: {problem}");
        } else {
            warn!(
                tracker = tracker.name,
                "announce failed: {problem}; pulls go on with the peers they know, the seeders and the origin"
            );
        }
        if let Some(next) = round.others.pop_front() {
            return self.begin(now, next, round.others);
        }
        let (first, longest) = BACKOFF;
        let backoff = first.saturating_mul(1 << self.failures.min(10)).min(longest);
        self.failures = self.failures.saturating_add(1);
        let wait = backoff.mul_f64(self.rng.random_range(0.5..1.0));
        self.over(now, wait);
    }

    /// The probe has ended with the first tracker that answered.
    pub(super) fn handle_probe(&mut self, now: Timestamp, answered: Option<usize>) {
        self.probing = false;
        self.probe_due = now + PROBE_EVERY;
        self.better = answered;
        if self.round.is_none() {
            self.improve(now);
        }
    }

    /// What tells a tracker that the node stops, and the trackers that may list it.
    pub(super) fn farewell(&self) -> (AnnounceRequest, Vec<usize>) {
        let told = (0..self.trackers.len()).filter(|index| self.trackers[*index].told);
        (State::stopped(&self.node), told.collect())
    }

    fn may_probe(&self) -> bool {
        self.current != 0 && !self.probing
    }

    /// The announce under way, if it is this one.
    fn answered(&mut self, ticket: Ticket) -> Option<Asked> {
        self.round.as_mut()?.asked.take_if(|asked| asked.ticket == ticket)
    }

    /// Begins to bring a tracker up to date.
    fn begin(&mut self, now: Timestamp, tracker: usize, others: VecDeque<usize>) {
        if tracker != self.current || self.refresh <= now {
            self.state.forget_tracker();
        }
        let requests = self.state.take(&self.node).into();
        self.round = Some(Round { tracker, others, requests, asked: None, wait: INTERVAL.1 });
    }

    fn next_request(&mut self, now: Timestamp) -> Option<Action> {
        let round = self.round.as_mut().filter(|round| round.asked.is_none())?;
        let request = round.requests.pop_front()?;
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        round.asked = Some(Asked { ticket, full: request.full, blobs: request.blobs.len() });
        let tracker = round.tracker;
        // Told before it answers: it may take an announce whose answer is lost.
        self.trackers[tracker].told = true;
        if request.full {
            self.last_full = Some(now);
            self.refresh = now + REFRESH.mul_f64(self.rng.random_range(0.9..1.1));
        }
        Some(Action::Announce { ticket, tracker, request })
    }

    /// A tracker has all that it is to know.
    fn arrived(&mut self, now: Timestamp, tracker: usize, wait: Duration) {
        self.use_tracker(tracker);
        self.failures = 0;
        if std::mem::replace(&mut self.trackers[tracker].unanswered, false) {
            self.refresh = self.refresh.min(now + SETTLE + self.up_to(SETTLE / 2));
        }
        self.over(now, wait);
    }

    /// The round is over; the next one is in this time, or sooner if there is news.
    fn over(&mut self, now: Timestamp, wait: Duration) {
        self.round = None;
        self.due = now + wait;
        self.hurry(now);
        self.improve(now);
    }

    /// Announces sooner where updates ask for it.
    fn hurry(&mut self, now: Timestamp) {
        let wait = match self.state.urgency() {
            Urgency::Now => DEBOUNCE,
            Urgency::Soon => self.up_to(SOON).max(DEBOUNCE),
            Urgency::Regular => return,
        };
        let wait = if self.failures > 0 { wait.max(URGENT_BACKOFF) } else { wait };
        self.due = self.due.min(now + wait);
    }

    /// Takes back a better tracker that has answered.
    fn improve(&mut self, now: Timestamp) {
        if let Some(better) = self.better.take().filter(|better| *better < self.current) {
            self.use_tracker(better);
            self.state.forget_tracker();
            self.due = self.due.min(now + self.up_to(SPREAD));
        }
    }

    /// Makes a tracker that answered the one in use.
    fn use_tracker(&mut self, index: usize) {
        let tracker = &mut self.trackers[index];
        if std::mem::replace(&mut tracker.down, false) {
            info!(tracker = tracker.name, "the tracker answers again");
        }
        if std::mem::replace(&mut self.current, index) != index {
            info!(tracker = tracker.name, "announcing to this tracker now");
        }
    }

    /// A random part of a duration.
    fn up_to(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(self.rng.random_range(0.0..1.0))
    }
}

#[cfg(test)]
#[cfg(feature = "server")]
mod lossy_tests;
