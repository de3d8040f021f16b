//! Where the bytes of a fetch come from: the origin, the storage that seeders share, or another seeder.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use eagle_core::{Digest, Metainfo, PieceHash, PieceIndex};
use eagle_store::{CachedBlob, StorageError, read_ahead};
use futures::{StreamExt as _, stream::BoxStream};

use super::{
    follow::{FollowStream, Next, Turns},
    origin::OriginStream,
    run::{Run, prefix},
};
use crate::{
    error::FetchError,
    shared::{Found, Shared},
};

/// The bytes of a blob, in order, from some offset on.
pub(super) enum Input {
    Origin(Box<OriginStream>),
    Shared(SharedStream),
    Follow(Box<FollowStream>),
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
            Self::Follow(stream) => stream.size(),
        }
    }

    /// What the pieces have to be, where that is known beforehand.
    pub(super) fn expected(&self) -> Option<Expected> {
        match self {
            Self::Origin(_) | Self::Follow(_) => None,
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
            Self::Shared(stream) => stream.next().await,
            Self::Follow(stream) => stream.next().await,
        }
    }
}

impl SharedStream {
    pub(super) fn new(shared: Shared, Found { metainfo, reader }: Found, offset: u64) -> Self {
        let bytes = read_ahead(reader, offset..metainfo.geometry.size()).boxed();
        Self { shared, metainfo, bytes }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        match self.bytes.next().await {
            Some(Ok(bytes)) => {
                self.shared.read(bytes.len() as u64);
                Ok(Some(bytes))
            }
            Some(Err(error)) => Err(storage(self.metainfo.digest, error)),
            None => Ok(None),
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
    /// The blob from the shared storage, from the seeder that fetches it, or else from its origin.
    pub(super) async fn fetch_or_find(&self) -> Result<CachedBlob, FetchError> {
        let mut turns = Turns::new(self);
        match (turns.next(0).await?, self.inner.parts.leases.shared()) {
            (Next::Read(found), Some(shared)) => self.copy(shared, found).await,
            (Next::Follow(followed), _) => self.follow(turns, followed).await,
            (Next::Fetch | Next::Read(_), _) => self.fetch().await,
        }
    }

    /// Copies a blob from the shared storage into the cache.
    async fn copy(&self, shared: &Shared, found: Found) -> Result<CachedBlob, FetchError> {
        let digest = self.fetch.digest();
        // A fetch proves by the origin's answer that its caller may have the blob; here the origin is asked.
        let allowed = self.inner.parts.access.check(self.source, digest, true).await;
        allowed.map_err(|error| FetchError::origin(digest, error))?;
        let Some(entry) = self.create(found.metainfo.geometry).await? else {
            return self.inner.parts.cache.get(digest).await.ok_or(FetchError::Broken { digest });
        };
        let offset = prefix(&entry);
        let input = Input::Shared(SharedStream::new(shared.clone(), found, offset));
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
