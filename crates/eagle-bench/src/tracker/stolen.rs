//! Time in which the processors did not run at all, since a hypervisor gave them to other machines.
//!
//! What is late in a virtual machine may be the hypervisor's doing. The kernel counts what it takes (`steal` in proc_stat(5)), and answers for
//! which it took nothing can be told from the others.

use std::{
    cell::RefCell,
    fs,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::time::MissedTickBehavior;

use super::{LOAD_CORE, SERVER_CORE};
use crate::host::stolen_ticks;

/// How often it is looked at. The kernel counts in hundredths of a second.
const EVERY: Duration = Duration::from_millis(100);
/// How long before an announce was due nothing may have been taken: what waits after a pause of 300 ms is worked off in as long, at half load.
const BEFORE: Duration = Duration::from_millis(500);
/// Fewer answers than these have no last percent to speak of.
const FEW: usize = 1_000;

/// One announce at a time set beforehand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    /// Since the load began.
    pub(super) due: Duration,
    /// From then until it was answered.
    pub(super) latency: Duration,
}

/// What had been taken at one time, in the kernel's ticks.
#[derive(Debug)]
struct Sample {
    at: Duration,
    ticks: u64,
}

/// What a hypervisor took from the two cores in the course of a load.
#[derive(Debug)]
pub(super) struct Stolen {
    started: Instant,
    samples: RefCell<Vec<Sample>>,
}

impl Stolen {
    pub(super) fn since(started: Instant) -> Self {
        Self { started, samples: RefCell::default() }
    }

    /// Looks at once and then again and again. Never ends.
    pub(super) async fn watch(&self) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look();
        }
    }

    /// Notes what has been taken so far, where the kernel says it. The file is made by the kernel, and reading it does not wait.
    pub(super) fn look(&self) {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        if let Some(ticks) = stolen_ticks(&stat, &[SERVER_CORE, LOAD_CORE]) {
            self.samples.borrow_mut().push(Sample { at: self.started.elapsed(), ticks });
        }
    }

    /// Of both cores together, in the kernel's ticks; `None` where the kernel does not say it.
    pub(super) fn ticks(&self) -> Option<u64> {
        let samples = self.samples.borrow();
        Some(samples.last()?.ticks - samples.first()?.ticks)
    }

    /// Latencies, in nanoseconds, of the answers for which nothing was taken: from half a second before each was due until it came. `None` where these
    /// are too few, or the kernel does not say it.
    pub(super) fn undisturbed(&self, answers: &[Answer], digits: u8) -> Option<Histogram<u64>> {
        let samples = self.samples.borrow();
        let calm = answers.iter().filter(|answer| {
            let from = answer.due.saturating_sub(BEFORE);
            let until = answer.due + answer.latency;
            let before = samples.partition_point(|sample| sample.at <= from).saturating_sub(1);
            let after = samples.partition_point(|sample| sample.at < until);
            matches!((samples.get(before), samples.get(after)), (Some(before), Some(after)) if before.ticks == after.ticks)
        });
        let mut latency = Histogram::new(digits).ok()?;
        for answer in calm {
            latency.record(u64::try_from(answer.latency.as_nanos()).unwrap_or(u64::MAX).max(1)).ok()?;
        }
        (latency.len() >= FEW as u64).then_some(latency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_answers_for_which_nothing_was_taken() {
        let stolen = Stolen::since(Instant::now());
        // Something is taken once, between the seconds 2.0 and 2.1.
        stolen.samples.borrow_mut().extend(
            (0..50)
                .map(|tenth| Sample { at: Duration::from_millis(tenth * 100), ticks: if tenth <= 20 { 7 } else { 9 } }),
        );
        assert_eq!(stolen.ticks(), Some(2));
        let answers = |due: u64, latency: u64| {
            vec![Answer { due: Duration::from_millis(due), latency: Duration::from_millis(latency) }; FEW]
        };
        let calm = |due, latency| stolen.undisturbed(&answers(due, latency), 3).is_some();
        assert!(calm(0, 5) && calm(1_000, 5) && calm(1_000, 1_000));
        // Answered too late, due too soon after it, or not known to be over.
        assert!(!calm(1_000, 1_001) && !calm(2_050, 5) && !calm(2_500, 5) && !calm(4_890, 20));
        assert!(calm(2_600, 5) && calm(4_800, 20));
        assert!(stolen.undisturbed(&answers(1_000, 5)[1..], 3).is_none());
        assert!(Stolen::since(Instant::now()).ticks().is_none());
        assert!(Stolen::since(Instant::now()).undisturbed(&answers(1_000, 5), 3).is_none());
    }
}
