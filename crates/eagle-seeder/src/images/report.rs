//! What is told about the cache.

use std::collections::HashMap;

use eagle_core::Digest;
use eagle_registry::ImageReference;
use eagle_store::cache::CacheEntry;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::table::Table;

/// All that is cached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The images, in the order of their names.
    pub images: Vec<CachedImage>,
    /// The blobs, the least recently used first.
    pub blobs: Vec<CachedBlobReport>,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedImage {
    /// Its name.
    pub image: ImageReference,
    /// What the name stands for.
    pub digest: Digest,
    /// Blobs that it consists of, as far as its manifests were asked for here.
    pub blobs: u64,
    /// Of them whole in the cache.
    pub present: u64,
    /// Sizes of all, bytes.
    pub bytes: u64,
    /// Sizes of those in the cache, bytes.
    pub present_bytes: u64,
    /// Whether it is pinned.
    pub pinned: bool,
    /// When its manifest was last asked for.
    pub used: Timestamp,
}

impl CachedImage {
    /// What a table knows of an image.
    pub(super) fn of(table: &Table, image: &ImageReference, stored: &HashMap<Digest, CacheEntry>) -> Option<Self> {
        let (digest, used) = table.get(image)?;
        let blobs = table.blobs(image);
        let is_here = |digest: &Digest| stored.get(digest).is_some_and(|entry| entry.complete);
        let bytes = |all: bool| {
            let counted = blobs.iter().filter(|(digest, _)| all || is_here(digest));
            counted.fold(0u64, |sum, (_, size)| sum.saturating_add(*size))
        };
        Some(Self {
            image: image.clone(),
            digest,
            blobs: blobs.len() as u64,
            present: blobs.iter().filter(|(digest, _)| is_here(digest)).count() as u64,
            bytes: bytes(true),
            present_bytes: bytes(false),
            pinned: table.is_pinned(image),
            used,
        })
    }
}

/// A blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedBlobReport {
    /// The blob.
    pub digest: Digest,
    /// Its size, bytes.
    pub size: u64,
    /// Whether any of it is here.
    pub present: bool,
    /// Whether all of it is here.
    pub complete: bool,
    /// Whether it belongs to a pinned image.
    pub pinned: bool,
    /// The images that it belongs to.
    pub images: Vec<String>,
}

/// What is known of one image or blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The image; absent for a blob.
    pub image: Option<CachedImage>,
    /// Its blobs, or the blob.
    pub blobs: Vec<CachedBlobReport>,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The image.
    pub image: Option<ImageReference>,
    /// Blobs that are gone.
    pub removed: Vec<Digest>,
    /// Their sizes, bytes.
    pub bytes: u64,
    /// Blobs that stay, as other images need them.
    pub shared: Vec<Digest>,
}

/// How a blob was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifiedState {
    /// Its content matches its digest.
    Good,
    /// It does not; the blob was removed.
    Corrupt,
    /// It is not here, or not wholly.
    Missing,
    /// It could not be read; it stays.
    Unreadable,
}

/// What came of verifying a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// The blob.
    pub digest: Digest,
    /// How it was found.
    pub state: VerifiedState,
    /// What was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
