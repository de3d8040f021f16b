//! One job: what its images consist of, and every blob of that.

use std::{collections::HashSet, time::Duration};

use eagle_core::Digest;
use eagle_registry::{Descriptor, ImageReference, Manifest, Reference, Tag};
use futures::StreamExt;
use jiff::Timestamp;

use super::{
    node_target::NodeTarget,
    nodes::{WarmBlob, WarmManifest},
    queue::{Handle, Inner},
    report::{BlobKind, BlobReport, BlobState, ImageReport, JobState},
    sources::{Answer, Problem},
};

/// Blobs of a job fetched at a time: enough to keep a link busy, and as many as docker and containerd pull
/// (3), so that pulls beside it are not pushed aside.
const BLOBS_AT_ONCE: usize = 4;
/// How often a manifest or blob is tried.
const ATTEMPTS: u32 = 4;
/// Pause after the first failure; doubled after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How deep indexes may lie in each other: one is usual, two are seen.
const MAX_DEPTH: u32 = 3;
/// Blobs and manifests of one job.
const MAX_ENTRIES: usize = 20_000;

/// Does a job to its end, or until it is cancelled.
pub(super) async fn run(inner: &Inner, handle: &Handle) {
    let (id, images) = {
        let mut job = handle.job();
        job.state = JobState::Running;
        job.started = Some(Timestamp::now());
        (job.id.clone(), job.images.len())
    };
    inner.changed();
    tracing::info!(job = %id, images, "preheating begins");
    let work = async {
        for index in 0..images {
            image(inner, handle, index).await;
            inner.changed();
        }
        nodes(inner, handle).await;
    };
    if handle.cancel.run_until_cancelled(work).await.is_none() {
        handle.end_cancelled();
    } else {
        let mut job = handle.job();
        let failed = job.error.is_some()
            || job.images.iter().any(|image| image.state == JobState::Failed)
            || job.node_reports.iter().any(|node| node.state == JobState::Failed);
        job.state = if failed { JobState::Failed } else { JobState::Succeeded };
        job.ended = Some(Timestamp::now());
    }
    let job = handle.job();
    let totals = job.totals();
    tracing::info!(job = %id, state = job.state.name(), blobs = totals.blobs, failed = totals.failed, bytes = totals.received_bytes, "preheating ended");
}

/// The images of a job, changed in place.
struct Progress<'a> {
    handle: &'a Handle,
    image: usize,
}

impl Progress<'_> {
    fn image(&self, change: impl FnOnce(&mut ImageReport)) {
        if let Some(image) = self.handle.job().images.get_mut(self.image) {
            change(image);
        }
    }

    fn blob(&self, index: usize, change: impl FnOnce(&mut BlobReport)) {
        self.image(|image| {
            if let Some(blob) = image.blobs.get_mut(index) {
                change(blob);
            }
        });
    }

    /// Adds an entry; its number.
    fn add(&self, blob: BlobReport) -> Result<usize, Problem> {
        let mut job = self.handle.job();
        if job.entries() >= MAX_ENTRIES {
            return Err(Problem::lasting(format!(
                "the job names more than {MAX_ENTRIES} blobs; ask for fewer images at a time"
            )));
        }
        let image = job.images.get_mut(self.image).ok_or_else(|| Problem::lasting("the image is gone"))?;
        image.blobs.push(blob);
        Ok(image.blobs.len() - 1)
    }
}

async fn image(inner: &Inner, handle: &Handle, index: usize) {
    let progress = Progress { handle, image: index };
    progress.image(|image| image.state = JobState::Running);
    let problem = warm(inner, &progress).await.err();
    progress.image(|image| {
        let failed = problem.is_some() || image.blobs.iter().any(|blob| blob.state == BlobState::Failed);
        image.state = if failed { JobState::Failed } else { JobState::Succeeded };
        image.error = problem.map(|problem| problem.message);
        if failed {
            tracing::warn!(image = %image.image, error = image.error, "an image could not be warmed wholly");
        }
    });
}

async fn warm(inner: &Inner, progress: &Progress<'_>) -> Result<(), Problem> {
    let blobs = resolve(inner, progress).await?;
    let image = {
        let job = progress.handle.job();
        job.images.get(progress.image).map(|image| image.image.clone())
    };
    let Some(image) = image else { return Ok(()) };
    futures::stream::iter(blobs)
        .for_each_concurrent(BLOBS_AT_ONCE, |(entry, digest)| blob(inner, progress, &image, entry, digest))
        .await;
    Ok(())
}

/// Reads the manifests of an image; the places and digests of the blobs that are to be fetched.
async fn resolve(inner: &Inner, progress: &Progress<'_>) -> Result<Vec<(usize, Digest)>, Problem> {
    let (image, platforms) = {
        let job = progress.handle.job();
        let image = job.images.get(progress.image).ok_or_else(|| Problem::lasting("the image is gone"))?;
        (image.image.clone(), job.platforms.clone())
    };
    let (mut manifests, mut blobs) = (HashSet::new(), HashSet::new());
    let mut wanted = Vec::new();
    let top = manifest(inner, &image).await?;
    progress.image(|image| image.digest = Some(top.answer.digest));
    let mut pending = vec![(top, 0)];
    while let Some((Tried { answer, attempts }, depth)) = pending.pop() {
        if !manifests.insert(answer.digest) {
            continue;
        }
        let Answer { digest, size, source, manifest: Manifest { blobs: named, manifests: below, .. } } = answer;
        let kind = if below.is_empty() { BlobKind::Manifest } else { BlobKind::Index };
        let report = BlobReport::new(digest, kind, size);
        progress.add(BlobReport {
            state: BlobState::Stored,
            received: size,
            source: Some(source),
            attempts,
            ..report
        })?;
        inner.metrics.blob(BlobState::Stored);
        for (number, descriptor) in named.iter().enumerate().filter(|(_, descriptor)| blobs.insert(descriptor.digest)) {
            let report = BlobReport::new(descriptor.digest, kind_of(number, descriptor), descriptor.size);
            if descriptor.is_foreign() {
                progress.add(BlobReport { state: BlobState::Skipped, ..report })?;
                inner.metrics.blob(BlobState::Skipped);
            } else {
                wanted.push((progress.add(report)?, descriptor.digest));
            }
        }
        // An index within an index names its platforms itself.
        let chosen: Vec<&Descriptor> =
            below.iter().filter(|descriptor| platforms.wants(descriptor) || is_index(descriptor)).collect();
        if chosen.is_empty() && !below.is_empty() {
            return Err(Problem::lasting(format!(
                "{digest} has nothing for {platforms}; it is for {}",
                offered(&below)
            )));
        }
        if depth >= MAX_DEPTH && !chosen.is_empty() {
            return Err(Problem::lasting(format!("indexes lie more than {MAX_DEPTH} deep in each other at {digest}")));
        }
        for descriptor in chosen {
            let child = ImageReference { reference: Reference::Digest(descriptor.digest), ..image.clone() };
            match manifest(inner, &child).await {
                Ok(tried) => pending.push((tried, depth + 1)),
                Err(problem) => {
                    let report = BlobReport::new(descriptor.digest, BlobKind::Manifest, descriptor.size);
                    let error = Some(problem.message);
                    progress.add(BlobReport { state: BlobState::Failed, error, attempts: 1, ..report })?;
                    inner.metrics.blob(BlobState::Failed);
                }
            }
        }
    }
    Ok(wanted)
}

/// A manifest, and the number of tries that it took.
struct Tried {
    answer: Answer,
    attempts: u32,
}

async fn manifest(inner: &Inner, image: &ImageReference) -> Result<Tried, Problem> {
    let mut attempts = 1;
    loop {
        match inner.sources.manifest(image).await {
            Ok(answer) => return Ok(Tried { answer, attempts }),
            Err(problem) if problem.is_transient && attempts < ATTEMPTS => pause(attempts).await,
            Err(problem) => return Err(problem),
        }
        attempts += 1;
    }
}

async fn blob(inner: &Inner, progress: &Progress<'_>, image: &ImageReference, entry: usize, digest: Digest) {
    for attempt in 1..=ATTEMPTS {
        progress.blob(entry, |blob| {
            blob.state = BlobState::Fetching;
            blob.attempts = attempt;
        });
        let received = |bytes| progress.blob(entry, |blob| blob.received = bytes);
        match inner.sources.blob(digest, &image.registry, &image.repository, received).await {
            Ok(obtained) => {
                progress.blob(entry, |blob| {
                    blob.state = BlobState::Stored;
                    // A manifest may have been wrong about it.
                    blob.size = obtained.size;
                    blob.received = obtained.size;
                    blob.source = Some(obtained.source);
                    blob.error = None;
                });
                return inner.metrics.blob(BlobState::Stored);
            }
            Err(problem) => {
                let again = problem.is_transient && attempt < ATTEMPTS;
                progress.blob(entry, |blob| {
                    blob.error = Some(problem.message);
                    if !again {
                        blob.state = BlobState::Failed;
                        blob.received = 0;
                    }
                });
                if !again {
                    return inner.metrics.blob(BlobState::Failed);
                }
                pause(attempt).await;
            }
        }
    }
}

/// Waits before the next try, longer after each and never quite the same, so that what failed together is not
/// tried together.
async fn pause(attempt: u32) {
    let jitter = 0.75 + rand::random::<f64>() / 2.0;
    tokio::time::sleep((FIRST_PAUSE * (1 << (attempt - 1).min(5))).mul_f64(jitter)).await;
}

fn kind_of(number: usize, descriptor: &Descriptor) -> BlobKind {
    let is_layer = descriptor.media_type.contains("layer") || descriptor.media_type.contains("rootfs");
    if number == 0 && !is_layer { BlobKind::Config } else { BlobKind::Layer }
}

fn is_index(descriptor: &Descriptor) -> bool {
    descriptor.media_type.contains(".index.") || descriptor.media_type.contains("manifest.list")
}

/// The platforms of an index, for an error.
fn offered(manifests: &[Descriptor]) -> String {
    let names: Vec<String> = manifests
        .iter()
        .filter_map(|descriptor| descriptor.platform.as_ref())
        .map(|platform| format!("{}/{}", platform.os, platform.architecture))
        .collect();
    if names.is_empty() { "no platform".to_owned() } else { names.join(", ") }
}

/// The tag of an image, in whatever way it was named.
fn tag(image: &ImageReport) -> Option<Tag> {
    let named = image.named.as_ref().and_then(|named| named.parse::<ImageReference>().ok());
    [Some(&image.image), named.as_ref()].into_iter().flatten().find_map(|image| match &image.reference {
        Reference::Tag(tag) => Some(tag.clone()),
        Reference::Digest(_) => None,
    })
}

/// Has nodes fetch what the seeders have now.
async fn nodes(inner: &Inner, handle: &Handle) {
    let (id, target, blobs) = {
        let job = handle.job();
        let mut seen = HashSet::new();
        let stored = job.images.iter().flat_map(|image| image.blobs.iter().map(move |blob| (image, blob)));
        let blobs: Vec<WarmBlob> = stored
            .filter(|(_, blob)| blob.state == BlobState::Stored)
            .filter(|(_, blob)| seen.insert(blob.digest))
            .map(|(image, blob)| WarmBlob {
                digest: blob.digest,
                size: blob.size,
                registry: image.image.registry.clone(),
                repository: image.image.repository.clone(),
                manifest: matches!(blob.kind, BlobKind::Index | BlobKind::Manifest)
                    .then(|| WarmManifest { tag: tag(image).filter(|_| image.digest == Some(blob.digest)) }),
            })
            .collect();
        (job.id.clone(), job.nodes, blobs)
    };
    if target == NodeTarget::None || blobs.is_empty() {
        return;
    }
    let problem = inner.nodes.warm(id, blobs, target, |reports| handle.job().node_reports = reports).await.err();
    if let Some(problem) = problem {
        handle.job().error.get_or_insert(problem);
    }
}
