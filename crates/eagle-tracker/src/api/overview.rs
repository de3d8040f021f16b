//! The cluster at a glance, and where its nodes are.

use eagle_core::Topology;
use serde::{Deserialize, Serialize};

use super::SwarmSummary;

/// The cluster at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// Version of the tracker.
    pub version: String,
    /// Seconds since the tracker started.
    pub uptime_seconds: f64,
    /// Nodes that are alive.
    pub peers: usize,
    /// How many of them are seeders.
    pub seeders: usize,
    /// Blobs that some node announced.
    pub blobs: usize,
    /// Pairs of a blob and a node.
    pub entries: usize,
    /// Announces in a second, over the last seconds.
    pub announces_per_second: f64,
    /// Bytes per second that nodes get from each other, as far as they report it.
    #[serde(default)]
    pub bytes_per_second: u64,
    /// Where the state is kept, and whether that answers.
    pub store: StoreStatus,
    /// The swarms that changed last, the latest first.
    pub active: Vec<SwarmSummary>,
}

/// Where a tracker keeps its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// `memory` or `redis`.
    pub kind: String,
    /// Whether what it is kept in does not answer, and memory stands in.
    pub away: bool,
}

/// Where the nodes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologyPage {
    /// Zones, by region and zone; nodes without a label are in a zone without a name. On the first page only.
    pub zones: Vec<ZoneSummary>,
    /// What goes from zone to zone, the fastest first.
    #[serde(default)]
    pub flows: Vec<ZoneFlow>,
    /// The value of `after` that gives more flows; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}

/// What goes from a zone to another, or stays in it, as the nodes that receive it report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneFlow {
    /// Where the senders are.
    pub from: ZoneName,
    /// Where the receivers are.
    pub to: ZoneName,
    /// Bytes per second of all transfers together.
    pub bytes_per_second: u64,
    /// Bytes per second of one transfer while it ran, over the last reports.
    pub transfer_bytes_per_second: u64,
    /// Bytes that were reported in all.
    pub bytes: u64,
}

/// A zone by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ZoneName {
    /// Its region.
    pub region: Option<String>,
    /// Its name.
    pub zone: Option<String>,
}

impl From<&Topology> for ZoneName {
    fn from(topology: &Topology) -> Self {
        Self { region: topology.region.clone(), zone: topology.zone.clone() }
    }
}

/// A zone and how many nodes are in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneSummary {
    /// Its region.
    pub region: Option<String>,
    /// Its name.
    pub zone: Option<String>,
    /// Nodes.
    pub peers: usize,
    /// How many of them are seeders.
    pub seeders: usize,
    /// Racks, each with its nodes.
    pub racks: Vec<RackSummary>,
}

/// A rack and how many nodes are in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RackSummary {
    /// Its name.
    pub rack: Option<String>,
    /// Nodes.
    pub peers: usize,
}
