//! What makes one peer better for an asker than another of the same distance.
//!
//! The score is a sum of points. What pieces a peer has counts most, then chance, then how busy it is and how long it
//! has been there: chance has to be able to overrule the last two, or everybody would be told of the same few, and now
//! and then the first, since what a tracker knows of pieces is as old as the last announce.

use std::cmp::Ordering;

use super::policy::{Asker, Candidate};

/// The peer owns pieces that the asker lacks.
const OFFERS: f64 = 4.0;
/// The asker owns pieces that the peer lacks: they can exchange, and neither only takes.
const EXCHANGE: f64 = 1.0;
/// Chance, at most: more than all that is below, a little more than pieces.
const CHANCE: f64 = 4.5;
/// A peer with free upload slots begins at once.
const FREE_SLOT: f64 = 1.0;
/// A peer with a long queue, at most, and the requests in it that cost half of that: as many as a node has in flight.
const QUEUE: (f64, f64) = (2.0, 9.0);
/// A peer that has been there for long, at most, and the seconds that bring half of it: most that fail do so soon.
const AGE: (f64, f64) = (0.5, 10.0);

/// A candidate with its score, ordered by that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scored {
    /// Which of the candidates.
    pub(super) index: usize,
    /// Whether it owns something that the asker lacks.
    pub(super) offers: bool,
    points: f64,
}

/// The score of the candidate with this index; `chance` is a random number.
pub(super) fn score(asker: Asker<'_>, index: usize, candidate: &Candidate, chance: u64) -> Scored {
    let offers = candidate.pieces.offers(asker.pieces);
    let mut points = CHANCE * (chance as f64 / u64::MAX as f64);
    if offers {
        points += OFFERS;
    }
    if asker.pieces.offers(&candidate.pieces) {
        points += EXCHANGE;
    }
    if let Some(load) = candidate.load {
        let queue = f64::from(load.requests);
        points -= QUEUE.0 * queue / (queue + QUEUE.1);
        if load.free_slots > 0 {
            points += FREE_SLOT;
        }
    }
    let age = candidate.age.as_secs_f64();
    points += AGE.0 * age / (age + AGE.1);
    Scored { index, offers, points }
}

impl Ord for Scored {
    fn cmp(&self, other: &Self) -> Ordering {
        self.points.total_cmp(&other.points).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Scored {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scored {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scored {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        NodeRole, Place,
        tracker::{NodeLoad, Ownership},
    };

    fn points(asker: &Ownership, pieces: Ownership, load: Option<NodeLoad>, age: u64) -> f64 {
        let place = Place::default();
        let candidate = Candidate { role: NodeRole::Proxy, place, pieces, load, age: Duration::from_secs(age) };
        score(Asker { place, pieces: asker }, 0, &candidate, 0).points
    }

    #[test]
    fn complementary_pieces_count_most_then_load_then_age() {
        let asker = Ownership::Prefix(3);
        let (more, fewer) = (Ownership::Prefix(5), Ownership::Empty);
        let idle = Some(NodeLoad { requests: 0, free_slots: 2 });
        let busy = Some(NodeLoad { requests: 40, free_slots: 0 });
        assert!(points(&asker, more.clone(), busy, 0) > points(&asker, fewer.clone(), busy, 1_000));
        assert!(points(&asker, fewer.clone(), idle, 0) > points(&asker, fewer.clone(), None, 0));
        assert!(points(&asker, fewer.clone(), None, 0) > points(&asker, fewer.clone(), busy, 1_000));
        assert!(points(&asker, fewer.clone(), None, 60) > points(&asker, fewer.clone(), None, 1));
        // Who owns what we lack and lacks what we own is better than who only gives.
        assert!(points(&asker, Ownership::Bitmap(vec![0x10].into()), None, 0) > points(&asker, more, None, 0));
    }

    /// Whatever the rest says, chance can put either of two peers first.
    #[test]
    fn chance_can_overrule_all_of_it() {
        let rest = FREE_SLOT + QUEUE.0 + AGE.0;
        assert!(CHANCE > rest && CHANCE > OFFERS, "{rest}");
    }
}
