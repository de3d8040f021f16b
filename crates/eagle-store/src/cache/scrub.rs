//! Reads blobs again, slowly, to find those that were damaged on the disk while nobody asked for them.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use eagle_core::{Digest, Geometry, Metainfo, PieceIndex, units::Rate};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::{Entry, Inner, checks, checks::Checks};
use crate::{
    policy::EntryId,
    ssi::{BlobReader, StorageError},
};

/// How long to wait when there is nothing to read, and after a round.
const PAUSE: Duration = Duration::from_secs(60);
/// Between two blobs: many small ones are not read all at once either.
const BETWEEN: Duration = Duration::from_millis(10);
/// How often the place is kept: a restart reads a minute's worth again.
const KEEP_PLACE: Duration = Duration::from_secs(60);

/// Where a scrub is: the piece that it reads next. Blobs come in the order of their digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubPlace {
    /// The blob.
    pub digest: Digest,
    /// Its piece.
    pub piece: PieceIndex,
}

/// Keeps an entry for as long as a piece of it is read, which is no use of it.
struct Hold<'a> {
    inner: &'a Inner,
    digest: Digest,
    id: EntryId,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.inner.policy().release(self.digest, self.id);
    }
}

/// How the look at one piece ended.
enum Looked {
    /// It is as it should be, and has so many bytes.
    Right(u64),
    /// There is no such piece: the blob is done.
    End,
    /// The blob cannot be looked at, or is gone.
    Gone,
}

impl Inner {
    /// Reads one blob after the other, for ever, and drops those that are damaged.
    pub(super) async fn scrub(self: &Arc<Self>) {
        let Some(rate) = self.settings.scrub_rate else { return std::future::pending().await };
        let mut from = self.storage.scrub_place().await;
        let mut kept = Instant::now();
        loop {
            // Rounds begin at the smallest digest; the first one perhaps in the middle. What comes during one is new.
            let mut digests: Vec<Digest> = {
                let policy = self.policy();
                policy.iter().filter(|(_, slot)| slot.value.is_complete()).map(|(digest, _)| *digest).collect()
            };
            digests.sort_unstable();
            let from = from.take();
            for digest in digests {
                let first = match from {
                    Some(place) if digest < place.digest => continue,
                    Some(place) if digest == place.digest => place.piece,
                    _ => PieceIndex(0),
                };
                self.scrub_blob(digest, first, rate, &mut kept).await;
                sleep(BETWEEN).await;
            }
            debug!("the scrub has read every blob");
            self.storage.keep_scrub_place(None).await;
            sleep(PAUSE).await;
        }
    }

    async fn scrub_blob(self: &Arc<Self>, digest: Digest, first: PieceIndex, rate: Rate, kept: &mut Instant) {
        let metainfo = match self.storage.metainfo(digest).await {
            Ok(Some(metainfo)) if metainfo.leads_to_digest() => metainfo,
            // Its hashes are found anew when it is read the next time.
            _ => return,
        };
        let mut piece = first;
        loop {
            let began = Instant::now();
            match self.scrub_piece(digest, &metainfo, piece).await {
                Looked::Right(bytes) => {
                    self.counters.scrubbed_bytes.fetch_add(bytes, Ordering::Relaxed);
                    if let Some(rate) = rate.bytes_per_second() {
                        let due = Duration::from_secs_f64(bytes as f64 / rate as f64);
                        sleep(due.saturating_sub(began.elapsed())).await;
                    }
                }
                Looked::End | Looked::Gone => return,
            }
            piece = PieceIndex(piece.0 + 1);
            if kept.elapsed() >= KEEP_PLACE {
                *kept = Instant::now();
                self.storage.keep_scrub_place(Some(ScrubPlace { digest, piece })).await;
            }
        }
    }

    /// Looks at one piece. The blob is held meanwhile and no longer: one that is long would otherwise stay for as long.
    async fn scrub_piece(self: &Arc<Self>, digest: Digest, metainfo: &Metainfo, piece: PieceIndex) -> Looked {
        let Some(check) = metainfo.check(piece) else { return Looked::End };
        // What the scrub holds cannot be evicted, and a newcomer must not be refused for its sake: it waits for one piece.
        let admission = self.admission.lock().await;
        let Some((hold, checks, size)) = self.hold(digest, metainfo.geometry) else { return Looked::Gone };
        let looked = async {
            let reader = self.storage.open(digest).await?;
            let whole = |reader: &Arc<dyn BlobReader>| reader.size() == size && size == metainfo.geometry.size();
            let reader = reader.filter(whole).ok_or(StorageError::Changed { digest, piece })?;
            checks::prove_piece(&checks, &Aside(&*reader), digest, (piece, check)).await
        };
        let looked = looked.await;
        let held = (hold, admission);
        match looked {
            Ok(()) => Looked::Right(u64::from(metainfo.geometry.length(piece))),
            Err(error) => {
                let id = held.0.id;
                drop(held);
                if error.is_lost_content() {
                    self.lost(digest, id, error.to_string()).await;
                }
                Looked::Gone
            }
        }
    }

    /// Holds a complete blob of this geometry, with what is known of its content.
    fn hold(&self, digest: Digest, geometry: Geometry) -> Option<(Hold<'_>, Arc<Checks>, u64)> {
        let mut policy = self.policy();
        let slot = policy.hold(digest)?;
        let (id, size) = (slot.id, slot.size);
        let hold = || Hold { inner: self, digest, id };
        let found = match &mut policy.get_mut(digest, id)?.value {
            Entry::Complete { checks, .. } => {
                let fits = checks.as_ref().is_some_and(|checks| checks.geometry() == geometry);
                if !fits {
                    *checks = Some(Arc::new(Checks::new(geometry)));
                }
                checks.clone()
            }
            Entry::Partial => None,
        };
        if found.is_none() {
            policy.release(digest, id);
        }
        drop(policy);
        Some((hold(), found?, size))
    }
}

/// Reads past what others need in memory.
#[derive(Debug)]
struct Aside<'a>(&'a dyn BlobReader);

#[async_trait::async_trait]
impl BlobReader for Aside<'_> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<bytes::Bytes, StorageError> {
        self.0.read_aside(offset, length).await
    }
}
