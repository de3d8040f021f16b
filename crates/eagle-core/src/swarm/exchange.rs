//! Peer exchange: a node that knows too few peers, and is named none by a tracker, asks those that it knows for others.
//!
//! BEP 11 (`ut_pex`) is the model, with one difference: peers are asked for and not told all the time. Trackers answer nearly always,
//! and then everything that is told would be thrown away. `docs/peer-exchange.md` has the whole of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::seq::{IndexedRandom as _, SliceRandom as _};

use super::{Action, PeerKey, Swarm};
use crate::{
    time::Timestamp,
    wire::control::{BlobMessage, MAX_PEERS_TOLD, PeerAddress},
};

/// From the first peer that is heard of to the first question: a tracker that is there has answered by then many times over.
const FIRST: Duration = Duration::from_millis(250);
/// Shortest and longest time between two questions. In the shortest, those who were named are connected and have greeted us; it
/// doubles to the longest while there are no more than before.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(32));
/// How long after a tracker has named peers nobody else is asked: five announces of a pull.
const QUIET: Duration = Duration::from_secs(5);
/// How soon the same peer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Questions that are remembered: more than are asked within [`ASK_AGAIN`].
const MOST_ASKED: usize = 32;
/// How soon the same peer is answered again; shorter than [`ASK_AGAIN`], so that no honest question is in vain.
const ANSWER_AGAIN: Duration = Duration::from_secs(10);
/// Peers whose questions are remembered: as many as a node is connected to. Others are not answered until some are forgotten.
const MOST_ANSWERED: usize = 1024;
/// Peers remembered that had no room for us: they know others, and one or two are enough to ask.
const MOST_TURNED_AWAY: usize = 4;
/// One in so many that are told is from another place than who asks, as in the answers of trackers, so that places stay connected.
const ELSEWHERE_EVERY: usize = 4;

/// What a swarm keeps in mind of peer exchange.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// When a tracker last named peers.
    named_at: Option<Timestamp>,
    /// When the next peer is asked, if any is to be; not before somebody was heard of.
    ask_at: Option<Timestamp>,
    pause: Duration,
    /// Peers of the swarm when somebody was last asked.
    known: usize,
    asked: Vec<Asked>,
    /// When peers were last answered.
    answered: BTreeMap<PeerKey, Timestamp>,
    /// Peers that had no room for us.
    turned_away: Vec<PeerKey>,
}

#[derive(Debug)]
struct Asked {
    peer: PeerKey,
    at: Timestamp,
    answered: bool,
}

impl Exchange {
    /// There is somebody who could be asked.
    pub(super) fn may_begin(&mut self, now: Timestamp) {
        self.ask_at.get_or_insert(now + FIRST);
    }

    /// A peer did not take us in: it may have no room, and then it knows others.
    pub(super) fn note_turned_away(&mut self, now: Timestamp, peer: PeerKey) {
        if self.turned_away.len() < MOST_TURNED_AWAY && !self.turned_away.contains(&peer) {
            self.turned_away.push(peer);
            self.may_begin(now);
        }
    }

    /// A peer is gone, or not in the swarm any more. What it asked and was asked stays known: it may come again at once.
    pub(super) fn forget(&mut self, peer: PeerKey) {
        self.turned_away.retain(|other| *other != peer);
    }

    fn is_quiet(&self, now: Timestamp) -> bool {
        self.named_at.is_some_and(|at| now < at + QUIET)
    }
}

impl Swarm {
    /// A tracker has named peers of this blob: nobody else need be asked for some time.
    pub fn handle_tracker(&mut self, now: Timestamp) {
        self.exchange.named_at = Some(now);
    }

    fn knows_too_few(&self) -> bool {
        self.download && self.peers.len() < self.config.exchange_below && !self.is_complete()
    }

    /// When a peer is to be asked for others.
    pub(super) fn next_exchange(&self) -> Option<Timestamp> {
        let somebody = !self.peers.is_empty() || !self.exchange.turned_away.is_empty();
        let at = self.exchange.ask_at.filter(|_| somebody && self.knows_too_few())?;
        Some(self.exchange.named_at.map_or(at, |named| at.max(named + QUIET)))
    }

    /// Asks one peer for others, if it is time.
    pub(super) fn ask_for_peers(&mut self, now: Timestamp) {
        if self.next_exchange().is_none_or(|at| now < at) {
            return;
        }
        let (shortest, longest) = PAUSE;
        let more = self.peers.len() > self.exchange.known;
        self.exchange.pause =
            if more { shortest } else { self.exchange.pause.saturating_mul(2).clamp(shortest, longest) };
        self.exchange.known = self.peers.len();
        self.exchange.ask_at = Some(now + self.exchange.pause);
        self.exchange.asked.retain(|asked| now < asked.at + ASK_AGAIN);
        if self.exchange.asked.len() >= MOST_ASKED {
            return;
        }
        let Some(peer) = self.whom_to_ask() else { return };
        self.exchange.asked.push(Asked { peer, at: now, answered: false });
        self.actions.push_back(Action::Send { peer, message: BlobMessage::PeersRequest });
    }

    /// A seeder first, since all begin with one; then who had no room for us; then anybody.
    fn whom_to_ask(&mut self) -> Option<PeerKey> {
        let was_asked = |peer: &PeerKey| self.exchange.asked.iter().any(|asked| asked.peer == *peer);
        let heard = |peer: &PeerKey| self.peers.get(peer).is_some_and(|state| state.heard);
        let seeder = self.seeders.iter().find(|peer| heard(peer) && !was_asked(peer));
        let first = seeder.or_else(|| self.exchange.turned_away.iter().find(|peer| !was_asked(peer)));
        if let Some(peer) = first {
            return Some(*peer);
        }
        let others: Vec<PeerKey> =
            self.peers.iter().map(|(key, _)| *key).filter(|peer| heard(peer) && !was_asked(peer)).collect();
        others.choose(&mut self.rng).copied()
    }

    /// Tells a peer of others, those of its own place three times as often as those elsewhere.
    pub(super) fn answer_peers_request(&mut self, now: Timestamp, peer: PeerKey) {
        let answered = &mut self.exchange.answered;
        if answered.len() >= MOST_ANSWERED {
            answered.retain(|_, at| now < *at + ANSWER_AGAIN);
        }
        let too_soon = answered.get(&peer).is_some_and(|at| now < *at + ANSWER_AGAIN);
        if too_soon || answered.len() >= MOST_ANSWERED {
            return;
        }
        answered.insert(peer, now);
        let place = self.peers.get(&peer).and_then(|state| state.place);
        // Seeders are found by the metainfo, and who fails us would be a poor gift.
        let others = self.peers.iter().filter(|(key, state)| {
            **key != peer && state.heard && !state.service.is_shunned() && !self.is_seeder(**key, state)
        });
        let (mut near, mut elsewhere): (Vec<_>, Vec<_>) =
            others.map(|(key, state)| (*key, state.place)).partition(|(_, other)| *other == place);
        near.shuffle(&mut self.rng);
        elsewhere.shuffle(&mut self.rng);
        let (mut near, mut elsewhere) = (near.into_iter(), elsewhere.into_iter());
        let mixed = (1..).map_while(|place: usize| match place % ELSEWHERE_EVERY {
            0 => elsewhere.next().or_else(|| near.next()),
            _ => near.next().or_else(|| elsewhere.next()),
        });
        let about: Vec<PeerKey> = mixed.map(|(key, _)| key).take(MAX_PEERS_TOLD).collect();
        if !about.is_empty() {
            self.actions.push_back(Action::TellPeers { peer, about });
        }
    }

    /// Takes what a peer tells of others, if it was asked and this is its first answer, as long as they are too few.
    pub(super) fn take_peers(&mut self, now: Timestamp, from: PeerKey, told: Vec<PeerAddress>) {
        let open = |asked: &&mut Asked| asked.peer == from && !asked.answered && now < asked.at + ASK_AGAIN;
        let Some(asked) = self.exchange.asked.iter_mut().find(open) else { return };
        asked.answered = true;
        if !self.knows_too_few() || self.exchange.is_quiet(now) {
            return;
        }
        // One identity at one address: nobody is dialled twice for one answer.
        let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        let mut peers = told;
        peers.truncate(MAX_PEERS_TOLD);
        peers.retain(|peer| {
            crate::peer::is_of_a_host(peer.address) && ids.insert(peer.id.clone()) && addresses.insert(peer.address)
        });
        let most = self.config.exchange_below.saturating_sub(self.peers.len());
        if !peers.is_empty() {
            self.actions.push_back(Action::Connect { from, peers, most });
        }
    }
}
