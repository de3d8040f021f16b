//! The engine: the one task that owns every swarm of a node.
//!
//! It translates between the outside (peers by their PeerId, requests by a node-wide number) and
//! the state machines, and decides nothing itself. Nothing in its loop waits: hashing, disk and
//! cache look-ups run as tasks whose results come back as events.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use eagle_core::{
    Bitfield, Digest, Geometry, NodeRole, PieceHash, PieceIndex, Timestamp,
    swarm::{Action, PeerKey, RequestId, Swarm, SwarmConfig, SwarmStart, Verdict},
    wire::{
        control::{BlobMessage, ControlMessage, Encryption},
        data::RejectReason,
    },
};
use eagle_store::cache::{Cache, CachedBlob, PartialEntry};
use libp2p::PeerId;
use rand::RngExt as _;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    blob::{Blob, Source},
    commands::{Command, Grant, Granted, Joined, Mailbox, News, SwarmCommand},
    uploads::Uploads,
};
use crate::{
    channel::{ChannelEvent, DataChannels, PieceRequest, Uploader},
    identity,
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
    pub(super) swarm: SwarmConfig,
    pub(super) cache: Arc<Cache>,
    pub(super) network: Network,
    pub(super) channels: DataChannels,
    pub(super) uploads: Arc<Uploads>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) commands: mpsc::Sender<Command>,
}

struct Peer {
    key: PeerKey,
    data_address: SocketAddr,
    encryption: Encryption,
    role: NodeRole,
}

/// A greeting that waits for the cache.
struct Greeting {
    peer: PeerId,
    geometry: Geometry,
    message: BlobMessage,
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
    peers: HashMap<PeerId, Peer>,
    keys: HashMap<PeerKey, PeerId>,
    /// Roles as trackers and seeders tell them; a peer that dialled us counts as a proxy.
    roles: lru::LruCache<PeerId, NodeRole>,
    /// Requests on data channels, by their node-wide number.
    requests: HashMap<u32, (Digest, RequestId)>,
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
            peers: HashMap::new(),
            keys: HashMap::new(),
            roles: lru::LruCache::new(roles),
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
        let blob = self.blobs.get_mut(&digest)?;
        blob.swarm.handle_node_load(load);
        let result = act(blob, now);
        blob.publish();
        let mut actions = Vec::new();
        while let Some(action) = blob.swarm.poll_action() {
            actions.push(action);
        }
        for action in actions {
            self.act(digest, action);
        }
        Some(result)
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
        let uploader = self.keys.get(&key).and_then(|peer| {
            let state = self.peers.get(peer)?;
            Some(Uploader { peer: *peer, data_address: state.data_address, encryption: state.encryption })
        });
        let Some(geometry) = self.blobs.get(&digest).map(Blob::geometry) else { return };
        let number = self.next_request;
        self.next_request = self.next_request.wrapping_add(1);
        let taken =
            uploader.map(|to| self.parts.channels.request(to, PieceRequest { id: number, digest, piece, geometry }));
        match taken {
            Some(Ok(())) => {
                self.requests.insert(number, (digest, id));
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

    fn answered(&mut self, number: u32) -> Option<(Digest, RequestId)> {
        let (digest, id) = self.requests.remove(&number)?;
        self.numbers.remove(&(digest, id));
        Some((digest, id))
    }

    // ---- commands -------------------------------------------------------------------------------

    fn command(&mut self, command: Command) {
        match command {
            Command::Join { entry, metainfo, download, reply } => {
                let digest = metainfo.digest;
                self.close(digest);
                let generation = self.next_generation;
                self.next_generation += 1;
                let have = Bitfield::new(metainfo.geometry.pieces());
                let swarm = self.new_swarm(metainfo.geometry, have, metainfo.hashes.len(), download);
                let blob = Blob::new(swarm, Source::Partial(entry), metainfo.hashes, generation);
                let joined = Joined { generation, pieces: blob.pieces(), counters: Arc::clone(&blob.counters) };
                self.blobs.insert(digest, blob);
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
            SwarmCommand::AddPeers(peers) => {
                for peer in peers {
                    let Some(id) = identity::peer_id(&peer.id) else { continue };
                    if id == self.parts.network.local_peer_id() {
                        continue;
                    }
                    self.roles.put(id, peer.role);
                    if let Some(state) = self.peers.get_mut(&id) {
                        state.role = peer.role;
                        let key = state.key;
                        self.with(digest, |blob, now| blob.swarm.handle_peer(now, key));
                    } else if self.blobs.get_mut(&digest).is_some_and(|blob| blob.add_candidate(id)) {
                        self.parts.network.connect(id, peer.address);
                    }
                }
            }
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
        blob.used = Instant::now();
        // Served from the cache from now on, if it was kept there.
        self.look_up(digest);
    }

    /// Ends a blob's sharing and tells the peers.
    fn close(&mut self, digest: Digest) {
        let Some(blob) = self.blobs.remove(&digest) else { return };
        for (key, peer) in &self.keys {
            if blob.swarm.has_peer(*key) {
                self.parts.network.send(*peer, &ControlMessage::Blob(digest, BlobMessage::Leave));
            }
        }
        let stale: Vec<u32> =
            self.requests.iter().filter(|(_, (owner, _))| *owner == digest).map(|(number, _)| *number).collect();
        for number in stale {
            self.answered(number);
        }
    }

    // ---- blobs of the cache ---------------------------------------------------------------------

    fn look_up(&mut self, digest: Digest) {
        if self.lookups.len() >= MAX_LOOKUPS {
            return self.found(digest, None);
        }
        let cache = Arc::clone(&self.parts.cache);
        let commands = self.parts.commands.clone();
        self.lookups.spawn(async move {
            let blob = timeout(LOOKUP_TIMEOUT, cache.get(digest)).await.ok().flatten();
            // Fails only when the node is stopping.
            let _ = commands.send(Command::Found { digest, blob }).await;
        });
    }

    fn found(&mut self, digest: Digest, cached: Option<CachedBlob>) {
        let greetings = self.greetings.remove(&digest).unwrap_or_default();
        match (self.blobs.get_mut(&digest), cached) {
            (Some(blob), Some(cached)) if blob.generation == 0 => blob.source = Source::Cached(cached),
            (Some(blob), None) if blob.generation == 0 => self.close(digest),
            (Some(_), _) => {}
            (None, Some(cached)) => {
                // Any geometry fits a complete blob, so the one that the swarm uses is taken.
                let geometry = greetings.first().map(|greeting| greeting.geometry);
                if let Some(geometry) = geometry.filter(|geometry| geometry.size() == cached.size()) {
                    let swarm = self.new_swarm(geometry, Bitfield::full(geometry.pieces()), usize::MAX, false);
                    self.blobs.insert(digest, Blob::new(swarm, Source::Cached(cached), Vec::new(), 0));
                }
            }
            (None, None) => {}
        }
        for greeting in greetings {
            if self.blobs.contains_key(&digest) {
                self.blob_message(greeting.peer, digest, greeting.message);
            } else {
                self.parts.network.send(greeting.peer, &ControlMessage::Blob(digest, BlobMessage::Leave));
            }
        }
    }

    // ---- peers ----------------------------------------------------------------------------------

    fn network_event(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::Connected { peer, data_address, encryption } => {
                let key = PeerKey(self.next_key);
                self.next_key += 1;
                let role = self.roles.get(&peer).copied().unwrap_or(NodeRole::Proxy);
                self.peers.insert(peer, Peer { key, data_address, encryption, role });
                self.keys.insert(key, peer);
                let waiting: Vec<Digest> = self
                    .blobs
                    .iter_mut()
                    .filter_map(|(digest, blob)| blob.candidates.remove(&peer).map(|()| *digest))
                    .collect();
                for digest in waiting {
                    self.with(digest, |blob, now| blob.swarm.handle_peer(now, key));
                }
            }
            NetworkEvent::Message { peer, message: ControlMessage::Blob(digest, message) } => {
                self.blob_message(peer, digest, message);
            }
            NetworkEvent::Message { .. } => {}
            NetworkEvent::Disconnected { peer } => self.forget(peer),
            NetworkEvent::Unreachable { peer, reason } => {
                debug!(%peer, reason, "peer not reached");
                for blob in self.blobs.values_mut() {
                    blob.candidates.remove(&peer);
                }
            }
        }
    }

    fn forget(&mut self, peer: PeerId) {
        let Some(state) = self.peers.remove(&peer) else { return };
        self.keys.remove(&state.key);
        let digests: Vec<Digest> = self.blobs.keys().copied().collect();
        for digest in digests {
            self.with(digest, |blob, now| blob.swarm.handle_peer_left(now, state.key));
        }
        for waiting in self.greetings.values_mut() {
            waiting.retain(|greeting| greeting.peer != peer);
        }
    }

    fn blob_message(&mut self, peer: PeerId, digest: Digest, message: BlobMessage) {
        let Some(key) = self.peers.get(&peer).map(|state| state.key) else { return };
        let greeted = if let BlobMessage::Handshake { geometry, .. } = &message { Some(*geometry) } else { None };
        let Some(blob) = self.blobs.get_mut(&digest) else {
            if let Some(geometry) = greeted {
                let waiting = self.greetings.entry(digest).or_default();
                let first = waiting.is_empty();
                // A peer greets once; a second greeting before the answer replaces the first.
                waiting.retain(|greeting| greeting.peer != peer);
                waiting.push(Greeting { peer, geometry, message });
                if first {
                    self.look_up(digest);
                }
            }
            return;
        };
        blob.used = Instant::now();
        if greeted.is_some_and(|geometry| geometry != blob.geometry()) {
            // A seeder with other settings, not a liar: just of no use to each other.
            info!(%peer, blob = %digest.short(), "peer uses another piece length for this blob");
            self.parts.network.send(peer, &ControlMessage::Blob(digest, BlobMessage::Leave));
            return;
        }
        if greeted.is_some() {
            self.with(digest, |blob, now| blob.swarm.handle_peer(now, key));
            if self.blobs.get(&digest).is_some_and(|blob| !blob.swarm.has_peer(key)) {
                self.parts.network.send(peer, &ControlMessage::Blob(digest, BlobMessage::Leave));
                return;
            }
        }
        self.with(digest, |blob, now| blob.swarm.handle_message(now, key, message));
    }

    // ---- pieces in ------------------------------------------------------------------------------

    fn channel_event(&mut self, event: ChannelEvent) {
        match event {
            ChannelEvent::Started { id, piece, load, .. } => {
                if let Some((digest, id)) = self.requests.get(&id).copied() {
                    self.with(digest, |blob, now| blob.swarm.handle_started(now, id, piece, load));
                }
            }
            ChannelEvent::Progress { id, .. } => {
                if let Some((digest, id)) = self.requests.get(&id).copied() {
                    self.with(digest, |blob, now| blob.swarm.handle_progress(now, id));
                }
            }
            ChannelEvent::Piece { peer, id, piece, bytes, .. } => {
                let Some((digest, id)) = self.answered(id) else { return };
                let wanted = self.with(digest, |blob, now| {
                    let wanted = blob.swarm.handle_received(now, id, piece);
                    if !wanted {
                        blob.count(piece, |counters| &counters.duplicate);
                    }
                    wanted
                });
                if wanted == Some(true) {
                    self.verify(digest, peer, piece, bytes);
                }
            }
            ChannelEvent::Rejected { id, reason, load, .. } => {
                if let Some((digest, id)) = self.answered(id) {
                    self.with(digest, |blob, now| blob.swarm.handle_rejected(now, id, reason, load));
                }
            }
            ChannelEvent::Failed { peer, ids, reason, misbehaved } => {
                debug!(%peer, reason, requests = ids.len(), "data channel lost");
                for id in ids {
                    if let Some((digest, id)) = self.answered(id) {
                        self.with(digest, |blob, now| blob.swarm.handle_failed(now, id));
                    }
                }
                if misbehaved {
                    warn!(%peer, reason, "peer banned for {} s", BAN.as_secs());
                    self.parts.network.ban(peer, BAN);
                    self.forget(peer);
                }
            }
        }
    }

    /// Checks a piece against its hash and stores it, off this task.
    fn verify(&mut self, digest: Digest, peer: PeerId, piece: PieceIndex, bytes: bytes::Bytes) {
        let Some(blob) = self.blobs.get_mut(&digest) else { return };
        let generation = blob.generation;
        let hash = blob.hash(piece);
        if hash.is_none() && blob.hold(peer, piece, bytes.clone()) {
            return;
        }
        let (Source::Partial(entry), Some(hash)) = (&blob.source, hash) else {
            let verdict = Verdict::NotStored;
            return self.verified(Verified { digest, generation, peer, piece, verdict });
        };
        let entry = entry.clone();
        self.verifying.spawn(async move {
            let verdict = check_and_store(&entry, piece, hash, bytes).await;
            Verified { digest, generation, peer, piece, verdict }
        });
    }

    fn verified(&mut self, verified: Verified) {
        let Verified { digest, generation, peer, piece, verdict } = verified;
        let role = self.peers.get(&peer).map_or(NodeRole::Proxy, |state| state.role);
        // A peer that is gone by now is not there to be banned; any unused key will do for it.
        let key = self.peers.get(&peer).map_or(PeerKey(u64::MAX), |state| state.key);
        if self.blobs.get(&digest).is_none_or(|blob| blob.generation != generation) {
            return;
        }
        self.with(digest, |blob, now| {
            blob.count(piece, |counters| match (verdict, role) {
                (Verdict::Stored, NodeRole::Seeder) => &counters.seeders,
                (Verdict::Stored, NodeRole::Proxy) => &counters.peers,
                (Verdict::Corrupt, _) => &counters.corrupt,
                (Verdict::NotStored, _) => &counters.duplicate,
            });
            blob.swarm.handle_verified(now, key, piece, verdict);
        });
    }

    // ---- pieces out -----------------------------------------------------------------------------

    fn grant(&mut self, peer: PeerId, digest: Digest, piece: Option<PieceIndex>) -> Granted {
        let key = self.peers.get(&peer).map(|state| state.key).ok_or(RejectReason::NotHere)?;
        self.with(digest, |blob, _| {
            blob.used = Instant::now();
            let piece = blob.swarm.handle_request(key, piece)?;
            let geometry = blob.geometry();
            Ok(Grant {
                piece,
                reader: blob.source.reader(),
                offset: geometry.offset(piece),
                length: geometry.length(piece),
            })
        })
        .unwrap_or(Err(RejectReason::NotHere))
    }

    fn news(&mut self) {
        for news in self.parts.mailbox.take() {
            match news {
                News::Left { digest, generation } => self.leave(digest, generation),
                News::Uploaded { peer, digest, piece, bytes, sent } => {
                    let key = self.peers.get(&peer).map_or(PeerKey(u64::MAX), |state| state.key);
                    self.with(digest, |blob, _| {
                        blob.counters.uploaded.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
                        blob.swarm.handle_uploaded(key, piece, sent);
                    });
                }
            }
        }
    }
}

async fn check_and_store(entry: &PartialEntry, piece: PieceIndex, hash: PieceHash, bytes: bytes::Bytes) -> Verdict {
    let to_hash = bytes.clone();
    let matches = tokio::task::spawn_blocking(move || PieceHash::of(&to_hash) == hash).await;
    match matches {
        Ok(true) => {}
        Ok(false) => return Verdict::Corrupt,
        Err(_) => return Verdict::NotStored,
    }
    match entry.write_piece(piece, bytes).await {
        Ok(()) => Verdict::Stored,
        Err(error) => {
            warn!(%error, blob = %entry.digest().short(), %piece, "piece not stored");
            Verdict::NotStored
        }
    }
}
