//! One-time tickets for plain data channels.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use eagle_core::wire::control::Ticket;
use libp2p::PeerId;
use rand::Rng;
use subtle::ConstantTimeEq;

/// How long a ticket is good for. A peer asks when it is about to dial.
const LIFETIME: Duration = Duration::from_secs(10);
/// Most tickets of one peer; it dials one channel at a time, and may have to try again.
const MAX_PER_PEER: usize = 4;
/// Most tickets in all. Redeeming compares with every one, so this is also what bounds that.
const MAX_TOTAL: usize = 4096;

/// The tickets that were handed out and not used yet, oldest first.
#[derive(Debug, Default)]
pub(crate) struct TicketBook(Mutex<VecDeque<Entry>>);

#[derive(Debug)]
struct Entry {
    ticket: Ticket,
    peer: PeerId,
    issued: Instant,
}

impl TicketBook {
    /// A new ticket for `peer`. Where there are too many, the oldest becomes void.
    pub(crate) fn issue(&self, peer: PeerId, now: Instant) -> Ticket {
        let mut secret = [0; 32];
        rand::rng().fill_bytes(&mut secret);
        let ticket = Ticket(secret);
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        expire(&mut entries, now);
        if entries.iter().filter(|entry| entry.peer == peer).count() >= MAX_PER_PEER {
            let oldest = entries.iter().position(|entry| entry.peer == peer);
            oldest.and_then(|index| entries.remove(index));
        } else if entries.len() >= MAX_TOTAL {
            entries.pop_front();
        }
        entries.push_back(Entry { ticket, peer, issued: now });
        ticket
    }

    /// Whom the ticket was handed to. It is void from then on.
    pub(crate) fn redeem(&self, ticket: &Ticket, now: Instant) -> Option<PeerId> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        expire(&mut entries, now);
        // Every entry is compared, and each in constant time, so that the time taken says nothing
        // about how much of a guess was right.
        let mut found = None;
        for (index, entry) in entries.iter().enumerate() {
            if bool::from(entry.ticket.0.ct_eq(&ticket.0)) {
                found = Some(index);
            }
        }
        found.and_then(|index| entries.remove(index)).map(|entry| entry.peer)
    }
}

fn expire(entries: &mut VecDeque<Entry>, now: Instant) {
    while entries.front().is_some_and(|entry| now.saturating_duration_since(entry.issued) > LIFETIME) {
        entries.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_once_and_for_a_while() {
        let book = TicketBook::default();
        let (peer, now) = (PeerId::random(), Instant::now());
        let ticket = book.issue(peer, now);
        assert_eq!(book.redeem(&Ticket([7; 32]), now), None);
        assert_eq!(book.redeem(&ticket, now), Some(peer));
        assert_eq!(book.redeem(&ticket, now), None);

        let ticket = book.issue(peer, now);
        assert_eq!(book.redeem(&ticket, now + LIFETIME + Duration::from_millis(1)), None);
    }

    #[test]
    fn no_peer_crowds_out_another() {
        let book = TicketBook::default();
        let (greedy, modest, now) = (PeerId::random(), PeerId::random(), Instant::now());
        let kept = book.issue(modest, now);
        let first = book.issue(greedy, now);
        let last = (0..2 * MAX_TOTAL).map(|_| book.issue(greedy, now)).last().unwrap();
        assert_eq!(book.0.lock().unwrap().len(), MAX_PER_PEER + 1);
        assert_eq!(book.redeem(&first, now), None);
        assert_eq!(book.redeem(&last, now), Some(greedy));
        assert_eq!(book.redeem(&kept, now), Some(modest));
    }
}
