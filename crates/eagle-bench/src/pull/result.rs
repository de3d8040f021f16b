//! What the pulls came to: CSV per pull, JSON, a table.

use std::{fmt, time::Duration};

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::{report::Circumstances, stats::Summary};

/// One pull.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PullRecord {
    /// `direct` or `eagle`.
    pub(super) series: &'static str,
    pub(super) concurrency: u32,
    /// Counted from 1 within the step.
    pub(super) iteration: u32,
    pub(super) success: bool,
    pub(super) seconds: f64,
    pub(super) bytes: u64,
    pub(super) first_byte_seconds: Option<f64>,
    pub(super) error: Option<String>,
}

/// All pulls of a series at one concurrency.
#[derive(Debug, Clone, Serialize)]
pub(super) struct StepResult {
    series: &'static str,
    concurrency: u32,
    pulls: usize,
    succeeded: usize,
    success_rate: f64,
    /// Of those that succeeded.
    seconds: Option<Summary>,
    first_byte_seconds: Option<Summary>,
    /// From the start of the first pull to the end of the last.
    elapsed_seconds: f64,
    bytes: u64,
    bytes_per_second: f64,
}

impl StepResult {
    pub(super) fn new(series: &'static str, concurrency: u32, pulls: &[PullRecord], elapsed: Duration) -> Result<Self> {
        let good: Vec<_> = pulls.iter().filter(|pull| pull.success).collect();
        let bytes: u64 = pulls.iter().map(|pull| pull.bytes).sum();
        let first: Vec<f64> = good.iter().filter_map(|pull| pull.first_byte_seconds).collect();
        Ok(Self {
            series,
            concurrency,
            pulls: pulls.len(),
            succeeded: good.len(),
            success_rate: good.len() as f64 / pulls.len().max(1) as f64,
            seconds: Summary::of(&good.iter().map(|pull| pull.seconds).collect::<Vec<_>>())?,
            first_byte_seconds: Summary::of(&first)?,
            elapsed_seconds: elapsed.as_secs_f64(),
            bytes,
            bytes_per_second: bytes as f64 / elapsed.as_secs_f64(),
        })
    }
}

/// The report. Fields are described in `docs/benchmarks.md`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PullReport {
    #[serde(flatten)]
    pub(super) circumstances: Circumstances,
    pub(super) image: String,
    pub(super) iterations: u32,
    pub(super) steps: Vec<StepResult>,
    pub(super) pulls: Vec<PullRecord>,
}

impl PullReport {
    /// A line per pull.
    pub(super) fn csv(&self) -> String {
        let mut csv = "series,concurrency,iteration,success,seconds,bytes,first_byte_seconds,error\n".to_owned();
        for pull in &self.pulls {
            let first = pull.first_byte_seconds.map(|seconds| format!("{seconds:.6}")).unwrap_or_default();
            let error = pull.error.as_deref().map(quoted).unwrap_or_default();
            csv.push_str(&format!(
                "{},{},{},{},{:.6},{},{first},{error}\n",
                pull.series, pull.concurrency, pull.iteration, pull.success, pull.seconds, pull.bytes
            ));
        }
        csv
    }
}

/// A field of CSV (RFC 4180).
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

impl fmt::Display for PullReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
        let columns = ["at a time", "series", "pulls", "good", "min", "mean", "p50", "p90", "p95", "p99", "max"];
        table.set_header(columns.into_iter().chain(["first byte p50", "MB/s"]));
        for step in &self.steps {
            let times = step.seconds.map_or_else(
                || vec!["-".to_owned(); 7],
                |s| [s.min, s.mean, s.p50, s.p90, s.p95, s.p99, s.max].map(|value| format!("{value:.3}")).to_vec(),
            );
            let first = step.first_byte_seconds.map_or_else(|| "-".to_owned(), |first| format!("{:.3}", first.p50));
            let row = [
                step.concurrency.to_string(),
                step.series.to_owned(),
                step.pulls.to_string(),
                format!("{:.1} %", step.success_rate * 100.0),
            ];
            let row = row.into_iter().chain(times).chain([first, format!("{:.1}", step.bytes_per_second / 1e6)]);
            table.add_row(row.map(|text| Cell::new(text).set_alignment(CellAlignment::Right)));
        }
        write!(f, "{}\nTimes in seconds, of the pulls that succeeded.\n\n{table}", self.image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(iteration: u32, error: Option<&str>) -> PullRecord {
        PullRecord {
            series: "eagle",
            concurrency: 2,
            iteration,
            success: error.is_none(),
            seconds: 0.5 * f64::from(iteration),
            bytes: 1000,
            first_byte_seconds: error.is_none().then_some(0.25),
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn failures_count_against_the_rate_and_not_in_the_times() {
        let pulls = [record(1, None), record(2, Some("it said \"no\", twice")), record(3, None), record(4, None)];
        let step = StepResult::new("eagle", 2, &pulls, Duration::from_secs(2)).unwrap();
        assert_eq!((step.pulls, step.succeeded, step.success_rate), (4, 3, 0.75));
        assert_eq!(step.bytes_per_second, 2000.0);
        let seconds = step.seconds.unwrap();
        assert_eq!((seconds.min, seconds.max), (0.5, 2.0));
        let nothing = StepResult::new("eagle", 2, &pulls[1..2], Duration::from_secs(1)).unwrap();
        assert_eq!(nothing.seconds, None);
    }

    #[test]
    fn errors_are_quoted_in_csv() {
        let report = PullReport {
            circumstances: Circumstances::now("pull", None),
            image: "x".to_owned(),
            iterations: 1,
            steps: Vec::new(),
            pulls: vec![record(1, None), record(2, Some("it said \"no\", twice"))],
        };
        let csv = report.csv();
        let lines: Vec<_> = csv.lines().collect();
        assert_eq!(lines[0].split(',').count(), 8);
        assert_eq!(lines[1], "eagle,2,1,true,0.500000,1000,0.250000,");
        assert_eq!(lines[2], "eagle,2,2,false,1.000000,1000,,\"it said \"\"no\"\", twice\"");
    }
}
