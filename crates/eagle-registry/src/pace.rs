//! A limit on bytes a second over all connections.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use eagle_core::units::Rate;
use tokio::time::Instant;

/// Hands out the line in the order of asking: every send gets the slot behind the one before.
#[derive(Debug)]
pub(crate) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    rate: Rate,
    /// When the line is free again.
    free: Option<Instant>,
}

impl Pace {
    pub(crate) const fn new(rate: Rate) -> Self {
        Self(Mutex::new(State { rate, free: None }))
    }

    pub(crate) fn set(&self, rate: Rate) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { rate, free: None };
    }

    /// Bytes to send at a time: a twentieth of a second's worth, so that the flow is even.
    pub(crate) fn chunk(&self, most: usize) -> usize {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).rate {
            Rate::Unlimited => most,
            Rate::Limited(rate) => usize::try_from(rate / 20).unwrap_or(most).clamp(1, most),
        }
    }

    /// Takes the slot for `bytes` more; the moment at which they may have been moved, none without a limit.
    pub(crate) fn slot(&self, bytes: usize) -> Option<Instant> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Rate::Limited(rate) = state.rate else { return None };
        let now = Instant::now();
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(rate.max(1));
        let length = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let end = state.free.map_or(now, |free| free.max(now)) + length;
        state.free = Some(end);
        Some(end)
    }

    /// Returns when `bytes` more may be sent.
    pub(crate) async fn wait(&self, bytes: usize) {
        if let Some(end) = self.slot(bytes) {
            tokio::time::sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn holds_the_rate_over_many_senders() {
        let pace = Pace::new(Rate::Limited(10_000));
        let start = Instant::now();
        futures::future::join_all((0..20).map(|_| pace.wait(100))).await;
        // 2,000 bytes; never sooner, and on a busy machine somewhat later.
        assert!((200..2000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
        pace.set(Rate::Unlimited);
        pace.wait(usize::MAX).await;
        assert!(start.elapsed().as_secs() < 10);
    }
}
