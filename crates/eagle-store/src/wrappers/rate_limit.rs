//! A storage that takes and gives no more than so many bytes a second.

use std::{
    num::NonZeroU64,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Call, Policy};
use crate::error::StorageError;

/// Content read and written, together, at a rate over all blobs. A call waits until those before it are paid for, and
/// is then made at once; so nothing is kept in memory for it, and a long read is one burst.
#[derive(Debug)]
pub struct RateLimit {
    bytes_per_second: NonZeroU64,
    /// When everything allowed so far is paid for.
    free_at: Mutex<Instant>,
}

impl RateLimit {
    /// A limit of so many bytes a second.
    pub fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// When the call may be made.
    fn admit(&self, bytes: u64) -> Instant {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*free_at).max(Instant::now());
        *free_at = start + cost;
        start
    }
}

#[async_trait]
impl Policy for RateLimit {
    async fn before(&self, _call: Call, bytes: u64) -> Result<(), StorageError> {
        if bytes > 0 {
            tokio::time::sleep_until(self.admit(bytes)).await;
        }
        Ok(())
    }
}
