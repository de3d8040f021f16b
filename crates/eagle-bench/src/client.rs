//! Pulls as a container runtime does them: the manifest, then the blobs, every digest checked while the bytes
//! pass by. Nothing is kept.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use eagle_core::Digest;
use eagle_registry::{
    Caller, ForwardRequest, ImageReference, Manifest, Reference, Registry,
    manifest::{MAX_MANIFEST_SIZE, MEDIA_TYPES},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::de::DeserializeOwned;
use url::Url;

/// Blobs fetched at once; docker and containerd fetch three.
const CONCURRENT_BLOBS: usize = 3;
/// A pull that receives nothing for so long has failed. Runtimes wait longer, a benchmark need not.
const STALL: Duration = Duration::from_secs(60);
/// Deadline of a question to one of our own processes.
const QUESTION: Duration = Duration::from_secs(10);
/// Largest answer to such a question, bytes: the status of a node with some thousand peers.
const MAX_ANSWER: usize = 16 << 20;
/// Bytes of an error body that go into an error.
const MAX_ERROR: usize = 4096;

/// How far a pull is; read by the display while it runs.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    bytes: AtomicU64,
    manifest: OnceLock<Duration>,
    first_byte: OnceLock<Duration>,
}

impl Progress {
    /// A pull that starts now.
    pub(crate) fn start() -> Self {
        Self {
            started: Instant::now(),
            bytes: AtomicU64::new(0),
            manifest: OnceLock::new(),
            first_byte: OnceLock::new(),
        }
    }

    /// Since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Bytes of blobs that arrived.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// From the start to the manifest of the image, read and checked.
    pub(crate) fn manifest(&self) -> Option<Duration> {
        self.manifest.get().copied()
    }

    /// From the start to the first byte of a blob.
    pub(crate) fn first_byte(&self) -> Option<Duration> {
        self.first_byte.get().copied()
    }

    fn arrived(&self, bytes: u64) {
        self.first_byte.get_or_init(|| self.started.elapsed());
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Where a pull goes.
#[derive(Debug, Clone)]
pub(crate) enum Route {
    /// To the registry itself, with its authentication and redirects.
    Registry(Arc<Registry>),
    /// Through a proxy, as containerd speaks to a mirror.
    Mirror(Box<Mirror>),
}

/// A proxy and connections to it; clones share the connections.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    base: Url,
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Mirror {
    /// The proxy at `base`, as in `http://127.0.0.1:43002`, over connections of its own.
    pub(crate) fn new(base: Url) -> Self {
        Self { base, client: http_client() }
    }

    /// Time from a request for a blob to its first byte; the rest is not read.
    ///
    /// # Errors
    /// When there is no answer, or an empty one.
    pub(crate) async fn first_byte(&self, image: &ImageReference, digest: Digest) -> Result<Duration> {
        let started = Instant::now();
        let mut body = self.get(image, &format!("blobs/{digest}"), HeaderMap::new()).await?.into_body();
        let frame = tokio::time::timeout(STALL, body.frame()).await.context("nothing arrived")?;
        frame.context("the blob is empty")?.context("the blob broke off")?;
        Ok(started.elapsed())
    }

    async fn get(&self, image: &ImageReference, path: &str, headers: HeaderMap) -> Result<Response<Incoming>> {
        let mut url = self.base.join(&format!("v2/{}/{path}", image.repository))?;
        // How containerd tells a mirror which registry is meant.
        url.query_pairs_mut().append_pair("ns", image.registry.as_str());
        let mut request = Request::get(url.as_str()).body(Empty::new())?;
        *request.headers_mut() = headers;
        let response = tokio::time::timeout(STALL, self.client.request(request)).await;
        let response = response.with_context(|| format!("{url} did not answer in time"))?;
        let response = response.with_context(|| format!("{url} did not answer"))?;
        refuse_errors(&url, response).await
    }
}

impl Route {
    /// The manifest of the image, of the variant for linux/amd64 where there are several.
    ///
    /// # Errors
    /// What failed; also when a digest is wrong.
    pub(crate) async fn resolve(&self, image: &ImageReference) -> Result<Manifest> {
        let manifest = self.manifest(image, &image.reference).await?;
        if !manifest.is_index() {
            return Ok(manifest);
        }
        let variant = manifest
            .manifests
            .iter()
            .find(|variant| variant.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == "amd64"))
            .with_context(|| format!("{image} has no variant for linux/amd64"))?;
        self.manifest(image, &Reference::Digest(variant.digest)).await
    }

    /// A whole pull: everything that the image consists of.
    ///
    /// # Errors
    /// What failed, and of which manifest or blob; also when a digest is wrong.
    pub(crate) async fn pull(&self, image: &ImageReference, progress: &Progress) -> Result<()> {
        let manifest = self.resolve(image).await?;
        progress.manifest.get_or_init(|| progress.elapsed());
        // Layers may repeat; a runtime fetches each content once.
        let blobs: BTreeMap<Digest, u64> =
            manifest.blobs.iter().filter(|blob| !blob.is_foreign()).map(|blob| (blob.digest, blob.size)).collect();
        stream::iter(blobs)
            .map(|(digest, size)| self.blob(image, digest, size, progress))
            .buffer_unordered(CONCURRENT_BLOBS)
            .try_collect()
            .await
    }

    /// A blob, checked against its size and digest.
    ///
    /// # Errors
    /// What failed; also when the content is not what the digest says.
    pub(crate) async fn blob(
        &self,
        image: &ImageReference,
        digest: Digest,
        size: u64,
        progress: &Progress,
    ) -> Result<()> {
        let what = || format!("blob {} of {}", digest.short(), image.repository);
        match self {
            Self::Registry(registry) => {
                let blob = registry.blob(&image.repository, digest, 0, &Caller::default()).await.with_context(what)?;
                verify(blob.body, digest, size, progress).await
            }
            Self::Mirror(mirror) => {
                let response = mirror.get(image, &format!("blobs/{digest}"), HeaderMap::new()).await?;
                verify(response.into_body(), digest, size, progress).await
            }
        }
        .with_context(what)
    }

    async fn manifest(&self, image: &ImageReference, reference: &Reference) -> Result<Manifest> {
        let what = || format!("manifest {reference} of {}", image.repository);
        let path = format!("manifests/{reference}");
        let accept = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_str(&MEDIA_TYPES.join(", "))?)]);
        let (headers, body) = match self {
            Self::Registry(registry) => {
                let path = format!("{}/{path}", image.repository);
                let request = ForwardRequest::new(Method::GET, path, accept)?;
                let response = registry.forward(request, &Caller::default()).await.with_context(what)?;
                let response = refuse_errors(&what(), response).await?;
                let (head, body) = response.into_parts();
                (head.headers, collect(body, MAX_MANIFEST_SIZE, STALL).await)
            }
            Self::Mirror(mirror) => {
                let (head, body) = mirror.get(image, &path, accept).await.with_context(what)?.into_parts();
                (head.headers, collect(body, MAX_MANIFEST_SIZE, STALL).await)
            }
        };
        let body = body.with_context(what)?;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let stated = text("docker-content-digest").and_then(|digest| digest.parse().ok());
        for expected in [reference.digest(), stated].into_iter().flatten() {
            let mut hasher = expected.hasher();
            hasher.update(&body);
            ensure!(hasher.finish() == expected, "{} does not have the digest {expected}", what());
        }
        Manifest::parse(&body, text("content-type")).with_context(what)
    }
}

/// Reads a body to its end. The hash of a chunk (64 KiB: 40 us) is taken where it arrives: handing it to
/// another thread costs about as much, and here nothing else waits on this one.
async fn verify<B>(mut body: B, digest: Digest, size: u64, progress: &Progress) -> Result<()>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let mut hasher = digest.hasher();
    let mut received = 0u64;
    loop {
        let frame = tokio::time::timeout(STALL, body.frame()).await;
        let frame = frame.map_err(|_| anyhow!("nothing arrived for {} s, at byte {received}", STALL.as_secs()))?;
        let Some(frame) = frame else { break };
        let frame = frame.with_context(|| format!("broke off at byte {received} of {size}"))?;
        let Ok(data) = frame.into_data() else { continue };
        received += u64::try_from(data.len())?;
        ensure!(received <= size, "is longer than the {size} bytes of its manifest");
        progress.arrived(u64::try_from(data.len())?);
        hasher.update(&data);
    }
    ensure!(received == size, "ended after {received} of {size} bytes");
    let actual = hasher.finish();
    ensure!(actual == digest, "has the wrong content: its digest is {actual}");
    Ok(())
}

async fn collect<B>(body: B, limit: usize, deadline: Duration) -> Result<Bytes>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let collected = tokio::time::timeout(deadline, Limited::new(body, limit).collect()).await;
    Ok(collected.context("did not end in time")?.map_err(|error| anyhow!(error))?.to_bytes())
}

/// The response if it is one of success.
///
/// # Errors
/// Its status and the beginning of its body otherwise.
pub(crate) async fn refuse_errors<B>(what: &impl std::fmt::Display, response: Response<B>) -> Result<Response<B>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(response);
    }
    let body = collect(response.into_body(), MAX_ERROR, QUESTION).await.unwrap_or_default();
    bail!("{what}: answered {status}: {}", String::from_utf8_lossy(&body).trim())
}

fn http_client() -> Client<HttpConnector, Empty<Bytes>> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(QUESTION));
    Client::builder(TokioExecutor::new()).build(connector)
}

/// Tells one of our own processes something.
///
/// # Errors
/// When it does not answer, or with something else.
pub(crate) async fn put_json(address: SocketAddr, path: &str, body: &serde_json::Value) -> Result<serde_json::Value> {
    let url: Url = format!("http://{address}{path}").parse()?;
    let request = Request::put(url.as_str()).body(Full::new(Bytes::from(body.to_string())))?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let response = tokio::time::timeout(QUESTION, client.request(request)).await;
    let response = response.with_context(|| format!("{url} did not answer in time"))?;
    let response = refuse_errors(&url, response.with_context(|| format!("{url} did not answer"))?).await?;
    let body = collect(response.into_body(), MAX_ANSWER, QUESTION).await.with_context(|| url.to_string())?;
    serde_json::from_slice(&body).with_context(|| format!("{url} answered something else"))
}

/// Asks one of our own processes.
///
/// # Errors
/// When it does not answer, or with something else.
pub(crate) async fn get_json<T: DeserializeOwned>(address: SocketAddr, path: &str) -> Result<T> {
    let url: Url = format!("http://{address}{path}").parse()?;
    let request = Request::get(url.as_str()).body(Empty::new())?;
    let response = tokio::time::timeout(QUESTION, http_client().request(request)).await;
    let response = response.with_context(|| format!("{url} did not answer in time"))?;
    let response = refuse_errors(&url, response.with_context(|| format!("{url} did not answer"))?).await?;
    let body = collect(response.into_body(), MAX_ANSWER, QUESTION).await.with_context(|| url.to_string())?;
    serde_json::from_slice(&body).with_context(|| format!("{url} answered something else"))
}
