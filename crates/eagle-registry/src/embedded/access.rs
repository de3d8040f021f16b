//! Who may read from the embedded registry.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, header};
use lru::LruCache;
use serde_json::json;
use tokio::time::Instant;

use crate::{config::Secret, name::RepositoryName};

/// Tokens that are valid at a time; more push out the oldest.
const MAX_TOKENS: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// Where tokens are to be had.
pub(super) const TOKEN_PATH: &str = "/_token";
const SERVICE: &str = "eagle-embedded-registry";

/// Who may read.
#[derive(Debug, Clone, Default)]
pub enum Access {
    /// Everyone.
    #[default]
    Open,
    /// These users, with their password in every request.
    Basic(Vec<User>),
    /// Whoever shows a token of the registry's own token service.
    Bearer {
        /// Who gets a token for what.
        users: Vec<User>,
        /// Whether everyone gets one for everything.
        anonymous: bool,
        /// How long a token lives.
        lifetime: Duration,
    },
}

/// One user.
#[derive(Debug, Clone)]
pub struct User {
    /// Name.
    pub username: String,
    /// Password.
    pub password: Secret,
    /// What the user may read; `None` for everything.
    pub repositories: Option<Vec<RepositoryName>>,
}

impl User {
    /// A user who may read everything.
    pub fn new(username: &str, password: &str) -> Self {
        Self { username: username.to_owned(), password: Secret::new(password), repositories: None }
    }

    fn may_read(&self, repository: &RepositoryName) -> bool {
        self.repositories.as_ref().is_none_or(|list| list.contains(repository))
    }
}

/// Why a request is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// 401 with this challenge.
    Challenge(String),
    /// 403.
    Denied,
}

#[derive(Debug)]
struct Grant {
    repositories: Vec<RepositoryName>,
    expires: Instant,
}

/// Checks credentials and gives out tokens.
#[derive(Debug)]
pub(super) struct Guard {
    access: Access,
    tokens: Mutex<LruCache<String, Grant>>,
}

impl Guard {
    pub(super) fn new(access: Access) -> Self {
        Self { access, tokens: Mutex::new(LruCache::new(MAX_TOKENS)) }
    }

    /// Whether a request may read. `url` is the registry's own, as the client sees it.
    pub(super) fn check(
        &self,
        headers: &HeaderMap,
        repository: Option<&RepositoryName>,
        url: &str,
    ) -> Result<(), Refusal> {
        match &self.access {
            Access::Open => Ok(()),
            Access::Basic(users) => match (user(users, headers), repository) {
                (Some(user), Some(repository)) if !user.may_read(repository) => Err(Refusal::Denied),
                (Some(_), _) => Ok(()),
                (None, _) => Err(Refusal::Challenge(format!("Basic realm=\"{SERVICE}\""))),
            },
            Access::Bearer { .. } => {
                let token = authorization(headers, "bearer");
                let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                let grant = token.and_then(|token| tokens.get(token)).filter(|grant| Instant::now() < grant.expires);
                if grant.is_some_and(|grant| repository.is_none_or(|name| grant.repositories.contains(name))) {
                    return Ok(());
                }
                let mut challenge = format!("Bearer realm=\"{url}{TOKEN_PATH}\",service=\"{SERVICE}\"");
                if let Some(name) = repository {
                    challenge.push_str(&format!(",scope=\"repository:{name}:pull\""));
                }
                if token.is_some() {
                    challenge.push_str(",error=\"invalid_token\"");
                }
                Err(Refusal::Challenge(challenge))
            }
        }
    }

    /// Answers the token service: the JSON with a token, or a refusal.
    pub(super) fn token(&self, headers: &HeaderMap, query: &str) -> Result<String, Refusal> {
        let Access::Bearer { users, anonymous, lifetime } = &self.access else { return Err(Refusal::Denied) };
        let user = user(users, headers);
        let sent_credentials = headers.contains_key(header::AUTHORIZATION);
        if user.is_none() && (sent_credentials || !anonymous) {
            return Err(Refusal::Challenge(format!("Basic realm=\"{SERVICE}\"")));
        }
        let repositories = url::form_urlencoded::parse(query.as_bytes())
            .filter(|(key, _)| key == "scope")
            .filter_map(|(_, scope)| {
                let name = scope.strip_prefix("repository:")?.strip_suffix(":pull")?.parse().ok()?;
                user.is_none_or(|user| user.may_read(&name)).then_some(name)
            })
            .take(16)
            .collect();
        let token = hex::encode(rand::random::<[u8; 16]>());
        let grant = Grant { repositories, expires: Instant::now() + *lifetime };
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).put(token.clone(), grant);
        Ok(json!({ "token": token, "expires_in": lifetime.as_secs() }).to_string())
    }

    pub(super) fn revoke(&self) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The credentials of a scheme, given in lower case.
fn authorization<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let (found, value) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    found.eq_ignore_ascii_case(scheme).then(|| value.trim())
}

fn user<'a>(users: &'a [User], headers: &HeaderMap) -> Option<&'a User> {
    let pair = BASE64_STANDARD.decode(authorization(headers, "basic")?).ok()?;
    let (username, password) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    users.iter().find(|user| user.username == username && user.password.expose() == password)
}
