//! The digest of a blob, computed while it arrives.

use std::sync::Arc;

use eagle_core::{Bitfield, Digest, Geometry, PieceHash, digest::Hasher};
use eagle_store::{BlobReader, StorageError};
use tokio::sync::watch;

/// Why a blob could not be hashed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    /// The bytes cannot be read back.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The download ended, or the process ends.
    #[error("stopped before the blob was whole")]
    Stopped,
}

/// Reads the pieces of a blob in order, each as soon as it is there, and hashes them.
///
/// Returns the digest of the whole and the hash of every piece: those in `known` as they are, the
/// others computed. So metainfo is whole also when no seeder has given any.
pub(crate) async fn hash_in_order(
    digest: Digest,
    geometry: Geometry,
    reader: Arc<dyn BlobReader>,
    mut owned: watch::Receiver<Arc<Bitfield>>,
    known: impl Fn(eagle_core::PieceIndex) -> Option<PieceHash>,
) -> Result<(Digest, Vec<PieceHash>), VerifyError> {
    let mut hasher = digest.hasher();
    let mut hashes = Vec::with_capacity(geometry.pieces() as usize);
    for piece in geometry.all() {
        owned.wait_for(|owned| owned.contains(piece)).await.map_err(|_| VerifyError::Stopped)?;
        let bytes = reader.read_at(geometry.offset(piece), geometry.length(piece) as usize).await?;
        let seen = known(piece);
        let hash;
        (hasher, hash) = tokio::task::spawn_blocking(move || {
            hasher.update(&bytes);
            (hasher, seen.unwrap_or_else(|| PieceHash::of(&bytes)))
        })
        .await
        .map_err(|_| VerifyError::Stopped)?;
        hashes.push(hash);
    }
    Ok((hasher.finish(), hashes))
}

/// Adds the bytes of `reader` before `end` to a hasher.
pub(crate) async fn hash_prefix(
    mut hasher: Hasher,
    reader: &Arc<dyn BlobReader>,
    end: u64,
) -> Result<Hasher, VerifyError> {
    /// Large enough that the switch to a blocking thread does not show.
    const STEP: u64 = 1 << 20;
    let mut at = 0;
    while at < end {
        let length = STEP.min(end - at);
        let bytes = reader.read_at(at, usize::try_from(length).unwrap_or(usize::MAX)).await?;
        hasher = tokio::task::spawn_blocking(move || {
            hasher.update(&bytes);
            hasher
        })
        .await
        .map_err(|_| VerifyError::Stopped)?;
        at += length;
    }
    Ok(hasher)
}
