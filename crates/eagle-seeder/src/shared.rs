//! The storage that seeders share: looked into before the origin, filled after it.
//!
//! A seeder keeps what it serves in its own cache, under its own limit; the shared storage holds everything that any of
//! them fetched, and nobody evicts from it. That storage failing costs requests to the origin and nothing else.
//!
//! Nothing found in it is believed. Its metainfo has to lead to the digest, and while the blob is copied into the cache each
//! piece is hashed on from the one before and compared, before anybody is told of it; the last hash is the digest.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::{Digest, Metainfo};
use eagle_p2p::{limits::Limiter, node::Node};
use eagle_store::{BlobReader, BlobStorage, Cache, CachedBlob, Claim, Claimant, Lease, StorageError};

use tokio::{sync::Semaphore, time::Instant};

use crate::{lease::Turn, metrics::Metrics};

/// How long to look for a blob: proxies wait meanwhile, and the origin has it too.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// How long a storage that failed is not asked: it costs a fetch its deadline now and then, and not each.
const PAUSE: Duration = Duration::from_secs(30);
/// Blobs that are being stored or wait for it. Further ones are stored when the cache is compared with the storage.
const MAX_STORING: usize = 64;
/// How often it is looked whether the cache has to be compared with the storage again.
const CATCH_UP: Duration = Duration::from_secs(300);

/// The shared storage of a seeder; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    storage: Arc<dyn BlobStorage>,
    upload: Limiter,
    metrics: Metrics,
    /// Until when the storage is left alone.
    paused: Mutex<Option<Instant>>,
    storing: Semaphore,
    /// Whether the cache may have something that the storage has not.
    behind: AtomicBool,
}

/// A blob in the shared storage, not checked yet.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) metainfo: Arc<Metainfo>,
    pub(crate) reader: Arc<dyn BlobReader>,
}

impl Shared {
    pub(crate) fn new(storage: Arc<dyn BlobStorage>, node: &Node, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            storage,
            upload: node.upload_limiter().clone(),
            metrics,
            paused: Mutex::default(),
            storing: Semaphore::new(MAX_STORING),
            // An earlier process may have ended before it had stored everything.
            behind: AtomicBool::new(true),
        }))
    }

    /// Looks for the blob, and asks for the lease when it is not there; `None` when the storage does not work.
    /// Who asks again while another seeder is at it has looked before.
    pub(crate) async fn turn(&self, digest: Digest, claimant: &mut Claimant, again: bool) -> Option<Turn> {
        if self.is_paused() {
            return None;
        }
        if !again && let Some(found) = self.find(digest).await.ok()? {
            return Some(Turn::Read(found));
        }
        match self.0.storage.claim(digest, claimant).await {
            Ok(Claim::Granted(lease)) => Some(Turn::Fetch(lease)),
            Ok(Claim::Held(holder)) => Some(Turn::Wait(holder)),
            Ok(Claim::Stored) => match self.find(digest).await.ok()? {
                Some(found) => Some(Turn::Read(found)),
                // It was bad, and is removed by now.
                None => Some(Turn::Fetch(Lease::alone())),
            },
            Err(error) => {
                self.failed(digest, &error.to_string());
                None
            }
        }
    }

    fn is_paused(&self) -> bool {
        let paused = self.0.paused.lock().unwrap_or_else(PoisonError::into_inner);
        paused.is_some_and(|until| Instant::now() < until)
    }

    fn failed(&self, digest: Digest, error: &str) {
        self.0.metrics.shared_blob("failed");
        *self.0.paused.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + PAUSE);
        tracing::warn!(blob = %digest, error, "the shared storage does not work; for {PAUSE:?} it is not asked");
    }

    /// Looks for the blob; an error, which was noted, says that the storage does not work.
    async fn find(&self, digest: Digest) -> Result<Option<Found>, ()> {
        let looked = tokio::time::timeout(LOOK_DEADLINE, self.look(digest)).await;
        match looked {
            Ok(Ok(found)) => {
                self.0.metrics.shared_blob(if found.is_some() { "found" } else { "absent" });
                Ok(found)
            }
            Ok(Err(error)) if error.is_damage() => {
                self.bad(digest, &error).await;
                Ok(None)
            }
            Ok(Err(error)) => {
                self.failed(digest, &error.to_string());
                Err(())
            }
            Err(_) => {
                self.failed(digest, &format!("no answer within {LOOK_DEADLINE:?}"));
                Err(())
            }
        }
    }

    async fn look(&self, digest: Digest) -> Result<Option<Found>, StorageError> {
        let Some(reader) = self.0.storage.open(digest).await? else { return Ok(None) };
        let damaged =
            |reason: &str| StorageError::Damaged { object: format!("metainfo of {digest}"), reason: reason.to_owned() };
        let metainfo = self.0.storage.metainfo(digest).await?;
        let metainfo = metainfo.ok_or_else(|| damaged("it is missing, although the blob is there"))?;
        if metainfo.geometry.size() != reader.size() {
            return Err(damaged("the blob has another size"));
        }
        if !metainfo.leads_to_digest() {
            return Err(damaged("its hashes do not lead to the digest"));
        }
        Ok(Some(Found { metainfo: Arc::new(metainfo), reader }))
    }

    /// Removes a blob that is not what it should be, so that it is stored anew.
    pub(crate) async fn bad(&self, digest: Digest, error: &StorageError) {
        self.0.metrics.shared_blob("damaged");
        tracing::error!(blob = %digest, %error, "a blob in the shared storage is bad; it is removed there, and fetched from its registry");
        if let Err(error) = self.0.storage.remove(digest).await {
            tracing::warn!(blob = %digest, %error, "the bad blob could not be removed");
        }
    }

    /// Puts a blob that was checked into the shared storage.
    pub(crate) async fn store(&self, blob: &CachedBlob) {
        let Some(metainfo) = blob.metainfo() else { return };
        let place = self.0.storing.try_acquire();
        if place.is_err() || self.is_paused() {
            self.0.behind.store(true, Ordering::Release);
            return;
        }
        let paced = Paced { reader: blob.reader(), shared: self };
        match self.0.storage.put(&paced, &metainfo).await {
            Ok(()) => {
                self.0.metrics.shared_blob("stored");
                tracing::info!(blob = %blob.digest(), bytes = blob.size(), "stored for all seeders");
            }
            Err(error) => {
                self.0.behind.store(true, Ordering::Release);
                self.0.metrics.shared_blob("not_stored");
                tracing::warn!(blob = %blob.digest(), %error, "not stored for other seeders; tried again later");
            }
        }
    }

    /// Compares the cache with the storage at the start, and whenever something could not be stored.
    pub(crate) async fn keep_up(&self, cache: &Cache) {
        loop {
            if !self.is_paused() && self.0.behind.swap(false, Ordering::AcqRel) {
                self.catch_up(cache).await;
            }
            tokio::time::sleep(CATCH_UP).await;
        }
    }

    /// Stores what the cache has and the shared storage has not.
    async fn catch_up(&self, cache: &Cache) {
        for entry in cache.list().into_iter().filter(|entry| entry.complete) {
            match self.0.storage.open(entry.digest).await {
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(error) if error.is_damage() => self.bad(entry.digest, &error).await,
                Err(error) => {
                    tracing::warn!(%error, "what this seeder has is compared with the shared storage later");
                    self.0.behind.store(true, Ordering::Release);
                    return;
                }
            }
            if let Some(blob) = cache.get(entry.digest).await {
                self.store(&blob).await;
            }
        }
    }

    /// Counts bytes that came from the shared storage.
    pub(crate) fn read(&self, bytes: u64) {
        self.0.metrics.shared_read(bytes);
    }

    pub(crate) async fn settle(&self) {
        self.0.storage.settle().await;
    }
}

/// A blob that is read no faster than the host may upload.
#[derive(Debug)]
struct Paced<'a> {
    reader: Arc<dyn BlobReader>,
    shared: &'a Shared,
}

#[async_trait]
impl BlobReader for Paced<'_> {
    fn size(&self) -> u64 {
        self.reader.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        self.shared.0.upload.acquire(length as u64).await;
        let bytes = self.reader.read_at(offset, length).await?;
        self.shared.0.metrics.shared_written(length as u64);
        Ok(bytes)
    }
}
