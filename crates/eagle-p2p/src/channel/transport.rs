//! The two kinds of connection that a data channel runs on.

use std::{
    fs::{self, File},
    future::poll_fn,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::FileExt,
    pin::pin,
    sync::{Arc, LazyLock},
    task::Poll,
};

use bytes::{BufMut, BytesMut};
use eagle_core::{receive_buffer, units::Rate};
use libp2p::{PeerId, identity::Keypair};
use rustix::io::ReadWriteFlags;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader, Interest, ReadHalf, WriteHalf, split},
    net::{TcpSocket, TcpStream},
    task::spawn_blocking,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{patience::Patience, tls};
use crate::{limits::Limiter, network::StartError};

/// Most bytes that the kernel sends from a file at once: it takes about 50 us, which is no long time
/// for a thread that others wait for.
const FILE_BLOCK: usize = 256 << 10;

/// Bytes that the downloading end of a TLS channel takes from the socket at once. `rustls` by itself
/// reads 4 KiB at a time; with this, and AES-GCM instead of ChaCha20-Poly1305, a channel without limit
/// takes 0.82 CPU s/GB instead of 1.46, both ends together (`benches/channel.rs`).
const CLIENT_READ: usize = 128 << 10;
/// The same at the uploading end, where only requests come in.
const SERVER_READ: usize = 4 << 10;

/// Bytes that are encrypted at once, to be written by one system call: a channel at 50 MiB/s takes
/// 1.14 CPU s/GB instead of the 1.91 with the 64 KiB that are usual in `rustls`.
const SERVER_WRITE: usize = 256 << 10;

/// Most bytes of a receive buffer that this kernel gives on request; none where it does not say.
static MOST_RECEIVE_BUFFER: LazyLock<Option<u64>> =
    LazyLock::new(|| fs::read_to_string(receive_buffer::KERNEL_LIMIT_FILE).ok()?.trim().parse().ok());

type Encrypted = TlsStream<BufReader<TcpStream>>;

/// The receiving direction of a channel.
pub(super) enum Reader {
    Plain(Arc<TcpStream>),
    Tls(ReadHalf<Encrypted>),
}

/// The sending direction of a channel.
pub(super) enum Writer {
    Plain(Arc<TcpStream>),
    Tls(WriteHalf<Encrypted>),
}

impl Reader {
    /// Appends at most `most` bytes to `buffer` within the limit; 0 at the end of the stream.
    ///
    /// Fails when nothing comes for [`STALL_TIMEOUT`](super::STALL_TIMEOUT).
    pub(super) async fn read_limited(
        &mut self,
        buffer: &mut BytesMut,
        most: usize,
        limiter: &Limiter,
    ) -> io::Result<usize> {
        let mut patience = Patience::with(None);
        loop {
            if let Self::Plain(stream) = self {
                patience.progress(stream.readable()).await?;
            }
            let turn = limiter.turn().await;
            let mut part = buffer.limit(most.min(turn.bytes()));
            let read = match self {
                Self::Plain(stream) => match stream.try_read_buf(&mut part) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                    other => Some(other?),
                },
                Self::Tls(stream) => at_once(stream.read_buf(&mut part)).await.transpose()?,
            };
            if let Some(read) = read {
                turn.moved(read);
                return Ok(read);
            }
            drop(turn);
            if matches!(self, Self::Tls(_)) {
                patience.progress(woken()).await?;
            }
        }
    }

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
    /// Writes everything, as far as `patience` goes.
    pub(super) async fn write_all(&mut self, mut bytes: &[u8], patience: &mut Patience) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = patience.progress(self.write(bytes)).await?;
            patience.moved();
            if written == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Writes some of `bytes` within the limit, as far as `patience` goes.
    pub(super) async fn write_limited(
        &mut self,
        bytes: &[u8],
        limiter: &Limiter,
        patience: &mut Patience,
    ) -> io::Result<usize> {
        loop {
            if let Self::Plain(stream) = self {
                patience.progress(stream.writable()).await?;
            }
            let turn = limiter.turn().await;
            let part = &bytes[..bytes.len().min(turn.bytes())];
            let written = match self {
                Self::Plain(stream) => match stream.try_write(part) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                    other => Some(other?),
                },
                Self::Tls(stream) => at_once(stream.write(part)).await.transpose()?,
            };
            match written {
                Some(0) => return Err(ErrorKind::WriteZero.into()),
                Some(written) => {
                    patience.moved();
                    turn.moved(written);
                    return Ok(written);
                }
                None => drop(turn),
            }
            if matches!(self, Self::Tls(_)) {
                patience.progress(woken()).await?;
            }
        }
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
    pub(super) async fn flush(&mut self, patience: &mut Patience) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(stream) => {
                patience.progress(stream.flush()).await?;
                patience.moved();
                Ok(())
            }
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

/// What a step of I/O gives without waiting; `None` when it would have to wait, and then it has done
/// nothing and the task will be woken when it can.
async fn at_once<T>(step: impl Future<Output = T>) -> Option<T> {
    let mut step = pin!(step);
    poll_fn(|context| match step.as_mut().poll(context) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Waits until the task is woken.
async fn woken() -> io::Result<()> {
    let mut waited = false;
    poll_fn(|_| if std::mem::replace(&mut waited, true) { Poll::Ready(Ok(())) } else { Poll::Pending }).await
}

/// Sends some of a file within the limit, at most `most` bytes from `offset` on, and says how many.
pub(super) async fn send_file(
    stream: &Arc<TcpStream>,
    file: &Arc<File>,
    offset: u64,
    most: usize,
    limiter: &Limiter,
    patience: &mut Patience,
) -> io::Result<usize> {
    loop {
        patience.progress(stream.writable()).await?;
        make_resident(file, offset, most.min(FILE_BLOCK)).await?;
        let turn = limiter.turn().await;
        let count = most.min(turn.bytes()).min(FILE_BLOCK);
        let mut at = offset;
        let sent = stream.try_io(Interest::WRITABLE, || {
            rustix::fs::sendfile(&**stream, &**file, Some(&mut at), count).map_err(io::Error::from)
        });
        match sent {
            Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file of the blob is too short")),
            Ok(sent) => {
                patience.moved();
                turn.moved(sent);
                return Ok(sent);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes it likely that a part of a file can be sent without waiting for the disk.
///
/// A byte at its start and one at its end are looked for in the page cache. If they are not there, or
/// the filesystem cannot tell, a blocking thread reads the part, and the disk with it.
async fn make_resident(file: &Arc<File>, offset: u64, length: usize) -> io::Result<()> {
    let last = offset + (length as u64).saturating_sub(1);
    let here = |at: u64| {
        let mut byte = [0];
        let mut bytes = [io::IoSliceMut::new(&mut byte)];
        matches!(rustix::io::preadv2(&**file, &mut bytes, at, ReadWriteFlags::NOWAIT), Ok(1))
    };
    if here(offset) && here(last) {
        return Ok(());
    }
    let file = Arc::clone(file);
    let read = spawn_blocking(move || {
        let mut buffer = vec![0; length];
        file.read_at(&mut buffer, offset).map(drop)
    });
    read.await.map_err(io::Error::other)?
}

/// Both directions of a plain connection.
pub(super) fn plain(stream: TcpStream) -> (Reader, Writer) {
    let stream = Arc::new(stream);
    (Reader::Plain(Arc::clone(&stream)), Writer::Plain(stream))
}

/// Both directions of an encrypted connection.
fn encrypted(stream: Encrypted) -> (Reader, Writer) {
    let (reader, writer) = split(stream);
    (Reader::Tls(reader), Writer::Tls(writer))
}

/// What the listening end proves its identity with.
pub(super) fn acceptor(keypair: &Keypair) -> Result<TlsAcceptor, StartError> {
    Ok(TlsAcceptor::from(Arc::new(tls::server_config(keypair)?)))
}

/// Finds out who dialled.
pub(super) async fn accept(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<(PeerId, Reader, Writer)> {
    let mut stream = acceptor.accept(BufReader::with_capacity(SERVER_READ, stream)).await?;
    stream.get_mut().1.set_buffer_limit(Some(SERVER_WRITE));
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.ok_or_else(|| io::Error::other("the peer showed no certificate"))?;
    let peer = tls::peer_of(certificate).map_err(io::Error::other)?;
    let (reader, writer) = encrypted(TlsStream::from(stream));
    Ok((peer, reader, writer))
}

/// Opens a TCP connection that is read at `rate` at most.
pub(super) async fn dial(address: SocketAddr, rate: Rate) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let size = rate.bytes_per_second().zip(*MOST_RECEIVE_BUFFER);
    if let Some(size) = size.and_then(|(rate, most)| receive_buffer::size(rate, most)) {
        // Before it connects: the scale of the window is agreed on with the first packets.
        socket.set_recv_buffer_size(size)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Proves both ends to each other; fails unless the other one is `peer`.
pub(super) async fn connect(keypair: &Keypair, peer: PeerId, stream: TcpStream) -> io::Result<(Reader, Writer)> {
    let config = tls::client_config(keypair, peer).map_err(io::Error::other)?;
    // An unspecified address leaves the server name out, as the libp2p specification has it.
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    let stream = BufReader::with_capacity(CLIENT_READ, stream);
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok(encrypted(TlsStream::from(stream)))
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt::socket_recv_buffer_size;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_kernel_takes_in_little_ahead_of_a_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limited = dial(address, Rate::Limited(6_000_000)).await.unwrap();
        // 25 ms at the limit, which Linux doubles for its own use.
        assert_eq!(socket_recv_buffer_size(&limited).unwrap(), 300_000);
        let unlimited = dial(address, Rate::Unlimited).await.unwrap();
        assert_ne!(socket_recv_buffer_size(&unlimited).unwrap(), 300_000);
    }
}
