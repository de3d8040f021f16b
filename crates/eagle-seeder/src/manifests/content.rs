//! What a manifest says, and whether it is the one that was asked for.

use bytes::Bytes;
use eagle_core::Digest;
use eagle_registry::{Manifest, OriginError, Reference, RegistryName, headers::DOCKER_CONTENT_DIGEST};
use http::header;

use super::Answer;

/// Bodies from this size on are hashed away from the async threads: 64 KiB take about 40 us.
const HASH_ELSEWHERE: usize = 64 << 10;

/// What is known of the digest of a manifest.
pub(super) enum Named {
    /// It was asked for by digest, or its digest is unknown.
    Plain,
    /// It was asked for by tag and has this digest, which was checked.
    Digest(Digest),
    /// It has another digest than its header says.
    Mismatch,
}

/// Checks the body against the digest that was asked for or is claimed.
pub(super) async fn check(
    registry: &RegistryName,
    reference: &Reference,
    answer: &Answer,
) -> Result<Named, OriginError> {
    let Some(body) = &answer.body else { return Ok(Named::Plain) };
    let claimed = answer.headers.get(DOCKER_CONTENT_DIGEST).and_then(|value| value.to_str().ok()?.parse().ok());
    let asked = reference.digest();
    let Some(expected) = asked.or(claimed) else { return Ok(Named::Plain) };
    let actual = digest_of(expected, body.clone()).await;
    match (actual == Some(expected), asked) {
        (true, Some(_)) => Ok(Named::Plain),
        (true, None) => Ok(Named::Digest(expected)),
        (false, Some(_)) => Err(OriginError::Protocol {
            registry: registry.to_string(),
            problem: format!("other content for manifest {expected}"),
        }),
        (false, None) => {
            tracing::warn!(%registry, %reference, claimed = %expected, "the digest of a manifest is not the one in its header; it is not kept");
            Ok(Named::Mismatch)
        }
    }
}

async fn digest_of(like: Digest, body: Bytes) -> Option<Digest> {
    let is_small = body.len() < HASH_ELSEWHERE;
    let hash = move || {
        let mut hasher = like.hasher();
        hasher.update(&body);
        hasher.finish()
    };
    if is_small { Some(hash()) } else { tokio::task::spawn_blocking(hash).await.ok() }
}

/// Everything that a manifest points to; nothing when it is of a kind that is not read.
pub(super) fn names(answer: &Answer) -> Vec<Digest> {
    let content_type = answer.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let manifest = answer.body.as_ref().and_then(|body| Manifest::parse(body, content_type).ok());
    let Some(Manifest { blobs, manifests, .. }) = manifest else { return Vec::new() };
    blobs.iter().chain(&manifests).map(|descriptor| descriptor.digest).collect()
}
