//! Where a tracker keeps which seeders are alive, and who fetches which blob.
//!
//! [`SeederStore`] is the interface; [`MemorySeeders`] keeps both in this process, by the rules of the core
//! ([`eagle_core::tracker::seeders`], [`eagle_core::tracker::leases`]); [`SharedSeeders`](super::SharedSeeders) shares them with other trackers. Losing it costs little: seeders are heard of again within a heartbeat,
//! and claim the leases again that they use.

use std::{
    fmt::Debug,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use eagle_core::{
    Digest, NodeId, Timestamp,
    tracker::{
        leases::{Claimed, LeaseLimits, Leases},
        seeders::{KnownSeeder, SeederInfo, Seeders, SeedersFull},
    },
};

use crate::api::seeders::{LEASE_PATIENCE, LIFETIME, LeaseRenewal, MAX_LEASES, MAX_LEASES_PER_SEEDER, MAX_SEEDERS};

/// Sizes of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SeederStats {
    /// Seeders, with those that are silent and not swept yet.
    pub seeders: usize,
    /// Leases.
    pub leases: usize,
}

/// A store of seeders and leases. Each call is applied as a whole, at once.
#[async_trait]
pub trait SeederStore: Debug + Send + Sync + 'static {
    /// Notes that a seeder is alive, and renews its leases; gives those that it does not hold.
    ///
    /// # Errors
    /// When too many seeders are alive.
    async fn heartbeat(
        &self,
        seeder: SeederInfo,
        renewals: &[LeaseRenewal],
        now: Timestamp,
    ) -> Result<Vec<Digest>, SeedersFull>;

    /// Forgets a seeder that ends, and its leases.
    async fn leave(&self, seeder: &NodeId, now: Timestamp);

    /// A seeder that is alive.
    async fn seeder(&self, id: &NodeId, now: Timestamp) -> Option<SeederInfo>;

    /// Those that are alive, each with the number of its leases.
    async fn seeders(&self, now: Timestamp) -> Vec<(KnownSeeder, usize)>;

    /// The version of the list of seeders ([`eagle_core::tracker::seeders::version`]); `None` while there are none.
    async fn version(&self, now: Timestamp) -> Option<u64>;

    /// Asks for the lease of a blob.
    async fn claim(&self, digest: Digest, seeder: &NodeId, now: Timestamp) -> Claimed;

    /// Gives a lease back.
    async fn release(&self, digest: Digest, token: u64, now: Timestamp);

    /// Frees what has ended.
    async fn sweep(&self, now: Timestamp);

    /// Sizes, for metrics.
    fn stats(&self) -> SeederStats;
}

/// Seeders and leases in memory.
#[derive(Debug)]
pub struct MemorySeeders(Mutex<State>);

#[derive(Debug)]
struct State {
    seeders: Seeders,
    leases: Leases,
}

impl Default for MemorySeeders {
    fn default() -> Self {
        // Higher than any that an earlier process gave, unless the clock was set back; and then a token that
        // is taken for another's costs a second fetch. 2^20 of them a second fit below 2^53.
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self::with_tokens_from(seconds << 20)
    }
}

impl MemorySeeders {
    /// None, and no leases, whose tokens will begin with this one.
    pub(crate) fn with_tokens_from(first: u64) -> Self {
        let limits = LeaseLimits {
            lifetime: LIFETIME,
            patience: LEASE_PATIENCE,
            leases: MAX_LEASES,
            leases_per_holder: MAX_LEASES_PER_SEEDER,
        };
        let (seeders, leases) = (Seeders::new(LIFETIME, MAX_SEEDERS), Leases::new(limits, first));
        Self(Mutex::new(State { seeders, leases }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after each call of the core, so a panic elsewhere leaves it usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl SeederStore for MemorySeeders {
    async fn heartbeat(
        &self,
        seeder: SeederInfo,
        renewals: &[LeaseRenewal],
        now: Timestamp,
    ) -> Result<Vec<Digest>, SeedersFull> {
        let mut state = self.lock();
        if let Some(before) = state.seeders.heard(seeder, now)? {
            // Its process is not there any more.
            state.leases.leave(&before);
        }
        let lost = renewals.iter().filter(|renewal| {
            let LeaseRenewal { digest, token, progress } = renewal;
            !state.leases.renew(digest, *token, *progress, now)
        });
        Ok(lost.map(|renewal| renewal.digest).collect())
    }

    async fn leave(&self, seeder: &NodeId, _: Timestamp) {
        let mut state = self.lock();
        state.seeders.leave(seeder);
        state.leases.leave(seeder);
    }

    async fn seeder(&self, id: &NodeId, now: Timestamp) -> Option<SeederInfo> {
        self.lock().seeders.get(id, now).cloned()
    }

    async fn seeders(&self, now: Timestamp) -> Vec<(KnownSeeder, usize)> {
        let mut state = self.lock();
        let live = state.seeders.live(now);
        live.into_iter()
            .map(|known| (state.leases.held_by(&known.info.id), known))
            .map(|(n, known)| (known, n))
            .collect()
    }

    async fn version(&self, now: Timestamp) -> Option<u64> {
        self.lock().seeders.version(now)
    }

    async fn claim(&self, digest: Digest, seeder: &NodeId, now: Timestamp) -> Claimed {
        self.lock().leases.claim(digest, seeder, now)
    }

    async fn release(&self, digest: Digest, token: u64, _: Timestamp) {
        self.lock().leases.release(&digest, token);
    }

    async fn sweep(&self, now: Timestamp) {
        let mut state = self.lock();
        state.seeders.expire(now);
        state.leases.expire(now);
    }

    fn stats(&self) -> SeederStats {
        let state = self.lock();
        SeederStats { seeders: state.seeders.len(), leases: state.leases.len() }
    }
}
