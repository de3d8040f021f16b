//! What every node of the peer network has to tell, whatever its role: its cache, its peers, its limits. One place, so that a
//! metric has the same name and the same meaning in a proxy and in a seeder.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use eagle_store::cache::Cache;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, histogram::Histogram},
    registry::Registry,
};

use super::Node;

/// How a node came to know a peer of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum PeerSource {
    /// A tracker named it.
    Tracker,
    /// A seeder named itself in the metainfo.
    Metainfo,
    /// Another peer told of it.
    Exchange,
    /// It greeted this node.
    Greeting,
}

impl PeerSource {
    const ALL: [Self; 4] = [Self::Tracker, Self::Metainfo, Self::Exchange, Self::Greeting];

    /// Value of the label `source`.
    const fn name(self) -> &'static str {
        match self {
            Self::Tracker => "tracker",
            Self::Metainfo => "metainfo",
            Self::Exchange => "exchange",
            Self::Greeting => "greeting",
        }
    }
}

/// Peers that swarms of this node took in, by how they became known.
#[derive(Debug, Clone, Default)]
pub(super) struct Learnt(Arc<[AtomicU64; PeerSource::ALL.len()]>);

impl Learnt {
    pub(super) fn add(&self, source: PeerSource) {
        self.0[source as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self, source: PeerSource) -> u64 {
        self.0[source as usize].load(Ordering::Relaxed)
    }
}

/// Upper bounds of the buckets of a piece's time, seconds: from one that a neighbour sends at once to one that comes over a link of
/// a few Mbit/s.
const PIECE_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The time from a request for a piece to the whole of it.
pub(super) fn piece_seconds() -> Histogram {
    Histogram::new(PIECE_SECONDS)
}

impl Node {
    /// Makes the metrics of the node and of its cache visible in `registry`, which has the prefix of the role.
    pub fn register(&self, registry: &mut Registry, cache: &Arc<Cache>) {
        registry.register(
            "piece_seconds",
            "Time from a request for a piece to a peer or a seeder until all of it is there",
            self.piece_seconds.clone(),
        );
        registry.register_collector(Box::new(NodeCollector { cache: Arc::clone(cache), node: self.clone() }));
    }
}

/// Reads cache and node when it is asked, so that its numbers are never late.
#[derive(Debug)]
struct NodeCollector {
    cache: Arc<Cache>,
    node: Node,
}

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats = self.cache.stats();
        let node = self.node.counters();
        let connected = u64::try_from(node.connected_peers).unwrap_or(u64::MAX);
        for (name, help, value) in [
            ("cache_bytes", "Bytes of blobs on disk, reserved ones included.", stats.bytes),
            ("cache_limit_bytes", "Bytes that the cache may use.", stats.limit),
            ("cache_blobs", "Complete blobs in the cache.", stats.blobs),
            ("peers_connected", "Peers connected now.", connected),
        ] {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        for (name, help, value) in [
            ("cache_evictions", "Blobs removed to make room.", stats.evictions),
            ("cache_evicted_bytes", "Bytes removed to make room.", stats.evicted_bytes),
            ("cache_damaged", "Blobs dropped because their content was gone, unreadable or wrong.", stats.damaged),
            ("cache_scrubbed_bytes", "Bytes read again to find damage.", stats.scrubbed_bytes),
            ("uploaded_bytes", "Bytes of pieces given to peers.", node.uploaded),
            ("control_bytes", "Bytes of control messages sent to peers, without those of TLS.", node.control_sent),
            (
                "peer_connections_refused",
                "Connections to peer ports turned away because too many came from their address.",
                node.crowded_out,
            ),
            ("peer_strangers", "Connections to peer ports that did not begin as a member's.", node.strangers),
        ] {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        let help = "Peers that were taken into the swarm of a blob, by how they became known.";
        let mut learnt = encoder.encode_descriptor("peers_learnt", help, None, MetricType::Counter)?;
        for source in PeerSource::ALL {
            let metric = ConstCounter::new(self.node.learnt.get(source));
            metric.encode(learnt.encode_family(&[("source", source.name())])?)?;
        }
        let help = "Time that transfers waited for a limit of this host, added up over all of them.";
        let mut waits = encoder.encode_descriptor("limiter_wait_seconds", help, None, MetricType::Counter)?;
        for (direction, limiter) in [("download", &self.node.download), ("upload", &self.node.upload)] {
            let metric = ConstCounter::new(limiter.waited().as_secs_f64());
            metric.encode(waits.encode_family(&[("direction", direction)])?)?;
        }
        Ok(())
    }
}
