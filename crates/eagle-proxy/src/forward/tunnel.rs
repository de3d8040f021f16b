//! `CONNECT` as a tunnel: bytes go to the host and back unseen.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Connection, policy::Target};
use crate::answer::{self, ResponseBody};

/// Deadline of the connection to the host: as for registries.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A tunnel in which nothing moves for this long is given up; servers close idle connections after a minute or two.
const IDLE: Duration = Duration::from_secs(300);
/// The same once the proxy is to stop: nobody should wait for a connection that is only kept for later.
const IDLE_AT_THE_END: Duration = Duration::from_secs(1);
/// Buffer each way, bytes: few system calls, and little memory for up to a thousand tunnels.
const BUFFER: usize = 32 << 10;

/// Connects to the host; the error is for the client.
pub(super) async fn open(target: &Target) -> Result<TcpStream, String> {
    let Target { host, port, .. } = target;
    match timeout(CONNECT_TIMEOUT, TcpStream::connect((host.as_str(), *port))).await {
        Ok(Ok(stream)) => {
            // What goes through is often small and awaited.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(format!("{host}:{port} cannot be reached: {error}")),
        Err(_) => Err(format!("{host}:{port} cannot be reached: no answer within {CONNECT_TIMEOUT:?}")),
    }
}

/// Says yes; when that has reached the client, bytes move.
pub(super) fn start(request: Request<Incoming>, connection: Connection, there: TcpStream) -> Response<ResponseBody> {
    let tasks = connection.tasks.clone();
    // A tunnel is one long request.
    let busy = connection.place.busy();
    tasks.spawn(async move {
        let Connection { stop, shutdown, .. } = connection;
        tokio::select! {
            result = upgraded(request, there, &shutdown) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a tunnel ended");
                }
            }
            () = stop.cancelled() => {}
        }
        drop(busy);
    });
    Response::new(answer::empty())
}

/// Carries bytes both ways until both ends have closed, or nothing has moved for too long.
async fn upgraded(request: Request<Incoming>, mut there: TcpStream, shutdown: &CancellationToken) -> io::Result<()> {
    let here = hyper::upgrade::on(request).await.map_err(io::Error::other)?;
    let moved = Arc::new(AtomicU64::new(0));
    let mut here = Watched { stream: TokioIo::new(here), moved: Arc::clone(&moved) };
    let watch = async {
        let mut before = 0;
        loop {
            let idle = if shutdown.is_cancelled() { IDLE_AT_THE_END } else { IDLE };
            tokio::select! {
                () = sleep(idle) => {
                    let now = moved.load(Ordering::Relaxed);
                    if now == before {
                        return idle;
                    }
                    before = now;
                }
                () = shutdown.cancelled(), if idle == IDLE => {}
            }
        }
    };
    tokio::select! {
        result = copy_bidirectional_with_sizes(&mut here, &mut there, BUFFER, BUFFER) => result.map(drop),
        idle = watch => Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing moved for {idle:?}"))),
    }
}

/// Counts what moves through one end, which is all that moves.
struct Watched<S> {
    stream: S,
    moved: Arc<AtomicU64>,
}

impl<S> Watched<S> {
    fn add(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.add(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.add(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
