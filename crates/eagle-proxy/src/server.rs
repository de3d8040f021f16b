//! The HTTP server for runtimes: connections, their bounds, and their end.

use std::{convert::Infallible, sync::Arc, time::Duration};

use eagle_cluster::places::{BusyBody, Places, READER_PATIENCE, Watched};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::forward::{Connection, Front};

/// Connections at a time. A runtime opens a handful for each image it pulls; docker opens one per
/// request. Each one costs some tens of KiB besides the blocks that it reads ahead.
const MAX_CONNECTIONS: usize = 1024;
/// How long a connection may take to send a request's headers, and so also stay idle.
pub(crate) const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest headers of a request, bytes: tokens of some registries have several KiB.
pub(crate) const MAX_HEADERS: usize = 64 << 10;
/// Bytes of an answer that may wait in the kernel to be sent. By itself the kernel takes some MiB for each connection, also of a
/// reader that takes nothing: 500 of these then leave others a fifth of their rate until they are full. This is half a block of
/// an answer, and enough to keep a connection busy: what is on its way does not count.
const UNSENT: u32 = 128 << 10;
/// Wait after an accept that failed, usually for lack of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves until `shutdown`, then lets the answers under way end until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    front: Arc<Front>,
    shutdown: CancellationToken,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let places = Places::new(MAX_CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let accepted = listener.accept().await;
                // When every connection is busy this one waits, and the kernel's queue holds what comes after it.
                (places.take().await, accepted)
            } => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            (place, Ok((stream, _))) => {
                let Ok(local) = stream.local_addr() else { continue };
                let (shutdown, stop, tasks) = (shutdown.clone(), stop.clone(), connections.clone());
                let about = Connection { local, tasks, shutdown, stop, place };
                let front = Arc::clone(&front);
                connections.spawn(async move {
                    if about.place.first_byte(&stream, HEADER_TIMEOUT, &about.shutdown).await {
                        Box::pin(connection(stream, front, about)).await;
                    }
                });
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "a connection of a runtime could not be accepted");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(stream: TcpStream, front: Arc<Front>, about: Connection) {
    // Answers are written in large blocks, and small ones should not wait.
    let _ = stream.set_nodelay(true);
    // Without these the connection works too.
    let socket = SockRef::from(&stream);
    let _ = socket.set_tcp_notsent_lowat(UNSENT);
    // The same for the end of an answer, which nobody waits for but the kernel.
    let _ = socket.set_tcp_user_timeout(Some(READER_PATIENCE));
    let stream = Watched::new(stream, about.place.clone());
    let (shutdown, stop, place) = (about.shutdown.clone(), about.stop.clone(), about.place.clone());
    let handler = service_fn(move |request: http::Request<Incoming>| {
        let (front, about) = (Arc::clone(&front), about.clone());
        async move {
            let busy = about.place.busy();
            Ok::<_, Infallible>(front.answer(request, &about).await.map(|body| BusyBody::new(body, busy)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), handler)
        .with_upgrades();
    tokio::pin!(connection);
    let mut draining = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a connection of a runtime ended");
                }
                return;
            }
            () = shutdown.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = stop.cancelled() => return,
            () = place.given_way() => {
                tracing::debug!("an idle connection gave way to a new one");
                return;
            }
        }
    }
}
