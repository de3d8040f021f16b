//! The seeders and leases that trackers share in Redis, and what a tracker does while Redis is away.
//!
//! As with [`SharedStore`](super::SharedStore), everything goes to this process's memory from the first call that fails on. That memory always knows
//! which seeders it has heard of itself, so the list of seeders does not become empty; of leases it knows none at first, and their holders claim them
//! again when their heartbeats say so. When Redis is back, it is told of the seeders at once.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use eagle_core::{
    Digest, NodeId, Timestamp,
    tracker::{
        leases::Claimed,
        seeders::{KnownSeeder, SeederInfo, SeedersFull, version},
    },
};
use redis::RedisError;
use tokio::sync::Mutex;
use tracing::{debug, info, warn};

use super::{
    MemorySeeders, SeederStats, SeederStore,
    location::{RedisLocation, RedisUrl},
    redis::{RedisSeeders, VIEW_AGE},
};
use crate::{
    api::seeders::LeaseRenewal,
    config::{ConfigError, TrackerConfig},
};

/// Longest wait for any call.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two looks at Redis' clock, which may have been set.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);

/// Seeders and leases in Redis, or in memory while that is away.
#[derive(Debug)]
pub struct SharedSeeders {
    redis: RedisSeeders,
    memory: MemorySeeders,
    away: AtomicBool,
    /// How old the list of seeders may be: every announce asks for its version.
    view_age: Duration,
    /// Held while somebody looks, so that the others wait for that look and do not take one each.
    seen: Mutex<Option<(Timestamp, Option<u64>)>>,
}

impl SharedSeeders {
    /// A store at the Redis of a configuration. Nothing is asked of Redis yet: it may come later.
    ///
    /// # Errors
    /// When a file that is needed to reach Redis cannot be used.
    pub fn new(url: &RedisUrl, config: &TrackerConfig) -> Result<Self, ConfigError> {
        Self::with_view_age(url, config, VIEW_AGE)
    }

    /// The same, with another age that the list of seeders may have.
    ///
    /// # Errors
    /// As above.
    pub fn with_view_age(url: &RedisUrl, config: &TrackerConfig, view_age: Duration) -> Result<Self, ConfigError> {
        let location = RedisLocation::of(url, config)?;
        let redis =
            RedisSeeders::new(&location).map_err(|error| ConfigError { key: "store", problem: error.to_string() })?;
        // The first sweep finds Redis and its clock.
        let away = AtomicBool::new(true);
        Ok(Self { redis, memory: MemorySeeders::default(), away, view_age, seen: Mutex::default() })
    }

    /// Whether Redis is away, and memory stands in.
    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Acquire)
    }

    /// What Redis says, or nothing when it is away.
    async fn ask<T>(&self, call: impl Future<Output = Result<T, RedisError>>) -> Option<T> {
        if self.is_away() {
            return None;
        }
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                self.failed(&error.to_string());
                None
            }
            Err(_) => {
                self.failed("no answer in time");
                None
            }
        }
    }

    fn failed(&self, error: &str) {
        if self.away.swap(true, Ordering::AcqRel) {
            debug!(error, "Redis is still away");
        } else {
            warn!(error, "Redis (tracker.store) does not answer; this tracker gives out leases from its own memory");
        }
    }

    /// Tries whether Redis is back, and if so goes on with it.
    async fn try_again(&self, now: Timestamp) {
        let tell = async {
            self.redis.synchronise(now, Duration::ZERO).await?;
            for (known, _) in self.memory.seeders(now).await {
                // With no leases: those of memory are not those of Redis, which their holders are told with their next heartbeats.
                let _ = self.redis.heartbeat(&known.info, &[], now).await?;
            }
            Ok::<_, RedisError>(())
        };
        match tokio::time::timeout(CALL_TIMEOUT, tell).await {
            Ok(Ok(())) => {
                self.away.store(false, Ordering::Release);
                *self.seen.lock().await = None;
                info!("Redis (tracker.store) answers; trackers share seeders and leases");
            }
            Ok(Err(error)) => self.failed(&error.to_string()),
            Err(_) => self.failed("no answer in time"),
        }
    }
}

#[async_trait]
impl SeederStore for SharedSeeders {
    async fn heartbeat(
        &self,
        seeder: SeederInfo,
        renewals: &[LeaseRenewal],
        now: Timestamp,
    ) -> Result<Vec<Digest>, SeedersFull> {
        let shared = self.ask(self.redis.heartbeat(&seeder, renewals, now)).await;
        let Some(answer) = shared else { return self.memory.heartbeat(seeder, renewals, now).await };
        *self.seen.lock().await = None;
        self.memory.heartbeat(seeder, &[], now).await?;
        answer
    }

    async fn leave(&self, seeder: &NodeId, now: Timestamp) {
        self.memory.leave(seeder, now).await;
        let _ = self.ask(self.redis.leave(seeder, now)).await;
        *self.seen.lock().await = None;
    }

    async fn seeder(&self, id: &NodeId, now: Timestamp) -> Option<SeederInfo> {
        match self.ask(self.redis.seeders(now)).await {
            Some(seeders) => seeders.into_iter().find(|(known, _)| known.info.id == *id).map(|(known, _)| known.info),
            None => self.memory.seeder(id, now).await,
        }
    }

    async fn seeders(&self, now: Timestamp) -> Vec<(KnownSeeder, usize)> {
        match self.ask(self.redis.seeders(now)).await {
            Some(seeders) => seeders,
            None => self.memory.seeders(now).await,
        }
    }

    async fn version(&self, now: Timestamp) -> Option<u64> {
        if self.is_away() {
            return self.memory.version(now).await;
        }
        // Held across the look on purpose: see the field.
        let mut seen = self.seen.lock().await;
        if let Some((at, version)) = *seen
            && now - at < self.view_age
        {
            return version;
        }
        let Some(seeders) = self.ask(self.redis.seeders(now)).await else {
            return self.memory.version(now).await;
        };
        let current = (!seeders.is_empty()).then(|| version(seeders.iter().map(|(known, _)| &known.info)));
        *seen = Some((now, current));
        current
    }

    async fn claim(&self, digest: Digest, seeder: &NodeId, now: Timestamp) -> Claimed {
        match self.ask(self.redis.claim(digest, seeder, now)).await {
            Some(claimed) => claimed,
            None => self.memory.claim(digest, seeder, now).await,
        }
    }

    async fn release(&self, digest: Digest, token: u64, now: Timestamp) {
        if self.ask(self.redis.release(digest, token, now)).await.is_none() {
            self.memory.release(digest, token, now).await;
        }
    }

    async fn sweep(&self, now: Timestamp) {
        self.memory.sweep(now).await;
        if self.is_away() {
            return self.try_again(now).await;
        }
        // Looking frees what has ended.
        let look = async {
            self.redis.synchronise(now, CLOCK_INTERVAL).await?;
            self.redis.seeders(now).await
        };
        let _ = self.ask(look).await;
    }

    fn stats(&self) -> SeederStats {
        if self.is_away() { self.memory.stats() } else { self.redis.stats() }
    }
}
