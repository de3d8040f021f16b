//! What is known of the content of a blob, so that what was changed on the disk is never given away.
//!
//! A piece is *known* once its bytes were seen to be right: they came that way from the writer, or were read and
//! hashed. From then on there is a checksum of each of its blocks in memory, and whatever is read is compared with
//! that: 8 bytes for 256 KiB, 32 MiB for a TiB of content. The checksum is XXH3, which is no defence against
//! somebody who means it, and need not be: who can write to the data directory can change the program as well. It costs a
//! twentieth of what SHA-256 does (`docs/storage.md` has the figures).

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use eagle_core::{Bitfield, Digest, Geometry, Metainfo, PieceCheck, PieceHash, PieceIndex};
use twox_hash::XxHash3_64;

use crate::ssi::{BlobReader, StorageError};

/// Longest block with one checksum, bytes: what a proxy reads at a time. Blocks never span pieces.
const BLOCK: u64 = 256 << 10;
/// Bytes that are compared on an async thread: about 0.1 ms.
const IN_PLACE: usize = 1 << 20;

/// What is known of the content of one blob.
#[derive(Debug)]
pub(super) struct Checks {
    geometry: Geometry,
    block: u64,
    state: Mutex<State>,
    /// Held by who proves a piece, so that many who want it wait and do not hash it as well.
    proving: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    known: Bitfield,
    /// One for each block; means something for those of known pieces.
    sums: Vec<u64>,
}

/// The checksums of one piece.
pub(super) type Sums = Vec<u64>;

impl Checks {
    /// Nothing is known.
    pub(super) fn new(geometry: Geometry) -> Self {
        let block = BLOCK.min(u64::from(geometry.piece_length()));
        let blocks = usize::try_from(geometry.size().div_ceil(block)).unwrap_or(usize::MAX);
        let state = State { known: Bitfield::new(geometry.pieces()), sums: vec![0; blocks] };
        Self { geometry, block, state: Mutex::new(state), proving: tokio::sync::Mutex::default() }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The checksums of a piece with these bytes.
    pub(super) fn sums(&self, piece: &[u8]) -> Sums {
        let block = usize::try_from(self.block).unwrap_or(usize::MAX);
        piece.chunks(block).map(XxHash3_64::oneshot).collect()
    }

    /// As [`Checks::sums`], on a blocking thread where that takes long.
    pub(super) async fn sums_later(self: &Arc<Self>, piece: Bytes) -> Option<Sums> {
        if piece.len() <= IN_PLACE {
            return Some(self.sums(&piece));
        }
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || this.sums(&piece)).await.ok()
    }

    /// A piece whose bytes are right has these checksums.
    pub(super) fn note(&self, piece: PieceIndex, sums: &[u64]) {
        let first = self.block_of(self.geometry.offset(piece));
        let mut state = self.state();
        if let Some(place) = state.sums.get_mut(first..first + sums.len()) {
            place.copy_from_slice(sums);
            state.known.insert(piece);
        }
    }

    /// A piece is about to change, or was found to be wrong.
    pub(super) fn forget(&self, piece: PieceIndex) {
        self.state().known.remove(piece);
    }

    /// The first piece in a range of bytes of which nothing is known.
    pub(super) fn unknown(&self, range: &Range<u64>) -> Option<PieceIndex> {
        let first = self.geometry.piece_at(range.start)?;
        let last = self.geometry.piece_at(range.end.checked_sub(1)?)?;
        self.state().known.first_missing(first.0).filter(|piece| *piece <= last)
    }

    fn knows(&self, piece: PieceIndex) -> bool {
        self.state().known.contains(piece)
    }

    fn block_of(&self, offset: u64) -> usize {
        usize::try_from(offset / self.block).unwrap_or(usize::MAX)
    }

    /// The whole blocks around a range of known pieces.
    fn around(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start / self.block * self.block;
        start..range.end.next_multiple_of(self.block).min(self.geometry.size())
    }

    /// Compares whole blocks with their checksums; the first piece that differs is forgotten.
    fn compare(&self, start: u64, bytes: &[u8]) -> Result<(), PieceIndex> {
        let sums = self.sums(bytes);
        let first = self.block_of(start);
        let mut state = self.state();
        for (index, sum) in (first..).zip(&sums) {
            let piece = self.geometry.piece_at(index as u64 * self.block).unwrap_or(PieceIndex(0));
            if state.sums.get(index) != Some(sum) || !state.known.contains(piece) {
                state.known.remove(piece);
                return Err(piece);
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole between operations: a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of a range that lies in known pieces, after comparing them.
pub(super) async fn read(
    checks: &Arc<Checks>,
    reader: &dyn BlobReader,
    digest: Digest,
    range: Range<u64>,
) -> Result<Bytes, StorageError> {
    let around = checks.around(&range);
    let bytes = reader.read_at(around.start, length(&around)).await?;
    let compared = if bytes.len() <= IN_PLACE {
        checks.compare(around.start, &bytes)
    } else {
        let (checks, bytes) = (Arc::clone(checks), bytes.clone());
        let compared = tokio::task::spawn_blocking(move || checks.compare(around.start, &bytes));
        compared.await.map_err(|_| StorageError::Stopped)?
    };
    compared.map_err(|piece| StorageError::Changed { digest, piece })?;
    let skip = usize::try_from(range.start - around.start).unwrap_or(usize::MAX);
    Ok(part(bytes, skip..skip + length(&range)))
}

/// A part of a block. A small one is copied: who keeps it for a reader that takes nothing would keep the whole block.
fn part(bytes: Bytes, range: Range<usize>) -> Bytes {
    match range.len() {
        all if all == bytes.len() => bytes,
        small if small <= bytes.len() / 2 => Bytes::copy_from_slice(&bytes[range]),
        _ => bytes.slice(range),
    }
}

/// Hashes what is not known of a range of a complete blob, a piece at a time, or all of the blob where the hashes of
/// its pieces are not known; gives them in that case.
pub(super) async fn prove(
    checks: &Arc<Checks>,
    reader: &dyn BlobReader,
    digest: Digest,
    metainfo: Option<&Metainfo>,
    range: Range<u64>,
) -> Result<Option<Metainfo>, StorageError> {
    while let Some(piece) = checks.unknown(&range) {
        let _one = checks.proving.lock().await;
        if checks.knows(piece) {
            continue;
        }
        match metainfo.and_then(|metainfo| metainfo.check(piece)) {
            Some(check) => prove_piece(checks, reader, digest, (piece, check)).await?,
            None => return prove_all(checks, reader, digest).await.map(Some),
        }
    }
    Ok(None)
}

/// Reads one piece and hashes it, whatever was known of it.
async fn prove_piece(
    checks: &Arc<Checks>,
    reader: &dyn BlobReader,
    digest: Digest,
    (piece, check): (PieceIndex, PieceCheck),
) -> Result<(), StorageError> {
    let bytes = reader.read_at(checks.geometry.offset(piece), checks.geometry.length(piece) as usize).await?;
    prove_bytes(checks, digest, (piece, check), bytes).await
}

/// Hashes one piece that was read, whatever was known of it.
pub(super) async fn prove_bytes(
    checks: &Arc<Checks>,
    digest: Digest,
    (piece, check): (PieceIndex, PieceCheck),
    bytes: Bytes,
) -> Result<(), StorageError> {
    let this = Arc::clone(checks);
    let proven = tokio::task::spawn_blocking(move || {
        let right = check.matches(&bytes);
        if right {
            this.note(piece, &this.sums(&bytes));
        } else {
            this.forget(piece);
        }
        right
    });
    match proven.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(StorageError::Changed { digest, piece }),
        Err(_) => Err(StorageError::Stopped),
    }
}

async fn prove_all(checks: &Arc<Checks>, reader: &dyn BlobReader, digest: Digest) -> Result<Metainfo, StorageError> {
    let geometry = checks.geometry;
    let mut last = PieceHash::start(digest.algorithm());
    let (mut hashes, mut sums) = (Vec::new(), Vec::new());
    for piece in geometry.all() {
        let bytes = reader.read_at(geometry.offset(piece), geometry.length(piece) as usize).await?;
        let (hash, of_piece) = hash_on(checks, piece, last, bytes).await?;
        last = hash;
        hashes.push(hash);
        sums.push(of_piece);
    }
    let metainfo = Metainfo { digest, geometry, hashes };
    if !metainfo.leads_to_digest() {
        return Err(StorageError::Changed { digest, piece: PieceIndex(0) });
    }
    for (piece, sums) in geometry.all().zip(&sums) {
        checks.note(piece, sums);
    }
    Ok(metainfo)
}

/// The hash of a piece from that of the piece before it, and its checksums.
pub(super) async fn hash_on(
    checks: &Arc<Checks>,
    piece: PieceIndex,
    before: PieceHash,
    bytes: Bytes,
) -> Result<(PieceHash, Sums), StorageError> {
    let this = Arc::clone(checks);
    let hashed = tokio::task::spawn_blocking(move || (before.then(&this.geometry, piece, &bytes), this.sums(&bytes)));
    hashed.await.map_err(|_| StorageError::Stopped)
}

fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_part_does_not_keep_the_whole_block() {
        let block = Bytes::from(vec![7; 1024]);
        assert_eq!(part(block.clone(), 0..1024).as_ptr(), block.as_ptr());
        assert_eq!(part(block.clone(), 100..1000).as_ptr(), block.slice(100..).as_ptr());
        let small = part(block.clone(), 512..1024);
        assert_eq!(small, block.slice(512..));
        assert!(small.is_unique() && !block.as_ptr_range().contains(&small.as_ptr()));
    }
}
