//! Leases on virtual time, in thousands of worlds. Several seeders want one blob. Their requests to the bucket are lost, late and repeated, answers get lost,
//! seeders stand still and go on as if nothing had been, are cut off, are killed and start anew, and give up midway; the bucket's clock jumps. From one moment on
//! all is well.
//!
//! What has to hold: [`SETTLED`] after the last thing that went wrong, there are never two who fetch, whatever each believed before, and without anything wrong there never
//! are two at all. The blob is there a bounded time after all is well, whatever went before, and then nobody holds anything.

use super::{
    heartbeat::{LIFETIME, RENEWAL},
    lossy_bucket::{Client, LONGEST, LossyBucket, Weather},
    *,
};
use object_store::memory::InMemory;
use tokio::time::{Instant, sleep};

/// How long everything may go wrong.
const BAD: Duration = Duration::from_secs(90);
/// How long two may fetch after the last thing that went wrong: a request that began before it is given up after 4 s; then comes a renewal, in front of
/// which its holder asks twice whose the lease is. A request takes up to 0.4 s.
const SETTLED: Duration = Duration::from_secs(4).saturating_add(RENEWAL).saturating_add(Duration::from_millis(800));
/// How often a waiting seeder asks, as in `eagle-seeder`.
const POLL: Duration = Duration::from_millis(500);
/// Of the clock of the worlds.
const TICK: Duration = Duration::from_millis(100);
/// Longest fetch.
const WORK: Duration = Duration::from_secs(30);
/// How long it may take until the blob is there once all is well: a request that is late then comes and leaves a lease that nobody holds, which ends
/// by itself, and that twice; then a whole fetch.
const PATIENCE: Duration = LIFETIME.saturating_mul(3).saturating_add(WORK).saturating_add(Duration::from_secs(20));
/// Seeds of each run of the test. `EAGLE_TEST_SEEDS` takes another number, `EAGLE_TEST_SEED` another first one.
const SEEDS: u64 = 120;

/// One who wants the blob.
struct Seeder {
    number: usize,
    client: Mutex<Arc<Client>>,
    fetches: Mutex<bool>,
    granted: Mutex<u32>,
}

struct World {
    bucket: Arc<InMemory>,
    weather: Arc<Weather>,
    seeders: Vec<Arc<Seeder>>,
    digest: Digest,
}

impl Seeder {
    fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client.lock().unwrap())
    }

    fn fetches(&self, now: bool) {
        *self.fetches.lock().unwrap() = now;
    }

    /// Whether bytes come to it.
    fn is_fetching(&self) -> bool {
        *self.fetches.lock().unwrap() && !self.client().is_frozen()
    }

    /// Does what a seeder does until it has the blob.
    async fn obtain(&self, storage: &ObjectStorage, world: &World) {
        let (client, weather) = (self.client(), &world.weather);
        let mut claimant = Claimant::new(Some(format!("http://10.0.0.{}:55008", self.number)));
        loop {
            client.awake().await;
            match storage.claim(world.digest, &mut claimant).await {
                Ok(Claim::Stored) => return,
                Ok(Claim::Granted(lease)) => {
                    *self.granted.lock().unwrap() += 1;
                    self.fetch(&lease, storage, world).await;
                }
                // What it does instead, where a bucket fails, is not about leases.
                Ok(Claim::Held(_)) | Err(_) => {}
            }
            sleep(POLL + weather.time(TICK)).await;
        }
    }

    /// Fetches until it has the blob, its lease is lost, or it gives up.
    async fn fetch(&self, lease: &crate::lease::Lease, storage: &ObjectStorage, world: &World) {
        let (client, weather, lost) = (self.client(), &world.weather, lease.lost());
        // What is left of the fetch: who stands still has as much left afterwards.
        let mut left = weather.time(WORK);
        // The registry fails, now and then.
        let gives_up = (Instant::now() < weather.well && weather.draw(5) == 0).then(|| weather.time(left));
        loop {
            client.awake().await;
            if lost.is_cancelled() {
                return self.fetches(false);
            }
            self.fetches(true);
            if left <= gives_up.unwrap_or_default() {
                break;
            }
            sleep(TICK).await;
            left = left.saturating_sub(TICK);
        }
        self.fetches(false);
        while gives_up.is_none() {
            client.awake().await;
            if storage.inner.objects.mark(world.digest, Marker { size: 1 }).await.is_ok() {
                return;
            }
            sleep(POLL).await;
        }
    }
}

impl World {
    fn new(seed: u64) -> Arc<Self> {
        // In one world of eight nothing goes wrong at all, in others seldom or all the time.
        let wrong = [0, 5, 20, 50, 100, 200, 400, 5][usize::try_from(seed % 8).unwrap()];
        let now = Instant::now();
        let weather = Weather::new(seed, wrong, if wrong == 0 { now } else { now + BAD });
        let seeders = 2 + weather.draw(3) as usize;
        let seeder = |number| {
            let client = Mutex::new(Client::new(&weather));
            Arc::new(Seeder { number, client, fetches: Mutex::default(), granted: Mutex::default() })
        };
        let seeders = (0..seeders).map(seeder).collect();
        Arc::new(Self { bucket: Arc::new(InMemory::new()), weather, seeders, digest: Digest::of(b"x") })
    }

    fn storage(&self, client: &Arc<Client>, number: usize) -> ObjectStorage {
        let names = Names::new("s3://bucket".to_owned(), "p");
        let store = LossyBucket { bucket: Arc::clone(&self.bucket), client: Arc::clone(client) };
        ObjectStorage::new(Objects::new(Arc::new(store), names, format!("seeder-{number}")), Path::new("/nonexistent"))
    }

    /// A seeder, in all its lives.
    async fn live(self: Arc<Self>, seeder: Arc<Seeder>) {
        sleep(self.weather.time(Duration::from_secs(3))).await;
        loop {
            let client = seeder.client();
            let storage = self.storage(&client, seeder.number);
            let killed = async {
                while !client.is_dead() {
                    sleep(TICK).await;
                }
            };
            tokio::select! {
                () = seeder.obtain(&storage, &self) => return storage.settle().await,
                () = killed => {
                    seeder.fetches(false);
                    // Nothing of a dead process ends in order.
                    std::mem::forget(storage);
                    sleep(self.weather.time(Duration::from_secs(15))).await;
                    *seeder.client.lock().unwrap() = Client::new(&self.weather);
                }
            }
        }
    }

    /// Something happens to a seeder.
    fn strike(&self) {
        let weather = &self.weather;
        let client = self.seeders[weather.draw(u32::try_from(self.seeders.len()).unwrap()) as usize].client();
        let time = weather.time(LIFETIME * 3);
        weather.disturb();
        match weather.draw(5) {
            0 | 1 => client.freeze(time),
            2 | 3 => client.cut(time),
            _ => client.kill(),
        }
    }

    async fn run(self: Arc<Self>, seed: u64) {
        let mut lives = tokio::task::JoinSet::new();
        for seeder in &self.seeders {
            lives.spawn(Arc::clone(&self).live(Arc::clone(seeder)));
        }
        let (weather, calm) = (&self.weather, seed.is_multiple_of(8));
        let deadline = weather.well + PATIENCE;
        // Ticks between two strikes: where they are seldom, two who fetch are seen.
        let seldom = 80 + weather.draw(320);
        while !lives.is_empty() {
            sleep(TICK).await;
            while let Some(ended) = lives.try_join_next() {
                ended.unwrap();
            }
            if Instant::now() < weather.well && weather.draw(seldom) == 0 {
                self.strike();
            }
            let fetching = self.seeders.iter().filter(|seeder| seeder.is_fetching()).count();
            assert!(fetching < 2 || !(calm || weather.is_settled(SETTLED)), "seed {seed}: {fetching} fetch the blob");
            assert!(Instant::now() < deadline, "seed {seed}: the blob does not come");
        }
        if calm {
            let granted: u32 = self.seeders.iter().map(|seeder| *seeder.granted.lock().unwrap()).sum();
            assert_eq!(granted, 1, "seed {seed}: it was fetched {granted} times");
        }
        self.nothing_stays(seed).await;
    }

    /// What is left was left by the dead, or came late; whoever starts next removes it.
    async fn nothing_stays(&self, seed: u64) {
        // A request that came twice may come until then.
        tokio::time::sleep_until(self.weather.well + LONGEST * 2).await;
        let storage = self.storage(&Client::new(&self.weather), 9);
        sleep(LIFETIME * 2).await;
        let left: Vec<_> = storage.inner.objects.list(&storage.inner.objects.names.all_leases(), 10).await.unwrap();
        assert!(left.is_empty(), "seed {seed}: {left:?}");
    }
}

#[test]
fn never_two_for_long_and_always_an_end() {
    let seeds = std::env::var("EAGLE_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let first = std::env::var("EAGLE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async { World::new(seed).run(seed).await });
    }
}
