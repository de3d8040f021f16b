//! What a control connection costs, and what the private network of a cluster key adds to it.
//!
//! `cargo bench -p eagle-p2p --bench control`. Two nodes in this process send one message to and fro over the loopback interface,
//! so the CPU time is that of both ends, with all that wakes them.

use std::{net::SocketAddr, time::Duration};

use eagle_cluster::{ClusterKey, ClusterKeys};
use eagle_core::{
    Digest, Topology,
    wire::control::{BlobMessage, ControlMessage, Encryption, Load, Version},
};
use eagle_p2p::{
    identity,
    network::{Membership, Network, NetworkConfig, NetworkEvent},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Messages of one measurement: some seconds, of which the clock of CPU time tells hundredths.
const MESSAGES: u32 = 40_000;
/// Measurements of each kind, in turn, so that other work on the machine meets both alike.
const ROUNDS: usize = 5;
/// Pieces of the short message, as a node tells most often, and of the longest that there is.
const PIECES: [u32; 2] = [4, 1024];

/// CPU time of this process, user and system.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc");
    // proc_pid_stat(5): after the command in parentheses, utime and stime are the 12th and 13th
    // field, in ticks of 10 ms.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

async fn network(membership: &Membership, stop: &CancellationToken) -> (Network, mpsc::Receiver<NetworkEvent>) {
    let config = NetworkConfig {
        keypair: identity::ephemeral(),
        membership: membership.clone(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        data_port: 1,
        encryption: Encryption::Tls,
        topology: Topology::default(),
        version: Version::Three,
        max_peers: 2,
    };
    Network::start(config, stop.clone()).await.expect("a network on the loopback interface")
}

/// Waits for the next message that is no greeting of the network itself.
async fn message(events: &mut mpsc::Receiver<NetworkEvent>) {
    while !matches!(events.recv().await.expect("events"), NetworkEvent::Message { .. }) {}
}

/// CPU time of one message, both ends.
async fn measure(membership: &Membership, pieces: u32) -> Duration {
    let stop = CancellationToken::new();
    let (near, mut near_events) = network(membership, &stop).await;
    let (far, mut far_events) = network(membership, &stop).await;
    near.connect(far.local_peer_id(), far.listen_address());
    for events in [&mut near_events, &mut far_events] {
        while !matches!(events.recv().await.expect("events"), NetworkEvent::Connected { .. }) {}
    }
    let have = BlobMessage::Have { pieces: (0..pieces).collect(), load: Load::default() };
    let told = ControlMessage::Blob(Digest::of(b"bench"), have);
    let before = cpu();
    for _ in 0..MESSAGES / 2 {
        assert!(near.send(far.local_peer_id(), &told));
        message(&mut far_events).await;
        assert!(far.send(near.local_peer_id(), &told));
        message(&mut near_events).await;
    }
    let spent = (cpu() - before) / MESSAGES;
    stop.cancel();
    near.stopped().await;
    far.stopped().await;
    spent
}

#[tokio::main]
async fn main() {
    let key = ClusterKey::generate().expect("random numbers");
    let (_keys, receiver) = watch::channel(ClusterKeys::one(key));
    let kinds = [("no key", Membership::Open), ("cluster key", Membership::Keyed(receiver))];
    for pieces in PIECES {
        let mut spent = [Duration::ZERO; 2];
        for _ in 0..ROUNDS {
            for (sum, (_, membership)) in spent.iter_mut().zip(&kinds) {
                *sum += measure(membership, pieces).await;
            }
        }
        for (sum, (name, _)) in spent.iter().zip(&kinds) {
            let each = *sum / u32::try_from(ROUNDS).expect("few rounds");
            println!("{pieces} pieces, {name}: {:.1} us of CPU a message", each.as_secs_f64() * 1e6);
        }
    }
}
