//! Data channels: pieces, over direct TCP connections between connected peers.
//!
//! The downloading side dials and asks ([`DataChannels`]), the uploading side listens and answers
//! ([`UploadServer`]); a pair of peers that serve each other has one channel in each direction. The
//! frames are in [`eagle_core::wire::data`]. With `tls`, both ends prove their PeerId by the
//! certificates that libp2p uses; with `none`, the dialling end shows a one-time ticket that it got
//! over the control connection. In a cluster with a key a channel begins with the same hint as a control
//! connection, so that a stranger gets no answer at all. Either way the other end must be a peer that is connected at that
//! moment, and a channel ends with the session that it belongs to.
//!
//! Both ends answer to a [`Limiter`](crate::limits::Limiter) chunk by chunk.

mod buffers;
mod client;
mod patience;
mod pool;
mod queue;
mod receive;
mod send;
mod server;
#[cfg(test)]
mod tests;
mod tls;
mod transport;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::{
    Digest, PieceIndex,
    wire::{control::Load, data::RejectReason},
};
use eagle_store::ssi::BlobReader;
use libp2p::PeerId;
use tokio_util::sync::CancellationToken;

pub use self::{
    pool::{DataChannels, DataChannelsConfig, PieceRequest, RequestError, Uploader},
    server::{DataListener, UploadServer, UploadServerConfig},
};

/// Most requests on one channel that are not answered yet, on either side. A few are enough to keep
/// a channel busy; the rest is room for a peer that asks for small pieces over a long way.
pub const MAX_OUTSTANDING: usize = 64;
/// How long a peer may let a transfer stand still before its channel is closed.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long dialling, or proving who one is, may take.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What holds an upload slot, or whatever else must last as long as an upload. Dropped when the
/// last byte is sent or the upload is given up.
pub trait Permit: Send {
    /// The peer takes too little: others get the slot, and the upload goes on beside them. What is returned says
    /// when it has to end, because too many do.
    fn step_aside(&mut self) -> CancellationToken;
}

/// Nothing is held, and nobody else needs it.
impl Permit for () {
    fn step_aside(&mut self) -> CancellationToken {
        CancellationToken::new()
    }
}

/// What to do about a request.
pub enum Upload {
    /// Send a piece.
    Serve {
        /// Which piece; the one asked for, or any when the peer left it open.
        piece: PieceIndex,
        /// Where its bytes are.
        reader: Arc<dyn BlobReader>,
        /// Where the piece begins, bytes from the start of the blob.
        offset: u64,
        /// Its length, bytes.
        length: u32,
        /// How busy this node is, told to the peer.
        load: Load,
        /// Held until the upload is over.
        permit: Box<dyn Permit>,
    },
    /// Refuse.
    Reject {
        /// Why.
        reason: RejectReason,
        /// How busy this node is, told to the peer.
        load: Load,
    },
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serve { piece, offset, length, load, .. } => f
                .debug_struct("Serve")
                .field("piece", piece)
                .field("offset", offset)
                .field("length", length)
                .field("load", load)
                .finish_non_exhaustive(),
            Self::Reject { reason, load } => {
                f.debug_struct("Reject").field("reason", reason).field("load", load).finish()
            }
        }
    }
}

/// Who decides about uploads.
///
/// [`UploadHandler::request`] is called once for every request as soon as it arrives, in the order
/// of arrival on a channel, and may take its time: the futures of one channel run side by side, so
/// the handler sees the whole queue of a peer. Answers are sent in the order of the requests, so
/// grant slots to one peer in that order: a slot given to its second request stays unused until its
/// first is answered. The future is dropped when the peer cancels or leaves.
#[async_trait]
pub trait UploadHandler: Send + Sync + 'static {
    /// Decides about a request of a connected peer; `piece` is `None` when any will do.
    async fn request(&self, peer: PeerId, digest: Digest, piece: Option<PieceIndex>) -> Upload;

    /// An upload granted by `request` is over, once for each. `ok` says whether all bytes were
    /// handed to the network; when not, `bytes_sent` of them were, none if it never began.
    fn finished(&self, peer: PeerId, digest: Digest, piece: PieceIndex, bytes_sent: u64, ok: bool);

    /// How busy this node is, for answers that are made here.
    fn load(&self) -> Load;
}

/// What happens on the channels to the peers that are asked.
#[derive(Debug, Clone)]
pub enum ChannelEvent {
    /// A piece begins to arrive.
    Started {
        /// Sender.
        peer: PeerId,
        /// Number of the request.
        id: u32,
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: PieceIndex,
        /// Its length, bytes; that of the geometry.
        length: u32,
        /// How busy the sender is.
        load: Load,
    },
    /// More of a piece arrived. Sent now and then, and left out when events wait to be read.
    Progress {
        /// Sender.
        peer: PeerId,
        /// Number of the request.
        id: u32,
        /// Bytes of this piece so far.
        bytes: u32,
    },
    /// A piece arrived in full length; its content is not checked.
    Piece {
        /// Sender.
        peer: PeerId,
        /// Number of the request.
        id: u32,
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: PieceIndex,
        /// Its bytes. They count against the memory limit until the last clone is dropped.
        bytes: Bytes,
        /// How busy the sender was when it began.
        load: Load,
        /// Time from its header to its last byte.
        elapsed: Duration,
    },
    /// The peer refused.
    Rejected {
        /// Who.
        peer: PeerId,
        /// Number of the request.
        id: u32,
        /// The blob.
        digest: Digest,
        /// Why.
        reason: RejectReason,
        /// How busy it is.
        load: Load,
    },
    /// The channel to a peer could not be opened or broke. A new request dials again.
    Failed {
        /// Who.
        peer: PeerId,
        /// All requests that get no answer.
        ids: Vec<u32>,
        /// Why, for operators.
        reason: String,
        /// Whether the peer broke the protocol, which no honest one does.
        misbehaved: bool,
    },
}
