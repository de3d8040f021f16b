//! `eagle-bench swarm`.

use std::time::Duration;

use clap::Args;

use super::ClusterArgs;
use crate::report::Output;

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
