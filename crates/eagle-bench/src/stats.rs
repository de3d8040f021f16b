//! Percentiles.

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

/// Unit of the histogram, per second.
const MICROS: f64 = 1e6;
/// Significant digits that the histogram keeps: errors below 0.1 %.
const DIGITS: u8 = 3;

/// The value below or at which a share of the sorted values lie (nearest rank, so always one of the values).
/// `None` without values.
pub(crate) fn percentile(sorted: &[f64], percent: u32) -> Option<f64> {
    sorted.get(rank(sorted.len(), percent)?).copied()
}

/// Where that value is among so many, counted from 0.
pub(crate) fn rank(count: usize, percent: u32) -> Option<usize> {
    let count = u64::try_from(count).ok()?;
    let rank = (count * u64::from(percent.min(100))).div_ceil(100).max(1);
    (rank <= count).then(|| usize::try_from(rank - 1).ok()).flatten()
}

/// A sorted copy.
pub(crate) fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// How long many pulls took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) min: f64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Of these times in seconds; `None` without any.
    ///
    /// # Errors
    /// When a time is beyond what can be counted.
    pub(crate) fn of(seconds: &[f64]) -> Result<Option<Self>> {
        if seconds.is_empty() {
            return Ok(None);
        }
        let mut histogram = Histogram::<u64>::new(DIGITS).context("the histogram cannot be made")?;
        for &value in seconds {
            let micros = u64::try_from(std::time::Duration::try_from_secs_f64(value)?.as_micros())?;
            histogram.record(micros)?;
        }
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / MICROS;
        let count = f64::from(u32::try_from(seconds.len())?);
        // The ends and the mean are known exactly; only what lies between needs the histogram, which counts whole
        // microseconds and may round its largest value up.
        let max = seconds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let min = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        Ok(Some(Self {
            min,
            mean: seconds.iter().sum::<f64>() / count,
            p50: at(0.5).clamp(min, max),
            p90: at(0.9).clamp(min, max),
            p95: at(0.95).clamp(min, max),
            p99: at(0.99).clamp(min, max),
            max,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank() {
        let values = sorted([5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!(percentile(&values, 0), Some(1.0));
        assert_eq!(percentile(&values, 50), Some(3.0));
        assert_eq!(percentile(&values, 90), Some(5.0));
        assert_eq!(percentile(&values, 100), Some(5.0));
        assert_eq!(percentile(&sorted([1.0, 2.0]), 50), Some(1.0));
        assert_eq!(percentile(&sorted([7.0]), 99), Some(7.0));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn a_summary_of_many() {
        let seconds: Vec<f64> = (1..=1000u32).map(|ms| f64::from(ms) / 1000.0).collect();
        let summary = Summary::of(&seconds).unwrap().unwrap();
        assert_eq!((summary.min, summary.max), (0.001, 1.0));
        assert!((summary.mean - 0.5005).abs() < 1e-9);
        for (value, expected) in [(summary.p50, 0.5), (summary.p90, 0.9), (summary.p95, 0.95), (summary.p99, 0.99)] {
            assert!((value / expected - 1.0).abs() < 0.002, "{value} {expected}");
        }
    }

    #[test]
    fn a_summary_of_few() {
        assert_eq!(Summary::of(&[]).unwrap(), None);
        let one = Summary::of(&[0.2507]).unwrap().unwrap();
        assert_eq!((one.min, one.mean, one.max), (0.2507, 0.2507, 0.2507));
        assert!(one.p99 <= one.max && (one.p50 / 0.2507 - 1.0).abs() < 0.001);
        assert!(Summary::of(&[-1.0]).is_err());
    }
}
