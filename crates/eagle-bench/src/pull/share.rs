//! The clients of a step, spread over those who run them.

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// The most pulls that one program makes in a step; each leaves a record of some hundred bytes.
const MAX_PULLS: u32 = 1_000_000;
/// The most clients at a time, as the command line has it.
pub(crate) const MAX_CLIENTS: u32 = 10_000;

/// Some of the clients of a step, in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Share {
    /// How many they are.
    pub(crate) clients: u32,
    /// Clients before them.
    pub(crate) first: u32,
    /// All clients of the step.
    pub(crate) of: u32,
}

impl Share {
    /// All of them.
    pub(crate) const fn whole(clients: u32) -> Self {
        Self { clients, first: 0, of: clients }
    }

    /// Shares that differ by one client at most, the larger first; with fewer clients than parts, the last have none.
    pub(crate) fn split(of: u32, parts: u32) -> Vec<Self> {
        let parts = parts.max(1);
        let (each, more) = (of / parts, of % parts);
        let first = |part: u32| part * each + part.min(more);
        (0..parts).map(|part| Self { clients: first(part + 1) - first(part), first: first(part), of }).collect()
    }

    /// How many pulls it makes, each client so many.
    ///
    /// # Errors
    /// When it is no share, or has too many pulls.
    pub(crate) fn pulls(self, iterations: u32) -> Result<u32> {
        let Self { clients, first, of } = self;
        let end = first.checked_add(clients).context("too many clients")?;
        ensure!(
            clients > 0 && end <= of && of <= MAX_CLIENTS,
            "{clients} clients from {first} on are no share of {of}, of which there may be {MAX_CLIENTS}"
        );
        // The numbers of the iterations are of all clients together.
        of.checked_mul(iterations).context("too many pulls")?;
        let pulls = clients.checked_mul(iterations).filter(|pulls| (1..=MAX_PULLS).contains(pulls));
        pulls.with_context(|| format!("a step has from 1 to {MAX_PULLS} pulls of one program"))
    }

    /// The number among all pulls of the step, from 0, of the pull that is `number` here: first one of each client, then the next.
    pub(crate) const fn of_step(self, number: u32) -> u32 {
        number / self.clients * self.of + self.first + number % self.clients
    }

    /// Whether a pull with this number among all of the step, from 0, is of this share.
    pub(crate) const fn has(self, number: u32) -> bool {
        let client = number % self.of;
        client >= self.first && client - self.first < self.clients
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_all_of_it_and_differ_by_one_at_most() {
        for of in [1, 2, 3, 10, 99, 100, 10_000] {
            for parts in [1, 2, 3, 7, 100] {
                let shares = Share::split(of, parts);
                assert_eq!(shares.len(), parts as usize);
                let mut next = 0;
                for share in &shares {
                    assert_eq!((share.first, share.of), (next, of));
                    next += share.clients;
                }
                assert_eq!(next, of);
                let (most, least) = (shares[0].clients, shares[shares.len() - 1].clients);
                assert!(most - least <= 1 && shares.iter().all(|share| (least..=most).contains(&share.clients)));
            }
        }
        assert_eq!(Share::split(4, 1), [Share::whole(4)]);
    }

    #[test]
    fn every_pull_of_a_step_is_made_by_one_share() {
        let (of, iterations) = (7, 3);
        let mut numbers = Vec::new();
        for share in Share::split(of, 3) {
            for number in 0..share.pulls(iterations).unwrap() {
                let of_step = share.of_step(number);
                assert!(share.has(of_step));
                // Each client of a round has the same image.
                assert_eq!(of_step / of, number / share.clients);
                numbers.push(of_step);
            }
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..of * iterations).collect::<Vec<_>>());
        let [one, other, ..] = Share::split(of, 3)[..] else { unreachable!() };
        assert!((0..of * iterations).all(|number| !(one.has(number) && other.has(number))));
        assert_eq!(
            (0..9).map(|number| Share::whole(3).of_step(number)).collect::<Vec<_>>(),
            (0..9).collect::<Vec<_>>()
        );
    }

    #[test]
    fn what_is_no_share_is_refused() {
        let refused = |clients, first, of, iterations| Share { clients, first, of }.pulls(iterations).is_err();
        assert!(!refused(1, 0, 1, 1) && !refused(2, 1, 3, 5));
        assert!(refused(0, 0, 1, 1) && refused(2, 2, 3, 1) && refused(1, u32::MAX, 1, 1));
        assert!(refused(10_001, 0, 10_001, 1) && refused(10_000, 0, 10_000, 101) && refused(1, 0, 10_000, u32::MAX));
        assert!(refused(1, 0, 1, 0));
    }
}
