//! What was changed, so that it can be undone exactly: a record and the files as they were before.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use eagle_core::Digest;
use serde::{Deserialize, Serialize};

use super::root::{Found, Root};

/// Where records are, below the root. On the disk that survives a reboot, for undo months later.
const DIRECTORY: &str = "/var/lib/eagle/configure";
/// Eagle's own directory on the way there.
const OWN: &str = "/var/lib/eagle";
/// The form of the record; another number was written by a version that this one does not know.
const VERSION: u32 = 1;
/// Backups may hold secrets that the original kept from others.
const PRIVATE_FILE: u32 = 0o600;

/// What was done to one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// The file, as the system below the root names it.
    pub(super) path: PathBuf,
    /// Digest of what was written.
    pub(super) written: Digest,
    /// The file before; `None` when there was none.
    pub(super) before: Option<Before>,
    /// Directories that were made for the file, the outermost first.
    pub(super) made_directories: Vec<PathBuf>,
    /// For people: what was added.
    pub(super) added: String,
}

/// A file as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Before {
    /// Name of its copy beside the record.
    pub(super) backup: String,
    /// Digest of its content.
    pub(super) digest: Digest,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    files: Vec<Entry>,
    /// Commands that the runtime still needs to take notice of the files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pending: Vec<String>,
}

/// The record of one runtime.
#[derive(Debug)]
pub(super) struct Record {
    directory: PathBuf,
    entries: Vec<Entry>,
    pending: Vec<String>,
}

impl Record {
    pub(super) fn load(root: &Root, runtime: &str) -> Result<Self> {
        let directory = Path::new(DIRECTORY).join(runtime);
        let path = directory.join("record.json");
        let Some(text) = root.text(&path)? else {
            return Ok(Self { directory, entries: Vec::new(), pending: Vec::new() });
        };
        let shown = root.shown(&path);
        let document: Document = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged; the files as they were before are beside it", shown.display()))?;
        ensure!(document.version == VERSION, "{} was written by another version of eagle", shown.display());
        Ok(Self { directory, entries: document.files, pending: document.pending })
    }

    /// Where it is, for people.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn entry(&self, path: &Path) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.path == path)
    }

    /// Commands that the runtime still needs to take notice: those of an earlier run too, which may have ended before them.
    pub(super) fn pending(&self) -> &[String] {
        &self.pending
    }

    /// Notes, for the next [`Self::put`], that the runtime needs this command; none if it is empty.
    pub(super) fn expect(&mut self, command: &str) {
        if !command.is_empty() && !self.pending.iter().any(|pending| pending == command) {
            self.pending.push(command.to_owned());
        }
    }

    /// Notes that the runtime has taken notice.
    pub(super) fn activated(&mut self, root: &Root) -> Result<()> {
        self.pending.clear();
        if self.entries.is_empty() { Ok(()) } else { self.save(root) }
    }

    /// The file before Eagle changed it.
    pub(super) fn before(&self, root: &Root, entry: &Entry) -> Result<Option<Found>> {
        let Some(before) = &entry.before else { return Ok(None) };
        let path = self.directory.join(&before.backup);
        let shown = root.shown(&path);
        let found = root.read(&path)?.with_context(|| format!("the backup {} is gone", shown.display()))?;
        ensure!(Digest::of(&found.content) == before.digest, "the backup {} has been changed", shown.display());
        Ok(Some(Found { content: found.content, mode: before.mode, owner: before.owner }))
    }

    /// Notes a change before it is made, with a copy of what was there. After a crash in between, the file is the one
    /// that was there, which undoing understands.
    pub(super) fn put(
        &mut self,
        root: &Root,
        path: &Path,
        before: Option<&Found>,
        written: &[u8],
        added: &str,
    ) -> Result<()> {
        root.make_private(&self.directory)?;
        let known = self.entry(path).cloned();
        let before = match before {
            None => None,
            Some(found) => {
                let backup = format!("{}.before", path.to_string_lossy().trim_start_matches('/').replace('/', "_"));
                let private = Found { mode: PRIVATE_FILE, owner: super::root::own_owner(), ..found.clone() };
                root.write(&self.directory.join(&backup), &private)?;
                let digest = Digest::of(&found.content);
                Some(Before { backup, digest, mode: found.mode, owner: found.owner })
            }
        };
        let made_directories = match known {
            Some(entry) => entry.made_directories,
            None => root.missing_directories(path.parent().unwrap_or_else(|| Path::new("/")))?,
        };
        let written = Digest::of(written);
        let entry = Entry { path: path.to_owned(), written, before, made_directories, added: added.to_owned() };
        self.entries.retain(|known| known.path != path);
        self.entries.push(entry);
        self.save(root)
    }

    /// Forgets a file that is as it was, with its copy. The last one takes the record along.
    pub(super) fn forget(&mut self, root: &Root, path: &Path) -> Result<()> {
        let Some(index) = self.entries.iter().position(|entry| entry.path == path) else { return Ok(()) };
        let entry = self.entries.remove(index);
        if self.entries.is_empty() {
            root.remove(&self.directory.join("record.json"))?;
        } else {
            self.save(root)?;
        }
        if let Some(before) = entry.before {
            root.remove(&self.directory.join(before.backup))?;
        }
        if self.entries.is_empty() {
            root.remove_empty(&[PathBuf::from(OWN), PathBuf::from(DIRECTORY), self.directory.clone()]);
        }
        Ok(())
    }

    /// Hands directories that were made for files that are gone on to a file that is still there, to go with that one.
    pub(super) fn adopt(&mut self, root: &Root, directories: Vec<PathBuf>) -> Result<()> {
        let Some(entry) = self.entries.first_mut().filter(|_| !directories.is_empty()) else { return Ok(()) };
        entry.made_directories.extend(directories);
        entry.made_directories.sort_by_key(|directory| directory.components().count());
        entry.made_directories.dedup();
        self.save(root)
    }

    fn save(&self, root: &Root) -> Result<()> {
        let document = Document { version: VERSION, files: self.entries.clone(), pending: self.pending.clone() };
        let mut content = serde_json::to_vec_pretty(&document)?;
        content.push(b'\n');
        let file = Found { content, mode: PRIVATE_FILE, owner: super::root::own_owner() };
        root.write(&self.directory.join("record.json"), &file).map(drop)
    }
}
