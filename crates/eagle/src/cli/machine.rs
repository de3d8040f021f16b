//! Arguments of the commands that set up a machine.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use eagle_registry::RegistryName;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle configure docker
  eagle configure containerd               every registry
  eagle configure podman --registry docker.io --registry quay.io
  eagle configure crio --check             exit code 1 and what is missing, unless it is configured
  eagle configure docker --undo            every file as it was, byte for byte
  eagle configure containerd --root /host  the system that is mounted there
  eagle configure docker --activate        and have docker read it

Other settings in the files stay as they are; the files as they were before are kept below
/var/lib/eagle/configure. When Eagle does not answer, every runtime goes on to the registry itself.")]
pub(crate) struct ConfigureArgs {
    /// The runtime
    #[arg(value_name = "RUNTIME")]
    pub(crate) runtime: RuntimeArg,
    /// Change nothing; say what is missing, and fail if anything is
    #[arg(long)]
    pub(crate) check: bool,
    /// Put the files back as they were; those that somebody has changed since are kept
    #[arg(long, conflicts_with_all = ["check", "registries", "address"])]
    pub(crate) undo: bool,
    /// Run the command by which the runtime takes notice, in that system; without this it is printed
    #[arg(long, conflicts_with = "check")]
    pub(crate) activate: bool,
    /// Once it is done, stay until SIGTERM comes: containers of a DaemonSet may not end
    #[arg(long)]
    pub(crate) stay: bool,
    /// Root of the system to configure
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) root: PathBuf,
    /// A registry to use the proxy for; repeatable. Without any: every one for containerd, Docker Hub for the others
    #[arg(long = "registry", value_name = "NAME")]
    pub(crate) registries: Vec<RegistryName>,
    /// Where the proxy listens [proxy.listen]
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:43002")]
    pub(crate) address: RegistryName,
}

/// A container runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuntimeArg {
    Docker,
    Containerd,
    Podman,
    Crio,
}

/// A role that can be a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServiceRole {
    Proxy,
    Standalone,
    Seeder,
    Tracker,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle install-service --print                          the unit of a proxy
  eagle install-service --role standalone
  eagle install-service --role proxy --config /etc/eagle/proxy.yaml

The service runs as a user of its own, which has to exist:
  useradd --system --no-create-home --shell /usr/sbin/nologin eagle")]
pub(crate) struct InstallServiceArgs {
    /// Print the unit instead of writing it
    #[arg(long)]
    pub(crate) print: bool,
    /// What the service is
    #[arg(long, value_name = "ROLE", default_value = "proxy")]
    pub(crate) role: ServiceRole,
    /// The role's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/eagle/eagle.yaml")]
    pub(crate) config: PathBuf,
    /// The user that the service runs as
    #[arg(long, value_name = "NAME", default_value = "eagle")]
    pub(crate) user: String,
    /// The program; this one unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) program: Option<PathBuf>,
    /// Where units are
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system")]
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle prepare-data --user 65532 --group 65532 /var/lib/eagle/proxy

For an init container that is root beside a role that is not. What is in the directory stays as it is.")]
pub(crate) struct PrepareDataArgs {
    /// The directory; made when it is not there
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// Number of the user
    #[arg(long, value_name = "UID")]
    pub(crate) user: u32,
    /// Number of the group
    #[arg(long, value_name = "GID")]
    pub(crate) group: u32,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle completions bash > /usr/share/bash-completion/completions/eagle
  eagle completions zsh > /usr/share/zsh/vendor-completions/_eagle
  eagle completions fish > ~/.config/fish/completions/eagle.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle man | man -l -
  eagle man --dir /usr/share/man/man1      eagle.1, eagle-proxy.1 and so on")]
pub(crate) struct ManArgs {
    /// Write a page for every command into this directory, instead of printing the first
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}
