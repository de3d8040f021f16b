//! The command line.

mod agent;
mod cache;
mod cluster;
mod floor;
mod hidden;
mod limits;
#[cfg(test)]
mod pages;
mod pull;
mod serve;
mod sim;
mod swarm;
mod tracker;

use clap::{Parser, Subcommand};

pub(crate) use self::{
    agent::AgentArgs,
    cache::CacheArgs,
    cluster::{ClusterArgs, Encryption, PieceLength},
    floor::FloorArgs,
    hidden::{NothingArgs, OriginArgs, OwnedArgs},
    limits::LimitsArgs,
    pull::PullArgs,
    serve::ServeArgs,
    sim::{SimArgs, SimPolicy},
    swarm::SwarmArgs,
    tracker::TrackerArgs,
};
use crate::{compare::CompareArgs, show::ReportArgs, suite::SuiteArgs};

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
  eagle-bench agent --listen 192.0.2.7:43010 --token-file token
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
    /// Pull as a controller on another machine says (pull --agent).
    Agent(AgentArgs),
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
