//! Blobs of repositories whose rule says `origin`: relayed from the registry, not kept, not shared.

use eagle_registry::{ForwardRequest, errors::ErrorCode, headers::number};
use futures::StreamExt;
use http::{Method, Response, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use tokio::time::{Instant, timeout};

use super::{SOURCE_DEADLINE, Service, blobs::Wanted};
use crate::{
    answer::{self, ResponseBody},
    metrics::Source,
    pull::{Pull, PullSource},
    upstream::Upstream,
};

impl Service {
    /// The registry's own answer, ranges and all; the runtime checks the digest.
    pub(super) async fn blob_from_origin(&self, wanted: Wanted<'_>, started: Instant) -> Response<ResponseBody> {
        let Wanted { digest, upstream, caller, method, headers } = wanted;
        let is_get = method == Method::GET;
        let path = format!("{}/blobs/{digest}", upstream.repository);
        let request = match ForwardRequest::new(method, path, headers.clone()) {
            Ok(request) => request,
            Err(problem) => {
                return answer::error(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, problem.to_string());
            }
        };
        let registry = self.registries.get(&upstream.registry);
        let problem = match timeout(SOURCE_DEADLINE, registry.forward(request, &caller)).await {
            Ok(Ok(response)) => {
                let (metrics, limiter) = (self.metrics.clone(), self.limiter.clone());
                let mut response = response.map(|body| {
                    let frames = BodyStream::new(body).then(move |frame| {
                        let (metrics, limiter) = (metrics.clone(), limiter.clone());
                        async move {
                            let frame = frame?;
                            let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                            limiter.acquire(bytes).await;
                            metrics.bytes(Source::Origin, bytes);
                            metrics.delivered(bytes);
                            Ok(frame)
                        }
                    });
                    StreamBody::new(frames).boxed_unsync()
                });
                answer::mark(response.headers_mut());
                if is_get && response.status().is_success() {
                    let promised = number(response.headers(), &header::CONTENT_LENGTH).unwrap_or(0);
                    let Upstream { registry, repository, .. } = upstream;
                    let (metrics, from) = (self.metrics.clone(), PullSource::Origin);
                    let pull = Pull { metrics, digest, registry, repository, caller, started, promised, from };
                    return response.map(|body| pull.watch(body));
                }
                return response;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("registry {}: no answer within {SOURCE_DEADLINE:?}", upstream.registry),
        };
        answer::error(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, format!("blob {digest}: {problem}"))
    }
}
