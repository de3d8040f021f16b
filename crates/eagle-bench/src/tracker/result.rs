//! What came of it: JSON for programs, a table for people.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::load::Load;
use crate::{
    cli::TrackerArgs,
    host::TICKS_PER_SECOND,
    report::{Circumstances, mebibytes},
};

/// What is aimed at, with tracker and load on a core each.
const ANNOUNCES_AIM: f64 = 40_000.0;
const UPDATES_AIM: f64 = 1_000_000.0;
/// At half the load, seconds.
const P99_AIM: f64 = 0.005;
/// Resident memory with every pair of a blob and a peer of 15,000 nodes with 500 blobs each: 1.5 GiB.
const BYTES_PER_ENTRY_AIM: f64 = 1.5 * 1024.0 * 1024.0 * 1024.0 / 7_500_000.0;
/// Longest that an answer may wait while nodes expire, seconds.
const EXPIRY_AIM: f64 = 0.01;

/// The report. Fields are described in `docs/benchmarks.md`.
#[derive(Debug, Serialize)]
pub(super) struct TrackerReport {
    #[serde(flatten)]
    circumstances: Circumstances,
    peers: usize,
    blobs: usize,
    blobs_per_peer: usize,
    updates_per_announce: usize,
    asking: f64,
    connections: usize,
    encoding: &'static str,
    nothing: Phase,
    nothing_half_load: Phase,
    fill: Fill,
    full_load: Phase,
    half_load: Phase,
    expiry: Option<Expiry>,
}

/// A time under load.
#[derive(Debug, Serialize)]
pub(super) struct Phase {
    seconds: f64,
    announces: u64,
    pub(super) announces_per_second: f64,
    updates_per_second: f64,
    latency_seconds: Latency,
    undisturbed: Option<Undisturbed>,
    stolen_seconds: Option<f64>,
    server_cpu_seconds: f64,
    server_cpu_micros_per_announce: f64,
    load_cpu_seconds: f64,
    load_longest_pause_seconds: f64,
    answer_bytes_mean: f64,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Latency {
    fn new(latency: &Histogram<u64>) -> Self {
        let at = |quantile: f64| latency.value_at_quantile(quantile) as f64 / 1e9;
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: latency.max() as f64 / 1e9 }
    }
}

/// The answers for which the hypervisor took no time from the cores.
#[derive(Debug, Serialize)]
struct Undisturbed {
    announces: u64,
    latency_seconds: Latency,
}

/// Every node says everything.
#[derive(Debug, Serialize)]
pub(super) struct Fill {
    pub(super) seconds: f64,
    pub(super) entries: u64,
    pub(super) blobs_per_second: f64,
    pub(super) rss_bytes: u64,
    pub(super) bytes_per_entry: f64,
}

/// Most nodes fall silent.
#[derive(Debug, Serialize)]
pub(super) struct Expiry {
    pub(super) expired_entries: u64,
    pub(super) rss_bytes: u64,
    #[serde(flatten)]
    pub(super) phase: Phase,
}

impl Phase {
    pub(super) fn new(load: &Load, server_cpu_seconds: f64) -> Self {
        let announces = load.announces as f64;
        Self {
            seconds: load.seconds,
            announces: load.announces,
            announces_per_second: announces / load.seconds,
            updates_per_second: load.updates as f64 / load.seconds,
            latency_seconds: Latency::new(&load.latency),
            undisturbed: load
                .undisturbed
                .as_ref()
                .map(|latency| Undisturbed { announces: latency.len(), latency_seconds: Latency::new(latency) }),
            stolen_seconds: load.stolen_ticks.map(|ticks| ticks as f64 / TICKS_PER_SECOND),
            server_cpu_seconds,
            server_cpu_micros_per_announce: server_cpu_seconds * 1e6 / announces,
            load_cpu_seconds: load.cpu_seconds,
            load_longest_pause_seconds: load.longest_pause.as_secs_f64(),
            answer_bytes_mean: load.answer_bytes as f64 / announces,
        }
    }

    /// What the hypervisor took, and how fast answers were without it; empty if it took nothing.
    fn disturbance(&self, name: &str) -> Option<String> {
        let stolen = self.stolen_seconds.filter(|stolen| *stolen > 0.0)?;
        let calm = match &self.undisturbed {
            Some(Undisturbed { announces, latency_seconds: Latency { p99, max, .. } }) => format!(
                "answers without that ({:.0} %): p99 {:.2} ms, max {:.2} ms",
                *announces as f64 * 100.0 / self.announces as f64,
                p99 * 1e3,
                max * 1e3
            ),
            None => "hardly an answer came without that".to_owned(),
        };
        Some(format!("{name}: the hypervisor took {stolen:.2} s from the two cores in {:.0} s; {calm}", self.seconds))
    }

    fn row(&self, name: &str) -> Vec<String> {
        let Latency { p50, p99, p999, max } = &self.latency_seconds;
        let ms = |seconds: &f64| format!("{:.2}", seconds * 1e3);
        vec![
            name.to_owned(),
            format!("{:.0}", self.announces_per_second),
            format!("{:.0}", self.updates_per_second),
            ms(p50),
            ms(p99),
            ms(p999),
            ms(max),
            format!("{:.1}", self.server_cpu_micros_per_announce),
            ms(&self.load_longest_pause_seconds),
        ]
    }
}

impl TrackerReport {
    pub(super) fn new(
        circumstances: Circumstances,
        args: &TrackerArgs,
        [nothing, nothing_half_load]: [Phase; 2],
        fill: Fill,
        [full_load, half_load]: [Phase; 2],
        expiry: Option<Expiry>,
    ) -> Self {
        Self {
            circumstances,
            peers: args.peers,
            blobs: args.blobs,
            blobs_per_peer: args.blobs_per_peer,
            updates_per_announce: args.updates,
            asking: args.asking,
            connections: args.connections,
            encoding: if args.encode_json { "json" } else { "protobuf" },
            nothing,
            nothing_half_load,
            fill,
            full_load,
            half_load,
            expiry,
        }
    }
}

impl fmt::Display for TrackerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peers, blobs_per_peer, updates_per_announce, asking, connections, fill, .. } = self;
        writeln!(
            f,
            "{peers} nodes with {blobs_per_peer} blobs each; {updates_per_announce} blobs in an announce, {:.0} % of them ask for peers; {connections} connections\n",
            asking * 100.0
        )?;
        let mut table = Table::new();
        table.load_preset(NOTHING).set_header([
            "",
            "announces/s",
            "updates/s",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "max ms",
            "CPU µs/announce",
            "nodes' pause ms",
        ]);
        table.add_row(self.nothing.row("a server that does nothing"));
        table.add_row(self.full_load.row("tracker, as fast as it answers"));
        table.add_row(self.half_load.row("tracker, half of that"));
        table.add_row(self.nothing_half_load.row("nothing, as often as that"));
        if let Some(expiry) = &self.expiry {
            table.add_row(expiry.phase.row("the same while nodes expire"));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}\n")?;
        let paced = [
            Some(("half load", &self.half_load)),
            Some(("nothing, as often", &self.nothing_half_load)),
            self.expiry.as_ref().map(|expiry| ("while nodes expire", &expiry.phase)),
        ];
        for line in paced.into_iter().flatten().filter_map(|(name, phase)| phase.disturbance(name)) {
            writeln!(f, "{line}")?;
        }
        writeln!(
            f,
            "{} pairs of blob and peer, announced in {:.1} s ({:.0}/s), take {} ({:.0} bytes each)",
            fill.entries,
            fill.seconds,
            fill.blobs_per_second,
            mebibytes(fill.rss_bytes),
            fill.bytes_per_entry
        )?;
        if let Some(expiry) = &self.expiry {
            writeln!(
                f,
                "{} of them expired; {} are resident after that",
                expiry.expired_entries,
                mebibytes(expiry.rss_bytes)
            )?;
        }
        write!(
            f,
            "of what is aimed at: announces {:.2}, updates {:.2}; at most 1: p99 at half load {:.2}, memory {:.2}",
            self.full_load.announces_per_second / ANNOUNCES_AIM,
            self.full_load.updates_per_second / UPDATES_AIM,
            self.half_load.latency_seconds.p99 / P99_AIM,
            fill.rss_bytes as f64 / fill.entries as f64 / BYTES_PER_ENTRY_AIM,
        )?;
        if let Some(expiry) = &self.expiry {
            write!(f, ", longest answer while nodes expire {:.2}", expiry.phase.latency_seconds.max / EXPIRY_AIM)?;
        }
        Ok(())
    }
}
