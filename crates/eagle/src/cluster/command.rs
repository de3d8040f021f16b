//! `eagle cluster-key`: a new cluster key.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context, Result, bail};
use eagle_cluster::ClusterKey;
use zeroize::Zeroizing;

use crate::cli::ClusterKeyArgs;

/// Nobody but the owner may read it: whoever has the key is a member.
const MODE: u32 = 0o600;

/// Prints a new key, or writes it to a file that is not there yet.
///
/// # Errors
/// When the system has no random numbers, or the file is there or cannot be written.
pub(crate) fn run(args: &ClusterKeyArgs) -> Result<()> {
    let key = ClusterKey::generate().context("the system gives no random numbers")?;
    let line = Zeroizing::new(format!("{}\n", *key.expose()));
    match &args.file {
        None => io::stdout().write_all(line.as_bytes()).context("the key cannot be printed"),
        Some(path) => {
            write(path, line.as_bytes())?;
            println!("{}: cluster key {}, for every node of the cluster and nobody else", path.display(), key.id());
            Ok(())
        }
    }
}

fn write(path: &Path, line: &[u8]) -> Result<()> {
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(MODE).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!("{} is there already and is left as it is", path.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
    };
    let written = file.write_all(line).and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a key helps nobody; the error that matters is the one above.
        let _ = fs::remove_file(path);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}
