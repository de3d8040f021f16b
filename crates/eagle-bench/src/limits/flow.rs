//! Nodes that do nothing but move pieces over data channels, with a limit on one side.
//!
//! They are Eagle's own network, channels and limiter, on real sockets, without disk, hashing and picking, so that
//! also a high rate is the limit's doing. One node with the limit has four partners without.

use std::{
    fs::File,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::FileExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::{
    Digest, Geometry, PieceIndex, Topology,
    units::Rate,
    wire::control::{Encryption, Load, Version},
};
use eagle_p2p::{
    channel::{
        ChannelEvent, DataChannels, DataChannelsConfig, DataListener, PieceRequest, Upload, UploadHandler,
        UploadServer, UploadServerConfig, Uploader,
    },
    identity::{self, PeerId},
    limits::Limiter,
    network::{Membership, Network, NetworkConfig, NetworkEvent},
};
use eagle_store::{BlobReader, StorageError};
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::windows::Sample;

/// Partners of the node with the limit.
const PARTNERS: usize = 4;
/// Requests in flight between two nodes.
const IN_FLIGHT: u32 = 4;
/// Size of the blob that is asked for over and over.
const SIZE: u64 = 64 << 20;
/// Between two samples. Finer than the 10 ms that a limiter works in, and cheap.
const SAMPLE: Duration = Duration::from_millis(4);
/// How long nodes may take to connect, and to move their first byte.
const START: Duration = Duration::from_secs(20);

/// Which way the limit works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Direction {
    Download,
    Upload,
}

impl Direction {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Upload => "upload",
        }
    }
}

#[derive(Debug)]
struct Blob(Arc<File>);

#[async_trait]
impl BlobReader for Blob {
    fn size(&self) -> u64 {
        SIZE
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        // In the page cache, and a piece at most: no disk is waited for.
        let mut buffer = vec![0; length];
        let read = self.0.read_exact_at(&mut buffer, offset);
        read.map_err(|source| StorageError::Io { action: "read", path: "a temporary file".into(), source })?;
        Ok(buffer.into())
    }

    fn file(&self) -> Option<Arc<File>> {
        Some(Arc::clone(&self.0))
    }
}

struct Handler(Geometry, Arc<Blob>);

#[async_trait]
impl UploadHandler for Handler {
    async fn request(&self, _: PeerId, _: Digest, piece: Option<PieceIndex>) -> Upload {
        let piece = piece.unwrap_or(PieceIndex(0));
        let reader = Arc::<Blob>::clone(&self.1);
        let (offset, length) = (self.0.offset(piece), self.0.length(piece));
        Upload::Serve { piece, reader, offset, length, load: Load::default(), permit: Box::new(()) }
    }

    fn finished(&self, _: PeerId, _: Digest, _: PieceIndex, _: u64, _: bool) {}

    fn load(&self) -> Load {
        Load::default()
    }
}

/// A node that sends.
struct Sender {
    network: Network,
    server: UploadServer,
    address: SocketAddr,
    _events: mpsc::Receiver<NetworkEvent>,
}

/// A node that asks for pieces as long as it lives.
struct Receiver {
    network: Network,
    channels: DataChannels,
}

/// Nodes between which pieces move.
pub(super) struct Flow {
    pub(super) limiter: Limiter,
    receivers: Vec<Receiver>,
    senders: Vec<Sender>,
    tasks: JoinSet<Result<()>>,
    stop: CancellationToken,
    started: Instant,
}

impl Flow {
    /// Connects the nodes and begins to move pieces at `rate`.
    pub(super) async fn start(direction: Direction, encryption: Encryption, rate: Rate) -> Result<Self> {
        let stop = CancellationToken::new();
        let limiter = Limiter::new(rate);
        let limited = |yes: bool| if yes { limiter.clone() } else { Limiter::new(Rate::Unlimited) };
        let (senders, receivers) = match direction {
            Direction::Download => (PARTNERS, 1),
            Direction::Upload => (1, PARTNERS),
        };
        let (geometry, blob) = (Geometry::new(SIZE, piece_length(rate))?, Arc::new(Blob(Arc::new(content()?))));
        let mut flow = Self {
            limiter: limiter.clone(),
            receivers: Vec::new(),
            senders: Vec::new(),
            tasks: JoinSet::new(),
            stop,
            started: Instant::now(),
        };
        for _ in 0..senders {
            let handler = Arc::new(Handler(geometry, Arc::clone(&blob)));
            let sender = sender(encryption, limited(direction == Direction::Upload), handler, &flow.stop).await?;
            flow.senders.push(sender);
        }
        for _ in 0..receivers {
            flow.receive(encryption, limited(direction == Direction::Download), geometry).await?;
        }
        flow.started = Instant::now();
        Ok(flow)
    }

    /// Adds a node that asks every sender.
    async fn receive(&mut self, encryption: Encryption, limiter: Limiter, geometry: Geometry) -> Result<()> {
        let keypair = identity::ephemeral();
        let (network, mut events) = network(&keypair, 1, encryption, &self.stop).await?;
        let memory = DataChannelsConfig::DEFAULT_MEMORY;
        let config = DataChannelsConfig { keypair, limiter, memory, max_channels: PARTNERS };
        let (channels, mut arriving) = DataChannels::new(config, network.clone(), self.stop.clone());
        let mut uploaders = Vec::new();
        for sender in &self.senders {
            network.connect(sender.network.local_peer_id(), sender.network.listen_address());
            let connected = async {
                loop {
                    match events.recv().await.context("the network ended")? {
                        NetworkEvent::Connected { .. } => return Ok(()),
                        NetworkEvent::Unreachable { reason, .. } => bail!("a node cannot be reached: {reason}"),
                        _ => {}
                    }
                }
            };
            tokio::time::timeout(START, connected).await.context("the nodes do not connect")??;
            uploaders.push(Uploader { peer: sender.network.local_peer_id(), data_address: sender.address, encryption });
        }
        let digest = Digest::of(b"limits");
        let asking = channels.clone();
        let ask = move |to: Uploader, id: u32| {
            let piece = Some(PieceIndex(id % geometry.pieces()));
            asking
                .request(to, PieceRequest { id, digest, piece, geometry })
                .map_err(|error| anyhow::anyhow!("{error:?}"))
        };
        for &to in &uploaders {
            (0..IN_FLIGHT).try_for_each(|id| ask(to, id))?;
        }
        self.tasks.spawn(async move {
            while events.recv().await.is_some() {}
            Ok(())
        });
        self.tasks.spawn(async move {
            let mut next = IN_FLIGHT;
            while let Some(event) = arriving.recv().await {
                match event {
                    ChannelEvent::Piece { peer, .. } => {
                        let to = uploaders.iter().find(|uploader| uploader.peer == peer);
                        ask(*to.context("a piece of a stranger")?, next)?;
                        next = next.wrapping_add(1);
                    }
                    ChannelEvent::Failed { reason, .. } => bail!("a channel failed: {reason}"),
                    ChannelEvent::Rejected { .. } => bail!("a piece was refused"),
                    _ => {}
                }
            }
            Ok(())
        });
        self.receivers.push(Receiver { network, channels });
        Ok(())
    }

    /// Bytes that came out of the receivers' sockets.
    fn received(&self) -> u64 {
        self.receivers.iter().map(|receiver| receiver.channels.downloaded()).sum()
    }

    /// Seconds since the nodes were connected.
    pub(super) fn elapsed(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Samples what is received, for so long from the first byte on.
    pub(super) async fn sample(&mut self, time: Duration, samples: &mut Vec<Sample>) -> Result<()> {
        let begun = Instant::now();
        let mut moving = None;
        loop {
            let sample = Sample { at: self.elapsed(), bytes: self.received() };
            if moving.is_none() && sample.bytes > 0 {
                moving = Some(sample.at);
            }
            samples.push(sample);
            if moving.is_some_and(|first| sample.at - first >= time.as_secs_f64()) {
                return Ok(());
            }
            if moving.is_none() && begun.elapsed() > START {
                bail!("nothing moves");
            }
            if let Some(ended) = self.tasks.try_join_next() {
                ended.context("a node ended abnormally")??;
                bail!("a node ended");
            }
            tokio::time::sleep(SAMPLE).await;
        }
    }

    /// Ends the nodes.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        for receiver in &self.receivers {
            receiver.channels.stopped().await;
            receiver.network.stopped().await;
        }
        for sender in &self.senders {
            sender.server.stopped().await;
            sender.network.stopped().await;
        }
        self.tasks.shutdown().await;
    }
}

/// Pieces of a quarter of a second, so that several arrive also within a short measurement.
fn piece_length(rate: Rate) -> u32 {
    let quarter = rate.bytes_per_second().unwrap_or(u64::MAX) / 4;
    let length = quarter.clamp(u64::from(eagle_core::geometry::MIN_PIECE_LENGTH), 1 << 20);
    u32::try_from(1_u64 << length.ilog2()).unwrap_or(1 << 20)
}

/// A file that its owner alone knows.
fn content() -> Result<File> {
    let mut file = tempfile::tempfile()?;
    let block = vec![0x5a; 1 << 20];
    for _ in 0..SIZE >> 20 {
        file.write_all(&block)?;
    }
    Ok(file)
}

async fn network(
    keypair: &identity::Keypair,
    data_port: u16,
    encryption: Encryption,
    stop: &CancellationToken,
) -> Result<(Network, mpsc::Receiver<NetworkEvent>)> {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = NetworkConfig {
        keypair: keypair.clone(),
        membership: Membership::Open,
        listen,
        data_port,
        encryption,
        topology: Topology::default(),
        version: Version::Three,
        max_peers: PARTNERS + 1,
    };
    Ok(Network::start(config, stop.clone()).await?)
}

async fn sender(
    encryption: Encryption,
    limiter: Limiter,
    handler: Arc<Handler>,
    stop: &CancellationToken,
) -> Result<Sender> {
    let keypair = identity::ephemeral();
    let listener = DataListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let address = listener.local_addr();
    let (network, events) = network(&keypair, address.port(), encryption, stop).await?;
    let config = UploadServerConfig { keypair, encryption, limiter, max_channels: PARTNERS };
    let server = UploadServer::start(listener, config, network.clone(), handler, stop.clone())?;
    Ok(Sender { network, server, address, _events: events })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_move_both_ways_and_a_limit_holds_them_back() {
        for direction in [Direction::Download, Direction::Upload] {
            let rate = Rate::Limited(1 << 20);
            let mut flow = Flow::start(direction, Encryption::None, rate).await.unwrap();
            let mut samples = Vec::new();
            flow.sample(Duration::from_millis(300), &mut samples).await.unwrap();
            flow.limiter.set_rate(Rate::Unlimited);
            let limited = flow.received();
            flow.sample(Duration::from_millis(600), &mut samples).await.unwrap();
            assert!(flow.received() > 10 * limited, "{direction:?}: {limited}, {}", flow.received());
            flow.stop().await;
            assert!(samples.windows(2).all(|pair| pair[0].at <= pair[1].at && pair[0].bytes <= pair[1].bytes));
        }
    }

    #[test]
    fn pieces_suit_the_rate() {
        assert_eq!(
            [8 << 10, 1 << 20, 50 << 20].map(|rate| piece_length(Rate::Limited(rate))),
            [64 << 10, 256 << 10, 1 << 20]
        );
        assert_eq!(piece_length(Rate::Unlimited), 1 << 20);
    }
}
