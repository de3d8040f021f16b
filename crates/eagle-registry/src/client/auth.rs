//! Authentication at a registry: Basic, and Bearer with tokens from the registry's token service.
//!
//! What a repository wanted last time is remembered, so that later requests carry a token at once;
//! concurrent requests that need the same token wait for one fetch of it. Credentials from a file may
//! change at any time; what was got with the former ones is forgotten then.
//!
//! A caller with a name and password of its own is served the same way: where the registry wants a token, one is
//! fetched with the caller's own password, and used for nobody else.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
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
    caller::Caller,
    credentials::{Credentials, DockerConfigs},
    name::{RegistryName, RepositoryName},
    origin::OriginError,
};

/// Tokens and repositories remembered per registry; one pull uses one of each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(512).expect("not zero");
/// Longest use of a token that was got with a caller's password: Docker Hub's lifetime of a token. It is how long a
/// password counts on after it was changed.
const CALLER_LIFETIME: Duration = Duration::from_secs(300);

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
    own: Memory,
    /// Apart, so that callers cannot push out what Eagle itself needs.
    callers: Memory,
}

/// Whose requests: those of Eagle itself, or of the caller with this key.
type Holder = Option<[u8; 32]>;

/// What was wanted, and what was got for it.
struct Memory {
    schemes: Mutex<LruCache<(Holder, Option<RepositoryName>), Scheme>>,
    tokens: Mutex<LruCache<(Holder, TokenKey), Arc<Slot>>>,
}

impl Memory {
    fn new() -> Self {
        Self { schemes: Mutex::new(LruCache::new(REMEMBERED)), tokens: Mutex::new(LruCache::new(REMEMBERED)) }
    }
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
        let (own, callers) = (Memory::new(), Memory::new());
        Self { registry, allows_http, source, credentials: Mutex::default(), own, callers }
    }

    fn memory(&self, holder: &Holder) -> &Memory {
        if holder.is_some() { &self.callers } else { &self.own }
    }

    /// Who asks, and with what: a caller by itself, and Eagle for those who say nothing of themselves.
    async fn holder(&self, caller: &Caller) -> (Holder, Option<Credentials>) {
        match &caller.authorization {
            Some(authorization) => (Some(caller.key()), Credentials::of_basic(authorization)),
            None => (None, self.own_credentials().await),
        }
    }

    /// Whether there are credentials of Eagle's own for it.
    pub(super) async fn has_own_credentials(&self) -> bool {
        self.own_credentials().await.is_some()
    }

    /// Eagle's credentials at this moment.
    async fn own_credentials(&self) -> Option<Credentials> {
        let now = match &self.source {
            CredentialSource::Configured(credentials) => Some(credentials.clone()),
            CredentialSource::Files(files, names) => files.find(names).await,
        };
        let mut known = lock(&self.credentials);
        if *known != now {
            known.clone_from(&now);
            lock(&self.own.schemes).clear();
            lock(&self.own.tokens).clear();
        }
        now
    }

    /// The `Authorization` to send at once: from what the registry wanted for this repository before, else what the
    /// caller brought.
    pub(super) async fn remembered(&self, caller: &Caller, repository: Option<&RepositoryName>) -> Option<HeaderValue> {
        let (holder, credentials) = self.holder(caller).await;
        let memory = self.memory(&holder);
        let scheme = lock(&memory.schemes).get(&(holder, repository.cloned())).cloned();
        let remembered = match scheme {
            Some(Scheme::Basic) => credentials.and_then(|credentials| credentials.basic()),
            Some(Scheme::Bearer(key)) => lock(&memory.tokens).get(&(holder, key)).and_then(|slot| slot.valid()),
            None => None,
        };
        remembered.or_else(|| caller.authorization.clone())
    }

    /// The `Authorization` that answers the challenges of a 401, other than the one `used` that it
    /// refused. `None` when there is none: the 401 is final.
    pub(super) async fn answer(
        &self,
        transport: &Transport,
        challenges: &HeaderMap,
        caller: &Caller,
        repository: Option<&RepositoryName>,
        used: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, OriginError> {
        let (holder, credentials) = self.holder(caller).await;
        if holder.is_some() && credentials.is_none() {
            // What the caller brought is for the registry alone to judge.
            return Ok(None);
        }
        let memory = self.memory(&holder);
        match challenge::wanted(challenges) {
            None => Ok(None),
            Some(Wanted::Basic) => {
                let basic = credentials.and_then(|credentials| credentials.basic());
                let Some(basic) = basic.filter(|basic| Some(basic) != used) else { return Ok(None) };
                lock(&memory.schemes).put((holder, repository.cloned()), Scheme::Basic);
                Ok(Some(basic))
            }
            Some(Wanted::Bearer { realm, service, scope }) => {
                let scope =
                    scope.or_else(|| repository.map(|name| format!("repository:{name}:pull"))).unwrap_or_default();
                let realm = check_realm(&self.registry, &realm, self.allows_http)?;
                let key = TokenKey { realm, service: service.unwrap_or_default(), scope };
                let token = self.token(transport, &holder, credentials.as_ref(), &key, used).await?;
                if token.is_some() {
                    lock(&memory.schemes).put((holder, repository.cloned()), Scheme::Bearer(key));
                }
                Ok(token)
            }
        }
    }

    /// A token for what `key` says, other than the one `used` that was refused: one that is there, or a new one. `None`
    /// when the token service gives none.
    async fn token(
        &self,
        transport: &Transport,
        holder: &Holder,
        credentials: Option<&Credentials>,
        key: &TokenKey,
        used: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, OriginError> {
        let slot = Arc::clone(lock(&self.memory(holder).tokens).get_or_insert((*holder, key.clone()), Arc::default));
        let asked = Instant::now();
        let _fetching = slot.fetching.lock().await;
        if let Some(token) = slot.valid().filter(|token| Some(token) != used) {
            return Ok(Some(token));
        }
        if let Some((_, error)) = lock(&slot.failure).as_ref().filter(|(ended, _)| *ended >= asked) {
            return error.clone().map_or(Ok(None), Err);
        }
        *lock(&slot.token) = None;
        let registry = self.registry.as_str();
        let mut token = match (TokenRequest { registry, transport, key, credentials }).send().await {
            Ok(Some(token)) => token,
            failed => {
                let error = failed.err();
                *lock(&slot.failure) = Some((Instant::now(), error.clone()));
                return error.map_or(Ok(None), Err);
            }
        };
        if holder.is_some() {
            token.expires = token.expires.min(Instant::now() + CALLER_LIFETIME);
        }
        *lock(&slot.token) = Some(token.clone());
        Ok(Some(token.value))
    }

    /// What a caller with a name and a password of its own shows to a registry with these challenges for what `scope`
    /// says; `None` when there is nothing that would help.
    pub(super) async fn for_scope(
        &self,
        transport: &Transport,
        challenges: &HeaderMap,
        caller: &Caller,
        scope: String,
        used: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, OriginError> {
        let credentials = caller.authorization.as_ref().and_then(Credentials::of_basic);
        match challenge::wanted(challenges) {
            None => Ok(caller.authorization.clone()),
            Some(Wanted::Basic) => Ok(credentials.and_then(|credentials| credentials.basic())),
            Some(Wanted::Bearer { realm, service, .. }) => {
                let realm = check_realm(&self.registry, &realm, self.allows_http)?;
                let key = TokenKey { realm, service: service.unwrap_or_default(), scope };
                self.token(transport, &Some(caller.key()), credentials.as_ref(), &key, used).await
            }
        }
    }
}
