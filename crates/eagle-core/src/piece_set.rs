//! Piece ownership in as few bytes as it takes, for announces.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::bitfield::Bitfield;

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
                _ => Self::Bitmap(Bitmap(field.to_bytes())),
            }
        }
    }
}

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
        }
    }

    /// Number of pieces in the set, of a blob with `pieces` pieces.
    pub fn count(&self, pieces: u32) -> u32 {
        match self {
            Self::Empty => 0,
            Self::Complete => pieces,
            Self::Prefix(count) => (*count).min(pieces),
            Self::Bitmap(bitmap) => bitmap.0.iter().map(|byte| byte.count_ones()).sum::<u32>().min(pieces),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::PieceIndex;

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
    }
}
