//! Everything of a registry but blobs: manifests, tag lists, referrers.
//!
//! Requests go to the origin with the headers they came with. Identical ones that run at the same time
//! are one request to the origin. Manifests are kept: by digest for good, since a digest names one
//! content for ever; by tag for a short time, after which the origin is asked again, and when it
//! cannot answer, the last known answer is given and says so. What one caller was answered is never
//! answered to another, and a different `Accept` is a different question, but for manifests by digest;
//! only when the origin cannot answer, the last answer of a kind that the request accepts will do.

mod cache;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use eagle_core::Digest;
use eagle_registry::{
    Caller, ForwardRequest, Manifest, OriginError, Reference, Registries, RegistryName, body::read_up_to,
    headers::DOCKER_CONTENT_DIGEST, manifest::MAX_MANIFEST_SIZE, path::Endpoint,
};
use futures::FutureExt;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use self::cache::Answers;
use crate::{
    access::{Access, Source},
    answer::{self, ORIGIN, ResponseBody, SOURCE},
    collapse::Collapse,
    metrics::{ManifestSource, Metrics},
};

/// Largest body that is collected and shared. Larger ones, which only lists can be, are passed through.
const MAX_SHARED: usize = MAX_MANIFEST_SIZE;
/// Bodies from this size on are hashed away from the async threads: 64 KiB take about 40 us.
const HASH_ELSEWHERE: usize = 64 << 10;
/// Headers that make an answer depend on more than the resource: such requests are passed through.
const CONDITIONAL: [header::HeaderName; 6] = [
    header::RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
];

type Key = [u8; 32];

/// An answer of the origin with its whole body.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    /// `None` for the answer to a `HEAD`.
    body: Option<Bytes>,
    received: Instant,
    /// What a manifest names.
    digests: Vec<Digest>,
}

/// What collapsed requests share.
#[derive(Debug, Clone)]
enum Shared {
    Answer(Arc<Answer>),
    /// The body is larger than [`MAX_SHARED`].
    TooLarge,
}

/// A request below `/v2/` of a registry.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) registry: RegistryName,
    pub(crate) endpoint: Endpoint,
    pub(crate) forward: ForwardRequest,
    pub(crate) caller: Caller,
}

/// Answers such requests; clones share the cache.
#[derive(Debug, Clone)]
pub(crate) struct Manifests(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registries: Arc<Registries>,
    access: Arc<Access>,
    metrics: Metrics,
    ttl: Duration,
    answers: Answers,
    running: Collapse<Key, Result<Shared, OriginError>>,
}

impl Manifests {
    /// Nothing known yet; the manifest of a tag is kept for `ttl`.
    pub(crate) fn new(registries: Arc<Registries>, access: Arc<Access>, metrics: Metrics, ttl: Duration) -> Self {
        let (answers, running) = (Answers::new(), Collapse::new());
        Self(Arc::new(Inner { registries, access, metrics, ttl, answers, running }))
    }

    /// The answer to a `GET` or `HEAD`.
    pub(crate) async fn answer(&self, request: Request) -> Response<ResponseBody> {
        if CONDITIONAL.iter().any(|name| request.forward.headers().contains_key(name)) {
            return self.pass_through(request).await;
        }
        match request.endpoint.clone() {
            Endpoint::Manifest(repository, reference) => {
                let (registry, caller) = (request.registry.clone(), request.caller.clone());
                self.manifest(request, Source { registry, repository, caller }, &reference).await
            }
            _ => match self.ask(&request).await {
                Ok(Shared::Answer(answer)) => respond(&answer, request.forward.method(), ManifestSource::Origin),
                Ok(Shared::TooLarge) => self.pass_through(request).await,
                Err(error) => answer::origin_error(&error),
            },
        }
    }

    async fn manifest(&self, request: Request, source: Source, reference: &Reference) -> Response<ResponseBody> {
        let inner = &self.0;
        let usable = |answer: &Arc<Answer>| request.forward.method() == Method::HEAD || answer.body.is_some();
        let key = Question::of(&request).key(request.forward.path());
        let known = inner.answers.get(&key).filter(usable);
        if let Some(known) = &known
            && (reference.digest().is_some() || known.received.elapsed() < inner.ttl)
        {
            return self.serve(known, &request, &source, ManifestSource::Cache);
        }
        let result = self.ask(&request).await;
        let problem = match &result {
            Ok(Shared::Answer(answer)) if cannot_answer(answer.status) => Some(answer.status.to_string()),
            Err(error) if error.is_transient() => Some(error.to_string()),
            _ => None,
        };
        let last_known = || {
            let key = Question::of_any_kind(&request).last_key(request.forward.path());
            inner.answers.get(&key).filter(usable).filter(|answer| accepts(request.forward.headers(), answer))
        };
        if let Some(problem) = problem
            && let Some(known) = known.or_else(last_known)
        {
            let (registry, path) = (&request.registry, request.forward.path());
            tracing::warn!(%registry, path, problem, "the origin cannot answer; its last known answer is given");
            return self.serve(&known, &request, &source, ManifestSource::Stale);
        }
        match result {
            Ok(Shared::Answer(answer)) => self.serve(&answer, &request, &source, ManifestSource::Origin),
            Ok(Shared::TooLarge) => self.pass_through(request).await,
            Err(error) => {
                inner.metrics.manifest_request(ManifestSource::Origin);
                answer::origin_error(&error)
            }
        }
    }

    /// The answer for this caller, who may from now on read what the manifest names.
    fn serve(
        &self,
        answer: &Answer,
        request: &Request,
        source: &Source,
        from: ManifestSource,
    ) -> Response<ResponseBody> {
        self.0.metrics.manifest_request(from);
        if request.forward.method() == Method::GET {
            self.0.access.named(source, &answer.digests, answer.received);
        }
        respond(answer, request.forward.method(), from)
    }

    /// Asks the origin, together with everybody who asks the same now.
    async fn ask(&self, request: &Request) -> Result<Shared, OriginError> {
        let question = Question::of(request);
        let of_any_kind = Question::of_any_kind(request);
        let start = || {
            let Request { registry, endpoint, forward, caller } = request;
            let (this, registry, endpoint) = (self.clone(), registry.clone(), endpoint.clone());
            let (forward, caller) = (forward.clone(), caller.clone());
            async move { this.fetch(&registry, &endpoint, (question, of_any_kind), forward, &caller).await }.boxed()
        };
        self.0.running.run(question.running_key(&request.forward), start).await
    }

    /// Asks the origin, and keeps the answer when it is a manifest.
    async fn fetch(
        &self,
        registry: &RegistryName,
        endpoint: &Endpoint,
        (question, of_any_kind): (Question, Question),
        forward: ForwardRequest,
        caller: &Caller,
    ) -> Result<Shared, OriginError> {
        let inner = &self.0;
        let (is_get, key) = (forward.method() == Method::GET, question.key(forward.path()));
        let last_key = of_any_kind.last_key(forward.path());
        let response = inner.registries.get(registry).forward(forward, caller).await;
        match &response {
            Ok(response) => inner.metrics.origin_answer("forward", response.status()),
            Err(error) => inner.metrics.origin_request("forward", Some(error)),
        }
        let (parts, body) = response?.into_parts();
        let received = Instant::now();
        let (status, headers) = (parts.status, parts.headers);
        let body = match is_get {
            true => match read_up_to(body, MAX_SHARED).await? {
                Some(body) => Some(body),
                None => return Ok(Shared::TooLarge),
            },
            false => None,
        };
        let mut answer = Answer { status, headers, body, received, digests: Vec::new() };
        if let Endpoint::Manifest(repository, reference) = endpoint
            && status == StatusCode::OK
        {
            let named = check(registry, reference, &answer).await?;
            answer.digests = names(&answer);
            let answer = Arc::new(answer);
            if let Named::Mismatch = named {
                return Ok(Shared::Answer(answer));
            }
            inner.answers.put(key, &answer);
            if reference.digest().is_none() {
                inner.answers.put(last_key, &answer);
            }
            if let Named::Digest(digest) = named {
                inner.answers.put(of_any_kind.key(&format!("{repository}/manifests/{digest}")), &answer);
            }
            return Ok(Shared::Answer(answer));
        }
        Ok(Shared::Answer(Arc::new(answer)))
    }

    /// Forwards a request whose answer is nobody else's.
    async fn pass_through(&self, request: Request) -> Response<ResponseBody> {
        let Request { registry, forward, caller, .. } = request;
        match self.0.registries.get(&registry).forward(forward, &caller).await {
            Ok(response) => {
                self.0.metrics.origin_answer("forward", response.status());
                let mut response = response.map(|body| body.map_err(answer::BodyError::Origin).boxed_unsync());
                response.headers_mut().insert(SOURCE, ORIGIN);
                response
            }
            Err(error) => {
                self.0.metrics.origin_request("forward", Some(&error));
                answer::origin_error(&error)
            }
        }
    }
}

/// Statuses after which an older answer is better than none.
fn cannot_answer(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// What, beside the resource, decides about an answer: registry, caller, what the caller accepts.
#[derive(Debug, Clone, Copy)]
struct Question([u8; 32]);

impl Question {
    fn of(request: &Request) -> Self {
        let by_digest = matches!(&request.endpoint, Endpoint::Manifest(_, reference) if reference.digest().is_some());
        if by_digest {
            // A digest names one content, whatever kinds are accepted.
            return Self::of_any_kind(request);
        }
        let mut hash = Sha256::new();
        hash.update(Self::of_any_kind(request).0);
        for value in request.forward.headers().get_all(header::ACCEPT) {
            // No header value holds a line break, so the parts cannot run into each other.
            hash.update(b"\n");
            hash.update(value.as_bytes());
        }
        Self(hash.finalize().into())
    }

    /// The question without what the caller accepts.
    fn of_any_kind(request: &Request) -> Self {
        let hash = Sha256::new().chain_update(request.caller.key()).chain_update(request.registry.as_str());
        Self(hash.finalize().into())
    }

    /// Where the last answer to this question is kept, whatever was accepted then.
    fn last_key(self, target: &str) -> Key {
        // No path holds a line break.
        self.key(&format!("last\n{target}"))
    }

    /// The same question about this path and query.
    fn key(self, target: &str) -> Key {
        Sha256::new().chain_update(self.0).chain_update(target).finalize().into()
    }

    fn running_key(self, request: &ForwardRequest) -> Key {
        Sha256::new().chain_update(self.key(request.path())).chain_update(request.method().as_str()).finalize().into()
    }
}

/// Whether a request takes an answer of this kind (RFC 9110, section 12.5.1, without weights: a kind
/// that is refused by `q=0` is not in use for manifests).
fn accepts(headers: &HeaderMap, answer: &Answer) -> bool {
    let kind = |value: &str| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let Some(given) = answer.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(kind) else {
        return false;
    };
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    accepted.peek().is_none()
        || accepted
            .flat_map(|value| value.split(','))
            .map(kind)
            .any(|kind| kind == given || kind == "*/*" || kind == "application/*")
}

/// What is known of the digest of a manifest.
enum Named {
    /// It was asked for by digest, or its digest is unknown.
    Plain,
    /// It was asked for by tag and has this digest, which was checked.
    Digest(Digest),
    /// It has another digest than its header says.
    Mismatch,
}

/// Checks the body against the digest that was asked for or is claimed.
async fn check(registry: &RegistryName, reference: &Reference, answer: &Answer) -> Result<Named, OriginError> {
    let Some(body) = &answer.body else { return Ok(Named::Plain) };
    let claimed = answer.headers.get(DOCKER_CONTENT_DIGEST).and_then(|value| value.to_str().ok()?.parse().ok());
    let asked = reference.digest();
    let Some(expected) = asked.or(claimed) else { return Ok(Named::Plain) };
    let actual = digest_of(expected, body.clone()).await;
    match (actual == Some(expected), asked) {
        (true, Some(_)) => Ok(Named::Plain),
        (true, None) => Ok(Named::Digest(expected)),
        (false, Some(_)) => Err(OriginError::Protocol {
            registry: registry.to_string(),
            problem: format!("other content for manifest {expected}"),
        }),
        (false, None) => {
            tracing::warn!(%registry, %reference, claimed = %expected, "the digest of a manifest is not the one in its header; it is not kept");
            Ok(Named::Mismatch)
        }
    }
}

async fn digest_of(like: Digest, body: Bytes) -> Option<Digest> {
    let is_small = body.len() < HASH_ELSEWHERE;
    let hash = move || {
        let mut hasher = like.hasher();
        hasher.update(&body);
        hasher.finish()
    };
    if is_small { Some(hash()) } else { tokio::task::spawn_blocking(hash).await.ok() }
}

/// Everything that a manifest points to; nothing when it is of a kind that is not read.
fn names(answer: &Answer) -> Vec<Digest> {
    let content_type = answer.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let manifest = answer.body.as_ref().and_then(|body| Manifest::parse(body, content_type).ok());
    let Some(Manifest { blobs, manifests, .. }) = manifest else { return Vec::new() };
    blobs.iter().chain(&manifests).map(|descriptor| descriptor.digest).collect()
}

/// The answer as it came, with a note where it comes from.
fn respond(answer: &Answer, method: &Method, from: ManifestSource) -> Response<ResponseBody> {
    let body = match (&answer.body, method) {
        (Some(body), &Method::GET) => answer::full(body.clone()),
        _ => answer::empty(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers.clone();
    let headers = response.headers_mut();
    if let Some(body) = &answer.body {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    headers.insert(SOURCE, HeaderValue::from_static(from.name()));
    if from == ManifestSource::Stale {
        // RFC 7234, 5.5.1: what runtimes and people know; RFC 9111 has no successor for it.
        headers.insert(header::WARNING, HeaderValue::from_static("110 - \"Response is Stale\""));
    }
    response
}
