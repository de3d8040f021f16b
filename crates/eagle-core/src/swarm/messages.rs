//! What peers of a swarm say, and what that changes.

use super::{Action, BanReason, PeerKey, Swarm};
use crate::{
    bitfield::Bitfield,
    geometry::PieceIndex,
    time::Timestamp,
    wire::control::{BlobMessage, Load},
};

impl Swarm {
    /// A peer that takes part sent a message.
    /// One that does not may ask for others all the same: it may have been turned away since there was no room for it.
    pub fn handle_message(&mut self, now: Timestamp, peer: PeerKey, message: BlobMessage) {
        match message {
            BlobMessage::PeersRequest => return self.answer_peers_request(now, peer),
            BlobMessage::Peers(peers) => return self.take_peers(now, peer, peers),
            _ => {}
        }
        if !self.peers.contains_key(&peer) {
            return;
        }
        match message {
            BlobMessage::Handshake { geometry, bitfield, load, rate } => {
                if geometry != self.geometry {
                    self.ban(peer, BanReason::Protocol("another size or piece length for the same blob"));
                    return;
                }
                match Bitfield::from_bytes(geometry.pieces(), &bitfield) {
                    Some(field) => {
                        for piece in field.iter() {
                            self.note_owned_by(peer, piece);
                        }
                    }
                    None => return self.ban(peer, BanReason::Protocol("a bitfield of the wrong length")),
                }
                self.note_load(peer, load);
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.rate = rate;
                    state.heard = true;
                }
                self.exchange.may_begin(now);
                self.rates_changed(now);
                self.offer_what_was_not(peer);
            }
            BlobMessage::Have { pieces, load } => {
                for &index in &pieces {
                    match self.geometry.piece(index) {
                        Some(piece) => self.note_owned_by(peer, piece),
                        None => return self.ban(peer, BanReason::Protocol("a piece past the end of the blob")),
                    }
                }
                self.note_load(peer, load);
                self.note_offers(peer, &pieces, load);
                self.reroute(now, peer, &pieces);
            }
            BlobMessage::Load(load) => self.note_load(peer, load),
            BlobMessage::Interested | BlobMessage::NotInterested => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.interested = message == BlobMessage::Interested;
                }
                self.rechoke(now);
            }
            BlobMessage::Choke => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.choking = true;
                }
            }
            BlobMessage::Unchoke => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.choking = false;
                }
            }
            BlobMessage::Leave => {
                let heard = self.peers.get(&peer).is_some_and(|state| state.heard);
                self.handle_peer_left(now, peer);
                if !heard {
                    self.exchange.note_turned_away(now, peer);
                }
                return;
            }
            // Answered above.
            BlobMessage::PeersRequest | BlobMessage::Peers(_) => return,
        }
        self.show_interest(peer);
        self.fill_from(now, peer);
    }

    pub(super) fn note_owned_by(&mut self, peer: PeerKey, piece: PieceIndex) {
        if let Some(state) = self.peers.get_mut(&peer)
            && state.have.insert(piece)
        {
            state.nothing_until = None;
            let count = &mut self.availability[piece.0 as usize];
            *count = count.saturating_add(1);
            self.spread.note_owned(peer, piece);
        }
    }

    pub(super) fn note_load(&mut self, peer: PeerKey, load: Load) {
        self.note_queue(peer, load);
        if let Some(state) = self.peers.get_mut(&peer) {
            state.load.spreading = load.spreading;
            if !load.spreading {
                state.nothing_until = None;
            }
        }
    }

    /// The load in an answer: it is the node's queue, and says nothing of this blob's spreading.
    pub(super) fn note_queue(&mut self, peer: PeerKey, load: Load) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.load.requests = load.requests;
            state.asked_since_load = 0;
        }
    }

    /// Says whether this peer has something we need, when that changed.
    pub(super) fn show_interest(&mut self, peer: PeerKey) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        let interested = self.download && state.have.any_without(&[&self.have]);
        if interested != state.we_are_interested {
            state.we_are_interested = interested;
            let message = if interested { BlobMessage::Interested } else { BlobMessage::NotInterested };
            self.actions.push_back(Action::Send { peer, message });
        }
    }
}
