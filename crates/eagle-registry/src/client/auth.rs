//! Authentication at a registry: Basic, and Bearer with tokens from the registry's token service
//! (Docker's "Token Authentication Specification").
//!
//! What a repository wanted last time is remembered, so that later requests carry a token at once;
//! concurrent requests that need the same token wait for one fetch of it.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use lru::LruCache;
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use super::{
    challenge::{self, Wanted},
    refusal,
    transport::Transport,
};
use crate::{
    body::{guard, read_up_to},
    config::Secret,
    name::RepositoryName,
    origin::OriginError,
};

/// Tokens and repositories remembered per registry; one pull uses one of each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(512).expect("not zero");
/// Largest answer of a token service, bytes; tokens with many grants have some KiB.
const MAX_TOKEN_ANSWER: usize = 64 << 10;
/// Lifetime of a token that names none (the specification's default).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// Longest lifetime that is believed.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// A token is renewed this long before its end, or at nine tenths of its life when that is later, so
/// that it does not run out on the way.
const MARGIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    realm: Url,
    service: String,
    scope: String,
}

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

#[derive(Clone)]
struct Token {
    value: HeaderValue,
    expires: Instant,
}

/// What one registry knows about how to authenticate.
pub(super) struct Authenticator {
    registry: String,
    /// Whether the registry itself is reached without encryption, and so its token service may be.
    allows_http: bool,
    basic: Option<HeaderValue>,
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
    pub(super) fn new(registry: String, allows_http: bool, credentials: Option<(&str, &Secret)>) -> Self {
        let basic = credentials.map(|(username, password)| {
            let pair = BASE64_STANDARD.encode(format!("{username}:{}", password.expose()));
            let mut value = crate::headers::value(&format!("Basic {pair}"));
            value.set_sensitive(true);
            value
        });
        let schemes = Mutex::new(LruCache::new(REMEMBERED));
        let tokens = Mutex::new(LruCache::new(REMEMBERED));
        Self { registry, allows_http, basic, schemes, tokens }
    }

    /// The `Authorization` to send at once, from what the registry wanted for this repository before.
    pub(super) fn remembered(&self, repository: Option<&RepositoryName>) -> Option<HeaderValue> {
        let scheme = lock(&self.schemes).get(&repository.cloned()).cloned()?;
        match scheme {
            Scheme::Basic => self.basic.clone(),
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
                let Some(basic) = self.basic.clone().filter(|basic| Some(basic) != used) else { return Ok(None) };
                lock(&self.schemes).put(repository.cloned(), Scheme::Basic);
                Ok(Some(basic))
            }
            Some(Wanted::Bearer { realm, service, scope }) => {
                let scope =
                    scope.or_else(|| repository.map(|name| format!("repository:{name}:pull"))).unwrap_or_default();
                let key = TokenKey { realm: self.realm(&realm)?, service: service.unwrap_or_default(), scope };
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
                let token = match self.fetch(transport, &key).await {
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

    /// Checks where the registry sends its clients for a token: the password goes there.
    fn realm(&self, realm: &str) -> Result<Url, OriginError> {
        let refuse = |problem: &str| OriginError::protocol(&self.registry, format!("its token service {problem}"));
        let mut url: Url = realm.parse().map_err(|_| refuse("is not a URL"))?;
        url.set_fragment(None);
        let host = url.host_str().unwrap_or_default();
        if host.is_empty() || !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("has no host, or credentials in its URL"));
        }
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.allows_http => Ok(url),
            scheme => Err(refuse(&format!("{host} is reached over {scheme}, which Eagle refuses"))),
        }
    }

    /// Gets a token. `None` when the service refuses one for these credentials.
    async fn fetch(&self, transport: &Transport, key: &TokenKey) -> Result<Option<Token>, OriginError> {
        let mut url = key.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if !key.service.is_empty() {
                query.append_pair("service", &key.service);
            }
            for scope in key.scope.split_ascii_whitespace() {
                query.append_pair("scope", scope);
            }
        }
        let mut headers = super::own_headers();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(basic) = &self.basic {
            headers.insert(header::AUTHORIZATION, basic.clone());
        }
        // No redirects: the request may carry a password.
        let response = transport.send_once(&self.registry, &Method::GET, &url, headers).await?;
        let (parts, body) = response.into_parts();
        let limit = transport.response_timeout();
        let body = guard(body, None, limit, &self.registry);
        let status = parts.status;
        if status != StatusCode::OK {
            if matches!(status.as_u16(), 400 | 401 | 403 | 404) {
                tracing::warn!(registry = self.registry, host = url.host_str(), %status, "no token from the token service");
                return Ok(None);
            }
            return Err(refusal(&self.registry, status, &parts.headers, body, limit).await);
        }
        let answer = tokio::time::timeout(limit, read_up_to(body, MAX_TOKEN_ANSWER))
            .await
            .map_err(|_| OriginError::Timeout { registry: self.registry.clone(), what: "a token", after: limit })??;
        let token = answer.as_deref().and_then(|answer| read_token(answer, Instant::now()));
        token.map(Some).ok_or_else(|| OriginError::protocol(&self.registry, "its token service sent no usable token"))
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    /// The OAuth 2.0 name of the same.
    #[serde(default)]
    access_token: Option<String>,
    /// Whole seconds in the specification; services have sent floats and strings.
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
}

fn read_token(answer: &[u8], now: Instant) -> Option<Token> {
    let answer: TokenAnswer = serde_json::from_slice(answer).ok()?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty())?;
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    let lifetime = answer
        .expires_in
        .and_then(|seconds| seconds.as_f64())
        .filter(|seconds| *seconds > 0.0)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or(DEFAULT_LIFETIME)
        .min(MAX_LIFETIME);
    let expires = now + lifetime.saturating_sub(MARGIN).max(lifetime.mul_f64(0.9));
    Some(Token { value, expires })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_tokens_of_all_services() {
        let now = Instant::now();
        let life = |json: &str| read_token(json.as_bytes(), now).map(|token| token.expires - now);
        assert_eq!(life(r#"{"token":"t","expires_in":300}"#), Some(Duration::from_secs(290)));
        assert_eq!(life(r#"{"access_token":"t"}"#), Some(Duration::from_secs(54)));
        assert_eq!(life(r#"{"token":"t","expires_in":-1}"#), Some(Duration::from_secs(54)));
        assert!(life(r#"{"token":"t","expires_in":1e300}"#).is_some_and(|life| life <= MAX_LIFETIME));
        for bad in ["", "{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, "[]"] {
            assert_eq!(life(bad), None, "{bad}");
        }
        let token = read_token(br#"{"token":"secret"}"#, now).unwrap();
        assert!(!format!("{:?}", token.value).contains("secret"));
    }

    #[test]
    fn passwords_go_to_encrypted_token_services_only() {
        let secure = Authenticator::new("a".to_owned(), false, None);
        let open = Authenticator::new("a".to_owned(), true, None);
        assert!(secure.realm("https://b/token?x=1").is_ok());
        assert!(secure.realm("http://b/token").is_err());
        assert!(open.realm("http://b/token").is_ok());
        for bad in ["", "/token", "ftp://b/", "https://u:p@b/", "file:///etc/passwd"] {
            assert!(open.realm(bad).is_err(), "{bad}");
        }
    }
}
