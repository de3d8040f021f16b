//! Bodies of requests: read whole, within bounds of size and time.

use std::time::Duration;

use bytes::Bytes;
use eagle_registry::errors::ErrorCode;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};

use crate::answer::{self, ResponseBody};

/// How long a body may take: the largest in a second over a slow link, with room for a pause.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no body to work with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyProblem {
    /// It is too long.
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
    /// It did not come.
    #[error("the body did not arrive within {} s", DEADLINE.as_secs())]
    TooSlow,
    /// It broke off.
    #[error("the body broke off: {0}")]
    Broken(String),
    /// It is said to be something else.
    #[error("the body must be {0}")]
    MediaType(&'static str),
    /// It makes no sense.
    #[error("{0}")]
    Bad(String),
}

impl BodyProblem {
    /// The answer that says so.
    pub(crate) fn response(&self) -> Response<ResponseBody> {
        let status = match self {
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Broken(_) | Self::Bad(_) => StatusCode::BAD_REQUEST,
        };
        answer::error(status, ErrorCode::Unsupported, self.to_string())
    }
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read(body: Incoming, limit: usize) -> Result<Bytes, BodyProblem> {
    // Refused unread where its length is known.
    if body.size_hint().lower() > limit as u64 {
        return Err(BodyProblem::TooLarge(limit));
    }
    match tokio::time::timeout(DEADLINE, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BodyProblem::TooLarge(limit)),
        Ok(Err(error)) => Err(BodyProblem::Broken(error.to_string())),
        Err(_) => Err(BodyProblem::TooSlow),
    }
}

/// The media type of a request, without its parameters, in lower case.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Reads a JSON document of this form.
pub(crate) async fn json<T: serde::de::DeserializeOwned>(
    headers: &HeaderMap,
    body: Incoming,
    limit: usize,
) -> Result<T, BodyProblem> {
    if media_type(headers) != "application/json" {
        return Err(BodyProblem::MediaType("application/json"));
    }
    let bytes = read(body, limit).await?;
    // serde_json refuses what lies more than 128 levels deep.
    serde_json::from_slice(&bytes).map_err(|error| BodyProblem::Bad(format!("the body makes no sense: {error}")))
}
