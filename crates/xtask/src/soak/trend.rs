//! Whether a series of samples has levelled off.

use std::{fmt::Write as _, time::Duration};

use crate::chaos::watch::Held;

/// What may be added over the second half: of memory in bytes, where allocators keep what they may need again; of descriptors and tasks.
const MEMORY: f64 = 24.0 * 1_048_576.0;
const DESCRIPTORS: f64 = 12.0;
const TASKS: f64 = 40.0;

/// A look at a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) at: Duration,
    pub(crate) held: Held,
    pub(crate) tasks: f64,
}

/// All looks at one process.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) samples: Vec<Sample>,
}

/// Mean of the second half, and how much the straight line through it rises from its beginning to its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Trend {
    pub(crate) mean: f64,
    pub(crate) rise: f64,
}

impl Series {
    pub(crate) fn new(name: String) -> Self {
        Self { name, samples: Vec::new() }
    }

    /// One of the figures over time.
    pub(crate) fn points(&self, what: impl Fn(&Sample) -> f64) -> Vec<(f64, f64)> {
        self.samples.iter().map(|sample| (sample.at.as_secs_f64(), what(sample))).collect()
    }

    /// A line for the summary, and what has grown.
    pub(crate) fn judge(&self) -> (String, Vec<String>) {
        let mut problems = Vec::new();
        let mut line = format!("{:>10}:", self.name);
        for (what, unit, most, points) in [
            ("memory", "MiB", MEMORY, self.points(memory)),
            ("descriptors", "", DESCRIPTORS, self.points(descriptors)),
            ("tasks", "", TASKS, self.points(|sample| sample.tasks)),
        ] {
            let scale = if unit.is_empty() { 1.0 } else { 1_048_576.0 };
            let trend = second_half(&points);
            let highest = points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
            line.push_str(&format!(
                " {what} {:.1}{unit} in the second half, {:+.1} over it, {:.1} at most;",
                trend.mean / scale,
                trend.rise / scale,
                highest / scale
            ));
            if trend.rise > most {
                problems.push(format!(
                    "{}: {what} grows: {:+.1}{unit} over the second half",
                    self.name,
                    trend.rise / scale
                ));
            }
        }
        (line, problems)
    }
}

#[expect(clippy::cast_precision_loss, reason = "below 2^53")]
pub(crate) fn memory(sample: &Sample) -> f64 {
    sample.held.memory as f64
}

#[expect(clippy::cast_precision_loss, reason = "below 2^53")]
pub(crate) fn descriptors(sample: &Sample) -> f64 {
    sample.held.descriptors as f64
}

/// The least squares line through the second half of the time.
#[expect(clippy::cast_precision_loss, reason = "a count of samples")]
pub(crate) fn second_half(points: &[(f64, f64)]) -> Trend {
    let end = points.last().map_or(0.0, |(at, _)| *at);
    let half: Vec<_> = points.iter().filter(|(at, _)| *at >= end / 2.0).collect();
    let count = half.len().max(1) as f64;
    let middle = half.iter().map(|(at, _)| at).sum::<f64>() / count;
    let mean = half.iter().map(|(_, value)| value).sum::<f64>() / count;
    let spread: f64 = half.iter().map(|(at, _)| (at - middle).powi(2)).sum();
    let along: f64 = half.iter().map(|(at, value)| (at - middle) * (value - mean)).sum();
    let rise = if spread > 0.0 { along / spread * end / 2.0 } else { 0.0 };
    Trend { mean, rise }
}

/// All samples, a line each.
pub(crate) fn csv(series: &[Series]) -> String {
    let mut text = String::from("process,seconds,memory_bytes,descriptors,threads,tasks\n");
    for series in series {
        for Sample { at, held, tasks } in &series.samples {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{},{:.1},{},{},{},{tasks}",
                series.name,
                at.as_secs_f64(),
                held.memory,
                held.descriptors,
                held.threads
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(memory: impl Fn(u32) -> u64) -> Series {
        let samples = (0..100).map(|second| Sample {
            at: Duration::from_secs(second.into()),
            held: Held { memory: memory(second), descriptors: 30, ..Held::default() },
            tasks: 50.0,
        });
        Series { name: "proxy-0".into(), samples: samples.collect() }
    }

    #[test]
    fn what_grows_at_first_and_then_wavers_has_levelled_off() {
        let (line, problems) = series(|second| u64::from(second.min(40) * 3 + second % 7) << 20).judge();
        assert!(problems.is_empty(), "{problems:?}");
        assert!(line.contains("descriptors 30.0 in the second half, +0.0"), "{line}");
    }

    #[test]
    fn what_goes_on_growing_is_found() {
        let (_, problems) = series(|second| u64::from(second) << 20).judge();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("memory grows: +49"), "{problems:?}");
    }

    #[test]
    fn the_line_is_that_of_least_squares() {
        let points: Vec<_> = (0..=10).map(|at| (f64::from(at), 3.0 + 2.0 * f64::from(at))).collect();
        let Trend { mean, rise } = second_half(&points);
        assert!((mean - 18.0).abs() < 1e-9 && (rise - 10.0).abs() < 1e-9);
    }
}
