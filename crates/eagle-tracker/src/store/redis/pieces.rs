//! What a member owns, as Redis keeps it: `e` nothing, `c` everything, `p` and a number the first so many, `b` and a bitmap.

use eagle_core::{PieceSet, piece_set::Bitmap};

use crate::ownership::Ownership;

/// Writes what a member owns.
pub(super) fn write(owned: &Ownership) -> Vec<u8> {
    match owned {
        Ownership::Empty => b"e".to_vec(),
        Ownership::Complete => b"c".to_vec(),
        Ownership::Prefix(count) => format!("p{count}").into_bytes(),
        Ownership::Bitmap(bitmap) => [b"b", bitmap.as_slice()].concat(),
    }
}

/// Reads what a member owns of a blob of `pieces` pieces; `None` when it does not fit.
pub(super) fn read(bytes: &[u8], pieces: u32) -> Option<Ownership> {
    let (kind, rest) = bytes.split_first()?;
    let set = match kind {
        b'e' => PieceSet::Empty,
        b'c' => PieceSet::Complete,
        b'p' => PieceSet::Prefix(std::str::from_utf8(rest).ok()?.parse().ok()?),
        b'b' => PieceSet::Bitmap(Bitmap(rest.to_vec())),
        _ => return None,
    };
    Ownership::new(&set, pieces)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(length in 0u32..70, prefix in 0u32..70, bytes in proptest::collection::vec(any::<u8>(), 9)) {
            let bitmap = PieceSet::Bitmap(Bitmap(bytes));
            for set in [PieceSet::Empty, PieceSet::Complete, PieceSet::Prefix(prefix), bitmap] {
                if let Some(owned) = Ownership::new(&set, length) {
                    prop_assert_eq!(read(&write(&owned), length), Some(owned));
                }
            }
        }

        #[test]
        fn foreign_bytes_are_refused_or_fit(length in 0u32..70, bytes: Vec<u8>) {
            if let Some(owned) = read(&bytes, length) {
                prop_assert!(owned.count(length) <= length);
            }
        }
    }
}
