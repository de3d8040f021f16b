//! `eagle prepare-data`: a data directory for a user that cannot make it.
//!
//! The kubelet makes directories of a node for root, and roles are not root.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown},
};

use anyhow::{Context, Result, bail};

use crate::cli::PrepareDataArgs;

/// As roles make it themselves: what is cached may be private.
const MODE: u32 = 0o700;

/// Makes the directory if it is not there and gives it to the user and the group.
///
/// # Errors
/// When it cannot be made or given away, or is a link or a file.
pub(crate) fn run(args: &PrepareDataArgs) -> Result<()> {
    let PrepareDataArgs { directory, user, group } = args;
    let shown = directory.display();
    // One that is there keeps its mode.
    let made = DirBuilder::new().recursive(true).mode(MODE).create(directory);
    made.with_context(|| format!("cannot make {shown}"))?;
    let metadata = fs::symlink_metadata(directory).with_context(|| format!("cannot look at {shown}"))?;
    if metadata.is_symlink() {
        bail!("{shown} is a symbolic link; give the directory that it leads to");
    }
    if (metadata.uid(), metadata.gid()) == (*user, *group) {
        println!("{shown}: belongs to {user}:{group} already");
        return Ok(());
    }
    chown(directory, Some(*user), Some(*group)).with_context(|| format!("cannot give {shown} to {user}:{group}"))?;
    println!("{shown}: belongs to {user}:{group} now");
    Ok(())
}
