//! What a simulation came to: JSON for programs, a summary for people.

use std::{fmt, time::Duration};

use eagle_core::units::Size;
use eagle_sim::{Plan, Quantiles, Report, Sample};
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
    cross_rack: Crossing,
    cross_zone: Crossing,
    cross_region: Crossing,
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
    /// What the nodes went by: `topology` or `blind`.
    policy: &'static str,
    /// The same plan with nodes that do not know where they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    blind: Option<Twin>,
    targets: Vec<Target>,
    /// The swarm over time, from the start to the end.
    samples: Vec<Moment>,
}

/// The swarm at one moment; shares.
#[derive(Debug, Clone, Serialize)]
struct Moment {
    seconds: f64,
    /// Of everything that the node with least, the one in the middle and the one with most own.
    owned: [f64; 3],
    /// Of the nodes that are done.
    done: f64,
    /// Of the nodes that own the rarest piece, the one in the middle and the commonest.
    spread: [f64; 3],
}

impl From<&Sample> for Moment {
    fn from(sample: &Sample) -> Self {
        let Sample { seconds, owned, done, spread } = *sample;
        Self { seconds, owned, done, spread }
    }
}

/// Bytes over the boundaries of one kind.
#[derive(Debug, Clone, Copy, Serialize)]
struct Crossing {
    bytes: u64,
    /// Places that they separate.
    places: usize,
    /// Over the least that brings everything into each place; null when there is one place.
    ratio: Option<f64>,
}

impl Crossing {
    fn new(bytes: u64, places: usize, size: u64) -> Self {
        let least = places.saturating_sub(1) as f64 * size as f64;
        Self { bytes, places, ratio: (least > 0.0).then(|| bytes as f64 / least) }
    }

    fn all(simulated: &Report, plan: &Plan) -> [Self; 3] {
        let sites = plan.sites();
        [
            Self::new(simulated.cross_rack_bytes, sites.racks, plan.size()),
            Self::new(simulated.cross_zone_bytes, sites.zones, plan.size()),
            Self::new(simulated.cross_region_bytes, sites.regions, plan.size()),
        ]
    }
}

/// A run of the same plan without knowledge of places.
#[derive(Debug, Clone, Serialize)]
struct Twin {
    finished: usize,
    seconds: Three,
    cross_rack: Crossing,
    cross_zone: Crossing,
    cross_region: Crossing,
    /// Seconds of the last node of the run with that knowledge over those of this one.
    slowest_ratio: Option<f64>,
    trace: String,
}

/// What was run, and what it took.
pub(super) struct Outcome<'a> {
    pub(super) simulated: &'a Report,
    /// Whether the nodes knew where they were.
    pub(super) knows_places: bool,
    /// The run without that knowledge, beside one with it.
    pub(super) twin: Option<&'a Report>,
    pub(super) wall: Duration,
    /// Bytes.
    pub(super) memory: u64,
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
        outcome: &Outcome<'_>,
    ) -> Self {
        let Outcome { simulated, knows_places, twin, wall, memory } = *outcome;
        let nodes = &simulated.nodes;
        let pieces: u64 = plan.blobs.iter().map(|geometry| u64::from(geometry.pieces())).sum();
        let delivered = simulated.delivered_bytes.max(1) as f64;
        let [cross_rack, cross_zone, cross_region] = Crossing::all(simulated, plan);
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
            cross_rack,
            cross_zone,
            cross_region,
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
            policy: if knows_places { "topology" } else { "blind" },
            blind: twin.map(|twin| Twin::new(twin, simulated, plan)),
            targets: Vec::new(),
            samples: simulated.samples.iter().map(Moment::from).collect(),
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
            at_most("cross_rack.ratio", targets.cross_rack_ratio, self.cross_rack.ratio),
            at_most("cross_zone.ratio", targets.cross_zone_ratio, self.cross_zone.ratio),
            at_most("cross_region.ratio", targets.cross_region_ratio, self.cross_region.ratio),
            at_most(
                "blind.slowest_ratio",
                targets.blind_ratio,
                self.blind.as_ref().and_then(|blind| blind.slowest_ratio),
            ),
            at_most("wall_seconds", targets.wall_seconds, Some(self.wall_seconds)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl Twin {
    fn new(twin: &Report, simulated: &Report, plan: &Plan) -> Self {
        let [cross_rack, cross_zone, cross_region] = Crossing::all(twin, plan);
        let (own, other) = (Three::from(simulated.seconds()), Three::from(twin.seconds()));
        Self {
            finished: twin.nodes.iter().filter(|node| node.seconds.is_finite()).count(),
            seconds: other,
            cross_rack,
            cross_zone,
            cross_region,
            slowest_ratio: own.max.zip(other.max).map(|(own, other)| own / other),
            trace: twin.trace.clone(),
        }
    }
}

fn crossings(all: [Crossing; 3]) -> String {
    let one = |(name, crossing): (&str, Crossing)| {
        let ratio = crossing.ratio?;
        Some(format!("{} {name}, {ratio:.3} times the least", megabytes(crossing.bytes)))
    };
    let parts: Vec<String> =
        ["between racks", "between zones", "between regions"].into_iter().zip(all).filter_map(one).collect();
    if parts.is_empty() { "all in one place".to_owned() } else { parts.join("; ") }
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
        line("crossings", crossings([self.cross_rack, self.cross_zone, self.cross_region]))?;
        if let Some(blind) = &self.blind {
            line("blind", three(blind.seconds, " s"))?;
            line("", crossings([blind.cross_rack, blind.cross_zone, blind.cross_region]))?;
        }
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
