//! Jobs on disk, so that a restart knows what was done and goes on with what was not.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::report::Job;
use crate::durable_file;

/// Largest journal that is read, bytes; one of as many entries as are kept has about 30 MB.
const MAX_FILE: u64 = 128 << 20;
/// The present form of the file.
const VERSION: u32 = 1;

/// The file with the jobs.
#[derive(Debug, Clone)]
pub(super) struct Journal(PathBuf);

#[derive(Deserialize)]
struct Stored {
    version: u32,
    jobs: Vec<Job>,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    jobs: &'a [Job],
}

impl Journal {
    /// The journal of a data directory.
    pub(super) fn new(directory: &Path) -> Self {
        Self(directory.join("preheat.json"))
    }

    /// The jobs it holds, the oldest first; none when there is no file yet.
    ///
    /// # Errors
    /// When the file cannot be read or is none of this version's. It then stays as it is until the next write.
    pub(super) fn read(&self) -> io::Result<Vec<Job>> {
        let Some(bytes) = durable_file::read(&self.0, MAX_FILE)? else { return Ok(Vec::new()) };
        let read: Stored = serde_json::from_slice(&bytes)?;
        if read.version != VERSION {
            return Err(io::Error::other(format!("it has version {} and not {VERSION}", read.version)));
        }
        Ok(read.jobs)
    }

    /// Replaces what it holds, wholly or not at all, also when the machine stops in between.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub(super) fn write(&self, jobs: &[Job]) -> io::Result<()> {
        durable_file::replace(&self.0, &serde_json::to_vec(&Written { version: VERSION, jobs })?)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_something_else_is_an_error_and_none_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::new(directory.path());
        assert!(journal.read().unwrap().is_empty());
        for bad in ["", "[]", "{\"version\":2,\"jobs\":[]}", "{\"version\":1,\"jobs\":[{\"id\":\"../x\"}]}"] {
            std::fs::write(journal.path(), bad).unwrap();
            assert!(journal.read().is_err(), "{bad}");
        }
        journal.write(&[]).unwrap();
        assert!(journal.read().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
