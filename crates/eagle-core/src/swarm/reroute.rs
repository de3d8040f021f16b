//! Requests that move to a shorter queue.
//!
//! When a new piece is rare, all neighbours of its first owner ask it at once and wait in its queue.
//! Meanwhile others get the piece, and have no queue. Who still waits asks them instead: the piece
//! then spreads as a tree and not as a star.

use super::{Action, PeerKey, RequestId, Swarm};
use crate::{geometry::PieceIndex, time::Timestamp};

impl Swarm {
    /// A peer has just told that it owns these pieces: it is asked for those that wait elsewhere
    /// behind more requests.
    pub(super) fn reroute(&mut self, now: Timestamp, to: PeerKey, pieces: &[u32]) {
        if !self.download || self.have.is_full() {
            return;
        }
        let usual = self.requests.transfer_time();
        for piece in pieces.iter().copied().map(PieceIndex) {
            if self.have.contains(piece) || !self.busy.contains(piece) {
                continue;
            }
            let Some(state) = self.peers.get(&to) else { return };
            let willing =
                state.serves() && state.group.is_none() && !state.load.spreading && !state.service.is_shunned();
            if !willing || state.in_flight >= self.config.requests_per_peer || state.service.slowness(usual) > 1 {
                return;
            }
            let queue = state.queue();
            let Some((id, from)) = self.requests.waiting_for(piece).filter(|(_, from)| *from != to) else { continue };
            // Its own request is part of the queue that it leaves.
            if self.peers.get(&from).is_some_and(|other| other.group.is_none() && other.queue() <= queue + 1) {
                continue;
            }
            self.requests.set_cancelled(id, true);
            self.actions.push_back(Action::Cancel { peer: from, id });
            self.request(now, to, Some(piece));
        }
    }

    /// An answer begins after all to a request that has moved: the first to begin brings the piece.
    pub(super) fn revive(&mut self, id: RequestId, piece: PieceIndex) {
        if self.have.contains(piece) || self.settling.contains(piece) {
            return;
        }
        if let Some((other, peer)) = self.requests.waiting_for(piece).filter(|(other, _)| *other != id) {
            self.requests.set_cancelled(other, true);
            self.actions.push_back(Action::Cancel { peer, id: other });
            self.requests.set_cancelled(id, false);
        }
    }
}
