//! What happens in a run, and when: a pure function of the seed.

use std::fmt;

use rand::{RngExt as _, SeedableRng as _, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;

/// When the first fault may begin, ms: the first pulls are under way by then.
const FIRST_FAULT: u64 = 400;
/// When the last fault begins at the latest, ms.
const LAST_FAULT: u64 = 5_000;
/// How long a fault lasts, ms: from a hiccup to several stall times.
const FAULT_LASTS: std::ops::RangeInclusive<u64> = 300..=3_000;
/// When the last pull begins at the latest, ms.
const LAST_PULL: u64 = 6_000;

/// Part of the runs in which the clocks of a member jump.
const JUMPS: f64 = 0.3;
/// By how much, seconds: from longer than most deadlines to a night.
const JUMP: std::ops::RangeInclusive<i64> = 20..=30_000;

const MIB: u64 = 1 << 20;

/// A process of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Member {
    Tracker(usize),
    Seeder(usize),
    Proxy(usize),
}

impl Member {
    /// The subcommand of `eagle`.
    pub(crate) fn role(self) -> &'static str {
        match self {
            Self::Tracker(_) => "tracker",
            Self::Seeder(_) => "seeder",
            Self::Proxy(_) => "proxy",
        }
    }

    /// Its number among those of its role.
    pub(crate) fn number(self) -> usize {
        match self {
            Self::Tracker(number) | Self::Seeder(number) | Self::Proxy(number) => number,
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.role(), self.number())
    }
}

/// What the origin does to every request while it lasts, and to the bodies that it is sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OriginFault {
    /// Answers with this status.
    Status(u16),
    /// Resets the connection.
    Reset,
    /// Closes the connection in the middle of a body.
    Truncate,
    /// Sends nothing more, and closes nothing.
    Stall,
    /// Flips bits in bodies.
    WrongBytes,
}

/// Connections between two members, by the ports that one of them listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// Pieces.
    Data,
    /// libp2p.
    Control,
    /// The APIs of trackers and seeders.
    Http,
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL; started again at the end.
    Kill(Member),
    /// All trackers are killed at once, and started again at the end.
    KillTrackers,
    /// SIGSTOP; SIGCONT at the end.
    Freeze(Member),
    /// Nothing gets in or out, and nobody is told.
    Cut(Member),
    /// Nothing passes between these two.
    Part(Member, Member),
    /// Its link has 1 % of the host's limit.
    Slow(Member),
    /// Its disk is full to the last byte, by files of others.
    FillDisk(Member),
    /// A bit changes in this many of the files in its cache. Nothing is repaired at the end.
    CorruptFiles(Member, u32),
    /// Bits change in what the first sends the second.
    CorruptWire(Member, Member, Channel),
    /// Its wall clock is off by so many seconds.
    MoveClock(Member, i64),
    /// Its wall clock and its monotonic clock jump forward by so many seconds and stay there, as when a virtual machine goes on that
    /// was stopped. Nothing is undone at the end.
    Jump(Member, i64),
    /// The origin misbehaves.
    Origin(OriginFault),
}

impl Fault {
    /// Whether it can be done with plain processes on the loopback interface.
    pub(crate) fn needs_namespaces(self) -> bool {
        matches!(self, Self::Cut(_) | Self::Part(..) | Self::Slow(_) | Self::FillDisk(_) | Self::CorruptWire(..))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(member) => write!(f, "kill {member}"),
            Self::KillTrackers => write!(f, "kill all trackers"),
            Self::Freeze(member) => write!(f, "freeze {member}"),
            Self::Cut(member) => write!(f, "cut off {member}"),
            Self::Part(one, other) => write!(f, "cut between {one} and {other}"),
            Self::Slow(member) => write!(f, "{member} has 1 % of its bandwidth"),
            Self::FillDisk(member) => write!(f, "the disk of {member} is full"),
            Self::CorruptFiles(member, files) => write!(f, "corrupt {files} files of {member}"),
            Self::CorruptWire(from, to, channel) => write!(f, "corrupt {channel:?} from {from} to {to}"),
            Self::MoveClock(member, seconds) => write!(f, "the clock of {member} moves by {seconds} s"),
            Self::Jump(member, seconds) => write!(f, "all clocks of {member} jump forward by {seconds} s"),
            Self::Origin(OriginFault::Status(status)) => write!(f, "the origin answers {status}"),
            Self::Origin(fault) => write!(f, "the origin: {fault:?}"),
        }
    }
}

/// A fault with its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlannedFault {
    /// From the start of the run, ms.
    pub(crate) at: u64,
    /// Until it is undone, ms.
    pub(crate) lasts: u64,
    pub(crate) fault: Fault,
}

/// A pull with its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlannedPull {
    /// From the start of the run, ms.
    pub(crate) at: u64,
    /// Through which proxy.
    pub(crate) node: usize,
    /// Which of the images.
    pub(crate) image: usize,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) trackers: usize,
    pub(crate) seeders: usize,
    pub(crate) proxies: usize,
    /// `p2p.encryption`.
    pub(crate) encryption: &'static str,
    /// Of every host, each way, bytes per second.
    pub(crate) rate: u64,
    /// Of the proxies, bytes.
    pub(crate) cache_limit: u64,
    /// Of the seeders, bytes.
    pub(crate) seeder_cache_limit: u64,
    /// Sizes of the layers of each image, bytes.
    pub(crate) images: Vec<Vec<u64>>,
    /// In order of their times.
    pub(crate) pulls: Vec<PlannedPull>,
    /// In order of their times.
    pub(crate) faults: Vec<PlannedFault>,
}

impl Plan {
    /// The run of a seed; without namespaces, the same with fewer faults.
    pub(crate) fn of(seed: u64, namespaces: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let trackers = rng.random_range(1..=2);
        let (seeders, proxies) = (2, rng.random_range(4..=5));
        let encryption = if rng.random_bool(0.6) { "tls" } else { "none" };
        let rate = rng.random_range(4..=12) * MIB;
        let images: Vec<Vec<u64>> = (0..rng.random_range(1..=3))
            .map(|_| (0..rng.random_range(2..=5)).map(|_| layer(&mut rng)).collect())
            .collect();
        let total: u64 = images.iter().flatten().sum();
        // Half of the clusters have to evict.
        let cache_limit = if rng.random_bool(0.5) { 4 * total } else { (total * 2 / 3).max(MIB) };
        // Never too small, so that it is known what the cluster needs from the origin.
        let seeder_cache_limit = 4 * total;
        let mut pulls: Vec<_> = (0..rng.random_range(6..=14))
            .map(|_| PlannedPull {
                at: rng.random_range(0..=LAST_PULL),
                node: rng.random_range(0..proxies),
                image: rng.random_range(0..images.len()),
            })
            .collect();
        // The swarm is there when the first fault comes.
        pulls.extend((0..2).map(|node| PlannedPull { at: 0, node, image: 0 }));
        pulls.sort_by_key(|pull| pull.at);

        let members: Vec<_> = (0..trackers)
            .map(Member::Tracker)
            .chain((0..seeders).map(Member::Seeder))
            .chain((0..proxies).map(Member::Proxy))
            .collect();
        let stores: Vec<_> = members.iter().copied().filter(|member| !matches!(member, Member::Tracker(_))).collect();
        let mut faults: Vec<_> = (0..rng.random_range(3..=9))
            .map(|_| PlannedFault {
                at: rng.random_range(FIRST_FAULT..=LAST_FAULT),
                lasts: rng.random_range(FAULT_LASTS),
                fault: fault(&mut rng, &members, &stores),
            })
            .collect();
        // After all other draws: the rest of a run is as it was before there was this one.
        if rng.random_bool(JUMPS) {
            let member = members[rng.random_range(0..members.len())];
            let fault = Fault::Jump(member, rng.random_range(JUMP));
            let (at, lasts) = (rng.random_range(FIRST_FAULT..=LAST_FAULT), rng.random_range(FAULT_LASTS));
            // A monotonic clock never goes back.
            faults.retain(|other| !matches!(other.fault, Fault::MoveClock(moved, _) if moved == member));
            faults.push(PlannedFault { at, lasts, fault });
        }
        faults.sort_by_key(|fault| fault.at);
        faults.retain(|planned| namespaces || !planned.fault.needs_namespaces());
        Self {
            seed,
            trackers,
            seeders,
            proxies,
            encryption,
            rate,
            cache_limit,
            seeder_cache_limit,
            images,
            pulls,
            faults,
        }
    }

    /// Everyone in it.
    pub(crate) fn members(&self) -> Vec<Member> {
        (0..self.trackers)
            .map(Member::Tracker)
            .chain((0..self.seeders).map(Member::Seeder))
            .chain((0..self.proxies).map(Member::Proxy))
            .collect()
    }

    /// Whether a clock moves, for which processes have to be started in another way.
    pub(crate) fn moves_clocks(&self) -> bool {
        self.faults.iter().any(|planned| matches!(planned.fault, Fault::MoveClock(..) | Fault::Jump(..)))
    }

    /// Whether a member's monotonic clock jumps too.
    pub(crate) fn jumps(&self, member: Member) -> bool {
        self.faults.iter().any(|planned| matches!(planned.fault, Fault::Jump(jumps, _) if jumps == member))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} trackers, {} seeders, {} proxies, encryption {}, {} MiB/s, cache {} KiB",
            self.seed,
            self.trackers,
            self.seeders,
            self.proxies,
            self.encryption,
            self.rate / MIB,
            self.cache_limit >> 10
        )?;
        for (number, layers) in self.images.iter().enumerate() {
            writeln!(f, "  image {number}: layers of {layers:?} bytes")?;
        }
        let pulls = self
            .pulls
            .iter()
            .map(|pull| (pull.at, format!("pull image {} through {}", pull.image, Member::Proxy(pull.node))));
        let faults = self
            .faults
            .iter()
            .map(|planned| (planned.at, format!("{}, for {:.1} s", planned.fault, seconds(planned.lasts))));
        let mut events: Vec<_> = pulls.chain(faults).collect();
        events.sort();
        for (at, event) in events {
            writeln!(f, "  {:4.1} s  {event}", seconds(at))?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "times of a few seconds")]
fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1_000.0
}

/// Layers as images have them: many small, a few large.
fn layer(rng: &mut ChaCha8Rng) -> u64 {
    match rng.random_range(0..4) {
        0 => rng.random_range(1..=64 << 10),
        1 => rng.random_range(64 << 10..=MIB),
        _ => rng.random_range(MIB..=8 * MIB),
    }
}

/// Two that are not the same.
fn pair(rng: &mut ChaCha8Rng, members: &[Member]) -> (Member, Member) {
    let first = rng.random_range(0..members.len());
    let second = (first + rng.random_range(1..members.len())) % members.len();
    (members[first], members[second])
}

fn fault(rng: &mut ChaCha8Rng, members: &[Member], stores: &[Member]) -> Fault {
    // Never empty: every cluster has members, and some that store.
    let any = |rng: &mut ChaCha8Rng| members.choose(rng).copied().unwrap_or(Member::Proxy(0));
    let store = |rng: &mut ChaCha8Rng| stores.choose(rng).copied().unwrap_or(Member::Proxy(0));
    match rng.random_range(0..20) {
        0..=2 => Fault::Kill(any(rng)),
        3 => Fault::KillTrackers,
        4..=5 => Fault::Freeze(any(rng)),
        6..=7 => Fault::Cut(any(rng)),
        8 => {
            let (one, other) = pair(rng, stores);
            Fault::Part(one, other)
        }
        9 => Fault::Slow(any(rng)),
        10..=11 => Fault::FillDisk(store(rng)),
        12..=13 => Fault::CorruptFiles(store(rng), rng.random_range(1..=3)),
        14..=15 => {
            let channel = [Channel::Data, Channel::Data, Channel::Control, Channel::Http][rng.random_range(0..4)];
            let (from, to) = pair(rng, stores);
            Fault::CorruptWire(from, to, channel)
        }
        16 => {
            let hours = rng.random_range(1..=24 * 30);
            Fault::MoveClock(any(rng), if rng.random_bool(0.5) { hours * 3_600 } else { -hours * 3_600 })
        }
        _ => Fault::Origin(
            [
                OriginFault::Status(401),
                OriginFault::Status(429),
                OriginFault::Status(500),
                OriginFault::Reset,
                OriginFault::Truncate,
                OriginFault::Stall,
                OriginFault::WrongBytes,
            ][rng.random_range(0..7)],
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_run() {
        for seed in [0, 1, u64::MAX] {
            assert_eq!(Plan::of(seed, true), Plan::of(seed, true));
        }
        assert_ne!(Plan::of(1, true).faults, Plan::of(2, true).faults);
        // A change of the generator would make seeds of old reports worthless without anybody noticing.
        let plan = Plan::of(7, true);
        assert_eq!((plan.proxies, plan.pulls.len(), plan.faults.len()), (4, 14, 6));
    }

    #[test]
    fn every_kind_of_fault_comes_up() {
        let kinds: BTreeSet<String> = (0..300)
            .flat_map(|seed| Plan::of(seed, true).faults)
            .map(|planned| {
                let shown = format!("{:?}", planned.fault);
                // The origin's faults are kinds of their own.
                let cut =
                    if shown.starts_with("Origin") { shown.len() } else { shown.find('(').unwrap_or(shown.len()) };
                shown[..cut].to_owned()
            })
            .collect();
        assert_eq!(kinds.len(), 11 + 7, "{kinds:?}");
    }

    #[test]
    fn monotonic_clocks_go_forward_only() {
        let mut jumps = 0;
        for plan in (0..300).map(|seed| Plan::of(seed, true)) {
            for planned in &plan.faults {
                match planned.fault {
                    Fault::Jump(member, seconds) => {
                        assert!(seconds > 0 && plan.jumps(member));
                        jumps += 1;
                    }
                    Fault::MoveClock(member, _) => assert!(!plan.jumps(member), "seed {}", plan.seed),
                    _ => {}
                }
            }
        }
        assert!(jumps > 50, "{jumps}");
    }

    #[test]
    fn without_namespaces_only_faults_are_left_out() {
        for seed in 0..100 {
            let (full, less) = (Plan::of(seed, true), Plan::of(seed, false));
            assert_eq!((full.images, full.pulls, full.rate), (less.images, less.pulls, less.rate));
            assert!(less.faults.iter().all(|planned| !planned.fault.needs_namespaces()));
            assert!(less.faults.iter().all(|planned| full.faults.contains(planned)));
        }
    }
}
