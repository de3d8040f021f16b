//! What the pulls came to: CSV per pull, JSON, a table.

use std::{fmt, sync::Arc, time::Duration};

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};

use super::{Runtime, agents::AgentResult, series::SeriesName};
use crate::{
    report::Circumstances,
    stats::{Summary, percentile, sorted},
};

/// One pull.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PullRecord {
    pub(super) series: SeriesName,
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
    /// Who pulled; null: this program. Agents leave it to whoever asks them.
    pub(super) agent: Option<Arc<str>>,
}

/// All pulls of a series at one concurrency.
#[derive(Debug, Clone, Serialize)]
pub(super) struct StepResult {
    series: SeriesName,
    concurrency: u32,
    /// Pulls that were to be made.
    asked: u32,
    /// Those that ended; fewer only if the benchmark broke off.
    pulls: usize,
    succeeded: usize,
    /// Of those that were to be made.
    success_rate: f64,
    /// Of those that succeeded.
    seconds: Option<Summary>,
    manifest_seconds: Option<Summary>,
    first_byte_seconds: Option<Summary>,
    /// From the start of the first pull to the end of the last.
    elapsed_seconds: f64,
    bytes: u64,
    /// Null if the benchmark broke off.
    bytes_per_second: Option<f64>,
    /// Bytes of blobs that the origin sent meanwhile; null where it is not this program's own.
    origin_bytes: Option<u64>,
}

/// What a step took as a whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole {
    /// Pulls that were to be made.
    pub(super) asked: u32,
    pub(super) elapsed: Duration,
    pub(super) origin_bytes: Option<u64>,
}

impl StepResult {
    pub(super) fn new(series: SeriesName, concurrency: u32, pulls: &[PullRecord], whole: Whole) -> Result<Self> {
        let good: Vec<_> = pulls.iter().filter(|pull| pull.success).collect();
        let bytes: u64 = pulls.iter().map(|pull| pull.bytes).sum();
        let summary = |time: fn(&PullRecord) -> Option<f64>| {
            Summary::of(&good.iter().filter_map(|pull| time(pull)).collect::<Vec<f64>>())
        };
        let elapsed = whole.elapsed.as_secs_f64();
        Ok(Self {
            series,
            concurrency,
            asked: whole.asked,
            pulls: pulls.len(),
            succeeded: good.len(),
            success_rate: good.len() as f64 / f64::from(whole.asked.max(1)),
            seconds: summary(|pull| Some(pull.seconds))?,
            manifest_seconds: summary(|pull| pull.manifest_seconds)?,
            first_byte_seconds: summary(|pull| pull.first_byte_seconds)?,
            elapsed_seconds: elapsed,
            bytes,
            bytes_per_second: (elapsed > 0.0).then(|| bytes as f64 / elapsed),
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
    /// Of the runtime of this machine; that of an agent is among `agents`.
    pub(super) runtime_version: Option<String>,
    pub(crate) iterations: u32,
    /// Why the benchmark broke off; null: it did not.
    pub(super) error: Option<String>,
    /// Who pulled; none: this program.
    pub(crate) agents: Vec<AgentResult>,
    pub(super) steps: Vec<StepResult>,
    pub(super) pulls: Vec<PullRecord>,
}

/// The first line of the CSV. What tools for such files go by is first; what came later is last.
const HEADER: &str =
    "iteration,success,seconds,series,concurrency,bytes,manifest_seconds,first_byte_seconds,error,runtime,agent\n";

impl PullReport {
    /// A line per pull.
    pub(super) fn csv(&self) -> String {
        let mut csv = HEADER.to_owned();
        let runtime = self.runtime.map(Runtime::name).unwrap_or_default();
        let time = |seconds: Option<f64>| seconds.map(|seconds| format!("{seconds:.6}")).unwrap_or_default();
        for pull in &self.pulls {
            let (manifest, first) = (time(pull.manifest_seconds), time(pull.first_byte_seconds));
            let error = pull.error.as_deref().map(quoted).unwrap_or_default();
            let agent = pull.agent.as_deref().unwrap_or_default();
            csv.push_str(&format!(
                "{},{},{:.6},{},{},{},{manifest},{first},{error},{runtime},{agent}\n",
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
                step.series.to_string(),
                step.pulls.to_string(),
                format!("{:.1} %", step.success_rate * 100.0),
            ];
            let row = row.into_iter().chain(times).chain([
                median(step.manifest_seconds),
                median(step.first_byte_seconds),
                step.bytes_per_second.map_or_else(|| "-".to_owned(), |rate| format!("{:.1}", rate / 1e6)),
                origin,
            ]);
            table.add_row(row.map(|text| Cell::new(text).set_alignment(CellAlignment::Right)));
        }
        write!(f, "{}\nTimes in seconds, of the pulls that succeeded.\n\n{table}", self.image)?;
        if self.agents.is_empty() {
            return Ok(());
        }
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["agent", "machine", "pulls", "good", "p50", "max"]);
        for agent in &self.agents {
            let pulls = || self.pulls.iter().filter(|pull| pull.agent.as_ref() == Some(&agent.name));
            let times = sorted(pulls().filter(|pull| pull.success).map(|pull| pull.seconds));
            let time =
                |percent| percentile(&times, percent).map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"));
            let row = [agent.name.to_string(), agent.info.hostname.clone(), pulls().count().to_string()];
            let row = row.into_iter().chain([times.len().to_string(), time(50), time(100)]);
            table.add_row(row.map(|text| Cell::new(text).set_alignment(CellAlignment::Right)));
        }
        write!(f, "\n\n{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(iteration: u32, error: Option<&str>) -> PullRecord {
        PullRecord {
            series: SeriesName::Eagle,
            concurrency: 2,
            iteration,
            success: error.is_none(),
            seconds: 0.5 * f64::from(iteration),
            bytes: 1000,
            manifest_seconds: Some(0.125),
            first_byte_seconds: error.is_none().then_some(0.25),
            error: error.map(str::to_owned),
            agent: (iteration > 1).then(|| "node-1:43010".into()),
        }
    }

    fn whole(asked: u32, seconds: u64) -> Whole {
        Whole { asked, elapsed: Duration::from_secs(seconds), origin_bytes: Some(7) }
    }

    #[test]
    fn failures_count_against_the_rate_and_not_in_the_times() {
        let pulls = [record(1, None), record(2, Some("it said \"no\", twice")), record(3, None), record(4, None)];
        let step = StepResult::new(SeriesName::Eagle, 2, &pulls, whole(4, 2)).unwrap();
        assert_eq!((step.pulls, step.succeeded, step.success_rate), (4, 3, 0.75));
        assert_eq!(step.bytes_per_second, Some(2000.0));
        let seconds = step.seconds.unwrap();
        assert_eq!((seconds.min, seconds.max), (0.5, 2.0));
        let nothing = StepResult::new(SeriesName::Eagle, 2, &pulls[1..2], whole(1, 1)).unwrap();
        assert_eq!(nothing.seconds, None);
        // Pulls that were never made count against the rate too.
        let broken_off = StepResult::new(SeriesName::Eagle, 2, &pulls, whole(8, 0)).unwrap();
        assert_eq!((broken_off.pulls, broken_off.success_rate, broken_off.bytes_per_second), (4, 0.375, None));
    }

    #[test]
    fn errors_are_quoted_in_csv() {
        let report = PullReport {
            circumstances: Circumstances::now("pull", None),
            image: "x".to_owned(),
            local: false,
            unique: false,
            warm_up: 0,
            runtime: Some(Runtime::Skopeo),
            runtime_version: Some("1.9.3".to_owned()),
            iterations: 1,
            error: None,
            agents: Vec::new(),
            steps: Vec::new(),
            pulls: vec![record(1, None), record(2, Some("it said \"no\", twice"))],
        };
        let csv = report.csv();
        let lines: Vec<_> = csv.lines().collect();
        assert_eq!(lines[0].split(',').count(), 11);
        assert_eq!(lines[1], "1,true,0.500000,eagle,2,1000,0.125000,0.250000,,skopeo,");
        assert_eq!(
            lines[2],
            "2,false,1.000000,eagle,2,1000,0.125000,,\"it said \"\"no\"\", twice\",skopeo,node-1:43010"
        );
    }
}
