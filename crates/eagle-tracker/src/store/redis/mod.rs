//! The store that several trackers share: everything that is known of nodes and swarms, in Redis.
//!
//! # Keys
//! All begin with the prefix, `eagle:{NAME}:` for the cluster of that name.
//!
//! | key | what |
//! | --- | --- |
//! | `nodes` | sorted set: node by the time of its last announce. Who is too far back is not alive |
//! | `ids` | sorted set of all nodes, in their order, for lists |
//! | `node:ID` | hash: role, what it says of itself (JSON), when it joined, whether it must send everything again |
//! | `blobs:ID` | set of the digests that a node has announced |
//! | `digests` | sorted set of all digests, in their order |
//! | `changed` | sorted set: digest by the time when a peer last joined its swarm or owned more |
//! | `swarm:DIGEST` | hash: size, piece length, whether a seeder vouched for them, when it was created and last grew |
//! | `seeders:DIGEST`, `proxies:DIGEST` | hash: for each member when it joined and what it owns ([`pieces`]) |
//! | `entries` | number of pairs of a blob and a node |
//! | `alive` | sorted set: seeder by the time of its last heartbeat |
//! | `about`, `first`, `urls`, `places` | hashes: of each seeder what it says of itself (JSON), when it was heard of first, its URL; and of each URL its seeder |
//! | `leases`, `renewed` | hash: of each blob that is being fetched the holder of its lease, the token, how far it is, since when; and a sorted set of when it was renewed |
//! | `holds:ID`, `token` | set of the digests of a seeder's leases; the last token |
//! | `reports` | stream of what nodes report, from tracker to tracker ([`reports`]) |
//!
//! An announce is one script, so that nothing comes between and one exchange is enough. Times are those of Redis' clock, in
//! microseconds: trackers need not agree on the time, only [`RedisPeers::synchronise`] now and then.
//!
//! What comes out of Redis is checked like anything from outside: what makes no sense is left out.

mod connection;
mod lists;
mod pieces;
mod reports;
mod seeders;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use eagle_core::{Digest, Geometry, NodeId, PeerInfo, Place, Timestamp};
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use redis::{AsyncCommands as _, ErrorKind, RedisError, Script, Value, aio::ConnectionManager};

pub(super) use self::{
    reports::{Aged, RedisReports},
    seeders::RedisSeeders,
};
use super::{
    Applied, Candidate, Refusal, SeenPeer, StoreError, StoreLimits, StoreStats, SwarmView, location::RedisLocation,
};
use crate::{
    api::{BlobAnnounce, Event},
    encoding::NodeRecord,
    ownership::Ownership,
};

/// Most blobs in one call of a script: Redis does nothing else meanwhile, for about 3 ms.
const BLOBS_PER_CALL: usize = 500;
/// Most swarms that a node leaves in one call.
const LEAVE_PER_CALL: usize = 500;
/// Most nodes that one look for expired ones takes away.
const EXPIRED_PER_LOOK: isize = 100;
/// Most nodes marked in one call.
const MARK_PER_CALL: usize = 1_000;
/// Most seeders and proxies seen at a time. Fewer proxies than the store in memory shows: each is some 250 bytes on the way.
const SEEN: (usize, usize) = (32, 400);
/// How old what is seen of a swarm may be. All that ask within this time share one look: in a swarm of a thousand that all ask
/// each second, Redis answers 4 times and not 1,000. New peers are still known within a second.
pub const VIEW_AGE: Duration = Duration::from_millis(250);
/// Most swarms of which a look is kept: of more, the oldest goes.
const VIEWS: usize = 10_000;

/// What a swarm looked like.
#[derive(Debug)]
struct Seen {
    at: Timestamp,
    geometry: Geometry,
    grown: Timestamp,
    peers: Vec<(Arc<NodeRecord>, Candidate)>,
}

/// Nodes and swarms in Redis. Every call fails when Redis does not answer.
pub(super) struct RedisPeers {
    limits: StoreLimits,
    connection: ConnectionManager,
    prefix: String,
    announce: Script,
    forget: Script,
    view: Script,
    resend: Script,
    /// Redis' clock minus this process's, microseconds.
    offset: AtomicI64,
    view_age: Duration,
    views: Mutex<lru::LruCache<Digest, Arc<Seen>>>,
    peers: AtomicUsize,
    blobs: AtomicUsize,
    entries: AtomicUsize,
}

impl std::fmt::Debug for RedisPeers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisPeers").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Why an announce was not applied.
#[derive(Debug)]
pub(super) enum AnnounceError {
    /// Redis did.
    Refused(StoreError),
    /// Redis did not answer as it should.
    Failed(RedisError),
}

impl From<RedisError> for AnnounceError {
    fn from(error: RedisError) -> Self {
        Self::Failed(error)
    }
}

impl RedisPeers {
    /// Prepares the connection, which is made with the first call, and again whenever it broke. Names are resolved anew each time.
    ///
    /// # Errors
    /// When the certificates of the location cannot be used.
    pub(super) fn new(location: &RedisLocation, view_age: Duration, limits: StoreLimits) -> Result<Self, RedisError> {
        let connection = connection::open(location)?;
        Ok(Self {
            limits,
            connection,
            prefix: location.prefix(),
            announce: Script::new(concat!(include_str!("leave.lua"), include_str!("announce.lua"))),
            forget: Script::new(concat!(include_str!("leave.lua"), include_str!("forget.lua"))),
            view: Script::new(include_str!("view.lua")),
            resend: Script::new(include_str!("resend.lua")),
            offset: AtomicI64::new(0),
            view_age,
            views: Mutex::new(lru::LruCache::new(VIEWS.try_into().unwrap_or(std::num::NonZeroUsize::MIN))),
            peers: AtomicUsize::new(0),
            blobs: AtomicUsize::new(0),
            entries: AtomicUsize::new(0),
        })
    }

    /// Finds out how Redis' clock stands, and thereby whether Redis answers.
    pub(super) async fn synchronise(&self, now: Timestamp) -> Result<(), RedisError> {
        self.offset.store(connection::clock_offset(&self.connection, now).await?, Ordering::Relaxed);
        Ok(())
    }

    pub(super) async fn announce(
        &self,
        node: &PeerInfo,
        full: bool,
        blobs: &[BlobAnnounce],
        now: Timestamp,
    ) -> Result<Applied, AnnounceError> {
        let info = serde_json::to_string(node).map_err(|_| malformed("a node"))?;
        let mut applied = Applied { known: true, refused: Vec::new() };
        let mut taken = Vec::new();
        // What cannot be is not sent at all.
        let mut owned = Vec::with_capacity(blobs.len());
        for blob in blobs {
            let pieces = blob.geometry.pieces();
            match Ownership::new(&blob.pieces, pieces) {
                _ if blob.event == Event::Evicted => owned.push((blob, Vec::new())),
                Some(ownership) => owned.push((blob, pieces::write(&ownership))),
                None => applied.refused.push((blob.digest, Refusal::Pieces(pieces))),
            }
        }
        // An announce of nothing says that the node lives.
        let mut rest = owned.as_slice();
        let mut first = true;
        while first || !rest.is_empty() {
            let (part, later) = rest.split_at(rest.len().min(BLOBS_PER_CALL));
            let (known, refused) = self.announce_part(node, &info, part, now).await?;
            if first {
                applied.known = known;
            }
            let places: Vec<usize> = refused.iter().map(|(place, _)| *place).collect();
            applied.refused.extend(
                refused
                    .into_iter()
                    .filter_map(|(place, refusal)| Some((part.get(place)?.0, refusal)))
                    .map(|(blob, refusal)| (blob.digest, with_announced(refusal, blob.geometry))),
            );
            let kept = part
                .iter()
                .enumerate()
                .filter(|(place, (blob, _))| blob.event != Event::Evicted && !places.contains(place));
            taken.extend(kept.map(|(_, (blob, _))| blob.digest.to_string()));
            (rest, first) = (later, false);
        }
        if full {
            self.retain(node, &info, &taken, now).await?;
        }
        Ok(applied)
    }

    /// Takes a node out of all swarms but these.
    async fn retain(&self, node: &PeerInfo, info: &str, kept: &[String], now: Timestamp) -> Result<(), AnnounceError> {
        let owned: Vec<String> = self.connection.clone().smembers(self.key("blobs", node.id.as_str())).await?;
        let kept: std::collections::HashSet<&str> = kept.iter().map(String::as_str).collect();
        let stale: Vec<BlobAnnounce> = owned
            .iter()
            .filter(|digest| !kept.contains(digest.as_str()))
            .filter_map(|digest| {
                let nothing = Geometry::auto(0).ok()?;
                Some(BlobAnnounce {
                    digest: digest.parse().ok()?,
                    geometry: nothing,
                    pieces: eagle_core::PieceSet::Empty,
                    event: Event::Evicted,
                    want_peers: false,
                })
            })
            .collect();
        let stale: Vec<_> = stale.iter().map(|blob| (blob, Vec::new())).collect();
        for part in stale.chunks(BLOBS_PER_CALL) {
            self.announce_part(node, info, part, now).await?;
        }
        Ok(())
    }

    async fn announce_part(
        &self,
        node: &PeerInfo,
        info: &str,
        blobs: &[(&BlobAnnounce, Vec<u8>)],
        now: Timestamp,
    ) -> Result<(bool, Vec<(usize, Refusal)>), AnnounceError> {
        let mut call = self.announce.key(&self.prefix);
        call.arg(self.shared(now)).arg(ttl_micros(&self.limits));
        call.arg(self.limits.peers).arg(self.limits.blobs);
        call.arg(self.limits.peers_per_blob).arg(self.limits.blobs_per_peer);
        call.arg(node.id.as_str()).arg(if super::is_authority(node.role) { "s" } else { "p" }).arg(info);
        for (blob, pieces) in blobs {
            let event = if blob.event == Event::Evicted { "e" } else { "j" };
            call.arg(blob.digest.to_string()).arg(event);
            call.arg(blob.geometry.size()).arg(blob.geometry.piece_length()).arg(pieces.as_slice());
        }
        let mut forgotten = false;
        loop {
            let answer: Vec<Value> = call.invoke_async(&mut self.connection.clone()).await?;
            let mut answer = answer.into_iter();
            let outcome: String = field(answer.next())?;
            match outcome.as_str() {
                "full" => return Err(AnnounceError::Refused(StoreError::Full(self.limits.peers))),
                // Somebody else may announce the same node at the same time; once is enough then.
                "stale" if !forgotten => {
                    self.forget(&node.id, None).await?;
                    forgotten = true;
                }
                "ok" => {
                    let known: String = field(answer.next())?;
                    let refused: Vec<Vec<String>> = field(answer.next())?;
                    let refused = refused.iter().filter_map(|refusal| self.refusal(refusal)).collect();
                    return Ok((known == "1" && !forgotten, refused));
                }
                _ => return Err(malformed("an announce").into()),
            }
        }
    }

    fn refusal(&self, words: &[String]) -> Option<(usize, Refusal)> {
        let place = words.first()?.parse().ok()?;
        let refusal = match (words.get(1)?.as_str(), words.get(2), words.get(3)) {
            ("node", ..) => Refusal::NodeFull(self.limits.blobs_per_peer),
            ("blobs", ..) => Refusal::BlobsFull(self.limits.blobs),
            ("swarm", ..) => Refusal::SwarmFull(self.limits.peers_per_blob),
            ("geometry", Some(size), Some(length)) => {
                let known = Geometry::new(size.parse().ok()?, length.parse().ok()?).ok()?;
                Refusal::Geometry { known, announced: known }
            }
            _ => return None,
        };
        Some((place, refusal))
    }

    /// Takes a node out; with a time, only when its last announce was not later.
    async fn forget(&self, node: &NodeId, not_after: Option<i64>) -> Result<(), RedisError> {
        loop {
            let mut call = self.forget.key(&self.prefix);
            call.arg(node.as_str()).arg(LEAVE_PER_CALL);
            if let Some(time) = not_after {
                call.arg(time);
            }
            if call.invoke_async::<i64>(&mut self.connection.clone()).await? == 1 {
                return Ok(());
            }
        }
    }

    pub(super) async fn leave(&self, node: &NodeId) -> Result<(), RedisError> {
        self.forget(node, None).await
    }

    pub(super) async fn view(
        &self,
        digest: Digest,
        asker: &NodeId,
        seed: u64,
        now: Timestamp,
    ) -> Result<Option<SwarmView>, RedisError> {
        let kept = self.views().get(&digest).filter(|seen| now - seen.at < self.view_age).cloned();
        let seen = match kept {
            Some(seen) => seen,
            None => {
                let Some(seen) = self.look(digest, now).await? else {
                    self.views().pop(&digest);
                    return Ok(None);
                };
                let seen = Arc::new(seen);
                if !self.view_age.is_zero() {
                    self.views().push(digest, Arc::clone(&seen));
                }
                seen
            }
        };
        let mut others: Vec<_> = seen.peers.iter().filter(|(node, _)| node.info().id != *asker).collect();
        // Those who share a look are not all to see it in the same order.
        others.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let candidates = others.iter().map(|(_, candidate)| candidate.clone()).collect();
        let peers = others.into_iter().map(|(node, _)| SeenPeer::record(Arc::clone(node))).collect();
        let since_growth = now - seen.grown;
        Ok(Some(SwarmView { geometry: seen.geometry, candidates, peers, since_growth }))
    }

    async fn look(&self, digest: Digest, now: Timestamp) -> Result<Option<Seen>, RedisError> {
        let mut call = self.view.key(&self.prefix);
        call.arg(digest.to_string()).arg(self.shared(now)).arg(ttl_micros(&self.limits)).arg(SEEN.0).arg(SEEN.1);
        let answer: Option<Vec<Vec<u8>>> = call.invoke_async(&mut self.connection.clone()).await?;
        let Some(answer) = answer else { return Ok(None) };
        let (Some(geometry), Some(grown)) =
            (answer.first().zip(answer.get(1)).and_then(|(size, length)| geometry(size, length)), answer.get(2))
        else {
            return Err(malformed("a swarm"));
        };
        let peers = answer[3..]
            .chunks_exact(2)
            .filter_map(|pair| {
                let info: PeerInfo = serde_json::from_slice(&pair[0]).ok()?;
                let (_, pieces) = member(&pair[1], geometry)?;
                let (role, place) = (info.role, Place::from(&info.topology));
                let candidate = Candidate { role, place, pieces, load: None, age: Duration::ZERO };
                Some((Arc::new(NodeRecord::new(info)), candidate))
            })
            .collect();
        Ok(Some(Seen { at: now, geometry, grown: self.own(number(grown).unwrap_or_default()), peers }))
    }

    /// Frees what expired nodes take, some of them at a time, and reads the sizes.
    pub(super) async fn sweep(&self, now: Timestamp) -> Result<(), RedisError> {
        let expired = self.shared(now).saturating_sub(ttl_micros(&self.limits));
        let nodes: Vec<String> = self
            .connection
            .clone()
            .zrangebyscore_limit(self.table("nodes"), "-inf", expired, 0, EXPIRED_PER_LOOK)
            .await?;
        for node in nodes {
            match node.parse() {
                Ok(node) => self.forget(&node, Some(expired)).await?,
                // Not written by a tracker.
                Err(_) => self.connection.clone().zrem::<_, _, ()>(self.table("nodes"), node).await?,
            }
        }
        let mut pipe = redis::pipe();
        pipe.zcard(self.table("nodes")).zcard(self.table("digests")).get(self.table("entries"));
        let (peers, blobs, entries): (usize, usize, Option<i64>) =
            pipe.query_async(&mut self.connection.clone()).await?;
        self.peers.store(peers, Ordering::Relaxed);
        self.blobs.store(blobs, Ordering::Relaxed);
        self.entries.store(usize::try_from(entries.unwrap_or_default()).unwrap_or_default(), Ordering::Relaxed);
        Ok(())
    }

    /// Makes nodes send everything again: they announced themselves elsewhere for a while.
    pub(super) async fn resend(&self, nodes: &[String]) -> Result<(), RedisError> {
        for part in nodes.chunks(MARK_PER_CALL) {
            let mut call = self.resend.key(&self.prefix);
            call.arg(part);
            call.invoke_async::<()>(&mut self.connection.clone()).await?;
        }
        Ok(())
    }

    /// Sizes, as of the last look for expired nodes.
    pub(super) fn stats(&self) -> StoreStats {
        StoreStats {
            peers: self.peers.load(Ordering::Relaxed),
            blobs: self.blobs.load(Ordering::Relaxed),
            entries: self.entries.load(Ordering::Relaxed),
        }
    }

    fn table(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn key(&self, kind: &str, name: &str) -> String {
        format!("{}{kind}:{name}", self.prefix)
    }

    /// A moment of this process on the clock that all trackers share, microseconds.
    fn shared(&self, now: Timestamp) -> i64 {
        micros(now).saturating_add(self.offset.load(Ordering::Relaxed))
    }

    /// A moment of the shared clock on that of this process.
    fn own(&self, shared: i64) -> Timestamp {
        let own = shared.saturating_sub(self.offset.load(Ordering::Relaxed));
        Timestamp(u64::try_from(own).unwrap_or_default().saturating_mul(1_000))
    }

    fn views(&self) -> MutexGuard<'_, lru::LruCache<Digest, Arc<Seen>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with_announced(refusal: Refusal, announced: Geometry) -> Refusal {
    match refusal {
        Refusal::Geometry { known, .. } => Refusal::Geometry { known, announced },
        other => other,
    }
}

/// When a member joined, and what it owns.
fn member(value: &[u8], geometry: Geometry) -> Option<(i64, Ownership)> {
    let colon = value.iter().position(|byte| *byte == b':')?;
    let (joined, pieces) = value.split_at(colon);
    Some((number(joined)?, pieces::read(&pieces[1..], geometry.pieces())?))
}

/// A member of a swarm of this size and piece length: how many pieces it has, and its record written anew.
pub(crate) fn read_member(size: &[u8], length: &[u8], value: &[u8]) -> Option<(Geometry, u32, Vec<u8>)> {
    let geometry = geometry(size, length)?;
    let (joined, owned) = member(value, geometry)?;
    let written = [joined.to_string().as_bytes(), b":", &pieces::write(&owned)].concat();
    Some((geometry, owned.count(geometry.pieces()), written))
}

fn geometry(size: &[u8], length: &[u8]) -> Option<Geometry> {
    let text = |bytes| std::str::from_utf8(bytes).ok();
    Geometry::new(text(size)?.parse().ok()?, text(length)?.parse().ok()?).ok()
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A score, which is a whole number of microseconds below 2^53.
#[expect(clippy::cast_possible_truncation, reason = "a cast of f64 to i64 saturates")]
fn whole(score: f64) -> i64 {
    score as i64
}

#[expect(clippy::cast_precision_loss, reason = "an age for people")]
fn seconds(now: i64, then: i64) -> f64 {
    now.saturating_sub(then).max(0) as f64 / 1e6
}

fn micros(now: Timestamp) -> i64 {
    i64::try_from(now.0 / 1_000).unwrap_or(i64::MAX)
}

fn ttl_micros(limits: &StoreLimits) -> i64 {
    i64::try_from(limits.ttl.as_micros()).unwrap_or(i64::MAX)
}

fn field<T: redis::FromRedisValue>(value: Option<Value>) -> Result<T, RedisError> {
    Ok(redis::from_redis_value(value.unwrap_or(Value::Nil))?)
}

fn malformed(what: &'static str) -> RedisError {
    (ErrorKind::UnexpectedReturnType, "Redis holds what no tracker wrote", what.to_owned()).into()
}
