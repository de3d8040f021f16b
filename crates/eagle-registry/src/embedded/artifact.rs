//! What refers to a generated image (image-spec 1.1, "Guidelines for Artifact Usage"): each has two artefacts.

use bytes::Bytes;
use eagle_core::Digest;
use serde_json::{Value, json};

use super::{content::Content, image::MANIFEST_TYPE};
use crate::manifest::Descriptor;

/// Media type of the configuration of an artefact that has none.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";

/// An artefact that refers to a generated image.
#[derive(Debug, Clone)]
pub struct PublishedArtifact {
    /// What it is: a media type.
    pub artifact_type: String,
    /// Its manifest, whose `subject` is the image's.
    pub manifest: Bytes,
    /// Digest of the manifest.
    pub digest: Digest,
}

impl PublishedArtifact {
    /// As it stands in the list of what refers to the image (distribution-spec 1.1, "Listing Referrers").
    pub(super) fn listed(&self) -> Value {
        json!({
            "mediaType": MANIFEST_TYPE,
            "digest": self.digest,
            "size": self.manifest.len(),
            "artifactType": self.artifact_type,
        })
    }
}

/// A list of the image's layers, and what it was generated from; with the contents that they name.
pub(super) fn of_image(
    subject: &Descriptor,
    layers: &[Descriptor],
    seed: u64,
) -> (Vec<PublishedArtifact>, Vec<(Digest, Content)>) {
    let mut contents = vec![(Digest::of(EMPTY), Content::Stored(Bytes::from_static(EMPTY)))];
    let mut artifacts = Vec::new();
    for (kind, document) in [
        ("application/vnd.eagle.layers.v1+json", json!({ "layers": layers })),
        ("application/vnd.eagle.recipe.v1+json", json!({ "seed": seed })),
    ] {
        let document = Bytes::from(document.to_string());
        let digest = Digest::of(&document);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": kind,
            "config": { "mediaType": EMPTY_TYPE, "digest": Digest::of(EMPTY), "size": EMPTY.len() },
            "layers": [{ "mediaType": kind, "digest": digest, "size": document.len() }],
            "subject": subject,
        });
        let manifest = Bytes::from(manifest.to_string());
        contents.push((digest, Content::Stored(document)));
        artifacts.push(PublishedArtifact { artifact_type: kind.to_owned(), digest: Digest::of(&manifest), manifest });
    }
    (artifacts, contents)
}
