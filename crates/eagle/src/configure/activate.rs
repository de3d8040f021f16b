//! Having a runtime take notice of its files.

use std::{
    os::unix::fs::chroot,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use super::root::Root;
use crate::exit::Exit;

/// Where systems keep `systemctl`; a container's own path may lack the directory.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the root that of this process, so that programs of that system run in it; the root by its name from then on.
pub(super) fn enter(root: Root, command: &str) -> Result<Root> {
    if root.path() == Path::new("/") {
        return Ok(root);
    }
    let shown = root.path().display();
    chroot(root.path()).with_context(|| format!("cannot change into {shown} to run `{command}`"))?;
    std::env::set_current_dir("/").context("there is no /")?;
    Root::new(Path::new("/"))
}

/// Runs a command of the system that was entered.
///
/// systemctl talks to the system's own systemd through a socket below `/run`, so the root has to have that.
pub(super) fn run(command: &str) -> Result<()> {
    let mut words = command.split_whitespace();
    let program = words.next().unwrap_or_default();
    let output = Command::new(program)
        .args(words)
        .env("PATH", PATH)
        // systemctl does nothing in a chroot unless it is told that this one is meant.
        .env("SYSTEMD_IGNORE_CHROOT", "1")
        // It asks nothing, and that system may have no /dev to open something else from.
        .stdin(Stdio::inherit())
        .output();
    let problem = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => error.to_string(),
    };
    Err(Exit::failed(format!(
        "the files are right, but `{command}` failed, so the runtime does not know yet: {problem}\nrun what does the same \
         here, or try again"
    ))
    .into())
}
