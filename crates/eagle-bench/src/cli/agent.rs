//! `eagle-bench agent`.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  openssl rand -hex 32 > token
  eagle-bench agent --listen 192.0.2.7:43010 --token-file token
  eagle-bench pull --image docker.io/library/debian:12 --proxy http://127.0.0.1:43002 --token-file token \\
      --agent http://192.0.2.7:43010

An agent has one controller at a time, of its own version, and stops what it does when the controller is gone. It pulls
whatever a controller names, and what both say goes over the network in clear: it is for test networks. The token may also
be in EAGLE_BENCH_TOKEN; without one an agent listens for its own machine only.")]
pub(crate) struct AgentArgs {
    /// Where to wait for a controller
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:43010")]
    pub(crate) listen: SocketAddr,
    /// The token that a controller has to have, in a file
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}
