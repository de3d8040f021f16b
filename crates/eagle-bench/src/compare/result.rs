//! What a comparison came to: a table, JSON, a page.

use std::{fmt, path::Path};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table as Text, presets::NOTHING};
use maud::{Markup, html};
use serde::Serialize;

use super::bootstrap::{interval, needed};
use crate::report::{
    document,
    model::{Better, Figure, Report, Setting, Statistic},
};

/// Two results, or all results of two directories.
#[derive(Debug, Serialize)]
pub(super) struct Compared {
    pub(super) a: String,
    pub(super) b: String,
    /// Names of results that the other directory does not have.
    pub(super) only_a: Vec<String>,
    pub(super) only_b: Vec<String>,
    pub(super) comparisons: Vec<Comparison>,
}

/// Two results of the same benchmark.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    name: String,
    command: String,
    title: String,
    /// What was not the same for both, so that the figures may differ for that reason.
    differences: Vec<Difference>,
    figures: Vec<Row>,
    /// Figures that one of them does not have.
    only_a: Vec<String>,
    only_b: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Difference {
    what: &'static str,
    a: String,
    b: String,
}

/// One figure of both.
#[derive(Debug, Serialize)]
struct Row {
    figure: String,
    a: f64,
    b: f64,
    a_shown: String,
    b_shown: String,
    /// B over A; null where A is 0.
    ratio: Option<f64>,
    /// Of the ratio, 95 %; null without enough iterations.
    interval: Option<(f64, f64)>,
    /// How many values each is a statistic of.
    iterations: (usize, usize),
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Better,
    Worse,
    /// The interval has 1 in it: no difference was shown.
    Same,
    /// Measured once in one of them: nobody knows how much it varies.
    OneValue,
    TooFewIterations,
    /// Neither more nor less of it is better.
    NotJudged,
}

impl Verdict {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "same",
            Self::OneValue => "one value each",
            Self::TooFewIterations => "too few iterations",
            Self::NotJudged => "-",
        }
    }

    fn of(better: Better, iterations: (usize, usize), interval: Option<(f64, f64)>) -> Self {
        let less = match better {
            Better::Lower => Self::Better,
            Better::Higher => Self::Worse,
            Better::Neither => return Self::NotJudged,
        };
        let more = if less == Self::Better { Self::Worse } else { Self::Better };
        match interval {
            Some((_, high)) if high < 1.0 => less,
            Some((low, _)) if low > 1.0 => more,
            Some(_) => Self::Same,
            None if iterations.0 > 1 && iterations.1 > 1 => Self::TooFewIterations,
            None => Self::OneValue,
        }
    }
}

impl Row {
    fn new(before: &Figure, after: &Figure) -> Self {
        let samples = before.sample.as_ref().zip(after.sample.as_ref());
        let iterations = samples.map_or((1, 1), |(before, after)| (before.values.len(), after.values.len()));
        let interval = samples.and_then(|(before, after)| interval(before, after));
        #[expect(clippy::float_cmp, reason = "the very same value, zero included, has not changed")]
        let ratio = if before.value == after.value { 1.0 } else { after.value / before.value };
        Self {
            figure: after.name.clone(),
            a: before.value,
            b: after.value,
            a_shown: before.unit.show(before.value),
            b_shown: after.unit.show(after.value),
            ratio: ratio.is_finite().then_some(ratio),
            interval,
            iterations,
            verdict: Verdict::of(after.better, iterations, interval),
        }
    }

    fn cells(&self) -> [String; 6] {
        let dash = || "-".to_owned();
        let iterations = match self.iterations {
            (1, 1) => dash(),
            (a, b) if a == b => a.to_string(),
            (a, b) => format!("{a}, {b}"),
        };
        [
            self.a_shown.clone(),
            self.b_shown.clone(),
            self.ratio.map_or_else(dash, |ratio| format!("{ratio:.3}")),
            self.interval.map_or_else(dash, |(low, high)| format!("{low:.3} to {high:.3}")),
            iterations,
            self.verdict.as_str().to_owned(),
        ]
    }
}

/// Headings of the cells, after the name of the figure.
const COLUMNS: [&str; 6] = ["A", "B", "B / A", "95 % interval", "iterations", "verdict"];

impl Comparison {
    pub(super) fn new(name: &str, before: &Report, after: &Report) -> Self {
        fn find<'a>(report: &'a Report, name: &str) -> Option<&'a Figure> {
            report.figures.iter().find(|figure| figure.name == name)
        }
        let (mut figures, mut only_b) = (Vec::new(), Vec::new());
        for figure in &after.figures {
            match find(before, &figure.name) {
                Some(before) => figures.push(Row::new(before, figure)),
                None => only_b.push(figure.name.clone()),
            }
        }
        let missing = before.figures.iter().filter(|figure| find(after, &figure.name).is_none());
        Self {
            name: name.to_owned(),
            command: after.command.clone(),
            title: after.title.clone(),
            differences: differences(before, after),
            figures,
            only_a: missing.map(|figure| figure.name.clone()).collect(),
            only_b,
        }
    }

    /// What a reader should know before the figures.
    fn notes(&self) -> Vec<String> {
        let differ = |Difference { what, a, b }: &Difference| format!("{what} differs: {a} in A, {b} in B");
        let mut notes: Vec<String> = self.differences.iter().map(differ).collect();
        for (side, names) in [("A", &self.only_a), ("B", &self.only_b)] {
            if !names.is_empty() {
                notes.push(format!("only in {side}: {}", names.join("; ")));
            }
        }
        notes
    }
}

/// What was asked for and what it ran on, where it matters and is not the same.
fn differences(before: &Report, after: &Report) -> Vec<Difference> {
    fn all(report: &Report) -> impl Iterator<Item = &Setting> {
        report.settings.iter().chain(&report.environment).filter(|setting| setting.matters)
    }
    // A result that was written before something was recorded says nothing about it.
    let both = all(before).filter_map(|one| Some((one, all(after).find(|other| other.name == one.name)?)));
    let different = both.filter(|(one, other)| one.value != other.value);
    different.map(|(one, other)| Difference { what: one.name, a: one.value.clone(), b: other.value.clone() }).collect()
}

/// What the intervals are, for whoever reads them.
fn method() -> String {
    let [median, p90, p99] = [50, 90, 99].map(|percent| needed(Statistic::Percentile(percent)));
    format!(
        "Intervals are by bootstrap over the iterations of each run (at least {median} for a mean or median, {p90} for \
         p90, {p99} for p99). They do not contain what differs from one run to the next; a figure measured once has no \
         verdict."
    )
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "A: {}\nB: {}", self.a, self.b)?;
        for comparison in &self.comparisons {
            writeln!(f, "\n{}: {}", comparison.name, comparison.title)?;
            for note in comparison.notes() {
                writeln!(f, "  {note}")?;
            }
            let mut table = Text::new();
            table.load_preset(NOTHING).set_header([""].into_iter().chain(COLUMNS));
            for row in &comparison.figures {
                table.add_row([row.figure.clone()].into_iter().chain(row.cells()));
            }
            for column in table.column_iter_mut().skip(1).take(COLUMNS.len() - 1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            writeln!(f, "{table}")?;
        }
        for (side, names) in [("A", &self.only_a), ("B", &self.only_b)] {
            if !names.is_empty() {
                writeln!(f, "\nOnly in {side}: {}", names.join(", "))?;
            }
        }
        write!(f, "\n{}", method())
    }
}

impl Compared {
    /// Writes the comparison as a page.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn write_html(&self, path: &Path) -> Result<()> {
        let text = document("Comparison of two results", &self.content()).into_string();
        std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
    }

    fn content(&self) -> Markup {
        html! {
            dl aria-label="What is compared" {
                div { dt { "A" } dd { (self.a) } }
                div { dt { "B" } dd { (self.b) } }
            }
            p { (method()) }
            @if self.comparisons.len() > 1 {
                nav aria-label="Contents" {
                    ol {
                        @for (index, comparison) in self.comparisons.iter().enumerate() {
                            li { a href=(format!("#part-{index}")) { (comparison.name) } ": " (comparison.title) }
                        }
                    }
                }
            }
            @for (side, names) in [("A", &self.only_a), ("B", &self.only_b)] {
                @if !names.is_empty() { p.warning { "Only in " (side) ": " (names.join(", ")) } }
            }
            @for (index, comparison) in self.comparisons.iter().enumerate() {
                section id=(format!("part-{index}")) {
                    h2 { (comparison.name) }
                    p.title { (comparison.title) }
                    @for note in comparison.notes() { p.warning { (note) } }
                    div.table tabindex="0" role="region" aria-label=(comparison.name) {
                        table {
                            caption { "eagle-bench " (comparison.command) }
                            thead { tr { th scope="col" { "figure" } @for column in COLUMNS { th scope="col" { (column) } } } }
                            tbody { @for row in &comparison.figures { (html_row(row)) } }
                        }
                    }
                }
            }
        }
    }
}

fn html_row(row: &Row) -> Markup {
    let class = match row.verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        _ => "neutral",
    };
    html! {
        tr {
            th scope="row" { (row.figure) }
            @for (index, cell) in row.cells().iter().enumerate() {
                @if index + 1 == COLUMNS.len() { td class=(class) { (cell) } } @else { td { (cell) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::model::{Sample, Unit};

    fn report(values: &[f64], better: Better, limit: &str) -> Report {
        let mut report = Report::new("x".to_owned());
        report.setting("limit", Some(limit.to_owned()));
        let sample = Sample { values: values.to_vec(), statistic: Statistic::Mean };
        report.sampled("time", sample, Unit::Seconds, better);
        report.figure("size", Some(5.0), Unit::Bytes, Better::Lower);
        report
    }

    fn verdict(a: &[f64], b: &[f64], better: Better) -> Verdict {
        let comparison = Comparison::new("n", &report(a, better, "1"), &report(b, better, "1"));
        assert_eq!(comparison.figures[1].verdict, Verdict::OneValue);
        comparison.figures[0].verdict
    }

    #[test]
    fn verdicts_go_by_the_interval_and_the_direction() {
        let (slow, fast) = ([2.0, 2.1, 2.2, 2.1, 2.0, 2.05], [1.0, 1.1, 1.05, 1.02, 1.0, 1.01]);
        assert_eq!(verdict(&slow, &fast, Better::Lower), Verdict::Better);
        assert_eq!(verdict(&slow, &fast, Better::Higher), Verdict::Worse);
        assert_eq!(verdict(&fast, &slow, Better::Lower), Verdict::Worse);
        assert_eq!(verdict(&fast, &fast, Better::Lower), Verdict::Same);
        assert_eq!(verdict(&fast, &slow, Better::Neither), Verdict::NotJudged);
        assert_eq!(verdict(&fast[..3], &slow[..3], Better::Lower), Verdict::TooFewIterations);
        assert_eq!(verdict(&fast[..1], &slow[..1], Better::Lower), Verdict::OneValue);
    }

    #[test]
    fn what_differs_is_said() {
        let one = report(&[1.0], Better::Lower, "1");
        let comparison = Comparison::new("n", &one, &report(&[1.0], Better::Lower, "2"));
        assert_eq!(comparison.notes(), ["limit differs: 1 in A, 2 in B"]);
        let mut fewer = report(&[1.0], Better::Lower, "1");
        fewer.figures.pop();
        assert_eq!(Comparison::new("n", &one, &fewer).notes(), ["only in A: size"]);
    }
}
