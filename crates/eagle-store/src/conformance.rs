//! What every storage backend has to do, as one suite that each of them runs.
//!
//! Panics with the name of the rule that is broken.
#![expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test suite; its panics are its verdicts")]

use std::{sync::Arc, time::SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::{Digest, Geometry, Metainfo, PieceIndex, digest::Algorithm, geometry::MIN_PIECE_LENGTH};

use crate::{
    memory::MemoryStorage,
    ssi::{BlobReader, BlobStorage, Claim, Claimant, StorageError},
};

/// An empty place to keep blobs, which can be opened several times, one after the other.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// Opens the place; whatever was opened before has been dropped.
    async fn open(&self) -> Arc<dyn BlobStorage>;
}

/// A blob to test with.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Its digest.
    pub digest: Digest,
    /// Its geometry, in pieces of the smallest length.
    pub geometry: Geometry,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Sample {
    /// `size` bytes that differ from piece to piece and from seed to seed.
    pub fn new(size: usize, seed: u8) -> Self {
        let bytes: Vec<u8> = (0..size).map(|i| u8::try_from((i + (i >> 16)) % 251).unwrap() ^ seed).collect();
        let geometry = Geometry::new(size as u64, MIN_PIECE_LENGTH).unwrap();
        Self { digest: Digest::of(&bytes), geometry, bytes: bytes.into() }
    }

    /// The bytes of one piece.
    pub fn piece(&self, piece: PieceIndex) -> Bytes {
        let range = self.geometry.range(piece);
        self.bytes.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
    }

    /// Whole metainfo.
    pub fn metainfo(&self) -> Metainfo {
        Metainfo::of(Algorithm::Sha256, self.geometry, &self.bytes)
    }
}

const PIECE: usize = MIN_PIECE_LENGTH as usize;

/// Runs every rule on a fresh fixture each.
pub async fn run(fixture: impl Fn() -> Box<dyn Fixture>) {
    for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 17] {
        stores_a_blob_of_any_size(&*fixture(), size).await;
    }
    takes_pieces_in_any_order(&*fixture()).await;
    refuses_bad_pieces_and_ranges(&*fixture()).await;
    refuses_to_commit_holes(&*fixture()).await;
    shows_nothing_incomplete(&*fixture()).await;
    resumes_what_was_written(&*fixture()).await;
    starts_over_with_another_geometry(&*fixture()).await;
    has_one_writer(&*fixture()).await;
    stops_a_writer_of_a_removed_blob(&*fixture()).await;
    lets_readers_outlive_the_blob(&*fixture()).await;
    keeps_metainfo(&*fixture()).await;
    removes_everything_and_again(&*fixture()).await;
    remembers_the_order_of_use(&*fixture()).await;
    writes_at_the_same_time(&*fixture()).await;
    puts_whole_blobs(&*fixture()).await;
    grants_claims(&*fixture()).await;
}

/// Stores a sample as complete.
pub async fn store(storage: &dyn BlobStorage, sample: &Sample) -> Arc<dyn BlobReader> {
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    for piece in sample.geometry.all() {
        partial.write_piece(piece, sample.piece(piece)).await.unwrap();
    }
    partial.commit().await.unwrap()
}

async fn assert_content(reader: &dyn BlobReader, sample: &Sample) {
    assert_eq!(reader.size(), sample.geometry.size());
    let all = reader.read_at(0, sample.bytes.len()).await.unwrap();
    assert_eq!(Digest::of(&all), sample.digest, "content differs");
    if let Some(file) = reader.file() {
        assert_eq!(file.metadata().unwrap().len(), reader.size());
    }
}

async fn stores_a_blob_of_any_size(fixture: &dyn Fixture, size: usize) {
    let storage = fixture.open().await;
    let sample = Sample::new(size, 1);
    assert!(storage.open(sample.digest).await.unwrap().is_none());
    let before = SystemTime::now() - std::time::Duration::from_secs(5);
    assert_content(&*store(&*storage, &sample).await, &sample).await;
    for _ in 0..2 {
        let reader = storage.open(sample.digest).await.unwrap().unwrap();
        assert_content(&*reader, &sample).await;
        if size > 10 {
            assert_eq!(reader.read_at(3, 7).await.unwrap(), sample.bytes.slice(3..10));
            assert_eq!(reader.read_at(size as u64 - 2, 2).await.unwrap(), sample.bytes.slice(size - 2..));
        }
        assert_eq!(reader.read_at(size as u64, 0).await.unwrap(), Bytes::new());
        let listed = storage.list().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].digest, listed[0].size, listed[0].complete), (sample.digest, size as u64, true));
        assert!(listed[0].last_used >= before);
    }
    drop(storage);
    let storage = fixture.open().await;
    assert_content(&*storage.open(sample.digest).await.unwrap().unwrap(), &sample).await;
}

async fn takes_pieces_in_any_order(fixture: &dyn Fixture) {
    let storage = fixture.open().await;
    let sample = Sample::new(4 * PIECE + 3, 2);
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    for piece in sample.geometry.all().rev() {
        partial.write_piece(piece, sample.piece(piece)).await.unwrap();
        let start = sample.geometry.offset(piece);
        let length = sample.geometry.length(piece) as usize;
        assert_eq!(partial.read_at(start, length).await.unwrap(), sample.piece(piece), "a piece is there at once");
    }
    // A piece may be written twice; the last one counts.
    partial.write_piece(PieceIndex(0), Bytes::from(vec![0; PIECE])).await.unwrap();
    partial.write_piece(PieceIndex(0), sample.piece(PieceIndex(0))).await.unwrap();
    assert_content(&*partial.commit().await.unwrap(), &sample).await;
    assert_content(&*partial.commit().await.unwrap(), &sample).await;
    let late = partial.write_piece(PieceIndex(0), sample.piece(PieceIndex(0))).await;
    assert!(matches!(late, Err(StorageError::AlreadyComplete { .. })), "{late:?}");
}

async fn refuses_bad_pieces_and_ranges(fixture: &dyn Fixture) {
    let storage = fixture.open().await;
    let sample = Sample::new(PIECE + 10, 3);
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    for length in [0, 1, PIECE - 1, PIECE + 1] {
        let error = partial.write_piece(PieceIndex(0), Bytes::from(vec![1; length])).await;
        assert!(matches!(error, Err(StorageError::PieceLength { .. })), "{length}: {error:?}");
    }
    let error = partial.write_piece(PieceIndex(1), Bytes::from(vec![1; PIECE])).await;
    assert!(matches!(error, Err(StorageError::PieceLength { .. })), "the last piece is shorter: {error:?}");
    let error = partial.write_piece(PieceIndex(2), Bytes::new()).await;
    assert!(matches!(error, Err(StorageError::NoSuchPiece { .. })), "{error:?}");
    let error = partial.read_at(0, 1).await;
    assert!(matches!(error, Err(StorageError::NotWritten { .. })), "holes cannot be read: {error:?}");
    drop(partial);
    let reader = store(&*storage, &sample).await;
    let size = reader.size();
    for (offset, length) in [(0, PIECE + 11), (size, 1), (size + 1, 0), (u64::MAX, 1), (1, usize::MAX)] {
        let error = reader.read_at(offset, length).await;
        assert!(matches!(error, Err(StorageError::OutOfRange { .. })), "{offset}+{length}: {error:?}");
    }
}

async fn refuses_to_commit_holes(fixture: &dyn Fixture) {
    let storage = fixture.open().await;
    let sample = Sample::new(2 * PIECE, 4);
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    partial.write_piece(PieceIndex(1), sample.piece(PieceIndex(1))).await.unwrap();
    let error = partial.commit().await;
    assert!(matches!(error, Err(StorageError::Incomplete { missing: 1, .. })), "{error:?}");
    partial.write_piece(PieceIndex(0), sample.piece(PieceIndex(0))).await.unwrap();
    assert_content(&*partial.commit().await.unwrap(), &sample).await;
}

async fn shows_nothing_incomplete(fixture: &dyn Fixture) {
    let sample = Sample::new(3 * PIECE, 5);
    let storage = fixture.open().await;
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    for piece in sample.geometry.all() {
        partial.write_piece(piece, sample.piece(piece)).await.unwrap();
        assert!(storage.open(sample.digest).await.unwrap().is_none());
        let listed = storage.list().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].size, listed[0].complete), (sample.geometry.size(), false));
    }
    drop((partial, storage));
    let storage = fixture.open().await;
    assert!(storage.open(sample.digest).await.unwrap().is_none(), "not committed, so not complete after a restart");
}

async fn resumes_what_was_written(fixture: &dyn Fixture) {
    let sample = Sample::new(6 * PIECE + 1, 6);
    let (first, last) = (PieceIndex(0), PieceIndex(6));
    let storage = fixture.open().await;
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    assert_eq!(partial.recovered().count(), 0);
    partial.write_piece(last, sample.piece(last)).await.unwrap();
    partial.write_piece(first, sample.piece(first)).await.unwrap();
    drop(partial);
    for _ in 0..2 {
        let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
        assert_eq!(partial.recovered().iter().collect::<Vec<_>>(), [first, last]);
        assert_eq!(partial.read_at(0, PIECE).await.unwrap(), sample.piece(first));
        drop(partial);
    }
    drop(storage);

    let storage = fixture.open().await;
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    for piece in partial.recovered().iter() {
        let (offset, length) = (sample.geometry.offset(piece), sample.geometry.length(piece) as usize);
        assert_eq!(partial.read_at(offset, length).await.unwrap(), sample.piece(piece), "recovered pieces are right");
    }
    let missing: Vec<_> = sample.geometry.all().filter(|piece| !partial.recovered().contains(*piece)).collect();
    for piece in missing {
        partial.write_piece(piece, sample.piece(piece)).await.unwrap();
    }
    // A recovered piece may turn out to be bad, and is then written again.
    partial.write_piece(last, sample.piece(last)).await.unwrap();
    assert_content(&*partial.commit().await.unwrap(), &sample).await;
}

async fn starts_over_with_another_geometry(fixture: &dyn Fixture) {
    let storage = fixture.open().await;
    let sample = Sample::new(4 * PIECE, 7);
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    for piece in sample.geometry.all() {
        partial.write_piece(piece, sample.piece(piece)).await.unwrap();
    }
    drop(partial);
    for other in [Geometry::new(4 * PIECE as u64, MIN_PIECE_LENGTH * 2), Geometry::new(PIECE as u64, MIN_PIECE_LENGTH)]
    {
        let other = other.unwrap();
        let partial = storage.create(sample.digest, other).await.unwrap();
        assert_eq!((partial.geometry(), partial.recovered().count()), (other, 0));
        let error = partial.read_at(0, 1).await;
        assert!(matches!(error, Err(StorageError::NotWritten { .. })), "{error:?}");
    }
}

async fn has_one_writer(fixture: &dyn Fixture) {
    let storage = fixture.open().await;
    let sample = Sample::new(PIECE, 8);
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    let error = storage.create(sample.digest, sample.geometry).await;
    assert!(matches!(error, Err(StorageError::InUse { .. })), "{error:?}");
    drop(partial);
    store(&*storage, &sample).await;
    let error = storage.create(sample.digest, sample.geometry).await;
    assert!(matches!(error, Err(StorageError::AlreadyComplete { .. })), "{error:?}");
}

async fn stops_a_writer_of_a_removed_blob(fixture: &dyn Fixture) {
    let storage = fixture.open().await;
    let sample = Sample::new(2 * PIECE, 9);
    let old = storage.create(sample.digest, sample.geometry).await.unwrap();
    old.write_piece(PieceIndex(0), Bytes::from(vec![0xff; PIECE])).await.unwrap();
    storage.remove(sample.digest).await.unwrap();
    assert!(storage.list().await.unwrap().is_empty());
    let new = storage.create(sample.digest, sample.geometry).await.unwrap();
    assert_eq!(new.recovered().count(), 0);
    let error = old.write_piece(PieceIndex(1), sample.piece(PieceIndex(1))).await;
    assert!(matches!(error, Err(StorageError::Removed { .. })), "{error:?}");
    let error = old.commit().await;
    assert!(matches!(error, Err(StorageError::Removed { .. })), "{error:?}");
    for piece in sample.geometry.all() {
        new.write_piece(piece, sample.piece(piece)).await.unwrap();
    }
    drop(old);
    assert_content(&*new.commit().await.unwrap(), &sample).await;
    assert_content(&*storage.open(sample.digest).await.unwrap().unwrap(), &sample).await;
}

async fn lets_readers_outlive_the_blob(fixture: &dyn Fixture) {
    let storage = fixture.open().await;
    let sample = Sample::new(3 * PIECE, 10);
    let reader = store(&*storage, &sample).await;
    storage.remove(sample.digest).await.unwrap();
    assert!(storage.open(sample.digest).await.unwrap().is_none());
    if storage.is_shared() {
        assert!(reader.read_at(0, 10).await.is_err(), "what is gone cannot be read, and nothing else is in its place");
    } else {
        assert_content(&*reader, &sample).await;
    }
    assert_content(&*store(&*storage, &sample).await, &sample).await;
}

async fn keeps_metainfo(fixture: &dyn Fixture) {
    let storage = fixture.open().await;
    let sample = Sample::new(3 * PIECE, 11);
    let whole = sample.metainfo();
    assert_eq!(storage.metainfo(sample.digest).await.unwrap(), None);
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    let mut part = whole.clone();
    part.hashes.truncate(1);
    for metainfo in [&part, &whole] {
        storage.put_metainfo(metainfo).await.unwrap();
        assert_eq!(storage.metainfo(sample.digest).await.unwrap().as_ref(), Some(metainfo));
    }
    let mut long = whole.clone();
    long.hashes.push(sample.digest.into());
    let error = storage.put_metainfo(&long).await;
    assert!(matches!(error, Err(StorageError::Metainfo { .. })), "{error:?}");
    drop(partial);
    store(&*storage, &sample).await;
    drop(storage);
    let storage = fixture.open().await;
    assert_eq!(storage.metainfo(sample.digest).await.unwrap(), Some(whole));
}

async fn removes_everything_and_again(fixture: &dyn Fixture) {
    let storage = fixture.open().await;
    let sample = Sample::new(PIECE, 12);
    let other = Sample::new(PIECE, 13);
    storage.remove(sample.digest).await.unwrap();
    store(&*storage, &sample).await;
    store(&*storage, &other).await;
    storage.put_metainfo(&sample.metainfo()).await.unwrap();
    for _ in 0..2 {
        storage.remove(sample.digest).await.unwrap();
        assert!(storage.open(sample.digest).await.unwrap().is_none());
        assert_eq!(storage.metainfo(sample.digest).await.unwrap(), None);
        assert_eq!(storage.list().await.unwrap().len(), 1);
    }
    assert_content(&*storage.open(other.digest).await.unwrap().unwrap(), &other).await;
}

async fn remembers_the_order_of_use(fixture: &dyn Fixture) {
    let storage = fixture.open().await;
    if storage.is_shared() {
        return;
    }
    let samples: Vec<_> = (20..24).map(|seed| Sample::new(10, seed)).collect();
    for sample in &samples {
        store(&*storage, sample).await;
    }
    storage.touch(samples[0].digest);
    storage.touch(samples[2].digest);
    drop(storage);
    let storage = fixture.open().await;
    let mut listed = storage.list().await.unwrap();
    listed.sort_by_key(|blob| blob.last_used);
    let order: Vec<_> = listed.iter().map(|blob| blob.digest).collect();
    assert_eq!(order, [1, 3, 0, 2].map(|i: usize| samples[i].digest), "the least recently used comes first");
}

async fn writes_at_the_same_time(fixture: &dyn Fixture) {
    let storage = fixture.open().await;
    let sample = Sample::new(40 * PIECE + 5, 14);
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for piece in sample.geometry.all() {
        let (partial, bytes) = (Arc::clone(&partial), sample.piece(piece));
        writers.spawn(async move { partial.write_piece(piece, bytes).await });
    }
    while let Some(written) = writers.join_next().await {
        written.unwrap().unwrap();
    }
    assert_content(&*partial.commit().await.unwrap(), &sample).await;
}

async fn puts_whole_blobs(fixture: &dyn Fixture) {
    let storage = fixture.open().await;
    let elsewhere = MemoryStorage::new();
    for size in [0, 1, 3 * PIECE + 7] {
        let sample = Sample::new(size, 15);
        let blob = store(&elsewhere, &sample).await;
        for _ in 0..2 {
            storage.put(&*blob, &sample.metainfo()).await.unwrap();
            assert_content(&*storage.open(sample.digest).await.unwrap().unwrap(), &sample).await;
            assert_eq!(storage.metainfo(sample.digest).await.unwrap(), Some(sample.metainfo()));
        }
    }
    // Taken up where a writer left it.
    let sample = Sample::new(2 * PIECE, 16);
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    partial.write_piece(PieceIndex(1), sample.piece(PieceIndex(1))).await.unwrap();
    drop(partial);
    let blob = store(&elsewhere, &sample).await;
    let mut short = sample.metainfo();
    short.hashes.pop();
    let mut wrong = sample.metainfo();
    wrong.hashes.swap(0, 1);
    let other = Sample::new(2 * PIECE + 1, 17).metainfo();
    for bad in [short, wrong, other] {
        let error = storage.put(&*blob, &bad).await;
        assert!(matches!(error, Err(StorageError::Metainfo { .. })), "{error:?}");
        assert!(storage.open(sample.digest).await.unwrap().is_none());
    }
    storage.put(&*blob, &sample.metainfo()).await.unwrap();
    drop(storage);
    let storage = fixture.open().await;
    assert_content(&*storage.open(sample.digest).await.unwrap().unwrap(), &sample).await;
    assert_eq!(storage.list().await.unwrap().iter().filter(|blob| blob.complete).count(), 4);
}

async fn grants_claims(fixture: &dyn Fixture) {
    let storage = fixture.open().await;
    let (sample, other) = (Sample::new(PIECE, 18), Sample::new(PIECE, 19));
    let mut claimant = Claimant::default();
    let Claim::Granted(lease) = storage.claim(sample.digest, &mut claimant).await.unwrap() else {
        panic!("nobody has stored it")
    };
    let leases = lease.is_exclusive();
    assert!(!leases || storage.is_shared(), "nobody else is there");
    let granted = storage.claim(other.digest, &mut Claimant::default()).await.unwrap();
    assert!(matches!(granted, Claim::Granted(_)), "each blob has its own");
    if leases {
        let url = "http://other:55008".to_owned();
        let held = storage.claim(sample.digest, &mut Claimant::new(Some(url))).await.unwrap();
        assert!(matches!(held, Claim::Held(_)), "{held:?}");
    }
    store(&*storage, &sample).await;
    drop(lease);
    assert_content(&*storage.open(sample.digest).await.unwrap().unwrap(), &sample).await;
    if leases {
        assert!(matches!(storage.claim(sample.digest, &mut claimant).await.unwrap(), Claim::Stored));
    }
    storage.settle().await;
}
