//! The hash over everything that happens.

use sha2::{Digest as _, Sha256};

/// Bytes that are gathered before they are hashed: many events per call.
const BLOCK: usize = 16 << 10;

/// A running hash over numbers.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hash: Sha256,
    buffer: Vec<u8>,
}

impl Trace {
    pub(crate) fn add(&mut self, number: u64) {
        self.buffer.extend_from_slice(&number.to_le_bytes());
        if self.buffer.len() >= BLOCK {
            self.hash.update(&self.buffer);
            self.buffer.clear();
        }
    }

    /// Two numbers of at most 32 bits.
    pub(crate) fn pair(&mut self, first: u32, second: u32) {
        self.add(u64::from(first) << 32 | u64::from(second));
    }

    pub(crate) fn finish(mut self) -> String {
        self.hash.update(&self.buffer);
        self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
