//! Which requests ask the same.

use eagle_registry::{ForwardRequest, path::Endpoint};
use http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};

use super::{Answer, Key, Request};

/// What, beside the resource, decides about an answer: registry, caller, what the caller accepts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question([u8; 32]);

impl Question {
    pub(super) fn of(request: &Request) -> Self {
        let by_digest = matches!(&request.endpoint, Endpoint::Manifest(_, reference) if reference.digest().is_some());
        if by_digest {
            // A digest names one content, whatever kinds are accepted.
            return Self::of_any_kind(request);
        }
        let mut hash = Sha256::new();
        hash.update(Self::of_any_kind(request).0);
        for value in request.forward.headers().get_all(header::ACCEPT) {
            // No header value holds a line break, so the parts cannot run into each other.
            hash.update(b"\n");
            hash.update(value.as_bytes());
        }
        Self(hash.finalize().into())
    }

    /// The question without what the caller accepts.
    pub(super) fn of_any_kind(request: &Request) -> Self {
        let hash = Sha256::new().chain_update(request.caller.key()).chain_update(request.registry.as_str());
        Self(hash.finalize().into())
    }

    /// Where the last answer to this question is kept, whatever was accepted then.
    pub(super) fn last_key(self, target: &str) -> Key {
        // No path holds a line break.
        self.key(&format!("last\n{target}"))
    }

    /// The same question about this path and query.
    pub(super) fn key(self, target: &str) -> Key {
        Sha256::new().chain_update(self.0).chain_update(target).finalize().into()
    }

    pub(super) fn running_key(self, request: &ForwardRequest) -> Key {
        Sha256::new().chain_update(self.key(request.path())).chain_update(request.method().as_str()).finalize().into()
    }
}

/// Whether a request takes an answer of this kind (RFC 9110, section 12.5.1, without weights: a kind
/// that is refused by `q=0` is not in use for manifests).
pub(super) fn accepts(headers: &HeaderMap, answer: &Answer) -> bool {
    let kind = |value: &str| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let Some(given) = answer.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(kind) else {
        return false;
    };
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    accepted.peek().is_none()
        || accepted
            .flat_map(|value| value.split(','))
            .map(kind)
            .any(|kind| kind == given || kind == "*/*" || kind == "application/*")
}
