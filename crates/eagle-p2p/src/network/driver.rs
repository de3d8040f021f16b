//! The one task that owns the swarm.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use eagle_core::wire::control::Version;
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Stream, Swarm, SwarmBuilder, TransportError,
    connection_limits::{self, ConnectionLimits},
    multiaddr::Protocol,
    ping,
    swarm::{
        ConnectionId, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::{sync::oneshot, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    NetworkConfig, NetworkEvent, StartError,
    behaviour::{Behaviour, BehaviourEvent, Control, Outcome, StreamEvent},
    private,
    session::{End, Ended, Session},
    shared::{Dialled, Shared},
};

/// TCP, the private network, TLS and yamux together, in either direction.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Dials under way at once; each costs a TLS handshake.
const MAX_DIALING: usize = 32;
/// Connections from outside that have not proven who they are. They cost a socket for at most
/// [`DIAL_TIMEOUT`].
const MAX_PENDING: u32 = 128;
/// Connections of one peer: two when both sides dial at once, and as many again that are closing.
const MAX_PER_PEER: u32 = 4;
/// A connection without streams is closed: the one of two that no side sends on.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that vanished without a word is noticed after this and [`PING_TIMEOUT`].
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// How long the answer to a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long listening may take to begin; it needs nothing from outside.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Sessions of one peer that ended and could not say so yet.
const MAX_ENDING: usize = 4;
/// Failed dials that were not reported yet; no new ones are made while there are so many.
const MAX_UNREPORTED: usize = 128;

pub(super) struct Driver {
    swarm: Swarm<Behaviour>,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
    max_peers: usize,
    peers: HashMap<PeerId, Peer>,
    dialing: HashMap<PeerId, Dialled>,
    sessions: JoinSet<Ended>,
    next_session: u64,
    unreported: VecDeque<NetworkEvent>,
}

/// A peer with a connection, or whose end was not reported yet.
#[derive(Default)]
struct Peer {
    /// With the address of the other end.
    connections: HashMap<ConnectionId, IpAddr>,
    active: Option<Active>,
    /// Someone asked for this peer and was not told what came of it.
    wanted: bool,
    /// Sessions that were told to end and have not yet.
    ending: usize,
    /// Ends with the last of them.
    last: Option<oneshot::Receiver<()>>,
}

/// The session that counts.
struct Active {
    id: u64,
    token: CancellationToken,
    outbound: ConnectionId,
    inbound: Option<ConnectionId>,
    deliver_outbound: Option<oneshot::Sender<(Stream, Version)>>,
    deliver_inbound: Option<oneshot::Sender<(Stream, Version, IpAddr)>>,
    done: oneshot::Receiver<()>,
    /// Whether it got as far as `Hello` from both sides.
    connected: Arc<AtomicBool>,
}

impl Driver {
    pub(super) async fn start(
        config: &NetworkConfig,
        shared: Arc<Shared>,
        shutdown: CancellationToken,
    ) -> Result<(Self, SocketAddr), StartError> {
        let peers = u32::try_from(config.max_peers).unwrap_or(u32::MAX);
        // They count as pending too, and must not keep members out.
        let waiting = u32::try_from(shared.gate.waiting_places()).unwrap_or(u32::MAX);
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(MAX_PENDING.saturating_add(waiting)))
            .with_max_established_per_peer(Some(MAX_PER_PEER))
            // Two for each peer, for a moment, and some to turn others away.
            .with_max_established(Some(peers.saturating_mul(2).saturating_add(MAX_PER_PEER)));
        let behaviour = Behaviour {
            limits: connection_limits::Behaviour::new(limits),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT)),
            control: Control::new(Arc::clone(&shared)),
        };
        let transport = private::transport(&config.keypair, Arc::clone(&shared.gate))?;
        let swarm = SwarmBuilder::with_existing_identity(config.keypair.clone())
            .with_tokio()
            .with_other_transport(|_| transport)
            .unwrap_or_else(|never| match never {})
            .with_behaviour(|_| behaviour)
            .unwrap_or_else(|never| match never {})
            .with_swarm_config(|swarm| swarm.with_idle_connection_timeout(IDLE_TIMEOUT))
            .with_connection_timeout(DIAL_TIMEOUT)
            .build();
        let mut driver = Self {
            swarm,
            shared,
            shutdown,
            max_peers: config.max_peers,
            peers: HashMap::new(),
            dialing: HashMap::new(),
            sessions: JoinSet::new(),
            next_session: 0,
            unreported: VecDeque::new(),
        };
        let address = driver.listen(config.listen).await.map_err(|source| StartError::Listen {
            what: "peers",
            address: config.listen,
            source,
        })?;
        Ok((driver, address))
    }

    async fn listen(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        if address.port() != 0 {
            // libp2p sets SO_REUSEPORT, so that two processes could share the port and each get
            // some of the other's peers. A plain listener finds out.
            drop(TcpListener::bind(address)?);
        }
        let listener = self.swarm.listen_on(multiaddr(address)).map_err(|error| match error {
            TransportError::Other(error) => error,
            other => io::Error::other(other),
        })?;
        let ready = async {
            loop {
                match self.swarm.select_next_some().await {
                    SwarmEvent::NewListenAddr { listener_id, address: bound } if listener_id == listener => {
                        let port = socket_address(&bound).unwrap_or(address).port();
                        return Ok(SocketAddr::new(address.ip(), port));
                    }
                    SwarmEvent::ListenerClosed { listener_id, reason, .. } if listener_id == listener => {
                        reason?;
                        return Err(io::ErrorKind::NotConnected.into());
                    }
                    SwarmEvent::ListenerError { listener_id, error } if listener_id == listener => return Err(error),
                    _ => {}
                }
            }
        };
        timeout(LISTEN_TIMEOUT, ready).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Runs until shutdown; then every session has ended.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let shutdown = self.shutdown.clone();
        loop {
            self.serve_requests();
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = shared.wake.notified() => {}
                event = self.swarm.select_next_some() => self.swarm_event(event),
                Some(ended) = self.sessions.join_next() => match ended {
                    Ok(ended) => {
                        // First what the handle asked for, which may be why the session ended.
                        self.serve_requests();
                        self.session_ended(ended);
                    }
                    Err(error) => tracing::error!(%error, "a peer session failed"),
                },
                permit = shared.events.reserve(), if !self.unreported.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(event) = self.unreported.pop_front() {
                            permit.send(event);
                        }
                    }
                    // Nobody listens to events any more.
                    Err(_) => self.unreported.clear(),
                },
            }
        }
        // Sessions see the same token and say goodbye to the reader of events.
        while self.sessions.join_next().await.is_some() {}
    }

    fn serve_requests(&mut self) {
        for peer in self.shared.take_disconnects() {
            self.close(peer);
        }
        while self.dialing.len() < MAX_DIALING && self.unreported.len() < MAX_UNREPORTED {
            let Some((peer, address)) = self.shared.take_dial() else { break };
            self.dial(peer, address);
        }
    }

    fn dial(&mut self, peer: PeerId, address: SocketAddr) {
        self.reap(peer);
        if let Some(state) = self.peers.get_mut(&peer) {
            state.wanted = true;
            if state.active.is_some() {
                return;
            }
        } else if self.peers.len() >= self.max_peers {
            return self.unreachable(peer, self.full());
        }
        if self.dialing.contains_key(&peer) {
            return;
        }
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::NotDialing)
            .addresses(vec![multiaddr(address)])
            // The listener's port as source would make two simultaneous dials the same connection.
            .allocate_new_port()
            .build();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dialing.insert(peer, Dialled { address, key: self.shared.gate.own() });
            }
            Err(error) => self.unreachable(peer, error.to_string()),
        }
    }

    fn full(&self) -> String {
        format!("there are {} peers already", self.max_peers)
    }

    fn unreachable(&mut self, peer: PeerId, reason: String) {
        tracing::debug!(%peer, reason, "cannot reach a peer");
        self.unreported.push_back(NetworkEvent::Unreachable { peer, reason });
    }

    fn swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                let dialled = endpoint.is_dialer();
                if dialled && let Some(dialled) = self.dialing.remove(&peer_id) {
                    self.shared.note_dialled(peer_id, dialled);
                }
                match socket_address(endpoint.get_remote_address()) {
                    Some(address) => self.connection_opened(peer_id, connection_id, address.ip(), dialled),
                    None => drop(self.swarm.close_connection(connection_id)),
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => {
                self.connection_closed(peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                self.dialing.remove(&peer);
                // It may have dialled here meanwhile, and then its session tells what comes of that.
                if self.peers.get(&peer).is_none_or(|state| state.active.is_none()) {
                    self.unreachable(peer, error.to_string());
                }
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "turned away a connection");
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listening for peers"),
            SwarmEvent::ListenerClosed { reason, .. } => tracing::error!(?reason, "no longer listening for peers"),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event { connection, result: Err(error), peer })) => {
                tracing::debug!(%peer, %error, "closing a connection that does not answer");
                self.swarm.close_connection(connection);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Control(event)) => self.stream_event(event),
            _ => {}
        }
    }

    fn connection_opened(&mut self, peer: PeerId, id: ConnectionId, address: IpAddr, dialled: bool) {
        self.reap(peer);
        let full = self.peers.len() >= self.max_peers && !self.peers.contains_key(&peer);
        if full || self.peers.get(&peer).is_some_and(|state| state.ending >= MAX_ENDING) {
            self.swarm.close_connection(id);
            if dialled {
                self.unreachable(peer, self.full());
            }
            return;
        }
        let state = self.peers.entry(peer).or_default();
        state.wanted |= dialled;
        state.connections.insert(id, address);
        if state.active.is_none() {
            self.begin(peer, id);
        }
    }

    /// Begins a session whose own stream is on this connection.
    fn begin(&mut self, peer: PeerId, connection: ConnectionId) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        let id = self.next_session;
        self.next_session += 1;
        let token = self.shutdown.child_token();
        let (deliver_outbound, outbound) = oneshot::channel();
        let (deliver_inbound, inbound) = oneshot::channel();
        let (done, finished) = oneshot::channel();
        let connected = Arc::new(AtomicBool::new(false));
        state.active = Some(Active {
            id,
            token: token.clone(),
            outbound: connection,
            inbound: None,
            deliver_outbound: Some(deliver_outbound),
            deliver_inbound: Some(deliver_inbound),
            done: finished,
            connected: Arc::clone(&connected),
        });
        let session = Session {
            peer,
            id,
            shared: Arc::clone(&self.shared),
            token,
            shutdown: self.shutdown.clone(),
            outbound,
            inbound,
            previous: state.last.take(),
            done,
            connected,
        };
        self.sessions.spawn(session.run());
        self.swarm.behaviour_mut().control.open(peer, connection);
    }

    /// Ends the present session of a peer and closes all connections to it except `keep`. They are
    /// forgotten at once: streams on them mean nothing any more.
    fn end_active(&mut self, peer: PeerId, keep: Option<ConnectionId>, reason: &str) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        let kept = keep.and_then(|id| state.connections.remove_entry(&id));
        for (id, _) in state.connections.drain() {
            self.swarm.close_connection(id);
        }
        state.connections.extend(kept);
        let Some(active) = state.active.take() else { return };
        active.token.cancel();
        state.ending += 1;
        state.last = Some(active.done);
        let missed = state.wanted && keep.is_none() && !active.connected.load(Ordering::Relaxed);
        if keep.is_none() {
            state.wanted = false;
        }
        if missed {
            self.unreachable(peer, reason.to_owned());
        }
    }

    /// Ends everything with a peer, as its user wants.
    fn close(&mut self, peer: PeerId) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.wanted = false;
        }
        self.end_active(peer, None, "disconnected");
        // Fails when there is no connection, which is as good.
        let _ = self.swarm.disconnect_peer_id(peer);
        self.forget(peer);
    }

    /// Takes note of a session that is over in all but its last words.
    fn reap(&mut self, peer: PeerId) {
        let over = |state: &Peer| state.active.as_ref().is_some_and(|active| active.token.is_cancelled());
        if self.peers.get(&peer).is_some_and(over) {
            self.end_active(peer, None, "the connection closed");
        }
    }

    fn connection_closed(&mut self, peer: PeerId, id: ConnectionId) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        state.connections.remove(&id);
        if state.active.as_ref().is_some_and(|active| active.outbound == id || active.inbound == Some(id)) {
            self.end_active(peer, None, "the peer closed the connection");
        }
        self.forget(peer);
    }

    fn session_ended(&mut self, Ended { peer, id, end }: Ended) {
        let active = |state: &Peer| state.active.as_ref().is_some_and(|active| active.id == id);
        if self.peers.get(&peer).is_some_and(active) {
            let (End::Lost(reason) | End::Violation(reason)) = &end;
            if let End::Violation(reason) = &end {
                tracing::warn!(%peer, reason, "disconnecting a peer that breaks the protocol");
            }
            self.end_active(peer, None, reason);
        }
        if let Some(state) = self.peers.get_mut(&peer) {
            state.ending = state.ending.saturating_sub(1);
        }
        self.forget(peer);
    }

    fn forget(&mut self, peer: PeerId) {
        let gone = |state: &Peer| state.connections.is_empty() && state.active.is_none() && state.ending == 0;
        if self.peers.get(&peer).is_some_and(gone) {
            self.peers.remove(&peer);
        }
    }

    fn stream_event(&mut self, StreamEvent { peer, connection, outcome }: StreamEvent) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        let Some(address) = state.connections.get(&connection).copied() else { return };
        match outcome {
            Outcome::Opened(stream, version) => {
                let active = state.active.as_mut().filter(|active| active.outbound == connection);
                if let Some(deliver) = active.and_then(|active| active.deliver_outbound.take()) {
                    // Fails when the session is ending, and the stream is dropped with it.
                    let _ = deliver.send((stream, version));
                }
            }
            Outcome::Refused(reason) => {
                if state.active.as_ref().is_some_and(|active| active.outbound == connection) {
                    self.end_active(peer, None, &format!("it refuses the control protocol: {reason}"));
                }
            }
            Outcome::Accepted(stream, version) => {
                match state.active.as_ref().and_then(|active| active.inbound) {
                    Some(present) if present == connection => {
                        tracing::warn!(%peer, "disconnecting a peer that opened two control streams");
                        return self.close(peer);
                    }
                    // The peer has begun a new session before the end of the old one was seen here.
                    Some(_) => {
                        self.end_active(peer, Some(connection), "the peer connected anew");
                        self.begin(peer, connection);
                    }
                    None if state.active.is_none() => self.begin(peer, connection),
                    None => {}
                }
                let active = self.peers.get_mut(&peer).and_then(|state| state.active.as_mut());
                if let Some(active) = active {
                    active.inbound = Some(connection);
                    if let Some(deliver) = active.deliver_inbound.take() {
                        let _ = deliver.send((stream, version, address));
                    }
                }
            }
        }
    }
}

fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))
}

fn socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}
