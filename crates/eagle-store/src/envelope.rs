//! Small files that tell damage from content: 8 bytes of kind and version, the SHA-256 of the body,
//! the body in postcard.

use eagle_core::Digest;
use serde::{Serialize, de::DeserializeOwned};

/// Bytes in front of the body.
const HEADER: usize = 8 + 32;

/// Kind and version of a file.
pub(crate) type Magic = [u8; 8];

/// The bytes of a file of kind `magic`; `None` when `value` cannot be written in postcard.
pub(crate) fn encode<T: Serialize>(magic: Magic, value: &T) -> Option<Vec<u8>> {
    let body = postcard::to_stdvec(value).ok()?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&magic);
    bytes.extend_from_slice(Digest::of(&body).as_bytes());
    bytes.extend_from_slice(&body);
    Some(bytes)
}

/// What [`encode`] was given; `None` when the bytes are of another kind or damaged.
pub(crate) fn decode<T: DeserializeOwned>(magic: Magic, bytes: &[u8]) -> Option<T> {
    let (kind, rest) = bytes.split_first_chunk::<8>()?;
    let (hash, body) = rest.split_first_chunk::<32>()?;
    if *kind != magic || Digest::of(body) != Digest::Sha256(*hash) {
        return None;
    }
    postcard::from_bytes(body).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAGIC: Magic = *b"test0001";

    proptest! {
        #[test]
        fn any_change_is_noticed(value: Vec<u64>, place: proptest::sample::Index, flip in 1u8..) {
            let mut bytes = encode(MAGIC, &value).unwrap();
            prop_assert_eq!(decode::<Vec<u64>>(MAGIC, &bytes), Some(value));
            prop_assert_eq!(decode::<Vec<u64>>(*b"test0002", &bytes), None);
            let place = place.index(bytes.len());
            prop_assert_eq!(decode::<Vec<u64>>(MAGIC, &bytes[..place]), None);
            bytes[place] ^= flip;
            prop_assert_eq!(decode::<Vec<u64>>(MAGIC, &bytes), None);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode::<Vec<u64>>(MAGIC, &bytes);
        }
    }
}
