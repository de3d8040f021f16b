//! Where the bytes of a fetch come from: the storage that seeders share, or the origin.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use eagle_core::{Digest, Metainfo, PieceHash, PieceIndex};
use eagle_store::{CachedBlob, Lease, StorageError, read_ahead};
use futures::{StreamExt as _, stream::BoxStream};

use super::{
    origin::OriginStream,
    run::{Run, prefix},
};
use crate::{
    error::FetchError,
    shared::{Found, Next, Shared},
};

/// The bytes of a blob, in order, from some offset on.
pub(super) enum Input {
    Origin(OriginStream),
    Shared(SharedStream),
}

/// The bytes of a blob in the shared storage.
pub(super) struct SharedStream {
    shared: Shared,
    metainfo: Arc<Metainfo>,
    bytes: BoxStream<'static, Result<Bytes, StorageError>>,
}

impl fmt::Debug for SharedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedStream").field("blob", &self.metainfo.digest).finish_non_exhaustive()
    }
}

impl Input {
    /// Size of the whole blob, bytes.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Origin(stream) => stream.size(),
            Self::Shared(stream) => stream.metainfo.geometry.size(),
        }
    }

    /// What the pieces have to be, where that is known beforehand.
    pub(super) fn expected(&self) -> Option<Expected> {
        match self {
            Self::Origin(_) => None,
            Self::Shared(stream) => Some(Expected(Arc::clone(&stream.metainfo))),
        }
    }

    /// The next bytes; none once the blob is whole.
    ///
    /// # Errors
    /// Those of the origin, or of the shared storage.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        match self {
            Self::Origin(stream) => stream.next().await,
            Self::Shared(stream) => match stream.bytes.next().await {
                Some(Ok(bytes)) => {
                    stream.shared.read(bytes.len() as u64);
                    Ok(Some(bytes))
                }
                Some(Err(error)) => Err(storage(stream.metainfo.digest, error)),
                None => Ok(None),
            },
        }
    }
}

fn storage(digest: Digest, error: StorageError) -> FetchError {
    FetchError::Storage { digest, error: Arc::new(error) }
}

/// The metainfo that was found beside a blob.
#[derive(Debug)]
pub(super) struct Expected(Arc<Metainfo>);

impl Expected {
    /// Refuses a piece that is not the one which the metainfo names, before anybody is told of it.
    pub(super) fn check(&self, piece: PieceIndex, hash: PieceHash) -> Result<(), FetchError> {
        if self.0.hash(piece) == Some(hash) {
            return Ok(());
        }
        let (object, reason) = (format!("data of {}", self.0.digest), format!("piece {piece} has another hash"));
        Err(storage(self.0.digest, StorageError::Damaged { object, reason }))
    }
}

impl Run<'_> {
    /// The blob from the shared storage, or else from its origin; in that case, and when there is a shared storage, `duty` is
    /// the lease to keep until the blob is stored there.
    pub(super) async fn fetch_or_find(&self, duty: &mut Option<Lease>) -> Result<CachedBlob, FetchError> {
        let Some(shared) = &self.inner.parts.shared else { return self.fetch().await };
        match shared.next(self.fetch.digest()).await {
            Next::Fetch(lease) => {
                *duty = Some(lease);
                self.fetch().await
            }
            Next::Read(found) => self.copy(shared, found).await,
        }
    }

    /// Copies a blob from the shared storage into the cache.
    async fn copy(&self, shared: &Shared, Found { metainfo, reader }: Found) -> Result<CachedBlob, FetchError> {
        let digest = self.fetch.digest();
        // A fetch proves by the origin's answer that its caller may have the blob; here the origin is asked.
        let allowed = self.inner.parts.access.check(self.source, digest, true).await;
        allowed.map_err(|error| FetchError::origin(digest, error))?;
        let Some(entry) = self.create(metainfo.geometry).await? else {
            return self.inner.parts.cache.get(digest).await.ok_or(FetchError::Broken { digest });
        };
        let offset = prefix(&entry);
        let bytes = read_ahead(reader, offset..metainfo.geometry.size()).boxed();
        let input = Input::Shared(SharedStream { shared: shared.clone(), metainfo, bytes });
        let result = self.fill_or_discard(&entry, offset, Some(input)).await;
        let result = result.map_err(|error| match error {
            // Content and metainfo agree, and lead elsewhere. No registry sent this.
            FetchError::WrongContent { actual, .. } => {
                let (object, reason) = (format!("data of {digest}"), format!("it is the content of {actual}"));
                storage(digest, StorageError::Damaged { object, reason })
            }
            error => error,
        });
        if let Err(FetchError::Storage { error, .. }) = &result
            && error.is_damage()
        {
            shared.bad(digest, error).await;
        }
        result
    }
}
