mod power_loss;

use std::{fs, os::unix::fs::PermissionsExt as _};

use bytes::Bytes;
use eagle_core::PieceIndex;
use tempfile::TempDir;

use super::*;
use crate::{
    conformance::{self, Fixture, Sample},
    fs::record::Step,
};

const PIECE: usize = eagle_core::geometry::MIN_PIECE_LENGTH as usize;

#[derive(Debug)]
struct Directory(TempDir);

#[async_trait]
impl Fixture for Directory {
    async fn open(&self) -> Arc<dyn BlobStorage> {
        Arc::new(FsStorage::open(self.0.path()).await.unwrap())
    }
}

fn directory() -> Directory {
    Directory(TempDir::new().unwrap())
}

impl Directory {
    async fn storage(&self) -> FsStorage {
        FsStorage::open(self.0.path()).await.unwrap()
    }

    fn blob(&self, sample: &Sample) -> PathBuf {
        let hex = sample.digest.hex();
        self.0.path().join("blobs/sha256").join(&hex[..2]).join(&hex)
    }

    fn names(&self, sample: &Sample) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.blob(sample)) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A copy of the tree as a crash at this instant would leave it, at worst.
    fn crash(&self) -> Directory {
        let copy = directory();
        copy_tree(self.0.path(), copy.0.path());
        copy
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

async fn write(partial: &dyn PartialBlob, sample: &Sample, pieces: impl IntoIterator<Item = u32>) {
    for piece in pieces {
        partial.write_piece(PieceIndex(piece), sample.piece(PieceIndex(piece))).await.unwrap();
    }
}

#[tokio::test]
async fn conforms() {
    conformance::run(|| Box::new(directory())).await;
}

#[tokio::test]
async fn nobody_else_can_read_the_files() {
    let directory = directory();
    let root = directory.0.path().join("data");
    let sample = Sample::new(PIECE, 1);
    let storage = FsStorage::open(&root).await.unwrap();
    conformance::store(&storage, &sample).await;
    storage.put_metainfo(&sample.metainfo()).await.unwrap();
    let mut places = vec![root];
    while let Some(path) = places.pop() {
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o077, 0, "{}", path.display());
        if metadata.is_dir() {
            places.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_named() {
    let directory = directory();
    let missing = directory.0.path().join("not-mounted/eagle");
    let error = FsStorage::open(&missing).await.unwrap_err().to_string();
    assert!(error.contains(missing.to_str().unwrap()) && error.contains("parent"), "{error}");
    assert!(!missing.parent().unwrap().exists(), "the parent is not made");

    let file = directory.0.path().join("file");
    fs::write(&file, b"x").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = FsStorage::open(&path).await.unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
    // Nobody, root included, can make a directory in /proc.
    let error = FsStorage::open(Path::new("/proc/eagle")).await.unwrap_err().to_string();
    assert!(error.contains("/proc/eagle"), "{error}");
}

#[tokio::test]
async fn a_directory_has_one_user() {
    let directory = directory();
    let storage = directory.storage().await;
    let error = FsStorage::open(directory.0.path()).await.unwrap_err();
    assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    drop(storage);
    directory.storage().await;
}

#[tokio::test]
async fn a_full_disk_is_told_apart() {
    let directory = directory();
    let sample = Sample::new(PIECE, 2);
    let storage = directory.storage().await;
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    drop(partial);
    let file = directory.blob(&sample).join("metainfo.tmp");
    std::os::unix::fs::symlink("/dev/full", file).unwrap();
    let error = storage.put_metainfo(&sample.metainfo()).await.unwrap_err();
    assert!(error.is_out_of_space(), "{error}");
    // What was left of the try does not stand in the way of the next.
    storage.put_metainfo(&sample.metainfo()).await.unwrap();
    assert_eq!(storage.metainfo(sample.digest).await.unwrap(), Some(sample.metainfo()));
}

#[tokio::test]
async fn a_crash_while_writing_leaves_only_pieces_that_are_right() {
    let directory = directory();
    let sample = Sample::new(4 * PIECE, 3);
    let storage = directory.storage().await;
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    write(&*partial, &sample, [0, 1]).await;
    let after = directory.crash();
    let storage = after.storage().await;
    // Nothing, where no record was made yet; in no case the blob.
    assert!(storage.list().await.unwrap().iter().all(|stored| !stored.complete));
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    // None, unless this test was so slow that a record was due.
    for piece in partial.recovered().iter() {
        let (offset, length) = (sample.geometry.offset(piece), sample.geometry.length(piece) as usize);
        assert_eq!(partial.read_at(offset, length).await.unwrap(), sample.piece(piece));
    }
    write(&*partial, &sample, 0..4).await;
    partial.commit().await.unwrap();
}

#[tokio::test]
async fn pieces_are_recorded_once_enough_were_written() {
    let directory = directory();
    let size = 3 * 16 * 1024 * 1024;
    let geometry = Geometry::new(size, eagle_core::geometry::MAX_PIECE_LENGTH).unwrap();
    let digest = Digest::of(b"large");
    let storage = directory.storage().await;
    let partial = storage.create(digest, geometry).await.unwrap();
    let bytes = Bytes::from(vec![1; eagle_core::geometry::MAX_PIECE_LENGTH as usize]);
    let deadline = Instant::now() + Duration::from_secs(60);
    // A piece written again and again reaches the bytes, or the interval, after which a record is due.
    loop {
        for piece in 0..3 {
            partial.write_piece(PieceIndex(piece), bytes.clone()).await.unwrap();
        }
        let after = directory.crash();
        let storage = after.storage().await;
        let recovered = storage.create(digest, geometry).await.unwrap().recovered();
        if recovered.count() > 0 {
            return;
        }
        assert!(Instant::now() < deadline, "no record was written");
    }
}

#[tokio::test]
async fn a_piece_that_is_written_again_is_taken_off_the_record_first() {
    let directory = directory();
    let sample = Sample::new(3 * PIECE, 4);
    let storage = directory.storage().await;
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    write(&*partial, &sample, [0, 1]).await;
    drop((partial, storage));
    let storage = directory.storage().await;
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    assert_eq!(partial.recovered().count(), 2);
    partial.write_piece(PieceIndex(1), Bytes::from(vec![9; PIECE])).await.unwrap();
    let after = directory.crash();
    let recovered = after.storage().await.create(sample.digest, sample.geometry).await.unwrap().recovered();
    assert_eq!(recovered.iter().collect::<Vec<_>>(), [PieceIndex(0)], "a torn overwrite would be piece 1");
}

#[tokio::test]
async fn what_a_crash_left_half_done_is_swept() {
    let directory = directory();
    let (complete, partial, nothing) = (Sample::new(PIECE, 5), Sample::new(2 * PIECE, 6), Sample::new(9, 7));
    let storage = directory.storage().await;
    conformance::store(&storage, &complete).await;
    write(&*storage.create(partial.digest, partial.geometry).await.unwrap(), &partial, [1]).await;
    drop(storage);
    drop(directory.storage().await);
    // Between the rename of a commit and the removal of its record; in the middle of small files;
    // in the middle of a removal; metainfo that came before its blob.
    fs::write(directory.blob(&complete).join("pieces"), b"old").unwrap();
    fs::write(directory.blob(&complete).join("metainfo.tmp"), b"half").unwrap();
    fs::write(directory.blob(&partial).join("pieces.tmp"), b"half").unwrap();
    fs::create_dir_all(directory.blob(&nothing)).unwrap();
    fs::write(directory.blob(&nothing).join("metainfo"), b"alone").unwrap();
    // Not ours; it stays.
    fs::create_dir_all(directory.0.path().join("blobs/sha256/lost+found/x")).unwrap();

    let storage = directory.storage().await;
    assert_eq!(directory.names(&complete), ["data"]);
    assert_eq!(directory.names(&partial), ["partial", "pieces"]);
    assert!(!directory.blob(&nothing).exists());
    assert!(directory.0.path().join("blobs/sha256/lost+found/x").exists());
    assert_eq!(storage.list().await.unwrap().len(), 2);
    let resumed = storage.create(partial.digest, partial.geometry).await.unwrap();
    assert_eq!(resumed.recovered().iter().collect::<Vec<_>>(), [PieceIndex(1)]);
}

#[tokio::test]
async fn a_record_without_its_file_is_not_believed() {
    let directory = directory();
    let sample = Sample::new(2 * PIECE, 8);
    let storage = directory.storage().await;
    write(&*storage.create(sample.digest, sample.geometry).await.unwrap(), &sample, [0]).await;
    drop(storage);
    let storage = directory.storage().await;
    let (file, record) = (directory.blob(&sample).join("partial"), directory.blob(&sample).join("pieces"));
    assert!(record.exists());
    fs::remove_file(&file).unwrap();
    drop(storage.create(sample.digest, sample.geometry).await.unwrap());
    assert!(!record.exists(), "a crash now must not find it beside the new file");
    assert_eq!(storage.create(sample.digest, sample.geometry).await.unwrap().recovered().count(), 0);
    // One of the wrong size is not the one that was recorded either.
    write(&*storage.create(sample.digest, sample.geometry).await.unwrap(), &sample, [0]).await;
    drop(storage);
    let storage = directory.storage().await;
    assert!(record.exists());
    File::options().write(true).open(&file).unwrap().set_len(5).unwrap();
    assert_eq!(storage.create(sample.digest, sample.geometry).await.unwrap().recovered().count(), 0);
}

#[tokio::test]
async fn damaged_small_files_are_ignored() {
    let directory = directory();
    let sample = Sample::new(2 * PIECE, 9);
    let storage = directory.storage().await;
    write(&*storage.create(sample.digest, sample.geometry).await.unwrap(), &sample, [0]).await;
    storage.put_metainfo(&sample.metainfo()).await.unwrap();
    drop(storage);
    let storage = directory.storage().await;
    for name in ["metainfo", "pieces"] {
        let path = directory.blob(&sample).join(name);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    assert_eq!(storage.metainfo(sample.digest).await.unwrap(), None);
    assert_eq!(storage.create(sample.digest, sample.geometry).await.unwrap().recovered().count(), 0);
}

#[tokio::test]
async fn partial_files_take_no_space_for_holes() {
    use std::os::unix::fs::MetadataExt as _;
    let directory = directory();
    let geometry = Geometry::auto(10 << 30).unwrap();
    let digest = Digest::of(b"huge");
    let storage = directory.storage().await;
    let partial = storage.create(digest, geometry).await.unwrap();
    let metadata = partial.file().unwrap().metadata().unwrap();
    assert_eq!(metadata.len(), 10 << 30);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
}

#[tokio::test]
async fn a_sync_that_failed_is_not_believed_when_it_is_repeated() {
    let directory = directory();
    let storage = directory.storage().await;
    let record = record::start(directory.0.path());
    let sample = Sample::new(3 * PIECE, 1);
    let unsynced = |error: StorageError| assert!(matches!(error, StorageError::Unsynced { .. }), "{error}");

    // A commit: the blob stays partial, and what was not recorded is lost.
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    write(&*partial, &sample, 0..3).await;
    record.fail_sync_after(0);
    let error = partial.commit().await.unwrap_err();
    assert!(matches!(&error, StorageError::Io { action: "sync", .. }), "{error}");
    unsynced(partial.commit().await.unwrap_err());
    unsynced(partial.write_piece(PieceIndex(0), sample.piece(PieceIndex(0))).await.unwrap_err());
    assert!(
        storage.open(sample.digest).await.unwrap().is_none() && !directory.names(&sample).contains(&"data".to_owned())
    );
    assert_eq!(partial.read_at(0, PIECE).await.unwrap(), sample.piece(PieceIndex(0)), "who reads it reads on");
    drop(partial);
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    assert_eq!(partial.recovered().count(), 0);

    // The record at the end of a writer.
    write(&*partial, &sample, 0..1).await;
    drop(partial);
    storage.inner.tasks.close();
    storage.inner.tasks.wait().await;
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    assert_eq!(partial.recovered().count(), 1);
    write(&*partial, &sample, 1..2).await;
    record.fail_sync_after(0);
    drop(partial);
    storage.inner.tasks.wait().await;
    assert!(!record.fail_none(), "there was no record");
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    assert_eq!(partial.recovered().iter().collect::<Vec<_>>(), [PieceIndex(0)], "what was recorded before is there");
    write(&*partial, &sample, 1..3).await;
    let blob = partial.commit().await.unwrap();
    assert_eq!(blob.read_at(0, 3 * PIECE).await.unwrap(), sample.bytes);
}

#[tokio::test]
async fn a_directory_whose_sync_failed_is_synced_again() {
    let directory = directory();
    let storage = directory.storage().await;
    let record = record::start(directory.0.path());
    let sample = Sample::new(2 * PIECE, 1);
    // That above the new one, which is then made anew.
    for synced in [0, 1, 1] {
        record.fail_sync_after(synced);
        assert!(storage.create(sample.digest, sample.geometry).await.is_err());
    }
    let syncs = |path: &Path| {
        record.steps().iter().filter(|step| matches!(step, Step::SyncDirectory(of) if of == path)).count()
    };
    let above = directory.blob(&sample).parent().unwrap().to_owned();
    assert_eq!(syncs(&above), 0);
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    assert_eq!(syncs(&above), 1);
    // That of the blob, in which an old record was.
    write(&*partial, &sample, 0..2).await;
    drop(partial);
    storage.inner.tasks.close();
    storage.inner.tasks.wait().await;
    let other = Geometry::new(2 * PIECE as u64, 2 * u32::try_from(PIECE).unwrap()).unwrap();
    record.fail_sync_after(0);
    assert!(storage.create(sample.digest, other).await.is_err());
    assert_eq!(syncs(&directory.blob(&sample)), 0);
    let partial = storage.create(sample.digest, other).await.unwrap();
    assert_eq!((syncs(&directory.blob(&sample)), partial.recovered().count()), (1, 0));
    // And in which the blob was completed.
    partial.write_piece(PieceIndex(0), sample.bytes.clone()).await.unwrap();
    record.fail_sync_after(1);
    assert!(partial.commit().await.is_err());
    let blob = partial.commit().await.unwrap();
    assert_eq!((syncs(&directory.blob(&sample)), blob.size()), (2, 2 * PIECE as u64));
}
