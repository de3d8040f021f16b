//! Writing a blob.
//!
//! Bytes of pieces go to the file as they come. Which of them are durable is recorded now and then
//! by a task of its own, so that no writer waits for the disk: the file is synced first, then the
//! record of the pieces that were written before the sync is replaced.

use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::{Bitfield, Digest, Geometry, PieceIndex};
use tokio::runtime::Handle;
use tracing::{debug, warn};

use super::{
    Inner, blocking, disk,
    layout::BlobDirectory,
    reader::{self, FsReader},
};
use crate::ssi::{BlobReader, PartialBlob, StorageError, check_piece, check_range};

/// Bytes written after which they are recorded: a crash then costs no more than that to fetch again.
const RECORD_BYTES: u64 = 64 << 20;
/// Time after which bytes written are recorded when the next piece comes: a second of a download
/// is cheap to repeat, and a sync a second is cheap for a disk.
const RECORD_INTERVAL: Duration = Duration::from_secs(1);

/// What a writer, its readers and its tasks share.
#[derive(Debug)]
pub(super) struct Core {
    inner: Arc<Inner>,
    digest: Digest,
    geometry: Geometry,
    directory: BlobDirectory,
    file: Arc<File>,
    path: PathBuf,
    /// One record is written at a time, each of a newer state than the one before. Taken before
    /// every other lock.
    recording: Mutex<()>,
    /// Held for reading while bytes go to the file; who holds it for writing knows that none do.
    bytes: RwLock<()>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Whether nobody holds the writer any more.
    closed: bool,
    /// Pieces whose bytes are in the file.
    written: Bitfield,
    /// Pieces that the record on disk names.
    recorded: Bitfield,
    /// Bytes written since the last record began, and when it did.
    fresh: u64,
    recorded_at: Instant,
    /// Whether a record is due and has a task.
    scheduled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Pieces are being written, or wait for the next writer. Left by a commit, a removal, or that
    /// next writer.
    Writing,
    /// All pieces are here and are being synced. Back to `Writing` when what follows the sync fails.
    Committing,
    /// A sync failed. The kernel tells that once, and takes what it could not write for written: another sync would
    /// succeed and mean nothing. So nothing is recorded, completed or written any more; what was recorded before is on
    /// the disk, and what is read is compared as ever. Left by a removal or the next writer, who begins from the record.
    Lost,
    /// It is the complete blob. Never left.
    Complete,
    /// The blob was removed, or a later writer has taken the file over. Never left.
    Removed,
}

/// Begins a blob, or takes up what is there of it.
pub(super) fn create(
    inner: &Arc<Inner>,
    digest: Digest,
    geometry: Geometry,
) -> Result<Arc<dyn PartialBlob>, StorageError> {
    let earlier = inner.writer(digest);
    // A sync of the earlier writer that is under way ends first: its failure would be told to nobody else.
    let _ended = earlier.as_ref().map(|earlier| earlier.recording());
    let _held = inner.directory(digest);
    let now = inner.writer(digest);
    if now.as_ref().map(Arc::as_ptr) != earlier.as_ref().map(Arc::as_ptr) {
        // Another one was quicker.
        return Err(StorageError::InUse { digest });
    }
    let earlier = match now {
        Some(earlier) => earlier.hand_over()?,
        None => None,
    };
    let directory = inner.blob(digest);
    if directory.open_data()?.is_some() {
        return Err(StorageError::AlreadyComplete { digest });
    }
    let new = directory.create()?;
    let (file, recorded) = match directory.open_partial(geometry)? {
        Some(found) => found,
        None => match earlier.as_ref().filter(|earlier| earlier.geometry == geometry) {
            // Closed before its first record: nothing is durable, but all of it is in the file.
            Some(earlier) => (
                earlier.file.try_clone().map_err(|e| StorageError::io("open", &earlier.path, e))?,
                Bitfield::new(geometry.pieces()),
            ),
            None => (directory.reset_partial(geometry, new)?, Bitfield::new(geometry.pieces())),
        },
    };
    let mut written = recorded.clone();
    if let Some(earlier) = earlier.filter(|earlier| earlier.geometry == geometry) {
        // What it wrote is in the file, recorded or not; what it took back is not to be trusted.
        written = earlier.state().written.clone();
    }
    let path = directory.partial();
    let state = State::new(written.clone(), recorded);
    let core = Arc::new(Core {
        inner: Arc::clone(inner),
        digest,
        geometry,
        directory,
        file: Arc::new(file),
        path,
        recording: Mutex::default(),
        bytes: RwLock::default(),
        state: Mutex::new(state),
    });
    let mut writers = inner.writers();
    writers.retain(|_, writer| writer.strong_count() > 0);
    writers.insert(digest, Arc::downgrade(&core));
    Ok(Arc::new(FsPartial { core, recovered: written }))
}

impl State {
    fn new(written: Bitfield, recorded: Bitfield) -> Self {
        let phase = Phase::Writing;
        Self { phase, closed: false, written, recorded, fresh: 0, recorded_at: Instant::now(), scheduled: false }
    }
}

impl Core {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recording(&self) -> MutexGuard<'_, ()> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the writer that the blob was removed. The caller holds the directory.
    pub(super) fn removed(&self) {
        let mut state = self.state();
        if state.phase != Phase::Complete {
            state.phase = Phase::Removed;
        }
    }

    /// Ends a writer that is closed, and waits until nothing of it touches the file. `None` when
    /// there is nothing to take over. The caller holds the directory.
    fn hand_over(self: Arc<Self>) -> Result<Option<Arc<Self>>, StorageError> {
        let phase = {
            let mut state = self.state();
            match state.phase {
                Phase::Complete | Phase::Removed => return Ok(None),
                Phase::Writing | Phase::Lost if state.closed => std::mem::replace(&mut state.phase, Phase::Removed),
                Phase::Writing | Phase::Committing | Phase::Lost => {
                    return Err(StorageError::InUse { digest: self.digest });
                }
            }
        };
        drop(self.bytes.write().unwrap_or_else(PoisonError::into_inner));
        Ok((phase == Phase::Writing).then_some(self))
    }

    fn check_writing(&self, state: &State) -> Result<(), StorageError> {
        match state.phase {
            Phase::Writing => Ok(()),
            Phase::Lost => Err(StorageError::Unsynced { digest: self.digest }),
            Phase::Committing | Phase::Complete => Err(StorageError::AlreadyComplete { digest: self.digest }),
            Phase::Removed => Err(StorageError::Removed { digest: self.digest }),
        }
    }

    /// Writes the bytes of a piece; says whether a record is due.
    fn write(&self, piece: PieceIndex, bytes: &[u8]) -> Result<bool, StorageError> {
        let overwrites = {
            let mut state = self.state();
            self.check_writing(&state)?;
            // While it is overwritten it is neither the old piece nor the new one.
            state.written.remove(piece) | state.recorded.contains(piece)
        };
        if overwrites {
            // Neither the record on disk nor one on its way there may name it meanwhile.
            self.record()?;
        }
        let _writing = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        // Again, as a commit, a removal or a later writer may have come between.
        self.check_writing(&self.state())?;
        let written = disk::write_at(&self.file, &self.path, bytes, self.geometry.offset(piece));
        written.map_err(|e| StorageError::io("write", &self.path, e))?;
        let mut state = self.state();
        state.written.insert(piece);
        state.fresh += bytes.len() as u64;
        let due = state.fresh >= RECORD_BYTES || state.recorded_at.elapsed() >= RECORD_INTERVAL;
        let due = due && !state.scheduled && state.phase == Phase::Writing;
        state.scheduled |= due;
        Ok(due)
    }

    /// Records the pieces written so far as durable, after making them so.
    fn record(&self) -> Result<(), StorageError> {
        let _one = self.recording();
        let (written, takes_back) = {
            let mut state = self.state();
            if self.check_writing(&state).is_err() {
                return Ok(());
            }
            state.fresh = 0;
            state.recorded_at = Instant::now();
            (state.written.clone(), state.recorded.any_without(&[&state.written]))
        };
        disk::sync_data(&self.file, &self.path).map_err(|e| self.lost(e))?;
        let _held = self.inner.directory(self.digest);
        if self.check_writing(&self.state()).is_err() || self.state().recorded == written {
            return Ok(());
        }
        self.directory.write_pieces(self.geometry, &written)?;
        if takes_back {
            // The bytes of a piece that is taken back are about to change.
            self.directory.sync()?;
        }
        self.state().recorded = written;
        Ok(())
    }

    /// Notes that a sync failed.
    fn lost(&self, source: io::Error) -> StorageError {
        let mut state = self.state();
        if matches!(state.phase, Phase::Writing | Phase::Committing) {
            state.phase = Phase::Lost;
        }
        StorageError::io("sync", &self.path, source)
    }

    /// A record from a task: when it fails otherwise than by its sync, the next one tries again.
    fn record_later(&self) {
        if let Err(error) = self.record() {
            warn!(digest = %self.digest, %error, "pieces that are here are not recorded and will be fetched again");
        }
        self.state().scheduled = false;
    }

    fn commit(&self) -> Result<Arc<dyn BlobReader>, StorageError> {
        // No record is half written meanwhile, and no second commit runs.
        let _one = self.recording();
        {
            let mut state = self.state();
            match state.phase {
                Phase::Complete => {
                    drop(state);
                    // It may be what failed the first time. Names are in the journal of a file system, which, unlike the
                    // bytes of files, are not taken for written when they are not.
                    self.directory.sync()?;
                    return Ok(self.reader());
                }
                Phase::Removed => return Err(StorageError::Removed { digest: self.digest }),
                Phase::Lost => return Err(StorageError::Unsynced { digest: self.digest }),
                Phase::Writing | Phase::Committing => state.phase = Phase::Committing,
            }
        }
        let committed = self.finish();
        let mut state = self.state();
        if state.phase == Phase::Committing {
            // A failure after the rename, of the sync of the directory, is no way back.
            let complete = committed.is_ok() || self.directory.data().exists();
            state.phase = if complete { Phase::Complete } else { Phase::Writing };
        }
        drop(state);
        committed.map(|()| self.reader())
    }

    /// The steps of a commit, in phase `Committing`.
    fn finish(&self) -> Result<(), StorageError> {
        // Writes that began before the commit end first; later ones are refused.
        drop(self.bytes.write().unwrap_or_else(PoisonError::into_inner));
        let missing = {
            let written = &self.state().written;
            written.len() - written.count()
        };
        if missing > 0 {
            return Err(StorageError::Incomplete { digest: self.digest, missing });
        }
        if let Err(error) = self.file.set_modified(SystemTime::now()) {
            debug!(digest = %self.digest, %error, "cannot note the time of use");
        }
        disk::sync_file(&self.file, &self.path).map_err(|e| self.lost(e))?;
        let _held = self.inner.directory(self.digest);
        if self.state().phase == Phase::Removed {
            return Err(StorageError::Removed { digest: self.digest });
        }
        self.directory.finish_partial()?;
        self.state().phase = Phase::Complete;
        Ok(())
    }

    fn reader(&self) -> Arc<dyn BlobReader> {
        let (file, size) = (Arc::clone(&self.file), self.geometry.size());
        let buffers = Arc::clone(&self.inner.buffers);
        Arc::new(FsReader::new(self.digest, file, size, self.directory.data(), buffers))
    }

    /// Refuses a range with a piece that was not written.
    fn check_written(&self, offset: u64, length: usize) -> Result<(), StorageError> {
        let end = offset + length as u64;
        if let (Some(first), Some(last)) =
            (self.geometry.piece_at(offset), self.geometry.piece_at(end.saturating_sub(1)))
            && length > 0
        {
            let state = self.state();
            match state.written.first_missing(first.0) {
                Some(piece) if piece <= last => return Err(StorageError::NotWritten { digest: self.digest, piece }),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The writer of a blob. One for each [`Core`]; the core may outlive it in a task.
#[derive(Debug)]
struct FsPartial {
    core: Arc<Core>,
    recovered: Bitfield,
}

impl FsPartial {
    async fn run<T, F>(&self, work: F) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: FnOnce(&Core) -> Result<T, StorageError> + Send + 'static,
    {
        let core = Arc::clone(&self.core);
        blocking(move || work(&core)).await
    }

    /// Runs `work` in a task of the storage; in place where there is no runtime.
    fn spawn(&self, work: impl FnOnce(&Core) + Send + 'static) {
        let core = Arc::clone(&self.core);
        match Handle::try_current() {
            Ok(runtime) => drop(self.core.inner.tasks.spawn_blocking_on(move || work(&core), &runtime)),
            Err(_) => work(&core),
        }
    }
}

impl Drop for FsPartial {
    fn drop(&mut self) {
        let unrecorded = {
            let mut state = self.core.state();
            state.closed = true;
            state.phase == Phase::Writing && state.written != state.recorded
        };
        if unrecorded {
            self.spawn(Core::record_later);
        }
    }
}

#[async_trait]
impl BlobReader for FsPartial {
    fn size(&self) -> u64 {
        self.core.geometry.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        check_range(self.core.digest, self.size(), offset, length)?;
        self.core.check_written(offset, length)?;
        let Core { file, path, inner, .. } = &*self.core;
        reader::read(file, path, &inner.buffers, offset, length).await
    }

    fn file(&self) -> Option<Arc<File>> {
        Some(Arc::clone(&self.core.file))
    }
}

#[async_trait]
impl PartialBlob for FsPartial {
    fn digest(&self) -> Digest {
        self.core.digest
    }

    fn geometry(&self) -> Geometry {
        self.core.geometry
    }

    fn recovered(&self) -> Bitfield {
        self.recovered.clone()
    }

    async fn write_piece(&self, piece: PieceIndex, bytes: Bytes) -> Result<(), StorageError> {
        check_piece(self.core.digest, self.core.geometry, piece, bytes.len())?;
        if self.run(move |core| core.write(piece, &bytes)).await? {
            self.spawn(Core::record_later);
        }
        Ok(())
    }

    async fn commit(&self) -> Result<Arc<dyn BlobReader>, StorageError> {
        self.run(Core::commit).await
    }
}

#[cfg(test)]
mod tests {
    use eagle_core::geometry::MIN_PIECE_LENGTH;

    use super::*;
    use crate::{fs::FsStorage, ssi::BlobStorage as _};

    #[tokio::test]
    async fn a_piece_that_finds_the_disk_full_says_so_and_is_not_written() {
        let Ok(full) = File::options().read(true).write(true).open("/dev/full") else {
            eprintln!("skipped: this system has no /dev/full");
            return;
        };
        let root = tempfile::TempDir::new().unwrap();
        let storage = FsStorage::open(root.path()).await.unwrap();
        let (digest, piece) = (Digest::of(b"full"), PieceIndex(0));
        let geometry = Geometry::new(u64::from(MIN_PIECE_LENGTH), MIN_PIECE_LENGTH).unwrap();
        let directory = storage.inner.blob(digest);
        let core = Core {
            inner: Arc::clone(&storage.inner),
            digest,
            geometry,
            path: directory.partial(),
            directory,
            file: Arc::new(full),
            recording: Mutex::default(),
            bytes: RwLock::default(),
            state: Mutex::new(State::new(Bitfield::new(1), Bitfield::new(1))),
        };
        let error = core.write(piece, &[1; MIN_PIECE_LENGTH as usize]).unwrap_err();
        assert!(error.is_out_of_space(), "{error}");
        assert!(matches!(core.check_written(0, 1), Err(StorageError::NotWritten { .. })));
        assert!(matches!(core.commit(), Err(StorageError::Incomplete { .. })));
        assert_eq!(core.state().phase, Phase::Writing, "it can be tried again");
        // Once there is space again, as another writer finds it.
        let partial = storage.create(digest, geometry).await.unwrap();
        partial.write_piece(piece, vec![1; MIN_PIECE_LENGTH as usize].into()).await.unwrap();
        partial.commit().await.unwrap();
    }
}
