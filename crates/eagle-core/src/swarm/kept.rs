//! Which boundaries a node keeps: those that enough nodes are on its own side of.

use std::collections::BTreeSet;

use super::{Action, PeerKey, Swarm, peers::PeerState};
use crate::{Boundary, FarGroup};

/// Groups beyond one boundary up to which it is kept. A first owner gives a piece once to each, so with more,
/// a piece would take longer to leave it than to come through the swarm.
const MOST_GROUPS: usize = 20;
/// Groups beyond a boundary up to which it is kept again, for each node on our side of it, a fraction; with more than one
/// it is given up. A new piece is given to each group first, and where they are many and we few, little is left for
/// our own: with 12 for 5 of a rack all took 1.2 times as long as without racks, with 12 for 3 also, with 3 for 5 no
/// longer (simulated, links that are no bound).
const KEPT_PER_MEMBER: (usize, usize) = (7, 8);
impl Swarm {
    /// The group that a peer counts for: none when its boundary is not kept.
    pub(super) fn effective(&self, place: Option<FarGroup>) -> Option<FarGroup> {
        place.filter(|group| self.boundaries.open.is_none_or(|open| group.boundary > open))
    }

    /// Whether a peer is where the blob comes from.
    pub(super) fn is_seeder(&self, peer: PeerKey, state: &PeerState) -> bool {
        state.load.spreading || self.seeders.contains(&peer)
    }

    /// Gives up a boundary behind which there are too many groups for those that are with us, and keeps it again when more
    /// have come.
    pub(super) fn review_boundaries(&mut self) {
        let mut groups: BTreeSet<FarGroup> = BTreeSet::new();
        groups.extend(self.peers.values().filter_map(|state| state.place));
        let before = self.boundaries.open;
        let too_many = |boundary: &Boundary| {
            let behind = groups.iter().filter(|group| group.boundary == *boundary).count();
            let beyond = groups.iter().filter(|group| group.boundary >= *boundary).count();
            let here = |(key, state): &(&PeerKey, &PeerState)| {
                state.place.is_none_or(|group| group.boundary < *boundary) && !self.is_seeder(**key, state)
            };
            let members = 1 + self.peers.iter().filter(here).count();
            let is_open = before >= Some(*boundary);
            let most = if is_open { members * KEPT_PER_MEMBER.0 / KEPT_PER_MEMBER.1 } else { members };
            behind > 0 && (behind > MOST_GROUPS || beyond > most.max(1))
        };
        let open = Boundary::ALL.into_iter().rev().find(too_many);
        if open == before {
            return;
        }
        self.boundaries.open = open;
        let message = self.handshake(self.have.to_bytes());
        for (&peer, state) in self.peers.iter_mut() {
            let group = state.place.filter(|group| open.is_none_or(|open| group.boundary > open));
            let opened = group.is_none() && state.group.is_some();
            state.set_group(group, self.geometry.pieces());
            if opened && self.download {
                self.actions.push_back(Action::Send { peer, message: message.clone() });
            }
        }
    }
}
