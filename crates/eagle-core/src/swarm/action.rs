//! What a swarm and its driver tell each other: actions, verdicts, totals.

use crate::{
    geometry::PieceIndex,
    wire::control::{BlobMessage, PeerAddress},
};

/// A peer, as the driver numbers them; unique within one driver, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub u64);

/// A request for a piece, unique within one swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

/// What the driver shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a control message about this blob.
    Send {
        /// To whom.
        peer: PeerKey,
        /// What.
        message: BlobMessage,
    },
    /// Ask for a piece over the data channel; `None` asks for any.
    Request {
        /// Whom.
        peer: PeerKey,
        /// Number of the request.
        id: RequestId,
        /// Which piece.
        piece: Option<PieceIndex>,
    },
    /// Cancel a request; its answer, if one comes still, is to be reported all the same.
    Cancel {
        /// Who was asked.
        peer: PeerKey,
        /// Number of the request.
        id: RequestId,
    },
    /// Tell a peer where these are, as far as it is known where they listen: they take part, and it has asked for some.
    TellPeers {
        /// Whom.
        peer: PeerKey,
        /// About whom.
        about: Vec<PeerKey>,
    },
    /// Connect to peers that another peer has told of, and name them to this swarm; fewer when it is connected to them or on
    /// the way, or they are this node itself.
    Connect {
        /// Who has told.
        from: PeerKey,
        /// Each once, with addresses that can be a host's.
        peers: Vec<PeerAddress>,
        /// How many of them at most.
        most: usize,
    },
    /// Disconnect the peer and keep it away for a while: it sent what no honest peer sends.
    Ban {
        /// Whom.
        peer: PeerKey,
        /// Why, for the log.
        reason: BanReason,
    },
}

/// Why a peer is banned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BanReason {
    /// A piece did not match its hash.
    #[error("sent piece {0} with wrong bytes")]
    CorruptPiece(PieceIndex),
    /// A message contradicts the protocol.
    #[error("broke the protocol: {0}")]
    Protocol(&'static str),
}

/// How the verification of a received piece ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The hash matches and the bytes are stored.
    Stored,
    /// The bytes are wrong.
    Corrupt,
    /// The bytes are right and could not be stored.
    NotStored,
}

/// Totals of one swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SwarmTotals {
    /// Pieces received that were owned already.
    pub duplicate_pieces: u64,
    /// Pieces received with wrong bytes.
    pub corrupt_pieces: u64,
    /// Requests that ran out of time.
    pub stalled_requests: u64,
    /// Requests made, duplicates of the endgame included.
    pub requests: u64,
}
