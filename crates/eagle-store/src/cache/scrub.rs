//! Reads blobs again, slowly, to find those that were damaged on the disk while nobody asked for them.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use eagle_core::{Digest, Geometry, Metainfo, PieceHash, PieceIndex, units::Rate};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

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

/// A piece that was read.
struct Read {
    /// Of this entry.
    id: EntryId,
    checks: Arc<Checks>,
    bytes: Bytes,
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
            Ok(Some(metainfo)) => return self.scrub_whole(digest, metainfo.geometry, rate).await,
            _ => {
                let size = self.policy().get(digest).map(|slot| slot.size);
                let Some(Ok(geometry)) = size.map(Geometry::auto) else { return };
                return self.scrub_whole(digest, geometry, rate).await;
            }
        };
        let mut piece = first;
        while let Some(check) = metainfo.check(piece) {
            let began = Instant::now();
            let Some(Read { id, checks, bytes }) = self.read_piece(digest, metainfo.geometry, piece).await else {
                return;
            };
            let length = bytes.len() as u64;
            if let Err(error) = checks::prove_bytes(&checks, digest, (piece, check), bytes).await {
                return self.scrub_failed(digest, id, &error).await;
            }
            self.scrubbed(length, rate, began).await;
            piece = PieceIndex(piece.0 + 1);
            if kept.elapsed() >= KEEP_PLACE {
                *kept = Instant::now();
                self.storage.keep_scrub_place(Some(ScrubPlace { digest, piece })).await;
            }
        }
    }

    /// Reads a blob from its beginning, since the hashes of its pieces are not known. They are kept when they lead to the
    /// digest; if not, nobody can say which piece is wrong.
    async fn scrub_whole(self: &Arc<Self>, digest: Digest, geometry: Geometry, rate: Rate) {
        let mut metainfo = Metainfo::new(digest, geometry);
        let mut last = PieceHash::start(digest.algorithm());
        let mut sums = Vec::new();
        let mut whole: Option<(EntryId, Arc<Checks>)> = None;
        for piece in geometry.all() {
            let began = Instant::now();
            let Some(Read { id, checks, bytes }) = self.read_piece(digest, geometry, piece).await else { return };
            if whole.as_ref().is_some_and(|(first, _)| *first != id) {
                // It has gone and come back meanwhile, and has been checked when it came.
                return;
            }
            let length = bytes.len() as u64;
            let Ok((hash, of_piece)) = checks::hash_on(&checks, piece, last, bytes).await else { return };
            last = hash;
            metainfo.hashes.push(hash);
            sums.push((piece, of_piece));
            whole = Some((id, checks));
            self.scrubbed(length, rate, began).await;
        }
        let Some((id, checks)) = whole else { return };
        if !metainfo.leads_to_digest() {
            return self.scrub_failed(digest, id, &StorageError::Changed { digest, piece: PieceIndex(0) }).await;
        }
        for (piece, sums) in &sums {
            checks.note(*piece, sums);
        }
        if let Err(error) = self.keep_found(id, &metainfo).await {
            warn!(%digest, %error, "the hashes of a blob were found anew and cannot be kept");
        }
    }

    /// Counts what was read, and waits until more may be.
    async fn scrubbed(&self, bytes: u64, rate: Rate, began: Instant) {
        self.counters.scrubbed_bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(rate) = rate.bytes_per_second() {
            let due = Duration::from_secs_f64(bytes as f64 / rate as f64);
            sleep(due.saturating_sub(began.elapsed())).await;
        }
    }

    async fn scrub_failed(self: &Arc<Self>, digest: Digest, id: EntryId, error: &StorageError) {
        if error.is_lost_content() {
            self.lost(digest, id, error.to_string()).await;
        }
    }

    /// Reads one piece; `None` when the blob is gone, or cannot be read. The blob is held meanwhile and no longer: one that
    /// is long would otherwise stay for as long.
    async fn read_piece(self: &Arc<Self>, digest: Digest, geometry: Geometry, piece: PieceIndex) -> Option<Read> {
        // What the scrub holds cannot be evicted, and a newcomer must not be refused for its sake: it waits for one piece.
        let admission = self.admission.lock().await;
        let (hold, checks, size) = self.hold(digest, geometry)?;
        let id = hold.id;
        let read = async {
            let reader = match self.storage.open(digest).await {
                Ok(reader) => reader,
                Err(error) if error.is_damaged_file() => return Err(error),
                // As when this process has too many files open: nothing is said of the content.
                Err(_) => return Ok(None),
            };
            let whole = |reader: &Arc<dyn BlobReader>| reader.size() == size && size == geometry.size();
            let reader = reader.filter(whole).ok_or(StorageError::Changed { digest, piece })?;
            reader.read_aside(geometry.offset(piece), geometry.length(piece) as usize).await.map(Some)
        };
        let read = read.await;
        drop((hold, admission));
        match read {
            Ok(bytes) => Some(Read { id, checks, bytes: bytes? }),
            Err(error) => {
                self.scrub_failed(digest, id, &error).await;
                None
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
            Entry::Partial | Entry::Damaged => None,
        };
        if found.is_none() {
            policy.release(digest, id);
        }
        drop(policy);
        Some((hold(), found?, size))
    }
}
