//! Serving requests: the engine decides, a bounded number of pieces goes out at a time.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use eagle_core::{
    Digest, PieceIndex,
    wire::{control::Load, data::RejectReason},
};
use libp2p::PeerId;
use tokio::sync::{Mutex as FairMutex, OwnedMutexGuard, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    commands::{Command, Mailbox, News},
    slots::{Slot, Slots},
};
use crate::{
    channel::{Permit, Upload, UploadHandler},
    limits::Limiter,
};

/// Turns of one peer.
type Turn = Arc<FairMutex<()>>;

pub(super) struct Uploads {
    commands: mpsc::Sender<Command>,
    mailbox: Arc<Mailbox>,
    /// One for each piece that goes out.
    slots: Slots,
    /// A channel answers in order, so of one peer's requests only the first may hold a slot.
    turns: Mutex<HashMap<PeerId, Weak<FairMutex<()>>>>,
    requests: Arc<AtomicUsize>,
}

/// Counts a request for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Uploads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uploads").field("requests", &self.requests()).finish_non_exhaustive()
    }
}

/// What an upload holds while it goes on.
struct Held {
    slot: Slot,
    _turn: OwnedMutexGuard<()>,
    _counted: Counted,
}

impl Permit for Held {
    fn step_aside(&mut self) -> CancellationToken {
        self.slot.step_aside()
    }
}

/// Tells the engine that a granted upload is over, when the peer gives up before it begins.
struct Unfinished<'a> {
    mailbox: &'a Mailbox,
    upload: Option<(PeerId, Digest, PieceIndex)>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some((peer, digest, piece)) = self.upload {
            self.mailbox.put(News::Uploaded { peer, digest, piece, bytes: 0, sent: false });
        }
    }
}

impl Uploads {
    pub(super) fn new(commands: mpsc::Sender<Command>, mailbox: Arc<Mailbox>, limiter: Limiter) -> Self {
        Self { commands, mailbox, slots: Slots::new(limiter), turns: Mutex::default(), requests: Arc::default() }
    }

    /// Requests that are served or wait.
    pub(super) fn requests(&self) -> u16 {
        u16::try_from(self.requests.load(Ordering::Relaxed)).unwrap_or(u16::MAX)
    }

    /// Uploads that could begin at once.
    pub(super) fn free_slots(&self) -> u16 {
        u16::try_from(self.slots.free()).unwrap_or(u16::MAX)
    }

    fn turn(&self, peer: PeerId) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(&peer).and_then(Weak::upgrade) {
            return turn;
        }
        // Peers come and go; what is left of those without a request goes here.
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Turn::default();
        turns.insert(peer, Arc::downgrade(&turn));
        turn
    }

    async fn decide(&self, peer: PeerId, digest: Digest, piece: Option<PieceIndex>) -> super::commands::Granted {
        let (reply, decision) = oneshot::channel();
        let command = Command::Upload { peer, digest, piece, reply };
        self.commands.send(command).await.map_err(|_| RejectReason::NotHere)?;
        decision.await.map_err(|_| RejectReason::NotHere)?
    }
}

#[async_trait]
impl UploadHandler for Uploads {
    async fn request(&self, peer: PeerId, digest: Digest, piece: Option<PieceIndex>) -> Upload {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(Arc::clone(&self.requests));
        let turn = self.turn(peer);
        let grant = match self.decide(peer, digest, piece).await {
            Ok(grant) => grant,
            Err(reason) => {
                drop(counted);
                return Upload::Reject { reason, load: self.load() };
            }
        };
        let mut unfinished = Unfinished { mailbox: &self.mailbox, upload: Some((peer, digest, grant.piece)) };
        // Both locks are held across the upload on purpose: they are what bounds it.
        let turn = turn.lock_owned().await;
        let Some(slot) = self.slots.take(grant.receiver).await else {
            return Upload::Reject { reason: RejectReason::Failed, load: self.load() };
        };
        unfinished.upload = None;
        Upload::Serve {
            piece: grant.piece,
            reader: grant.reader,
            offset: grant.offset,
            length: grant.length,
            load: self.load(),
            permit: Box::new(Held { slot, _turn: turn, _counted: counted }),
        }
    }

    fn finished(&self, peer: PeerId, digest: Digest, piece: PieceIndex, bytes_sent: u64, ok: bool) {
        self.mailbox.put(News::Uploaded { peer, digest, piece, bytes: bytes_sent, sent: ok });
    }

    fn load(&self) -> Load {
        // Whether a seeder still spreads is said by its control messages; answers carry the queue.
        Load { requests: self.requests(), spreading: false }
    }
}
