//! Objects that say that somebody is at work, as long as somebody is.
//!
//! A *record* is written anew every [`RENEWAL`] with a higher number. Nobody compares clocks: who looks at it and
//! finds it unchanged for [`LIFETIME`], by a clock of its own, takes its writer for dead.
//!
//! A writer that only stood still, or could not reach the store, is told nothing of that. So before each renewal it looks whether its lease is
//! its own still: it does not go by its own clock, which stands still with a virtual machine. Whoever has lost a lease knows it within
//! [`RENEWAL`] and the time of three requests after it goes on.

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

use eagle_core::Digest;

use super::{Owner, names::lease_number, objects::Objects};
use crate::{envelope::Magic, error::StorageError, lease::Lease};

/// How long a record may stay as it is before its writer counts as dead. What a seeder that was killed
/// delays others by; several renewals, so that one that a busy store was slow to take does not matter.
pub(super) const LIFETIME: Duration = Duration::from_secs(10);
/// How often a record is renewed.
pub(super) const RENEWAL: Duration = Duration::from_secs(2);
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
    Lease { digest: Digest, url: Option<String> },
}

/// Keeps a record alive; dropping it ends the record, and the upload with it unless that was completed.
#[derive(Debug)]
pub(super) struct Heartbeat {
    ends: DropGuard,
    completed: Arc<AtomicBool>,
    lost: CancellationToken,
}

/// What the task that keeps a record works with.
struct Kept {
    objects: Arc<Objects>,
    path: Path,
    record: Record,
    /// Of a lease: the blob.
    digest: Option<Digest>,
    ended: CancellationToken,
    completed: Arc<AtomicBool>,
    lost: CancellationToken,
}

/// What became of a lease while its holder did not look.
#[derive(Debug, PartialEq, Eq)]
enum Still {
    /// It is its holder's.
    Own,
    /// Another has the next one; this one is left over.
    Succeeded,
    /// It was removed, and may be another's by now.
    Gone,
}

impl Heartbeat {
    /// Writes the record; `None` when there is one already and `mode` is [`PutMode::Create`].
    pub(super) async fn begin(
        objects: &Arc<Objects>,
        path: Path,
        of: Of,
        mode: PutMode,
    ) -> Result<Option<Self>, StorageError> {
        let (upload, digest, url) = match of {
            Of::Upload(upload) => (Some(upload), None, None),
            Of::Lease { digest, url } => (None, Some(digest), url),
        };
        let record = Record { owner: objects.owner.clone(), number: 0, upload, url };
        if !objects.put(&path, RECORD_MAGIC, &record, mode).await? {
            return Ok(None);
        }
        let kept = Kept {
            objects: Arc::clone(objects),
            path,
            record,
            digest,
            ended: CancellationToken::new(),
            completed: Arc::default(),
            lost: CancellationToken::new(),
        };
        let ends = kept.ended.clone().drop_guard();
        let heartbeat = Self { ends, completed: Arc::clone(&kept.completed), lost: kept.lost.clone() };
        objects.tasks.spawn(kept.keep());
        Ok(Some(heartbeat))
    }

    /// The upload is an object now.
    pub(super) fn completed(&self) {
        self.completed.store(true, Ordering::Release);
    }

    /// The lease that it is the heartbeat of.
    pub(super) fn into_lease(self) -> Lease {
        Lease::revocable(self.ends, self.lost)
    }
}

impl Kept {
    /// Renews the record until it ends or is lost, and cleans up.
    async fn keep(mut self) {
        let ended = self.ended.clone();
        let mut still = Still::Own;
        loop {
            tokio::select! {
                () = ended.cancelled() => break,
                () = tokio::time::sleep(RENEWAL) => {}
            }
            let renewed = tokio::select! {
                () = ended.cancelled() => break,
                renewed = self.renew() => renewed,
            };
            match renewed {
                Ok(Still::Own) => {}
                Ok(found) => {
                    info!(
                        object = self.objects.names.show(&self.path),
                        "another seeder has taken the lease of a blob from this one"
                    );
                    self.lost.cancel();
                    still = found;
                    break;
                }
                Err(error) => {
                    warn!(%error, "a record in the object store was not renewed; another seeder may do the same work");
                }
            }
        }
        match tokio::time::timeout(CLEAN_UP, self.clean_up(still)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "what is left of it is removed when a seeder starts"),
            Err(_) => {
                let object = self.objects.names.show(&self.path);
                warn!(object, "not removed in time; that is done when a seeder starts");
            }
        }
    }

    /// Writes the record anew, unless it is another's by now.
    async fn renew(&mut self) -> Result<Still, StorageError> {
        let still = self.still().await?;
        if still == Still::Own {
            self.record.number += 1;
            self.objects.put(&self.path, RECORD_MAGIC, &self.record, PutMode::Overwrite).await?;
        }
        Ok(still)
    }

    /// Whose the lease is. An upload's record has a name that no other gets.
    async fn still(&self) -> Result<Still, StorageError> {
        let (Some(digest), Some(number)) = (self.digest, lease_number(&self.path)) else { return Ok(Still::Own) };
        match self.objects.get::<Record>(&self.path, RECORD_MAGIC, MAX_RECORD).await {
            Ok(Some(record)) if record.owner == self.objects.owner => {}
            // Numbers begin anew when a blob has no lease.
            Ok(_) => return Ok(Still::Gone),
            // What somebody else wrote in its place is no lease, and is written over.
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(error),
        }
        let leases = self.objects.list(&self.objects.names.leases(digest), MAX_RECORDS).await?;
        let succeeded = leases.iter().filter_map(|lease| lease_number(&lease.location)).any(|other| other > number);
        Ok(if succeeded { Still::Succeeded } else { Still::Own })
    }

    async fn clean_up(&self, mut still: Still) -> Result<(), StorageError> {
        if still == Still::Own {
            still = self.still().await?;
        }
        if still == Still::Gone {
            return Ok(());
        }
        let upload = self.record.upload.as_ref().filter(|_| !self.completed.load(Ordering::Acquire));
        end(&self.objects, &self.path, upload).await
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
