//! How the first source spreads a blob: each piece once before any piece twice.
//!
//! Peers ask such a source for *any* piece and it chooses, since it alone knows what it has given
//! away. This is BitTorrent's super-seeding (BEP 16) without its detours: nobody is lied to about
//! what the seeder owns, and no piece leaves it twice while another has not left it at all.

use std::collections::BTreeSet;

use super::PeerKey;
use crate::{bitfield::Bitfield, geometry::PieceIndex};

#[derive(Debug)]
pub(super) struct Spread {
    enabled: bool,
    /// Pieces given to somebody, or on their way.
    given: Bitfield,
    /// Pieces on their way, to be taken back if they do not arrive.
    under_way: BTreeSet<(PeerKey, PieceIndex)>,
}

impl Spread {
    pub(super) fn new(enabled: bool, pieces: u32) -> Self {
        Self { enabled, given: Bitfield::new(pieces), under_way: BTreeSet::new() }
    }

    /// Whether there are pieces that nobody was given: owned ones, or ones yet to come.
    pub(super) fn wants_to_spread(&self) -> bool {
        self.enabled && !self.given.is_full()
    }

    /// The first piece that was given to nobody and that `theirs` lacks.
    ///
    /// In order, since all runtimes read in order: early pieces are then in the swarm early.
    pub(super) fn next(&self, have: &Bitfield, theirs: &Bitfield) -> Option<PieceIndex> {
        if !self.enabled {
            return None;
        }
        have.iter_without(&[&self.given, theirs]).next()
    }

    pub(super) fn started(&mut self, peer: PeerKey, piece: PieceIndex) {
        if self.enabled && self.given.insert(piece) {
            self.under_way.insert((peer, piece));
        }
    }

    pub(super) fn finished(&mut self, peer: PeerKey, piece: PieceIndex, sent: bool) {
        if self.under_way.remove(&(peer, piece)) && !sent {
            self.given.remove(piece);
        }
    }

    /// A neighbour owns this piece: the swarm has it.
    pub(super) fn note_given(&mut self, piece: PieceIndex) {
        if self.enabled {
            self.given.insert(piece);
        }
    }

    /// A peer is gone, and with it what was on its way to it.
    pub(super) fn forget(&mut self, peer: PeerKey) {
        let lost: Vec<_> = self.under_way.iter().filter(|(owner, _)| *owner == peer).copied().collect();
        for (peer, piece) in lost {
            self.finished(peer, piece, false);
        }
    }
}
