//! How often each of many may do something.
//!
//! Who is who is told by a hash in a table of fixed size, so that a flood of names takes no memory. Those of the same hash share what they may do;
//! the hash is keyed, so that nobody can choose whom to share with.

use std::{
    fmt,
    hash::{BuildHasher as _, Hash, RandomState},
    num::NonZeroU32,
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed, StateStore},
};
use tokio::time::{Instant, sleep, timeout};

/// A rate for each of many, and what each may do at once.
#[derive(Debug)]
pub struct Pace {
    limiter: RateLimiter<u64, Places, Uptime, NoOpMiddleware<Nanos>>,
    hashes: RandomState,
}

/// It would have had to wait for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooOften;

impl Pace {
    /// So much a second for each, and so much at once after a pause; in a table of this many places, one at least, of 8 bytes each.
    pub fn new(rate: NonZeroU32, burst: NonZeroU32, places: usize) -> Self {
        let places = Places((0..places.max(1)).map(|_| InMemoryState::default()).collect());
        let limiter = RateLimiter::new(Quota::per_second(rate).allow_burst(burst), places, Uptime(Instant::now()));
        Self { limiter, hashes: RandomState::new() }
    }

    /// Takes a turn of `who`, if one is due.
    pub fn take(&self, who: &(impl Hash + ?Sized)) -> bool {
        self.limiter.check_key(&self.hashes.hash_one(who)).is_ok()
    }

    /// Takes a turn of `who` as soon as one is due; gives how long that took. Nothing is taken when this is dropped before.
    ///
    /// # Errors
    /// When none was due within `longest`.
    pub async fn turn(&self, who: &(impl Hash + ?Sized), longest: Duration) -> Result<Duration, TooOften> {
        let hash = self.hashes.hash_one(who);
        if self.limiter.check_key(&hash).is_ok() {
            return Ok(Duration::ZERO);
        }
        let came = Instant::now();
        let waits = async {
            while let Err(until) = self.limiter.check_key(&hash) {
                sleep(until.wait_time_from(self.limiter.clock().now())).await;
            }
        };
        timeout(longest, waits).await.map_err(|_| TooOften)?;
        Ok(came.elapsed())
    }
}

/// When each may go on, by the hash of its name.
struct Places(Box<[InMemoryState]>);

impl StateStore for Places {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, hash: &u64, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // The remainder is less than the number of places, which fits.
        let place = usize::try_from(hash % self.0.len() as u64).unwrap_or_default();
        self.0[place].measure_and_replace(&NotKeyed::NonKey, f)
    }
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Places").finish_non_exhaustive()
    }
}

/// Time since it was made, by tokio's clock, which tests can move.
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
    use super::*;

    const RATE: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
    const BURST: NonZeroU32 = NonZeroU32::new(3).expect("not zero");

    #[tokio::test(start_paused = true)]
    async fn each_has_its_own_rate() {
        let pace = Pace::new(RATE, BURST, 1 << 16);
        for _ in 0..BURST.get() {
            assert!(pace.take("a"));
        }
        assert!(!pace.take("a"));
        assert!(pace.take("b"));
        let waited = pace.turn("a", Duration::from_secs(1)).await.unwrap();
        assert!((90..=110).contains(&waited.as_millis()), "{waited:?}");
        assert_eq!(pace.turn("a", Duration::from_millis(50)).await, Err(TooOften));
        // What waited in vain has taken nothing.
        sleep(Duration::from_millis(51)).await;
        assert!(pace.take("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_of_one_place_is_shared() {
        let pace = Pace::new(RATE, BURST, 0);
        assert_eq!((0..10).filter(|who| pace.take(who)).count(), 3);
    }
}
