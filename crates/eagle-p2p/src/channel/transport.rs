//! The two kinds of connection that a data channel runs on.

use std::{
    fs::File,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use bytes::{BufMut, BytesMut};
use libp2p::{PeerId, identity::Keypair, tls};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, ReadHalf, WriteHalf, split},
    net::TcpStream,
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::STALL_TIMEOUT;

/// Name of the protocol in the TLS handshake: a control connection that strays here, or the other
/// way round, fails at once.
const ALPN: &[u8] = b"eagle-data/1";

/// The receiving direction of a channel.
pub(super) enum Reader {
    Plain(Arc<TcpStream>),
    Tls(ReadHalf<TlsStream<TcpStream>>),
}

/// The sending direction of a channel.
pub(super) enum Writer {
    Plain(Arc<TcpStream>),
    Tls(WriteHalf<TlsStream<TcpStream>>),
}

impl Reader {
    /// Appends at most `limit` bytes to `buffer`, without a deadline; 0 at the end of the stream.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut, limit: usize) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => loop {
                stream.readable().await?;
                match stream.try_read_buf(&mut buffer.limit(limit)) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    other => return other,
                }
            },
            Self::Tls(stream) => stream.read_buf(&mut buffer.limit(limit)).await,
        }
    }
}

impl Writer {
    /// Writes everything, unless the other end takes nothing for [`STALL_TIMEOUT`].
    pub(super) async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = progress(self.write(bytes)).await?;
            if written == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => loop {
                stream.writable().await?;
                match stream.try_write(bytes) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    other => return other,
                }
            },
            Self::Tls(stream) => stream.write(bytes).await,
        }
    }

    /// Makes sure that nothing written stays behind in a buffer of this process.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(stream) => progress(stream.flush()).await,
        }
    }

    /// The socket, when bytes can go from a file to it without passing through this process.
    pub(super) fn plain(&self) -> Option<&Arc<TcpStream>> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(_) => None,
        }
    }
}

/// Sends part of a file, unless the other end takes nothing for [`STALL_TIMEOUT`].
///
/// The kernel may have to read the disk, so this is work for a blocking thread.
pub(super) async fn send_file(stream: &Arc<TcpStream>, file: &Arc<File>, offset: u64, count: usize) -> io::Result<()> {
    let mut sent = 0;
    while sent < count {
        progress(stream.writable()).await?;
        let (stream, file) = (Arc::clone(stream), Arc::clone(file));
        let mut at = offset + sent as u64;
        let left = count - sent;
        let part = spawn_blocking(move || fill_socket(&stream, &file, &mut at, left));
        sent += part.await.map_err(io::Error::other)??;
    }
    Ok(())
}

/// Sends until the socket takes no more, and says how much that was.
fn fill_socket(stream: &TcpStream, file: &File, offset: &mut u64, count: usize) -> io::Result<usize> {
    let mut sent = 0;
    while sent < count {
        let part = stream.try_io(Interest::WRITABLE, || {
            rustix::fs::sendfile(stream, file, Some(offset), count - sent).map_err(io::Error::from)
        });
        match part {
            Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file of the blob is too short")),
            Ok(part) => sent += part,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Puts the deadline of a stalled transfer on a step of it.
pub(super) async fn progress<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(STALL_TIMEOUT, step).await.unwrap_or_else(|_| {
        Err(io::Error::new(ErrorKind::TimedOut, format!("no progress for {} s", STALL_TIMEOUT.as_secs())))
    })
}

/// Both directions of a plain connection.
pub(super) fn plain(stream: TcpStream) -> (Reader, Writer) {
    let stream = Arc::new(stream);
    (Reader::Plain(Arc::clone(&stream)), Writer::Plain(stream))
}

/// Both directions of an encrypted connection.
fn encrypted(stream: TlsStream<TcpStream>) -> (Reader, Writer) {
    let (reader, writer) = split(stream);
    (Reader::Tls(reader), Writer::Tls(writer))
}

/// What the listening end proves its identity with.
pub(super) fn acceptor(keypair: &Keypair) -> Result<TlsAcceptor, tls::certificate::GenError> {
    let mut config = libp2p_tls::make_server_config(keypair)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Channels live long; what sessions could be resumed with would only take memory.
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Finds out who dialled.
pub(super) async fn accept(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<(PeerId, Reader, Writer)> {
    let stream = acceptor.accept(stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.ok_or_else(|| io::Error::other("the peer showed no certificate"))?;
    let peer = libp2p_tls::certificate::parse(certificate).map_err(io::Error::other)?.peer_id();
    let (reader, writer) = encrypted(TlsStream::from(stream));
    Ok((peer, reader, writer))
}

/// Opens a TCP connection.
pub(super) async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Proves both ends to each other; fails unless the other one is `peer`.
pub(super) async fn connect(keypair: &Keypair, peer: PeerId, stream: TcpStream) -> io::Result<(Reader, Writer)> {
    let mut config = libp2p_tls::make_client_config(keypair, Some(peer)).map_err(io::Error::other)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // An unspecified address leaves the server name out, as the libp2p specification has it.
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok(encrypted(TlsStream::from(stream)))
}
