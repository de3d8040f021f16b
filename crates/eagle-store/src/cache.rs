//! The blobs of one storage, kept below a number of bytes.
//!
//! A cache limits what a storage holds: whoever wants to write a blob reserves its whole size first,
//! and the least recently used blobs go until it fits. A blob in use is *pinned* and does not go: by
//! a [`CachedBlob`] or one of its readers, or by the [`PartialEntry`] that writes it. A partial blob
//! that nobody writes any more counts, can be taken up again, and can go like any other.
//!
//! What always holds:
//! - [`CacheStats::bytes`], and the bytes of content in the storage, never exceed the limit: bytes
//!   count before they are written, and until they are removed and no reader holds them.
//! - A pinned blob is never evicted.
//! - An entry has one writer at a time.
//!
//! Which blob goes is decided by `crate::policy`, without I/O, under a short lock. What adds or
//! removes entries holds the *admission* lock too, across its I/O: room that was made must not be
//! given to somebody else. It runs in a task of the cache, so that a caller that gives up midway
//! leaves nothing half done.

mod admission;
mod checks;
mod entry;
mod scrub;
mod settings;
mod upkeep;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicU64, Ordering},
};

use eagle_core::{Digest, Geometry};
use tokio::sync::{Notify, broadcast};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::{
    checks::Checks,
    entry::{Pin, SharedBlob},
};
pub use self::{
    entry::{CachedBlob, PartialEntry},
    scrub::ScrubPlace,
    settings::{CacheSettings, defaults},
};
use crate::{
    policy::{EntryId, LruPolicy},
    ssi::{BlobStorage, StorageError},
};

/// Evictions that a slow listener may fall behind. More than go for one newcomer but in extreme
/// cases; who falls behind further is told so, and can compare with [`Cache::list`].
const EVICTION_BACKLOG: usize = 1024;

/// The blobs of one storage, kept below a number of bytes by evicting the least recently used.
#[derive(Debug)]
pub struct Cache {
    inner: Arc<Inner>,
}

/// Shared by the cache, its entries and its tasks.
#[derive(Debug)]
struct Inner {
    storage: Arc<dyn BlobStorage>,
    settings: CacheSettings,
    policy: Mutex<LruPolicy<Entry>>,
    /// Held by what adds or removes entries, from the decision to the end of the I/O.
    admission: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    evicted: broadcast::Sender<Digest>,
    /// Bytes that writers reserved and have not written yet: space that the file system still shows as free.
    promised: AtomicU64,
    /// The cache holds more than before.
    grown: Notify,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    evictions: AtomicU64,
    evicted_bytes: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    scrubbed_bytes: AtomicU64,
}

/// What the cache knows of a blob besides what the policy does.
#[derive(Debug)]
enum Entry {
    /// Pinned by its writer, or left by one.
    Partial,
    /// With the handle that is shared by all who use it now, and what was checked of it.
    Complete { shared: Weak<SharedBlob>, checks: Option<Arc<Checks>> },
    /// Was complete, is damaged, and could not be removed: it takes its space and is of no other use.
    Damaged,
}

impl Entry {
    const fn is_complete(&self) -> bool {
        matches!(self, Self::Complete { .. })
    }
}

/// A blob in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// The blob.
    pub digest: Digest,
    /// Its whole size, bytes.
    pub size: u64,
    /// Whether it is complete.
    pub complete: bool,
    /// Whether it is in use, so that it cannot be evicted.
    pub pinned: bool,
}

/// State and counters of a cache; the counters count since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStats {
    /// Bytes reserved: the whole sizes of complete and partial blobs, and removed ones still in use.
    pub bytes: u64,
    /// What `bytes` never exceeds.
    pub limit: u64,
    /// Number of complete blobs.
    pub blobs: u64,
    /// Number of partial blobs, written at present or not, and of damaged ones that could not be removed yet.
    pub partials: u64,
    /// Blobs evicted to make room.
    pub evictions: u64,
    /// Their sizes, bytes.
    pub evicted_bytes: u64,
    /// Calls of [`Cache::get`] that found the blob.
    pub hits: u64,
    /// Calls of [`Cache::get`] that did not.
    pub misses: u64,
    /// Blobs that were dropped because their content was gone, unreadable or not what it had to be.
    pub damaged: u64,
    /// Bytes that the scrub has read again.
    pub scrubbed_bytes: u64,
}

/// Why a blob cannot be written to the cache.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// It is larger than the whole cache.
    #[error("a blob of {size} bytes is larger than the cache limit of {limit} bytes")]
    TooLarge {
        /// Size of the blob, bytes.
        size: u64,
        /// Limit of the cache, bytes.
        limit: u64,
    },
    /// Too much of the cache is in use; it may fit later.
    #[error("the cache is full of blobs that are in use")]
    Full,
    /// The file system would have less free than it should.
    #[error("{available} bytes are free on the file system: too few for {size} more with {min_free} left free")]
    NoSpace {
        /// Bytes that are to be written.
        size: u64,
        /// Bytes that may still be written there.
        available: u64,
        /// Bytes that have to stay free.
        min_free: u64,
    },
    /// Somebody in this process writes it.
    #[error("the blob is being written already")]
    InProgress,
    /// It is complete: [`Cache::get`] has it.
    #[error("the blob is complete already")]
    Complete,
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Cache {
    /// Takes over what `storage` holds, in the order of its last use and without reading it, and
    /// evicts what exceeds the limit. Settings may be that limit alone.
    ///
    /// # Errors
    /// When the storage cannot be listed, or what exceeds the limit cannot be removed.
    pub async fn open(
        storage: Arc<dyn BlobStorage>,
        settings: impl Into<CacheSettings>,
    ) -> Result<Arc<Self>, StorageError> {
        let settings = settings.into();
        let mut stored = storage.list().await?;
        stored.sort_by_key(|blob| (blob.last_used, blob.digest));
        let mut policy = LruPolicy::new(settings.limit);
        for blob in stored {
            let entry =
                if blob.complete { Entry::Complete { shared: Weak::new(), checks: None } } else { Entry::Partial };
            policy.adopt(blob.digest, blob.size, entry);
        }
        let inner = Arc::new(Inner {
            storage,
            settings,
            policy: Mutex::new(policy),
            admission: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            evicted: broadcast::Sender::new(EVICTION_BACKLOG),
            promised: AtomicU64::new(0),
            grown: Notify::new(),
            counters: Counters::default(),
        });
        inner.open().await?;
        let cache = Self { inner };
        let CacheStats { bytes, limit, blobs, partials, .. } = cache.stats();
        info!(bytes, limit, blobs, partials, "cache opened");
        Ok(Arc::new(cache))
    }

    /// A complete blob. Counts as a use, and pins it until the result and its readers are dropped.
    ///
    /// `None` also when its content is gone from the storage, has another size than it had, or is on a
    /// part of the disk that cannot be read; the entry is then dropped.
    pub async fn get(&self, digest: Digest) -> Option<CachedBlob> {
        let blob = self.inner.get(digest).await;
        let counters = &self.inner.counters;
        let counter = if blob.is_some() { &counters.hits } else { &counters.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        blob
    }

    /// Whether there is a complete blob. No use, and no look at the storage.
    pub fn contains(&self, digest: Digest) -> bool {
        let policy = self.inner.policy();
        policy.get(digest).is_some_and(|slot| !slot.is_leaving() && slot.value.is_complete())
    }

    /// Counts a use of a complete blob without opening it, for who has its content at hand. Says
    /// whether it is still there; no look at the storage.
    pub fn touch(&self, digest: Digest) -> bool {
        let inner = &self.inner;
        let present = {
            let mut policy = inner.policy();
            policy.touch(digest).is_some_and(|slot| slot.value.is_complete())
        };
        if present {
            inner.storage.touch(digest);
            inner.counters.hits.fetch_add(1, Ordering::Relaxed);
        }
        present
    }

    /// Begins to write a blob, or takes up a partial one: reserves its size, evicting others as
    /// needed, and pins it.
    ///
    /// # Errors
    /// When it does not fit, when it is complete or being written, or when the storage fails.
    pub async fn create(self: &Arc<Self>, digest: Digest, geometry: Geometry) -> Result<PartialEntry, CreateError> {
        let inner = Arc::clone(&self.inner);
        self.inner.finish(async move { inner.create(digest, geometry).await }).await?
    }

    /// Removes a blob, complete or partial, also when it is pinned: readers of a complete one stay
    /// valid, and its bytes count until they are gone; a writer gets [`StorageError::Removed`]. Says
    /// whether it was there and is gone.
    pub async fn remove(&self, digest: Digest) -> bool {
        let inner = Arc::clone(&self.inner);
        let removed = self.inner.finish(async move { inner.remove(digest, None).await }).await;
        removed.unwrap_or(false)
    }

    /// All blobs, the least recently used first.
    pub fn list(&self) -> Vec<CacheEntry> {
        let policy = self.inner.policy();
        let present = policy.iter().filter(|(_, slot)| !slot.is_leaving());
        present
            .map(|(digest, slot)| CacheEntry {
                digest: *digest,
                size: slot.size,
                complete: slot.value.is_complete(),
                pinned: slot.is_pinned(),
            })
            .collect()
    }

    /// State and counters.
    pub fn stats(&self) -> CacheStats {
        let Counters { evictions, evicted_bytes, hits, misses, damaged, scrubbed_bytes } = &self.inner.counters;
        let policy = self.inner.policy();
        let present = || policy.iter().filter(|(_, slot)| !slot.is_leaving());
        let blobs = present().filter(|(_, slot)| slot.value.is_complete()).count() as u64;
        CacheStats {
            bytes: policy.used(),
            limit: policy.limit(),
            blobs,
            partials: present().count() as u64 - blobs,
            evictions: evictions.load(Ordering::Relaxed),
            evicted_bytes: evicted_bytes.load(Ordering::Relaxed),
            hits: hits.load(Ordering::Relaxed),
            misses: misses.load(Ordering::Relaxed),
            damaged: damaged.load(Ordering::Relaxed),
            scrubbed_bytes: scrubbed_bytes.load(Ordering::Relaxed),
        }
    }

    /// Tells of every blob, complete or partial, that leaves the cache from now on: evicted, removed,
    /// or found missing.
    pub fn evictions(&self) -> broadcast::Receiver<Digest> {
        self.inner.evicted.subscribe()
    }

    /// Waits until what callers began and gave up on has ended, for an orderly end of the process.
    pub async fn settle(&self) {
        // A closed tracker still takes tasks; closing only lets the wait end once there are none.
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    fn policy(&self) -> MutexGuard<'_, LruPolicy<Entry>> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` to its end, also when the caller does not wait for it.
    async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, StorageError> {
        match self.tasks.spawn(work).await {
            Ok(result) => Ok(result),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(StorageError::Stopped),
            },
        }
    }

    async fn get(self: &Arc<Self>, digest: Digest) -> Option<CachedBlob> {
        let (pin, size) = {
            let mut policy = self.policy();
            let slot = policy.get(digest).filter(|slot| slot.value.is_complete())?;
            let size = slot.size;
            (Pin::new(self, digest, policy.pin(digest)?), size)
        };
        self.storage.touch(digest);
        let opened = match self.storage.open(digest).await {
            Ok(opened) => opened.filter(|reader| reader.size() == size),
            Err(error) if error.is_damaged_file() => {
                self.lost(digest, pin.id(), error.to_string()).await;
                return None;
            }
            // It may open the next time, as when this process has too many files open.
            Err(error) => {
                warn!(%digest, %error, "a cached blob cannot be opened");
                return None;
            }
        };
        let Some(reader) = opened else {
            self.lost(digest, pin.id(), "its content is gone from the storage, or has another size").await;
            return None;
        };
        if let Some(shared) = self.shared(digest, pin.id()) {
            return Some(CachedBlob::new(shared));
        }
        let metainfo = self.storage.metainfo(digest).await.unwrap_or_else(|error| {
            warn!(%digest, %error, "the metainfo of a cached blob cannot be read");
            None
        });
        if metainfo.as_ref().is_some_and(|metainfo| metainfo.geometry.size() != size) {
            // Found so at the start of the process: the content was changed while nobody looked.
            self.lost(digest, pin.id(), "its content has not the size that its metainfo says").await;
            return None;
        }
        let geometry = match &metainfo {
            Some(metainfo) => metainfo.geometry,
            // Its hashes are found anew when it is read.
            None => Geometry::auto(size).ok()?,
        };
        let checks = self.checks(digest, pin.id()).filter(|checks| checks.geometry() == geometry);
        let checks = checks.unwrap_or_else(|| Arc::new(Checks::new(geometry)));
        let blob = SharedBlob::new(reader, metainfo.map(Arc::new), checks, pin);
        Some(self.share(digest, blob))
    }

    /// What is known of the content of a complete blob.
    fn checks(&self, digest: Digest, id: EntryId) -> Option<Arc<Checks>> {
        match &self.policy().get_mut(digest, id)?.value {
            Entry::Complete { checks, .. } => checks.clone(),
            Entry::Partial | Entry::Damaged => None,
        }
    }

    /// The handle that others use at present.
    fn shared(&self, digest: Digest, id: EntryId) -> Option<Arc<SharedBlob>> {
        match &self.policy().get_mut(digest, id)?.value {
            Entry::Complete { shared, .. } => shared.upgrade(),
            Entry::Partial | Entry::Damaged => None,
        }
    }

    /// Lets later callers use the same handle.
    fn share(&self, digest: Digest, blob: SharedBlob) -> CachedBlob {
        let id = blob.entry();
        let blob = Arc::new(blob);
        if let Some(slot) = self.policy().get_mut(digest, id) {
            slot.value = Entry::Complete { shared: Arc::downgrade(&blob), checks: Some(blob.checks()) };
        }
        CachedBlob::new(blob)
    }

    /// Drops an entry whose content is gone, unreadable or wrong.
    async fn lost(self: &Arc<Self>, digest: Digest, id: EntryId, reason: impl Into<String>) {
        let (inner, reason) = (Arc::clone(self), reason.into());
        // What failed was logged; the entry then stays, and is found to be bad again.
        let _ = self.finish(async move { inner.remove_damaged(digest, id, &reason).await }).await;
    }
}

#[cfg(test)]
mod tests;
