//! The sans-I/O core of Eagle.
//!
//! Everything that Eagle decides is decided here: how a blob is cut into pieces, who is asked for
//! which piece, who is served, which blob leaves the cache. Nothing here reads a socket, a file, a
//! clock or ambient randomness; time and seeds are arguments. The peer network (`eagle-p2p`) and
//! the simulator drive the same code.
#![warn(missing_docs)]

pub mod bitfield;
pub mod digest;
pub mod geometry;
pub mod ideal;
pub mod metainfo;
pub mod peer;
pub mod piece_hash;
pub mod piece_set;
mod place;
pub mod receive_buffer;
pub mod rendezvous;
pub mod swarm;
pub mod time;
pub mod tracker;
pub mod units;
pub mod wire;

pub use bitfield::Bitfield;
pub use digest::Digest;
pub use geometry::{Geometry, PieceIndex};
pub use metainfo::Metainfo;
pub use peer::{Boundary, NodeId, NodeRole, PeerInfo, Topology};
pub use piece_hash::{PieceCheck, PieceHash};
pub use piece_set::PieceSet;
pub use place::{FarGroup, Place};
pub use time::Timestamp;
