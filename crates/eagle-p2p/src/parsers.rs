//! What peers begin a connection with, and what the file of an identity holds, as functions of it alone: for the fuzz targets
//! (`eagle-fuzz`), which have no connection and no disk.

use eagle_cluster::{ClusterKey, ClusterKeys};
use eagle_core::NodeId;

use crate::{gate, identity};

/// Random bytes of a hint.
pub const NONCE: usize = gate::NONCE;
/// Length of a hint, bytes.
pub const HINT: usize = gate::HINT;

/// The accepted key that a connection begins under which has this hint in front.
pub fn admitted(keys: &ClusterKeys, hint: &[u8; HINT]) -> Option<ClusterKey> {
    gate::key_of(keys, hint)
}

/// The hint under a key with these random bytes.
pub fn hint(key: &ClusterKey, nonce: [u8; NONCE]) -> [u8; HINT] {
    gate::hint_of(key, nonce)
}

/// The name of the node whose identity is kept in a file of these bytes.
pub fn identity(bytes: &[u8]) -> Option<NodeId> {
    identity::node_id(&identity::read(bytes)?.public().to_peer_id()).ok()
}
