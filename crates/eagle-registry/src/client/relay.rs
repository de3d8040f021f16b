//! Requests that are passed on as they are: any method, any path of the registry's own host, with their
//! content. Pushes are such, and whatever a client of the registry itself asks besides images, such as a
//! token.
//!
//! Nothing is sent twice, no mirror is asked, no redirect followed, and no credentials are added: a
//! 401 is the client's to answer.

use std::{
    error::Error,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::{sync::oneshot, time::Instant};
use url::Url;

use super::{Registry, chain, exchange::PATIENCE};
use crate::{
    body::{Body, guard},
    headers::remove_hop_by_hop,
    origin::OriginError,
};

/// Longest path and query, bytes: upload sessions of some registries carry a state of several KiB.
const MAX_TARGET: usize = 16 << 10;

/// Content of a request, as it comes from the client.
pub type RelayBody = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// A request for the registry's own host.
#[derive(Debug)]
pub struct RelayRequest {
    /// Any method.
    pub method: Method,
    /// Path and query, from the root of the registry's host. `/v2/...` is the API, wherever that is
    /// configured to be.
    pub target: String,
    /// All headers of the client, its `Authorization` among them. Those of the connection are left out.
    pub headers: HeaderMap,
    /// The content.
    pub body: RelayBody,
}

impl Registry {
    /// Passes a request on and gives the answer as it is, a redirect or a challenge too.
    ///
    /// # Errors
    /// When there is no answer, or the target is none. The deadline for the answer begins when the whole
    /// content is sent; before that, something has to move within the stall timeout.
    pub async fn relay(&self, request: RelayRequest) -> Result<Response<Body>, OriginError> {
        let RelayRequest { method, target, mut headers, body } = request;
        let url = self.relay_url(&target)?;
        let name = self.name.as_str();
        remove_hop_by_hop(&mut headers);
        // The length is the body's own business, and nobody here answers `100 Continue` for the registry.
        for header in [header::HOST, header::CONTENT_LENGTH, header::EXPECT] {
            headers.remove(header);
        }
        if let Ok(agent) = HeaderValue::from_str(concat!("eagle/", env!("CARGO_PKG_VERSION"))) {
            headers.entry(header::USER_AGENT).or_insert(agent);
        }
        let permit = self.limits.connection(name, false, PATIENCE).await?;
        let moved = Arc::new(AtomicU64::new(0));
        let (sent, mut all_sent) = oneshot::channel();
        let body = Watched { body, moved: Arc::clone(&moved), _sent: sent };
        let uri: Uri = url.as_str().parse().map_err(|_| self.protocol("a URL that is not one"))?;
        let mut outgoing = Request::new(UnsyncBoxBody::new(body));
        *outgoing.method_mut() = method;
        *outgoing.uri_mut() = uri;
        *outgoing.headers_mut() = headers;

        let answer = self.transport.relay(outgoing);
        tokio::pin!(answer);
        let (mut sending, mut before) = (true, 0);
        let mut deadline = Instant::now() + self.stall_timeout;
        let response = loop {
            tokio::select! {
                answer = &mut answer => break answer,
                // Sent, or given up: either way the body is gone.
                _ = &mut all_sent, if sending => {
                    sending = false;
                    deadline = Instant::now() + self.transport.response_timeout();
                }
                () = tokio::time::sleep_until(deadline) => {
                    let now = moved.load(Ordering::Relaxed);
                    if !sending || now == before {
                        let (what, after) = match sending {
                            true => ("it to take the content, or the client to send it", self.stall_timeout),
                            false => ("an answer", self.transport.response_timeout()),
                        };
                        return Err(OriginError::Timeout { registry: name.to_owned(), what, after });
                    }
                    before = now;
                    deadline = Instant::now() + self.stall_timeout;
                }
            }
        };
        let response = response.map_err(|error| OriginError::Unreachable {
            registry: name.to_owned(),
            reason: format!("{}: {}", url.host_str().unwrap_or_default(), chain(&error)),
        })?;
        let (mut parts, body) = response.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        Ok(Response::from_parts(parts, self.limits.apply(guard(body, None, self.stall_timeout, name), permit)))
    }

    /// Path and query of a URL that the registry named, when it is one of its own host.
    pub fn own_target(&self, location: &str) -> Option<String> {
        let base: Url = self.hosts.registry().url("").parse().ok()?;
        let url = base.join(location).ok()?;
        let same = url.origin() == base.origin() && url.username().is_empty() && url.password().is_none();
        let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
        (same && target.len() <= MAX_TARGET).then(|| target.to_owned())
    }

    fn relay_url(&self, target: &str) -> Result<Url, OriginError> {
        let plain = target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#' && byte != b'\\');
        if !target.starts_with('/') || target.starts_with("//") || target.len() > MAX_TARGET || !plain {
            return Err(self.protocol("the request is for no plain path"));
        }
        let api: Url = self
            .hosts
            .registry()
            .url("")
            .parse()
            .map_err(|error| self.protocol(&format!("its URL is not one: {error}")))?;
        // An API below another path than /v2 is found there; everything else is of the host.
        let url = match target.strip_prefix("/v2/") {
            Some(rest) if api.path() != "/v2/" && !target.starts_with(api.path()) => {
                self.hosts.registry().url(rest).parse()
            }
            _ => api.join(target),
        };
        let url: Url = url.map_err(|error| self.protocol(&format!("the request is for no path: {error}")))?;
        // "." and ".." are gone by now, and what is left must be what the client meant.
        if url.origin() == api.origin() && url.path() == target.split('?').next().unwrap_or_default()
            || target.starts_with("/v2/") && url.as_str().starts_with(api.as_str())
        {
            Ok(url)
        } else {
            Err(self.protocol("the request is for no plain path"))
        }
    }
}

/// Counts the frames that are taken, and tells by its end that no more are.
struct Watched {
    body: RelayBody,
    moved: Arc<AtomicU64>,
    /// Dropped with the body.
    _sent: oneshot::Sender<()>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Registries, RegistryConfig};

    fn registry(url: &str) -> std::sync::Arc<super::Registry> {
        let name = "mine.example".parse().unwrap();
        let config = RegistryConfig { url: Some(url.parse().unwrap()), ..RegistryConfig::new(name) };
        let registries = Registries::new(vec![config]).unwrap();
        registries.get(&"mine.example".parse().unwrap())
    }

    #[test]
    fn targets_stay_on_the_host() {
        let plain = registry("https://mine.example");
        for target in ["/v2/", "/v2/a/blobs/uploads/", "/token?service=x&scope=a%3Ab", "/v2/auth?x=../y"] {
            assert_eq!(plain.relay_url(target).unwrap().as_str(), format!("https://mine.example{target}"));
        }
        for bad in [
            "",
            "v2/",
            "//evil.example/",
            "/a b",
            "/a/../b",
            "/v2/a/../../b",
            "/%2e%2e/x",
            "/a#b",
            "/a\\b",
            "/\r\nX: y",
        ] {
            assert!(plain.relay_url(bad).is_err(), "{bad}");
        }
        assert!(plain.relay_url(&format!("/{}", "a".repeat(super::MAX_TARGET))).is_err());
        let below = registry("https://host.example/registry");
        assert_eq!(
            below.relay_url("/v2/a/tags/list").unwrap().as_str(),
            "https://host.example/registry/v2/a/tags/list"
        );
    }

    #[test]
    fn locations_are_told_apart() {
        let registry = registry("https://mine.example");
        for (location, target) in [
            ("/v2/a/blobs/uploads/1?_state=x", Some("/v2/a/blobs/uploads/1?_state=x")),
            ("https://mine.example/upload/1#x", Some("/upload/1")),
            ("https://mine.example:443/upload/1", Some("/upload/1")),
            ("http://mine.example/upload/1", None),
            ("https://storage.example/bucket?signature=x", None),
            ("https://u:p@mine.example/", None),
            ("javascript:x", None),
        ] {
            assert_eq!(registry.own_target(location).as_deref(), target, "{location}");
        }
    }
}
