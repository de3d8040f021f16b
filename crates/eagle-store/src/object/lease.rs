//! Who fetches a blob for the bucket.
//!
//! The leases of a blob are numbered records (`heartbeat`); the one with the highest number counts. A new one is
//! made with a conditional write, so of all who want number *n* one gets it. When its holder dies, number *n + 1* is free to take.
//! Who gets a lease looks for the blob once more, since the one before may have finished meanwhile. Who was taken for dead and goes on
//! finds its lease gone, or one with a higher number, and stops fetching.

use std::sync::Arc;

use eagle_core::Digest;
use object_store::PutMode;
use tracing::debug;

use super::{
    heartbeat::{Heartbeat, LIFETIME, MAX_RECORD, Of, RECORD_MAGIC, Record, Version},
    names::lease_number,
    objects::Objects,
};
use crate::{
    error::StorageError,
    lease::{Claim, Claimant, Holder},
};

/// Leases of one blob looked at; more than one is left only by seeders that died.
const MAX_LEASES: usize = 1000;
/// How often it is looked again when leases change while they are looked at; after that they are somebody's.
const LOOKS: usize = 4;

pub(super) async fn claim(
    objects: &Arc<Objects>,
    digest: Digest,
    claimant: &mut Claimant,
) -> Result<Claim, StorageError> {
    for _ in 0..LOOKS {
        if objects.is_complete(digest).await? {
            return Ok(Claim::Stored);
        }
        let leases = objects.list(&objects.names.leases(digest), MAX_LEASES).await?;
        let leases: Vec<_> =
            leases.iter().filter_map(|object| Some((lease_number(&object.location)?, object))).collect();
        let next = match leases.iter().max_by_key(|lease| lease.0) {
            None => Ok(0),
            Some((number, object)) => {
                let held = |holder| number.checked_add(1).ok_or(holder);
                let state = format!("{} {:?}", object.location, Version::of(object));
                let dead = claimant.unchanged(&state) >= LIFETIME;
                match objects.get::<Record>(&object.location, RECORD_MAGIC, MAX_RECORD).await {
                    Ok(Some(record)) if dead || record.owner.is_earlier_self(&objects.owner) => held(holder(record)),
                    Ok(Some(record)) => Err(holder(record)),
                    // Gone by now: look again at once.
                    Ok(None) => continue,
                    Err(_) if dead => held(Holder::default()),
                    // Its holder, if it has one, renews it; if not, it dies like any other.
                    Err(error) => {
                        debug!(%error, "a lease that says nothing");
                        Err(Holder::default())
                    }
                }
            }
        };
        let number = match next {
            Ok(number) => number,
            Err(holder) => return Ok(Claim::Held(holder)),
        };
        let path = objects.names.lease(digest, number);
        let of = Of::Lease { digest, url: claimant.url().map(str::to_owned) };
        if let Some(lease) = Heartbeat::begin(objects, path, of, PutMode::Create).await? {
            if objects.is_complete(digest).await? {
                return Ok(Claim::Stored);
            }
            for (_, dead) in leases {
                // What is left of it would only be looked at again.
                if let Err(error) = objects.delete(&dead.location).await {
                    debug!(%error, "a lease of a dead seeder stays");
                }
            }
            return Ok(Claim::Granted(lease.into_lease()));
        }
    }
    Ok(Claim::Held(Holder::default()))
}

fn holder(record: Record) -> Holder {
    Holder { name: record.owner.name, url: record.url }
}
