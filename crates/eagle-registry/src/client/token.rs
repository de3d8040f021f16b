//! Tokens: how the token service of a registry is asked for one, and what it answers (Docker's "Token
//! Authentication Specification", and its OAuth 2.0 form).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::time::Instant;
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use super::{refusal, transport::Transport};
use crate::{
    body::{guard, read_up_to},
    config::Secret,
    credentials::Credentials,
    origin::OriginError,
};

/// Largest answer of a token service, bytes; tokens with many grants have some KiB.
const MAX_TOKEN_ANSWER: usize = 64 << 10;
/// Lifetime of a token that names none (the specification's default).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// Longest lifetime that is believed.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// A token is renewed this long before its end, or at nine tenths of its life when that is later, so
/// that it does not run out on the way.
const MARGIN: Duration = Duration::from_secs(10);
/// `client_id` of the OAuth 2.0 form, which services want to log.
const CLIENT_ID: &str = "eagle";

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TokenKey {
    pub(crate) realm: Url,
    pub(crate) service: String,
    pub(crate) scope: String,
}

#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) value: HeaderValue,
    pub(crate) expires: Instant,
}

/// Checks where a registry sends its clients for a token: the password goes there. Unencrypted only
/// when the registry itself is.
///
/// # Errors
/// [`OriginError::Protocol`] when it is no such place.
pub(crate) fn check_realm(registry: &str, realm: &str, allows_http: bool) -> Result<Url, OriginError> {
    let refuse = |problem: &str| OriginError::protocol(registry, format!("its token service {problem}"));
    let mut url: Url = realm.parse().map_err(|_| refuse("is not a URL"))?;
    url.set_fragment(None);
    let host = url.host_str().unwrap_or_default();
    if host.is_empty() || !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("has no host, or credentials in its URL"));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if allows_http => Ok(url),
        scheme => Err(refuse(&format!("{host} is reached over {scheme}, which Eagle refuses"))),
    }
}

/// Asks a token service.
pub(crate) struct TokenRequest<'a> {
    pub(crate) registry: &'a str,
    pub(crate) transport: &'a Transport,
    pub(crate) key: &'a TokenKey,
    pub(crate) credentials: Option<&'a Credentials>,
}

impl TokenRequest<'_> {
    /// Gets a token; none when the service refuses one for these credentials.
    ///
    /// An identity token goes by `POST`; a login, or nothing, by `GET`, and a login by `POST` where the
    /// service knows no `GET`.
    ///
    /// # Errors
    /// When there is no answer, or none that is a token or a refusal.
    pub(crate) async fn send(&self) -> Result<Option<Token>, OriginError> {
        let identity_token = self.credentials.and_then(|credentials| credentials.identity_token.as_ref());
        if let Some(token) = identity_token {
            let grant = [("grant_type", "refresh_token"), ("refresh_token", token.expose())];
            return self.read(self.post(&grant).await?).await;
        }
        let response = self.get().await?;
        let login = self.credentials.and_then(|credentials| credentials.login.as_ref());
        if let Some((username, password)) = login
            && matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)
        {
            drop(response);
            let grant = [("grant_type", "password"), ("username", username), ("password", password.expose())];
            return self.read(self.post(&grant).await?).await;
        }
        self.read(response).await
    }

    async fn get(&self) -> Result<Response<Incoming>, OriginError> {
        let mut url = self.key.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if !self.key.service.is_empty() {
                query.append_pair("service", &self.key.service);
            }
            for scope in self.key.scope.split_ascii_whitespace() {
                query.append_pair("scope", scope);
            }
        }
        let mut headers = json_wanted();
        if let Some(basic) = self.credentials.and_then(Credentials::basic) {
            headers.insert(header::AUTHORIZATION, basic);
        }
        // No redirects: the request may carry a password.
        self.transport.send_once(self.registry, &Method::GET, &url, headers, Bytes::new()).await
    }

    /// RFC 6749, 4.3.2 and 6.
    async fn post(&self, grant: &[(&str, &str)]) -> Result<Response<Incoming>, OriginError> {
        let mut headers = json_wanted();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let body = self.form(grant);
        self.transport.send_once(self.registry, &Method::POST, &self.key.realm, headers, body).await
    }

    fn form(&self, grant: &[(&str, &str)]) -> Bytes {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(grant).append_pair("client_id", CLIENT_ID).append_pair("service", &self.key.service);
        if !self.key.scope.is_empty() {
            form.append_pair("scope", &self.key.scope);
        }
        form.finish().into()
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Option<Token>, OriginError> {
        let (parts, body) = response.into_parts();
        let limit = self.transport.response_timeout();
        let body = guard(body, None, limit, self.registry);
        let (registry, status) = (self.registry, parts.status);
        if status != StatusCode::OK {
            if matches!(status.as_u16(), 400 | 401 | 403 | 404 | 405) {
                let host = self.key.realm.host_str();
                tracing::warn!(registry, host, %status, "no token from the token service");
                return Ok(None);
            }
            return Err(refusal(registry, status, &parts.headers, body, limit).await);
        }
        let answer = tokio::time::timeout(limit, read_up_to(body, MAX_TOKEN_ANSWER))
            .await
            .map_err(|_| OriginError::Timeout { registry: registry.to_owned(), what: "a token", after: limit })??;
        let token = answer.as_deref().and_then(|answer| read_token(answer, Instant::now()));
        token.map(Some).ok_or_else(|| OriginError::protocol(registry, "its token service sent no usable token"))
    }
}

fn json_wanted() -> HeaderMap {
    let mut headers = super::own_headers();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<Secret>,
    /// The OAuth 2.0 name of the same.
    #[serde(default)]
    access_token: Option<Secret>,
    /// Whole seconds in the specification; services have sent floats and strings.
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
}

pub(crate) fn read_token(answer: &[u8], now: Instant) -> Option<Token> {
    let answer: TokenAnswer = serde_json::from_slice(answer).ok()?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.expose().is_empty())?;
    let mut text = Zeroizing::new(String::with_capacity("Bearer ".len() + token.expose().len()));
    text.extend(["Bearer ", token.expose()]);
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    let seconds = answer.expires_in.and_then(|seconds| match seconds {
        serde_json::Value::String(text) => text.trim().parse().ok(),
        number => number.as_f64(),
    });
    let lifetime = seconds
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
        assert_eq!(life(r#"{"token":"t","expires_in":"300"}"#), Some(Duration::from_secs(290)));
        assert_eq!(life(r#"{"access_token":"t"}"#), Some(Duration::from_secs(54)));
        for default in ["-1", "0", "\"-5\"", "\"soon\"", "null", "[]", "{}", "\"NaN\"", "true"] {
            let answer = format!(r#"{{"token":"t","expires_in":{default}}}"#);
            assert_eq!(life(&answer), Some(Duration::from_secs(54)), "{default}");
        }
        for long in ["1e300", "18446744073709551616", "\"inf\""] {
            let answer = format!(r#"{{"token":"t","expires_in":{long}}}"#);
            assert!(life(&answer).is_some_and(|life| life <= MAX_LIFETIME), "{long}");
        }
        for bad in ["", "{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, r#"{"token":"\u00e4\u0000"}"#, "[]", "<html>"] {
            assert_eq!(life(bad), None, "{bad}");
        }
        let token = read_token(br#"{"token":"secret"}"#, now).unwrap();
        assert!(!format!("{:?}", token.value).contains("secret"));
    }

    #[test]
    fn passwords_go_to_encrypted_token_services_only() {
        assert!(check_realm("a", "https://b/token?x=1", false).is_ok());
        assert!(check_realm("a", "http://b/token", false).is_err());
        assert!(check_realm("a", "http://b/token", true).is_ok());
        for bad in ["", "/token", "ftp://b/", "https://u:p@b/", "file:///etc/passwd", "https://", "javascript:x"] {
            assert!(check_realm("a", bad, true).is_err(), "{bad}");
        }
    }
}
