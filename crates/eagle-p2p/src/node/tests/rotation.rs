//! The cluster key is changed while a swarm is at work.

use eagle_cluster::{ClusterKey, ClusterKeys};
use eagle_core::units::Rate;
use tokio::sync::watch;

use super::*;
use crate::network::Membership;

fn keys(keys: &[&ClusterKey]) -> ClusterKeys {
    keys.iter().map(|key| format!("{}\n", *key.expose())).collect::<String>().parse().unwrap()
}

/// No tracker names peers again here: that the pulls go on is up to the nodes themselves.
async fn rotated(encryption: Encryption) {
    let shutdown = CancellationToken::new();
    let sample = Sample::new(64 * (64 << 10) + 17);
    let pieces = sample.metainfo.geometry.pieces();
    let (old, new) = (ClusterKey::generate().unwrap(), ClusterKey::generate().unwrap());
    let mut senders = Vec::new();
    let mut hosts = Vec::new();
    for role in [NodeRole::Seeder, NodeRole::Proxy, NodeRole::Proxy, NodeRole::Proxy] {
        let (sender, receiver) = watch::channel(keys(&[&old]));
        senders.push(sender);
        // Slow enough that all steps are taken on the way.
        let rate = Rate::Limited(2 << 20);
        let membership = Membership::Keyed(receiver);
        let config = NodeConfig { encryption, membership, upload: rate, download: rate, ..NodeConfig::local(role) };
        hosts.push(Host::with(config, &shutdown).await);
    }
    let (seeder, proxies) = hosts.split_first().unwrap();
    let (seeding, entry) = seeder.join(sample.metainfo.clone(), false).await;
    for piece in sample.metainfo.geometry.all() {
        entry.write_piece(piece, sample.piece(piece)).await.unwrap();
        seeding.add_piece(piece).await;
    }
    let mut infos = vec![seeder.node.info()];
    let mut pulls = Vec::new();
    for host in proxies {
        let (handle, entry) = host.join(sample.metainfo.clone(), true).await;
        handle.add_peers(infos.clone()).await;
        infos.push(host.node.info());
        pulls.push((host, handle, entry));
    }
    for (quarter, step) in (1..).zip([vec![&old, &new], vec![&new, &old], vec![&new]]) {
        for (_, handle, _) in &pulls {
            let mut have = handle.pieces();
            timeout(PATIENCE, have.wait_for(|have| have.count() >= pieces / 4 * quarter)).await.unwrap().unwrap();
        }
        let slowest = pulls.iter().map(|(_, handle, _)| handle.pieces().borrow().count()).min().unwrap();
        assert!(slowest < pieces, "step {quarter} comes when a pull is under way: {slowest} of {pieces}");
        for sender in &senders {
            sender.send_replace(keys(&step));
        }
    }
    for (host, handle, entry) in &pulls {
        host.check(handle, entry, &sample).await;
        assert_eq!(handle.counters().corrupt, 0);
        assert_eq!(host.node.counters().strangers, 0, "all took every step at once");
    }
    shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_go_on_over_tls() {
    rotated(Encryption::Tls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_go_on_in_plain() {
    rotated(Encryption::None).await;
}
