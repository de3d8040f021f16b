//! Metainfo: the geometry of a blob and the hash of each of its pieces.
//!
//! A seeder publishes metainfo while it still fetches the blob, so its form on the wire is a stream
//! of frames: one [`Frame::Header`], for a small blob perhaps [`Frame::Content`], then [`Frame::Hashes`] as pieces come in, then either
//! [`Frame::Complete`] (the blob's own digest was checked) or [`Frame::Failed`]. A frame is a
//! little-endian `u32` length, then that many bytes of postcard.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{
    digest::{Algorithm, Digest},
    geometry::{Geometry, MIN_PIECE_LENGTH, PieceIndex},
    peer::PeerInfo,
    piece_hash::{PieceCheck, PieceHash},
};

/// Largest blob whose content travels with its metainfo, bytes: the smallest piece there is.
pub const MAX_INLINE: u32 = MIN_PIECE_LENGTH;
/// Largest frame, bytes: the content of a small blob, or a batch of [`MAX_HASHES_PER_FRAME`] hashes,
/// and some room for names.
pub const MAX_FRAME: usize = MAX_INLINE as usize + (1 << 10);
/// Most hashes that one frame may carry: 65 bytes each at most, half of [`MAX_FRAME`].
pub const MAX_HASHES_PER_FRAME: usize = 512;

/// Geometry and piece hashes of one blob; hashes are known from the first piece up to some piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metainfo {
    /// The blob.
    pub digest: Digest,
    /// Its size and piece length.
    pub geometry: Geometry,
    /// Hashes of the first pieces; as many as there are pieces once the metainfo is whole.
    pub hashes: Vec<PieceHash>,
}

impl Metainfo {
    /// Metainfo without any hash yet.
    pub fn new(digest: Digest, geometry: Geometry) -> Self {
        Self { digest, geometry, hashes: Vec::new() }
    }

    /// Metainfo of a blob whose bytes are all at hand.
    pub fn of(algorithm: Algorithm, geometry: Geometry, bytes: &[u8]) -> Self {
        let mut last = PieceHash::start(algorithm);
        let mut hashes = Vec::with_capacity(geometry.pieces() as usize);
        for (piece, part) in geometry.all().zip(bytes.chunks(geometry.piece_length() as usize)) {
            last = last.then(&geometry, piece, part);
            hashes.push(last);
        }
        let digest = if hashes.is_empty() { algorithm.empty() } else { last.as_digest() };
        Self { digest, geometry, hashes }
    }

    /// Whether the hash of every piece is known.
    pub fn is_whole(&self) -> bool {
        self.hashes.len() == self.geometry.pieces() as usize
    }

    /// Whether the hashes are all there and end in the digest.
    pub fn leads_to_digest(&self) -> bool {
        let end = self.hashes.last().map_or_else(|| self.digest.algorithm().empty(), |last| last.as_digest());
        self.is_whole() && end == self.digest
    }

    /// The hash of a piece, when it is known.
    pub fn hash(&self, piece: PieceIndex) -> Option<PieceHash> {
        self.hashes.get(piece.0 as usize).copied()
    }

    /// How a piece is checked, when its hash and that of the piece before it are known.
    pub fn check(&self, piece: PieceIndex) -> Option<PieceCheck> {
        let before = match piece.0.checked_sub(1) {
            Some(before) => self.hash(PieceIndex(before))?,
            None => PieceHash::start(self.digest.algorithm()),
        };
        Some(PieceCheck { geometry: self.geometry, piece, before, after: self.hash(piece)? })
    }

    /// Adds the hash of the next piece.
    ///
    /// # Errors
    /// When there is no further piece, the hash is of another function than the blob's, or it is that
    /// of the last piece and not the digest.
    pub fn push(&mut self, hash: PieceHash) -> Result<(), NotTheHash> {
        let pieces = self.geometry.pieces() as usize;
        let fits = hash.as_digest().algorithm() == self.digest.algorithm();
        let last = self.hashes.len() + 1 == pieces;
        if self.hashes.len() >= pieces || !fits || (last && hash != self.digest.into()) {
            return Err(NotTheHash(PieceIndex(u32::try_from(self.hashes.len()).unwrap_or(u32::MAX))));
        }
        self.hashes.push(hash);
        Ok(())
    }
}

/// A hash that cannot be that of a piece of the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hash of piece {0} does not lead to the blob's digest")]
pub struct NotTheHash(pub PieceIndex);

/// One frame of a metainfo stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// Always first.
    Header {
        /// The blob.
        digest: Digest,
        /// Its size and piece length.
        geometry: Geometry,
        /// The seeder itself, as a peer to fetch from.
        seeder: PeerInfo,
    },
    /// Hashes of the pieces that follow those already sent; at most [`MAX_HASHES_PER_FRAME`].
    Hashes(Vec<PieceHash>),
    /// Every hash was sent and the whole blob matched its digest.
    Complete,
    /// The blob cannot be had from this seeder; the reason is for people.
    Failed(String),
    /// Nothing new; sent so that a silent seeder can be told from a slow origin.
    KeepAlive,
    /// The content of a blob of one piece, at most [`MAX_INLINE`] bytes; before its hash, so that
    /// whoever gets it need not ask for the piece. A seeder may leave it out.
    Content(Bytes),
}

/// Whether a blob is so small that its content may travel with its metainfo.
pub fn is_inline(geometry: &Geometry) -> bool {
    geometry.pieces() == 1 && geometry.size() <= u64::from(MAX_INLINE)
}

/// Why bytes are not a metainfo stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A frame is longer than [`MAX_FRAME`].
    #[error("a metainfo frame of {0} bytes exceeds the limit of {MAX_FRAME}")]
    TooLong(usize),
    /// A frame does not decode.
    #[error("a metainfo frame is malformed")]
    Malformed,
}

/// Appends one frame to `out`.
///
/// # Errors
/// When the frame is larger than [`MAX_FRAME`].
pub fn encode(frame: &Frame, out: &mut BytesMut) -> Result<(), DecodeError> {
    let body = postcard::to_stdvec(frame).map_err(|_| DecodeError::Malformed)?;
    if body.len() > MAX_FRAME {
        return Err(DecodeError::TooLong(body.len()));
    }
    out.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.put_slice(&body);
    Ok(())
}

/// Takes the next whole frame off `buffer`; `None` when more bytes are needed.
///
/// # Errors
/// When a frame is too long or malformed; the stream is useless from then on.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, DecodeError> {
    let Some(prefix) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*prefix) as usize;
    if length > MAX_FRAME {
        return Err(DecodeError::TooLong(length));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    let body = buffer.split_to(length);
    let frame: Frame = postcard::from_bytes(&body).map_err(|_| DecodeError::Malformed)?;
    match &frame {
        Frame::Hashes(hashes) if hashes.len() > MAX_HASHES_PER_FRAME => Err(DecodeError::Malformed),
        Frame::Content(bytes) if bytes.len() > MAX_INLINE as usize => Err(DecodeError::Malformed),
        _ => Ok(Some(frame)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_largest_content_fits_and_no_larger() {
        let mut out = BytesMut::new();
        let largest = Frame::Content(Bytes::from(vec![1; MAX_INLINE as usize]));
        encode(&largest, &mut out).unwrap();
        assert_eq!(decode(&mut out), Ok(Some(largest)));
        encode(&Frame::Content(Bytes::from(vec![1; MAX_INLINE as usize + 1])), &mut out).unwrap();
        assert_eq!(decode(&mut out), Err(DecodeError::Malformed));
    }

    proptest! {
        #[test]
        fn frames_survive_any_fragmentation(count in 0usize..200, step in 1usize..64) {
            let digest = Digest::of(b"blob");
            let frames = vec![
                Frame::Header { digest, geometry: Geometry::auto(1 << 30).unwrap(), seeder: PeerInfo::example() },
                Frame::Hashes((0..count).map(|i| Digest::of(&i.to_le_bytes()).into()).collect()),
                Frame::KeepAlive,
                Frame::Content(Bytes::from(vec![7; count])),
                Frame::Failed("origin said no".into()),
                Frame::Complete,
            ];
            let mut bytes = BytesMut::new();
            for frame in &frames {
                encode(frame, &mut bytes).unwrap();
            }
            let mut buffer = BytesMut::new();
            let mut seen = Vec::new();
            for part in bytes.chunks(step) {
                buffer.extend_from_slice(part);
                while let Some(frame) = decode(&mut buffer).unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode(&mut buffer) {}
        }
    }
}
