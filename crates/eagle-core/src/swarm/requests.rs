//! Requests in flight, and how long requests take.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{
    PeerKey, RequestId,
    service::{Smoothed, Times},
};
use crate::{geometry::PieceIndex, time::Timestamp};

#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) peer: PeerKey,
    /// The piece; unknown until the answer begins when any piece was asked for.
    pub(super) piece: Option<PieceIndex>,
    /// Asked for any piece.
    pub(super) any: bool,
    /// Its sender was told that it is no longer needed; an answer may come all the same.
    pub(super) cancelled: bool,
    pub(super) sent_at: Timestamp,
    /// Last time bytes of the answer came.
    pub(super) heard_at: Timestamp,
    /// When the first byte of the answer came.
    pub(super) started_at: Option<Timestamp>,
    /// How long it will take, from what is known of the peer; `None` when nothing is.
    pub(super) expected: Option<Duration>,
}

/// Requests that were given up and whose answers may come still; of older ones nothing is learned.
const MAX_GIVEN_UP: usize = 64;
/// A sample of the whole swarm counts for an eighth, as in TCP (RFC 6298).
const SWARM_PARTS: u32 = 8;

#[derive(Debug)]
pub(super) struct Requests {
    in_flight: BTreeMap<RequestId, Request>,
    given_up: VecDeque<(RequestId, Request)>,
    next_id: u32,
    initial_service_time: Duration,
    /// From request to last byte.
    service_time: Smoothed,
    /// From first byte to last.
    transfer: Smoothed,
}

impl Requests {
    pub(super) fn new(initial_service_time: Duration) -> Self {
        Self {
            in_flight: BTreeMap::new(),
            given_up: VecDeque::new(),
            next_id: 0,
            initial_service_time,
            service_time: Smoothed::new(SWARM_PARTS),
            transfer: Smoothed::new(SWARM_PARTS),
        }
    }

    pub(super) fn add(&mut self, request: Request) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        self.in_flight.insert(id, request);
        id
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Request> {
        self.in_flight.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: RequestId) -> Option<Request> {
        self.in_flight.remove(&id)
    }

    /// No longer waits for a request; its answer may come all the same.
    pub(super) fn give_up(&mut self, id: RequestId) -> Option<Request> {
        let request = self.in_flight.remove(&id)?;
        if self.given_up.len() >= MAX_GIVEN_UP {
            self.given_up.pop_front();
        }
        self.given_up.push_back((id, request));
        Some(request)
    }

    /// The answer to a request that was given up has come.
    pub(super) fn came_late(&mut self, id: RequestId) -> Option<Request> {
        let at = self.given_up.iter().position(|(late, _)| *late == id)?;
        self.given_up.remove(at).map(|(_, request)| request)
    }

    /// Requests that were given up and that something may still be learned from.
    #[cfg(test)]
    pub(super) fn given_up(&self) -> usize {
        self.given_up.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (RequestId, &Request)> {
        self.in_flight.iter().map(|(id, request)| (*id, request))
    }

    /// Requests of both kinds.
    pub(super) fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// Requests for pieces that we chose and still want; those for any piece wait elsewhere and do
    /// not count.
    pub(super) fn chosen(&self) -> usize {
        self.in_flight.values().filter(|request| !request.any && !request.cancelled).count()
    }

    /// Whether some request in flight brings this piece.
    pub(super) fn wants(&self, piece: PieceIndex) -> bool {
        self.in_flight.values().any(|request| request.piece == Some(piece) && !request.cancelled)
    }

    /// The only request in flight for this piece, when its answer has not begun, and whom it was made to.
    pub(super) fn waiting_for(&self, piece: PieceIndex) -> Option<(RequestId, PeerKey)> {
        let mut those = self.in_flight.iter().filter(|(_, request)| request.piece == Some(piece) && !request.cancelled);
        let (id, request) = those.next()?;
        let alone = those.next().is_none();
        (alone && request.started_at.is_none() && !request.any).then_some((*id, request.peer))
    }

    pub(super) fn set_cancelled(&mut self, id: RequestId, cancelled: bool) {
        if let Some(request) = self.in_flight.get_mut(&id) {
            request.cancelled = cancelled;
        }
    }

    /// Marks every request for this piece as cancelled; returns those that were not yet.
    pub(super) fn cancel_all(&mut self, piece: PieceIndex) -> Vec<(PeerKey, RequestId)> {
        let mut cancelled = Vec::new();
        for (id, request) in &mut self.in_flight {
            if request.piece == Some(piece) && !request.cancelled {
                request.cancelled = true;
                cancelled.push((request.peer, *id));
            }
        }
        cancelled
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
        self.given_up.retain(|(_, request)| request.peer != peer);
        lost.into_iter().filter(|piece| !self.wants(*piece)).collect()
    }

    /// Smoothed time that a request takes.
    pub(super) fn service_time(&self) -> Duration {
        self.service_time.get().unwrap_or(self.initial_service_time)
    }

    /// Smoothed time that a piece takes once its first byte is here; `None` before any answer.
    pub(super) fn transfer_time(&self) -> Option<Duration> {
        self.transfer.get()
    }

    /// Takes an answered request into the averages; returns how long it took.
    pub(super) fn observe(&mut self, now: Timestamp, request: &Request) -> Times {
        let times =
            Times { transfer: now - request.started_at.unwrap_or(request.sent_at), total: now - request.sent_at };
        self.service_time.add(times.total);
        self.transfer.add(times.transfer);
        times
    }

    /// The newest request for each piece that is on its way.
    pub(super) fn newest(&self) -> BTreeMap<PieceIndex, Request> {
        let wanted = self.in_flight.values().filter(|request| !request.cancelled);
        let mut newest = BTreeMap::new();
        for (piece, request) in wanted.filter_map(|request| Some((request.piece?, *request))) {
            let known = newest.entry(piece).or_insert(request);
            if request.sent_at > known.sent_at {
                *known = request;
            }
        }
        newest
    }

    /// Who was asked for a piece and may bring it still.
    pub(super) fn asked_for(&self, piece: PieceIndex) -> impl Iterator<Item = PeerKey> {
        self.in_flight
            .values()
            .filter(move |request| request.piece == Some(piece) && !request.cancelled)
            .map(|request| request.peer)
    }
}
