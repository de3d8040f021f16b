//! Objects that say that somebody is at work, as long as somebody is.
//!
//! A *record* is written anew every [`RENEWAL`] with a higher number. Nobody compares clocks: who looks at it and
//! finds it unchanged for [`LIFETIME`], by a clock of its own, takes its writer for dead.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use object_store::{ObjectMeta, PutMode, path::Path};
use serde::{Deserialize, Serialize};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use super::{Owner, objects::Objects};
use crate::{envelope::Magic, error::StorageError};

/// How long a record may stay as it is before its writer counts as dead. What a seeder that was killed
/// delays others by; several renewals, so that one that a busy store was slow to take does not matter.
pub(super) const LIFETIME: Duration = Duration::from_secs(10);
/// How often a record is renewed.
const RENEWAL: Duration = Duration::from_secs(2);
/// How long cleaning up may take at the end of a process, together with what the store itself retries.
const CLEAN_UP: Duration = Duration::from_secs(5);
/// Records that a sweep looks at; each is one blob that was in the works. The next start finds the rest.
const MAX_RECORDS: usize = 10_000;

pub(crate) const RECORD_MAGIC: Magic = *b"eaglerc2";
/// Largest record, bytes: names and an upload's id, which stores keep below 1 KiB.
pub(super) const MAX_RECORD: u64 = 16 << 10;

/// What a record says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(super) owner: Owner,
    pub(super) number: u64,
    /// The multipart upload that ends with it.
    pub(super) upload: Option<Upload>,
    /// Where the owner gives what it has so far.
    pub(super) url: Option<String>,
}

/// A multipart upload under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Upload {
    /// Key of the object that it will be.
    pub(super) path: String,
    /// What the store calls it.
    pub(super) id: String,
}

/// What a record is written for.
#[derive(Debug)]
pub(super) enum Of {
    /// An upload under way.
    Upload(Upload),
    /// The right to fetch a blob, by somebody who gives what it has at this address.
    Lease { url: Option<String> },
}

/// Keeps a record alive; dropping it ends the record, and the upload with it unless that was completed.
#[derive(Debug)]
pub(super) struct Heartbeat {
    ends: DropGuard,
    completed: Arc<AtomicBool>,
}

impl Heartbeat {
    /// Writes the record; `None` when there is one already and `mode` is [`PutMode::Create`].
    pub(super) async fn begin(
        objects: &Arc<Objects>,
        path: Path,
        of: Of,
        mode: PutMode,
    ) -> Result<Option<Self>, StorageError> {
        let (upload, url) = match of {
            Of::Upload(upload) => (Some(upload), None),
            Of::Lease { url } => (None, url),
        };
        let record = Record { owner: objects.owner.clone(), number: 0, upload, url };
        if !objects.put(&path, RECORD_MAGIC, &record, mode).await? {
            return Ok(None);
        }
        let (ended, completed) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        objects.tasks.spawn(keep(Arc::clone(objects), path, record, ended.clone(), Arc::clone(&completed)));
        Ok(Some(Self { ends: ended.drop_guard(), completed }))
    }

    /// The upload is an object now.
    pub(super) fn completed(&self) {
        self.completed.store(true, Ordering::Release);
    }

    pub(super) fn into_guard(self) -> DropGuard {
        self.ends
    }
}

/// Renews the record until it ends, and cleans up.
async fn keep(
    objects: Arc<Objects>,
    path: Path,
    mut record: Record,
    ended: CancellationToken,
    completed: Arc<AtomicBool>,
) {
    loop {
        tokio::select! {
            () = ended.cancelled() => break,
            () = tokio::time::sleep(RENEWAL) => {}
        }
        record.number += 1;
        let renewed = tokio::select! {
            () = ended.cancelled() => break,
            renewed = objects.put(&path, RECORD_MAGIC, &record, PutMode::Overwrite) => renewed,
        };
        if let Err(error) = renewed {
            warn!(%error, "a record in the object store was not renewed; another seeder may do the same work");
        }
    }
    let upload = record.upload.filter(|_| !completed.load(Ordering::Acquire));
    let cleaned = tokio::time::timeout(CLEAN_UP, end(&objects, &path, upload.as_ref())).await;
    match cleaned {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "what is left of it is removed when a seeder starts"),
        Err(_) => warn!(object = objects.names.show(&path), "not removed in time; that is done when a seeder starts"),
    }
}

/// Aborts an upload and then removes the record that names it.
async fn end(objects: &Objects, path: &Path, upload: Option<&Upload>) -> Result<(), StorageError> {
    if let Some(upload) = upload {
        let object = Path::from(upload.path.as_str());
        match objects.store.abort_multipart(&object, &upload.id).await {
            // Gone already: completed or aborted.
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(objects.failed("abort the upload of", &object, &error)),
        }
    }
    objects.delete(path).await
}

/// What tells one state of a record from the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    modified: std::time::SystemTime,
    tag: Option<String>,
}

impl Version {
    pub(super) fn of(object: &ObjectMeta) -> Self {
        Self { modified: object.last_modified.into(), tag: object.e_tag.clone() }
    }
}

/// Removes the records of the dead and aborts their uploads: those of this owner's earlier processes at once,
/// others' when they have not changed for [`LIFETIME`].
pub(super) async fn sweep(objects: Arc<Objects>, stop: CancellationToken) {
    let work = async {
        let before = records(&objects).await?;
        let mut others = Vec::new();
        for object in before {
            let record = objects.get::<Record>(&object.location, RECORD_MAGIC, MAX_RECORD).await;
            match record {
                Ok(Some(record)) if record.owner.is_earlier_self(&objects.owner) => {
                    bury(&objects, &object.location, &record).await
                }
                Ok(Some(record)) if record.owner == objects.owner => {}
                Ok(None) => {}
                Ok(Some(_)) => others.push((
                    object.location,
                    Some(Version { modified: object.last_modified.into(), tag: object.e_tag }),
                )),
                Err(error) => debug!(%error, "left alone"),
            }
        }
        if others.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(LIFETIME).await;
        for (path, version) in others {
            let Some(object) = objects.head(&path).await? else { continue };
            if Some(Version::of(&object)) == version
                && let Ok(Some(record)) = objects.get::<Record>(&path, RECORD_MAGIC, MAX_RECORD).await
            {
                bury(&objects, &path, &record).await;
            }
        }
        Ok(())
    };
    let result: Option<Result<(), StorageError>> = stop.run_until_cancelled(work).await;
    if let Some(Err(error)) = result {
        warn!(%error, "uploads that were broken off stay in the object store until a seeder starts again");
    }
}

async fn records(objects: &Objects) -> Result<Vec<ObjectMeta>, StorageError> {
    let mut found = objects.list(&objects.names.uploads(), MAX_RECORDS).await?;
    found.extend(objects.list(&objects.names.all_leases(), MAX_RECORDS).await?);
    Ok(found)
}

async fn bury(objects: &Objects, path: &Path, record: &Record) {
    // A record may be anybody's who can write to the bucket; it must not make us abort anything else there.
    let upload =
        record.upload.as_ref().filter(|upload| objects.names.parse(&Path::from(upload.path.as_str())).is_some());
    match end(objects, path, upload).await {
        Ok(()) => {
            info!(object = objects.names.show(path), owner = record.owner.name, "removed what a dead seeder left")
        }
        Err(error) => warn!(%error, "what a dead seeder left stays"),
    }
}
