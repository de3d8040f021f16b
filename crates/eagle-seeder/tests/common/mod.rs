//! What the tests share: an origin, seeders, and a client that sees every byte of HTTP.
#![allow(dead_code, clippy::unwrap_used)]

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use eagle_cluster::MemberTls;
use eagle_core::{
    Digest, Geometry, Metainfo, PeerInfo, PieceHash, Topology,
    digest::Algorithm,
    metainfo::Frame,
    units::{FreeSpace, Rate},
    wire::control::Encryption,
};
use eagle_p2p::network::Membership;
use eagle_registry::{
    Caller, Registries, RegistryConfig, RegistryName, RepositoryName,
    embedded::{Access, EmbeddedConfig, EmbeddedRegistry, GeneratedImage, User},
};
use eagle_seeder::{MetainfoStream, PieceLength, Seeder, SeederClient, SeederConfig, SeederDeps, SeederError};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use url::Url;

/// The longest that anything in a test may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const LAYER: u64 = 4 << 20;
pub(crate) const PIECE: u32 = 256 << 10;

pub(crate) fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// An origin with one image of these layers, its repository `library/test`.
pub(crate) struct Origin {
    registry: Option<EmbeddedRegistry>,
    pub(crate) name: RegistryName,
    pub(crate) repository: RepositoryName,
    pub(crate) digests: Vec<Digest>,
    pub(crate) sizes: Vec<u64>,
    /// How clients reach it; outlives the registry.
    pub(crate) config: RegistryConfig,
}

impl Origin {
    pub(crate) async fn start(layers: &[u64]) -> Self {
        Self::with_access(layers, Access::Open).await
    }

    pub(crate) async fn private(layers: &[u64]) -> Self {
        Self::with_access(layers, Access::Basic(vec![User::new("alice", "a"), User::new("bob", "b")])).await
    }

    async fn with_access(layers: &[u64], access: Access) -> Self {
        let repository: RepositoryName = "library/test".parse().unwrap();
        let image = GeneratedImage {
            repository: repository.clone(),
            tag: "1".parse().unwrap(),
            layers: layers.to_vec(),
            seed: 7,
            config_size: 0,
        };
        let config = EmbeddedConfig { access, ..EmbeddedConfig::new(any_port(), vec![image]) };
        let registry = EmbeddedRegistry::start(config).await.unwrap();
        let layers = &registry.images()[0].layers;
        let digests = layers.iter().map(|layer| layer.digest).collect();
        let sizes = layers.iter().map(|layer| layer.size).collect();
        let config = RegistryConfig {
            connect_timeout: Duration::from_secs(2),
            stall_timeout: Duration::from_secs(3),
            ..registry.client_config()
        };
        Self { name: registry.name(), registry: Some(registry), repository, digests, sizes, config }
    }

    pub(crate) fn registry(&self) -> &EmbeddedRegistry {
        self.registry.as_ref().expect("the origin runs")
    }

    /// Takes the origin down.
    pub(crate) async fn stop(&mut self) {
        self.registry.take().expect("the origin runs").shutdown().await;
    }

    pub(crate) fn registries(&self) -> Arc<Registries> {
        Arc::new(Registries::new(vec![self.config.clone()]).unwrap())
    }

    /// The content of a layer, straight from the origin.
    pub(crate) async fn content(&self, layer: usize, caller: &Caller) -> Bytes {
        let registry = self.registries().get(&self.name);
        let blob = registry.blob(&self.repository, self.digests[layer], 0, caller).await.unwrap();
        blob.body.collect().await.unwrap().to_bytes()
    }
}

pub(crate) struct Running {
    pub(crate) seeder: Seeder,
    pub(crate) shutdown: CancellationToken,
    pub(crate) url: Url,
    pub(crate) metrics: Registry,
}

pub(crate) fn config(directory: &Path) -> SeederConfig {
    SeederConfig {
        listen: any_port(),
        p2p_listen: any_port(),
        data_listen: any_port(),
        data_dir: directory.to_owned(),
        min_free: FreeSpace::Bytes(0),
        piece_length: PieceLength::Fixed(PIECE),
        download_rate: Rate::Unlimited,
        upload_rate: Rate::Unlimited,
        ..SeederConfig::default()
    }
}

pub(crate) fn memory() -> SeederConfig {
    SeederConfig { storage: "memory:".parse().unwrap(), ..config(Path::new("/nonexistent")) }
}

impl Running {
    pub(crate) async fn start(config: SeederConfig, registries: Arc<Registries>) -> Self {
        Self::start_as(config, registries, Membership::Open).await
    }

    /// In a cluster, with one key at both ends of everything.
    pub(crate) async fn start_as(config: SeederConfig, registries: Arc<Registries>, membership: Membership) -> Self {
        let members = MemberTls::new(&membership).unwrap();
        let deps =
            SeederDeps { registries, membership, topology: Topology::default(), encryption: Encryption::Tls, members };
        let (mut metrics, shutdown) = (Registry::default(), CancellationToken::new());
        let seeder = Seeder::start(config, deps, &mut metrics, shutdown.clone()).await.unwrap();
        let url = format!("http://{}", seeder.address()).parse().unwrap();
        Self { seeder, shutdown, url, metrics }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        within(self.seeder.wait()).await;
    }

    pub(crate) fn client(&self) -> SeederClient {
        SeederClient::new(vec![self.url.clone()], &MemberTls::open())
    }

    pub(crate) async fn metainfo(
        &self,
        origin: &Origin,
        layer: usize,
        caller: &Caller,
    ) -> Result<MetainfoStream, SeederError> {
        let digest = origin.digests[layer];
        within(self.client().metainfo(&self.url, digest, &origin.name, &origin.repository, caller)).await
    }

    /// A value of the metrics, by the beginning of its line.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.counted(name).unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// The same of a value that is not there before it is counted.
    pub(crate) fn counted(&self, name: &str) -> Option<f64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
    }

    pub(crate) fn blob_path(&self, origin: &Origin, layer: usize) -> String {
        let encoded = origin.name.to_string().replace(':', "%3A");
        format!("/v1/blobs/{}?registry={encoded}&repository={}", origin.digests[layer], origin.repository)
    }

    pub(crate) async fn get(&self, path: &str, headers: &[(&'static str, &str)]) -> (Response<()>, Bytes) {
        self.send(Method::GET, path, headers).await
    }

    /// One request on a connection of its own, and its whole answer.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> (Response<()>, Bytes) {
        let (response, body) = self.try_send(method, path, headers).await;
        (response, body.unwrap())
    }

    /// As `send`, but the body may break off.
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> (Response<()>, Result<Bytes, hyper::Error>) {
        within(async {
            let stream = TcpStream::connect(self.seeder.address()).await.unwrap();
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            let connection = tokio::spawn(connection);
            let mut request = Request::builder().method(method).uri(path).header("host", "seeder");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
            let (parts, body) = response.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes());
            connection.abort();
            (Response::from_parts(parts, ()), body)
        })
        .await
    }
}

/// A seeder that can be killed: on a runtime of its own, of which nothing runs any more from one moment to the next.
pub(crate) struct Mortal {
    pub(crate) running: Running,
    runtime: tokio::runtime::Runtime,
}

impl Mortal {
    pub(crate) async fn start(config: SeederConfig, origin: &Origin) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let running = runtime.spawn(Running::start(config, origin.registries())).await.unwrap();
        Self { running, runtime }
    }

    pub(crate) fn kill(self) {
        self.runtime.shutdown_background();
    }
}

/// Bytes that a seeder took from another one.
pub(crate) fn followed(running: &Running) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of bytes below 2^53")]
    let bytes = running.metric("eagle_seeder_followed_bytes_total") as u64;
    bytes
}

/// One request with a body.
pub(crate) async fn send(
    running: &Running,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> (Response<()>, Bytes) {
    within(async {
        let stream = TcpStream::connect(running.seeder.address()).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "seeder");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        connection.abort();
        (Response::from_parts(parts, ()), body)
    })
    .await
}

/// Everything that a metainfo stream said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Story {
    pub(crate) geometry: Geometry,
    pub(crate) seeder: PeerInfo,
    pub(crate) hashes: Vec<PieceHash>,
    /// The reason of a failure.
    pub(crate) end: Result<(), String>,
}

pub(crate) async fn story(mut stream: MetainfoStream) -> Story {
    within(async {
        let Some(Ok(Frame::Header { geometry, seeder, .. })) = stream.next().await else { panic!("no header") };
        let mut hashes = Vec::new();
        let end = loop {
            match stream.next().await.expect("an end").unwrap() {
                Frame::Hashes(more) => hashes.extend(more),
                Frame::Complete => break Ok(()),
                Frame::Failed(reason) => break Err(reason),
                other => panic!("{other:?}"),
            }
        };
        Story { geometry, seeder, hashes, end }
    })
    .await
}

pub(crate) fn piece_hashes(content: &[u8]) -> Vec<PieceHash> {
    let geometry = Geometry::new(content.len() as u64, PIECE).unwrap();
    Metainfo::of(Algorithm::Sha256, geometry, content).hashes
}

pub(crate) fn basic(user: &str, password: &str) -> Caller {
    let mut headers = HeaderMap::new();
    let value = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    headers.insert("authorization", HeaderValue::try_from(value).unwrap());
    Caller::of(&headers)
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

/// Polls until the condition holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}
