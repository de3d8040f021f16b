//! The HTTP server for runtimes: connections, their bounds, and their end.

use std::{convert::Infallible, sync::Arc, time::Duration};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::service::Service;

/// Connections at a time. A runtime opens a handful for each image it pulls; docker opens one per
/// request. Each one costs some tens of KiB besides the blocks that it reads ahead.
const MAX_CONNECTIONS: usize = 1024;
/// How long a connection may take to send a request's headers, and so also stay idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest headers of a request, bytes: tokens of some registries have several KiB.
const MAX_HEADERS: usize = 64 << 10;
/// Wait after an accept that failed, usually for lack of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves until `shutdown`, then lets the answers under way end until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    shutdown: CancellationToken,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = async {
                // Without room nothing is accepted; the kernel's queue holds what comes.
                let permit = Arc::clone(&room).acquire_owned().await;
                (permit, listener.accept().await)
            } => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            (Ok(permit), Ok((stream, _))) => {
                let (service, shutdown, stop) = (Arc::clone(&service), shutdown.clone(), stop.clone());
                connections.spawn(async move {
                    connection(stream, service, shutdown, stop).await;
                    drop(permit);
                });
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "a connection of a runtime could not be accepted");
                sleep(ACCEPT_AGAIN).await;
            }
            (Err(_), _) => break,
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(stream: TcpStream, service: Arc<Service>, shutdown: CancellationToken, stop: CancellationToken) {
    // Answers are written in large blocks, and small ones should not wait.
    let _ = stream.set_nodelay(true);
    let handler = service_fn(move |request: http::Request<Incoming>| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), handler);
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
        }
    }
}
