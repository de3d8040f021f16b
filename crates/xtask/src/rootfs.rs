//! Small root file systems out of this machine's own programs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::process::succeed;

const DEADLINE: Duration = Duration::from_secs(60);

/// Puts a program at a path below `root`, with the libraries that it needs at the paths where it looks for them.
pub(crate) fn add_program(root: &Path, program: &Path, at: &str) -> Result<()> {
    copy(program, root, Path::new(at))?;
    // Lines like `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)` and `/lib64/ld-linux-x86-64.so.2 (0x...)`.
    let listed = succeed(Command::new("ldd").arg(program), DEADLINE)?;
    for line in listed.lines() {
        let words = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(library) = words.map(Path::new) {
            copy(library, root, library)?;
        }
    }
    Ok(())
}

/// Puts a file at a path below `root`, whatever links lead to it here.
pub(crate) fn copy(from: &Path, root: &Path, at: &Path) -> Result<()> {
    let to: PathBuf = root.join(at.strip_prefix("/").unwrap_or(at));
    fs::create_dir_all(to.parent().context("no directory")?)?;
    fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
