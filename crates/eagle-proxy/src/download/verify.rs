//! The digest of a blob, proven while it arrives.

use std::sync::Arc;

use eagle_core::{Digest, PieceHash, digest::Hasher};
use eagle_store::{BlobReader, StorageError};

use super::run::Run;

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

/// Follows the pieces of a blob in order, each as soon as it is there, and proves what they add up to.
///
/// A piece that was checked on its way in ([`Run::checked`]) needs no second look, as long as it was
/// checked on from the hash that the pieces before it really have. Others are read and hashed here. So
/// a wrong hash from a seeder cannot prove a wrong blob, and metainfo is whole also when no seeder gave
/// any. Returns the digest of the whole; the hash of every piece is noted in the run.
pub(crate) async fn prove(run: &Run) -> Result<Digest, VerifyError> {
    let (digest, geometry, reader) = (run.download.digest, run.geometry, run.entry.reader());
    let mut owned = run.swarm.pieces();
    let mut last = PieceHash::start(digest.algorithm());
    for piece in geometry.all() {
        owned.wait_for(|owned| owned.contains(piece)).await.map_err(|_| VerifyError::Stopped)?;
        last = match run.checked(piece) {
            Some(check) if check.before() == last => check.after(),
            _ => {
                let bytes = reader.read_at(geometry.offset(piece), geometry.length(piece) as usize).await?;
                tokio::task::spawn_blocking(move || last.then(&geometry, piece, &bytes))
                    .await
                    .map_err(|_| VerifyError::Stopped)?
            }
        };
        run.note_proven(piece, last);
    }
    Ok(if geometry.pieces() == 0 { digest.algorithm().empty() } else { last.as_digest() })
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
