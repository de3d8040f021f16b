//! What to simulate.

use std::time::Duration;

use eagle_core::{Geometry, swarm::SwarmConfig};

use crate::place;

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Nodes that want the blobs.
    pub groups: Vec<Group>,
    /// Where the blobs come from.
    pub seeders: Seeders,
    /// The blobs; a node asks for all of them when it starts.
    pub blobs: Vec<Geometry>,
    /// Latencies, and links between places.
    pub links: Links,
    /// How neighbours are found.
    pub tracker: TrackerModel,
    /// Uploads that a node serves at once while its link is busy; further requests wait.
    pub upload_slots: usize,
    /// Whether nodes and tracker know where everybody is; else they choose as if all were in one place.
    pub labels: bool,
    /// Nodes that vanish or become slow.
    pub churn: Vec<Churn>,
    /// Events that go wrong at random.
    pub faults: Faults,
    /// The swarms' constants.
    pub config: SwarmConfig,
    /// Seed of all random choices.
    pub seed: u64,
}

/// Nodes of one kind.
#[derive(Debug, Clone)]
pub struct Group {
    /// How many.
    pub count: u32,
    /// Least and greatest download rate, bytes per second; in between evenly in the logarithm.
    pub down: (f64, f64),
    /// Least and greatest upload rate, bytes per second. A node has the same place in both ranges.
    pub up: (f64, f64),
    /// Number of its region.
    pub region: u16,
    /// Number of its zone; a zone is in one region.
    pub zone: u16,
    /// Racks of the zone over which its nodes are spread evenly; 0: the zone has none.
    pub racks: u16,
    /// When they begin.
    pub start: Start,
}

/// When the nodes of a group begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// All in the same moment.
    Together,
    /// Evenly over this time.
    Spread(Duration),
    /// At random, as independent events whose mean number takes this time (a Poisson process).
    Poisson(Duration),
}

/// Where the blobs come from.
#[derive(Debug, Clone)]
pub struct Seeders {
    /// How many; each blob has one that is responsible for it.
    pub count: u32,
    /// Upload rate of each, bytes per second.
    pub up: f64,
    /// Zone of each; `None`: a zone of their own.
    pub zone: Option<u16>,
    /// Rate at which a seeder receives from the origin, from the first node's start on, bytes per
    /// second; `None`: it owns its blobs at the start.
    pub origin_rate: Option<f64>,
    /// Peers in one swarm of a seeder, at most.
    pub max_peers: usize,
}

/// Latencies, and links between places.
#[derive(Debug, Clone)]
pub struct Links {
    /// Time that a message travels within a zone.
    pub latency: Duration,
    /// Time that a message travels between zones.
    pub zone_latency: Duration,
    /// Time that a message travels between regions.
    pub region_latency: Duration,
    /// Rate of a rack's link, each way, bytes per second; `None`: no limit.
    pub rack_rate: Option<f64>,
    /// Rate of the link from one zone to another of its region, one for each ordered pair, bytes per second;
    /// `None`: no limit.
    pub zone_rate: Option<f64>,
    /// The same for regions.
    pub region_rate: Option<f64>,
}

/// How neighbours are found.
#[derive(Debug, Clone)]
pub struct TrackerModel {
    /// Peers in an answer.
    pub peers_per_answer: usize,
    /// Time between two announces of a node that downloads.
    pub interval: Duration,
    /// Peers of a large swarm that the tracker looks at for one answer.
    pub seen: usize,
    /// From when on there is no tracker any more: who starts later knows the seeder, which the metainfo names, and nobody else.
    pub away: Option<Duration>,
}

/// How many places of each kind nodes and seeders are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sites {
    /// Racks; a zone without racks counts as one, and so do the seeders where there are racks.
    pub racks: usize,
    /// Zones.
    pub zones: usize,
    /// Regions.
    pub regions: usize,
}

/// Nodes that vanish or become slow.
#[derive(Debug, Clone)]
pub struct Churn {
    /// When.
    pub at: Duration,
    /// How many of the nodes that are there, from 0 to 1.
    pub fraction: f64,
    /// What happens to them.
    pub kind: ChurnKind,
}

/// What happens to nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ChurnKind {
    /// They vanish without a word; their peers lose the connection after this time.
    Vanish(Duration),
    /// Their rates are multiplied by this.
    Slow(f64),
}

/// What goes wrong in a simulation; rates are probabilities from 0 to 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Probability that a piece arrives with wrong bytes, from nodes with an odd number.
    pub corrupt: f64,
    /// Probability that a request is never answered.
    pub lost_requests: f64,
    /// Nodes, from the first on, that vanish when they own half of the first blob; their connections
    /// end at once.
    pub vanish: u32,
    /// Nodes, from the first on, that download like the others, accept requests and never answer.
    pub dead: u32,
}

impl Plan {
    /// A cold swarm of equal nodes and one seeder that owns the blob, with default constants.
    pub fn cold(nodes: u32, geometry: Geometry, rate: f64) -> Self {
        Self {
            groups: vec![Group {
                count: nodes,
                down: (rate, rate),
                up: (rate, rate),
                region: 0,
                zone: 0,
                racks: 0,
                start: Start::Together,
            }],
            seeders: Seeders { count: 1, up: rate, zone: Some(0), origin_rate: None, max_peers: 512 },
            blobs: vec![geometry],
            links: Links {
                latency: Duration::from_micros(500),
                zone_latency: Duration::from_micros(500),
                region_latency: Duration::from_micros(500),
                rack_rate: None,
                zone_rate: None,
                region_rate: None,
            },
            tracker: TrackerModel { peers_per_answer: 40, interval: Duration::from_secs(1), seen: 1_000, away: None },
            upload_slots: 2,
            labels: true,
            churn: Vec::new(),
            faults: Faults::default(),
            config: SwarmConfig::default(),
            seed: 1,
        }
    }

    /// Nodes that want the blobs, the seeders not counted.
    pub fn nodes(&self) -> u32 {
        self.groups.iter().map(|group| group.count).sum()
    }

    /// Places of its nodes and seeders.
    pub fn sites(&self) -> Sites {
        place::sites(self)
    }

    /// Bytes that a node wants.
    pub fn size(&self) -> u64 {
        self.blobs.iter().map(Geometry::size).sum()
    }
}
