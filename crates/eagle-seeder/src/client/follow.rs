//! Taking a blob from the seeder that holds its lease, while that fetches it.

use eagle_core::{Digest, Geometry};
use eagle_registry::{BlobBody, Caller, RegistryName, RepositoryName, headers::number};
use http::{HeaderMap, HeaderValue, StatusCode};
use url::Url;

use super::{STALL_TIMEOUT, SeederClient, SeederError, query, range_from};
use crate::answer::{FOLLOWS, PIECE_LENGTH};

/// A blob that another seeder has or fetches.
#[derive(Debug)]
pub(crate) struct Followed {
    /// How that seeder cuts it.
    pub(crate) geometry: Geometry,
    /// Its content.
    pub(crate) body: BlobBody,
}

impl SeederClient {
    /// The content of a blob from byte `start` on, if this seeder has it or fetches it from the registry. It begins nothing, and
    /// does not in its turn wait for a third seeder.
    ///
    /// # Errors
    /// When the origin refuses the caller, when the seeder is not at it, or when it fails. The body can fail later.
    pub(crate) async fn follow(
        &self,
        holder: &Url,
        digest: Digest,
        (registry, repository): (&RegistryName, &RepositoryName),
        start: u64,
        caller: &Caller,
    ) -> Result<Followed, SeederError> {
        let mut headers = HeaderMap::new();
        headers.insert(FOLLOWS, HeaderValue::from_static("1"));
        headers.extend(range_from(start));
        let path = format!("v1/blobs/{digest}?{}", query(registry, repository));
        let response = self.get(holder, &path, headers, caller).await?;
        if !matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Err(self.refused(holder, response).await);
        }
        let piece_length = number(response.headers(), &PIECE_LENGTH).and_then(|length| u32::try_from(length).ok());
        let piece_length = piece_length.ok_or_else(|| self.protocol(holder, "the answer does not say how it cuts"))?;
        let body = BlobBody::from_response(response, start, STALL_TIMEOUT, holder.as_str());
        let body = body.map_err(|error| self.protocol(holder, error.to_string()))?;
        let geometry = Geometry::new(body.size, piece_length);
        let geometry = geometry.map_err(|error| self.protocol(holder, error.to_string()))?;
        Ok(Followed { geometry, body })
    }
}
