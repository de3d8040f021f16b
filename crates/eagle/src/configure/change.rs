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
    if digest == Some(entry.written) {
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
                if !file.activate.is_empty() && !outcome.activate.contains(&file.activate) {
                    outcome.activate.push(file.activate);
                }
            }
            Step::Revert(path) => {
                let Some(entry) = record.entry(&path).cloned() else { continue };
                revert(root, record, &[entry], &mut outcome)?;
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

/// Puts every file back as it was; those that somebody has changed since are kept.
pub(super) fn undo(root: &Root, record: &mut Record) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let entries = record.entries().to_vec();
    revert(root, record, &entries, &mut outcome)?;
    Ok(outcome)
}

fn revert(root: &Root, record: &mut Record, entries: &[Entry], outcome: &mut Outcome) -> Result<()> {
    let mut made_directories = Vec::new();
    for entry in entries {
        if revert_file(root, record, entry, outcome)? {
            record.forget(root, &entry.path)?;
            made_directories.extend_from_slice(&entry.made_directories);
        }
    }
    // One file's directory may hold another's, so they go last, the innermost first.
    made_directories.sort_by_key(|directory| directory.components().count());
    root.remove_empty(&made_directories);
    made_directories.retain(|directory| root.shown(directory).exists());
    record.adopt(root, made_directories)
}

/// False when the file is kept.
fn revert_file(root: &Root, record: &Record, entry: &Entry, outcome: &mut Outcome) -> Result<bool> {
    let shown = root.shown(&entry.path);
    let shown = shown.display();
    let current = root.read(&entry.path)?;
    match whose(root, record, &entry.path, current.as_ref())? {
        Whose::Original(_) => outcome.lines.push(format!("{shown}: is as it was")),
        Whose::Eagle(Some(before)) => {
            root.write(&entry.path, &before)?;
            outcome.lines.push(format!("{shown}: put back as it was"));
        }
        Whose::Eagle(None) => {
            root.remove(&entry.path)?;
            outcome.lines.push(format!("{shown}: removed"));
        }
        Whose::Edited => {
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
            outcome.problems.push(problem);
            return Ok(false);
        }
    }
    Ok(true)
}
