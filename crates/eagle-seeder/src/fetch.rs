//! Origin fetches: one per blob, whoever asks and however many.
//!
//! A [`Fetch`] is the state of one, shared by everybody who waits for the blob: the hashes so far and
//! a [`Phase`], which only moves forward. [`Fetches`] holds the running ones by digest. The task of a
//! fetch is in [`run`]; it outlives who asked first, because others will ask.
//!
//! The order that keeps it at one fetch per blob: a finished blob is in the cache *before* its fetch
//! leaves the map, and a new fetch is entered only under the lock of the map and after a look into the
//! cache under the same lock.

mod follow;
mod input;
mod origin;
mod run;

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use eagle_core::{Digest, Geometry, PieceHash, PieceIndex};
use eagle_p2p::node::Node;
use eagle_registry::Registries;
use eagle_store::{BlobReader, Cache, CachedBlob, Lease};
use eagle_tracker::Announcer;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::run::Attempt;
use crate::{
    access::{Access, Source},
    client::SeederClient,
    config::PieceLength,
    error::FetchError,
    lease::Leases,
    metrics::Metrics,
};

/// Most fetches at once. Each holds a connection to an origin and a few tasks' worth of memory beside
/// the buffers that [`BUFFERS`] bounds.
const MAX_FETCHES: usize = 256;
/// Bytes of pieces in memory, of all fetches together: 64 pieces of 4 MiB, or 1,024 of 256 KiB.
const BUFFERS: usize = 256 << 20;
/// How long a failure is remembered: a burst of requests shares one failure, and a person's next try
/// is a real one.
const FAILURE_MEMORY: Duration = Duration::from_secs(1);
/// How long a seeder that is followed waits for the registry before it says that it does. Less than the follower's patience with a
/// seeder that says nothing at all.
const FIRST_WORD: Duration = Duration::from_secs(2);
/// How often a caller whose own credentials were not tried yet begins anew.
const ATTEMPTS: usize = 4;

/// How far a fetch is.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// The origin has not answered yet.
    Starting,
    /// Pieces come in, in order; the first `pieces` are stored.
    Running { geometry: Geometry, pieces: u32, reader: Arc<dyn BlobReader> },
    /// The blob was checked and is in the cache.
    Complete(CachedBlob),
    /// It ended with an error.
    Failed { error: FetchError, at: Instant },
}

/// One fetch, shared by all who wait for the blob.
#[derive(Debug)]
pub(crate) struct Fetch {
    digest: Digest,
    /// Key of the source whose credentials it uses.
    source: [u8; 32],
    hashes: Mutex<Vec<PieceHash>>,
    phase: watch::Sender<Phase>,
    /// Once it is this seeder's turn to fetch from the registry. Until then the blob comes from
    /// elsewhere, and nobody may wait for it here who could be waited for in turn.
    lease: Mutex<Option<Lease>>,
    /// Bytes that came in, for whoever wants to know whether the fetch gets on.
    received: Arc<AtomicU64>,
}

impl Fetch {
    fn new(digest: Digest, source: [u8; 32]) -> Arc<Self> {
        let (hashes, lease) = (Mutex::default(), Mutex::default());
        Arc::new(Self {
            digest,
            source,
            hashes,
            phase: watch::Sender::new(Phase::Starting),
            lease,
            received: Arc::default(),
        })
    }

    pub(crate) const fn digest(&self) -> Digest {
        self.digest
    }

    /// Follows the fetch from its present phase on.
    pub(crate) fn follow(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Hashes from piece `first` on, at most `limit`. Those of every piece that the phase has counted
    /// are there.
    pub(crate) fn hashes(&self, first: usize, limit: usize) -> Vec<PieceHash> {
        let hashes = self.lock_hashes();
        hashes.iter().skip(first).take(limit).copied().collect()
    }

    /// Waits until the origin has answered; gives the geometry.
    ///
    /// # Errors
    /// Those of the fetch.
    pub(crate) async fn started(&self) -> Result<Geometry, FetchError> {
        let mut phase = self.follow();
        // The sender lives as long as `self`, so the wait only ends with a value.
        let broken = || FetchError::Broken { digest: self.digest };
        let phase = phase.wait_for(|phase| !matches!(phase, Phase::Starting)).await.map_err(|_| broken())?;
        match &*phase {
            Phase::Starting => Err(broken()),
            Phase::Running { geometry, .. } => Ok(*geometry),
            Phase::Complete(blob) => blob.metainfo().map(|metainfo| metainfo.geometry).ok_or_else(broken),
            Phase::Failed { error, .. } => Err(error.clone()),
        }
    }

    /// Waits until a piece may be given out, and gives a reader that has it. The last piece is held
    /// back until the digest of the whole blob was checked, so that nobody receives all of a wrong blob.
    ///
    /// # Errors
    /// Those of the fetch.
    pub(crate) async fn piece(&self, piece: PieceIndex) -> Result<Arc<dyn BlobReader>, FetchError> {
        let mut phase = self.follow();
        let here = |phase: &Phase| match phase {
            Phase::Starting => false,
            Phase::Running { geometry, pieces, .. } => piece.0 < *pieces && piece.0 + 1 < geometry.pieces(),
            Phase::Complete(_) | Phase::Failed { .. } => true,
        };
        let broken = || FetchError::Broken { digest: self.digest };
        let phase = phase.wait_for(here).await.map_err(|_| broken())?;
        match &*phase {
            Phase::Starting => Err(broken()),
            Phase::Running { reader, .. } => Ok(Arc::clone(reader)),
            Phase::Complete(blob) => Ok(blob.reader()),
            Phase::Failed { error, .. } => Err(error.clone()),
        }
    }

    /// It is this seeder's turn.
    fn take_turn(&self, lease: Lease) {
        *self.lock_lease() = Some(lease);
    }

    /// What was kept until others can have the blob; `None` when it was not this seeder's turn.
    fn give_turn(&self) -> Option<Lease> {
        self.lock_lease().take()
    }

    /// Cancelled when another seeder has taken the turn, because this one seemed dead; never where it is nobody's.
    fn turn_lost(&self) -> CancellationToken {
        self.lock_lease().as_ref().map(Lease::lost).unwrap_or_default()
    }

    fn has_turn(&self) -> bool {
        self.lock_lease().is_some()
    }

    fn lock_lease(&self) -> MutexGuard<'_, Option<Lease>> {
        // A lease is put or taken whole.
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_hashes(&self) -> MutexGuard<'_, Vec<PieceHash>> {
        // Appending is all that is ever done under the lock.
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> Option<Instant> {
        match &*self.phase.borrow() {
            Phase::Failed { at, .. } => Some(*at),
            _ => None,
        }
    }
}

/// A blob that this seeder has, or will have.
#[derive(Debug, Clone)]
pub(crate) enum Blob {
    /// Complete.
    Stored(CachedBlob),
    /// On its way; the origin has answered.
    Running(Arc<Fetch>),
}

/// What the fetches of a seeder work with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) registries: Arc<Registries>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) node: Node,
    pub(crate) announcer: Announcer,
    pub(crate) access: Arc<Access>,
    pub(crate) metrics: Metrics,
    pub(crate) piece_length: PieceLength,
    /// Where seeders agree on who fetches a blob.
    pub(crate) leases: Leases,
    /// To take blobs from other seeders.
    pub(crate) seeders: SeederClient,
}

/// The fetches of a seeder; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Fetches(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    running: Mutex<HashMap<Digest, Arc<Fetch>>>,
    /// Permits for kibibytes of [`BUFFERS`].
    buffers: Arc<Semaphore>,
    tasks: TaskTracker,
    halt: CancellationToken,
}

/// What a look at the map of fetches came to.
enum Joined {
    /// The blob was completed in the meantime.
    Stored,
    /// Somebody has begun it.
    Running(Arc<Fetch>),
    /// It begins now.
    Started(Arc<Fetch>),
}

impl Fetches {
    /// No fetches; they end when `halt` is cancelled.
    pub(crate) fn new(parts: Parts, halt: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            parts,
            running: Mutex::default(),
            buffers: Arc::new(Semaphore::new(BUFFERS >> 10)),
            tasks: TaskTracker::new(),
            halt,
        }))
    }

    /// The blob, for a caller whom the origin has authorised for it; fetches it when nobody has.
    ///
    /// # Errors
    /// The origin's refusal of this very caller, or why the blob cannot be had.
    pub(crate) async fn obtain(&self, digest: Digest, source: &Source) -> Result<Blob, FetchError> {
        let key = source.key();
        let authorise = async |stored| {
            let allowed = self.0.parts.access.check(source, digest, stored).await;
            allowed.map(|_| ()).map_err(|error| FetchError::origin(digest, error))
        };
        let metrics = &self.0.parts.metrics;
        let mut last = FetchError::Broken { digest };
        for _ in 0..ATTEMPTS {
            if let Some(blob) = self.stored(digest).await {
                authorise(true).await?;
                metrics.spared("blob");
                return Ok(Blob::Stored(blob));
            }
            let (fetch, shared) = match self.join(digest, key, source)? {
                Joined::Stored => continue,
                Joined::Running(fetch) => (fetch, true),
                Joined::Started(fetch) => (fetch, false),
            };
            let own = fetch.source == key;
            if !own {
                authorise(false).await?;
            }
            match fetch.started().await {
                Ok(_) => {
                    if shared {
                        metrics.spared("blob");
                    }
                    return Ok(Blob::Running(fetch));
                }
                Err(error) if own || error.is_no_room() => return Err(error),
                // Somebody else's credentials or registry failed. Ours were not tried yet.
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The blob for another seeder, which takes this one for the holder of its lease: if it is here, or comes from the registry. Begins
    /// nothing and waits for no third seeder, so that seeders never wait for each other in a circle.
    ///
    /// # Errors
    /// The origin's refusal of this very caller, or that the blob is not to be had here.
    pub(crate) async fn held(&self, digest: Digest, source: &Source) -> Result<Blob, FetchError> {
        let authorise = async |stored| {
            let allowed = self.0.parts.access.check(source, digest, stored).await;
            allowed.map(|_| ()).map_err(|error| FetchError::origin(digest, error))
        };
        if let Some(blob) = self.stored(digest).await {
            authorise(true).await?;
            return Ok(Blob::Stored(blob));
        }
        let fetch = self.0.lock().get(&digest).cloned().filter(|fetch| fetch.has_turn() && fetch.failed().is_none());
        let fetch = fetch.ok_or(FetchError::NotHeld { digest })?;
        if fetch.source != source.key() {
            authorise(false).await?;
        }
        let started = tokio::time::timeout(FIRST_WORD, fetch.started()).await;
        started.map_err(|_| FetchError::NotYet { digest })??;
        Ok(Blob::Running(fetch))
    }

    /// Whether nothing is known of the blob yet because another seeder is waited for.
    pub(crate) fn waits_for_another(&self, digest: &Digest) -> bool {
        let running = self.0.lock();
        running.get(digest).is_some_and(|fetch| !fetch.has_turn() && matches!(*fetch.phase.borrow(), Phase::Starting))
    }

    /// Number of fetches that run.
    pub(crate) fn running(&self) -> usize {
        self.0.lock().values().filter(|fetch| fetch.failed().is_none()).count()
    }

    /// Whether the blob is being fetched.
    pub(crate) fn is_running(&self, digest: &Digest) -> bool {
        self.0.lock().get(digest).is_some_and(|fetch| fetch.failed().is_none())
    }

    /// Waits for the tasks of all fetches, after `halt` was cancelled.
    pub(crate) async fn stopped(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// The blob when it is complete. Without its metainfo it is of no use, and is fetched anew.
    async fn stored(&self, digest: Digest) -> Option<CachedBlob> {
        let cache = &self.0.parts.cache;
        let blob = cache.get(digest).await?;
        if blob.metainfo().is_some_and(|metainfo| metainfo.is_whole()) {
            return Some(blob);
        }
        tracing::warn!(blob = %digest, "the metainfo of a stored blob is lost; the blob is fetched anew");
        drop(blob);
        cache.remove(digest).await;
        None
    }

    fn join(&self, digest: Digest, key: [u8; 32], source: &Source) -> Result<Joined, FetchError> {
        let inner = &self.0;
        let mut running = inner.lock();
        let count = running.len();
        let fetch = match running.entry(digest) {
            Entry::Occupied(mut entry) => {
                let fetch = entry.get();
                let over = fetch.failed().is_some_and(|at| at.elapsed() >= FAILURE_MEMORY || fetch.source != key);
                if !over {
                    return Ok(Joined::Running(Arc::clone(fetch)));
                }
                let fetch = Fetch::new(digest, key);
                entry.insert(Arc::clone(&fetch));
                fetch
            }
            Entry::Vacant(_) if inner.parts.cache.contains(digest) => return Ok(Joined::Stored),
            Entry::Vacant(_) if count >= MAX_FETCHES => return Err(FetchError::Busy(MAX_FETCHES)),
            Entry::Vacant(_) if inner.halt.is_cancelled() => return Err(FetchError::Stopped),
            Entry::Vacant(entry) => Arc::clone(entry.insert(Fetch::new(digest, key))),
        };
        inner.tasks.spawn(run::run(Arc::clone(inner), Arc::clone(&fetch), source.clone(), Attempt::First));
        Ok(Joined::Started(fetch))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Fetch>>> {
        // The map is whole between any two operations, so a panic elsewhere leaves it usable.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts another fetch in the place of one that brought other content.
    fn begin_again(self: &Arc<Self>, fetch: &Arc<Fetch>, source: &Source) {
        let mut running = self.lock();
        let Some(there) = running.get_mut(&fetch.digest).filter(|there| Arc::ptr_eq(there, fetch)) else { return };
        *there = Fetch::new(fetch.digest, fetch.source);
        self.tasks.spawn(run::run(Arc::clone(self), Arc::clone(there), source.clone(), Attempt::Second));
    }

    /// Takes a fetch out of the map, unless another has taken its place.
    fn forget(&self, fetch: &Arc<Fetch>) {
        let mut running = self.lock();
        if running.get(&fetch.digest).is_some_and(|there| Arc::ptr_eq(there, fetch)) {
            running.remove(&fetch.digest);
        }
    }
}
