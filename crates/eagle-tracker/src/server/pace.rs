//! How often one node may announce.
//!
//! A node sends one announce at a time, and puts what happens meanwhile into the next. So one that announces without a pause, for a mistake or
//! to do harm, is held back, and not refused: each of its answers waits until it is due, and others have the processor. Members are
//! believed who they say they are, so this does not hold off one that says a new name each time; what such a one can fill is bounded
//! by the store.
//!
//! Nodes are told apart by a hash of their names in a table of fixed size, so that a flood of names takes no memory. Those of the same hash share what
//! they may do; the hash is keyed, so that nobody can choose whom to share with.

use std::{
    hash::{BuildHasher as _, RandomState},
    num::NonZeroU32,
    time::Duration,
};

use eagle_core::NodeId;
use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed, StateStore},
};
use tokio::time::{Instant, sleep, timeout};

use super::reply::RequestError;

/// Announces of a node in a second, in the long run: one that pulls many blobs at once waits 50 ms for the next peers at most, and puts
/// all blobs that it begins meanwhile into one announce. 20 announces of 500 blobs are 2 % of a core, which took 500,000 blobs a second
/// (`eagle-bench tracker`).
pub(super) const RATE: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
/// Announces of a node at once: those of a hundred blobs that begin one after the other.
const BURST: NonZeroU32 = NonZeroU32::new(100).expect("not zero");
/// How long an answer is held back; after that the announce is refused. A node that waits for a second asks other trackers.
const LONGEST: Duration = Duration::from_millis(900);
/// Places in the table, 8 bytes each: of 15,000 nodes a fifth share one with another.
const PLACES: usize = 1 << 16;

/// Holds back nodes that announce too often.
#[derive(Debug)]
pub(super) struct AnnouncePace {
    limiter: RateLimiter<u64, Places, Uptime, NoOpMiddleware<Nanos>>,
    hashes: RandomState,
}

impl Default for AnnouncePace {
    fn default() -> Self {
        let places = Places((0..PLACES).map(|_| InMemoryState::default()).collect());
        let limiter = RateLimiter::new(Quota::per_second(RATE).allow_burst(BURST), places, Uptime(Instant::now()));
        Self { limiter, hashes: RandomState::new() }
    }
}

impl AnnouncePace {
    /// Waits until this node may announce; returns how long that took.
    pub(super) async fn turn(&self, node: &NodeId) -> Result<Duration, RequestError> {
        let place = self.hashes.hash_one(node.as_str());
        if self.limiter.check_key(&place).is_ok() {
            return Ok(Duration::ZERO);
        }
        let came = Instant::now();
        let waits = async {
            while let Err(until) = self.limiter.check_key(&place) {
                sleep(until.wait_time_from(self.limiter.clock().now())).await;
            }
        };
        timeout(LONGEST, waits).await.map_err(|_| RequestError::TooOften(node.clone()))?;
        Ok(came.elapsed())
    }
}

/// When each node may announce again, by the hash of its name.
struct Places(Box<[InMemoryState]>);

impl StateStore for Places {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, hash: &u64, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // The remainder is less than the number of places, which fits.
        let place = usize::try_from(hash % PLACES as u64).unwrap_or_default();
        self.0[place].measure_and_replace(&NotKeyed::NonKey, f)
    }
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Places").finish_non_exhaustive()
    }
}

/// Time since the tracker started, by tokio's clock, which tests can move.
#[derive(Debug, Clone, Copy)]
struct Uptime(Instant);

impl Clock for Uptime {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_announces_without_a_pause_is_held_to_the_rate_and_others_are_not() {
        let pace = AnnouncePace::default();
        let (flood, other) = (node("12D3KooWflood"), node("12D3KooWother"));
        let began = Instant::now();
        for _ in 0..BURST.get() {
            assert_eq!(pace.turn(&flood).await.unwrap(), Duration::ZERO);
        }
        for _ in 0..10 * RATE.get() {
            assert!(pace.turn(&flood).await.unwrap() > Duration::ZERO);
            assert!(began.elapsed() < Duration::from_secs(11));
        }
        assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(pace.turn(&other).await.unwrap(), Duration::ZERO);
        // It is forgotten when it has been quiet.
        sleep(Duration::from_secs(6)).await;
        for _ in 0..BURST.get() {
            assert_eq!(pace.turn(&flood).await.unwrap(), Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_on_many_connections_is_refused_what_comes_too_late() {
        let pace = AnnouncePace::default();
        let flood = node("12D3KooWflood");
        let answers = join_all((0..1_000).map(|_| pace.turn(&flood))).await;
        let taken = answers.iter().filter(|answer| answer.is_ok()).count();
        let within = (RATE.get() * u32::try_from(LONGEST.as_millis()).unwrap() / 1_000) as usize;
        let burst = BURST.get() as usize;
        assert!((burst + within - 1..=burst + within + 1).contains(&taken), "{taken}");
        let error = answers.into_iter().find_map(Result::err).unwrap();
        assert!(error.to_string().contains("12D3KooWflood"), "{error}");
    }
}
