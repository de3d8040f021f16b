//! Blobs in a bucket of an object store: S3 and what speaks like it, Google Cloud Storage, Azure.
//!
//! ```text
//! PREFIX/blobs/sha256/ab/abcd.../data        the blob
//! PREFIX/blobs/sha256/ab/abcd.../metainfo
//! PREFIX/blobs/sha256/ab/abcd.../complete    the marker: its size. Written last, removed first
//! PREFIX/leases/sha256/abcd.../0             who fetches the blob
//! PREFIX/uploads/abcd...-NONCE               an upload in parts that is under way
//! ```
//!
//! A blob is there if its marker is. Data comes into being at once (a put, or the end of an upload in parts), so a
//! crash leaves a blob without marker, which the next writer overwrites, or parts, which [`heartbeat`] says how to find.
//!
//! Writers keep pieces in a *staging* directory on disk and upload the whole: an object cannot be written in any order. Who
//! has a whole blob already uploads it from where it is, with [`BlobStorage::put`].
//!
//! Nothing found in a bucket is believed: sizes are compared on each read, small objects carry a hash of themselves
//! and have a largest size, and who reads a blob hashes it.

mod connect;
pub(crate) mod heartbeat;
mod lease;
pub(crate) mod names;
mod objects;
mod partial;
mod reader;
mod upload;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use eagle_core::{Digest, Geometry, Metainfo};
use futures::StreamExt as _;
use object_store::PutMode;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

pub use self::connect::{BucketKind, BucketSettings, BucketUrl, ParseBucketError};
use self::{
    names::{Names, Part},
    objects::Objects,
    partial::{ObjectPartial, Writer},
    reader::ObjectReader,
};
use crate::{
    envelope::Magic,
    fs::FsStorage,
    ssi::{
        BlobReader, BlobStorage, Claim, Claimant, PartialBlob, StorageError, StoredBlob, check_metainfo, check_whole,
    },
};

pub(crate) const METAINFO_MAGIC: Magic = *b"eaglemi2";
pub(crate) const MARKER_MAGIC: Magic = *b"eagleok1";
/// Largest metainfo, bytes: that of the most pieces (2^18 hashes of 32 bytes) is half of it.
const MAX_METAINFO: u64 = 16 << 20;
/// Largest marker, bytes; what is written has about 50.
const MAX_MARKER: u64 = 1 << 10;
/// Most blobs of a list: half a gigabyte of it.
const MAX_LISTED: usize = 4_000_000;
/// How long the end of what runs in the background is waited for.
const SETTLE: Duration = Duration::from_secs(6);

/// Whose a record is: a seeder, and which of its processes, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    name: String,
    process: u64,
}

impl Owner {
    /// Whether it is the same seeder before it was started anew.
    fn is_earlier_self(&self, now: &Self) -> bool {
        self.name == now.name && self.process != now.process
    }
}

/// Content of the marker.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Marker {
    pub(crate) size: u64,
}

/// Blobs in a bucket, which several processes may share.
#[derive(Debug)]
pub struct ObjectStorage {
    inner: Arc<Inner>,
    stop: CancellationToken,
    _stops: DropGuard,
}

#[derive(Debug)]
struct Inner {
    objects: Arc<Objects>,
    staging_path: PathBuf,
    /// Opened by the first who writes piece by piece.
    staging: OnceCell<FsStorage>,
    /// Blobs that are being written; at most one writer each. Dead ones go when the next is made.
    writers: Mutex<HashMap<Digest, Weak<Writer>>>,
}

impl ObjectStorage {
    /// Connects to a bucket. `owner` is the name of this process among those that share it, the same after
    /// a restart. `staging` is a directory for blobs that are written piece by piece, made when there is one.
    ///
    /// What dead writers left in the bucket is looked for and removed in the background.
    ///
    /// # Errors
    /// When settings make no sense. That the bucket can be reached is not tried: it may come up later.
    pub async fn open(
        url: &BucketUrl,
        settings: &BucketSettings,
        owner: &str,
        staging: &Path,
    ) -> Result<Self, StorageError> {
        let store = connect::connect(url, settings).await?;
        let names = Names::new(url.bucket_name(), url.prefix());
        let objects = Objects::new(store, names, owner.to_owned());
        Ok(Self::new(objects, staging))
    }

    fn new(objects: Objects, staging: &Path) -> Self {
        let objects = Arc::new(objects);
        let stop = CancellationToken::new();
        objects.tasks.spawn(heartbeat::sweep(Arc::clone(&objects), stop.clone()));
        let inner =
            Inner { objects, staging_path: staging.to_owned(), staging: OnceCell::new(), writers: Mutex::default() };
        Self { inner: Arc::new(inner), _stops: stop.clone().drop_guard(), stop }
    }
}

impl Inner {
    async fn staging(&self) -> Result<&FsStorage, StorageError> {
        self.staging.get_or_try_init(|| FsStorage::open(&self.staging_path)).await
    }

    fn writers(&self) -> MutexGuard<'_, HashMap<Digest, Weak<Writer>>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Objects {
    async fn mark(&self, digest: Digest, marker: Marker) -> Result<(), StorageError> {
        self.put(&self.names.complete(digest), MARKER_MAGIC, &marker, PutMode::Overwrite).await.map(drop)
    }
}

#[async_trait]
impl BlobStorage for ObjectStorage {
    async fn create(&self, digest: Digest, geometry: Geometry) -> Result<Arc<dyn PartialBlob>, StorageError> {
        let inner = &self.inner;
        if inner.objects.is_complete(digest).await? {
            return Err(StorageError::AlreadyComplete { digest });
        }
        let staging = inner.staging().await?;
        let staged = match staging.create(digest, geometry).await {
            Err(StorageError::AlreadyComplete { .. }) => {
                // Whole here and not in the bucket: a commit was broken off. What it was is not known any more.
                staging.remove(digest).await?;
                staging.create(digest, geometry).await?
            }
            staged => staged?,
        };
        let writer = Arc::new(Writer::default());
        let mut writers = inner.writers();
        writers.retain(|_, writer| writer.strong_count() > 0);
        writers.insert(digest, Arc::downgrade(&writer));
        Ok(Arc::new(ObjectPartial { inner: Arc::clone(inner), staged, writer }))
    }

    async fn open(&self, digest: Digest) -> Result<Option<Arc<dyn BlobReader>>, StorageError> {
        let objects = &self.inner.objects;
        let complete = objects.names.complete(digest);
        let Some(Marker { size }) = objects.get(&complete, MARKER_MAGIC, MAX_MARKER).await? else {
            return Ok(None);
        };
        let data = objects.names.data(digest);
        match objects.head(&data).await? {
            None => Err(objects.damaged(&data, "it is gone, although the blob is marked as complete")),
            Some(found) if found.size != size => {
                Err(objects.damaged(&data, format!("it has {} bytes, and the blob {size}", found.size)))
            }
            Some(_) => Ok(Some(Arc::new(ObjectReader { objects: Arc::clone(objects), digest, size }))),
        }
    }

    async fn put_metainfo(&self, metainfo: &Metainfo) -> Result<(), StorageError> {
        check_metainfo(metainfo)?;
        let objects = &self.inner.objects;
        let path = objects.names.metainfo(metainfo.digest);
        objects.put(&path, METAINFO_MAGIC, metainfo, PutMode::Overwrite).await.map(drop)
    }

    async fn metainfo(&self, digest: Digest) -> Result<Option<Metainfo>, StorageError> {
        let objects = &self.inner.objects;
        let path = objects.names.metainfo(digest);
        let found = objects.get::<Metainfo>(&path, METAINFO_MAGIC, MAX_METAINFO).await?;
        match found {
            Some(found) if found.digest != digest => {
                Err(objects.damaged(&path, format!("it is the metainfo of {}", found.digest)))
            }
            Some(found) if check_metainfo(&found).is_err() => {
                Err(objects.damaged(&path, "it has more hashes than the blob has pieces"))
            }
            found => Ok(found),
        }
    }

    async fn remove(&self, digest: Digest) -> Result<(), StorageError> {
        let writer = self.inner.writers().get(&digest).and_then(Weak::upgrade);
        if let Some(writer) = writer {
            writer.removed().await;
        }
        let objects = &self.inner.objects;
        for path in [objects.names.complete(digest), objects.names.data(digest), objects.names.metainfo(digest)] {
            objects.delete(&path).await?;
        }
        self.inner.staging().await?.remove(digest).await
    }

    async fn list(&self) -> Result<Vec<StoredBlob>, StorageError> {
        let objects = &self.inner.objects;
        let mut sizes: HashMap<Digest, u64> = HashMap::new();
        let mut marked: HashMap<Digest, SystemTime> = HashMap::new();
        let blobs = objects.names.blobs();
        let mut found = objects.store.list(Some(&blobs));
        while let Some(object) = found.next().await {
            let object = object.map_err(|error| objects.failed("list", &blobs, &error))?;
            if sizes.len().max(marked.len()) >= MAX_LISTED {
                return Err(objects.damaged(&blobs, format!("it holds more than {MAX_LISTED} blobs")));
            }
            match objects.names.parse(&object.location) {
                Some((digest, Part::Data)) => drop(sizes.insert(digest, object.size)),
                Some((digest, Part::Complete)) => drop(marked.insert(digest, object.last_modified.into())),
                None => debug!(object = objects.names.show(&object.location), "not a blob"),
            }
        }
        let mut listed = Vec::with_capacity(marked.len());
        for (digest, last_used) in &marked {
            match sizes.get(digest) {
                Some(size) => {
                    listed.push(StoredBlob { digest: *digest, size: *size, complete: true, last_used: *last_used });
                }
                None => warn!(blob = %digest, "marked as complete in the object store, but its data is gone"),
            }
        }
        let staged = self.inner.staging().await?.list().await?;
        let staged = staged.into_iter().filter(|blob| !marked.contains_key(&blob.digest));
        listed.extend(staged.map(|blob| StoredBlob { complete: false, ..blob }));
        Ok(listed)
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn put(&self, blob: &dyn BlobReader, metainfo: &Metainfo) -> Result<(), StorageError> {
        check_whole(blob, metainfo)?;
        let (objects, digest) = (&self.inner.objects, metainfo.digest);
        if objects.is_complete(digest).await? {
            return Ok(());
        }
        upload::upload(objects, digest, blob).await?;
        self.put_metainfo(metainfo).await?;
        objects.mark(digest, Marker { size: blob.size() }).await
    }

    async fn claim(&self, digest: Digest, claimant: &mut Claimant) -> Result<Claim, StorageError> {
        lease::claim(&self.inner.objects, digest, claimant).await
    }

    async fn settle(&self) {
        self.stop.cancel();
        let tasks = &self.inner.objects.tasks;
        tasks.close();
        if tokio::time::timeout(SETTLE, tasks.wait()).await.is_err() {
            warn!("leases or uploads in the object store did not end in time; they are cleaned up at the next start");
        }
    }
}

#[cfg(test)]
mod lease_tests;
#[cfg(test)]
mod lossy_bucket;
#[cfg(test)]
mod tests;
