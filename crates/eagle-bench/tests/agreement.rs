//! The simulator against real sockets: the same small swarm on both.
//!
//! The real one has nodes of the peer network in this process, with the limits that the plan has. They are
//! connected before the clock starts: in a debug build on a busy machine that alone takes seconds.
//!
//! Real time is not virtual time, so there is much room: 7 nodes move 12 MB/s together, a few per cent of
//! what two cores move. What else the machine does makes a run slower and none faster, so the fastest of several counts, or the
//! first that agrees: a run that is too fast fails the test, and so do runs that are all too slow.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use eagle_core::{Geometry, Metainfo, NodeRole, PieceIndex, digest::Algorithm, units::Rate, wire::control::Encryption};
use eagle_p2p::node::{Node, NodeConfig, SwarmHandle};
use eagle_sim::Plan;
use eagle_store::{
    MemoryStorage,
    cache::{Cache, PartialEntry},
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How far the two may be apart, as a share of the simulated efficiency.
const APART: f64 = 0.10;
const RUNS: usize = 8;
const NODES: u32 = 6;
/// Bytes per second, each way.
const RATE: u32 = 2_000_000;
const SIZE: usize = 12 << 20;
/// Far beyond the 6.5 s that a run takes.
const PATIENCE: Duration = Duration::from_secs(120);

struct Host {
    node: Node,
    cache: Arc<Cache>,
}

/// A blob with its metainfo.
struct Blob {
    bytes: Bytes,
    metainfo: Metainfo,
}

impl Blob {
    fn new(size: usize, salt: usize) -> Self {
        let bytes: Vec<u8> = (0..size).map(|i| u8::try_from((i + salt) * 31 % 251).unwrap()).collect();
        let geometry = Geometry::auto(size as u64).unwrap();
        let metainfo = Metainfo::of(Algorithm::Sha256, geometry, &bytes);
        Self { bytes: bytes.into(), metainfo }
    }

    fn piece(&self, piece: PieceIndex) -> Bytes {
        let range = self.metainfo.geometry.range(piece);
        self.bytes.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
    }
}

impl Host {
    async fn start(role: NodeRole, shutdown: &CancellationToken) -> Self {
        let cache = Cache::open(Arc::new(MemoryStorage::new()), 1 << 30).await.unwrap();
        let rate = Rate::Limited(RATE.into());
        let local = NodeConfig::local(role);
        let config = NodeConfig { encryption: Encryption::None, download: rate, upload: rate, ..local };
        let node = Node::start(config, Arc::clone(&cache), shutdown.clone()).await.unwrap();
        Self { node, cache }
    }

    async fn join(&self, blob: &Blob, download: bool) -> (SwarmHandle, PartialEntry) {
        let entry = self.cache.create(blob.metainfo.digest, blob.metainfo.geometry).await.unwrap();
        (self.node.join(entry.clone(), blob.metainfo.clone(), download).await, entry)
    }
}

/// Brings a blob from the seeder to all; returns the seconds that the slowest node took.
async fn spread(seeder: &Host, hosts: &[Host], blob: &Blob) -> f64 {
    let (seeding, entry) = seeder.join(blob, false).await;
    for piece in blob.metainfo.geometry.all() {
        entry.write_piece(piece, blob.piece(piece)).await.unwrap();
        seeding.add_piece(piece).await;
    }
    let mut infos = vec![seeder.node.info()];
    let start = Instant::now();
    let mut pulls = Vec::new();
    for host in hosts {
        let (handle, entry) = host.join(blob, true).await;
        handle.add_peers(infos.clone()).await;
        infos.push(host.node.info());
        pulls.push((handle, entry));
    }
    for (handle, _) in &pulls {
        timeout(PATIENCE, handle.pieces().wait_for(|have| have.is_full())).await.unwrap().unwrap();
    }
    start.elapsed().as_secs_f64()
}

/// Efficiency of the slowest node on real sockets.
async fn real(ideal: f64) -> f64 {
    let shutdown = CancellationToken::new();
    let seeder = Host::start(NodeRole::Seeder, &shutdown).await;
    let mut hosts = Vec::new();
    for _ in 0..NODES {
        hosts.push(Host::start(NodeRole::Proxy, &shutdown).await);
    }
    // Connects everybody with everybody.
    spread(&seeder, &hosts, &Blob::new(1 << 20, 7)).await;
    let seconds = spread(&seeder, &hosts, &Blob::new(SIZE, 0)).await;
    shutdown.cancel();
    ideal / seconds
}

#[tokio::test(flavor = "multi_thread")]
async fn simulated_and_real_swarms_agree() {
    let plan = Plan::cold(NODES, Geometry::auto(SIZE as u64).unwrap(), RATE.into());
    let ideal = eagle_sim::run(&plan).ideal_seconds;
    // The choices are random: the middle of some seeds.
    let mut simulated: Vec<f64> =
        (1..=5).map(|seed| eagle_sim::run(&Plan { seed, ..plan.clone() }).efficiency()).collect();
    simulated.sort_by(f64::total_cmp);
    let simulated = simulated[2];
    let mut fastest: f64 = 0.0;
    for _ in 0..RUNS {
        fastest = fastest.max(real(ideal).await);
        println!("simulated {simulated:.3}, real {fastest:.3}");
        if fastest >= simulated * (1.0 - APART) {
            break;
        }
    }
    let apart = (fastest / simulated - 1.0).abs();
    assert!(apart <= APART, "simulated {simulated:.3}, real {fastest:.3}: more than {:.0} % apart", APART * 100.0);
}
