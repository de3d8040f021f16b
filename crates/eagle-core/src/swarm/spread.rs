//! How the first source spreads a blob: each piece once before any piece twice.
//!
//! Peers ask such a source for *any* piece and it chooses, since it alone knows what it has given
//! away. This is BitTorrent's super-seeding (BEP 16) without its detours: nobody is lied to about
//! what the seeder owns, and no piece leaves it twice while another has not left it at all.

use std::collections::{BTreeMap, BTreeSet};

use super::PeerKey;
use crate::{bitfield::Bitfield, geometry::PieceIndex};

#[derive(Debug)]
pub(super) struct Spread {
    enabled: bool,
    /// Pieces given to somebody, or on their way.
    given: Bitfield,
    /// Pieces on their way, to be taken back if they do not arrive.
    under_way: BTreeSet<(PieceIndex, PeerKey)>,
    /// Pieces that were sent to somebody, or that a neighbour owns.
    arrived: Bitfield,
    /// Pieces that only one peer was given and that nobody else owns yet.
    alone: BTreeMap<PieceIndex, PeerKey>,
    /// How many pieces each peer was given first and has not passed on.
    kept: BTreeMap<PeerKey, u32>,
}

/// Pieces that a peer may keep to itself beyond twice what its fellows do. A peer that
/// uploads passes a piece on within the time of a few; one that does not would take every new piece
/// out of the swarm until the seeder comes round to it again.
const KEPT_BESIDES: u32 = 2;

impl Spread {
    pub(super) fn new(enabled: bool, pieces: u32) -> Self {
        Self {
            enabled,
            given: Bitfield::new(pieces),
            under_way: BTreeSet::new(),
            arrived: Bitfield::new(if enabled { pieces } else { 0 }),
            alone: BTreeMap::new(),
            kept: BTreeMap::new(),
        }
    }

    /// Whether there are pieces that nobody was given: owned ones, or ones yet to come; and then,
    /// whether there are some that are stuck with the first who was given them.
    pub(super) fn wants_to_spread(&self) -> bool {
        self.enabled && (!self.given.is_full() || self.stuck().next().is_some())
    }

    /// The first piece that was given to nobody and that `theirs` lacks; when all were given, the
    /// first that is stuck.
    ///
    /// In order, since all runtimes read in order: early pieces are then in the swarm early.
    pub(super) fn next(&self, have: &Bitfield, theirs: &Bitfield) -> Option<PieceIndex> {
        if !self.enabled {
            return None;
        }
        if !self.given.is_full() {
            return have.iter_without(&[&self.given, theirs]).next();
        }
        self.stuck().find(|piece| have.contains(*piece) && !theirs.contains(*piece))
    }

    /// Pieces that are with nobody but a peer that keeps what it is given.
    fn stuck(&self) -> impl Iterator<Item = PieceIndex> {
        let most = if self.alone.is_empty() { 0 } else { self.most_kept() };
        let keeps = move |peer: &PeerKey| self.kept.get(peer).is_some_and(|kept| *kept > most);
        self.alone.iter().filter(move |(_, keeper)| keeps(keeper)).map(|(piece, _)| *piece)
    }

    /// Tells which peers pass on so little of what they were given that others are to get what is new.
    pub(super) fn keepers(&self) -> impl Fn(PeerKey) -> bool + '_ {
        let most = self.most_kept().max(KEPT_BESIDES);
        move |peer| self.kept.get(&peer).is_some_and(|kept| *kept > most)
    }

    /// Pieces that a peer may keep: measured by the quarter of the peers that keep least, since those
    /// that pass nothing on may be many.
    fn most_kept(&self) -> u32 {
        let mut kept: Vec<u32> = self.kept.values().copied().collect();
        kept.sort_unstable();
        kept.get(kept.len() / 4).copied().unwrap_or(0) * 2 + KEPT_BESIDES
    }

    pub(super) fn started(&mut self, peer: PeerKey, piece: PieceIndex) {
        if !self.enabled {
            return;
        }
        self.under_way.insert((piece, peer));
        if self.given.insert(piece) {
            self.alone.insert(piece, peer);
            *self.kept.entry(peer).or_default() += 1;
        } else {
            // Given again, so no longer alone; it still counts for the first, who did not pass it on.
            self.alone.remove(&piece);
        }
    }

    pub(super) fn finished(&mut self, peer: PeerKey, piece: PieceIndex, sent: bool) {
        if !self.under_way.remove(&(piece, peer)) {
            return;
        }
        if sent {
            self.arrived.insert(piece);
        } else if !self.arrived.contains(piece) && !self.is_under_way(piece) {
            // Whoever was given it first: who was given it besides has not got it either.
            self.passed_on(piece);
            self.given.remove(piece);
        }
    }

    fn is_under_way(&self, piece: PieceIndex) -> bool {
        self.under_way.range((piece, PeerKey(0))..=(piece, PeerKey(u64::MAX))).next().is_some()
    }

    /// A neighbour owns this piece: the swarm has it.
    pub(super) fn note_owned(&mut self, peer: PeerKey, piece: PieceIndex) {
        if self.enabled {
            self.given.insert(piece);
            self.arrived.insert(piece);
            if self.alone.get(&piece).is_some_and(|keeper| *keeper != peer) {
                self.passed_on(piece);
            }
        }
    }

    /// A peer is gone, and with it what it alone was given.
    pub(super) fn forget(&mut self, peer: PeerKey) {
        let promised: Vec<_> = self.under_way.iter().filter(|(_, owner)| *owner == peer).copied().collect();
        for (piece, _) in promised {
            self.finished(peer, piece, false);
        }
        let lost: Vec<_> = self.alone.iter().filter(|(_, keeper)| **keeper == peer).map(|(piece, _)| *piece).collect();
        for piece in lost {
            self.passed_on(piece);
            self.given.remove(piece);
            self.arrived.remove(piece);
        }
        self.kept.remove(&peer);
    }

    fn passed_on(&mut self, piece: PieceIndex) {
        if let Some(keeper) = self.alone.remove(&piece)
            && let Some(kept) = self.kept.get_mut(&keeper)
        {
            *kept = kept.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: PieceIndex = PieceIndex(0);

    fn spread() -> (Spread, Bitfield, Bitfield) {
        (Spread::new(true, 2), Bitfield::full(2), Bitfield::new(2))
    }

    #[test]
    fn what_was_promised_to_two_and_sent_to_none_is_new_again() {
        let (mut spread, have, none) = spread();
        spread.started(PeerKey(1), PIECE);
        spread.started(PeerKey(2), PIECE);
        spread.finished(PeerKey(1), PIECE, false);
        assert_eq!(spread.next(&have, &none), Some(PieceIndex(1)), "the other may get it still");
        spread.finished(PeerKey(2), PIECE, false);
        assert_eq!(spread.next(&have, &none), Some(PIECE));
        // So it is when they leave.
        spread.started(PeerKey(1), PIECE);
        spread.started(PeerKey(2), PIECE);
        spread.forget(PeerKey(1));
        spread.forget(PeerKey(2));
        assert_eq!(spread.next(&have, &none), Some(PIECE));
    }

    #[test]
    fn what_arrived_somewhere_is_not_new_again() {
        let (mut spread, have, none) = spread();
        spread.started(PeerKey(1), PIECE);
        spread.started(PeerKey(2), PIECE);
        spread.finished(PeerKey(1), PIECE, true);
        spread.finished(PeerKey(2), PIECE, false);
        assert_eq!(spread.next(&have, &none), Some(PieceIndex(1)));
        spread.started(PeerKey(3), PieceIndex(1));
        spread.note_owned(PeerKey(4), PieceIndex(1));
        spread.finished(PeerKey(3), PieceIndex(1), false);
        assert!(!spread.wants_to_spread());
    }
}
