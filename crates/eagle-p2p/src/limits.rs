//! Bandwidth limits of a host.
//!
//! One [`Limiter`] per direction is shared by everything that moves bytes in that direction, so the
//! limit holds for the host and not for a blob or a peer. It is a token bucket in the form of GCRA
//! (`governor`), with three things added: cells of a size that fits the rate, a queue, and a debt.
//!
//! **Cells.** `governor` counts cells that come one per whole number of nanoseconds. A cell of one
//! byte cannot say 5 GiB/s (0.19 ns), so a cell is what the rate moves in about `CELL_PERIOD`,
//! and one byte where that is less. The period then is at least half of `CELL_PERIOD`, and
//! rounding it to nanoseconds is off by 0.001 % at most. What is left of a cell after an odd number
//! of bytes is kept for the next caller, so nothing is lost to rounding either.
//!
//! **Burst.** The bucket holds what `BURST` brings and no more. It makes up for timers that wake
//! late, and is the most by which a window of one second can exceed the rate: 2 %.
//!
//! **Queue.** Callers are served in the order in which they came.
//!
//! **Debt.** A transfer does not know how much a socket will take or give. So it waits for its
//! [`Turn`], moves what can be moved without waiting, and says how much that was; the next turn comes
//! when this is paid for. Nobody holds bytes that were paid for and have not moved, which could all
//! move at once later. So a turn can be long, and few are needed: one turn is at most 1 % of a second.

use std::{
    num::NonZeroU32,
    ops::Add,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use eagle_core::units::Rate;
use governor::{
    Quota, RateLimiter,
    clock::{Clock, Reference},
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed},
};
use tokio::{
    sync::{Mutex, MutexGuard, watch},
    time::Instant,
};

/// Time that one cell stands for, about. Short against [`BURST`], so that the burst is cut finely;
/// long against a nanosecond, which is what a period is rounded to.
const CELL_PERIOD: Duration = Duration::from_micros(100);
/// Time that the whole bucket stands for: ten ticks of tokio's timer wheel and some scheduling
/// delay, and with 2 % of a second well below the 5 % that a window may be off.
const BURST: Duration = Duration::from_millis(20);
/// Time that one turn stands for: 1 % of a second, which together with [`BURST`] keeps a window of one
/// second within 3 % of the rate. A turn costs wake-ups and system calls on both ends: a plain channel
/// at 50 MiB/s took 1.4 CPU s/GB with turns of 1 ms and 1.0 with 4 ms, and takes 0.72 with 10 ms
/// (`benches/channel.rs`).
const TURN: Duration = Duration::from_millis(10);
/// Largest turn, bytes. Above this, the cost of a turn no longer shows.
const MAX_TURN: u64 = 1 << 20;

type Bucket = RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Tick>>;

/// A limit on bytes per second, shared by its clones.
#[derive(Debug, Clone)]
pub struct Limiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The lock is also the queue, which is why it is held while waiting for tokens: tokio's mutex is
    /// fair, so the order of arrival is the order of service, and a large request is not overtaken by
    /// small ones for ever.
    account: Mutex<Account>,
    pace: watch::Sender<Pace>,
    moved: AtomicU64,
    /// Nanoseconds that callers waited.
    waited: AtomicU64,
}

#[derive(Debug, Default)]
struct Account {
    /// Bytes paid for and not yet used: the rest of the last cell.
    credit: u64,
    /// Bytes moved and not yet paid for.
    debt: u64,
}

/// The right to move some bytes now; see [`Limiter::turn`].
#[derive(Debug)]
#[must_use]
pub struct Turn<'a> {
    limiter: &'a Limiter,
    account: Option<MutexGuard<'a, Account>>,
    bytes: usize,
}

impl Turn<'_> {
    /// How many bytes may be moved, at least 1.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Ends the turn, in which so many bytes were moved.
    pub fn moved(mut self, bytes: usize) {
        self.limiter.0.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(account) = &mut self.account {
            account.debt = account.debt.saturating_add(bytes as u64);
        }
    }
}

/// What a rate means in cells.
#[derive(Debug, Clone)]
struct Pace {
    rate: Rate,
    /// `None` without a limit.
    bucket: Option<Arc<Bucket>>,
    /// Bytes of a cell.
    cell: u64,
    /// Cells that the bucket holds.
    burst: NonZeroU32,
    /// Cells that are taken at once: half of those. Who waited for a full bucket would lose what comes
    /// until it wakes, 1 ms of 20 ms with tokio's timer.
    most: NonZeroU32,
}

impl Pace {
    fn new(rate: Rate) -> Self {
        let Rate::Limited(rate_in_bytes) = rate else {
            return Self { rate, bucket: None, cell: 1, burst: NonZeroU32::MIN, most: NonZeroU32::MIN };
        };
        let per_second = rate_in_bytes.max(1);
        let cells_per_second = Duration::from_secs(1).as_nanos() / CELL_PERIOD.as_nanos();
        let cell = (u128::from(per_second) / cells_per_second).max(1);
        let rate_in_bytes = u128::from(per_second);
        let nanoseconds = (cell * 1_000_000_000 + rate_in_bytes / 2) / rate_in_bytes;
        let period = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)).max(Duration::from_nanos(1));
        let burst = u32::try_from(BURST.as_nanos() / period.as_nanos()).unwrap_or(u32::MAX);
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let bucket = Quota::with_period(period)
            .map(|quota| Arc::new(Bucket::direct_with_clock(quota.allow_burst(burst), TokioClock)));
        let most = NonZeroU32::new(burst.get() / 2).unwrap_or(NonZeroU32::MIN);
        Self { rate, bucket, cell: u64::try_from(cell).unwrap_or(u64::MAX), burst, most }
    }
}

impl Limiter {
    /// A limiter that lets bytes pass at `rate`.
    pub fn new(rate: Rate) -> Self {
        let (pace, _) = watch::channel(Pace::new(rate));
        Self(Arc::new(Inner { account: Mutex::default(), pace, moved: AtomicU64::new(0), waited: AtomicU64::new(0) }))
    }

    /// Changes the rate for everyone, also for those who wait already.
    pub fn set_rate(&self, rate: Rate) {
        let pace = Pace::new(rate);
        if let Some(bucket) = &pace.bucket {
            // A new bucket is full. Emptied, a rate that is changed often gives no extra bursts.
            let _ = bucket.check_n(pace.burst);
        }
        self.0.pace.send_if_modified(|current| {
            // The same rate again would only forget the debt.
            let changed = current.rate != rate;
            if changed {
                *current = pace;
            }
            changed
        });
    }

    /// The present rate.
    pub fn rate(&self) -> Rate {
        self.0.pace.borrow().rate
    }

    /// Bytes let pass so far.
    pub fn passed(&self) -> u64 {
        self.0.moved.load(Ordering::Relaxed)
    }

    /// Time that callers waited for the limit so far, added up over all of them.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.0.waited.load(Ordering::Relaxed))
    }

    fn count_wait(&self, begun: Instant) {
        let nanoseconds = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.waited.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Waits until some bytes may move, after everyone who asked before.
    ///
    /// Others wait until the turn ends, so it is for what can be moved at once: a system call that does
    /// not block, and no `await`. A turn that is dropped moved nothing.
    pub async fn turn(&self) -> Turn<'_> {
        if self.is_unlimited() {
            return Turn { limiter: self, account: None, bytes: self.chunk() };
        }
        let begun = Instant::now();
        let mut account = self.0.account.lock().await;
        self.pay(&mut account, 0).await;
        self.count_wait(begun);
        // Of the rate by now, which may have changed during the wait.
        Turn { limiter: self, account: Some(account), bytes: self.chunk() }
    }

    /// A good number of bytes for one [`Limiter::acquire`] at the present rate: that of a turn.
    pub fn chunk(&self) -> usize {
        self.rate().bytes_per_second().map_or_else(|| Self::turn_length(u64::MAX), Self::turn_length)
    }

    fn turn_length(rate: u64) -> usize {
        let bytes = u128::from(rate) * TURN.as_nanos() / 1_000_000_000;
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX).clamp(1, MAX_TURN);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Waits until `bytes` may move, after everyone who asked before. For bytes whose number is known
    /// and that were moved already or move at once.
    ///
    /// Any number is fine; more than the bucket holds is taken in parts. When the future is dropped,
    /// its place is free at once and the parts it had taken are lost.
    pub async fn acquire(&self, bytes: u64) {
        if !self.is_unlimited() {
            let begun = Instant::now();
            let mut account = self.0.account.lock().await;
            self.pay(&mut account, bytes).await;
            self.count_wait(begun);
        }
        self.0.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn is_unlimited(&self) -> bool {
        self.0.pace.borrow().bucket.is_none()
    }

    /// Waits until the debt and so many bytes more are paid for.
    async fn pay(&self, account: &mut Account, mut more: u64) {
        let mut paces = None;
        while account.debt > 0 || more > 0 {
            // Subscribed to before the look at the pace, so that no change is missed; and only when
            // there is something to wait for.
            let paces = paces.get_or_insert_with(|| self.0.pace.subscribe());
            let pace = paces.borrow_and_update().clone();
            let (Some(bucket), Some(rate)) = (&pace.bucket, pace.rate.bytes_per_second()) else {
                account.debt = 0;
                return;
            };
            // The rest of a larger cell, from before the rate changed, would be a burst now; a debt
            // that was made at a higher rate would take many turns' time.
            account.credit = account.credit.min(pace.cell);
            account.debt = account.debt.min(Self::turn_length(rate) as u64);
            account.use_credit(&mut more);
            let owed = account.debt.saturating_add(more);
            if owed == 0 {
                return;
            }
            let cells = u32::try_from(owed.div_ceil(pace.cell)).unwrap_or(u32::MAX);
            let cells = NonZeroU32::new(cells).unwrap_or(NonZeroU32::MIN).min(pace.most);
            match bucket.check_n(cells) {
                Ok(Ok(())) => {
                    account.credit = account.credit.saturating_add(u64::from(cells.get()).saturating_mul(pace.cell));
                    account.use_credit(&mut more);
                }
                Ok(Err(not_until)) => {
                    let earliest = not_until.earliest_possible();
                    tokio::select! {
                        () = tokio::time::sleep_until(earliest.0) => {}
                        // Fails only without a sender, which `self` is.
                        _ = paces.changed() => {}
                    }
                }
                // More cells than the bucket holds; `cells` is cut to fewer above.
                Err(_) => return,
            }
        }
    }
}

impl Account {
    /// Pays with what is left of a cell: the debt first, then `more`.
    fn use_credit(&mut self, more: &mut u64) {
        for owed in [&mut self.debt, more] {
            let used = self.credit.min(*owed);
            self.credit -= used;
            *owed -= used;
        }
    }
}

/// Tokio's clock for `governor`, so that tests can run on virtual time.
#[derive(Debug, Clone, Copy)]
struct TokioClock;

/// An instant of [`TokioClock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Tick(Instant);

impl Add<Nanos> for Tick {
    type Output = Self;

    fn add(self, nanos: Nanos) -> Self {
        Self(self.0 + Duration::from(nanos))
    }
}

impl Reference for Tick {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_duration_since(earlier.0).into()
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        Self(self.0.checked_sub(duration.into()).unwrap_or(self.0))
    }
}

impl Clock for TokioClock {
    type Instant = Tick;

    fn now(&self) -> Tick {
        Tick(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use proptest::prelude::*;

    use super::*;

    /// Lets four callers, two of each kind, take what they can for `time`, and gives what each got and when.
    async fn run(rate: u64, time: Duration) -> Vec<Vec<(Duration, u64)>> {
        let limiter = Limiter::new(Rate::Limited(rate));
        let start = Instant::now();
        let callers = (0..4).map(|number| {
            let limiter = limiter.clone();
            async move {
                let mut log = Vec::new();
                while start.elapsed() < time {
                    let bytes = if number % 2 == 0 {
                        let turn = limiter.turn().await;
                        let bytes = turn.bytes();
                        turn.moved(bytes);
                        bytes as u64
                    } else {
                        let bytes = limiter.chunk() as u64;
                        limiter.acquire(bytes).await;
                        bytes
                    };
                    log.push((start.elapsed(), bytes));
                }
                log
            }
        });
        futures::future::join_all(callers).await
    }

    #[tokio::test(start_paused = true)]
    async fn every_window_of_a_second_holds() {
        for rate in [1, 3, 999, 12_345, 1_000_000, 10_000_000, 50 << 20, 1 << 30, 6 << 30] {
            let seconds = if rate < 10 { 40 } else { 3 };
            let logs = run(rate, Duration::from_secs(seconds)).await;
            let mut log: Vec<_> = logs.into_iter().flatten().collect();
            log.sort();
            let total: u64 = log.iter().map(|(_, bytes)| bytes).sum();
            assert!(total as f64 >= 0.95 * (rate * seconds) as f64, "{rate} B/s: only {total} in {seconds} s");
            // One whole caller's chunk is granted at an instant, so it may lie wholly in a window.
            let limit = (rate as f64 * 1.05).max(rate as f64 + 1.0);
            let (mut first, mut sum) = (0, 0);
            for (at, bytes) in &log {
                sum += bytes;
                while *at - log[first].0 >= Duration::from_secs(1) {
                    sum -= log[first].1;
                    first += 1;
                }
                assert!(sum as f64 <= limit, "{rate} B/s: {sum} in the second before {at:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_get_equal_shares() {
        let logs = run(10_000_000, Duration::from_secs(2)).await;
        let sums: Vec<u64> = logs.iter().map(|log| log.iter().map(|(_, bytes)| bytes).sum()).collect();
        let (least, most) = (sums.iter().min().unwrap(), sums.iter().max().unwrap());
        // The first caller finds a full bucket and nobody else, and one may be a turn ahead.
        assert!(*most as f64 <= 1.1 * *least as f64, "{sums:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_rate_reaches_those_who_wait() {
        for rate in [Rate::Limited(1_000_000), Rate::Unlimited] {
            let limiter = Limiter::new(Rate::Limited(1));
            let waiting = tokio::spawn({
                let limiter = limiter.clone();
                async move { limiter.acquire(100_000).await }
            });
            tokio::time::sleep(Duration::from_millis(2500)).await;
            assert!(!waiting.is_finished());
            limiter.set_rate(rate);
            let start = Instant::now();
            waiting.await.unwrap();
            assert!(start.elapsed() < Duration::from_millis(150), "{rate}: {:?}", start.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changing_the_rate_gives_nothing_away() {
        let limiter = Limiter::new(Rate::Limited(1_000_000));
        let start = Instant::now();
        let mut taken = 0;
        while start.elapsed() < Duration::from_secs(2) {
            limiter.acquire(10_000).await;
            taken += 10_000;
            limiter.set_rate(Rate::Limited(1_000_000 + taken % 2));
            limiter.set_rate(Rate::Limited(1_000_001 - taken % 2));
        }
        assert!(taken <= 2_100_000, "{taken}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_is_not_waited_for() {
        let limiter = Limiter::new(Rate::Limited(10));
        let hopeless = tokio::spawn({
            let limiter = limiter.clone();
            async move { limiter.acquire(1_000_000).await }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        hopeless.abort();
        let start = Instant::now();
        limiter.acquire(10).await;
        assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn turns_cost_what_was_moved() {
        let limiter = Limiter::new(Rate::Limited(1_000_000));
        let start = Instant::now();
        for _ in 0..1000 {
            // Nothing could be moved, or no more than a byte.
            drop(limiter.turn().await);
            limiter.turn().await.moved(1);
        }
        assert!(start.elapsed() < Duration::from_millis(5), "{:?}", start.elapsed());
        for _ in 0..50 {
            let turn = limiter.turn().await;
            assert_eq!(turn.bytes(), 10_000);
            turn.moved(10_000);
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!((0.45..0.52).contains(&seconds), "{seconds}");
        assert_eq!(limiter.passed(), 501_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_wakes_late_takes_nothing() {
        let limiter = Limiter::new(Rate::Limited(10_000_000));
        let start = Instant::now();
        let mut taken = 0;
        while start.elapsed() < Duration::from_secs(2) {
            // As large as a frame of a body, and more than the bucket holds.
            limiter.acquire(262_144).await;
            taken += 262_144;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        assert!(f64::from(taken) > 0.99 * 20e6, "{taken}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lower_rate_holds_at_once() {
        let limiter = Limiter::new(Rate::Limited(100_000_000));
        limiter.turn().await.moved(1_000_000);
        limiter.set_rate(Rate::Limited(10_000));
        let start = Instant::now();
        drop(limiter.turn().await);
        assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn large_amounts_take_their_time() {
        let limiter = Limiter::new(Rate::Limited(1_000_000));
        let start = Instant::now();
        limiter.acquire(4_000_000).await;
        let seconds = start.elapsed().as_secs_f64();
        assert!((3.9..4.1).contains(&seconds), "{seconds}");
        assert_eq!(limiter.passed(), 4_000_000);
        assert_eq!(limiter.waited(), start.elapsed(), "all of it was waiting");
    }

    proptest! {
        #[test]
        fn any_rate_is_represented(exponent in 0u32..43, mantissa in 1u64..1024) {
            let rate = mantissa << exponent;
            let pace = Pace::new(Rate::Limited(rate));
            let bucket = pace.bucket.unwrap();
            // An empty bucket says when the next cell comes, which is the period.
            bucket.check_n(pace.burst).unwrap().unwrap();
            // Where this thread stood still in between, there are cells again.
            let quota = iter::from_fn(|| Some(bucket.check())).find_map(Result::err).unwrap().quota();
            let period = quota.replenish_interval();
            let real = pace.cell as f64 / period.as_secs_f64();
            prop_assert!((real / rate as f64 - 1.0).abs() < 0.005, "{rate}: {real}");
            prop_assert!(pace.burst.get() == 1 || period * pace.burst.get() <= BURST);
            prop_assert!(pace.cell == 1 || period * 2 >= CELL_PERIOD);
        }
    }
}
