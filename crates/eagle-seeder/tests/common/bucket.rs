//! A bucket on a real S3 server, in the process of the test.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::Path;

use eagle_core::Digest;
use eagle_registry::config::Secret;
use eagle_seeder::{ObjectStoreConfig, SeederConfig};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::common::{DEADLINE, config, until};

#[allow(unreachable_pub, reason = "shared with another crate's example")]
#[path = "../../../eagle-store/testing/s3.rs"]
mod s3;

pub(crate) struct Bucket {
    pub(crate) root: TempDir,
    endpoint: String,
    server: JoinHandle<std::io::Result<()>>,
}

impl Bucket {
    pub(crate) async fn start() -> Self {
        let root = TempDir::new().unwrap();
        std::fs::create_dir(root.path().join("bucket")).unwrap();
        let (listener, address) = s3::listen().await.unwrap();
        let directory = root.path().to_owned();
        let server = tokio::spawn(async move { s3::serve(listener, &directory).await });
        Self { root, endpoint: format!("http://{address}"), server }
    }

    pub(crate) fn seeder(&self, directory: &Path) -> SeederConfig {
        SeederConfig {
            storage: "s3://bucket/eagle".parse().unwrap(),
            object_store: ObjectStoreConfig {
                endpoint: Some(self.endpoint.parse().unwrap()),
                access_key_id: Some(s3::ACCESS_KEY_ID.to_owned()),
                secret_access_key: Some(Secret::new(s3::SECRET_ACCESS_KEY)),
                wait: DEADLINE,
                ..ObjectStoreConfig::default()
            },
            ..config(directory)
        }
    }

    pub(crate) fn object(&self, digest: Digest, part: &str) -> std::path::PathBuf {
        let hex = digest.hex();
        self.root.path().join("bucket/eagle/blobs/sha256").join(&hex[..2]).join(&hex).join(part)
    }

    /// Waits until the blob is marked as complete.
    pub(crate) async fn has(&self, digest: Digest) {
        let marker = self.object(digest, "complete");
        until("the blob to be in the bucket", async || marker.exists()).await;
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.server.abort();
    }
}
