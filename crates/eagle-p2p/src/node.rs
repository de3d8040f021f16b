//! A node of the peer network: takes part in the swarms of blobs.
//!
//! ```text
//!  Node, SwarmHandle ──commands──►┐
//!  Network ───────────events─────►│ engine: one task that owns every swarm's state machine
//!  DataChannels ──────events─────►│ (eagle_core::swarm) and carries out its actions
//!  UploadServer ──────requests───►┘
//! ```
//!
//! A blob is shared in two ways. [`Node::join`] takes part with a blob that is not complete yet:
//! pieces come in from peers (or from the caller, who fetches them from an origin) and are offered
//! at once. Complete blobs of the cache need no call: when a peer asks, they are looked up there,
//! and let go when no peer has been interested for a while.

mod blob;
mod commands;
mod engine;
mod metrics;
mod reports;
mod slots;
mod swarm_handle;
#[cfg(test)]
mod tests;
mod uploads;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use eagle_cluster::Membership;
use eagle_core::{
    Digest, Metainfo, NodeId, NodeRole, PeerInfo, Topology,
    swarm::SwarmConfig,
    tracker::NodeReports,
    units::Rate,
    wire::control::{Encryption, Version},
};
use eagle_store::cache::{Cache, PartialEntry};
use libp2p::identity::Keypair;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::swarm_handle::{SwarmCounters, SwarmHandle};
use self::{
    commands::{Command, Mailbox},
    engine::Engine,
    metrics::Learnt,
    reports::{Counted, Reports},
    uploads::Uploads,
};
pub use crate::network::StartError;
use crate::{
    channel::{DataChannels, DataChannelsConfig, DataListener, UploadServer, UploadServerConfig},
    identity,
    limits::Limiter,
    network::{Network, NetworkConfig},
};

/// Commands that wait for the engine; senders wait beyond that.
const COMMAND_QUEUE: usize = 256;
/// Peers connected at once. Neighbour sets are bounded by the swarms' own limits, well below this.
const MAX_PEERS: usize = 1024;
/// Data channels at once, in each direction: one per peer.
const MAX_CHANNELS: usize = MAX_PEERS;
/// Peers in one swarm of a seeder: it must be able to give each node of a large cluster a piece,
/// and serves only some of them at a time.
const SEEDER_SWARM_PEERS: usize = 512;

/// How a node takes part in the peer network.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Where to listen for peers (libp2p); port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where to listen for data channels; port 0 takes any free one.
    pub data_listen: SocketAddr,
    /// Address that other nodes reach this one by, when it differs from `listen`.
    pub advertise: Option<IpAddr>,
    /// Who is a member of the cluster.
    pub membership: Membership,
    /// What this node is.
    pub role: NodeRole,
    /// Where this node is.
    pub topology: Topology,
    /// How this node's data channels are protected.
    pub encryption: Encryption,
    /// Limit on what comes in, over all blobs and peers.
    pub download: Rate,
    /// Limit on what goes out, over all blobs and peers.
    pub upload: Rate,
    /// Who this node is ([`crate::identity`]).
    pub identity: Keypair,
    /// Constants of the swarms.
    pub swarm: SwarmConfig,
}

impl NodeConfig {
    /// A node on loopback with any free ports, no limits and no cluster key.
    pub fn local(role: NodeRole) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            listen: any,
            data_listen: any,
            advertise: None,
            membership: Membership::Open,
            role,
            topology: Topology::default(),
            encryption: Encryption::Tls,
            download: Rate::Unlimited,
            upload: Rate::Unlimited,
            identity: identity::ephemeral(),
            swarm: SwarmConfig::default(),
        }
    }
}

/// Totals of a node since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeCounters {
    /// Bytes of pieces received from peers and seeders.
    pub downloaded: u64,
    /// Bytes of pieces sent.
    pub uploaded: u64,
    /// Bytes of control messages sent, without those of TLS and the muxer.
    pub control_sent: u64,
    /// Peers connected now.
    pub connected_peers: usize,
    /// Connections that were turned away because they did not begin as a member's.
    pub strangers: u64,
    /// Connections that were turned away because too many came from their address.
    pub crowded_out: u64,
}

/// A node; clones are the same node.
#[derive(Debug, Clone)]
pub struct Node {
    info: PeerInfo,
    data_address: SocketAddr,
    commands: mpsc::Sender<Command>,
    mailbox: Arc<Mailbox>,
    download: Limiter,
    upload: Limiter,
    network: Network,
    channels: DataChannels,
    server: UploadServer,
    /// Time that pieces took.
    piece_seconds: Histogram,
    learnt: Learnt,
    reports: Arc<Reports>,
    tasks: TaskTracker,
}

impl Node {
    /// Listens for peers and serves them from `cache` until `shutdown`.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn start(config: NodeConfig, cache: Arc<Cache>, shutdown: CancellationToken) -> Result<Self, StartError> {
        let download = Limiter::new(config.download);
        let upload = Limiter::new(config.upload);
        let listener = DataListener::bind(config.data_listen).await?;
        let data_address = listener.local_addr();
        let network_config = NetworkConfig {
            keypair: config.identity.clone(),
            membership: config.membership,
            listen: config.listen,
            data_port: data_address.port(),
            encryption: config.encryption,
            topology: config.topology.clone(),
            version: Version::Three,
            max_peers: MAX_PEERS,
        };
        let (network, network_events) = Network::start(network_config, shutdown.clone()).await?;
        let (channels, channel_events) = DataChannels::new(
            DataChannelsConfig {
                keypair: config.identity.clone(),
                limiter: download.clone(),
                memory: DataChannelsConfig::DEFAULT_MEMORY,
                max_channels: MAX_CHANNELS,
            },
            network.clone(),
            shutdown.clone(),
        );
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let mailbox = Arc::new(Mailbox::default());
        let uploads = Arc::new(Uploads::new(commands.clone(), Arc::clone(&mailbox), upload.clone()));
        let server = UploadServer::start(
            listener,
            UploadServerConfig {
                keypair: config.identity.clone(),
                encryption: config.encryption,
                limiter: upload.clone(),
                max_channels: MAX_CHANNELS,
            },
            network.clone(),
            Arc::clone(&uploads) as _,
            shutdown.clone(),
        )?;
        let mut swarm = config.swarm.clone();
        if config.role == NodeRole::Seeder {
            swarm.max_peers = swarm.max_peers.max(SEEDER_SWARM_PEERS);
        }
        let piece_seconds = metrics::piece_seconds();
        let learnt = Learnt::default();
        let counted = Arc::new(Counted::default());
        let reports = Arc::new(Reports { counted: Arc::clone(&counted), uploads: Arc::clone(&uploads) });
        let engine = Engine::new(engine::Parts {
            piece_seconds: piece_seconds.clone(),
            learnt: learnt.clone(),
            role: config.role,
            topology: config.topology.clone(),
            swarm,
            limiters: [download.clone(), upload.clone()],
            cache,
            network: network.clone(),
            channels: channels.clone(),
            uploads,
            counted,
            mailbox: Arc::clone(&mailbox),
            commands: commands.clone(),
        });
        let tasks = TaskTracker::new();
        tasks.spawn(engine.run(receiver, network_events, channel_events, shutdown));
        tasks.close();
        let ip = config.advertise.unwrap_or_else(|| config.listen.ip());
        let info = PeerInfo {
            id: identity::node_id(&network.local_peer_id()).map_err(|_| StartError::Identity)?,
            address: SocketAddr::new(ip, network.listen_address().port()),
            role: config.role,
            topology: config.topology,
        };
        Ok(Self {
            info,
            data_address,
            commands,
            mailbox,
            download,
            upload,
            network,
            channels,
            server,
            piece_seconds,
            learnt,
            reports,
            tasks,
        })
    }

    /// This node as others need to know it. The address is unspecified when the node listens on all
    /// of them and advertises none; a tracker then puts in the one it sees.
    pub fn info(&self) -> PeerInfo {
        self.info.clone()
    }

    /// Address of the data channel listener.
    pub fn data_address(&self) -> SocketAddr {
        self.data_address
    }

    /// What trackers are told of this node beside its blobs.
    pub fn reports(&self) -> Arc<dyn NodeReports> {
        Arc::clone(&self.reports) as _
    }

    /// Bytes of a blob that other nodes have sent, of those that sent something lately.
    pub fn received_of(&self, digest: &Digest) -> Vec<(NodeId, u64)> {
        self.reports.counted.of(digest)
    }

    /// The limit on what comes in; shared by everything that this node downloads.
    pub fn download_limiter(&self) -> &Limiter {
        &self.download
    }

    /// The limit on what goes out.
    pub fn upload_limiter(&self) -> &Limiter {
        &self.upload
    }

    /// Takes part in a blob's swarm with a blob that is not complete yet.
    ///
    /// Nothing is owned at first: add what the entry recovered once it is verified. With `download`
    /// pieces are fetched from peers; without, the caller brings them all.
    pub async fn join(&self, entry: PartialEntry, metainfo: Metainfo, download: bool) -> SwarmHandle {
        let (reply, handle) = oneshot::channel();
        let geometry = metainfo.geometry;
        let digest = metainfo.digest;
        let command = Command::Join { entry, metainfo, download, reply };
        if self.commands.send(command).await.is_ok()
            && let Ok(parts) = handle.await
        {
            return SwarmHandle::new(digest, geometry, parts, self.commands.clone(), Arc::clone(&self.mailbox));
        }
        // The node is stopping: a handle on which nothing happens any more.
        SwarmHandle::detached(digest, geometry, self.commands.clone(), Arc::clone(&self.mailbox))
    }

    /// Totals since the start.
    pub fn counters(&self) -> NodeCounters {
        NodeCounters {
            downloaded: self.channels.downloaded(),
            uploaded: self.server.uploaded(),
            control_sent: self.network.control_sent(),
            connected_peers: self.network.connected(),
            strangers: self.network.strangers(),
            crowded_out: self.network.crowded_out(),
        }
    }

    /// Ends when every task of the node has ended, after `shutdown` was cancelled.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
        self.server.stopped().await;
        self.channels.stopped().await;
        self.network.stopped().await;
    }
}
