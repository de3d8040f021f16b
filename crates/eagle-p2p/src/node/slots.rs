//! How many pieces go out at once: few, and more as long as the link is idle.
//!
//! With few at once a piece arrives sooner and can be passed on sooner. But a receiver that is slow,
//! or that others send to as well, holds a slot and leaves the link idle: then another piece goes out
//! beside it. In the simulator, 16 nodes: efficiency 0.75 with 2 fixed slots, 0.94 with 6, and 0.96 with 2
//! and more when idle, where the first piece comes in half the time (`eagle-sim`, example `sweep`).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};

use crate::limits::Limiter;

/// Pieces that go out at once while the link is busy.
const BUSY: usize = 2;
/// Pieces that go out at once without a limit: nothing says then whether the link is busy, and with
/// fewer it pauses between pieces.
const UNLIMITED: usize = 6;
/// Pieces that go out at once at most: each has a blocking thread or buffers.
const MOST: usize = 32;
/// How often the link is looked at, and one slot is added at most: short against a piece's time.
const LOOK: Duration = Duration::from_millis(5);
/// The link is idle when it moved less than this share of what it could.
const IDLE: f64 = 0.75;

/// Slots for uploads.
#[derive(Debug)]
pub(super) struct Slots {
    limiter: Limiter,
    /// tokio's semaphore serves in the order of arrival.
    busy: Arc<Semaphore>,
    extra: Arc<Semaphore>,
    /// When the link was last looked at, and what it had moved by then, bytes.
    looked: Mutex<(Instant, u64)>,
}

impl Slots {
    /// Slots of the link with this limiter.
    pub(super) fn new(limiter: Limiter) -> Self {
        let looked = Mutex::new((Instant::now(), limiter.passed()));
        Self { limiter, busy: Arc::new(Semaphore::new(BUSY)), extra: Arc::new(Semaphore::new(MOST - BUSY)), looked }
    }

    /// Waits for a slot; `None` when there are none any more.
    pub(super) async fn take(&self) -> Option<OwnedSemaphorePermit> {
        if let Some(extra) = self.without_limit() {
            return Some(extra);
        }
        let next = Arc::clone(&self.busy).acquire_owned();
        tokio::pin!(next);
        loop {
            tokio::select! {
                biased;
                slot = &mut next => return slot.ok(),
                () = sleep(LOOK) => {
                    if let Some(extra) = self.without_limit().or_else(|| self.when_idle()) {
                        return Some(extra);
                    }
                }
            }
        }
    }

    fn without_limit(&self) -> Option<OwnedSemaphorePermit> {
        let few = self.extra.available_permits() > MOST - UNLIMITED;
        if self.limiter.rate().bytes_per_second().is_some() || !few {
            return None;
        }
        Arc::clone(&self.extra).try_acquire_owned().ok()
    }

    fn when_idle(&self) -> Option<OwnedSemaphorePermit> {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, moved) = (Instant::now(), self.limiter.passed());
        let elapsed = now - looked.0;
        if elapsed < LOOK {
            return None;
        }
        let could = self.limiter.rate().bytes_per_second()? as f64 * elapsed.as_secs_f64();
        let idle = ((moved - looked.1) as f64) < could * IDLE;
        *looked = (now, moved);
        // Nobody waited for a long time, so that span says nothing of the link now.
        let recent = elapsed < LOOK * 4;
        if idle && recent { Arc::clone(&self.extra).try_acquire_owned().ok() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use eagle_core::units::Rate;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_millis(500);

    #[tokio::test(start_paused = true)]
    async fn an_idle_link_has_more_slots() {
        let slots = Slots::new(Limiter::new(Rate::Limited(10_000_000)));
        let mut taken = Vec::new();
        for _ in 0..5 {
            taken.push(timeout(LONG, slots.take()).await.expect("the link is idle"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_link_has_few_until_one_is_free() {
        let limiter = Limiter::new(Rate::Limited(10_000_000));
        let slots = Slots::new(limiter.clone());
        let busy = tokio::spawn(async move {
            loop {
                limiter.acquire(50_000).await;
            }
        });
        let first = slots.take().await;
        let _second = slots.take().await;
        assert!(timeout(LONG, slots.take()).await.is_err(), "a third went out on a busy link");
        drop(first);
        assert!(timeout(LONG, slots.take()).await.is_ok());
        busy.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_there_are_some_and_then_no_more() {
        let slots = Slots::new(Limiter::new(Rate::Unlimited));
        let mut taken = Vec::new();
        while let Ok(slot) = timeout(LONG, slots.take()).await {
            taken.push(slot);
        }
        assert_eq!(taken.len(), UNLIMITED);
    }
}
