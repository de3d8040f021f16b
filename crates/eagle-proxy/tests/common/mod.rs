//! A cluster in one process, on loopback and free ports, and a runtime that pulls through it.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

pub(crate) mod intercepted;
pub(crate) mod raw;
pub(crate) mod stub;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use eagle_cluster::MemberTls;
use eagle_core::{
    Digest, Topology,
    units::{FreeSpace, Rate, Size},
    wire::control::Encryption,
};
use eagle_p2p::network::Membership;
use eagle_proxy::{Proxy, ProxyConfig, ProxyDeps};
use eagle_registry::{
    EmbeddedRegistry, Registries, RegistryConfig,
    embedded::{Access, EmbeddedConfig, GeneratedImage, PublishedImage},
};
use eagle_seeder::{Seeder, SeederConfig, SeederDeps};
use eagle_tracker::{Tracker, TrackerConfig};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    runtime::Runtime,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use url::Url;

/// No test waits longer for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// An address that nobody listens on.
pub(crate) async fn dead_url() -> Url {
    let listener = tokio::net::TcpListener::bind(local()).await.unwrap();
    format!("http://{}", listener.local_addr().unwrap()).parse().unwrap()
}

pub(crate) fn url(address: SocketAddr) -> Url {
    format!("http://{address}").parse().unwrap()
}

pub(crate) async fn origin(layers: &[u64]) -> EmbeddedRegistry {
    origin_for(layers, Access::Open).await
}

pub(crate) async fn origin_for(layers: &[u64], access: Access) -> EmbeddedRegistry {
    let image = GeneratedImage {
        repository: "library/app".parse().unwrap(),
        tag: "1".parse().unwrap(),
        layers: layers.to_vec(),
        seed: 7,
        config_size: 0,
    };
    let config = EmbeddedConfig { access, ..EmbeddedConfig::new(local(), vec![image]) };
    EmbeddedRegistry::start(config).await.unwrap()
}

pub(crate) fn registries(configs: Vec<RegistryConfig>) -> Arc<Registries> {
    Arc::new(Registries::new(configs).unwrap())
}

/// A client configuration whose waits are short enough for tests.
pub(crate) fn client_config(origin: &EmbeddedRegistry) -> RegistryConfig {
    RegistryConfig {
        connect_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_secs(2),
        ..origin.client_config()
    }
}

pub(crate) async fn tracker() -> Tracker {
    tracker_as(&Membership::Open).await
}

pub(crate) async fn tracker_as(membership: &Membership) -> Tracker {
    let config = TrackerConfig { listen: local(), ..TrackerConfig::default() };
    let members = MemberTls::new(membership).unwrap();
    Tracker::start(config, &members, &mut Registry::default(), CancellationToken::new()).await.unwrap()
}

/// A seeder in a runtime of its own, so that it can be killed.
pub(crate) struct KillableSeeder {
    pub(crate) url: Url,
    pub(crate) seeder: Option<Seeder>,
    runtime: Option<Runtime>,
    _data: TempDir,
}

impl KillableSeeder {
    pub(crate) fn start(registries: &Arc<Registries>, trackers: Vec<Url>, upload: Rate) -> Self {
        Self::start_as(registries, trackers, upload, Membership::Open)
    }

    pub(crate) fn start_as(
        registries: &Arc<Registries>,
        trackers: Vec<Url>,
        upload: Rate,
        membership: Membership,
    ) -> Self {
        let data = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let config = SeederConfig {
            listen: local(),
            p2p_listen: local(),
            data_listen: local(),
            data_dir: data.path().to_owned(),
            min_free: FreeSpace::Bytes(0),
            download_rate: Rate::Unlimited,
            upload_rate: upload,
            trackers,
            ..SeederConfig::default()
        };
        let handle = runtime.handle().clone();
        let members = {
            let _runtime = handle.enter();
            MemberTls::new(&membership).unwrap()
        };
        let deps = SeederDeps {
            registries: Arc::clone(registries),
            membership,
            topology: Topology::default(),
            encryption: Encryption::None,
            members,
        };
        let start = std::thread::spawn(move || {
            handle.block_on(Seeder::start(config, deps, &mut Registry::default(), CancellationToken::new())).unwrap()
        });
        let seeder = start.join().unwrap();
        Self { url: url(seeder.address()), seeder: Some(seeder), runtime: Some(runtime), _data: data }
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.seeder.take();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for KillableSeeder {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A proxy and its directory.
pub(crate) struct TestProxy {
    pub(crate) proxy: Proxy,
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: CancellationToken,
    pub(crate) data: TempDir,
    metrics: Registry,
}

pub(crate) struct ProxyOptions {
    pub(crate) registries: Arc<Registries>,
    pub(crate) origin: SocketAddr,
    pub(crate) seeders: Vec<Url>,
    pub(crate) trackers: Vec<Url>,
    pub(crate) cache_limit: u64,
    pub(crate) rate: Rate,
    pub(crate) stall_timeout: Duration,
    pub(crate) membership: Membership,
    pub(crate) topology: Topology,
}

impl ProxyOptions {
    pub(crate) fn new(origin: &EmbeddedRegistry) -> Self {
        Self {
            registries: registries(vec![client_config(origin)]),
            origin: origin.local_addr(),
            seeders: Vec::new(),
            trackers: Vec::new(),
            cache_limit: 1 << 30,
            rate: Rate::Unlimited,
            stall_timeout: Duration::from_secs(1),
            membership: Membership::Open,
            topology: Topology::default(),
        }
    }

    /// With an origin that a test plays.
    pub(crate) fn of_stub(origin: &stub::StubOrigin) -> Self {
        Self {
            registries: registries(vec![origin.config()]),
            origin: origin.address,
            seeders: Vec::new(),
            trackers: Vec::new(),
            cache_limit: 1 << 30,
            rate: Rate::Unlimited,
            stall_timeout: Duration::from_secs(1),
            membership: Membership::Open,
            topology: Topology::default(),
        }
    }

    fn config(&self, data_dir: &Path) -> ProxyConfig {
        ProxyConfig {
            listen: local(),
            p2p_listen: local(),
            data_listen: local(),
            data_dir: data_dir.to_owned(),
            cache_limit: Size(self.cache_limit),
            min_free: FreeSpace::Bytes(0),
            download_rate: self.rate,
            upload_rate: self.rate,
            seeders: self.seeders.clone(),
            trackers: self.trackers.clone(),
            default_registry: self.origin.to_string().parse().unwrap(),
            stall_timeout: self.stall_timeout,
            ..ProxyConfig::default()
        }
    }

    pub(crate) async fn start(&self) -> TestProxy {
        self.start_in(tempfile::tempdir().unwrap()).await
    }

    pub(crate) async fn start_in(&self, data: TempDir) -> TestProxy {
        self.launch(data, |_| ()).await
    }

    /// Starts with settings that few tests change.
    pub(crate) async fn start_with(&self, change: impl FnOnce(&mut ProxyConfig)) -> TestProxy {
        self.launch(tempfile::tempdir().unwrap(), change).await
    }

    async fn launch(&self, data: TempDir, change: impl FnOnce(&mut ProxyConfig)) -> TestProxy {
        let shutdown = CancellationToken::new();
        let deps = ProxyDeps {
            registries: Arc::clone(&self.registries),
            membership: self.membership.clone(),
            topology: self.topology.clone(),
            encryption: Encryption::None,
            members: MemberTls::new(&self.membership).unwrap(),
        };
        let mut config = self.config(data.path());
        change(&mut config);
        let mut metrics = Registry::default();
        let proxy = Proxy::start(config, deps, &mut metrics, shutdown.clone()).await.unwrap();
        TestProxy { address: proxy.local_addr(), proxy, shutdown, data, metrics }
    }
}

impl TestProxy {
    /// Stops in order and gives the directory back.
    pub(crate) async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        timeout(DEADLINE, self.proxy.wait()).await.expect("the proxy stops");
        self.data
    }

    /// The sum of a metric's samples whose labels contain `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        let samples = text.lines().filter(|line| line.starts_with(name) && line.contains(labels));
        samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        request(self.address, Method::GET, path, &[]).await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        request(self.address, Method::GET, path, headers).await
    }

    /// Asks for the manifest as a runtime would, which gives leave to read the blobs.
    pub(crate) async fn manifest(&self) -> Answer {
        let answer = self.get("/v2/library/app/manifests/1").await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        answer
    }

    /// Pulls a layer and checks it.
    pub(crate) async fn pull(&self, digest: Digest) {
        self.manifest().await;
        let answer = self.get(&blob_path(&digest)).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        assert_eq!(Digest::of(&answer.whole()), digest);
    }
}

pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("/v2/library/app/blobs/{digest}")
}

pub(crate) fn layer(image: &PublishedImage, index: usize) -> Digest {
    image.layers[index].digest
}

/// An answer, read to its end or to where it broke off.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) broken: Option<String>,
}

impl Answer {
    /// The body, which must have come to its end.
    pub(crate) fn whole(self) -> Bytes {
        assert_eq!(self.broken, None);
        self.body
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn error_code(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

pub(crate) async fn request(address: SocketAddr, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    timeout(DEADLINE, async {
        let (status, headers, mut incoming) = open(address, method, path, headers).await;
        let (mut body, mut broken) = (BytesMut::new(), None);
        while let Some(frame) = incoming.frame().await {
            match frame {
                Ok(frame) => body.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(error) => {
                    broken = Some(error.to_string());
                    break;
                }
            }
        }
        Answer { status, headers, body: body.freeze(), broken }
    })
    .await
    .expect("an answer in time")
}

/// Sends a request; the body is left to the caller.
pub(crate) async fn open(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, HeaderMap, Incoming) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", address.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status, parts.headers, body)
}

/// Polls until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let held = timeout(DEADLINE, async {
        while !condition() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    held.await.unwrap_or_else(|_| panic!("{what} did not happen"));
}
