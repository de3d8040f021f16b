//! What a tracker decides: which peers it names to whom.
//!
//! The tracker's service (`eagle-tracker`) and the simulator run the same code.

pub mod ownership;
pub mod policy;

pub use self::{
    ownership::Ownership,
    policy::{Asker, Candidate, DefaultPolicy, PeerPolicy},
};

#[cfg(test)]
mod connectivity;
