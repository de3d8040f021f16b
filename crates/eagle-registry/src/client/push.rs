//! What a caller shows that pushes by way of somebody else.
//!
//! Who pushes sends the content of a blob once, and cannot be asked for another try after a 401. So the registry is asked
//! beforehand how it knows its users, and where it wants a token, that is fetched with the caller's own name and
//! password, for the repository and for what is to be done there.

use std::{sync::PoisonError, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use tokio::time::Instant;
use url::Url;

use super::{Registry, own_headers};
use crate::{caller::Caller, name::RepositoryName, origin::OriginError};

/// For how long the registry's word counts how it knows its users: a step of a push that is refused asks again.
const CHALLENGE_LIFETIME: Duration = Duration::from_secs(300);

/// How a registry knows its users, and when it said so.
pub(super) type KnownChallenge = Option<(Instant, HeaderMap)>;

impl Registry {
    /// The `Authorization` with which a caller that brought a name and a password does what `method` says in a repository.
    /// Other callers speak for themselves. `refused` is what was shown in vain before.
    ///
    /// # Errors
    /// When the registry does not say what it wants, or its token service gives no answer.
    pub async fn authorize_push(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        method: &Method,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, OriginError> {
        if !caller.has_password() {
            return Ok(caller.authorization.clone());
        }
        let challenges = self.challenges(refused.is_some()).await?;
        // The words of the token services of Docker Hub and Docker Distribution; others have taken them over.
        let actions = if *method == Method::DELETE { "delete" } else { "pull,push" };
        let scope = format!("repository:{repository}:{actions}");
        self.hosts.registry().auth.for_scope(&self.transport, &challenges, caller, scope, refused).await
    }

    /// What the registry answers to who says nothing of itself (distribution-spec 1.1, "Determining Support").
    async fn challenges(&self, again: bool) -> Result<HeaderMap, OriginError> {
        let known = self.push_challenge.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, challenges)) = known.filter(|(at, _)| !again && at.elapsed() < CHALLENGE_LIFETIME) {
            return Ok(challenges);
        }
        let url = self.hosts.registry().url("");
        let url: Url = url.parse().map_err(|error| self.protocol(&format!("{url}: {error}")))?;
        let answer =
            self.transport.send_once(self.name.as_str(), &Method::GET, &url, own_headers(), Bytes::new()).await?;
        let challenges = answer.headers().clone();
        *self.push_challenge.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), challenges.clone()));
        Ok(challenges)
    }
}
