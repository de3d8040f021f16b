//! Who may read which blob: the origin decides, per caller, and the answer is kept for a while.
//!
//! A *grant* says that the origin let a caller read a blob of a repository: it answered a `HEAD` or
//! `GET` of the blob, or a manifest that names it. A grant younger than [`FRESH`] is believed. Later
//! the origin is asked again, and only when it cannot be asked does an older grant count, and only for
//! a blob that is stored: for [`OUTAGE`], or without end when a manifest served to the caller named the
//! blob, since that manifest is served during an outage too. Grants are bounded in number; losing one
//! costs a question to the origin, never an answer to the wrong caller.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use eagle_core::Digest;
use eagle_registry::{Caller, OriginError, Registries, RegistryName, RepositoryName};
use futures::FutureExt;
use lru::LruCache;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::{collapse::Collapse, metrics::Metrics};

/// How long a grant is believed: a pull of a large image ends within it, and a revoked credential
/// works no longer than the tokens of registries do (Docker Hub's live for 300 s).
const FRESH: Duration = Duration::from_secs(300);
/// How long a grant counts while the origin cannot be asked.
const OUTAGE: Duration = Duration::from_secs(3600);
/// Grants kept: about 150 bytes each, so 10 MiB; an image has some tens of blobs.
const MAX_GRANTS: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// Where a caller wants to have a blob from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) registry: RegistryName,
    pub(crate) repository: RepositoryName,
    pub(crate) caller: Caller,
}

impl Source {
    /// One key for all three; names are validated and cannot contain the separator.
    pub(crate) fn key(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.caller.key());
        for part in [self.registry.as_str(), self.repository.as_str()] {
            hash.update(part);
            hash.update([0]);
        }
        hash.finalize().into()
    }

    fn grant_key(&self, digest: &Digest) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.key());
        hash.update(digest.as_bytes());
        hash.finalize().into()
    }
}

#[derive(Debug, Clone, Copy)]
struct Grant {
    /// When the origin last said so.
    confirmed: Instant,
    /// Whether a manifest that was served to the caller named the blob.
    named: bool,
}

/// The grants of a seeder.
#[derive(Debug)]
pub(crate) struct Access {
    registries: Arc<Registries>,
    metrics: Metrics,
    grants: Mutex<LruCache<[u8; 32], Grant>>,
    questions: Collapse<[u8; 32], Result<u64, OriginError>>,
}

impl Access {
    pub(crate) fn new(registries: Arc<Registries>, metrics: Metrics) -> Self {
        Self { registries, metrics, grants: Mutex::new(LruCache::new(MAX_GRANTS)), questions: Collapse::new() }
    }

    /// Notes that the origin answered for the blob itself just now.
    pub(crate) fn confirm(&self, source: &Source, digest: &Digest) {
        self.note(source.grant_key(digest), Instant::now(), false);
    }

    /// Notes that a manifest, which the origin gave at `confirmed`, was served and names these blobs.
    pub(crate) fn named(&self, source: &Source, digests: &[Digest], confirmed: Instant) {
        for digest in digests {
            self.note(source.grant_key(digest), confirmed, true);
        }
    }

    fn note(&self, key: [u8; 32], confirmed: Instant, named: bool) {
        let mut grants = self.lock();
        let grant = match grants.peek(&key) {
            Some(known) => Grant { confirmed: confirmed.max(known.confirmed), named: named || known.named },
            None => Grant { confirmed, named },
        };
        grants.put(key, grant);
    }

    /// Whether the caller may have the blob; `stored` says that this seeder can serve it without the
    /// origin.
    ///
    /// # Errors
    /// The origin's refusal, or why it could not be asked.
    pub(crate) async fn check(&self, source: &Source, digest: Digest, stored: bool) -> Result<(), OriginError> {
        let key = source.grant_key(&digest);
        let grant = self.lock().get(&key).copied();
        let age = grant.map(|grant| grant.confirmed.elapsed());
        if age.is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        match self.ask(source, digest).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_transient() => {
                let counts = grant.is_some_and(|grant| grant.named) || age.is_some_and(|age| age < OUTAGE);
                if stored && counts { Ok(()) } else { Err(error) }
            }
            Err(error) => {
                self.lock().pop(&key);
                Err(error)
            }
        }
    }

    /// Asks the origin for the size of a blob, and so whether the caller may have it.
    ///
    /// # Errors
    /// The origin's refusal, or why it could not be asked.
    pub(crate) async fn ask(&self, source: &Source, digest: Digest) -> Result<u64, OriginError> {
        let key = source.grant_key(&digest);
        let question = || {
            let registry = self.registries.get(&source.registry);
            let source = source.clone();
            let metrics = self.metrics.clone();
            async move {
                let answer = registry.blob_head(&source.repository, digest, &source.caller).await;
                metrics.origin_request("blob_head", answer.as_ref().err());
                answer
            }
            .boxed()
        };
        let size = self.questions.run(key, question).await?;
        self.confirm(source, &digest);
        Ok(size)
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<[u8; 32], Grant>> {
        // The map is whole between any two operations, so a panic elsewhere leaves it usable.
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
