//! How long an upload waits for a peer that does not take what is sent to it.

use std::{
    io::{self, ErrorKind},
    pin::pin,
    time::Duration,
};

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Permit, STALL_TIMEOUT};

/// How long the peer of one upload may keep it waiting, all in all, before others get its slot. A piece of the usual size
/// takes less than this altogether; who is slower does not keep the slot from those who are not.
const PATIENCE: Duration = Duration::from_secs(1);

/// Waits for the peer of one transfer.
pub(super) struct Patience {
    permit: Option<Box<dyn Permit>>,
    left: Duration,
    /// Since when nothing has moved.
    since: Option<Instant>,
    /// Says when an upload that has lost its slot has to end.
    aside: Option<CancellationToken>,
}

impl Patience {
    /// For an upload that holds a permit, or for something that nobody else waits for.
    pub(super) fn with(permit: Option<Box<dyn Permit>>) -> Self {
        Self { permit, left: PATIENCE, since: None, aside: None }
    }

    /// Waits for a step that depends on the peer alone. Fails when nothing has moved for [`STALL_TIMEOUT`], or others need the place.
    ///
    /// A step may be over without anything having moved, also because of the deadlines here: it is tried again then.
    pub(super) async fn progress<T>(&mut self, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let begin = Instant::now();
        let stalled = *self.since.get_or_insert(begin) + STALL_TIMEOUT;
        let mut step = pin!(step);
        let holds_slot = self.permit.is_some() && self.aside.is_none();
        let first = if holds_slot { stalled.min(begin + self.left) } else { stalled };
        let mut result = match &self.aside {
            None => timeout_at(first, step.as_mut()).await.ok(),
            Some(aside) => unless(aside, timeout_at(stalled, step.as_mut())).await?.ok(),
        };
        self.left = self.left.saturating_sub(begin.elapsed());
        if let (Some(permit), true) = (&mut self.permit, holds_slot && self.left.is_zero()) {
            let aside = self.aside.insert(permit.step_aside());
            if result.is_none() {
                result = unless(aside, timeout_at(stalled, step)).await?.ok();
            }
        }
        match result {
            Some(result) if Instant::now() < stalled => result,
            _ => {
                let text = format!("no progress for {} s", STALL_TIMEOUT.as_secs());
                Err(io::Error::new(ErrorKind::TimedOut, text))
            }
        }
    }

    /// Something has moved.
    pub(super) fn moved(&mut self) {
        self.since = None;
    }
}

async fn unless<T>(aside: &CancellationToken, step: impl Future<Output = T>) -> io::Result<T> {
    tokio::select! {
        biased;
        result = step => Ok(result),
        () = aside.cancelled() => Err(io::Error::new(ErrorKind::TimedOut, "it took too little, and gave way to others")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cancelled when it is left.
    #[derive(Clone, Default)]
    struct Slot(CancellationToken);

    impl Permit for Slot {
        fn step_aside(&mut self) -> CancellationToken {
            self.0.cancel();
            CancellationToken::new()
        }
    }

    /// Over whenever it is woken, as the steps of TLS are.
    async fn woken() -> io::Result<()> {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn steps_that_move_nothing_use_it_up() {
        let slot = Slot::default();
        let mut patience = Patience::with(Some(Box::new(slot.clone())));
        let begin = Instant::now();
        let mut left = None;
        while patience.progress(woken()).await.is_ok() {
            if slot.0.is_cancelled() {
                left.get_or_insert_with(|| begin.elapsed());
            }
        }
        let left = left.expect("the slot was not left");
        assert!((PATIENCE..PATIENCE * 2).contains(&left), "{left:?}");
        let elapsed = begin.elapsed();
        assert!((STALL_TIMEOUT..STALL_TIMEOUT + Duration::from_secs(1)).contains(&elapsed), "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_little_now_and_then_goes_on_without_the_slot() {
        let slot = Slot::default();
        let mut patience = Patience::with(Some(Box::new(slot.clone())));
        for _ in 0..1000 {
            patience.progress(woken()).await.unwrap();
            patience.moved();
        }
        assert!(slot.0.is_cancelled());
    }
}
