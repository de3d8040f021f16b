//! The HTTP API of the seeder.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use eagle_cluster::{
    Accepted, MemberAcceptor, Who,
    places::{BusyBody, Place, Places, READER_PATIENCE, Watched},
};
use eagle_core::Digest;
use eagle_registry::{
    Caller, ForwardRequest, RequestId, Secret, TraceContext, errors::ErrorCode, path::Endpoint, trace,
};
use eagle_store::Cache;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, Span, field::Empty};

use crate::{
    answer::{self, ResponseBody},
    blobs::Blobs,
    manifests::{self, Manifests},
    notifications::{NOTIFICATIONS_PATH, Notifications},
    preheat::{NODES_PATH, Preheat, is_preheat},
    route::Route,
};

/// Connections at once: a few per proxy of a large cluster. When there are more, idle ones give way.
const MAX_CONNECTIONS: usize = 8192;
/// How long a client may take to send a request, and how long an idle connection is kept. Longer than
/// the 20 s for which the client of this crate keeps idle connections.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for strangers, who have little to say.
const STRANGER_HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of a request line and headers: docker's largest requests have 4 KiB, tokens of registries
/// up to 16 KiB.
const MAX_HEAD: usize = 64 << 10;
/// Bytes of an answer that may wait in the kernel to be sent. By itself the kernel takes some MiB for each connection, also of a
/// reader that takes nothing, and all of it is paid for at the host's upload limit. What is on its way does not count.
const UNSENT: u32 = 128 << 10;
/// How long responses may go on after the shutdown began.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);
/// Pause after a failed `accept`, which is about running out of file descriptors: they come back when
/// connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the API serves.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) blobs: Blobs,
    pub(crate) manifests: Manifests,
    pub(crate) notifications: Notifications,
    pub(crate) preheat: Preheat,
    /// What a request for preheating has to bring.
    pub(crate) preheat_token: Option<Secret>,
}

/// Accepts connections until `draining`, then lets those there are finish for [`DRAIN`].
pub(crate) async fn listen(
    listener: TcpListener,
    acceptor: MemberAcceptor,
    api: Arc<Api>,
    draining: CancellationToken,
) {
    let connections = TaskTracker::new();
    let places = Places::within_descriptors(MAX_CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = draining.cancelled() => break,
        };
        match accepted {
            Some((stream, peer, place)) => {
                let (acceptor, api, draining) = (acceptor.clone(), Arc::clone(&api), draining.clone());
                connections.spawn(async move {
                    if place.first_byte(&stream, HEADER_TIMEOUT, &draining).await {
                        Box::pin(serve(stream, peer, place, acceptor, api, draining)).await;
                    }
                });
            }
            None => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn accept(listener: &TcpListener, places: &Places) -> Option<(TcpStream, SocketAddr, Place)> {
    match listener.accept().await {
        // When every connection is busy this one waits, and the kernel's queue holds what comes after it.
        Ok((stream, peer)) => Some((stream, peer, places.take().await)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            None
        }
    }
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    acceptor: MemberAcceptor,
    api: Arc<Api>,
    draining: CancellationToken,
) {
    // Without these the connection works too.
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(&stream);
    // The end of an answer, which nobody waits for but the kernel, does not hold a connection for ever either.
    let _ = socket.set_tcp_user_timeout(Some(READER_PATIENCE));
    let _ = socket.set_tcp_notsent_lowat(UNSENT);
    let accepted = tokio::select! {
        accepted = acceptor.accept(stream) => accepted,
        () = draining.cancelled() => return,
        () = place.given_way() => return,
    };
    let Accepted { stream, who } = match accepted {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::debug!(%peer, %error, "a connection is not served");
            return;
        }
    };
    if who == Who::Member {
        place.of_member();
    }
    let stream = Watched::new(stream, place.clone());
    let at = place.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (api, busy) = (Arc::clone(&api), at.busy());
        let traced = traced(&mut request, peer.ip(), who);
        let span = match RequestId::of(request.headers()) {
            Some(id) => tracing::info_span!("request", request = %id),
            None => Span::none(),
        };
        async move {
            let response = api.answer(request, peer.ip(), who).instrument(span).await;
            traced.record("http.response.status_code", trace::number(response.status().as_u16()));
            Ok::<_, Infallible>(response.map(|body| BusyBody::new(body, busy)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(match who {
            Who::Member => HEADER_TIMEOUT,
            Who::Stranger => STRANGER_HEADER_TIMEOUT,
        })
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = place.given_way() => {
            tracing::debug!(%peer, "an idle connection gave way to a new one");
            return;
        }
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN, connection).await {
                Ok(result) => result,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "a connection ended early");
    }
}

/// The span of a node's request for somebody's pull; whatever else nodes ask is no part of a trace, and strangers begin none.
fn traced(request: &mut Request<Incoming>, peer: IpAddr, who: Who) -> Span {
    let from = TraceContext::of(request.headers()).filter(|_| who == Who::Member);
    let span = trace::child(from.as_ref(), || {
        tracing::info_span!(
            target: trace::TARGET, parent: None, "serve a node", otel.kind = "server",
            http.request.method = %request.method(), url.path = request.uri().path(), client.address = %peer,
            http.response.status_code = Empty
        )
    });
    if let Some(within) = TraceContext::of_span(&span) {
        within.put(request.headers_mut());
    }
    span
}

impl Api {
    /// Whether a path is meant for those outside the cluster too, who prove by a secret that they may use it.
    fn is_for_strangers(&self, path: &str) -> bool {
        match path {
            NOTIFICATIONS_PATH => self.notifications.secret.is_some(),
            path => is_preheat(path) && self.preheat_token.is_some(),
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: IpAddr, who: Who) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        if who == Who::Stranger && !self.is_for_strangers(path) {
            return refuse_stranger();
        }
        if is_preheat(path) {
            return self.preheat.answer(&parts.method, path, &parts.headers, body, self.preheat_token.as_ref()).await;
        }
        if path == NOTIFICATIONS_PATH {
            return self.notifications.answer(&parts.method, parts.uri.query(), &parts.headers, body).await;
        }
        if path == NODES_PATH {
            return self.preheat.answer_node(&parts.method, &parts.headers, body, peer).await;
        }
        if parts.method == Method::DELETE
            && let Ok(Route::Forward { registry, endpoint: Endpoint::Manifest(repository, reference), .. }) =
                Route::parse(&parts.uri)
        {
            // Nothing is deleted but what is known here.
            self.manifests.changed(&registry, &repository, &reference);
            let mut response = Response::new(answer::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            return response;
        }
        let is_head = parts.method == Method::HEAD;
        if parts.method != Method::GET && !is_head {
            let mut response = answer::error(
                StatusCode::METHOD_NOT_ALLOWED,
                ErrorCode::Unsupported,
                format!("{} is not supported; this API answers GET and HEAD", parts.method),
            );
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        // No other request of this API has a body.
        drop(body);
        let route = match Route::parse(&parts.uri) {
            Ok(route) => route,
            Err(error) => return answer::route_error(&error),
        };
        match route {
            Route::List => list(&self.blobs.cache),
            Route::Metainfo(_) if is_head => answer::error(
                StatusCode::METHOD_NOT_ALLOWED,
                ErrorCode::Unsupported,
                "metainfo is a stream; ask for it with GET",
            ),
            Route::Metainfo(name) => self.blobs.metainfo(name, &parts.headers).await,
            Route::Content(name) => self.blobs.content(name, &parts.method, &parts.headers).await,
            Route::Forward { registry, endpoint, target } => {
                let caller = Caller::of(&parts.headers);
                match ForwardRequest::new(parts.method, target, parts.headers) {
                    Ok(forward) => {
                        self.manifests.answer(manifests::Request::new(registry, endpoint, forward, caller)).await
                    }
                    Err(error) => answer::error(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, error.to_string()),
                }
            }
        }
    }
}

/// The answer to a stranger, whatever it asks for.
fn refuse_stranger() -> Response<ResponseBody> {
    let message = "this seeder serves members of its cluster; give this node the cluster key, see docs/membership.md";
    let mut response = answer::error(StatusCode::FORBIDDEN, ErrorCode::Denied, message);
    // A body that may come is not read.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// One blob of `GET /v1/blobs`.
#[derive(Debug, Serialize)]
struct Listed {
    digest: Digest,
    size: u64,
    complete: bool,
    in_use: bool,
}

/// `GET /v1/blobs`: names and sizes only, which say nothing about who may read them.
fn list(cache: &Cache) -> Response<ResponseBody> {
    let blobs: Vec<Listed> = cache
        .list()
        .into_iter()
        .map(|entry| Listed { digest: entry.digest, size: entry.size, complete: entry.complete, in_use: entry.pinned })
        .collect();
    // Digests, numbers and flags always serialise.
    let body = serde_json::to_vec(&serde_json::json!({ "blobs": blobs })).unwrap_or_default();
    let mut response = Response::new(answer::full(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
