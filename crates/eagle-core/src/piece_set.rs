//! Piece ownership in as few bytes as it takes, for announces.

use std::ops::Range;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{bitfield::Bitfield, geometry::PieceIndex};

/// Which pieces of a blob a node owns.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PieceSet {
    /// None yet.
    Empty,
    /// All of them.
    Complete,
    /// The first so many.
    Prefix(u32),
    /// Any: a bitfield, first piece in the highest bit of the first byte.
    Bitmap(Bitmap),
    /// Lengths of runs in turn: pieces that are lacked (0 when the first is owned), pieces that are owned, and so on.
    /// What comes after the last run is lacked. Only the first length may be 0, and there is one for each other.
    Runs(Vec<u32>),
}

/// Bytes of a bitfield; base64 where the format is text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bitmap(pub Vec<u8>);

impl Serialize for Bitmap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&STANDARD_NO_PAD.encode(&self.0))
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Bitmap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
            STANDARD_NO_PAD.decode(text.as_bytes()).map(Self).map_err(de::Error::custom)
        } else {
            Vec::<u8>::deserialize(deserializer).map(Self)
        }
    }
}

impl From<&Bitfield> for PieceSet {
    fn from(field: &Bitfield) -> Self {
        if field.is_full() {
            Self::Complete
        } else if field.count() == 0 {
            Self::Empty
        } else {
            match field.first_missing(0) {
                Some(gap) if gap.0 == field.count() => Self::Prefix(gap.0),
                _ => Self::shortest(field),
            }
        }
    }
}

/// Bytes that a run takes on the wire: a variable-length number of up to 16,383 has at most two.
const RUN_BYTES: usize = 2;

impl PieceSet {
    /// The set as a bitfield of `pieces` bits; `None` when it does not fit that many.
    pub fn to_bitfield(&self, pieces: u32) -> Option<Bitfield> {
        match self {
            Self::Empty => Some(Bitfield::new(pieces)),
            Self::Complete => Some(Bitfield::full(pieces)),
            Self::Prefix(count) if *count <= pieces => {
                let mut field = Bitfield::new(pieces);
                field.insert_prefix(*count);
                Some(field)
            }
            Self::Prefix(_) => None,
            Self::Bitmap(bitmap) => Bitfield::from_bytes(pieces, &bitmap.0),
            Self::Runs(runs) => {
                let mut field = Bitfield::new(pieces);
                for range in owned_runs(runs, pieces)? {
                    for index in range {
                        field.insert(PieceIndex(index));
                    }
                }
                Some(field)
            }
        }
    }

    /// Runs where they are shorter than a bitmap, as they are while pieces come in nearly in order.
    fn shortest(field: &Bitfield) -> Self {
        let bitmap = field.to_bytes();
        let (mut runs, mut at) = (Vec::new(), 0);
        while let Some(owned) = field.first_present(at) {
            let end = field.first_missing(owned.0).map_or(field.len(), |missing| missing.0);
            runs.extend([owned.0 - at, end - owned.0]);
            if runs.len() * RUN_BYTES >= bitmap.len() {
                return Self::Bitmap(Bitmap(bitmap));
            }
            at = end;
        }
        Self::Runs(runs)
    }

    /// Number of pieces in the set, of a blob with `pieces` pieces.
    pub fn count(&self, pieces: u32) -> u32 {
        match self {
            Self::Empty => 0,
            Self::Complete => pieces,
            Self::Prefix(count) => (*count).min(pieces),
            Self::Bitmap(bitmap) => bitmap.0.iter().map(|byte| byte.count_ones()).sum::<u32>().min(pieces),
            Self::Runs(runs) => {
                runs.iter().skip(1).step_by(2).fold(0u32, |sum, run| sum.saturating_add(*run)).min(pieces)
            }
        }
    }
}

/// The runs of owned pieces; `None` when the lengths are not those of runs within so many pieces.
pub(crate) fn owned_runs(runs: &[u32], pieces: u32) -> Option<Vec<Range<u32>>> {
    if !runs.len().is_multiple_of(2) || runs.iter().skip(1).any(|length| *length == 0) {
        return None;
    }
    let mut at = 0u32;
    let mut owned = Vec::with_capacity(runs.len() / 2);
    for pair in runs.chunks_exact(2) {
        let start = at.checked_add(pair[0])?;
        at = start.checked_add(pair[1]).filter(|end| *end <= pieces)?;
        owned.push(start..at);
    }
    Some(owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trips(length in 1u32..300, set in proptest::collection::vec(0u32..300, 0..300), prefix in 0u32..300) {
            let mut field = Bitfield::new(length);
            field.insert_prefix(prefix);
            for index in set {
                field.insert(PieceIndex(index));
            }
            let compressed = PieceSet::from(&field);
            prop_assert_eq!(compressed.count(length), field.count());
            let json = serde_json::to_string(&compressed).unwrap();
            let back: PieceSet = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(back.to_bitfield(length), Some(field.clone()));
            let binary = postcard::to_stdvec(&compressed).unwrap();
            let back: PieceSet = postcard::from_bytes(&binary).unwrap();
            prop_assert_eq!(back.to_bitfield(length), Some(field));
        }

        #[test]
        fn any_lengths_are_runs_or_refused(length in 0u32..100, runs in proptest::collection::vec(prop_oneof![0u32..40, Just(u32::MAX)], 0..8)) {
            let set = PieceSet::Runs(runs.clone());
            if let Some(field) = set.to_bitfield(length) {
                prop_assert_eq!(set.count(length), field.count());
                prop_assert_eq!(runs.len() % 2, 0);
            }
        }
    }

    #[test]
    fn few_gaps_are_runs_and_many_a_bitmap() {
        let mut field = Bitfield::new(1_000);
        field.insert_prefix(200);
        field.insert(PieceIndex(300));
        assert_eq!(PieceSet::from(&field), PieceSet::Runs(vec![0, 200, 100, 1]));
        for index in (0..1_000).step_by(2) {
            field.insert(PieceIndex(index));
        }
        assert!(matches!(PieceSet::from(&field), PieceSet::Bitmap(_)));
        for bad in [vec![1], vec![0, 0], vec![1, 2, 0, 1], vec![0, u32::MAX, 1, 1], vec![999, 2]] {
            assert_eq!(PieceSet::Runs(bad.clone()).to_bitfield(1_000), None, "{bad:?}");
        }
    }
}
