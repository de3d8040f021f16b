//! How fast one data channel moves pieces over the loopback interface, and what it costs.
//!
//! `cargo bench -p eagle-p2p --bench channel`. Both ends are in this process, so the CPU time is
//! that of both. The pieces are read and dropped: no hashing and no disk behind the page cache.

use std::{
    fs::File,
    io::Write,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

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
use tokio_util::sync::CancellationToken;

const SIZE: u64 = 256 << 20;
const PIECE: u32 = 1 << 20;
/// Bytes moved per mode: long enough that the ramp of the connection does not show.
const TOTAL: u64 = 4 << 30;
/// Requests in flight, as a node that is alone with an uploader has.
const IN_FLIGHT: u32 = 4;

#[derive(Debug)]
struct Blob(Arc<File>);

#[async_trait]
impl BlobReader for Blob {
    fn size(&self) -> u64 {
        SIZE
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let file = Arc::clone(&self.0);
        let read = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; length];
            std::os::unix::fs::FileExt::read_exact_at(&*file, &mut buffer, offset).map(|()| Bytes::from(buffer))
        });
        Ok(read.await.expect("reading does not panic").expect("the file is whole"))
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

/// CPU time of this process, user and system.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc");
    // proc_pid_stat(5): after the command in parentheses, utime and stime are the 12th and 13th
    // field, in ticks of 10 ms.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

async fn network(
    keypair: &identity::Keypair,
    data_port: u16,
    encryption: Encryption,
    stop: &CancellationToken,
) -> (Network, tokio::sync::mpsc::Receiver<NetworkEvent>) {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = NetworkConfig {
        keypair: keypair.clone(),
        membership: Membership::Open,
        listen,
        data_port,
        encryption,
        topology: Topology::default(),
        version: Version::Three,
        max_peers: 2,
    };
    Network::start(config, stop.clone()).await.expect("a network on the loopback interface")
}

async fn measure(encryption: Encryption, rate: Rate, total: u64, blob: &Arc<Blob>) {
    let stop = CancellationToken::new();
    let (server_key, client_key) = (identity::ephemeral(), identity::ephemeral());
    let listener = DataListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
    let data_address = listener.local_addr();
    let (uploader, _uploader_events) = network(&server_key, data_address.port(), encryption, &stop).await;
    let (downloader, mut events) = network(&client_key, 1, encryption, &stop).await;
    let geometry = Geometry::new(SIZE, PIECE).expect("a geometry");
    let handler = Arc::new(Handler(geometry, Arc::clone(blob)));
    let config = UploadServerConfig { keypair: server_key, encryption, limiter: Limiter::new(rate), max_channels: 2 };
    let server = UploadServer::start(listener, config, uploader.clone(), handler, stop.clone()).expect("a server");
    let config = DataChannelsConfig {
        keypair: client_key,
        limiter: Limiter::new(Rate::Unlimited),
        memory: DataChannelsConfig::DEFAULT_MEMORY,
        max_channels: 2,
    };
    let (channels, mut pieces) = DataChannels::new(config, downloader.clone(), stop.clone());
    downloader.connect(uploader.local_peer_id(), uploader.listen_address());
    while !matches!(events.recv().await, Some(NetworkEvent::Connected { .. })) {}

    let to = Uploader { peer: uploader.local_peer_id(), data_address, encryption };
    let digest = Digest::of(b"bench");
    let count = u32::try_from(total / u64::from(PIECE)).expect("few pieces");
    let ask = |id: u32| {
        let piece = Some(PieceIndex(id % geometry.pieces()));
        channels.request(to, PieceRequest { id, digest, piece, geometry }).expect("room for a request");
    };
    let (start, before) = (Instant::now(), cpu());
    (0..IN_FLIGHT).for_each(ask);
    let (mut next, mut done) = (IN_FLIGHT, 0);
    while done < count {
        match pieces.recv().await.expect("events") {
            ChannelEvent::Piece { .. } => {
                done += 1;
                if next < count {
                    ask(next);
                    next += 1;
                }
            }
            ChannelEvent::Failed { reason, .. } => panic!("the channel failed: {reason}"),
            _ => {}
        }
    }
    let (seconds, spent) = (start.elapsed().as_secs_f64(), (cpu() - before).as_secs_f64());
    let gigabytes = server.uploaded() as f64 / 1e9;
    println!("{encryption:?}, limit {rate}: {:.3} GB/s, {:.2} CPU s/GB", gigabytes / seconds, spent / gigabytes);
    stop.cancel();
    server.stopped().await;
}

#[tokio::main]
async fn main() {
    let mut file = tempfile::tempfile().expect("a temporary file");
    let block: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    (0..SIZE >> 20).for_each(|_| file.write_all(&block).expect("room for the blob"));
    let blob = Arc::new(Blob(Arc::new(file)));
    for encryption in [Encryption::None, Encryption::Tls] {
        measure(encryption, Rate::Unlimited, TOTAL, &blob).await;
        measure(encryption, Rate::Limited(50 << 20), 200 << 20, &blob).await;
    }
}
