//! The storage that seeders share: looked into before the origin, filled after it.
//!
//! A seeder keeps what it serves in its own cache, under its own limit; the shared storage holds everything that any of
//! them fetched, and nobody evicts from it. That storage failing costs requests to the origin and nothing else.
//!
//! Nothing found in it is believed. Its metainfo has to lead to the digest, and while the blob is copied into the cache each
//! piece is hashed on from the one before and compared, before anybody is told of it; the last hash is the digest.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::{Digest, Metainfo};
use eagle_p2p::{limits::Limiter, node::Node};
use eagle_store::{BlobReader, BlobStorage, Cache, CachedBlob, Claim, Lease, StorageError};

use crate::metrics::Metrics;

/// The shared storage of a seeder; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    storage: Arc<dyn BlobStorage>,
    upload: Limiter,
    metrics: Metrics,
}

/// A blob in the shared storage, not checked yet.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) metainfo: Arc<Metainfo>,
    pub(crate) reader: Arc<dyn BlobReader>,
}

/// What there is to do about a blob that is not in the cache.
#[derive(Debug)]
pub(crate) enum Next {
    /// Read it from the shared storage.
    Read(Found),
    /// Fetch it and store it there, and keep the lease until then.
    Fetch(Lease),
}

impl Shared {
    pub(crate) fn new(storage: Arc<dyn BlobStorage>, node: &Node, metrics: Metrics) -> Self {
        Self { storage, upload: node.upload_limiter().clone(), metrics }
    }

    /// Finds the blob, or waits until it is this seeder's to fetch it.
    pub(crate) async fn next(&self, digest: Digest) -> Next {
        if let Some(found) = self.find(digest).await {
            return Next::Read(found);
        }
        match self.storage.claim(digest).await {
            Ok(Claim::Granted(lease)) => Next::Fetch(lease),
            Ok(Claim::Stored) => match self.find(digest).await {
                Some(found) => Next::Read(found),
                None => Next::Fetch(Lease::alone()),
            },
            Err(error) => {
                tracing::warn!(blob = %digest, %error, "other seeders are not told that this one fetches a blob");
                Next::Fetch(Lease::alone())
            }
        }
    }

    async fn find(&self, digest: Digest) -> Option<Found> {
        match self.look(digest).await {
            Ok(Some(found)) => {
                self.metrics.shared_blob("found");
                Some(found)
            }
            Ok(None) => {
                self.metrics.shared_blob("absent");
                None
            }
            Err(error) if error.is_damage() => {
                self.bad(digest, &error).await;
                None
            }
            Err(error) => {
                self.metrics.shared_blob("failed");
                tracing::warn!(blob = %digest, %error, "the shared storage was not looked into");
                None
            }
        }
    }

    async fn look(&self, digest: Digest) -> Result<Option<Found>, StorageError> {
        let Some(reader) = self.storage.open(digest).await? else { return Ok(None) };
        let damaged =
            |reason: &str| StorageError::Damaged { object: format!("metainfo of {digest}"), reason: reason.to_owned() };
        let metainfo = self.storage.metainfo(digest).await?;
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
        self.metrics.shared_blob("damaged");
        tracing::error!(blob = %digest, %error, "a blob in the shared storage is bad; it is removed there, and fetched from its registry");
        if let Err(error) = self.storage.remove(digest).await {
            tracing::warn!(blob = %digest, %error, "the bad blob could not be removed");
        }
    }

    /// Puts a blob that was checked into the shared storage.
    pub(crate) async fn store(&self, blob: &CachedBlob) {
        let Some(metainfo) = blob.metainfo() else { return };
        let paced = Paced { reader: blob.reader(), shared: self };
        match self.storage.put(&paced, &metainfo).await {
            Ok(()) => {
                self.metrics.shared_blob("stored");
                tracing::info!(blob = %blob.digest(), bytes = blob.size(), "stored for all seeders");
            }
            Err(error) => {
                self.metrics.shared_blob("not_stored");
                tracing::warn!(blob = %blob.digest(), %error, "not stored for other seeders; tried again at the next start");
            }
        }
    }

    /// Stores what the cache has and the shared storage has not: an earlier process may have ended between the
    /// two, or the shared storage may be new.
    pub(crate) async fn catch_up(&self, cache: &Cache) {
        for entry in cache.list().into_iter().filter(|entry| entry.complete) {
            match self.storage.open(entry.digest).await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    if let Some(blob) = cache.get(entry.digest).await {
                        self.store(&blob).await;
                    }
                }
                Err(error) if error.is_damage() => {
                    self.bad(entry.digest, &error).await;
                    if let Some(blob) = cache.get(entry.digest).await {
                        self.store(&blob).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "what this seeder has is not compared with the shared storage");
                    return;
                }
            }
        }
    }

    /// Counts bytes that came from the shared storage.
    pub(crate) fn read(&self, bytes: u64) {
        self.metrics.shared_read(bytes);
    }

    pub(crate) async fn settle(&self) {
        self.storage.settle().await;
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
        self.shared.upload.acquire(length as u64).await;
        let bytes = self.reader.read_at(offset, length).await?;
        self.shared.metrics.shared_written(length as u64);
        Ok(bytes)
    }
}
