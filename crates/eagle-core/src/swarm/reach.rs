//! How far a piece had come before a node got it: beyond what boundaries it is to be offered.

use super::{PeerKey, Swarm};
use crate::{geometry::PieceIndex, peer::Boundary};

/// How far a piece had come before we got it: beyond what boundaries it is to be offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Reach {
    /// Near peers own it.
    #[default]
    Near,
    /// It came over this boundary.
    Over(Boundary),
    /// The first source gave it to us.
    First,
}

impl Reach {
    /// Whether a group behind this boundary is offered the piece.
    pub(super) fn is_over(self, boundary: Boundary) -> bool {
        match self {
            Self::Near => false,
            Self::Over(crossed) => boundary < crossed,
            Self::First => true,
        }
    }
}

impl Swarm {
    /// How far a piece from this peer has come. One that a seeder was asked for by number counts as new too when nobody else is
    /// known to own it: whoever the seeder promised it to as new may wait far behind in its queue.
    pub(super) fn reach_of(&self, peer: PeerKey, piece: PieceIndex, any: bool) -> Reach {
        let Some(state) = self.peers.get(&peer) else { return Reach::Near };
        let from_seeders_alone = || {
            let mut owners = self.peers.iter().filter(|(_, other)| other.have.contains(piece));
            self.is_seeder(peer, state) && owners.all(|(key, other)| self.is_seeder(*key, other))
        };
        match state.group {
            _ if any || from_seeders_alone() => Reach::First,
            Some(group) => Reach::Over(group.boundary),
            None => Reach::Near,
        }
    }
}
