//! Deciding what a peer is given.

use super::{PeerKey, Swarm, rates};
use crate::{
    geometry::PieceIndex,
    time::Timestamp,
    wire::{control::HostRate, data::RejectReason},
};

impl Swarm {
    /// Decides whether `peer` gets a piece, and which one when it leaves that open.
    ///
    /// # Errors
    /// Why it gets none.
    pub fn handle_request(
        &mut self,
        now: Timestamp,
        peer: PeerKey,
        piece: Option<PieceIndex>,
    ) -> Result<PieceIndex, RejectReason> {
        let state = self.peers.get(&peer).ok_or(RejectReason::NotHere)?;
        if !state.unchoked || state.uploads >= self.config.requests_held_per_peer {
            return Err(RejectReason::Choked);
        }
        let piece = match piece {
            Some(piece) if self.have.contains(piece) => piece,
            Some(_) => return Err(RejectReason::NotHere),
            None => self.any_for(now, peer).ok_or(RejectReason::NothingToSpread)?,
        };
        if let Some(state) = self.peers.get_mut(&peer) {
            state.uploads += 1;
            state.given = state.given.saturating_add(1);
        }
        self.spread.started(peer, piece);
        Ok(piece)
    }

    /// A new piece for a peer, unless it would keep it to itself or others would pass it on sooner.
    fn any_for(&mut self, now: Timestamp, peer: PeerKey) -> Option<PieceIndex> {
        let state = self.peers.get(&peer)?;
        let piece = self.spread.next(&self.have, &state.have)?;
        if self.spread.keepers()(peer) {
            return None;
        }
        let slow = self.is_for_others(peer);
        // Those who wait for what they asked for do not ask again meanwhile, and the queue may be long. A peer that takes nothing
        // does not stay in it.
        if slow && self.peers.iter().any(|(key, state)| state.uploads > 0 && !self.is_for_others(*key)) {
            self.rates.has_asked();
        }
        (!self.rates.passes_over(now, self.config.shortest_stall, slow)).then_some(piece)
    }

    /// Whether what is new is for others than this peer.
    fn is_for_others(&self, peer: PeerKey) -> bool {
        rates::enough_are_faster(&self.peers, &self.spread, peer) || self.others_are_better_placed(peer)
    }

    /// What a peer says that it can take, for its place among the [`super::WaitingUploads`].
    pub fn rate_of(&self, peer: PeerKey) -> HostRate {
        self.peers.get(&peer).map_or(HostRate::UNKNOWN, |state| state.rate)
    }

    /// A piece that [`Swarm::handle_request`] granted was sent, or will not be.
    pub fn handle_uploaded(&mut self, peer: PeerKey, piece: PieceIndex, sent: bool) {
        self.spread.finished(peer, piece, sent);
        if let Some(state) = self.peers.get_mut(&peer) {
            state.uploads = state.uploads.saturating_sub(1);
        }
    }
}
