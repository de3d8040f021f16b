//! A storage over a key-value store. `docs/ssi.md` explains it; a test runs it through the conformance suite.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU8, Ordering},
    },
    time::SystemTime,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use eagle_core::{Bitfield, Digest, Geometry, Metainfo, PieceIndex};
use eagle_store::{
    BlobReader, BlobStorage, PartialBlob, StorageError, StoredBlob,
    ssi::{check_metainfo, check_piece, check_range},
};

/// Here would be the client of your store. All that is asked of it: values appear and vanish as a whole.
#[derive(Debug, Clone, Default)]
pub struct Client(Arc<Mutex<BTreeMap<String, Bytes>>>);

impl Client {
    fn map(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StorageError> {
        Ok(self.map().get(key).cloned())
    }

    async fn put(&self, key: String, value: Bytes) -> Result<(), StorageError> {
        self.map().insert(key, value);
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.map().remove(key);
        Ok(())
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        Ok(self.map().keys().filter(|key| key.starts_with(prefix)).cloned().collect())
    }
}

// DIGEST/geometry, DIGEST/piece/N, DIGEST/metainfo, and last DIGEST/complete.
fn key(digest: Digest, part: &str) -> String {
    format!("{digest}/{part}")
}

fn piece_key(digest: Digest, piece: PieceIndex) -> String {
    format!("{digest}/piece/{piece}")
}

fn failed(key: &str, reason: &str) -> StorageError {
    StorageError::Damaged { object: key.to_owned(), reason: reason.to_owned() }
}

#[derive(Debug, Default)]
pub struct KeyValueStorage {
    client: Client,
    /// The writers of this process, at most one for each blob.
    writers: Mutex<HashMap<Digest, Weak<AtomicU8>>>,
}

const WRITING: u8 = 0;
const COMPLETE: u8 = 1;
const REMOVED: u8 = 2;

impl KeyValueStorage {
    pub fn new(client: Client) -> Self {
        Self { client, writers: Mutex::default() }
    }

    async fn geometry(&self, digest: Digest) -> Result<Option<Geometry>, StorageError> {
        let key = key(digest, "geometry");
        let Some(value) = self.client.get(&key).await? else { return Ok(None) };
        // Whatever comes from outside may be anything.
        postcard::from_bytes(&value).map(Some).map_err(|_| failed(&key, "it is no geometry"))
    }

    async fn is_complete(&self, digest: Digest) -> Result<bool, StorageError> {
        Ok(self.client.get(&key(digest, "complete")).await?.is_some())
    }
}

#[async_trait]
impl BlobStorage for KeyValueStorage {
    async fn create(&self, digest: Digest, geometry: Geometry) -> Result<Arc<dyn PartialBlob>, StorageError> {
        if self.is_complete(digest).await? {
            return Err(StorageError::AlreadyComplete { digest });
        }
        let writer = {
            let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
            writers.retain(|_, writer| writer.strong_count() > 0);
            if let Some(writer) = writers.get(&digest).and_then(Weak::upgrade)
                && writer.load(Ordering::Acquire) == WRITING
            {
                return Err(StorageError::InUse { digest });
            }
            let writer = Arc::new(AtomicU8::new(WRITING));
            writers.insert(digest, Arc::downgrade(&writer));
            writer
        };
        let pieces = self.client.keys(&key(digest, "piece/")).await?;
        let mut recovered = Bitfield::new(geometry.pieces());
        if self.geometry(digest).await? == Some(geometry) {
            for piece in pieces.iter().filter_map(|key| key.rsplit('/').next()?.parse().ok()) {
                recovered.insert(PieceIndex(piece));
            }
        } else {
            for key in pieces {
                self.client.delete(&key).await?;
            }
            let value = postcard::to_stdvec(&geometry).map_err(|_| failed("geometry", "it cannot be encoded"))?;
            self.client.put(key(digest, "geometry"), value.into()).await?;
        }
        let written = Mutex::new(recovered.clone());
        let blob = Blob { client: self.client.clone(), digest, geometry };
        Ok(Arc::new(Partial { blob, recovered, written, writer }))
    }

    async fn open(&self, digest: Digest) -> Result<Option<Arc<dyn BlobReader>>, StorageError> {
        if !self.is_complete(digest).await? {
            return Ok(None);
        }
        let geometry = self.geometry(digest).await?.ok_or_else(|| failed(&key(digest, "geometry"), "it is gone"))?;
        Ok(Some(Arc::new(Blob { client: self.client.clone(), digest, geometry })))
    }

    async fn put_metainfo(&self, metainfo: &Metainfo) -> Result<(), StorageError> {
        check_metainfo(metainfo)?;
        let value = postcard::to_stdvec(metainfo).map_err(|_| failed("metainfo", "it cannot be encoded"))?;
        self.client.put(key(metainfo.digest, "metainfo"), value.into()).await
    }

    async fn metainfo(&self, digest: Digest) -> Result<Option<Metainfo>, StorageError> {
        let value = self.client.get(&key(digest, "metainfo")).await?;
        let metainfo = value.and_then(|value| postcard::from_bytes::<Metainfo>(&value).ok());
        Ok(metainfo.filter(|metainfo| metainfo.digest == digest && check_metainfo(metainfo).is_ok()))
    }

    async fn remove(&self, digest: Digest) -> Result<(), StorageError> {
        let writer = self.writers.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).and_then(Weak::upgrade);
        if let Some(writer) = writer {
            let _ = writer.compare_exchange(WRITING, REMOVED, Ordering::AcqRel, Ordering::Acquire);
        }
        // First what says that it is complete: a crash here leaves a partial blob.
        self.client.delete(&key(digest, "complete")).await?;
        for key in self.client.keys(&key(digest, "")).await? {
            self.client.delete(&key).await?;
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<StoredBlob>, StorageError> {
        let mut blobs = Vec::new();
        for name in self.client.keys("").await? {
            let Some(digest) = name.strip_suffix("/geometry").and_then(|digest| digest.parse().ok()) else { continue };
            let Ok(Some(geometry)) = self.geometry(digest).await else { continue };
            let complete = self.is_complete(digest).await?;
            blobs.push(StoredBlob { digest, size: geometry.size(), complete, last_used: SystemTime::now() });
        }
        Ok(blobs)
    }

    fn is_shared(&self) -> bool {
        true
    }
}

/// Reads a blob, whole or not.
#[derive(Debug)]
struct Blob {
    client: Client,
    digest: Digest,
    geometry: Geometry,
}

#[async_trait]
impl BlobReader for Blob {
    fn size(&self) -> u64 {
        self.geometry.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let range = check_range(self.digest, self.size(), offset, length)?;
        let mut bytes = BytesMut::new();
        let mut at = range.start;
        while at < range.end {
            let Some(piece) = self.geometry.piece_at(at) else { break };
            let whole = self.client.get(&piece_key(self.digest, piece)).await?;
            let whole = whole.ok_or(StorageError::NotWritten { digest: self.digest, piece })?;
            if whole.len() != self.geometry.length(piece) as usize {
                return Err(failed(&piece_key(self.digest, piece), "it has another length"));
            }
            let start = self.geometry.offset(piece);
            let end = range.end.min(start + whole.len() as u64);
            let within = |at: u64| usize::try_from(at - start).unwrap_or(usize::MAX);
            bytes.extend_from_slice(&whole[within(at)..within(end)]);
            at = end;
        }
        Ok(bytes.freeze())
    }
}

/// Writes a blob.
#[derive(Debug)]
struct Partial {
    blob: Blob,
    recovered: Bitfield,
    written: Mutex<Bitfield>,
    writer: Arc<AtomicU8>,
}

impl Partial {
    fn check_writing(&self) -> Result<(), StorageError> {
        let digest = self.blob.digest;
        match self.writer.load(Ordering::Acquire) {
            WRITING => Ok(()),
            COMPLETE => Err(StorageError::AlreadyComplete { digest }),
            _ => Err(StorageError::Removed { digest }),
        }
    }

    fn written(&self) -> std::sync::MutexGuard<'_, Bitfield> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl BlobReader for Partial {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        self.blob.read_at(offset, length).await
    }
}

#[async_trait]
impl PartialBlob for Partial {
    fn digest(&self) -> Digest {
        self.blob.digest
    }

    fn geometry(&self) -> Geometry {
        self.blob.geometry
    }

    fn recovered(&self) -> Bitfield {
        self.recovered.clone()
    }

    async fn write_piece(&self, piece: PieceIndex, bytes: Bytes) -> Result<(), StorageError> {
        check_piece(self.blob.digest, self.blob.geometry, piece, bytes.len())?;
        self.check_writing()?;
        self.blob.client.put(piece_key(self.blob.digest, piece), bytes).await?;
        self.written().insert(piece);
        Ok(())
    }

    async fn commit(&self) -> Result<Arc<dyn BlobReader>, StorageError> {
        let Blob { client, digest, geometry } = &self.blob;
        let (client, digest, geometry) = (client.clone(), *digest, *geometry);
        let missing = geometry.pieces() - self.written().count();
        match self.check_writing() {
            Ok(()) if missing > 0 => return Err(StorageError::Incomplete { digest, missing }),
            Ok(()) => {
                client.put(key(digest, "complete"), Bytes::new()).await?;
                self.writer.store(COMPLETE, Ordering::Release);
            }
            Err(StorageError::AlreadyComplete { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(Arc::new(Blob { client, digest, geometry }))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), StorageError> {
    let content = Bytes::from_static(b"hello");
    let geometry = Geometry::auto(5).map_err(|error| StorageError::Settings(error.to_string()))?;
    let storage = KeyValueStorage::new(Client::default());
    let blob = storage.create(Digest::of(&content), geometry).await?;
    blob.write_piece(PieceIndex(0), content).await?;
    let stored = blob.commit().await?;
    println!("{:?}", stored.read_at(0, 5).await?);
    Ok(())
}
