//! Discrete-event simulator of a swarm, on the state machine that the real nodes run.
//!
//! It depends on `eagle-core` alone, which shows that the core does no I/O. [`run`] simulates the
//! nodes of a [`Plan`] that want the same blobs: their swarms and the tracker's choice of
//! neighbours are the core's, the network is a model. The same plan gives the same [`Report`], trace
//! hash included.
//!
//! # The model
//! - A node's uplink sends one chunk at a time, in turn from the transfers in its upload slots; a
//!   chunk is what the real limiter lets pass at a time. Further requests wait in order, and those of
//!   one peer follow one another, as on one channel.
//! - A chunk that crosses a boundary passes what all share there: the link out of a rack, that of the pair of
//!   zones or of regions, the link into a rack; then the receiver's downlink, one chunk after another (store
//!   and forward). A transfer has a bounded number of chunks under way: a socket's buffers.
//! - Messages take the latency between two nodes and no capacity. A first contact takes round trips.
//! - Hashing takes time, disks do not.
#![warn(missing_docs)]

mod bound;
mod churn;
mod event;
mod message_size;
mod network;
mod node;
mod peers;
mod place;
mod plan;
mod report;
mod samples;
mod trace;
mod transfers;
mod world;

pub use self::{
    plan::{Churn, ChurnKind, Faults, Group, Links, Plan, Seeders, Sites, Start, TrackerModel},
    report::{NodeReport, Quantiles, Report},
    samples::Sample,
};

/// Simulates a plan until every node has every blob or nothing can happen any more.
pub fn run(plan: &Plan) -> Report {
    world::World::new(plan).run()
}
