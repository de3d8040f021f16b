//! What runtimes ask for, and the answers.

mod blobs;
mod direct;
mod links;
mod manifests;

use std::{sync::Arc, time::Duration};

use eagle_registry::{Caller, Registries, RegistryName, errors::ErrorCode};
use eagle_seeder::client::SeederClient;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::{
    answer::{self, ResponseBody},
    download::Downloads,
    grants::Grants,
    metrics::Metrics,
    path::{self, ApiPath, Resource},
    remembered::Manifests,
    rules::{Action, Rules},
    upstream,
};

/// How long one source of a manifest, or of the leave to read a blob, may take to answer. A cold
/// origin with a token service takes seconds; with three sources in a row a runtime waits a minute at
/// most, well before it gives up.
const SOURCE_DEADLINE: Duration = Duration::from_secs(20);

/// Answers the requests of runtimes.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) downloads: Downloads,
    pub(crate) grants: Grants,
    pub(crate) seeders: SeederClient,
    pub(crate) has_seeders: bool,
    pub(crate) registries: Arc<Registries>,
    pub(crate) manifests: Manifests,
    pub(crate) metrics: Metrics,
    pub(crate) default_registry: RegistryName,
    pub(crate) rules: Rules,
    pub(crate) origin_fallback: bool,
}

impl Service {
    /// Answers one request, whatever it is.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let started = Instant::now();
        let (kind, response) = self.route(request, started).await;
        self.metrics.request(kind, response.status());
        tracing::debug!(kind, status = response.status().as_u16(), elapsed = ?started.elapsed(), "request");
        response
    }

    async fn route(&self, request: Request<Incoming>, started: Instant) -> (&'static str, Response<ResponseBody>) {
        let (parts, body) = request.into_parts();
        // A GET has no content to speak of; what a push sends is not looked at.
        drop(body);
        if matches!(parts.method, Method::POST | Method::PUT | Method::PATCH | Method::DELETE) {
            return ("push", answer::read_only());
        }
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
        let upstream = match upstream::resolve(&name, parts.uri.query(), &self.default_registry) {
            Ok(upstream) => upstream,
            Err(problem) => return (kind, answer::upstream_error(&problem)),
        };
        let caller = Caller::of(&parts.headers);
        let action = self.rules.action(&upstream.registry, &upstream.repository);
        let response = match (resource, action) {
            (_, Action::Refuse) => answer::refused_by_rule(&upstream),
            (Resource::Blob(digest), _) => {
                let blob = blobs::Wanted { digest, upstream, caller, method: parts.method, headers: &parts.headers };
                match action {
                    Action::Origin => self.blob_from_origin(blob).await,
                    _ => self.blob(blob, started).await,
                }
            }
            (resource, _) => {
                let list = links::List::of(&name, &resource, parts.uri.query());
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
    const fn sources(&self, action: Action) -> &'static [manifests::Source] {
        use manifests::Source::{Registry, Seeders};
        match (action, self.has_seeders, self.origin_fallback) {
            (Action::Origin, ..) | (_, false, _) => &[Registry],
            (_, true, true) => &[Seeders, Registry],
            (_, true, false) => &[Seeders],
        }
    }
}
