//! Waiting for one's turn to fetch a blob, and taking it meanwhile from the seeder whose turn it is.
//!
//! The bytes come from the holder of the lease while it gets them itself. When it fails, the lease is asked for again from the byte reached: the
//! holder may be back, another seeder may have taken over, or it is this one's turn, and then the rest comes from the registry.
//! Who waits here sees nothing of it but a pause. The other way round a holder whose lease was taken, since it stood still for long, becomes one
//! who waits.

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes};
use eagle_core::{Digest, Geometry};
use eagle_registry::BlobBody;
use eagle_store::{CachedBlob, Holder, Lease};
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout};

use super::{
    Fetch, Inner,
    input::{Input, SharedStream},
    origin::OriginStream,
    run::{Attempt, Run, prefix},
};
use crate::{
    access::Source,
    client::{SeederError, follow::Followed},
    error::FetchError,
    lease::{Turn, Wanted},
    shared::Found,
};

/// How often somebody who waits asks again: a few cheap requests.
const POLL: Duration = Duration::from_millis(500);

/// How long a holder may say nothing before it is looked whether it still is one. A process that is stopped keeps its connections;
/// its lease ends.
const SILENCE: Duration = Duration::from_secs(5);

/// What to do next about a blob.
#[derive(Debug)]
pub(super) enum Next {
    /// Read it from the shared storage.
    Read(Found),
    /// Fetch it from its registry.
    Fetch,
    /// Take it from the seeder that has it, or fetches it.
    Follow(Followed),
}

/// Asks for the lease of a blob as often as that takes.
#[derive(Debug)]
pub(super) struct Turns {
    inner: Arc<Inner>,
    fetch: Arc<Fetch>,
    source: Source,
    attempt: Attempt,
    wanted: Wanted,
    /// Whether the origin has let the caller have the blob.
    allowed: bool,
    /// Since when nobody gave anything.
    silent: Instant,
}

impl Turns {
    pub(super) fn new(run: &Run<'_>) -> Self {
        let (inner, fetch, source) = (Arc::clone(run.inner), Arc::clone(run.fetch), run.source.clone());
        let wanted = inner.parts.leases.want(fetch.digest, Arc::clone(&fetch.received));
        let silent = Instant::now();
        Self { inner, fetch, source, attempt: run.attempt, wanted, allowed: false, silent }
    }

    fn digest(&self) -> Digest {
        self.fetch.digest
    }

    /// Another seeder has taken this one's turn.
    fn lost(&self, offset: u64) {
        drop(self.fetch.give_turn());
        self.inner.parts.metrics.lease("lost");
        tracing::warn!(blob = %self.digest(), offset, "another seeder has taken over, since this one gave no sign of life, or could ask no tracker; the rest is taken from there");
    }

    /// Waits until there is something to do; what a holder gives begins at byte `offset`.
    ///
    /// # Errors
    /// When the origin refuses the caller.
    pub(super) async fn next(&mut self, offset: u64) -> Result<Next, FetchError> {
        let (inner, digest) = (Arc::clone(&self.inner), self.digest());
        let leases = &inner.parts.leases;
        loop {
            let turn = leases.turn(&mut self.wanted).await;
            let holder = match turn {
                Turn::Read(found) => return Ok(Next::Read(found)),
                Turn::Fetch(lease) => {
                    self.fetch.take_turn(lease);
                    return Ok(Next::Fetch);
                }
                Turn::Wait(holder) => holder,
            };
            if self.wanted.waits_first() {
                tracing::info!(blob = %digest, holder = holder.name, "another seeder fetches this blob; it is taken from there");
            }
            // What came the other way was wrong: only the registry is believed now.
            let distrusted = self.attempt == Attempt::Second;
            if !distrusted && let Some(followed) = self.follow(&holder, offset).await? {
                return Ok(Next::Follow(followed));
            }
            if distrusted || self.silent.elapsed() >= leases.patience() {
                tracing::warn!(
                    blob = %digest,
                    holder = holder.name,
                    url = holder.url,
                    "the seeder that fetches a blob gives nothing of it; it is fetched here as well"
                );
                inner.parts.metrics.lease("alone");
                self.fetch.take_turn(Lease::alone());
                return Ok(Next::Fetch);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What the holder has; `None` when it cannot be had there now.
    async fn follow(&mut self, holder: &Holder, offset: u64) -> Result<Option<Followed>, FetchError> {
        let (parts, digest, source) = (&self.inner.parts, self.digest(), &self.source);
        if !self.allowed {
            // A fetch proves by the origin's answer that its caller may have the blob; here the origin is asked.
            let allowed = parts.access.check(source, digest, true).await;
            allowed.map_err(|error| FetchError::origin(digest, error))?;
            self.allowed = true;
        }
        let Some(url) = parts.leases.follow_at(holder) else { return Ok(None) };
        let names = (&source.registry, &source.repository);
        let answer = timeout(SILENCE, parts.seeders.follow(&url, digest, names, offset, &source.caller)).await;
        match answer {
            Ok(Ok(followed)) => {
                self.wanted.is_found();
                self.silent = Instant::now();
                return Ok(Some(followed));
            }
            Ok(Err(error)) => {
                match &error {
                    // It waits for the registry.
                    SeederError::Refused { status: StatusCode::TOO_EARLY, .. } => self.silent = Instant::now(),
                    SeederError::Refused { status: StatusCode::CONFLICT, .. } => self.wanted.is_not_at(holder),
                    _ => {}
                }
                tracing::debug!(blob = %digest, %error, "the seeder that fetches a blob does not give it now");
            }
            Err(_) => tracing::debug!(blob = %digest, %url, "the seeder that fetches a blob says nothing"),
        }
        Ok(None)
    }
}

impl Run<'_> {
    /// Takes a blob into the cache while another seeder fetches it.
    pub(super) async fn follow(&self, turns: Turns, followed: Followed) -> Result<CachedBlob, FetchError> {
        let digest = self.fetch.digest();
        let geometry = followed.geometry;
        let Some(entry) = self.create(geometry).await? else {
            return self.inner.parts.cache.get(digest).await.ok_or(FetchError::Broken { digest });
        };
        self.inner.parts.metrics.lease("followed");
        let offset = prefix(&entry);
        // With a beginning of its own it asks anew, from there on.
        let from = if offset == 0 { From::holder(followed.body, 0) } else { From::Nobody };
        let stream = FollowStream { turns, from, geometry, offset };
        self.fill_or_discard(&entry, offset, Some(Input::Follow(Box::new(stream)))).await
    }

    /// Stops fetching because another seeder has taken over, who took this one for dead; the bytes from `offset` on come from there.
    pub(super) fn rest_from_others(&self, geometry: Geometry, offset: u64) -> Input {
        let turns = Turns::new(self);
        turns.lost(offset);
        Input::Follow(Box::new(FollowStream { turns, from: From::Nobody, geometry, offset }))
    }
}

/// Who gives the bytes at present.
enum From {
    Nobody,
    Holder {
        body: BlobBody,
        /// Bytes that are not wanted before the first that is.
        skip: u64,
    },
    Shared(SharedStream),
    Origin(OriginStream),
}

impl From {
    /// A body of which bytes are wanted from `offset` on.
    const fn holder(body: BlobBody, offset: u64) -> Self {
        let skip = offset.saturating_sub(body.start);
        Self::Holder { body, skip }
    }
}

/// The bytes of a blob from whoever has them.
pub(super) struct FollowStream {
    turns: Turns,
    from: From,
    geometry: Geometry,
    /// Where the next byte belongs.
    offset: u64,
}

impl FollowStream {
    /// Size of the whole blob, bytes.
    pub(super) const fn size(&self) -> u64 {
        self.geometry.size()
    }

    /// The next bytes; none once the blob is whole.
    ///
    /// # Errors
    /// Those of the origin, when it is this seeder's turn.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        while self.offset < self.size() {
            let given = match &mut self.from {
                From::Nobody => {
                    self.from = self.turn().await?;
                    continue;
                }
                From::Origin(stream) => {
                    let lost = self.turns.fetch.turn_lost();
                    let next = tokio::select! {
                        next = stream.next() => next?,
                        () = lost.cancelled() => {
                            self.turns.lost(self.offset);
                            self.turns.silent = Instant::now();
                            self.from = From::Nobody;
                            continue;
                        }
                    };
                    self.offset += next.as_ref().map_or(0, |bytes| bytes.len() as u64);
                    return Ok(next);
                }
                From::Shared(stream) => stream.next().await.map_err(|error| error.to_string()),
                From::Holder { body, skip } => match timeout(SILENCE, body.body.frame()).await {
                    Ok(Some(Ok(frame))) => {
                        let mut bytes = frame.into_data().unwrap_or_default();
                        let dropped = usize::try_from(*skip).unwrap_or(usize::MAX).min(bytes.len());
                        bytes.advance(dropped);
                        *skip -= dropped as u64;
                        self.turns.inner.parts.metrics.followed(bytes.len() as u64);
                        Ok(Some(bytes))
                    }
                    Ok(Some(Err(error))) => Err(error.to_string()),
                    Ok(None) => Ok(None),
                    Err(_) => {
                        self.from = From::Nobody;
                        continue;
                    }
                },
            };
            match given {
                Ok(Some(bytes)) if bytes.is_empty() => {}
                Ok(Some(mut bytes)) => {
                    // Nobody is believed to have more than the blob.
                    let left = self.size() - self.offset;
                    bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    self.offset += bytes.len() as u64;
                    self.turns.silent = Instant::now();
                    return Ok(Some(bytes));
                }
                Ok(None) => self.broke_off("it ended early"),
                Err(reason) => self.broke_off(&reason),
            }
        }
        Ok(None)
    }

    fn broke_off(&mut self, reason: &str) {
        let (digest, offset) = (self.turns.digest(), self.offset);
        tracing::warn!(blob = %digest, offset, reason, "the seeder that fetches a blob broke off");
        self.from = From::Nobody;
    }

    /// Finds out who gives the rest.
    async fn turn(&mut self) -> Result<From, FetchError> {
        let inner = Arc::clone(&self.turns.inner);
        loop {
            match (self.turns.next(self.offset).await?, inner.parts.leases.shared()) {
                (Next::Follow(followed), _) if followed.geometry == self.geometry => {
                    return Ok(From::holder(followed.body, self.offset));
                }
                // It would be an error to mix the pieces of both; in the end it is fetched here.
                (Next::Follow(_), _) if self.turns.silent.elapsed() < inner.parts.leases.patience() => {
                    tokio::time::sleep(POLL).await;
                }
                (Next::Read(found), Some(shared)) if found.metainfo.geometry.size() == self.size() => {
                    return Ok(From::Shared(SharedStream::new(shared.clone(), found, self.offset)));
                }
                _ => break,
            }
        }
        if !self.turns.fetch.has_turn() {
            self.turns.fetch.take_turn(Lease::alone());
        }
        tracing::info!(blob = %self.turns.digest(), offset = self.offset, "the rest of the blob is fetched here");
        let source = self.turns.source.clone();
        let registry = inner.parts.registries.get(&source.registry);
        let rest = self.offset..self.size();
        let metrics = inner.parts.metrics.clone();
        Ok(From::Origin(OriginStream::resume(registry, source, self.turns.digest(), rest, metrics)))
    }
}
