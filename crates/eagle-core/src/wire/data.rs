//! The framing of data channels: a few bytes in front of each piece.
//!
//! The side that dialled asks ([`Ask`]), the side that listens answers ([`Answer`]). Numbers are
//! little-endian. An [`Answer::Piece`] header is followed by exactly `length` raw bytes. Answers
//! come in the order of their asks.

use bytes::{Buf, BufMut, BytesMut};

use super::control::Load;
use crate::{
    digest::{Algorithm, Digest},
    geometry::{MAX_PIECE_LENGTH, PieceIndex},
};

/// Piece number that asks for whichever piece the uploader most wants to spread.
const ANY: u32 = u32::MAX;

/// What the downloading side sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Send a piece of a blob.
    Request {
        /// Number that the answer repeats; chosen by the asking side.
        id: u32,
        /// The blob.
        digest: Digest,
        /// The piece; `None` lets the uploader choose.
        piece: Option<PieceIndex>,
    },
    /// The answer to this request is no longer wanted, if it has not begun.
    Cancel {
        /// Number of the request.
        id: u32,
    },
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// The uploader does not have the blob or the piece.
    NotHere,
    /// The asking peer is choked, or its queue is full.
    Choked,
    /// Asked for any piece, and there is none to give right now.
    NothingToSpread,
    /// The request was cancelled by its sender.
    Cancelled,
    /// The uploader could not read the piece.
    Failed,
}

/// What the uploading side sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The header of a piece; its bytes follow.
    Piece {
        /// Number of the request.
        id: u32,
        /// Which piece.
        piece: PieceIndex,
        /// Number of bytes that follow.
        length: u32,
        /// How busy the uploader is.
        load: Load,
    },
    /// The request is refused.
    Reject {
        /// Number of the request.
        id: u32,
        /// Why.
        reason: RejectReason,
        /// How busy the uploader is.
        load: Load,
    },
}

/// Bytes on a data channel that mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Unknown kind of frame, digest or reason.
    #[error("a data channel frame is malformed")]
    Malformed,
    /// A piece that is longer than any piece may be.
    #[error("a piece of {0} bytes exceeds the limit of {MAX_PIECE_LENGTH}")]
    TooLong(u32),
}

/// Longest encoded [`Ask`] or [`Answer`] header, bytes.
pub const MAX_HEADER: usize = 1 + 4 + 1 + 64 + 4;

const REQUEST: u8 = 1;
const CANCEL: u8 = 2;
const PIECE: u8 = 3;
const REJECT: u8 = 4;

impl Ask {
    /// Appends the encoded frame to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Request { id, digest, piece } => {
                out.put_u8(REQUEST);
                out.put_u32_le(*id);
                out.put_u32_le(piece.map_or(ANY, |piece| piece.0));
                out.put_u8(match digest.algorithm() {
                    Algorithm::Sha256 => 0,
                    Algorithm::Sha512 => 1,
                });
                out.put_slice(digest.as_bytes());
            }
            Self::Cancel { id } => {
                out.put_u8(CANCEL);
                out.put_u32_le(*id);
            }
        }
    }

    /// Takes the next whole frame off `buffer`; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are no frame; the channel is useless from then on.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, DecodeError> {
        match buffer.first() {
            None => Ok(None),
            Some(&CANCEL) if buffer.len() < 5 => Ok(None),
            Some(&CANCEL) => {
                buffer.advance(1);
                Ok(Some(Self::Cancel { id: buffer.get_u32_le() }))
            }
            Some(&REQUEST) => {
                let algorithm = match buffer.get(9) {
                    None => return Ok(None),
                    Some(0) => Algorithm::Sha256,
                    Some(1) => Algorithm::Sha512,
                    Some(_) => return Err(DecodeError::Malformed),
                };
                if buffer.len() < 10 + algorithm.length() {
                    return Ok(None);
                }
                buffer.advance(1);
                let id = buffer.get_u32_le();
                let piece = buffer.get_u32_le();
                buffer.advance(1);
                let hash = buffer.split_to(algorithm.length());
                let digest = Digest::from_bytes(algorithm, &hash).ok_or(DecodeError::Malformed)?;
                let piece = (piece != ANY).then_some(PieceIndex(piece));
                Ok(Some(Self::Request { id, digest, piece }))
            }
            Some(_) => Err(DecodeError::Malformed),
        }
    }
}

impl Answer {
    /// Appends the encoded header to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        let put_load = |out: &mut BytesMut, load: &Load| {
            out.put_u16_le(load.requests);
            out.put_u8(u8::from(load.spreading));
        };
        match self {
            Self::Piece { id, piece, length, load } => {
                out.put_u8(PIECE);
                out.put_u32_le(*id);
                put_load(out, load);
                out.put_u32_le(piece.0);
                out.put_u32_le(*length);
            }
            Self::Reject { id, reason, load } => {
                out.put_u8(REJECT);
                out.put_u32_le(*id);
                put_load(out, load);
                out.put_u8(match reason {
                    RejectReason::NotHere => 0,
                    RejectReason::Choked => 1,
                    RejectReason::NothingToSpread => 2,
                    RejectReason::Cancelled => 3,
                    RejectReason::Failed => 4,
                });
            }
        }
    }

    /// Takes the next whole header off `buffer`; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are no header; the channel is useless from then on.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, DecodeError> {
        let length = match buffer.first() {
            None => return Ok(None),
            Some(&PIECE) => 16,
            Some(&REJECT) => 9,
            Some(_) => return Err(DecodeError::Malformed),
        };
        if buffer.len() < length {
            return Ok(None);
        }
        let kind = buffer.get_u8();
        let id = buffer.get_u32_le();
        let load = Load { requests: buffer.get_u16_le(), spreading: buffer.get_u8() != 0 };
        if kind == PIECE {
            let piece = PieceIndex(buffer.get_u32_le());
            let length = buffer.get_u32_le();
            if length > MAX_PIECE_LENGTH {
                return Err(DecodeError::TooLong(length));
            }
            return Ok(Some(Self::Piece { id, piece, length, load }));
        }
        let reason = match buffer.get_u8() {
            0 => RejectReason::NotHere,
            1 => RejectReason::Choked,
            2 => RejectReason::NothingToSpread,
            3 => RejectReason::Cancelled,
            4 => RejectReason::Failed,
            _ => return Err(DecodeError::Malformed),
        };
        Ok(Some(Self::Reject { id, reason, load }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask() -> impl Strategy<Value = Ask> {
        prop_oneof![
            (any::<u32>(), proptest::option::of(0..ANY), any::<bool>()).prop_map(|(id, piece, long)| Ask::Request {
                id,
                digest: if long { Digest::Sha512([9; 64]) } else { Digest::of(b"y") },
                piece: piece.map(PieceIndex),
            }),
            any::<u32>().prop_map(|id| Ask::Cancel { id }),
        ]
    }

    fn answer() -> impl Strategy<Value = Answer> {
        let load = (any::<u16>(), any::<bool>()).prop_map(|(requests, spreading)| Load { requests, spreading });
        prop_oneof![
            (any::<u32>(), any::<u32>(), 0..=MAX_PIECE_LENGTH, load.clone())
                .prop_map(|(id, piece, length, load)| Answer::Piece { id, piece: PieceIndex(piece), length, load }),
            (any::<u32>(), load).prop_map(|(id, load)| Answer::Reject { id, reason: RejectReason::Choked, load }),
        ]
    }

    #[test]
    fn a_piece_that_is_too_long_is_refused_by_its_header() {
        let mut out = BytesMut::new();
        let length = MAX_PIECE_LENGTH + 1;
        Answer::Piece { id: 1, piece: PieceIndex(0), length, load: Load::default() }.encode(&mut out);
        assert_eq!(Answer::decode(&mut out), Err(DecodeError::TooLong(length)));
    }

    proptest! {
        #[test]
        fn asks_survive_any_fragmentation(asks in proptest::collection::vec(ask(), 1..6), step in 1usize..80) {
            let mut bytes = BytesMut::new();
            asks.iter().for_each(|ask| ask.encode(&mut bytes));
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for part in bytes.chunks(step) {
                buffer.extend_from_slice(part);
                while let Some(ask) = Ask::decode(&mut buffer).unwrap() {
                    seen.push(ask);
                }
            }
            prop_assert_eq!(seen, asks);
        }

        #[test]
        fn answers_survive_any_fragmentation(answers in proptest::collection::vec(answer(), 1..6), step in 1usize..20) {
            let mut bytes = BytesMut::new();
            answers.iter().for_each(|answer| answer.encode(&mut bytes));
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for part in bytes.chunks(step) {
                buffer.extend_from_slice(part);
                while let Some(answer) = Answer::decode(&mut buffer).unwrap() {
                    seen.push(answer);
                }
            }
            prop_assert_eq!(seen, answers);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Ask::decode(&mut buffer) {}
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Answer::decode(&mut buffer) {}
        }
    }
}
