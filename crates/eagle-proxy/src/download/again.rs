//! A second attempt at a blob whose content turned out to be wrong, for readers in the middle of their answer.
//!
//! The wrong attempt is thrown away, and the next one asks the registry alone; or, after two seeders have contradicted each other, leaves out
//! the one that was believed first. A reader that has given nothing yet follows
//! it as if nothing had been. One that has goes on where it was once the second attempt is whole, if what it has
//! given is what the blob begins with: the hashes of the pieces are chained, so they tell.

use std::{ops::Range, sync::Arc};

use eagle_core::{Bitfield, Digest, Geometry, Metainfo, PieceHash, PieceIndex};
use url::Url;

use super::{
    BlobError,
    reader::OpenBlob,
    state::{Download, Phase, Ticket},
};

/// What is known of the pieces of an attempt that was thrown away.
#[derive(Debug)]
pub(crate) struct Given {
    geometry: Geometry,
    /// Of the pieces from the first on.
    hashes: Vec<PieceHash>,
    /// Pieces that nobody has compared with these.
    unchecked: Bitfield,
}

impl Given {
    pub(super) const fn new(geometry: Geometry, hashes: Vec<PieceHash>, unchecked: Bitfield) -> Self {
        Self { geometry, hashes, unchecked }
    }

    /// Whether these bytes of the attempt are those of the blob.
    fn agrees(&self, blob: &Metainfo, bytes: &Range<u64>) -> bool {
        let Some(first) = self.geometry.piece_at(bytes.start) else { return false };
        let Some(last) = bytes.end.checked_sub(1).and_then(|end| self.geometry.piece_at(end)) else { return false };
        let same = |index: u32| {
            let at = index as usize;
            matches!((self.hashes.get(at), blob.hashes.get(at)), (Some(given), Some(right)) if given == right)
        };
        // A hash says what its piece is only together with the one before.
        self.geometry == blob.geometry
            && (first.0 == 0 || same(first.0 - 1))
            && (first.0..=last.0).all(|index| same(index) && !self.unchecked.contains(PieceIndex(index)))
    }
}

/// Compares what a reader was given of a download that could not go on with the bytes of the blob, which come a second time from the
/// start of the blob.
#[derive(Debug)]
pub(super) struct Comparison {
    given: Arc<Given>,
    /// What the reader was given of it.
    bytes: Range<u64>,
    /// The first byte that has not come.
    at: u64,
    /// The hash of what came before it.
    last: PieceHash,
    /// What is known of the blob: the hashes of the pieces that came, up to the last one that the reader was given.
    blob: Metainfo,
}

impl Comparison {
    /// `bytes` are those that the reader was given of the download.
    pub(super) fn new(digest: Digest, given: Arc<Given>, bytes: Range<u64>) -> Self {
        let blob = Metainfo::new(digest, given.geometry);
        Self { given, bytes, at: 0, last: PieceHash::start(digest.algorithm()), blob }
    }

    /// Adds the next bytes of the blob, a multiple of the 128 that SHA-512 takes at a time; the rest may be of any length.
    pub(super) fn add(&mut self, mut bytes: &[u8]) {
        let geometry = self.blob.geometry;
        while let Some(piece) = geometry.piece_at(self.at)
            && geometry.offset(piece) < self.bytes.end
            && !bytes.is_empty()
        {
            let end = geometry.range(piece).end;
            let (part, rest) = bytes.split_at(bytes.len().min(usize::try_from(end - self.at).unwrap_or(usize::MAX)));
            self.last = self.last.then(&geometry, piece, part);
            self.at += part.len() as u64;
            if self.at == end {
                self.blob.hashes.push(self.last);
            }
            bytes = rest;
        }
    }

    /// Whether what the reader was given is of the blob, once all of the blob has come.
    pub(super) fn agrees(&self) -> bool {
        self.given.agrees(&self.blob, &self.bytes)
    }
}

/// Whom not to ask for a blob, after what they gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Distrust {
    /// These seeders, which another one contradicts.
    Seeders(Vec<Url>),
    /// All seeders and peers.
    AllButOrigin,
}

impl Distrust {
    /// What an attempt that failed so leads to; none when another source would not have done better.
    pub(super) fn after(error: &BlobError, attempt: &Download) -> Option<Self> {
        match error {
            // Once: of seeders that go on to contradict each other nobody knows which is right.
            BlobError::Disagreement { suspects, .. } if attempt.without.is_empty() => {
                Some(Self::Seeders(suspects.clone()))
            }
            error => is_wrong_content(error).then_some(Self::AllButOrigin),
        }
    }
}

/// Whether another source may have what this attempt had not.
pub(super) fn is_wrong_content(error: &BlobError) -> bool {
    matches!(error, BlobError::Corrupt { .. } | BlobError::Contradiction { .. } | BlobError::Disagreement { .. })
}

/// A place in the second attempt, for a reader of `blob` that has given the bytes `given` of `failed`; none when what it has
/// given is wrong, or the second attempt fails.
pub(super) async fn begin(blob: &OpenBlob, failed: &Arc<Download>, given: Range<u64>) -> Option<Ticket> {
    let OpenBlob { downloads, request, size, .. } = blob;
    let (ticket, _) = downloads.attach(request.clone());
    ticket.moved(given.end);
    if given.is_empty() {
        let found = downloads.wait_for_size(&ticket).await.ok()?;
        return (found == *size).then_some(ticket);
    }
    let mut phases = ticket.download().phase();
    let end = phases.wait_for(|phase| !matches!(phase, Phase::Starting | Phase::Running(_))).await.ok()?.clone();
    if !matches!(end, Phase::Complete(_)) {
        return None;
    }
    let metainfo = downloads.context().cache.get(request.digest).await.and_then(|blob| blob.metainfo())?;
    failed.given().filter(|was| was.agrees(&metainfo, &given)).map(|_| ticket)
}

#[cfg(test)]
mod tests {
    use eagle_core::digest::Algorithm;

    use super::*;

    #[test]
    fn what_was_given_is_compared_piece_by_piece() {
        let right = vec![1; 1 << 20];
        let geometry = Geometry::auto(right.len() as u64).unwrap();
        let piece = u64::from(geometry.piece_length());
        assert!(geometry.pieces() >= 4);
        let blob = Metainfo::of(Algorithm::Sha256, geometry, &right);
        let mut wrong = right.clone();
        wrong[usize::try_from(2 * piece).unwrap()] = 2;
        let hashes = Metainfo::of(Algorithm::Sha256, geometry, &wrong).hashes;
        let given = |unchecked: &[u32]| {
            let mut pieces = Bitfield::new(geometry.pieces());
            for index in unchecked {
                pieces.insert(PieceIndex(*index));
            }
            Given::new(geometry, hashes.clone(), pieces)
        };
        assert!(given(&[]).agrees(&blob, &(0..1)));
        assert!(given(&[3]).agrees(&blob, &(0..2 * piece)));
        assert!(given(&[]).agrees(&blob, &(piece..piece + 5)));
        assert!(!given(&[]).agrees(&blob, &(0..2 * piece + 1)));
        assert!(!given(&[]).agrees(&blob, &(3 * piece..3 * piece + 1)), "the piece is right, what leads to it is not");
        assert!(!given(&[1]).agrees(&blob, &(0..piece + 1)));
        assert!(!given(&[]).agrees(&blob, &(0..0)));
        let fewer = Given::new(geometry, hashes[..1].to_vec(), Bitfield::new(geometry.pieces()));
        assert!(fewer.agrees(&blob, &(0..piece)) && !fewer.agrees(&blob, &(0..piece + 1)));
    }

    #[test]
    fn what_comes_a_second_time_is_compared_as_it_comes() {
        let size = 5 * (256 << 10) + 1000;
        let right: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        for (algorithm, piece_length) in [(Algorithm::Sha256, 64 << 10), (Algorithm::Sha512, 512 << 10)] {
            let geometry = Geometry::new(size, piece_length).unwrap();
            let blob = Metainfo::of(algorithm, geometry, &right);
            let given = Given::new(geometry, blob.hashes.clone(), Bitfield::new(geometry.pieces()));
            let given = Arc::new(given);
            let agrees = |bytes: Range<u64>, content: &[u8]| {
                let mut comparison = Comparison::new(blob.digest, Arc::clone(&given), bytes);
                content.chunks(256 << 10).for_each(|part| comparison.add(part));
                comparison.agrees()
            };
            let piece = u64::from(piece_length);
            for bytes in [0..1, 0..piece, 0..piece + 1, piece..2 * piece, piece + 7..2 * piece - 9] {
                assert!(agrees(bytes.clone(), &right), "{bytes:?}");
                assert!(
                    !agrees(bytes.clone(), &right[..usize::try_from(bytes.start).unwrap()]),
                    "{bytes:?} did not come"
                );
                let mut wrong = right.clone();
                wrong[usize::try_from(bytes.end - 1).unwrap()] ^= 1;
                assert!(!agrees(bytes.clone(), &wrong), "{bytes:?}");
                wrong[usize::try_from(bytes.end - 1).unwrap()] ^= 1;
                *wrong.last_mut().unwrap() ^= 1;
                assert!(agrees(bytes.clone(), &wrong), "what was not given is not compared: {bytes:?}");
            }
        }
    }
}
