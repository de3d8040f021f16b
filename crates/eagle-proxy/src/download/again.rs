//! A second attempt at a blob whose content turned out to be wrong, for readers in the middle of their answer.
//!
//! The wrong attempt is thrown away, and the next one asks the registry alone; or, after two seeders have contradicted each other, leaves out
//! the one that was believed first. A reader that has given nothing yet follows
//! it as if nothing had been. One that has goes on where it was once the second attempt is whole, if what it has
//! given is what the blob begins with: the hashes of the pieces are chained, so they tell.

use std::{ops::Range, sync::Arc};

use eagle_core::{Bitfield, Geometry, Metainfo, PieceHash, PieceIndex};
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
}
