//! Memory for pieces that arrive: bounded, and used again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Bytes of buffers that are kept for the next pieces: four of the usual largest size. A node holds
/// few pieces at once for longer than it takes to store them, and what is kept is not for others.
const KEPT: usize = 16 << 20;

/// The buffers of all channels of a node.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Bytes that pieces in memory may still take.
    memory: Arc<Semaphore>,
    kept: Arc<Mutex<Vec<BytesMut>>>,
}

/// The buffer of one piece together with its share of the memory limit.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) bytes: BytesMut,
    kept: Arc<Mutex<Vec<BytesMut>>>,
    _share: OwnedSemaphorePermit,
}

impl Buffers {
    /// Room for `memory` bytes of pieces.
    pub(super) fn new(memory: usize) -> Self {
        Self { memory: Arc::new(Semaphore::new(memory.min(Semaphore::MAX_PERMITS))), kept: Arc::default() }
    }

    /// Waits until `length` bytes more may be in memory, and gives an empty buffer for as many.
    ///
    /// # Errors
    /// Never, as the semaphore is not closed.
    pub(super) async fn take(&self, length: u32) -> Result<Buffer, AcquireError> {
        let share = Arc::clone(&self.memory).acquire_many_owned(length).await?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let fitting = {
            let mut kept = lock(&self.kept);
            // No larger than needed by much: a short piece in a long buffer would take more than its share.
            let place = kept.iter().position(|buffer| (length..=2 * length).contains(&buffer.capacity()));
            place.map(|place| kept.swap_remove(place))
        };
        let bytes = fitting.unwrap_or_else(|| BytesMut::with_capacity(length));
        Ok(Buffer { bytes, kept: Arc::clone(&self.kept), _share: share })
    }

    /// Gives back what is kept: nobody is asked for anything at present.
    pub(super) fn clear(&self) {
        lock(&self.kept).clear();
    }
}

impl Buffer {
    /// The piece; the buffer is used again when its last clone is dropped.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut kept = lock(&self.kept);
        let size: usize = kept.iter().map(BytesMut::capacity).sum();
        if size + bytes.capacity() <= KEPT {
            kept.push(bytes);
        }
    }
}

fn lock(kept: &Mutex<Vec<BytesMut>>) -> MutexGuard<'_, Vec<BytesMut>> {
    // A list of buffers is whole between operations.
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn kept(buffers: &Buffers) -> usize {
        lock(&buffers.kept).iter().map(BytesMut::capacity).sum()
    }

    #[tokio::test]
    async fn a_buffer_is_used_again_and_begins_empty() {
        let buffers = Buffers::new(1 << 20);
        let mut first = buffers.take(1 << 16).await.unwrap();
        first.bytes.extend_from_slice(b"old");
        let place = first.bytes.as_ptr();
        let piece = first.freeze();
        assert_eq!(piece.as_ref(), b"old");
        let clone = piece.clone();
        drop(piece);
        assert_eq!(kept(&buffers), 0, "a clone still uses it");
        drop(clone);
        let second = buffers.take(1 << 16).await.unwrap();
        assert_eq!((second.bytes.as_ptr(), second.bytes.len()), (place, 0));
        // A much shorter piece has a buffer of its own.
        drop(second);
        let short = buffers.take(100).await.unwrap();
        assert!(short.bytes.capacity() < 1 << 16);
        drop(short);
        buffers.clear();
        assert_eq!(kept(&buffers), 0);
    }

    #[tokio::test]
    async fn memory_and_what_is_kept_are_bounded() {
        let buffers = Buffers::new(64 << 20);
        let mut taken = Vec::new();
        for _ in 0..16 {
            taken.push(buffers.take(4 << 20).await.unwrap());
        }
        assert!(buffers.take(1).now_or_never().is_none(), "all of the memory is taken");
        taken.clear();
        assert_eq!(kept(&buffers), KEPT);
        assert!(buffers.take(64 << 20).now_or_never().is_some());
    }
}
