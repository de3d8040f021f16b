//! Buffers that are used again.
//!
//! A blob that is sent to a runtime goes through memory block by block. A block from the allocator
//! is often new pages of the kernel, which cost more than the copy; one that was used a moment ago
//! is still in the processor's cache.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Length of a buffer that is kept, bytes: what a proxy reads at a time. It fits the second-level
/// cache of any core.
pub(super) const BLOCK: usize = 256 << 10;
/// Shorter ones come from the allocator: they would take several times their length here, for as long as a slow reader holds them.
const MIN_POOLED: usize = BLOCK / 4 + 1;
/// Buffers kept while nobody uses them: 4 MiB, and enough for as many responses at full speed.
const MAX_IDLE: usize = 16;

/// Buffers that nobody uses now.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

/// Bytes that go back to where they came from.
#[derive(Debug)]
pub(super) struct Buffer {
    /// At least `length` bytes; [`BLOCK`] if it is one that is kept.
    memory: Vec<u8>,
    length: usize,
    home: Arc<Buffers>,
}

impl Buffers {
    /// `length` bytes with any content.
    pub(super) fn take(self: &Arc<Self>, length: usize) -> Buffer {
        let memory = if (MIN_POOLED..=BLOCK).contains(&length) {
            // Not in one expression: the lock is not to be held while the kernel makes pages.
            let idle = self.idle().pop();
            idle.unwrap_or_else(|| vec![0; BLOCK])
        } else {
            vec![0; length]
        };
        Buffer { memory, length, home: Arc::clone(self) }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(..self.length).unwrap_or_default()
    }

    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.memory.get(..self.length).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.memory.len() == BLOCK {
            let mut idle = self.home.idle();
            if idle.len() < MAX_IDLE {
                idle.push(std::mem::take(&mut self.memory));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_few_are_kept() {
        let buffers = Arc::new(Buffers::default());
        let address = |bytes: &Bytes| bytes.as_ptr() as usize;
        let mut first = buffers.take(100_000);
        first.as_mut().fill(7);
        let first = first.into_bytes();
        let part = first.slice(5..9);
        let place = address(&first);
        assert_eq!((first.len(), &part[..]), (100_000, &[7; 4][..]));
        drop(first);
        assert_ne!(address(&buffers.take(BLOCK).into_bytes()), place, "a part of it is still held");
        drop(part);
        assert_eq!(address(&buffers.take(BLOCK).into_bytes()), place);
        let many: Vec<Bytes> = (0..3 * MAX_IDLE).map(|_| buffers.take(BLOCK).into_bytes()).collect();
        drop(many);
        assert_eq!(buffers.idle().len(), MAX_IDLE);
    }

    #[test]
    fn other_lengths_are_not_kept() {
        let buffers = Arc::new(Buffers::default());
        for length in [0, 1, MIN_POOLED - 1, BLOCK + 1] {
            assert_eq!(buffers.take(length).into_bytes().len(), length);
        }
        assert_eq!(buffers.idle().len(), 0);
    }
}
