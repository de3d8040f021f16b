//! Deciding what a peer is given.

use super::{PeerKey, config::SwarmConfig, peers::Peers, spread::Spread};
use crate::{bitfield::Bitfield, geometry::PieceIndex, wire::data::RejectReason};

pub(super) fn choose(
    config: &SwarmConfig,
    have: &Bitfield,
    peers: &mut Peers,
    spread: &mut Spread,
    peer: PeerKey,
    piece: Option<PieceIndex>,
) -> Result<PieceIndex, RejectReason> {
    let state = peers.get_mut(&peer).ok_or(RejectReason::NotHere)?;
    if !state.unchoked || state.uploads >= config.requests_held_per_peer {
        return Err(RejectReason::Choked);
    }
    let piece = match piece {
        Some(piece) if have.contains(piece) => piece,
        Some(_) => return Err(RejectReason::NotHere),
        None if spread.keeps_to_itself(peer) => return Err(RejectReason::NothingToSpread),
        None => spread.next(have, &state.have).ok_or(RejectReason::NothingToSpread)?,
    };
    state.uploads += 1;
    state.given = state.given.saturating_add(1);
    spread.started(peer, piece);
    Ok(piece)
}
