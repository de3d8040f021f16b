//! Whether a blob is what its digest says.

use std::sync::Arc;

use eagle_core::Digest;
use eagle_store::{BlobReader, Cache, StorageError};

use super::report::{Verified, VerifiedState};

/// Bytes read and hashed at a time.
const CHUNK: usize = 1 << 20;

/// Reads a blob and compares it with its digest. One that differs is removed: it is fetched again by whoever needs it.
pub(super) async fn verify(cache: &Arc<Cache>, digest: Digest) -> Verified {
    if !cache.contains(digest) {
        return Verified { digest, state: VerifiedState::Missing, error: None };
    }
    // Opening it finds a file that is gone or has another size.
    let Some(blob) = cache.get(digest).await else {
        let error = Some("the content was gone, or had another size than it should".to_owned());
        return Verified { digest, state: VerifiedState::Corrupt, error };
    };
    match hash(digest, &blob.reader()).await {
        Ok(found) if found == digest => Verified { digest, state: VerifiedState::Good, error: None },
        Ok(found) => {
            tracing::warn!(blob = %digest, %found, "a cached blob has other content than its digest says; it is removed");
            drop(blob);
            cache.remove(digest).await;
            Verified {
                digest,
                state: VerifiedState::Corrupt,
                error: Some(format!("the content has the digest {found}")),
            }
        }
        Err(error) => {
            let changed = matches!(error, StorageError::Changed { .. });
            if changed {
                drop(blob);
                cache.remove(digest).await;
            }
            let state = if changed { VerifiedState::Corrupt } else { VerifiedState::Unreadable };
            Verified { digest, state, error: Some(error.to_string()) }
        }
    }
}

async fn hash(digest: Digest, reader: &Arc<dyn BlobReader>) -> Result<Digest, StorageError> {
    let mut hasher = digest.hasher();
    let (mut offset, size) = (0, reader.size());
    while offset < size {
        let length = usize::try_from(size - offset).unwrap_or(usize::MAX).min(CHUNK);
        let bytes = reader.read_at(offset, length).await?;
        offset += length as u64;
        // Hashing takes longer than async threads should be kept busy.
        let hashed = tokio::task::spawn_blocking(move || {
            hasher.update(&bytes);
            hasher
        });
        hasher = hashed.await.map_err(|_| StorageError::Stopped)?;
    }
    Ok(hasher.finish())
}
