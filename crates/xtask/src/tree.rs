//! Comparing what a runtime unpacked with what was packed.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// What docker itself adds to a container that it made.
pub(crate) const DOCKER_ADDS: &[&str] =
    &[".dockerenv", "dev/console", "dev/pts", "dev/shm", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"];

/// Differences that are named in an error; a broken layer has thousands.
const SHOWN: usize = 10;

/// An error that names the first differences in names, types, modes, owners, links and contents.
///
/// Entries named in `extra` may be in `actual` without being in `expected`.
pub(crate) fn compare(expected: &Path, actual: &Path, extra: &[&str]) -> Result<()> {
    let (mut wanted, mut found) = (BTreeMap::new(), BTreeMap::new());
    walk(expected, Path::new(""), &mut wanted)?;
    walk(actual, Path::new(""), &mut found)?;
    if wanted.len() < 100 {
        bail!("{} has only {} entries: nothing to compare with", expected.display(), wanted.len());
    }
    let mut differences = Vec::new();
    for path in found.keys().filter(|path| !wanted.contains_key(*path)) {
        if !extra.iter().any(|name| path == Path::new(name)) {
            differences.push(format!("{} should not be there", path.display()));
        }
    }
    for (path, want) in &wanted {
        match found.get(path) {
            None => differences.push(format!("{} is missing", path.display())),
            Some(have) => {
                if let Some(difference) = differ(&expected.join(path), want, &actual.join(path), have)? {
                    differences.push(format!("{}: {difference}", path.display()));
                }
            }
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let count = differences.len();
    differences.truncate(SHOWN);
    bail!("{count} differences between {} and {}:\n{}", expected.display(), actual.display(), differences.join("\n"))
}

fn walk(root: &Path, below: &Path, into: &mut BTreeMap<PathBuf, Metadata>) -> Result<()> {
    let directory = root.join(below);
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let path = below.join(entry.file_name());
        if metadata.is_dir() {
            walk(root, &path, into)?;
        }
        into.insert(path, metadata);
    }
    Ok(())
}

fn differ(expected: &Path, want: &Metadata, actual: &Path, have: &Metadata) -> Result<Option<String>> {
    if want.mode() != have.mode() {
        return Ok(Some(format!("mode {:o} instead of {:o}", have.mode(), want.mode())));
    }
    if (want.uid(), want.gid()) != (have.uid(), have.gid()) {
        return Ok(Some(format!("owner {}:{} instead of {}:{}", have.uid(), have.gid(), want.uid(), want.gid())));
    }
    if want.is_symlink() {
        let (want, have) = (fs::read_link(expected)?, fs::read_link(actual)?);
        return Ok((want != have).then(|| format!("link to {} instead of {}", have.display(), want.display())));
    }
    if want.is_file() {
        if want.len() != have.len() {
            return Ok(Some(format!("{} bytes instead of {}", have.len(), want.len())));
        }
        if !same_bytes(expected, actual)? {
            return Ok(Some("other contents".to_owned()));
        }
    }
    Ok(None)
}

fn same_bytes(one: &Path, other: &Path) -> Result<bool> {
    const CHUNK: u64 = 1 << 20;
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        one.by_ref().take(CHUNK).read_to_end(&mut left)?;
        other.by_ref().take(CHUNK).read_to_end(&mut right)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}

/// Bytes that the files below a directory take on disk: allocated blocks, not lengths, so that space
/// reserved ahead counts and holes do not.
pub(crate) fn disk_use(directory: &Path) -> u64 {
    const BLOCK: u64 = 512;
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| {
            // An entry may go while it is looked at.
            let metadata = entry.metadata().ok()?;
            Some(if metadata.is_dir() { disk_use(&entry.path()) } else { metadata.blocks() * BLOCK })
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(root: &Path) -> Result<()> {
        for number in 0..120 {
            fs::write(root.join(format!("file-{number}")), vec![7; number])?;
        }
        Ok(())
    }

    #[test]
    fn sees_every_kind_of_difference() -> Result<()> {
        let (one, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
        sample(one.path())?;
        sample(other.path())?;
        compare(one.path(), other.path(), &[])?;
        fs::write(other.path().join("file-50"), vec![8; 50])?;
        fs::write(other.path().join("file-51"), b"short")?;
        fs::remove_file(other.path().join("file-52"))?;
        fs::write(other.path().join("new"), b"")?;
        fs::write(other.path().join(".dockerenv"), b"")?;
        let error = compare(one.path(), other.path(), &[".dockerenv"]).expect_err("four differences").to_string();
        for part in ["4 differences", "file-50: other contents", "file-51: 5 bytes", "file-52 is missing", "new should"]
        {
            assert!(error.contains(part), "{part} not in {error}");
        }
        Ok(())
    }
}
