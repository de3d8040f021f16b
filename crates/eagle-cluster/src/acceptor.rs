//! Telling members from strangers among those who connect.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::{stream::MemberStream, tls::MemberTls, waiting_room::WaitingRoom};

/// How long who connects may take until it is known who that is.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);
/// First byte of TLS: a record of the handshake (RFC 8446, section 5.1). No request of HTTP begins with it.
const TLS_HANDSHAKE: u8 = 0x16;
/// How often refused connections are told of in the log: whoever likes can cause them.
const TELL: Duration = Duration::from_secs(60);

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// A node of the cluster; without a cluster key, anybody.
    Member,
    /// Somebody who speaks plain HTTP to a cluster with a key.
    Stranger,
}

/// A connection, and who is at its other end.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: MemberStream,
    /// Who is there.
    pub who: Who,
}

/// Why nobody is served on a connection.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// It said nothing, or not enough, in time.
    #[error("it did not prove membership within {PROOF_TIMEOUT:?}")]
    Slow,
    /// Too many had come since.
    #[error("it gave way to others before it had proved membership")]
    Crowded,
    /// It broke off.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    /// It is no member.
    #[error("it is no member: {0}")]
    Stranger(io::Error),
}

/// Finds out who connects. Clones share how many may be unknown at a time.
#[derive(Debug, Clone)]
pub struct MemberAcceptor {
    tls: MemberTls,
    room: WaitingRoom,
    told: Arc<Mutex<Option<Instant>>>,
}

impl MemberAcceptor {
    pub(crate) fn new(tls: MemberTls) -> Self {
        Self { tls, room: WaitingRoom::default(), told: Arc::default() }
    }

    /// Finds out who has connected, in the task of the connection: it takes up to 5 s.
    ///
    /// # Errors
    /// When it is neither a member nor somebody who speaks plain HTTP, or does not say so in time.
    pub async fn accept(&self, stream: TcpStream) -> Result<Accepted, AcceptError> {
        if self.tls.is_open() {
            return Ok(Accepted { stream: MemberStream::plain(stream), who: Who::Member });
        }
        let peer = stream.peer_addr();
        let place = self.room.enter();
        let given_away = place.given_away();
        let prove = async {
            let mut first = [0];
            match stream.peek(&mut first).await {
                Ok(1..) if first[0] == TLS_HANDSHAKE => self.handshake(stream).await,
                Ok(1..) => Ok(Accepted { stream: MemberStream::stranger(stream, place), who: Who::Stranger }),
                Ok(0) => Err(AcceptError::Broken(io::ErrorKind::UnexpectedEof.into())),
                Err(error) => Err(AcceptError::Broken(error)),
            }
        };
        let proved = tokio::select! {
            biased;
            () = given_away.cancelled() => Err(AcceptError::Crowded),
            proved = tokio::time::timeout(PROOF_TIMEOUT, prove) => proved.unwrap_or(Err(AcceptError::Slow)),
        };
        if let (Err(error @ AcceptError::Stranger(_)), Ok(peer)) = (&proved, peer) {
            self.tell(peer, error);
        }
        proved
    }

    async fn handshake(&self, stream: TcpStream) -> Result<Accepted, AcceptError> {
        // Only at `open()`, which was looked at.
        let none = || AcceptError::Broken(io::ErrorKind::Unsupported.into());
        let generation = self.tls.current().ok_or_else(none)?;
        let stream = TlsAcceptor::from(Arc::clone(&generation.server)).accept(stream).await;
        let stream =
            stream.map_err(|error| match error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
                true => AcceptError::Stranger(error),
                false => AcceptError::Broken(error),
            })?;
        let gone = generation.trust.gone(stream.get_ref().1.peer_certificates());
        let gone = gone.ok_or_else(|| AcceptError::Stranger(io::Error::other("no certificate to know it by")))?;
        Ok(Accepted { stream: MemberStream::member(TlsStream::from(stream), gone), who: Who::Member })
    }

    /// A node with another key is more often forgotten than hostile, and somebody should hear of it.
    fn tell(&self, peer: SocketAddr, error: &AcceptError) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= TELL) {
            *told = Some(Instant::now());
            tracing::warn!(%peer, %error, "a connection was refused; nodes of one cluster need the same cluster key, or certificates of one authority");
        }
    }
}
