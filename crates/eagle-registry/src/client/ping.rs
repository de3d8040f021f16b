//! A look at a registry that asks for nothing: is it there, is it one, does it take the credentials.

use http::{HeaderMap, Method, StatusCode};

use super::{Registry, exchange::Question};
use crate::{caller::Caller, origin::OriginError};

/// What a registry answered to `GET /v2/`, with Eagle's own credentials where it wants any.
#[derive(Debug)]
pub struct Ping {
    /// Its URL.
    pub url: String,
    /// 200, or the last word on the credentials.
    pub status: StatusCode,
    /// Headers of that answer.
    pub headers: HeaderMap,
    /// Whether the configuration has credentials for it.
    pub has_credentials: bool,
}

impl Registry {
    /// Asks the registry itself, and none of its mirrors, once.
    ///
    /// # Errors
    /// When there is no answer, or the token service gives none.
    pub async fn ping(&self) -> Result<Ping, OriginError> {
        let caller = Caller::anonymous();
        let question = Question {
            method: &Method::GET,
            path: "",
            headers: HeaderMap::new(),
            repository: None,
            caller: &caller,
            blob: None,
        };
        let host = self.hosts.registry();
        let has_credentials = host.auth.has_own_credentials().await;
        let answer = self.exchange(host, &question).await?;
        let (parts, _) = answer.response.into_parts();
        Ok(Ping { url: host.url(""), status: parts.status, headers: parts.headers, has_credentials })
    }
}
