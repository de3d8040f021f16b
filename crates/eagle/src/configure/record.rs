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
    /// Digests of what Eagle wrote there before: as long as it is not certain that `written` has taken its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) earlier: Vec<Digest>,
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

    /// Forgets, for the next [`Self::save`], what applying left to be done for a runtime whose files are put back: other commands than these.
    pub(super) fn expect_only(&mut self, commands: &[&str]) {
        self.pending.retain(|pending| commands.contains(&pending.as_str()));
    }

    /// Notes that the runtime has taken notice, or that somebody was told how it does.
    pub(super) fn settled(&mut self, root: &Root) -> Result<()> {
        self.pending.clear();
        self.save(root)
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
        let known = self.entry(path).cloned();
        let backup = format!("{}.before", path.to_string_lossy().trim_start_matches('/').replace('/', "_"));
        let noted = before.map(|found| Before {
            backup: backup.clone(),
            digest: Digest::of(&found.content),
            mode: found.mode,
            owner: found.owner,
        });
        let made_directories = match &known {
            Some(entry) => entry.made_directories.clone(),
            None => root.missing_directories(path.parent().unwrap_or_else(|| Path::new("/")))?,
        };
        let written = Digest::of(written);
        let mut earlier: Vec<Digest> =
            known.into_iter().flat_map(|entry| [vec![entry.written], entry.earlier].concat()).collect();
        earlier.retain(|earlier| *earlier != written);
        let added = added.to_owned();
        let entry = Entry { path: path.to_owned(), written, earlier, before: noted, made_directories, added };
        self.entries.retain(|known| known.path != path);
        self.entries.push(entry);
        // Before the copy: a copy that nothing names would stay for ever. Until the copy is there the file is not touched.
        self.save(root)?;
        if let Some(found) = before {
            let private = Found { mode: PRIVATE_FILE, owner: super::root::own_owner(), ..found.clone() };
            root.write(&self.directory.join(&backup), &private)?;
        }
        Ok(())
    }

    /// Notes that what was [`Self::put`] down is done.
    pub(super) fn done(&mut self, root: &Root, path: &Path) -> Result<()> {
        match self.entries.iter_mut().find(|entry| entry.path == path && !entry.earlier.is_empty()) {
            Some(entry) => entry.earlier.clear(),
            None => return Ok(()),
        }
        self.save(root)
    }

    /// Forgets files that are as they were, with their copies. Directories that were made for them and hold files that are still to be put
    /// back go with one of those.
    pub(super) fn forget(&mut self, root: &Root, entries: &[Entry], directories: &[PathBuf]) -> Result<()> {
        // The copies first, which nobody needs by now: what nothing names would stay for ever.
        for before in entries.iter().filter_map(|entry| entry.before.as_ref()) {
            root.remove(&self.directory.join(&before.backup))?;
        }
        self.entries.retain(|known| !entries.iter().any(|entry| entry.path == known.path));
        if let Some(entry) = self.entries.first_mut() {
            entry.made_directories.extend_from_slice(directories);
            entry.made_directories.sort_by_key(|directory| directory.components().count());
            entry.made_directories.dedup();
        }
        self.save(root)
    }

    /// Writes it down. A record of nothing goes, and its directories with it.
    pub(super) fn save(&self, root: &Root) -> Result<()> {
        if self.entries.is_empty() && self.pending.is_empty() {
            root.remove(&self.directory.join("record.json"))?;
            root.remove_empty(&[PathBuf::from(OWN), PathBuf::from(DIRECTORY), self.directory.clone()]);
            return Ok(());
        }
        root.make_private(&self.directory)?;
        let document = Document { version: VERSION, files: self.entries.clone(), pending: self.pending.clone() };
        let mut content = serde_json::to_vec_pretty(&document)?;
        content.push(b'\n');
        let file = Found { content, mode: PRIVATE_FILE, owner: super::root::own_owner() };
        root.write(&self.directory.join("record.json"), &file).map(drop)
    }
}
