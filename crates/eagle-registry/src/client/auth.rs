//! Authentication at a registry: Basic, and Bearer with tokens from the registry's token service.
//!
//! What a repository wanted last time is remembered, so that later requests carry a token at once;
//! concurrent requests that need the same token wait for one fetch of it. Credentials from a file may
//! change at any time; what was got with the former ones is forgotten then.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::{HeaderMap, HeaderValue};
use lru::LruCache;
use tokio::time::Instant;

use super::{
    challenge::{self, Wanted},
    token::{Token, TokenKey, TokenRequest, check_realm},
    transport::Transport,
};
use crate::{
    credentials::{Credentials, DockerConfigs},
    name::{RegistryName, RepositoryName},
    origin::OriginError,
};

/// Tokens and repositories remembered per registry; one pull uses one of each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(512).expect("not zero");

#[derive(Debug, Clone)]
enum Scheme {
    Basic,
    Bearer(TokenKey),
}

#[derive(Default)]
struct Slot {
    token: Mutex<Option<Token>>,
    /// The last fetch that brought no token, and when it ended: those who waited for it share it, or a
    /// dead token service would cost each of them a deadline, one after the other.
    failure: Mutex<Option<(Instant, Option<OriginError>)>>,
    /// Held across the fetch, on purpose: it makes the others wait for its result. The fetch has a
    /// deadline.
    fetching: tokio::sync::Mutex<()>,
}

/// Where the credentials for a registry, or a mirror of one, come from.
#[derive(Debug)]
pub(super) enum CredentialSource {
    /// Its own entry of the configuration.
    Configured(Credentials),
    /// Files, under the first of these names that they know.
    Files(Arc<DockerConfigs>, Vec<RegistryName>),
}

/// What is known about how to authenticate at one registry, or one mirror.
pub(super) struct Authenticator {
    registry: String,
    /// Whether the registry itself is reached without encryption, and so its token service may be.
    allows_http: bool,
    source: CredentialSource,
    /// What `source` gave last.
    credentials: Mutex<Option<Credentials>>,
    schemes: Mutex<LruCache<Option<RepositoryName>, Scheme>>,
    tokens: Mutex<LruCache<TokenKey, Arc<Slot>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics between two halves of a change of these maps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    fn valid(&self) -> Option<HeaderValue> {
        lock(&self.token).as_ref().filter(|token| Instant::now() < token.expires).map(|token| token.value.clone())
    }
}

impl Authenticator {
    pub(super) fn new(registry: String, allows_http: bool, source: CredentialSource) -> Self {
        let schemes = Mutex::new(LruCache::new(REMEMBERED));
        let tokens = Mutex::new(LruCache::new(REMEMBERED));
        Self { registry, allows_http, source, credentials: Mutex::default(), schemes, tokens }
    }

    /// The credentials at this moment.
    async fn credentials(&self) -> Option<Credentials> {
        let now = match &self.source {
            CredentialSource::Configured(credentials) => Some(credentials.clone()),
            CredentialSource::Files(files, names) => files.find(names).await,
        };
        let mut known = lock(&self.credentials);
        if *known != now {
            known.clone_from(&now);
            lock(&self.schemes).clear();
            lock(&self.tokens).clear();
        }
        now
    }

    /// The `Authorization` to send at once, from what the registry wanted for this repository before.
    pub(super) async fn remembered(&self, repository: Option<&RepositoryName>) -> Option<HeaderValue> {
        let credentials = self.credentials().await;
        let scheme = lock(&self.schemes).get(&repository.cloned()).cloned()?;
        match scheme {
            Scheme::Basic => credentials?.basic(),
            Scheme::Bearer(key) => lock(&self.tokens).get(&key).and_then(|slot| slot.valid()),
        }
    }

    /// The `Authorization` that answers the challenges of a 401, other than the one `used` that it
    /// refused. `None` when there is none: the 401 is final.
    pub(super) async fn answer(
        &self,
        transport: &Transport,
        challenges: &HeaderMap,
        repository: Option<&RepositoryName>,
        used: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, OriginError> {
        match challenge::wanted(challenges) {
            None => Ok(None),
            Some(Wanted::Basic) => {
                let basic = self.credentials().await.and_then(|credentials| credentials.basic());
                let Some(basic) = basic.filter(|basic| Some(basic) != used) else { return Ok(None) };
                lock(&self.schemes).put(repository.cloned(), Scheme::Basic);
                Ok(Some(basic))
            }
            Some(Wanted::Bearer { realm, service, scope }) => {
                let scope =
                    scope.or_else(|| repository.map(|name| format!("repository:{name}:pull"))).unwrap_or_default();
                let realm = check_realm(&self.registry, &realm, self.allows_http)?;
                let key = TokenKey { realm, service: service.unwrap_or_default(), scope };
                let credentials = self.credentials().await;
                let slot = Arc::clone(lock(&self.tokens).get_or_insert(key.clone(), Arc::default));
                let asked = Instant::now();
                let _fetching = slot.fetching.lock().await;
                if let Some(token) = slot.valid().filter(|token| Some(token) != used) {
                    lock(&self.schemes).put(repository.cloned(), Scheme::Bearer(key));
                    return Ok(Some(token));
                }
                if let Some((_, error)) = lock(&slot.failure).as_ref().filter(|(ended, _)| *ended >= asked) {
                    return error.clone().map_or(Ok(None), Err);
                }
                *lock(&slot.token) = None;
                let (registry, credentials) = (self.registry.as_str(), credentials.as_ref());
                let token = match (TokenRequest { registry, transport, key: &key, credentials }).send().await {
                    Ok(Some(token)) => token,
                    failed => {
                        let error = failed.err();
                        *lock(&slot.failure) = Some((Instant::now(), error.clone()));
                        return error.map_or(Ok(None), Err);
                    }
                };
                *lock(&slot.token) = Some(token.clone());
                lock(&self.schemes).put(repository.cloned(), Scheme::Bearer(key));
                Ok(Some(token.value))
            }
        }
    }
}
