//! Misbehaviour on demand.

use eagle_core::Digest;
use http::StatusCode;

use crate::path::Endpoint;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed without an answer.
    Refuse,
    /// An answer with this status and an OCI error.
    Status(StatusCode),
    /// A redirect (307) to this location.
    Redirect(String),
    /// So many bytes of the body come, then nothing more, and the connection stays open.
    StallAfter(u64),
    /// So many bytes of the body come, then the connection is closed.
    TruncateAfter(u64),
    /// The byte at this offset of the content is not the right one.
    CorruptAt(u64),
    /// `Range` is ignored: 200 with the whole content.
    IgnoreRange,
    /// `Content-Range` names another range than the one that was asked for.
    WrongContentRange,
    /// The length is not announced (chunked encoding).
    NoLength,
}

/// Which requests go wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultTarget {
    /// All below `/v2/`.
    All,
    /// Those for manifests.
    Manifests,
    /// Those for blobs.
    Blobs,
    /// Those for one blob.
    Blob(Digest),
    /// Those for tokens.
    Tokens,
}

/// One rule: this goes wrong there, so many times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultRule {
    /// Which requests.
    pub target: FaultTarget,
    /// What goes wrong.
    pub fault: Fault,
    /// For how many more requests; `None` for all.
    pub times: Option<u32>,
}

impl FaultRule {
    /// A rule that holds until it is replaced.
    pub const fn always(target: FaultTarget, fault: Fault) -> Self {
        Self { target, fault, times: None }
    }

    /// A rule for one request.
    pub const fn once(target: FaultTarget, fault: Fault) -> Self {
        Self { target, fault, times: Some(1) }
    }
}

/// The fault for a request, from the first rule that fits it; counts its use. `None` as the endpoint
/// is the token service.
pub(super) fn pick(rules: &mut [FaultRule], endpoint: Option<&Endpoint>) -> Option<Fault> {
    let rule = rules.iter_mut().find(|rule| {
        rule.times != Some(0)
            && match (&rule.target, endpoint) {
                (FaultTarget::All, Some(_))
                | (FaultTarget::Manifests, Some(Endpoint::Manifest(..)))
                | (FaultTarget::Blobs, Some(Endpoint::Blob(..)))
                | (FaultTarget::Tokens, None) => true,
                (FaultTarget::Blob(wanted), Some(Endpoint::Blob(_, digest))) => wanted == digest,
                _ => false,
            }
    })?;
    if let Some(times) = &mut rule.times {
        *times -= 1;
    }
    Some(rule.fault.clone())
}
