//! Small blobs in memory.
//!
//! Configurations and other small blobs are read by every pull, and opening a file costs more than sending
//! them. A few of those last read are kept, each checked against its digest when it came from the disk. The
//! cache still decides what there is: a blob that it no longer has is not served from here either.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use eagle_core::Digest;
use lru::LruCache;

/// Largest blob kept, bytes: hashing it takes 40 us once, and every image configuration is smaller.
pub(super) const MAX_SMALL: u64 = 64 << 10;
/// Bytes of all that are kept: thousands of configurations, and little beside the 30 MiB of an idle proxy.
const MAX_BYTES: usize = 4 << 20;

/// The small blobs that were read last.
#[derive(Debug)]
pub(super) struct SmallBlobs(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    blobs: LruCache<Digest, Bytes>,
    bytes: usize,
}

impl SmallBlobs {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Kept { blobs: LruCache::unbounded(), bytes: 0 }))
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.kept().blobs.get(digest).cloned()
    }

    /// Keeps a blob whose digest matched, in place of those not read for longest.
    pub(super) fn put(&self, digest: Digest, content: Bytes) {
        let mut kept = self.kept();
        // An empty blob takes room too: that of its entry.
        kept.bytes += cost(&content);
        if let Some(old) = kept.blobs.put(digest, content) {
            kept.bytes -= cost(&old);
        }
        while kept.bytes > MAX_BYTES
            && let Some((_, oldest)) = kept.blobs.pop_lru()
        {
            kept.bytes -= cost(&oldest);
        }
    }

    pub(super) fn remove(&self, digest: &Digest) {
        let mut kept = self.kept();
        if let Some(content) = kept.blobs.pop(digest) {
            kept.bytes -= cost(&content);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Whole between operations: a panic elsewhere leaves it usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory that a blob takes here, about: its bytes, and its entry in the map.
fn cost(content: &Bytes) -> usize {
    content.len() + 256
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(number: u32, length: usize) -> (Digest, Bytes) {
        (Digest::of(&number.to_be_bytes()), vec![1; length].into())
    }

    #[test]
    fn the_bytes_kept_have_a_bound_and_the_oldest_go() {
        let small = SmallBlobs::new();
        let (first, content) = blob(0, 60_000);
        small.put(first, content);
        for number in 1..1000 {
            assert!(small.get(&first).is_some(), "what is read stays");
            let (digest, content) = blob(number, 60_000);
            small.put(digest, content.clone());
            small.put(digest, content);
        }
        assert!(small.get(&blob(1, 0).0).is_none());
        assert!(small.get(&blob(999, 0).0).is_some());
        let held: usize = small.kept().blobs.iter().map(|(_, content)| cost(content)).sum();
        assert_eq!(held, small.kept().bytes);
        assert!(held <= MAX_BYTES && held > MAX_BYTES - 70_000, "{held}");
        for number in 0..100_000 {
            small.put(blob(number, 0).0, Bytes::new());
        }
        assert!(small.kept().blobs.len() <= MAX_BYTES / 256, "empty ones are bounded too");
    }

    #[test]
    fn what_is_removed_is_gone() {
        let small = SmallBlobs::new();
        let (digest, content) = blob(1, 10);
        small.put(digest, content.clone());
        assert_eq!(small.get(&digest), Some(content));
        small.remove(&digest);
        small.remove(&digest);
        assert_eq!((small.get(&digest), small.kept().bytes), (None, 0));
    }
}
