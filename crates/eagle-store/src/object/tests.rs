//! The storage against a real S3 server with signatures, and against a bucket in memory on virtual time.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use object_store::{ObjectStoreExt as _, memory::InMemory, path::Path as ObjectPath};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::Instant};

use super::*;
use crate::{
    MemoryStorage,
    conformance::{self, Fixture, Sample, store},
    lease::Holder,
    wrappers::{Call, Faults, Latency, Wrapped},
};

#[allow(unreachable_pub, reason = "shared with an example")]
#[path = "../../testing/s3.rs"]
mod server;

/// An S3 server with an empty bucket.
struct Server {
    root: TempDir,
    endpoint: String,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start() -> Self {
        let root = TempDir::new().unwrap();
        std::fs::create_dir(root.path().join("bucket")).unwrap();
        let (listener, address) = server::listen().await.unwrap();
        let directory = root.path().to_owned();
        let task = tokio::spawn(async move { server::serve(listener, &directory).await });
        Self { root, endpoint: format!("http://{address}"), task }
    }

    fn settings(&self) -> BucketSettings {
        BucketSettings {
            endpoint: Some(self.endpoint.parse().unwrap()),
            region: Some("us-east-1".to_owned()),
            access_key_id: Some(server::ACCESS_KEY_ID.to_owned()),
            secret_access_key: Some(server::SECRET_ACCESS_KEY.to_owned().into()),
            ..BucketSettings::default()
        }
    }

    async fn open(&self, prefix: &str, owner: &str, staging: &Path) -> ObjectStorage {
        let url = format!("s3://bucket/{prefix}").parse().unwrap();
        ObjectStorage::open(&url, &self.settings(), owner, staging).await.unwrap()
    }

    /// Files of the server whose names contain this: what clients cannot list.
    fn files(&self, part: &str) -> Vec<String> {
        let names = std::fs::read_dir(self.root.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains(part)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A prefix of its own in the bucket.
struct Place {
    server: Arc<Server>,
    prefix: String,
    staging: TempDir,
}

#[async_trait]
impl Fixture for Place {
    async fn open(&self) -> Arc<dyn BlobStorage> {
        Arc::new(self.server.open(&self.prefix, "one", &self.staging.path().join("staging")).await)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms_on_s3_with_signatures() {
    static PLACES: AtomicU64 = AtomicU64::new(0);
    let server = Arc::new(Server::start().await);
    conformance::run(|| {
        let prefix = format!("place-{}", PLACES.fetch_add(1, Ordering::Relaxed));
        Box::new(Place { server: Arc::clone(&server), prefix, staging: TempDir::new().unwrap() })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_refused_by_name() {
    let server = Server::start().await;
    let settings = BucketSettings { secret_access_key: Some("another-key".to_owned().into()), ..server.settings() };
    let staging = TempDir::new().unwrap();
    let url: BucketUrl = "s3://bucket/p".parse().unwrap();
    let storage = ObjectStorage::open(&url, &settings, "one", staging.path()).await.unwrap();
    let digest = Digest::of(b"x");
    let error = storage.open(digest).await.unwrap_err().to_string();
    assert!(error.contains(&digest.hex()) && error.contains("s3://bucket/p/"), "{error}");
    assert!(!error.contains("another-key"), "{error}");
}

/// More than one part, so that it is uploaded in parts.
fn large() -> Sample {
    let sample = Sample::new((20 << 20) + 11, 3);
    let geometry = Geometry::new(sample.bytes.len() as u64, 1 << 20).unwrap();
    Sample { geometry, ..sample }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_blobs_go_up_in_parts_and_no_part_stays() {
    let server = Server::start().await;
    let staging = TempDir::new().unwrap();
    let storage = server.open("p", "one", staging.path()).await;
    let sample = large();
    let faults = Arc::new(Faults::default());
    let source = Wrapped::sharing(Arc::new(MemoryStorage::new()), Arc::clone(&faults));
    let blob = store(&source, &sample).await;

    // The third part cannot be read: nothing is left of the first two.
    faults.plan(Call::Read, 2, 1, std::io::ErrorKind::UnexpectedEof);
    storage.put(&*blob, &sample.metainfo()).await.unwrap_err();
    assert!(storage.open(sample.digest).await.unwrap().is_none());
    // Given up midway by the caller.
    let slow = Wrapped::new(Arc::new(MemoryStorage::new()), Latency::new(Duration::from_millis(300)));
    let small_pieces = Sample { geometry: Geometry::auto(sample.bytes.len() as u64).unwrap(), ..sample.clone() };
    let late = store(&slow, &small_pieces).await;
    let given_up = tokio::time::timeout(Duration::from_millis(200), storage.put(&*late, &sample.metainfo())).await;
    assert!(given_up.is_err());
    wait_for("the parts to be removed", async || server.files(".upload").is_empty()).await;

    storage.put(&*blob, &sample.metainfo()).await.unwrap();
    let stored = storage.open(sample.digest).await.unwrap().unwrap();
    assert_eq!(Digest::of(&stored.read_at(0, sample.bytes.len()).await.unwrap()), sample.digest);
    assert_eq!(stored.read_at(9 << 20, 70).await.unwrap(), sample.bytes.slice(9 << 20..(9 << 20) + 70));
    storage.settle().await;
    assert!(server.files(".upload").is_empty());
    let rest: Vec<_> = storage.inner.objects.list(&storage.inner.objects.names.uploads(), 10).await.unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}

/// Looks until it is so.
async fn wait_for(what: &str, is_so: impl AsyncFn() -> bool) {
    let began = std::time::Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_aborts_what_a_killed_one_was_uploading() {
    let server = Server::start().await;
    let staging = TempDir::new().unwrap();
    let sample = large();
    // As a process does that is killed then: the upload began, its record is written, nothing follows.
    let killed = server.open("p", "one", staging.path()).await;
    let objects = &killed.inner.objects;
    let path = objects.names.data(sample.digest);
    let id = objects.store.create_multipart(&path).await.unwrap();
    objects.store.put_part(&path, &id, 0, sample.bytes.slice(..8 << 20).into()).await.unwrap();
    let upload = heartbeat::Upload { path: path.to_string(), id };
    let record = objects.names.upload(sample.digest, 7);
    let heartbeat =
        heartbeat::Heartbeat::begin(objects, record, heartbeat::Of::Upload(upload), PutMode::Overwrite).await.unwrap();
    std::mem::forget(heartbeat);
    assert!(!server.files(".upload").is_empty());

    // The same seeder again.
    let started = server.open("p", "one", staging.path()).await;
    wait_for("the upload to be aborted", async || server.files(".upload").is_empty()).await;
    started.settle().await;
}

/// A storage over a bucket in memory; nothing goes through its staging directory.
fn in_memory(bucket: &Arc<InMemory>, owner: &str) -> ObjectStorage {
    with_staging(bucket, owner, Path::new("/nonexistent/staging"))
}

fn with_staging(bucket: &Arc<InMemory>, owner: &str, staging: &Path) -> ObjectStorage {
    let names = Names::new("s3://bucket".to_owned(), "p");
    let bucket = Arc::clone(bucket) as Arc<dyn objects::Store>;
    ObjectStorage::new(Objects::new(bucket, names, owner.to_owned()), staging)
}

/// Asks as often as a seeder does, until nobody else is at it.
async fn claim(storage: &ObjectStorage, digest: Digest) -> Claim {
    let mut claimant = Claimant::default();
    loop {
        match storage.claim(digest, &mut claimant).await.unwrap() {
            Claim::Held(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            claim => return claim,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_many_fetches_and_the_others_wait_for_its_blob() {
    let bucket = Arc::new(InMemory::new());
    let sample = Sample::new(100, 1);
    let fetched = Arc::new(AtomicU64::new(0));
    let mut seeders = tokio::task::JoinSet::new();
    for number in 0..8 {
        let storage = in_memory(&bucket, &format!("seeder-{number}"));
        let (sample, fetched) = (sample.clone(), Arc::clone(&fetched));
        seeders.spawn(async move {
            if let Claim::Granted(lease) = claim(&storage, sample.digest).await {
                assert!(lease.is_exclusive());
                fetched.fetch_add(1, Ordering::Relaxed);
                // Longer than a lease lives without being renewed.
                tokio::time::sleep(heartbeat::LIFETIME * 3).await;
                let blob = store(&MemoryStorage::new(), &sample).await;
                storage.put(&*blob, &sample.metainfo()).await.unwrap();
            }
            assert!(storage.open(sample.digest).await.unwrap().is_some());
            storage.settle().await;
        });
    }
    while let Some(seeder) = seeders.join_next().await {
        seeder.unwrap();
    }
    assert_eq!(fetched.load(Ordering::Relaxed), 1);
    let storage = in_memory(&bucket, "after");
    let left = storage.inner.objects.list(&storage.inner.objects.names.all_leases(), 10).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn the_lease_of_a_dead_seeder_is_taken_over_and_of_the_same_one_at_once() {
    let bucket = Arc::new(InMemory::new());
    let digest = Digest::of(b"x");
    // What a killed process leaves: a lease that nobody renews and nobody removes.
    let die = async |owner: &str| {
        let storage = in_memory(&bucket, "an onlooker");
        let record = heartbeat::Record {
            owner: Owner { name: owner.to_owned(), process: 1 },
            number: 9,
            upload: None,
            url: None,
        };
        let path = storage.inner.objects.names.lease(digest, 0);
        storage.inner.objects.put(&path, heartbeat::RECORD_MAGIC, &record, PutMode::Create).await.unwrap();
    };
    die("one").await;
    let began = Instant::now();
    let again = in_memory(&bucket, "one");
    let Claim::Granted(lease) = claim(&again, digest).await else { panic!("it is not stored") };
    assert!(began.elapsed() < Duration::from_secs(1), "one knows that it is dead");
    drop(lease);
    again.settle().await;
    die("two").await;
    let began = Instant::now();
    let other = in_memory(&bucket, "three");
    let Claim::Granted(lease) = claim(&other, digest).await else { panic!("it is not stored") };
    let waited = began.elapsed();
    assert!((heartbeat::LIFETIME..heartbeat::LIFETIME * 2).contains(&waited), "{waited:?}");
    assert!(lease.is_exclusive());
}

/// A bucket with one stored blob, and everything about it.
async fn hostile() -> (Arc<InMemory>, ObjectStorage, Sample, TempDir) {
    let (bucket, staging) = (Arc::new(InMemory::new()), TempDir::new().unwrap());
    let storage = with_staging(&bucket, "one", &staging.path().join("staging"));
    let sample = Sample::new(100_000, 4);
    let blob = store(&MemoryStorage::new(), &sample).await;
    storage.put(&*blob, &sample.metainfo()).await.unwrap();
    (bucket, storage, sample, staging)
}

fn assert_names(error: &StorageError, path: &ObjectPath) {
    assert!(error.is_damage(), "{error}");
    assert!(error.to_string().contains(&format!("s3://bucket/{path}")), "{error}");
}

#[tokio::test]
async fn a_blob_of_another_size_is_not_opened() {
    let (bucket, storage, sample, _staging) = hostile().await;
    let data = storage.inner.objects.names.data(sample.digest);
    let reader = storage.open(sample.digest).await.unwrap().unwrap();
    for size in [0, 99_999, 100_001] {
        bucket.put(&data, vec![7; size].into()).await.unwrap();
        assert_names(&storage.open(sample.digest).await.unwrap_err(), &data);
        // Also when it changes under a reader.
        assert_names(&reader.read_at(0, 10).await.unwrap_err(), &data);
    }
    bucket.delete(&data).await.unwrap();
    assert_names(&storage.open(sample.digest).await.unwrap_err(), &data);
}

#[tokio::test]
async fn a_marker_that_is_garbage_or_huge_is_refused() {
    let (bucket, storage, sample, _staging) = hostile().await;
    let marker = storage.inner.objects.names.complete(sample.digest);
    let metainfo = storage.inner.objects.names.metainfo(sample.digest);
    let foreign = bucket.get(&metainfo).await.unwrap().bytes().await.unwrap();
    for bytes in [Bytes::new(), Bytes::from_static(b"100000"), vec![0; 1 << 20].into(), foreign] {
        bucket.put(&marker, bytes.into()).await.unwrap();
        assert_names(&storage.open(sample.digest).await.unwrap_err(), &marker);
    }
    // Nothing stands in the way of storing it anew.
    storage.remove(sample.digest).await.unwrap();
    assert!(storage.open(sample.digest).await.unwrap().is_none());
}

#[tokio::test]
async fn metainfo_that_is_garbage_huge_or_of_another_blob_is_refused() {
    let (bucket, storage, sample, _staging) = hostile().await;
    let objects = &storage.inner.objects;
    let path = objects.names.metainfo(sample.digest);
    let other = Sample::new(100_000, 5).metainfo();
    assert_ne!(other.digest, sample.digest);
    let mut long = sample.metainfo();
    long.hashes.push(sample.digest.into());
    let encode = |metainfo: &Metainfo| crate::envelope::encode(METAINFO_MAGIC, metainfo).unwrap();
    let mut damaged = encode(&sample.metainfo());
    *damaged.last_mut().unwrap() ^= 1;
    let huge = usize::try_from(MAX_METAINFO).unwrap() + 1;
    for bytes in [vec![], b"{}".to_vec(), damaged, vec![0xff; huge], encode(&other), encode(&long)] {
        bucket.put(&path, bytes.into()).await.unwrap();
        assert_names(&storage.metainfo(sample.digest).await.unwrap_err(), &path);
    }
}

#[tokio::test]
async fn odd_keys_are_no_blobs() {
    let (bucket, storage, sample, _staging) = hostile().await;
    let hex = sample.digest.hex();
    for odd in [
        "p/blobs/sha256/../../../etc/passwd/complete".to_owned(),
        format!("p/blobs/sha256/zz/{hex}/complete"),
        format!("p/blobs/md5/{}/{hex}/complete", &hex[..2]),
        format!("p/blobs/sha256/{}/{}/data", &hex[..2], hex.to_uppercase()),
        "p/blobs/sha256/00/\u{202e}\u{1f4a9}%2f%00/data".to_owned(),
        format!("p/blobs/{}", "x/".repeat(300)),
    ] {
        bucket.put(&ObjectPath::from(odd.as_str()), b"x"[..].into()).await.unwrap();
    }
    let lonely = Digest::of(b"marked and nothing else");
    bucket.put(&storage.inner.objects.names.complete(lonely), b"x"[..].into()).await.unwrap();
    let listed = storage.list().await.unwrap();
    assert_eq!(listed.iter().map(|blob| blob.digest).collect::<Vec<_>>(), [sample.digest]);
}

#[tokio::test(start_paused = true)]
async fn a_hostile_record_stops_nobody_and_aborts_nothing_of_others() {
    let bucket = Arc::new(InMemory::new());
    let digest = Digest::of(b"x");
    let storage = in_memory(&bucket, "one");
    let names = &storage.inner.objects.names;
    bucket.put(&names.lease(digest, 3), vec![0xff; 1 << 20].into()).await.unwrap();
    bucket.put(&ObjectPath::from(format!("{}/no-number", names.leases(digest))), b"x"[..].into()).await.unwrap();
    let began = Instant::now();
    assert!(matches!(claim(&storage, digest).await, Claim::Granted(_)));
    assert!(began.elapsed() < heartbeat::LIFETIME * 2);
    // There is no higher number: it is held for ever, by nobody who could be asked.
    bucket.put(&names.lease(digest, u64::MAX), b"x"[..].into()).await.unwrap();
    let mut claimant = Claimant::default();
    for _ in 0..10 {
        let held = storage.claim(digest, &mut claimant).await.unwrap();
        assert!(matches!(&held, Claim::Held(holder) if *holder == Holder::default()), "{held:?}");
        tokio::time::sleep(heartbeat::LIFETIME).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_told_where_the_holder_is() {
    let bucket = Arc::new(InMemory::new());
    let digest = Digest::of(b"x");
    let (one, other) = (in_memory(&bucket, "one"), in_memory(&bucket, "other"));
    let url = "http://10.0.0.1:55008".to_owned();
    let granted = one.claim(digest, &mut Claimant::new(Some(url.clone()))).await.unwrap();
    let Claim::Granted(lease) = granted else { panic!("{granted:?}") };
    let mut claimant = Claimant::default();
    let began = Instant::now();
    while began.elapsed() < heartbeat::LIFETIME * 3 {
        let claim = other.claim(digest, &mut claimant).await.unwrap();
        let Claim::Held(holder) = claim else { panic!("the holder lives: {claim:?}") };
        assert_eq!((holder.name.as_str(), holder.url.as_ref()), ("one", Some(&url)));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    drop(lease);
    one.settle().await;
    assert!(matches!(other.claim(digest, &mut claimant).await.unwrap(), Claim::Granted(_)));
}
