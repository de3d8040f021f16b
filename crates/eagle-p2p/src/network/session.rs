//! One connected peer: `Hello`, then messages both ways, as one task.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::BytesMut;
use eagle_core::{
    Topology,
    wire::control::{ControlMessage, Encryption, Version, decode},
};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{PeerId, Stream};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    NetworkEvent,
    shared::{Outbox, Shared},
};

/// From the first connection to `Hello` in both directions. Two round trips and scheduling.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may leave its messages unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a session that ends with the network waits for the reader of events.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes read at once. Most messages are far smaller, and every session keeps this much for as long
/// as it waits: with 8 KiB, an idle peer costs 14 KiB more (bench `idle_peers`).
const READ_SIZE: usize = 1 << 10;
/// Frames are gathered up to about this many bytes into one write.
const WRITE_SIZE: usize = 32 << 10;

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// Its streams broke, or it was told to end.
    Lost(String),
    /// The peer broke the protocol: nothing to do with it any more.
    Violation(String),
}

/// A finished session.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) peer: PeerId,
    pub(super) id: u64,
    pub(super) end: End,
}

/// Everything a session needs. The driver delivers the streams when they come.
pub(super) struct Session {
    pub(super) peer: PeerId,
    pub(super) id: u64,
    pub(super) shared: Arc<Shared>,
    /// Ends this session.
    pub(super) token: CancellationToken,
    /// Ends the network.
    pub(super) shutdown: CancellationToken,
    /// The stream to send on.
    pub(super) outbound: oneshot::Receiver<(Stream, Version)>,
    /// The stream to read from, and where it comes from.
    pub(super) inbound: oneshot::Receiver<(Stream, Version, IpAddr)>,
    /// Ends when the session before this one with the same peer has said that it ended.
    pub(super) previous: Option<oneshot::Receiver<()>>,
    /// Dropped when this session has said that it ended.
    pub(super) done: oneshot::Sender<()>,
    /// Set when both sides have said `Hello`.
    pub(super) connected: Arc<AtomicBool>,
}

/// A peer that said `Hello`.
struct Greeted {
    outbound: Stream,
    /// Of the outbound stream.
    version: Version,
    inbound: Stream,
    buffer: BytesMut,
    address: Option<SocketAddr>,
    data_address: SocketAddr,
    encryption: Encryption,
    topology: Topology,
}

impl Session {
    pub(super) async fn run(mut self) -> Ended {
        let end = match self.set_up().await {
            Ok(greeted) => self.connected(greeted).await,
            Err(end) => end,
        };
        // Whoever waits for this session to be over waits for those before it as well.
        self.wait_for_previous().await;
        drop(self.done);
        Ended { peer: self.peer, id: self.id, end }
    }

    async fn set_up(&mut self) -> Result<Greeted, End> {
        let hello = ControlMessage::Hello {
            data_port: self.shared.data_port,
            encryption: self.shared.encryption,
            topology: self.shared.topology.clone(),
        };
        let listening = ControlMessage::Listening { port: self.shared.listen_port() };
        let greet = async {
            let (mut stream, version) = (&mut self.outbound).await.map_err(|_| lost("the connection closed"))?;
            for message in [&hello, &listening].into_iter().filter(|message| message.since() <= version) {
                let frame = super::encode(message).map_err(|error| End::Violation(error.to_string()))?;
                stream.write_all(&frame).await.map_err(lost)?;
            }
            stream.flush().await.map_err(lost)?;
            Ok((stream, version))
        };
        let listen = async {
            let (mut stream, version, ip) = (&mut self.inbound).await.map_err(|_| lost("the connection closed"))?;
            let mut buffer = BytesMut::new();
            let hello = next(&mut stream, &mut buffer).await?;
            let ControlMessage::Hello { data_port: data_port @ 1.., encryption, topology } = hello else {
                return Err(End::Violation("its first message is no Hello".to_owned()));
            };
            let address = match version {
                Version::Two => None,
                Version::Three => match next(&mut stream, &mut buffer).await? {
                    ControlMessage::Listening { port } => Some(SocketAddr::new(ip, port)),
                    _ => return Err(End::Violation("its Hello does not say where it listens".to_owned())),
                },
            };
            Ok((stream, buffer, address, SocketAddr::new(ip, data_port), encryption, topology))
        };
        let both = async { tokio::try_join!(greet, listen) };
        let greeted = tokio::select! {
            () = self.token.cancelled() => return Err(lost("disconnected")),
            greeted = timeout(SETUP_TIMEOUT, both) => greeted,
        };
        let Ok(greeted) = greeted else {
            return Err(End::Violation(format!("it did not say Hello within {} s", SETUP_TIMEOUT.as_secs())));
        };
        let ((outbound, version), (inbound, buffer, address, data_address, encryption, topology)) = greeted?;
        Ok(Greeted { outbound, version, inbound, buffer, address, data_address, encryption, topology })
    }

    async fn connected(&mut self, greeted: Greeted) -> End {
        let Greeted { mut outbound, version, mut inbound, mut buffer, address, data_address, encryption, topology } =
            greeted;
        self.wait_for_previous().await;
        if self.token.is_cancelled() {
            return lost("disconnected");
        }
        self.connected.store(true, Ordering::Relaxed);
        let mut outbox = self.shared.begin(self.peer, self.id, version, self.token.clone());
        tracing::debug!(peer = %self.peer, %data_address, "connected");
        self.emit(NetworkEvent::Connected { peer: self.peer, address, data_address, encryption, topology }).await;
        let end = tokio::select! {
            () = self.token.cancelled() => lost("disconnected"),
            end = self.receive(&mut inbound, &mut buffer) => end,
            end = transmit(&mut outbound, &mut outbox) => end,
        };
        // Data channels of this peer end with the session, whatever ended it.
        self.token.cancel();
        self.shared.end(self.peer, self.id);
        tracing::debug!(peer = %self.peer, ?end, "disconnected");
        self.emit(NetworkEvent::Disconnected { peer: self.peer }).await;
        end
    }

    async fn wait_for_previous(&mut self) {
        if let Some(previous) = self.previous.take() {
            // Closed instead of sent; both mean that it is over.
            let _ = previous.await;
        }
    }

    /// Waits for room among the events, except when nobody will make any.
    async fn emit(&self, event: NetworkEvent) {
        let abandoned = async {
            self.shutdown.cancelled().await;
            sleep(FAREWELL).await;
        };
        tokio::select! {
            // Fails when the receiver is gone, and then nobody wants to know.
            _ = self.shared.events.send(event) => {}
            () = abandoned => {}
        }
    }

    async fn receive(&self, stream: &mut Stream, buffer: &mut BytesMut) -> End {
        loop {
            let message = match next(stream, buffer).await {
                Ok(message) => message,
                Err(end) => return end,
            };
            match message {
                ControlMessage::Blob(..) => self.emit(NetworkEvent::Message { peer: self.peer, message }).await,
                ControlMessage::TicketRequest => {
                    let ticket = self.shared.tickets.issue(self.peer, Instant::now());
                    self.shared.send(self.peer, &ControlMessage::Ticket(ticket));
                }
                ControlMessage::Ticket(ticket) => {
                    if !self.shared.ticket_arrived(self.peer, ticket) {
                        return End::Violation("it sent a ticket that nobody asked for".to_owned());
                    }
                }
                ControlMessage::Listening { .. } => {
                    return End::Violation("it said twice where it listens".to_owned());
                }
                ControlMessage::Hello { .. } => return End::Violation("it said Hello twice".to_owned()),
            }
        }
    }
}

fn lost(reason: impl ToString) -> End {
    End::Lost(reason.to_string())
}

/// Reads until there is a whole message.
async fn next(stream: &mut Stream, buffer: &mut BytesMut) -> Result<ControlMessage, End> {
    loop {
        if let Some(message) = decode(buffer).map_err(|error| End::Violation(error.to_string()))? {
            return Ok(message);
        }
        let mut chunk = [0; READ_SIZE];
        match stream.read(&mut chunk).await.map_err(lost)? {
            0 => return Err(lost("the peer closed the connection")),
            read => buffer.extend_from_slice(&chunk[..read]),
        }
    }
}

async fn transmit(stream: &mut Stream, outbox: &mut Outbox) -> End {
    let mut batch = BytesMut::new();
    while let Some(frame) = outbox.next().await {
        batch.clear();
        batch.extend_from_slice(&frame);
        while batch.len() < WRITE_SIZE {
            let Some(frame) = outbox.ready() else { break };
            batch.extend_from_slice(&frame);
        }
        let write = async {
            stream.write_all(&batch).await?;
            stream.flush().await
        };
        match timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return lost(error),
            Err(_) => return lost("the peer does not read its messages"),
        }
    }
    lost("disconnected")
}
