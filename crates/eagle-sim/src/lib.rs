//! Discrete-event simulator of a swarm, on the state machine that the real nodes run.
//!
//! It depends on `eagle-core` alone, which shows that the core does no I/O. [`run`] simulates one
//! cold blob: a seeder that owns it (or receives it from an origin) and nodes that all want it.
//! The same [`Plan`] gives the same [`Report`], trace hash included.
#![warn(missing_docs)]

mod network;
mod world;

use std::time::Duration;

use eagle_core::{Geometry, swarm::SwarmConfig};

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Nodes that want the blob, the seeder not counted.
    pub nodes: u32,
    /// The blob.
    pub geometry: Geometry,
    /// Rate of every node up and down, bytes per second.
    pub rate: f64,
    /// Upload rate of the seeder, bytes per second.
    pub seeder_rate: f64,
    /// Rate at which the seeder receives the blob from the origin; `None`: it owns it at the start.
    pub origin_rate: Option<f64>,
    /// Neighbours that a node is told of, the seeder not counted.
    pub neighbours: usize,
    /// Time that a control message travels.
    pub latency: Duration,
    /// Uploads that a node serves at once; further requests wait.
    pub upload_slots: usize,
    /// Time over which the nodes' starts are spread evenly.
    pub stagger: Duration,
    /// The swarm's constants.
    pub config: SwarmConfig,
    /// Events that go wrong.
    pub faults: Faults,
    /// Seed of all random choices.
    pub seed: u64,
}

/// What goes wrong in a simulation; rates are probabilities from 0 to 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Probability that a piece arrives with wrong bytes, from nodes with an odd number.
    pub corrupt: f64,
    /// Probability that a request is never answered.
    pub lost_requests: f64,
    /// Nodes, from the first on, that vanish when they own half of the blob.
    pub vanish: u32,
}

/// How a simulation went; times are seconds of virtual time.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Time from each node's own start to its last piece; infinite for one that never finished.
    pub seconds: Vec<f64>,
    /// Time from each node's own start to its first piece in order.
    pub first_piece_seconds: Vec<f64>,
    /// Least time that any scheme needs.
    pub ideal_seconds: f64,
    /// Pieces that the seeder sent.
    pub seeder_pieces: u64,
    /// Pieces that arrived where they were owned already.
    pub duplicate_pieces: u64,
    /// Pieces that arrived with wrong bytes.
    pub corrupt_pieces: u64,
    /// Control messages sent.
    pub control_messages: u64,
    /// SHA-256 over every event in order, in hexadecimal: equal for equal plans.
    pub trace: String,
}

impl Report {
    /// Efficiency of the slowest node: the ideal time over its time.
    pub fn efficiency(&self) -> f64 {
        self.ideal_seconds / self.seconds.iter().copied().fold(0.0, f64::max)
    }
}

impl Plan {
    /// A cold swarm of equal nodes with default constants.
    pub fn cold(nodes: u32, geometry: Geometry, rate: f64) -> Self {
        Self {
            nodes,
            geometry,
            rate,
            seeder_rate: rate,
            origin_rate: None,
            neighbours: 40,
            latency: Duration::from_micros(500),
            upload_slots: 6,
            stagger: Duration::ZERO,
            config: SwarmConfig::default(),
            faults: Faults::default(),
            seed: 1,
        }
    }
}

/// Simulates a plan until every node has the blob or nothing can happen any more.
pub fn run(plan: &Plan) -> Report {
    world::World::new(plan).run()
}
