//! The downloading side: one channel per peer, dialled when it is first needed.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use eagle_core::{Digest, Geometry, PieceIndex, geometry::MAX_PIECE_LENGTH, wire::control::Encryption};
use libp2p::{PeerId, identity::Keypair};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{ChannelEvent, MAX_OUTSTANDING, buffers::Buffers, client::Client};
use crate::{limits::Limiter, network::Network};

/// Events that wait for their reader; beyond that, channels stop reading. Pieces among them count
/// against the memory limit, the rest is small.
const EVENT_QUEUE: usize = 256;
/// Commands that wait for a channel: all requests it may have, and a cancel for each.
const COMMAND_QUEUE: usize = 2 * MAX_OUTSTANDING;

/// How pieces are fetched.
pub struct DataChannelsConfig {
    /// Who this node is.
    pub keypair: Keypair,
    /// The download limit of the host.
    pub limiter: Limiter,
    /// Most bytes of pieces in memory, arriving or not yet dropped by the reader of events. At least
    /// one piece of the largest size is always allowed.
    pub memory: usize,
    /// Most channels at once.
    pub max_channels: usize,
}

impl DataChannelsConfig {
    /// Default of [`DataChannelsConfig::memory`], bytes: sixteen pieces of 4 MiB, the largest that
    /// geometries are made of by themselves.
    pub const DEFAULT_MEMORY: usize = 64 << 20;
}

impl fmt::Debug for DataChannelsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataChannelsConfig")
            .field("limiter", &self.limiter)
            .field("memory", &self.memory)
            .field("max_channels", &self.max_channels)
            .finish_non_exhaustive()
    }
}

/// Where a connected peer serves pieces, as
/// [`NetworkEvent::Connected`](crate::network::NetworkEvent::Connected) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uploader {
    /// Who.
    pub peer: PeerId,
    /// Its data channel listener.
    pub data_address: SocketAddr,
    /// How that is protected.
    pub encryption: Encryption,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceRequest {
    /// Number that events repeat; not in use by another request to the same peer.
    pub id: u32,
    /// The blob.
    pub digest: Digest,
    /// The piece; `None` lets the uploader choose.
    pub piece: Option<PieceIndex>,
    /// Size and piece length of the blob, which the answer must fit.
    pub geometry: Geometry,
}

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Too many requests to this peer have no answer yet.
    #[error("{MAX_OUTSTANDING} requests to this peer wait already")]
    TooManyRequests,
    /// Too many peers are being asked.
    #[error("there are too many data channels")]
    TooManyChannels,
    /// This node is stopping.
    #[error("this node is stopping")]
    Stopping,
}

pub(super) enum Command {
    Request(PieceRequest),
    Cancel(u32),
}

/// The channels to all peers; clones are the same channels.
#[derive(Clone)]
pub struct DataChannels(Arc<Pool>);

pub(super) struct Pool {
    pub(super) keypair: Keypair,
    pub(super) limiter: Limiter,
    pub(super) network: Network,
    pub(super) events: mpsc::Sender<ChannelEvent>,
    pub(super) buffers: Buffers,
    pub(super) downloaded: AtomicU64,
    max_channels: usize,
    channels: Mutex<Channels>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Channels {
    open: HashMap<PeerId, Channel>,
    next: u64,
}

/// The handle of a [`Client`] task.
struct Channel {
    generation: u64,
    commands: mpsc::Sender<Command>,
    outstanding: Arc<AtomicUsize>,
    token: CancellationToken,
}

impl fmt::Debug for DataChannels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataChannels").field("open", &self.0.lock().open.len()).finish_non_exhaustive()
    }
}

impl DataChannels {
    /// Makes the channels' home; nothing is dialled yet. Read the events: while they are not read,
    /// nothing arrives.
    pub fn new(
        config: DataChannelsConfig,
        network: Network,
        shutdown: CancellationToken,
    ) -> (Self, mpsc::Receiver<ChannelEvent>) {
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let least = usize::try_from(MAX_PIECE_LENGTH).unwrap_or(usize::MAX);
        let pool = Pool {
            keypair: config.keypair,
            limiter: config.limiter,
            network,
            events,
            buffers: Buffers::new(config.memory.max(least)),
            downloaded: AtomicU64::new(0),
            max_channels: config.max_channels,
            channels: Mutex::default(),
            shutdown,
            tasks: TaskTracker::new(),
        };
        (Self(Arc::new(pool)), receiver)
    }

    /// Asks a connected peer for a piece, after what was asked before; dials when there is no
    /// channel. Returns at once.
    ///
    /// Exactly one of [`ChannelEvent::Piece`], [`ChannelEvent::Rejected`] and
    /// [`ChannelEvent::Failed`] follows for each request taken.
    ///
    /// # Errors
    /// When there are too many requests or channels, or this node is stopping.
    pub fn request(&self, to: Uploader, request: PieceRequest) -> Result<(), RequestError> {
        if self.0.shutdown.is_cancelled() {
            return Err(RequestError::Stopping);
        }
        let mut channels = self.0.lock();
        let room = channels.open.len() < self.0.max_channels;
        let generation = channels.next;
        let channel = match channels.open.entry(to.peer) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if !room => return Err(RequestError::TooManyChannels),
            Entry::Vacant(entry) => entry.insert(self.open(to, generation)),
        };
        let outstanding = channel.outstanding.fetch_add(1, Ordering::Relaxed);
        let taken = outstanding < MAX_OUTSTANDING && channel.commands.try_send(Command::Request(request)).is_ok();
        if !taken {
            channel.outstanding.fetch_sub(1, Ordering::Relaxed);
        }
        channels.next = generation + 1;
        if taken { Ok(()) } else { Err(RequestError::TooManyRequests) }
    }

    /// Says that the answer to a request is no longer wanted. Returns at once.
    ///
    /// [`ChannelEvent::Rejected`] with `Cancelled` follows, or the piece when it had begun.
    pub fn cancel(&self, peer: PeerId, id: u32) {
        if let Some(channel) = self.0.lock().open.get(&peer) {
            // When there is no room, the piece comes in vain, which is not worth more than this.
            let _ = channel.commands.try_send(Command::Cancel(id));
        }
    }

    /// Closes the channel to a peer; [`ChannelEvent::Failed`] follows when requests were waiting.
    /// Losing the session with the peer does the same.
    pub fn close(&self, peer: PeerId) {
        if let Some(channel) = self.0.lock().open.get(&peer) {
            channel.token.cancel();
        }
    }

    /// Bytes of pieces received since the start.
    pub fn downloaded(&self) -> u64 {
        self.0.downloaded.load(Ordering::Relaxed)
    }

    /// Ends when every channel has ended, after `shutdown` was cancelled.
    pub async fn stopped(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn open(&self, to: Uploader, generation: u64) -> Channel {
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let outstanding = Arc::new(AtomicUsize::new(0));
        let token = self.0.shutdown.child_token();
        let client = Client::new(Arc::clone(&self.0), to, generation, Arc::clone(&outstanding));
        self.0.tasks.spawn(client.run(receiver, token.clone()));
        Channel { generation, commands, outstanding, token }
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a channel out, so that the next request dials anew.
    pub(super) fn retire(&self, peer: PeerId, generation: u64) {
        let mut channels = self.lock();
        if channels.open.get(&peer).is_some_and(|channel| channel.generation == generation) {
            self.remove(&mut channels, peer);
        }
    }

    /// As [`Pool::retire`], unless a command has come meanwhile, which is then given back.
    pub(super) fn retire_idle(
        &self,
        peer: PeerId,
        generation: u64,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Option<Command> {
        let mut channels = self.lock();
        // Commands are only sent under the same lock, so none can slip in between.
        let command = commands.try_recv().ok();
        if command.is_none() && channels.open.get(&peer).is_some_and(|channel| channel.generation == generation) {
            self.remove(&mut channels, peer);
        }
        command
    }

    fn remove(&self, channels: &mut Channels, peer: PeerId) {
        channels.open.remove(&peer);
        if channels.open.is_empty() {
            self.buffers.clear();
        }
    }
}
