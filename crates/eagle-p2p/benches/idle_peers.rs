//! Memory of a node that a thousand peers are connected to and want nothing from.
//!
//! `cargo bench -p eagle-p2p --bench idle_peers [-- COUNT]`. The peers live in a process of their own,
//! so that the memory is that of the node alone. Fails when the node takes more than the target.

use std::{
    net::SocketAddr,
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use eagle_core::{
    NodeRole, Topology,
    wire::control::{Encryption, Version},
};
use eagle_p2p::{
    identity,
    network::{Membership, Network, NetworkConfig, NetworkEvent},
    node::{Node, NodeConfig},
};
use eagle_store::{Cache, MemoryStorage};
use tokio_util::sync::CancellationToken;

const PEERS: usize = 1000;
/// What a node may take in all with that many peers.
const TARGET: u64 = 128 << 20;
/// From the last connection to the measurement: allocations of the handshakes are gone by then, and
/// pings have been exchanged, which makes buffers that an idle connection keeps.
const SETTLE: Duration = Duration::from_secs(20);
/// For the connections: a node takes 20 a second from one address.
const DEADLINE: Duration = Duration::from_secs(120);
/// Before a peer that was turned away tries again.
const PAUSE: Duration = Duration::from_millis(500);
/// Marks the process of the peers.
const AS_PEERS: &str = "--as-peers";

/// Ended with this process.
struct Peers(Child);

impl Drop for Peers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == AS_PEERS) {
        return be_peers(&arguments[1..]).await;
    }
    let count = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(PEERS);
    let cache = Cache::open(Arc::new(MemoryStorage::new()), 1 << 20).await.expect("a cache");
    let node = Node::start(NodeConfig::local(NodeRole::Proxy), cache, CancellationToken::new()).await.expect("a node");
    let info = node.info();
    let before = resident();
    let program = std::env::current_exe().expect("the path of this program");
    let peers = Command::new(program)
        .args([AS_PEERS, &info.id.to_string(), &info.address.to_string(), &count.to_string()])
        .spawn()
        .expect("a process of peers");
    let _peers = Peers(peers);
    let connected = async {
        while node.counters().connected_peers < count {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, connected).await.is_ok(), "{} connected", node.counters().connected_peers);
    tokio::time::sleep(SETTLE).await;
    assert_eq!(node.counters().connected_peers, count, "connections were lost");
    let after = resident();
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "{count} idle peers: {:.1} MiB resident, {:.1} MiB before, {:.1} KiB for each",
        mebibytes(after),
        mebibytes(before),
        after.saturating_sub(before) as f64 / 1024.0 / count as f64,
    );
    assert!(after <= TARGET, "more than {:.0} MiB", mebibytes(TARGET));
}

/// Many peers of one node, until this process is ended.
async fn be_peers(arguments: &[String]) {
    let [node, address, count] = arguments else { panic!("arguments: NODE ADDRESS COUNT") };
    let node = node.parse().ok().and_then(|id| identity::peer_id(&id)).expect("the name of a node");
    let address: SocketAddr = address.parse().expect("an address");
    let count: usize = count.parse().expect("a number");
    let mut peers = Vec::new();
    for _ in 0..count {
        let config = NetworkConfig {
            keypair: identity::ephemeral(),
            membership: Membership::Open,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_port: 1,
            encryption: Encryption::Tls,
            topology: Topology::default(),
            version: Version::Three,
            max_peers: 4,
        };
        let (network, mut events) = Network::start(config, CancellationToken::new()).await.expect("a network");
        network.connect(node, address);
        let peer = network.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if matches!(event, NetworkEvent::Unreachable { .. }) {
                    // The node takes only so many unproven connections at once.
                    tokio::time::sleep(PAUSE).await;
                    peer.connect(node, address);
                }
            }
        });
        peers.push(network);
    }
    std::future::pending::<()>().await;
}

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the state of this process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
}
