//! Requests in flight, and how long requests take.

use std::{collections::BTreeMap, time::Duration};

use super::{PeerKey, RequestId, config::SwarmConfig};
use crate::{geometry::PieceIndex, time::Timestamp};

#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) peer: PeerKey,
    /// The piece; unknown until the answer begins when any piece was asked for.
    pub(super) piece: Option<PieceIndex>,
    /// Asked for any piece.
    pub(super) any: bool,
    pub(super) sent_at: Timestamp,
    /// Last time bytes of the answer came.
    pub(super) heard_at: Timestamp,
    /// The answer has begun: a cancel comes too late.
    pub(super) started: bool,
}

#[derive(Debug)]
pub(super) struct Requests {
    in_flight: BTreeMap<RequestId, Request>,
    next_id: u32,
    /// Smoothed time from request to last byte.
    service_time: Duration,
}

impl Requests {
    pub(super) fn new(initial_service_time: Duration) -> Self {
        Self { in_flight: BTreeMap::new(), next_id: 0, service_time: initial_service_time }
    }

    pub(super) fn add(&mut self, now: Timestamp, peer: PeerKey, piece: Option<PieceIndex>) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        let any = piece.is_none();
        self.in_flight.insert(id, Request { peer, piece, any, sent_at: now, heard_at: now, started: false });
        id
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Request> {
        self.in_flight.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: RequestId) -> Option<Request> {
        self.in_flight.remove(&id)
    }

    /// Requests of both kinds.
    pub(super) fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// Requests for pieces that we chose; those for any piece wait elsewhere and do not count.
    pub(super) fn chosen(&self) -> usize {
        self.in_flight.values().filter(|request| !request.any).count()
    }

    /// Whether some request in flight brings this piece.
    pub(super) fn wants(&self, piece: PieceIndex) -> bool {
        self.in_flight.values().any(|request| request.piece == Some(piece))
    }

    /// Requests in flight for this piece.
    pub(super) fn others_for(&self, piece: PieceIndex) -> Vec<(PeerKey, RequestId)> {
        self.in_flight
            .iter()
            .filter(|(_, request)| request.piece == Some(piece))
            .map(|(id, request)| (request.peer, *id))
            .collect()
    }

    /// Forgets a peer's requests; returns the pieces that now nobody brings.
    pub(super) fn drop_peer(&mut self, peer: PeerKey) -> Vec<PieceIndex> {
        let lost: Vec<PieceIndex> = self
            .in_flight
            .values()
            .filter(|request| request.peer == peer)
            .filter_map(|request| request.piece)
            .collect();
        self.in_flight.retain(|_, request| request.peer != peer);
        lost.into_iter().filter(|piece| !self.wants(*piece)).collect()
    }

    /// Smoothed time that a request takes.
    pub(super) fn service_time(&self) -> Duration {
        self.service_time
    }

    /// Takes a finished request into the average (weight 1/8, as TCP smooths its round trip time).
    pub(super) fn observe(&mut self, now: Timestamp, request: &Request) {
        let sample = now - request.sent_at;
        self.service_time = (self.service_time * 7 + sample) / 8;
    }

    pub(super) fn stall_time(&self, config: &SwarmConfig) -> Duration {
        config.stall.max(self.service_time * config.stall_factor)
    }

    pub(super) fn next_deadline(&self, config: &SwarmConfig) -> Option<Timestamp> {
        let stall = self.stall_time(config);
        self.in_flight.values().map(|request| request.heard_at + stall).min()
    }

    /// Requests that brought nothing for too long.
    pub(super) fn stalled(&self, now: Timestamp, config: &SwarmConfig) -> Vec<RequestId> {
        let stall = self.stall_time(config);
        self.in_flight.iter().filter(|(_, request)| now >= request.heard_at + stall).map(|(id, _)| *id).collect()
    }

    /// Requests for a piece that only one peer was asked for, the oldest first.
    pub(super) fn alone(&self) -> Vec<(RequestId, Request)> {
        let mut alone: Vec<_> = self
            .in_flight
            .iter()
            .filter(|(_, request)| {
                request.piece.is_some_and(|piece| {
                    self.in_flight.values().filter(|other| other.piece == Some(piece)).count() == 1
                })
            })
            .map(|(id, request)| (*id, *request))
            .collect();
        alone.sort_by_key(|(id, request)| (request.sent_at, *id));
        alone
    }
}
