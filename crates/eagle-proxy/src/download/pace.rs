//! How fast a download is, and what holds it up: seen by looking at it ten times a second.
//!
//! One look tells what the download waits for at that moment; over some seconds the most frequent of these is what limits it.
//! Where several things are slow, the one counts that is nearest to the runtime, since nothing beyond it would be felt.

use std::{collections::VecDeque, time::Duration};

use eagle_core::{NodeId, units::Rate};
use serde::Serialize;
use tokio::time::Instant;

use crate::metrics::Source;

/// Time that rates and limits are about: long enough for a few pieces on a slow link, short enough to be about now.
const SPAN: Duration = Duration::from_secs(5);
/// Looks that are kept: those of that time, at ten a second.
const LOOKS: usize = 50;
/// Pause between two looks at who sends.
const SENDERS_EVERY: Duration = Duration::from_secs(1);
/// Time over which the host's limit is looked at: what may pass in less comes in bursts.
const LIMIT_SPAN: Duration = Duration::from_secs(1);
/// The limit is reached when this share of it passes: some is always left between two pieces.
const REACHED: f64 = 0.85;
/// Senders that are named, the fastest first.
const MOST_SENDERS: usize = 8;

/// What a download waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Limit {
    /// The runtime does not take what is there.
    Runtime,
    /// `proxy.download_rate` lets no more in.
    #[serde(rename = "host_limit")]
    Host,
    /// What has come waits to be checked and written.
    Disk,
    /// The registry: a seeder, or this node where none does, has not got more of the blob yet.
    Origin,
    /// Seeders have more and do not send it, or none answers.
    Seeder,
    /// Other nodes have more and do not send it.
    Peers,
}

impl Limit {
    const ALL: [Self; 6] = [Self::Runtime, Self::Host, Self::Disk, Self::Origin, Self::Seeder, Self::Peers];
}

/// What a download looks like at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Look {
    /// The slowest reader holds what its runtime does not take.
    pub(crate) giving: bool,
    /// Pieces that are being checked or written.
    pub(crate) storing: u64,
    /// Whom pieces are fetched from past the peer network, while they are.
    pub(crate) filling: Option<Source>,
    /// Pieces that could be fetched are missing.
    pub(crate) behind: bool,
    /// A seeder tells of pieces.
    pub(crate) feed: bool,
    /// All pieces are known.
    pub(crate) whole: bool,
    /// Requests that seeders, and other nodes, have not answered.
    pub(crate) asked: [u64; 2],
}

impl Look {
    fn limit(&self, limit_reached: bool) -> Limit {
        let [seeders, peers] = self.asked;
        match self {
            Self { giving: true, .. } => Limit::Runtime,
            _ if limit_reached => Limit::Host,
            Self { storing: 1.., .. } => Limit::Disk,
            Self { filling: Some(Source::Origin), .. } => Limit::Origin,
            Self { filling: Some(_), .. } => Limit::Seeder,
            // All is here, and is being checked as a whole and kept.
            Self { behind: false, whole: true, .. } => Limit::Disk,
            Self { behind: false, feed: true, .. } => Limit::Origin,
            Self { behind: false, feed: false, .. } => Limit::Seeder,
            _ if seeders > peers => Limit::Seeder,
            // Nobody is asked, for nobody who is known has it.
            _ if seeders + peers == 0 && !self.feed && !self.whole => Limit::Seeder,
            _ => Limit::Peers,
        }
    }
}

/// How fast a download is, for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// Over the last seconds, from all sources.
    pub(crate) bytes_per_second: u64,
    /// What limits it; `None` before the first look.
    pub(crate) limited_by: Option<Limit>,
    /// For how much of the time, 0 to 1.
    pub(crate) limited_share: f64,
    /// Who sends most.
    pub(crate) senders: Vec<Sender>,
}

/// A node that sends pieces of the blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Sender {
    pub(crate) id: NodeId,
    pub(crate) bytes_per_second: u64,
}

/// What the looks of the last seconds saw.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    limits: VecDeque<Limit>,
    /// Bytes of the blob so far.
    bytes: VecDeque<(Instant, u64)>,
    /// Bytes of any blob that the host's limit has let pass.
    passed: VecDeque<(Instant, u64)>,
    /// Bytes of the blob so far by sender.
    senders: VecDeque<(Instant, Vec<(NodeId, u64)>)>,
}

impl Pace {
    /// Takes a look. `received` are the blob's bytes so far, `passed` those of all that came through the host's limit `rate`.
    pub(crate) fn add(&mut self, now: Instant, look: Look, received: u64, passed: u64, rate: Rate) {
        keep(&mut self.bytes, now, SPAN, received);
        keep(&mut self.passed, now, LIMIT_SPAN, passed);
        let reached = rate.bytes_per_second().is_some_and(|rate| {
            let enough = span(&self.passed) >= LIMIT_SPAN / 2;
            enough && per_second(&self.passed) >= (rate as f64) * REACHED
        });
        if self.limits.len() == LOOKS {
            self.limits.pop_front();
        }
        self.limits.push_back(look.limit(reached));
    }

    /// Whether it is time to tell who has sent how much.
    pub(crate) fn wants_senders(&self, now: Instant) -> bool {
        self.senders.back().is_none_or(|(at, _)| now - *at >= SENDERS_EVERY)
    }

    /// Takes what each node has sent of the blob so far.
    pub(crate) fn add_senders(&mut self, now: Instant, senders: Vec<(NodeId, u64)>) {
        keep(&mut self.senders, now, SPAN, senders);
    }

    /// What there is to say.
    pub(crate) fn summary(&self) -> Summary {
        let count = |limit: &Limit| self.limits.iter().filter(|seen| *seen == limit).count();
        let most = Limit::ALL.into_iter().max_by_key(count).filter(|_| !self.limits.is_empty());
        let share = most.map_or(0.0, |limit| count(&limit) as f64 / self.limits.len() as f64);
        Summary {
            bytes_per_second: whole(per_second(&self.bytes)),
            limited_by: most,
            limited_share: share,
            senders: self.fastest(),
        }
    }

    fn fastest(&self) -> Vec<Sender> {
        let (Some((from, before)), Some((to, now))) = (self.senders.front(), self.senders.back()) else {
            return Vec::new();
        };
        let seconds = (*to - *from).as_secs_f64();
        if seconds <= 0.0 {
            return Vec::new();
        }
        let rates = now.iter().filter_map(|(id, bytes)| {
            let earlier = before.iter().find(|(known, _)| known == id).map_or(0, |(_, bytes)| *bytes);
            // Less than before: it was forgotten meanwhile, and counted anew.
            let more = bytes.checked_sub(earlier).unwrap_or(*bytes);
            let rate = whole(more as f64 / seconds);
            (rate > 0).then(|| Sender { id: id.clone(), bytes_per_second: rate })
        });
        let mut rates: Vec<Sender> = rates.collect();
        rates.sort_by_key(|sender| std::cmp::Reverse(sender.bytes_per_second));
        rates.truncate(MOST_SENDERS);
        rates
    }
}

/// Adds to what is kept of some time; of what is older the last is kept, where that time begins.
fn keep<T>(kept: &mut VecDeque<(Instant, T)>, now: Instant, time: Duration, value: T) {
    kept.push_back((now, value));
    while kept.get(1).is_some_and(|(at, _)| now - *at >= time) {
        kept.pop_front();
    }
}

fn span(kept: &VecDeque<(Instant, u64)>) -> Duration {
    match (kept.front(), kept.back()) {
        (Some((from, _)), Some((to, _))) => *to - *from,
        _ => Duration::ZERO,
    }
}

fn per_second(kept: &VecDeque<(Instant, u64)>) -> f64 {
    let seconds = span(kept).as_secs_f64();
    let (Some((_, before)), Some((_, now)), true) = (kept.front(), kept.back(), seconds > 0.0) else { return 0.0 };
    now.saturating_sub(*before) as f64 / seconds
}

/// A rate for people.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(rate: f64) -> u64 {
    rate as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(look: Look) -> Limit {
        look.limit(false)
    }

    #[test]
    fn what_is_nearest_to_the_runtime_counts() {
        let waits = Look { behind: true, feed: true, asked: [3, 1], ..Look::default() };
        assert_eq!(limit(waits), Limit::Seeder);
        assert_eq!(limit(Look { asked: [1, 3], ..waits }), Limit::Peers);
        assert_eq!(limit(Look { asked: [0, 0], ..waits }), Limit::Peers);
        assert_eq!(limit(Look { asked: [0, 0], feed: false, ..waits }), Limit::Seeder);
        let has_all = Look { behind: false, ..waits };
        assert_eq!(limit(has_all), Limit::Origin, "a seeder that lives has no more yet");
        assert_eq!(limit(Look { feed: false, ..has_all }), Limit::Seeder);
        assert_eq!(limit(Look { whole: true, feed: false, ..has_all }), Limit::Disk, "all is here");
        assert_eq!(limit(Look { filling: Some(Source::Origin), ..waits }), Limit::Origin);
        assert_eq!(limit(Look { filling: Some(Source::Seeder), ..waits }), Limit::Seeder);
        let stores = Look { storing: 1, filling: Some(Source::Origin), ..waits };
        assert_eq!(limit(stores), Limit::Disk);
        assert_eq!(stores.limit(true), Limit::Host);
        assert_eq!(Look { giving: true, ..stores }.limit(true), Limit::Runtime);
    }

    #[tokio::test(start_paused = true)]
    async fn rates_and_limits_are_about_the_last_seconds() {
        let mut pace = Pace::default();
        assert_eq!((pace.summary().bytes_per_second, pace.summary().limited_by), (0, None));
        let (start, node): (Instant, NodeId) = (Instant::now(), "node1".parse().unwrap());
        let waits = Look { behind: true, feed: true, asked: [1, 0], ..Look::default() };
        let at = |tick: u64| start + Duration::from_millis(100 * tick);
        // Ten seconds at 100 kB/s, under a limit of 1 MB/s.
        for tick in 0..100 {
            pace.add(at(tick), waits, tick * 10_000, tick * 10_000, Rate::Limited(1_000_000));
            if pace.wants_senders(at(tick)) {
                pace.add_senders(at(tick), vec![(node.clone(), tick * 10_000)]);
            }
        }
        let seen = pace.summary();
        assert_eq!((seen.limited_by, seen.limited_share), (Some(Limit::Seeder), 1.0));
        assert!((95_000..=105_000).contains(&seen.bytes_per_second), "{seen:?}");
        assert_eq!(seen.senders, [Sender { id: node, bytes_per_second: 100_000 }]);
        assert!(pace.bytes.len() <= LOOKS + 2 && pace.limits.len() == LOOKS && pace.senders.len() <= 7);
        // Then all that the limit allows.
        for tick in 100..130 {
            pace.add(at(tick), waits, tick * 100_000, tick * 100_000, Rate::Limited(1_000_000));
        }
        let seen = pace.summary();
        assert_eq!(seen.limited_by, Some(Limit::Host));
        assert!(seen.limited_share > 0.5 && seen.limited_share < 1.0, "{seen:?}");
        // Without a limit there is none to reach.
        let mut pace = Pace::default();
        for tick in 0..30 {
            pace.add(at(tick), waits, tick * 100_000, tick * 100_000, Rate::Unlimited);
        }
        assert_eq!(pace.summary().limited_by, Some(Limit::Seeder));
    }
}
