//! What adds entries to the cache and removes them. Runs in tasks of the cache.

use std::sync::{Arc, Weak, atomic::Ordering};

use eagle_core::{Digest, Geometry, Metainfo};
use tracing::{debug, warn};

use super::{
    CachedBlob, CreateError, Entry, Inner, PartialEntry,
    entry::{PartialInner, Pin, SharedBlob},
};
use crate::{
    policy::{EntryId, NoRoom, Victim},
    ssi::StorageError,
};

/// How often room is made anew when the storage fails to remove a victim: others may be removable,
/// and a storage that removes nothing is not asked for ever.
const REMOVAL_TRIES: u32 = 3;

/// What an entry means for somebody who wants to write the blob.
enum Existing {
    None,
    Resumable(Pin),
    Stale(EntryId),
}

impl Inner {
    /// Evicts what exceeds the limit from the start.
    pub(super) async fn open(self: &Arc<Self>) -> Result<(), StorageError> {
        let _admission = self.admission.lock().await;
        match self.make_room(0).await {
            Err(CreateError::Storage(error)) => Err(error),
            // Nothing is pinned yet, so there always is room for nothing.
            _ => Ok(()),
        }
    }

    pub(super) async fn create(
        self: &Arc<Self>,
        digest: Digest,
        geometry: Geometry,
    ) -> Result<PartialEntry, CreateError> {
        let _admission = self.admission.lock().await;
        let size = geometry.size();
        let (pin, new) = match self.existing(digest, size)? {
            Existing::Resumable(pin) => (pin, false),
            Existing::Stale(id) => {
                self.remove_entry(digest, id).await?;
                (self.admit(digest, size).await?, true)
            }
            Existing::None => (self.admit(digest, size).await?, true),
        };
        match self.storage.create(digest, geometry).await {
            Ok(partial) => {
                let partial = PartialInner::new(partial, pin);
                if !new {
                    // Of a blob that is taken up, only this says how much is still to be written.
                    self.make_free(0, partial.promised()).await?;
                }
                self.grown.notify_one();
                Ok(PartialEntry::new(partial))
            }
            Err(error) => {
                if new {
                    // Nothing of it may stay behind that the cache does not count. Should that fail, it is
                    // logged and the entry stays; why the blob could not be made is the better answer.
                    let _ = self.remove_entry(digest, pin.id()).await;
                }
                Err(error.into())
            }
        }
    }

    fn existing(self: &Arc<Self>, digest: Digest, size: u64) -> Result<Existing, CreateError> {
        let mut policy = self.policy();
        let Some(slot) = policy.get(digest) else { return Ok(Existing::None) };
        match slot.value {
            _ if slot.is_leaving() => Err(CreateError::InProgress),
            Entry::Complete { .. } => Err(CreateError::Complete),
            _ if slot.is_pinned() => Err(CreateError::InProgress),
            Entry::Damaged => Ok(Existing::Stale(slot.id)),
            Entry::Partial if slot.size != size => Ok(Existing::Stale(slot.id)),
            Entry::Partial => {
                let id = policy.pin(digest).ok_or(CreateError::InProgress)?;
                Ok(Existing::Resumable(Pin::new(self, digest, id)))
            }
        }
    }

    /// Makes room for a new entry and adds it, pinned.
    async fn admit(self: &Arc<Self>, digest: Digest, size: u64) -> Result<Pin, CreateError> {
        self.make_room(size).await?;
        self.make_free(size, size).await?;
        let id = self.policy().reserve(digest, size, Entry::Partial);
        // Whoever could have taken the room would have to hold the admission lock.
        id.map(|id| Pin::new(self, digest, id)).ok_or(CreateError::Full)
    }

    async fn make_room(&self, size: u64) -> Result<(), CreateError> {
        let mut tries = 0;
        loop {
            let victims = {
                let mut policy = self.policy();
                policy.make_room(size).map_err(|reason| match reason {
                    NoRoom::TooLarge => CreateError::TooLarge { size, limit: policy.limit() },
                    NoRoom::Full => CreateError::Full,
                })?
            };
            let (_, failure) = self.evict(victims).await;
            let Some(error) = failure else { return Ok(()) };
            tries += 1;
            if tries == REMOVAL_TRIES {
                return Err(error.into());
            }
        }
    }

    /// Frees about `bytes` in a storage that is full below the limit of the cache; says whether it
    /// freed anything.
    pub(super) async fn relieve(&self, bytes: u64) -> bool {
        let _admission = self.admission.lock().await;
        let victims = self.policy().shrink(bytes, usize::MAX);
        let (freed, _) = self.evict(victims).await;
        warn!(freed, "the file system is full below the cache limit; least recently used blobs were evicted");
        freed > 0
    }

    /// Removes victims; gives the bytes freed and the last failure.
    pub(super) async fn evict(&self, victims: Vec<Victim>) -> (u64, Option<StorageError>) {
        let (mut freed, mut failure) = (0, None);
        for victim in victims {
            match self.remove_leaving(victim).await {
                Ok(()) => {
                    debug!(digest = %victim.digest, bytes = victim.size, "evicted");
                    freed += victim.size;
                    self.counters.evictions.fetch_add(1, Ordering::Relaxed);
                    self.counters.evicted_bytes.fetch_add(victim.size, Ordering::Relaxed);
                }
                Err(error) => failure = Some(error),
            }
        }
        (freed, failure)
    }

    /// Removes a blob; only that entry of it where one is named. Says whether it was there and is gone.
    pub(super) async fn remove(&self, digest: Digest, id: Option<EntryId>) -> bool {
        let _admission = self.admission.lock().await;
        let present = self.policy().get(digest).map(|slot| slot.id);
        match present {
            Some(present) if id.is_none_or(|id| id == present) => self.remove_entry(digest, present).await.is_ok(),
            _ => false,
        }
    }

    /// Removes an entry that is still partial.
    pub(super) async fn discard(&self, digest: Digest, id: EntryId) {
        let _admission = self.admission.lock().await;
        let partial = self.policy().get_mut(digest, id).is_some_and(|slot| matches!(slot.value, Entry::Partial));
        if partial {
            // Logged, and the entry is restored.
            let _ = self.remove_entry(digest, id).await;
        }
    }

    /// Removes an entry whose content is gone, unreadable or wrong, and says so. Does nothing when it is gone already.
    pub(super) async fn remove_damaged(&self, digest: Digest, id: EntryId, reason: &str) {
        let _admission = self.admission.lock().await;
        if self.policy().get_mut(digest, id).is_none_or(|slot| slot.is_leaving()) {
            return;
        }
        self.counters.damaged.fetch_add(1, Ordering::Relaxed);
        warn!(%digest, reason, "a cached blob is damaged; it is dropped, and fetched again when it is asked for");
        if self.remove_entry(digest, id).await.is_ok() {
            return;
        }
        // What cannot be removed, which is logged, takes its space until it can be. It is no blob any more, for nobody.
        if let Some(slot) = self.policy().get_mut(digest, id) {
            slot.value = Entry::Damaged;
        }
        let _ = self.evicted.send(digest);
    }

    async fn remove_entry(&self, digest: Digest, id: EntryId) -> Result<(), StorageError> {
        let leaving = self.policy().leave(digest, id);
        match leaving {
            Some(victim) => self.remove_leaving(victim).await,
            None => Ok(()),
        }
    }

    async fn remove_leaving(&self, victim: Victim) -> Result<(), StorageError> {
        match self.storage.remove(victim.digest).await {
            Ok(()) => {
                self.policy().forget(victim);
                // Nobody may be listening.
                let _ = self.evicted.send(victim.digest);
                Ok(())
            }
            Err(error) => {
                warn!(digest = %victim.digest, %error, "a blob cannot be removed and still takes its space");
                self.policy().restore(victim);
                Err(error)
            }
        }
    }

    /// Keeps hashes that were found anew, if it is still this entry that they were found of: one that has been removed and begun
    /// again since may be cut in other pieces.
    pub(super) async fn keep_found(&self, id: EntryId, metainfo: &Metainfo) -> Result<(), StorageError> {
        // Held across the write on purpose: no entry is removed or begun meanwhile.
        let _admission = self.admission.lock().await;
        let stays = self.policy().get_mut(metainfo.digest, id).is_some_and(|slot| !slot.is_leaving());
        if stays { self.storage.put_metainfo(metainfo).await } else { Ok(()) }
    }

    /// Completes what `partial` has written. Needs no admission lock: it changes no sizes, and a
    /// removal meanwhile is noticed by the storage or by the entry being gone.
    pub(super) async fn commit(
        self: &Arc<Self>,
        partial: Arc<PartialInner>,
        metainfo: Option<Metainfo>,
    ) -> Result<CachedBlob, StorageError> {
        let (digest, id) = (partial.digest(), partial.entry());
        let removed = || StorageError::Removed { digest };
        if self.policy().get_mut(digest, id).is_none_or(|slot| slot.is_leaving()) {
            return Err(removed());
        }
        if let Some(metainfo) = &metainfo {
            partial.check(metainfo)?;
            // Before the blob is complete, so that no crash leaves a complete blob without it. The blob is worth keeping without
            // it all the same: its hashes can be found anew.
            if let Err(error) = self.storage.put_metainfo(metainfo).await {
                warn!(%digest, %error, "the metainfo of a blob cannot be kept");
            }
        }
        let reader = partial.blob().commit().await?;
        let pin = {
            let mut policy = self.policy();
            // A second commit gives the handle of the first.
            let slot = policy.get_mut(digest, id).ok_or_else(removed)?;
            if let Entry::Complete { shared, .. } = &slot.value
                && let Some(shared) = shared.upgrade()
            {
                return Ok(CachedBlob::new(shared));
            }
            let pin = Pin::new(self, digest, policy.pin(digest).ok_or_else(removed)?);
            if let Some(slot) = policy.get_mut(digest, id) {
                slot.value = Entry::Complete { shared: Weak::new(), checks: Some(partial.checks()) };
            }
            pin
        };
        self.storage.touch(digest);
        Ok(self.share(digest, SharedBlob::new(reader, metainfo.map(Arc::new), partial.checks(), pin)))
    }
}
