//! What the embedded registry has served.

use std::collections::BTreeMap;

use eagle_core::Digest;
use serde::{Deserialize, Serialize};

/// Counters of an embedded registry since its start or the last reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryStats {
    /// Requests of any kind but those for these counters.
    pub requests: u64,
    /// Requests for tokens.
    pub token_requests: u64,
    /// Requests answered 401 or 403.
    pub refused: u64,
    /// Bytes of blobs handed to connections.
    pub blob_bytes: u64,
    /// Requests per manifest, as `REPOSITORY:TAG` or `REPOSITORY@DIGEST`; only of those that exist.
    pub manifests: BTreeMap<String, u64>,
    /// Requests per blob; only of those that exist.
    pub blobs: BTreeMap<Digest, BlobStats>,
}

/// Counters of one blob.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobStats {
    /// GET requests.
    pub gets: u64,
    /// Of them those for a range.
    pub ranges: u64,
    /// HEAD requests.
    pub heads: u64,
    /// Bytes handed to connections.
    pub bytes: u64,
}

impl RegistryStats {
    /// The counters of one blob.
    pub fn blob(&self, digest: Digest) -> BlobStats {
        self.blobs.get(&digest).copied().unwrap_or_default()
    }
}
