//! Uploads that wait for a slot, and which of them goes next.
//!
//! Among receivers of like rates the first to come goes first. A clearly faster one goes before: it has
//! what it gets sooner, passes it on sooner, and has few neighbours that are as fast as it is
//! (`docs/architecture.md`).

use std::collections::VecDeque;

use crate::wire::control::HostRate;

/// One in so many goes to whoever has waited longest, however slow it is, so that nobody waits for ever at
/// a node that fast ones keep busy.
const OLDEST_IN: u32 = 4;

/// Uploads that wait for a slot of one node.
#[derive(Debug)]
pub struct WaitingUploads<T> {
    /// In the order in which they came, with what the receiver can take.
    waiting: VecDeque<(HostRate, T)>,
    /// How many have gone past an older one since the oldest went.
    overtaken: u32,
}

impl<T> Default for WaitingUploads<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), overtaken: 0 }
    }
}

impl<T> WaitingUploads<T> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// One more waits, for a receiver of this rate.
    pub fn push(&mut self, receiver: HostRate, upload: T) {
        self.waiting.push_back((receiver, upload));
    }

    /// Takes the one that goes next, of those that `may`.
    pub fn next(&mut self, may: impl Fn(&T) -> bool) -> Option<T> {
        let mut those = self.waiting.iter().enumerate().filter(|(_, (_, upload))| may(upload));
        let (oldest, (rate, _)) = those.next()?;
        let (mut place, mut fastest) = (oldest, *rate);
        if self.overtaken + 1 < OLDEST_IN {
            for (other, (rate, _)) in those {
                if rate.is_clearly_faster_than(fastest) {
                    (place, fastest) = (other, *rate);
                }
            }
        }
        self.overtaken = if place == oldest { 0 } else { self.overtaken + 1 };
        self.waiting.remove(place).map(|(_, upload)| upload)
    }

    /// Takes out the first that `is` meant.
    pub fn cancel(&mut self, is: impl Fn(&T) -> bool) -> Option<T> {
        let place = self.waiting.iter().position(|(_, upload)| is(upload))?;
        self.waiting.remove(place).map(|(_, upload)| upload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(rates: &[u64]) -> Vec<usize> {
        let mut waiting = WaitingUploads::default();
        for (number, rate) in rates.iter().enumerate() {
            waiting.push(HostRate(*rate), number);
        }
        std::iter::from_fn(|| waiting.next(|_| true)).collect()
    }

    #[test]
    fn like_rates_are_served_as_they_come() {
        assert_eq!(order(&[10, 11, 9, 12, 10]), [0, 1, 2, 3, 4]);
        assert_eq!(order(&[0, 0, 0]), [0, 1, 2]);
    }

    #[test]
    fn the_clearly_faster_go_first_and_the_oldest_is_not_forgotten() {
        assert_eq!(order(&[10, 100, 20, 100]), [1, 3, 2, 0]);
        // Without a limit is faster than any.
        assert_eq!(order(&[10, 100, 0]), [2, 1, 0]);
        assert_eq!(order(&[1, 9, 9, 9, 9, 9]), [1, 2, 3, 0, 4, 5]);
    }

    #[test]
    fn those_that_may_not_go_keep_their_place() {
        let mut waiting = WaitingUploads::default();
        for number in 0..3 {
            waiting.push(HostRate(10), number);
        }
        assert_eq!(waiting.next(|number| *number != 0), Some(1));
        assert_eq!(waiting.next(|_| false), None);
        assert_eq!(waiting.cancel(|number| *number == 2), Some(2));
        assert_eq!(waiting.cancel(|number| *number == 2), None);
        assert_eq!(waiting.next(|_| true), Some(0));
        assert!(waiting.is_empty());
    }
}
