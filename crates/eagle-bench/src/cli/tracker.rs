//! `eagle-bench tracker`.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::report::Output;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench tracker
  eagle-bench tracker --peers 1000 --blobs 1000 --blobs-per-peer 100 --duration 3s --no-expiry --json tracker.json

The tracker and the nodes have a core each where the machine has two. The tracker has its memory in large pages, as
the chart and the service start it; GLIBC_TUNABLES= before the command takes small ones. What the nodes have and say is
described in docs/benchmarks.md.")]
pub(crate) struct TrackerArgs {
    /// Nodes of the cluster; the tracker answers each of them 20 times a second at most
    #[arg(long, default_value_t = 15_000, value_name = "N", value_parser = count(1, 1 << 24))]
    pub(crate) peers: usize,
    /// Different blobs in the cluster
    #[arg(long, default_value_t = 5_000, value_name = "N", value_parser = count(1, 1 << 24))]
    pub(crate) blobs: usize,
    /// Blobs that each node has
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = count(1, 10_000))]
    pub(crate) blobs_per_peer: usize,
    /// Blobs in an announce
    #[arg(long, default_value_t = 25, value_name = "N", value_parser = count(0, 10_000))]
    pub(crate) updates: usize,
    /// Share of the announces that ask for peers of one blob, from 0 to 1
    #[arg(long, default_value_t = 0.1, value_name = "SHARE", value_parser = part)]
    pub(crate) asking: f64,
    /// Connections that announce
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = count(1, 10_000))]
    pub(crate) connections: usize,
    /// How long each part is measured
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,
    /// How long a silent node stays known
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) peer_ttl: Duration,
    /// Announce in JSON instead of protobuf
    #[arg(long)]
    pub(crate) encode_json: bool,
    /// Leave out what happens while nodes expire
    #[arg(long)]
    pub(crate) no_expiry: bool,
    /// The eagle program; the one beside this program unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) eagle: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

fn count(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(count) if (least..=most).contains(&count) => Ok(count),
        _ => Err(format!("a number from {least} to {most}")),
    }
}

fn part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a number from 0 to 1".to_owned()),
    }
}
