//! What came of it: JSON for programs, tables for people.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use eagle_core::units::Rate;
use serde::Serialize;

use super::{flow::Direction, windows::Errors};
use crate::{
    cli::{Encryption, LimitsArgs},
    report::Circumstances,
};

/// How far any window may be off.
const WINDOW_AIM: f64 = 0.05;
/// How far the share of a blob may be off.
const SHARE_AIM: f64 = 0.1;
/// How long a change may take, seconds.
const CHANGE_AIM: f64 = 1.0;

/// A rate and how it held.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RateResult {
    pub(super) direction: Direction,
    pub(super) rate_bytes_per_second: u64,
    pub(super) errors: Errors,
    pub(super) samples: usize,
}

/// A rate that this machine does not reach.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Beyond {
    pub(super) direction: Direction,
    pub(super) rate_bytes_per_second: u64,
    pub(super) bytes_per_second: f64,
    pub(super) unlimited_bytes_per_second: f64,
    pub(super) ratio: f64,
}

/// Blobs at the same time.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Share {
    pub(super) direction: Direction,
    pub(super) rate_bytes_per_second: u64,
    /// Of all together, as the clients saw it.
    pub(super) bytes_per_second: f64,
    pub(super) seconds: f64,
    /// Of the mean of all.
    pub(super) shares: Vec<f64>,
    pub(super) worst: f64,
}

/// A change of a rate while bytes move.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Change {
    pub(super) direction: Direction,
    pub(super) by: &'static str,
    pub(super) from_bytes_per_second: u64,
    pub(super) to_bytes_per_second: u64,
    /// Until the new rate held; `None` if it did not until the next change.
    pub(super) seconds: Option<f64>,
}

/// The report. Fields are described in `docs/benchmarks.md`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct LimitsReport {
    #[serde(flatten)]
    circumstances: Circumstances,
    encryption: Encryption,
    seconds: f64,
    unlimited: Vec<Unlimited>,
    rates: Vec<RateResult>,
    beyond: Vec<Beyond>,
    shares: Vec<Share>,
    changes: Vec<Change>,
}

#[derive(Debug, Clone, Serialize)]
struct Unlimited {
    direction: Direction,
    bytes_per_second: f64,
}

impl LimitsReport {
    pub(super) fn new(
        circumstances: Circumstances,
        args: &LimitsArgs,
        unlimited: &[(Direction, f64)],
        rates: Vec<RateResult>,
        beyond: Vec<Beyond>,
        shares: Vec<Share>,
        changes: Vec<Change>,
    ) -> Self {
        let unlimited =
            unlimited.iter().map(|&(direction, bytes_per_second)| Unlimited { direction, bytes_per_second }).collect();
        let (encryption, seconds) = (args.encryption, args.seconds);
        Self { circumstances, encryption, seconds, unlimited, rates, beyond, shares, changes }
    }
}

/// A share of something, as an error.
fn percent(value: f64) -> String {
    format!("{:+.1} %", value * 100.0)
}

/// Whether an aim was met.
fn verdict(met: bool) -> &'static str {
    if met { "yes" } else { "NO" }
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(header);
    for index in 1..N {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

impl fmt::Display for LimitsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |rate: u64| Rate::Limited(rate).to_string();
        writeln!(
            f,
            "One node with the limit and four without, encryption {}; every window of a second, {} s each\n",
            self.encryption.as_str(),
            self.seconds
        )?;
        let mut windows = table(["direction", "limit", "most", "least", "mean error", "within 5 %"]);
        for RateResult { direction, rate_bytes_per_second, errors, .. } in &self.rates {
            windows.add_row([
                direction.as_str(),
                &rate(*rate_bytes_per_second),
                &percent(errors.over),
                &percent(errors.under),
                &format!("{:.2} %", errors.mean * 100.0),
                verdict(errors.worst() <= WINDOW_AIM),
            ]);
        }
        writeln!(f, "{windows}")?;
        if !self.beyond.is_empty() {
            writeln!(f, "\nMore than this machine can do: what the limit costs\n")?;
            let mut beyond = table(["direction", "limit", "MB/s with", "MB/s without", "ratio"]);
            for result in &self.beyond {
                beyond.add_row([
                    result.direction.as_str().to_owned(),
                    rate(result.rate_bytes_per_second),
                    format!("{:.0}", result.bytes_per_second / 1e6),
                    format!("{:.0}", result.unlimited_bytes_per_second / 1e6),
                    format!("{:.2}", result.ratio),
                ]);
            }
            writeln!(f, "{beyond}")?;
        }
        if !self.shares.is_empty() {
            writeln!(f, "\nFour blobs at once, as clients of a proxy see them\n")?;
            let mut shares = table(["limit of", "limit", "all together", "shares of the mean", "worst", "within 10 %"]);
            for share in &self.shares {
                let each: Vec<String> = share.shares.iter().map(|share| format!("{share:.3}")).collect();
                shares.add_row([
                    share.direction.as_str(),
                    &rate(share.rate_bytes_per_second),
                    &format!("{:.1} MB/s", share.bytes_per_second / 1e6),
                    &each.join(" "),
                    &format!("{:.1} %", share.worst * 100.0),
                    verdict(share.worst <= SHARE_AIM),
                ]);
            }
            writeln!(f, "{shares}")?;
        }
        writeln!(f, "\nChanges while bytes move, until the new rate holds\n")?;
        let mut changes = table(["direction", "by", "from", "to", "took", "within 1 s"]);
        for change in &self.changes {
            changes.add_row([
                change.direction.as_str(),
                change.by,
                &rate(change.from_bytes_per_second),
                &rate(change.to_bytes_per_second),
                &change.seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{:.0} ms", seconds * 1e3)),
                verdict(change.seconds.is_some_and(|seconds| seconds <= CHANGE_AIM)),
            ]);
        }
        write!(f, "{changes}")
    }
}
