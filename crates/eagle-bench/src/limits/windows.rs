//! How well a rate holds: from samples of a counter to windows of time.

use std::time::Duration;

use serde::Serialize;

/// The value of a counter at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Seconds since some start.
    pub(super) at: f64,
    pub(super) bytes: u64,
}

/// How far the windows of a run were off, as shares of the rate: 0.02 is 2 % too much.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Errors {
    /// The window with the most bytes.
    pub(super) over: f64,
    /// The window with the fewest.
    pub(super) under: f64,
    /// The mean of all, without regard to the sign.
    pub(super) mean: f64,
    pub(super) windows: usize,
}

impl Errors {
    /// The worst of both.
    pub(super) fn worst(&self) -> f64 {
        self.over.max(-self.under)
    }
}

/// Every window of `length` that begins at a sample, from the first byte to the last sample. `None` where the samples
/// are shorter than a window.
pub(super) fn errors(samples: &[Sample], rate: f64, length: Duration) -> Option<Errors> {
    let length = length.as_secs_f64();
    let first = samples.iter().position(|sample| sample.bytes > 0)?;
    // The moment before: the first bytes came after it.
    let samples = samples.get(first.saturating_sub(1)..)?;
    let (end, expected) = (samples.last()?.at, rate * length);
    let (mut over, mut under, mut sum, mut windows) = (f64::NEG_INFINITY, f64::INFINITY, 0.0, 0_usize);
    let mut later = 0;
    for sample in samples.iter().take_while(|sample| sample.at + length <= end) {
        let bytes = at(samples, &mut later, sample.at + length)? - sample.bytes as f64;
        let error = bytes / expected - 1.0;
        (over, under) = (over.max(error), under.min(error));
        sum += error.abs();
        windows += 1;
    }
    (windows > 0).then(|| Errors { over, under, mean: sum / windows as f64, windows })
}

/// When a new rate held: the first moment from `changed` on after which every window of `length` up to `end` is
/// within `tolerance` of `rate`; seconds since `changed`.
pub(super) fn settled(
    samples: &[Sample],
    (changed, end): (f64, f64),
    rate: f64,
    length: Duration,
    tolerance: f64,
) -> Option<f64> {
    let length = length.as_secs_f64();
    let mut later = 0;
    let (mut since, mut windows) = (Some(changed), 0_usize);
    for sample in samples.iter().filter(|sample| sample.at >= changed) {
        if sample.at + length > end {
            break;
        }
        let bytes = at(samples, &mut later, sample.at + length)? - sample.bytes as f64;
        let holds = (bytes / (rate * length) - 1.0).abs() <= tolerance;
        since = if holds { since.or(Some(sample.at)) } else { None };
        windows += 1;
    }
    since.filter(|_| windows > 0).map(|since| since - changed)
}

/// The counter at a moment, between two samples as if it grew evenly. `from` is where the last search ended; moments
/// come in order.
fn at(samples: &[Sample], from: &mut usize, moment: f64) -> Option<f64> {
    while samples.get(*from)?.at < moment {
        *from += 1;
    }
    let (after, before) = (samples.get(*from)?, samples.get(from.saturating_sub(1))?);
    let time = after.at - before.at;
    let part = if time > 0.0 { (moment - before.at) / time } else { 1.0 };
    Some(before.bytes as f64 + part * (after.bytes - before.bytes) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn samples(count: u32, bytes: impl Fn(f64) -> f64) -> Vec<Sample> {
        let moments = (0..count).map(|number| f64::from(number) * 0.005);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
        moments.map(|at| Sample { at, bytes: bytes(at) as u64 }).collect()
    }

    #[test]
    fn an_even_flow_has_no_error() {
        let errors = errors(&samples(600, |at| at * 1e6), 1e6, SECOND).unwrap();
        assert!(errors.worst() < 1e-5 && errors.mean < 1e-5, "{errors:?}");
        assert!((395..=400).contains(&errors.windows), "{errors:?}");
    }

    #[test]
    fn a_burst_and_a_gap_are_found_wherever_they_are() {
        // 100 kB at once at 1.3 s, and nothing between 2 and 2.25 s.
        let flow = |at: f64| {
            let moving = if at < 2.0 { at } else { 2.0 + (at - 2.25).max(0.0) };
            moving * 1e6 + if at >= 1.3 { 1e5 } else { 0.0 }
        };
        let errors = errors(&samples(900, flow), 1e6, SECOND).unwrap();
        assert!((errors.over - 0.1).abs() < 0.002, "{errors:?}");
        assert!((errors.under + 0.25).abs() < 0.002, "{errors:?}");
        assert!(errors.mean > 0.01 && errors.mean < 0.1);
        assert!((errors.worst() - 0.25).abs() < 0.002);
    }

    #[test]
    fn what_is_shorter_than_a_window_says_nothing() {
        assert_eq!(errors(&samples(150, |at| at), 1.0, SECOND), None);
        assert_eq!(errors(&samples(900, |_| 0.0), 1.0, SECOND), None);
        // Time before the first byte is not part of the flow.
        let late = errors(&samples(900, |at| (at - 1.0).max(0.0) * 1e6), 1e6, SECOND).unwrap();
        assert!(late.worst() < 0.006, "{late:?}");
    }

    #[test]
    fn a_new_rate_is_seen_when_it_holds() {
        // From 1 to 4 MB/s at 1.0 s, taken up at 1.3 s.
        let flow = |at: f64| if at < 1.3 { at * 1e6 } else { 1.3e6 + (at - 1.3) * 4e6 };
        let samples = samples(800, flow);
        let length = Duration::from_millis(200);
        let seconds = settled(&samples, (1.0, 3.9), 4e6, length, 0.1).unwrap();
        // A window that began a little earlier is within the tolerance already.
        assert!((0.25..=0.3).contains(&seconds), "{seconds}");
        assert_eq!(settled(&samples, (1.0, 3.9), 5e6, length, 0.1), None);
        assert_eq!(settled(&samples, (1.5, 3.9), 4e6, length, 0.1), Some(0.0));
        assert_eq!(settled(&samples, (3.8, 3.9), 4e6, length, 0.1), None, "no window fits");
    }
}
