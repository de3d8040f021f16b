//! Runs the conformance suite of the storage interface against a real bucket:
//! `cargo run -p eagle-store --features conformance --example check-bucket -- URL [ENDPOINT]`.
//!
//! Keys come from the environment variables of the store's own tools (`AWS_...`, `GOOGLE_...`, `AZURE_STORAGE_...`). Every rule has a
//! prefix of its own below that of the URL, with a number that is drawn for the run; what it wrote stays there.
#![allow(clippy::unwrap_used, reason = "the suite panics with the rule that is broken")]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::Geometry;
use eagle_store::{
    BlobStorage, BucketSettings, MemoryStorage, ObjectStorage,
    conformance::{self, Fixture, Sample},
};

struct Place {
    url: String,
    settings: BucketSettings,
    staging: tempfile::TempDir,
}

#[async_trait]
impl Fixture for Place {
    async fn open(&self) -> Arc<dyn BlobStorage> {
        let (url, staging) = (self.url.parse().unwrap(), self.staging.path().join("staging"));
        Arc::new(ObjectStorage::open(&url, &self.settings, "check-bucket", &staging).await.unwrap())
    }
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().expect("give the URL of a bucket: s3://, gs:// or az://");
    let endpoint = arguments.next().map(|endpoint| endpoint.parse().unwrap());
    let settings = BucketSettings { endpoint, ..BucketSettings::default() };
    let (run, next) = (rand::random::<u32>(), AtomicU64::new(0));
    let place = || Place {
        url: format!("{}/check-{run:08x}-{}", url.trim_end_matches('/'), next.fetch_add(1, Ordering::Relaxed)),
        settings: settings.clone(),
        staging: tempfile::TempDir::new().unwrap(),
    };
    conformance::run(|| Box::new(place())).await;
    // The suite's blobs are small; this one goes up in parts.
    let small = Sample::new((20 << 20) + 11, 1);
    let large = Sample { geometry: Geometry::new(small.bytes.len() as u64, 1 << 20).unwrap(), ..small };
    let blob = conformance::store(&MemoryStorage::new(), &large).await;
    let storage = place().open().await;
    storage.put(&*blob, &large.metainfo()).await.unwrap();
    let stored = storage.open(large.digest).await.unwrap().unwrap();
    let part: Bytes = stored.read_at(9 << 20, 1 << 20).await.unwrap();
    assert!(part == large.bytes.slice(9 << 20..10 << 20), "a blob that went up in parts reads differently");
    storage.settle().await;
    println!("{url} does all that the storage interface asks for");
}
