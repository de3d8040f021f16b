//! The state that trackers share in Redis, and what a tracker does while Redis is away.
//!
//! Redis being away must not be felt by a pull. From the first call that fails on, everything goes to a store in this process's
//! memory, which begins empty: nodes are asked for their full state with their next announce, as after a restart of the
//! tracker. The regular sweep asks Redis whether it is back. Then the nodes that announced themselves here meanwhile are marked
//! in Redis, so that whichever tracker hears of one next asks it for its full state: what Redis kept of it is old.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use eagle_core::{Digest, NodeId, PeerInfo, Timestamp};
use redis::RedisError;
use tracing::{debug, info, warn};

use super::{
    Applied, MemoryStore, PeerStore, StoreError, StoreHealth, StoreLimits, StoreStats, SwarmView,
    location::{RedisLocation, RedisUrl},
    redis::{AnnounceError, RedisPeers, VIEW_AGE},
};
use crate::{
    api::{BlobAnnounce, PeerBlob, PeerSummary, SwarmMember, SwarmSummary},
    config::{ConfigError, TrackerConfig},
};

/// Calls of a sweep in the time that a silent node lives, times four: at 90 s one in 0.7 s, which is how soon it is seen
/// that Redis is back, and 140 expired nodes a second go.
const SWEEP_PARTS: usize = 32;
/// Between two looks at Redis' clock, which may have been set: until then nodes may seem older or younger than they are.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);
/// Longest wait for any call as a whole, with several exchanges.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Nodes read from memory at a time when Redis is back.
const NODES_PAGE: usize = 1_000;

/// Nodes and swarms in Redis, or in memory while that is away.
#[derive(Debug)]
pub struct SharedStore {
    redis: RedisPeers,
    limits: StoreLimits,
    /// While Redis is away.
    memory: Mutex<Arc<MemoryStore>>,
    away: AtomicBool,
    failures: AtomicU64,
    /// When Redis' clock was last looked at.
    clock_read: Mutex<Instant>,
}

impl SharedStore {
    /// A store at the Redis of a configuration. Nothing is asked of Redis yet: it may come later.
    ///
    /// # Errors
    /// When a file that is needed to reach Redis cannot be used.
    pub fn new(url: &RedisUrl, config: &TrackerConfig) -> Result<Self, ConfigError> {
        Self::with_view_age(url, config, VIEW_AGE)
    }

    /// The same, with another age that what is seen of a swarm may have.
    ///
    /// # Errors
    /// As above.
    pub fn with_view_age(url: &RedisUrl, config: &TrackerConfig, view_age: Duration) -> Result<Self, ConfigError> {
        let limits = StoreLimits::from(config);
        let location = RedisLocation::of(url, config)?;
        let redis = RedisPeers::new(&location, view_age, limits.clone())
            .map_err(|error| ConfigError { key: "store", problem: error.to_string() })?;
        Ok(Self {
            redis,
            memory: Mutex::new(Arc::new(MemoryStore::new(limits.clone()))),
            limits,
            // The first sweep finds Redis and its clock.
            away: AtomicBool::new(true),
            failures: AtomicU64::new(0),
            clock_read: Mutex::new(Instant::now()),
        })
    }

    fn memory(&self) -> Arc<MemoryStore> {
        Arc::clone(&self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What Redis says, or nothing when it is away.
    async fn ask<T>(&self, call: impl Future<Output = Result<T, RedisError>>) -> Option<T> {
        if self.away.load(Ordering::Acquire) {
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

    /// Whether it is time to look at Redis' clock, for the one who asks.
    fn clock_is_old(&self) -> bool {
        let mut read = self.clock_read.lock().unwrap_or_else(PoisonError::into_inner);
        let old = read.elapsed() >= CLOCK_INTERVAL;
        if old {
            *read = Instant::now();
        }
        old
    }

    fn failed(&self, error: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if self.away.swap(true, Ordering::AcqRel) {
            debug!(error, "Redis is still away");
        } else {
            warn!(
                error,
                "Redis (tracker.store) does not answer; this tracker goes on with what its nodes tell it, in memory"
            );
        }
    }

    /// Tries whether Redis is back, and if so goes on with it.
    async fn try_again(&self, now: Timestamp) {
        match tokio::time::timeout(CALL_TIMEOUT, self.redis.synchronise(now)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return self.failed(&error.to_string()),
            Err(_) => return self.failed("no answer in time"),
        }
        let fresh = Arc::new(MemoryStore::new(self.limits.clone()));
        let old = std::mem::replace(&mut *self.memory.lock().unwrap_or_else(PoisonError::into_inner), fresh);
        // From here on announces go to Redis, so that none is between.
        self.away.store(false, Ordering::Release);
        let mut after: Option<String> = None;
        let mut nodes = 0;
        loop {
            let page = old.nodes(after.as_deref(), NODES_PAGE, now).await;
            let ids: Vec<String> = page.into_iter().map(|node| node.peer.id).collect();
            let Some(last) = ids.last() else { break };
            after = Some(last.clone());
            nodes += ids.len();
            if self.ask(self.redis.resend(&ids)).await.is_none() {
                return;
            }
        }
        info!(nodes, "Redis (tracker.store) answers; trackers share their state");
    }
}

#[async_trait]
impl PeerStore for SharedStore {
    async fn announce(
        &self,
        node: &PeerInfo,
        full: bool,
        blobs: &[BlobAnnounce],
        now: Timestamp,
    ) -> Result<Applied, StoreError> {
        let call = async {
            match self.redis.announce(node, full, blobs, now).await {
                Ok(applied) => Ok(Ok(applied)),
                Err(AnnounceError::Refused(refused)) => Ok(Err(refused)),
                Err(AnnounceError::Failed(error)) => Err(error),
            }
        };
        match self.ask(call).await {
            Some(outcome) => outcome,
            None => self.memory().announce(node, full, blobs, now).await,
        }
    }

    async fn leave(&self, node: &NodeId) {
        if self.ask(self.redis.leave(node)).await.is_none() {
            self.memory().leave(node).await;
        }
    }

    async fn view(&self, digest: Digest, asker: &NodeId, seed: u64, now: Timestamp) -> Option<SwarmView> {
        match self.ask(self.redis.view(digest, asker, seed, now)).await {
            Some(view) => view,
            None => self.memory().view(digest, asker, seed, now).await,
        }
    }

    async fn swarms(&self, after: Option<Digest>, limit: usize, now: Timestamp) -> Vec<SwarmSummary> {
        match self.ask(self.redis.swarms(after, limit, now)).await {
            Some(swarms) => swarms,
            None => self.memory().swarms(after, limit, now).await,
        }
    }

    async fn swarm(
        &self,
        digest: Digest,
        after: Option<&str>,
        limit: usize,
        now: Timestamp,
    ) -> Option<(SwarmSummary, Vec<SwarmMember>)> {
        match self.ask(self.redis.swarm(digest, after, limit, now)).await {
            Some(swarm) => swarm,
            None => self.memory().swarm(digest, after, limit, now).await,
        }
    }

    async fn active(&self, limit: usize, now: Timestamp) -> Vec<SwarmSummary> {
        match self.ask(self.redis.active(limit, now)).await {
            Some(swarms) => swarms,
            None => self.memory().active(limit, now).await,
        }
    }

    async fn node(
        &self,
        node: &NodeId,
        after: Option<Digest>,
        limit: usize,
        now: Timestamp,
    ) -> Option<(PeerSummary, Vec<PeerBlob>)> {
        match self.ask(self.redis.node(node, after, limit, now)).await {
            Some(found) => found,
            None => self.memory().node(node, after, limit, now).await,
        }
    }

    async fn nodes(&self, after: Option<&str>, limit: usize, now: Timestamp) -> Vec<PeerSummary> {
        match self.ask(self.redis.nodes(after, limit, now)).await {
            Some(nodes) => nodes,
            None => self.memory().nodes(after, limit, now).await,
        }
    }

    async fn sweep(&self, now: Timestamp) -> bool {
        if self.away.load(Ordering::Acquire) {
            let more = self.memory().sweep(now).await;
            self.try_again(now).await;
            return more && self.away.load(Ordering::Acquire);
        }
        if self.clock_is_old() {
            let _ = self.ask(self.redis.synchronise(now)).await;
        }
        let _ = self.ask(self.redis.sweep(now)).await;
        false
    }

    fn sweep_parts(&self) -> usize {
        SWEEP_PARTS
    }

    fn stats(&self) -> StoreStats {
        if self.away.load(Ordering::Acquire) { self.memory().stats() } else { self.redis.stats() }
    }

    fn health(&self) -> StoreHealth {
        StoreHealth {
            kind: "redis",
            away: self.away.load(Ordering::Acquire),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}
