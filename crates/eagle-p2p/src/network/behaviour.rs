//! The part of the swarm that opens and accepts control streams.
//!
//! It decides nothing: the driver says on which connection to open a stream, and is told of every
//! stream that was opened or accepted, with its connection.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use eagle_core::wire::control::PROTOCOL;
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, connection_limits,
    core::{Endpoint, transport::PortUse, upgrade::ReadyUpgrade},
    ping,
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
        NotifyHandler, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};

use super::shared::Shared;

/// Accepted streams of one connection that the driver has not taken yet. A peer opens one.
const MAX_UNTAKEN: usize = 2;

/// Everything that runs on a connection.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) limits: connection_limits::Behaviour,
    /// Finds peers that vanished without a word.
    pub(super) ping: ping::Behaviour,
    pub(super) control: Control,
}

/// A stream came to be, or could not.
#[derive(Debug)]
pub(super) struct StreamEvent {
    pub(super) peer: PeerId,
    pub(super) connection: ConnectionId,
    pub(super) outcome: Outcome,
}

#[derive(Debug)]
pub(super) enum Outcome {
    /// The peer opened a stream to send on.
    Accepted(Stream),
    /// The stream asked for by [`Control::open`].
    Opened(Stream),
    /// There is no such stream, and why.
    Refused(String),
}

pub(super) struct Control {
    shared: Arc<Shared>,
    queue: VecDeque<ToSwarm<StreamEvent, Open>>,
}

impl Control {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, queue: VecDeque::new() }
    }

    /// Opens a stream on a connection; [`Outcome::Opened`] or [`Outcome::Refused`] follows unless
    /// the connection closes first.
    pub(super) fn open(&mut self, peer: PeerId, connection: ConnectionId) {
        self.queue.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: Open,
        });
    }

    fn admit(&self, peer: &PeerId) -> Result<Handler, ConnectionDenied> {
        if self.shared.is_banned(peer) { Err(ConnectionDenied::new(Banned)) } else { Ok(Handler::default()) }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the peer is banned for now")]
struct Banned;

impl NetworkBehaviour for Control {
    type ConnectionHandler = Handler;
    type ToSwarm = StreamEvent;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(&peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(&peer)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, outcome: THandlerOutEvent<Self>) {
        self.queue.push_back(ToSwarm::GenerateEvent(StreamEvent { peer, connection, outcome }));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // The swarm polls after everything that fills the queue, so no waker is kept.
        self.queue.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// Asks a connection to open a control stream.
#[derive(Debug)]
pub(super) struct Open;

/// One connection.
#[derive(Default)]
pub(super) struct Handler {
    open: bool,
    outcomes: VecDeque<Outcome>,
}

type Protocol = ReadyUpgrade<StreamProtocol>;

fn protocol() -> SubstreamProtocol<Protocol> {
    SubstreamProtocol::new(ReadyUpgrade::new(StreamProtocol::new(PROTOCOL)), ())
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Outcome;
    type InboundProtocol = Protocol;
    type OutboundProtocol = Protocol;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Protocol> {
        protocol()
    }

    fn on_behaviour_event(&mut self, Open: Open) {
        self.open = true;
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Protocol, (), Outcome>> {
        if std::mem::take(&mut self.open) {
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol: protocol() });
        }
        match self.outcomes.pop_front() {
            Some(outcome) => Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(outcome)),
            None => Poll::Pending,
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Protocol, Protocol>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. })
                if self.outcomes.len() < MAX_UNTAKEN =>
            {
                self.outcomes.push_back(Outcome::Accepted(protocol));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, .. }) => {
                self.outcomes.push_back(Outcome::Opened(protocol));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                let error: libp2p::swarm::StreamUpgradeError<Infallible> = error;
                self.outcomes.push_back(Outcome::Refused(error.to_string()));
            }
            _ => {}
        }
    }
}
