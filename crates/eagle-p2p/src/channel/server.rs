//! The uploading side: listens, finds out who dialled, and serves.

use std::{
    collections::HashMap,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use eagle_core::wire::control::{Encryption, Ticket};
use libp2p::{PeerId, identity::Keypair};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    HANDSHAKE_TIMEOUT, UploadHandler,
    queue::Queue,
    send::Sender,
    transport::{self, Reader, Writer},
};
use crate::{
    limits::Limiter,
    network::{Network, StartError},
};

/// Connections that have not proven who they are yet.
const MAX_PENDING: usize = 128;
/// Channels of one peer: the one in use, and one that it replaces.
const MAX_PER_PEER: usize = 2;
/// How long a channel may be ahead of its control connection: the peer is connected when it has our
/// `Hello`, and its own may still be on the way.
const SESSION_PATIENCE: Duration = Duration::from_secs(2);
/// Pause when the process is out of file descriptors, which are not back any sooner.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound listener that accepts nothing yet: its port is told to peers before they may dial it.
#[derive(Debug)]
pub struct DataListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl DataListener {
    /// Listens for data channels; port 0 takes any free one.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(address: SocketAddr) -> Result<Self, StartError> {
        let failed = |source| StartError::Listen { what: "data channels", address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// The address, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

/// How data channels are served.
pub struct UploadServerConfig {
    /// Who this node is.
    pub keypair: Keypair,
    /// How channels are protected; the same as in
    /// [`NetworkConfig::encryption`](crate::network::NetworkConfig::encryption).
    pub encryption: Encryption,
    /// The upload limit of the host.
    pub limiter: Limiter,
    /// Most channels at once. Further ones are turned away.
    pub max_channels: usize,
}

impl fmt::Debug for UploadServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadServerConfig")
            .field("encryption", &self.encryption)
            .field("limiter", &self.limiter)
            .field("max_channels", &self.max_channels)
            .finish_non_exhaustive()
    }
}

/// Serves data channels until shutdown; clones are the same server.
#[derive(Debug, Clone)]
pub struct UploadServer {
    address: SocketAddr,
    uploaded: Arc<AtomicU64>,
    tasks: TaskTracker,
}

impl UploadServer {
    /// Begins to accept channels.
    ///
    /// # Errors
    /// When no certificate can be made for the identity.
    pub fn start(
        listener: DataListener,
        config: UploadServerConfig,
        network: Network,
        handler: Arc<dyn UploadHandler>,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        let acceptor = match config.encryption {
            Encryption::Tls => Some(transport::acceptor(&config.keypair)?),
            Encryption::None => None,
        };
        let uploaded = Arc::new(AtomicU64::new(0));
        let channels = Arc::new(Semaphore::new(config.max_channels.min(Semaphore::MAX_PERMITS)));
        let server = Arc::new(Server {
            acceptor,
            limiter: config.limiter,
            network,
            handler,
            uploaded: Arc::clone(&uploaded),
            pending: Semaphore::new(MAX_PENDING),
            per_peer: Mutex::default(),
        });
        let tasks = TaskTracker::new();
        tasks.spawn(accept(listener.listener, server, channels, shutdown));
        tasks.close();
        Ok(Self { address: listener.address, uploaded, tasks })
    }

    /// The address of the listener.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Bytes of pieces sent since the start.
    pub fn uploaded(&self) -> u64 {
        self.uploaded.load(Ordering::Relaxed)
    }

    /// Ends when every channel has ended, after `shutdown` was cancelled.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

struct Server {
    /// `None` for plain channels.
    acceptor: Option<TlsAcceptor>,
    limiter: Limiter,
    network: Network,
    handler: Arc<dyn UploadHandler>,
    uploaded: Arc<AtomicU64>,
    pending: Semaphore,
    per_peer: Mutex<HashMap<PeerId, usize>>,
}

async fn accept(listener: TcpListener, server: Arc<Server>, channels: Arc<Semaphore>, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a data channel failed");
                }
                continue;
            }
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a data channel");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (server, channels, shutdown) = (Arc::clone(&server), Arc::clone(&channels), shutdown.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                error = server.admitted(stream, &channels) => tracing::debug!(%from, %error, "a data channel ended"),
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

impl Server {
    /// One connection. Strangers take no place from members: how many can wait is bounded by the gate.
    async fn admitted(&self, mut stream: TcpStream, channels: &Semaphore) -> io::Error {
        if let Err(error) = self.network.gate().admit(&mut stream).await {
            return error;
        }
        match channels.try_acquire() {
            Ok(_place) => self.channel(stream).await,
            Err(_) => io::Error::other("there are too many data channels"),
        }
    }

    async fn channel(&self, stream: TcpStream) -> io::Error {
        let identified = {
            let Ok(_pending) = self.pending.try_acquire() else {
                return io::Error::other("too many connections that have not said who they are");
            };
            timeout(HANDSHAKE_TIMEOUT, self.identify(stream)).await
        };
        let (peer, session, reader, writer) = match identified {
            Ok(Ok(identified)) => identified,
            Ok(Err(error)) => return error,
            Err(_) => return io::ErrorKind::TimedOut.into(),
        };
        let Some(_place) = self.take_place(peer) else {
            return io::Error::other(format!("{peer} has {MAX_PER_PEER} channels already"));
        };
        tracing::debug!(%peer, "a data channel to a peer begins");
        let queue = Queue { peer, handler: Arc::clone(&self.handler), outstanding: Mutex::default() };
        let sender = Sender { writer, limiter: self.limiter.clone(), uploaded: Arc::clone(&self.uploaded) };
        tokio::select! {
            () = session.cancelled() => io::ErrorKind::NotConnected.into(),
            error = queue.serve(reader, sender) => error,
        }
    }

    /// Who dialled, and the session that the channel belongs to.
    async fn identify(&self, stream: TcpStream) -> io::Result<(PeerId, CancellationToken, Reader, Writer)> {
        self.network.gate().turn(&stream).await?;
        stream.set_nodelay(true)?;
        let (peer, reader, writer) = match &self.acceptor {
            Some(acceptor) => transport::accept(acceptor, stream).await?,
            None => {
                let (mut reader, writer) = transport::plain(stream);
                let peer = self.redeem(&mut reader).await?;
                (peer, reader, writer)
            }
        };
        let session = self.network.wait_for_session(peer, SESSION_PATIENCE).await;
        let session = session.ok_or_else(|| io::Error::other(format!("{peer} is not connected")))?;
        Ok((peer, session, reader, writer))
    }

    async fn redeem(&self, reader: &mut Reader) -> io::Result<PeerId> {
        let mut secret = [0; 32];
        let mut buffer = BytesMut::with_capacity(secret.len());
        while buffer.len() < secret.len() {
            let missing = secret.len() - buffer.len();
            if reader.read(&mut buffer, missing).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        secret.copy_from_slice(&buffer);
        self.network.redeem_ticket(&Ticket(secret)).ok_or_else(|| io::Error::other("the ticket is not valid"))
    }

    fn take_place(&self, peer: PeerId) -> Option<Place<'_>> {
        let mut counts = self.per_peer.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(peer).or_default();
        if *count >= MAX_PER_PEER {
            return None;
        }
        *count += 1;
        Some(Place { server: self, peer })
    }
}

/// One channel of a peer, counted.
struct Place<'a> {
    server: &'a Server,
    peer: PeerId,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut counts = self.server.per_peer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}
