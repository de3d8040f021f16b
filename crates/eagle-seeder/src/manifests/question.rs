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

    /// Requests with the same key that run at the same time are one; `change` is the last change before it.
    pub(super) fn running_key(self, request: &ForwardRequest, change: u64) -> Key {
        let question = Sha256::new().chain_update(self.key(request.path())).chain_update(request.method().as_str());
        question.chain_update(change.to_le_bytes()).finalize().into()
    }
}

/// Whether a request takes an answer of this kind.
pub(super) fn accepts(headers: &HeaderMap, answer: &Answer) -> bool {
    let given = answer.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    given.is_some_and(|given| eagle_registry::headers::accepts(headers.get_all(header::ACCEPT), given))
}
