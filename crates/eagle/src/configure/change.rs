//! Changing files, checking them, and undoing what was changed.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::Result;
use eagle_core::Digest;

use super::{
    record::{Entry, Record},
    root::{Found, NEW_FILE_MODE, Root, as_text, own_owner},
};

/// Makes the text that a file should have out of the text that it has (`None`: there is no such file). `Ok(None)` when
/// it is right as it is; an error says why a person has to do it.
type Edit = Box<dyn Fn(Option<&str>) -> Result<Option<String>, String>>;

/// What should be true of one file.
pub(super) struct FileChange {
    pub(super) path: PathBuf,
    pub(super) edit: Edit,
    /// For people: what is added.
    pub(super) added: String,
    /// How the runtime is made to read the file again; empty when it does by itself.
    pub(super) activate: &'static str,
}

/// Everything that a runtime needs.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) files: Vec<FileChange>,
    /// For people: what else there is to know.
    pub(super) notes: Vec<String>,
    /// How the runtime forgets what its files no longer have.
    pub(super) after_undo: Option<&'static str>,
    /// What a person has to do first; nothing is changed while there is any.
    pub(super) problems: Vec<String>,
}

/// What was done or found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// One line for each file.
    pub(super) lines: Vec<String>,
    /// What a person has to do; none means success.
    pub(super) problems: Vec<String>,
    /// Commands by which the runtime takes notice.
    pub(super) activate: Vec<&'static str>,
}

impl Outcome {
    /// Adds a command, once.
    fn expect(&mut self, command: &'static str) {
        if !command.is_empty() && !self.activate.contains(&command) {
            self.activate.push(command);
        }
    }
}

/// Whose content a file has.
enum Whose {
    /// As it was before Eagle, or no record of it.
    Original(Option<Found>),
    /// As Eagle wrote it, over this.
    Eagle(Option<Found>),
    /// Eagle wrote it and somebody changed it afterwards.
    Edited,
}

fn whose(root: &Root, record: &Record, path: &std::path::Path, current: Option<&Found>) -> Result<Whose> {
    let Some(entry) = record.entry(path) else { return Ok(Whose::Original(current.cloned())) };
    let digest = current.map(|found| Digest::of(&found.content));
    if digest == entry.before.as_ref().map(|before| before.digest) {
        return Ok(Whose::Original(current.cloned()));
    }
    if digest.is_some_and(|digest| digest == entry.written || entry.earlier.contains(&digest)) {
        return Ok(Whose::Eagle(record.before(root, entry)?));
    }
    Ok(Whose::Edited)
}

/// A decision about one file.
enum Step {
    Write { index: usize, before: Option<Found>, text: String },
    Revert(PathBuf),
}

/// Makes the plan true. Either all of it can be done, or nothing is changed.
pub(super) fn apply(root: &Root, record: &mut Record, plan: &Plan) -> Result<Outcome> {
    let mut outcome = Outcome { problems: plan.problems.clone(), ..Outcome::default() };
    let mut steps = Vec::new();
    for (index, file) in plan.files.iter().enumerate() {
        let shown = root.shown(&file.path);
        let shown = shown.display();
        let current = root.read(&file.path)?;
        let edit = |found: Option<&Found>| -> Result<Result<Option<String>, String>> {
            let text = found.map(|found| as_text(root, &file.path, found.content.clone())).transpose()?;
            Ok((file.edit)(text.as_deref()))
        };
        match whose(root, record, &file.path, current.as_ref())? {
            Whose::Edited => match edit(current.as_ref())? {
                Ok(None) => outcome.lines.push(format!("{shown}: has it (somebody has changed the file since; kept)")),
                Ok(Some(_)) => outcome.problems.push(format!(
                    "{shown}: somebody has changed it since eagle wrote it, so it is kept; add by hand: {}",
                    file.added
                )),
                Err(problem) => outcome.problems.push(format!("{shown}: {problem}")),
            },
            Whose::Original(before) | Whose::Eagle(before) => match edit(before.as_ref())? {
                Err(problem) => outcome.problems.push(format!("{shown}: {problem}")),
                Ok(None) if before == current => outcome.lines.push(format!("{shown}: has it already")),
                Ok(None) => steps.push(Step::Revert(file.path.clone())),
                Ok(Some(text)) if current.as_ref().is_some_and(|found| found.content == text.as_bytes()) => {
                    outcome.lines.push(format!("{shown}: has it already"));
                }
                Ok(Some(text)) => steps.push(Step::Write { index, before, text }),
            },
        }
    }
    for entry in record.entries() {
        // Asked for earlier, with other registries, and not any more.
        if !plan.files.iter().any(|file| file.path == entry.path) {
            steps.push(Step::Revert(entry.path.clone()));
        }
    }
    if !outcome.problems.is_empty() {
        return Ok(outcome);
    }
    for entry in record.entries() {
        // Of an undo that was killed before it changed anything, the file itself may be right.
        root.remove_unfinished(&entry.path)?;
    }
    for step in steps {
        match step {
            Step::Write { index, before, text } => {
                let file = &plan.files[index];
                record.expect(file.activate);
                record.put(root, &file.path, before.as_ref(), text.as_bytes(), &file.added)?;
                let (mode, owner) = match &before {
                    Some(found) => (found.mode, found.owner),
                    None => (NEW_FILE_MODE, own_owner()),
                };
                root.write(&file.path, &Found { content: text.into_bytes(), mode, owner })?;
                let what = if before.is_some() { "changed; a backup is kept" } else { "written" };
                outcome.lines.push(format!("{}: {what}", root.shown(&file.path).display()));
                record.done(root, &file.path)?;
                outcome.expect(file.activate);
            }
            Step::Revert(path) => {
                let Some(entry) = record.entry(&path).cloned() else { continue };
                revert(root, record, vec![entry], plan.after_undo, &mut outcome)?;
            }
        }
    }
    Ok(outcome)
}

/// Says what is missing for the plan to be true; changes nothing.
pub(super) fn check(root: &Root, plan: &Plan) -> Result<Outcome> {
    let mut outcome = Outcome { problems: plan.problems.clone(), ..Outcome::default() };
    for file in &plan.files {
        let shown = root.shown(&file.path);
        let shown = shown.display();
        match (file.edit)(root.text(&file.path)?.as_deref()) {
            Ok(None) => outcome.lines.push(format!("{shown}: has it")),
            Ok(Some(_)) => outcome.problems.push(format!("{shown}: lacks {}", file.added)),
            Err(problem) => outcome.problems.push(format!("{shown}: {problem}")),
        }
    }
    Ok(outcome)
}

/// Puts every file back as it was; those that somebody has changed since are kept. `after` is how the runtime forgets what the files no longer
/// have; it is in the record until [`Record::settled`].
pub(super) fn undo(root: &Root, record: &mut Record, after: Option<&'static str>) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let entries = record.entries().to_vec();
    revert(root, record, entries, after, &mut outcome)?;
    Ok(outcome)
}

/// Every step can be done again: until the last one the record says everything that it said before the first.
fn revert(
    root: &Root,
    record: &mut Record,
    mut entries: Vec<Entry>,
    after: Option<&'static str>,
    outcome: &mut Outcome,
) -> Result<()> {
    let mut files = Vec::new();
    for entry in &entries {
        match original(root, record, entry)? {
            Ok(original) => files.push((entry.path.clone(), original)),
            Err(problem) => outcome.problems.push(problem),
        }
    }
    if files.is_empty() {
        return Ok(());
    }
    entries.retain(|entry| files.iter().any(|(path, _)| *path == entry.path));
    if let Some(command) = after {
        record.expect(command);
        record.save(root)?;
        outcome.expect(command);
    }
    for (path, original) in files {
        let what = match original {
            Original::There => "is as it was",
            Original::File(before) => {
                root.write(&path, &before)?;
                "put back as it was"
            }
            Original::Nothing => {
                root.remove(&path)?;
                "removed"
            }
        };
        root.remove_unfinished(&path)?;
        outcome.lines.push(format!("{}: {what}", root.shown(&path).display()));
    }
    // One file's directory may hold another's, so they go last, the innermost first.
    let mut directories: Vec<PathBuf> = entries.iter().flat_map(|entry| entry.made_directories.clone()).collect();
    directories.sort_by_key(|directory| directory.components().count());
    root.remove_empty(&directories);
    directories.retain(|directory| root.shown(directory).exists());
    record.forget(root, &entries, &directories)
}

/// What a file has to become to be as it was.
enum Original {
    /// It is.
    There,
    File(Found),
    /// There was none.
    Nothing,
}

/// An error inside says why the file is kept.
fn original(root: &Root, record: &Record, entry: &Entry) -> Result<Result<Original, String>> {
    let shown = root.shown(&entry.path);
    let shown = shown.display();
    let current = root.read(&entry.path)?;
    Ok(match whose(root, record, &entry.path, current.as_ref()) {
        Ok(Whose::Original(_)) => Ok(Original::There),
        Ok(Whose::Eagle(Some(before))) => Ok(Original::File(before)),
        Ok(Whose::Eagle(None)) => Ok(Original::Nothing),
        Ok(Whose::Edited) => {
            let mut problem = format!(
                "{shown}: somebody has changed it since eagle wrote it, so it is kept; remove by hand: {}",
                entry.added
            );
            let directory = root.shown(record.directory());
            if let Some(before) = &entry.before {
                let backup = directory.join(&before.backup);
                let _ = write!(problem, " (the file as it was before is {})", backup.display());
            }
            let _ = write!(problem, "; then delete {}", directory.display());
            Err(problem)
        }
        Err(error) => Err(format!("{shown}: {error:#}, so it is kept; remove by hand: {}", entry.added)),
    })
}
