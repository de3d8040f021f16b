//! Which pieces of a blob somebody owns.

use crate::geometry::PieceIndex;

/// A fixed number of bits, one for each piece, all clear at first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bitfield {
    words: Vec<u64>,
    length: u32,
    ones: u32,
}

impl Bitfield {
    /// A bitfield of `length` clear bits.
    pub fn new(length: u32) -> Self {
        Self { words: vec![0; length.div_ceil(64) as usize], length, ones: 0 }
    }

    /// A bitfield of `length` set bits.
    pub fn full(length: u32) -> Self {
        let mut field = Self::new(length);
        field.insert_prefix(length);
        field
    }

    /// Number of bits.
    pub const fn len(&self) -> u32 {
        self.length
    }

    /// Whether there are no bits at all.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Number of set bits.
    pub const fn count(&self) -> u32 {
        self.ones
    }

    /// Whether every bit is set.
    pub const fn is_full(&self) -> bool {
        self.ones == self.length
    }

    /// Whether the bit of `piece` is set; false past the end.
    pub fn contains(&self, piece: PieceIndex) -> bool {
        self.words.get((piece.0 / 64) as usize).is_some_and(|word| word >> (piece.0 % 64) & 1 == 1)
    }

    /// Sets a bit; says whether that changed it. A bit past the end is left alone.
    pub fn insert(&mut self, piece: PieceIndex) -> bool {
        if piece.0 >= self.length || self.contains(piece) {
            return false;
        }
        self.words[(piece.0 / 64) as usize] |= 1 << (piece.0 % 64);
        self.ones += 1;
        true
    }

    /// Sets the first `count` bits.
    pub fn insert_prefix(&mut self, count: u32) {
        let count = count.min(self.length);
        for (position, word) in self.words.iter_mut().enumerate() {
            let start = position as u64 * 64;
            let bits = u64::from(count).saturating_sub(start).min(64);
            if bits == 0 {
                break;
            }
            *word |= u64::MAX >> (64 - bits);
        }
        self.recount();
    }

    /// Clears a bit; says whether that changed it.
    pub fn remove(&mut self, piece: PieceIndex) -> bool {
        if !self.contains(piece) {
            return false;
        }
        self.words[(piece.0 / 64) as usize] &= !(1 << (piece.0 % 64));
        self.ones -= 1;
        true
    }

    /// Sets every bit that is set in `other`, as far as this one reaches.
    pub fn union(&mut self, other: &Self) {
        for (word, theirs) in self.words.iter_mut().zip(&other.words) {
            *word |= theirs;
        }
        self.clear_tail();
        self.recount();
    }

    /// The set bits in order.
    pub fn iter(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.words.iter().enumerate().flat_map(|(position, &word)| ones(position, word))
    }

    /// The bits set here and not in any of `others`, in order.
    pub fn iter_without<'a>(&'a self, others: &'a [&'a Self]) -> impl Iterator<Item = PieceIndex> + 'a {
        self.words.iter().enumerate().flat_map(move |(position, &word)| {
            let masked = others.iter().fold(word, |word, other| word & !other.words.get(position).unwrap_or(&0));
            ones(position, masked)
        })
    }

    /// Whether some bit is set here and in none of `others`.
    pub fn any_without(&self, others: &[&Self]) -> bool {
        self.words.iter().enumerate().any(|(position, &word)| {
            others.iter().fold(word, |word, other| word & !other.words.get(position).unwrap_or(&0)) != 0
        })
    }

    /// Whether some bit is clear here and in all of `others`.
    pub fn any_clear(&self, others: &[&Self]) -> bool {
        let unused = self.length.next_multiple_of(64) - self.length;
        let last = self.words.len().saturating_sub(1);
        self.words.iter().enumerate().any(|(position, &word)| {
            let set = others.iter().fold(word, |word, other| word | other.words.get(position).unwrap_or(&0));
            let used = if position == last { u64::MAX >> unused } else { u64::MAX };
            !set & used != 0
        })
    }

    /// First clear bit at or after `from`; `None` when all of those are set.
    pub fn first_missing(&self, from: u32) -> Option<PieceIndex> {
        let mut index = from;
        while index < self.length {
            let word = !self.words[(index / 64) as usize] >> (index % 64);
            if word != 0 {
                let found = index + word.trailing_zeros();
                return (found < self.length).then_some(PieceIndex(found));
            }
            index = (index / 64 + 1) * 64;
        }
        None
    }

    /// First set bit at or after `from`.
    pub fn first_present(&self, from: u32) -> Option<PieceIndex> {
        let mut index = from;
        while index < self.length {
            let word = self.words[(index / 64) as usize] >> (index % 64);
            if word != 0 {
                return Some(PieceIndex(index + word.trailing_zeros()));
            }
            index = (index / 64 + 1) * 64;
        }
        None
    }

    /// The bits as bytes, the first piece in the highest bit of the first byte (BitTorrent, BEP 3).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length.div_ceil(8) as usize];
        for piece in self.iter() {
            bytes[(piece.0 / 8) as usize] |= 0x80 >> (piece.0 % 8);
        }
        bytes
    }

    /// Reads what [`Bitfield::to_bytes`] wrote; `None` when the length differs or spare bits are set.
    pub fn from_bytes(length: u32, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != length.div_ceil(8) as usize {
            return None;
        }
        let mut field = Self::new(length);
        for (position, &byte) in bytes.iter().enumerate() {
            for bit in 0..8u32 {
                if byte & (0x80 >> bit) != 0 {
                    let index = u32::try_from(position).ok()?.checked_mul(8)?.checked_add(bit)?;
                    if !field.insert(PieceIndex(index)) {
                        return None;
                    }
                }
            }
        }
        Some(field)
    }

    fn clear_tail(&mut self) {
        let used = self.length % 64;
        if used != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= u64::MAX >> (64 - used);
        }
    }

    fn recount(&mut self) {
        self.ones = self.words.iter().map(|word| word.count_ones()).sum();
    }
}

/// The set bits of the word at `position`, lowest first.
fn ones(position: usize, mut word: u64) -> impl Iterator<Item = PieceIndex> {
    // At most `MAX_PIECES` bits, so a word's position times 64 fits.
    #[expect(clippy::cast_possible_truncation)]
    let start = position as u32 * 64;
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = word.trailing_zeros();
        word &= word - 1;
        Some(PieceIndex(start + bit))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn indices(length: u32) -> impl Strategy<Value = BTreeSet<u32>> {
        proptest::collection::btree_set(0..length.max(1), 0..80)
    }

    fn build(length: u32, set: &BTreeSet<u32>) -> Bitfield {
        let mut field = Bitfield::new(length);
        for &index in set {
            field.insert(PieceIndex(index));
        }
        field
    }

    proptest! {
        #[test]
        fn behaves_as_a_set(length in 1u32..200, a in indices(200), b in indices(200), from in 0u32..210) {
            let a: BTreeSet<u32> = a.into_iter().filter(|i| *i < length).collect();
            let b: BTreeSet<u32> = b.into_iter().filter(|i| *i < length).collect();
            let (fa, fb) = (build(length, &a), build(length, &b));
            prop_assert_eq!(fa.count() as usize, a.len());
            prop_assert_eq!(fa.iter().map(|p| p.0).collect::<BTreeSet<_>>(), a.clone());
            let minus: Vec<u32> = a.difference(&b).copied().collect();
            prop_assert_eq!(fa.iter_without(&[&fb]).map(|p| p.0).collect::<Vec<_>>(), minus.clone());
            prop_assert_eq!(fa.any_without(&[&fb]), !minus.is_empty());
            prop_assert_eq!(fa.any_clear(&[&fb]), a.union(&b).count() < length as usize);
            prop_assert_eq!(fa.any_clear(&[]), a.len() < length as usize);
            let mut both = fa.clone();
            both.union(&fb);
            prop_assert_eq!(both.count() as usize, a.union(&b).count());
            prop_assert_eq!(fa.first_missing(from).map(|p| p.0), (from..length).find(|i| !a.contains(i)));
            prop_assert_eq!(fa.first_present(from).map(|p| p.0), (from..length).find(|i| a.contains(i)));
            prop_assert_eq!(Bitfield::from_bytes(length, &fa.to_bytes()), Some(fa));
        }

        #[test]
        fn full_is_full(length in 0u32..300) {
            let full = Bitfield::full(length);
            prop_assert!(full.is_full());
            prop_assert_eq!(full.first_missing(0), None);
        }

        #[test]
        fn foreign_bytes_never_panic(length in 0u32..300, bytes: Vec<u8>) {
            if let Some(field) = Bitfield::from_bytes(length, &bytes) {
                prop_assert_eq!(field.to_bytes(), bytes);
            }
        }
    }
}
