//! A swarm as the memory store keeps it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use eagle_core::{Digest, Geometry, Timestamp, tracker::Ownership};

use super::members::Members;
use crate::{
    api::SwarmSummary,
    store::{memory::node::Node, progress},
};

/// A swarm. What its members own is with them ([`Node`]); here are sums of it.
#[derive(Debug)]
pub(super) struct Swarm {
    pub(super) digest: Digest,
    /// Hash of the digest under the store's key.
    pub(super) hash: u64,
    pub(super) geometry: Geometry,
    created: Timestamp,
    /// When a peer last joined or owned more.
    changed: AtomicU64,
    /// Members that own everything.
    complete: AtomicUsize,
    /// Pieces that the members own, all together.
    owned: AtomicU64,
    over: AtomicBool,
    /// Whether it is noted as one that members who are gone have to be taken out of.
    marked: AtomicBool,
    roll: Mutex<Roll>,
}

/// Who is in a swarm.
#[derive(Debug)]
pub(super) struct Roll {
    /// Whether a seeder has vouched for the geometry.
    pub(super) vouched: bool,
    /// When a peer last joined.
    pub(super) grown: Timestamp,
    pub(super) seeders: Members,
    pub(super) proxies: Members,
}

impl Roll {
    pub(super) fn len(&self) -> usize {
        self.seeders.len() + self.proxies.len()
    }

    pub(super) fn members(&mut self, authority: bool) -> &mut Members {
        if authority { &mut self.seeders } else { &mut self.proxies }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.seeders.iter().chain(self.proxies.iter())
    }
}

impl Swarm {
    pub(super) fn new(digest: Digest, hash: u64, geometry: Geometry, now: Timestamp) -> Self {
        Self {
            digest,
            hash,
            geometry,
            created: now,
            changed: AtomicU64::new(now.0),
            complete: AtomicUsize::new(0),
            owned: AtomicU64::new(0),
            over: AtomicBool::new(false),
            marked: AtomicBool::new(false),
            roll: Mutex::new(Roll {
                vouched: false,
                grown: now,
                seeders: Members::default(),
                proxies: Members::default(),
            }),
        }
    }

    pub(super) fn roll(&self) -> MutexGuard<'_, Roll> {
        self.roll.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody can join it any more: it is empty, or its geometry was wrong. Another one takes its place.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Called with the roll held.
    pub(super) fn set_over(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Marks it; says whether it was not.
    pub(super) fn mark(&self) -> bool {
        // Most are, when many nodes go; a look is cheaper than a change.
        !self.marked.load(Ordering::Relaxed) && !self.marked.swap(true, Ordering::AcqRel)
    }

    pub(super) fn unmark(&self) {
        self.marked.store(false, Ordering::Release);
    }

    /// When a peer last joined or owned more.
    pub(super) fn changed(&self) -> Timestamp {
        Timestamp(self.changed.load(Ordering::Relaxed))
    }

    pub(super) fn set_changed(&self, now: Timestamp) {
        self.changed.fetch_max(now.0, Ordering::Relaxed);
    }

    /// Counts what a member owns.
    pub(super) fn add(&self, pieces: &Ownership) {
        self.complete.fetch_add(usize::from(pieces.is_complete()), Ordering::Relaxed);
        self.owned.fetch_add(pieces.count(self.geometry.pieces()).into(), Ordering::Relaxed);
    }

    /// Counts it no more.
    pub(super) fn subtract(&self, pieces: &Ownership) {
        self.complete.fetch_sub(usize::from(pieces.is_complete()), Ordering::Relaxed);
        self.owned.fetch_sub(pieces.count(self.geometry.pieces()).into(), Ordering::Relaxed);
    }

    /// What people see of it: what counts is who is alive.
    pub(super) fn summary(self: &Arc<Self>, now: Timestamp, ttl: Duration) -> SwarmSummary {
        let roll = self.roll();
        let (mut peers, mut dead) = (0, Vec::new());
        for node in roll.iter() {
            if node.is_alive(now, ttl) {
                peers += 1;
            } else {
                dead.push(Arc::clone(node));
            }
        }
        let seeders = roll.seeders.iter().filter(|node| node.is_alive(now, ttl)).count();
        drop(roll);
        let pieces = self.geometry.pieces();
        let (mut complete, mut owned) = (self.complete.load(Ordering::Relaxed), self.owned.load(Ordering::Relaxed));
        // Most are alive, so that few nodes have to be asked.
        for node in dead {
            if let Some(entry) = node.membership().of(self) {
                complete = complete.saturating_sub(usize::from(entry.pieces.is_complete()));
                owned = owned.saturating_sub(entry.pieces.count(pieces).into());
            }
        }
        SwarmSummary {
            digest: self.digest,
            geometry: self.geometry,
            pieces,
            peers,
            seeders,
            complete: complete.min(peers),
            progress: progress(owned, peers, pieces).min(1.0),
            age_seconds: (now - self.created).as_secs_f64(),
            changed_seconds: (now - self.changed()).as_secs_f64(),
            bytes_per_second: 0,
        }
    }
}
