//! The peers of an answer, ready to be written.

use std::sync::Arc;

use eagle_core::{PeerInfo, tracker::Ownership};

use super::protobuf;

/// A node, with what answers say of it: a tracker writes the same node into thousands of answers, and looking it up where its
/// name, labels and address lie takes longer than copying.
#[derive(Debug, PartialEq, Eq)]
pub struct NodeRecord {
    info: PeerInfo,
    /// A `Node` of `docs/tracker.proto`.
    protobuf: Box<[u8]>,
}

/// A peer that an answer names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPeer {
    /// Who it is.
    pub node: Arc<NodeRecord>,
    /// What it owns of the blob.
    pub pieces: Ownership,
}

impl NodeRecord {
    /// Writes it.
    pub fn new(info: PeerInfo) -> Self {
        let mut node = Vec::new();
        protobuf::write_node(&mut node, &info);
        Self { info, protobuf: node.into() }
    }

    /// The node.
    pub const fn info(&self) -> &PeerInfo {
        &self.info
    }

    /// The same as protobuf.
    pub(super) const fn protobuf(&self) -> &[u8] {
        &self.protobuf
    }
}
