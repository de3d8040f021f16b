//! What every benchmark's result is turned into before it is shown: figures, tables and plots.

use eagle_core::units::Size;

/// A result, ready to be shown or compared.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    /// The subcommand that measured it.
    pub(crate) command: String,
    /// One line: what was measured.
    pub(crate) title: String,
    /// On what, when and by which versions; what a comparison has to have in common.
    pub(crate) environment: Vec<Setting>,
    /// What was asked for.
    pub(crate) settings: Vec<Setting>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) tables: Vec<Table>,
    pub(crate) plots: Vec<Plot>,
    /// What a reader has to know before the figures: failures, a debug build.
    pub(crate) warnings: Vec<String>,
}

impl Report {
    /// A report without anything but a title.
    pub(crate) fn new(title: String) -> Self {
        Self { title, ..Self::default() }
    }

    /// Notes what was asked for, if the result says it.
    pub(crate) fn setting(&mut self, name: &'static str, value: Option<String>) {
        self.settings.extend(value.map(|value| Setting { name, value, matters: true }));
    }

    /// Notes a number that was measured once, if the result has it.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: Option<f64>, unit: Unit, better: Better) {
        self.figures.extend(value.filter(|value| value.is_finite()).map(|value| Figure {
            name: name.into(),
            unit,
            better,
            value,
            sample: None,
        }));
    }

    /// Notes a statistic of iterations, if there are any.
    pub(crate) fn sampled(&mut self, name: impl Into<String>, sample: Sample, unit: Unit, better: Better) {
        let value = sample.statistic.of(&mut sample.values.clone()).filter(|value| value.is_finite());
        self.figures.extend(value.map(|value| Figure { name: name.into(), unit, better, value, sample: Some(sample) }));
    }
}

/// A name and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) value: String,
    /// Whether two results that differ in it measured different things.
    pub(crate) matters: bool,
}

/// One number that came of a benchmark.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    /// The same in every result of the same benchmark.
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) better: Better,
    pub(crate) value: f64,
    /// The iterations that it is a statistic of, where there are several.
    pub(crate) sample: Option<Sample>,
}

/// Iterations, and what of them a figure is.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) values: Vec<f64>,
    pub(crate) statistic: Statistic,
}

/// What is taken of many values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Statistic {
    Mean,
    Percentile(u32),
}

impl Statistic {
    /// Of these values in any order, which is changed. `None` without values.
    pub(crate) fn of(self, values: &mut [f64]) -> Option<f64> {
        match self {
            Self::Mean => (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64),
            Self::Percentile(percent) => {
                let place = crate::stats::rank(values.len(), percent)?;
                Some(*values.select_nth_unstable_by(place, f64::total_cmp).1)
            }
        }
    }
}

/// Which of two values is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Lower,
    Higher,
    /// Neither: it says what happened.
    Neither,
}

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Bytes,
    BytesPerSecond,
    PerSecond,
    Count,
    /// A share of something, shown in percent.
    Share,
    /// One thing over another.
    Ratio,
    SecondsPerGigabyte,
    Microseconds,
}

impl Unit {
    /// A value for people, with its unit.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Seconds => duration(value),
            Self::Bytes if value < 0.0 => format!("{value:.0} B"),
            Self::Bytes => scaled(value, "B"),
            Self::BytesPerSecond => scaled(value, "B/s"),
            Self::PerSecond => scaled(value, "/s"),
            Self::Count => plain(value),
            Self::Share => format!("{} %", digits(value * 100.0)),
            Self::Ratio => format!("{value:.3}"),
            Self::SecondsPerGigabyte => format!("{} s/GB", digits(value)),
            Self::Microseconds => duration(value / 1e6),
        }
    }
}

/// Three digits that count.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        0.0 => "0".to_owned(),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn plain(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { digits(value) }
}

fn scaled(value: f64, unit: &str) -> String {
    match value.abs() {
        1e9.. => format!("{} G{unit}", digits(value / 1e9)),
        1e6.. => format!("{} M{unit}", digits(value / 1e6)),
        1e3.. => format!("{} k{unit}", digits(value / 1e3)),
        _ => format!("{} {unit}", plain(value)),
    }
}

/// A time with a unit that fits.
fn duration(seconds: f64) -> String {
    match seconds.abs() {
        0.0 => "0 s".to_owned(),
        ..0.001 => format!("{} µs", digits(seconds * 1e6)),
        ..1.0 => format!("{} ms", digits(seconds * 1e3)),
        _ => format!("{} s", digits(seconds)),
    }
}

/// A size as it was asked for.
pub(crate) fn size(bytes: f64) -> String {
    if bytes >= 0.0 && bytes.fract() == 0.0 && bytes < 9e15 {
        // In range, and whole.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
        let bytes = bytes as u64;
        Size(bytes).to_string()
    } else {
        Unit::Bytes.show(bytes)
    }
}

/// Rows under headings; the first column names the row.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    /// Without rows yet.
    pub(crate) fn new(title: &str, columns: &[&str]) -> Self {
        Self {
            title: title.to_owned(),
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
            rows: Vec::new(),
        }
    }
}

/// A picture of numbers.
#[derive(Debug, Clone)]
pub(crate) enum Plot {
    Lines(Lines),
    Bars(Bars),
}

/// Values over a quantity.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    pub(crate) title: String,
    /// What the horizontal axis counts.
    pub(crate) across: &'static str,
    pub(crate) across_unit: Unit,
    pub(crate) unit: Unit,
    /// Whether a value stands for itself; else neighbours are joined.
    pub(crate) dots: bool,
    pub(crate) series: Vec<Series>,
    /// A value to compare with, as a level line.
    pub(crate) level: Option<(String, f64)>,
}

/// One line, or one set of dots.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Values of things that have no order.
#[derive(Debug, Clone)]
pub(crate) struct Bars {
    pub(crate) title: String,
    pub(crate) unit: Unit,
    /// What the bars of a group are, in this order.
    pub(crate) series: Vec<String>,
    /// Each with a value for every series; one that was not measured has none.
    pub(crate) groups: Vec<(String, Vec<Option<f64>>)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_units_that_fit() {
        assert_eq!(Unit::Seconds.show(0.000_05), "50.0 µs");
        assert_eq!(Unit::Seconds.show(0.0021), "2.10 ms");
        assert_eq!(Unit::Seconds.show(27.05), "27.1 s");
        assert_eq!(Unit::BytesPerSecond.show(1_273_233_501.0), "1.27 GB/s");
        assert_eq!(Unit::Bytes.show(512.0), "512 B");
        assert_eq!(Unit::PerSecond.show(6_650.0), "6.65 k/s");
        assert_eq!(Unit::Share.show(0.5), "50.0 %");
        assert_eq!(Unit::Count.show(3.0), "3");
        assert_eq!(Unit::Microseconds.show(150.4), "150 µs");
        assert_eq!(size(268_435_456.0), "256MiB");
    }

    #[test]
    fn statistics_of_values() {
        assert_eq!(Statistic::Mean.of(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(Statistic::Percentile(50).of(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(Statistic::Mean.of(&mut []), None);
    }
}
