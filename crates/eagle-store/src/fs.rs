//! Blobs in a directory of a local file system.
//!
//! ```text
//! ROOT/lock                                   held while a process uses ROOT
//! ROOT/blobs/sha256/ab/abcd.../data           a complete blob
//! ROOT/blobs/sha256/ab/abcd.../partial        a sparse file of the blob's size
//! ROOT/blobs/sha256/ab/abcd.../pieces         which pieces of it are durable
//! ROOT/blobs/sha256/ab/abcd.../metainfo
//! ```
//!
//! `docs/storage.md` argues why a crash at any instant leaves nothing wrong. In short: a piece is in
//! `pieces` only after its bytes were synced, `partial` becomes `data` by a rename after all its
//! bytes were synced, and small files are replaced by renaming a synced temporary one.
//!
//! Every system call that may wait runs on the blocking threads; reads of what is in memory do not. What changes the directory of a blob holds the
//! lock of that directory ([`Inner::directory`]); what changes bytes in `partial` does not.

mod buffers;
mod disk;
pub(crate) mod layout;
mod partial;
mod reader;
#[cfg(test)]
mod record;

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use eagle_core::{Digest, Geometry, Metainfo};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use self::{buffers::Buffers, layout::BlobDirectory, partial::Core, reader::FsReader};
use crate::ssi::{
    BlobReader, BlobStorage, PartialBlob, ScrubPlace, SpaceOnDisk, StorageError, StoredBlob, check_metainfo,
};

/// Number of directory locks. More than the blocking threads that a busy node uses at once, so that
/// two blobs rarely share one.
const DIRECTORY_LOCKS: usize = 64;
/// How old the time of use on disk may be before it is renewed: the order after a crash is right to
/// a minute, and a blob in constant use costs one inode update a minute.
const TOUCH_INTERVAL: Duration = Duration::from_secs(60);
/// How long to wait for another holder of the directory: a process that is being replaced needs a
/// moment to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two tries to lock the directory.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Blobs in a directory of a local file system.
#[derive(Debug)]
pub struct FsStorage {
    inner: Arc<Inner>,
}

/// Shared by the storage and its writers.
#[derive(Debug)]
struct Inner {
    root: PathBuf,
    directories: Vec<Mutex<()>>,
    /// Blobs that are being written; at most one writer each. Dead ones go when the next is made.
    writers: Mutex<HashMap<Digest, Weak<Core>>>,
    /// Uses that are newer than what the disk says. At most one for each blob kept.
    used: Mutex<HashMap<Digest, SystemTime>>,
    /// Writes of piece records; at most one for each writer.
    tasks: TaskTracker,
    /// For reads; at most 4 MiB while nobody reads.
    buffers: Arc<Buffers>,
    /// Released when the last writer is gone too.
    _lock: File,
}

impl FsStorage {
    /// Opens the storage in `root`, which is made when it is missing (its parent is not: a disk that
    /// is not mounted must not be mistaken for an empty cache), and sweeps what a crash left.
    ///
    /// # Errors
    /// When the directory cannot be made or written, or when another process uses it. The error
    /// names the path.
    pub async fn open(root: &Path) -> Result<Self, StorageError> {
        let root = root.to_owned();
        let inner = blocking(move || {
            let new =
                layout::create_private(&root, "create the data directory (its parent must exist and be writable)")?;
            if new && let Some(Err(error)) = root.parent().map(layout::sync_directory) {
                debug!(%error, "a loss of power in the next seconds may lose the data directory");
            }
            layout::create_private(&root.join(layout::BLOBS), "create the data directory (is it writable?)")?;
            // Made just now, or by a process that was killed before it came here: what is below must not go with it.
            layout::sync_directory(&root)?;
            let lock = lock(&root)?;
            layout::sweep(&root)?;
            let directories = (0..DIRECTORY_LOCKS).map(|_| Mutex::default()).collect();
            let (writers, used, tasks) = (Mutex::default(), Mutex::default(), TaskTracker::new());
            Ok(Inner { root, directories, writers, used, tasks, buffers: Arc::default(), _lock: lock })
        })
        .await?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The directory that holds the blobs.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Runs `work` on a blocking thread.
    async fn run<T, F>(&self, work: F) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Inner>) -> Result<T, StorageError> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        blocking(move || work(&inner)).await
    }
}

#[async_trait]
impl BlobStorage for FsStorage {
    async fn create(&self, digest: Digest, geometry: Geometry) -> Result<Arc<dyn PartialBlob>, StorageError> {
        self.run(move |inner| partial::create(inner, digest, geometry)).await
    }

    async fn open(&self, digest: Digest) -> Result<Option<Arc<dyn BlobReader>>, StorageError> {
        self.run(move |inner| inner.open(digest)).await
    }

    async fn put_metainfo(&self, metainfo: &Metainfo) -> Result<(), StorageError> {
        check_metainfo(metainfo)?;
        let metainfo = metainfo.clone();
        self.run(move |inner| {
            let directory = inner.blob(metainfo.digest);
            let _held = inner.directory(metainfo.digest);
            directory.create()?;
            directory.write_metainfo(&metainfo)
        })
        .await
    }

    async fn metainfo(&self, digest: Digest) -> Result<Option<Metainfo>, StorageError> {
        self.run(move |inner| inner.blob(digest).read_metainfo()).await
    }

    async fn remove(&self, digest: Digest) -> Result<(), StorageError> {
        self.run(move |inner| {
            let _held = inner.directory(digest);
            if let Some(writer) = inner.writer(digest) {
                writer.removed();
            }
            inner.used().remove(&digest);
            inner.blob(digest).remove()
        })
        .await
    }

    async fn list(&self) -> Result<Vec<StoredBlob>, StorageError> {
        self.run(|inner| {
            let mut blobs = layout::list(&inner.root)?;
            let used = inner.used();
            for blob in &mut blobs {
                if let Some(time) = used.get(&blob.digest) {
                    blob.last_used = blob.last_used.max(*time);
                }
            }
            Ok(blobs)
        })
        .await
    }

    async fn scrub_place(&self) -> Option<ScrubPlace> {
        let place = self.run(|inner| layout::read_scrub_place(&inner.root)).await;
        place.unwrap_or_else(|error| {
            warn!(%error, "the scrub begins anew");
            None
        })
    }

    async fn keep_scrub_place(&self, place: Option<ScrubPlace>) {
        let kept = self.run(move |inner| layout::write_scrub_place(&inner.root, place)).await;
        if let Err(error) = kept {
            debug!(%error, "where the scrub is cannot be kept");
        }
    }

    async fn space(&self) -> Result<Option<SpaceOnDisk>, StorageError> {
        self.run(|inner| {
            let root = &inner.root;
            let found = rustix::fs::statvfs(root);
            let found = found.map_err(|e| StorageError::io("examine the file system of", root, e.into()))?;
            let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
            Ok(Some(SpaceOnDisk { total: bytes(found.f_blocks), available: bytes(found.f_bavail) }))
        })
        .await
    }

    fn touch(&self, digest: Digest) {
        self.inner.used().insert(digest, SystemTime::now());
    }
}

impl Inner {
    fn blob(&self, digest: Digest) -> BlobDirectory {
        BlobDirectory::new(&self.root, digest)
    }

    /// The lock of a blob's directory. Taken before any other lock but that of a piece record.
    fn directory(&self, digest: Digest) -> MutexGuard<'_, ()> {
        let first = usize::from(digest.as_bytes().first().copied().unwrap_or_default());
        self.directories[first % DIRECTORY_LOCKS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writers(&self) -> MutexGuard<'_, HashMap<Digest, Weak<Core>>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self, digest: Digest) -> Option<Arc<Core>> {
        self.writers().get(&digest).and_then(Weak::upgrade)
    }

    fn used(&self) -> MutexGuard<'_, HashMap<Digest, SystemTime>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, digest: Digest) -> Result<Option<Arc<dyn BlobReader>>, StorageError> {
        let directory = self.blob(digest);
        let Some((file, metadata)) = directory.open_data()? else { return Ok(None) };
        let used = self.used().get(&digest).copied();
        if let (Some(used), Ok(on_disk)) = (used, metadata.modified())
            && used.duration_since(on_disk).is_ok_and(|age| age > TOUCH_INTERVAL)
            && let Err(error) = file.set_modified(used)
        {
            debug!(%digest, %error, "cannot note the time of use");
        }
        let buffers = Arc::clone(&self.buffers);
        Ok(Some(Arc::new(FsReader::new(digest, Arc::new(file), metadata.len(), directory.data(), buffers))))
    }
}

impl Drop for Inner {
    /// Notes the uses of the last minute: a few microseconds for each blob used in it.
    fn drop(&mut self) {
        let used = std::mem::take(self.used.get_mut().unwrap_or_else(PoisonError::into_inner));
        for (digest, time) in used {
            if let Ok(Some((file, _))) = self.blob(digest).open_data()
                && let Err(error) = file.set_modified(time)
            {
                debug!(%digest, %error, "cannot note the time of use");
            }
        }
    }
}

/// Takes the lock of the data directory, so that no two processes write to it.
fn lock(root: &Path) -> Result<File, StorageError> {
    let path = root.join(layout::LOCK);
    let file = layout::create_file(&path, false)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_RETRY);
            }
            Err(std::fs::TryLockError::WouldBlock) => return Err(StorageError::Locked { path: root.to_owned() }),
            Err(std::fs::TryLockError::Error(source)) if source.kind() == std::io::ErrorKind::Unsupported => {
                warn!(path = %path.display(), "this file system has no locks: make sure one process uses the directory");
                return Ok(file);
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(StorageError::io("lock", &path, source)),
        }
    }
}

/// Runs `work` on a blocking thread.
async fn blocking<T, F>(work: F) -> Result<T, StorageError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StorageError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StorageError::Stopped),
        },
    }
}

#[cfg(test)]
mod tests;
