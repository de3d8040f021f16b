//! How a blob is cut into pieces.

use std::{fmt, ops::Range};

use serde::{Deserialize, Serialize};

/// Smallest piece length, bytes: below this, per-piece messages cost more than they bring.
pub const MIN_PIECE_LENGTH: u32 = 64 << 10;
/// Largest piece length, bytes: one piece is buffered in memory while it arrives.
pub const MAX_PIECE_LENGTH: u32 = 16 << 20;
/// Largest number of pieces of one blob: a bitfield of this size still fits a control message.
pub const MAX_PIECES: u32 = 1 << 18;
/// Largest blob, bytes: the two limits above multiplied (4 TiB).
pub const MAX_BLOB_SIZE: u64 = MAX_PIECE_LENGTH as u64 * MAX_PIECES as u64;

/// Number of a piece within its blob, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PieceIndex(pub u32);

impl fmt::Display for PieceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Size of a blob and of its pieces; checked when made, so its arithmetic cannot overflow.
///
/// An empty blob has no pieces. The last piece may be shorter than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawGeometry", into = "RawGeometry")]
pub struct Geometry {
    size: u64,
    piece_length: u32,
}

#[derive(Serialize, Deserialize)]
struct RawGeometry {
    size: u64,
    piece_length: u32,
}

/// Why a size and a piece length do not make a geometry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The piece length is out of bounds or not a power of two.
    #[error("piece length {0} is not a power of two from {MIN_PIECE_LENGTH} to {MAX_PIECE_LENGTH} bytes")]
    PieceLength(u32),
    /// The blob would have too many pieces.
    #[error("a blob of {size} bytes in pieces of {piece_length} has more than {MAX_PIECES} pieces")]
    TooManyPieces {
        /// Size of the blob, bytes.
        size: u64,
        /// Piece length, bytes.
        piece_length: u32,
    },
}

impl TryFrom<RawGeometry> for Geometry {
    type Error = GeometryError;

    fn try_from(raw: RawGeometry) -> Result<Self, Self::Error> {
        Self::new(raw.size, raw.piece_length)
    }
}

impl From<Geometry> for RawGeometry {
    fn from(geometry: Geometry) -> Self {
        Self { size: geometry.size, piece_length: geometry.piece_length }
    }
}

impl Geometry {
    /// A blob of `size` bytes cut into pieces of `piece_length` bytes.
    ///
    /// # Errors
    /// When the piece length is not a power of two within the bounds of this module, or there would
    /// be more than [`MAX_PIECES`] pieces.
    pub fn new(size: u64, piece_length: u32) -> Result<Self, GeometryError> {
        if !piece_length.is_power_of_two() || !(MIN_PIECE_LENGTH..=MAX_PIECE_LENGTH).contains(&piece_length) {
            return Err(GeometryError::PieceLength(piece_length));
        }
        if size.div_ceil(u64::from(piece_length)) > u64::from(MAX_PIECES) {
            return Err(GeometryError::TooManyPieces { size, piece_length });
        }
        Ok(Self { size, piece_length })
    }

    /// The geometry that Eagle chooses for a blob: pieces of about 1/512 of it.
    ///
    /// A swarm pays one piece's time per doubling of its size (Mundinger, Weber and Weiss), which
    /// asks for small pieces; each piece costs a request, a message to every neighbour and a hash,
    /// which asks for large ones. 256 to 1,024 pieces lose about 1 % to either
    /// (`docs/benchmarks.md`). From 256 KiB up to 2 MiB, larger only where [`MAX_PIECES`] asks: with 2 MiB
    /// instead of 4, 2,600 simulated nodes had two layers of 3 GB in all 0.4 s sooner.
    ///
    /// # Errors
    /// When the blob is larger than [`MAX_BLOB_SIZE`].
    pub fn auto(size: u64) -> Result<Self, GeometryError> {
        let wanted = (size / 512).clamp(256 << 10, 2 << 20);
        let least = size.div_ceil(u64::from(MAX_PIECES));
        let length = wanted.max(least).next_power_of_two().min(u64::from(MAX_PIECE_LENGTH));
        Self::new(size, u32::try_from(length).unwrap_or(MAX_PIECE_LENGTH))
    }

    /// Size of the blob, bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Length of every piece but the last, bytes.
    pub const fn piece_length(&self) -> u32 {
        self.piece_length
    }

    /// Number of pieces.
    pub const fn pieces(&self) -> u32 {
        // `new` has bounded the quotient by `MAX_PIECES`.
        #[expect(clippy::cast_possible_truncation)]
        let pieces = self.size.div_ceil(self.piece_length as u64) as u32;
        pieces
    }

    /// The piece with this number, when the blob has one.
    pub fn piece(&self, index: u32) -> Option<PieceIndex> {
        (index < self.pieces()).then_some(PieceIndex(index))
    }

    /// All pieces in order.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = PieceIndex> + use<> {
        (0..self.pieces()).map(PieceIndex)
    }

    /// Where a piece begins, bytes from the start of the blob.
    pub const fn offset(&self, piece: PieceIndex) -> u64 {
        piece.0 as u64 * self.piece_length as u64
    }

    /// Length of a piece, bytes; 0 for one past the end.
    pub fn length(&self, piece: PieceIndex) -> u32 {
        let left = self.size.saturating_sub(self.offset(piece));
        u32::try_from(left).unwrap_or(u32::MAX).min(self.piece_length)
    }

    /// The bytes of a piece.
    pub fn range(&self, piece: PieceIndex) -> Range<u64> {
        let start = self.offset(piece).min(self.size);
        start..start + u64::from(self.length(piece))
    }

    /// The piece that holds the byte at `offset`; `None` past the end.
    pub fn piece_at(&self, offset: u64) -> Option<PieceIndex> {
        if offset >= self.size {
            return None;
        }
        u32::try_from(offset / u64::from(self.piece_length)).ok().map(PieceIndex)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_blob_has_no_pieces() {
        let geometry = Geometry::auto(0).unwrap();
        assert_eq!(geometry.pieces(), 0);
        assert_eq!(geometry.piece_at(0), None);
    }

    #[test]
    fn refuses_bad_lengths() {
        for length in [0, 1, 3 << 16, MIN_PIECE_LENGTH / 2, MAX_PIECE_LENGTH * 2] {
            assert!(Geometry::new(1, length).is_err(), "{length}");
        }
        assert!(Geometry::auto(MAX_BLOB_SIZE).is_ok());
        assert!(Geometry::auto(MAX_BLOB_SIZE + 1).is_err());
        assert!(Geometry::auto(u64::MAX).is_err());
    }

    proptest! {
        #[test]
        fn pieces_tile_the_blob(size in 0u64..=(1 << 40)) {
            let geometry = Geometry::auto(size).unwrap();
            let mut end = 0;
            // The middle is regular; the ends are where mistakes are made.
            let pieces = geometry.pieces();
            for piece in geometry.all().filter(|p| p.0 < 3 || p.0 + 3 > pieces) {
                if piece.0 < 3 || piece.0 + 2 > pieces {
                    let range = geometry.range(piece);
                    if piece.0 < 3 { prop_assert_eq!(range.start, end); }
                    prop_assert!(!range.is_empty());
                    prop_assert_eq!(geometry.piece_at(range.start), Some(piece));
                    prop_assert_eq!(geometry.piece_at(range.end - 1), Some(piece));
                }
                end = geometry.range(piece).end;
            }
            prop_assert_eq!(end, size);
            prop_assert_eq!(geometry.piece_at(size), None);
        }
    }
}
