//! The seeder storage interface: what a place to keep blobs has to offer.
//!
//! A blob is in one of three states: absent, *partial* (created, some pieces written) or *complete*.
//! [`BlobStorage::create`] makes it partial, [`PartialBlob::commit`] complete, and
//! [`BlobStorage::remove`] absent. Nothing else moves it, and a crash at any instant leaves one of
//! the three. The storage never hashes: who commits a blob has checked its digest, and who resumes
//! a partial one can check the recovered pieces.

use std::{fmt::Debug, fs::File, ops::Range, sync::Arc, time::SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::{Bitfield, Digest, Geometry, Metainfo, PieceIndex};

pub use crate::{
    cache::ScrubPlace,
    error::StorageError,
    lease::{Claim, Claimant, Holder, Lease},
};

/// Read access to the bytes of one blob. It stays valid when the blob is removed meanwhile, except on a
/// storage that [is shared](BlobStorage::is_shared), where a read then fails.
#[async_trait]
pub trait BlobReader: Debug + Send + Sync {
    /// Size of the whole blob, bytes.
    fn size(&self) -> u64;

    /// Exactly `length` bytes from `offset` on.
    ///
    /// # Errors
    /// When the range does not lie within the blob, when a piece in it was not written yet, or when
    /// the storage fails.
    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError>;

    /// As [`BlobReader::read_at`], for who reads much that nobody needs soon: what is not in memory already should not stay there.
    ///
    /// # Errors
    /// As [`BlobReader::read_at`].
    async fn read_aside(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        self.read_at(offset, length).await
    }

    /// Makes sure that the bytes of a range are still those that were stored, for who takes them from
    /// [`BlobReader::file`]. A storage that leaves such checks to others does nothing.
    ///
    /// # Errors
    /// [`StorageError::Changed`] when they are not, and when they cannot be read.
    async fn check(&self, _offset: u64, _length: usize) -> Result<(), StorageError> {
        Ok(())
    }

    /// The file whose bytes from 0 to [`BlobReader::size`] are the blob, where there is one, for
    /// `sendfile`. In that of a partial blob only the pieces written are meaningful. Keep the reader
    /// as long as the file: it is what holds the blob in a cache.
    fn file(&self) -> Option<Arc<File>> {
        None
    }
}

/// A blob that is being written. Reads find the pieces written so far.
///
/// Dropping it without [`PartialBlob::commit`] keeps the pieces for a later
/// [`BlobStorage::create`] of the same blob.
#[async_trait]
pub trait PartialBlob: BlobReader {
    /// The blob.
    fn digest(&self) -> Digest;

    /// Its size and piece length.
    fn geometry(&self) -> Geometry;

    /// Pieces that were there when this was created, from an earlier process or writer. Their bytes
    /// were written and, on a storage that outlives the process, durable; checking their hashes is
    /// left to the caller.
    fn recovered(&self) -> Bitfield;

    /// Writes one piece; pieces may come in any order, at the same time, and more than once.
    ///
    /// # Errors
    /// When there is no such piece or `bytes` has not exactly its length, when the storage is full
    /// ([`StorageError::OutOfSpace`]) or fails, or when the blob was removed or committed meanwhile;
    /// [`StorageError::Unsynced`] when pieces written before could not be made durable.
    async fn write_piece(&self, piece: PieceIndex, bytes: Bytes) -> Result<(), StorageError>;

    /// Makes the blob complete, durably and at once. The caller has checked its digest. A second
    /// call gives the same reader.
    ///
    /// # Errors
    /// When pieces are missing, when the blob was removed meanwhile, or when the storage fails; the
    /// blob is then still partial. The commit can be tried again, but for one that could not make the
    /// bytes durable: every later one gives [`StorageError::Unsynced`].
    async fn commit(&self) -> Result<Arc<dyn BlobReader>, StorageError>;
}

/// A blob found in a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlob {
    /// The blob.
    pub digest: Digest,
    /// Its whole size, bytes, also when it is partial.
    pub size: u64,
    /// Whether it is complete.
    pub complete: bool,
    /// About when it was last used.
    pub last_used: SystemTime,
}

/// Space on the file system of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceOnDisk {
    /// Its size, bytes.
    pub total: u64,
    /// What may still be written, bytes.
    pub available: u64,
}

/// A place to keep blobs and their metainfo.
///
/// What has a body here is right for a storage that one process has for itself.
#[async_trait]
pub trait BlobStorage: Debug + Send + Sync + 'static {
    /// Begins a blob, or takes up a partial one where it was left. A partial blob of another
    /// geometry is thrown away.
    ///
    /// # Errors
    /// When the blob is complete ([`StorageError::AlreadyComplete`]) or being written
    /// ([`StorageError::InUse`]), or when the storage fails.
    async fn create(&self, digest: Digest, geometry: Geometry) -> Result<Arc<dyn PartialBlob>, StorageError>;

    /// A complete blob; `None` when it is absent or partial.
    ///
    /// # Errors
    /// When the storage fails.
    async fn open(&self, digest: Digest) -> Result<Option<Arc<dyn BlobReader>>, StorageError>;

    /// Keeps metainfo, in place of any older one of the same blob. Metainfo of a blob that is not
    /// there may be forgotten when the storage is opened the next time.
    ///
    /// # Errors
    /// When it has more hashes than pieces, or when the storage is full or fails.
    async fn put_metainfo(&self, metainfo: &Metainfo) -> Result<(), StorageError>;

    /// The metainfo kept for a blob; `None` when there is none or it is damaged.
    ///
    /// # Errors
    /// When the storage fails. A shared storage also says that way which object is damaged.
    async fn metainfo(&self, digest: Digest) -> Result<Option<Metainfo>, StorageError>;

    /// Removes a blob, complete or partial, and its metainfo. It is no error when it is absent. A
    /// writer of the blob gets [`StorageError::Removed`] from then on; readers stay valid, and the
    /// space is free when they are gone.
    ///
    /// # Errors
    /// When the storage fails; the blob may then be partly removed, and is not complete any more.
    async fn remove(&self, digest: Digest) -> Result<(), StorageError>;

    /// Every complete and partial blob, in no order. Looks at names and sizes, not at contents.
    ///
    /// # Errors
    /// When the storage fails.
    async fn list(&self) -> Result<Vec<StoredBlob>, StorageError>;

    /// Notes that a complete blob is used now, for [`StoredBlob::last_used`]. Returns at once; a
    /// storage may keep it with a delay, or not at all.
    fn touch(&self, _digest: Digest) {}

    /// Where the scrub of this storage was; `None` at the beginning, or when that is not known.
    async fn scrub_place(&self) -> Option<ScrubPlace> {
        None
    }

    /// Keeps where the scrub is, as well as may be: it is harmless to read something twice.
    async fn keep_scrub_place(&self, _place: Option<ScrubPlace>) {}

    /// Space on the file system that the blobs are on; `None` where there is no such thing.
    ///
    /// # Errors
    /// When the storage fails.
    async fn space(&self) -> Result<Option<SpaceOnDisk>, StorageError> {
        Ok(None)
    }

    /// Whether other processes use the same blobs at the same time. Then a blob may go while it is
    /// read, and the time of its last use is that of its storing.
    fn is_shared(&self) -> bool {
        false
    }

    /// Stores a blob that is at hand as a whole, together with its metainfo. The caller has checked
    /// its digest. Nothing is done when it is complete here already.
    ///
    /// # Errors
    /// When the metainfo is not whole or not that of this content, or when the storage is full or
    /// fails; the blob is not complete then.
    async fn put(&self, blob: &dyn BlobReader, metainfo: &Metainfo) -> Result<(), StorageError> {
        check_whole(blob, metainfo)?;
        let partial = match self.create(metainfo.digest, metainfo.geometry).await {
            Err(StorageError::AlreadyComplete { .. }) => return Ok(()),
            created => created?,
        };
        for piece in metainfo.geometry.all() {
            let length = usize::try_from(metainfo.geometry.length(piece)).unwrap_or(usize::MAX);
            let bytes = blob.read_at(metainfo.geometry.offset(piece), length).await?;
            partial.write_piece(piece, bytes).await?;
        }
        self.put_metainfo(metainfo).await?;
        partial.commit().await.map(drop)
    }

    /// Asks to be the one who fetches a blob for this storage. Answers at once; who was told of a holder asks again
    /// after a while, as the same claimant.
    ///
    /// # Errors
    /// When the storage fails. Fetching is still allowed; two may then do it.
    async fn claim(&self, _digest: Digest, _claimant: &mut Claimant) -> Result<Claim, StorageError> {
        Ok(Claim::Granted(Lease::alone()))
    }

    /// Ends what runs in the background, for an orderly end of the process. Takes a few seconds at most.
    async fn settle(&self) {}
}

/// Refuses a piece that the blob has not, or of the wrong length.
///
/// # Errors
/// [`StorageError::NoSuchPiece`] and [`StorageError::PieceLength`].
pub fn check_piece(digest: Digest, geometry: Geometry, piece: PieceIndex, actual: usize) -> Result<(), StorageError> {
    if geometry.piece(piece.0).is_none() {
        return Err(StorageError::NoSuchPiece { digest, piece, pieces: geometry.pieces() });
    }
    let expected = geometry.length(piece);
    if usize::try_from(expected) != Ok(actual) {
        return Err(StorageError::PieceLength { digest, piece, expected, actual });
    }
    Ok(())
}

/// The range of a read, when it lies within the blob.
///
/// # Errors
/// [`StorageError::OutOfRange`].
pub fn check_range(digest: Digest, size: u64, offset: u64, length: usize) -> Result<Range<u64>, StorageError> {
    let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
    match end {
        Some(end) if end <= size => Ok(offset..end),
        _ => Err(StorageError::OutOfRange { digest, offset, length, size }),
    }
}

/// Refuses metainfo that does not say of every byte of a blob what it has to be.
pub(crate) fn check_whole(blob: &dyn BlobReader, metainfo: &Metainfo) -> Result<(), StorageError> {
    let refused = |reason| Err(StorageError::Metainfo { digest: metainfo.digest, reason });
    if metainfo.geometry.size() != blob.size() {
        return refused("the blob has another size");
    }
    if !metainfo.leads_to_digest() {
        return refused("its hashes do not lead to the digest");
    }
    Ok(())
}

/// Refuses metainfo with more hashes than pieces.
///
/// # Errors
/// [`StorageError::Metainfo`].
pub fn check_metainfo(metainfo: &Metainfo) -> Result<(), StorageError> {
    if metainfo.hashes.len() > metainfo.geometry.pieces() as usize {
        return Err(StorageError::Metainfo { digest: metainfo.digest, reason: "it has more hashes than pieces" });
    }
    Ok(())
}
