//! Which images the blobs of a node belong to.
//!
//! Blobs are stored by digest and know nothing of images. So a seeder or proxy notes of each manifest that it
//! serves what it consists of (`table`), bounded and kept across a restart: that tells what is cached, which blobs
//! go with an image that is removed and which are another's too, and what a pin keeps. Blobs whose manifest was never
//! asked for here, or is forgotten, are known by their digest only.
//!
//! A pin holds the blobs of an image as a reader would, so that they are not evicted.

mod report;
pub(crate) mod table;
mod verify;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use eagle_core::Digest;
use eagle_registry::{
    ImageReference, Manifest, Reference, RegistryName, RepositoryName, headers::DOCKER_CONTENT_DIGEST,
};
use eagle_store::{Cache, CachedBlob};
use http::{HeaderMap, header};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::report::{CachedBlobReport, CachedImage, Inspection, Listing, Removed, Verified, VerifiedState};
use self::table::Table;
use crate::durable_file;

/// Blobs of pinned images. Each holds a file open.
const MAX_PINNED_BLOBS: usize = 4096;
/// How often pins are compared with what is stored, and changes are written.
const INTERVAL: Duration = Duration::from_secs(5);
/// Largest file that is read, bytes; the largest that is written has a quarter of it.
const MAX_FILE: u64 = 128 << 20;

/// What the commands of the cache are about: an image, or a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// An image, as for `docker pull`.
    Image(ImageReference),
    /// A blob by its digest.
    Blob(Digest),
}

/// A text that is neither.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("neither an image nor the digest of a blob: {0}")]
pub struct ParseCacheNameError(String);

impl FromStr for Name {
    type Err = ParseCacheNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // As the name of an image a mistyped digest would be a tag of `library/sha256`.
        if text.starts_with("sha256:") || text.starts_with("sha512:") {
            return text.parse().map(Self::Blob).map_err(|error| ParseCacheNameError(format!("{error}")));
        }
        text.parse().map(Self::Image).map_err(|error| ParseCacheNameError(format!("{error}")))
    }
}

/// Why something about the cache is not done.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImagesError {
    /// It is not here.
    #[error("{0} is not known here")]
    Unknown(String),
    /// It is pinned.
    #[error("{0} is pinned; unpin it first")]
    Pinned(String),
    /// It belongs to an image.
    #[error("blob {digest} belongs to {image}; remove that")]
    Used {
        /// The blob.
        digest: Digest,
        /// One of the images.
        image: String,
    },
    /// Blobs have no pins of their own.
    #[error("only images are pinned, not blobs")]
    NotAnImage,
    /// More blobs than are kept open.
    #[error("pinned images would have more than {MAX_PINNED_BLOBS} blobs together")]
    TooMany,
    /// The pin would not survive a restart.
    #[error("the pin cannot be written: {0}")]
    Write(String),
}

/// The images of a node; clones share them.
#[derive(Debug, Clone)]
pub struct Images(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cache: Arc<Cache>,
    file: Option<PathBuf>,
    table: Mutex<Table>,
    /// What pins hold. Also the lock of those who change pins.
    held: tokio::sync::Mutex<HashMap<Digest, CachedBlob>>,
    /// One writer of the file.
    writing: tokio::sync::Mutex<()>,
    /// One blob is verified at a time, which keeps a disk busy.
    verifying: Semaphore,
}

impl Images {
    /// With what the file tells, if there is one; without a file nothing is kept. What is pinned is held when this
    /// returns.
    pub async fn open(cache: Arc<Cache>, file: Option<PathBuf>) -> Self {
        let mut table = Table::new();
        if let Some(path) = file.clone() {
            let shown = path.display().to_string();
            let read = tokio::task::spawn_blocking(move || Table::read(&path, MAX_FILE)).await;
            match read {
                Ok(Ok(read)) => table = read,
                Ok(Err(error)) => {
                    tracing::warn!(path = shown, %error, "which images are cached is not known: the file cannot be used");
                }
                Err(error) => tracing::error!(path = shown, %error, "the images could not be read"),
            }
        }
        let images = Self(Arc::new(Inner {
            cache,
            file,
            table: Mutex::new(table),
            held: tokio::sync::Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            verifying: Semaphore::new(1),
        }));
        images.hold().await;
        images
    }

    /// Notes what a manifest consists of that was served: with its headers, and its body unless it was only asked
    /// about. The digest in the headers was checked.
    pub fn note(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        reference: &Reference,
        headers: &HeaderMap,
        body: Option<&Bytes>,
    ) {
        let text = |name: &header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let said = reference.digest().or_else(|| text(&DOCKER_CONTENT_DIGEST)?.parse().ok());
        let Some(digest) = said.or_else(|| body.map(|body| Digest::of(body))) else { return };
        let image = ImageReference {
            registry: registry.clone(),
            repository: repository.clone(),
            reference: Reference::Digest(digest),
        };
        let mut table = self.table();
        if let Some(body) = body
            && !table.use_image(&image)
            && let Ok(manifest) = Manifest::parse(body, text(&header::CONTENT_TYPE))
        {
            table.put_manifest(image.clone(), &manifest);
        }
        if let Reference::Tag(_) = reference {
            table.put_tag(ImageReference { reference: reference.clone(), ..image }, digest);
        }
    }

    /// All images, and all blobs.
    pub fn list(&self) -> Listing {
        let stored: HashMap<Digest, _> = self.0.cache.list().into_iter().map(|entry| (entry.digest, entry)).collect();
        let table = self.table();
        let images: Vec<CachedImage> =
            table.shown().into_iter().filter_map(|image| CachedImage::of(&table, &image, &stored)).collect();
        let users = table.users();
        let pinned = table.pinned_blobs();
        let blobs = self.0.cache.list().into_iter().map(|entry| CachedBlobReport {
            images: users
                .get(&entry.digest)
                .map_or_else(Vec::new, |images| images.iter().map(ToString::to_string).collect()),
            pinned: pinned.contains(&entry.digest),
            digest: entry.digest,
            size: entry.size,
            complete: entry.complete,
            present: true,
        });
        Listing { images, blobs: blobs.collect() }
    }

    /// What is known of an image and its blobs, or of a blob.
    ///
    /// # Errors
    /// When it is not known here.
    pub fn inspect(&self, name: &Name) -> Result<Inspection, ImagesError> {
        let unknown = |name: &dyn std::fmt::Display| ImagesError::Unknown(name.to_string());
        let listing = self.list();
        match name {
            Name::Blob(digest) => {
                let blob = listing.blobs.into_iter().find(|blob| blob.digest == *digest);
                Ok(Inspection { image: None, blobs: vec![blob.ok_or_else(|| unknown(digest))?] })
            }
            Name::Image(image) => {
                let stored: HashMap<Digest, _> =
                    self.0.cache.list().into_iter().map(|entry| (entry.digest, entry)).collect();
                let table = self.table();
                let report = CachedImage::of(&table, image, &stored).ok_or_else(|| unknown(image))?;
                let users = table.users();
                let pinned = table.pinned_blobs();
                let blobs = table.blobs(image).into_iter().map(|(digest, size)| {
                    let entry = stored.get(&digest);
                    CachedBlobReport {
                        digest,
                        size,
                        complete: entry.is_some_and(|entry| entry.complete),
                        present: entry.is_some(),
                        pinned: pinned.contains(&digest),
                        images: users
                            .get(&digest)
                            .map_or_else(Vec::new, |images| images.iter().map(ToString::to_string).collect()),
                    }
                });
                Ok(Inspection { blobs: blobs.collect(), image: Some(report) })
            }
        }
    }

    /// Removes an image with the blobs that no other one needs, or a blob that none needs. Trackers are told by whoever
    /// follows what leaves the cache. Who reads a blob at this moment reads it to its end.
    ///
    /// # Errors
    /// When it is not known, pinned, or a blob of an image.
    pub async fn remove(&self, name: &Name) -> Result<Removed, ImagesError> {
        // Nobody pins it meanwhile.
        let _held = self.0.held.lock().await;
        let (image, candidates, shared) = match name {
            Name::Blob(digest) => {
                if let Some(images) = self.table().users().get(digest)
                    && let Some(image) = images.first()
                {
                    return Err(ImagesError::Used { digest: *digest, image: image.to_string() });
                }
                (None, vec![*digest], Vec::new())
            }
            Name::Image(image) => {
                let mut table = self.table();
                if !table.knows(image) {
                    return Err(ImagesError::Unknown(image.to_string()));
                }
                if table.is_pinned(image) {
                    return Err(ImagesError::Pinned(image.to_string()));
                }
                let blobs: Vec<Digest> = table.blobs(image).into_iter().map(|(digest, _)| digest).collect();
                table.remove(image);
                let users = table.users();
                let (shared, alone) = blobs.into_iter().partition(|digest| users.contains_key(digest));
                (Some(image.clone()), alone, shared)
            }
        };
        let sizes: HashMap<Digest, u64> =
            self.0.cache.list().into_iter().map(|entry| (entry.digest, entry.size)).collect();
        let mut removed = Removed { image, removed: Vec::new(), bytes: 0, shared };
        for digest in candidates {
            if self.0.cache.remove(digest).await {
                removed.bytes += sizes.get(&digest).copied().unwrap_or(0);
                removed.removed.push(digest);
            }
        }
        if let Name::Blob(digest) = name
            && removed.removed.is_empty()
        {
            return Err(ImagesError::Unknown(digest.to_string()));
        }
        tracing::info!(
            image = removed.image.as_ref().map(tracing::field::display),
            blobs = removed.removed.len(),
            bytes = removed.bytes,
            "removed from the cache"
        );
        if let Err(error) = self.write().await {
            tracing::warn!(%error, "which images are cached cannot be written");
        }
        Ok(removed)
    }

    /// Pins an image, or takes the pin away. What a pinned image has that is not stored yet is pinned when it comes.
    ///
    /// # Errors
    /// When it is not known, is a blob, or has too many blobs, or when the pin would not survive a restart.
    pub async fn pin(&self, name: &Name, pinned: bool) -> Result<Inspection, ImagesError> {
        let Name::Image(image) = name else { return Err(ImagesError::NotAnImage) };
        {
            let mut table = self.table();
            if !table.knows(image) {
                return Err(ImagesError::Unknown(image.to_string()));
            }
            table.set_pinned(image, pinned);
            if pinned && table.pinned_blobs().len() > MAX_PINNED_BLOBS {
                table.set_pinned(image, false);
                return Err(ImagesError::TooMany);
            }
        }
        self.hold().await;
        self.write().await.map_err(|error| ImagesError::Write(error.to_string()))?;
        self.inspect(name)
    }

    /// Reads a blob and compares it with its digest; one that differs is removed.
    pub async fn verify(&self, digest: Digest) -> Verified {
        let _permit = self.0.verifying.acquire().await;
        verify::verify(&self.0.cache, digest).await
    }

    /// Holds what is pinned as it comes, and writes what changes, until `stop`; then once more.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let ends = stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none();
            if !ends {
                self.hold().await;
            }
            if self.table().take_changed()
                && let Err(error) = self.write().await
            {
                tracing::warn!(%error, "which images are cached cannot be written; a restart forgets some");
            }
            if ends {
                // Held files must not keep the cache from settling.
                self.0.held.lock().await.clear();
                return;
            }
        }
    }

    /// Holds the blobs of pinned images that are stored, and no others.
    async fn hold(&self) {
        let mut held = self.0.held.lock().await;
        let wanted: HashSet<Digest> = self.table().pinned_blobs();
        held.retain(|digest, _| wanted.contains(digest) && self.0.cache.contains(*digest));
        for digest in wanted {
            if held.len() < MAX_PINNED_BLOBS
                && !held.contains_key(&digest)
                && self.0.cache.contains(digest)
                && let Some(blob) = self.0.cache.get(digest).await
            {
                held.insert(digest, blob);
            }
        }
    }

    async fn write(&self) -> std::io::Result<()> {
        let Some(path) = self.0.file.clone() else { return Ok(()) };
        let _writing = self.0.writing.lock().await;
        let bytes = {
            let mut table = self.table();
            // A failed write is made up for by the next change.
            table.take_changed();
            table.to_json()?
        };
        let written = tokio::task::spawn_blocking(move || durable_file::replace(&path, &bytes)).await;
        written.map_err(|error| std::io::Error::other(error.to_string()))?
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is whole between any two operations, so a panic elsewhere leaves it usable.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
