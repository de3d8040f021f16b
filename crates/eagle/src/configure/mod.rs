//! `eagle configure`: points a container runtime of this machine at its proxy, and undoes that.

mod activate;
mod change;
mod containerd;
mod containers;
mod docker;
mod hosts;
mod record;
mod root;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::Result;
use eagle_core::Digest;
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

const CRIO_RELOAD: &str = "systemctl reload crio";

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

/// What becomes of the files of runtimes when the mirror is put into them, each read as every kind of file: docker's, containerd's two, that of
/// podman and CRI-O. `Ok(None)` for what has the mirror already.
///
/// # Errors
/// Why a file is left alone.
pub fn edit_runtime_files(text: &str) -> [(&'static str, Result<Option<String>, String>); 4] {
    // Neither can be anything else than a name.
    let name = |text: &str| text.parse::<RegistryName>().map_err(|error| error.to_string());
    let podman = || {
        let wanted = Wanted { address: name("127.0.0.1:43002")?, registries: Vec::new() };
        containers::edit(Some(text), &[name("docker.io")?], &wanted)
    };
    let url = "http://127.0.0.1:43002";
    [
        ("daemon.json", docker::edit(Some(text), url)),
        ("hosts.toml", hosts::edit(Some(text), url)),
        ("config.toml", containerd::edit(Some(text))),
        ("registries.conf", podman()),
    ]
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
        let plan = match self {
            Self::Docker => docker::plan(root, wanted),
            Self::Containerd => containerd::plan(root, wanted),
            Self::Podman => containers::plan(root, wanted, ""),
            Self::Crio => containers::plan(root, wanted, CRIO_RELOAD),
        };
        Ok(Plan { after_undo: self.after_undo(), ..plan? })
    }

    /// How the runtime forgets a mirror that its files no longer have. containerd reads `hosts.toml` at every pull.
    const fn after_undo(self) -> Option<&'static str> {
        match self {
            Self::Docker => Some(docker::RELOAD),
            Self::Crio => Some(CRIO_RELOAD),
            Self::Containerd | Self::Podman => None,
        }
    }

    /// The same of every runtime with this one's record.
    const fn after_undo_of_record(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &[docker::RELOAD],
            Self::Containerd => &[],
            Self::Podman | Self::Crio => &[CRIO_RELOAD],
        }
    }
}

/// How a file that Eagle wrote for a runtime looks now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// Under which name it was configured.
    pub(crate) runtime: &'static str,
    /// Where it is on this system.
    pub(crate) path: PathBuf,
    pub(crate) state: WrittenState,
    /// Whether the text names the address, `HOST:PORT`.
    pub(crate) names_address: bool,
}

/// What has become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WrittenState {
    /// As Eagle wrote it.
    Same,
    /// Somebody has changed it since.
    Edited,
    /// It is not there any more.
    Gone,
}

/// The files that were written for runtimes of the system below `root`, and the commands that these runtimes still need.
///
/// # Errors
/// When a record or a file cannot be read.
pub(crate) fn written(root: &Path, address: &str) -> Result<(Vec<Written>, Vec<String>)> {
    let root = Root::new(root)?;
    let (mut files, mut pending) = (Vec::new(), Vec::new());
    // One name for podman and CRI-O.
    for runtime in [RuntimeArg::Docker, RuntimeArg::Containerd, RuntimeArg::Podman].map(RuntimeArg::record) {
        let record = Record::load(&root, runtime)?;
        pending.extend_from_slice(record.pending());
        for entry in record.entries() {
            let found = root.read(&entry.path)?;
            let state = match &found {
                None => WrittenState::Gone,
                Some(found) if Digest::of(&found.content) == entry.written => WrittenState::Same,
                Some(_) => WrittenState::Edited,
            };
            let text = found.map(|found| String::from_utf8_lossy(&found.content).into_owned()).unwrap_or_default();
            let (path, names_address) = (root.shown(&entry.path), text.contains(address));
            files.push(Written { runtime, path, state, names_address });
        }
    }
    Ok((files, pending))
}

/// Carries out the command; what it did goes to standard output.
pub(crate) fn run(args: &ConfigureArgs) -> Result<()> {
    carry_out(args, Root::new(&args.root)?, |root, command| {
        let root = activate::enter(root, command)?;
        activate::run(command)?;
        Ok(root)
    })
}

/// `tell` has the runtime take notice by a command. The system's root is what it returns after that, as this process sees it.
fn carry_out(args: &ConfigureArgs, root: Root, mut tell: impl FnMut(Root, &str) -> Result<Root>) -> Result<()> {
    let wanted = Wanted { address: args.address.clone(), registries: args.registries.clone() };
    let mut record = Record::load(&root, args.runtime.record())?;
    if args.undo {
        return undo(args, root, &mut record, tell);
    }
    let plan = args.runtime.plan(&root, &wanted)?;
    if args.check {
        return report(&change::check(&root, &plan)?, "not configured");
    }
    let outcome = change::apply(&root, &mut record, &plan)?;
    report(&outcome, "not configured")?;
    for note in &plan.notes {
        println!("note: {note}");
    }
    if !args.activate {
        return take_notice(args, root, &outcome.activate, &mut tell).map(drop);
    }
    // Those of an earlier run too: the files are right by now, but the runtime does not know.
    let root = take_notice(args, root, record.pending(), &mut tell)?;
    if record.pending().is_empty() { Ok(()) } else { record.settled(&root) }
}

fn undo(
    args: &ConfigureArgs,
    root: Root,
    record: &mut Record,
    mut tell: impl FnMut(Root, &str) -> Result<Root>,
) -> Result<()> {
    // What applying left to be done is of no use once the files are back; what undoing left is.
    record.expect_only(args.runtime.after_undo_of_record());
    let outcome = change::undo(&root, record, args.runtime.after_undo())?;
    if outcome == Outcome::default() && record.pending().is_empty() {
        println!("nothing to undo: eagle has changed no file for this runtime");
    }
    let kept = report(&outcome, "not undone");
    // Also when a file is kept: the others are back, and a run before this one may have ended here.
    let told = take_notice(args, root, record.pending(), &mut tell).and_then(|root| record.settled(&root));
    match (kept, told) {
        (Err(kept), Err(told)) => Err(Exit::failed(format!("{kept:#}\n{told:#}")).into()),
        (kept, told) => kept.and(told),
    }
}

fn report(outcome: &Outcome, failed: &str) -> Result<()> {
    for line in &outcome.lines {
        println!("{line}");
    }
    if !outcome.problems.is_empty() {
        return Err(Exit::failed(format!("{failed}:\n{}", outcome.problems.join("\n"))).into());
    }
    Ok(())
}

/// Runs the commands, or says which to run. The system's root as this process sees it after that.
fn take_notice(
    args: &ConfigureArgs,
    mut root: Root,
    commands: &[impl AsRef<str>],
    tell: &mut impl FnMut(Root, &str) -> Result<Root>,
) -> Result<Root> {
    for command in commands.iter().map(AsRef::as_ref) {
        if args.activate {
            root = tell(root, command)?;
            println!("done: {command}");
        } else {
            println!("now run: {command}");
        }
    }
    Ok(root)
}
