//! Manifests: which blobs an image consists of.
//!
//! Read are OCI image manifests and indexes (image-spec 1.1) and docker's of schema 2. Schema 1, which
//! docker removed, names no sizes and is refused.

use eagle_core::{Digest, geometry::MAX_BLOB_SIZE};
use serde::{Deserialize, Serialize};

/// Largest manifest, bytes: what registries must accept at least (distribution-spec 1.1, "Pushing
/// manifests"), and what docker and containerd read at most.
pub const MAX_MANIFEST_SIZE: usize = 4 << 20;

/// Media types of manifests that this module reads, in the order in which a client prefers them.
pub const MEDIA_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// One thing that a manifest points to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Digest of its content.
    pub digest: Digest,
    /// Size of its content, bytes; at most [`MAX_BLOB_SIZE`].
    pub size: u64,
    /// Where else it may be had; "foreign" layers are only there and not in the registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// For which platform it is, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// Platform of an image within an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// For instance `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// For instance `linux`.
    #[serde(default)]
    pub os: String,
    /// For instance `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Descriptor {
    /// Whether the registry may not have it: a layer that may not be distributed, or that is elsewhere.
    pub fn is_foreign(&self) -> bool {
        !self.urls.is_empty() || self.media_type.contains(".nondistributable.") || self.media_type.contains(".foreign.")
    }
}

/// What a manifest or index points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its media type, from the manifest itself or else from the header.
    pub media_type: String,
    /// Its blobs: the configuration first, then the layers in order.
    pub blobs: Vec<Descriptor>,
    /// Manifests below it, when it is an index.
    pub manifests: Vec<Descriptor>,
}

/// Why a body is not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Larger than [`MAX_MANIFEST_SIZE`].
    #[error("the manifest has {0} bytes, more than {MAX_MANIFEST_SIZE}")]
    TooLarge(usize),
    /// Not JSON of the right shape.
    #[error("the manifest is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// Not one of the kinds that are read.
    #[error("schema version {0} is not supported; push the image again with a current client")]
    SchemaVersion(u64),
    /// A blob that cannot be.
    #[error("the manifest names a blob of {0} bytes, more than {MAX_BLOB_SIZE}")]
    BlobSize(u64),
    /// Neither blobs nor manifests.
    #[error("the manifest names no content")]
    Empty,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    /// Of OCI artifact manifests, which some tools still push.
    #[serde(default)]
    blobs: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

impl Manifest {
    /// Reads a manifest or index.
    ///
    /// # Errors
    /// When it is too large, not JSON, not of a known kind, or names a blob larger than [`MAX_BLOB_SIZE`].
    pub fn parse(body: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        if body.len() > MAX_MANIFEST_SIZE {
            return Err(ManifestError::TooLarge(body.len()));
        }
        let raw: Raw = serde_json::from_slice(body)?;
        // Artifact manifests have no version.
        if let Some(version) = raw.schema_version.filter(|&version| version != 2) {
            return Err(ManifestError::SchemaVersion(version));
        }
        let is_known = raw.config.is_some() || raw.layers.is_some() || raw.blobs.is_some() || raw.manifests.is_some();
        if !is_known {
            return Err(ManifestError::Empty);
        }
        let header = content_type.and_then(|value| value.split(';').next()).map(str::trim).unwrap_or_default();
        let media_type = raw.media_type.unwrap_or_else(|| header.to_owned());
        let blobs: Vec<_> =
            raw.config.into_iter().chain(raw.layers.unwrap_or_default()).chain(raw.blobs.unwrap_or_default()).collect();
        let manifests = raw.manifests.unwrap_or_default();
        if let Some(bad) = blobs.iter().chain(&manifests).find(|descriptor| descriptor.size > MAX_BLOB_SIZE) {
            return Err(ManifestError::BlobSize(bad.size));
        }
        Ok(Self { media_type, blobs, manifests })
    }

    /// Whether it is an index of manifests, one per platform.
    pub fn is_index(&self) -> bool {
        !self.manifests.is_empty()
    }

    /// Bytes of all its blobs together, as a pull of it moves them.
    pub fn total_size(&self) -> u64 {
        self.blobs.iter().fold(0, |sum, blob| sum.saturating_add(blob.size))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn descriptor(content: &[u8]) -> String {
        format!(r#"{{"mediaType":"m","digest":"{}","size":{}}}"#, Digest::of(content), content.len())
    }

    #[test]
    fn reads_images_and_indexes() {
        let image = format!(
            r#"{{"schemaVersion":2,"mediaType":"t","config":{},"layers":[{},{}],"annotations":{{"a":"b"}}}}"#,
            descriptor(b"c"),
            descriptor(b"l1"),
            descriptor(b"l22")
        );
        let manifest = Manifest::parse(image.as_bytes(), Some("other")).unwrap();
        assert_eq!(manifest.media_type, "t");
        assert_eq!(manifest.blobs.iter().map(|blob| blob.size).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(manifest.total_size(), 6);
        assert!(!manifest.is_index());

        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            descriptor(b"m").replace("\"size\"", r#""platform":{"os":"linux","architecture":"arm64"},"size""#)
        );
        let manifest = Manifest::parse(index.as_bytes(), Some("application/x; charset=utf-8")).unwrap();
        assert_eq!(manifest.media_type, "application/x");
        assert_eq!(manifest.manifests[0].platform.as_ref().unwrap().architecture, "arm64");
        assert!(manifest.is_index());
    }

    #[test]
    fn refuses_what_is_not_a_manifest() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"schemaVersion":2}"#,
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
            r#"{"schemaVersion":2,"layers":[{"digest":"sha256:../..","size":1}]}"#,
            &format!(r#"{{"schemaVersion":2,"layers":[{{"digest":"{}","size":-1}}]}}"#, Digest::of(b"x")),
            &format!(r#"{{"schemaVersion":2,"layers":[{{"digest":"{}","size":{}}}]}}"#, Digest::of(b"x"), u64::MAX),
        ] {
            assert!(Manifest::parse(bad.as_bytes(), None).is_err(), "{bad}");
        }
        assert!(matches!(Manifest::parse(&vec![b' '; MAX_MANIFEST_SIZE + 1], None), Err(ManifestError::TooLarge(_))));
    }

    #[test]
    fn tells_foreign_layers() {
        let mut layer: Descriptor = serde_json::from_str(&descriptor(b"l")).unwrap();
        assert!(!layer.is_foreign());
        layer.media_type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".to_owned();
        assert!(layer.is_foreign());
    }

    proptest! {
        #[test]
        fn never_panics(body: Vec<u8>) {
            let _ = Manifest::parse(&body, None);
        }
    }
}
