//! Records, for tests, what is done to the disk below a directory.

use std::{
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

/// One call. Files are named by their inode, which may be that of an earlier, removed one.
#[derive(Debug, Clone)]
pub(super) enum Step {
    MakeDirectory(PathBuf),
    Create { path: PathBuf, file: u64, empty: bool },
    SetLength { file: u64, length: u64 },
    Write { file: u64, offset: u64, bytes: Vec<u8> },
    SyncFile(u64),
    SyncDirectory(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    RemoveDirectory(PathBuf),
}

/// What was done, in order.
pub(super) type Steps = Arc<Mutex<Vec<Step>>>;

static RECORDS: Mutex<Vec<(PathBuf, Steps)>> = Mutex::new(Vec::new());

/// Held while a call is made: those below one directory come one after the other.
pub(super) struct Turn {
    steps: Steps,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

/// Records what happens below `root` from now on, until the result is the only one left.
pub(super) fn start(root: &Path) -> Steps {
    let steps = Steps::default();
    RECORDS.lock().unwrap().push((root.to_owned(), Arc::clone(&steps)));
    steps
}

pub(super) fn turn(path: &Path) -> Option<Turn> {
    let steps = {
        let mut records = RECORDS.lock().unwrap();
        records.retain(|(_, steps)| Arc::strong_count(steps) > 1);
        records.iter().find(|(root, _)| path.starts_with(root)).map(|(_, steps)| Arc::clone(steps))
    };
    steps.map(|steps| Turn { steps, _turn: TURN.lock().unwrap() })
}

pub(super) fn push(turn: Option<Turn>, step: impl FnOnce() -> Step) {
    if let Some(turn) = turn {
        turn.steps.lock().unwrap().push(step());
    }
}

/// Records a call that is about to be made, which ends when the result is dropped.
pub(super) fn note(path: &Path, step: impl FnOnce() -> Step) -> Option<Turn> {
    let turn = turn(path);
    if let Some(turn) = &turn {
        turn.steps.lock().unwrap().push(step());
    }
    turn
}

pub(super) fn id(file: &File) -> u64 {
    file.metadata().unwrap().ino()
}
