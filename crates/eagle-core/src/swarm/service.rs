//! How long requests take, measured: of the whole swarm, and of one peer against it.

use std::time::Duration;

use super::config::SwarmConfig;
use crate::time::Timestamp;

/// A smoothed duration; each sample counts for a fixed part, as TCP smooths its round trip time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Smoothed {
    mean: Option<Duration>,
    /// A sample counts for one part in this many.
    parts: u32,
}

impl Smoothed {
    pub(super) fn new(parts: u32) -> Self {
        Self { mean: None, parts }
    }

    pub(super) fn add(&mut self, sample: Duration) {
        self.mean = Some(match self.mean {
            Some(mean) => (mean * (self.parts - 1) + sample) / self.parts,
            None => sample,
        });
    }

    pub(super) fn get(&self) -> Option<Duration> {
        self.mean
    }
}

/// How long one request took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// From the first byte to the last.
    pub(super) transfer: Duration,
    /// From the request to the last byte.
    pub(super) total: Duration,
}

/// What is known of how well one peer serves this node.
#[derive(Debug, Clone)]
pub(super) struct Service {
    /// From the first byte of a piece to the last: how fast it is, whatever its queue.
    transfer: Smoothed,
    /// From the request to the last byte.
    total: Smoothed,
    /// Requests in a row that it let down.
    strikes: u32,
    /// Asked last until then, because of them.
    shunned_until: Option<Timestamp>,
}

/// A sample of one peer counts for a quarter: a peer that becomes slow is known to be after a few
/// pieces, and one late piece does not make it slow.
const PEER_PARTS: u32 = 4;
/// How many times the usual is clearly slower: an uploader shares its link among a handful of pieces
/// or gives all of it to one, so equal peers differ by twice now and then.
const CLEARLY_SLOWER: u32 = 3;
/// After so many strikes waiting no longer doubles: 64 times the usual.
const MOST_DOUBLINGS: u32 = 6;

impl Default for Service {
    fn default() -> Self {
        Self { transfer: Smoothed::new(PEER_PARTS), total: Smoothed::new(PEER_PARTS), strikes: 0, shunned_until: None }
    }
}

impl Service {
    /// A request was answered in full.
    pub(super) fn answered(&mut self, times: Times) {
        self.transfer.add(times.transfer);
        self.total.add(times.total);
        self.strikes = 0;
        self.shunned_until = None;
    }

    /// It let a request down; it is asked last for as long as `patience`, doubled each time in a row.
    pub(super) fn strike(&mut self, now: Timestamp, patience: Duration, config: &SwarmConfig) {
        self.strikes = self.strikes.saturating_add(1);
        self.shunned_until = Some(now + self.doubled(patience).min(config.longest_snub));
    }

    pub(super) fn shunned_until(&self) -> Option<Timestamp> {
        self.shunned_until
    }

    pub(super) fn is_shunned(&self) -> bool {
        self.shunned_until.is_some()
    }

    /// Whether it let down the last request, so that it has yet to show that it answers at all.
    pub(super) fn is_doubted(&self) -> bool {
        self.strikes > 0
    }

    /// Ends the shunning whose time is over.
    pub(super) fn forgive(&mut self, now: Timestamp) {
        if self.shunned_until.is_some_and(|until| now >= until) {
            self.shunned_until = None;
        }
    }

    /// A waiting time, doubled for each strike in a row: whoever was late once may be so again
    /// because the waiting time was wrong.
    pub(super) fn doubled(&self, wait: Duration) -> Duration {
        wait * (1 << self.strikes.min(MOST_DOUBLINGS))
    }

    /// How many times longer than usual a piece takes from there; 1 for peers that are not clearly
    /// slower, so that chance alone never orders equal peers.
    pub(super) fn slowness(&self, usual: Option<Duration>) -> u32 {
        match (self.transfer.get(), usual) {
            (Some(transfer), Some(usual)) if !usual.is_zero() && transfer >= usual * CLEARLY_SLOWER => {
                u32::try_from(transfer.as_nanos() / usual.as_nanos()).unwrap_or(u32::MAX)
            }
            _ => 1,
        }
    }

    /// How long a request takes there; `None` before the first measurement.
    pub(super) fn expected(&self) -> Option<Duration> {
        self.total.get()
    }
}
