//! A pull as a container runtime does it: the manifest by its tag, then the configuration and the layers, a few at a
//! time, every digest checked while the bytes pass by. Nothing is kept.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use eagle_core::Digest;
use eagle_registry::{
    Manifest,
    manifest::{MAX_MANIFEST_SIZE, MEDIA_TYPES},
};
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::sync::mpsc;
use url::Url;

/// Blobs fetched at once; docker and containerd fetch three.
const CONCURRENT_BLOBS: usize = 3;
/// Chunks on their way from a connection to its hasher.
const HASH_QUEUE: usize = 16;
/// A pull that receives nothing for so long has failed.
const STALL: Duration = Duration::from_secs(60);

/// The image to pull, as its URL paths name it.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Registry behind the mirror (`?ns=` of containerd).
    pub(super) registry: String,
    pub(super) repository: String,
    /// A tag or a digest.
    pub(super) reference: String,
}

/// A blob of the image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// How far one node's pull is; read by the display while the pull runs.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes of blobs that arrived.
    bytes: AtomicU64,
    /// Bytes of all blobs; 0 while the manifest is not known.
    total: AtomicU64,
    outcome: Mutex<Outcome>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    first_byte: Option<Duration>,
    elapsed: Option<Duration>,
}

impl Progress {
    /// Bytes of all blobs; at least 1.
    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed).max(1)
    }

    /// From the start of the pull to the first byte of a blob.
    pub(super) fn first_byte(&self) -> Option<Duration> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).first_byte
    }

    /// From the start of the pull to its end; `None` while it runs.
    pub(super) fn elapsed(&self) -> Option<Duration> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).elapsed
    }

    /// Bytes of blobs that arrived so far.
    pub(super) fn delivered(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn update(&self, change: impl FnOnce(&mut Outcome)) {
        change(&mut self.outcome.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A mirror, spoken to as a runtime does.
#[derive(Debug, Clone)]
pub(super) struct Mirror {
    base: Url,
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Mirror {
    /// The mirror at `base`, as in `http://127.0.0.1:43002`.
    pub(super) fn new(base: Url) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { base, client: Client::builder(TokioExecutor::new()).build(connector) }
    }

    /// Pulls the whole image.
    ///
    /// # Errors
    /// What failed and of which manifest or blob; also when a digest does not match.
    pub(super) async fn pull(&self, target: &Target, progress: &Progress) -> Result<Vec<Blob>> {
        let start = Instant::now();
        let blobs = self.resolve(target).await?;
        progress.total.store(blobs.iter().map(|blob| blob.size).sum(), Ordering::Relaxed);
        stream::iter(blobs.iter().copied())
            .map(|blob| self.blob(target, blob, start, progress))
            .buffer_unordered(CONCURRENT_BLOBS)
            .try_collect::<()>()
            .await?;
        progress.update(|outcome| outcome.elapsed = Some(start.elapsed()));
        Ok(blobs)
    }

    /// The configuration and layers of the image, each blob once.
    async fn resolve(&self, target: &Target) -> Result<Vec<Blob>> {
        let mut manifest = self.manifest(target, &target.reference).await?;
        if manifest.is_index() {
            let architecture = match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            };
            let child = manifest.manifests.iter().find(|child| {
                child.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture)
            });
            let child = child.with_context(|| format!("the image has no variant for linux/{architecture}"))?;
            manifest = self.manifest(target, &child.digest.to_string()).await?;
        }
        let mut blobs: Vec<Blob> = Vec::new();
        for blob in manifest.blobs {
            // Layers may repeat; a runtime fetches each content once.
            if blobs.iter().all(|known| known.digest != blob.digest) {
                blobs.push(Blob { digest: blob.digest, size: blob.size });
            }
        }
        ensure!(!blobs.is_empty(), "the manifest of {}:{} names no blobs", target.repository, target.reference);
        Ok(blobs)
    }

    async fn manifest(&self, target: &Target, reference: &str) -> Result<Manifest> {
        let what = || format!("manifest {} of {}", reference, target.repository);
        let response = self.get(target, &format!("manifests/{reference}"), true).await.with_context(what)?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (stated, content_type) = (header("docker-content-digest"), header("content-type"));
        let body = Limited::new(response.into_body(), MAX_MANIFEST_SIZE).collect();
        let body = tokio::time::timeout(STALL, body).await.with_context(what)?;
        let body = body.map_err(|error| anyhow::anyhow!(error)).with_context(what)?.to_bytes();
        for expected in [Some(reference), stated.as_deref()].into_iter().flatten() {
            if let Ok(expected) = expected.parse::<Digest>() {
                let mut hasher = expected.hasher();
                hasher.update(&body);
                ensure!(hasher.finish() == expected, "{} does not have the digest {expected}", what());
            }
        }
        Manifest::parse(&body, content_type.as_deref()).with_context(what)
    }

    async fn blob(&self, target: &Target, blob: Blob, start: Instant, progress: &Progress) -> Result<()> {
        let what = || format!("blob {} of {}", blob.digest.short(), target.repository);
        let response = self.get(target, &format!("blobs/{}", blob.digest), false).await.with_context(what)?;
        let (chunks, mut received) = mpsc::channel::<Bytes>(HASH_QUEUE);
        let digest = blob.digest;
        let hashing = tokio::task::spawn_blocking(move || {
            let mut hasher = digest.hasher();
            while let Some(chunk) = received.blocking_recv() {
                hasher.update(&chunk);
            }
            hasher.finish()
        });
        let mut body = response.into_body();
        let mut size = 0u64;
        while let Some(frame) = tokio::time::timeout(STALL, body.frame()).await.with_context(what)? {
            let Ok(data) = frame.with_context(what)?.into_data() else { continue };
            let length = u64::try_from(data.len())?;
            size += length;
            ensure!(size <= blob.size, "{} is longer than the {} bytes of its manifest", what(), blob.size);
            progress.update(|outcome| {
                outcome.first_byte.get_or_insert_with(|| start.elapsed());
            });
            progress.bytes.fetch_add(length, Ordering::Relaxed);
            chunks.send(data).await.context("the hasher ended early")?;
        }
        drop(chunks);
        ensure!(size == blob.size, "{} ended after {size} of {} bytes", what(), blob.size);
        ensure!(hashing.await? == blob.digest, "{} does not have its digest", what());
        Ok(())
    }

    async fn get(&self, target: &Target, path: &str, manifest: bool) -> Result<Response<Incoming>> {
        let mut url = self.base.join(&format!("v2/{}/{path}", target.repository))?;
        url.query_pairs_mut().append_pair("ns", &target.registry);
        let mut request = Request::get(url.as_str()).body(Empty::new())?;
        if manifest {
            request.headers_mut().insert(header::ACCEPT, HeaderValue::from_str(&MEDIA_TYPES.join(", "))?);
        }
        let response =
            tokio::time::timeout(STALL, self.client.request(request)).await.context("no answer in time")??;
        if response.status() != StatusCode::OK {
            let status = response.status();
            let body = Limited::new(response.into_body(), 4096)
                .collect()
                .await
                .map(|body| body.to_bytes())
                .unwrap_or_default();
            bail!("{url} answered {status}: {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(response)
    }
}
