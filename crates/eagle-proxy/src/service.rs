//! What runtimes ask for, and the answers.

mod blobs;
mod direct;
pub(crate) mod links;
mod manifests;
pub(crate) mod relay;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use eagle_p2p::limits::Limiter;
use eagle_registry::{Caller, Registries, RegistryName, RepositoryName, RequestId, errors::ErrorCode, trace};
use eagle_seeder::{client::SeederClient, images::Images};
use http::{Method, Request, Response, StatusCode, header, request::Parts};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use tokio::time::Instant;
use tracing::{Instrument as _, field::Empty};

use self::relay::Uploads;
use crate::{
    answer::{self, ResponseBody},
    config::Push,
    download::Downloads,
    grants::Grants,
    login::{self, Gate, Guest},
    metrics::Metrics,
    path::{self, ApiPath, PathError, PushPath, Resource},
    remembered::Manifests,
    rules::{Action, Rules},
    upstream::{self, Upstream},
};

/// How long one source of a manifest, or of the leave to read a blob, may take to answer. A cold
/// origin with a token service takes seconds; with three sources in a row a runtime waits a minute at
/// most, well before it gives up.
const SOURCE_DEADLINE: Duration = Duration::from_secs(20);

/// How a request reached this proxy, which says what its path means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Via {
    /// As a request to a mirror, at this address of it: the registry is in the path or the query, or is the default one.
    Mirror(SocketAddr),
    /// As a request to this registry itself, by way of the forward proxy.
    Registry(RegistryName),
}

/// Answers the requests of runtimes.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) downloads: Downloads,
    pub(crate) grants: Grants,
    pub(crate) seeders: SeederClient,
    pub(crate) registries: Arc<Registries>,
    pub(crate) manifests: Manifests,
    pub(crate) images: Images,
    pub(crate) metrics: Metrics,
    pub(crate) default_registry: RegistryName,
    pub(crate) rules: Rules,
    pub(crate) origin_fallback: bool,
    pub(crate) push: Push,
    pub(crate) gate: Gate,
    pub(crate) uploads: Uploads,
    /// Of what this host downloads.
    pub(crate) limiter: Limiter,
}

impl Service {
    /// Answers one request, whatever it is.
    pub(crate) async fn answer(&self, request: Request<Incoming>, via: &Via) -> Response<ResponseBody> {
        let started = Instant::now();
        let mut request = request;
        // Every hop from here on knows the request by the name that the runtime gave it, or by this new one.
        let id = RequestId::of(request.headers()).unwrap_or_else(RequestId::random);
        id.put(request.headers_mut());
        let span = tracing::info_span!("request", request = %id);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let traced = trace::serve(request.headers_mut(), || {
            tracing::info_span!(
                target: trace::TARGET, parent: None, "serve a runtime", otel.kind = "server",
                otel.status_code = Empty, eagle.kind = Empty, http.request.method = %method, url.path = path, eagle.request = %id,
                http.response.status_code = Empty, eagle.outcome = Empty, eagle.bytes = Empty,
                eagle.from_cache = Empty, eagle.from_peers = Empty, eagle.from_seeders = Empty,
                eagle.from_origin = Empty, error.message = Empty
            )
        });
        // The second is the innermost: the body of a blob takes it along, to say how the pull ended.
        let routed = self.route(request, via, started).instrument(traced.clone()).instrument(span);
        let (kind, mut response) = routed.await;
        self.metrics.request(kind, response.status());
        id.put(response.headers_mut());
        let status = response.status();
        traced.record("eagle.kind", kind).record("http.response.status_code", trace::number(status.as_u16()));
        if status.is_server_error() {
            traced.record("otel.status_code", "ERROR");
            tracing::warn!(request = %id, kind, status = status.as_u16(), elapsed = ?started.elapsed(), "a request failed");
        } else {
            tracing::debug!(request = %id, kind, status = status.as_u16(), elapsed = ?started.elapsed(), "request");
        }
        response
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        via: &Via,
        started: Instant,
    ) -> (&'static str, Response<ResponseBody>) {
        let (mut parts, body) = request.into_parts();
        let mut guest = Guest::Stranger;
        if let Via::Mirror(local) = via {
            if parts.uri.path() == login::TOKEN_PATH && self.gate.serves(*local) {
                return ("token", self.gate.token(parts, body).await);
            }
            guest = self.gate.recognise(&mut parts.headers);
            if self.must_ask(&parts, &guest, *local) {
                return ("login", self.who_is_there(&parts, &guest, *local));
            }
        }
        let pushes = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH | Method::DELETE);
        match via {
            Via::Registry(registry) if pushes || !is_of_an_image(parts.uri.path()) => {
                let kind = if pushes { "push" } else { "other" };
                return (kind, self.relay_to_host(registry, parts, body).await);
            }
            Via::Mirror(_) if pushes => return ("push", self.push_to_mirror(parts, body, &guest).await),
            Via::Mirror(_) if self.push == Push::Passthrough && is_upload(parts.uri.path()) => {
                return ("push", self.push_to_mirror(parts, body, &guest).await);
            }
            _ => {}
        }
        // A GET has no content to speak of.
        drop(body);
        if parts.method != Method::GET && parts.method != Method::HEAD {
            let message = "only GET and HEAD are served";
            return ("other", answer::error(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, message));
        }
        let (name, resource) = match path::parse(parts.uri.path()) {
            Ok(ApiPath::Base) => return ("base", answer::base()),
            Ok(ApiPath::Repository { name, resource }) => (name, resource),
            Err(problem) => return ("other", answer::path_error(&problem)),
        };
        let kind = match resource {
            Resource::Manifest(_) => "manifest",
            Resource::Blob(_) => "blob",
            Resource::Tags => "tags",
            Resource::Referrers(_) => "referrers",
        };
        let upstream = match via {
            Via::Mirror(_) => upstream::resolve(&name, parts.uri.query(), &self.default_registry),
            Via::Registry(registry) => upstream::of_registry(registry, &name, parts.uri.query()),
        };
        let upstream = match upstream {
            Ok(upstream) => upstream,
            Err(problem) => return (kind, answer::upstream_error(&problem)),
        };
        if let (Via::Mirror(local), false) = (via, guest.is_for(&upstream.registry)) {
            return ("login", self.who_is_there(&parts, &guest, *local));
        }
        let caller = Caller::of(&parts.headers);
        let action = self.rules.action(&upstream.registry, &upstream.repository);
        let response = match (resource, action) {
            (_, Action::Refuse) => answer::refused_by_rule(&upstream),
            (Resource::Blob(digest), _) => {
                let blob = blobs::Wanted { digest, upstream, caller, method: parts.method, headers: &parts.headers };
                match action {
                    Action::Origin => self.blob_from_origin(blob, started).await,
                    _ => self.blob(blob, started).await,
                }
            }
            (resource, _) => {
                // To a client of the registry itself the registry's own links are the right ones.
                let list =
                    links::List::of(&name, &resource, parts.uri.query()).filter(|_| matches!(via, Via::Mirror(_)));
                let repository = upstream.repository.clone();
                let mut response = self.forward(parts, upstream, &resource, &caller, self.sources(action)).await;
                if let Some(list) = list {
                    list.lead_back(response.headers_mut(), &repository);
                }
                response
            }
        };
        (kind, response)
    }

    /// Who is asked for what is no blob, in this order.
    fn sources(&self, action: Action) -> &'static [manifests::Source] {
        use manifests::Source::{Registry, Seeders};
        match (action, !self.seeders.configured().borrow().is_empty(), self.origin_fallback) {
            (Action::Origin, ..) | (_, false, _) => &[Registry],
            (_, true, true) => &[Seeders, Registry],
            (_, true, false) => &[Seeders],
        }
    }

    /// Whether a runtime has to be asked for its credentials first.
    fn must_ask(&self, parts: &Parts, guest: &Guest, local: SocketAddr) -> bool {
        match guest {
            Guest::Expired => true,
            Guest::Known(_) => false,
            Guest::Stranger => {
                let is_base = matches!(path::parse(parts.uri.path()), Ok(ApiPath::Base));
                let reads = matches!(parts.method, Method::GET | Method::HEAD);
                is_base && reads && !parts.headers.contains_key(header::AUTHORIZATION) && self.gate.serves(local)
            }
        }
    }

    fn who_is_there(&self, parts: &Parts, guest: &Guest, local: SocketAddr) -> Response<ResponseBody> {
        self.gate.challenge(&login::host(&parts.headers, local), guest)
    }

    async fn push_to_mirror(&self, parts: Parts, body: Incoming, guest: &Guest) -> Response<ResponseBody> {
        if self.push == Push::Refuse {
            return answer::read_only();
        }
        let (name, path) = match path::parse_push(parts.uri.path()) {
            Ok(push) => push,
            Err(problem) => return answer::path_error(&problem),
        };
        let upstream = match upstream::resolve(&name, parts.uri.query(), &self.default_registry) {
            Ok(upstream) => upstream,
            Err(problem) => return answer::upstream_error(&problem),
        };
        if !guest.is_for(&upstream.registry) {
            let message = "the token is for another registry, or for none";
            return answer::error(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
        }
        if self.rules.action(&upstream.registry, &upstream.repository) == Action::Refuse {
            return answer::refused_by_rule(&upstream);
        }
        self.push(parts, body, &name, path, upstream, guest).await
    }

    /// A request to a registry by way of the forward proxy that is for no image.
    async fn relay_to_host(&self, registry: &RegistryName, parts: Parts, body: Incoming) -> Response<ResponseBody> {
        if !self.origin_fallback {
            if matches!(parts.uri.path(), "/v2" | "/v2/") {
                return answer::base();
            }
            let message = "the registry is not asked: proxy.origin_fallback is false";
            return answer::error(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, message);
        }
        if let Some(upstream) = self.refused_repository(registry, parts.uri.path()) {
            return answer::refused_by_rule(&upstream);
        }
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        self.relay(registry, parts, target, body).await
    }

    /// A repository in this path that a rule refuses. Registries have paths besides those of the specification, so
    /// whatever could be a name counts.
    fn refused_repository(&self, registry: &RegistryName, path: &str) -> Option<Upstream> {
        let rest = percent_decode_str(path.strip_prefix("/v2/")?).decode_utf8_lossy();
        let ends = rest.match_indices('/').map(|(at, _)| at).chain([rest.len()]);
        ends.filter_map(|end| rest[..end].parse::<RepositoryName>().ok()).find_map(|repository| {
            let refused = self.rules.action(registry, &repository) == Action::Refuse;
            refused.then(|| Upstream { registry: registry.clone(), repository, query: None })
        })
    }
}

/// Whether a path is one that is answered here, for a client of the registry itself.
fn is_of_an_image(path: &str) -> bool {
    // What is malformed gets an answer that says so.
    !matches!(path::parse(path), Ok(ApiPath::Base) | Err(PathError::Unknown))
}

fn is_upload(path: &str) -> bool {
    matches!(path::parse_push(path), Ok((_, PushPath::Upload(Some(_)))))
}
