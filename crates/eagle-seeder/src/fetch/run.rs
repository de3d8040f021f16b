//! The task of one fetch: origin to storage, piece by piece, and to everybody who waits.
//!
//! Two halves run at the same time, with a queue of one piece between them. The first reads the
//! origin under the host's download limit and fills a buffer of one piece. The second hashes a full
//! piece on a blocking thread while it writes it, then publishes it. So at most three pieces of a fetch
//! are in memory, and network, hashing and disk overlap. The hash of the last piece is the digest of the
//! blob ([`eagle_core::piece_hash`]): unless it is, the piece is not published.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use eagle_core::{Digest, Geometry, Metainfo, PieceHash, PieceIndex, PieceSet};
use eagle_p2p::node::SwarmHandle;
use eagle_registry::{TraceContext, trace};
use eagle_store::{CachedBlob, CreateError, PartialEntry, StorageError};
use eagle_tracker::BlobStatus;
use futures::FutureExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use tracing::field::Empty;

use super::{
    FAILURE_MEMORY, Fetch, Inner, Phase,
    input::{Expected, Input},
    origin::OriginStream,
};
use crate::{access::Source, error::FetchError};

/// How often, and how far apart, a storage is asked again that still holds the entry of a fetch that
/// just failed: the last reader lets go of it within moments.
const CREATE_TRIES: u32 = 40;
const CREATE_DELAY: Duration = Duration::from_millis(50);

/// How long after the end of a fetch trackers are sure to have been told of it: announces of completed blobs wait for up to a
/// second.
const ANNOUNCED: Duration = Duration::from_secs(5);

/// A full piece on its way from the origin to the storage.
struct Filled {
    piece: PieceIndex,
    bytes: Bytes,
    /// Share of the memory for buffers, returned when the piece is written.
    permit: OwnedSemaphorePermit,
}

/// Whether a fetch that brought other content is followed by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Once: from a mirror that was not asked yet, or else from the same place, which may have had a bad
    /// moment.
    First,
    /// No more; then it is for people to find out why.
    Second,
}

/// Fetches the blob and tells everybody how it ended.
pub(super) async fn run(inner: Arc<Inner>, fetch: Arc<Fetch>, mut source: Source, attempt: Attempt) {
    let span = trace::child(source.caller.trace.as_ref(), || {
        tracing::info_span!(
            target: trace::TARGET, parent: None, "fetch a blob", otel.status_code = Empty, eagle.blob = %fetch.digest,
            eagle.registry = %source.registry, eagle.bytes = Empty, error.message = Empty
        )
    });
    source.caller.trace = TraceContext::of_span(&span);
    let counted = inner.parts.metrics.fetch_started();
    let began = Instant::now();
    // A panic must not leave others waiting for ever.
    let task = Run { inner: &inner, fetch: &fetch, source: &source, attempt };
    let work = AssertUnwindSafe(task.fetch_or_find()).catch_unwind();
    let result = tokio::select! {
        result = work => result.unwrap_or(Err(FetchError::Broken { digest: fetch.digest })),
        () = inner.halt.cancelled() => Err(FetchError::Stopped),
    };
    drop(counted);
    match &result {
        Ok(blob) => span.record("eagle.bytes", trace::number(blob.size())),
        Err(error) => span.record("otel.status_code", "ERROR").record("error.message", tracing::field::display(error)),
    };
    drop(span);
    let lease = fetch.give_turn();
    match result {
        Ok(blob) => {
            inner.parts.metrics.blob_complete();
            let seconds = began.elapsed().as_secs_f64();
            let request = source.caller.request_id.as_ref().map(tracing::field::display);
            tracing::info!(request, blob = %fetch.digest, registry = %source.registry, bytes = blob.size(), seconds, "fetched a blob");
            // In the cache first, then out of the map: see the head of `fetch`.
            fetch.phase.send_replace(Phase::Complete(blob.clone()));
            inner.forget(&fetch);
            if let Some(lease) = lease {
                // Others can find it once it is in the shared storage, or trackers know that it is here.
                let found = async {
                    match inner.parts.leases.shared() {
                        Some(shared) => shared.store(&blob).await,
                        None if lease.is_exclusive() => tokio::time::sleep(ANNOUNCED).await,
                        None => {}
                    }
                };
                tokio::select! {
                    () = found => {}
                    () = inner.halt.cancelled() => {}
                }
                drop(lease);
            }
        }
        Err(error) => {
            // It is somebody else's turn.
            drop(lease);
            if !matches!(error, FetchError::Stopped) {
                let request = source.caller.request_id.as_ref().map(tracing::field::display);
                tracing::warn!(request, blob = %fetch.digest, registry = %source.registry, %error, "a fetch failed");
            }
            if matches!(error, FetchError::WrongContent { .. }) {
                inner.parts.registries.get(&source.registry).distrust(fetch.digest);
                if attempt == Attempt::First {
                    // Before anybody learns of the failure: who asks again finds the next attempt.
                    inner.begin_again(&fetch, &source);
                }
            }
            fetch.phase.send_replace(Phase::Failed { error, at: Instant::now() });
            tokio::select! {
                () = tokio::time::sleep(FAILURE_MEMORY) => {}
                () = inner.halt.cancelled() => {}
            }
            inner.forget(&fetch);
        }
    }
}

pub(super) struct Run<'a> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) fetch: &'a Arc<Fetch>,
    pub(super) source: &'a Source,
    pub(super) attempt: Attempt,
}

impl Run<'_> {
    /// The blob from its origin.
    pub(super) async fn fetch(&self) -> Result<CachedBlob, FetchError> {
        let digest = self.fetch.digest;
        // What an earlier process left is taken up before the origin sends anything: hashing it again
        // takes time in which a connection would idle.
        let left_over = self.left_over().await?;
        let (entry, offset, origin) = match left_over {
            Some((entry, prefix)) => (entry, prefix, None),
            None => {
                let origin = self.open(0).await?;
                let geometry = self.geometry(origin.size())?;
                let Some(entry) = self.create(geometry).await? else {
                    return self.inner.parts.cache.get(digest).await.ok_or(FetchError::Broken { digest });
                };
                // A partial that the list did not show is not trusted with a head start.
                (entry, 0, Some(Input::Origin(Box::new(origin))))
            }
        };
        self.fill_or_discard(&entry, offset, origin).await
    }

    /// Fills the entry; what it has is thrown away when a next try should not begin with it.
    pub(super) async fn fill_or_discard(
        &self,
        entry: &PartialEntry,
        offset: u64,
        input: Option<Input>,
    ) -> Result<CachedBlob, FetchError> {
        let result = self.fill(entry, offset, input).await;
        if let Err(error) = &result
            && !error.keeps_progress()
        {
            entry.discard().await;
        }
        result
    }

    /// The pieces of an earlier process, when the origin still has the blob in that size for the
    /// caller: their entry and how many bytes from the start are there without a gap.
    async fn left_over(&self) -> Result<Option<(PartialEntry, u64)>, FetchError> {
        let digest = self.fetch.digest;
        let cache = &self.inner.parts.cache;
        let Some(known) = cache.list().into_iter().find(|entry| entry.digest == digest && !entry.complete) else {
            return Ok(None);
        };
        let size = self.inner.parts.access.ask(self.source, digest).await;
        let size = size.map_err(|error| FetchError::origin(digest, error))?;
        if size != known.size {
            cache.remove(digest).await;
            return Ok(None);
        }
        let geometry = self.geometry(size)?;
        let Some(entry) = self.create(geometry).await? else { return Ok(None) };
        let prefix = prefix(&entry);
        Ok(Some((entry, prefix)))
    }

    fn geometry(&self, size: u64) -> Result<Geometry, FetchError> {
        let digest = self.fetch.digest;
        self.inner.parts.piece_length.geometry(size).map_err(|error| FetchError::Geometry { digest, error })
    }

    async fn open(&self, offset: u64) -> Result<OriginStream, FetchError> {
        let parts = &self.inner.parts;
        let registry = parts.registries.get(&self.source.registry);
        let (source, metrics) = (self.source.clone(), parts.metrics.clone());
        let stream = OriginStream::open(registry, source, self.fetch.digest, offset, metrics).await?;
        parts.access.confirm(self.source, &self.fetch.digest);
        Ok(stream)
    }

    /// Room in the cache; `None` when the blob is complete there.
    pub(super) async fn create(&self, geometry: Geometry) -> Result<Option<PartialEntry>, FetchError> {
        let digest = self.fetch.digest;
        let mut tries = 0;
        loop {
            return match self.inner.parts.cache.create(digest, geometry).await {
                Ok(entry) => Ok(Some(entry)),
                Err(CreateError::Complete) => Ok(None),
                Err(CreateError::TooLarge { size, .. }) => Err(FetchError::TooLarge { digest, size }),
                Err(CreateError::Full) => Err(FetchError::NoRoom { digest }),
                Err(error @ CreateError::NoSpace { .. }) => {
                    Err(FetchError::NoSpace { digest, reason: error.to_string() })
                }
                Err(CreateError::InProgress) if tries < CREATE_TRIES => {
                    tries += 1;
                    tokio::time::sleep(CREATE_DELAY).await;
                    continue;
                }
                Err(CreateError::InProgress) => Err(self.storage(StorageError::InUse { digest })),
                Err(CreateError::Storage(error)) => Err(self.storage(error)),
            };
        }
    }

    /// Fills the entry from `offset` on, checks the blob and commits it.
    async fn fill(&self, entry: &PartialEntry, offset: u64, origin: Option<Input>) -> Result<CachedBlob, FetchError> {
        let digest = self.fetch.digest;
        let geometry = entry.geometry();
        let swarm = self.inner.parts.node.join(entry.clone(), Metainfo::new(digest, geometry), false).await;
        let publisher = Publisher { inner: self.inner, fetch: self.fetch, entry, swarm, geometry };
        publisher.announce(PieceSet::Empty);
        let result = self.fill_and_publish(&publisher, offset, origin).await;
        publisher.swarm.leave().await;
        match &result {
            Ok(_) => publisher.announce(PieceSet::Complete),
            Err(_) => self.inner.parts.announcer.remove(digest),
        }
        result
    }

    async fn fill_and_publish(
        &self,
        publisher: &Publisher<'_>,
        offset: u64,
        origin: Option<Input>,
    ) -> Result<CachedBlob, FetchError> {
        let digest = self.fetch.digest;
        let (entry, geometry) = (publisher.entry, publisher.geometry);
        self.set_phase(entry, 0);
        let mut last = PieceHash::start(digest.algorithm());
        let recovered = geometry.all().take_while(|piece| geometry.offset(*piece) < offset);
        for piece in recovered {
            let length = usize::try_from(geometry.length(piece)).unwrap_or(usize::MAX);
            let bytes = entry.reader().read_at(geometry.offset(piece), length).await;
            let bytes = bytes.map_err(|error| self.storage(error))?;
            last = self.hash(geometry, piece, bytes, last).await?;
            publisher.publish(piece, last).await;
        }
        if offset < geometry.size() {
            let origin = match origin {
                Some(origin) => origin,
                None => Input::Origin(Box::new(self.open(offset).await?)),
            };
            if origin.size() != geometry.size() {
                return Err(FetchError::SizeChanged {
                    registry: self.source.registry.to_string(),
                    digest,
                    before: geometry.size(),
                    after: origin.size(),
                });
            }
            let (queue, filled) = mpsc::channel(1);
            let expected = origin.expected();
            let reading = self.read(origin, geometry, offset, queue);
            let storing = self.store(publisher, filled, last, expected);
            tokio::try_join!(reading, storing)?;
        }
        if geometry.pieces() == 0 {
            self.check(digest.algorithm().empty())?;
        }
        let hashes = self.fetch.hashes(0, usize::MAX);
        let metainfo = Metainfo { digest, geometry, hashes };
        entry.commit(Some(metainfo)).await.map_err(|error| self.storage(error))
    }

    /// First half: from the origin into pieces.
    async fn read(
        &self,
        mut origin: Input,
        geometry: Geometry,
        offset: u64,
        queue: mpsc::Sender<Filled>,
    ) -> Result<(), FetchError> {
        let limiter = self.inner.parts.node.download_limiter();
        let lost = self.fetch.turn_lost();
        let mut pending = Bytes::new();
        for piece in geometry.all().skip_while(|piece| geometry.offset(*piece) < offset) {
            let length = usize::try_from(geometry.length(piece)).unwrap_or(usize::MAX);
            let permit = self.buffer(length).await?;
            let mut buffer = BytesMut::with_capacity(length);
            while buffer.len() < length {
                if pending.is_empty() {
                    let next = tokio::select! {
                        next = origin.next() => next?,
                        () = lost.cancelled(), if matches!(origin, Input::Origin(_)) => {
                            let reached = geometry.offset(piece) + buffer.len() as u64;
                            origin = self.rest_from_others(geometry, reached);
                            continue;
                        }
                    };
                    // The stream ends with the blob, and then this piece is full.
                    pending = next.ok_or(FetchError::Broken { digest: self.fetch.digest })?;
                    self.fetch.received.fetch_add(pending.len() as u64, Ordering::Relaxed);
                    limiter.acquire(pending.len() as u64).await;
                }
                let part = pending.split_to(pending.len().min(length - buffer.len()));
                buffer.extend_from_slice(&part);
            }
            if queue.send(Filled { piece, bytes: buffer.freeze(), permit }).await.is_err() {
                // The other half has failed, and its error is the one that counts.
                return Ok(());
            }
        }
        Ok(())
    }

    /// Memory for one piece.
    async fn buffer(&self, length: usize) -> Result<OwnedSemaphorePermit, FetchError> {
        let kibibytes = u32::try_from(length.div_ceil(1024)).unwrap_or(u32::MAX);
        let buffers: Arc<Semaphore> = Arc::clone(&self.inner.buffers);
        // The semaphore is never closed.
        buffers.acquire_many_owned(kibibytes).await.map_err(|_| FetchError::Stopped)
    }

    /// Second half: hashes, writes and publishes pieces in order, from the one after `last` on.
    async fn store(
        &self,
        publisher: &Publisher<'_>,
        mut filled: mpsc::Receiver<Filled>,
        mut last: PieceHash,
        expected: Option<Expected>,
    ) -> Result<(), FetchError> {
        while let Some(Filled { piece, bytes, permit }) = filled.recv().await {
            let hashing = self.hash(publisher.geometry, piece, bytes.clone(), last);
            let writing = publisher.entry.write_piece(piece, bytes);
            let (hashed, written) = tokio::join!(hashing, writing);
            written.map_err(|error| self.storage(error))?;
            last = hashed?;
            if let Some(expected) = &expected {
                expected.check(piece, last)?;
            }
            publisher.publish(piece, last).await;
            drop(permit);
        }
        Ok(())
    }

    /// Hashes a piece on from the one before it, away from the async threads. That of the last piece
    /// is an error unless it is the digest.
    async fn hash(
        &self,
        geometry: Geometry,
        piece: PieceIndex,
        bytes: Bytes,
        before: PieceHash,
    ) -> Result<PieceHash, FetchError> {
        let work = tokio::task::spawn_blocking(move || before.then(&geometry, piece, &bytes));
        let hash = work.await.map_err(|_| FetchError::Broken { digest: self.fetch.digest })?;
        if piece.0 + 1 == geometry.pieces() {
            self.check(hash.as_digest())?;
        }
        Ok(hash)
    }

    /// What the origin sent must be what was asked for.
    fn check(&self, actual: Digest) -> Result<(), FetchError> {
        let digest = self.fetch.digest;
        if actual == digest {
            return Ok(());
        }
        self.inner.parts.metrics.verification_failed();
        let registry = self.source.registry.to_string();
        Err(FetchError::WrongContent { registry, digest, actual: Box::new(actual) })
    }

    fn set_phase(&self, entry: &PartialEntry, pieces: u32) {
        let (geometry, reader) = (entry.geometry(), entry.reader());
        self.fetch.phase.send_replace(Phase::Running { geometry, pieces, reader });
    }

    fn storage(&self, error: StorageError) -> FetchError {
        FetchError::Storage { digest: self.fetch.digest, error: Arc::new(error) }
    }
}

/// Bytes from the start of a partial blob that are there without a gap.
pub(super) fn prefix(entry: &PartialEntry) -> u64 {
    let geometry = entry.geometry();
    let pieces = entry.recovered().first_missing(0).map_or_else(|| geometry.pieces(), |gap| gap.0);
    geometry.offset(PieceIndex(pieces)).min(geometry.size())
}

/// Tells everybody about stored pieces.
struct Publisher<'a> {
    inner: &'a Inner,
    fetch: &'a Fetch,
    entry: &'a PartialEntry,
    swarm: SwarmHandle,
    geometry: Geometry,
}

impl Publisher<'_> {
    /// The pieces come in order, and `piece` is written.
    async fn publish(&self, piece: PieceIndex, hash: PieceHash) {
        self.fetch.lock_hashes().push(hash);
        self.swarm.add_hashes(piece.0, vec![hash]).await;
        self.swarm.add_piece(piece).await;
        self.fetch.phase.send_modify(|phase| {
            if let Phase::Running { pieces, .. } = phase {
                *pieces = piece.0 + 1;
            }
        });
        self.announce(PieceSet::Prefix(piece.0 + 1));
    }

    fn announce(&self, pieces: PieceSet) {
        let status = BlobStatus { geometry: self.geometry, pieces, want_peers: false };
        self.inner.parts.announcer.update(self.fetch.digest, status);
    }
}
