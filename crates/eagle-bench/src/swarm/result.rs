//! What a swarm's run came to: JSON for programs, a summary for people.

use std::fmt;

use anyhow::Result;
use eagle_core::units::{Rate, Size};
use eagle_registry::embedded::BlobStats;
use serde::Serialize;

use crate::{
    cli::{Encryption, SwarmArgs},
    host::ProcessUse,
    report::{Circumstances, mebibytes, megabytes},
    stats::{percentile, sorted},
};

/// The raw results.
pub(super) struct Measured {
    pub(super) per_node: Vec<NodeResult>,
    pub(super) origin: BlobStats,
    pub(super) origin_first_byte_seconds: f64,
    pub(super) seeder_uploaded: u64,
    pub(super) seeder_control: u64,
    pub(super) seeder: ProcessUse,
    pub(super) tracker: ProcessUse,
}

/// The report. Fields are described in `docs/benchmarks.md`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SwarmReport {
    #[serde(flatten)]
    circumstances: Circumstances,
    pub(super) nodes: u32,
    size_bytes: u64,
    rate_bytes_per_second: Option<u64>,
    seeder_rate_bytes_per_second: Option<u64>,
    piece_length: u32,
    pieces: u64,
    encryption: Encryption,
    stagger_seconds: f64,
    succeeded: usize,
    ideal_seconds: Option<f64>,
    first_byte_seconds: FirstByte,
    first_byte_baseline_seconds: Baseline,
    complete_seconds: Complete,
    efficiency: Efficiency,
    origin_bytes: u64,
    origin_requests: u64,
    origin_heads: u64,
    delivered_bytes: u64,
    peer_bytes: u64,
    seeder_uploaded_bytes: u64,
    control_bytes: u64,
    cpu_seconds: f64,
    cpu_seconds_per_gb: f64,
    cpu_seconds_by_role: ByRole<f64>,
    idle_rss_bytes: ByRole<u64>,
    max_rss_bytes: ByRole<u64>,
    pub(super) per_node: Vec<NodeResult>,
}

#[derive(Debug, Clone, Serialize)]
struct FirstByte {
    p50: Option<f64>,
    max: Option<f64>,
}

/// What the first byte of a cold blob takes at least: the origin's own, and one piece at the rate.
#[derive(Debug, Clone, Serialize)]
struct Baseline {
    origin: f64,
    piece: f64,
    total: f64,
}

#[derive(Debug, Clone, Serialize)]
struct Complete {
    p50: Option<f64>,
    p90: Option<f64>,
    max: Option<f64>,
}

/// Of the node in the middle and of the slowest.
#[derive(Debug, Clone, Serialize)]
struct Efficiency {
    p50: Option<f64>,
    max: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
struct ByRole<T> {
    proxy: T,
    seeder: T,
    tracker: T,
}

/// One node.
#[derive(Debug, Clone, Serialize)]
pub(super) struct NodeResult {
    pub(super) node: usize,
    pub(super) start_seconds: f64,
    pub(super) ideal_seconds: Option<f64>,
    pub(super) efficiency: Option<f64>,
    pub(super) first_byte_seconds: Option<f64>,
    pub(super) complete_seconds: Option<f64>,
    pub(super) delivered_bytes: u64,
    pub(super) peer_bytes: u64,
    pub(super) seeder_bytes: u64,
    pub(super) origin_bytes: u64,
    pub(super) uploaded_bytes: u64,
    pub(super) control_bytes: u64,
    pub(super) cpu_seconds: f64,
    pub(super) idle_rss_bytes: u64,
    pub(super) max_rss_bytes: u64,
    pub(super) error: Option<String>,
}

impl SwarmReport {
    pub(super) fn new(circumstances: Circumstances, args: &SwarmArgs, measured: Measured) -> Result<Self> {
        let Measured { per_node, origin, origin_first_byte_seconds, seeder_uploaded, seeder_control, seeder, tracker } =
            measured;
        let cluster = &args.cluster;
        let geometry = cluster.piece_length.geometry(cluster.size.0)?;
        let first_byte = sorted(per_node.iter().filter_map(|node| node.first_byte_seconds));
        let complete = sorted(per_node.iter().filter_map(|node| node.complete_seconds));
        let succeeded = complete.len();
        // A node without the blob has no time: then there is no slowest node either.
        let all = succeeded == per_node.len();
        let complete = Complete {
            p50: percentile(&complete, 50),
            p90: percentile(&complete, 90),
            max: percentile(&complete, 100).filter(|_| all),
        };
        // The longest: without --stagger all nodes have the same.
        let ideal = percentile(&sorted(per_node.iter().filter_map(|node| node.ideal_seconds)), 100);
        // By time: the most efficient first.
        let inefficiency = sorted(per_node.iter().filter_map(|node| Some(1.0 / node.efficiency?)));
        let efficiency = Efficiency {
            p50: percentile(&inefficiency, 50).map(f64::recip),
            max: percentile(&inefficiency, 100).filter(|_| all).map(f64::recip),
        };
        let piece = cluster
            .rate
            .bytes_per_second()
            .map_or(0.0, |rate| cluster.size.0.min(u64::from(geometry.piece_length())) as f64 / rate as f64);
        let first_byte_baseline_seconds =
            Baseline { origin: origin_first_byte_seconds, piece, total: origin_first_byte_seconds + piece };
        let delivered_bytes: u64 = per_node.iter().map(|node| node.delivered_bytes).sum();
        let proxies = per_node.iter().map(|node| node.cpu_seconds).sum::<f64>();
        let cpu_seconds = proxies + seeder.cpu_seconds + tracker.cpu_seconds;
        Ok(Self {
            circumstances,
            nodes: cluster.nodes,
            size_bytes: cluster.size.0,
            rate_bytes_per_second: cluster.rate.bytes_per_second(),
            seeder_rate_bytes_per_second: cluster.seeder_rate.unwrap_or(cluster.rate).bytes_per_second(),
            piece_length: geometry.piece_length(),
            pieces: cluster.size.0.div_ceil(u64::from(geometry.piece_length())),
            encryption: cluster.encryption,
            stagger_seconds: args.stagger.as_secs_f64(),
            succeeded,
            ideal_seconds: ideal,
            first_byte_seconds: FirstByte { p50: percentile(&first_byte, 50), max: percentile(&first_byte, 100) },
            first_byte_baseline_seconds,
            complete_seconds: complete,
            efficiency,
            origin_bytes: origin.bytes,
            origin_requests: origin.gets,
            origin_heads: origin.heads,
            delivered_bytes,
            peer_bytes: per_node.iter().map(|node| node.peer_bytes).sum(),
            seeder_uploaded_bytes: seeder_uploaded,
            control_bytes: seeder_control + per_node.iter().map(|node| node.control_bytes).sum::<u64>(),
            cpu_seconds,
            cpu_seconds_per_gb: cpu_seconds / (delivered_bytes.max(1) as f64 / 1e9),
            cpu_seconds_by_role: ByRole { proxy: proxies, seeder: seeder.cpu_seconds, tracker: tracker.cpu_seconds },
            idle_rss_bytes: ByRole {
                proxy: per_node.iter().map(|node| node.idle_rss_bytes).max().unwrap_or_default(),
                seeder: seeder.rss_bytes,
                tracker: tracker.rss_bytes,
            },
            max_rss_bytes: ByRole {
                proxy: per_node.iter().map(|node| node.max_rss_bytes).max().unwrap_or_default(),
                seeder: seeder.max_rss_bytes,
                tracker: tracker.max_rss_bytes,
            },
            per_node,
        })
    }
}

fn seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2} s"))
}

fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

impl fmt::Display for SwarmReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.rate_bytes_per_second.map_or(Rate::Unlimited, Rate::Limited);
        writeln!(
            f,
            "{} to {} nodes at {rate} each, encryption {}, {} pieces of {}\n",
            Size(self.size_bytes),
            self.nodes,
            self.encryption.as_str(),
            self.pieces,
            Size(u64::from(self.piece_length)),
        )?;
        let mut line = |name: &str, text: String| writeln!(f, "  {name:<12} {text}");
        let Complete { p50, p90, max } = self.complete_seconds;
        line("complete", format!("p50 {}, p90 {}, slowest {}", seconds(p50), seconds(p90), seconds(max)))?;
        if self.ideal_seconds.is_some() {
            line("ideal", seconds(self.ideal_seconds))?;
            line("efficiency", format!("p50 {}, slowest {}", share(self.efficiency.p50), share(self.efficiency.max)))?;
        } else if let Some(max) = max {
            let rate = self.delivered_bytes as f64 / 1e6 / max;
            line("throughput", format!("{rate:.0} MB/s delivered, all nodes together"))?;
        }
        let first = &self.first_byte_seconds;
        let millis =
            |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{:.0} ms", value * 1e3));
        let Baseline { origin, piece, total } = self.first_byte_baseline_seconds;
        let [origin, piece, total] = [origin, piece, total].map(|seconds| millis(Some(seconds)));
        line(
            "first byte",
            format!(
                "p50 {}, slowest {}; the origin's own {origin} + one piece at the rate {piece} = {total}",
                millis(first.p50),
                millis(first.max)
            ),
        )?;
        line(
            "origin",
            format!(
                "sent {} in {} requests, {:.3} times the blob",
                megabytes(self.origin_bytes),
                self.origin_requests,
                self.origin_bytes as f64 / self.size_bytes as f64
            ),
        )?;
        let share = self.peer_bytes as f64 * 100.0 / self.delivered_bytes.max(1) as f64;
        line("nodes", format!("got {}, {share:.0} % of it from each other", megabytes(self.delivered_bytes)))?;
        line("seeder", format!("sent {}", megabytes(self.seeder_uploaded_bytes)))?;
        let control = self.control_bytes as f64 * 100.0 / self.delivered_bytes.max(1) as f64;
        line("control", format!("{control:.3} % of what was delivered"))?;
        let cpu = &self.cpu_seconds_by_role;
        line(
            "CPU",
            format!(
                "{:.2} s per GB delivered; {:.2} s together: proxies {:.2}, seeder {:.2}, tracker {:.2}",
                self.cpu_seconds_per_gb, self.cpu_seconds, cpu.proxy, cpu.seeder, cpu.tracker
            ),
        )?;
        let [idle, most] = [&self.idle_rss_bytes, &self.max_rss_bytes].map(|rss| {
            let [proxy, seeder, tracker] = [rss.proxy, rss.seeder, rss.tracker].map(mebibytes);
            format!("proxy {proxy}, seeder {seeder}, tracker {tracker}")
        });
        line("memory idle", idle)?;
        line("memory most", most)
    }
}
