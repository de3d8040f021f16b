//! The proxy role: puts the parts together, starts and stops them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use eagle_cluster::MemberTls;
use eagle_core::{NodeRole, PeerInfo, Topology, wire::control::Encryption};
use eagle_p2p::{
    identity::{self, IdentityError},
    network::Membership,
    node::{Node, NodeConfig},
};
use eagle_registry::Registries;
use eagle_seeder::{client::SeederClient, images::Images, stored::announce_stored};
use eagle_store::{BlobStorage, Cache, FsStorage, StorageError};
use eagle_tracker::{Announcer, Found};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    config::{ConfigError, ProxyConfig},
    download::{Context, Downloads, Settings},
    forward::{
        Front, Policy,
        authority::{AuthorityError, Certificates},
    },
    grants::Grants,
    login::Gate,
    metrics::{Metrics, Traffic},
    remembered::Manifests,
    rules::Rules,
    server,
    service::{Service, relay::Uploads},
    warm::Warmer,
};

/// How long answers under way may go on after the signal to stop; Kubernetes gives a pod 30 seconds.
const DRAIN: Duration = Duration::from_secs(20);
/// How long the parts may take to stop after that.
const STOP: Duration = Duration::from_secs(5);
/// Answers of trackers that wait to be looked at.
const FOUND_QUEUE: usize = 64;

/// What a proxy shares with the other roles of its machine.
#[derive(Debug, Clone)]
pub struct ProxyDeps {
    /// The registries.
    pub registries: Arc<Registries>,
    /// Who is a member of the cluster.
    pub membership: Membership,
    /// Where this node is.
    pub topology: Topology,
    /// How data channels are protected.
    pub encryption: Encryption,
    /// What this node proves its membership with.
    pub members: MemberTls,
}

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be made.
    #[error("cannot create proxy.data_dir {path}: {source}")]
    DataDir {
        /// The directory.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The node has no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The blobs on disk cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The peer network does not start.
    #[error(transparent)]
    Node(#[from] eagle_p2p::node::StartError),
    /// The certificate authority of the forward proxy cannot be used.
    #[error("proxy.forward.ca_dir: {0}")]
    Authority(#[from] AuthorityError),
    /// No key for the credentials of runtimes can be made.
    #[error("the system gives no random numbers")]
    Random,
    /// The address for runtimes is not to be had.
    #[error("cannot listen on proxy.listen {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// A running proxy. Dropping it ends it at once; [`Proxy::wait`] lets it end in order.
#[derive(Debug)]
pub struct Proxy {
    local_addr: SocketAddr,
    node: Node,
    cache: Arc<Cache>,
    images: Images,
    downloads: Downloads,
    metrics: Metrics,
    rules: Rules,
    announcer: Announcer,
    seeders: SeederClient,
    tasks: TaskTracker,
    _stop_on_drop: DropGuard,
}

impl Proxy {
    /// Starts a proxy, which serves until `shutdown` is cancelled.
    ///
    /// # Errors
    /// When the configuration cannot work, the data directory cannot be used, or an address cannot be
    /// listened on.
    pub async fn start(
        config: ProxyConfig,
        deps: ProxyDeps,
        registry: &mut Registry,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        config.validate()?;
        let keypair = prepare(&config.data_dir).await?;
        let certificates = match config.forward.ca_dir.clone() {
            Some(directory) => Some(load_authority(directory).await?),
            None => None,
        };
        let listener = TcpListener::bind(config.listen).await;
        let listen_error = |source| StartError::Listen { address: config.listen, source };
        let listener = listener.map_err(listen_error)?;
        let local_addr = listener.local_addr().map_err(listen_error)?;
        let storage: Arc<dyn BlobStorage> = Arc::new(FsStorage::open(&config.data_dir.join("blobs")).await?);
        let cache = Cache::open(Arc::clone(&storage), config.cache_settings()).await?;

        // The parts outlive the signal to stop: answers under way still need them.
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let node_config = NodeConfig {
            listen: config.p2p_listen,
            data_listen: config.data_listen,
            advertise: config.advertise,
            membership: deps.membership,
            topology: deps.topology,
            encryption: deps.encryption,
            download: config.download_rate,
            upload: config.upload_rate,
            identity: keypair,
            ..NodeConfig::local(NodeRole::Proxy)
        };
        let node = Node::start(node_config, Arc::clone(&cache), stop.clone()).await?;
        let limiter = node.download_limiter().clone();
        let read_at = move || limiter.rate();
        deps.registries.paced_by(read_at.clone());
        let (found_sender, found) = mpsc::channel(FOUND_QUEUE);
        let announcer =
            Announcer::start(config.trackers.clone(), node.info(), found_sender, deps.members.clone(), stop.clone());
        announcer.reporting(node.reports());
        let metrics = Metrics::default();
        let registry = registry.sub_registry_with_prefix("eagle_proxy");
        metrics.register(registry);
        node.register(registry, &cache);
        announcer.register(registry);
        let seeders = SeederClient::paced_by(config.seeders, &deps.members, read_at).following(announcer.seeders());
        let tasks = TaskTracker::new();
        let downloads = Downloads::new(Context {
            cache: Arc::clone(&cache),
            node: node.clone(),
            announcer: announcer.clone(),
            seeders: seeders.clone(),
            registries: Arc::clone(&deps.registries),
            metrics: metrics.clone(),
            settings: Settings { stall_timeout: config.stall_timeout, origin_fallback: config.origin_fallback },
            answers: eagle_store::answers::Answers::default(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        });
        let rules = Rules::new(config.rules);
        let policy = Policy::new(rules.clone(), config.default_registry.clone(), Arc::clone(&deps.registries));
        let images = Images::open(Arc::clone(&cache), Some(config.data_dir.join("images.json"))).await;
        tasks.spawn(images.clone().run(stop.clone()));
        let service = Arc::new(Service {
            downloads: downloads.clone(),
            grants: Grants::new(config.grant_ttl, Arc::clone(&deps.registries)),
            seeders: seeders.clone(),
            registries: deps.registries,
            manifests: Manifests::new(),
            images: images.clone(),
            metrics: metrics.clone(),
            default_registry: config.default_registry.clone(),
            rules: rules.clone(),
            push: config.push,
            gate: Gate::new(config.login, config.default_registry).map_err(|_| StartError::Random)?,
            uploads: Uploads::new(),
            limiter: node.download_limiter().clone(),
            origin_fallback: config.origin_fallback,
        });
        let warmer = Warmer {
            node: node.info().id,
            seeders: seeders.clone(),
            downloads: downloads.clone(),
            service: Arc::clone(&service),
            rules: rules.clone(),
        };
        tasks.spawn(warmer.run(stop.clone()));
        let front = Arc::new(Front { service, mode: config.forward.mode, policy, certificates });
        tasks.spawn(dispatch(found, downloads.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&cache).upkeep(stop.clone()));
        let kept = announce_stored(Arc::clone(&cache), storage, announcer.clone(), |_| false);
        tasks.spawn(stop.clone().run_until_cancelled_owned(kept));
        let parts = Parts {
            node: node.clone(),
            announcer: announcer.clone(),
            downloads: downloads.clone(),
            cache: Arc::clone(&cache),
        };
        tasks.spawn(async move {
            let drained = async {
                shutdown.cancelled().await;
                tokio::time::sleep(DRAIN).await;
            };
            tokio::select! {
                () = server::serve(listener, front, shutdown.clone(), stop.clone()) => {}
                () = drained => tracing::warn!("answers to runtimes did not end within {DRAIN:?} and are cut"),
                () = stop.cancelled() => {}
            }
            stop.cancel();
            if timeout(STOP, parts.stopped()).await.is_err() {
                tracing::warn!("the proxy did not stop in order within {STOP:?}");
            }
        });
        tasks.close();
        tracing::info!(listen = %local_addr, node = %node.info().id, "proxy started");
        Ok(Self {
            local_addr,
            node,
            cache,
            images,
            downloads,
            metrics,
            rules,
            announcer,
            seeders,
            tasks,
            _stop_on_drop: guard,
        })
    }

    /// Address that container runtimes use.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The node as others know it: its identity and the address of its libp2p listener.
    pub fn peer_info(&self) -> PeerInfo {
        self.node.info()
    }

    /// The node, for its limits and counters.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The blobs on this node.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The images that the blobs on this node belong to.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The rules; to replace them is to replace them for every request from then on.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What announces the node; to replace its trackers is to replace them for everything from then on.
    pub fn announcer(&self) -> &Announcer {
        &self.announcer
    }

    /// What asks seeders; to replace those of the configuration is to replace them for every request from then on.
    pub fn seeders(&self) -> &SeederClient {
        &self.seeders
    }

    /// Bytes moved since the start, by source.
    pub fn traffic(&self) -> Traffic {
        self.metrics.traffic()
    }

    /// For people: what the proxy does and has.
    pub fn status(&self) -> serde_json::Value {
        status(&self.node, self.local_addr, &self.cache, &self.downloads, &self.metrics)
    }

    /// What [`Proxy::status`] gives, for use after the proxy itself is being waited for.
    pub fn status_handle(&self) -> impl Fn() -> serde_json::Value + Send + Sync + use<> {
        let (node, address, cache) = (self.node.clone(), self.local_addr, Arc::clone(&self.cache));
        let (downloads, metrics) = (self.downloads.clone(), self.metrics.clone());
        move || status(&node, address, &cache, &downloads, &metrics)
    }

    /// Ends when the proxy has stopped, after `shutdown` was cancelled: answers under way may end,
    /// nothing new is taken, the trackers are told.
    pub async fn wait(self) {
        self.tasks.wait().await;
    }
}

fn status(
    node: &Node,
    address: SocketAddr,
    cache: &Cache,
    downloads: &Downloads,
    metrics: &Metrics,
) -> serde_json::Value {
    let stats = cache.stats();
    let counters = node.counters();
    json!({
        "role": "proxy",
        "listen": address,
        "node": node.info(),
        "peers_connected": counters.connected_peers,
        "uploaded_bytes": counters.uploaded,
        "control_bytes": counters.control_sent,
        "strangers": counters.strangers,
        "traffic_bytes": metrics.traffic(),
        "cache": {
            "bytes": stats.bytes, "limit": stats.limit, "blobs": stats.blobs, "partial_blobs": stats.partials,
            "evictions": stats.evictions, "hits": stats.hits, "misses": stats.misses,
            "damaged": stats.damaged, "scrubbed_bytes": stats.scrubbed_bytes,
        },
        "downloads": downloads.status(),
    })
}

/// Makes the data directory and reads or makes the identity in it.
async fn prepare(data_dir: &Path) -> Result<identity::Keypair, StartError> {
    let path = data_dir.to_owned();
    let work = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&path)
            .map_err(|source| StartError::DataDir { path: path.display().to_string(), source })?;
        Ok(identity::load_or_create(&path.join("identity"))?)
    });
    work.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Reads the authority of the forward proxy.
async fn load_authority(directory: PathBuf) -> Result<Certificates, StartError> {
    let work = tokio::task::spawn_blocking(move || Certificates::load(&directory));
    Ok(work.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?)
}

/// Gives the peers that trackers name to the downloads that wait for them.
async fn dispatch(mut found: mpsc::Receiver<Found>, downloads: Downloads, stop: CancellationToken) {
    loop {
        tokio::select! {
            next = found.recv() => match next {
                Some(Found { digest, peers }) => downloads.found(digest, peers).await,
                None => return,
            },
            () = stop.cancelled() => return,
        }
    }
}

/// What ends last.
struct Parts {
    node: Node,
    announcer: Announcer,
    downloads: Downloads,
    cache: Arc<Cache>,
}

impl Parts {
    async fn stopped(self) {
        self.downloads.stopped().await;
        self.announcer.stopped().await;
        self.node.stopped().await;
        self.cache.settle().await;
    }
}
