//! The command line.

mod images;
mod machine;
#[cfg(test)]
mod pages;
mod top;
mod trackers;

use std::{net::IpAddr, net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use eagle_core::units::{Rate, Size};
use eagle_registry::RegistryName;
use url::Url;

pub(crate) use self::{
    images::{CacheArgs, CacheCommand, PreheatArgs},
    machine::{CompletionsArgs, ConfigureArgs, InstallServiceArgs, ManArgs, PrepareDataArgs, RuntimeArg, ServiceRole},
    top::TopArgs,
    trackers::AskTrackersArgs,
};
use crate::telemetry::LogFormat;

/// Peer-to-peer distribution of container images.
///
/// Every machine fetches the pieces of an image from its neighbours, so that the registry serves each blob about once,
/// whatever the number of machines.
#[derive(Debug, Parser)]
#[command(name = "eagle", version, max_term_width = 110, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

const EXAMPLES: &str = "\
Examples:
  eagle demo                               an image, pulled through six proxies at once
  eagle standalone                         all roles in one process; a mirror on 127.0.0.1:43002
  eagle cluster-key --file cluster.key     what all machines of a cluster share, and nobody else has
  eagle proxy --cluster-key-file cluster.key --seeder http://seeder:55008 --tracker http://tracker:6969
  eagle config example proxy > eagle.yaml  start a configuration file
  eagle config show --config eagle.yaml    what is in effect, and where each value comes from
  eagle configure containerd               let containerd on this machine use the proxy";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tell peers about each other: which node owns which pieces of which blob.
    Tracker(TrackerArgs),
    /// Fetch blobs from the registries, once per cluster, and be the first source of each.
    Seeder(SeederArgs),
    /// Serve the container runtime of this machine, from peers.
    Proxy(ProxyArgs),
    /// Run tracker, seeder and proxy in this one process.
    Standalone(StandaloneArgs),
    /// Show it at work: a registry, a tracker, a seeder and proxies, and a pull through all at once.
    Demo(DemoArgs),
    /// Have seeders, and nodes if wanted, fetch images before anybody pulls them.
    Preheat(PreheatArgs),
    /// Show, remove, pin or verify what a proxy or seeder has cached.
    Cache(CacheArgs),
    /// Ask a running role how it is.
    Status(StatusArgs),
    /// Look for what is wrong with this machine's part of the cluster, and say what to do.
    Doctor(DoctorArgs),
    /// Watch a cluster: swarms, nodes, what goes from where to where, and who serves whom.
    Top(TopArgs),
    /// Check, show or start a configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Point a container runtime of this machine at its proxy, or undo that.
    Configure(ConfigureArgs),
    /// Make a cluster key, which nodes know each other by.
    ClusterKey(ClusterKeyArgs),
    /// Make the certificate authority of the forward proxy.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Install a role as a service of systemd, or print the unit.
    InstallService(InstallServiceArgs),
    /// Give a role's data directory to the user that the role runs as.
    PrepareData(PrepareDataArgs),
    /// Print what completes commands and flags in a shell.
    Completions(CompletionsArgs),
    /// Print the manual, or write a page for each command.
    Man(ManArgs),
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogArgs {
    /// error, warn, info, debug, trace, or a filter such as info,eagle_p2p=debug [log.level]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Text for a person, JSON lines for a collector; auto is text on a terminal [log.format]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Configuration")]
pub(crate) struct SourceArgs {
    /// YAML file; variables EAGLE_SECTION__KEY and flags win over it
    #[arg(long, short, env = "EAGLE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// File with the cluster key, which members know each other by [cluster.key_file]
    #[arg(long, value_name = "FILE")]
    pub(crate) cluster_key_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Addresses")]
pub(crate) struct ListenArgs {
    /// Address of the role's HTTP side; port 0 picks a free one [ROLE.listen]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
    /// Address of /healthz, /readyz, /metrics, /version, /status, /limits and /cache [ROLE.admin]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin_listen: Option<SocketAddr>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Addresses")]
pub(crate) struct PeerListenArgs {
    /// Address where peers connect [ROLE.p2p_listen]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) p2p_listen: Option<SocketAddr>,
    /// Address where pieces are sent and received [ROLE.data_listen]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) data_listen: Option<SocketAddr>,
    /// Address that peers are told, where it is not the one they see [ROLE.advertise]
    #[arg(long, value_name = "IP")]
    pub(crate) advertise: Option<IpAddr>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Node")]
pub(crate) struct NodeArgs {
    /// Directory for blobs and the node's identity [ROLE.data_dir]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Most bytes to keep on disk, as in 100GiB [ROLE.cache_limit]
    #[arg(long, value_name = "SIZE")]
    pub(crate) cache_limit: Option<Size>,
    /// Most that this host downloads, as in 50MiB/s, or unlimited [ROLE.download_rate]
    #[arg(long, value_name = "RATE")]
    pub(crate) download_rate: Option<Rate>,
    /// Most that this host uploads, as in 50MiB/s, or unlimited [ROLE.upload_rate]
    #[arg(long, value_name = "RATE")]
    pub(crate) upload_rate: Option<Rate>,
    /// How pieces travel: over TLS, or in clear on a network that is trusted [p2p.encryption]
    #[arg(long, value_name = "MODE")]
    pub(crate) encryption: Option<EncryptionArg>,
    #[arg(
        long = "registry",
        value_name = "NAME=URL",
        value_parser = registry,
        help = "A registry and where it is, as in docker.io=https://mirror.example; repeatable [registries]"
    )]
    pub(crate) registries: Vec<(String, Url)>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct TrackerUrlArgs {
    /// URL of a tracker, as in http://tracker:6969; repeatable [ROLE.trackers]
    #[arg(long = "tracker", value_name = "URL")]
    pub(crate) trackers: Vec<Url>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct SeederUrlArgs {
    /// URL of a seeder, as in http://seeder:55008; repeatable [ROLE.seeders]
    #[arg(long = "seeder", value_name = "URL")]
    pub(crate) seeders: Vec<Url>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Process")]
pub(crate) struct RunArgs {
    /// Write the bound addresses to this file, as JSON, once ready
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle tracker
  eagle tracker --listen 0.0.0.0:6969 --admin-listen 0.0.0.0:6970 --config /etc/eagle/eagle.yaml")]
pub(crate) struct TrackerArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle seeder --tracker http://tracker:6969
  eagle seeder --tracker http://tracker:6969 --registry docker.io=https://registry-1.docker.io --cache-limit 500GiB
  EAGLE_SEEDER__UPLOAD_RATE=unlimited eagle seeder --config /etc/eagle/eagle.yaml")]
pub(crate) struct SeederArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) peers: PeerListenArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) trackers: TrackerUrlArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle proxy --seeder http://seeder:55008 --tracker http://tracker:6969
  eagle proxy --config /etc/eagle/eagle.yaml --upload-rate 20MiB/s

Then point the runtime at it, as in /etc/docker/daemon.json:
  { \"registry-mirrors\": [\"http://127.0.0.1:43002\"] }")]
pub(crate) struct ProxyArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) peers: PeerListenArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) trackers: TrackerUrlArgs,
    #[command(flatten)]
    pub(crate) seeders: SeederUrlArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle standalone --data-dir ./eagle-data
  eagle standalone --listen 127.0.0.1:5000 --registry docker.io=https://mirror.example

The proxy and the seeder ask the tracker and the seeder of this process unless others are configured. --listen and
--admin-listen are the proxy's; the other addresses come from the configuration.")]
pub(crate) struct StandaloneArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  eagle demo
  eagle demo --nodes 12 --size 512MiB --rate 20MB/s
  eagle demo --origin https://registry-1.docker.io --image library/debian:12
  eagle demo --keep                        stay up, to try docker, containerd or podman on it")]
pub(crate) struct DemoArgs {
    /// Proxies, each a node of the swarm
    #[arg(long, default_value_t = 6, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=200))]
    pub(crate) nodes: u16,
    /// Size of the generated image
    #[arg(long, default_value = "256MiB", value_name = "SIZE", conflicts_with = "origin")]
    pub(crate) size: Size,
    /// Layers of the generated image; the first holds most of it
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100), conflicts_with = "origin")]
    pub(crate) layers: u16,
    /// Limit of every node, up and down, or unlimited
    #[arg(long, default_value = "30MB/s", value_name = "RATE")]
    pub(crate) rate: Rate,
    /// Pull from this registry instead of the embedded one
    #[arg(long, value_name = "URL", requires = "image")]
    pub(crate) origin: Option<Url>,
    /// What to pull from it, as in library/debian:12
    #[arg(long, value_name = "IMAGE", requires = "origin")]
    pub(crate) image: Option<String>,
    /// How pieces travel between the nodes
    #[arg(long, value_enum, default_value_t = EncryptionArg::Tls, value_name = "MODE")]
    pub(crate) encryption: EncryptionArg,
    /// Stay up after the pull and print how to point docker, containerd and podman at it
    #[arg(long)]
    pub(crate) keep: bool,
    /// Print the result as JSON and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle status                             the proxy on this machine
  eagle status --admin 127.0.0.1:6970      a tracker
  eagle status --json | jq .state
  eagle status --tracker http://tracker:6969 --cluster-key-file /etc/eagle/cluster.key
                                           who is in the cluster, and what it holds
  eagle status --tracker http://a:6969 --tracker http://b:6969
                                           the same of trackers that have a memory each
  eagle status --config /etc/eagle/eagle.yaml
                                           the same of the trackers of this machine's proxy")]
pub(crate) struct StatusArgs {
    /// Admin address of the role
    #[arg(long, default_value = "http://127.0.0.1:43003", value_name = "URL", conflicts_with_all = ["trackers", "config"])]
    pub(crate) admin: String,
    #[command(flatten)]
    pub(crate) trackers: AskTrackersArgs,
    /// Print the answer as it is
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle doctor --config /etc/eagle/eagle.yaml
  eagle doctor --role seeder --config /etc/eagle/seeder.yaml
  eagle doctor --json | jq '.findings[] | select(.level == \"problem\")'

It changes nothing. Exit code 1 when there is a problem.")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// What runs on this machine
    #[arg(long, value_name = "ROLE", default_value = "proxy")]
    pub(crate) role: RoleArg,
    /// Root of the system whose container runtimes are looked at
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) root: PathBuf,
    /// Print the findings as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say what is wrong with a configuration, if anything.
    Check(ConfigArgs),
    /// Print the configuration in effect and where each value comes from.
    Show(ConfigShowArgs),
    /// Print a commented configuration with every key at its default.
    Example(ConfigExampleArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle config check --config /etc/eagle/eagle.yaml
  eagle config check --role proxy")]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// The role that will read it; all roles unless given
    #[arg(long, value_name = "ROLE", default_value = "all")]
    pub(crate) role: RoleArg,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) peers: PeerListenArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) trackers: TrackerUrlArgs,
    #[command(flatten)]
    pub(crate) seeders: SeederUrlArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle config show --config /etc/eagle/eagle.yaml
  EAGLE_PROXY__CACHE_LIMIT=20GiB eagle config show --role proxy --upload-rate 10MiB/s")]
pub(crate) struct ConfigShowArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Print JSON: the values, and the source of each by its path
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle config example proxy > eagle.yaml
  eagle config example all")]
pub(crate) struct ConfigExampleArgs {
    /// The role that the file is for
    #[arg(value_name = "ROLE", default_value = "all")]
    pub(crate) role: RoleArg,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Make a certificate authority, for intercepting connections to registries.
    Init(CaInitArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle ca init
  eagle ca init --dir /etc/eagle/ca --registry docker.io --registry ghcr.io

With --registry the authority can sign for those hosts and for no others, whoever gets hold of its key.")]
pub(crate) struct CaInitArgs {
    /// Directory for ca.pem and ca.key [proxy.forward.ca_dir]
    #[arg(long, value_name = "DIR", default_value = "/var/lib/eagle/ca")]
    pub(crate) dir: PathBuf,
    /// A registry that it may sign for; repeatable. Without any: for every host
    #[arg(long = "registry", value_name = "NAME")]
    pub(crate) registries: Vec<RegistryName>,
    /// Name in the certificate
    #[arg(long, value_name = "NAME", default_value = "Eagle proxy")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle cluster-key --file /etc/eagle/cluster.key
  eagle cluster-key >> /etc/eagle/cluster.key   the second of two, to change the key without a pause

Whoever has the key is a member of the cluster. Give it to every node, as cluster.key_file or EAGLE_CLUSTER_KEY.")]
pub(crate) struct ClusterKeyArgs {
    /// Write it to this new file that nobody else can read, instead of printing it [cluster.key_file]
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// A role, or the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleArg {
    Tracker,
    Seeder,
    Proxy,
    Standalone,
    All,
}

/// How pieces travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EncryptionArg {
    /// TLS 1.3; both ends prove who they are.
    Tls,
    /// In clear, with one-time tickets; for trusted networks.
    None,
}

impl EncryptionArg {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::None => "none",
        }
    }
}

fn registry(text: &str) -> Result<(String, Url), String> {
    let (name, url) = text.split_once('=').ok_or("write NAME=URL, as in docker.io=https://mirror.example")?;
    let url = url.parse::<Url>().map_err(|error| format!("{url:?} is not a URL: {error}"))?;
    Ok((name.to_owned(), url))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
