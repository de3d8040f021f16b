//! What was tested and how it went: a line for each test, one plain line at the end.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Counts of a run. Serialized by the inner half of `e2e` for the outer one.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    counts: Counts,
    failures: Vec<String>,
}

impl Report {
    /// Runs one test and prints its line. A failure is printed with its whole chain of causes.
    pub(crate) fn test(&mut self, name: &str, test: impl FnOnce() -> Result<()>) -> bool {
        let started = Instant::now();
        print!("test {name} ... ");
        let _ = std::io::stdout().flush();
        let outcome = test();
        let took = seconds(started.elapsed());
        match outcome {
            Ok(()) => {
                println!("ok ({took})");
                self.counts.passed += 1;
                true
            }
            Err(error) => {
                println!("FAILED ({took})");
                println!("  {}", format!("{error:#}").replace('\n', "\n  "));
                self.counts.failed += 1;
                self.failures.push(name.to_owned());
                false
            }
        }
    }

    /// Prints and counts one test that ran beside others, so that its line comes when it is over.
    pub(crate) fn outcome(&mut self, name: &str, took: Duration, outcome: Result<()>) {
        let took = seconds(took);
        match outcome {
            Ok(()) => {
                println!("test {name} ... ok ({took})");
                self.counts.passed += 1;
            }
            Err(error) => {
                println!("test {name} ... FAILED ({took})");
                println!("  {}", format!("{error:#}").replace('\n', "\n  "));
                self.counts.failed += 1;
                self.failures.push(name.to_owned());
            }
        }
    }

    /// Says plainly that something was not tested, and why.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        println!("test {name} ... skipped ({reason})");
        self.counts.skipped += 1;
    }

    /// Adds what another runner counted.
    pub(crate) fn add(&mut self, from: &str, counts: Counts) {
        self.counts.passed += counts.passed;
        self.counts.failed += counts.failed;
        self.counts.skipped += counts.skipped;
        if counts.failed > 0 {
            self.failures.push(format!("{} of {from}", counts.failed));
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Prints the closing line; true if nothing failed, and in CI nothing was skipped and something ran.
    pub(crate) fn finish(&self) -> bool {
        let Counts { passed, failed, skipped } = self.counts;
        println!();
        if !self.failures.is_empty() {
            println!("failed: {}", self.failures.join(", "));
        }
        let skipped_in_ci = skipped > 0 && crate::setup::in_ci();
        if skipped_in_ci {
            println!("in CI nothing may be skipped");
        }
        if skipped == 0 {
            println!("{passed} passed, {failed} failed");
        } else {
            println!("{passed} passed, {failed} failed, {skipped} skipped");
        }
        failed == 0 && passed > 0 && !skipped_in_ci
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
