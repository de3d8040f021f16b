//! Blobs of repositories whose rule says `origin`: relayed from the registry, not kept, not shared.

use eagle_registry::{ForwardRequest, errors::ErrorCode};
use futures::StreamExt;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use tokio::time::timeout;

use super::{SOURCE_DEADLINE, Service, blobs::Wanted};
use crate::{
    answer::{self, ResponseBody},
    metrics::Source,
};

impl Service {
    /// The registry's own answer, ranges and all; the runtime checks the digest.
    pub(super) async fn blob_from_origin(&self, wanted: Wanted<'_>) -> Response<ResponseBody> {
        let Wanted { digest, upstream, caller, method, headers } = wanted;
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
                return response;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("registry {}: no answer within {SOURCE_DEADLINE:?}", upstream.registry),
        };
        answer::error(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, format!("blob {digest}: {problem}"))
    }
}
