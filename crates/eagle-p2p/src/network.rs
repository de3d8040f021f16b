//! Control connections: who is there, and messages between peers.
//!
//! A libp2p swarm (TCP, with a cluster key its private network, TLS 1.3 with identity certificates,
//! yamux) finds out who is at the other end. On top of it, each side opens one stream to the other and sends on it
//! ([`eagle_core::wire::control`]); both streams together are a *session*. There is at most one
//! session per peer, whatever the number of connections: when both sides dial at once there are two
//! connections, each side sends on the one it saw first, and the session may span both. So nothing
//! has to be decided between the two sides, and nothing is lost.
//!
//! ```text
//!  Network (handle) ──requests──► driver ──streams──► session, one per peer ──► NetworkEvent
//!       └────────────frames, straight into the session's queue─────▲
//! ```
//!
//! The *driver* is one task that owns the swarm and never waits for the reader of events. A
//! *session* is one task per peer: it exchanges `Hello`, says [`NetworkEvent::Connected`], moves
//! messages and says [`NetworkEvent::Disconnected`], so that the events of a peer are in order. When
//! the reader of events is slow, sessions stop reading and the remote's sending stalls.
//!
//! `libp2p-stream` is not used: it drops an incoming stream when two arrive at once, does not say
//! which connection a stream is on, and keeps an entry for every connection there ever was.

mod behaviour;
mod driver;
mod private;
mod session;
mod shared;
#[cfg(test)]
pub(crate) mod tests;
mod tickets;

use std::{
    fmt, io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

pub use eagle_cluster::Membership;
use eagle_core::{
    Topology,
    wire::control::{self, ControlMessage, Encryption, Ticket, Version},
};
use libp2p::{PeerId, identity::Keypair};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::shared::Shared;
use crate::gate::Gate;

/// Events that wait for their reader; beyond that, sessions stop reading. A few per peer of a
/// usual swarm.
const EVENT_QUEUE: usize = 256;
/// How long a peer may take to hand out a ticket. It answers without looking at a disk, so this is
/// the time of a slow network.
const TICKET_TIMEOUT: Duration = Duration::from_secs(5);

/// How a node takes part in the network.
#[derive(Clone)]
pub struct NetworkConfig {
    /// Who this node is.
    pub keypair: Keypair,
    /// Who may connect, and is connected to.
    pub membership: Membership,
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Port of this node's data channel listener, told to every peer.
    pub data_port: u16,
    /// How that listener is protected, told to every peer.
    pub encryption: Encryption,
    /// Where this node is, told to every peer.
    pub topology: Topology,
    /// Newest version of the control protocol to speak; peers that do not know it are spoken to in the newest that they do.
    pub version: Version,
    /// Most peers at once. Further ones are turned away.
    pub max_peers: usize,
}

impl fmt::Debug for NetworkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetworkConfig")
            .field("peer", &self.keypair.public().to_peer_id())
            .field("membership", &self.membership)
            .field("listen", &self.listen)
            .field("data_port", &self.data_port)
            .field("encryption", &self.encryption)
            .field("topology", &self.topology)
            .field("version", &self.version)
            .field("max_peers", &self.max_peers)
            .finish()
    }
}

/// Why the network or the data channels cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen for {what} on {address}: {source}")]
    Listen {
        /// `peers` or `data channels`.
        what: &'static str,
        /// The address of the configuration.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The identity has no name that peers could use; only Ed25519 keys have.
    #[error("this node's identity is not an Ed25519 key")]
    Identity,
    /// There is no certificate for this identity.
    #[error("cannot make a TLS certificate for this node's identity: {0}")]
    Certificate(#[from] libp2p::tls::certificate::GenError),
    /// There is no TLS configuration with it.
    #[error("cannot use the TLS certificate of this node's identity: {0}")]
    Tls(#[from] rustls::Error),
}

/// What happens in the network. The events of one peer come in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkEvent {
    /// A peer is there, in both directions. Not repeated before [`NetworkEvent::Disconnected`].
    Connected {
        /// Who, proven by the connection.
        peer: PeerId,
        /// Where it listens for peers, if it says so; it has not been tried whether that can be reached.
        address: Option<SocketAddr>,
        /// Where its data channel listener is.
        data_address: SocketAddr,
        /// How that listener is protected.
        encryption: Encryption,
        /// Where it says that it is.
        topology: Topology,
    },
    /// A connected peer sent a message. Only [`ControlMessage::Blob`] comes here; the other kinds
    /// are answered within the network.
    Message {
        /// The sender.
        peer: PeerId,
        /// The message.
        message: ControlMessage,
    },
    /// A connected peer is gone, or was disconnected here.
    Disconnected {
        /// Who.
        peer: PeerId,
    },
    /// A peer asked for by [`Network::connect`] was not reached. It may be connected nevertheless,
    /// or become so, when it dialled at the same time.
    Unreachable {
        /// Who.
        peer: PeerId,
        /// Why, for operators.
        reason: String,
    },
}

/// Why there is no ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// The peer is not connected, or was lost meanwhile.
    #[error("the peer is not connected")]
    NotConnected,
    /// The peer did not answer in time.
    #[error("the peer did not hand out a ticket within {} s", TICKET_TIMEOUT.as_secs())]
    Timeout,
    /// Too many tickets were asked for at once.
    #[error("too many tickets are being asked for")]
    Busy,
}

/// The handle of the network; clones are the same network.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
    listen_address: SocketAddr,
    tasks: TaskTracker,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("peer", &self.shared.local)
            .field("listen", &self.listen_address)
            .finish_non_exhaustive()
    }
}

impl Network {
    /// Listens, and runs until `shutdown`.
    ///
    /// Read the events: while they are not read, nothing arrives from any peer.
    ///
    /// # Errors
    /// When the address cannot be listened on or no certificate can be made.
    pub async fn start(
        config: NetworkConfig,
        shutdown: CancellationToken,
    ) -> Result<(Self, mpsc::Receiver<NetworkEvent>), StartError> {
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let shared = Arc::new(Shared::new(&config, events));
        let (driver, listen_address) = driver::Driver::start(&config, Arc::clone(&shared), shutdown).await?;
        shared.note_listening(listen_address.port());
        let tasks = TaskTracker::new();
        tasks.spawn(driver.run());
        tasks.close();
        Ok((Self { shared, listen_address, tasks }, receiver))
    }

    /// Who this node is.
    pub fn local_peer_id(&self) -> PeerId {
        self.shared.local
    }

    /// Where this node listens, with the real port. The address is unspecified when the configured
    /// one is.
    pub fn listen_address(&self) -> SocketAddr {
        self.listen_address
    }

    /// Dials a peer unless it is connected, being dialled, banned, or this node itself.
    ///
    /// Returns at once. [`NetworkEvent::Connected`] or [`NetworkEvent::Unreachable`] follows.
    pub fn connect(&self, peer: PeerId, address: SocketAddr) {
        self.shared.request_dial(peer, address);
    }

    /// Dials a peer again that was lost, if this node had dialled it under a cluster key that is no longer the one it
    /// uses: such connections end when the key is taken away. Says whether it does; then
    /// [`NetworkEvent::Connected`] or [`NetworkEvent::Unreachable`] follows.
    pub fn reconnect(&self, peer: PeerId) -> bool {
        self.shared.request_redial(peer)
    }

    /// Sends a message to a connected peer, after those sent before; says whether it was taken. One that the version of the protocol
    /// which the peer speaks does not have is left out.
    ///
    /// Returns at once. A peer that reads so slowly that its queue is full is disconnected, since a
    /// message left out would leave it with a wrong picture for good.
    pub fn send(&self, peer: PeerId, message: &ControlMessage) -> bool {
        self.shared.send(peer, message)
    }

    /// Ends the connection to a peer; [`NetworkEvent::Disconnected`] follows when it was connected.
    /// Its data channels end with it.
    pub fn disconnect(&self, peer: PeerId) {
        self.shared.disconnect(peer);
    }

    /// Disconnects a peer and refuses it, in both directions, for a time.
    pub fn ban(&self, peer: PeerId, time: Duration) {
        self.shared.ban(peer, Instant::now() + time);
    }

    /// Whether a peer is connected now. The event may still wait to be read.
    pub fn is_connected(&self, peer: PeerId) -> bool {
        self.shared.session(peer).is_some()
    }

    /// Number of peers connected now.
    pub fn connected(&self) -> usize {
        self.shared.connected()
    }

    /// Bytes of control messages sent to peers since the start, without those of TLS and the muxer.
    pub fn control_sent(&self) -> u64 {
        self.shared.control_sent()
    }

    /// Connections, also of data channels, that did not begin as a member's, since the start.
    pub fn strangers(&self) -> u64 {
        self.shared.gate.strangers()
    }

    /// Connections, also of data channels, that were turned away because too many came from their address, since the start.
    pub fn crowded_out(&self) -> u64 {
        self.shared.gate.crowded_out()
    }

    /// Who may open a data channel.
    pub(crate) fn gate(&self) -> &Gate {
        &self.shared.gate
    }

    /// Asks a connected peer for a ticket for one plain data channel.
    ///
    /// # Errors
    /// When the peer is not connected, is lost meanwhile, or does not answer within 5 s.
    pub async fn request_ticket(&self, peer: PeerId) -> Result<Ticket, TicketError> {
        let (sender, receiver) = oneshot::channel();
        self.shared.await_ticket(peer, sender)?;
        if !self.send(peer, &ControlMessage::TicketRequest) {
            return Err(TicketError::NotConnected);
        }
        match timeout(TICKET_TIMEOUT, receiver).await {
            Ok(Ok(ticket)) => Ok(ticket),
            Ok(Err(_)) => Err(TicketError::NotConnected),
            Err(_) => Err(TicketError::Timeout),
        }
    }

    /// The peer that a ticket was handed to; the ticket is void from then on.
    pub(crate) fn redeem_ticket(&self, ticket: &Ticket) -> Option<PeerId> {
        self.shared.tickets.redeem(ticket, Instant::now())
    }

    /// Cancelled when the present session with a peer ends; `None` without one.
    pub(crate) fn session(&self, peer: PeerId) -> Option<CancellationToken> {
        self.shared.session(peer)
    }

    /// As [`Network::session`], but waits for one to begin.
    pub(crate) async fn wait_for_session(&self, peer: PeerId, patience: Duration) -> Option<CancellationToken> {
        self.shared.wait_for_session(peer, patience).await
    }

    /// Ends when every task of the network has ended, after `shutdown` was cancelled.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

/// The bytes of a message on a stream.
fn encode(message: &ControlMessage) -> Result<bytes::Bytes, control::DecodeError> {
    let mut frame = bytes::BytesMut::new();
    control::encode(message, &mut frame)?;
    Ok(frame.freeze())
}
