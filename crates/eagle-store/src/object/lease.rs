//! Who fetches a blob for the bucket.
//!
//! The leases of a blob are numbered records (`heartbeat`); the one with the highest number counts. A new one is
//! made with a conditional write, so of all who want number *n* one gets it. When its holder dies, number *n + 1* is free to take.
//! Who gets a lease looks for the blob once more, since the one before may have finished meanwhile. A lease saves work and protects
//! nothing: two seeders that fetch the same blob store the same bytes.

use std::{sync::Arc, time::Duration};

use eagle_core::Digest;
use object_store::PutMode;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    heartbeat::{Heartbeat, MAX_RECORD, RECORD_MAGIC, Record, Watch},
    names::lease_number,
    objects::Objects,
};
use crate::ssi::{Claim, Lease, StorageError};

/// How often somebody who waits looks again: two cheap requests.
const POLL: Duration = Duration::from_millis(500);
/// Leases of one blob looked at; more than one is left only by seeders that died.
const MAX_LEASES: usize = 1000;

pub(super) async fn claim(objects: &Arc<Objects>, digest: Digest) -> Result<Claim, StorageError> {
    let (began, mut watch, mut told) = (Instant::now(), Watch::default(), false);
    loop {
        if objects.is_complete(digest).await? {
            return Ok(Claim::Stored);
        }
        let leases = objects.list(&objects.names.leases(digest), MAX_LEASES).await?;
        let last = leases
            .iter()
            .filter_map(|object| Some((lease_number(&object.location)?, object)))
            .max_by_key(|lease| lease.0);
        let next = match last {
            None => Some(0),
            Some((number, object)) if watch.is_dead(object) => number.checked_add(1),
            Some((number, object)) => match objects.get::<Record>(&object.location, RECORD_MAGIC, MAX_RECORD).await {
                Ok(Some(record)) if record.owner.is_earlier_self(&objects.owner) => number.checked_add(1),
                // Gone by now: look again at once.
                Ok(None) => continue,
                Ok(Some(_)) => None,
                // Its holder, if it has one, renews it; if not, it dies like any other.
                Err(error) => {
                    debug!(%error, "a lease that says nothing");
                    None
                }
            },
        };
        if let Some(number) = next {
            let path = objects.names.lease(digest, number);
            if let Some(lease) = Heartbeat::begin(objects, path, None, PutMode::Create).await? {
                if objects.is_complete(digest).await? {
                    return Ok(Claim::Stored);
                }
                for (_, dead) in leases.iter().filter_map(|object| Some((lease_number(&object.location)?, object))) {
                    // What is left of it would only be looked at again.
                    if let Err(error) = objects.delete(&dead.location).await {
                        debug!(%error, "a lease of a dead seeder stays");
                    }
                }
                return Ok(Claim::Granted(Lease::new(lease.into_guard())));
            }
            continue;
        }
        if began.elapsed() >= objects.patience {
            warn!(blob = %digest, "another seeder has not stored a blob in {:?}; it is fetched here as well", objects.patience);
            return Ok(Claim::Granted(Lease::alone()));
        }
        if !told {
            info!(blob = %digest, "another seeder fetches this blob; waiting for it to be in the object store");
            told = true;
        }
        tokio::time::sleep(POLL).await;
    }
}
