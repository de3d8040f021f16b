//! What a swarm knows of one peer.

use super::{PeerKey, service::Service};
use crate::{
    FarGroup,
    bitfield::Bitfield,
    time::Timestamp,
    wire::control::{HostRate, Load},
};

#[derive(Debug)]
pub(super) struct PeerState {
    /// Where it is beyond a boundary; `None` when it is in our own rack.
    pub(super) place: Option<FarGroup>,
    /// The same, as far as that boundary is kept: `None` when pieces are exchanged freely.
    pub(super) group: Option<FarGroup>,
    /// Pieces that it offers us from another group.
    pub(super) offers: Bitfield,
    /// Pieces that it was offered in another group.
    pub(super) offered: u32,
    /// Pieces the peer says it owns.
    pub(super) have: Bitfield,
    /// It refuses our requests; so it begins.
    pub(super) choking: bool,
    /// It has greeted us or answered our greeting.
    pub(super) heard: bool,
    /// It wants something we own.
    pub(super) interested: bool,
    pub(super) we_are_interested: bool,
    /// We serve its requests.
    pub(super) unchoked: bool,
    /// What it said it can send and take.
    pub(super) rate: HostRate,
    /// How busy it said it is.
    pub(super) load: Load,
    /// Requests made since it said so.
    pub(super) asked_since_load: u16,
    /// Our requests in flight there.
    pub(super) in_flight: usize,
    /// Of these, how many are for any piece.
    pub(super) any_in_flight: usize,
    /// It had nothing to spread when last asked; not asked again for any piece until then.
    pub(super) nothing_until: Option<Timestamp>,
    /// Its requests that we hold or serve.
    pub(super) uploads: u16,
    /// Pieces that it was given, for telling those first that have got least.
    pub(super) given: u32,
    /// Pieces that it refused in a row although it says that it owns them.
    pub(super) refusals: u32,
    /// How well it serves us.
    pub(super) service: Service,
    /// Its channel failed; not asked at all until then.
    pub(super) blocked_until: Option<Timestamp>,
}

impl PeerState {
    pub(super) fn new(pieces: u32, place: Option<FarGroup>, group: Option<FarGroup>) -> Self {
        Self {
            place,
            group,
            offers: Bitfield::new(if group.is_some() { pieces } else { 0 }),
            offered: 0,
            have: Bitfield::new(pieces),
            choking: true,
            heard: false,
            interested: false,
            we_are_interested: false,
            unchoked: false,
            rate: HostRate::UNKNOWN,
            load: Load::default(),
            asked_since_load: 0,
            in_flight: 0,
            any_in_flight: 0,
            nothing_until: None,
            uploads: 0,
            given: 0,
            refusals: 0,
            service: Service::default(),
            blocked_until: None,
        }
    }

    /// Its boundary is kept, or is not.
    pub(super) fn set_group(&mut self, group: Option<FarGroup>, pieces: u32) {
        if group.is_some() && self.group.is_none() {
            self.offers = Bitfield::new(pieces);
        }
        self.group = group;
    }

    /// Requests that a new one would wait behind, as far as we know.
    pub(super) fn queue(&self) -> u32 {
        u32::from(self.load.requests) + u32::from(self.asked_since_load)
    }

    /// Whether requests may be made there at all.
    pub(super) fn serves(&self) -> bool {
        !self.choking && self.blocked_until.is_none()
    }
}

/// The peers of a swarm in the order of their keys.
///
/// A swarm has a few dozen of them, is asked about all of them many times for each one that comes
/// or goes, and never about none: a sorted vector is read several times faster than a tree.
#[derive(Debug, Default)]
pub(super) struct Peers(Vec<(PeerKey, PeerState)>);

impl Peers {
    fn find(&self, peer: PeerKey) -> Result<usize, usize> {
        self.0.binary_search_by_key(&peer, |(key, _)| *key)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains_key(&self, peer: &PeerKey) -> bool {
        self.find(*peer).is_ok()
    }

    pub(super) fn get(&self, peer: &PeerKey) -> Option<&PeerState> {
        self.find(*peer).ok().map(|place| &self.0[place].1)
    }

    pub(super) fn get_mut(&mut self, peer: &PeerKey) -> Option<&mut PeerState> {
        self.find(*peer).ok().map(|place| &mut self.0[place].1)
    }

    /// Adds a peer that is not there yet.
    pub(super) fn insert(&mut self, peer: PeerKey, state: PeerState) {
        if let Err(place) = self.find(peer) {
            self.0.insert(place, (peer, state));
        }
    }

    pub(super) fn remove(&mut self, peer: &PeerKey) -> Option<PeerState> {
        self.find(*peer).ok().map(|place| self.0.remove(place).1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&PeerKey, &PeerState)> {
        self.0.iter().map(|(key, state)| (key, state))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&PeerKey, &mut PeerState)> {
        self.0.iter_mut().map(|(key, state)| (&*key, state))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &PeerState> {
        self.0.iter().map(|(_, state)| state)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut PeerState> {
        self.0.iter_mut().map(|(_, state)| state)
    }
}
