//! Hashes of pieces, chained so that all of them together prove the blob's own digest.
//!
//! SHA-2 works through a message block by block: from a start value the compression function makes
//! one chaining value after the other, and the last one, taken over the padding with the message's
//! length, is the hash (FIPS 180-4, sections 5.1 and 6). The hash of a piece is the chaining value
//! *behind* it, of the blob's own hash function; behind the last piece that is the blob's digest.
//!
//! - A piece is checked alone and in any order: from the hash of the piece before it, its bytes must
//!   lead to its own hash. Whoever finds other bytes that do has found two blobs of the same digest.
//! - When every piece was checked and the last hash is the digest, the whole blob has been checked
//!   against its digest. Nothing has to be hashed a second time, which would be 0.6 CPU s/GB.
//!
//! Pieces are whole numbers of blocks, as their lengths are powers of two of at least 64 KiB.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::block_api::{compress256, compress512};

use crate::{
    digest::{Algorithm, Digest},
    geometry::{Geometry, PieceIndex},
};

/// Start values of SHA-256 (FIPS 180-4, section 5.3.3).
const START_256: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
/// Start values of SHA-512 (FIPS 180-4, section 5.3.5).
const START_512: [u64; 8] = [
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b,
    0x5be0_cd19_137e_2179,
];

/// The chaining value of the blob's hash function behind a piece; see the module's documentation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PieceHash(Digest);

impl PieceHash {
    /// What the first piece is hashed from: the start value of the hash function.
    pub fn start(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => Digest::Sha256(bytes_256(&START_256)),
            Algorithm::Sha512 => Digest::Sha512(bytes_512(&START_512)),
        })
    }

    /// The hash of `piece`, whose bytes are given, when `self` is the hash of the piece before it (or
    /// [`PieceHash::start`] for the first). Of the last piece it is the digest of the blob.
    ///
    /// Bytes of another length than the piece's give some hash that is not that of the piece.
    #[must_use]
    pub fn then(&self, geometry: &Geometry, piece: PieceIndex, bytes: &[u8]) -> Self {
        let size = (piece.0 + 1 == geometry.pieces()).then(|| geometry.size());
        match self.0 {
            Digest::Sha256(state) => Self(Digest::Sha256(advance_256(&state, bytes, size))),
            Digest::Sha512(state) => Self(Digest::Sha512(advance_512(&state, bytes, size))),
        }
    }

    /// The digest that this is, if the piece was the last one.
    pub fn as_digest(&self) -> Digest {
        self.0
    }

    /// A hash from its raw bytes, of which there are as many as in a digest.
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        Digest::from_bytes(algorithm, bytes).map(Self)
    }
}

impl From<Digest> for PieceHash {
    /// The hash of the last piece of the blob with this digest.
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

impl fmt::Debug for PieceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Raw bytes, whose number tells the algorithm: 33 or 65 bytes in a metainfo frame.
impl Serialize for PieceHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.as_bytes())
    }
}

impl<'de> Deserialize<'de> for PieceHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl de::Visitor<'_> for Bytes {
            type Value = PieceHash;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a hash of 32 or 64 bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<PieceHash, E> {
                PieceHash::from_bytes(Algorithm::Sha256, bytes)
                    .or_else(|| PieceHash::from_bytes(Algorithm::Sha512, bytes))
                    .ok_or_else(|| E::invalid_length(bytes.len(), &self))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// How one piece is checked: what comes before it, and what its bytes must lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceCheck {
    pub(crate) geometry: Geometry,
    pub(crate) piece: PieceIndex,
    pub(crate) before: PieceHash,
    pub(crate) after: PieceHash,
}

impl PieceCheck {
    /// The check that these bytes pass, as this piece after pieces with that hash. Hashes them.
    pub fn of(geometry: Geometry, piece: PieceIndex, before: PieceHash, bytes: &[u8]) -> Self {
        Self { geometry, piece, before, after: before.then(&geometry, piece, bytes) }
    }

    /// The hash of the piece before this one.
    pub fn before(&self) -> PieceHash {
        self.before
    }

    /// The hash of this piece.
    pub fn after(&self) -> PieceHash {
        self.after
    }

    /// Whether these are the bytes of the piece. Hashes them: 0.6 s per GB on a core with SHA
    /// instructions, so not for an async thread.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        bytes.len() == self.geometry.length(self.piece) as usize
            && self.before.then(&self.geometry, self.piece, bytes) == self.after
    }
}

fn bytes_256(state: &[u32; 8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (to, word) in bytes.chunks_exact_mut(4).zip(state) {
        to.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

fn bytes_512(state: &[u64; 8]) -> [u8; 64] {
    let mut bytes = [0; 64];
    for (to, word) in bytes.chunks_exact_mut(8).zip(state) {
        to.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

/// From one chaining value of SHA-256 to another; with the size of the message, to its hash.
fn advance_256(state: &[u8; 32], bytes: &[u8], size: Option<u64>) -> [u8; 32] {
    let mut words = [0; 8];
    for (word, from) in words.iter_mut().zip(state.as_chunks().0) {
        *word = u32::from_be_bytes(*from);
    }
    let (blocks, rest) = bytes.as_chunks::<64>();
    compress256(&mut words, blocks);
    if let Some(size) = size {
        // A one bit, zeros, and the length in bits as 8 bytes (FIPS 180-4, section 5.1.1).
        let mut end = [0; 128];
        end[..rest.len()].copy_from_slice(rest);
        end[rest.len()] = 0x80;
        let length = if rest.len() < 64 - 8 { 64 } else { 128 };
        end[length - 8..length].copy_from_slice(&size.wrapping_mul(8).to_be_bytes());
        compress256(&mut words, end[..length].as_chunks().0);
    }
    bytes_256(&words)
}

/// From one chaining value of SHA-512 to another; with the size of the message, to its hash.
fn advance_512(state: &[u8; 64], bytes: &[u8], size: Option<u64>) -> [u8; 64] {
    let mut words = [0; 8];
    for (word, from) in words.iter_mut().zip(state.as_chunks().0) {
        *word = u64::from_be_bytes(*from);
    }
    let (blocks, rest) = bytes.as_chunks::<128>();
    compress512(&mut words, blocks);
    if let Some(size) = size {
        // As above, with the length in bits as 16 bytes (FIPS 180-4, section 5.1.2).
        let mut end = [0; 256];
        end[..rest.len()].copy_from_slice(rest);
        end[rest.len()] = 0x80;
        let length = if rest.len() < 128 - 16 { 128 } else { 256 };
        end[length - 16..length].copy_from_slice(&(u128::from(size) * 8).to_be_bytes());
        compress512(&mut words, end[..length].as_chunks().0);
    }
    bytes_512(&words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{digest::Hasher, geometry::MIN_PIECE_LENGTH, metainfo::Metainfo};

    fn digest(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|i| u8::try_from((i * 7 + (i >> 9)) % 251).unwrap()).collect()
    }

    #[test]
    fn the_last_hash_is_the_digest() {
        const PIECE: usize = MIN_PIECE_LENGTH as usize;
        let sizes = (1..=300).chain([PIECE - 1, PIECE, PIECE + 1, 3 * PIECE - 64, 3 * PIECE, 3 * PIECE + 119]);
        for size in sizes {
            let bytes = content(size);
            let geometry = Geometry::new(size as u64, MIN_PIECE_LENGTH).unwrap();
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let metainfo = Metainfo::of(algorithm, geometry, &bytes);
                assert_eq!(metainfo.digest, digest(algorithm, &bytes), "{size} bytes");
                assert!(metainfo.is_whole());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn each_piece_is_checked_alone(size in 1usize..300_000, long: bool, at: proptest::sample::Index, flip in 1u8..) {
            let algorithm = if long { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let mut bytes = content(size);
            let geometry = Geometry::new(size as u64, MIN_PIECE_LENGTH).unwrap();
            let metainfo = Metainfo::of(algorithm, geometry, &bytes);
            let at = at.index(size);
            bytes[at] ^= flip;
            for piece in geometry.all() {
                let range = geometry.range(piece);
                let of_piece = &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
                let check = metainfo.check(piece).unwrap();
                prop_assert_eq!(check.matches(of_piece), !range.contains(&(at as u64)));
                prop_assert!(!check.matches(&of_piece[1..]), "a short piece");
            }
        }

        #[test]
        fn hashes_survive_their_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let algorithm = match bytes.len() { 32 => Some(Algorithm::Sha256), 64 => Some(Algorithm::Sha512), _ => None };
            let hash = algorithm.and_then(|algorithm| PieceHash::from_bytes(algorithm, &bytes));
            let mut encoded = vec![u8::try_from(bytes.len()).unwrap()];
            encoded.extend_from_slice(&bytes);
            prop_assert_eq!(postcard::from_bytes::<PieceHash>(&encoded).ok(), hash);
            if let Some(hash) = hash {
                prop_assert_eq!(postcard::to_stdvec(&hash).unwrap(), encoded);
            }
        }
    }
}
