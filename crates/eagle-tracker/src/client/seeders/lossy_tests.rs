//! Leases at trackers on virtual time, in thousands of worlds. Several seeders want the same blobs, and ask one to three trackers, of which some reach
//! only some. What they say to trackers is lost, repeated, reordered and late, and so are the answers; trackers die and come back empty or stand still; seeders
//! stand still and go on as if nothing had been, are cut off, are killed and start anew, and give up midway. From one moment on all is well.
//!
//! Both ends are what runs otherwise, without the sockets between them: the tracker with its sweeps, the heartbeats and claims of a seeder, its announces.
//! What a seeder does with a lease is as in `eagle-seeder`, by the clock instead of by bytes.
//!
//! What has to hold: [`SETTLED`] after the last thing that went wrong there are never two who fetch a blob from its registry, whatever each believed before; without anything
//! wrong there never are two at all, and each byte comes from the registry once. Every seeder has the blobs a bounded time after all is well, and then no tracker keeps a lease.

use std::sync::{Arc, Mutex, atomic::AtomicU64};

use eagle_core::{Geometry, NodeRole, PeerInfo, PieceSet};
use futures::{
    FutureExt as _,
    future::{join_all, pending},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{
    super::{Announcer, BlobStatus},
    lossy_network::{LONGEST, Place, Process, Weather},
    *,
};
use crate::api::seeders::LIFETIME;

/// Blobs that every seeder wants.
const BLOBS: usize = 2;
/// How long everything may go wrong.
const BAD: Duration = Duration::from_secs(90);
/// How long two may fetch after the last thing that went wrong. A heartbeat that began before is given up after 5 s, and so is the claim that follows
/// it, and the return of a lease after that; the next heartbeat comes within 2.2 s, and all that it leads to takes moments.
const SETTLED: Duration = Duration::from_secs(5 + 5 + 5 + 3);
/// How often a waiting seeder asks, as in `eagle-seeder`.
const POLL: Duration = Duration::from_millis(500);
/// How long a holder may give nothing before the lease is asked for again, as in `eagle-seeder`.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a holder that gives nothing is waited for, as in `eagle-seeder`.
const HOLDER_PATIENCE: Duration = Duration::from_secs(15);
/// How long a lease is kept after the fetch, as in `eagle-seeder`.
const ANNOUNCED: Duration = Duration::from_secs(5);
/// How long it may take to give a lease back: the heartbeat that is under way comes first, and a tracker that is out of reach takes 2 s of it. By itself
/// it would end after 8 s at least.
const GIVEN_BACK: Duration = Duration::from_secs(3);
/// Of the clock of the worlds.
const TICK: Duration = Duration::from_millis(100);
/// Longest fetch: long enough that two who go on beside each other are seen after all is well.
const WORK: Duration = Duration::from_secs(120);
/// How long it may take until every seeder has the blobs once all is well: what was late comes and leaves a lease that nobody holds, which ends by itself;
/// then a whole fetch.
const PATIENCE: Duration = LIFETIME.saturating_mul(3).saturating_add(WORK).saturating_add(Duration::from_secs(30));
/// How often a tracker sweeps at least, with a node's time to live of 90 s.
const SWEEP: Duration = Duration::from_secs(23);
/// Seeds of each run of the test. `EAGLE_TEST_SEEDS` takes another number, `EAGLE_TEST_SEED` another first one.
const SEEDS: u64 = 24;

/// A seeder, in all its lives; what it has of the blobs outlives them.
struct Seeder {
    number: usize,
    unreachable: Vec<usize>,
    process: Mutex<Arc<Process>>,
    blobs: [Stored; BLOBS],
}

/// What a seeder has of a blob.
#[derive(Default)]
struct Stored {
    /// Ticks of work.
    has: Mutex<u32>,
    /// Whether it comes from its registry.
    fetches: Mutex<bool>,
}

impl Stored {
    fn has(&self) -> u32 {
        *self.has.lock().unwrap()
    }

    fn fetches(&self) -> bool {
        *self.fetches.lock().unwrap()
    }

    fn set_fetches(&self, now: bool) {
        *self.fetches.lock().unwrap() = now;
    }
}

/// A blob as the worlds have it.
struct Blob {
    digest: Digest,
    /// Ticks that it takes to fetch it.
    size: u32,
    /// Ticks of it that were fetched from the registry.
    fetched: Mutex<u32>,
}

struct World {
    seed: u64,
    calm: bool,
    weather: Arc<Weather>,
    places: Arc<[Place]>,
    seeders: Vec<Arc<Seeder>>,
    blobs: [Blob; BLOBS],
}

/// What a process of a seeder works with.
struct Life {
    process: Arc<Process>,
    registration: Registration,
    announcer: Announcer,
}

impl Seeder {
    fn process(&self) -> Arc<Process> {
        Arc::clone(&self.process.lock().unwrap())
    }

    /// Whether bytes of a blob come to it from the registry.
    fn is_fetching(&self, blob: usize) -> bool {
        self.blobs[blob].fetches() && self.process().is_awake()
    }
}

fn url(tracker: usize) -> Url {
    format!("http://tracker-{tracker}:6969").parse().unwrap()
}

fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_millis() / TICK.as_millis()).unwrap()
}

impl World {
    fn new(seed: u64) -> Arc<Self> {
        // In one world of eight nothing goes wrong at all, in others seldom or all the time.
        let wrong = [0, 5, 20, 50, 100, 200, 400, 5][usize::try_from(seed % 8).unwrap()];
        let now = Instant::now();
        let weather = Weather::new(seed, wrong, if wrong == 0 { now } else { now + BAD });
        let trackers = 1 + weather.draw(3) as usize;
        let places: Arc<[Place]> = (0..trackers).map(|_| Place::new(&weather)).collect();
        // The first tracker is within everybody's reach; the others not always.
        let seeder = |number| {
            let unreachable: Vec<usize> = (1..trackers).filter(|_| weather.draw(4) == 0).collect();
            let process = Mutex::new(Process::new(&weather, &places, unreachable.clone()));
            Arc::new(Seeder { number, unreachable, process, blobs: Default::default() })
        };
        let seeders = (0..2 + weather.draw(3) as usize).map(seeder).collect();
        let blob = |number: usize| Blob {
            digest: Digest::of(&[u8::try_from(number).unwrap()]),
            size: 1 + weather.draw(ticks(WORK)),
            fetched: Mutex::default(),
        };
        let blobs = std::array::from_fn(blob);
        Arc::new(Self { seed, calm: wrong == 0, weather, places, seeders, blobs })
    }

    /// A process of a seeder begins.
    fn begin(&self, seeder: &Seeder) -> Life {
        let (process, number) = (seeder.process(), seeder.number);
        let client = HttpClient::over(Arc::clone(&process) as _);
        let trackers: Vec<Url> = (0..self.places.len()).map(url).collect();
        let id: NodeId = format!("seeder{number}").parse().unwrap();
        let info = serde_json::json!({ "id": id, "url": format!("http://10.0.0.{number}:55008") });
        let info = serde_json::from_value(info).unwrap();
        let never = CancellationToken::new();
        let seed = self.weather.seed();
        let registration =
            Registration::over(client.clone(), trackers.clone(), info, seed, never.clone(), never.clone());
        let node = PeerInfo { id, role: NodeRole::Seeder, ..PeerInfo::example() };
        // Nobody asks for peers.
        let (found, _) = mpsc::channel(1);
        let announcer = Announcer::over(client, trackers, node, found, seed, never);
        for (blob, stored) in self.blobs.iter().zip(&seeder.blobs).filter(|(blob, stored)| stored.has() == blob.size) {
            announce(&announcer, blob);
            assert!(!stored.fetches());
        }
        Life { process, registration, announcer }
    }

    /// A seeder, in all its lives.
    async fn live(self: Arc<Self>, seeder: Arc<Seeder>) {
        let longest = if self.calm { Duration::from_secs(30) } else { BAD };
        sleep(self.weather.time(longest)).await;
        loop {
            let life = self.begin(&seeder);
            let killed = async {
                while !life.process.is_dead() {
                    sleep(TICK).await;
                }
            };
            let wants = (0..BLOBS).map(|blob| self.obtain(&seeder, &life, blob));
            tokio::select! {
                // Afterwards it stays, for those that come late.
                () = join_all(wants).then(|_| pending()) => return,
                () = killed => {
                    seeder.blobs.iter().for_each(|stored| stored.set_fetches(false));
                    // What it had to say when it ended never goes out.
                    drop(life);
                    sleep(self.weather.time(Duration::from_secs(15))).await;
                    let process = Process::new(&self.weather, &self.places, seeder.unreachable.clone());
                    *seeder.process.lock().unwrap() = process;
                }
            }
        }
    }

    /// Does what a seeder does until it has a blob.
    async fn obtain(&self, seeder: &Seeder, life: &Life, number: usize) {
        let (blob, stored) = (&self.blobs[number], &seeder.blobs[number]);
        let progress = Arc::new(AtomicU64::new(u64::from(stored.has())));
        let mut without = Vec::new();
        let mut silent = Instant::now();
        while stored.has() < blob.size {
            life.process.awake().await;
            match life.registration.claim(blob.digest, &without, &progress).await {
                Some(SeederClaim::Granted(lease)) => {
                    self.fetch(stored, blob, life, Some(lease), &progress).await;
                    silent = Instant::now();
                }
                Some(SeederClaim::Alone(lease)) => {
                    assert!(!self.calm, "seed {}: no tracker answers", self.seed);
                    self.fetch(stored, blob, life, Some(lease), &progress).await;
                    silent = Instant::now();
                }
                Some(SeederClaim::Held(holder)) => {
                    match self.follow(stored, life, number, &holder).await {
                        Followed::Some => (without, silent) = (Vec::new(), Instant::now()),
                        Followed::Nothing => {}
                        Followed::HasNone if without.contains(&holder.id) => {}
                        Followed::HasNone => without.push(holder.id.clone()),
                    }
                    if silent.elapsed() >= HOLDER_PATIENCE {
                        assert!(!self.calm, "seed {}: nobody gives the blob", self.seed);
                        self.fetch(stored, blob, life, None, &progress).await;
                        silent = Instant::now();
                    }
                    sleep(POLL).await;
                }
                None => panic!("seed {}: there are too many leases", self.seed),
            }
        }
    }

    /// Fetches until the blob is there, the lease is lost, or the registry fails.
    async fn fetch(
        &self,
        stored: &Stored,
        blob: &Blob,
        life: &Life,
        lease: Option<HeldLease>,
        progress: &Arc<AtomicU64>,
    ) {
        let weather = &self.weather;
        let lost = lease.as_ref().map(HeldLease::lost).unwrap_or_default();
        let left = blob.size - stored.has();
        // The registry fails, now and then.
        let gives_up = (Instant::now() < weather.well && weather.draw(5) == 0).then(|| weather.draw(left));
        for done in 0..left {
            life.process.awake().await;
            if lost.is_cancelled() || gives_up == Some(done) {
                stored.set_fetches(false);
                drop(lease);
                sleep(POLL).await;
                return;
            }
            if lease.is_none() {
                // What everybody else does meanwhile is no fault of theirs.
                weather.disturb();
            }
            stored.set_fetches(true);
            sleep(TICK).await;
            *stored.has.lock().unwrap() += 1;
            *blob.fetched.lock().unwrap() += 1;
            progress.store(u64::from(stored.has()), Ordering::Relaxed);
        }
        stored.set_fetches(false);
        announce(&life.announcer, blob);
        sleep(ANNOUNCED).await;
        drop(lease);
    }

    /// Takes a blob from the one that has it, or fetches it.
    async fn follow(&self, stored: &Stored, life: &Life, number: usize, holder: &SeederInfo) -> Followed {
        let blob = &self.blobs[number];
        let holder = self.seeders.iter().find(|seeder| holder.id.as_str() == format!("seeder{}", seeder.number));
        let holder = holder.unwrap();
        let (mut outcome, mut silent) = (Followed::Nothing, Instant::now());
        while stored.has() < blob.size && silent.elapsed() < SILENCE {
            life.process.awake().await;
            if holder.process().is_dead() {
                break;
            }
            let other = &holder.blobs[number];
            if holder.process().is_awake() {
                if !other.fetches() && other.has() < blob.size {
                    return if outcome == Followed::Nothing { Followed::HasNone } else { outcome };
                }
                let mut has = stored.has.lock().unwrap();
                let gained = other.has().saturating_sub(*has).min(10);
                if gained > 0 {
                    *has += gained;
                    (outcome, silent) = (Followed::Some, Instant::now());
                }
            }
            sleep(TICK).await;
        }
        if stored.has() == blob.size {
            announce(&life.announcer, blob);
        }
        outcome
    }

    /// Something happens to a seeder or a tracker.
    fn strike(self: &Arc<Self>) {
        let weather = &self.weather;
        let tracker = weather.draw(u32::try_from(self.places.len()).unwrap()) as usize;
        let process = self.seeders[weather.draw(u32::try_from(self.seeders.len()).unwrap()) as usize].process();
        let time = weather.time(LIFETIME * 3).min(weather.well - Instant::now());
        weather.disturb();
        match weather.draw(8) {
            0 | 1 => process.freeze(time),
            2 => process.cut(tracker, time),
            3 => (0..self.places.len()).for_each(|tracker| process.cut(tracker, time)),
            4 => process.kill(),
            5 => self.places[tracker].freeze(time),
            _ if self.places[tracker].tracker().is_some() => {
                self.places[tracker].kill();
                let world = Arc::clone(self);
                tokio::spawn(async move {
                    sleep(time).await;
                    world.places[tracker].start();
                });
            }
            _ => {}
        }
    }

    async fn run(self: Arc<Self>) {
        let (seed, weather) = (self.seed, &self.weather);
        let mut lives = tokio::task::JoinSet::new();
        for seeder in &self.seeders {
            lives.spawn(Arc::clone(&self).live(Arc::clone(seeder)));
        }
        let end = weather.well + PATIENCE;
        // Ticks between two strikes: where they are seldom, two who fetch are seen.
        let seldom = 40 + weather.draw(320);
        while !self.all_have_all() {
            sleep(TICK).await;
            while let Some(ended) = lives.try_join_next() {
                ended.unwrap();
            }
            if Instant::now() < weather.well && weather.draw(seldom) == 0 {
                self.strike();
            }
            for blob in 0..BLOBS {
                let fetching = self.seeders.iter().filter(|seeder| seeder.is_fetching(blob)).count();
                let may = !(self.calm || weather.is_settled(SETTLED));
                assert!(fetching < 2 || may, "seed {seed}: {fetching} fetch blob {blob}");
            }
            let kept = self.places.iter().filter_map(Place::tracker).map(|tracker| tracker.stats());
            assert!(kept.map(|kept| kept.leases).max().unwrap_or(0) <= BLOBS, "seed {seed}");
            assert!(Instant::now() < end, "seed {seed}: a blob does not come");
        }
        if self.calm {
            for blob in &self.blobs {
                assert_eq!(*blob.fetched.lock().unwrap(), blob.size, "seed {seed}: a part was fetched twice");
            }
            sleep(ANNOUNCED + GIVEN_BACK).await;
            self.assert_trackers_know(self.seeders.len(), "all leases were given back");
        }
        // What was given back in time or came late, and what the dead left, ends by itself.
        sleep_until(Instant::now().max(weather.well + LONGEST * 2) + ANNOUNCED + LIFETIME + SWEEP).await;
        self.assert_trackers_know(self.seeders.len(), "of each seeder, and of no lease");
        // Nobody starts anew.
        lives.shutdown().await;
        self.seeders.iter().for_each(|seeder| seeder.process().kill());
        sleep(LIFETIME + SWEEP).await;
        self.assert_trackers_know(0, "of nobody");
    }

    fn assert_trackers_know(&self, seeders: usize, what: &str) {
        for (number, place) in self.places.iter().enumerate() {
            let reach = self.seeders.iter().filter(|seeder| !seeder.unreachable.contains(&number)).count();
            let stats = place.tracker().unwrap().stats();
            assert_eq!((stats.seeders, stats.leases), (reach.min(seeders), 0), "seed {}: {what}", self.seed);
        }
    }

    fn all_have_all(&self) -> bool {
        let has_all =
            |seeder: &Arc<Seeder>| seeder.blobs.iter().zip(&self.blobs).all(|(has, blob)| has.has() == blob.size);
        Instant::now() >= self.weather.well && self.seeders.iter().all(has_all)
    }
}

/// What came from a holder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Followed {
    Some,
    Nothing,
    /// It neither has the blob nor fetches it.
    HasNone,
}

fn announce(announcer: &Announcer, blob: &Blob) {
    let geometry = Geometry::new(u64::from(blob.size) << 16, 1 << 16).unwrap();
    announcer.update(blob.digest, BlobStatus { geometry, pieces: PieceSet::Complete, want_peers: false });
}

#[test]
fn never_two_for_long_and_always_an_end() {
    let seeds = std::env::var("EAGLE_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let first = std::env::var("EAGLE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async { World::new(seed).run().await });
    }
}
