//! Why a blob cannot be had from this seeder.

use std::sync::Arc;

use eagle_core::{Digest, geometry::GeometryError};
use eagle_registry::OriginError;
use eagle_store::StorageError;

/// Why a fetch failed. Cheap to clone: everybody who waits for the blob gets it.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum FetchError {
    /// The origin refused, could not be reached, or broke off and did not come back.
    #[error("blob {digest} from the origin: {error}")]
    Origin { digest: Digest, error: Box<OriginError> },
    /// The origin changed its mind about the size half way.
    #[error("registry {registry} said that blob {digest} has {before} bytes, and then {after}")]
    SizeChanged { registry: String, digest: Digest, before: u64, after: u64 },
    /// The bytes are not the blob.
    #[error("registry {registry} sent other content for blob {digest}: what it sent is {actual}")]
    WrongContent { registry: String, digest: Digest, actual: Box<Digest> },
    /// It is larger than the cache, or than anything that Eagle moves.
    #[error("blob {digest} of {size} bytes is more than this seeder keeps; raise seeder.cache_limit above it")]
    TooLarge { digest: Digest, size: u64 },
    /// It is too large to be cut into pieces.
    #[error("blob {digest}: {error}")]
    Geometry { digest: Digest, error: GeometryError },
    /// Everything else in the cache is in use.
    #[error("no room for blob {digest}: all that is stored is in use; raise seeder.cache_limit")]
    NoRoom { digest: Digest },
    /// The file system is too full.
    #[error("no room for blob {digest}: {reason}; free some, or lower seeder.min_free")]
    NoSpace { digest: Digest, reason: String },
    /// The storage failed.
    #[error("blob {digest} cannot be stored: {error}")]
    Storage { digest: Digest, error: Arc<StorageError> },
    /// Another seeder takes this one for the holder of the lease.
    #[error("this seeder neither has blob {digest} nor fetches it from its registry")]
    NotHeld { digest: Digest },
    /// The registry has not answered yet; another seeder asks again.
    #[error("the registry has not answered yet for blob {digest}")]
    NotYet { digest: Digest },
    /// More fetches at once than this seeder takes on.
    #[error("this seeder fetches {0} blobs already; try again shortly")]
    Busy(usize),
    /// Work on a blocking thread panicked, or the fetch did.
    #[error("the fetch of blob {digest} ended without a result; see the log of the seeder")]
    Broken { digest: Digest },
    /// The seeder shuts down.
    #[error("the seeder is shutting down")]
    Stopped,
}

impl FetchError {
    /// An error of the origin about this blob.
    pub(crate) fn origin(digest: Digest, error: OriginError) -> Self {
        Self::Origin { digest, error: Box::new(error) }
    }

    /// Whether the blob cannot be stored here although the origin may well serve it.
    pub(crate) fn is_no_room(&self) -> bool {
        match self {
            Self::TooLarge { .. }
            | Self::NoRoom { .. }
            | Self::NoSpace { .. }
            | Self::Geometry { .. }
            | Self::Busy(_) => true,
            // A copy in the shared storage that is bad or out of reach is no reason not to store it.
            Self::Storage { error, .. } => !error.is_damage() && !matches!(**error, StorageError::Remote { .. }),
            _ => false,
        }
    }

    /// Whether what was received so far is worth keeping for the next try: whoever sent it merely stopped.
    pub(crate) fn keeps_progress(&self) -> bool {
        match self {
            Self::Origin { .. } | Self::Stopped => true,
            // Of the object store that seeders share.
            Self::Storage { error, .. } => matches!(**error, StorageError::Remote { .. }),
            _ => false,
        }
    }
}
