//! Everything of a registry but blobs: manifests, tag lists, referrers.
//!
//! Requests go to the origin with the headers they came with. Identical ones that run at the same time
//! are one request to the origin. Manifests are kept: by digest for good, since a digest names one
//! content for ever; by tag for a short time, after which the origin is asked again, and when it
//! cannot answer, the last known answer is given and says so. What one caller was answered is never
//! answered to another, and a different `Accept` is a different question, but for manifests by digest;
//! only when the origin cannot answer, the last answer of a kind that the request accepts will do.
//!
//! The content of a manifest by digest is known for good, the right to read it is not: when the
//! origin's word is older than `grant_ttl`, it is asked by `HEAD` whether the caller may still have it. A
//! caller who is refused gets nothing of what was kept for it, not even when the origin is down later.

mod cache;
mod changes;
mod content;
mod question;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use eagle_core::Digest;
use eagle_registry::{
    Caller, ForwardRequest, OriginError, Reference, Registries, RegistryName, RepositoryName, body::read_up_to,
    headers::DOCKER_CONTENT_DIGEST, manifest::MAX_MANIFEST_SIZE, path::Endpoint,
};
use futures::FutureExt;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use tokio::time::Instant;

use self::{
    cache::Answers,
    changes::{Change, Changes},
    content::{Named, check, names},
    question::{Question, accepts},
};
use crate::{
    access::{Access, Source},
    answer::{self, ORIGIN, ResponseBody, SOURCE},
    collapse::Collapse,
    images::Images,
    metrics::{ManifestSource, Metrics},
};

/// Largest body that is collected and shared. Larger ones, which only lists can be, are passed through.
const MAX_SHARED: usize = MAX_MANIFEST_SIZE;
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

impl Answer {
    /// The same, which the origin has vouched for at this moment.
    fn confirmed(&self, received: Instant) -> Self {
        let (headers, body, digests) = (self.headers.clone(), self.body.clone(), self.digests.clone());
        Self { status: self.status, headers, body, received, digests }
    }

    /// The digest in its header.
    fn digest(&self) -> Option<Digest> {
        self.headers.get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
    }
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
    /// When it came: what the origin has answered since then answers it too.
    begun: Instant,
}

impl Request {
    /// A request that comes now.
    pub(crate) fn new(registry: RegistryName, endpoint: Endpoint, forward: ForwardRequest, caller: Caller) -> Self {
        Self { registry, endpoint, forward, caller, begun: Instant::now() }
    }
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
    changes: Changes,
    images: Images,
    running: Collapse<Key, Result<Shared, OriginError>>,
}

impl Manifests {
    /// Nothing known yet; the manifest of a tag is kept for `ttl`.
    pub(crate) fn new(
        registries: Arc<Registries>,
        access: Arc<Access>,
        metrics: Metrics,
        ttl: Duration,
        images: Images,
    ) -> Self {
        let (answers, changes, running) = (Answers::new(), Changes::new(), Collapse::new());
        Self(Arc::new(Inner { registries, access, metrics, ttl, answers, changes, images, running }))
    }

    /// Notes that a manifest was pushed or deleted: what is known of it is worth nothing as long as the origin can be asked.
    pub(crate) fn changed(&self, registry: &RegistryName, repository: &RepositoryName, reference: &Reference) {
        tracing::debug!(%registry, %repository, %reference, "a manifest has changed");
        self.0.changes.note(registry, repository, reference);
    }

    /// The last change of what a request asks for.
    fn last_change(&self, registry: &RegistryName, endpoint: &Endpoint) -> Option<Change> {
        let Endpoint::Manifest(repository, reference) = endpoint else { return None };
        self.0.changes.last(registry, repository, reference)
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
        let grant_ttl = inner.access.ttl(&request.registry);
        let by_digest = reference.digest().is_some();
        let ttl = if by_digest { grant_ttl } else { grant_ttl.min(inner.ttl) };
        let change = self.last_change(&request.registry, &request.endpoint);
        let is_fresh = |known: &&Arc<Answer>| {
            known.received.elapsed() < ttl && change.is_none_or(|change| known.received > change.at)
        };
        if let Some(known) = known.as_ref().filter(is_fresh) {
            return self.serve(known, &request, &source, ManifestSource::Cache);
        }
        let result = match &known {
            Some(known) if by_digest => self.confirm(&request, key, known).await,
            _ => self.ask(&request).await,
        };
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
            Ok(Shared::Answer(answer)) => {
                if is_refusal(answer.status) {
                    self.forget(&request, &source);
                }
                self.serve(&answer, &request, &source, ManifestSource::Origin)
            }
            Ok(Shared::TooLarge) => self.pass_through(request).await,
            Err(error) => {
                if error.status().is_some_and(is_refusal) {
                    self.forget(&request, &source);
                }
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
        if from != ManifestSource::Origin {
            self.0.metrics.spared("manifest");
        }
        if let Endpoint::Manifest(repository, reference) = &request.endpoint
            && answer.status == StatusCode::OK
        {
            self.0.images.note(&request.registry, repository, reference, &answer.headers, answer.body.as_ref());
        }
        if request.forward.method() == Method::GET {
            self.0.access.named(source, &answer.digests, answer.received);
        }
        respond(answer, request.forward.method(), from)
    }

    /// Asks the origin, together with everybody who asks the same now.
    async fn ask(&self, request: &Request) -> Result<Shared, OriginError> {
        let question = Question::of(request);
        let of_any_kind = Question::of_any_kind(request);
        let (mut asks_itself, begun) = (false, request.begun);
        let start = || {
            asks_itself = true;
            let Request { registry, endpoint, forward, caller, .. } = request;
            let (this, registry, endpoint) = (self.clone(), registry.clone(), endpoint.clone());
            let (forward, caller) = (forward.clone(), caller.clone());
            async move { this.fetch(&registry, &endpoint, (question, of_any_kind), forward, &caller, begun).await }
                .boxed()
        };
        // What began before a change does not answer who comes after it.
        let change = self.last_change(&request.registry, &request.endpoint).map_or(0, |change| change.number);
        let result = self.0.running.run(question.running_key(&request.forward, change), start).await;
        if !asks_itself {
            let is_manifest = matches!(request.endpoint, Endpoint::Manifest(..));
            self.0.metrics.spared(if is_manifest { "manifest" } else { "list" });
        }
        result
    }

    /// Asks the origin whether the caller may still have what a digest names.
    async fn confirm(&self, request: &Request, key: Key, known: &Answer) -> Result<Shared, OriginError> {
        let head = Request {
            registry: request.registry.clone(),
            endpoint: request.endpoint.clone(),
            forward: request.forward.clone().as_head(),
            caller: request.caller.clone(),
            begun: request.begun,
        };
        match self.ask(&head).await {
            Ok(Shared::Answer(answer)) if answer.status == StatusCode::OK => {
                let confirmed = Arc::new(known.confirmed(answer.received));
                self.0.answers.put(key, &confirmed);
                Ok(Shared::Answer(confirmed))
            }
            Ok(Shared::Answer(answer)) if cannot_answer(answer.status) => Ok(Shared::Answer(answer)),
            Err(error) if error.is_transient() => Err(error),
            // A refusal, or a registry without HEAD: the answer to the request itself counts.
            _ => self.ask(request).await,
        }
    }

    /// Forgets what was kept for a caller of a manifest that the origin refuses it, and of all that the
    /// manifest names.
    fn forget(&self, request: &Request, source: &Source) {
        let (question, any_kind) = (Question::of(request), Question::of_any_kind(request));
        let path = request.forward.path();
        let of_digest = |digest: &Digest| any_kind.key(&format!("{}/manifests/{digest}", source.repository));
        for key in [question.key(path), any_kind.last_key(path)] {
            let Some(known) = self.0.answers.remove(&key) else { continue };
            for digest in known.digest().iter().chain(&known.digests) {
                if let Some(child) = self.0.answers.remove(&of_digest(digest)) {
                    self.0.access.revoke(source, &child.digests);
                }
            }
            self.0.access.revoke(source, &known.digests);
        }
    }

    /// Asks the origin, unless that was done since `begun`, and keeps the answer when it is a manifest.
    async fn fetch(
        &self,
        registry: &RegistryName,
        endpoint: &Endpoint,
        (question, of_any_kind): (Question, Question),
        forward: ForwardRequest,
        caller: &Caller,
        begun: Instant,
    ) -> Result<Shared, OriginError> {
        let inner = &self.0;
        let (is_get, key) = (forward.method() == Method::GET, question.key(forward.path()));
        // The same question may have been answered between the look into what is known and the look at what is asked.
        if let Some(known) = inner.answers.get(&key)
            && known.received >= begun
            && (known.body.is_some() || !is_get)
        {
            return Ok(Shared::Answer(known));
        }
        let last_key = of_any_kind.last_key(forward.path());
        let asked = Instant::now();
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
            let is_outdated = self.last_change(registry, endpoint).is_some_and(|change| change.at >= asked);
            if is_outdated || matches!(named, Named::Mismatch) {
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

/// Statuses by which an origin says that this caller gets nothing here.
fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)
}

/// Statuses after which an older answer is better than none.
fn cannot_answer(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// The answer as it came, with a note where it comes from.
fn respond(known: &Answer, method: &Method, from: ManifestSource) -> Response<ResponseBody> {
    let body = match (&known.body, method) {
        (Some(body), &Method::GET) => answer::full(body.clone()),
        _ => answer::empty(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = known.status;
    *response.headers_mut() = known.headers.clone();
    let headers = response.headers_mut();
    if let Some(body) = &known.body {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    headers.insert(SOURCE, HeaderValue::from_static(from.name()));
    // The origin's own, if it is a cache itself, says nothing about this caller.
    headers.remove(header::AGE);
    if from != ManifestSource::Origin {
        headers.insert(header::AGE, answer::age(known.received.elapsed()));
    }
    if from == ManifestSource::Stale {
        // RFC 7234, 5.5.1: what runtimes and people know; RFC 9111 has no successor for it.
        headers.insert(header::WARNING, HeaderValue::from_static("110 - \"Response is Stale\""));
    }
    response
}
