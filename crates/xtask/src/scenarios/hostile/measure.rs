//! What is left of a rate while something does harm.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// How long one rate is measured.
const MEASURE: Duration = Duration::from_millis(700);
/// From the beginning of an attack until the rate is measured, and from its end until the next is: what kernels take in by themselves is sent, what it left behind cleared away.
const SETTLE: Duration = Duration::from_millis(350);
/// Longest time until an attack has begun: the crowd is there.
const BEGIN_DEADLINE: Duration = Duration::from_secs(30);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(5);

/// What has to be left of a rate in the middle of several rounds.
const LEAST_OF_MANY: f64 = 0.80;
/// The same of a single one, as with all tests: that others are served at all. How well depends on what else the machine does.
const LEAST_OF_ONE: f64 = 0.05;

/// Something that a client does again and again: how much of it at one time.
pub(super) type Work<'a> = &'a (dyn Fn() -> Result<u64> + Sync);
/// Something that does harm from the moment that it says [`Stage::begun`] until [`Stage::is_over`].
pub(super) type Attack<'a> = &'a (dyn Fn(&Stage) -> Result<()> + Sync);

/// Where an attack and the measurement tell each other how far they are.
#[derive(Debug, Default)]
pub(super) struct Stage {
    /// What there is of it.
    begun: OnceLock<usize>,
    /// What it took of processors in other threads than its own.
    elsewhere: OnceLock<Duration>,
    over: AtomicBool,
}

impl Stage {
    /// The attack has begun, with so many connections or the like.
    pub(super) fn begun(&self, size: usize) {
        // An attack begins once.
        let _ = self.begun.set(size);
    }

    /// What it took of processors besides what its thread did.
    pub(super) fn used_elsewhere(&self, time: Duration) {
        let _ = self.elsewhere.set(time);
    }

    /// Enough of it.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// What was left of a rate in some rounds, of 1.
#[derive(Debug, Serialize)]
pub(super) struct Left {
    /// In order.
    rounds: Vec<f64>,
    /// What there was of the attack, in the last round.
    pub(super) size: usize,
    /// Of one processor, taken by the attacker itself: where all share two, nobody else can have it.
    pub(super) attacker: f64,
}

impl Left {
    /// In the middle of all rounds.
    pub(super) fn median(&self) -> f64 {
        self.rounds.get(self.rounds.len() / 2).copied().unwrap_or_default()
    }

    /// Whether it is as much as has to be.
    pub(super) fn is_enough(&self) -> bool {
        self.median() >= if self.rounds.len() > 1 { LEAST_OF_MANY } else { LEAST_OF_ONE }
    }
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} % of the rate is left", self.median() * 100.0)?;
        if let [least, .., most] = self.rounds.as_slice() {
            write!(f, " ({:.0} to {:.0} in {} rounds)", least * 100.0, most * 100.0, self.rounds.len())?;
        }
        write!(f, "; the attacker takes {:.0} % of a processor", self.attacker * 100.0)
    }
}

/// Measures `work` with and without the attack in turn. Each rate with it is compared with the two beside it, since the machine's own
/// speed changes from second to second.
pub(super) fn left(work: Work<'_>, attack: Attack<'_>, rounds: u32) -> Result<Left> {
    let mut left = Left { rounds: Vec::new(), size: 0, attacker: 0.0 };
    let mut before = rate(work)?;
    for _ in 0..rounds {
        let stage = Stage::default();
        let (during, attacker) = thread::scope(|scope| {
            let attacker = scope.spawn(|| {
                attack(&stage)?;
                Ok::<_, anyhow::Error>(processor_time() + stage.elsewhere.get().copied().unwrap_or_default())
            });
            let started = Instant::now();
            while stage.begun.get().is_none() && !attacker.is_finished() && started.elapsed() < BEGIN_DEADLINE {
                thread::sleep(LOOK);
            }
            let during = stage.begun.get().map(|_| {
                thread::sleep(SETTLE);
                rate(work)
            });
            let lasted = started.elapsed();
            stage.over.store(true, Ordering::SeqCst);
            let used = attacker.join().map_err(|_| anyhow!("the attack panicked"))??;
            Ok::<_, anyhow::Error>((
                during.context("the attack did not begin")??,
                used.as_secs_f64() / lasted.as_secs_f64(),
            ))
        })?;
        thread::sleep(SETTLE);
        let after = rate(work)?;
        let calm = f64::midpoint(before, after);
        if calm <= 0.0 {
            bail!("nothing was served without an attack");
        }
        left.rounds.push(during / calm);
        left.size = stage.begun.get().copied().unwrap_or_default();
        left.attacker += attacker / f64::from(rounds);
        before = after;
    }
    left.rounds.sort_by(f64::total_cmp);
    Ok(left)
}

/// What this thread has used of processors since it began.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Does one thing again and again; how much of it there was in a second.
fn rate(work: Work<'_>) -> Result<f64> {
    let started = Instant::now();
    let mut done = 0;
    while started.elapsed() < MEASURE {
        done += work()?;
    }
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_attack_takes_is_seen() {
        let attacked = AtomicBool::new(false);
        let work = || {
            thread::sleep(Duration::from_millis(1));
            Ok(if attacked.load(Ordering::SeqCst) { 1 } else { 4 })
        };
        let attack = |stage: &Stage| {
            attacked.store(true, Ordering::SeqCst);
            stage.begun(7);
            while !stage.is_over() {
                thread::sleep(LOOK);
            }
            attacked.store(false, Ordering::SeqCst);
            Ok(())
        };
        let left = left(&work, &attack, 1).unwrap();
        assert!((0.1..0.6).contains(&left.median()), "{left}");
        assert_eq!(left.size, 7);
    }

    #[test]
    fn several_rounds_have_to_leave_more_than_one() {
        let left = |rounds: &[f64]| Left { rounds: rounds.to_vec(), size: 1, attacker: 0.0 };
        assert!(left(&[0.1]).is_enough() && !left(&[0.04]).is_enough() && !left(&[]).is_enough());
        assert!(left(&[0.1, 0.8, 0.9]).is_enough() && !left(&[0.7, 0.79, 0.9]).is_enough());
    }

    #[test]
    fn an_attack_that_fails_is_no_measurement() {
        let attack = |_: &Stage| bail!("no");
        assert_eq!(left(&|| Ok(1), &attack, 1).unwrap_err().to_string(), "no");
    }
}
