//! Answers to runtimes.

use std::error::Error;

use bytes::Bytes;
use eagle_core::Digest;
use eagle_registry::{
    errors::{ErrorCode, OciError},
    headers::{DOCKER_API_VERSION, DOCKER_CONTENT_DIGEST},
    range::ContentRange,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};

use crate::{
    download::{BlobError, Refusal},
    path::PathError,
    upstream::{Upstream, UpstreamError},
};

/// The body of an answer; an error in it cuts the connection.
pub(crate) type ResponseBody = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

pub(crate) fn empty() -> ResponseBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An error in the form of the specification.
pub(crate) fn error(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Response<ResponseBody> {
    let mut response =
        OciError::new(code, message).response(status).map(|body| body.map_err(|never| match never {}).boxed_unsync());
    mark(response.headers_mut());
    response
}

/// The answer to `/v2/`: yes, this is a registry.
pub(crate) fn base() -> Response<ResponseBody> {
    let mut response = Response::new(full("{}"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    mark(response.headers_mut());
    response
}

/// The answer to a method that only pushing uses.
pub(crate) fn read_only() -> Response<ResponseBody> {
    let message = "this is a mirror for pulling; push to the registry itself";
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, message);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// The answer for a repository that the configuration excludes.
pub(crate) fn refused_by_rule(upstream: &Upstream) -> Response<ResponseBody> {
    let Upstream { registry, repository, .. } = upstream;
    let message = format!("a rule of this proxy (proxy.rules) refuses {registry}/{repository}");
    error(StatusCode::FORBIDDEN, ErrorCode::Denied, message)
}

pub(crate) fn path_error(problem: &PathError) -> Response<ResponseBody> {
    let (status, code) = match problem {
        PathError::Unknown => (StatusCode::NOT_FOUND, ErrorCode::Unsupported),
        PathError::Encoding => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid),
        PathError::TooLong => (StatusCode::URI_TOO_LONG, ErrorCode::NameInvalid),
        PathError::Digest(_) => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
        PathError::Reference(_) => (StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid),
    };
    error(status, code, problem.to_string())
}

pub(crate) fn upstream_error(problem: &UpstreamError) -> Response<ResponseBody> {
    let status = match problem {
        UpstreamError::TooLong => StatusCode::URI_TOO_LONG,
        UpstreamError::Registry(_) | UpstreamError::Repository(_) => StatusCode::BAD_REQUEST,
    };
    error(status, ErrorCode::NameInvalid, problem.to_string())
}

/// The origin's refusal, as the origin put it. An answer to HEAD came without a body and gets one.
pub(crate) fn refusal(refusal: &Refusal) -> Response<ResponseBody> {
    let mut headers = refusal.headers.clone();
    let body = if refusal.body.is_empty() {
        let code = match refusal.status {
            StatusCode::UNAUTHORIZED => ErrorCode::Unauthorized,
            StatusCode::FORBIDDEN => ErrorCode::Denied,
            StatusCode::NOT_FOUND => ErrorCode::BlobUnknown,
            StatusCode::TOO_MANY_REQUESTS => ErrorCode::TooManyRequests,
            _ => ErrorCode::Unknown,
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        OciError::new(code, format!("the registry answered {}", refusal.status)).to_body()
    } else {
        refusal.body.clone()
    };
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    let mut response = Response::new(full(body));
    *response.status_mut() = refusal.status;
    *response.headers_mut() = headers;
    mark(response.headers_mut());
    response
}

pub(crate) fn blob_error(problem: &BlobError) -> Response<ResponseBody> {
    match problem {
        BlobError::Refused(said) => refusal(said),
        BlobError::Unavailable { .. }
        | BlobError::Corrupt { .. }
        | BlobError::Contradiction { .. }
        | BlobError::Disagreement { .. }
        | BlobError::Unproven
        | BlobError::Storage(_) => error(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, problem.to_string()),
        BlobError::Stopped => error(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, problem.to_string()),
    }
}

/// Headers of an answer with a blob, or the part of it that is `range`.
pub(crate) fn blob_headers(digest: &Digest, size: u64, range: Option<&std::ops::Range<u64>>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let text = |text: String| HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, text(etag(digest)));
    headers.insert(DOCKER_CONTENT_DIGEST, text(digest.to_string()));
    let length = match range {
        Some(range) => {
            let content_range = ContentRange { start: range.start, end: range.end, total: Some(size) };
            headers.insert(header::CONTENT_RANGE, text(content_range.to_string()));
            range.end - range.start
        }
        None => size,
    };
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    mark(&mut headers);
    headers
}

/// The entity tag of a blob.
pub(crate) fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// A range that the blob does not have.
pub(crate) fn unsatisfiable(size: u64) -> Response<ResponseBody> {
    let message = format!("the blob has {size} bytes");
    let mut response = error(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::RangeInvalid, message);
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

/// Older clients look for this before they believe that they talk to a registry.
pub(crate) fn mark(headers: &mut HeaderMap) {
    headers.entry(DOCKER_API_VERSION).or_insert(HeaderValue::from_static("registry/2.0"));
}
