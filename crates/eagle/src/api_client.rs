//! Requests of commands to the HTTP APIs of roles: JSON both ways.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use eagle_cluster::{MemberClient, MemberTls};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use url::Url;

use crate::exit::Exit;

/// Longest answer that is read, bytes: a job of preheating with as many blobs as it may have.
const MAX_ANSWER: usize = 64 << 20;

/// A role's HTTP API.
#[derive(Debug, Clone)]
pub(crate) struct ApiClient {
    base: Url,
    token: Option<HeaderValue>,
    client: MemberClient<Full<Bytes>>,
    deadline: Duration,
}

/// An answer that is none of success.
#[derive(Debug, thiserror::Error)]
#[error("{url} answered {status}: {message}")]
pub(crate) struct Refused {
    url: Url,
    pub(crate) status: StatusCode,
    message: String,
}

impl ApiClient {
    /// A client of the API at `address`, a URL or `HOST:PORT`, given by `flag`.
    ///
    /// # Errors
    /// When the address makes no sense, or the token cannot be sent.
    pub(crate) fn new(flag: &str, address: &str, token: Option<&str>, deadline: Duration) -> Result<Self> {
        let text = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let base = text.parse::<Url>().ok().filter(|url| url.scheme() == "http" && url.has_host());
        let base = base.ok_or_else(|| Exit::usage(format!("{flag} {address}: write http://HOST:PORT")))?;
        let token = token.map(|token| {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            value.map_err(|_| Exit::usage("the token has characters that no header can have"))
        });
        let mut token = token.transpose()?;
        if let Some(token) = &mut token {
            token.set_sensitive(true);
        }
        Ok(Self { base, token, client: client(&MemberTls::open()), deadline })
    }

    /// The same as a member of the cluster, if there is something to prove that with.
    pub(crate) fn member(self, members: &MemberTls) -> Self {
        Self { client: client(members), ..self }
    }

    /// Where it is.
    pub(crate) const fn base(&self) -> &Url {
        &self.base
    }

    /// One request; the answer when it is one of success.
    ///
    /// # Errors
    /// [`Refused`] for any other answer; when nobody answers in time, or something else does.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T> {
        // As nodes do: a base with a path of its own keeps it.
        let url = format!("{}{path}", self.base.as_str().trim_end_matches('/')).parse()?;
        let exchange = self.exchange(method, &url, body);
        let answered = tokio::time::timeout(self.deadline, exchange).await;
        answered.map_err(|_| anyhow!("{url} did not answer within {} s", self.deadline.as_secs()))?
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        url: &Url,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T> {
        let mut request = Request::builder().method(method).uri(url.as_str());
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                serde_json::to_vec(body)?
            }
            None => Vec::new(),
        };
        let request = request.body(Full::new(bytes.into()))?;
        let response = self.client.request(request).await.with_context(|| format!("{url} cannot be reached"))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow!(error)).with_context(|| format!("the answer of {url} broke off"))?;
        let body = body.to_bytes();
        if !status.is_success() {
            return Err(Refused { url: url.clone(), status, message: message(&body) }.into());
        }
        serde_json::from_slice(&body).with_context(|| format!("{url} answered something else than Eagle would"))
    }
}

fn client(members: &MemberTls) -> MemberClient<Full<Bytes>> {
    MemberClient::new(members, HttpConnector::new(), Client::builder(TokioExecutor::new()))
}

/// What an error says: the messages of the OCI form, the text of a tracker's, or else the body's beginning on one line.
fn message(body: &[u8]) -> String {
    let said = serde_json::from_slice::<Value>(body).ok().and_then(|value| {
        if let Some(error) = value.get("error").and_then(Value::as_str) {
            return Some(error.to_owned());
        }
        let errors = value.get("errors")?.as_array()?;
        let messages: Vec<&str> = errors.iter().filter_map(|error| error.get("message")?.as_str()).collect();
        (!messages.is_empty()).then(|| messages.join("; "))
    });
    let text = said.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_urls_or_host_and_port() {
        let client = |address: &str| ApiClient::new("--seeder", address, None, Duration::from_secs(1));
        assert_eq!(client("127.0.0.1:55008").unwrap().base.as_str(), "http://127.0.0.1:55008/");
        assert_eq!(client("http://seeder:1").unwrap().base.as_str(), "http://seeder:1/");
        for bad in ["https://seeder", "", "http://", "file:///x", "a b"] {
            assert!(client(bad).is_err(), "{bad}");
        }
        let client = ApiClient::new("--seeder", "a:1", Some("open sesame"), Duration::from_secs(1)).unwrap();
        assert!(!format!("{client:?}").contains("sesame"));
        assert!(ApiClient::new("--seeder", "a:1", Some("a\nb"), Duration::from_secs(1)).is_err());
    }

    #[test]
    fn messages_of_errors_are_on_one_line() {
        assert_eq!(message(br#"{"errors":[{"code":"X","message":"a"},{"code":"Y","message":"b"}]}"#), "a; b");
        assert_eq!(message(br#"{"error":"not here"}"#), "not here");
        assert_eq!(message(b"no\nway\n"), "no way");
    }
}
