//! The requests of one peer on the uploading side, from their arrival to their answer.
//!
//! Three loops run side by side in the channel's task: one reads requests and hands each to the
//! [`UploadHandler`] at once, one collects what the handler decides, in the order of the requests,
//! and one sends.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use bytes::BytesMut;
use eagle_core::{
    Digest, PieceIndex,
    wire::data::{Ask, MAX_HEADER, RejectReason},
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use libp2p::PeerId;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    MAX_OUTSTANDING, UploadHandler,
    send::{Reply, Sender},
    transport::Reader,
};

/// A channel without requests for this long is closed. The asking side closes it earlier, so this
/// finds those that vanished.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// One channel on the uploading side.
pub(super) struct Queue {
    pub(super) peer: PeerId,
    pub(super) handler: Arc<dyn UploadHandler>,
    /// Requests whose answer has not begun, with what cancels them.
    pub(super) outstanding: Mutex<HashMap<u32, CancellationToken>>,
}

struct Request {
    id: u32,
    digest: Digest,
    piece: Option<PieceIndex>,
    cancelled: CancellationToken,
}

struct Decided {
    id: u32,
    reply: Reply,
    cancelled: CancellationToken,
}

impl Queue {
    /// Serves until the channel ends, and says why it did.
    pub(super) async fn serve(&self, reader: Reader, sender: Sender) -> io::Error {
        let (requests, arrived) = mpsc::channel(MAX_OUTSTANDING);
        let (decided, decisions) = mpsc::channel(MAX_OUTSTANDING);
        tokio::select! {
            error = self.read(reader, requests) => error,
            error = self.decide(arrived, decided) => error,
            error = self.send(sender, decisions) => error,
        }
    }

    async fn read(&self, mut reader: Reader, requests: mpsc::Sender<Request>) -> io::Error {
        let mut buffer = BytesMut::new();
        loop {
            match Ask::decode(&mut buffer) {
                Ok(Some(ask)) => {
                    if let Err(error) = self.asked(ask, &requests).await {
                        return error;
                    }
                    continue;
                }
                Ok(None) => {}
                Err(error) => return io::Error::other(error),
            }
            match timeout(IDLE_TIMEOUT, reader.read(&mut buffer, MAX_HEADER)).await {
                Ok(Ok(0)) => return io::ErrorKind::UnexpectedEof.into(),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error,
                Err(_) if self.lock().is_empty() => return io::Error::other("no requests for a long time"),
                Err(_) => {}
            }
        }
    }

    async fn asked(&self, ask: Ask, requests: &mpsc::Sender<Request>) -> io::Result<()> {
        match ask {
            Ask::Cancel { id } => {
                // An unknown one was answered meanwhile.
                if let Some(cancelled) = self.lock().get(&id) {
                    cancelled.cancel();
                }
                Ok(())
            }
            Ask::Request { id, digest, piece } => {
                let cancelled = CancellationToken::new();
                {
                    let mut outstanding = self.lock();
                    if outstanding.len() >= MAX_OUTSTANDING {
                        return Err(io::Error::other(format!("more than {MAX_OUTSTANDING} requests at once")));
                    }
                    if outstanding.insert(id, cancelled.clone()).is_some() {
                        return Err(io::Error::other(format!("request number {id} is used twice")));
                    }
                }
                let request = Request { id, digest, piece, cancelled };
                requests.send(request).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
            }
        }
    }

    async fn decide(&self, mut arrived: mpsc::Receiver<Request>, decided: mpsc::Sender<Decided>) -> io::Error {
        let mut deciding: FuturesOrdered<BoxFuture<'_, Decided>> = FuturesOrdered::new();
        loop {
            tokio::select! {
                biased;
                Some(request) = arrived.recv() => {
                    let mut future = self.decision(request).boxed();
                    // Begun here, so that the handler sees requests in the order of their arrival.
                    match futures::poll!(&mut future) {
                        Poll::Ready(ready) => deciding.push_back(async move { ready }.boxed()),
                        Poll::Pending => deciding.push_back(future),
                    }
                }
                Some(next) = deciding.next(), if !deciding.is_empty() => {
                    if decided.send(next).await.is_err() {
                        return io::ErrorKind::BrokenPipe.into();
                    }
                }
                else => return io::ErrorKind::BrokenPipe.into(),
            }
        }
    }

    async fn decision(&self, Request { id, digest, piece, cancelled }: Request) -> Decided {
        let reply = tokio::select! {
            biased;
            () = cancelled.cancelled() => self.cancelled(),
            upload = self.handler.request(self.peer, digest, piece) => {
                Reply::new(&self.handler, self.peer, digest, upload)
            }
        };
        Decided { id, reply, cancelled }
    }

    fn cancelled(&self) -> Reply {
        Reply::Reject { reason: RejectReason::Cancelled, load: self.handler.load() }
    }

    async fn send(&self, mut sender: Sender, mut decisions: mpsc::Receiver<Decided>) -> io::Error {
        while let Some(Decided { id, reply, cancelled }) = decisions.recv().await {
            self.lock().remove(&id);
            let reply = if cancelled.is_cancelled() { self.cancelled() } else { reply };
            if let Err(error) = sender.send(id, reply).await {
                return error;
            }
        }
        io::ErrorKind::BrokenPipe.into()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, CancellationToken>> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
