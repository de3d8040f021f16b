//! Confidence intervals of a ratio, without assuming how times are distributed.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::report::model::{Sample, Statistic};

/// Resamples. The ends of an interval are then the 50th from each end, which vary by a tenth of the interval's width or so
/// with other random numbers.
const RESAMPLES: usize = 2_000;
/// Resamples that are left out at either end of a 95 % interval: 2.5 %.
const TAIL: usize = RESAMPLES / 40;
/// Fewer values say too little about how far they spread.
const MIN_VALUES: usize = 5;
/// The same numbers for the same files.
const SEED: u64 = 1;

/// How many iterations a statistic needs for an interval: some, and of those that go by the greatest values at least one
/// value above.
pub(super) fn needed(statistic: Statistic) -> usize {
    match statistic {
        Statistic::Mean => MIN_VALUES,
        Statistic::Percentile(percent) => {
            let above = 100u32.saturating_sub(percent).max(1);
            MIN_VALUES.max(usize::try_from(100u32.div_ceil(above)).unwrap_or(usize::MAX))
        }
    }
}

/// The 95 % confidence interval of the second's statistic over the first's: the percentile bootstrap (Efron and
/// Tibshirani, *An Introduction to the Bootstrap*, chapter 13), each sample resampled by itself. `None` with too few values.
pub(super) fn interval(before: &Sample, after: &Sample) -> Option<(f64, f64)> {
    let least = needed(after.statistic);
    if before.values.len() < least || after.values.len() < least {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut ratios = Vec::with_capacity(RESAMPLES);
    let (mut first, mut second) = (before.values.clone(), after.values.clone());
    for _ in 0..RESAMPLES {
        for (from, to) in [(&before.values, &mut first), (&after.values, &mut second)] {
            for value in to.iter_mut() {
                *value = from[random.random_range(0..from.len())];
            }
        }
        let ratio = after.statistic.of(&mut second)? / after.statistic.of(&mut first)?;
        if !ratio.is_finite() {
            return None;
        }
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    Some((*ratios.get(TAIL)?, *ratios.get(RESAMPLES - TAIL - 1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(values: impl IntoIterator<Item = f64>, statistic: Statistic) -> Sample {
        Sample { values: values.into_iter().collect(), statistic }
    }

    /// Numbers that look random, evenly from `least` to one more.
    fn even(count: usize, least: f64, seed: u64) -> Sample {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        sample((0..count).map(|_| random.random_range(least..least + 1.0)), Statistic::Mean)
    }

    #[test]
    fn the_interval_of_a_mean_is_that_of_the_textbook() {
        // Means of 400 numbers from 0.5 to 1.5 have a standard error of 0.0144; their ratio, one of 0.0204.
        let (low, high) = interval(&even(400, 0.5, 1), &even(400, 0.5, 2)).unwrap();
        assert!(((high - low) / (2.0 * 1.96 * 0.0204) - 1.0).abs() < 0.15, "{low} {high}");
    }

    #[test]
    fn about_one_in_twenty_intervals_misses() {
        let missed = (0..40u64).filter(|seed| {
            let (before, after) = (even(40, 1.0, 2 * seed + 100), even(40, 1.0, 2 * seed + 101));
            let (low, high) = interval(&before, &after).unwrap();
            low > 1.0 || high < 1.0
        });
        let missed = missed.count();
        assert!((0..=8).contains(&missed), "{missed} of 40");
    }

    #[test]
    fn a_difference_is_found_and_few_values_say_nothing() {
        let before = sample((0..30u32).map(|n| 1.0 + f64::from(n) / 100.0), Statistic::Percentile(50));
        let after = sample(before.values.iter().map(|value| value * 2.0), Statistic::Percentile(50));
        let (low, high) = interval(&before, &after).unwrap();
        assert!(low > 1.5 && high < 2.5 && low < 2.0 && high > 2.0, "{low} {high}");
        let few = sample([1.0, 2.0, 3.0, 4.0], Statistic::Mean);
        assert_eq!(interval(&few, &few), None);
        let zeros = sample([0.0; 10], Statistic::Mean);
        assert_eq!(interval(&zeros, &zeros), None);
        assert_eq!((needed(Statistic::Percentile(90)), needed(Statistic::Percentile(99))), (10, 100));
        assert_eq!(needed(Statistic::Percentile(50)), 5);
    }
}
