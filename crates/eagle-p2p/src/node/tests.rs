//! Whole nodes over real sockets on loopback.

mod exchange;
mod rotation;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use eagle_core::{Geometry, Metainfo, NodeRole, PieceIndex, digest::Algorithm, wire::control::Encryption};
use eagle_store::{
    MemoryStorage,
    cache::{Cache, PartialEntry},
    wrappers::{Latency, Wrapped},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Node, NodeConfig, SwarmHandle};

const PATIENCE: Duration = Duration::from_secs(30);

struct Sample {
    bytes: Vec<u8>,
    metainfo: Metainfo,
}

impl Sample {
    /// A blob whose last piece is short.
    fn new(size: usize) -> Self {
        let bytes: Vec<u8> = (0..size).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect();
        let geometry = Geometry::new(size as u64, 64 << 10).unwrap();
        let metainfo = Metainfo::of(Algorithm::Sha256, geometry, &bytes);
        Self { bytes, metainfo }
    }

    fn piece(&self, piece: PieceIndex) -> Bytes {
        let range = self.metainfo.geometry.range(piece);
        Bytes::copy_from_slice(&self.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()])
    }
}

struct Host {
    node: Node,
    cache: Arc<Cache>,
}

impl Host {
    async fn start(role: NodeRole, encryption: Encryption, shutdown: &CancellationToken) -> Self {
        Self::with(NodeConfig { encryption, ..NodeConfig::local(role) }, shutdown).await
    }

    async fn with(config: NodeConfig, shutdown: &CancellationToken) -> Self {
        let cache = Cache::open(Arc::new(MemoryStorage::new()), 1 << 30).await.unwrap();
        let node = Node::start(config, Arc::clone(&cache), shutdown.clone()).await.unwrap();
        Self { node, cache }
    }

    async fn join(&self, metainfo: Metainfo, download: bool) -> (SwarmHandle, PartialEntry) {
        let entry = self.cache.create(metainfo.digest, metainfo.geometry).await.unwrap();
        (self.node.join(entry.clone(), metainfo, download).await, entry)
    }

    async fn check(&self, handle: &SwarmHandle, entry: &PartialEntry, sample: &Sample) {
        let mut pieces = handle.pieces();
        timeout(PATIENCE, pieces.wait_for(|have| have.is_full())).await.unwrap().unwrap();
        assert_eq!(entry.reader().read_at(0, sample.bytes.len()).await.unwrap(), sample.bytes);
    }
}

/// What a download waits for can be told from its counters: answers of a seeder, then a disk that is slow.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_disk_is_counted() {
    let shutdown = CancellationToken::new();
    let sample = Sample::new(8 * (64 << 10));
    let seeder = Host::start(NodeRole::Seeder, Encryption::None, &shutdown).await;
    let (seeding, entry) = seeder.join(sample.metainfo.clone(), false).await;
    for piece in sample.metainfo.geometry.all() {
        entry.write_piece(piece, sample.piece(piece)).await.unwrap();
        seeding.add_piece(piece).await;
    }
    let slow = Wrapped::new(Arc::new(MemoryStorage::new()), Latency::new(Duration::from_millis(300)));
    let cache = Cache::open(Arc::new(slow), 1 << 30).await.unwrap();
    let node = Node::start(NodeConfig::local(NodeRole::Proxy), Arc::clone(&cache), shutdown.clone()).await.unwrap();
    let host = Host { node, cache };
    let (handle, entry) = host.join(sample.metainfo.clone(), true).await;
    handle.add_peers(vec![seeder.node.info()]).await;
    let (mut asked, mut storing) = (false, false);
    timeout(PATIENCE, async {
        while !handle.pieces().borrow().is_full() {
            let counters = handle.counters();
            asked |= counters.asked_of_seeders > 0 && counters.asked_of_peers == 0;
            storing |= counters.storing > 0;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    assert!(asked && storing, "asked {asked}, storing {storing}");
    host.check(&handle, &entry, &sample).await;
    let counters = handle.counters();
    assert_eq!((counters.asked_of_seeders, counters.asked_of_peers, counters.storing), (0, 0, 0));
    let sent = host.node.received_of(&sample.metainfo.digest);
    assert_eq!(sent, [(seeder.node.info().id, sample.bytes.len() as u64)]);
    shutdown.cancel();
}

/// A seeder with a whole blob gives it to four nodes, which also help each other.
async fn swarm(encryption: Encryption) {
    let shutdown = CancellationToken::new();
    let sample = Sample::new(40 * (64 << 10) + 17);
    let seeder = Host::start(NodeRole::Seeder, encryption, &shutdown).await;
    let (seeding, entry) = seeder.join(sample.metainfo.clone(), false).await;
    for piece in sample.metainfo.geometry.all() {
        entry.write_piece(piece, sample.piece(piece)).await.unwrap();
        seeding.add_piece(piece).await;
    }
    let mut infos = vec![seeder.node.info()];
    let mut pulls = Vec::new();
    for _ in 0..4 {
        let host = Host::start(NodeRole::Proxy, encryption, &shutdown).await;
        let (handle, entry) = host.join(sample.metainfo.clone(), true).await;
        handle.add_peers(infos.clone()).await;
        infos.push(host.node.info());
        pulls.push((host, handle, entry));
    }
    for (host, handle, entry) in &pulls {
        host.check(handle, entry, &sample).await;
        let counters = handle.counters();
        assert_eq!(counters.bytes_from_peers + counters.bytes_from_seeders, sample.bytes.len() as u64);
        assert_eq!(counters.corrupt, 0);
    }
    // Each piece left the seeder about once, so most of the bytes came from other nodes.
    let sent = seeding.counters().uploaded;
    assert!(sent <= 3 * sample.bytes.len() as u64, "the seeder sent {sent} bytes");
    shutdown.cancel();
    for (host, ..) in pulls {
        timeout(PATIENCE, host.node.stopped()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_over_tls() {
    swarm(Encryption::Tls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_in_plain() {
    swarm(Encryption::None).await;
}

/// Pieces and hashes that come one by one are offered one by one.
#[tokio::test(flavor = "multi_thread")]
async fn pieces_travel_while_the_seeder_still_fetches() {
    let shutdown = CancellationToken::new();
    let sample = Sample::new(8 * (64 << 10));
    let seeder = Host::start(NodeRole::Seeder, Encryption::Tls, &shutdown).await;
    let bare = Metainfo::new(sample.metainfo.digest, sample.metainfo.geometry);
    let (seeding, seeder_entry) = seeder.join(bare.clone(), false).await;
    let proxy = Host::start(NodeRole::Proxy, Encryption::Tls, &shutdown).await;
    let (handle, entry) = proxy.join(bare, true).await;
    handle.add_peers(vec![seeder.node.info()]).await;
    let mut pieces = handle.pieces();
    for piece in sample.metainfo.geometry.all() {
        seeder_entry.write_piece(piece, sample.piece(piece)).await.unwrap();
        let hash = sample.metainfo.hash(piece).unwrap();
        seeding.add_hashes(piece.0, vec![hash]).await;
        seeding.add_piece(piece).await;
        handle.add_hashes(piece.0, vec![hash]).await;
        // The next piece is not there yet, so this one has come through alone.
        timeout(PATIENCE, pieces.wait_for(|have| have.contains(piece))).await.unwrap().unwrap();
    }
    proxy.check(&handle, &entry, &sample).await;
    shutdown.cancel();
}

/// The hash of a piece may come after the piece: nothing is thrown away, and nothing is asked for
/// twice. (Found by `eagle-bench swarm`: pieces that came first were dropped, and nobody had them
/// until the seeder had given all others.)
#[tokio::test(flavor = "multi_thread")]
async fn a_piece_may_come_before_its_hash() {
    let shutdown = CancellationToken::new();
    let sample = Sample::new(3 * (64 << 10));
    let seeder = Host::start(NodeRole::Seeder, Encryption::None, &shutdown).await;
    let (seeding, seeder_entry) = seeder.join(sample.metainfo.clone(), false).await;
    let proxy = Host::start(NodeRole::Proxy, Encryption::None, &shutdown).await;
    let mut first = Metainfo::new(sample.metainfo.digest, sample.metainfo.geometry);
    first.hashes = sample.metainfo.hashes[..1].to_vec();
    let (handle, entry) = proxy.join(first, true).await;
    handle.add_peers(vec![seeder.node.info()]).await;
    // The first piece is needed and its hash is known, so any piece may be asked for; the seeder
    // has only others.
    for piece in [PieceIndex(1), PieceIndex(2), PieceIndex(0)] {
        seeder_entry.write_piece(piece, sample.piece(piece)).await.unwrap();
        seeding.add_piece(piece).await;
    }
    timeout(PATIENCE, handle.pieces().wait_for(|have| have.contains(PieceIndex(0)))).await.unwrap().unwrap();
    handle.add_hashes(1, sample.metainfo.hashes[1..].to_vec()).await;
    proxy.check(&handle, &entry, &sample).await;
    let counters = handle.counters();
    assert_eq!((counters.duplicate, counters.bytes_from_seeders), (0, sample.bytes.len() as u64));
    shutdown.cancel();
}

/// A blob in the cache of a node is served without that node having joined anything, and a node
/// that has dropped its handle after committing serves on.
#[tokio::test(flavor = "multi_thread")]
async fn cached_blobs_are_served() {
    let shutdown = CancellationToken::new();
    let sample = Sample::new(5 * (64 << 10) + 1);
    let owner = Host::start(NodeRole::Proxy, Encryption::Tls, &shutdown).await;
    let entry = owner.cache.create(sample.metainfo.digest, sample.metainfo.geometry).await.unwrap();
    for piece in sample.metainfo.geometry.all() {
        entry.write_piece(piece, sample.piece(piece)).await.unwrap();
    }
    entry.commit(Some(sample.metainfo.clone())).await.unwrap();
    let second = Host::start(NodeRole::Proxy, Encryption::Tls, &shutdown).await;
    let (handle, entry) = second.join(sample.metainfo.clone(), true).await;
    handle.add_peers(vec![owner.node.info()]).await;
    second.check(&handle, &entry, &sample).await;
    entry.commit(Some(sample.metainfo.clone())).await.unwrap();
    drop((handle, entry));
    let third = Host::start(NodeRole::Proxy, Encryption::Tls, &shutdown).await;
    let (handle, entry) = third.join(sample.metainfo.clone(), true).await;
    handle.add_peers(vec![second.node.info()]).await;
    third.check(&handle, &entry, &sample).await;
    shutdown.cancel();
}

/// Wrong bytes are thrown away, their sender is banned, and the blob comes from elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_peer_is_banned() {
    let shutdown = CancellationToken::new();
    let sample = Sample::new(20 * (64 << 10));
    let geometry = sample.metainfo.geometry;
    let liar = Host::start(NodeRole::Proxy, Encryption::None, &shutdown).await;
    let (lying, wrong) = liar.join(sample.metainfo.clone(), false).await;
    for piece in geometry.all() {
        let zeros = Bytes::from(vec![0; usize::try_from(geometry.length(piece)).unwrap()]);
        wrong.write_piece(piece, zeros).await.unwrap();
        lying.add_piece(piece).await;
    }
    let proxy = Host::start(NodeRole::Proxy, Encryption::None, &shutdown).await;
    let (handle, entry) = proxy.join(sample.metainfo.clone(), true).await;
    handle.add_peers(vec![liar.node.info()]).await;
    timeout(PATIENCE, async {
        while handle.counters().corrupt == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(handle.pieces().borrow().count(), 0);
    let honest = Host::start(NodeRole::Seeder, Encryption::None, &shutdown).await;
    let (seeding, right) = honest.join(sample.metainfo.clone(), false).await;
    for piece in geometry.all() {
        right.write_piece(piece, sample.piece(piece)).await.unwrap();
        seeding.add_piece(piece).await;
    }
    handle.add_peers(vec![honest.node.info(), liar.node.info()]).await;
    proxy.check(&handle, &entry, &sample).await;
    assert_eq!(handle.counters().bytes_from_seeders, sample.bytes.len() as u64);
    shutdown.cancel();
}
