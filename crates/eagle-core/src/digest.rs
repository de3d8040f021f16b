//! Content digests as the OCI image specification defines them (image-spec 1.1, "Digests").

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256, Sha512};

/// The hash functions that the OCI specification registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// Name in front of the colon of a digest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the hash in bytes.
    pub const fn length(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The digest of no bytes.
    pub fn empty(self) -> Digest {
        Hasher::new(self).finish()
    }
}

/// Digest of a blob or manifest: an algorithm and a hash of exactly its length.
///
/// A value of this type is always well formed, so it can be used in file names and URLs without a
/// further check.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Digest {
    /// A SHA-256 hash.
    Sha256([u8; 32]),
    /// A SHA-512 hash.
    Sha512([u8; 64]),
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// There is no colon between algorithm and hash.
    #[error("a digest is written ALGORITHM:HEX, and this has no colon")]
    NoColon,
    /// The algorithm is not one that Eagle can verify.
    #[error("the digest algorithm is not sha256 or sha512")]
    UnknownAlgorithm,
    /// The hash has the wrong length or characters other than 0-9 and a-f.
    #[error("the hash of a {0} digest is {1} lower-case hexadecimal characters")]
    BadHash(&'static str, usize),
}

/// For hash tables, all bytes of the hash and nothing else: a digest that somebody announces or names in a URL is any bytes that they
/// like, not the hash of anything, so no part of it may stand for the whole. Neither the algorithm nor a length is written, for the two algorithms
/// differ in length.
impl std::hash::Hash for Digest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write(self.as_bytes());
    }
}

impl Digest {
    /// Hashes `bytes` with SHA-256.
    pub fn of(bytes: &[u8]) -> Self {
        Self::Sha256(Sha256::digest(bytes).into())
    }

    /// The algorithm of this digest.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw hash.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(hash) => hash,
            Self::Sha512(hash) => hash,
        }
    }

    /// A digest from an algorithm and a raw hash; `None` when the length is wrong.
    pub fn from_bytes(algorithm: Algorithm, hash: &[u8]) -> Option<Self> {
        match algorithm {
            Algorithm::Sha256 => hash.try_into().ok().map(Self::Sha256),
            Algorithm::Sha512 => hash.try_into().ok().map(Self::Sha512),
        }
    }

    /// The hash in lower-case hexadecimal, without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.as_bytes())
    }

    /// First 12 hexadecimal characters, for people.
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }

    /// A hasher that yields digests of the same algorithm.
    pub fn hasher(&self) -> Hasher {
        Hasher::new(self.algorithm())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, hash) = text.split_once(':').ok_or(ParseDigestError::NoColon)?;
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(ParseDigestError::UnknownAlgorithm),
        };
        let bad = ParseDigestError::BadHash(algorithm.name(), 2 * algorithm.length());
        // The specification allows lower case only: two spellings would be two blobs.
        if !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad);
        }
        match hex::decode(hash) {
            Ok(bytes) => Self::from_bytes(algorithm, &bytes).ok_or(bad),
            Err(_) => Err(bad),
        }
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Incremental hash of a blob.
#[derive(Debug, Clone)]
pub struct Hasher(HasherState);

#[derive(Debug, Clone)]
enum HasherState {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// An empty hasher.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => HasherState::Sha256(Sha256::new()),
            Algorithm::Sha512 => HasherState::Sha512(Box::default()),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            HasherState::Sha256(state) => state.update(bytes),
            HasherState::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        match self.0 {
            HasherState::Sha256(state) => Digest::Sha256(state.finalize().into()),
            HasherState::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parses_what_it_prints() {
        let digest = Digest::of(b"eagle");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let long = Digest::Sha512([7; 64]);
        assert_eq!(long.to_string().parse(), Ok(long));
    }

    #[test]
    fn refuses_what_is_not_a_digest() {
        let upper = Digest::of(b"x").to_string().to_uppercase();
        for text in ["", "sha256", ":", "sha256:", "md5:00", "sha256:zz", "sha256:../../etc/passwd", &upper] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    /// Whoever makes up digests that agree in a part of their bytes cannot make the entries of a table meet.
    #[test]
    fn every_byte_counts_in_a_table() {
        let table = std::hash::RandomState::new();
        for plain in [Digest::Sha256([0; 32]), Digest::Sha512([0; 64])] {
            for place in 0..plain.algorithm().length() {
                let mut bytes = plain.as_bytes().to_vec();
                bytes[place] = 1;
                let other = Digest::from_bytes(plain.algorithm(), &bytes).unwrap();
                assert_ne!(table.hash_one(plain), table.hash_one(other), "byte {place} of {plain}");
            }
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,200}") {
            let _ = text.parse::<Digest>();
        }

        #[test]
        fn hashing_in_parts_is_hashing_whole(bytes: Vec<u8>, cut in 0usize..100) {
            let cut = cut.min(bytes.len());
            let mut hasher = Hasher::new(Algorithm::Sha256);
            hasher.update(&bytes[..cut]);
            hasher.update(&bytes[cut..]);
            prop_assert_eq!(hasher.finish(), Digest::of(&bytes));
        }
    }
}
