//! Images made from a seed: their documents and layers are in memory, so that every byte that arrives can be compared.

use std::{collections::BTreeMap, sync::Arc};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use sha2::{Digest, Sha256};

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Something with a digest.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    /// `sha256:` and 64 hexadecimal digits.
    pub(crate) digest: String,
    pub(crate) media_type: &'static str,
    pub(crate) bytes: Arc<Vec<u8>>,
}

impl Document {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { digest: digest(&bytes), media_type, bytes: Arc::new(bytes) }
    }

    fn json(media_type: &'static str, value: &serde_json::Value) -> Self {
        Self::new(media_type, value.to_string().into_bytes())
    }

    fn descriptor(&self) -> serde_json::Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// An image behind an index, as images on Docker Hub are.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// Its repository; the tag is [`TAG`].
    pub(crate) repository: String,
    pub(crate) index: Document,
    pub(crate) manifest: Document,
    /// Configuration and layers.
    pub(crate) blobs: Vec<Document>,
}

/// The tag of every image.
pub(crate) const TAG: &str = "v1";

impl Image {
    /// Makes the image of this number.
    pub(crate) fn make(seed: u64, number: usize, layers: &[u64]) -> Self {
        let layers: Vec<_> = (0u64..)
            .zip(layers)
            .map(|(layer, size)| {
                // A stream of its own for each layer: none begins as another does.
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream((u64::try_from(number).unwrap_or(0) << 32 | layer) + 1);
                let mut bytes = vec![0; usize::try_from(*size).unwrap_or(0)];
                rng.fill_bytes(&mut bytes);
                Document::new(LAYER, bytes)
            })
            .collect();
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.digest.as_str()).collect();
        let config = Document::json(
            CONFIG,
            &json!({
                "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids },
                "config": { "Env": [format!("SEED={seed}")] },
            }),
        );
        let descriptors: Vec<_> = layers.iter().map(Document::descriptor).collect();
        let manifest = Document::json(
            MANIFEST,
            &json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(), "layers": descriptors,
            }),
        );
        let mut entry = manifest.descriptor();
        entry["platform"] = json!({ "architecture": "amd64", "os": "linux" });
        let index = Document::json(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }));
        let blobs = std::iter::once(config).chain(layers).collect();
        Self { repository: format!("chaos/image-{number}"), index, manifest, blobs }
    }

    /// Bytes of its blobs.
    pub(crate) fn size(&self) -> u64 {
        self.blobs.iter().map(|blob| u64::try_from(blob.bytes.len()).unwrap_or(0)).sum()
    }
}

/// What a registry answers for these images, by the path after `/v2`.
pub(crate) fn paths(images: &[Image]) -> BTreeMap<String, Document> {
    let mut paths = BTreeMap::new();
    for image in images {
        let repository = &image.repository;
        paths.insert(format!("/{repository}/manifests/{TAG}"), image.index.clone());
        for manifest in [&image.index, &image.manifest] {
            paths.insert(format!("/{repository}/manifests/{}", manifest.digest), manifest.clone());
        }
        for blob in &image.blobs {
            paths.insert(format!("/{repository}/blobs/{}", blob.digest), blob.clone());
        }
    }
    paths
}

/// `sha256:` and the digest of these bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
