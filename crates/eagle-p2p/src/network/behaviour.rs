//! The part of the swarm that opens and accepts control streams.
//!
//! It decides nothing: the driver says on which connection to open a stream, and is told of every
//! stream that was opened or accepted, with its connection.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use eagle_core::wire::control::Version;
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, connection_limits,
    core::{Endpoint, InboundUpgrade, OutboundUpgrade, UpgradeInfo, transport::PortUse},
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
    Accepted(Stream, Version),
    /// The stream asked for by [`Control::open`].
    Opened(Stream, Version),
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
        if self.shared.is_banned(peer) {
            Err(ConnectionDenied::new(Banned))
        } else {
            Ok(Handler { newest: self.shared.newest, open: false, outcomes: VecDeque::new() })
        }
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
pub(super) struct Handler {
    newest: Version,
    open: bool,
    outcomes: VecDeque<Outcome>,
}

/// The control protocol in the newest version that both sides know, up to this one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Protocol(Version);

impl UpgradeInfo for Protocol {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        let known = Version::ALL.into_iter().filter(|version| *version <= self.0);
        known.map(|version| StreamProtocol::new(version.protocol())).collect::<Vec<_>>().into_iter()
    }
}

/// What was agreed on is one of those offered; the oldest promises least.
fn version(agreed: &StreamProtocol) -> Version {
    Version::ALL.into_iter().find(|version| version.protocol() == agreed.as_ref()).unwrap_or(Version::Two)
}

impl InboundUpgrade<Stream> for Protocol {
    type Output = (Stream, Version);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, agreed: StreamProtocol) -> Self::Future {
        ready(Ok((stream, version(&agreed))))
    }
}

impl OutboundUpgrade<Stream> for Protocol {
    type Output = (Stream, Version);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, agreed: StreamProtocol) -> Self::Future {
        ready(Ok((stream, version(&agreed))))
    }
}

fn protocol(newest: Version) -> SubstreamProtocol<Protocol> {
    SubstreamProtocol::new(Protocol(newest), ())
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Outcome;
    type InboundProtocol = Protocol;
    type OutboundProtocol = Protocol;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Protocol> {
        protocol(self.newest)
    }

    fn on_behaviour_event(&mut self, Open: Open) {
        self.open = true;
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Protocol, (), Outcome>> {
        if std::mem::take(&mut self.open) {
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol: protocol(self.newest) });
        }
        match self.outcomes.pop_front() {
            Some(outcome) => Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(outcome)),
            None => Poll::Pending,
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Protocol, Protocol>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: (stream, version), .. })
                if self.outcomes.len() < MAX_UNTAKEN =>
            {
                self.outcomes.push_back(Outcome::Accepted(stream, version));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, version), ..
            }) => {
                self.outcomes.push_back(Outcome::Opened(stream, version));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                let error: libp2p::swarm::StreamUpgradeError<Infallible> = error;
                self.outcomes.push_back(Outcome::Refused(error.to_string()));
            }
            _ => {}
        }
    }
}
