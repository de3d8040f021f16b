//! What happens, and when.

use std::{cmp::Reverse, collections::BinaryHeap};

use eagle_core::{
    PieceIndex,
    swarm::{RequestId, Verdict},
    wire::{
        control::{BlobMessage, Load},
        data::RejectReason,
    },
};

/// Something that happens to a node.
#[derive(Debug)]
pub(crate) enum Event {
    Start(u32),
    OriginPiece {
        blob: u16,
        piece: PieceIndex,
    },
    /// The answer of the tracker or of a peer has come, and the peers in it are connected.
    Connected {
        node: u32,
        blob: u16,
        peers: Box<[u32]>,
        by_tracker: bool,
    },
    Announce(u32),
    /// Control messages that one node sent in the same moment over the same distance.
    Messages {
        from: u32,
        blob: u16,
        batch: Box<[(u32, BlobMessage)]>,
    },
    Request {
        from: u32,
        to: u32,
        blob: u16,
        id: RequestId,
        piece: Option<PieceIndex>,
    },
    Cancel {
        from: u32,
        to: u32,
        blob: u16,
        id: RequestId,
    },
    Reject {
        to: u32,
        blob: u16,
        id: RequestId,
        reason: RejectReason,
        load: Load,
    },
    Begin {
        to: u32,
        blob: u16,
        id: RequestId,
        piece: PieceIndex,
        load: Load,
    },
    /// The chunk on a node's uplink is sent.
    Sent(u32),
    /// A receiver has room for a chunk again.
    Wake {
        node: u32,
        at: u64,
    },
    Progress {
        to: u32,
        blob: u16,
        id: RequestId,
    },
    Arrived {
        from: u32,
        to: u32,
        blob: u16,
        id: RequestId,
        piece: PieceIndex,
    },
    Verified {
        node: u32,
        from: u32,
        blob: u16,
        piece: PieceIndex,
        verdict: Verdict,
    },
    Timeout {
        node: u32,
        blob: u16,
        at: u64,
    },
    Churn(usize),
    /// The connections to a node that is gone are lost.
    Lost(u32),
    Sample,
}

impl Event {
    /// Number of the kind, and the nodes and the piece or request that it is about, for the trace.
    pub(crate) fn summary(&self) -> (u8, u32, u32, u32) {
        match *self {
            Self::Start(node) => (0, node, 0, 0),
            Self::OriginPiece { blob, piece } => (1, blob.into(), 0, piece.0),
            Self::Connected { node, blob, ref peers, .. } => (2, node, blob.into(), peers.iter().sum()),
            Self::Announce(node) => (3, node, 0, 0),
            Self::Messages { from, blob, ref batch } => {
                (4, from, blob.into(), batch.iter().fold(0, |sum, (to, _)| sum.wrapping_mul(31).wrapping_add(*to)))
            }
            Self::Request { from, to, piece, .. } => (5, from, to, piece.map_or(u32::MAX, |piece| piece.0)),
            Self::Cancel { from, to, id, .. } => (6, from, to, id.0),
            Self::Reject { to, id, reason, .. } => (7, to, reason as u32, id.0),
            Self::Begin { to, id, piece, .. } => (8, to, id.0, piece.0),
            Self::Sent(node) => (9, node, 0, 0),
            Self::Wake { node, .. } => (10, node, 0, 0),
            Self::Progress { to, id, .. } => (11, to, 0, id.0),
            Self::Arrived { from, to, piece, .. } => (12, from, to, piece.0),
            Self::Verified { node, from, piece, .. } => (13, node, from, piece.0),
            Self::Timeout { node, blob, .. } => (14, node, blob.into(), 0),
            Self::Churn(number) => (15, u32::try_from(number).unwrap_or(u32::MAX), 0, 0),
            Self::Lost(node) => (16, node, 0, 0),
            Self::Sample => (17, 0, 0, 0),
        }
    }
}

struct Queued {
    at: u64,
    serial: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.serial) == (other.at, other.serial)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

/// Events in the order of their time, and of their making where that is the same.
#[derive(Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Queued>>,
    serial: u64,
}

impl Queue {
    /// `at` is in nanoseconds since the start.
    pub(crate) fn push(&mut self, at: u64, event: Event) {
        self.serial += 1;
        self.heap.push(Reverse(Queued { at, serial: self.serial, event }));
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|Reverse(queued)| (queued.at, queued.event))
    }
}
