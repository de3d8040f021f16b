//! Answers, good and bad.

use bytes::Bytes;
use eagle_core::Digest;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

use super::pace::RATE as ANNOUNCE_RATE;
use crate::{
    api::{AnnounceResponse, ErrorResponse, MAX_ANNOUNCED_BLOBS, MAX_REQUEST_BYTES},
    encoding::{Encoding, NamedPeer},
};

/// An answer with its whole body.
pub(super) type Reply = Response<Full<Bytes>>;

/// Why a request is refused. The text is for the operator of the client.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("{0}")]
    Bad(String),
    #[error("this tracker serves members of its cluster; give this node the cluster key, see docs/membership.md")]
    Stranger,
    #[error("there is nothing at this path; see docs/tracker-api.md")]
    NoSuchPath,
    #[error("no peer announces blob {0}")]
    NoSuchSwarm(Digest),
    #[error("no node {0} is alive")]
    NoSuchPeer(eagle_core::NodeId),
    #[error("this path takes {0} only")]
    Method(Method),
    #[error("this path takes GET and POST only")]
    GetOrPost,
    #[error("the body did not arrive in time")]
    Slow,
    #[error("the body is larger than {MAX_REQUEST_BYTES} bytes; send several announces")]
    LargeBody,
    #[error("{0} blobs in one announce, more than {MAX_ANNOUNCED_BLOBS}; send several announces")]
    ManyBlobs(usize),
    #[error("the body must be {} or {}, and Content-Type say which", crate::encoding::JSON, crate::encoding::PROTOBUF)]
    MediaType,
    #[error("{0}")]
    Overloaded(String),
    #[error("node {0} announces more than {ANNOUNCE_RATE} times a second; one announce takes many blobs")]
    TooOften(eagle_core::NodeId),
    #[error("the tracker failed on this request: {0}")]
    Internal(String),
}

impl RequestError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Bad(_) => StatusCode::BAD_REQUEST,
            Self::Stranger => StatusCode::FORBIDDEN,
            Self::NoSuchPath | Self::NoSuchSwarm(_) | Self::NoSuchPeer(_) => StatusCode::NOT_FOUND,
            Self::Method(_) | Self::GetOrPost => StatusCode::METHOD_NOT_ALLOWED,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::LargeBody | Self::ManyBlobs(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Overloaded(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooOften(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The answer that says so.
    pub(super) fn reply(&self) -> Reply {
        let mut reply = json_with(self.status(), &ErrorResponse { error: self.to_string() });
        match self {
            Self::Method(allowed) => {
                let allowed = if *allowed == Method::GET { "GET, HEAD" } else { "POST" };
                reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
            }
            Self::GetOrPost => {
                reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
            }
            Self::Overloaded(_) | Self::TooOften(_) => {
                reply.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            // The rest of the body is not read: the connection is of no more use.
            Self::Slow | Self::LargeBody | Self::Stranger => {
                reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        reply
    }
}

/// A value as JSON.
pub(super) fn json<T: Serialize>(value: &T) -> Reply {
    json_with(StatusCode::OK, value)
}

/// An answer to an announce, as its sender wants it.
pub(super) fn encoded(response: AnnounceResponse, peers: &[(Digest, Vec<NamedPeer>)], encoding: Encoding) -> Reply {
    match encoding.encode_answer(response, peers) {
        Ok(body) => whole(StatusCode::OK, encoding.media_type(), body),
        Err(_) => unwritable(),
    }
}

fn json_with<T: Serialize>(status: StatusCode, value: &T) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => whole(status, Encoding::Json.media_type(), body.into()),
        Err(_) => unwritable(),
    }
}

/// No type here has a serialiser that fails.
fn unwritable() -> Reply {
    let body = Bytes::from_static(br#"{"error":"the answer cannot be written as JSON"}"#);
    whole(StatusCode::INTERNAL_SERVER_ERROR, Encoding::Json.media_type(), body)
}

pub(super) fn whole(status: StatusCode, media_type: HeaderValue, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, media_type);
    reply
}
