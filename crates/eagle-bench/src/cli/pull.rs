//! `eagle-bench pull`.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;
use eagle_registry::ImageReference;
use url::Url;

use super::ClusterArgs;
use crate::{pull::Runtime, report::Output};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle-bench pull --local --nodes 4 --size 64MiB --warm-up 1 --html pulls.html
  eagle-bench pull --local --nodes 4 --size 64MiB --unique
  eagle-bench pull --local --runtime docker --concurrency 1 --iterations 10
  eagle-bench pull --image docker.io/library/debian:12 --proxy http://127.0.0.1:43002 --concurrency 1,10
  eagle-bench pull --image docker.io/library/debian:12 --proxy http://127.0.0.1:43002 --token-file token \\
      --agent http://node-1:43010 --agent http://node-2:43010 --concurrency 2,20,200
  eagle-bench pull --image registry.example:5000/app:1 --direct http://registry.example:5000 \\
      --proxy http://node-1:43002 --proxy http://node-2:43002 --csv pulls.csv --json pulls.json

A pull is the manifest (of linux/amd64 where there are several), the configuration and the layers, three at
a time, with every digest checked; the content is thrown away. Proxies keep what they have pulled: only the
first pull of an image through a proxy is a cold one.

Agents (eagle-bench agent, on other machines) take an equal share of the clients of each step and begin at the same
moment. They are who connects to registry and proxies: 127.0.0.1 is the agent's own machine. The token may also be
in EAGLE_BENCH_TOKEN. If an agent is lost, the result says so and is a failure.")]
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
    /// An agent that pulls a share, as in http://node-1:43010; repeatable
    #[arg(long = "agent", value_name = "URL", value_parser = agent_url)]
    pub(crate) agents: Vec<Url>,
    /// The token that the agents want, in a file
    #[arg(long, value_name = "FILE", requires = "agents")]
    pub(crate) token_file: Option<PathBuf>,
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
    /// Where registry and proxies of --local listen; for agents on other machines one that they reach
    #[arg(long, value_name = "IP", requires = "local", default_value = "127.0.0.1")]
    pub(crate) local_address: IpAddr,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

fn agent_url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{error}"))?;
    let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if url.scheme() == "http" && url.has_host() && plain && url.password().is_none() {
        Ok(url)
    } else {
        Err("an agent is at http://HOST:PORT".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

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

    #[test]
    fn agents_are_urls_of_hosts() {
        assert_eq!(agent_url("http://node-1:43010").map(|url| url.to_string()).as_deref(), Ok("http://node-1:43010/"));
        for bad in ["node-1:43010", "https://node-1", "http://node-1/path", "http://a:b@node-1", "http://", "x"] {
            assert!(agent_url(bad).is_err(), "{bad}");
        }
    }
}
