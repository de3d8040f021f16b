//! Links: bytes of transfers in chunks, shared round robin, with a bounded window per transfer.

use std::{collections::VecDeque, time::Duration};

use eagle_core::{PieceIndex, swarm::RequestId};

/// Bytes that move at once; what the real engine takes from its limiter at a time.
pub(crate) const CHUNK: u32 = 64 << 10;
/// Chunks of one transfer that may wait at the receiver: a socket's buffers.
pub(crate) const WINDOW: u32 = 4;

/// One piece on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfer {
    pub(crate) to: usize,
    pub(crate) id: RequestId,
    pub(crate) piece: PieceIndex,
    pub(crate) left: u32,
    pub(crate) unacknowledged: u32,
    pub(crate) serial: u64,
}

/// The sending side of one node.
#[derive(Debug)]
pub(crate) struct Uplink {
    pub(crate) rate: f64,
    pub(crate) slots: usize,
    pub(crate) active: VecDeque<Transfer>,
    pub(crate) waiting: VecDeque<Transfer>,
    pub(crate) sending: bool,
}

impl Uplink {
    pub(crate) fn new(rate: f64, slots: usize) -> Self {
        Self { rate, slots, active: VecDeque::new(), waiting: VecDeque::new(), sending: false }
    }

    pub(crate) fn load(&self) -> usize {
        self.active.len() + self.waiting.len()
    }

    /// Fills free slots; transfers to one node go one after another, as on one channel.
    pub(crate) fn admit(&mut self) -> Vec<Transfer> {
        let mut admitted = Vec::new();
        let mut at = 0;
        while self.active.len() < self.slots && at < self.waiting.len() {
            let to = self.waiting[at].to;
            if self.active.iter().any(|active| active.to == to) {
                at += 1;
                continue;
            }
            if let Some(transfer) = self.waiting.remove(at) {
                self.active.push_back(transfer);
                admitted.push(transfer);
            }
        }
        admitted
    }

    /// The next transfer that may send, moved to the back of the round.
    pub(crate) fn next(&mut self) -> Option<Transfer> {
        let position = self.active.iter().position(|t| t.left > 0 && t.unacknowledged < WINDOW)?;
        let mut transfer = self.active.remove(position)?;
        let bytes = transfer.left.min(CHUNK);
        transfer.left -= bytes;
        transfer.unacknowledged += 1;
        self.active.push_back(transfer);
        Some(transfer)
    }

    pub(crate) fn find(&mut self, serial: u64) -> Option<&mut Transfer> {
        self.active.iter_mut().find(|transfer| transfer.serial == serial)
    }

    pub(crate) fn remove(&mut self, serial: u64) {
        self.active.retain(|transfer| transfer.serial != serial);
    }
}

/// The receiving side of one node: chunks go through it one after another.
#[derive(Debug)]
pub(crate) struct Downlink {
    pub(crate) rate: f64,
    /// When the last chunk that was put in will be through, nanoseconds.
    pub(crate) free_at: u64,
}

/// Time for some bytes at a rate.
pub(crate) fn duration(bytes: u32, rate: f64) -> Duration {
    Duration::from_secs_f64(f64::from(bytes) / rate)
}
