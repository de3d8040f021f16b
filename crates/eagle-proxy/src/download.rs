//! Getting blobs: one download per blob, however many runtimes ask for it.
//!
//! A `state::Download` moves through the phases of `state::Phase`. Its task (`task`) is the only one
//! that changes the phase; readers (`reader`) follow it and give the runtime bytes in order. Beside
//! the task run the feed of piece hashes from a seeder (`feed`), the proof of the blob's digest
//! (`verify`) and, when the peer network does not deliver, the filler (`filler`), which takes bytes
//! from a seeder over HTTP or from the origin (`sources`). A blob that cannot be kept on this node
//! is relayed (`passthrough`).

mod again;
mod feed;
mod filler;
mod keep;
mod pace;
mod passthrough;
mod reader;
mod run;
mod small;
mod sources;
mod state;
mod task;
mod verify;

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use eagle_core::{Digest, PeerInfo, PieceIndex};
use eagle_p2p::node::Node;
use eagle_registry::Registries;
use eagle_seeder::client::SeederClient;
use eagle_store::Cache;
use eagle_tracker::Announcer;
use http::{HeaderMap, StatusCode};
use lru::LruCache;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use self::{
    again::Distrust,
    small::{MAX_SMALL, SmallBlobs},
    state::{Download, Phase, Ticket, Whole},
};
pub(crate) use self::{
    reader::{BlobProgress, Opened},
    sources::Failure,
};
pub use self::{
    reader::{BlobStream, OpenBlob},
    state::BlobRequest,
};
use crate::metrics::Metrics;

/// How long a download goes on after its last reader left: a runtime that was interrupted asks again
/// within seconds, and containerd closes ranges early as a matter of course.
const LINGER: Duration = Duration::from_secs(30);
/// How long a blob that did not match its digest is fetched from the origin alone, or without the seeders that were contradicted.
const DISTRUST: Duration = Duration::from_secs(600);
/// Blobs remembered as distrusted; more than a few mean trouble that remembering does not cure.
const MAX_DISTRUSTED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// An answer of the origin that is the answer to the runtime.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Its status.
    pub status: StatusCode,
    /// Those of its headers that the runtime needs, such as `WWW-Authenticate` and `Retry-After`.
    pub headers: HeaderMap,
    /// Its body, usually errors in JSON.
    pub body: Bytes,
}

/// Why a blob cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The origin said no.
    #[error("the registry answered {}", .0.status)]
    Refused(Box<Refusal>),
    /// No source could give it.
    #[error("no source could give the blob: {}", tried.join("; "))]
    Unavailable {
        /// What was tried, and how each one failed.
        tried: Vec<String>,
    },
    /// The bytes that arrived are not the blob.
    #[error("the bytes that arrived have the digest {actual}; they were thrown away")]
    Corrupt {
        /// Digest of what arrived.
        actual: Digest,
    },
    /// The registry gives another piece than the one whose hash a seeder gave: one of the two is wrong.
    #[error("piece {piece} of the registry does not have the hash that a seeder gave; what arrived was thrown away")]
    Contradiction {
        /// The first such piece.
        piece: PieceIndex,
    },
    /// Two seeders give different hashes of a piece: what arrived by those of one of them may be another blob.
    #[error("two seeders give different hashes of piece {piece}; what arrived was thrown away")]
    Disagreement {
        /// The first such piece.
        piece: PieceIndex,
        /// The seeders that were believed first.
        suspects: Vec<Url>,
    },
    /// A part of the blob was given away, then the disk failed, and what was given is not of the blob or cannot be compared with it.
    #[error("what was given before the disk failed cannot be shown to be of the blob")]
    Unproven,
    /// The disk failed under a blob that is being read.
    #[error("{0}")]
    Storage(String),
    /// The proxy shuts down.
    #[error("the proxy is shutting down")]
    Stopped,
}

impl BlobError {
    /// Which kind of error it is, for the metrics.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Unavailable { .. } => "unavailable",
            Self::Corrupt { .. } | Self::Contradiction { .. } | Self::Disagreement { .. } | Self::Unproven => {
                "wrong_content"
            }
            Self::Storage(_) => "storage",
            Self::Stopped => "stopping",
        }
    }
}

/// How downloads behave.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long no piece may arrive before another source takes over.
    pub stall_timeout: Duration,
    /// Whether the origin is a source at all.
    pub origin_fallback: bool,
}

/// What all downloads of a proxy share.
pub(crate) struct Context {
    pub(crate) cache: Arc<Cache>,
    pub(crate) node: Node,
    pub(crate) announcer: Announcer,
    pub(crate) seeders: SeederClient,
    pub(crate) registries: Arc<Registries>,
    pub(crate) metrics: Metrics,
    pub(crate) settings: Settings,
    pub(crate) answers: eagle_store::answers::Answers,
    pub(crate) tasks: TaskTracker,
    /// Ends everything at once; comes after the server has drained.
    pub(crate) stop: CancellationToken,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The downloads of a proxy; clones share them.
#[derive(Debug, Clone)]
pub struct Downloads(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    context: Arc<Context>,
    running: Mutex<HashMap<Digest, Arc<Download>>>,
    distrusted: Mutex<LruCache<Digest, (Instant, Distrust)>>,
    small: SmallBlobs,
}

impl Downloads {
    pub(crate) fn new(context: Context) -> Self {
        Self(Arc::new(Inner {
            context: Arc::new(context),
            running: Mutex::default(),
            distrusted: Mutex::new(LruCache::new(MAX_DISTRUSTED)),
            small: SmallBlobs::new(),
        }))
    }

    /// Opens a blob for a caller who may read it. Returns as soon as its size is known.
    ///
    /// # Errors
    /// When the origin refuses, or no source can give it.
    pub async fn open(&self, request: BlobRequest) -> Result<OpenBlob, Arc<BlobError>> {
        let mut own_attempt = false;
        loop {
            if let Some((size, source)) = self.cached(request.digest).await {
                return Ok(OpenBlob::new(self.clone(), request, size, source));
            }
            let (ticket, started_it) = self.attach(request.clone());
            let error = match self.wait_for_size(&ticket).await {
                Ok(size) => return Ok(OpenBlob::new(self.clone(), request, size, Opened::Arriving(ticket))),
                Err(error) => error,
            };
            // A download that somebody else began may have failed for their credentials' sake.
            if started_it || own_attempt || !matches!(*error, BlobError::Refused(_)) {
                return Err(error);
            }
            own_attempt = true;
        }
    }

    /// Size of a blob that is here or on its way; `None` when nothing is known of it.
    pub async fn size(&self, digest: Digest) -> Option<u64> {
        if let Some(blob) = self.0.context.cache.get(digest).await {
            return Some(blob.size());
        }
        let download = self.running().get(&digest).cloned()?;
        let phase = download.phase();
        match &*phase.borrow() {
            Phase::Running(running) => Some(running.geometry.size()),
            Phase::PassThrough { size, .. } => Some(*size),
            Phase::Complete(whole) => Some(whole.reader.size()),
            Phase::Starting | Phase::Failed(_) => None,
        }
    }

    /// Peers that a tracker has named for a blob.
    pub(crate) async fn found(&self, digest: Digest, peers: Vec<PeerInfo>) {
        let download = self.running().get(&digest).cloned();
        if let Some(swarm) = download.and_then(|download| download.swarm()) {
            swarm.add_peers_of_tracker(peers).await;
        }
    }

    /// For people: what is on its way.
    pub fn status(&self) -> serde_json::Value {
        let downloads: Vec<_> = self.running().values().cloned().collect();
        downloads.iter().map(|download| download.status()).collect()
    }

    /// Ends when every download and reader has ended, after the context's `stop` was cancelled.
    pub(crate) async fn stopped(&self) {
        self.0.context.tasks.close();
        self.0.context.tasks.wait().await;
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.0.context
    }

    /// The blob, with its size, when it is here.
    async fn cached(&self, digest: Digest) -> Option<(u64, Opened)> {
        if let Some(content) = self.0.small.get(&digest) {
            if self.0.context.cache.touch(digest) {
                return Some((content.len() as u64, Opened::Memory(content)));
            }
            self.0.small.remove(&digest);
        }
        let blob = self.0.context.cache.get(digest).await?;
        let size = blob.size();
        let whole = Whole { reader: blob.reader() };
        if size > MAX_SMALL {
            return Some((size, Opened::Cached(Arc::new(whole))));
        }
        let content = match whole.reader.read_at(0, usize::try_from(size).unwrap_or(usize::MAX)).await {
            Ok(content) => content,
            Err(error) => {
                // If it was damaged, the cache has dropped it, and it is fetched again.
                tracing::warn!(%digest, %error, "a cached blob cannot be read");
                self.0.context.metrics.verification_failure();
                return None;
            }
        };
        let mut hasher = digest.hasher();
        hasher.update(&content);
        if hasher.finish() != digest {
            tracing::warn!(%digest, "a cached blob has changed on the disk; it is dropped and fetched again");
            self.0.context.metrics.verification_failure();
            self.0.context.cache.remove(digest).await;
            return None;
        }
        // A copy of its own: the buffer that it was read into is larger.
        let content = Bytes::copy_from_slice(&content);
        self.0.small.put(digest, content.clone());
        Some((size, Opened::Memory(content)))
    }

    /// A place among the readers of the blob's download, which is begun when there is none.
    fn attach(&self, request: BlobRequest) -> (Ticket, bool) {
        let digest = request.digest;
        let mut running = self.running();
        if let Some(download) = running.get(&digest) {
            return (download.attach(request), false);
        }
        let download = Arc::new(Download::new(digest, self.is_distrusted(&digest)));
        let ticket = download.attach(request);
        running.insert(digest, Arc::clone(&download));
        drop(running);
        let (this, context) = (self.clone(), Arc::clone(&self.0.context));
        let count = context.metrics.running();
        self.0.context.tasks.spawn(async move {
            let end = task::run(&context, &download, || this.abandon(&download)).await;
            if let Phase::Failed(error) = &end
                && let Some(distrust) = Distrust::after(error, &download)
            {
                this.distrust(digest, distrust);
            }
            // First out of the map, so that nobody joins a download that has ended.
            this.forget(&download);
            download.set_phase(end);
            drop(count);
        });
        (ticket, true)
    }

    async fn wait_for_size(&self, ticket: &Ticket) -> Result<u64, Arc<BlobError>> {
        let mut phases = ticket.download().phase();
        loop {
            match &*phases.borrow_and_update() {
                Phase::Starting => {}
                // There is no byte to hold back, so the check must come before the answer.
                Phase::Running(running) if running.geometry.size() == 0 => {}
                Phase::Running(running) => return Ok(running.geometry.size()),
                Phase::Complete(whole) => return Ok(whole.reader.size()),
                Phase::PassThrough { size, .. } => return Ok(*size),
                Phase::Failed(error) => return Err(Arc::clone(error)),
            }
            phases.changed().await.map_err(|_| Arc::new(BlobError::Stopped))?;
        }
    }

    /// Takes a download without readers out of the map; false when somebody reads it after all.
    fn abandon(&self, download: &Arc<Download>) -> bool {
        let mut running = self.running();
        if download.reader_count() > 0 {
            return false;
        }
        remove(&mut running, download);
        true
    }

    fn forget(&self, download: &Arc<Download>) {
        remove(&mut self.running(), download);
    }

    fn distrust(&self, digest: Digest, distrust: Distrust) {
        self.distrusted().put(digest, (Instant::now() + DISTRUST, distrust));
    }

    fn is_distrusted(&self, digest: &Digest) -> Option<Distrust> {
        let mut distrusted = self.distrusted();
        distrusted.get(digest).filter(|(until, _)| *until > Instant::now()).map(|(_, distrust)| distrust.clone())
    }

    fn distrusted(&self) -> MutexGuard<'_, LruCache<Digest, (Instant, Distrust)>> {
        self.0.distrusted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Download>>> {
        // The map is whole between operations: a panic elsewhere leaves it usable.
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove(running: &mut HashMap<Digest, Arc<Download>>, download: &Arc<Download>) {
    if running.get(&download.digest).is_some_and(|current| Arc::ptr_eq(current, download)) {
        running.remove(&download.digest);
    }
}
