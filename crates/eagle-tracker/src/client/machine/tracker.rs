//! What a node knows of one of its trackers, and when it announces to it next.

use std::{collections::VecDeque, time::Duration};

use eagle_core::{PeerInfo, Timestamp};

use super::{
    super::state::{Blobs, State, Urgency},
    DEBOUNCE, INTERVAL, LATE, REFRESH, Ticket,
};
use crate::api::AnnounceRequest;

/// One of the trackers.
#[derive(Debug)]
pub(super) struct Tracker {
    /// For the order of trackers of each blob, and for the log.
    pub(super) name: String,
    /// The blobs that it is to know of.
    pub(super) state: State,
    /// Whether it failed last time. Others stand in for it until it answers.
    pub(super) down: bool,
    /// Whether it takes long to answer. Others stand in for it until it does.
    pub(super) late: bool,
    /// Announces that failed since one was last answered.
    pub(super) failures: u32,
    /// Whether it may still list this node.
    pub(super) told: bool,
    /// Whether it may have announces before it that it has not answered in time.
    pub(super) unanswered: bool,
    /// The version of the list of seeders that it gave last.
    pub(super) seeders: Option<u64>,
    pub(super) last_full: Option<Timestamp>,
    /// When the next round begins.
    pub(super) due: Timestamp,
    /// What of the urgency of its updates `due` has been set by.
    pub(super) hurried: Urgency,
    /// When the full state is due whatever the tracker knows.
    pub(super) refresh: Timestamp,
    pub(super) round: Option<Round>,
}

/// One attempt to bring a tracker up to date.
#[derive(Debug)]
pub(super) struct Round {
    /// What it is to know; the first of these next.
    pub(super) requests: VecDeque<AnnounceRequest>,
    pub(super) asked: Option<Asked>,
    /// The shortest wait that its answers came to.
    pub(super) wait: Duration,
}

/// An announce under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) ticket: Ticket,
    pub(super) full: bool,
    pub(super) blobs: usize,
    pub(super) since: Timestamp,
}

impl Tracker {
    pub(super) fn new(name: String, now: Timestamp) -> Self {
        Self {
            name,
            state: State::new(),
            down: false,
            late: false,
            failures: 0,
            told: false,
            unanswered: false,
            seeders: None,
            last_full: None,
            due: now + DEBOUNCE,
            hurried: Urgency::Regular,
            refresh: now + REFRESH,
            round: None,
        }
    }

    /// Whether blobs need nobody to stand in for it.
    pub(super) const fn serves(&self) -> bool {
        !self.down && !self.late
    }

    /// When something is to be done about it next unless something happens before.
    pub(super) fn next_timeout(&self) -> Option<Timestamp> {
        match &self.round {
            None => Some(self.due.min(self.refresh)),
            Some(round) => round.asked.filter(|_| self.serves()).map(|asked| asked.since + LATE),
        }
    }

    /// Whether it has just taken too long to answer.
    pub(super) fn turns_late(&self, now: Timestamp) -> bool {
        let asked = self.round.as_ref().and_then(|round| round.asked);
        self.serves() && asked.is_some_and(|asked| asked.since + LATE <= now)
    }

    /// Sets when the next round begins if there is no news.
    pub(super) fn wait_until(&mut self, due: Timestamp) {
        (self.due, self.hurried) = (due, Urgency::Regular);
    }

    /// Begins to bring it up to date if that is due.
    pub(super) fn begin(&mut self, now: Timestamp, node: &PeerInfo, blobs: &Blobs) {
        if self.round.is_some() || self.due.min(self.refresh) > now {
            return;
        }
        if self.refresh <= now {
            self.state.forget_tracker();
        }
        let requests = self.state.take(node, blobs).into();
        self.round = Some(Round { requests, asked: None, wait: INTERVAL.1 });
    }

    /// What to send next, if nothing is under way; `refresh` is when the next full state is due if this is one.
    pub(super) fn next_request(
        &mut self,
        now: Timestamp,
        ticket: Ticket,
        refresh: Timestamp,
    ) -> Option<AnnounceRequest> {
        let round = self.round.as_mut().filter(|round| round.asked.is_none())?;
        let request = round.requests.pop_front()?;
        round.asked = Some(Asked { ticket, full: request.full, blobs: request.blobs.len(), since: now });
        // Told before it answers: it may take an announce whose answer is lost.
        self.told = true;
        if request.full {
            self.last_full = Some(now);
            self.refresh = refresh;
        }
        Some(request)
    }

    /// What is under way to it is given up, and may arrive or not.
    pub(super) fn give_up(&mut self, now: Timestamp) {
        self.late = false;
        if self.round.take().is_some() {
            self.state.forget_tracker();
            self.unanswered = true;
            self.wait_until(now + DEBOUNCE);
        }
    }

    /// The announce under way, if it is this one.
    pub(super) fn answered(&mut self, ticket: Ticket) -> Option<Asked> {
        self.round.as_mut()?.asked.take_if(|asked| asked.ticket == ticket)
    }
}
