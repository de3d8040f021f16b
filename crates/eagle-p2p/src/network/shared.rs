//! What the handle, the driver and the sessions share.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use eagle_cluster::ClusterKey;
use eagle_core::{
    Topology,
    wire::control::{ControlMessage, Encryption, Ticket, Version},
};
use libp2p::PeerId;
use lru::LruCache;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{NetworkConfig, NetworkEvent, TicketError, tickets::TicketBook};
use crate::gate::Gate;

/// Most frames that wait to be sent to one peer. A peer that is this far behind does not read.
const QUEUE_FRAMES: usize = 4096;
/// Most bytes that wait to be sent to one peer: the bitfields of a hundred of the largest blobs.
const QUEUE_BYTES: usize = 4 << 20;
/// Most dials that wait for their turn.
const MAX_DIALS: usize = 4096;
/// Most bans. PeerIds are free, so a ban only helps against peers that keep theirs.
const MAX_BANS: usize = 1024;
/// Most tickets asked for from one peer at once.
const MAX_TICKET_WAITERS: usize = 4;
/// Peers of which it is known how they were dialled: as many as a node is connected to.
const MAX_DIALLED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// How a peer was dialled.
#[derive(Debug, Clone)]
pub(super) struct Dialled {
    pub(super) address: SocketAddr,
    /// The cluster key of the connection, or one that was in use just before it.
    pub(super) key: Option<ClusterKey>,
}

pub(super) struct Shared {
    pub(super) local: PeerId,
    pub(super) gate: Arc<Gate>,
    pub(super) data_port: u16,
    /// Known once it listens, which is before there is any session.
    listen_port: OnceLock<u16>,
    pub(super) topology: Topology,
    /// Newest version of the control protocol to speak.
    pub(super) newest: Version,
    pub(super) encryption: Encryption,
    pub(super) events: mpsc::Sender<NetworkEvent>,
    pub(super) tickets: TicketBook,
    /// Connected peers.
    sessions: Mutex<HashMap<PeerId, SessionHandle>>,
    /// Changes when a session begins.
    began: watch::Sender<()>,
    requests: Mutex<Requests>,
    bans: Mutex<HashMap<PeerId, Instant>>,
    dialled: Mutex<LruCache<PeerId, Dialled>>,
    /// There is something in `requests`.
    pub(super) wake: Notify,
    /// Bytes of control messages queued since the start.
    control_sent: AtomicU64,
}

/// What the driver shall do. Sets instead of a queue: asking twice is asking once.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) dials: HashMap<PeerId, SocketAddr>,
    pub(super) disconnects: HashSet<PeerId>,
}

/// A connected peer as the handle sees it.
struct SessionHandle {
    id: u64,
    /// In which messages are sent.
    version: Version,
    queue: mpsc::Sender<Bytes>,
    /// Bytes in `queue`.
    queued: Arc<AtomicUsize>,
    token: CancellationToken,
    /// Who waits for tickets, in the order of asking, which is the order of the answers.
    waiters: VecDeque<oneshot::Sender<Ticket>>,
}

/// The other end of a [`SessionHandle`]: frames to be sent.
pub(super) struct Outbox {
    frames: mpsc::Receiver<Bytes>,
    queued: Arc<AtomicUsize>,
}

impl Outbox {
    /// Waits for the next frame; `None` when the session is over.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        let frame = self.frames.recv().await;
        self.taken(frame)
    }

    /// The next frame if there is one already.
    pub(super) fn ready(&mut self) -> Option<Bytes> {
        let frame = self.frames.try_recv().ok();
        self.taken(frame)
    }

    fn taken(&self, frame: Option<Bytes>) -> Option<Bytes> {
        if let Some(frame) = &frame {
            self.queued.fetch_sub(frame.len(), Ordering::Relaxed);
        }
        frame
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics while it holds a lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(config: &NetworkConfig, events: mpsc::Sender<NetworkEvent>) -> Self {
        Self {
            local: config.keypair.public().to_peer_id(),
            gate: Arc::new(Gate::new(config.membership.clone())),
            data_port: config.data_port,
            listen_port: OnceLock::new(),
            encryption: config.encryption,
            newest: config.version,
            topology: config.topology.clone(),
            events,
            tickets: TicketBook::default(),
            sessions: Mutex::default(),
            began: watch::channel(()).0,
            requests: Mutex::default(),
            bans: Mutex::default(),
            dialled: Mutex::new(LruCache::new(MAX_DIALLED)),
            wake: Notify::new(),
            control_sent: AtomicU64::new(0),
        }
    }

    /// This node listens for peers.
    pub(super) fn note_listening(&self, port: u16) {
        // Said once.
        let _ = self.listen_port.set(port);
    }

    pub(super) fn listen_port(&self) -> u16 {
        self.listen_port.get().copied().unwrap_or_default()
    }

    // Called by the handle.

    pub(super) fn request_dial(&self, peer: PeerId, address: SocketAddr) {
        if peer == self.local || self.session(peer).is_some() || self.is_banned(&peer) {
            return;
        }
        let mut requests = lock(&self.requests);
        if requests.dials.len() < MAX_DIALS {
            requests.dials.insert(peer, address);
            self.wake.notify_one();
        } else {
            tracing::warn!(%peer, "not dialling: {MAX_DIALS} dials wait already");
        }
    }

    /// Dials a lost peer again if the connection was this node's and under another key than it uses now; says whether.
    pub(super) fn request_redial(&self, peer: PeerId) -> bool {
        let Some(dialled) = lock(&self.dialled).pop(&peer) else { return false };
        let again = dialled.key != self.gate.own() && !self.is_banned(&peer);
        if again {
            self.request_dial(peer, dialled.address);
        }
        again
    }

    pub(super) fn send(&self, peer: PeerId, message: &ControlMessage) -> bool {
        let frame = match super::encode(message) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(%peer, %error, "a message to a peer cannot be sent; disconnecting");
                self.disconnect(peer);
                return false;
            }
        };
        let sent = {
            let sessions = lock(&self.sessions);
            let Some(session) = sessions.get(&peer).filter(|session| !session.token.is_cancelled()) else {
                return false;
            };
            if message.since() > session.version {
                return true;
            }
            let length = frame.len();
            let before = session.queued.fetch_add(length, Ordering::Relaxed);
            let taken = before + length <= QUEUE_BYTES && session.queue.try_send(frame).is_ok();
            if taken {
                self.control_sent.fetch_add(length as u64, Ordering::Relaxed);
            }
            taken
        };
        if !sent {
            tracing::warn!(%peer, "disconnecting a peer that does not read its messages");
            self.disconnect(peer);
        }
        sent
    }

    pub(super) fn disconnect(&self, peer: PeerId) {
        {
            let mut requests = lock(&self.requests);
            requests.dials.remove(&peer);
            requests.disconnects.insert(peer);
        }
        self.wake.notify_one();
        // Last, so that the driver knows that the end of this session was wanted.
        if let Some(session) = lock(&self.sessions).get(&peer) {
            session.token.cancel();
        }
    }

    pub(super) fn ban(&self, peer: PeerId, until: Instant) {
        {
            let mut bans = lock(&self.bans);
            let now = Instant::now();
            bans.retain(|_, until| *until > now);
            if bans.len() >= MAX_BANS {
                let soonest = bans.iter().min_by_key(|(_, until)| **until).map(|(peer, _)| *peer);
                soonest.and_then(|peer| bans.remove(&peer));
            }
            bans.insert(peer, until);
        }
        self.disconnect(peer);
    }

    pub(super) fn is_banned(&self, peer: &PeerId) -> bool {
        lock(&self.bans).get(peer).is_some_and(|until| *until > Instant::now())
    }

    pub(super) fn control_sent(&self) -> u64 {
        self.control_sent.load(Ordering::Relaxed)
    }

    pub(super) fn connected(&self) -> usize {
        lock(&self.sessions).len()
    }

    pub(super) fn session(&self, peer: PeerId) -> Option<CancellationToken> {
        lock(&self.sessions).get(&peer).map(|session| session.token.clone()).filter(|token| !token.is_cancelled())
    }

    pub(super) async fn wait_for_session(&self, peer: PeerId, patience: Duration) -> Option<CancellationToken> {
        let mut began = self.began.subscribe();
        let found = async {
            loop {
                if let Some(token) = self.session(peer) {
                    return Some(token);
                }
                began.changed().await.ok()?;
            }
        };
        tokio::time::timeout(patience, found).await.ok().flatten()
    }

    pub(super) fn await_ticket(&self, peer: PeerId, waiter: oneshot::Sender<Ticket>) -> Result<(), TicketError> {
        let mut sessions = lock(&self.sessions);
        let session = sessions.get_mut(&peer).ok_or(TicketError::NotConnected)?;
        if session.waiters.len() >= MAX_TICKET_WAITERS {
            return Err(TicketError::Busy);
        }
        session.waiters.push_back(waiter);
        Ok(())
    }

    // Called by the driver.

    pub(super) fn note_dialled(&self, peer: PeerId, dialled: Dialled) {
        lock(&self.dialled).put(peer, dialled);
    }

    pub(super) fn take_disconnects(&self) -> HashSet<PeerId> {
        std::mem::take(&mut lock(&self.requests).disconnects)
    }

    pub(super) fn take_dial(&self) -> Option<(PeerId, SocketAddr)> {
        let mut requests = lock(&self.requests);
        let peer = *requests.dials.keys().next()?;
        requests.dials.remove_entry(&peer)
    }

    // Called by sessions.

    pub(super) fn begin(&self, peer: PeerId, id: u64, version: Version, token: CancellationToken) -> Outbox {
        let (queue, frames) = mpsc::channel(QUEUE_FRAMES);
        let queued = Arc::new(AtomicUsize::new(0));
        let handle = SessionHandle { id, version, queue, queued: Arc::clone(&queued), token, waiters: VecDeque::new() };
        lock(&self.sessions).insert(peer, handle);
        self.began.send_replace(());
        Outbox { frames, queued }
    }

    pub(super) fn end(&self, peer: PeerId, id: u64) {
        let mut sessions = lock(&self.sessions);
        if sessions.get(&peer).is_some_and(|session| session.id == id) {
            sessions.remove(&peer);
        }
    }

    /// Hands an answer to who asked first; `false` when nobody did.
    pub(super) fn ticket_arrived(&self, peer: PeerId, ticket: Ticket) -> bool {
        let waiter = lock(&self.sessions).get_mut(&peer).and_then(|session| session.waiters.pop_front());
        // The one who asked may have given up meanwhile; the answer was asked for all the same.
        waiter.map(|waiter| waiter.send(ticket)).is_some()
    }
}
