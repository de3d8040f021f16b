//! Seeders and leases in Redis, by the same rules as in memory.

use std::{
    sync::{
        PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use eagle_core::{
    Digest, NodeId, Timestamp,
    tracker::{
        leases::Claimed,
        seeders::{KnownSeeder, SeederInfo, SeedersFull},
    },
};
use redis::{RedisError, Script, ScriptInvocation, aio::ConnectionManager};

use super::{connection, malformed, micros};
use crate::{
    api::seeders::{LEASE_PATIENCE, LIFETIME, LeaseRenewal, MAX_LEASES, MAX_LEASES_PER_SEEDER, MAX_SEEDERS},
    store::{location::RedisLocation, seeders::SeederStats},
};

/// Seeders and leases in Redis. Every call fails when Redis does not answer.
pub(in crate::store) struct RedisSeeders {
    connection: ConnectionManager,
    prefix: String,
    heartbeat: Script,
    claim: Script,
    release: Script,
    list: Script,
    /// Redis' clock minus this process's, microseconds.
    offset: AtomicI64,
    seeders: AtomicUsize,
    leases: AtomicUsize,
    /// When Redis' clock was last looked at.
    clock_read: std::sync::Mutex<Option<Timestamp>>,
}

impl std::fmt::Debug for RedisSeeders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisSeeders").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// A script with what stands before it.
macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("seeders/common.lua"), include_str!($file)))
    };
}

impl RedisSeeders {
    /// Prepares the connection; nothing is asked of Redis yet.
    ///
    /// # Errors
    /// When the certificates of the location cannot be used.
    pub(in crate::store) fn new(location: &RedisLocation) -> Result<Self, RedisError> {
        Ok(Self {
            connection: connection::open(location)?,
            prefix: location.prefix(),
            heartbeat: script!("seeders/heartbeat.lua"),
            claim: script!("seeders/claim.lua"),
            release: script!("seeders/release.lua"),
            list: script!("seeders/list.lua"),
            offset: AtomicI64::new(0),
            seeders: AtomicUsize::new(0),
            leases: AtomicUsize::new(0),
            clock_read: std::sync::Mutex::default(),
        })
    }

    /// Finds out how Redis' clock stands, and thereby whether Redis answers, unless that was done since `every`.
    pub(in crate::store) async fn synchronise(&self, now: Timestamp, every: Duration) -> Result<(), RedisError> {
        let read = *self.clock_read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.is_some_and(|read| now - read < every) {
            return Ok(());
        }
        self.offset.store(connection::clock_offset(&self.connection, now).await?, Ordering::Relaxed);
        *self.clock_read.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        Ok(())
    }

    pub(in crate::store) async fn heartbeat(
        &self,
        seeder: &SeederInfo,
        renewals: &[LeaseRenewal],
        now: Timestamp,
    ) -> Result<Result<Vec<Digest>, SeedersFull>, RedisError> {
        let about = serde_json::to_string(seeder).map_err(|_| malformed("a seeder"))?;
        let mut call = self.call(&self.heartbeat, now);
        call.arg(MAX_SEEDERS).arg(seeder.id.as_str()).arg(&seeder.url).arg(about);
        for LeaseRenewal { digest, token, progress } in renewals {
            call.arg(digest.to_string()).arg(*token).arg(*progress);
        }
        let answer: Vec<String> = call.invoke_async(&mut self.connection.clone()).await?;
        match answer.split_first() {
            Some((first, lost)) if first == "ok" => Ok(Ok(lost.iter().filter_map(|lost| lost.parse().ok()).collect())),
            Some((first, _)) if first == "full" => Ok(Err(SeedersFull(MAX_SEEDERS))),
            _ => Err(malformed("a heartbeat")),
        }
    }

    pub(in crate::store) async fn leave(&self, seeder: &NodeId, now: Timestamp) -> Result<(), RedisError> {
        let mut call = self.call(&self.release, now);
        call.arg(seeder.as_str()).invoke_async::<()>(&mut self.connection.clone()).await
    }

    /// Those that are alive, each with the number of its leases. Frees what has ended.
    pub(in crate::store) async fn seeders(&self, now: Timestamp) -> Result<Vec<(KnownSeeder, usize)>, RedisError> {
        let call = self.call(&self.list, now);
        let answer: Vec<String> = call.invoke_async(&mut self.connection.clone()).await?;
        let Some((leases, seeders)) = answer.split_first() else { return Err(malformed("the seeders")) };
        self.leases.store(leases.parse().unwrap_or_default(), Ordering::Relaxed);
        let seeders = seeders.chunks_exact(4).filter_map(|seeder| {
            // What makes no sense is left out.
            let info: SeederInfo = serde_json::from_str(&seeder[0]).ok()?;
            let (first, last) = (self.own(seeder[1].parse().ok()?), self.own(seeder[2].parse().ok()?));
            Some((KnownSeeder { info, first, last }, seeder[3].parse().ok()?))
        });
        let mut seeders: Vec<(KnownSeeder, usize)> = seeders.collect();
        seeders.sort_by(|a, b| a.0.info.id.cmp(&b.0.info.id));
        self.seeders.store(seeders.len(), Ordering::Relaxed);
        Ok(seeders)
    }

    pub(in crate::store) async fn claim(
        &self,
        digest: Digest,
        seeder: &NodeId,
        now: Timestamp,
    ) -> Result<Claimed, RedisError> {
        let mut call = self.call(&self.claim, now);
        call.arg(MAX_LEASES).arg(MAX_LEASES_PER_SEEDER).arg(digest.to_string()).arg(seeder.as_str());
        let answer: Vec<String> = call.invoke_async(&mut self.connection.clone()).await?;
        let mut words = answer.iter().map(String::as_str);
        let claimed = match (words.next(), words.next()) {
            (Some("granted"), Some(token)) => token.parse().ok().map(|token| Claimed::Granted { token }),
            (Some("held"), Some(holder)) => holder.parse().ok().map(Claimed::Held),
            (Some("full"), _) => Some(Claimed::Full),
            _ => None,
        };
        claimed.ok_or_else(|| malformed("a lease"))
    }

    pub(in crate::store) async fn release(&self, digest: Digest, token: u64, now: Timestamp) -> Result<(), RedisError> {
        let mut call = self.call(&self.release, now);
        call.arg(digest.to_string()).arg(token).invoke_async::<()>(&mut self.connection.clone()).await
    }

    /// Sizes, as of the last look.
    pub(in crate::store) fn stats(&self) -> SeederStats {
        SeederStats { seeders: self.seeders.load(Ordering::Relaxed), leases: self.leases.load(Ordering::Relaxed) }
    }

    /// A call of a script, with the arguments that all have.
    fn call<'a>(&self, script: &'a Script, now: Timestamp) -> ScriptInvocation<'a> {
        let micros_of = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let shared = micros(now).saturating_add(self.offset.load(Ordering::Relaxed));
        let mut call = script.key(&self.prefix);
        call.arg(shared).arg(micros_of(LIFETIME)).arg(micros_of(LEASE_PATIENCE));
        call
    }

    /// A moment of the shared clock on that of this process.
    fn own(&self, shared: i64) -> Timestamp {
        let own = shared.saturating_sub(self.offset.load(Ordering::Relaxed));
        Timestamp(u64::try_from(own).unwrap_or_default().saturating_mul(1_000))
    }
}
