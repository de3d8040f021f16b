//! A connection between members, in clear or in TLS, that ends when its other end is no member any more.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::waiting_room::Place;

/// A connection as [`MemberConnector`](crate::MemberConnector) makes and [`MemberAcceptor`](crate::MemberAcceptor) takes
/// it. Reading and writing fail as soon as it has to end.
#[derive(Debug)]
pub struct MemberStream {
    transport: Transport,
    over: Option<Over>,
    /// Of a stranger: among those who give way to others.
    _place: Option<Place>,
}

#[derive(Debug)]
enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What ends a connection before either end closes it.
#[derive(Debug)]
struct Over {
    wait: Pin<Box<WaitForCancellationFutureOwned>>,
    reason: &'static str,
}

impl Over {
    fn new(token: CancellationToken, reason: &'static str) -> Self {
        Self { wait: Box::pin(token.cancelled_owned()), reason }
    }
}

impl MemberStream {
    /// In clear, and without an end of its own.
    pub(crate) const fn plain(stream: TcpStream) -> Self {
        Self { transport: Transport::Plain(stream), over: None, _place: None }
    }

    /// That of a stranger, who gives way when there are too many.
    pub(crate) fn stranger(stream: TcpStream, place: Place) -> Self {
        let over = Over::new(place.given_away(), "too many connections of strangers");
        Self { transport: Transport::Plain(stream), over: Some(over), _place: Some(place) }
    }

    /// With a member, until `gone`.
    pub(crate) fn member(stream: TlsStream<TcpStream>, gone: CancellationToken) -> Self {
        let over = Over::new(gone, "what the other end proved its membership by is no longer accepted");
        Self { transport: Transport::Tls(Box::new(stream)), over: Some(over), _place: None }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(over) = &mut self.over else { return Ok(()) };
        if over.wait.as_mut().poll(context).is_pending() {
            return Ok(());
        }
        let reason = over.reason;
        // What has ended must not be asked again.
        let ended = CancellationToken::new();
        ended.cancel();
        self.over = Some(Over::new(ended, reason));
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason))
    }
}

/// Errors of TLS that say something about membership, in words.
fn explained(error: io::Error) -> io::Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(alert)) => {
            let text = format!("the other end does not take this node for a member of its cluster ({alert:?})");
            io::Error::new(io::ErrorKind::PermissionDenied, text)
        }
        _ => error,
    }
}

impl AsyncRead for MemberStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer).map_err(explained),
        }
    }
}

impl AsyncWrite for MemberStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes).map_err(explained),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(context),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context).map_err(explained),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, parts).map_err(explained),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

impl Connection for MemberStream {
    fn connected(&self) -> Connected {
        match &self.transport {
            Transport::Plain(stream) => stream.connected(),
            Transport::Tls(stream) => stream.get_ref().0.connected(),
        }
    }
}
