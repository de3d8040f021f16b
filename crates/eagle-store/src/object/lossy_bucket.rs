//! A bucket on virtual time whose requests are lost, late and repeated, and whose clients stand still, are cut off and die.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    memory::InMemory,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};
use tokio::time::{Instant, sleep, sleep_until};

/// Longest that a request is under way while all is well.
const USUAL: Duration = Duration::from_millis(200);
/// Longest that a bad network keeps a request.
pub(super) const LONGEST: Duration = Duration::from_secs(12);

/// What happens to the bucket and its clients.
#[derive(Debug)]
pub(super) struct Weather {
    state: Mutex<State>,
    /// Of 1000 requests, how many go wrong, until all is well.
    wrong: u32,
    /// From when on all is well.
    pub(super) well: Instant,
}

#[derive(Debug)]
struct State {
    rng: ChaCha8Rng,
    /// Until when something went wrong, or what went wrong before had its effect.
    disturbed: Option<Instant>,
}

impl Weather {
    pub(super) fn new(seed: u64, wrong: u32, well: Instant) -> Arc<Self> {
        let state = State { rng: ChaCha8Rng::seed_from_u64(seed), disturbed: None };
        Arc::new(Self { state: Mutex::new(state), wrong, well })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number below `end`.
    pub(super) fn draw(&self, end: u32) -> u32 {
        self.lock().rng.next_u32() % end
    }

    /// A time up to `longest`.
    pub(super) fn time(&self, longest: Duration) -> Duration {
        longest * self.draw(1000) / 1000
    }

    /// Notes that something happens now that may leave two who fetch.
    pub(super) fn disturb(&self) {
        self.disturb_until(Instant::now());
    }

    fn disturb_until(&self, end: Instant) {
        let mut state = self.lock();
        state.disturbed = state.disturbed.max(Some(end));
    }

    /// Whether nothing has happened for so long.
    pub(super) fn is_settled(&self, since: Duration) -> bool {
        self.lock().disturbed.is_none_or(|end| Instant::now() > end + since)
    }

    fn goes_wrong(&self) -> bool {
        Instant::now() < self.well && self.draw(1000) < self.wrong
    }
}

/// One process that uses the bucket.
#[derive(Debug)]
pub(super) struct Client {
    weather: Arc<Weather>,
    state: Mutex<(Instant, Instant, bool)>,
}

impl Client {
    pub(super) fn new(weather: &Arc<Weather>) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self { weather: Arc::clone(weather), state: Mutex::new((now, now, false)) })
    }

    fn lock(&self) -> MutexGuard<'_, (Instant, Instant, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stands still for this long.
    pub(super) fn freeze(&self, time: Duration) {
        let mut state = self.lock();
        state.0 = state.0.max(Instant::now() + time);
    }

    /// Reaches nothing for this long.
    pub(super) fn cut(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut state = self.lock();
        state.1 = state.1.max(end);
        drop(state);
        // It fetches on meanwhile, and can know nothing.
        self.weather.disturb_until(end);
    }

    /// Ends without a word.
    pub(super) fn kill(&self) {
        self.lock().2 = true;
    }

    pub(super) fn is_dead(&self) -> bool {
        self.lock().2
    }

    /// Whether it stands still.
    pub(super) fn is_frozen(&self) -> bool {
        Instant::now() < self.lock().0
    }

    /// Waits until it does not stand still; for ever when it is dead.
    pub(super) async fn awake(&self) {
        loop {
            let (frozen, _, dead) = *self.lock();
            if dead {
                std::future::pending::<()>().await;
            }
            if frozen <= Instant::now() {
                return;
            }
            sleep_until(frozen).await;
            // Whatever it believed when it stopped it believes now.
            self.weather.disturb();
        }
    }

    /// One request, in the weather that it meets.
    async fn request<T, F>(self: &Arc<Self>, what: impl Fn() -> F + Send + Sync + 'static) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        let weather = Arc::clone(&self.weather);
        self.awake().await;
        sleep(weather.time(USUAL)).await;
        let cut = self.lock().1;
        if Instant::now() < cut {
            weather.disturb();
            sleep_until(cut).await;
            return Err(broken("cut off"));
        }
        if !weather.goes_wrong() {
            let answer = what().await;
            sleep(weather.time(USUAL)).await;
            self.awake().await;
            return answer;
        }
        weather.disturb();
        let (kind, late) = (weather.draw(4), weather.time(LONGEST));
        let later = async move || {
            sleep(late).await;
            weather.disturb();
            what().await
        };
        match kind {
            // It never arrives.
            0 => sleep(late).await,
            // It arrives, whether or not anybody still waits, and the answer comes late.
            1 => {
                let sent = tokio::spawn(async move { later().await.map(drop) });
                let _ = sent.await;
            }
            // It arrives late, and its sender hears at once that it did not.
            2 => drop(tokio::spawn(async move { later().await.map(drop) })),
            // It arrives, the answer does not, and it arrives again.
            _ => {
                let again = tokio::spawn(async move {
                    let first = later().await.map(drop);
                    first.and(later().await.map(drop))
                });
                drop(again);
            }
        }
        Err(broken("something went wrong on the way"))
    }
}

fn broken(what: &'static str) -> Error {
    Error::Generic { store: "lossy", source: what.into() }
}

/// The bucket as one client sees it.
#[derive(Debug)]
pub(super) struct LossyBucket {
    pub(super) bucket: Arc<InMemory>,
    pub(super) client: Arc<Client>,
}

impl fmt::Display for LossyBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a lossy bucket")
    }
}

impl LossyBucket {
    /// By the bucket's clock, which shows whole seconds and jumps: what was written later may be older, or as old.
    fn dated(mut found: ObjectMeta) -> ObjectMeta {
        let version =
            found.e_tag.iter().flat_map(|tag| tag.bytes()).fold(0, |sum: u64, byte| sum * 31 + u64::from(byte));
        found.last_modified = std::time::SystemTime::UNIX_EPOCH.into();
        found.last_modified += Duration::from_secs(1_000_000 + version * 7919 % 50);
        found
    }
}

#[async_trait]
impl ObjectStore for LossyBucket {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let (bucket, path) = (Arc::clone(&self.bucket), path.clone());
        let put = move || {
            let (bucket, path, payload, options) =
                (Arc::clone(&bucket), path.clone(), payload.clone(), options.clone());
            async move { bucket.put_opts(&path, payload, options).await }
        };
        self.client.request(put).await
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.bucket.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let (bucket, path) = (Arc::clone(&self.bucket), path.clone());
        let get = move || {
            let (bucket, path, options) = (Arc::clone(&bucket), path.clone(), options.clone());
            async move { bucket.get_opts(&path, options).await }
        };
        let mut found = self.client.request(get).await?;
        found.meta = Self::dated(found.meta);
        Ok(found)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (bucket, client) = (Arc::clone(&self.bucket), Arc::clone(&self.client));
        let delete = move |path: Path| {
            let (bucket, client) = (Arc::clone(&bucket), Arc::clone(&client));
            async move {
                let gone = path.clone();
                let delete = move || {
                    let (bucket, path) = (Arc::clone(&bucket), path.clone());
                    async move { bucket.delete(&path).await }
                };
                client.request(delete).await.map(|()| gone)
            }
        };
        paths.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (bucket, prefix) = (Arc::clone(&self.bucket), prefix.cloned());
        let list = move || {
            let found = bucket.list(prefix.as_ref());
            async move { found.try_collect::<Vec<_>>().await }
        };
        let client = Arc::clone(&self.client);
        let listed = async move {
            let found = client.request(list).await?;
            Ok::<_, Error>(futures::stream::iter(found.into_iter().map(|found| Ok(Self::dated(found)))))
        };
        futures::stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.bucket.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.bucket.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl MultipartStore for LossyBucket {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.bucket.create_multipart(path).await
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, part: usize, data: PutPayload) -> Result<PartId> {
        self.bucket.put_part(path, id, part, data).await
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        self.bucket.complete_multipart(path, id, parts).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.bucket.abort_multipart(path, id).await
    }
}
