//! What proxies use to talk to seeders.
//!
//! Every proxy puts the seeders of a cluster into the same order for a blob (rendezvous hashing), so a
//! blob is fetched by one seeder, and by the next one when that is down. A seeder that failed is tried
//! last for a few seconds. What went wrong decides who answers the runtime: [`SeederError::Origin`] is
//! the origin's own refusal, to be passed on; after anything else another source may do better.

mod changes;
pub(crate) mod follow;
mod nodes;
mod stream;

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use eagle_cluster::{MemberClient, MemberTls};
use eagle_core::{Digest, rendezvous, units::Rate};
use eagle_registry::{
    BlobBody, Body, Caller, ForwardRequest, HTTP_READ_AHEAD, RegistryName, RepositoryName, TraceContext,
    body::{guard, read_up_to},
    headers::number,
    receive_buffer, trace,
};
use eagle_tracker::LiveSeeders;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, HttpInfo},
    },
    rt::{TokioExecutor, TokioTimer},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::{sync::watch, time::Instant};
use tracing::{Instrument as _, field::Empty};
use url::Url;

pub use self::stream::MetainfoStream;
use crate::{
    answer::{SOURCE, STALE},
    blobs::METAINFO_TYPE,
};

/// Deadline of a connection: a seeder is in the same cluster, so one that takes longer is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Deadline from a request to the headers of its answer, in which the seeder asks the origin.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time without a byte of a blob or manifest after which it is given up. The seeder may wait for its
/// origin that long before it starts over.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// After this long without a word the kernel probes whether the seeder is still there, three times a
/// second apart: a host that vanished is noticed in about 6 s, not at a deadline.
const KEEPALIVE: Duration = Duration::from_secs(3);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_PROBES: u32 = 3;
/// How long a seeder that failed is tried last.
const DOWN_FOR: Duration = Duration::from_secs(5);
/// Idle connections are dropped before the seeder closes them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Idle connections per seeder: about as many blobs as one pull asks for at a time, several times over.
const MAX_IDLE: usize = 32;
/// Most of an error's body that is read, bytes.
const MAX_ERROR_BODY: usize = 64 << 10;

/// What in a query value needs no encoding beside letters and digits.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Why a seeder did not give what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SeederError {
    /// The origin refuses, says the seeder: the answer for the runtime.
    #[error("the origin answered {status}")]
    Origin {
        /// The origin's status, one of 4xx.
        status: StatusCode,
        /// Of its headers `WWW-Authenticate`, `Retry-After` and `Content-Type`.
        headers: Box<HeaderMap>,
        /// Its body, at most 64 KiB.
        body: Bytes,
    },
    /// The seeder cannot be reached, or broke off.
    #[error("seeder {seeder} cannot be reached: {reason}")]
    Unreachable {
        /// The seeder.
        seeder: Url,
        /// What happened.
        reason: String,
    },
    /// The seeder said nothing for too long.
    #[error("seeder {seeder} sent nothing for {after:?}")]
    Timeout {
        /// The seeder.
        seeder: Url,
        /// How long.
        after: Duration,
    },
    /// The seeder answered that it cannot, for a reason of its own.
    #[error("seeder {seeder} answered {status}: {message}")]
    Refused {
        /// The seeder.
        seeder: Url,
        /// Its status.
        status: StatusCode,
        /// Beginning of its body.
        message: String,
    },
    /// The seeder answered something that it should not.
    #[error("seeder {seeder} answered something that Eagle cannot use: {problem}")]
    Protocol {
        /// The seeder.
        seeder: Url,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no seeder to ask.
    #[error("no seeder is configured")]
    NoSeeder,
}

/// What a seeder says of a blob to a caller who may read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobHead {
    /// Size of the blob, bytes.
    pub size: u64,
    /// How long ago the origin said that the caller may.
    pub age: Duration,
}

/// How old the origin's word is that a seeder passes on (`Age`, RFC 9111, 5.1); none means fresh.
pub fn age(headers: &HeaderMap) -> Duration {
    Duration::from_secs(number(headers, &header::AGE).unwrap_or(0))
}

/// Whether a seeder has answered with what it knew, since the origin cannot.
pub fn is_stale(headers: &HeaderMap) -> bool {
    headers.get(SOURCE).is_some_and(|source| source == STALE)
}

/// A client of all seeders of a cluster; clones share connections.
#[derive(Clone)]
pub struct SeederClient(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    /// The configured ones, at present.
    seeders: Arc<watch::Sender<Vec<Url>>>,
    /// Those that are alive, as trackers say.
    live: Option<watch::Receiver<Option<Arc<LiveSeeders>>>>,
    client: MemberClient<Full<Bytes>>,
    /// When each failed last. Only those that could be asked are kept, so their number bounds it.
    down: Arc<Mutex<HashMap<Url, Instant>>>,
}

impl fmt::Debug for SeederClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeders = self.0.seeders.borrow();
        f.debug_tuple("SeederClient").field(&seeders.iter().map(Url::as_str).collect::<Vec<_>>()).finish()
    }
}

/// Checks that a URL can be that of a seeder: `http://HOST[:PORT]`, possibly with a path before the API. With a cluster key
/// `http://` is TLS too; `https://` can be written where there is one.
///
/// # Errors
/// With what is wrong with it.
pub fn check_seeder_url(url: &Url) -> Result<(), &'static str> {
    if !["http", "https"].contains(&url.scheme()) {
        return Err("a seeder's URL begins with http://");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("the URL has no host; write http://HOST:55008");
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("the URL has a user name, password, query or fragment, which a seeder does not take");
    }
    Ok(())
}

impl SeederClient {
    /// A client of these seeders ([`check_seeder_url`]), as a member by `members`. Every proxy must know them by the same URLs, or
    /// else blobs are fetched more than once.
    pub fn new(seeders: Vec<Url>, members: &MemberTls) -> Self {
        Self::paced_by(seeders, members, || Rate::Unlimited)
    }

    /// The same, for somebody who reads at this rate at most, which is asked for with each new connection.
    pub fn paced_by(seeders: Vec<Url>, members: &MemberTls, rate: impl Fn() -> Rate + Send + Sync + 'static) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_TIMEOUT).pool_max_idle_per_host(MAX_IDLE);
        builder.http1_max_buf_size(HTTP_READ_AHEAD);
        let receive_buffer = Arc::new(move || receive_buffer(rate()));
        let client = MemberClient::receiving(members, connector, builder, receive_buffer);
        let seeders = Arc::new(watch::Sender::new(seeders));
        Self(Arc::new(Inner { seeders, live: None, client, down: Arc::default() }))
    }

    /// Asks these seeders ([`check_seeder_url`]) from now on in place of those that were configured before, also by clones. Answers that are under
    /// way go on.
    pub fn replace(&self, seeders: Vec<Url>) {
        self.0.seeders.send_replace(seeders);
    }

    /// The configured seeders, and every change of them.
    pub fn configured(&self) -> watch::Receiver<Vec<Url>> {
        self.0.seeders.subscribe()
    }

    /// The same, with those seeders that trackers know to be alive before the configured ones: so that all who hear of the same
    /// seeders ask the same one for a blob, whatever is configured. Without a configured one there are none, whatever trackers know.
    #[must_use]
    pub fn following(&self, live: watch::Receiver<Option<Arc<LiveSeeders>>>) -> Self {
        Self(Arc::new(Inner { live: Some(live), ..(*self.0).clone() }))
    }

    /// The seeders in the order in which they are to be asked for a blob: those that are alive, the responsible one first, those that are about to end,
    /// those that are merely configured; and those that failed within the last 5 s last.
    pub fn order(&self, digest: &Digest) -> Vec<Url> {
        self.order_by(digest.to_string().as_bytes())
    }

    /// Notes that a seeder failed. Failures that the client sees itself are noted by it.
    pub fn mark_down(&self, seeder: &Url) {
        let known = self.known();
        if known.contains(seeder) {
            let mut down = self.lock();
            down.retain(|url, _| known.contains(url));
            down.insert(seeder.clone(), Instant::now());
        }
    }

    /// The seeders in groups, each of which is asked when those before it have failed: every one is in one of them.
    fn groups(&self) -> [Vec<Url>; 3] {
        let configured = self.0.seeders.borrow().clone();
        if configured.is_empty() {
            return [Vec::new(), Vec::new(), Vec::new()];
        }
        let live = self.0.live.as_ref().and_then(|live| live.borrow().clone()).unwrap_or_default();
        let usable =
            |urls: &[Url]| -> Vec<Url> { urls.iter().filter(|url| check_seeder_url(url).is_ok()).cloned().collect() };
        let (up, draining) = (usable(&live.up), usable(&live.draining));
        let others = configured.into_iter().filter(|url| !up.contains(url) && !draining.contains(url)).collect();
        [up, draining, others]
    }

    /// Every seeder that could be asked.
    fn known(&self) -> Vec<Url> {
        self.groups().concat()
    }

    /// Follows the metainfo of a blob, whose fetch this starts when nobody has.
    ///
    /// # Errors
    /// When the origin refuses the caller, or the seeder fails.
    pub async fn metainfo(
        &self,
        seeder: &Url,
        digest: Digest,
        registry: &RegistryName,
        repository: &RepositoryName,
        caller: &Caller,
    ) -> Result<MetainfoStream, SeederError> {
        let path = format!("v1/blobs/{digest}/metainfo?{}", query(registry, repository));
        let response = self.get(seeder, &path, HeaderMap::new(), caller).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(seeder, response).await);
        }
        if response.headers().get(header::CONTENT_TYPE).is_none_or(|value| value != METAINFO_TYPE) {
            return Err(self.protocol(seeder, "the answer is not a metainfo stream; is this the URL of a seeder?"));
        }
        let address = remote_ip(&response);
        Ok(MetainfoStream::new(self.clone(), seeder.clone(), digest, address, response.into_body()))
    }

    /// The content of a blob from byte `start` on.
    ///
    /// # Errors
    /// When the origin refuses the caller, or the seeder fails. The body can fail later.
    pub async fn blob(
        &self,
        seeder: &Url,
        digest: Digest,
        registry: &RegistryName,
        repository: &RepositoryName,
        start: u64,
        caller: &Caller,
    ) -> Result<BlobBody, SeederError> {
        let path = format!("v1/blobs/{digest}?{}", query(registry, repository));
        let response = self.get(seeder, &path, range_from(start), caller).await?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                let body = BlobBody::from_response(response, start, STALL_TIMEOUT, seeder.as_str());
                body.map_err(|error| self.protocol(seeder, error.to_string()))
            }
            _ => Err(self.refused(seeder, response).await),
        }
    }

    /// Asks whether the caller may read a blob, without its content.
    ///
    /// # Errors
    /// When the origin refuses the caller, or the seeder fails.
    pub async fn blob_head(
        &self,
        seeder: &Url,
        digest: Digest,
        registry: &RegistryName,
        repository: &RepositoryName,
        caller: &Caller,
    ) -> Result<BlobHead, SeederError> {
        let path = format!("v1/blobs/{digest}?{}", query(registry, repository));
        let response = self.send(seeder, &Method::HEAD, &path, HeaderMap::new(), caller).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(seeder, response).await);
        }
        let size = number(response.headers(), &header::CONTENT_LENGTH);
        let size = size.ok_or_else(|| self.protocol(seeder, "the answer to HEAD has no Content-Length"))?;
        Ok(BlobHead { size, age: age(response.headers()) })
    }

    /// Asks for a manifest, a list of tags or the like, of the seeder responsible for the repository, or
    /// the next one when that fails or the origin answers it 429: another seeder may know the answer from before. Any other status of
    /// the origin is an answer, and so is 429 when no seeder does better.
    ///
    /// # Errors
    /// When every seeder failed: the error of the last one.
    pub async fn forward(
        &self,
        registry: &RegistryName,
        request: ForwardRequest,
        caller: &Caller,
    ) -> Result<Response<Body>, SeederError> {
        let repository = request.endpoint().and_then(|endpoint| endpoint.repository().cloned());
        let key = format!("{registry}/{}", repository.as_ref().map_or("", |name| name.as_str()));
        let mut last = SeederError::NoSeeder;
        let mut limited = None;
        for seeder in self.order_by(key.as_bytes()) {
            match self.forward_to(&seeder, registry, &request, caller).await {
                Ok(response) if response.status() == StatusCode::TOO_MANY_REQUESTS => limited = Some(response),
                Ok(response) => return Ok(response),
                Err(error) => {
                    tracing::debug!(%seeder, %error, "a seeder failed; the next one is asked");
                    last = error;
                }
            }
        }
        limited.ok_or(last)
    }

    async fn forward_to(
        &self,
        seeder: &Url,
        registry: &RegistryName,
        request: &ForwardRequest,
        caller: &Caller,
    ) -> Result<Response<Body>, SeederError> {
        let path = format!("v1/registries/{registry}/v2/{}", request.path());
        let response = self.send(seeder, request.method(), &path, request.headers().clone(), caller).await?;
        if !response.headers().contains_key(SOURCE) {
            return Err(self.refused(seeder, response).await);
        }
        Ok(response.map(|body| guard(body, None, STALL_TIMEOUT, seeder.as_str())))
    }

    fn order_by(&self, key: &[u8]) -> Vec<Url> {
        let groups = self.groups();
        let ordered = groups.iter().flat_map(|group| rendezvous::order(group, key));
        let down = self.lock();
        let is_down = |seeder: &&Url| down.get(*seeder).is_some_and(|at| at.elapsed() < DOWN_FOR);
        let (last, first): (Vec<&Url>, Vec<&Url>) = ordered.partition(is_down);
        first.into_iter().chain(last).cloned().collect()
    }

    async fn get(
        &self,
        seeder: &Url,
        path: &str,
        headers: HeaderMap,
        caller: &Caller,
    ) -> Result<Response<Incoming>, SeederError> {
        self.send(seeder, &Method::GET, path, headers, caller).await
    }

    async fn send(
        &self,
        seeder: &Url,
        method: &Method,
        path: &str,
        headers: HeaderMap,
        caller: &Caller,
    ) -> Result<Response<Incoming>, SeederError> {
        let uri = format!("{}/{path}", seeder.as_str().trim_end_matches('/'));
        let request = Request::builder().method(method).uri(uri).body(Full::default());
        let mut request = request.map_err(|error| self.protocol(seeder, format!("not a URL: {error}")))?;
        *request.headers_mut() = headers;
        if let Some(id) = &caller.request_id {
            id.put(request.headers_mut());
        }
        if let Some(authorization) = &caller.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        let span = trace::child(caller.trace.as_ref(), || {
            tracing::info_span!(
                target: trace::TARGET, parent: None, "ask the seeder", otel.kind = "client", otel.status_code = Empty,
                eagle.seeder = %seeder, http.request.method = %method,
                url.path = %path.split('?').next().unwrap_or_default(),
                http.response.status_code = Empty, error.message = Empty
            )
        });
        if let Some(within) = TraceContext::of_span(&span) {
            within.put(request.headers_mut());
        }
        let asked = tokio::time::timeout(RESPONSE_TIMEOUT, self.0.client.request(request)).instrument(span.clone());
        let result = match asked.await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.unreachable(seeder, &error)),
            Err(_) => Err(self.timeout(seeder, RESPONSE_TIMEOUT)),
        };
        match &result {
            Ok(response) => span.record("http.response.status_code", trace::number(response.status().as_u16())),
            Err(error) => {
                span.record("otel.status_code", "ERROR").record("error.message", tracing::field::display(error))
            }
        };
        result
    }

    /// An answer that is an error: the origin's own, or the seeder's.
    async fn refused(&self, seeder: &Url, response: Response<Incoming>) -> SeederError {
        let (parts, body) = response.into_parts();
        let status = parts.status;
        let body = guard(body, None, STALL_TIMEOUT, seeder.as_str());
        let body = read_up_to(body, MAX_ERROR_BODY).await.ok().flatten().unwrap_or_default();
        if status.is_client_error() && parts.headers.contains_key(SOURCE) {
            let mut headers = HeaderMap::new();
            for name in [header::WWW_AUTHENTICATE, header::RETRY_AFTER, header::CONTENT_TYPE] {
                for value in parts.headers.get_all(&name) {
                    headers.append(&name, value.clone());
                }
            }
            return SeederError::Origin { status, headers: Box::new(headers), body };
        }
        let text = String::from_utf8_lossy(&body);
        let message = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
        SeederError::Refused { seeder: seeder.clone(), status, message }
    }

    fn unreachable(&self, seeder: &Url, error: &dyn std::error::Error) -> SeederError {
        self.mark_down(seeder);
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        SeederError::Unreachable { seeder: seeder.clone(), reason }
    }

    fn timeout(&self, seeder: &Url, after: Duration) -> SeederError {
        self.mark_down(seeder);
        SeederError::Timeout { seeder: seeder.clone(), after }
    }

    fn protocol(&self, seeder: &Url, problem: impl Into<String>) -> SeederError {
        self.mark_down(seeder);
        SeederError::Protocol { seeder: seeder.clone(), problem: problem.into() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Url, Instant>> {
        // The map is whole between any two operations, so a panic elsewhere leaves it usable.
        self.0.down.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The header that asks for a blob from byte `start` on; none for all of it.
fn range_from(start: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if start > 0
        && let Ok(range) = HeaderValue::try_from(format!("bytes={start}-"))
    {
        headers.insert(header::RANGE, range);
    }
    headers
}

fn query(registry: &RegistryName, repository: &RepositoryName) -> String {
    let encode = |text| utf8_percent_encode(text, QUERY_VALUE);
    format!("registry={}&repository={}", encode(registry.as_str()), encode(repository.as_str()))
}

fn remote_ip(response: &Response<Incoming>) -> Option<IpAddr> {
    response.extensions().get::<HttpInfo>().map(|info| info.remote_addr().ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(count: usize) -> Vec<Url> {
        (0..count).map(|number| format!("http://seeder-{number}:55008").parse().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_seeder_that_failed_is_tried_last_for_a_while() {
        let client = SeederClient::new(urls(3), &MemberTls::open());
        let digest = Digest::of(b"blob");
        let order = client.order(&digest);
        assert_eq!(SeederClient::new(urls(3), &MemberTls::open()).order(&digest), order);
        client.mark_down(&order[0]);
        client.mark_down(&"http://other:1".parse().unwrap());
        assert_eq!(client.order(&digest), [order[1].clone(), order[2].clone(), order[0].clone()]);
        assert_eq!(client.lock().len(), 1);
        tokio::time::advance(DOWN_FOR + Duration::from_millis(1)).await;
        assert_eq!(client.order(&digest), order);
    }

    #[test]
    fn those_who_are_alive_come_first_and_everybody_agrees_on_them() {
        let (a, b) = (urls(4), urls(5));
        let live = LiveSeeders { version: 1, up: b[1..4].to_vec(), draining: b[4..].to_vec() };
        let (sender, receiver) = watch::channel(Some(Arc::new(live)));
        let members = MemberTls::open();
        let one = SeederClient::new(a[..2].to_vec(), &members).following(receiver.clone());
        let other = SeederClient::new(a[2..].to_vec(), &members).following(receiver);
        for number in 0u32..50 {
            let digest = Digest::of(&number.to_le_bytes());
            let order = one.order(&digest);
            assert_eq!(order[..4], other.order(&digest)[..4]);
            assert_eq!((order.len(), &order[3]), (5, &b[4]), "who drains comes after those who serve");
            assert_eq!(order[4], a[0], "configured, and not alive");
            assert_eq!(other.order(&digest).len(), 4);
        }
        // No tracker answers: as if there were none.
        sender.send_replace(None);
        let digest = Digest::of(b"blob");
        assert_eq!(one.order(&digest), SeederClient::new(a[..2].to_vec(), &members).order(&digest));
    }

    #[test]
    fn refuses_urls_of_something_else() {
        assert_eq!(check_seeder_url(&"http://seeder:55008".parse().unwrap()), Ok(()));
        assert_eq!(check_seeder_url(&"https://seeder:55008".parse().unwrap()), Ok(()));
        for bad in ["ftp://seeder", "file:///x", "http://u:p@seeder", "http://seeder/?x=1"] {
            assert!(check_seeder_url(&bad.parse().unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_survive_the_query() {
        let query = query(&"localhost:5000".parse().unwrap(), &"library/debian".parse().unwrap());
        assert_eq!(query, "registry=localhost%3A5000&repository=library/debian");
    }
}
