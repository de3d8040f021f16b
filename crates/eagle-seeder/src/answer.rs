//! Answers of the HTTP API.

use std::time::Duration;

use bytes::Bytes;
use eagle_registry::{
    OriginError,
    errors::{ErrorCode, OciError},
};
use futures::{StreamExt, stream};
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use tokio::{sync::mpsc, time::timeout};

use crate::{error::FetchError, route::RouteError};

/// Says where an answer comes from: `origin`, `cache` or `stale`. Without it an error is the seeder's
/// own, and another seeder may do better.
pub(crate) const SOURCE: HeaderName = HeaderName::from_static("eagle-source");
/// Sent by a seeder that wants what this one has of a blob, and nothing to be begun for it.
pub(crate) const FOLLOWS: HeaderName = HeaderName::from_static("eagle-follows");
/// How the blob is cut, bytes: in the answer to [`FOLLOWS`].
pub(crate) const PIECE_LENGTH: HeaderName = HeaderName::from_static("eagle-piece-length");
/// Values of [`SOURCE`].
pub(crate) const ORIGIN: HeaderValue = HeaderValue::from_static("origin");
pub(crate) const STALE: HeaderValue = HeaderValue::from_static("stale");

/// How old something is as the value of `Age`; rounded up, so that nothing passes for younger.
pub(crate) fn age(age: Duration) -> HeaderValue {
    HeaderValue::from(age.as_secs() + u64::from(age.subsec_nanos() > 0))
}

/// Parts of a body that wait for a slow reader. The connection holds one more.
const QUEUE: usize = 1;
/// How long a body that has failed waits to say so; when it cannot, it ends early all the same.
const LAST_WORD: Duration = Duration::from_secs(5);

/// The body of an answer.
pub(crate) type ResponseBody = UnsyncBoxBody<Bytes, BodyError>;

/// Why a body ends before its announced length. The connection is closed, which is how the reader
/// learns of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Storage(#[from] eagle_store::StorageError),
    #[error("the reader is gone")]
    ReaderGone,
    #[error("the answer was given up")]
    Abandoned,
}

/// The writing end of a streamed body.
pub(crate) struct BodyWriter(mpsc::Sender<Result<Bytes, BodyError>>);

/// Room for one part of a body.
pub(crate) struct Room<'a>(mpsc::Permit<'a, Result<Bytes, BodyError>>);

/// A body that a task writes.
pub(crate) fn streamed() -> (BodyWriter, ResponseBody) {
    let (sender, parts) = mpsc::channel(QUEUE);
    let parts = stream::unfold(parts, |mut parts| async move { Some((parts.recv().await?, parts)) });
    (BodyWriter(sender), StreamBody::new(parts.map(|part| part.map(Frame::data))).boxed_unsync())
}

impl BodyWriter {
    /// Waits until the reader has room: what is paid for at the host's limit only then goes out at once. A reader that takes
    /// nothing for long is gone: the connection ends ([`eagle_cluster::places::READER_PATIENCE`]).
    pub(crate) async fn room(&self) -> Result<Room<'_>, BodyError> {
        self.0.reserve().await.map(Room).map_err(|_| BodyError::ReaderGone)
    }

    /// Sends bytes when the reader has room for them.
    pub(crate) async fn send(&self, bytes: Bytes) -> Result<(), BodyError> {
        self.room().await?.take(bytes);
        Ok(())
    }

    /// Ends the body with an error.
    pub(crate) async fn fail(self, error: BodyError) {
        // Who is gone needs none.
        let _ = timeout(LAST_WORD, self.0.send(Err(error))).await;
    }
}

impl Room<'_> {
    /// Sends bytes.
    pub(crate) fn take(self, bytes: Bytes) {
        self.0.send(Ok(bytes));
    }
}

pub(crate) fn empty() -> ResponseBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An error of this seeder in the form of the OCI specification.
pub(crate) fn error(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Response<ResponseBody> {
    OciError::new(code, message).response(status).map(|body| body.map_err(|never| match never {}).boxed_unsync())
}

pub(crate) fn route_error(problem: &RouteError) -> Response<ResponseBody> {
    error(problem.status(), problem.code(), problem.to_string())
}

/// An origin's refusal as it was, so that the runtime can act on it; anything else of an origin is a
/// bad gateway.
pub(crate) fn origin_error(problem: &OriginError) -> Response<ResponseBody> {
    let (status, headers, body) = match problem {
        OriginError::Status { status, headers, body, .. } if status.is_client_error() => (*status, headers, body),
        other => return error(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, other.to_string()),
    };
    // The refusal of a HEAD has no body, and the runtime may have sent a GET.
    let mut response = match body.is_empty() {
        true => error(status, code(status), problem.to_string()),
        false => Response::new(full(body.clone())),
    };
    *response.status_mut() = status;
    for (name, value) in headers.iter() {
        if name != header::CONTENT_TYPE || !body.is_empty() {
            response.headers_mut().append(name, value.clone());
        }
    }
    response.headers_mut().insert(SOURCE, ORIGIN);
    response
}

/// The code that a registry would most likely give with this status, for a blob or manifest.
fn code(status: StatusCode) -> ErrorCode {
    match status {
        StatusCode::UNAUTHORIZED => ErrorCode::Unauthorized,
        StatusCode::FORBIDDEN => ErrorCode::Denied,
        StatusCode::NOT_FOUND => ErrorCode::BlobUnknown,
        StatusCode::TOO_MANY_REQUESTS => ErrorCode::TooManyRequests,
        _ => ErrorCode::Unknown,
    }
}

pub(crate) fn fetch_error(problem: &FetchError) -> Response<ResponseBody> {
    let status = match problem {
        FetchError::Origin { error, .. } => return origin_error(error),
        FetchError::SizeChanged { .. } | FetchError::WrongContent { .. } => StatusCode::BAD_GATEWAY,
        FetchError::TooLarge { .. }
        | FetchError::Geometry { .. }
        | FetchError::NoRoom { .. }
        | FetchError::NoSpace { .. }
        | FetchError::Storage { .. } => StatusCode::INSUFFICIENT_STORAGE,
        FetchError::Busy(_) | FetchError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        FetchError::NotHeld { .. } => StatusCode::CONFLICT,
        FetchError::NotYet { .. } => StatusCode::TOO_EARLY,
        FetchError::Broken { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    error(status, ErrorCode::Unavailable, problem.to_string())
}
