//! How announces and their answers are written: protobuf between nodes and trackers, JSON for everyone else.
//!
//! The schema is `docs/tracker.proto`. Both encodings carry the same values and are checked alike: what does not fit the
//! types of [`crate::api`] is refused whole.

mod named;
mod protobuf;

use bytes::Bytes;
use eagle_core::Digest;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use prost::Message as _;

pub use self::named::{NamedPeer, NodeRecord};
use crate::api::{AnnounceRequest, AnnounceResponse, BlobPeers, MAX_ANNOUNCED_BLOBS, MAX_RESPONSE_BYTES, SwarmPeer};

/// Media type of version 1 of the protobuf messages.
pub const PROTOBUF: &str = "application/vnd.eagle.tracker.v1+protobuf";
/// Media type of JSON.
pub const JSON: &str = "application/json";

/// Most peers and blobs of an answer together. A peer has at least 100 bytes: its identity has 52 and its address 6.
const MAX_ANSWERED: usize = MAX_RESPONSE_BYTES / 100;

/// An encoding of announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As in the documentation of [`crate::api`].
    Json,
    /// As in `docs/tracker.proto`.
    Protobuf,
}

/// Why bytes are no announce, or no answer to one.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or not of this shape.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Not protobuf, or not of this shape.
    #[error("{0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A value that its field cannot have.
    #[error("{field}: {problem}")]
    Value {
        /// The field, by its name in the schema.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Encoding {
    /// The media type.
    pub const fn media_type(self) -> HeaderValue {
        match self {
            Self::Json => HeaderValue::from_static(JSON),
            Self::Protobuf => HeaderValue::from_static(PROTOBUF),
        }
    }

    /// The encoding of a body; `None` for others than the two.
    pub fn of_body(headers: &HeaderMap) -> Option<Self> {
        Self::named(headers, &header::CONTENT_TYPE).next()
    }

    /// The encoding that a client asks for: the first of its `Accept` that is one of the two, or else that of its own
    /// body.
    pub fn accepted(headers: &HeaderMap, body: Self) -> Self {
        Self::named(headers, &header::ACCEPT).next().unwrap_or(body)
    }

    fn named(headers: &HeaderMap, name: &HeaderName) -> impl Iterator<Item = Self> {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).filter_map(|value| {
            let essence = value.split(';').next().unwrap_or_default().trim();
            [Self::Json, Self::Protobuf].into_iter().find(|encoding| {
                let own = if *encoding == Self::Json { JSON } else { PROTOBUF };
                essence.eq_ignore_ascii_case(own)
            })
        })
    }

    /// An announce as bytes.
    ///
    /// # Errors
    /// Never for values that were made by this crate: all of them can be written.
    pub fn encode_request(self, request: &AnnounceRequest) -> Result<Bytes, serde_json::Error> {
        match self {
            Self::Json => serde_json::to_vec(request).map(Bytes::from),
            Self::Protobuf => Ok(protobuf::AnnounceRequest::from(request).encode_to_vec().into()),
        }
    }

    /// Reads an announce.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn decode_request(self, bytes: &[u8]) -> Result<AnnounceRequest, DecodeError> {
        match self {
            Self::Json => Ok(serde_json::from_slice(bytes)?),
            Self::Protobuf => protobuf::read_request(bytes, MAX_ANNOUNCED_BLOBS),
        }
    }

    /// An answer as bytes.
    ///
    /// # Errors
    /// As [`Encoding::encode_request`].
    pub fn encode_response(self, response: &AnnounceResponse) -> Result<Bytes, serde_json::Error> {
        match self {
            Self::Json => serde_json::to_vec(response).map(Bytes::from),
            Self::Protobuf => Ok(protobuf::AnnounceResponse::from(response).encode_to_vec().into()),
        }
    }

    /// An answer as bytes, with the peers of each blob where those of `response` would be.
    ///
    /// # Errors
    /// As [`Encoding::encode_request`].
    pub fn encode_answer(
        self,
        mut response: AnnounceResponse,
        peers: &[(Digest, Vec<NamedPeer>)],
    ) -> Result<Bytes, serde_json::Error> {
        if self == Self::Protobuf {
            let mut answer = protobuf::AnnounceResponse::from(&response).encode_to_vec();
            peers.iter().for_each(|(digest, peers)| protobuf::write_peers(&mut answer, digest.as_bytes(), peers));
            return Ok(answer.into());
        }
        let named = |peer: &NamedPeer| SwarmPeer { info: peer.node.info().clone(), pieces: peer.pieces.to_piece_set() };
        let named = |(digest, peers): &(Digest, Vec<NamedPeer>)| BlobPeers {
            digest: *digest,
            peers: peers.iter().map(named).collect(),
        };
        response.peers = peers.iter().map(named).collect();
        self.encode_response(&response)
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn decode_response(self, bytes: &[u8]) -> Result<AnnounceResponse, DecodeError> {
        match self {
            Self::Json => Ok(serde_json::from_slice(bytes)?),
            Self::Protobuf => protobuf::read_response(bytes, MAX_ANSWERED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_told_from_other_types() {
        let of = |name: HeaderName, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            headers
        };
        let body = |value| Encoding::of_body(&of(header::CONTENT_TYPE, value));
        assert_eq!(body("application/json"), Some(Encoding::Json));
        assert_eq!(body("Application/JSON; charset=utf-8"), Some(Encoding::Json));
        assert_eq!(body(PROTOBUF), Some(Encoding::Protobuf));
        for other in ["text/plain", "application/json-patch+json", "application/vnd.eagle.tracker.v2+protobuf", ""] {
            assert_eq!(body(other), None, "{other}");
        }
        assert_eq!(Encoding::of_body(&HeaderMap::new()), None);

        let accepted = |value| Encoding::accepted(&of(header::ACCEPT, value), Encoding::Protobuf);
        assert_eq!(accepted("text/html, application/json;q=0.9, */*"), Encoding::Json);
        assert_eq!(accepted("*/*"), Encoding::Protobuf);
    }
}
