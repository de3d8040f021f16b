//! `eagle configure`: points a container runtime of this machine at its proxy, and undoes that.

mod change;
mod containerd;
mod containers;
mod docker;
mod hosts;
mod record;
mod root;

use anyhow::Result;
use eagle_registry::RegistryName;

use self::{
    change::{Outcome, Plan},
    record::Record,
    root::Root,
};
use crate::{
    cli::{ConfigureArgs, RuntimeArg},
    exit::Exit,
};

/// What a runtime should use.
#[derive(Debug, Clone)]
struct Wanted {
    /// Where the proxy listens, `HOST:PORT`.
    address: RegistryName,
    /// For which registries; none means what the runtime does by default.
    registries: Vec<RegistryName>,
}

impl Wanted {
    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The mirror of a registry for runtimes that do not say which registry they mean.
    fn location(&self, registry: &RegistryName) -> String {
        format!("{}/{registry}", self.address)
    }
}

impl RuntimeArg {
    /// Under which name changes are recorded: podman and CRI-O read the same files.
    const fn record(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Podman | Self::Crio => "containers",
        }
    }

    fn plan(self, root: &Root, wanted: &Wanted) -> Result<Plan> {
        match self {
            Self::Docker => docker::plan(root, wanted),
            Self::Containerd => containerd::plan(root, wanted),
            Self::Podman => containers::plan(root, wanted, ""),
            Self::Crio => containers::plan(root, wanted, "systemctl reload crio"),
        }
    }
}

/// Carries out the command; what it did goes to standard output.
pub(crate) fn run(args: &ConfigureArgs) -> Result<()> {
    let root = Root::new(&args.root)?;
    let wanted = Wanted { address: args.address.clone(), registries: args.registries.clone() };
    let mut record = Record::load(&root, args.runtime.record())?;
    if args.undo {
        let outcome = change::undo(&root, &mut record)?;
        if outcome == Outcome::default() {
            println!("nothing to undo: eagle has changed no file for this runtime");
        }
        return finish(&outcome, &[], "not undone");
    }
    let plan = args.runtime.plan(&root, &wanted)?;
    if args.check {
        return finish(&change::check(&root, &plan)?, &[], "not configured");
    }
    finish(&change::apply(&root, &mut record, &plan)?, &plan.notes, "not configured")
}

fn finish(outcome: &Outcome, notes: &[String], failed: &str) -> Result<()> {
    for line in &outcome.lines {
        println!("{line}");
    }
    if !outcome.problems.is_empty() {
        return Err(Exit::failed(format!("{failed}:\n{}", outcome.problems.join("\n"))).into());
    }
    for command in &outcome.activate {
        println!("now run: {command}");
    }
    for note in notes {
        println!("note: {note}");
    }
    Ok(())
}
