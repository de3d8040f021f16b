//! Files below a root directory: `/`, or the mounted root of another system.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

/// Largest file that is edited, bytes: real ones have a few KiB.
const MAX_FILE: u64 = 1 << 20;
/// Mode of files that were not there before; the runtimes' own have the same.
pub(super) const NEW_FILE_MODE: u32 = 0o644;
/// Mode of a file until it is whole: the one that it takes the place of may be secret.
const UNFINISHED_MODE: u32 = 0o600;

/// A file as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) content: Vec<u8>,
    /// Permission bits.
    pub(super) mode: u32,
    /// User and group.
    pub(super) owner: (u32, u32),
}

/// Where the paths of a runtime's files begin.
#[derive(Debug, Clone)]
pub(super) struct Root {
    path: PathBuf,
    /// Before which of its changes the process ends, as if it were killed.
    #[cfg(test)]
    pub(super) end: super::tests::End,
}

impl Root {
    pub(super) fn new(path: &Path) -> Result<Self> {
        let path = path.canonicalize().with_context(|| format!("--root {}", path.display()))?;
        ensure!(path.is_dir(), "--root {} is not a directory", path.display());
        Ok(Self {
            path,
            #[cfg(test)]
            end: super::tests::End::default(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Everything that changes the system goes through here: between any two of these calls the process may be killed, and what it
    /// has left must be right for whoever tries again.
    fn change<T>(&self, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        #[cfg(test)]
        self.end.pass()?;
        change()
    }

    /// Where a file of the root is on this system.
    pub(super) fn shown(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The same, with the certainty that no symbolic link leads elsewhere: one below another system's root means a
    /// place in that system and not in this one, and what replaces a link would not be what the link's owner expects.
    fn resolve(&self, path: &Path) -> Result<PathBuf> {
        let mut resolved = self.path.clone();
        let is_other_system = self.path != Path::new("/");
        let mut components = path.components().filter(|component| *component != Component::RootDir).peekable();
        while let Some(component) = components.next() {
            let Component::Normal(name) = component else { bail!("{} is not a plain path", path.display()) };
            resolved.push(name);
            let is_last = components.peek().is_none();
            let is_link = fs::symlink_metadata(&resolved).is_ok_and(|metadata| metadata.is_symlink());
            ensure!(
                !is_link || !(is_last || is_other_system),
                "{} is a symbolic link, which `eagle configure` does not follow; change the file that it leads to",
                resolved.display()
            );
        }
        Ok(resolved)
    }

    /// The file, or `None` when there is none.
    pub(super) fn read(&self, path: &Path) -> Result<Option<Found>> {
        let resolved = self.resolve(path)?;
        let context = || format!("cannot read {}", resolved.display());
        let file = match File::open(&resolved) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(context),
        };
        let metadata = file.metadata().with_context(context)?;
        ensure!(metadata.is_file(), "{} is not a file", resolved.display());
        let mut content = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut content).with_context(context)?;
        ensure!(content.len() as u64 <= MAX_FILE, "{} is larger than any configuration file", resolved.display());
        Ok(Some(Found { content, mode: mode(&metadata), owner: (metadata.uid(), metadata.gid()) }))
    }

    /// The text of a file; nothing when there is none.
    pub(super) fn text(&self, path: &Path) -> Result<Option<String>> {
        let found = self.read(path)?;
        found.map(|found| as_text(self, path, found.content)).transpose()
    }

    /// Names in a directory, sorted; none when there is no such directory.
    pub(super) fn names(&self, directory: &Path) -> Result<Vec<String>> {
        let resolved = self.resolve(directory)?;
        let entries = match fs::read_dir(&resolved) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", resolved.display())),
        };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Puts a file in place of whatever was there, at once and for good. Returns the directories that had to be made,
    /// the outermost first.
    pub(super) fn write(&self, path: &Path, file: &Found) -> Result<Vec<PathBuf>> {
        let made = self.make_directories(path.parent().unwrap_or_else(|| Path::new("/")))?;
        let resolved = self.resolve(path)?;
        let new_path = unfinished(&resolved);
        let write = || -> io::Result<()> {
            self.remove_file(&new_path)?;
            let open = || OpenOptions::new().write(true).create_new(true).mode(UNFINISHED_MODE).open(&new_path);
            let mut new = self.change(open)?;
            self.change(|| new.write_all(&file.content))?;
            let metadata = new.metadata()?;
            if (metadata.uid(), metadata.gid()) != file.owner {
                std::os::unix::fs::fchown(&new, Some(file.owner.0), Some(file.owner.1))?;
            }
            new.set_permissions(fs::Permissions::from_mode(file.mode))?;
            new.sync_all()?;
            self.change(|| fs::rename(&new_path, &resolved))?;
            sync_directory(&resolved)
        };
        if let Err(error) = write() {
            // What went wrong is worth more than that this does too.
            let _ = self.remove_file(&new_path);
            return Err(error).with_context(|| format!("cannot write {}", resolved.display()));
        }
        Ok(made)
    }

    /// Removes a file for good, with what a run that was killed may have left of it; that it is not there is as good.
    pub(super) fn remove(&self, path: &Path) -> Result<()> {
        let resolved = self.resolve(path)?;
        self.remove_file(&resolved)
            .and_then(|()| self.remove_file(&unfinished(&resolved)))
            .with_context(|| format!("cannot remove {}", resolved.display()))
    }

    /// Removes what a run that was killed may have left beside a file.
    pub(super) fn remove_unfinished(&self, path: &Path) -> Result<()> {
        let resolved = unfinished(&self.resolve(path)?);
        self.remove_file(&resolved).with_context(|| format!("cannot remove {}", resolved.display()))
    }

    fn remove_file(&self, resolved: &Path) -> io::Result<()> {
        match self.change(|| fs::remove_file(resolved)) {
            Ok(()) => sync_directory(resolved),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes directories that are empty, the innermost first; those that are not stay.
    pub(super) fn remove_empty(&self, directories: &[PathBuf]) {
        for directory in directories.iter().rev() {
            if let Ok(resolved) = self.resolve(directory) {
                // Somebody else uses it by now, which is all that can be wrong.
                let _ = self.change(|| fs::remove_dir(resolved));
            }
        }
    }

    /// Directories on the way to `directory` that are not there, the outermost first.
    pub(super) fn missing_directories(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        let mut missing = Vec::new();
        for ancestor in directory.ancestors() {
            if self.resolve(ancestor)?.exists() {
                break;
            }
            missing.push(ancestor.to_owned());
        }
        missing.reverse();
        Ok(missing)
    }

    fn make_directories(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        let missing = self.missing_directories(directory)?;
        for directory in &missing {
            let resolved = self.resolve(directory)?;
            self.change(|| fs::create_dir(&resolved))
                .with_context(|| format!("cannot make the directory {}", resolved.display()))?;
        }
        Ok(missing)
    }

    /// Makes a directory that only its owner may look into.
    pub(super) fn make_private(&self, directory: &Path) -> Result<()> {
        if self.make_directories(directory)?.is_empty() {
            return Ok(());
        }
        let resolved = self.resolve(directory)?;
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&resolved, private).with_context(|| format!("cannot protect {}", resolved.display()))
    }
}

/// Where a file is written until it is whole. Always the same name: whoever tries again finds what a run that was killed has left.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".eagle");
    path.with_file_name(name)
}

/// Makes what was done to a name in a directory survive a loss of power.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()
}

/// The text of a file that a runtime reads as UTF-8.
pub(super) fn as_text(root: &Root, path: &Path, content: Vec<u8>) -> Result<String> {
    String::from_utf8(content).ok().with_context(|| format!("{} is not UTF-8 text", root.shown(path).display()))
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.permissions().mode() & 0o7777
}

/// User and group that new files get.
pub(super) fn own_owner() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}
