//! Links: bytes of transfers in chunks, in turn, with a bounded window for each transfer.

use std::{collections::VecDeque, time::Duration};

use eagle_core::{
    PieceIndex,
    swarm::{RequestId, WaitingUploads},
    tracker::NodeLoad,
    wire::control::HostRate,
};

/// Time that a chunk stands for, and the least and the most that it has, bytes: a turn of the real
/// limiter (`eagle_p2p::limits`), but for the least, which bounds the number of events.
const TURN: Duration = Duration::from_millis(10);
const CHUNK: (f64, f64) = (1_024.0, 1_048_576.0);
/// Upload slots of an idle link, at most (`eagle_p2p::node`).
const MOST_SLOTS: usize = 32;
/// Chunks of one transfer that may be under way: a socket's buffers.
const WINDOW: usize = 4;

/// One piece on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfer {
    pub(crate) to: u32,
    pub(crate) blob: u16,
    pub(crate) id: RequestId,
    pub(crate) piece: PieceIndex,
    pub(crate) left: u32,
    /// When each of the last chunks arrives, in turn.
    arrivals: [u64; WINDOW],
    chunks: usize,
    /// Last time that the receiver was told of progress.
    pub(crate) told: u64,
}

impl Transfer {
    pub(crate) fn new(to: u32, blob: u16, id: RequestId, piece: PieceIndex, length: u32) -> Self {
        Self { to, blob, id, piece, left: length, arrivals: [0; WINDOW], chunks: 0, told: 0 }
    }

    /// When the next chunk may be sent.
    fn room_at(&self) -> u64 {
        self.arrivals[self.chunks % WINDOW]
    }

    /// The next chunk is under way.
    pub(crate) fn sent(&mut self, bytes: u32, arrives: u64) {
        self.left -= bytes;
        self.arrivals[self.chunks % WINDOW] = arrives;
        self.chunks += 1;
    }
}

/// What an uplink can do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Send a chunk of the transfer at this place.
    Send(usize),
    /// Wait until then, for a receiver.
    Wait(u64),
    /// Nothing.
    Idle,
}

/// The sending side of one node.
#[derive(Debug)]
pub(crate) struct Uplink {
    pub(crate) rate: f64,
    slots: usize,
    active: VecDeque<Transfer>,
    waiting: WaitingUploads<Transfer>,
    /// A chunk is being sent, of the transfer at the end of `active`.
    pub(crate) sending: bool,
    /// When it is to be looked at again, nanoseconds.
    pub(crate) wake: Option<u64>,
}

impl Uplink {
    pub(crate) fn new(rate: f64, slots: usize) -> Self {
        Self { rate, slots, active: VecDeque::new(), waiting: WaitingUploads::default(), sending: false, wake: None }
    }

    pub(crate) fn load(&self) -> u16 {
        u16::try_from(self.active.len() + self.waiting.len()).unwrap_or(u16::MAX)
    }

    /// How busy it is, as announced.
    pub(crate) fn node_load(&self) -> NodeLoad {
        let free = self.slots.saturating_sub(self.active.len());
        NodeLoad { requests: self.load(), free_slots: u16::try_from(free).unwrap_or(u16::MAX) }
    }

    /// A transfer waits, to a node that can take this much.
    pub(crate) fn wait(&mut self, receiver: HostRate, transfer: Transfer) {
        self.waiting.push(receiver, transfer);
    }

    /// Takes back a transfer that has not begun.
    pub(crate) fn cancel(&mut self, to: u32, id: RequestId, blob: u16) -> Option<Transfer> {
        self.waiting.cancel(|t| (t.to, t.id, t.blob) == (to, id, blob))
    }

    /// Takes back every transfer to a node that has gone, but the one whose chunk is on the link.
    pub(crate) fn forget(&mut self, to: u32) -> Vec<Transfer> {
        let on_link = if self.sending { self.active.pop_back() } else { None };
        let mut forgotten = Vec::new();
        self.active.retain(|transfer| {
            if transfer.to == to {
                forgotten.push(*transfer);
            }
            transfer.to != to
        });
        forgotten.extend(std::iter::from_fn(|| self.waiting.cancel(|transfer| transfer.to == to)));
        self.active.extend(on_link);
        forgotten
    }

    /// The waiting transfer that a free slot takes; transfers to one node go one after another.
    ///
    /// A link that is idle, since the receivers in its slots take no more, has a slot more for each one.
    pub(crate) fn admit(&mut self, now: u64) -> Option<Transfer> {
        let idle = || !self.sending && !matches!(self.next(now), Next::Send(_));
        if self.active.len() >= self.slots && (self.active.len() >= MOST_SLOTS || !idle()) {
            return None;
        }
        let free = |transfer: &Transfer| self.active.iter().all(|active| active.to != transfer.to);
        let transfer = self.waiting.next(free)?;
        // Before the one on the link, which stays at the end.
        let place = self.active.len() - usize::from(self.sending);
        self.active.insert(place, transfer);
        Some(transfer)
    }

    pub(crate) fn next(&self, now: u64) -> Next {
        let mut earliest = u64::MAX;
        for (place, transfer) in self.active.iter().enumerate().filter(|(_, transfer)| transfer.left > 0) {
            let at = transfer.room_at();
            if at <= now {
                return Next::Send(place);
            }
            earliest = earliest.min(at);
        }
        if earliest == u64::MAX { Next::Idle } else { Next::Wait(earliest) }
    }

    /// Moves a transfer to the end of the round, where its chunk is sent.
    pub(crate) fn begin_chunk(&mut self, place: usize) -> Option<&mut Transfer> {
        let transfer = self.active.remove(place)?;
        self.sending = true;
        self.active.push_back(transfer);
        self.active.back_mut()
    }

    /// The transfer whose chunk is on the link.
    pub(crate) fn on_link(&mut self) -> Option<&mut Transfer> {
        if self.sending { self.active.back_mut() } else { None }
    }

    /// The chunk on the link is sent; the transfer, when that was all of it.
    pub(crate) fn end_chunk(&mut self) -> Option<Transfer> {
        self.sending = false;
        if self.active.back().is_some_and(|transfer| transfer.left == 0) { self.active.pop_back() } else { None }
    }

    /// Bytes of a chunk at the present rate.
    pub(crate) fn chunk(&self, left: u32) -> u32 {
        let bytes = (self.rate * TURN.as_secs_f64()).clamp(CHUNK.0, CHUNK.1);
        // Within the bounds above.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bytes = bytes as u32;
        left.min(bytes)
    }
}

/// A link that chunks pass one after another: a receiving side, or the link between two zones.
#[derive(Debug, Clone)]
pub(crate) struct Pipe {
    pub(crate) rate: f64,
    /// When the last chunk that was put in will be through, nanoseconds.
    free_at: u64,
}

impl Pipe {
    pub(crate) fn new(rate: f64) -> Self {
        Self { rate, free_at: 0 }
    }

    /// When a chunk that is there at `ready` is through.
    pub(crate) fn pass(&mut self, ready: u64, bytes: u32) -> u64 {
        self.free_at = self.free_at.max(ready) + time(bytes, self.rate);
        self.free_at
    }
}

/// Nanoseconds for some bytes at a rate; none at an infinite rate.
pub(crate) fn time(bytes: u32, rate: f64) -> u64 {
    nanos(Duration::from_secs_f64(f64::from(bytes) / rate))
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink(slots: usize, to: &[u32]) -> Uplink {
        let mut uplink = Uplink::new(100e6, slots);
        for (number, &to) in (0..).zip(to) {
            uplink.wait(HostRate::UNKNOWN, Transfer::new(to, 0, RequestId(number), PieceIndex(0), 1 << 20));
        }
        while uplink.admit(0).is_some() {}
        uplink
    }

    #[test]
    fn one_transfer_for_each_receiver_in_the_slots() {
        let uplink = uplink(3, &[1, 1, 2, 3, 4]);
        let active: Vec<u32> = uplink.active.iter().map(|transfer| transfer.to).collect();
        assert_eq!(active, [1, 2, 3]);
        assert_eq!(uplink.load(), 5);
    }

    #[test]
    fn a_receiver_whose_buffers_are_full_is_passed_over() {
        let mut uplink = uplink(2, &[1, 2]);
        for _ in 0..WINDOW {
            assert_eq!(uplink.next(0), Next::Send(0));
            uplink.begin_chunk(0).unwrap().sent(1 << 10, 50);
            uplink.end_chunk();
            uplink.active.rotate_right(1);
        }
        assert_eq!(uplink.next(0), Next::Send(1));
        uplink.active.pop_back();
        assert_eq!(uplink.next(0), Next::Wait(50));
        assert_eq!(uplink.next(50), Next::Send(0));
    }

    #[test]
    fn a_pipe_takes_one_after_another() {
        let mut pipe = Pipe::new(1e9);
        assert_eq!(pipe.pass(10, 100), 110);
        assert_eq!(pipe.pass(10, 100), 210);
        assert_eq!(pipe.pass(500, 100), 600);
    }
}
