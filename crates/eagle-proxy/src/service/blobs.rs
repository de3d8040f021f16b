//! Blobs: who may read them, ranges, and the answer.

use std::{sync::Arc, time::Duration};

use eagle_core::Digest;
use eagle_registry::{Caller, errors::ErrorCode, range};
use futures::StreamExt;
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::time::{Instant, timeout};

use super::{SOURCE_DEADLINE, Service};
use crate::{
    answer::{self, ResponseBody},
    download::{BlobError, BlobRequest, Failure},
    pull::{Pull, PullSource},
    upstream::Upstream,
};

/// A request for a blob.
pub(super) struct Wanted<'a> {
    pub(super) digest: Digest,
    pub(super) upstream: Upstream,
    pub(super) caller: Caller,
    pub(super) method: Method,
    pub(super) headers: &'a HeaderMap,
}

impl Service {
    pub(super) async fn blob(&self, wanted: Wanted<'_>, started: Instant) -> Response<ResponseBody> {
        let Wanted { digest, upstream, caller, method, headers } = wanted;
        let Upstream { registry, repository, .. } = upstream;
        let request = BlobRequest { digest, registry, repository, caller };
        let key = request.caller.key();
        let mut size = None;
        if !self.grants.holds(&key, &request.registry, &request.repository, &digest) {
            match self.ask_leave(&request).await {
                Ok(known) => size = Some(known),
                Err(response) => return response,
            }
        }
        if method == Method::HEAD {
            if size.is_none() {
                size = self.downloads.size(digest).await;
            }
            let size = match size {
                Some(size) => size,
                None => match self.ask_leave(&request).await {
                    Ok(size) => size,
                    Err(response) => return response,
                },
            };
            return respond(&digest, size, headers, |_| answer::empty());
        }
        let asked = request.clone();
        match self.downloads.open(request).await {
            Ok(blob) => {
                let size = blob.size();
                respond(&digest, size, headers, |range| {
                    let BlobRequest { digest, registry, repository, caller } = asked;
                    let (metrics, promised) = (self.metrics.clone(), range.end.saturating_sub(range.start));
                    let from = blob.progress().map_or(PullSource::Cache, PullSource::Download);
                    let pull = Pull { metrics, digest, registry, repository, caller, started, promised, from };
                    let mut stream = blob.read(range, started);
                    if let Some(bytes) = stream.take_whole() {
                        return pull.watch(answer::full(bytes));
                    }
                    let frames = stream.map(|bytes| bytes.map(Frame::data).map_err(cut));
                    pull.watch(StreamBody::new(frames).boxed_unsync())
                })
            }
            Err(problem) => {
                self.metrics.error(problem.kind());
                answer::blob_error(&problem)
            }
        }
    }

    /// Asks the origin, through a seeder or directly, whether the caller may read a blob; keeps a yes.
    /// Returns the size of the blob, or the answer to the runtime.
    async fn ask_leave(&self, request: &BlobRequest) -> Result<u64, Response<ResponseBody>> {
        let BlobRequest { digest, registry, repository, caller } = request;
        let mut tried = Vec::new();
        for seeder in self.seeders.order(digest).into_iter().take(MAX_SEEDERS) {
            let asked = self.seeders.blob_head(&seeder, *digest, registry, repository, caller);
            let failure = match timeout(SOURCE_DEADLINE, asked).await {
                Ok(Ok(head)) => return Ok(self.granted(request, head.size, head.age)),
                Ok(Err(error)) => Failure::from(error),
                Err(_) => Failure::Failed(format!("seeder {seeder}: no answer within {SOURCE_DEADLINE:?}")),
            };
            match failure {
                Failure::Refused(refusal) => return Err(answer::refusal(&refusal)),
                Failure::Failed(reason) => tried.push(reason),
            }
        }
        if !self.origin_fallback {
            tried.push("the registry is not asked: proxy.origin_fallback is false".to_owned());
            return Err(cannot_tell(&tried));
        }
        let origin = self.registries.get(registry);
        let failure = match timeout(SOURCE_DEADLINE, origin.blob_head(repository, *digest, caller)).await {
            Ok(Ok(size)) => return Ok(self.granted(request, size, Duration::ZERO)),
            Ok(Err(error)) => Failure::from(error),
            Err(_) => Failure::Failed(format!("registry {registry}: no answer within {SOURCE_DEADLINE:?}")),
        };
        match failure {
            Failure::Refused(refusal) => Err(answer::refusal(&refusal)),
            Failure::Failed(reason) => {
                tried.push(reason);
                Err(cannot_tell(&tried))
            }
        }
    }

    fn granted(&self, request: &BlobRequest, size: u64, age: Duration) -> u64 {
        let BlobRequest { digest, registry, repository, caller } = request;
        self.grants.give(&caller.key(), registry, repository, [*digest], age);
        size
    }
}

fn cannot_tell(tried: &[String]) -> Response<ResponseBody> {
    let message = format!("nobody could say whether you may read the blob: {}", tried.join("; "));
    answer::error(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, message)
}

/// Seeders that are asked for leave: with two of them failing, the origin itself is the quicker answer.
const MAX_SEEDERS: usize = 2;

/// An answer with the blob, or with the range that was asked for.
fn respond(
    digest: &Digest,
    size: u64,
    headers: &HeaderMap,
    body: impl FnOnce(std::ops::Range<u64>) -> ResponseBody,
) -> Response<ResponseBody> {
    let range = match requested_range(digest, size, headers) {
        Ok(range) => range,
        Err(range::Unsatisfiable) => return answer::unsatisfiable(size),
    };
    let mut response = Response::new(body(range.clone().unwrap_or(0..size)));
    *response.headers_mut() = answer::blob_headers(digest, size, range.as_ref());
    if range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

/// The part of a blob that a request asks for; `None` for all of it.
fn requested_range(
    digest: &Digest,
    size: u64,
    headers: &HeaderMap,
) -> Result<Option<std::ops::Range<u64>>, range::Unsatisfiable> {
    let mut values = headers.get_all(header::RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Ok(None) };
    let Ok(value) = value.to_str() else { return Ok(None) };
    // What is by digest never changes, so only a condition on something else can fail.
    if headers.get(header::IF_RANGE).is_some_and(|condition| condition != answer::etag(digest).as_str()) {
        return Ok(None);
    }
    range::requested(value, size)
}

/// The connection is cut, so that the runtime does not take what it has for the whole.
fn cut(problem: Arc<BlobError>) -> Box<dyn std::error::Error + Send + Sync> {
    problem.to_string().into()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn answer_to(range: &[&'static str], condition: Option<&str>, size: u64) -> Response<ResponseBody> {
        let digest = Digest::of(b"blob");
        let mut headers = HeaderMap::new();
        for value in range {
            headers.append(header::RANGE, HeaderValue::from_static(value));
        }
        if let Some(condition) = condition {
            headers.insert(header::IF_RANGE, condition.parse().unwrap());
        }
        respond(&digest, size, &headers, |_| answer::empty())
    }

    #[test]
    fn ranges_are_answered_as_the_rfc_says() {
        let etag = answer::etag(&Digest::of(b"blob"));
        for (range, condition, status, content_range, length) in [
            (&[][..], None, 200, None, "10"),
            (&["bytes=0-"], None, 206, Some("bytes 0-9/10"), "10"),
            (&["bytes=2-3"], None, 206, Some("bytes 2-3/10"), "2"),
            (&["bytes=-3"], None, 206, Some("bytes 7-9/10"), "3"),
            (&["bytes=2-3"], Some(etag.as_str()), 206, Some("bytes 2-3/10"), "2"),
            (&["bytes=2-3"], Some("\"other\""), 200, None, "10"),
            (&["bytes=0-1,3-4"], None, 200, None, "10"),
            (&["bytes=0-1", "bytes=3-4"], None, 200, None, "10"),
            (&["lines=0-1"], None, 200, None, "10"),
        ] {
            let response = answer_to(range, condition, 10);
            assert_eq!(response.status(), status, "{range:?}");
            let headers = response.headers();
            assert_eq!(headers.get(header::CONTENT_RANGE).map(|value| value.to_str().unwrap()), content_range);
            assert_eq!(headers[header::CONTENT_LENGTH], length, "{range:?}");
            assert_eq!(headers[header::ACCEPT_RANGES], "bytes");
            assert_eq!(headers[header::ETAG], etag.as_str());
        }
        let response = answer_to(&["bytes=10-"], None, 10);
        assert_eq!(response.status(), 416);
        assert_eq!(response.headers()[header::CONTENT_RANGE], "bytes */10");
    }
}
