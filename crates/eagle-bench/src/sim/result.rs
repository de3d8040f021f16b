//! What a simulation came to: JSON for programs, a summary for people.

use std::{fmt, time::Duration};

use eagle_core::units::Size;
use eagle_sim::{Plan, Quantiles, Report};
use serde::Serialize;

use super::plan_file::{PlanFile, Targets};
use crate::report::{Circumstances, mebibytes, megabytes};

/// The report. Fields are described in `docs/benchmarks.md`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SimReport {
    #[serde(flatten)]
    circumstances: Circumstances,
    plan: String,
    description: String,
    seed: u64,
    nodes: u32,
    size_bytes: u64,
    blobs: Vec<Blob>,
    finished: usize,
    vanished: usize,
    ideal_seconds: f64,
    seconds: Three,
    first_piece_seconds: Three,
    efficiency: Three,
    over_bound: Three,
    origin_bytes: u64,
    seeder_bytes: u64,
    delivered_bytes: u64,
    cross_zone_bytes: u64,
    zones: usize,
    cross_zone_ratio: f64,
    duplicate_pieces: u64,
    duplicate_share: f64,
    requests: u64,
    stalled_requests: u64,
    control_messages: u64,
    control_bytes: u64,
    control_share: f64,
    events: u64,
    trace: String,
    wall_seconds: f64,
    max_rss_bytes: u64,
    targets: Vec<Target>,
}

#[derive(Debug, Clone, Serialize)]
struct Blob {
    size_bytes: u64,
    piece_length: u32,
    pieces: u32,
}

/// The node in the middle, the hundredth from the end, the worst; null if one of them did not finish.
#[derive(Debug, Clone, Copy, Serialize)]
struct Three {
    p50: Option<f64>,
    p99: Option<f64>,
    max: Option<f64>,
}

/// What was to be reached.
#[derive(Debug, Clone, Serialize)]
struct Target {
    what: &'static str,
    wanted: f64,
    got: Option<f64>,
    met: bool,
}

impl From<Option<Quantiles>> for Three {
    fn from(quantiles: Option<Quantiles>) -> Self {
        let finite = |value: fn(Quantiles) -> f64| quantiles.map(value).filter(|value| value.is_finite());
        Self { p50: finite(|three| three.p50), p99: finite(|three| three.p99), max: finite(|three| three.max) }
    }
}

impl SimReport {
    pub(super) fn new(
        circumstances: Circumstances,
        name: &str,
        file: &PlanFile,
        plan: &Plan,
        simulated: &Report,
        wall: Duration,
        memory: u64,
    ) -> Self {
        let nodes = &simulated.nodes;
        let pieces: u64 = plan.blobs.iter().map(|geometry| u64::from(geometry.pieces())).sum();
        let delivered = simulated.delivered_bytes.max(1) as f64;
        let zones = file.zones();
        let mut report = Self {
            circumstances,
            plan: name.to_owned(),
            description: file.description.clone(),
            seed: plan.seed,
            nodes: plan.nodes(),
            size_bytes: plan.size(),
            blobs: plan
                .blobs
                .iter()
                .map(|geometry| Blob {
                    size_bytes: geometry.size(),
                    piece_length: geometry.piece_length(),
                    pieces: geometry.pieces(),
                })
                .collect(),
            finished: nodes.iter().filter(|node| node.seconds.is_finite()).count(),
            vanished: plan.nodes() as usize - nodes.len(),
            ideal_seconds: simulated.ideal_seconds,
            seconds: simulated.seconds().into(),
            first_piece_seconds: Quantiles::of(nodes.iter().map(|node| node.first_piece_seconds)).into(),
            efficiency: simulated.efficiencies().into(),
            over_bound: Quantiles::of(nodes.iter().map(|node| 1.0 / node.efficiency())).into(),
            origin_bytes: simulated.origin_bytes,
            seeder_bytes: simulated.seeder_bytes,
            delivered_bytes: simulated.delivered_bytes,
            cross_zone_bytes: simulated.cross_zone_bytes,
            zones,
            cross_zone_ratio: simulated.cross_zone_bytes as f64 / (zones.max(1) as f64 * plan.size() as f64),
            duplicate_pieces: simulated.duplicate_pieces,
            duplicate_share: simulated.duplicate_pieces as f64 / (pieces as f64 * f64::from(plan.nodes())),
            requests: simulated.requests,
            stalled_requests: simulated.stalled_requests,
            control_messages: simulated.control_messages,
            control_bytes: simulated.control_bytes,
            control_share: simulated.control_bytes as f64 / delivered,
            events: simulated.events,
            trace: simulated.trace.clone(),
            wall_seconds: wall.as_secs_f64(),
            max_rss_bytes: memory,
            targets: Vec::new(),
        };
        report.targets = report.against(&file.targets);
        report
    }

    fn against(&self, targets: &Targets) -> Vec<Target> {
        let at_most = |what, wanted: Option<f64>, got: Option<f64>| {
            let wanted = wanted?;
            Some(Target { what, wanted, got, met: got.is_some_and(|got| got <= wanted) })
        };
        let least = |what, wanted: Option<f64>, got: Option<f64>| {
            let wanted = wanted?;
            Some(Target { what, wanted, got, met: got.is_some_and(|got| got >= wanted) })
        };
        [
            least("efficiency.max", targets.efficiency_max, self.efficiency.max),
            at_most("seconds.p50", targets.seconds_p50, self.seconds.p50),
            at_most("seconds.p99", targets.seconds_p99, self.seconds.p99),
            at_most("seconds.max", targets.seconds_max, self.seconds.max),
            at_most("over_bound.max", targets.over_bound_max, self.over_bound.max),
            at_most("cross_zone_ratio", targets.cross_zone_ratio, Some(self.cross_zone_ratio)),
            at_most("wall_seconds", targets.wall_seconds, Some(self.wall_seconds)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn three(values: Three, unit: &str) -> String {
    let one = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}{unit}"));
    format!("p50 {}, p99 {}, worst {}", one(values.p50), one(values.p99), one(values.max))
}

impl fmt::Display for SimReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.plan, self.description)?;
        let pieces: u32 = self.blobs.iter().map(|blob| blob.pieces).sum();
        writeln!(
            f,
            "{} in {} blobs and {pieces} pieces to {} nodes, seed {}\n",
            Size(self.size_bytes),
            self.blobs.len(),
            self.nodes,
            self.seed
        )?;
        let mut line = |name: &str, text: String| writeln!(f, "  {name:<12} {text}");
        line("finished", format!("{} nodes, {} vanished", self.finished, self.vanished))?;
        line("seconds", three(self.seconds, " s"))?;
        line("ideal", format!("{:.3} s", self.ideal_seconds))?;
        line("efficiency", three(self.efficiency, ""))?;
        line("over bound", three(self.over_bound, ""))?;
        line("first piece", three(self.first_piece_seconds, " s"))?;
        let times = |bytes: u64| bytes as f64 / self.size_bytes as f64;
        line(
            "origin",
            format!(
                "{:.3} times the size; the seeders sent {:.2} times",
                times(self.origin_bytes),
                times(self.seeder_bytes)
            ),
        )?;
        line(
            "zones",
            format!(
                "{} between zones, {:.3} of {} zones times the size",
                megabytes(self.cross_zone_bytes),
                self.cross_zone_ratio,
                self.zones
            ),
        )?;
        line("duplicates", format!("{} pieces, {:.3} %", self.duplicate_pieces, self.duplicate_share * 100.0))?;
        line("requests", format!("{}, {} of them ran out of time", self.requests, self.stalled_requests))?;
        line(
            "control",
            format!(
                "{} messages, {}, {:.3} % of the bytes delivered",
                self.control_messages,
                megabytes(self.control_bytes),
                self.control_share * 100.0
            ),
        )?;
        line(
            "simulation",
            format!("{} events in {:.1} s, {}", self.events, self.wall_seconds, mebibytes(self.max_rss_bytes)),
        )?;
        line("trace", self.trace.clone())?;
        for Target { what, wanted, got, met } in &self.targets {
            let got = got.map_or_else(|| "-".to_owned(), |got| format!("{got:.3}"));
            line("target", format!("{what} {wanted}: {got}, {}", if *met { "met" } else { "missed" }))?;
        }
        Ok(())
    }
}
