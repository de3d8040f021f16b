//! The engine: the one task that owns every swarm of a node.
//!
//! It translates between the outside (peers by their PeerId, requests by a node-wide number) and
//! the state machines, and decides nothing itself. Nothing in its loop waits: hashing, disk and
//! cache look-ups run as tasks whose results come back as events.

mod exchange;
mod peers;
mod pieces;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use eagle_core::{
    Bitfield, Digest, FarGroup, Geometry, NodeId, NodeRole, PieceIndex, Timestamp, Topology,
    swarm::{Action, PeerKey, RequestId, Swarm, SwarmConfig, SwarmStart, Verdict},
    wire::control::{BlobMessage, ControlMessage, Encryption, HostRate},
};
use eagle_store::cache::Cache;
use libp2p::PeerId;
use prometheus_client::metrics::histogram::Histogram;
use rand::RngExt as _;
use tokio::{sync::mpsc, task::JoinSet, time::sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    blob::{Blob, Source},
    commands::{Command, Joined, Mailbox, SwarmCommand},
    metrics::Learnt,
    reports::Counted,
    uploads::Uploads,
};
use crate::{
    channel::{ChannelEvent, DataChannels, PieceRequest, Uploader},
    limits::Limiter,
    network::{Network, NetworkEvent},
};

/// How long a peer that sent wrong bytes is kept away: long enough that a broken disk or cable does
/// no further harm to this pull, short enough that a repaired node is soon useful again.
const BAN: Duration = Duration::from_secs(300);
/// How long a blob of the cache stays open for peers after the last one asked for something. While it
/// is open the cache cannot evict it, so not longer than a busy swarm pauses; a peer that comes back
/// later greets again.
const IDLE: Duration = Duration::from_secs(10);
/// Blobs that are open for peers without a pull of our own; the least recently asked for goes.
const MAX_SERVED: usize = 1024;
/// Time between two looks at what has become idle.
const TIDY: Duration = Duration::from_secs(2);
/// Cache look-ups on behalf of peers at once; further greetings are answered with `Leave`.
const MAX_LOOKUPS: usize = 64;
/// How long a look-up may take before the peer is told that the blob is not here.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Parts {
    pub(super) role: NodeRole,
    pub(super) topology: Topology,
    pub(super) swarm: SwarmConfig,
    /// Of both directions.
    pub(super) limiters: [Limiter; 2],
    pub(super) cache: Arc<Cache>,
    /// Takes the time of every piece.
    pub(super) piece_seconds: Histogram,
    pub(super) learnt: Learnt,
    pub(super) network: Network,
    pub(super) channels: DataChannels,
    pub(super) uploads: Arc<Uploads>,
    pub(super) counted: Arc<Counted>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) commands: mpsc::Sender<Command>,
}

struct Peer {
    key: PeerKey,
    /// Where it listens for peers, as far as it says.
    address: Option<SocketAddr>,
    data_address: SocketAddr,
    encryption: Encryption,
    role: NodeRole,
    /// As trackers know it; absent for an identity that they cannot.
    id: Option<NodeId>,
}

/// A greeting that waits for the cache.
struct Greeting {
    peer: PeerId,
    geometry: Geometry,
    message: BlobMessage,
}

/// A request that has no answer.
#[derive(Clone, Copy)]
struct Asked {
    digest: Digest,
    id: RequestId,
    /// Of whom.
    role: NodeRole,
    /// When it was made.
    made: Instant,
}

struct Verified {
    digest: Digest,
    generation: u64,
    peer: PeerId,
    piece: PieceIndex,
    verdict: Verdict,
}

pub(super) struct Engine {
    parts: Parts,
    start: Instant,
    blobs: HashMap<Digest, Blob>,
    /// Those that a caller joined, in that order: the earlier ones' requests come first.
    joined: BTreeMap<u64, Digest>,
    peers: HashMap<PeerId, Peer>,
    keys: HashMap<PeerKey, PeerId>,
    /// Roles as trackers and seeders tell them; a peer that dialled us counts as a proxy.
    roles: lru::LruCache<PeerId, NodeRole>,
    /// Groups of peers that are not in our rack, as trackers and seeders tell them, or else they themselves.
    far_groups: lru::LruCache<PeerId, FarGroup>,
    /// Where peers are, from the same sources.
    places: lru::LruCache<PeerId, Topology>,
    /// Requests on data channels, by their node-wide number.
    requests: HashMap<u32, Asked>,
    numbers: HashMap<(Digest, RequestId), u32>,
    greetings: HashMap<Digest, Vec<Greeting>>,
    verifying: JoinSet<Verified>,
    lookups: JoinSet<()>,
    next_request: u32,
    next_key: u64,
    next_generation: u64,
    tidied: Instant,
}

impl Engine {
    pub(super) fn new(parts: Parts) -> Self {
        let roles = std::num::NonZeroUsize::new(4096).unwrap_or(std::num::NonZeroUsize::MIN);
        Self {
            parts,
            start: Instant::now(),
            blobs: HashMap::new(),
            joined: BTreeMap::new(),
            peers: HashMap::new(),
            keys: HashMap::new(),
            roles: lru::LruCache::new(roles),
            far_groups: lru::LruCache::new(roles),
            places: lru::LruCache::new(roles),
            requests: HashMap::new(),
            numbers: HashMap::new(),
            greetings: HashMap::new(),
            verifying: JoinSet::new(),
            lookups: JoinSet::new(),
            next_request: 0,
            next_key: 0,
            next_generation: 1,
            tidied: Instant::now(),
        }
    }

    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut network: mpsc::Receiver<NetworkEvent>,
        mut channels: mpsc::Receiver<ChannelEvent>,
        shutdown: CancellationToken,
    ) {
        let mailbox = Arc::clone(&self.parts.mailbox);
        loop {
            let alarm = self.next_alarm();
            // Each branch is cancellation-safe: receivers lose nothing, `join_next` neither.
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(command) = commands.recv() => self.command(command),
                Some(event) = network.recv() => self.network_event(event),
                Some(event) = channels.recv() => self.channel_event(event),
                Some(verified) = self.verifying.join_next() => match verified {
                    Ok(verified) => self.verified(verified),
                    Err(error) => warn!(%error, "the verification of a piece was lost"),
                },
                Some(_) = self.lookups.join_next() => {}
                () = mailbox.wait() => self.news(),
                () = sleep_until(alarm.into()) => self.alarm(),
            }
        }
        self.verifying.shutdown().await;
        self.lookups.shutdown().await;
    }

    fn now(&self) -> Timestamp {
        Timestamp(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn next_alarm(&self) -> Instant {
        let tidy = self.tidied + TIDY;
        self.blobs
            .values()
            .filter_map(|blob| blob.swarm.next_timeout())
            .map(|at| self.start + Duration::from_nanos(at.0))
            .min()
            .map_or(tidy, |at| at.min(tidy))
    }

    fn alarm(&mut self) {
        let now = self.now();
        let due: Vec<Digest> = self
            .blobs
            .iter()
            .filter(|(_, blob)| blob.swarm.next_timeout().is_some_and(|at| at <= now))
            .map(|(digest, _)| *digest)
            .collect();
        for digest in due {
            self.with(digest, |blob, now| blob.swarm.handle_timeout(now));
        }
        if self.tidied.elapsed() >= TIDY {
            self.tidied = Instant::now();
            self.tidy();
        }
    }

    /// Closes blobs that nobody has asked for in a while, so that the cache may evict them.
    fn tidy(&mut self) {
        let mut served: Vec<(Instant, Digest)> = self
            .blobs
            .iter()
            .filter(|(_, blob)| blob.generation == 0)
            .map(|(digest, blob)| (blob.used, *digest))
            .collect();
        served.sort_unstable_by_key(|(used, _)| *used);
        let surplus = served.len().saturating_sub(MAX_SERVED);
        for (position, (used, digest)) in served.into_iter().enumerate() {
            if position < surplus || used.elapsed() >= IDLE {
                self.close(digest);
            }
        }
    }

    /// Runs something on a blob's swarm, then carries out what the swarm wants.
    fn with<T>(&mut self, digest: Digest, act: impl FnOnce(&mut Blob, Timestamp) -> T) -> Option<T> {
        let now = self.now();
        let load = self.parts.uploads.requests();
        let rate = self.host_rate();
        let requested_before = self.requested_before(digest);
        let blob = self.blobs.get_mut(&digest)?;
        let incomplete = !blob.swarm.is_complete();
        blob.swarm.handle_node_load(load);
        blob.swarm.handle_host_rate(now, rate);
        blob.swarm.handle_requested_before(now, requested_before);
        let result = act(blob, now);
        let completed = incomplete && blob.swarm.is_complete();
        let generation = blob.generation;
        blob.publish();
        let mut actions = Vec::new();
        while let Some(action) = blob.swarm.poll_action() {
            actions.push(action);
        }
        for action in actions {
            self.act(digest, action);
        }
        if completed {
            self.pass_on_requests(generation);
        }
        Some(result)
    }

    /// A blob is complete: what it requested is for the later ones now.
    fn pass_on_requests(&mut self, generation: u64) {
        let later: Vec<Digest> = self.joined.range(generation + 1..).map(|(_, digest)| *digest).collect();
        for digest in later {
            self.with(digest, |_, _| ());
        }
    }

    /// Requests in flight of the swarms that were joined before this one.
    fn requested_before(&self, digest: Digest) -> usize {
        let generation = self.blobs.get(&digest).map_or(0, |blob| blob.generation);
        let earlier = self.joined.range(..generation).filter_map(|(_, digest)| self.blobs.get(digest));
        earlier.map(|blob| blob.swarm.requested()).sum()
    }

    fn act(&mut self, digest: Digest, action: Action) {
        match action {
            Action::Send { peer, message } => {
                if let Some(peer) = self.keys.get(&peer) {
                    self.parts.network.send(*peer, &ControlMessage::Blob(digest, message));
                }
            }
            Action::Request { peer, id, piece } => self.request(digest, peer, id, piece),
            Action::Cancel { peer, id } => {
                if let (Some(peer), Some(number)) = (self.keys.get(&peer), self.numbers.get(&(digest, id))) {
                    self.parts.channels.cancel(*peer, *number);
                }
            }
            Action::TellPeers { peer, about } => self.tell_peers(digest, peer, &about),
            Action::Connect { from, peers, most } => self.connect_told(digest, from, peers, most),
            Action::Ban { peer, reason } => {
                if let Some(peer) = self.keys.get(&peer).copied() {
                    warn!(%peer, blob = %digest.short(), %reason, "peer banned for {} s", BAN.as_secs());
                    self.parts.network.ban(peer, BAN);
                    self.forget(peer);
                }
            }
        }
    }

    fn request(&mut self, digest: Digest, key: PeerKey, id: RequestId, piece: Option<PieceIndex>) {
        let mut role = NodeRole::Proxy;
        let uploader = self.keys.get(&key).and_then(|peer| {
            let state = self.peers.get(peer)?;
            role = state.role;
            Some(Uploader { peer: *peer, data_address: state.data_address, encryption: state.encryption })
        });
        let Some(geometry) = self.blobs.get(&digest).map(Blob::geometry) else { return };
        let number = self.next_request;
        self.next_request = self.next_request.wrapping_add(1);
        let taken =
            uploader.map(|to| self.parts.channels.request(to, PieceRequest { id: number, digest, piece, geometry }));
        match taken {
            Some(Ok(())) => {
                self.requests.insert(number, Asked { digest, id, role, made: Instant::now() });
                if let Some(blob) = self.blobs.get(&digest) {
                    blob.counters.asked(role).fetch_add(1, Ordering::Relaxed);
                }
                self.numbers.insert((digest, id), number);
            }
            other => {
                if let Some(Err(error)) = other {
                    debug!(%error, blob = %digest.short(), "request not taken");
                }
                self.with(digest, |blob, now| blob.swarm.handle_failed(now, id));
            }
        }
    }

    /// A request is over: whose it was, and when it was made.
    fn answered(&mut self, number: u32) -> Option<(Digest, RequestId, Instant)> {
        let Asked { digest, id, role, made } = self.requests.remove(&number)?;
        // A blob that was joined anew since has not counted it.
        if let Some(blob) = self.blobs.get(&digest) {
            let one_less = |asked: u64| asked.checked_sub(1);
            let _ = blob.counters.asked(role).fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        }
        self.numbers.remove(&(digest, id));
        Some((digest, id, made))
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Join { entry, metainfo, download, reply } => {
                let digest = metainfo.digest;
                self.close(digest);
                let generation = self.next_generation;
                self.next_generation += 1;
                let have = Bitfield::new(metainfo.geometry.pieces());
                let swarm = self.new_swarm(metainfo.geometry, have, metainfo.hashes.len(), download);
                let blob = Blob::new(swarm, Source::Partial(entry), metainfo, generation);
                let joined = Joined { generation, pieces: blob.pieces(), counters: Arc::clone(&blob.counters) };
                self.blobs.insert(digest, blob);
                self.joined.insert(generation, digest);
                // The caller is gone when this fails, and its handle's end closes the swarm again.
                if reply.send(joined).is_err() {
                    self.leave(digest, generation);
                }
            }
            Command::ToSwarm { digest, generation, command } => {
                if self.blobs.get(&digest).is_some_and(|blob| blob.generation == generation) {
                    self.swarm_command(digest, generation, command);
                }
            }
            Command::Found { digest, blob } => self.found(digest, blob),
            Command::Upload { peer, digest, piece, reply } => {
                // A receiver that is gone is handled by its guard, which reports the upload as over.
                let _ = reply.send(self.grant(peer, digest, piece));
            }
        }
    }

    fn swarm_command(&mut self, digest: Digest, generation: u64, command: SwarmCommand) {
        match command {
            SwarmCommand::AddPeers(peers, source) => self.add_peers(digest, peers, source),
            SwarmCommand::AddHashes { first, hashes } => {
                let ready = self.with(digest, |blob, now| {
                    blob.add_hashes(now, first, &hashes);
                    blob.take_verifiable()
                });
                for (peer, piece, bytes) in ready.unwrap_or_default() {
                    self.verify(digest, peer, piece, bytes);
                }
            }
            SwarmCommand::AddPiece(piece) => {
                self.with(digest, |blob, now| blob.swarm.handle_owned(now, piece));
            }
            SwarmCommand::Claim { piece, reply } => {
                let claimed = self.with(digest, |blob, _| blob.swarm.claim(piece)).unwrap_or(false);
                if reply.send(claimed).is_err() && claimed {
                    self.with(digest, |blob, now| blob.swarm.release(now, piece));
                }
            }
            SwarmCommand::Release(piece) => {
                self.with(digest, |blob, now| blob.swarm.release(now, piece));
            }
            SwarmCommand::Position(piece) => {
                self.with(digest, |blob, _| blob.swarm.handle_position(piece));
            }
            SwarmCommand::Leave => self.leave(digest, generation),
        }
    }

    /// The lesser of the limits, as peers are told it.
    fn host_rate(&self) -> HostRate {
        let limits = self.parts.limiters.iter().filter_map(|limiter| limiter.rate().bytes_per_second());
        limits.min().map_or(HostRate::UNKNOWN, HostRate)
    }

    fn new_swarm(&self, geometry: Geometry, have: Bitfield, hashes: usize, download: bool) -> Swarm {
        let start = SwarmStart {
            geometry,
            have,
            hashes_known: u32::try_from(hashes).unwrap_or(u32::MAX),
            download,
            spread: self.parts.role == NodeRole::Seeder,
            seed: rand::rng().random(),
        };
        Swarm::new(self.parts.swarm.clone(), start)
    }

    /// The caller has left: a complete blob stays open for the peers that are in, others are closed.
    fn leave(&mut self, digest: Digest, generation: u64) {
        let Some(blob) = self.blobs.get_mut(&digest).filter(|blob| blob.generation == generation) else { return };
        if !blob.swarm.is_complete() || blob.swarm.peer_count() == 0 {
            return self.close(digest);
        }
        blob.generation = 0;
        self.joined.remove(&generation);
        blob.used = Instant::now();
        // Served from the cache from now on, if it was kept there.
        self.look_up(digest);
    }

    /// Ends a blob's sharing and tells the peers.
    fn close(&mut self, digest: Digest) {
        let Some(blob) = self.blobs.remove(&digest) else { return };
        self.joined.remove(&blob.generation);
        for (key, peer) in &self.keys {
            if blob.swarm.has_peer(*key) {
                self.parts.network.send(*peer, &ControlMessage::Blob(digest, BlobMessage::Leave));
            }
        }
        let stale: Vec<u32> =
            self.requests.iter().filter(|(_, asked)| asked.digest == digest).map(|(number, _)| *number).collect();
        for number in stale {
            self.answered(number);
        }
    }
}
