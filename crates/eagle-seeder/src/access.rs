//! Who may read which blob: the origin decides, per caller, and the answer is kept for a while.
//!
//! A *grant* says that the origin let a caller read a blob of a repository: it answered a `HEAD` or
//! `GET` of the blob, or a manifest that names it. A grant younger than `grant_ttl` is believed, and for
//! longer where the configuration says that everybody may read all of a registry. Later the origin is
//! asked again, and only when it cannot be asked does an older grant count, and only for
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

/// What a grant, or its absence, is worth at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    /// Believed.
    Enough,
    /// The origin has to be asked; when it cannot be, this counts for a stored blob.
    InAnOutage,
    /// The origin has to be asked.
    Nothing,
}

/// A grant younger than `ttl` is believed.
fn worth(grant: Option<Grant>, now: Instant, ttl: Duration) -> Worth {
    let Some(Grant { confirmed, named }) = grant else { return Worth::Nothing };
    match now.saturating_duration_since(confirmed) {
        age if age < ttl => Worth::Enough,
        age if named || age < OUTAGE => Worth::InAnOutage,
        _ => Worth::Nothing,
    }
}

/// The grants of a seeder.
#[derive(Debug)]
pub(crate) struct Access {
    registries: Arc<Registries>,
    metrics: Metrics,
    ttl: Duration,
    grants: Mutex<LruCache<[u8; 32], Grant>>,
    questions: Collapse<[u8; 32], Result<u64, OriginError>>,
}

impl Access {
    /// No grants; each is believed for `ttl`, and for longer where everybody may read everything.
    pub(crate) fn new(registries: Arc<Registries>, metrics: Metrics, ttl: Duration) -> Self {
        let grants = Mutex::new(LruCache::new(MAX_GRANTS));
        Self { registries, metrics, ttl, grants, questions: Collapse::new() }
    }

    /// How long the origin's word about a caller is believed.
    pub(crate) fn ttl(&self, registry: &RegistryName) -> Duration {
        self.registries.get(registry).grant_ttl(self.ttl)
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

    /// Notes that the origin has refused the caller a manifest which names these blobs.
    pub(crate) fn revoke(&self, source: &Source, digests: &[Digest]) {
        let mut grants = self.lock();
        for digest in digests {
            grants.pop(&source.grant_key(digest));
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

    /// Whether the caller may have the blob, and how long ago the origin said so; `stored` says that this
    /// seeder can serve it without the origin. In an outage the word counts as fresh: it cannot be had
    /// again.
    ///
    /// # Errors
    /// The origin's refusal, or why it could not be asked.
    pub(crate) async fn check(&self, source: &Source, digest: Digest, stored: bool) -> Result<Duration, OriginError> {
        let key = source.grant_key(&digest);
        let grant = self.lock().get(&key).copied();
        let now = Instant::now();
        let worth = worth(grant, now, self.ttl(&source.registry));
        if worth == Worth::Enough {
            self.metrics.spared("blob_head");
            return Ok(grant.map_or(Duration::ZERO, |grant| now.saturating_duration_since(grant.confirmed)));
        }
        match self.ask(source, digest).await {
            Ok(_) => Ok(Duration::ZERO),
            Err(error) if error.is_transient() => match worth {
                Worth::InAnOutage if stored => Ok(Duration::ZERO),
                _ => Err(error),
            },
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

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(300);

    fn access() -> Access {
        let registries = Registries::new(Vec::new()).expect("defaults are valid");
        Access::new(Arc::new(registries), Metrics::default(), TTL)
    }

    fn source(authorization: Option<&'static str>, repository: &str) -> Source {
        let authorization = authorization.map(http::HeaderValue::from_static);
        Source {
            registry: "registry.test".parse().unwrap(),
            repository: repository.parse().unwrap(),
            caller: Caller { authorization, ..Caller::anonymous() },
        }
    }

    #[tokio::test(start_paused = true)]
    async fn grants_fade() {
        let start = Instant::now();
        let grant = |named| Some(Grant { confirmed: start, named });
        let second = Duration::from_secs(1);
        assert_eq!(worth(None, start, TTL), Worth::Nothing);
        assert_eq!(worth(grant(false), start + TTL - second, TTL), Worth::Enough);
        assert_eq!(worth(grant(false), start + TTL, TTL), Worth::InAnOutage);
        assert_eq!(worth(grant(false), start + OUTAGE, TTL), Worth::Nothing);
        assert_eq!(worth(grant(true), start + OUTAGE * 24, TTL), Worth::InAnOutage);
        assert_eq!(worth(grant(true), start, Duration::ZERO), Worth::InAnOutage);
    }

    #[tokio::test]
    async fn a_grant_is_for_one_caller_repository_and_blob() {
        let access = access();
        let digest = Digest::of(b"layer");
        let mine = source(Some("Basic YTphCg=="), "a/b");
        access.confirm(&mine, &digest);
        let granted = |source: &Source, digest: &Digest| access.lock().contains(&source.grant_key(digest));
        assert!(granted(&mine, &digest));
        assert!(!granted(&mine, &Digest::of(b"other")));
        for other in [source(None, "a/b"), source(Some("Basic YTpiCg=="), "a/b"), source(Some("Basic YTphCg=="), "a/c")]
        {
            assert!(!granted(&other, &digest), "{other:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_word_of_the_origin_takes_nothing_away() {
        let access = access();
        let (source, digest) = (source(None, "a"), Digest::of(b"layer"));
        let before = Instant::now();
        tokio::time::advance(Duration::from_secs(10)).await;
        access.confirm(&source, &digest);
        access.named(&source, &[digest], before);
        let grant = access.lock().get(&source.grant_key(&digest)).copied().unwrap();
        assert_eq!((grant.confirmed, grant.named), (Instant::now(), true));
    }

    #[test]
    fn grants_are_bounded() {
        let access = access();
        let source = source(None, "a");
        let now = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async { Instant::now() });
        let digests: Vec<_> = (0..MAX_GRANTS.get() + 10).map(|number| Digest::of(&number.to_le_bytes())).collect();
        access.named(&source, &digests, now);
        assert_eq!(access.lock().len(), MAX_GRANTS.get());
    }
}
