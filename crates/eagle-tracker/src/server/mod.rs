//! The tracker role: an HTTP service over a [`PeerStore`] and a [`PeerPolicy`].

mod announce;
mod body;
mod dashboard;
mod overview;
mod pace;
mod reply;
mod reports;
mod routes;
mod seeders;
#[cfg(test)]
pub(crate) mod unconnected;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use eagle_cluster::{
    Accepted, MemberAcceptor, MemberTls, Who,
    places::{BusyBody, Place, Places},
};
use eagle_core::Timestamp;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use self::{body::BodyBudget, overview::Glances, pace::AnnouncePace, reply::Reply, reports::Reports};
pub(crate) use self::{
    routes::{named, page, pieces_page},
    seeders::{claim_in, heartbeat_in},
};
use crate::{
    config::{ConfigError, TrackerConfig},
    metrics::Metrics,
    networks::Networks,
    policy::{DefaultPolicy, PeerPolicy},
    store::{
        EXCHANGE_EVERY, MemorySeeders, MemoryStore, PeerStore, SeederStore, SharedReports, SharedSeeders, SharedStore,
        StoreLimits, StoreLocation,
    },
};

/// Most connections at a time: two for each of the 15,000 hosts of a large cluster. When there are more, idle ones give way.
const MAX_CONNECTIONS: usize = 32_000;
/// Longest wait for the head of a request, also on a connection kept open: longer than clients keep
/// an unused one (30 s), so that it is they who close it and no request meets a closing connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(65);
/// The same for strangers, who keep no connection open.
const STRANGER_HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Read buffer of a connection, bytes: heads are small, bodies pass through in parts.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Wait after the system refuses a connection, for instance for want of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Longest wait for requests under way on shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// Times that the whole store is swept within the life of a silent node: what expired nodes take is
/// freed at most a quarter of their time to live late.
const SWEEPS_PER_TTL: u32 = 4;
/// Times as long as a part of the sweep took that answers have before the next, when thousands of nodes expire together: that takes a
/// fifth of a core then.
const SWEEP_PAUSE: u32 = 4;
/// Least such time: what a timer can tell apart.
const LEAST_SWEEP_PAUSE: Duration = Duration::from_millis(1);

/// Why a tracker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (tracker.listen): {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// A running tracker.
#[derive(Debug)]
pub struct Tracker {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// What every request needs.
#[derive(Debug)]
struct Shared {
    config: TrackerConfig,
    store: Arc<dyn PeerStore>,
    seeders: Arc<dyn SeederStore>,
    policy: Box<dyn PeerPolicy>,
    networks: Networks,
    reports: Reports,
    metrics: Metrics,
    bodies: BodyBudget,
    pace: AnnouncePace,
    glances: Glances,
    started: Instant,
}

impl Shared {
    /// What a tracker with these stores starts from.
    fn new(
        config: TrackerConfig,
        store: Arc<dyn PeerStore>,
        seeders: Arc<dyn SeederStore>,
        reports: Option<SharedReports>,
        registry: &mut Registry,
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            store,
            seeders,
            policy: Box::new(DefaultPolicy),
            networks: Networks::new(&config.topology).map_err(|problem| ConfigError { key: "topology", problem })?,
            reports: Reports::new(&config, reports),
            metrics: Metrics::new(registry),
            bodies: BodyBudget::default(),
            pace: AnnouncePace::default(),
            glances: Glances::default(),
            started: Instant::now(),
            config,
        })
    }

    fn now(&self) -> Timestamp {
        Timestamp(0) + self.started.elapsed()
    }
}

impl Tracker {
    /// Starts a tracker with an empty store in memory or the shared one of its configuration, registers its metrics, and serves members until `shutdown`.
    ///
    /// # Errors
    /// When a setting cannot work or the address cannot be listened on.
    pub async fn start(
        config: TrackerConfig,
        members: &MemberTls,
        registry: &mut Registry,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        config.validate()?;
        let (store, seeders, reports): (Arc<dyn PeerStore>, Arc<dyn SeederStore>, _) = match &config.store {
            StoreLocation::Memory => {
                (Arc::new(MemoryStore::new(StoreLimits::from(&config))), Arc::new(MemorySeeders::default()), None)
            }
            StoreLocation::Redis(url) => (
                Arc::new(SharedStore::new(url, &config)?),
                Arc::new(SharedSeeders::new(url, &config)?),
                Some(SharedReports::new(url, &config)?),
            ),
        };
        let address = config.listen;
        let bind_error = |source| StartError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind_error)?;
        let local_addr = listener.local_addr().map_err(bind_error)?;
        let shared = Arc::new(Shared::new(config, store, seeders, reports, registry)?);
        let tasks = TaskTracker::new();
        tasks.spawn(accept(listener, members.acceptor(), Arc::clone(&shared), shutdown.clone(), tasks.clone()));
        tasks.spawn(sweep(Arc::clone(&shared), shutdown.clone()));
        if shared.reports.are_shared() {
            tasks.spawn(share_reports(Arc::clone(&shared), shutdown.clone()));
        }
        tasks.close();
        info!(address = %local_addr, "tracker listens");
        Ok(Self { shared, local_addr, shutdown, tasks })
    }

    /// Address that the API listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The tracker at a glance, as JSON.
    pub fn status(&self) -> serde_json::Value {
        let stats = self.shared.store.stats();
        let health = self.shared.store.health();
        serde_json::json!({
            "listen": self.local_addr,
            "uptime_seconds": self.shared.started.elapsed().as_secs_f64(),
            "peers": stats.peers,
            "blobs": stats.blobs,
            "entries": stats.entries,
            "store": { "kind": health.kind, "away": health.away, "failures": health.failures },
            "seeders": self.shared.seeders.stats().seeders,
            "leases": self.shared.seeders.stats().leases,
        })
    }

    /// What answers people and their tools on this machine, without the API of nodes.
    pub fn pages(&self) -> TrackerPages {
        TrackerPages(Arc::clone(&self.shared))
    }

    /// Waits for shutdown, and then until requests under way are answered or three seconds have passed.
    pub async fn wait(self) {
        self.shutdown.cancelled().await;
        if tokio::time::timeout(DRAIN_TIMEOUT, self.tasks.wait()).await.is_err() {
            debug!(connections = self.tasks.len(), "tracker stops with requests under way");
        }
    }
}

/// The part of a tracker that is read and never changes anything: lists, swarms, nodes, the dashboard.
#[derive(Debug, Clone)]
pub struct TrackerPages(Arc<Shared>);

impl TrackerPages {
    /// Whether there can be something at a path.
    pub fn has(path: &str) -> bool {
        path.starts_with("/v1/") || dashboard::asset(path).is_some()
    }

    /// Answers a request without a body; `query` is without its question mark.
    pub async fn answer(&self, method: &http::Method, path: &str, query: &str) -> Reply {
        routes::read(&self.0, method, path, query).await.unwrap_or_else(|error| error.reply())
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: MemberAcceptor,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
) {
    let places = Places::within_descriptors(MAX_CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = async {
                let (stream, peer) = listener.accept().await?;
                // When every connection is busy this one waits, and the kernel's queue holds what comes after it.
                Ok::<_, std::io::Error>((stream, peer, places.take().await))
            } => accepted,
        };
        match accepted {
            Ok((stream, peer, place)) => {
                let (acceptor, shared, shutdown) = (acceptor.clone(), Arc::clone(&shared), shutdown.clone());
                tasks.spawn(async move {
                    if place.first_byte(&stream, HEAD_TIMEOUT, &shutdown).await {
                        Box::pin(serve(stream, peer, place, acceptor, shared, shutdown)).await;
                    }
                });
            }
            Err(error) => {
                warn!(%error, "tracker cannot accept a connection");
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(ACCEPT_BACKOFF) => {}
                }
            }
        }
    }
}

/// Serves one connection; on shutdown, until the request under way is answered, for the time of draining.
async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    acceptor: MemberAcceptor,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%peer, %error, "cannot switch off Nagle's algorithm");
    }
    let accepted = tokio::select! {
        accepted = acceptor.accept(stream) => accepted,
        () = shutdown.cancelled() => return,
        () = place.given_way() => return,
    };
    let Accepted { stream, who } = match accepted {
        Ok(accepted) => accepted,
        Err(error) => {
            debug!(%peer, %error, "connection is not served");
            return;
        }
    };
    if who == Who::Member {
        place.of_member();
    }
    let service = service_fn(|request| {
        let (shared, busy) = (Arc::clone(&shared), place.busy());
        async move {
            let answer = routes::handle(&shared, request, peer.ip().to_canonical(), who).await;
            answer.map(|reply| reply.map(|body| BusyBody::new(body, busy)))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(match who {
            Who::Member => HEAD_TIMEOUT,
            Who::Stranger => STRANGER_HEAD_TIMEOUT,
        })
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = place.given_way() => {
            debug!(%peer, "an idle connection gave way to a new one");
            return;
        }
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN_TIMEOUT, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = served {
        debug!(%peer, %error, "connection ended");
    }
}

/// Frees what expired nodes take, a part of the store at a time.
async fn sweep(shared: Arc<Shared>, shutdown: CancellationToken) {
    let parts = u32::try_from(shared.store.sweep_parts()).unwrap_or(u32::MAX).max(1);
    let every = (shared.config.peer_ttl / SWEEPS_PER_TTL / parts).max(Duration::from_millis(1));
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut rounds = (0..parts).cycle();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {
                let mut began = Instant::now();
                while shared.store.sweep(shared.now()).await {
                    let pause = (began.elapsed() * SWEEP_PAUSE).max(LEAST_SWEEP_PAUSE);
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(pause) => began = Instant::now(),
                    }
                }
                shared.seeders.sweep(shared.now()).await;
                // These are looked at all together, so not each time.
                if rounds.next() == Some(0) {
                    shared.reports.sweep(shared.now());
                }
                shared.metrics.set_sizes(shared.store.stats());
                shared.metrics.set_health(shared.store.health());
                shared.metrics.set_seeders(shared.seeders.stats());
            }
        }
    }
}

/// Tells other trackers what nodes report here, and takes what they report there.
async fn share_reports(shared: Arc<Shared>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(EXCHANGE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let exchange = async {
            ticks.tick().await;
            shared.reports.exchange(shared.now()).await
        };
        let told = tokio::select! {
            () = shutdown.cancelled() => return,
            told = exchange => told,
        };
        if told.is_empty() {
            continue;
        }
        // Thousands of reports take milliseconds.
        let taker = Arc::clone(&shared);
        if let Err(error) = tokio::task::spawn_blocking(move || taker.reports.take_from_others(&told)).await {
            debug!(%error, "what other trackers were told is not taken");
        }
    }
}
