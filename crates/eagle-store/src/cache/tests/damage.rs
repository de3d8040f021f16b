//! Content that changes on the disk under a running process, or between two.

use std::{os::unix::fs::FileExt as _, path::Path};

use super::*;

fn open_file(root: &Path, blob: &Sample, name: &str) -> std::fs::File {
    let hex = blob.digest.hex();
    let path = root.join("blobs/sha256").join(&hex[..2]).join(&hex).join(name);
    std::fs::File::options().read(true).write(true).open(path).unwrap()
}

fn flip_in(file: &std::fs::File, offset: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

/// Flips a bit of a complete blob.
pub(super) fn flip(root: &Path, blob: &Sample, offset: u64) {
    flip_in(&open_file(root, blob, "data"), offset);
}

/// Cuts a complete blob short.
pub(super) fn truncate(root: &Path, blob: &Sample, size: u64) {
    open_file(root, blob, "data").set_len(size).unwrap();
}

struct Disk {
    directory: tempfile::TempDir,
    cache: Arc<Cache>,
}

impl Disk {
    async fn new() -> Self {
        let directory = tempfile::TempDir::new().unwrap();
        let cache = Self::open(directory.path()).await;
        Self { directory, cache }
    }

    async fn open(root: &Path) -> Arc<Cache> {
        Cache::open(Arc::new(FsStorage::open(root).await.unwrap()), 100 * PIECE).await.unwrap()
    }

    async fn restart(&mut self) {
        self.cache = memory(1).await;
        self.cache = Self::open(self.root()).await;
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }

    /// Waits until the blob, which was damaged, is no longer there, and stores it anew.
    async fn is_dropped_and_comes_back(&self, blob: &Sample) {
        self.cache.settle().await;
        assert!(self.cache.get(blob.digest).await.is_none() && !self.cache.contains(blob.digest));
        let again = put(&self.cache, blob).await;
        assert_eq!(content(&again).await, blob.digest);
    }
}

async fn part(blob: &CachedBlob, offset: u64, length: usize) -> Result<bytes::Bytes, StorageError> {
    blob.reader().read_at(offset, length).await
}

fn is_changed<T: std::fmt::Debug>(result: &Result<T, StorageError>, piece: u32) -> bool {
    matches!(result, Err(StorageError::Changed { piece: PieceIndex(found), .. }) if *found == piece)
}

#[tokio::test]
async fn a_bit_that_flips_under_a_running_process_is_found_by_the_next_read_of_it() {
    let disk = Disk::new().await;
    let blob = sample(20, 1);
    let held = put(&disk.cache, &blob).await;
    let mut evictions = disk.cache.evictions();
    flip(disk.root(), &blob, 5 * PIECE + 100);
    assert_eq!(part(&held, 0, 1000).await.unwrap(), blob.bytes.slice(..1000));
    assert_eq!(disk.cache.stats().damaged, 0);
    // Anywhere in the block with that bit, in a range of any form.
    for (offset, length) in [(5 * PIECE, 1), (4 * PIECE + 5, 100_000), (0, whole(&blob))] {
        let read = part(&held, offset, length).await;
        assert!(is_changed(&read, 5), "{offset}+{length}: {read:?}");
    }
    disk.cache.settle().await;
    assert_eq!((evictions.recv().await.unwrap(), disk.cache.stats().damaged), (blob.digest, 1));
    assert_eq!(part(&held, 6 * PIECE, 10).await.unwrap(), blob.bytes.slice(6 * 65536..6 * 65536 + 10));
    drop(held);
    disk.is_dropped_and_comes_back(&blob).await;
}

#[tokio::test]
async fn what_changed_while_no_process_looked_is_found_before_it_is_given_away() {
    let mut disk = Disk::new().await;
    let (first, second) = (sample(3, 1), sample(3, 2));
    put(&disk.cache, &first).await;
    put(&disk.cache, &second).await;
    disk.restart().await;
    flip(disk.root(), &first, 2 * PIECE);
    flip(disk.root(), &second, 2 * PIECE);
    let held = disk.cache.get(first.digest).await.unwrap();
    assert_eq!(part(&held, 0, 131_072).await.unwrap(), blob_bytes(&first, 2));
    assert!(is_changed(&part(&held, 3 * PIECE - 1, 1).await, 2));
    drop(held);
    disk.is_dropped_and_comes_back(&first).await;
    // For who sends from the file itself.
    let held = disk.cache.get(second.digest).await.unwrap();
    held.reader().check(0, 131_072).await.unwrap();
    assert!(is_changed(&held.reader().check(2 * PIECE, 1).await, 2));
    drop(held);
    disk.is_dropped_and_comes_back(&second).await;
    assert_eq!(disk.cache.stats().damaged, 2);
}

fn whole(blob: &Sample) -> usize {
    blob.bytes.len()
}

fn blob_bytes(blob: &Sample, pieces: usize) -> bytes::Bytes {
    blob.bytes.slice(..pieces * usize::try_from(PIECE).unwrap())
}

#[tokio::test]
async fn a_file_that_is_cut_or_removed_under_its_reader_is_dropped() {
    let disk = Disk::new().await;
    let (cut, gone) = (sample(3, 1), sample(3, 2));
    let (reader, other) = (put(&disk.cache, &cut).await, put(&disk.cache, &gone).await);
    truncate(disk.root(), &cut, PIECE);
    assert_eq!(part(&reader, 0, 10).await.unwrap(), cut.bytes.slice(..10));
    let read = part(&reader, 2 * PIECE, 10).await;
    assert!(matches!(read, Err(StorageError::Io { .. })), "{read:?}");
    drop(reader);
    disk.is_dropped_and_comes_back(&cut).await;
    let hex = gone.digest.hex();
    std::fs::remove_dir_all(disk.root().join("blobs/sha256").join(&hex[..2]).join(&hex)).unwrap();
    assert_eq!(content(&other).await, gone.digest, "who has it open still reads it");
    drop(other);
    disk.is_dropped_and_comes_back(&gone).await;
    assert_eq!(disk.cache.stats().damaged, 2);
}

#[tokio::test]
async fn hashes_that_are_lost_are_found_anew() {
    let mut disk = Disk::new().await;
    let (good, bad) = (sample(3, 1), sample(3, 2));
    put(&disk.cache, &good).await;
    put(&disk.cache, &bad).await;
    for blob in [&good, &bad] {
        flip_in(&open_file(disk.root(), blob, "metainfo"), 50);
    }
    flip(disk.root(), &bad, 2 * PIECE);
    disk.restart().await;
    let held = disk.cache.get(good.digest).await.unwrap();
    assert!(held.metainfo().is_none());
    assert_eq!(part(&held, PIECE, 10).await.unwrap(), good.bytes.slice(65536..65546));
    drop(held);
    let found = disk.cache.get(good.digest).await.unwrap().metainfo().unwrap();
    assert!(found.leads_to_digest());
    let held = disk.cache.get(bad.digest).await.unwrap();
    assert!(part(&held, 0, 10).await.is_err(), "the first bytes are right, but nothing says so");
    drop(held);
    disk.is_dropped_and_comes_back(&bad).await;
}

#[tokio::test]
async fn a_piece_that_changes_before_the_blob_is_whole_is_not_given_away() {
    let disk = Disk::new().await;
    let blob = sample(3, 1);
    let entry = disk.cache.create(blob.digest, blob.geometry).await.unwrap();
    write_all(&entry, &blob).await;
    flip_in(&open_file(disk.root(), &blob, "partial"), PIECE + 5);
    let reader = entry.reader();
    assert_eq!(reader.read_at(0, 65536).await.unwrap(), blob_bytes(&blob, 1));
    assert!(is_changed(&reader.read_at(PIECE + 1000, 10).await, 1));
    // Written anew it is right again, and so is the whole.
    entry.write_piece(PieceIndex(1), blob.piece(PieceIndex(1))).await.unwrap();
    assert_eq!(content(&entry.commit(Some(blob.metainfo())).await.unwrap()).await, blob.digest);
}

#[tokio::test]
async fn many_readers_of_a_blob_from_an_earlier_process_get_right_bytes() {
    let mut disk = Disk::new().await;
    let blob = sample(16, 1);
    put(&disk.cache, &blob).await;
    disk.restart().await;
    let mut readers = tokio::task::JoinSet::new();
    for first in 0..8u64 {
        let (cache, blob) = (Arc::clone(&disk.cache), blob.clone());
        readers.spawn(async move {
            let held = cache.get(blob.digest).await.unwrap();
            for at in (first * 10_000..16 * PIECE - 200_000).step_by(150_000) {
                let start = usize::try_from(at).unwrap();
                assert_eq!(part(&held, at, 200_000).await.unwrap(), blob.bytes.slice(start..start + 200_000));
            }
        });
    }
    while let Some(read) = readers.join_next().await {
        read.unwrap();
    }
    assert_eq!(disk.cache.stats().damaged, 0);
}
