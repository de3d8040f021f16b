//! Nodes without a tracker that come to know each other by those whom they know.

use eagle_core::{PeerInfo, swarm::SwarmConfig};

use super::*;
use crate::node::metrics::PeerSource;

/// Time within which an old node would still be alone.
const LONG_ENOUGH: Duration = Duration::from_secs(3);

async fn pulling(host: &Host, sample: &Sample, knows: &PeerInfo) -> (SwarmHandle, PartialEntry) {
    let (handle, entry) = host.join(sample.metainfo.clone(), true).await;
    handle.add_peers(vec![knows.clone()]).await;
    (handle, entry)
}

/// The one that all know has nothing to give: what one has reaches the others only since it tells of them.
async fn chain(exchange_below: usize) -> (bool, [u64; 2]) {
    let shutdown = CancellationToken::new();
    let sample = Sample::new(20 * (64 << 10));
    let start = || {
        let swarm = SwarmConfig { exchange_below, ..SwarmConfig::default() };
        Host::with(NodeConfig { swarm, ..NodeConfig::local(NodeRole::Proxy) }, &shutdown)
    };
    let (known, owner, asker) = (start().await, start().await, start().await);
    // It takes part and knows no hash, so it fetches nothing.
    let bare = Metainfo::new(sample.metainfo.digest, sample.metainfo.geometry);
    let (_known, _entry) = known.join(bare, true).await;
    let (owning, entry) = owner.join(sample.metainfo.clone(), false).await;
    for piece in sample.metainfo.geometry.all() {
        entry.write_piece(piece, sample.piece(piece)).await.unwrap();
        owning.add_piece(piece).await;
    }
    owning.add_peers(vec![known.node.info()]).await;
    let (handle, _asking) = pulling(&asker, &sample, &known.node.info()).await;
    let whole = timeout(LONG_ENOUGH, handle.pieces().wait_for(|have| have.is_full())).await.is_ok();
    let learnt = |source| asker.node.learnt.get(source);
    let learnt = [learnt(PeerSource::Metainfo), learnt(PeerSource::Exchange)];
    shutdown.cancel();
    (whole, learnt)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_knows_one_peer_comes_to_know_those_that_it_knows() {
    assert_eq!(chain(SwarmConfig::default().exchange_below).await, (true, [1, 1]));
    // The setting of the test does not give it away.
    assert_eq!(chain(0).await, (false, [1, 0]));
}

/// All that nodes know at first is the seeder, as without any tracker; it can give little in that time.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_know_a_seeder_only_help_each_other() {
    let shutdown = CancellationToken::new();
    let sample = Sample::new(64 * (64 << 10));
    let size = sample.bytes.len() as u64;
    let upload = eagle_core::units::Rate::Limited(size / 2);
    let config = NodeConfig { upload, ..NodeConfig::local(NodeRole::Seeder) };
    let seeder = Host::with(config, &shutdown).await;
    let (seeding, entry) = seeder.join(sample.metainfo.clone(), false).await;
    for piece in sample.metainfo.geometry.all() {
        entry.write_piece(piece, sample.piece(piece)).await.unwrap();
        seeding.add_piece(piece).await;
    }
    let mut pulls = Vec::new();
    for _ in 0..5 {
        let host = Host::start(NodeRole::Proxy, Encryption::Tls, &shutdown).await;
        let (handle, entry) = pulling(&host, &sample, &seeder.node.info()).await;
        pulls.push((host, handle, entry));
    }
    for (host, handle, entry) in &pulls {
        host.check(handle, entry, &sample).await;
    }
    let sent = seeding.counters().uploaded;
    assert!(sent <= 2 * size, "the seeder sent {sent} of {} bytes", 5 * size);
    assert!(pulls.iter().all(|(host, ..)| host.node.learnt.get(PeerSource::Exchange) > 0));
    shutdown.cancel();
}
