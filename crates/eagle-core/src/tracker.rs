//! What a tracker decides: which peers it names to whom, and who fetches a blob.
//!
//! The tracker's service (`eagle-tracker`) and the simulator run the same code.

pub mod flows;
pub mod leases;
pub mod ownership;
pub mod policy;
pub mod received;
mod scoring;
pub mod seeders;

pub use self::{
    flows::{Flow, FlowReport, Flows},
    ownership::Ownership,
    policy::{Asker, Candidate, DefaultPolicy, NodeLoad, PeerPolicy},
    received::{NodeReports, Received, SenderReport},
};

#[cfg(test)]
mod connectivity;
