//! Who fetches which blob: leases with an expiry and a fencing token.
//!
//! A *lease* is the right of one seeder to fetch one blob. It ends when its holder gives it back, is silent for
//! [`LeaseLimits::lifetime`], or renews it for [`LeaseLimits::patience`] without having got any further. Each lease has a *token*, a number
//! higher than that of every lease before it (M. Burrows, "The Chubby lock service", OSDI 2006, sequencers): a holder that was
//! asleep while its lease ended cannot renew or return that of its successor.
//!
//! Time is what the caller says, and is never taken to run backwards.

use std::{collections::BTreeMap, time::Duration};

use crate::{Digest, NodeId, Timestamp};

/// How long leases live, and how many there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseLimits {
    /// After this long without a renewal a lease ends.
    pub lifetime: Duration,
    /// After this long without progress a lease ends, however often it is renewed.
    pub patience: Duration,
    /// Most leases at a time.
    pub leases: usize,
    /// Most leases of one holder at a time.
    pub leases_per_holder: usize,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The claimant holds the lease now.
    Granted {
        /// To renew it and to give it back.
        token: u64,
    },
    /// Somebody else holds it.
    Held(NodeId),
    /// There are as many leases as are allowed.
    Full,
}

#[derive(Debug)]
struct Lease {
    holder: NodeId,
    token: u64,
    renewed: Timestamp,
    progress: u64,
    progressed: Timestamp,
}

impl Lease {
    fn is_live(&self, limits: &LeaseLimits, now: Timestamp) -> bool {
        now - self.renewed < limits.lifetime && now - self.progressed < limits.patience
    }
}

/// All leases that one place gives out.
#[derive(Debug)]
pub struct Leases {
    limits: LeaseLimits,
    held: BTreeMap<Digest, Lease>,
    /// Leases in `held` by holder; none is zero.
    counts: BTreeMap<NodeId, usize>,
    next_token: u64,
    latest: Timestamp,
}

impl Leases {
    /// No leases. Tokens begin at `first_token`; who starts anew gives one higher than all that it gave before.
    pub const fn new(limits: LeaseLimits, first_token: u64) -> Self {
        Self { limits, held: BTreeMap::new(), counts: BTreeMap::new(), next_token: first_token, latest: Timestamp(0) }
    }

    /// Asks for the lease of a blob. Its own holder gets it anew, with another token: it does not know of the first, or it was
    /// started again.
    pub fn claim(&mut self, digest: Digest, claimant: &NodeId, now: Timestamp) -> Claimed {
        let now = self.advance(now);
        match self.held.get(&digest) {
            Some(lease) if lease.is_live(&self.limits, now) && lease.holder != *claimant => {
                return Claimed::Held(lease.holder.clone());
            }
            Some(_) => self.forget(&digest),
            None => {}
        }
        if self.held.len() >= self.limits.leases {
            self.expire(now);
        }
        let own = self.counts.get(claimant).copied().unwrap_or(0);
        if self.held.len() >= self.limits.leases || own >= self.limits.leases_per_holder {
            return Claimed::Full;
        }
        let token = self.next_token;
        self.next_token = self.next_token.saturating_add(1);
        let holder = claimant.clone();
        self.held.insert(digest, Lease { holder, token, renewed: now, progress: 0, progressed: now });
        *self.counts.entry(claimant.clone()).or_default() += 1;
        Claimed::Granted { token }
    }

    /// Keeps a lease alive; `progress` is any measure that only grows. Whether it is still that of this token.
    pub fn renew(&mut self, digest: &Digest, token: u64, progress: u64, now: Timestamp) -> bool {
        let now = self.advance(now);
        let limits = self.limits;
        let lease = self.held.get_mut(digest).filter(|lease| lease.token == token && lease.is_live(&limits, now));
        let Some(lease) = lease else { return false };
        lease.renewed = now;
        if progress > lease.progress {
            (lease.progress, lease.progressed) = (progress, now);
        }
        true
    }

    /// Gives a lease back, if it is that of this token.
    pub fn release(&mut self, digest: &Digest, token: u64) {
        if self.held.get(digest).is_some_and(|lease| lease.token == token) {
            self.forget(digest);
        }
    }

    /// Gives back all leases of a holder that is gone.
    pub fn leave(&mut self, holder: &NodeId) {
        self.held.retain(|_, lease| lease.holder != *holder);
        self.counts.remove(holder);
    }

    /// Who holds the lease of a blob.
    pub fn holder(&mut self, digest: &Digest, now: Timestamp) -> Option<&NodeId> {
        let now = self.advance(now);
        let lease = self.held.get(digest).filter(|lease| lease.is_live(&self.limits, now))?;
        Some(&lease.holder)
    }

    /// Number of leases of a holder, with those that have ended and are not forgotten yet.
    pub fn held_by(&self, holder: &NodeId) -> usize {
        self.counts.get(holder).copied().unwrap_or(0)
    }

    /// Number of leases, with those that have ended and are not forgotten yet.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Forgets those that have ended.
    pub fn expire(&mut self, now: Timestamp) {
        let now = self.advance(now);
        let dead: Vec<Digest> = self
            .held
            .iter()
            .filter(|(_, lease)| !lease.is_live(&self.limits, now))
            .map(|(digest, _)| *digest)
            .collect();
        for digest in dead {
            self.forget(&digest);
        }
    }

    fn advance(&mut self, now: Timestamp) -> Timestamp {
        self.latest = self.latest.max(now);
        self.latest
    }

    fn forget(&mut self, digest: &Digest) {
        let Some(lease) = self.held.remove(digest) else { return };
        if let Some(count) = self.counts.get_mut(&lease.holder) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&lease.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: LeaseLimits = LeaseLimits {
        lifetime: Duration::from_secs(10),
        patience: Duration::from_secs(60),
        leases: 6,
        leases_per_holder: 3,
    };

    fn at(seconds: u64) -> Timestamp {
        Timestamp(0) + Duration::from_secs(seconds)
    }

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    #[test]
    fn a_lease_lives_as_long_as_it_is_renewed_and_gets_further() {
        let (mut leases, digest, one, other) = (Leases::new(LIMITS, 7), Digest::of(b"a"), node("one"), node("other"));
        assert_eq!(leases.claim(digest, &one, at(0)), Claimed::Granted { token: 7 });
        assert!(leases.renew(&digest, 7, 1, at(9)));
        assert_eq!(leases.claim(digest, &other, at(18)), Claimed::Held(one.clone()));
        assert_eq!(leases.claim(digest, &other, at(19)), Claimed::Granted { token: 8 });
        assert!(!leases.renew(&digest, 7, 2, at(19)), "it is somebody else's");
        leases.release(&digest, 7);
        assert_eq!(leases.holder(&digest, at(20)), Some(&other));
        for seconds in 20..79 {
            assert!(leases.renew(&digest, 8, 0, at(seconds)));
        }
        assert!(!leases.renew(&digest, 8, 0, at(79)), "a minute without a byte");
        assert_eq!(leases.claim(digest, &one, at(79)), Claimed::Granted { token: 9 });
        assert_eq!(leases.claim(digest, &one, at(80)), Claimed::Granted { token: 10 }, "started again");
        leases.leave(&one);
        assert!(leases.is_empty());
    }

    #[test]
    fn there_are_no_more_than_are_allowed() {
        let mut leases = Leases::new(LIMITS, 0);
        let claim = |leases: &mut Leases, number: u8, holder: &str, seconds| {
            leases.claim(Digest::of(&[number]), &node(holder), at(seconds))
        };
        for number in 0..3 {
            assert!(matches!(claim(&mut leases, number, "one", 0), Claimed::Granted { .. }));
        }
        assert_eq!(claim(&mut leases, 3, "one", 0), Claimed::Full);
        for number in 3..6 {
            assert!(matches!(claim(&mut leases, number, "two", 5), Claimed::Granted { .. }));
        }
        assert_eq!(claim(&mut leases, 6, "three", 5), Claimed::Full);
        // Those that have ended make room.
        assert!(matches!(claim(&mut leases, 6, "three", 10), Claimed::Granted { .. }));
        assert_eq!(leases.len(), 4);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Claim {
            blob: u8,
            node: u8,
        },
        Renew {
            lease: usize,
            progress: u64,
        },
        Release {
            lease: usize,
        },
        Leave {
            node: u8,
        },
        Expire,
        /// The clock jumps, also backwards.
        Clock(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..4, 0u8..4).prop_map(|(blob, node)| Step::Claim { blob, node }),
            4 => (any::<usize>(), 0u64..5).prop_map(|(lease, progress)| Step::Renew { lease, progress }),
            1 => any::<usize>().prop_map(|lease| Step::Release { lease }),
            1 => (0u8..4).prop_map(|node| Step::Leave { node }),
            1 => Just(Step::Expire),
            4 => prop_oneof![0u64..200, Just(0), Just(u64::MAX / 1_000_000_000)].prop_map(Step::Clock),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order, a token is renewed only while no later lease of the blob was granted,
        /// nobody is granted a lease that another can still renew, and tokens only grow.
        #[test]
        fn at_most_one_holds_a_lease(steps in proptest::collection::vec(step(), 0..200)) {
            let mut leases = Leases::new(LIMITS, 1);
            let name = |number: u8| node(&format!("node{number}"));
            let mut granted: Vec<(Digest, u8, u64)> = Vec::new();
            let (mut now, mut latest) = (at(0), at(0));
            // By blob: who holds it, the token, the last renewal and the last progress, as the definition has it.
            let mut model: BTreeMap<Digest, (u8, u64, Timestamp, u64, Timestamp)> = BTreeMap::new();
            for step in steps {
                // The time is known with the calls that say it.
                let says = match step {
                    Step::Claim { .. } | Step::Expire => true,
                    Step::Renew { .. } => !granted.is_empty(),
                    Step::Release { .. } | Step::Leave { .. } | Step::Clock(_) => false,
                };
                if says {
                    latest = latest.max(now);
                }
                let live = |entry: &(u8, u64, Timestamp, u64, Timestamp)| {
                    latest - entry.2 < LIMITS.lifetime && latest - entry.4 < LIMITS.patience
                };
                match step {
                    Step::Clock(seconds) => now = at(seconds),
                    Step::Claim { blob, node } => {
                        let digest = Digest::of(&[blob]);
                        let holder = model.get(&digest).filter(|entry| live(entry)).map(|entry| entry.0);
                        match leases.claim(digest, &name(node), now) {
                            Claimed::Granted { token } => {
                                prop_assert!(holder.is_none_or(|holder| holder == node));
                                prop_assert!(granted.iter().all(|(_, _, earlier)| *earlier < token));
                                granted.push((digest, node, token));
                                model.insert(digest, (node, token, latest, 0, latest));
                            }
                            Claimed::Held(by) => prop_assert_eq!(Some(by), holder.map(name)),
                            Claimed::Full => prop_assert!(leases.held_by(&name(node)) >= LIMITS.leases_per_holder),
                        }
                    }
                    Step::Renew { lease, progress } if !granted.is_empty() => {
                        let (digest, _, token) = granted[lease % granted.len()];
                        let entry = model.get_mut(&digest).filter(|entry| entry.1 == token && live(entry));
                        prop_assert_eq!(leases.renew(&digest, token, progress, now), entry.is_some());
                        if let Some(entry) = entry {
                            entry.2 = latest;
                            if progress > entry.3 {
                                (entry.3, entry.4) = (progress, latest);
                            }
                        }
                    }
                    Step::Release { lease } if !granted.is_empty() => {
                        let (digest, _, token) = granted[lease % granted.len()];
                        leases.release(&digest, token);
                        if model.get(&digest).is_some_and(|entry| entry.1 == token) {
                            model.remove(&digest);
                        }
                    }
                    Step::Leave { node } => {
                        leases.leave(&name(node));
                        model.retain(|_, entry| entry.0 != node);
                    }
                    Step::Expire => leases.expire(now),
                    Step::Renew { .. } | Step::Release { .. } => {}
                }
                prop_assert!(leases.len() <= LIMITS.leases);
                let counted: usize = leases.counts.values().sum();
                prop_assert_eq!(counted, leases.len());
            }
        }
    }
}
