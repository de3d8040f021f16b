//! Records, for tests, what is done to the disk below a directory.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
};

/// One call. Files are named by their inode, which may be that of an earlier, removed one.
#[derive(Debug, Clone)]
pub(super) enum Step {
    MakeDirectory(PathBuf),
    Create {
        path: PathBuf,
        file: u64,
        empty: bool,
    },
    SetLength {
        file: u64,
        length: u64,
    },
    Write {
        file: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    SyncFile(u64),
    /// The bytes written since the last sync are perhaps not on the disk, and no later sync writes them.
    FailSync(u64),
    SyncDirectory(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    RemoveDirectory(PathBuf),
}

/// What was done, and what is to fail.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// In order.
    steps: Mutex<Vec<Step>>,
    /// That many syncs from now, one fails; none does at 0.
    failing: AtomicU32,
}

impl Record {
    pub(super) fn steps(&self) -> MutexGuard<'_, Vec<Step>> {
        self.steps.lock().unwrap()
    }

    /// Has the next sync but `others` fail, of a file or directory.
    pub(super) fn fail_sync_after(&self, others: u32) {
        self.failing.store(others + 1, Ordering::Relaxed);
    }

    /// Has no sync fail; says whether one was yet to.
    pub(super) fn fail_none(&self) -> bool {
        self.failing.swap(0, Ordering::Relaxed) > 0
    }
}

static RECORDS: Mutex<Vec<(PathBuf, Arc<Record>)>> = Mutex::new(Vec::new());

/// Held while a call is made: those below one directory come one after the other.
pub(super) struct Turn {
    record: Arc<Record>,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

/// Records what happens below `root` from now on, until the result is the only one left.
pub(super) fn start(root: &Path) -> Arc<Record> {
    let record = Arc::<Record>::default();
    RECORDS.lock().unwrap().push((root.to_owned(), Arc::clone(&record)));
    record
}

pub(super) fn turn(path: &Path) -> Option<Turn> {
    let record = {
        let mut records = RECORDS.lock().unwrap();
        records.retain(|(_, record)| Arc::strong_count(record) > 1);
        records.iter().find(|(root, _)| path.starts_with(root)).map(|(_, record)| Arc::clone(record))
    };
    record.map(|record| Turn { record, _turn: TURN.lock().unwrap() })
}

pub(super) fn push(turn: Option<Turn>, step: impl FnOnce() -> Step) {
    if let Some(turn) = turn {
        turn.record.steps().push(step());
    }
}

/// Records a sync that is about to be made, unless it is to fail; then what it leaves is recorded.
pub(super) fn sync(
    path: &Path,
    step: impl FnOnce() -> Step,
    failed: impl FnOnce() -> Option<Step>,
) -> io::Result<Option<Turn>> {
    let Some(turn) = turn(path) else { return Ok(None) };
    let left = |left: u32| left.checked_sub(1);
    if turn.record.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left) == Ok(1) {
        turn.record.steps().extend(failed());
        return Err(rustix::io::Errno::IO.into());
    }
    turn.record.steps().push(step());
    Ok(Some(turn))
}

/// Records a call that is about to be made, which ends when the result is dropped.
pub(super) fn note(path: &Path, step: impl FnOnce() -> Step) -> Option<Turn> {
    let turn = turn(path);
    if let Some(turn) = &turn {
        turn.record.steps().push(step());
    }
    turn
}

pub(super) fn id(file: &File) -> u64 {
    file.metadata().unwrap().ino()
}
