//! The command line.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use eagle_core::{
    Geometry,
    units::{Rate, Size},
};
use eagle_registry::ImageReference;
use serde::Serialize;
use url::Url;

use crate::{compare::CompareArgs, pull::Runtime, report::Output, show::ReportArgs, suite::SuiteArgs};

/// Load tests and benchmarks of Eagle: real processes and real sockets, and simulated swarms.
#[derive(Debug, Parser)]
#[command(
    name = "eagle-bench",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  eagle-bench swarm --nodes 8 --size 128MiB --rate 20MB/s --html swarm.html
  eagle-bench pull --local --nodes 4 --size 64MiB
  eagle-bench pull --image registry.example/app:1 --direct --proxy http://node-1:43002 --csv pulls.csv
  eagle-bench floor
  eagle-bench serve
  eagle-bench limits
  eagle-bench tracker --peers 15000 --blobs 5000
  eagle-bench suite --output results/
  eagle-bench compare before.json after.json --html compared.html"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a cluster of real processes and pull one blob through every node at the same moment.
    Swarm(Box<SwarmArgs>),
    /// Pull an image many times, directly and through proxies, and compare.
    Pull(Box<PullArgs>),
    /// Measure what a verified download costs at least on this machine.
    Floor(FloorArgs),
    /// Measure a proxy that serves blobs from its cache, beside nginx with the same files.
    Serve(ServeArgs),
    /// Measure the cache itself: bookkeeping, checks, start, and warm hits while it evicts.
    Cache(CacheArgs),
    /// Measure how well bandwidth limits hold, are shared by blobs, and change while bytes move.
    Limits(LimitsArgs),
    /// Simulate a swarm of any size, on the state machines that the real nodes run.
    Sim(SimArgs),
    /// Measure how many announces a tracker takes, how fast it answers, and what it needs for that.
    Tracker(TrackerArgs),
    /// Run the standard set of benchmarks and show all results on one page.
    Suite(SuiteArgs),
    /// Compare two results of the same benchmark, with confidence intervals.
    Compare(CompareArgs),
    /// Show results that were written before as one page with plots.
    Report(ReportArgs),
    /// An HTTP server that does nothing.
    #[command(hide = true)]
    Nothing(NothingArgs),
    /// The origin registry of a local cluster.
    #[command(hide = true)]
    Origin(OriginArgs),
    /// Run a program that ends when the one that started it does.
    #[command(hide = true)]
    Owned(OwnedArgs),
}

/// A cluster on this machine.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Proxies, each a node of the swarm
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) nodes: u32,
    /// Bytes of content, a multiple of 512 and at least 2048
    #[arg(long, default_value = "128MiB", value_name = "SIZE")]
    pub(crate) size: Size,
    /// Limit of every node, down and up, as in 20MB/s; or unlimited
    #[arg(long, default_value = "unlimited", value_name = "RATE")]
    pub(crate) rate: Rate,
    /// Limit of the seeder, down and up; that of the nodes unless given
    #[arg(long, value_name = "RATE")]
    pub(crate) seeder_rate: Option<Rate>,
    /// How pieces travel between nodes
    #[arg(long, value_enum, default_value_t = Encryption::Tls, value_name = "MODE")]
    pub(crate) encryption: Encryption,
    /// How the seeder cuts blobs: auto, by their size, or a power of two from 64KiB to 16MiB
    #[arg(long, default_value = "auto", value_name = "auto|SIZE", value_parser = piece_length)]
    pub(crate) piece_length: PieceLength,
    /// The eagle program; the one beside this program unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) eagle: Option<PathBuf>,
    /// Keep logs and configurations of all processes in this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) keep_logs: Option<PathBuf>,
    /// What the processes log: error, warn, info, debug, trace or a filter
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub(crate) log_level: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench swarm --nodes 8 --size 128MiB --rate 20MB/s
  eagle-bench swarm --nodes 16 --size 256MiB --rate 10MB/s --json swarm-16.json
  eagle-bench swarm --nodes 8 --size 1GiB --rate unlimited --encryption none

Exit code 0 only if every node got the whole blob with the right digest. The fields of the JSON are
described in docs/benchmarks.md.")]
pub(crate) struct SwarmArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Time over which the nodes start one after another, evenly, as in 5s: the first at 0, the last at its end
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) stagger: Duration,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench pull --local --nodes 4 --size 64MiB --warm-up 1 --html pulls.html
  eagle-bench pull --local --nodes 4 --size 64MiB --unique
  eagle-bench pull --local --runtime docker --concurrency 1 --iterations 10
  eagle-bench pull --image docker.io/library/debian:12 --proxy http://127.0.0.1:43002 --concurrency 1,10
  eagle-bench pull --image registry.example:5000/app:1 --direct http://registry.example:5000 \\
      --proxy http://node-1:43002 --proxy http://node-2:43002 --csv pulls.csv --json pulls.json

A pull is the manifest (of linux/amd64 where there are several), the configuration and the layers, three at
a time, with every digest checked; the content is thrown away. Proxies keep what they have pulled: only the
first pull of an image through a proxy is a cold one.")]
pub(crate) struct PullArgs {
    /// The image, as in docker.io/library/debian:12
    #[arg(long, value_name = "REF", required_unless_present = "local", conflicts_with = "local")]
    pub(crate) image: Option<ImageReference>,
    /// Also pull directly from the registry, at this URL if it is not https://NAME; the only series if no proxy is given
    #[arg(long, value_name = "URL", num_args = 0..=1, conflicts_with = "local")]
    #[expect(clippy::option_option, reason = "clap's form of a flag with an optional value")]
    pub(crate) direct: Option<Option<Url>>,
    /// A proxy to pull through, as in http://127.0.0.1:43002; repeatable, used in turn
    #[arg(long = "proxy", value_name = "URL", conflicts_with = "local")]
    pub(crate) proxies: Vec<Url>,
    /// Numbers of clients that pull at the same time, one step after the other
    #[arg(long, value_delimiter = ',', default_value = "1,10,30,50,100", value_name = "N,...",
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency: Vec<u32>,
    /// Pulls through each proxy, and from the registry, before the first step, which do not count
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) warm_up: u32,
    /// Generate an image for each iteration, so that nobody has it when its first client asks; with --local
    #[arg(long, requires = "local")]
    pub(crate) unique: bool,
    /// Let a container runtime of this machine pull, each time without the image; only the whole time is known then
    #[arg(long, value_enum, value_name = "RUNTIME")]
    pub(crate) runtime: Option<Runtime>,
    /// Pulls of every client in a step
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) iterations: u32,
    /// Write a line per pull to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
    /// Start a registry, a tracker, a seeder and proxies on this machine and pull from them
    #[arg(long)]
    pub(crate) local: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct FloorArgs {
    /// Bytes to move
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    pub(crate) size: Size,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench cache
  eagle-bench cache --victims 10000 --json cache.json

Files are written below TMPDIR and synced as the roles do, so the disk there matters for evictions.")]
pub(crate) struct CacheArgs {
    /// Entries of the cache whose bookkeeping is measured
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) entries: u64,
    /// Size of the blob that is read in each way
    #[arg(long, default_value = "256MiB", value_name = "SIZE")]
    pub(crate) size: Size,
    /// Blobs on disk at the start that is measured
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) blobs: u64,
    /// Blobs that are evicted at once while others are read
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) victims: u64,
    /// Times that they are
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench serve
  eagle-bench serve --rounds 9 --seconds 2 --json serve.json

Both servers send the very same files, in turn, round by round; the figures are medians of the rounds. Without
nginx on this machine the proxy is measured alone.")]
pub(crate) struct ServeArgs {
    /// Size of the large blob, a multiple of 512 and at least 2048
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    pub(crate) large: Size,
    /// Size of the small blob, at least 1KiB
    #[arg(long, default_value = "1KiB", value_name = "SIZE", value_parser = small_blob)]
    pub(crate) small: Size,
    /// Numbers of clients that ask at the same time, one measurement for each
    #[arg(long, value_delimiter = ',', default_value = "1,32", value_name = "N,...",
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) clients: Vec<u32>,
    /// Rounds; in each, every measurement is made with either server
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Length of one measurement, seconds
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS", value_parser = measurement_seconds)]
    pub(crate) seconds: f64,
    /// The nginx program; looked for unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) nginx: Option<PathBuf>,
    /// The eagle program; the one beside this program unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) eagle: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
    /// Keep logs and configurations of all processes in this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) keep_logs: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench sim --plan benches/plans/flash-1k.toml
  eagle-bench sim --plan benches/plans/kraken.toml --json kraken.json --svg kraken.svg --seed 2
  eagle-bench sim --plan benches/plans/two-regions.toml --policy both

The same plan and seed give the same trace, byte for byte. Plans and the fields of the JSON are described in
docs/benchmarks.md.")]
pub(crate) struct SimArgs {
    /// What to simulate, a TOML file
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: PathBuf,
    /// Seed of all random choices; the plan's own unless given
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Whether the nodes know where they are; `both` runs the plan twice and compares; a plan that has a target for
    /// that is run so unless this is given
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(crate) policy: Option<SimPolicy>,
    /// Take this share of the plan's nodes and bytes, from 0 to 1, for a quick look
    #[arg(long, default_value_t = 1.0, value_name = "SHARE", value_parser = share)]
    pub(crate) scale: f64,
    #[command(flatten)]
    pub(crate) output: Output,
    /// Draw completion over time and the spread of pieces to this file as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

/// What a simulated cluster knows of its topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SimPolicy {
    /// Nodes and tracker go by the places of the plan
    Topology,
    /// They take all nodes to be in one place
    Blind,
    /// First the one, then the other
    Both,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("a number above 0 and at most 1".to_owned()),
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench limits
  eagle-bench limits --rates 8KiB/s,50MiB/s --seconds 10 --no-processes --json limits.json

Each rate is measured as a download limit and as an upload limit, between nodes of this process that only move
bytes; what four blobs get of a limit, and how fast a change is in effect, also with a proxy and a seeder.")]
pub(crate) struct LimitsArgs {
    /// The limits to measure
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "8KiB/s,64KiB/s,1MiB/s,50MiB/s,500MiB/s,5GiB/s",
        value_name = "RATE,..."
    )]
    pub(crate) rates: Vec<Rate>,
    /// How long each is measured, seconds; at least 1.5, since the windows have one second
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS", value_parser = limit_seconds)]
    pub(crate) seconds: f64,
    /// How pieces travel between nodes
    #[arg(long, value_enum, default_value_t = Encryption::Tls, value_name = "MODE")]
    pub(crate) encryption: Encryption,
    /// Leave out what needs a proxy and a seeder
    #[arg(long)]
    pub(crate) no_processes: bool,
    /// The eagle program; the one beside this program unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) eagle: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
    /// Keep logs and configurations of all processes in this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) keep_logs: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench tracker
  eagle-bench tracker --peers 1000 --blobs 1000 --blobs-per-peer 100 --duration 3s --no-expiry --json tracker.json

The tracker and the nodes have a core each where the machine has two. What the nodes have and say is described in
docs/benchmarks.md.")]
pub(crate) struct TrackerArgs {
    /// Nodes of the cluster
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

#[derive(Debug, Args)]
pub(crate) struct NothingArgs {
    /// Written once it listens
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct OriginArgs {
    /// Size of a layer of the image; repeatable
    #[arg(long = "layer", value_name = "SIZE", required = true)]
    pub(crate) layers: Vec<Size>,
    /// Images to generate, alike but for their content
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) images: u32,
    /// Least size of the image's configuration
    #[arg(long, default_value = "0", value_name = "SIZE")]
    pub(crate) config_size: Size,
    /// Written once it listens
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct OwnedArgs {
    /// Run it on this core only
    #[arg(long, value_name = "NUMBER")]
    pub(crate) core: Option<usize>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

/// Modes of `p2p.encryption`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encryption {
    /// TLS between peers that prove who they are.
    Tls,
    /// In clear, for trusted networks.
    None,
}

impl Encryption {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::None => "none",
        }
    }
}

/// The seeder's `piece_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceLength {
    Auto,
    Fixed(u32),
}

impl PieceLength {
    /// How the seeder cuts a blob of `size` bytes: as it is told, or by itself where there would be too many pieces.
    pub(crate) fn geometry(self, size: u64) -> Result<Geometry, eagle_core::geometry::GeometryError> {
        match self {
            Self::Auto => Geometry::auto(size),
            Self::Fixed(length) => Geometry::new(size, length).or_else(|_| Geometry::auto(size)),
        }
    }
}

impl std::fmt::Display for PieceLength {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(length) => Size(u64::from(*length)).fmt(f),
        }
    }
}

/// The small blob is an image's configuration, which has some hundred bytes by itself.
fn small_blob(text: &str) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|error| format!("{error}"))?;
    let range = 1 << 10..=64 << 20;
    if range.contains(&size.0) { Ok(size) } else { Err("it has to be from 1KiB to 64MiB".to_owned()) }
}

fn measurement_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.05..=600.0).contains(&seconds) { Ok(seconds) } else { Err("it has to be from 0.05 to 600".to_owned()) }
}

fn limit_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (1.5..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("it has to be from 1.5 to 3600".to_owned()) }
}

fn piece_length(text: &str) -> Result<PieceLength, String> {
    if text == "auto" {
        return Ok(PieceLength::Auto);
    }
    let size: Size = text.parse().map_err(|error| format!("{error}"))?;
    let length = u32::try_from(size.0).map_err(|error| error.to_string())?;
    Geometry::new(0, length).map_err(|error| error.to_string())?;
    Ok(PieceLength::Fixed(length))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn piece_lengths() {
        assert_eq!(piece_length("auto"), Ok(PieceLength::Auto));
        assert_eq!(piece_length("1MiB"), Ok(PieceLength::Fixed(1 << 20)));
        assert_eq!(PieceLength::Fixed(1 << 20).to_string(), "1MiB");
        for bad in ["3MiB", "1", "32MiB", "many", "8GiB"] {
            assert!(piece_length(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn direct_takes_a_url_or_none() {
        let parse = |args: &[&str]| match Cli::try_parse_from(args).map(|cli| cli.command) {
            Ok(Command::Pull(args)) => args.direct,
            other => panic!("{other:?}"),
        };
        assert_eq!(parse(&["eagle-bench", "pull", "--image", "debian:12"]), None);
        assert_eq!(parse(&["eagle-bench", "pull", "--image", "debian:12", "--direct"]), Some(None));
        let url = parse(&["eagle-bench", "pull", "--image", "debian:12", "--direct", "http://127.0.0.1:5000"]);
        assert_eq!(url.flatten().map(|url| url.to_string()).as_deref(), Some("http://127.0.0.1:5000/"));
    }
}
