//! A storage that answers late.

use std::time::Duration;

use async_trait::async_trait;

use super::{Call, Policy};
use crate::error::StorageError;

/// Every call waits for the same time first, any number of them side by side.
#[derive(Debug, Clone, Copy)]
pub struct Latency(Duration);

impl Latency {
    /// Each call takes this much longer.
    pub const fn new(delay: Duration) -> Self {
        Self(delay)
    }
}

#[async_trait]
impl Policy for Latency {
    async fn before(&self, _call: Call, _bytes: u64) -> Result<(), StorageError> {
        tokio::time::sleep(self.0).await;
        Ok(())
    }
}
