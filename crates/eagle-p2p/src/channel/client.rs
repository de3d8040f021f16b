//! One channel on the downloading side, as one task.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use eagle_core::wire::{control::Encryption, data::Ask};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    ChannelEvent, HANDSHAKE_TIMEOUT,
    patience::Patience,
    pool::{Command, PieceRequest, Pool, Uploader},
    transport::{self, Reader, Writer},
};

/// A channel that nothing was asked on for this long is closed: TLS state and socket buffers for
/// something that a round trip or three bring back.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a channel that ends with the node waits for the reader of events.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why a channel ended.
#[derive(Debug)]
pub(super) enum End {
    /// Nothing was asked for a while, and the other side or this one closed it.
    Idle,
    /// It broke.
    Broken(String),
    /// The peer sent what no honest one sends.
    Misbehaved(String),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// One channel.
pub(super) struct Client {
    pub(super) pool: Arc<Pool>,
    pub(super) to: Uploader,
    generation: u64,
    /// Requests taken for this channel that were not answered, wherever they are.
    outstanding: Arc<AtomicUsize>,
    /// Requests sent and not answered, in their order, which is the order of the answers.
    pending: Mutex<VecDeque<PieceRequest>>,
}

impl Client {
    pub(super) fn new(pool: Arc<Pool>, to: Uploader, generation: u64, outstanding: Arc<AtomicUsize>) -> Self {
        Self { pool, to, generation, outstanding, pending: Mutex::default() }
    }

    pub(super) async fn run(self, mut commands: mpsc::Receiver<Command>, token: CancellationToken) {
        let end = match self.pool.network.session(self.to.peer) {
            None => End::Broken("the peer is not connected".to_owned()),
            Some(session) => tokio::select! {
                () = token.cancelled() => End::Broken("the channel was closed here".to_owned()),
                () = session.cancelled() => End::Broken("the control connection was lost".to_owned()),
                end = self.serve(&mut commands) => end,
            },
        };
        self.pool.retire(self.to.peer, self.generation);
        commands.close();
        let mut ids: Vec<u32> = self.pending().drain(..).map(|request| request.id).collect();
        while let Ok(command) = commands.try_recv() {
            if let Command::Request(request) = command {
                ids.push(request.id);
            }
        }
        tracing::debug!(peer = %self.to.peer, ?end, failed = ids.len(), "a data channel to a peer ended");
        let (reason, misbehaved) = match end {
            End::Idle => ("the channel was idle".to_owned(), false),
            End::Broken(reason) => (reason, false),
            End::Misbehaved(reason) => (reason, true),
        };
        if misbehaved || !ids.is_empty() {
            let failed = ChannelEvent::Failed { peer: self.to.peer, ids, reason, misbehaved };
            let abandoned = async {
                token.cancelled().await;
                sleep(FAREWELL).await;
            };
            tokio::select! {
                // Fails when the receiver is gone, and then nobody wants to know.
                _ = self.pool.events.send(failed) => {}
                () = abandoned => {}
            }
        }
    }

    async fn serve(&self, commands: &mut mpsc::Receiver<Command>) -> End {
        let (mut reader, mut writer) = match self.dial().await {
            Ok(halves) => halves,
            Err(error) => {
                return End::Broken(format!("cannot open a data channel to {}: {error}", self.to.data_address));
            }
        };
        tokio::select! {
            end = self.ask(&mut writer, commands) => end,
            end = self.receive(&mut reader) => end,
        }
    }

    async fn dial(&self) -> io::Result<(Reader, Writer)> {
        // The ticket first: asking has a deadline of its own, and dialling then fits its lifetime.
        let ticket = match self.to.encryption {
            Encryption::Tls => None,
            Encryption::None => Some(self.pool.network.request_ticket(self.to.peer).await.map_err(io::Error::other)?),
        };
        let dial = async {
            let mut stream = transport::dial(self.to.data_address, self.pool.limiter.rate()).await?;
            self.pool.network.gate().knock(&mut stream).await?;
            match ticket {
                None => transport::connect(&self.pool.keypair, self.to.peer, stream).await,
                Some(ticket) => {
                    let (reader, mut writer) = transport::plain(stream);
                    writer.write_all(&ticket.0, &mut Patience::with(None)).await?;
                    Ok((reader, writer))
                }
            }
        };
        timeout(HANDSHAKE_TIMEOUT, dial).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Sends what is asked for.
    async fn ask(&self, writer: &mut Writer, commands: &mut mpsc::Receiver<Command>) -> End {
        let mut frames = BytesMut::new();
        let mut patience = Patience::with(None);
        loop {
            let command = match timeout(IDLE_TIMEOUT, commands.recv()).await {
                Ok(Some(command)) => command,
                Ok(None) => return End::Idle,
                Err(_) if !self.pending().is_empty() => continue,
                Err(_) => match self.pool.retire_idle(self.to.peer, self.generation, commands) {
                    Some(command) => command,
                    None => return End::Idle,
                },
            };
            frames.clear();
            let mut next = Some(command);
            while let Some(command) = next {
                self.encode(command, &mut frames);
                next = commands.try_recv().ok();
            }
            if let Err(error) = writer.write_all(&frames, &mut patience).await {
                return error.into();
            }
            if let Err(error) = writer.flush(&mut patience).await {
                return error.into();
            }
        }
    }

    fn encode(&self, command: Command, frames: &mut BytesMut) {
        match command {
            Command::Request(request) => {
                // Before it is sent, since the answer may be faster than this task.
                self.pending().push_back(request);
                let PieceRequest { id, digest, piece, .. } = request;
                Ask::Request { id, digest, piece }.encode(frames);
            }
            Command::Cancel(id) => {
                if self.pending().iter().any(|request| request.id == id) {
                    Ask::Cancel { id }.encode(frames);
                }
            }
        }
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, VecDeque<PieceRequest>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the request that an answer must be for: the oldest.
    pub(super) fn answered(&self, id: u32) -> Result<PieceRequest, End> {
        let oldest = self.pending().front().copied();
        match oldest {
            Some(request) if request.id == id => Ok(request),
            Some(request) => Err(End::Misbehaved(format!("it answered request {id} before {}", request.id))),
            None => Err(End::Misbehaved(format!("it answered request {id}, which nobody made"))),
        }
    }

    /// The oldest request has its answer.
    pub(super) fn done(&self) {
        if self.pending().pop_front().is_some() {
            self.outstanding.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
