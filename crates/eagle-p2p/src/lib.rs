//! The peer network of Eagle.
//!
//! | module | what it does |
//! | --- | --- |
//! | `gate` | who may connect at all: members of the cluster |
//! | [`identity`] | the Ed25519 key of a node, which its name is made of |
//! | [`limits`] | bandwidth limits of the host, one per direction |
//! | [`network`] | who is connected, and control messages between peers, over libp2p |
//! | [`channel`] | pieces between connected peers, over direct TCP connections |
//! | [`node`] | the engine that drives the swarms of blobs; what seeder and proxy use |
//! | [`parsers`] | how strangers' bytes are read, for the fuzz targets |
#![warn(missing_docs)]

pub mod channel;
mod gate;
pub mod identity;
pub mod limits;
pub mod network;
pub mod node;
pub mod parsers;
