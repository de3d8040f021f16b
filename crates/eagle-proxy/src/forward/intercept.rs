//! `CONNECT` to a registry whose images should come from peers: TLS ends here, and requests are answered here.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use eagle_cluster::places::READER_PATIENCE;
use eagle_registry::errors::ErrorCode;
use http::{Request, Response, StatusCode, header, uri::Authority};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::ServerConfig;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::{
    Connection, Front,
    policy::{self, Target},
    readers::Readers,
};
use crate::{
    answer::{self, ResponseBody},
    server::{HEADER_TIMEOUT, MAX_HEADERS},
    service::Via,
};

/// Deadline of a TLS handshake with a client on this machine.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection without a new request for this long gets no more; what is under way ends in peace. Clients open another.
const IDLE: Duration = Duration::from_secs(300);
/// Requests at a time on one connection; runtimes fetch three to ten layers at once.
const MAX_STREAMS: u32 = 64;
/// An HTTP/2 connection without a request is asked this often whether it still lives, and closed without an answer.
const PING: Duration = Duration::from_secs(60);

/// Says yes; when that has reached the client, it meets a server under the registry's name.
pub(super) fn start(
    front: Arc<Front>,
    request: Request<Incoming>,
    connection: Connection,
    target: Target,
    tls: Arc<ServerConfig>,
) -> Response<ResponseBody> {
    let tasks = connection.tasks.clone();
    // It ends by itself when it is idle, and keeps its place until then.
    let busy = connection.place.busy();
    tasks.spawn(async move {
        let stop = connection.stop.clone();
        tokio::select! {
            () = serve(front, request, connection, target, tls) => {}
            () = stop.cancelled() => {}
        }
        drop(busy);
    });
    Response::new(answer::empty())
}

async fn serve(
    front: Arc<Front>,
    request: Request<Incoming>,
    connection: Connection,
    target: Target,
    tls: Arc<ServerConfig>,
) {
    let upgraded = match timeout(HANDSHAKE, hyper::upgrade::on(request)).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(error)) => return tracing::debug!(%error, "a client went away before its tunnel was there"),
        Err(_) => return,
    };
    let stream = match timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(TokioIo::new(upgraded))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let host = &target.host;
            return tracing::warn!(host, %error, "a client broke off the TLS handshake; does it trust the authority of `eagle ca init`?");
        }
        Err(_) => return,
    };
    let (registry, host) = (target.registry.clone(), target.host.clone());
    let requests = Arc::new(AtomicU64::new(0));
    let (counted, readers) = (Arc::clone(&requests), Readers::default());
    let read = readers.clone();
    let handler = service_fn(move |request: Request<Incoming>| {
        counted.fetch_add(1, Ordering::Relaxed);
        let (front, target, read) = (Arc::clone(&front), target.clone(), read.clone());
        async move {
            let response = match meant_for(&request, &target) {
                Ok(()) => front.service.answer(request, &Via::Registry(target.registry)).await,
                Err(problem) => answer::error(StatusCode::MISDIRECTED_REQUEST, ErrorCode::Unsupported, problem),
            };
            Ok::<_, Infallible>(response.map(|body| read.watch(body)))
        }
    });
    // Agreed on in the handshake, so that nobody has to wait for the first bytes to know.
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut builder = if is_h2 { builder.http2_only() } else { builder.http1_only() };
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEADERS).unwrap_or(u32::MAX))
        .keep_alive_interval(PING);
    let serving = builder.serve_connection(TokioIo::new(stream), handler);
    tokio::pin!(serving);
    let (mut draining, mut before) = (false, 0);
    let mut deadline = Instant::now() + HEADER_TIMEOUT;
    let mut look = Instant::now() + READER_PATIENCE;
    loop {
        tokio::select! {
            result = serving.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(host, %error, "an intercepted connection ended");
                }
                break;
            }
            () = sleep_until(look) => match readers.deadline() {
                Some(end) if end <= look => {
                    // The streams beside it can be asked for anew. There is no way to end one alone whose window is full.
                    tracing::debug!(host, "the reader of an intercepted answer took nothing for {READER_PATIENCE:?}");
                    break;
                }
                end => look = end.unwrap_or_else(|| Instant::now() + READER_PATIENCE),
            },
            () = connection.shutdown.cancelled(), if !draining => {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
            () = sleep_until(deadline), if !draining => match requests.load(Ordering::Relaxed) {
                0 => break,
                now if now == before => {
                    draining = true;
                    serving.as_mut().graceful_shutdown();
                }
                now => (before, deadline) = (now, Instant::now() + IDLE),
            },
        }
    }
    tracing::trace!(%registry, "an intercepted connection is over");
}

/// A request for another host than the one that the tunnel was asked for would be answered from the wrong registry.
fn meant_for(request: &Request<Incoming>, target: &Target) -> Result<(), String> {
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.clone()),
        None => {
            let mut hosts = request.headers().get_all(header::HOST).iter();
            match (hosts.next(), hosts.next()) {
                (Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
                _ => None,
            }
        }
    };
    let named = host.and_then(|host| policy::target(&host, Some(policy::HTTPS_PORT)).ok());
    match named {
        Some(named) if named.registry == target.registry => Ok(()),
        _ => Err(format!("this connection is for {}", target.registry)),
    }
}
