//! The seeder as a whole: puts the parts together, and takes them down in order.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use eagle_cluster::MemberTls;
use eagle_core::{
    NodeRole, PeerInfo, Topology,
    tracker::seeders::{SeederInfo, SeederState},
    wire::control::Encryption,
};
use eagle_p2p::{
    identity::{self, IdentityError, Keypair},
    limits::Limiter,
    network::Membership,
    node::{Node, NodeConfig},
};
use eagle_registry::Registries;
use eagle_store::{Cache, StorageError, answers::Answers};
use eagle_tracker::{Announcer, Registration};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::{Host, Url};

use crate::{
    access::Access,
    blobs::Blobs,
    client::SeederClient,
    config::{ConfigError, SeederConfig},
    fetch::{Fetches, Parts},
    images::Images,
    lease::Leases,
    manifests::Manifests,
    metrics::{Counters, Metrics},
    notifications::Notifications,
    preheat::{Nodes, Preheat, PreheatMetrics, Sources},
    schedule,
    server::{self, Api, DRAIN},
    shared::Shared,
    storage::{self, StorageLocation},
    stored::announce_stored,
};

/// File of the node's identity within the data directory.
const IDENTITY_FILE: &str = "identity";
/// File of what is known of images within the data directory.
const IMAGES_FILE: &str = "images.json";

/// What a seeder shares with the other roles of its machine.
#[derive(Debug, Clone)]
pub struct SeederDeps {
    /// The origins.
    pub registries: Arc<Registries>,
    /// Who is a member of the cluster.
    pub membership: Membership,
    /// Where the machine is.
    pub topology: Topology,
    /// How data channels are protected.
    pub encryption: Encryption,
    /// Who is served, and what this seeder proves its own membership with.
    pub members: MemberTls,
}

/// Why a seeder did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The API's address cannot be listened on.
    #[error("seeder.listen: cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The storage cannot be opened.
    #[error("seeder.storage: {0}")]
    Storage(#[from] StorageError),
    /// There is no identity.
    #[error("seeder.data_dir: {0}")]
    Identity(#[from] IdentityError),
    /// The peer network did not start.
    #[error("seeder: {0}")]
    Node(#[from] eagle_p2p::node::StartError),
    /// A blocking task of the start panicked.
    #[error("seeder: the start was interrupted")]
    Interrupted,
}

/// A running seeder.
#[derive(Debug)]
pub struct Seeder {
    address: SocketAddr,
    node: Node,
    cache: Arc<Cache>,
    images: Images,
    fetches: Fetches,
    metrics: Metrics,
    announcer: Announcer,
    registration: Registration,
    supervisor: JoinHandle<()>,
}

impl Seeder {
    /// Opens the storage, joins the peer network and listens, until `shutdown`.
    ///
    /// Port 0 in an address takes any free port; [`Seeder::address`] and [`Seeder::info`] tell which.
    ///
    /// # Errors
    /// When a setting cannot work, an address is taken, or the data directory cannot be used.
    pub async fn start(
        config: SeederConfig,
        deps: SeederDeps,
        registry: &mut Registry,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        config.validate()?;
        let listen_error = |source| StartError::Listen { address: config.listen, source };
        // Taken first: what else might fail should not leave traces when the port is in use.
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let storage = storage::open_local(&config).await?;
        let cache = Cache::open(Arc::clone(&storage), config.cache_settings()).await?;
        // Outlives `shutdown` by the time that running responses get.
        let halt = CancellationToken::new();
        let node_config = NodeConfig {
            listen: config.p2p_listen,
            data_listen: config.data_listen,
            advertise: config.advertise,
            membership: deps.membership,
            topology: deps.topology,
            encryption: deps.encryption,
            download: config.download_rate,
            upload: config.upload_rate,
            identity: load_identity(&config).await?,
            ..NodeConfig::local(NodeRole::Seeder)
        };
        let node = Node::start(node_config, Arc::clone(&cache), halt.clone()).await?;
        let limiter = node.download_limiter().clone();
        let read_at = move || limiter.rate();
        deps.registries.paced_by(read_at.clone());
        // A seeder serves who dials it and looks for nobody, so it never asks for peers.
        let (found, _) = mpsc::channel(1);
        let announcer =
            Announcer::start(config.trackers.clone(), node.info(), found, deps.members.clone(), shutdown.clone());
        announcer.reporting(node.reports());

        let url = own_url(&config, address)?;
        let info = SeederInfo {
            id: node.info().id,
            url: url.to_string(),
            storage: config.storage.to_string(),
            capacity: config.cache_limit.0,
            state: SeederState::Up,
        };
        let registration =
            Registration::start(config.trackers.clone(), info, &deps.members, shutdown.clone(), halt.clone());

        let metrics = Metrics::default();
        let registry = registry.sub_registry_with_prefix("eagle_seeder");
        metrics.register(registry);
        node.register(registry, &cache);
        announcer.register(registry);
        let shared = storage::open_shared(&config, &node.info().id.to_string()).await?;
        let shared = shared.map(|storage| Shared::new(storage, &node, metrics.clone()));
        let access = Arc::new(Access::new(Arc::clone(&deps.registries), metrics.clone(), config.grant_ttl));
        let parts = Parts {
            registries: Arc::clone(&deps.registries),
            cache: Arc::clone(&cache),
            node: node.clone(),
            announcer: announcer.clone(),
            access: Arc::clone(&access),
            metrics: metrics.clone(),
            piece_length: config.piece_length,
            leases: Leases {
                shared: shared.clone(),
                trackers: registration.clone(),
                url: Some(url).filter(|url| !is_unspecified(url)),
                patience: config.object_store.wait,
                metrics: metrics.clone(),
            },
            seeders: SeederClient::paced_by(Vec::new(), &deps.members, read_at),
        };
        let fetches = Fetches::new(parts, halt.clone());
        let writers = TaskTracker::new();
        let blobs = Blobs {
            fetches: fetches.clone(),
            access: Arc::clone(&access),
            registries: Arc::clone(&deps.registries),
            cache: Arc::clone(&cache),
            node: node.clone(),
            http_turn: Arc::default(),
            answers: Answers::default(),
            metrics: metrics.clone(),
            writers: writers.clone(),
            draining: shutdown.clone(),
        };
        let images_file = (config.storage != StorageLocation::Memory).then(|| config.data_dir.join(IMAGES_FILE));
        let images = Images::open(Arc::clone(&cache), images_file).await;
        let manifests = Manifests::new(deps.registries, access, metrics.clone(), config.manifest_ttl, images.clone());
        let preheat_metrics = PreheatMetrics::default();
        preheat_metrics.register(registry);
        let sources = match config.preheat.seeders.is_empty() {
            true => Sources::Own { manifests: manifests.clone(), fetches: fetches.clone() },
            false => {
                let client = SeederClient::new(config.preheat.seeders.clone(), &deps.members);
                Sources::Cluster(client.following(announcer.seeders()))
            }
        };
        // Where blobs do not survive a restart, what was done of them need not either.
        let kept = (config.storage != StorageLocation::Memory).then_some(config.data_dir.as_path());
        let preheat = Preheat::open(sources, Nodes::new(), preheat_metrics, kept).await;
        let preheat_token = config.preheat.token.clone();
        let notifications = Notifications {
            secret: config.preheat.notification_secret.clone(),
            rules: config.preheat.rules.clone(),
            preheat: preheat.clone(),
            manifests: manifests.clone(),
        };
        let api = Arc::new(Api { blobs, manifests, notifications, preheat: preheat.clone(), preheat_token });

        let background = TaskTracker::new();
        let running = fetches.clone();
        let kept =
            announce_stored(Arc::clone(&cache), storage, announcer.clone(), move |digest| running.is_running(digest));
        background.spawn(halt.clone().run_until_cancelled_owned(kept));
        background.spawn(Arc::clone(&cache).upkeep(halt.clone()));
        background.spawn(images.clone().run(halt.clone()));
        background.spawn(schedule::run(config.preheat.schedule.clone(), preheat.clone(), halt.clone()));
        background.spawn(preheat.run(halt.clone()));
        if let Some(shared) = shared.clone() {
            let cache = Arc::clone(&cache);
            background.spawn(halt.clone().run_until_cancelled_owned(async move { shared.keep_up(&cache).await }));
        }
        background.close();
        let supervisor = Supervisor {
            server: server::listen(listener, deps.members.acceptor(), api, shutdown),
            halt,
            writers,
            background,
            fetches: fetches.clone(),
            node: node.clone(),
            announcer: announcer.clone(),
            registration: registration.clone(),
            cache: Arc::clone(&cache),
            shared,
        };
        let info = node.info();
        tracing::info!(%address, peer = %info.id, p2p = %info.address, data = %node.data_address(), "seeder started");
        let supervisor = tokio::spawn(supervisor.run());
        Ok(Self { address, node, cache, images, fetches, metrics, announcer, registration, supervisor })
    }

    /// Address of the HTTP API.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The seeder as a peer.
    pub fn info(&self) -> PeerInfo {
        self.node.info()
    }

    /// Address of the listener for data channels.
    pub fn data_address(&self) -> SocketAddr {
        self.node.data_address()
    }

    /// The limits on what comes in and on what goes out; to change a rate is to change it for everyone at once.
    pub fn limiters(&self) -> (Limiter, Limiter) {
        (self.node.download_limiter().clone(), self.node.upload_limiter().clone())
    }

    /// The images that its blobs belong to.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Gives the seeder other trackers while it runs, also after [`Seeder::wait`] has begun.
    pub fn replace_trackers(&self) -> impl Fn(Vec<Url>) + Send + Sync + use<> {
        let (announcer, registration) = (self.announcer.clone(), self.registration.clone());
        move |trackers| {
            announcer.replace_trackers(trackers.clone());
            registration.replace_trackers(trackers);
        }
    }

    /// Totals since the start.
    pub fn counters(&self) -> Counters {
        self.metrics.counters()
    }

    /// The present state, for people and for `eagle status`.
    pub fn status(&self) -> serde_json::Value {
        let (info, stats, node) = (self.node.info(), self.cache.stats(), self.node.counters());
        serde_json::json!({
            "address": self.address,
            "peer": info,
            "data_address": self.node.data_address(),
            "cache": {
                "bytes": stats.bytes,
                "limit_bytes": stats.limit,
                "blobs": stats.blobs,
                "partial_blobs": stats.partials,
                "evictions": stats.evictions,
                "damaged": stats.damaged,
                "scrubbed_bytes": stats.scrubbed_bytes,
            },
            "fetches_running": self.fetches.running(),
            "connected_peers": node.connected_peers,
            "uploaded_bytes": node.uploaded,
            "control_bytes": node.control_sent,
            "strangers": node.strangers,
            "counters": self.metrics.counters(),
        })
    }

    /// Waits until the seeder has ended: after `shutdown`, when running responses are finished, for
    /// which they get 5 s.
    pub async fn wait(self) {
        if let Err(error) = self.supervisor.await {
            tracing::error!(%error, "the seeder ended abnormally");
        }
    }
}

/// Where proxies and other seeders find this one; with an unspecified address when it listens on every one and is not told by
/// which it is reached.
fn own_url(config: &SeederConfig, listen: SocketAddr) -> Result<Url, ConfigError> {
    if let Some(url) = &config.url {
        return Ok(url.clone());
    }
    let ip = config.advertise.unwrap_or_else(|| listen.ip());
    let url = format!("http://{}", SocketAddr::new(ip, listen.port())).parse();
    url.map_err(|error: url::ParseError| ConfigError { key: "advertise", problem: error.to_string() })
}

fn is_unspecified(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_unspecified(),
        Some(Host::Ipv6(ip)) => ip.is_unspecified(),
        _ => false,
    }
}

/// The identity of the data directory; one for this run when nothing is kept on disk.
async fn load_identity(config: &SeederConfig) -> Result<Keypair, StartError> {
    if config.storage == StorageLocation::Memory {
        return Ok(identity::ephemeral());
    }
    let path: PathBuf = config.data_dir.join(IDENTITY_FILE);
    let loaded = tokio::task::spawn_blocking(move || identity::load_or_create(&path)).await;
    Ok(loaded.map_err(|_| StartError::Interrupted)??)
}

/// Runs the server, and after `shutdown` ends everything in the order in which it is safe: first no new
/// work, then running responses, then what serves them.
struct Supervisor<S> {
    server: S,
    halt: CancellationToken,
    writers: TaskTracker,
    background: TaskTracker,
    fetches: Fetches,
    node: Node,
    announcer: Announcer,
    registration: Registration,
    cache: Arc<Cache>,
    shared: Option<Shared>,
}

impl<S: Future<Output = ()>> Supervisor<S> {
    async fn run(self) {
        // Ends after `shutdown` and the time for running responses; no connection is left then.
        self.server.await;
        self.halt.cancel();
        tokio::join!(self.fetches.stopped(), self.node.stopped(), self.announcer.stopped(), self.background.wait());
        self.writers.close();
        if tokio::time::timeout(DRAIN, self.writers.wait()).await.is_err() {
            tracing::warn!("some responses did not end in time");
        }
        self.cache.settle().await;
        if let Some(shared) = self.shared {
            shared.settle().await;
        }
        self.registration.stopped().await;
        tracing::info!("seeder stopped");
    }
}
