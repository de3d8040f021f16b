//! Blobs in memory: for tests, demos and nodes without a disk.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use eagle_core::{Bitfield, Digest, Geometry, Metainfo, PieceIndex};

use crate::ssi::{
    BlobReader, BlobStorage, PartialBlob, StorageError, StoredBlob, check_metainfo, check_piece, check_range,
};

/// Blobs in the memory of this process; gone when it is dropped.
///
/// Bytes that are written are kept as they were given, without a copy.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    blobs: Arc<Blobs>,
}

type Blobs = Mutex<HashMap<Digest, Kept, lru::DefaultHasher>>;

#[derive(Debug, Default)]
struct Kept {
    content: Option<Arc<Content>>,
    /// Apart, so that a table of many blobs stays small enough for the processor's caches.
    metainfo: Option<Box<Metainfo>>,
    /// Here and not with the content, so that a use costs one look into memory.
    last_used: Option<SystemTime>,
}

/// The pieces of one blob, complete or not; shared by the storage, a writer and readers.
#[derive(Debug)]
struct Content {
    digest: Digest,
    geometry: Geometry,
    state: RwLock<State>,
    /// Whether a [`MemoryPartial`] is alive.
    in_use: AtomicBool,
}

#[derive(Debug)]
struct State {
    pieces: Vec<Option<Bytes>>,
    phase: Phase,
    /// When it was begun, later when it became complete.
    since: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Writing,
    Complete,
    Removed,
}

impl MemoryStorage {
    /// An empty storage.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Kept, lru::DefaultHasher>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl BlobStorage for MemoryStorage {
    async fn create(&self, digest: Digest, geometry: Geometry) -> Result<Arc<dyn PartialBlob>, StorageError> {
        let mut blobs = self.lock();
        let kept = blobs.entry(digest).or_default();
        let content = match &kept.content {
            Some(content) if content.phase() == Phase::Complete => {
                return Err(StorageError::AlreadyComplete { digest });
            }
            Some(content) if content.in_use.load(Ordering::Acquire) => return Err(StorageError::InUse { digest }),
            Some(content) if content.geometry == geometry => Arc::clone(content),
            _ => {
                let content = Arc::new(Content::new(digest, geometry));
                kept.content = Some(Arc::clone(&content));
                content
            }
        };
        content.in_use.store(true, Ordering::Release);
        let recovered = content.written();
        Ok(Arc::new(MemoryPartial { content, recovered }))
    }

    async fn open(&self, digest: Digest) -> Result<Option<Arc<dyn BlobReader>>, StorageError> {
        let content = self.lock().get(&digest).and_then(|kept| kept.content.clone());
        Ok(content.filter(|content| content.phase() == Phase::Complete).map(|content| content as Arc<dyn BlobReader>))
    }

    async fn put_metainfo(&self, metainfo: &Metainfo) -> Result<(), StorageError> {
        check_metainfo(metainfo)?;
        self.lock().entry(metainfo.digest).or_default().metainfo = Some(Box::new(metainfo.clone()));
        Ok(())
    }

    async fn metainfo(&self, digest: Digest) -> Result<Option<Metainfo>, StorageError> {
        Ok(self.lock().get(&digest).and_then(|kept| kept.metainfo.as_deref().cloned()))
    }

    async fn remove(&self, digest: Digest) -> Result<(), StorageError> {
        let removed = self.lock().remove(&digest).and_then(|kept| kept.content);
        if let Some(content) = removed {
            let mut state = content.write();
            // Readers of a complete blob keep it; a writer has to stop.
            if state.phase == Phase::Writing {
                state.phase = Phase::Removed;
            }
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<StoredBlob>, StorageError> {
        let blobs = self.lock();
        let contents = blobs.values().filter_map(|kept| Some((kept.content.as_ref()?, kept.last_used)));
        Ok(contents
            .map(|(content, last_used)| {
                let state = content.read();
                StoredBlob {
                    digest: content.digest,
                    size: content.geometry.size(),
                    complete: state.phase == Phase::Complete,
                    last_used: last_used.map_or(state.since, |used| used.max(state.since)),
                }
            })
            .collect())
    }

    fn touch(&self, digest: Digest) {
        if let Some(kept) = self.lock().get_mut(&digest) {
            kept.last_used = Some(SystemTime::now());
        }
    }
}

impl Content {
    fn new(digest: Digest, geometry: Geometry) -> Self {
        let pieces = vec![None; geometry.pieces() as usize];
        let state = State { pieces, phase: Phase::Writing, since: SystemTime::now() };
        Self { digest, geometry, state: RwLock::new(state), in_use: AtomicBool::new(false) }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn phase(&self) -> Phase {
        self.read().phase
    }

    fn written(&self) -> Bitfield {
        let state = self.read();
        let mut written = Bitfield::new(self.geometry.pieces());
        for (piece, bytes) in self.geometry.all().zip(&state.pieces) {
            if bytes.is_some() {
                written.insert(piece);
            }
        }
        written
    }
}

#[async_trait]
impl BlobReader for Content {
    fn size(&self) -> u64 {
        self.geometry.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let range = check_range(self.digest, self.geometry.size(), offset, length)?;
        let state = self.read();
        let (Some(first), Some(last)) =
            (self.geometry.piece_at(range.start), self.geometry.piece_at(range.end.saturating_sub(1)))
        else {
            return Ok(Bytes::new());
        };
        let mut parts = Vec::new();
        for index in first.0..=last.0 {
            let piece = PieceIndex(index);
            let Some(Some(bytes)) = state.pieces.get(index as usize) else {
                return Err(StorageError::NotWritten { digest: self.digest, piece });
            };
            let start = self.geometry.offset(piece);
            let from = range.start.saturating_sub(start);
            let to = (range.end - start).min(u64::from(self.geometry.length(piece)));
            // Both lie within a piece, which fits memory; an empty range may end before it begins.
            let (from, to) = (usize::try_from(from).unwrap_or(0), usize::try_from(to).unwrap_or(0));
            parts.push(bytes.slice(from.min(to)..to));
        }
        drop(state);
        if parts.len() == 1 {
            return Ok(parts.swap_remove(0));
        }
        let mut joined = BytesMut::with_capacity(length);
        for part in parts {
            joined.extend_from_slice(&part);
        }
        Ok(joined.freeze())
    }
}

#[derive(Debug)]
struct MemoryPartial {
    content: Arc<Content>,
    recovered: Bitfield,
}

impl Drop for MemoryPartial {
    fn drop(&mut self) {
        self.content.in_use.store(false, Ordering::Release);
    }
}

#[async_trait]
impl BlobReader for MemoryPartial {
    fn size(&self) -> u64 {
        self.content.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        self.content.read_at(offset, length).await
    }
}

#[async_trait]
impl PartialBlob for MemoryPartial {
    fn digest(&self) -> Digest {
        self.content.digest
    }

    fn geometry(&self) -> Geometry {
        self.content.geometry
    }

    fn recovered(&self) -> Bitfield {
        self.recovered.clone()
    }

    async fn write_piece(&self, piece: PieceIndex, bytes: Bytes) -> Result<(), StorageError> {
        let digest = self.content.digest;
        check_piece(digest, self.content.geometry, piece, bytes.len())?;
        let mut state = self.content.write();
        match state.phase {
            Phase::Writing => {
                if let Some(place) = state.pieces.get_mut(piece.0 as usize) {
                    *place = Some(bytes);
                }
                Ok(())
            }
            Phase::Complete => Err(StorageError::AlreadyComplete { digest }),
            Phase::Removed => Err(StorageError::Removed { digest }),
        }
    }

    async fn commit(&self) -> Result<Arc<dyn BlobReader>, StorageError> {
        let digest = self.content.digest;
        let mut state = self.content.write();
        if state.phase == Phase::Removed {
            return Err(StorageError::Removed { digest });
        }
        let missing = state.pieces.iter().filter(|piece| piece.is_none()).count();
        if missing > 0 {
            return Err(StorageError::Incomplete { digest, missing: u32::try_from(missing).unwrap_or(u32::MAX) });
        }
        state.phase = Phase::Complete;
        state.since = SystemTime::now();
        drop(state);
        Ok(Arc::clone(&self.content) as Arc<dyn BlobReader>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Fixture};

    /// One process may use a memory storage one after the other, as two may a directory.
    #[derive(Debug, Default)]
    struct Shared(Arc<MemoryStorage>);

    #[async_trait]
    impl Fixture for Shared {
        async fn open(&self) -> Arc<dyn BlobStorage> {
            Arc::clone(&self.0) as Arc<dyn BlobStorage>
        }
    }

    #[tokio::test]
    async fn conforms() {
        conformance::run(|| Box::new(Shared::default())).await;
    }
}
