//! Manifests, tags and referrers: passed on to the origin through the seeders, which collapse and
//! keep them; directly when no seeder answers; from memory when nobody does.

use std::time::Duration;

use eagle_core::Digest;
use eagle_registry::{
    Body, Caller, ForwardRequest, Manifest, Reference, Tag, body::read_up_to, errors::ErrorCode,
    headers::DOCKER_CONTENT_DIGEST, manifest::MEDIA_TYPES,
};
use eagle_seeder::client::{age, is_stale};
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::{SOURCE_DEADLINE, Service};
use crate::{
    answer::{self, ResponseBody},
    download::Failure,
    path::Resource,
    remembered::Wanted,
    rules::Action,
    upstream::Upstream,
};

/// Largest manifest that is passed on, bytes: four times what registries must accept, and more than
/// any runtime reads.
const MAX_MANIFEST: usize = 16 << 20;

/// Who can be asked for a manifest or a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The seeders, which ask the registry once for all.
    Seeders,
    /// The registry itself.
    Registry,
}

impl Service {
    /// Passes a request on and answers what comes back.
    pub(super) async fn forward(
        &self,
        parts: Parts,
        upstream: Upstream,
        resource: &Resource,
        caller: &Caller,
        sources: &[Source],
    ) -> Response<ResponseBody> {
        let Upstream { registry, repository, query } = &upstream;
        let query = query.as_ref().map_or_else(String::new, |query| format!("?{query}"));
        let path = format!("{repository}/{}{query}", resource.suffix());
        let wanted = match resource {
            Resource::Manifest(reference) => {
                Some(Wanted::new(caller.key(), registry, repository, reference.clone(), &parts.headers))
            }
            _ => None,
        };
        let head = parts.method == Method::HEAD;
        let request = match ForwardRequest::new(parts.method, path, parts.headers) {
            Ok(request) => request,
            Err(problem) => {
                return answer::error(StatusCode::BAD_REQUEST, ErrorCode::NameInvalid, problem.to_string());
            }
        };
        let mut tried = Vec::new();
        let mut last = None;
        for &source in sources {
            let attempt = timeout(SOURCE_DEADLINE, self.attempt(&request, &upstream, caller, wanted.as_ref(), source));
            match attempt.await {
                // A server's own trouble; the next one may have none.
                Ok(Ok(response)) if response.status().is_server_error() => last = Some(response),
                // The registry answers nobody for now: what it said before will do, and nobody need ask it once more.
                Ok(Ok(response)) if response.status() == StatusCode::TOO_MANY_REQUESTS => {
                    last = Some(response);
                    break;
                }
                Ok(Ok(response)) => return response,
                Ok(Err(reason)) => tried.push(reason),
                Err(_) => tried.push(format!("{}: no answer within {SOURCE_DEADLINE:?}", source.name())),
            }
        }
        if let Some(response) = wanted.and_then(|wanted| self.last_known(&wanted, head)) {
            return response;
        }
        if let Some(response) = last {
            return response;
        }
        tracing::warn!(%registry, %repository, tried = tried.join("; "), "nobody answers");
        let message = format!("neither seeders nor registry answered: {}", tried.join("; "));
        answer::error(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, message)
    }

    /// Asks for a manifest as any caller without credentials would, so that it is known here; by its digest, and by a tag
    /// if there is one.
    ///
    /// # Errors
    /// When it cannot be had, or the tag stands for something else by now; for people.
    pub(crate) async fn learn(&self, upstream: &Upstream, digest: Digest, tag: Option<Tag>) -> Result<(), String> {
        let action = self.rules.action(&upstream.registry, &upstream.repository);
        if action != Action::Peers {
            return Err("proxy.rules of this node keep the image from peers".to_owned());
        }
        for reference in [Some(Reference::Digest(digest)), tag.map(Reference::Tag)].into_iter().flatten() {
            let mut request = Request::get("/");
            for kind in MEDIA_TYPES {
                request = request.header(header::ACCEPT, kind);
            }
            let (parts, ()) = request.body(()).map_err(|error| error.to_string())?.into_parts();
            let resource = Resource::Manifest(reference);
            let (upstream, caller) = (upstream.clone(), Caller::anonymous());
            let answer = self.forward(parts, upstream, &resource, &caller, self.sources(action)).await;
            if answer.status() != StatusCode::OK {
                return Err(format!("{} was answered {}", resource.suffix(), answer.status()));
            }
        }
        Ok(())
    }

    async fn attempt(
        &self,
        request: &ForwardRequest,
        upstream: &Upstream,
        caller: &Caller,
        wanted: Option<&Wanted<'_>>,
        source: Source,
    ) -> Result<Response<ResponseBody>, String> {
        let response = match source {
            Source::Registry => {
                let registry = self.registries.get(&upstream.registry);
                match registry.forward(request.clone(), caller).await.map_err(Failure::from) {
                    Ok(response) => response,
                    Err(Failure::Refused(refusal)) => return Ok(answer::refusal(&refusal)),
                    Err(Failure::Failed(reason)) => return Err(reason),
                }
            }
            Source::Seeders => {
                let forwarded = self.seeders.forward(&upstream.registry, request.clone(), caller).await;
                forwarded.map_err(|error| error.to_string())?
            }
        };
        let response = match wanted {
            Some(wanted) if response.status() == StatusCode::OK => self
                .manifest(response, upstream, wanted, request.method() == Method::HEAD, source)
                .await
                .map_err(|reason| format!("{}: {reason}", source.name()))?,
            Some(wanted) if matches!(response.status().as_u16(), 401 | 403 | 404) => {
                self.forget(wanted);
                response.map(|body| body.map_err(Into::into).boxed_unsync())
            }
            _ => response.map(|body| body.map_err(Into::into).boxed_unsync()),
        };
        let mut response = response;
        answer::mark(response.headers_mut());
        Ok(response)
    }

    /// Checks a manifest against its digest, notes what it lets the caller read, and remembers it.
    async fn manifest(
        &self,
        response: Response<Body>,
        upstream: &Upstream,
        wanted: &Wanted<'_>,
        head: bool,
        source: Source,
    ) -> Result<Response<ResponseBody>, String> {
        let (mut parts, body) = response.into_parts();
        // In an outage no younger word of the origin can be had. Its own `Age`, if it is a cache itself, is not about
        // the caller.
        let age = match source {
            Source::Seeders if !is_stale(&parts.headers) => age(&parts.headers),
            _ => Duration::ZERO,
        };
        if head {
            self.images.note(&upstream.registry, &upstream.repository, &wanted.reference, &parts.headers, None);
            self.manifests.put(wanted, parts.headers.clone(), None);
            return Ok(Response::from_parts(parts, answer::empty()));
        }
        let body = read_up_to(body, MAX_MANIFEST).await.map_err(|error| error.to_string())?;
        let body = body.ok_or_else(|| format!("the manifest has more than {MAX_MANIFEST} bytes"))?;
        let named = parts.headers.get(DOCKER_CONTENT_DIGEST).and_then(|value| value.to_str().ok()?.parse().ok());
        let encoded = parts.headers.get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity");
        if !encoded && let Some(expected) = wanted.reference.digest().or(named) {
            let hashed = body.clone();
            let actual = tokio::task::spawn_blocking(move || digest_of(&expected, &hashed)).await;
            let actual = actual.map_err(|error| error.to_string())?;
            if actual != expected {
                self.metrics.verification_failure();
                return Err(format!("the manifest has the digest {actual} and not {expected}"));
            }
        }
        let media_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        // What is no image manifest (a signature, say) is the caller's business all the same.
        if let Ok(manifest) = Manifest::parse(&body, media_type) {
            let blobs = manifest.blobs.iter().map(|blob| blob.digest);
            self.grants.give(&wanted.caller, &upstream.registry, &upstream.repository, blobs, age);
        }
        self.images.note(&upstream.registry, &upstream.repository, &wanted.reference, &parts.headers, Some(&body));
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        self.manifests.put(wanted, parts.headers.clone(), Some(body.clone()));
        if let (Reference::Tag(_), Some(digest)) = (&wanted.reference, named) {
            self.manifests.put(&wanted.of_any_kind(), parts.headers.clone(), Some(body.clone()));
            let by_digest = Wanted { reference: Reference::Digest(digest), ..wanted.clone() };
            self.manifests.put(&by_digest, parts.headers.clone(), Some(body.clone()));
        }
        Ok(Response::from_parts(parts, answer::full(body)))
    }

    /// The origin refuses a caller what it was given before: nothing of it is left to the caller, not even when the
    /// origin is down later.
    fn forget(&self, wanted: &Wanted<'_>) {
        let Some(known) = self.manifests.forget(wanted) else { return };
        if let Some(manifest) = known.body.as_ref().and_then(|body| Manifest::parse(body, None).ok()) {
            let blobs = manifest.blobs.iter().map(|blob| blob.digest);
            self.grants.take(&wanted.caller, wanted.registry, wanted.repository, blobs);
        }
    }

    /// The last answer of this kind that this caller was given.
    fn last_known(&self, wanted: &Wanted<'_>, head: bool) -> Option<Response<ResponseBody>> {
        let known = self.manifests.get(wanted, !head)?;
        let body = match &known.body {
            Some(body) if !head => answer::full(body.clone()),
            _ => answer::empty(),
        };
        if let Some(body) = &known.body
            && let Ok(manifest) = Manifest::parse(body, None)
        {
            // The origin has answered this very caller before; its blobs must not fail for want of one.
            let blobs = manifest.blobs.iter().map(|blob| blob.digest);
            self.grants.give(&wanted.caller, wanted.registry, wanted.repository, blobs, Duration::ZERO);
        }
        let mut response = Response::new(body);
        *response.headers_mut() = known.headers.clone();
        response.headers_mut().insert(header::WARNING, HeaderValue::from_static("110 - \"Response is Stale\""));
        Some(response)
    }
}

impl Source {
    const fn name(self) -> &'static str {
        match self {
            Self::Seeders => "seeders",
            Self::Registry => "registry",
        }
    }
}

fn digest_of(like: &Digest, bytes: &[u8]) -> Digest {
    let mut hasher = like.hasher();
    hasher.update(bytes);
    hasher.finish()
}
