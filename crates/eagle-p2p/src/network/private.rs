//! Control connections of a cluster with a key: the hint ([`crate::gate`]), then everything inside libp2p's private
//! network (XSalsa20 under a key derived from the cluster key; libp2p specification, "Private Networks").
//!
//! The private network keeps out those without the key and hides what is said from them. That nothing is changed on
//! the way, and who the other end is, is proven by the TLS inside.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use eagle_cluster::{ClusterKey, Purpose};
use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    PeerId, Transport as _,
    core::{ConnectedPoint, muxing::StreamMuxerBox, transport::Boxed, upgrade::Version},
    identity::Keypair,
    pnet::{PnetConfig, PnetError, PnetOutput, PreSharedKey},
    tcp::{self, tokio::TcpStream},
    tls, yamux,
};

use tokio::time::timeout;

use super::StartError;
use crate::gate::{Gate, HINT_TIMEOUT, Revoked};

/// TCP, the gate, the private network, TLS and yamux.
///
/// # Errors
/// When no certificate can be made for the identity.
pub(super) fn transport(keypair: &Keypair, gate: Arc<Gate>) -> Result<Boxed<(PeerId, StreamMuxerBox)>, StartError> {
    Ok(tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .and_then(move |stream, end| enter(gate, stream, end))
        .upgrade(Version::V1Lazy)
        .authenticate(tls::Config::new(keypair)?)
        .multiplex(yamux::Config::default())
        .boxed())
}

/// A connection on which TLS can begin.
enum Gated {
    /// Of a cluster without a key.
    Open(TcpStream),
    /// Of a cluster with one.
    Private(Box<Private>),
}

/// A connection under a cluster key.
struct Private {
    stream: PnetOutput<TcpStream>,
    revoked: Revoked,
}

/// Begins a connection: what comes out is a member's, as far as can be known before TLS.
///
/// # Errors
/// When the other end does not hold the cluster key, too many come from its address, or the connection breaks.
async fn enter(gate: Arc<Gate>, mut stream: TcpStream, end: ConnectedPoint) -> io::Result<Gated> {
    let key = match end {
        ConnectedPoint::Dialer { .. } => gate.knock(&mut stream.0).await,
        ConnectedPoint::Listener { .. } => gate.admit(&mut stream.0).await,
    }?;
    if end.is_listener() {
        gate.turn(&stream.0).await?;
    }
    let Some(key) = key else { return Ok(Gated::Open(stream)) };
    // A node without a key may take the hint for the beginning of something long, and wait for the rest.
    let handshake = timeout(HINT_TIMEOUT, PnetConfig::new(shared_key(&key)).handshake(stream)).await;
    let stream = handshake.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into())).map_err(refused)?;
    let revoked = gate.revoked(key);
    Ok(Gated::Private(Box::new(Private { stream, revoked })))
}

/// What became of the handshake, for operators.
fn refused(error: PnetError) -> io::Error {
    let (PnetError::HandshakeError(error) | PnetError::IoError(error)) = error;
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::TimedOut => io::Error::new(
            error.kind(),
            "it does not answer as a node with this cluster key: it has another one or none",
        ),
        _ => error,
    }
}

fn shared_key(key: &ClusterKey) -> PreSharedKey {
    PreSharedKey::new(*key.derive(Purpose::PrivateNetwork))
}

impl AsyncRead for Gated {
    /// Fails as soon as the key of the connection is no longer accepted. The multiplexer reads at all times, so this
    /// is what ends the connection.
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Open(stream) => Pin::new(stream).poll_read(context, bytes),
            Self::Private(private) => {
                if private.revoked.as_mut().poll(context).is_ready() {
                    // Further reads fail too: a future that has ended must not be asked again.
                    private.revoked = Box::pin(std::future::ready(()));
                    return Poll::Ready(Err(revoked()));
                }
                Pin::new(&mut private.stream).poll_read(context, bytes)
            }
        }
    }
}

fn revoked() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the cluster key of the connection is no longer accepted")
}

impl AsyncWrite for Gated {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Open(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Private(private) => Pin::new(&mut private.stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Open(stream) => Pin::new(stream).poll_flush(context),
            Self::Private(private) => Pin::new(&mut private.stream).poll_flush(context),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Open(stream) => Pin::new(stream).poll_close(context),
            Self::Private(private) => Pin::new(&mut private.stream).poll_close(context),
        }
    }
}
