//! What a cache does in the background: it makes room before it is needed, leaves space on the file system to others,
//! and reads its blobs again.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Cache, CreateError, Inner};
use crate::ssi::SpaceOnDisk;

/// How often it is looked how much space is left, since others fill file systems too: a disk that takes 1 GB/s
/// loses 5 GB in between.
const LOOK: Duration = Duration::from_secs(5);
/// Victims that go at a time in the background: a newcomer waits for no more than these.
const BATCH: usize = 8;
/// How often room is made anew on a file system before a newcomer is refused: what others write meanwhile takes it away.
const FREE_TRIES: u32 = 3;

impl Cache {
    /// Looks after the cache until `stop`: evicts above the high mark, keeps space free on the file system, and reads blobs again
    /// at the rate of the scrub. A cache without it keeps its limit all the same.
    pub async fn upkeep(self: Arc<Self>, stop: CancellationToken) {
        let inner = Arc::clone(&self.inner);
        let work = async { tokio::join!(inner.reclaim(), inner.scrub()) };
        stop.run_until_cancelled(work).await;
    }
}

impl Inner {
    async fn reclaim(self: &Arc<Self>) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = self.grown.notified() => {}
            }
            if self.policy().used() > self.settings.high.of(self.settings.limit) {
                self.shrink_to_low().await;
            }
            self.keep_free().await;
        }
    }

    /// Evicts down to the low mark, in batches, between which newcomers have their turn.
    async fn shrink_to_low(self: &Arc<Self>) {
        let low = self.settings.low.of(self.settings.limit);
        let (mut count, mut bytes) = (0, 0);
        loop {
            let inner = Arc::clone(self);
            // In a task of the cache, so that the end of the process finds nothing half done.
            let batch = self.finish(async move {
                let _admission = inner.admission.lock().await;
                let victims = {
                    let mut policy = inner.policy();
                    let excess = policy.used().saturating_sub(low);
                    policy.shrink(excess, BATCH)
                };
                let number = victims.len();
                let (freed, failure) = inner.evict(victims).await;
                (number, freed, failure.is_some())
            });
            let Ok((number, freed, failed)) = batch.await else { return };
            count += number;
            bytes += freed;
            // What could not be removed stays; it is tried again when the cache grows, or at the next look.
            if number == 0 || failed {
                break;
            }
        }
        if count > 0 {
            debug!(count, bytes, "evicted down to the low mark");
        }
    }

    /// Evicts while less than the minimum is free, and no more than that.
    async fn keep_free(self: &Arc<Self>) {
        let mut evicted = 0;
        loop {
            let Some(space) = self.space().await else { break };
            let missing = self.settings.min_free.bytes(space.total).saturating_sub(space.available);
            if missing == 0 {
                break;
            }
            let inner = Arc::clone(self);
            let batch = self.finish(async move {
                let _admission = inner.admission.lock().await;
                let victims = inner.policy().shrink(missing, BATCH);
                inner.evict(victims).await
            });
            match batch.await {
                Ok((freed, None)) if freed > 0 => evicted += freed,
                _ => break,
            }
        }
        if evicted > 0 {
            warn!(
                bytes = evicted,
                "less than min_free was free on the file system; least recently used blobs were evicted"
            );
        }
    }

    /// Space on the file system of the blobs; `None` where there is none, or it cannot be told.
    async fn space(&self) -> Option<SpaceOnDisk> {
        match self.storage.space().await {
            Ok(space) => space,
            Err(error) => {
                debug!(%error, "the space that is left cannot be told");
                None
            }
        }
    }

    /// Makes sure that `more` bytes, besides those promised, can be written and still leave the minimum free, evicting as
    /// needed. `size` is what they are needed for, for the message. The caller holds the admission lock.
    pub(super) async fn make_free(&self, more: u64, size: u64) -> Result<(), CreateError> {
        let mut tries = 0;
        loop {
            let Some(SpaceOnDisk { total, available }) = self.space().await else { return Ok(()) };
            let min_free = self.settings.min_free.bytes(total);
            if min_free == 0 {
                // The file system itself says when it is full.
                return Ok(());
            }
            let promised = self.promised.load(Ordering::Relaxed);
            let missing = more.saturating_add(promised).saturating_add(min_free).saturating_sub(available);
            if missing == 0 {
                return Ok(());
            }
            let no_space = CreateError::NoSpace { size, available, min_free };
            if tries == FREE_TRIES {
                return Err(no_space);
            }
            tries += 1;
            let Ok(victims) = self.policy().free(missing) else { return Err(no_space) };
            if let (0, Some(error)) = self.evict(victims).await {
                return Err(error.into());
            }
        }
    }
}
