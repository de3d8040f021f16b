//! The task of a download: brings a blob from nothing to complete, or says why not.

use std::{sync::Arc, time::Duration};

use eagle_core::{Bitfield, Digest, Metainfo, PieceIndex, PieceSet, metainfo::is_inline};
use eagle_store::{CreateError, PartialEntry};
use eagle_tracker::BlobStatus;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};

use super::{
    BlobError, Context, LINGER,
    feed::{self, Disagreement},
    filler::{self, FillEnd},
    run::Run,
    sources::{self, Beginning, Content, Feed},
    state::{Download, Phase, Running, Whole},
    verify::{self, VerifyError},
};
use crate::metrics::Source;

/// Between two looks at the progress of a download.
const TICK: Duration = Duration::from_millis(100);
/// A tracker hears of progress at most this often: more would tell peers little that the pieces
/// themselves do not.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// After every source has failed, so long until they are tried again.
const FILL_AGAIN: Duration = Duration::from_secs(1);
/// How long the writer of an earlier download of the same blob may take to let go of it.
const HANDOVER: Duration = Duration::from_secs(2);
/// The part of all pieces after which an announce is due, unless it is too soon: a tenth.
const ANNOUNCE_PARTS: u32 = 10;

/// Runs a download to its end and returns the last phase. `abandon` ends it if nobody reads it.
pub(crate) async fn run(context: &Arc<Context>, download: &Arc<Download>, abandon: impl Fn() -> bool) -> Phase {
    let started = Instant::now();
    let result = tokio::select! {
        biased;
        () = context.stop.cancelled() => Err(BlobError::Stopped),
        result = drive(context, download, abandon) => result,
    };
    let phase = result.unwrap_or_else(|error| Phase::Failed(Arc::new(error)));
    if let Some(swarm) = download.swarm() {
        account(context, download, &swarm);
        swarm.leave().await;
        download.set_swarm(None);
    }
    let digest = download.digest;
    if !matches!(phase, Phase::Complete(_)) {
        context.announcer.remove(digest);
    }
    let [peers, seeders, seeders_http, origin] = download.received.get();
    let seconds = started.elapsed().as_secs_f64();
    match &phase {
        Phase::Complete(whole) => tracing::info!(
            %digest, size = whole.reader.size(), seconds, from_peers = peers, from_seeders = seeders,
            from_seeders_http = seeders_http, from_origin = origin, "blob complete"
        ),
        Phase::PassThrough { size, .. } => tracing::info!(%digest, size, "blob is relayed and not kept"),
        Phase::Failed(error) if matches!(**error, BlobError::Stopped) => {
            tracing::info!(%digest, seconds, "download stopped, nobody waits for it");
        }
        Phase::Failed(error) => tracing::warn!(%digest, seconds, %error, "download failed"),
        Phase::Starting | Phase::Running(_) => {}
    }
    phase
}

async fn drive(
    context: &Arc<Context>,
    download: &Arc<Download>,
    abandon: impl Fn() -> bool,
) -> Result<Phase, BlobError> {
    // It may have been completed between the look into the cache and this download.
    if let Some(whole) = cached(context, download.digest).await {
        return Ok(whole);
    }
    let beginning = begin(context, download).await?;
    let Beginning { geometry, feed, content } = beginning;
    let size = geometry.size();
    let entry = match create(context, download, geometry).await {
        Created::Entry(entry) => entry,
        Created::Complete(phase) => return Ok(phase),
        Created::No(reason) => {
            tracing::info!(digest = %download.digest, size, reason, "the blob cannot be kept");
            download.keep_content(content);
            return Ok(Phase::PassThrough { size, prefix: None });
        }
    };
    let run = join(context, download, entry).await;
    download.set_phase(Phase::Running(Arc::new(Running {
        geometry,
        reader: run.entry.reader(),
        pieces: run.swarm.pieces(),
    })));
    let mut task = Task { run, helpers: JoinSet::new(), filling: false, fill_after: Instant::now(), tried: Vec::new() };
    let result = task.run(feed, content, abandon).await;
    task.helpers.shutdown().await;
    match result? {
        End::Verified => task.commit().await,
        End::Abandoned => {
            // The pieces stay for the next time, with the hashes that prove them.
            let _ = task.run.entry.put_metainfo(&task.run.metainfo_now()).await;
            Err(BlobError::Stopped)
        }
        // A storage that stops is not one that is full: what is there is for the next start.
        End::NoRoom(_) if context.stop.is_cancelled() => Err(BlobError::Stopped),
        End::NoRoom(reason) => {
            tracing::warn!(digest = %download.digest, reason, "the disk cannot take the blob, it is relayed from here on");
            let prefix = task.run.entry.reader();
            download.keep_given(task.run.given());
            task.run.entry.discard().await;
            Ok(Phase::PassThrough { size, prefix: Some(prefix) })
        }
        End::Corrupt(actual) => {
            context.metrics.verification_failure();
            download.keep_given(task.run.given());
            task.run.entry.discard().await;
            Err(BlobError::Corrupt { actual })
        }
        End::Contradiction(piece) => {
            download.keep_given(task.run.given());
            task.run.entry.discard().await;
            Err(BlobError::Contradiction { piece })
        }
        End::Disagreement(Disagreement { piece, suspects }) => {
            context.metrics.verification_failure();
            download.keep_given(task.run.given());
            task.run.entry.discard().await;
            Err(BlobError::Disagreement { piece, suspects })
        }
    }
}

async fn cached(context: &Context, digest: Digest) -> Option<Phase> {
    let blob = context.cache.get(digest).await?;
    Some(Phase::Complete(Arc::new(Whole { reader: blob.reader() })))
}

/// Asks for each caller in turn, so that one whose credentials do not do is no harm to the others.
async fn begin(context: &Context, download: &Download) -> Result<Beginning, BlobError> {
    let mut result = Err(BlobError::Stopped);
    for request in download.requests() {
        result = sources::begin(context, &request, download).await;
        if !matches!(result, Err(BlobError::Refused(_))) {
            break;
        }
    }
    result
}

enum Created {
    Entry(PartialEntry),
    Complete(Phase),
    No(String),
}

async fn create(context: &Context, download: &Download, geometry: eagle_core::Geometry) -> Created {
    let deadline = Instant::now() + HANDOVER;
    loop {
        match context.cache.create(download.digest, geometry).await {
            Ok(entry) => return Created::Entry(entry),
            Err(CreateError::InProgress) if Instant::now() < deadline => sleep(TICK).await,
            Err(CreateError::Complete) if Instant::now() < deadline => {
                if let Some(whole) = cached(context, download.digest).await {
                    return Created::Complete(whole);
                }
                sleep(TICK).await;
            }
            Err(error) => return Created::No(error.to_string()),
        }
    }
}

/// Enters the swarm of the blob and tells the trackers.
async fn join(context: &Arc<Context>, download: &Arc<Download>, entry: PartialEntry) -> Arc<Run> {
    let digest = download.digest;
    let geometry = entry.geometry();
    let known = if download.origin_only { None } else { entry.metainfo().await };
    let metainfo = known
        .filter(|metainfo| metainfo.digest == digest && metainfo.geometry == geometry)
        .unwrap_or_else(|| Metainfo::new(digest, geometry));
    let recovered = if download.origin_only { Bitfield::new(geometry.pieces()) } else { entry.recovered() };
    let swarm = context.node.join(entry.clone(), metainfo.clone(), true).await;
    download.set_swarm(Some(swarm.clone()));
    let run = Run::new(Arc::clone(context), Arc::clone(download), entry, swarm, metainfo, recovered);
    run.use_recovered().await;
    Arc::new(run)
}

enum End {
    Verified,
    Abandoned,
    NoRoom(String),
    Corrupt(Digest),
    Contradiction(PieceIndex),
    Disagreement(Disagreement),
}

enum Helper {
    Proven(Result<Digest, VerifyError>),
    Feed(Result<(), Disagreement>),
    Filler(FillEnd),
}

struct Task {
    run: Arc<Run>,
    helpers: JoinSet<Helper>,
    filling: bool,
    /// When a filler may be started again after one that failed.
    fill_after: Instant,
    /// What the fillers have tried in vain.
    tried: Vec<String>,
}

impl Task {
    async fn run(
        &mut self,
        feed: Option<Feed>,
        content: Option<Content>,
        abandon: impl Fn() -> bool,
    ) -> Result<End, BlobError> {
        self.prove();
        if !self.run.download.origin_only {
            self.run.note_feed(feed.is_some());
            let run = Arc::clone(&self.run);
            self.helpers.spawn(async move { Helper::Feed(feed::follow(&run, feed).await) });
        }
        if content.is_some() || self.run.download.origin_only {
            self.fill(content);
        }
        let download = Arc::clone(&self.run.download);
        let mut pieces = self.run.swarm.pieces();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut announced = Announced { since: Instant::now(), at: None, pieces: 0 };
        self.announce(&mut announced);
        let mut linger = None;
        loop {
            tokio::select! {
                Some(helper) = self.helpers.join_next() => {
                    if let Some(end) = self.helper_ended(helper)? {
                        return Ok(end);
                    }
                }
                Ok(()) = pieces.changed() => {
                    self.run.note_piece();
                    self.announce(&mut announced);
                }
                () = download.readers_changed.notified() => {
                    if let Some(position) = self.run.position() {
                        self.run.swarm.set_position(position).await;
                    }
                    linger = match download.reader_count() {
                        0 => linger.or_else(|| Some(Instant::now() + LINGER)),
                        _ => None,
                    };
                }
                reason = download.disk_trouble() => return Ok(End::NoRoom(reason)),
                _ = ticks.tick() => {
                    account(&self.run.context, &download, &self.run.swarm);
                    self.look();
                    self.announce(&mut announced);
                    if !self.filling && self.fill_after <= Instant::now() && self.run.is_stalled() {
                        self.fill(None);
                    }
                }
                () = sleep_until(linger.unwrap_or_else(Instant::now)), if linger.is_some() => {
                    if abandon() {
                        return Ok(End::Abandoned);
                    }
                    linger = None;
                }
            }
        }
    }

    /// Looks at how fast pieces come, and what they wait for.
    fn look(&self) {
        let Run { context, download, .. } = &*self.run;
        let (now, limiter) = (Instant::now(), context.node.download_limiter());
        let (look, received) = (self.run.look(), download.received.get().iter().sum());
        let mut pace = download.pace();
        pace.add(now, look, received, limiter.passed(), limiter.rate());
        if pace.wants_senders(now) {
            pace.add_senders(now, context.node.received_of(&download.digest));
        }
    }

    /// Starts the proof of the whole blob's digest.
    fn prove(&mut self) {
        let run = Arc::clone(&self.run);
        self.helpers.spawn(async move { Helper::Proven(verify::prove(&run).await) });
    }

    fn fill(&mut self, content: Option<Content>) {
        self.filling = true;
        let run = Arc::clone(&self.run);
        self.helpers.spawn(async move { Helper::Filler(filler::fill(&run, content).await) });
    }

    fn helper_ended(&mut self, ended: Result<Helper, tokio::task::JoinError>) -> Result<Option<End>, BlobError> {
        match ended.map_err(|error| BlobError::Storage(format!("a part of the download failed: {error}")))? {
            Helper::Proven(Ok(actual)) if actual == self.run.download.digest => Ok(Some(End::Verified)),
            Helper::Proven(Ok(actual)) => Ok(Some(End::Corrupt(actual))),
            Helper::Proven(Err(VerifyError::Storage(error))) => Ok(Some(End::NoRoom(error.to_string()))),
            // The node stops, and so does the download: what it has is for the next start.
            Helper::Proven(Err(VerifyError::Stopped)) if self.run.context.stop.is_cancelled() => {
                Err(BlobError::Stopped)
            }
            // The node has left the swarm by itself.
            Helper::Proven(Err(VerifyError::Stopped)) => Ok(Some(End::NoRoom("the node gave the blob up".to_owned()))),
            Helper::Feed(Ok(())) => Ok(None),
            Helper::Feed(Err(disagreement)) => Ok(Some(End::Disagreement(disagreement))),
            Helper::Filler(end) => {
                self.filling = false;
                match end {
                    FillEnd::Complete => Ok(None),
                    FillEnd::Yielded => {
                        self.tried.clear();
                        Ok(None)
                    }
                    FillEnd::TooEarly => {
                        self.fill_after = Instant::now() + FILL_AGAIN;
                        Ok(None)
                    }
                    FillEnd::Contradiction(piece) => Ok(Some(End::Contradiction(piece))),
                    FillEnd::Storage(error) => Ok(Some(End::NoRoom(error.to_string()))),
                    FillEnd::Failed { refusal: Some(refusal), .. } if self.run.is_hopeless() => {
                        Err(BlobError::Refused(refusal))
                    }
                    FillEnd::Failed { tried, .. } => {
                        self.fill_after = Instant::now() + FILL_AGAIN;
                        self.tried.extend(tried);
                        self.tried.dedup();
                        // Peers may still have what is missing; but nobody waits for them for ever.
                        if self.run.is_hopeless() || !(self.run.has_all_hashes() || self.run.feed_is_alive()) {
                            return Err(BlobError::Unavailable { tried: std::mem::take(&mut self.tried) });
                        }
                        Ok(None)
                    }
                }
            }
        }
    }

    fn announce(&self, announced: &mut Announced) {
        if self.run.download.origin_only {
            return;
        }
        let owned = self.run.owned();
        let step = (owned.len() / ANNOUNCE_PARTS).max(1);
        let due = match announced.at {
            // A small blob comes with its metainfo, in less time than peers could be asked.
            None => !is_inline(&self.run.geometry) || announced.since.elapsed() >= ANNOUNCE_EVERY,
            Some(at) => at.elapsed() >= ANNOUNCE_EVERY && owned.count() >= announced.pieces.saturating_add(step),
        };
        if due && !owned.is_full() {
            announced.at = Some(Instant::now());
            announced.pieces = owned.count();
            let pieces = PieceSet::from(&*owned);
            let status = BlobStatus { geometry: self.run.geometry, pieces, want_peers: true };
            self.run.context.announcer.update(self.run.download.digest, status);
        }
    }

    /// Makes the blob, whose digest matched, part of the cache.
    async fn commit(self) -> Result<Phase, BlobError> {
        let Run { context, download, geometry, entry, .. } = &*self.run;
        let metainfo = Metainfo { digest: download.digest, geometry: *geometry, hashes: self.run.proven_hashes() };
        let whole = match entry.commit(Some(metainfo)).await {
            Ok(blob) => {
                let status = BlobStatus { geometry: *geometry, pieces: PieceSet::Complete, want_peers: false };
                context.announcer.update(download.digest, status);
                Whole { reader: blob.reader() }
            }
            Err(error) => {
                tracing::warn!(digest = %download.digest, %error, "a verified blob could not be kept");
                context.announcer.remove(download.digest);
                // Who reads it reads what was written, and is given the rest from elsewhere where that cannot be read. Nothing of it
                // is for later: a disk that did not take it once does not say so again.
                entry.discard().await;
                Whole { reader: entry.reader() }
            }
        };
        Ok(Phase::Complete(Arc::new(whole)))
    }
}

struct Announced {
    since: Instant,
    at: Option<Instant>,
    pieces: u32,
}

/// Adds what the peer network has brought to the counters.
fn account(context: &Context, download: &Download, swarm: &eagle_p2p::node::SwarmHandle) {
    let counters = swarm.counters();
    let (peers, seeders) = download.received.set_swarm(counters.bytes_from_peers, counters.bytes_from_seeders);
    context.metrics.bytes(Source::Peer, peers);
    context.metrics.bytes(Source::Seeder, seeders);
}
