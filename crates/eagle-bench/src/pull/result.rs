//! What the pulls came to: CSV per pull, JSON, a table.

use std::{fmt, time::Duration};

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::Runtime;
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
    /// From the start of the pull, as all times.
    pub(super) manifest_seconds: Option<f64>,
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
    manifest_seconds: Option<Summary>,
    first_byte_seconds: Option<Summary>,
    /// From the start of the first pull to the end of the last.
    elapsed_seconds: f64,
    bytes: u64,
    bytes_per_second: f64,
    /// Bytes of blobs that the origin sent meanwhile; null where it is not this program's own.
    origin_bytes: Option<u64>,
}

/// What a step took as a whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole {
    pub(super) elapsed: Duration,
    pub(super) origin_bytes: Option<u64>,
}

impl StepResult {
    pub(super) fn new(series: &'static str, concurrency: u32, pulls: &[PullRecord], whole: Whole) -> Result<Self> {
        let good: Vec<_> = pulls.iter().filter(|pull| pull.success).collect();
        let bytes: u64 = pulls.iter().map(|pull| pull.bytes).sum();
        let summary = |time: fn(&PullRecord) -> Option<f64>| {
            Summary::of(&good.iter().filter_map(|pull| time(pull)).collect::<Vec<f64>>())
        };
        let elapsed = whole.elapsed.as_secs_f64();
        Ok(Self {
            series,
            concurrency,
            pulls: pulls.len(),
            succeeded: good.len(),
            success_rate: good.len() as f64 / pulls.len().max(1) as f64,
            seconds: summary(|pull| Some(pull.seconds))?,
            manifest_seconds: summary(|pull| pull.manifest_seconds)?,
            first_byte_seconds: summary(|pull| pull.first_byte_seconds)?,
            elapsed_seconds: elapsed,
            bytes,
            bytes_per_second: bytes as f64 / elapsed,
            origin_bytes: whole.origin_bytes,
        })
    }
}

/// The report. Fields are described in `docs/benchmarks.md`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PullReport {
    #[serde(flatten)]
    pub(super) circumstances: Circumstances,
    pub(super) image: String,
    /// Whether this program generated it.
    pub(super) local: bool,
    /// Whether each iteration had an image of its own.
    pub(super) unique: bool,
    pub(super) warm_up: u32,
    /// Who pulled; null: this program.
    pub(super) runtime: Option<Runtime>,
    pub(super) iterations: u32,
    pub(super) steps: Vec<StepResult>,
    pub(super) pulls: Vec<PullRecord>,
}

impl PullReport {
    /// A line per pull.
    pub(super) fn csv(&self) -> String {
        let mut csv =
            "iteration,success,seconds,series,concurrency,bytes,manifest_seconds,first_byte_seconds,error\n".to_owned();
        let time = |seconds: Option<f64>| seconds.map(|seconds| format!("{seconds:.6}")).unwrap_or_default();
        for pull in &self.pulls {
            let (manifest, first) = (time(pull.manifest_seconds), time(pull.first_byte_seconds));
            let error = pull.error.as_deref().map(quoted).unwrap_or_default();
            csv.push_str(&format!(
                "{},{},{:.6},{},{},{},{manifest},{first},{error}\n",
                pull.iteration, pull.success, pull.seconds, pull.series, pull.concurrency, pull.bytes
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
        table.set_header(columns.into_iter().chain(["manifest p50", "first byte p50", "MB/s", "origin MB"]));
        for step in &self.steps {
            let times = step.seconds.map_or_else(
                || vec!["-".to_owned(); 7],
                |s| [s.min, s.mean, s.p50, s.p90, s.p95, s.p99, s.max].map(|value| format!("{value:.3}")).to_vec(),
            );
            let median = |part: Option<Summary>| part.map_or_else(|| "-".to_owned(), |part| format!("{:.3}", part.p50));
            let origin = step.origin_bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{:.1}", bytes as f64 / 1e6));
            let row = [
                step.concurrency.to_string(),
                step.series.to_owned(),
                step.pulls.to_string(),
                format!("{:.1} %", step.success_rate * 100.0),
            ];
            let row = row.into_iter().chain(times).chain([
                median(step.manifest_seconds),
                median(step.first_byte_seconds),
                format!("{:.1}", step.bytes_per_second / 1e6),
                origin,
            ]);
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
            manifest_seconds: Some(0.125),
            first_byte_seconds: error.is_none().then_some(0.25),
            error: error.map(str::to_owned),
        }
    }

    fn whole(seconds: u64) -> Whole {
        Whole { elapsed: Duration::from_secs(seconds), origin_bytes: Some(7) }
    }

    #[test]
    fn failures_count_against_the_rate_and_not_in_the_times() {
        let pulls = [record(1, None), record(2, Some("it said \"no\", twice")), record(3, None), record(4, None)];
        let step = StepResult::new("eagle", 2, &pulls, whole(2)).unwrap();
        assert_eq!((step.pulls, step.succeeded, step.success_rate), (4, 3, 0.75));
        assert_eq!(step.bytes_per_second, 2000.0);
        let seconds = step.seconds.unwrap();
        assert_eq!((seconds.min, seconds.max), (0.5, 2.0));
        let nothing = StepResult::new("eagle", 2, &pulls[1..2], whole(1)).unwrap();
        assert_eq!(nothing.seconds, None);
    }

    #[test]
    fn errors_are_quoted_in_csv() {
        let report = PullReport {
            circumstances: Circumstances::now("pull", None),
            image: "x".to_owned(),
            local: false,
            unique: false,
            warm_up: 0,
            runtime: None,
            iterations: 1,
            steps: Vec::new(),
            pulls: vec![record(1, None), record(2, Some("it said \"no\", twice"))],
        };
        let csv = report.csv();
        let lines: Vec<_> = csv.lines().collect();
        assert_eq!(lines[0].split(',').count(), 9);
        assert_eq!(lines[1], "1,true,0.500000,eagle,2,1000,0.125000,0.250000,");
        assert_eq!(lines[2], "2,false,1.000000,eagle,2,1000,0.125000,,\"it said \"\"no\"\", twice\"");
    }
}
