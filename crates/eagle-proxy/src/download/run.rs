//! What the task of a download and its helpers share while pieces come in.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use eagle_core::{Bitfield, Geometry, Metainfo, PieceCheck, PieceHash, PieceIndex, metainfo::NotTheHash};
use eagle_p2p::node::SwarmHandle;
use eagle_store::PartialEntry;
use tokio::time::Instant;

use crate::metrics::Source;

use super::{
    Context,
    again::Given,
    pace::Look,
    state::{BlobRequest, Download},
};

/// Times the stall timeout that a living seeder is believed to make progress although no piece
/// comes: a slow origin is not a reason for every node to go there.
const PATIENCE: u32 = 6;
/// The part of the stall timeout in which another seeder may be found when one is lost.
const GRACE: u32 = 4;
/// A limited host takes its time for a piece; this many times that is not a stall.
const PIECE_TIMES: u32 = 3;

/// A download whose pieces are coming in.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) context: Arc<Context>,
    pub(crate) download: Arc<Download>,
    pub(crate) geometry: Geometry,
    pub(crate) entry: PartialEntry,
    pub(crate) swarm: SwarmHandle,
    metainfo: Mutex<Metainfo>,
    /// Pieces on disk from an earlier process, whose hash is not known yet.
    recovered: Mutex<Bitfield>,
    /// Pieces that are here and were not checked: their hash was not known when they came.
    unchecked: Mutex<Bitfield>,
    /// What pieces were hashed to on their way in, from the hash of the piece before them, when their hash was not known; until they
    /// are proven.
    hashed: Mutex<BTreeMap<PieceIndex, PieceCheck>>,
    /// Hashes of the first pieces as they are here.
    proven: Mutex<Vec<PieceHash>>,
    progress: Mutex<Progress>,
    /// Pieces from past the peer network that are being checked and written.
    storing: AtomicU64,
}

#[derive(Debug)]
struct Progress {
    /// When the last piece came.
    piece: Instant,
    /// Whether a seeder tells hashes at present.
    feed: bool,
    /// Whom pieces are fetched from past the peer network at present.
    filling: Option<Source>,
    /// Bytes of pieces that the node had received from peers and seeders when that was last looked at, and
    /// when they became more.
    arrived: (u64, Instant),
}

/// Hashes from a seeder that contradict those known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Contradiction {
    #[error("its hash of piece {0} is not the one that was given before")]
    Known(PieceIndex),
    #[error(transparent)]
    Digest(#[from] NotTheHash),
}

impl Run {
    pub(crate) fn new(
        context: Arc<Context>,
        download: Arc<Download>,
        entry: PartialEntry,
        swarm: SwarmHandle,
        metainfo: Metainfo,
        recovered: Bitfield,
    ) -> Self {
        Self {
            context,
            download,
            geometry: entry.geometry(),
            unchecked: Mutex::new(Bitfield::new(entry.geometry().pieces())),
            entry,
            swarm,
            metainfo: Mutex::new(metainfo),
            recovered: Mutex::new(recovered),
            hashed: Mutex::default(),
            proven: Mutex::default(),
            progress: Mutex::new(Progress {
                piece: Instant::now(),
                feed: false,
                filling: None,
                arrived: (0, Instant::now()),
            }),
            storing: AtomicU64::new(0),
        }
    }

    pub(crate) fn owned(&self) -> Arc<Bitfield> {
        Arc::clone(&self.swarm.pieces().borrow())
    }

    /// Whom to ask for.
    pub(crate) fn requests(&self) -> Vec<BlobRequest> {
        self.download.requests()
    }

    /// How to check a piece, once its hash is known.
    pub(crate) fn check(&self, piece: PieceIndex) -> Option<PieceCheck> {
        self.metainfo().check(piece)
    }

    /// The hash of what comes before a piece, when that is known.
    pub(crate) fn hash_before(&self, piece: PieceIndex) -> Option<PieceHash> {
        let Some(before) = piece.0.checked_sub(1) else {
            return Some(PieceHash::start(self.download.digest.algorithm()));
        };
        let proven = self.proven().get(before as usize).copied();
        let hashed = || self.hashed().get(&PieceIndex(before)).map(PieceCheck::after);
        proven.or_else(hashed).or_else(|| self.metainfo().hash(PieceIndex(before)))
    }

    /// A piece is about to be added whose hash is not known: what it was hashed to, from what comes before it, when that is known.
    pub(crate) fn note_unchecked(&self, piece: PieceIndex, hashed: Option<PieceCheck>) {
        match hashed {
            Some(check) => drop(self.hashed().insert(piece, check)),
            None => drop(self.unchecked().insert(piece)),
        }
    }

    /// Adds the hash of the next piece as it is here.
    pub(crate) fn note_proven(&self, piece: PieceIndex, hash: PieceHash) {
        self.proven().push(hash);
        self.hashed().remove(&piece);
    }

    /// Hashes of the first pieces as they are here; of all of them once the digest is known.
    pub(crate) fn proven_hashes(&self) -> Vec<PieceHash> {
        self.proven().clone()
    }

    /// What is known of the pieces that readers may have been given: of the first ones what was proven, and of those after them what
    /// they were hashed to or checked for.
    pub(crate) fn given(&self) -> Given {
        let (mut hashes, mut unchecked) = (self.proven_hashes(), self.unchecked().clone());
        for piece in self.geometry.all().take(hashes.len()) {
            unchecked.remove(piece);
        }
        for piece in self.geometry.all().skip(hashes.len()) {
            let start = || PieceHash::start(self.download.digest.algorithm());
            let last = hashes.last().copied().unwrap_or_else(start);
            let hashed = self.hashed().get(&piece).copied();
            // Also of one that was not checked: those after it can be compared.
            match hashed.or_else(|| self.check(piece)) {
                Some(check) if check.before() == last => hashes.push(check.after()),
                // Hashed from something else than what the first ones lead to, the rest cannot be compared.
                _ => break,
            }
        }
        Given::new(self.geometry, hashes, unchecked)
    }

    /// What a piece that is here was hashed to or checked for, if it was.
    pub(crate) fn checked(&self, piece: PieceIndex) -> Option<PieceCheck> {
        let hashed = self.hashed().get(&piece).copied();
        hashed.or_else(|| if self.unchecked().contains(piece) { None } else { self.check(piece) })
    }

    pub(crate) fn known_hashes(&self) -> u32 {
        u32::try_from(self.metainfo().hashes.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn has_all_hashes(&self) -> bool {
        self.metainfo().is_whole()
    }

    pub(crate) fn metainfo_now(&self) -> Metainfo {
        self.metainfo().clone()
    }

    /// Takes hashes of the pieces from `first` on, and uses them.
    pub(crate) async fn add_hashes(&self, first: u32, hashes: Vec<PieceHash>) -> Result<(), Contradiction> {
        let fresh = {
            let mut metainfo = self.metainfo();
            let known = metainfo.hashes.len();
            let from = first as usize;
            for (index, hash) in hashes.iter().enumerate().map(|(i, hash)| (from + i, hash)) {
                match metainfo.hashes.get(index) {
                    Some(before) if before != hash => {
                        return Err(Contradiction::Known(PieceIndex(u32::try_from(index).unwrap_or(u32::MAX))));
                    }
                    Some(_) => {}
                    None if index == metainfo.hashes.len() => metainfo.push(*hash)?,
                    None => return Err(Contradiction::Known(PieceIndex(u32::try_from(index).unwrap_or(u32::MAX)))),
                }
            }
            (known, metainfo.hashes[known..].to_vec())
        };
        let (known, fresh) = fresh;
        if !fresh.is_empty() {
            // First what is here already: with the hashes the swarm begins to fetch what it lacks.
            self.use_recovered().await;
            self.swarm.add_hashes(u32::try_from(known).unwrap_or(u32::MAX), fresh).await;
        }
        Ok(())
    }

    /// Checks what an earlier process left behind, as far as hashes are known.
    pub(crate) async fn use_recovered(&self) {
        let candidates: Vec<(PieceIndex, PieceCheck)> = {
            let metainfo = self.metainfo();
            self.recovered().iter().filter_map(|piece| Some((piece, metainfo.check(piece)?))).collect()
        };
        for (piece, check) in candidates {
            self.recovered().remove(piece);
            let reader = self.entry.reader();
            let read = reader.read_at(self.geometry.offset(piece), self.geometry.length(piece) as usize).await;
            let Ok(bytes) = read else { continue };
            let matches = tokio::task::spawn_blocking(move || check.matches(&bytes)).await.unwrap_or(false);
            if matches {
                self.swarm.add_piece(piece).await;
            }
        }
    }

    /// The first piece that is missing from where the slowest reader is, or else from the start.
    pub(crate) fn next_missing(&self) -> Option<PieceIndex> {
        let owned = self.owned();
        let position = self.position().map_or(0, |piece| piece.0);
        owned.first_missing(position).or_else(|| owned.first_missing(0))
    }

    /// The piece that the slowest reader waits for.
    pub(crate) fn position(&self) -> Option<PieceIndex> {
        self.geometry.piece_at(self.download.slowest()?)
    }

    /// Notes that a piece came.
    pub(crate) fn note_piece(&self) {
        self.progress().piece = Instant::now();
    }

    /// Notes that a seeder began to tell hashes, or that it ended.
    pub(crate) fn note_feed(&self, alive: bool) {
        self.progress().feed = alive;
    }

    /// Notes whom pieces are fetched from past the peer network.
    pub(crate) fn note_filling(&self, source: Option<Source>) {
        self.progress().filling = source;
    }

    /// Counts a piece from past the peer network while it is checked and written.
    pub(crate) async fn storing<T>(&self, store: impl Future<Output = T>) -> T {
        self.storing.fetch_add(1, Ordering::Relaxed);
        let stored = store.await;
        self.storing.fetch_sub(1, Ordering::Relaxed);
        stored
    }

    /// What the download looks like now.
    pub(crate) fn look(&self) -> Look {
        let counters = self.swarm.counters();
        let (feed, filling) = {
            let progress = self.progress();
            (progress.feed, progress.filling)
        };
        Look {
            giving: self.download.is_giving(),
            storing: counters.storing + self.storing.load(Ordering::Relaxed),
            filling,
            behind: self.known_hashes() > self.owned().count(),
            feed,
            whole: self.has_all_hashes(),
            asked: [counters.asked_of_seeders, counters.asked_of_peers],
        }
    }

    /// Whether a seeder is telling hashes: it lives, and has or gets the blob.
    pub(crate) fn feed_is_alive(&self) -> bool {
        self.progress().feed
    }

    /// Bytes that came over the peer network.
    pub(crate) fn swarm_bytes(&self) -> u64 {
        let counters = self.swarm.counters();
        counters.bytes_from_peers + counters.bytes_from_seeders
    }

    /// Whether the peer network does not deliver what it could, so that another source must.
    pub(crate) fn is_stalled(&self) -> bool {
        let idle = self.progress().piece.elapsed();
        let stall = self.stall_timeout();
        if !self.feed_is_alive() && !self.has_all_hashes() {
            // Nobody tells hashes: beyond those known, nothing that peers send can be checked. Another
            // seeder may still be found, which a moment is given for.
            let nothing_to_get = self.known_hashes() <= self.owned().count();
            return idle >= if nothing_to_get { stall / GRACE } else { stall };
        }
        let behind = self.known_hashes() > self.owned().count();
        // As long as pieces reach this node, the peer network works and is busy: what a node takes past it then
        // is missing to all.
        let works = self.arrived_within(stall);
        (behind && idle >= stall && !works) || idle >= stall * PATIENCE
    }

    /// Whether bytes of any piece have come from peers or seeders in that time.
    fn arrived_within(&self, time: Duration) -> bool {
        let arrived = self.context.node.counters().downloaded;
        let mut progress = self.progress();
        if progress.arrived.0 != arrived {
            progress.arrived = (arrived, Instant::now());
        }
        arrived > 0 && progress.arrived.1.elapsed() < time
    }

    /// Whether the origin is better left to the seeder, which lives and has or gets the blob: a cluster
    /// whose nodes are all slow must not turn into as many requests to the origin.
    pub(crate) fn must_spare_origin(&self, slow_seeder: bool) -> bool {
        (slow_seeder || self.feed_is_alive()) && self.progress().piece.elapsed() < self.stall_timeout() * PATIENCE
    }

    /// Whether nothing has come for so long that the download is given up once every source failed.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.progress().piece.elapsed() >= self.stall_timeout() * 2
    }

    /// How long no piece may come: longer where the host's own limit makes a piece take longer.
    pub(crate) fn stall_timeout(&self) -> Duration {
        let configured = self.context.settings.stall_timeout;
        match self.context.node.download_limiter().rate().bytes_per_second() {
            Some(rate) if rate > 0 => {
                let piece = Duration::from_millis(u64::from(self.geometry.piece_length()).saturating_mul(1000) / rate);
                configured.max(piece * PIECE_TIMES)
            }
            _ => configured,
        }
    }

    fn metainfo(&self) -> MutexGuard<'_, Metainfo> {
        // Each of these holds plain data that is whole between operations.
        self.metainfo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unchecked(&self) -> MutexGuard<'_, Bitfield> {
        self.unchecked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recovered(&self) -> MutexGuard<'_, Bitfield> {
        self.recovered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hashed(&self) -> MutexGuard<'_, BTreeMap<PieceIndex, PieceCheck>> {
        self.hashed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn proven(&self) -> MutexGuard<'_, Vec<PieceHash>> {
        self.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
