//! The HTTP half of the embedded registry.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use eagle_core::{Digest, units::Rate};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    StartError,
    access::{Access, Guard, Refusal, TOKEN_PATH},
    artifact::PublishedArtifact,
    content::Content,
    fault::{self, Fault, FaultRule},
    image::{self, GeneratedImage, MANIFEST_TYPE, PublishedImage},
    lists,
    serve::{Broken, Sending, ServerBody},
    stats::RegistryStats,
};
use crate::{
    errors::{ErrorCode, response_json},
    headers::{DOCKER_API_VERSION, DOCKER_CONTENT_DIGEST, value},
    name::{Reference, RepositoryName},
    pace::Pace,
    path::Endpoint,
    range::{self, ContentRange},
};

/// Connections at a time; a load test opens some thousands.
const MAX_CONNECTIONS: usize = 8192;
/// Deadline of a TLS handshake, and of the head of the next request on a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a failed accept: it fails for lack of file descriptors, which takes a moment to pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A manifest and the media type it is served with.
#[derive(Debug, Clone)]
struct StoredManifest {
    body: Bytes,
    digest: Digest,
    media_type: &'static str,
}

#[derive(Debug, Default)]
struct Repository {
    tags: BTreeMap<String, Digest>,
    manifests: HashMap<Digest, StoredManifest>,
    blobs: BTreeSet<Digest>,
    /// What refers to a manifest.
    referrers: HashMap<Digest, Vec<PublishedArtifact>>,
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    repositories: HashMap<RepositoryName, Repository>,
    contents: HashMap<Digest, Content>,
    guard: Guard,
    pace: Pace,
    faults: Mutex<Vec<FaultRule>>,
    stats: Mutex<RegistryStats>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(access: Access, rate: Rate) -> Self {
        Self {
            repositories: HashMap::new(),
            contents: HashMap::new(),
            guard: Guard::new(access),
            pace: Pace::new(rate),
            faults: Mutex::default(),
            stats: Mutex::default(),
        }
    }

    pub(super) async fn publish(&mut self, image: &GeneratedImage) -> Result<PublishedImage, StartError> {
        let (published, contents) = image::generate(image).await?;
        let repository = self.repositories.entry(published.repository.clone()).or_default();
        repository.tags.insert(published.tag.to_string(), published.manifest_digest);
        repository.manifests.insert(
            published.manifest_digest,
            StoredManifest {
                body: published.manifest.clone(),
                digest: published.manifest_digest,
                media_type: published.media_type,
            },
        );
        for artifact in &published.artifacts {
            let (body, digest) = (artifact.manifest.clone(), artifact.digest);
            repository.manifests.insert(digest, StoredManifest { body, digest, media_type: MANIFEST_TYPE });
        }
        repository.referrers.insert(published.manifest_digest, published.artifacts.clone());
        for (digest, content) in contents {
            repository.blobs.insert(digest);
            self.contents.insert(digest, content);
        }
        Ok(published)
    }

    pub(super) fn stats(&self) -> RegistryStats {
        lock(&self.stats).clone()
    }

    pub(super) fn reset_stats(&self) {
        *lock(&self.stats) = RegistryStats::default();
    }

    pub(super) fn set_faults(&self, rules: Vec<FaultRule>) {
        *lock(&self.faults) = rules;
    }

    pub(super) fn set_rate(&self, rate: Rate) {
        self.pace.set(rate);
    }

    pub(super) fn revoke_tokens(&self) {
        self.guard.revoke();
    }

    pub(super) const fn pace(&self) -> &Pace {
        &self.pace
    }

    pub(super) fn count_bytes(&self, digest: Digest, bytes: u64) {
        let mut stats = lock(&self.stats);
        stats.blob_bytes += bytes;
        stats.blobs.entry(digest).or_default().bytes += bytes;
    }
}

/// Accepts connections until `cancel`; each is a task of `tasks`.
pub(super) async fn listen(
    listener: TcpListener,
    shared: Arc<Shared>,
    tls: Option<Arc<rustls::ServerConfig>>,
    cancel: CancellationToken,
    tasks: TaskTracker,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let tls = tls.map(TlsAcceptor::from);
    let accept = async {
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (shared, tls, cancel) = (Arc::clone(&shared), tls.clone(), cancel.clone());
                    tasks.spawn(async move {
                        let _slot = slot;
                        cancel.run_until_cancelled(connection(stream, shared, tls)).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the embedded registry cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    cancel.run_until_cancelled(accept).await;
}

async fn connection(stream: TcpStream, shared: Arc<Shared>, tls: Option<TlsAcceptor>) {
    // Without it the end of an answer can wait for the client's acknowledgement.
    let _ = stream.set_nodelay(true);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { handle(&shared, &request, scheme) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    // Broken connections are the client's business, and sometimes this registry's intention.
    let _ = match tls {
        None => http.serve_connection(TokioIo::new(stream), service).await,
        Some(tls) => match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => http.serve_connection(TokioIo::new(stream), service).await,
            _ => Ok(()),
        },
    };
}

fn of(response: Response<Full<Bytes>>) -> Response<ServerBody> {
    response.map(|body| body.map_err(|never| match never {}).boxed_unsync())
}

pub(super) fn error(status: StatusCode, code: ErrorCode, message: &str) -> Response<ServerBody> {
    of(response_json(status, code, message))
}

/// Answers a request. The error closes the connection.
fn handle(shared: &Arc<Shared>, request: &Request<Incoming>, scheme: &str) -> Result<Response<ServerBody>, Broken> {
    let mut response = answer(shared, request, scheme)?;
    if request.method() == Method::HEAD {
        // The headers stay those of a GET.
        *response.body_mut() = Full::default().map_err(|never| match never {}).boxed_unsync();
    }
    response.headers_mut().insert(DOCKER_API_VERSION, HeaderValue::from_static("registry/2.0"));
    if matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        lock(&shared.stats).refused += 1;
    }
    Ok(response)
}

fn answer(shared: &Arc<Shared>, request: &Request<Incoming>, scheme: &str) -> Result<Response<ServerBody>, Broken> {
    let path = request.uri().path();
    if path == "/_stats" {
        return Ok(json_response(json!(shared.stats()).to_string()));
    }
    lock(&shared.stats).requests += 1;
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(error(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, "this registry is read-only"));
    }
    if path == TOKEN_PATH {
        return token(shared, request);
    }
    let endpoint = match path.strip_prefix("/v2/").map(Endpoint::parse) {
        Some(Ok(endpoint)) => endpoint,
        None if path == "/v2" => Endpoint::Base,
        None => return Ok(error(StatusCode::NOT_FOUND, ErrorCode::Unsupported, "the API is at /v2/")),
        Some(Err(problem)) => return Ok(error(StatusCode::NOT_FOUND, ErrorCode::NameInvalid, &problem.to_string())),
    };
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let url = format!("{scheme}://{host}");
    if let Err(refusal) = shared.guard.check(request.headers(), endpoint.repository(), &url) {
        return Ok(refused(refusal));
    }
    let fault = fault::pick(&mut lock(&shared.faults), Some(&endpoint));
    if let Some(answer) = early(fault.as_ref()) {
        return answer;
    }
    let repository = match endpoint.repository().map(|name| shared.repositories.get(name)) {
        None => return Ok(json_response("{}".to_owned())),
        Some(None) => return Ok(error(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, "no such repository")),
        Some(Some(repository)) => repository,
    };
    let query = request.uri().query().unwrap_or_default();
    Ok(match &endpoint {
        Endpoint::Base => json_response("{}".to_owned()),
        Endpoint::Tags(name) => lists::tags(name, &repository.tags, query),
        Endpoint::Referrers(_, subject) => lists::referrers(repository.referrers.get(subject), query),
        Endpoint::Manifest(name, reference) => manifest(shared, name, repository, reference),
        Endpoint::Blob(_, digest) if repository.blobs.contains(digest) => blob(shared, request, *digest, fault),
        Endpoint::Blob(..) => error(StatusCode::NOT_FOUND, ErrorCode::BlobUnknown, "no such blob in this repository"),
    })
}

/// Faults that replace the whole answer.
fn early(fault: Option<&Fault>) -> Option<Result<Response<ServerBody>, Broken>> {
    match fault? {
        Fault::Refuse => Some(Err(Broken)),
        Fault::Status(status) => Some(Ok(error(*status, ErrorCode::Unknown, "the registry was told to fail"))),
        Fault::Redirect(location) => {
            let mut response = error(StatusCode::TEMPORARY_REDIRECT, ErrorCode::Unknown, "elsewhere");
            response.headers_mut().insert(header::LOCATION, value(location));
            Some(Ok(response))
        }
        _ => None,
    }
}

fn token(shared: &Shared, request: &Request<Incoming>) -> Result<Response<ServerBody>, Broken> {
    lock(&shared.stats).token_requests += 1;
    let fault = fault::pick(&mut lock(&shared.faults), None);
    if let Some(answer) = early(fault.as_ref()) {
        return answer;
    }
    Ok(match shared.guard.token(request.headers(), request.uri().query().unwrap_or_default()) {
        Ok(token) => json_response(token),
        Err(refusal) => refused(refusal),
    })
}

fn refused(refusal: Refusal) -> Response<ServerBody> {
    match refusal {
        Refusal::Denied => error(StatusCode::FORBIDDEN, ErrorCode::Denied, "this user may not read this repository"),
        Refusal::Challenge(challenge) => {
            let mut response = error(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, "authentication required");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, value(&challenge));
            response
        }
    }
}

pub(super) fn json_response(body: String) -> Response<ServerBody> {
    content("application/json", Bytes::from(body))
}

pub(super) fn content(media_type: &'static str, body: Bytes) -> Response<ServerBody> {
    let mut response = Response::new(Full::new(body.clone()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    of(response)
}

fn describe(response: &mut Response<ServerBody>, digest: Digest) {
    let headers = response.headers_mut();
    headers.insert(DOCKER_CONTENT_DIGEST, value(&digest.to_string()));
    headers.insert(header::ETAG, value(&format!("\"{digest}\"")));
}

fn manifest(
    shared: &Shared,
    name: &RepositoryName,
    repository: &Repository,
    reference: &Reference,
) -> Response<ServerBody> {
    let (digest, key) = match reference {
        Reference::Tag(tag) => (repository.tags.get(tag.as_str()).copied(), format!("{name}:{tag}")),
        Reference::Digest(digest) => (Some(*digest), format!("{name}@{digest}")),
    };
    let Some(found) = digest.and_then(|digest| repository.manifests.get(&digest)) else {
        return error(StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, "no such manifest in this repository");
    };
    *lock(&shared.stats).manifests.entry(key).or_default() += 1;
    let mut response = content(found.media_type, found.body.clone());
    describe(&mut response, found.digest);
    response
}

fn blob(
    shared: &Arc<Shared>,
    request: &Request<Incoming>,
    digest: Digest,
    fault: Option<Fault>,
) -> Response<ServerBody> {
    let Some(content) = shared.contents.get(&digest).cloned() else {
        return error(StatusCode::NOT_FOUND, ErrorCode::BlobUnknown, "no such blob");
    };
    let size = content.size();
    let is_get = request.method() == Method::GET;
    // A range is defined for GET alone (RFC 9110, 14.2).
    let asked = request.headers().get(header::RANGE).and_then(|range| range.to_str().ok());
    let asked = asked.filter(|_| is_get && fault != Some(Fault::IgnoreRange));
    {
        let mut stats = lock(&shared.stats);
        let counters = stats.blobs.entry(digest).or_default();
        if is_get {
            counters.gets += 1;
            counters.ranges += u64::from(asked.is_some());
        } else {
            counters.heads += 1;
        }
    }
    let part = match asked.map(|asked| range::requested(asked, size)).transpose() {
        Ok(part) => part.flatten(),
        Err(problem) => {
            let mut response = error(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::RangeInvalid, &problem.to_string());
            response.headers_mut().insert(header::CONTENT_RANGE, value(&format!("bytes */{size}")));
            return response;
        }
    };
    let range = part.clone().unwrap_or(0..size);
    let length = range.end - range.start;
    let no_length = fault == Some(Fault::NoLength);
    let shift = u64::from(fault == Some(Fault::WrongContentRange));
    let body = if is_get {
        Sending { shared: Arc::clone(shared), digest, content, range: range.clone(), fault, sent: 0 }.into_body()
    } else {
        Full::default().map_err(|never| match never {}).boxed_unsync()
    };
    let mut response = Response::new(body);
    describe(&mut response, digest);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if !no_length {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    if part.is_some() {
        let lie = ContentRange { start: range.start + shift, end: range.end + shift, total: Some(size + shift) };
        headers.insert(header::CONTENT_RANGE, value(&lie.to_string()));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}
