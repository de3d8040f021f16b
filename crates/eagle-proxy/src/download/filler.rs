//! Gets pieces over HTTP when the peer network does not deliver: from a seeder first, from the
//! origin last, beginning where the runtime waits.
//!
//! Pieces whose hash is known are checked against it. The others are only as good as their server,
//! and the digest of the whole blob decides: no reader gets the last piece before it matched.

use std::{collections::VecDeque, time::Duration};

use bytes::{Bytes, BytesMut};
use eagle_core::{PieceCheck, PieceIndex};
use eagle_registry::Body;
use eagle_store::StorageError;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::{
    Refusal,
    run::Run,
    sources::{self, Content, Failure, Server},
    state::BlobRequest,
};

/// Bytes that are read and thrown away rather than asked for anew past them: a new request costs a
/// round trip to the origin, and at the default host limit this is a tenth of a second.
const SKIP: u64 = 4 << 20;
/// A source that fails this often without giving one piece is done with.
const MAX_FAILURES: u32 = 2;
/// Pieces that the peer network must deliver beside the filler before it may take over again.
const TAKE_OVER_PIECES: u64 = 2;

/// A busy node takes notice of a piece within this time.
const SETTLE: Duration = Duration::from_secs(5);

/// How the filler ended.
#[derive(Debug)]
pub(crate) enum FillEnd {
    /// Every piece is here.
    Complete,
    /// The peer network delivers again.
    Yielded,
    /// No seeder gives the content, and it is too early to go to the origin past a seeder that lives.
    TooEarly,
    /// Every source failed.
    Failed {
        /// How, for people.
        tried: Vec<String>,
        /// What the origin said, when it did.
        refusal: Option<Box<Refusal>>,
    },
    /// The origin gives another piece than the one whose hash a seeder gave.
    Contradiction(PieceIndex),
    /// The disk cannot take the blob.
    Storage(StorageError),
}

/// How one answer of one server ended.
enum Session {
    /// To the end of the blob; pieces may be missing elsewhere.
    End,
    /// What follows is here already: ask anew further on.
    Skip,
    Yielded,
    Bad(Trouble),
    Storage(StorageError),
}

/// What is wrong with a source.
struct Trouble {
    reason: String,
    /// It lives, but does not keep up.
    slow: bool,
    /// The piece that did not match its hash.
    mismatch: Option<PieceIndex>,
}

impl<T: Into<String>> From<T> for Trouble {
    fn from(reason: T) -> Self {
        Self { reason: reason.into(), slow: false, mismatch: None }
    }
}

/// Fetches what is missing until nothing is, or the peer network has caught up.
pub(crate) async fn fill(run: &Run, opened: Option<Content>) -> FillEnd {
    let end = fill_from_all(run, opened).await;
    run.note_filling(None);
    end
}

async fn fill_from_all(run: &Run, opened: Option<Content>) -> FillEnd {
    let mut sources: VecDeque<(BlobRequest, Server)> = VecDeque::new();
    for request in run.requests() {
        for server in sources::servers(&run.context, &request, &run.download) {
            // The origin last, whoever asks.
            if server == Server::Origin || !sources.iter().any(|(_, known)| *known == server) {
                sources.push_back((request.clone(), server));
            }
        }
    }
    sources.make_contiguous().sort_by_key(|(_, server)| *server == Server::Origin);
    let mut state = Filler { run, swarm_before: run.swarm_bytes(), filled: 0, last: None, force: false };
    let (mut tried, mut refusal) = (Vec::new(), None);
    let (mut failures, mut announced) = (0, None);
    let mut opened = opened;
    let (mut ranges, mut slow_seeder) = (true, false);
    loop {
        let Some(next) = run.next_missing() else { return FillEnd::Complete };
        let (content, asked) = match opened.take() {
            Some(content) => (content, 0),
            None => {
                let Some((request, server)) = sources.front() else { return FillEnd::Failed { tried, refusal } };
                if *server == Server::Origin && run.must_spare_origin(slow_seeder) {
                    return FillEnd::TooEarly;
                }
                run.note_filling(Some(server.source()));
                let asked = if ranges { run.geometry.offset(next) } else { 0 };
                match sources::content(&run.context, request, server, asked).await {
                    Ok(content) => (content, asked),
                    Err(failure) => {
                        match failure {
                            Failure::Failed(reason) => tried.push(reason),
                            Failure::Refused(said) => {
                                tried.push(format!("{server}: {}", said.status));
                                refusal = Some(said);
                            }
                        }
                        (failures, ranges) = (0, true);
                        sources.pop_front();
                        continue;
                    }
                }
            }
        };
        if announced.as_ref() != Some(&content.server) {
            run.context.metrics.fallback(content.server.source());
            tracing::info!(digest = %run.download.digest, server = %content.server, piece = %next, "falling back");
            announced = Some(content.server.clone());
        }
        run.note_filling(Some(content.server.source()));
        // A server without ranges sends the start again and again; then there is no skipping.
        ranges = content.start == asked;
        let server = content.server.clone();
        let before = state.filled;
        let end = state.session(content, ranges).await;
        state.settle().await;
        match end {
            Session::Yielded => return FillEnd::Yielded,
            Session::Storage(error) => return FillEnd::Storage(error),
            Session::Skip => {}
            Session::End if state.filled == before => {
                // What is missing is being sent by peers. They get some time to finish, then no more.
                state.force = !state.wait_for_peers().await;
            }
            Session::End => state.force = false,
            Session::Bad(Trouble { reason, slow, mismatch }) => {
                slow_seeder |= slow && server != Server::Origin;
                failures = if state.filled > before { 1 } else { failures + 1 };
                tracing::warn!(digest = %run.download.digest, %server, reason, "a source failed");
                tried.push(format!("{server}: {reason}"));
                if failures >= MAX_FAILURES {
                    // The seeder may be the one that is wrong, and only the digest of the blob can tell.
                    if let (Server::Origin, Some(piece)) = (&server, mismatch) {
                        return FillEnd::Contradiction(piece);
                    }
                    (failures, ranges) = (0, true);
                    sources.retain(|(_, known)| *known != server);
                }
            }
        }
    }
}

struct Filler<'a> {
    run: &'a Run,
    /// What the peer network had delivered when the filler began.
    swarm_before: u64,
    /// Bytes of pieces that the filler has added.
    filled: u64,
    /// The last piece that the filler has added.
    last: Option<PieceIndex>,
    /// Take pieces also when a peer is sending them, because none of those arrives.
    force: bool,
}

impl Filler<'_> {
    async fn session(&mut self, content: Content, may_skip: bool) -> Session {
        let geometry = self.run.geometry;
        if content.size != geometry.size() {
            let (theirs, ours) = (content.size, geometry.size());
            return Session::Bad(format!("it says that the blob has {theirs} bytes, and it has {ours}").into());
        }
        let source = content.server.source();
        let mut input = Input::new(content.body, self.run);
        let mut at = content.start;
        while let Some(piece) = geometry.piece_at(at) {
            let range = geometry.range(piece);
            if range.start < at {
                // An answer that begins within a piece; the rest of it is of no use.
                match input.discard(range.end - at).await {
                    Ok(()) => at = range.end,
                    Err(trouble) => return Session::Bad(trouble),
                }
                continue;
            }
            if !self.take(piece).await {
                let owned = self.run.owned();
                let next =
                    owned.first_missing(piece.0 + 1).map_or_else(|| geometry.size(), |next| geometry.offset(next));
                if next == geometry.size() {
                    return Session::End;
                }
                if may_skip && next - at > SKIP {
                    return Session::Skip;
                }
                match input.discard(range.end - at).await {
                    Ok(()) => at = range.end,
                    Err(trouble) => return Session::Bad(trouble),
                }
                continue;
            }
            if let Err(end) = self.piece(piece, &mut input).await {
                self.run.swarm.release(piece).await;
                return end;
            }
            at = range.end;
            let length = range.end - range.start;
            self.filled += length;
            self.run.download.received.add(source, length);
            self.run.context.metrics.bytes(source, length);
            if self.peers_have_caught_up() {
                return Session::Yielded;
            }
        }
        Session::End
    }

    /// Whether the filler is the one to get a piece.
    async fn take(&self, piece: PieceIndex) -> bool {
        if self.run.owned().contains(piece) {
            return false;
        }
        self.run.swarm.claim(piece).await || (self.force && !self.run.owned().contains(piece))
    }

    async fn piece(&mut self, piece: PieceIndex, input: &mut Input<'_>) -> Result<(), Session> {
        let bytes = input.take(self.run.geometry.length(piece) as usize).await.map_err(Session::Bad)?;
        match self.run.check(piece) {
            Some(check) => {
                let hashed = bytes.clone();
                let matches = self.run.storing(tokio::task::spawn_blocking(move || check.matches(&hashed))).await;
                if !matches.unwrap_or(false) {
                    self.run.context.metrics.verification_failure();
                    let reason = format!("piece {piece} does not match its hash");
                    return Err(Session::Bad(Trouble { reason, slow: false, mismatch: Some(piece) }));
                }
            }
            None => self.run.note_unchecked(piece, self.hashed(piece, &bytes).await),
        }
        self.run.storing(self.run.entry.write_piece(piece, bytes)).await.map_err(Session::Storage)?;
        self.run.swarm.add_piece(piece).await;
        self.last = Some(piece);
        Ok(())
    }

    /// What a piece is hashed to whose hash is not known, when what comes before it is. So it is known of what readers are given, also
    /// where the disk does not give it back.
    async fn hashed(&self, piece: PieceIndex, bytes: &Bytes) -> Option<PieceCheck> {
        let (geometry, before, bytes) = (self.run.geometry, self.run.hash_before(piece)?, bytes.clone());
        let hash = tokio::task::spawn_blocking(move || PieceCheck::of(geometry, piece, before, &bytes));
        self.run.storing(hash).await.ok()
    }

    /// Waits until the node counts the last piece as owned, which is a moment after it was told.
    async fn settle(&mut self) {
        if let Some(piece) = self.last.take() {
            let mut pieces = self.run.swarm.pieces();
            let _ = timeout(SETTLE, pieces.wait_for(|owned| owned.contains(piece))).await;
        }
    }

    /// Whether peers have delivered at least as much as the filler since it began.
    fn peers_have_caught_up(&self) -> bool {
        let by_peers = self.run.swarm_bytes().saturating_sub(self.swarm_before);
        let enough = TAKE_OVER_PIECES * u64::from(self.run.geometry.piece_length());
        let checkable = self.run.feed_is_alive() || self.run.has_all_hashes();
        checkable && by_peers >= enough.max(self.filled)
    }

    /// Waits for a piece from peers; false when none comes.
    async fn wait_for_peers(&self) -> bool {
        let mut pieces = self.run.swarm.pieces();
        pieces.mark_unchanged();
        if self.run.owned().is_full() {
            return true;
        }
        timeout(self.run.stall_timeout(), pieces.changed()).await.is_ok()
    }
}

/// A body, read in lengths of the reader's choosing, within the host's limit.
struct Input<'a> {
    body: Body,
    rest: Bytes,
    run: &'a Run,
    stall: Duration,
}

impl<'a> Input<'a> {
    fn new(body: Body, run: &'a Run) -> Self {
        Self { body, rest: Bytes::new(), run, stall: run.stall_timeout() }
    }

    /// Exactly `length` bytes; the piece length bounds it.
    async fn take(&mut self, length: usize) -> Result<Bytes, Trouble> {
        if self.rest.len() >= length {
            return Ok(self.rest.split_to(length));
        }
        let mut bytes = BytesMut::with_capacity(length);
        while bytes.len() < length {
            let part = self.next(length - bytes.len()).await?;
            bytes.extend_from_slice(&part);
        }
        Ok(bytes.freeze())
    }

    async fn discard(&mut self, mut length: u64) -> Result<(), Trouble> {
        while length > 0 {
            let most = usize::try_from(length).unwrap_or(usize::MAX);
            length -= self.next(most).await?.len() as u64;
        }
        Ok(())
    }

    /// At least one byte and at most `most`.
    async fn next(&mut self, most: usize) -> Result<Bytes, Trouble> {
        while self.rest.is_empty() {
            let frame = timeout(self.stall, self.body.frame()).await;
            let frame = frame.map_err(|_| Trouble {
                reason: format!("it sent nothing for {:?}", self.stall),
                slow: true,
                mismatch: None,
            })?;
            let frame = frame.ok_or("it ended early")?.map_err(|error| error.to_string())?;
            if let Ok(data) = frame.into_data() {
                self.run.context.node.download_limiter().acquire(data.len() as u64).await;
                self.rest = data;
            }
        }
        Ok(self.rest.split_to(most.min(self.rest.len())))
    }
}
