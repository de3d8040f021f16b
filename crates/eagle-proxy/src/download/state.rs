//! What the readers of a blob and the task that gets it share.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use eagle_core::{Bitfield, Digest, Geometry};
use eagle_p2p::node::SwarmHandle;
use eagle_registry::{Caller, RegistryName, RepositoryName};
use eagle_store::BlobReader;
use serde_json::json;
use tokio::sync::{Notify, watch};
use url::Url;

use super::{
    BlobError,
    again::{Distrust, Given},
    pace::Pace,
    sources::Content,
};
use crate::metrics::Source;

/// Callers that one download remembers: enough to outlive one whose credentials end meanwhile.
const MAX_REQUESTS: usize = 4;

/// A caller who may read a blob, and where from.
#[derive(Debug, Clone)]
pub struct BlobRequest {
    /// The blob.
    pub digest: Digest,
    /// The registry it is in.
    pub registry: RegistryName,
    /// The repository it is in.
    pub repository: RepositoryName,
    /// Who asks.
    pub caller: Caller,
}

/// How far a blob is.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// Nobody has said yet how large it is.
    Starting,
    /// Pieces are coming in.
    Running(Arc<Running>),
    /// Every piece is here and the blob matched its digest.
    Complete(Arc<Whole>),
    /// It cannot be kept on this node: each reader fetches for itself from where it is.
    PassThrough {
        /// Size of the blob, bytes.
        size: u64,
        /// What arrived before the disk turned out to be full, when something did.
        prefix: Option<Arc<dyn BlobReader>>,
    },
    /// No source could give it.
    Failed(Arc<BlobError>),
}

/// A blob that is arriving.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) geometry: Geometry,
    pub(crate) reader: Arc<dyn BlobReader>,
    /// Pieces that are here and matched their hash.
    pub(crate) pieces: watch::Receiver<Arc<Bitfield>>,
}

/// A blob that is here and was verified. Its reader keeps the cache from evicting it.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) reader: Arc<dyn BlobReader>,
}

/// One blob on its way, shared by everyone who reads it.
#[derive(Debug)]
pub(crate) struct Download {
    pub(crate) digest: Digest,
    phase: watch::Sender<Phase>,
    readers: Mutex<Readers>,
    /// Readers came, moved or went.
    pub(crate) readers_changed: Notify,
    pub(crate) received: Received,
    /// Whether seeders and peers are left out, because what they gave before was wrong.
    pub(crate) origin_only: bool,
    /// Seeders that are left out, because another one has contradicted them.
    pub(crate) without: Vec<Url>,
    /// What the disk said when a reader could not read what had arrived.
    trouble: watch::Sender<Option<String>>,
    swarm: Mutex<Option<SwarmHandle>>,
    /// How fast it is, and what limits it, while pieces come in.
    pace: Mutex<Pace>,
    /// What readers may have been given, once the attempt was thrown away.
    given: Mutex<Option<Arc<Given>>>,
    /// Content that was asked for and that the first reader to relay the blob can use.
    content: Mutex<Option<Content>>,
}

#[derive(Debug, Default)]
struct Readers {
    next: u64,
    /// Where each one is.
    at: BTreeMap<u64, Place>,
    /// Those allowed to read it, the latest last.
    requests: Vec<BlobRequest>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// Bytes from the start of the blob.
    at: u64,
    /// Whether it has bytes that the runtime has not taken.
    giving: bool,
}

/// Bytes of one blob by source.
#[derive(Debug, Default)]
pub(crate) struct Received {
    peers: AtomicU64,
    seeders: AtomicU64,
    seeders_http: AtomicU64,
    origin: AtomicU64,
}

impl Received {
    /// Sets what the peer network counts; returns how much more it is, from proxies and seeders.
    pub(crate) fn set_swarm(&self, peers: u64, seeders: u64) -> (u64, u64) {
        let more = |counter: &AtomicU64, now: u64| now.saturating_sub(counter.swap(now, Ordering::Relaxed));
        (more(&self.peers, peers), more(&self.seeders, seeders))
    }

    /// Counts bytes fetched over HTTP.
    pub(crate) fn add(&self, source: Source, bytes: u64) {
        let counter = match source {
            Source::Origin => &self.origin,
            Source::Cache | Source::Peer | Source::Seeder => &self.seeders_http,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes from proxies, from seeders over the peer network, from seeders over HTTP, and from the origin.
    pub(crate) fn get(&self) -> [u64; 4] {
        [&self.peers, &self.seeders, &self.seeders_http, &self.origin].map(|counter| counter.load(Ordering::Relaxed))
    }
}

impl Download {
    pub(crate) fn new(digest: Digest, distrust: Option<Distrust>) -> Self {
        let (origin_only, without) = match distrust {
            None => (false, Vec::new()),
            Some(Distrust::Seeders(without)) => (false, without),
            Some(Distrust::AllButOrigin) => (true, Vec::new()),
        };
        Self {
            digest,
            phase: watch::Sender::new(Phase::Starting),
            readers: Mutex::default(),
            readers_changed: Notify::new(),
            received: Received::default(),
            origin_only,
            without,
            trouble: watch::Sender::new(None),
            swarm: Mutex::default(),
            pace: Mutex::default(),
            given: Mutex::default(),
            content: Mutex::default(),
        }
    }

    /// The swarm of the blob, while pieces come in.
    pub(crate) fn swarm(&self) -> Option<SwarmHandle> {
        self.swarm.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_swarm(&self, swarm: Option<SwarmHandle>) {
        *self.swarm.lock().unwrap_or_else(PoisonError::into_inner) = swarm;
    }

    pub(crate) fn keep_content(&self, content: Option<Content>) {
        *self.content.lock().unwrap_or_else(PoisonError::into_inner) = content;
    }

    pub(crate) fn take_content(&self) -> Option<Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What arrived cannot be read back; the task then ends the use of the disk.
    pub(crate) fn disk_failed(&self, reason: String) {
        self.trouble.send_replace(Some(reason));
    }

    /// Waits until a reader says that the disk failed.
    pub(crate) async fn disk_trouble(&self) -> String {
        let mut trouble = self.trouble.subscribe();
        let said = trouble.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match said {
            Some(reason) => reason,
            // The sender lives as long as this.
            None => std::future::pending().await,
        }
    }

    pub(crate) fn keep_given(&self, given: Given) {
        *self.given.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(given));
    }

    pub(crate) fn given(&self) -> Option<Arc<Given>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// One more reader, until the ticket is dropped.
    pub(crate) fn attach(self: &Arc<Self>, request: BlobRequest) -> Ticket {
        let mut readers = self.readers();
        let id = readers.next;
        readers.next += 1;
        readers.at.insert(id, Place::default());
        let key = request.caller.key();
        readers.requests.retain(|known| known.caller.key() != key || known.repository != request.repository);
        if readers.requests.len() == MAX_REQUESTS {
            readers.requests.remove(0);
        }
        readers.requests.push(request);
        drop(readers);
        self.readers_changed.notify_one();
        Ticket { download: Arc::clone(self), id }
    }

    /// Readers at present.
    pub(crate) fn reader_count(&self) -> usize {
        self.readers().at.len()
    }

    /// The byte that the slowest reader waits for.
    pub(crate) fn slowest(&self) -> Option<u64> {
        self.readers().at.values().map(|place| place.at).min()
    }

    /// Whether the slowest reader waits for its runtime.
    pub(crate) fn is_giving(&self) -> bool {
        self.readers().at.values().min_by_key(|place| place.at).is_some_and(|place| place.giving)
    }

    /// How fast it is, and what limits it.
    pub(crate) fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom to fetch the blob for: those allowed to read it, the latest first.
    pub(crate) fn requests(&self) -> Vec<BlobRequest> {
        self.readers().requests.iter().rev().cloned().collect()
    }

    /// For people: how far it is, and from where.
    pub(crate) fn status(&self) -> serde_json::Value {
        let [peers, seeders, seeders_http, origin] = self.received.get();
        let (state, size, pieces, owned) = match &*self.phase.borrow() {
            Phase::Starting => ("starting", None, None, None),
            Phase::Running(running) => {
                let owned = running.pieces.borrow().count();
                ("running", Some(running.geometry.size()), Some(running.geometry.pieces()), Some(owned))
            }
            Phase::Complete(whole) => ("complete", Some(whole.reader.size()), None, None),
            Phase::PassThrough { size, .. } => ("passing through", Some(*size), None, None),
            Phase::Failed(_) => ("failed", None, None, None),
        };
        // Of a download that is not running there is nothing to see.
        let pace = (state == "running").then(|| self.pace().summary());
        json!({
            "digest": self.digest, "state": state, "size": size, "pieces": pieces, "pieces_owned": owned,
            "readers": self.reader_count(), "bytes_from_peers": peers, "bytes_from_seeders": seeders,
            "bytes_from_seeders_http": seeders_http, "bytes_from_origin": origin, "pace": pace,
        })
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        // Plain data that is whole between operations: a panic elsewhere leaves it usable.
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader's place among the readers of a download.
#[derive(Debug)]
pub(crate) struct Ticket {
    download: Arc<Download>,
    id: u64,
}

impl Ticket {
    pub(crate) fn download(&self) -> &Arc<Download> {
        &self.download
    }

    /// The reader now waits for the byte `at`.
    pub(crate) fn moved(&self, at: u64) {
        self.download.readers().at.insert(self.id, Place { at, giving: false });
        self.download.readers_changed.notify_one();
    }

    /// The reader has bytes for the runtime, from `at` on.
    pub(crate) fn gives(&self, at: u64) {
        self.download.readers().at.insert(self.id, Place { at, giving: true });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.download.readers().at.remove(&self.id);
        self.download.readers_changed.notify_one();
    }
}
