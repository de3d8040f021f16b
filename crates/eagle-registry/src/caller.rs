//! Who asks: the credentials that a runtime sent for the origin.

use std::fmt;

use http::HeaderValue;
use sha2::{Digest as _, Sha256};

use crate::{config::Secret, credentials::Credentials, request_id::RequestId, trace::TraceContext};

/// The runtime's own credentials, passed on to the origin verbatim, and the name of its request. Credentials are never shown and
/// never stored.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// Value of the caller's `Authorization` header; `None` when it sent none.
    pub authorization: Option<HeaderValue>,
    /// Name of the request, which every hop writes into its log. It says nothing about who asks.
    pub request_id: Option<RequestId>,
    /// The trace that the request belongs to, which says nothing about who asks either.
    pub trace: Option<TraceContext>,
}

impl Caller {
    /// A caller without credentials of its own.
    pub const fn anonymous() -> Self {
        Self { authorization: None, request_id: None, trace: None }
    }

    /// A caller with the `Authorization`, `X-Request-Id` and `traceparent` headers of a request, where it has them.
    pub fn of(headers: &http::HeaderMap) -> Self {
        let authorization = headers.get(http::header::AUTHORIZATION).cloned().map(|mut value| {
            value.set_sensitive(true);
            value
        });
        Self { authorization, request_id: RequestId::of(headers), trace: TraceContext::of(headers) }
    }

    /// A caller with a name and a password, as by Basic authentication (RFC 7617).
    pub fn with_password(username: &str, password: &Secret) -> Self {
        Self { authorization: Credentials::login(username, password).basic(), ..Self::anonymous() }
    }

    /// Whether the caller gave a name and a password, or an identity token in the place of one.
    pub fn has_password(&self) -> bool {
        self.authorization.as_ref().is_some_and(|value| Credentials::of_basic(value).is_some())
    }

    /// Whether the caller sent no credentials.
    pub const fn is_anonymous(&self) -> bool {
        self.authorization.is_none()
    }

    /// A hash that tells callers apart, for the keys of caches: what one caller may read is never
    /// answered to another. Credentials cannot be read back from it in practice, but it is not meant
    /// to leave the process.
    pub fn key(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        match &self.authorization {
            // The leading byte keeps "no header" and "an empty header" apart.
            None => hash.update([0]),
            Some(value) => {
                hash.update([1]);
                hash.update(value.as_bytes());
            }
        }
        hash.finalize().into()
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_anonymous() { "Caller(anonymous)" } else { "Caller(***)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_told_apart_and_not_shown() {
        let caller = |text| Caller { authorization: Some(HeaderValue::from_static(text)), ..Caller::anonymous() };
        let keys = [Caller::anonymous().key(), caller("").key(), caller("Basic a").key(), caller("Basic b").key()];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[..i].iter().all(|b| a != b));
        }
        assert!(!format!("{:?}", caller("Basic secret")).contains("secret"));
        let named = Caller { request_id: Some(RequestId::random()), ..caller("Basic a") };
        assert_eq!(named.key(), caller("Basic a").key(), "the name of a request is no part of who asks");
    }
}
