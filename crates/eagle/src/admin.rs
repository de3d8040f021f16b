//! The admin address of a role: health, readiness, metrics, version, status, limits, cache, and a tracker's dashboard.
//!
//! It is up before the role starts and until it has drained, so that a probe always gets an answer.

use std::{
    convert::Infallible,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use eagle_cluster::Membership;
use eagle_cluster::places::{BusyBody, Places};
use eagle_seeder::images::Images;
use eagle_tracker::TrackerPages;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{browser, cache_api, cluster, exposition::Format, limits::HostLimits, process_metrics};

/// Connections at once. Probes and a scraper need a handful; an idle one gives way to a newcomer.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request's head, and its body.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest body of a request, bytes: two rates with room for white space.
const MAX_BODY: usize = 4096;
/// Longest head of a request, bytes.
const MAX_HEAD: usize = 16 << 10;
/// Longest life of a connection. Probes and scrapers open another.
const LONGEST: Duration = Duration::from_secs(600);

type Status = Box<dyn Fn() -> Value + Send + Sync>;

/// What the endpoints tell about one role.
pub(crate) struct AdminState {
    role: &'static str,
    started: Instant,
    /// Cancelled when the role begins to drain.
    draining: CancellationToken,
    running: OnceLock<(Registry, Status)>,
    /// Of a role that has any.
    limits: OnceLock<HostLimits>,
    /// What makes this process a member of its cluster.
    membership: OnceLock<Membership>,
    /// Of a role that has a cache.
    images: OnceLock<Images>,
    /// Of a tracker.
    tracker: OnceLock<TrackerPages>,
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState").field("role", &self.role).field("ready", &self.ready()).finish_non_exhaustive()
    }
}

impl AdminState {
    /// The role is up: from now on it is ready, with these metrics and this status.
    pub(crate) fn running(&self, mut metrics: Registry, status: impl Fn() -> Value + Send + Sync + 'static) {
        process_metrics::register(&mut metrics);
        // A role starts once; a second call would change nothing.
        let _ = self.running.set((metrics, Box::new(status)));
    }

    /// The limits that can be seen and changed from now on.
    pub(crate) fn limits(&self, limits: HostLimits) {
        // As above.
        let _ = self.limits.set(limits);
    }

    /// The membership that is told of from now on.
    pub(crate) fn membership(&self, membership: Membership) {
        // As above.
        let _ = self.membership.set(membership);
    }

    /// The cache that can be looked at and changed from now on.
    pub(crate) fn images(&self, images: Images) {
        // As above.
        let _ = self.images.set(images);
    }

    /// The tracker whose pages can be read from now on.
    pub(crate) fn tracker(&self, pages: TrackerPages) {
        // As above.
        let _ = self.tracker.set(pages);
    }

    /// Answers a request for a page of the tracker.
    async fn page(&self, method: &Method, path: &str, query: Option<&str>) -> Response<Full<Bytes>> {
        match self.tracker.get() {
            Some(pages) => pages.answer(method, path, query.unwrap_or_default()).await,
            None => self.answer(method, path),
        }
    }

    /// Answers a request at or below `/cache`.
    async fn cache(&self, method: &Method, path: &str, query: Option<&str>) -> Response<Full<Bytes>> {
        match self.images.get() {
            Some(images) => cache_api::answer(images, method, path, query).await,
            None if self.running.get().is_none() => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
            None => text(StatusCode::NOT_FOUND, format!("a {} has no cache\n", self.role)),
        }
    }

    fn ready(&self) -> Result<(), &'static str> {
        if self.draining.is_cancelled() {
            return Err("draining");
        }
        self.running.get().map(|_| ()).ok_or("starting")
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.ready() {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            "/version" => json(&json!({
                "name": "eagle",
                "role": self.role,
                "version": env!("CARGO_PKG_VERSION"),
            })),
            "/metrics" => self.metrics(Format::Prometheus),
            "/limits" => match self.limits.get() {
                Some(limits) => json(&json!(limits.present())),
                None => self.no_limits(),
            },
            "/status" => {
                let state = self.ready().err().unwrap_or("ready");
                let status = self.running.get().map(|(_, status)| status());
                json(&json!({
                    "role": self.role,
                    "state": state,
                    "version": env!("CARGO_PKG_VERSION"),
                    "uptime_seconds": self.started.elapsed().as_secs(),
                    "cluster": self.membership.get().map(cluster::status),
                    "limits": self.limits.get().map(HostLimits::present),
                    "status": status,
                }))
            }
            _ => text(StatusCode::NOT_FOUND, "here are /healthz /readyz /metrics /version /status /limits /cache\n"),
        }
    }

    /// Answers a `PUT /limits`.
    async fn change_limits(&self, body: Incoming) -> Response<Full<Bytes>> {
        let Some(limits) = self.limits.get() else { return self.no_limits() };
        let read = tokio::time::timeout(HEAD_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
        let Ok(Ok(body)) = read else {
            return text(StatusCode::BAD_REQUEST, format!("no body of at most {MAX_BODY} bytes arrived\n"));
        };
        match limits.change(&body.to_bytes()) {
            Ok(limits) => json(&json!(limits)),
            Err(problem) => text(StatusCode::BAD_REQUEST, format!("{problem}\n")),
        }
    }

    fn no_limits(&self) -> Response<Full<Bytes>> {
        match self.running.get() {
            Some(_) => text(StatusCode::NOT_FOUND, format!("a {} has no limits\n", self.role)),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        }
    }

    /// The metrics of the role in this format.
    pub(crate) fn metrics(&self, format: Format) -> Response<Full<Bytes>> {
        match format.write(self.running.get().map(|(registry, _)| registry)) {
            Ok(body) => answer(StatusCode::OK, format.content_type(), body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("metrics could not be written: {error}\n")),
        }
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    answer(status, "text/plain; charset=utf-8", body)
}

fn json(value: &Value) -> Response<Full<Bytes>> {
    answer(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

/// The listener of a role's admin address and the task that serves it.
#[derive(Debug)]
pub(crate) struct Admin {
    address: SocketAddr,
    state: Arc<AdminState>,
    task: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Admin {
    /// Binds the address and answers from now on. `draining` is the token that ends the role.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub(crate) async fn start(
        role: &'static str,
        address: SocketAddr,
        draining: CancellationToken,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(AdminState {
            role,
            started: Instant::now(),
            draining,
            running: OnceLock::new(),
            limits: OnceLock::new(),
            membership: OnceLock::new(),
            images: OnceLock::new(),
            tracker: OnceLock::new(),
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, Arc::clone(&state), stop.clone()));
        Ok(Self { address, state, task, stop })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn state(&self) -> &Arc<AdminState> {
        &self.state
    }

    /// Ends the listener and every connection.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        // The task only ends by itself; a panic in it has nothing left to harm here.
        let _ = self.task.await;
    }
}

/// Whether a caller is told what a cluster holds: only those on the machine itself. Probes and scrapers come from elsewhere.
fn is_this_machine(caller: IpAddr) -> bool {
    caller.to_canonical().is_loopback()
}

async fn serve(listener: TcpListener, state: Arc<AdminState>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    let places = Places::new(MAX_CONNECTIONS);
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let accepted = listener.accept().await;
                (places.take().await, accepted)
            } => accepted,
        };
        let (place, stream) = match accepted {
            (place, Ok((stream, _))) => (place, stream),
            (_, Err(error)) => {
                // Out of file descriptors, mostly: trying again at once would only burn the processor.
                tracing::warn!(%error, "the admin address could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { continue };
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let at_work = place.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let (state, busy) = (Arc::clone(&state), at_work.busy());
                async move {
                    let answer = |response: Response<Full<Bytes>>| response.map(|body| BusyBody::new(body, busy));
                    let own_page = TrackerPages::has(request.uri().path());
                    if let Some(problem) = browser::is_foreign(local.ip(), request.uri(), request.headers(), own_page) {
                        return Ok::<_, Infallible>(answer(text(StatusCode::FORBIDDEN, format!("{problem}\n"))));
                    }
                    if own_page && !is_this_machine(peer.ip()) {
                        let refused =
                            "this is for connections from the machine itself: use ssh -L or kubectl port-forward\n";
                        return Ok(answer(text(StatusCode::FORBIDDEN, refused)));
                    }
                    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
                    let format = Format::wanted(request.headers());
                    let changes_limits = request.method() == Method::PUT && request.uri().path() == "/limits";
                    let uri = request.uri();
                    Ok(answer(if changes_limits {
                        state.change_limits(request.into_body()).await
                    } else if reads && uri.path() == "/metrics" {
                        state.metrics(format)
                    } else if cache_api::is_cache(uri.path()) {
                        state.cache(request.method(), uri.path(), uri.query()).await
                    } else if own_page {
                        state.page(request.method(), uri.path(), uri.query()).await
                    } else {
                        state.answer(request.method(), request.uri().path())
                    }))
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // A client that goes away is no concern of this server, and one that takes nothing is given up.
                _ = tokio::time::timeout(LONGEST, connection) => {}
                () = place.given_way() => {}
            }
        });
    }
    connections.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readiness_follows_the_life_of_the_role() {
        let draining = CancellationToken::new();
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let admin = Admin::start("proxy", any_port, draining.clone()).await.unwrap();
        let get = |path: &str| admin.state().answer(&Method::GET, path).status().as_u16();
        assert_eq!((get("/healthz"), get("/readyz"), get("/metrics")), (200, 503, 200));
        admin.state().running(Registry::default(), || json!({"blobs": 1}));
        assert_eq!((get("/healthz"), get("/readyz"), get("/status")), (200, 200, 200));
        draining.cancel();
        assert_eq!((get("/healthz"), get("/readyz")), (200, 503));
        assert_eq!(get("/nowhere"), 404);
        assert_eq!(admin.state().answer(&Method::POST, "/healthz").status().as_u16(), 405);
        admin.stop().await;
    }

    #[test]
    fn only_loopback_is_this_machine() {
        for caller in ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1"] {
            assert!(is_this_machine(caller.parse().unwrap()), "{caller}");
        }
        for caller in ["10.0.0.1", "192.168.1.1", "::ffff:10.0.0.1", "fe80::1", "fd00::1", "0.0.0.0", "::"] {
            assert!(!is_this_machine(caller.parse().unwrap()), "{caller}");
        }
    }

    /// Asks for a path from whatever address the system uses towards `to`; gives the status.
    async fn status(to: SocketAddr, path: &str) -> u16 {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer.split(' ').nth(1).unwrap().parse().unwrap()
        };
        tokio::time::timeout(Duration::from_secs(20), exchange).await.unwrap()
    }

    #[tokio::test]
    async fn lists_of_the_cluster_are_for_callers_on_this_machine() {
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let admin = Admin::start("tracker", any, CancellationToken::new()).await.unwrap();
        let at = |ip: IpAddr| SocketAddr::new(ip, admin.address().port());
        let lists = ["/v1/swarms", "/v1/peers", "/v1/overview", "/v1/topology", "/"];
        let here = at([127, 0, 0, 1].into());
        for path in lists {
            assert_ne!(status(here, path).await, 403, "{path}");
        }
        // An address of this machine that is no loopback, where it has one: who connects to it comes from it.
        let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let elsewhere = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()).map(|local| local.ip());
        if let Ok(elsewhere) = elsewhere.map(at).map_err(drop)
            && !elsewhere.ip().is_loopback()
        {
            for path in lists {
                assert_eq!(status(elsewhere, path).await, 403, "{path}");
            }
            assert_eq!(status(elsewhere, "/healthz").await, 200);
        } else {
            println!("skipped: this machine has no address but loopback");
        }
        admin.stop().await;
    }
}
