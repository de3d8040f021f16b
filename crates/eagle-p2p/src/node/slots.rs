//! How many pieces go out at once: few, and more as long as the link is idle.
//!
//! With few at once a piece arrives sooner and can be passed on sooner. But a receiver that is slow,
//! or that others send to as well, holds a slot and leaves the link idle: then another piece goes out
//! beside it. In the simulator, 16 nodes: efficiency 0.75 with 2 fixed slots, 0.94 with 6, and 0.96 with 2
//! and more when idle, where the first piece comes in half the time (`eagle-sim`, example `sweep`).
//!
//! A peer that takes nothing would hold its slot for as long as it likes. So an upload whose peer keeps it waiting **steps aside**: its
//! slot goes to another, and it goes on beside those in slots, where its bytes are not worth anything to anybody else. Only so many
//! may; of more the one that has been there longest ends.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use eagle_core::{swarm::WaitingUploads, wire::control::HostRate};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use tokio_util::sync::CancellationToken;

use crate::limits::Limiter;

/// Pieces that go out at once while the link is busy.
const BUSY: usize = 2;
/// Pieces that go out at once without a limit: nothing says then whether the link is busy, and with
/// fewer it pauses between pieces.
const UNLIMITED: usize = 6;
/// Pieces that go out at once at most: each has a blocking thread or buffers.
const MOST: usize = 32;
/// Uploads that may go on without a slot: as many as with one.
const MOST_ASIDE: usize = MOST;
/// How often the link is looked at, and one slot is added at most: short against a piece's time.
const LOOK: Duration = Duration::from_millis(5);
/// The link is idle when it moved less than this share of what it could.
const IDLE: f64 = 0.75;

/// Slots for uploads.
#[derive(Debug)]
pub(super) struct Slots {
    limiter: Limiter,
    queue: Arc<Queue>,
    /// When the link was last looked at, and what it had moved by then, bytes.
    looked: Mutex<(Instant, u64)>,
}

/// Who has a slot, and who waits for one.
#[derive(Debug, Default)]
struct Queue(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    /// Slots that are taken.
    slots: usize,
    /// Slots that there are whatever the link does.
    least: usize,
    waiting: WaitingUploads<oneshot::Sender<Slot>>,
    /// Uploads that have stepped aside, in this order, with what ends them.
    aside: BTreeMap<u64, CancellationToken>,
    /// Uploads that ever have.
    stepped: u64,
}

/// A slot; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    /// Absent in one that nobody took over.
    queue: Option<Arc<Queue>>,
    /// Which one of those that have stepped aside it was left by.
    aside: Option<u64>,
}

impl Slot {
    /// Leaves the slot to another. What is returned says when the upload has to end.
    pub(super) fn step_aside(&mut self) -> CancellationToken {
        let end = CancellationToken::new();
        if let (Some(queue), None) = (&self.queue, self.aside) {
            self.aside = Some(queue.step_aside(&end));
        }
        end
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        match (self.queue.take(), self.aside) {
            (Some(queue), Some(number)) => drop(queue.lock().aside.remove(&number)),
            (Some(queue), None) => queue.leave(),
            (None, _) => {}
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing in here panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One slot is free.
    fn leave(self: &Arc<Self>) {
        let least = {
            let mut taken = self.lock();
            taken.slots -= 1;
            taken.least
        };
        self.fill(least);
    }

    /// One slot is free, and the upload that held it goes on.
    fn step_aside(self: &Arc<Self>, end: &CancellationToken) -> u64 {
        let number = {
            let mut taken = self.lock();
            if taken.aside.len() >= MOST_ASIDE
                && let Some((_, oldest)) = taken.aside.pop_first()
            {
                oldest.cancel();
            }
            taken.stepped += 1;
            let number = taken.stepped;
            taken.aside.insert(number, end.clone());
            number
        };
        self.leave();
        number
    }

    /// Gives slots to those that wait, as long as fewer than `most` are taken.
    fn fill(self: &Arc<Self>, most: usize) {
        let mut taken = self.lock();
        while taken.slots < most {
            let Some(next) = taken.waiting.next(|waiting| !waiting.is_closed()) else { return };
            match next.send(Slot { queue: Some(Arc::clone(self)), aside: None }) {
                Ok(()) => taken.slots += 1,
                // It was given up in this moment. Its drop must not come back here under the lock.
                Err(mut slot) => drop(slot.queue.take()),
            }
        }
    }

    /// Forgets those that gave up.
    fn tidy(&self) {
        let mut taken = self.lock();
        while taken.waiting.cancel(oneshot::Sender::is_closed).is_some() {}
    }
}

impl Slots {
    /// Slots of the link with this limiter.
    pub(super) fn new(limiter: Limiter) -> Self {
        let looked = Mutex::new((Instant::now(), limiter.passed()));
        Self { limiter, queue: Arc::default(), looked }
    }

    /// Waits for a slot, for a receiver of this rate; `None` when there are no slots any more.
    pub(super) async fn take(&self, receiver: HostRate) -> Option<Slot> {
        // Made before the channel, so that it is dropped after it.
        let _tidy = Tidy(&self.queue);
        let (give, mut given) = oneshot::channel();
        self.queue.lock().waiting.push(receiver, give);
        self.fill();
        loop {
            tokio::select! {
                biased;
                slot = &mut given => return slot.ok(),
                () = sleep(LOOK) => self.fill(),
            }
        }
    }

    /// Slots that are free whatever the link does.
    pub(super) fn free(&self) -> usize {
        self.least().saturating_sub(self.queue.lock().slots)
    }

    fn least(&self) -> usize {
        if self.limiter.rate().bytes_per_second().is_some() { BUSY } else { UNLIMITED }
    }

    /// Gives out what slots there are now.
    fn fill(&self) {
        let least = self.least();
        self.queue.lock().least = least;
        self.queue.fill(least);
        if self.is_idle() {
            let taken = self.queue.lock().slots;
            self.queue.fill((taken + 1).min(MOST));
        }
    }

    fn is_idle(&self) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, moved) = (Instant::now(), self.limiter.passed());
        let elapsed = now - looked.0;
        if elapsed < LOOK {
            return false;
        }
        let Some(rate) = self.limiter.rate().bytes_per_second() else { return false };
        let could = rate as f64 * elapsed.as_secs_f64();
        let idle = ((moved - looked.1) as f64) < could * IDLE;
        *looked = (now, moved);
        // Nobody waited for a long time, so that span says nothing of the link now.
        let recent = elapsed < LOOK * 4;
        idle && recent
    }
}

/// Takes the one that gave up out of the queue.
struct Tidy<'a>(&'a Queue);

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        self.0.tidy();
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
            taken.push(timeout(LONG, slots.take(HostRate::UNKNOWN)).await.expect("the link is idle"));
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
        let first = slots.take(HostRate::UNKNOWN).await;
        let _second = slots.take(HostRate::UNKNOWN).await;
        assert!(timeout(LONG, slots.take(HostRate::UNKNOWN)).await.is_err(), "a third went out on a busy link");
        drop(first);
        assert!(timeout(LONG, slots.take(HostRate::UNKNOWN)).await.is_ok());
        busy.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_there_are_some_and_then_no_more() {
        let slots = Slots::new(Limiter::new(Rate::Unlimited));
        let mut taken = Vec::new();
        while let Ok(slot) = timeout(LONG, slots.take(HostRate::UNKNOWN)).await {
            taken.push(slot);
        }
        assert_eq!((taken.len(), slots.free()), (UNLIMITED, 0));
        taken.pop();
        assert_eq!(slots.free(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_free_slot_goes_to_the_fastest_that_waits_and_none_is_lost() {
        let limiter = Limiter::new(Rate::Limited(10_000_000));
        let slots = Arc::new(Slots::new(limiter.clone()));
        let busy = tokio::spawn(async move {
            loop {
                limiter.acquire(50_000).await;
            }
        });
        let held = [slots.take(HostRate(1)).await, slots.take(HostRate(1)).await];
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = Vec::new();
        for rate in [10, 20, 100, 5] {
            let (slots, order) = (Arc::clone(&slots), Arc::clone(&order));
            waiting.push(tokio::spawn(async move {
                let slot = slots.take(HostRate(rate)).await;
                order.lock().unwrap().push(rate);
                drop(slot);
            }));
            tokio::task::yield_now().await;
        }
        // One gives up; its place is nobody's.
        waiting[0].abort();
        tokio::task::yield_now().await;
        drop(held);
        for task in waiting {
            let _ = task.await;
        }
        assert_eq!(*order.lock().unwrap(), [100, 20, 5]);
        assert_eq!(slots.queue.lock().slots, 0);
        assert!(slots.queue.lock().waiting.is_empty());
        busy.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn who_steps_aside_leaves_the_slot_and_ends_when_too_many_do() {
        let slots = Slots::new(Limiter::new(Rate::Unlimited));
        let mut aside = Vec::new();
        for _ in 0..=MOST_ASIDE {
            let mut slot = timeout(LONG, slots.take(HostRate::UNKNOWN)).await.expect("none was free").unwrap();
            let end = slot.step_aside();
            aside.push((slot, end));
        }
        let ended: Vec<bool> = aside.iter().map(|(_, end)| end.is_cancelled()).collect();
        assert!(ended[0] && !ended[1..].contains(&true), "{ended:?}");
        let taken = slots.queue.lock();
        assert_eq!((taken.slots, taken.aside.len()), (0, MOST_ASIDE));
        drop(taken);
        drop(aside);
        assert!(slots.queue.lock().aside.is_empty());
    }
}
