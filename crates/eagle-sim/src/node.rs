//! One simulated node.

use std::collections::BTreeSet;

use eagle_core::{
    NodeRole, Timestamp,
    swarm::{PeerKey, Swarm},
};

use crate::{
    network::{Pipe, Uplink},
    place::Place,
};

/// A node's part in one blob's swarm.
pub(crate) struct Member {
    pub(crate) swarm: Swarm,
    pub(crate) finished: Option<u64>,
    /// When a timeout event is queued, nanoseconds.
    pub(crate) alarm: Option<u64>,
    /// Pieces that the reader has had: all before this one.
    pub(crate) position: u32,
}

/// A node.
pub(crate) struct Node {
    pub(crate) role: NodeRole,
    /// Where it says that it is.
    pub(crate) labels: eagle_core::Place,
    pub(crate) place: Place,
    /// Number of its group; seeders have none.
    pub(crate) group: Option<usize>,
    /// One for each blob; a seeder has only those that it is responsible for.
    pub(crate) members: Vec<Option<Member>>,
    pub(crate) up: Uplink,
    pub(crate) down: Pipe,
    pub(crate) started: Option<u64>,
    pub(crate) first: Option<u64>,
    pub(crate) gone: bool,
    /// Since when its rates are what they are, and what they were before: for its least time.
    pub(crate) slowed: Option<(u64, f64)>,
    pub(crate) banned: BTreeSet<u32>,
    /// Pieces owned, over all blobs.
    pub(crate) owned: u32,
}

impl Node {
    pub(crate) fn is_done(&self) -> bool {
        self.members.iter().flatten().all(|member| member.finished.is_some())
    }

    pub(crate) fn finished(&self) -> Option<u64> {
        self.members.iter().flatten().map(|member| member.finished).max().flatten().filter(|_| self.is_done())
    }

    /// Gives each blob the requests that those before it leave.
    pub(crate) fn share_requests(&mut self, now: Timestamp, blob: u16) {
        let earlier = self.members.iter().take(usize::from(blob)).flatten();
        let requested = earlier.map(|member| member.swarm.requested()).sum();
        if let Some(member) = self.members.get_mut(usize::from(blob)).and_then(Option::as_mut) {
            member.swarm.handle_requested_before(now, requested);
        }
    }

    pub(crate) fn swarm(&mut self, blob: u16) -> Option<&mut Swarm> {
        if self.gone {
            return None;
        }
        let load = self.up.load();
        let member = self.members.get_mut(usize::from(blob))?.as_mut()?;
        member.swarm.handle_node_load(load);
        Some(&mut member.swarm)
    }
}

pub(crate) fn key(node: u32) -> PeerKey {
    PeerKey(u64::from(node))
}

pub(crate) fn number(peer: PeerKey) -> u32 {
    u32::try_from(peer.0).unwrap_or(u32::MAX)
}
