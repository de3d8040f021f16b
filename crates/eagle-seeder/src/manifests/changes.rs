//! What was pushed or deleted by way of this cluster: what was known before that is asked for again.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

use eagle_registry::{Reference, RegistryName, RepositoryName};
use lru::LruCache;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::Key;

/// Changes remembered: about 100 bytes each. One that is forgotten leaves what is known to its own time.
const MAX_CHANGES: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// When each tag, or manifest, was last changed.
#[derive(Debug)]
pub(super) struct Changes(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    last: LruCache<Key, Change>,
    number: u64,
}

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    /// Counts changes: a question from before one must not be answered together with one from after it.
    pub(super) number: u64,
    pub(super) at: Instant,
}

impl Changes {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Kept { last: LruCache::new(MAX_CHANGES), number: 0 }))
    }

    /// Notes a change at this moment.
    pub(super) fn note(&self, registry: &RegistryName, repository: &RepositoryName, reference: &Reference) {
        let mut kept = self.lock();
        kept.number += 1;
        let change = Change { number: kept.number, at: Instant::now() };
        kept.last.put(key(registry, repository, &reference.to_string()), change);
        if reference.digest().is_some() {
            // With a manifest go the tags that lead to it.
            kept.last.put(key(registry, repository, ALL_TAGS), change);
        }
    }

    /// The last change that concerns what a reference stands for.
    pub(super) fn last(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Option<Change> {
        let mut kept = self.lock();
        let own = kept.last.get(&key(registry, repository, &reference.to_string())).copied();
        let of_all = match reference {
            Reference::Tag(_) => kept.last.get(&key(registry, repository, ALL_TAGS)).copied(),
            Reference::Digest(_) => None,
        };
        own.into_iter().chain(of_all).max_by_key(|change| change.number)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // The map is whole between any two operations.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stands for every tag of a repository; no tag has this form.
const ALL_TAGS: &str = "*";

fn key(registry: &RegistryName, repository: &RepositoryName, reference: &str) -> Key {
    let mut hash = Sha256::new();
    for part in [registry.as_str(), repository.as_str(), reference] {
        hash.update(part);
        hash.update([0]);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use eagle_core::Digest;

    use super::*;

    #[tokio::test]
    async fn a_change_is_of_one_reference_and_that_of_a_manifest_of_all_tags() {
        let changes = Changes::new();
        let (registry, repository) = ("docker.io".parse().unwrap(), "library/app".parse().unwrap());
        let other_repository = "library/other".parse().unwrap();
        let [first, second]: [Reference; 2] = ["1", "2"].map(|tag| tag.parse().unwrap());
        let digest = Reference::Digest(Digest::of(b"m"));
        changes.note(&registry, &repository, &first);
        let change = changes.last(&registry, &repository, &first);
        assert!(change.is_some());
        for (repository, reference) in [(&repository, &second), (&repository, &digest), (&other_repository, &first)] {
            assert_eq!(changes.last(&registry, repository, reference), None);
        }
        changes.note(&registry, &repository, &digest);
        assert!(changes.last(&registry, &repository, &second).is_some());
        assert!(changes.last(&registry, &repository, &digest).is_some());
        assert!(changes.last(&registry, &repository, &first).unwrap().number > change.unwrap().number);
        assert_eq!(changes.last(&registry, &other_repository, &second), None);
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let changes = Changes::new();
        let (registry, repository) = ("docker.io".parse().unwrap(), "library/app".parse().unwrap());
        for number in 0..MAX_CHANGES.get() + 10 {
            changes.note(&registry, &repository, &format!("t{number}").parse().unwrap());
        }
        assert_eq!(changes.lock().last.len(), MAX_CHANGES.get());
    }
}
