//! Who may read which blob.
//!
//! A registry authorises by repository. A caller whom the origin has answered a manifest may read
//! what that manifest names, from that repository, for a while; a caller who has not must be
//! authorised by the origin first. The callers are told apart by their own credentials, all callers
//! without any being one. Grants are kept in memory, bounded, the least recently used going first:
//! losing one costs a question to the origin, never an answer to the wrong caller.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use eagle_core::Digest;
use eagle_registry::{Registries, RegistryName, RepositoryName};
use lru::LruCache;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// Grants kept: about 100 bytes each, and an image has some tens of blobs, so this is thousands of
/// images in a few MiB.
const MAX_GRANTS: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// The grants of a proxy.
#[derive(Debug)]
pub struct Grants {
    ttl: Duration,
    registries: Arc<Registries>,
    /// By a hash of caller, registry, repository and blob, to when it ends.
    until: Mutex<LruCache<[u8; 32], Instant>>,
}

impl Grants {
    /// No grants; each lasts for `ttl`, and for longer where everybody may read all of a registry.
    pub fn new(ttl: Duration, registries: Arc<Registries>) -> Self {
        Self { ttl, registries, until: Mutex::new(LruCache::new(MAX_GRANTS)) }
    }

    /// Grants the caller with this key these blobs of a repository, as the origin said `age` ago.
    pub fn give(
        &self,
        caller: &[u8; 32],
        registry: &RegistryName,
        repository: &RepositoryName,
        blobs: impl IntoIterator<Item = Digest>,
        age: Duration,
    ) {
        let ttl = self.registries.get(registry).grant_ttl(self.ttl).saturating_sub(age);
        if ttl.is_zero() {
            return;
        }
        let until = Instant::now() + ttl;
        let mut grants = self.lock();
        for blob in blobs {
            grants.put(key(caller, registry, repository, &blob), until);
        }
    }

    /// Takes these blobs from the caller again: the origin has refused it the manifest that names them.
    pub fn take(
        &self,
        caller: &[u8; 32],
        registry: &RegistryName,
        repository: &RepositoryName,
        blobs: impl IntoIterator<Item = Digest>,
    ) {
        let mut grants = self.lock();
        for blob in blobs {
            grants.pop(&key(caller, registry, repository, &blob));
        }
    }

    /// Whether the caller was granted the blob and the grant still holds.
    pub fn holds(
        &self,
        caller: &[u8; 32],
        registry: &RegistryName,
        repository: &RepositoryName,
        blob: &Digest,
    ) -> bool {
        let key = key(caller, registry, repository, blob);
        let mut grants = self.lock();
        match grants.get(&key) {
            Some(until) if *until > Instant::now() => true,
            Some(_) => {
                grants.pop(&key);
                false
            }
            None => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<[u8; 32], Instant>> {
        // The map is whole between any two operations, so a panic elsewhere leaves it usable.
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One key for all four: names are validated and cannot contain the separator.
fn key(caller: &[u8; 32], registry: &RegistryName, repository: &RepositoryName, blob: &Digest) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(caller);
    for part in [registry.as_str(), repository.as_str()] {
        hash.update(part);
        hash.update([0]);
    }
    hash.update(blob.as_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use eagle_registry::RegistryConfig;

    use super::*;

    const TTL: Duration = Duration::from_secs(300);

    fn registries() -> Arc<Registries> {
        let public = RegistryConfig {
            public: true,
            public_grant_ttl: TTL * 10,
            ..RegistryConfig::new("public.test".parse().unwrap())
        };
        Arc::new(Registries::new(vec![public]).unwrap())
    }

    fn names() -> (RegistryName, RepositoryName) {
        ("docker.io".parse().unwrap(), "library/debian".parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_grant_is_for_one_caller_repository_and_blob_and_ends() {
        let grants = Grants::new(TTL, registries());
        let (registry, repository) = names();
        let other_registry: RegistryName = "ghcr.io".parse().unwrap();
        let other_repository: RepositoryName = "library/other".parse().unwrap();
        let blob = Digest::of(b"layer");
        let (alice, bob) = ([1; 32], [2; 32]);
        grants.give(&alice, &registry, &repository, [blob], Duration::ZERO);
        assert!(grants.holds(&alice, &registry, &repository, &blob));
        assert!(!grants.holds(&bob, &registry, &repository, &blob));
        assert!(!grants.holds(&alice, &other_registry, &repository, &blob));
        assert!(!grants.holds(&alice, &registry, &other_repository, &blob));
        assert!(!grants.holds(&alice, &registry, &repository, &Digest::of(b"other")));
        tokio::time::advance(TTL - Duration::from_secs(1)).await;
        assert!(grants.holds(&alice, &registry, &repository, &blob));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!grants.holds(&alice, &registry, &repository, &blob));
    }

    #[tokio::test(start_paused = true)]
    async fn a_grant_is_as_old_as_the_word_of_the_origin_and_longer_for_what_is_public() {
        let grants = Grants::new(TTL, registries());
        let (registry, repository) = names();
        let (blob, alice) = (Digest::of(b"layer"), [1; 32]);
        grants.give(&alice, &registry, &repository, [blob], TTL);
        assert!(!grants.holds(&alice, &registry, &repository, &blob));
        grants.give(&alice, &registry, &repository, [blob], TTL / 2);
        assert!(grants.holds(&alice, &registry, &repository, &blob));
        tokio::time::advance(TTL / 2).await;
        assert!(!grants.holds(&alice, &registry, &repository, &blob));
        let public: RegistryName = "public.test".parse().unwrap();
        grants.give(&alice, &public, &repository, [blob], Duration::ZERO);
        tokio::time::advance(TTL * 9).await;
        assert!(grants.holds(&alice, &public, &repository, &blob));
        grants.take(&alice, &public, &repository, [blob]);
        assert!(!grants.holds(&alice, &public, &repository, &blob));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let grants = Grants::new(TTL, registries());
        let (registry, repository) = names();
        let blob = |i: usize| Digest::of(&i.to_le_bytes());
        grants.give(&[0; 32], &registry, &repository, (0..MAX_GRANTS.get() + 10).map(blob), Duration::ZERO);
        assert_eq!(grants.lock().len(), MAX_GRANTS.get());
        assert!(!grants.holds(&[0; 32], &registry, &repository, &blob(0)));
        assert!(grants.holds(&[0; 32], &registry, &repository, &blob(MAX_GRANTS.get())));
    }
}
