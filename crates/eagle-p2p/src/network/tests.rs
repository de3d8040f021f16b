//! Two and three real networks on the loopback interface.

pub(crate) mod private;

use std::collections::VecDeque;

use eagle_core::{
    Digest, Topology,
    wire::control::{BlobMessage, Load, Version},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::identity;

/// Longest that anything here may take; a busy machine needs some of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running network and its events.
pub(crate) struct Node {
    pub(crate) network: Network,
    pub(crate) events: mpsc::Receiver<NetworkEvent>,
    pub(crate) keypair: Keypair,
    pub(crate) shutdown: CancellationToken,
}

/// The place of the node with this data port, so that an event shows whether its own was told.
fn topology(data_port: u16) -> Topology {
    Topology { zone: Some(format!("zone-{data_port}")), ..Topology::default() }
}

impl Node {
    pub(crate) async fn start(data_port: u16, encryption: Encryption) -> Self {
        Self::with(identity::ephemeral(), data_port, encryption, 8).await
    }

    pub(crate) async fn member(membership: Membership, data_port: u16, encryption: Encryption) -> Self {
        Self::of(membership, identity::ephemeral(), data_port, encryption, 8).await
    }

    async fn with(keypair: Keypair, data_port: u16, encryption: Encryption, max_peers: usize) -> Self {
        Self::of(Membership::Open, keypair, data_port, encryption, max_peers).await
    }

    async fn of(
        membership: Membership,
        keypair: Keypair,
        data_port: u16,
        encryption: Encryption,
        max_peers: usize,
    ) -> Self {
        let shutdown = CancellationToken::new();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = NetworkConfig {
            keypair: keypair.clone(),
            membership,
            listen,
            data_port,
            encryption,
            topology: topology(data_port),
            version: Version::Three,
            max_peers,
        };
        let (network, events) = Network::start(config, shutdown.clone()).await.unwrap();
        Self { network, events, keypair, shutdown }
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.network.local_peer_id()
    }

    pub(crate) fn dial(&self, other: &Self) {
        self.network.connect(other.peer(), other.network.listen_address());
    }

    pub(crate) async fn event(&mut self) -> NetworkEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("the network runs")
    }

    pub(crate) async fn connected(&mut self, to: PeerId) -> SocketAddr {
        match self.event().await {
            NetworkEvent::Connected { peer, data_address, .. } if peer == to => data_address,
            other => panic!("instead of Connected: {other:?}"),
        }
    }

    async fn disconnected(&mut self, from: PeerId) {
        assert_eq!(self.event().await, NetworkEvent::Disconnected { peer: from });
    }

    /// The next event other than `Unreachable`, which may or may not come where dials cross.
    async fn event_about_sessions(&mut self) -> NetworkEvent {
        loop {
            match self.event().await {
                NetworkEvent::Unreachable { .. } => {}
                event => return event,
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Two nodes, connected.
pub(crate) async fn pair(data_ports: [u16; 2], encryption: Encryption) -> (Node, Node) {
    pair_of(&Membership::Open, data_ports, encryption).await
}

pub(crate) async fn pair_of(membership: &Membership, data_ports: [u16; 2], encryption: Encryption) -> (Node, Node) {
    let mut a = Node::member(membership.clone(), data_ports[0], encryption).await;
    let mut b = Node::member(membership.clone(), data_ports[1], encryption).await;
    a.dial(&b);
    a.connected(b.peer()).await;
    b.connected(a.peer()).await;
    (a, b)
}

fn have(number: u32) -> ControlMessage {
    ControlMessage::Blob(Digest::of(b"blob"), BlobMessage::Have { pieces: vec![number], load: Load::default() })
}

async fn exchange(a: &mut Node, b: &mut Node, count: u32) {
    for number in 0..count {
        assert!(a.network.send(b.peer(), &have(number)));
        assert!(b.network.send(a.peer(), &have(number)));
    }
    for number in 0..count {
        let (from_a, from_b) = (b.event_about_sessions().await, a.event_about_sessions().await);
        assert_eq!(from_a, NetworkEvent::Message { peer: a.peer(), message: have(number) });
        assert_eq!(from_b, NetworkEvent::Message { peer: b.peer(), message: have(number) });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_dial_at_once_and_become_one() {
    for _ in 0..10 {
        let mut a = Node::start(1001, Encryption::Tls).await;
        let mut b = Node::start(1002, Encryption::None).await;
        a.dial(&b);
        b.dial(&a);
        let (peer_a, peer_b) = (a.peer(), b.peer());
        let listens = [a.network.listen_address(), b.network.listen_address()];
        let expected = |peer, port, encryption| NetworkEvent::Connected {
            peer,
            address: Some(listens[usize::from(port - 1001)]),
            data_address: SocketAddr::from(([127, 0, 0, 1], port)),
            encryption,
            topology: topology(port),
        };
        assert_eq!(a.event_about_sessions().await, expected(peer_b, 1002, Encryption::None));
        assert_eq!(b.event_about_sessions().await, expected(peer_a, 1001, Encryption::Tls));
        exchange(&mut a, &mut b, 100).await;

        a.network.disconnect(peer_b);
        assert!(!a.network.is_connected(peer_b));
        assert!(!a.network.send(peer_b, &have(0)));
        assert_eq!(a.event_about_sessions().await, NetworkEvent::Disconnected { peer: peer_b });
        assert_eq!(b.event_about_sessions().await, NetworkEvent::Disconnected { peer: peer_a });

        b.dial(&a);
        assert_eq!(b.event_about_sessions().await, expected(peer_a, 1001, Encryption::Tls));
        assert_eq!(a.event_about_sessions().await, expected(peer_b, 1002, Encryption::None));
        exchange(&mut a, &mut b, 10).await;
    }
}

/// While a cluster is upgraded, nodes of both versions are in it: what the older one cannot read does not reach it.
#[tokio::test]
async fn an_older_node_is_spoken_to_in_its_version() {
    let mut new = Node::start(1, Encryption::Tls).await;
    for dialled_by_new in [true, false] {
        let shutdown = CancellationToken::new();
        let config = NetworkConfig {
            keypair: identity::ephemeral(),
            membership: Membership::Open,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_port: 2,
            encryption: Encryption::Tls,
            topology: topology(2),
            version: Version::Two,
            max_peers: 8,
        };
        let keypair = config.keypair.clone();
        let (network, events) = Network::start(config, shutdown.clone()).await.unwrap();
        let mut old = Node { network, events, keypair, shutdown };
        if dialled_by_new {
            new.dial(&old)
        } else {
            old.dial(&new)
        }
        let (peer_new, peer_old) = (new.peer(), old.peer());
        for (node, peer) in [(&mut new, peer_old), (&mut old, peer_new)] {
            let event = node.event().await;
            assert!(matches!(event, NetworkEvent::Connected { peer: p, address: None, .. } if p == peer), "{event:?}");
        }
        let ask = ControlMessage::Blob(Digest::of(b"blob"), BlobMessage::PeersRequest);
        assert!(new.network.send(old.peer(), &ask));
        // It comes through without what it does not know, and nothing is the matter.
        exchange(&mut new, &mut old, 5).await;
        new.network.disconnect(old.peer());
        new.disconnected(old.peer()).await;
        old.disconnected(new.peer()).await;
    }
}

#[tokio::test]
async fn messages_keep_their_order_both_ways() {
    let (mut a, mut b) = pair([1, 2], Encryption::Tls).await;
    exchange(&mut a, &mut b, 2000).await;
    assert_eq!(a.network.connected(), 1);
}

#[tokio::test]
async fn a_banned_peer_stays_out_until_the_ban_ends() {
    let (mut a, mut b) = pair([1, 2], Encryption::Tls).await;
    let ban = Duration::from_millis(700);
    let start = Instant::now();
    a.network.ban(b.peer(), ban);
    a.disconnected(b.peer()).await;
    b.disconnected(a.peer()).await;
    a.dial(&b);
    loop {
        b.dial(&a);
        match b.event().await {
            NetworkEvent::Unreachable { .. } => assert!(start.elapsed() < PATIENCE),
            NetworkEvent::Connected { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(start.elapsed() >= ban);
    a.connected(b.peer()).await;
}

#[tokio::test]
async fn an_unreachable_peer_is_reported() {
    let mut a = Node::start(1, Encryption::Tls).await;
    let b = Node::start(2, Encryption::Tls).await;
    let nobody = identity::ephemeral().public().to_peer_id();
    // Someone else is at this address.
    a.network.connect(nobody, b.network.listen_address());
    assert!(matches!(a.event().await, NetworkEvent::Unreachable { peer, .. } if peer == nobody));
    // Nobody is at this one any more.
    let address = b.network.listen_address();
    b.shutdown.cancel();
    b.network.stopped().await;
    a.network.connect(b.peer(), address);
    assert!(matches!(a.event().await, NetworkEvent::Unreachable { peer, .. } if peer == b.peer()));
    // This node itself is not worth an attempt.
    a.network.connect(a.peer(), a.network.listen_address());
}

#[tokio::test]
async fn foreign_bytes_end_only_their_own_connection() {
    let (mut a, mut b) = pair([1, 2], Encryption::Tls).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0; 1], b"\x13/multistream/1.0.0\nxx"] {
        let mut stream = TcpStream::connect(a.network.listen_address()).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        // Whatever is said in answer, the connection then ends, possibly with a reset.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("an end of the connection");
    }
    exchange(&mut a, &mut b, 10).await;
    let mut c = Node::start(3, Encryption::Tls).await;
    c.dial(&a);
    c.connected(a.peer()).await;
}

#[tokio::test]
async fn a_peer_that_starts_anew_is_connected_anew() {
    let (mut a, b) = pair([1, 2], Encryption::Tls).await;
    let (keypair, peer) = (b.keypair.clone(), b.peer());
    // Both run at once, as when the end of the old process was not noticed.
    let mut reborn = Node::with(keypair, 7, Encryption::Tls, 8).await;
    reborn.dial(&a);
    reborn.connected(a.peer()).await;
    a.disconnected(peer).await;
    assert_eq!(a.connected(peer).await.port(), 7);
    exchange(&mut a, &mut reborn, 10).await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_dropped_and_nothing_is_lost_before() {
    let (mut a, mut b) = pair([1, 2], Encryption::Tls).await;
    let load = Load::default();
    let mut sent = 0;
    // `b` does not read its events, so its session stops reading, and the queue of `a` fills.
    let message = |sent| {
        ControlMessage::Blob(Digest::of(b"x"), BlobMessage::Have { pieces: vec![sent; control::MAX_HAVE], load })
    };
    while a.network.send(b.peer(), &message(sent)) {
        sent += 1;
        assert!(sent < 1_000_000, "nothing stops the sender");
        tokio::task::yield_now().await;
    }
    a.disconnected(b.peer()).await;
    let mut expected = 0..sent;
    loop {
        match b.event().await {
            NetworkEvent::Message { message: received, .. } => assert_eq!(Some(received), expected.next().map(message)),
            NetworkEvent::Disconnected { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(expected.start > 0);
}

#[tokio::test]
async fn peers_beyond_the_limit_are_turned_away() {
    let mut hub = Node::with(identity::ephemeral(), 1, Encryption::Tls, 1).await;
    let mut first = Node::start(2, Encryption::Tls).await;
    let mut second = Node::start(3, Encryption::Tls).await;
    first.dial(&hub);
    first.connected(hub.peer()).await;
    hub.connected(first.peer()).await;
    second.dial(&hub);
    assert!(matches!(second.event().await, NetworkEvent::Unreachable { .. }));
    hub.dial(&second);
    assert!(matches!(hub.event().await, NetworkEvent::Unreachable { .. }));
    exchange(&mut hub, &mut first, 5).await;
}

#[tokio::test]
async fn tickets_pass_between_connected_peers() {
    let (a, b) = pair([1, 2], Encryption::None).await;
    let mut tickets = VecDeque::new();
    for _ in 0..3 {
        tickets.push_back(a.network.request_ticket(b.peer()).await.unwrap());
    }
    let ticket = tickets.pop_back().unwrap();
    assert_eq!(b.network.redeem_ticket(&ticket), Some(a.peer()));
    assert_eq!(b.network.redeem_ticket(&ticket), None);
    assert_eq!(a.network.redeem_ticket(&tickets[0]), None);
    let nobody = identity::ephemeral().public().to_peer_id();
    assert_eq!(a.network.request_ticket(nobody).await, Err(TicketError::NotConnected));
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let a = Node::start(1, Encryption::Tls).await;
    let config = NetworkConfig {
        keypair: identity::ephemeral(),
        membership: Membership::Open,
        listen: a.network.listen_address(),
        data_port: 1,
        encryption: Encryption::Tls,
        topology: Topology::default(),
        version: Version::Three,
        max_peers: 1,
    };
    let error = Network::start(config, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains(&a.network.listen_address().to_string()), "{error}");
    assert!(error.to_string().contains("in use"), "{error}");
}

#[tokio::test]
async fn shutdown_ends_every_task() {
    let (a, mut b) = pair([1, 2], Encryption::Tls).await;
    a.shutdown.cancel();
    timeout(PATIENCE, a.network.stopped()).await.expect("the end");
    b.disconnected(a.peer()).await;
}
