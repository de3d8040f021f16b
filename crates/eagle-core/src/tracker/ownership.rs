//! Which pieces a peer owns, as the tracker keeps it: checked, normalised, cheap to clone.

use std::sync::Arc;

use crate::{PieceSet, piece_set::Bitmap};

/// A [`PieceSet`] that fits its blob.
///
/// Equal sets are equal values: a bitmap is never empty, full or a prefix in disguise of one of the
/// first two. A clone shares the bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// None yet.
    Empty,
    /// All of them.
    Complete,
    /// The first so many.
    Prefix(u32),
    /// Any, first piece in the highest bit of the first byte. A thin pointer, for a tracker keeps millions of these.
    Bitmap(Arc<Vec<u8>>),
}

impl Ownership {
    /// Takes a set announced for a blob of `pieces` pieces; `None` when it does not fit.
    pub fn new(set: &PieceSet, pieces: u32) -> Option<Self> {
        match set {
            PieceSet::Empty if pieces == 0 => Some(Self::Complete),
            PieceSet::Empty => Some(Self::Empty),
            PieceSet::Complete => Some(Self::Complete),
            PieceSet::Prefix(count) if *count > pieces => None,
            PieceSet::Prefix(count) if *count == pieces => Some(Self::Complete),
            PieceSet::Prefix(0) => Some(Self::Empty),
            PieceSet::Prefix(count) => Some(Self::Prefix(*count)),
            PieceSet::Bitmap(Bitmap(bytes)) => Self::from_bitmap(bytes, pieces),
            // Kept as the others, so that sets can be compared without being taken apart.
            PieceSet::Runs(runs) => match runs.as_slice() {
                [0, count] if *count > 0 => Self::new(&PieceSet::Prefix(*count), pieces),
                _ => Self::from_bitmap(&set.to_bitfield(pieces)?.to_bytes(), pieces),
            },
        }
    }

    fn from_bitmap(bytes: &[u8], pieces: u32) -> Option<Self> {
        if u32::try_from(bytes.len()).ok()? != pieces.div_ceil(8) {
            return None;
        }
        let spare = (8 - pieces % 8) % 8;
        if bytes.last().is_some_and(|last| last.trailing_zeros().min(8) < spare) {
            return None;
        }
        match bytes.iter().map(|byte| byte.count_ones()).sum::<u32>() {
            owned if owned == pieces => Some(Self::Complete),
            0 => Some(Self::Empty),
            _ => Some(Self::Bitmap(Arc::new(bytes.to_vec()))),
        }
    }

    /// Number of pieces owned, of `pieces`.
    pub fn count(&self, pieces: u32) -> u32 {
        match self {
            Self::Empty => 0,
            Self::Complete => pieces,
            Self::Prefix(count) => *count,
            Self::Bitmap(bytes) => bytes.iter().map(|byte| byte.count_ones()).sum(),
        }
    }

    /// Whether every piece is owned.
    pub const fn is_complete(&self) -> bool {
        matches!(self, Self::Complete)
    }

    /// Whether there is a piece here that `other` lacks; both of the same blob.
    pub fn offers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Empty, _) | (_, Self::Complete) => false,
            // Neither is the same set: a complete one has more than any that is not.
            (Self::Complete, _) | (_, Self::Empty) => true,
            (Self::Prefix(mine), Self::Prefix(theirs)) => mine > theirs,
            (Self::Bitmap(mine), Self::Bitmap(theirs)) => {
                mine.iter().zip(theirs.iter()).any(|(mine, theirs)| mine & !theirs != 0)
            }
            (Self::Bitmap(mine), Self::Prefix(theirs)) => {
                mine.iter().zip(0u32..).any(|(mine, byte)| mine & !prefix_byte(*theirs, byte) != 0)
            }
            (Self::Prefix(mine), Self::Bitmap(theirs)) => {
                theirs.iter().zip(0u32..).any(|(theirs, byte)| prefix_byte(*mine, byte) & !theirs != 0)
            }
        }
    }

    /// The set as it is sent.
    pub fn to_piece_set(&self) -> PieceSet {
        match self {
            Self::Empty => PieceSet::Empty,
            Self::Complete => PieceSet::Complete,
            Self::Prefix(count) => PieceSet::Prefix(*count),
            Self::Bitmap(bytes) => PieceSet::Bitmap(Bitmap(bytes.to_vec())),
        }
    }

    /// Bytes that the set takes beside its own value, for bounds on answers.
    pub fn extra_bytes(&self) -> usize {
        match self {
            Self::Bitmap(bytes) => bytes.len(),
            _ => 0,
        }
    }
}

/// The byte at `position` of a bitmap whose first `count` bits are set.
fn prefix_byte(count: u32, position: u32) -> u8 {
    match count.saturating_sub(position.saturating_mul(8)).min(8) {
        0 => 0,
        bits => u8::MAX << (8 - bits),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Bitfield, PieceIndex};

    fn set(length: u32) -> impl Strategy<Value = PieceSet> {
        prop_oneof![
            Just(PieceSet::Empty),
            Just(PieceSet::Complete),
            (0..=length).prop_map(PieceSet::Prefix),
            proptest::collection::vec(0..length.max(1), 0..60).prop_map(move |set| {
                let mut field = Bitfield::new(length);
                for index in set {
                    field.insert(PieceIndex(index));
                }
                PieceSet::Bitmap(Bitmap(field.to_bytes()))
            }),
            proptest::collection::vec(0..length.max(1), 0..6).prop_map(move |set| {
                let mut field = Bitfield::new(length);
                for index in set {
                    field.insert(PieceIndex(index));
                }
                PieceSet::from(&field)
            }),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_bitfields((length, a, b) in (0u32..70).prop_flat_map(|n| (Just(n), set(n), set(n)))) {
            let fields = (a.to_bitfield(length).unwrap(), b.to_bitfield(length).unwrap());
            let (a, b) = (Ownership::new(&a, length).unwrap(), Ownership::new(&b, length).unwrap());
            prop_assert_eq!(a.count(length), fields.0.count());
            prop_assert_eq!(a.is_complete(), fields.0.is_full());
            prop_assert_eq!(a.offers(&b), fields.0.any_without(&[&fields.1]), "{:?} {:?}", a, b);
            prop_assert_eq!(a.to_piece_set().to_bitfield(length), Some(fields.0));
        }

        #[test]
        fn refuses_what_does_not_fit(length in 0u32..70, prefix in 0u32..100, bytes in proptest::collection::vec(any::<u8>(), 0..10)) {
            let runs = bytes.iter().map(|byte| u32::from(*byte % 32)).collect();
            for set in [PieceSet::Prefix(prefix), PieceSet::Runs(runs), PieceSet::Bitmap(Bitmap(bytes))] {
                prop_assert_eq!(Ownership::new(&set, length).is_some(), set.to_bitfield(length).is_some());
            }
        }
    }
}
