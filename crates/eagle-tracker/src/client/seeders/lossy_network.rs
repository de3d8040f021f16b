//! Trackers on virtual time, behind a network that loses, repeats, reorders and delays what goes to them and comes from them. They die and come
//! back empty and stand still; so do the processes that use them.

use std::{
    future::pending,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::time::{Instant, sleep, sleep_until};

use super::super::http::{ExchangeError, Transport};
use crate::server::unconnected::Unconnected;

/// Longest that a request or an answer is under way while all is well.
const USUAL: Duration = Duration::from_millis(50);
/// Longest that a bad network keeps a request or an answer.
pub(super) const LONGEST: Duration = Duration::from_secs(12);
/// How long it takes to find out that nobody answers, as in [`super::super::http`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What happens to trackers and processes.
#[derive(Debug)]
pub(super) struct Weather {
    state: Mutex<State>,
    /// Of 1000 exchanges, how many go wrong, until all is well.
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
        self.lock().rng.random_range(0..end)
    }

    pub(super) fn seed(&self) -> u64 {
        self.lock().rng.random()
    }

    /// A time up to `longest`.
    pub(super) fn time(&self, longest: Duration) -> Duration {
        longest * self.draw(1000) / 1000
    }

    /// Notes that something happens now that may leave two who fetch.
    pub(super) fn disturb(&self) {
        self.disturb_until(Instant::now());
    }

    pub(super) fn disturb_until(&self, end: Instant) {
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

/// A tracker, in all its lives.
#[derive(Debug)]
pub(super) struct Place {
    weather: Arc<Weather>,
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    tracker: Option<Arc<Unconnected>>,
    /// Counts its lives: what was under way to an earlier one is lost.
    life: u64,
    /// Until when it stands still.
    frozen: Instant,
}

impl Place {
    pub(super) fn new(weather: &Arc<Weather>) -> Self {
        let running = Running { tracker: None, life: 0, frozen: Instant::now() };
        let place = Self { weather: Arc::clone(weather), running: Mutex::new(running) };
        place.start();
        place
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tracker(&self) -> Option<Arc<Unconnected>> {
        self.lock().tracker.clone()
    }

    /// Comes back without what it knew.
    pub(super) fn start(&self) {
        self.weather.disturb();
        let mut running = self.lock();
        running.life += 1;
        // As by a clock that has gone on.
        running.tracker = Some(Arc::new(Unconnected::start(running.life << 20)));
    }

    pub(super) fn kill(&self) {
        self.weather.disturb();
        self.lock().tracker = None;
    }

    /// Stands still for this long.
    pub(super) fn freeze(&self, time: Duration) {
        let end = Instant::now() + time;
        self.lock().frozen = end;
        self.weather.disturb_until(end);
    }

    /// Gives a request to the process that it was sent to.
    async fn deliver(&self, life: u64, path: &str, body: &Bytes) -> Result<(StatusCode, Bytes), ExchangeError> {
        let frozen = self.lock().frozen;
        sleep_until(frozen).await;
        let tracker = {
            let running = self.lock();
            running.tracker.clone().filter(|_| running.life == life)
        };
        let tracker = tracker.ok_or_else(|| ExchangeError::Broken("it is gone".to_owned()))?;
        Ok(tracker.answer(path, body, IpAddr::from([10, 0, 0, 1])).await)
    }
}

/// One process that uses trackers, and its way to them.
#[derive(Debug)]
pub(super) struct Process {
    weather: Arc<Weather>,
    places: Arc<[Place]>,
    /// Trackers that it never reaches.
    unreachable: Vec<usize>,
    state: Mutex<Fate>,
}

#[derive(Debug)]
struct Fate {
    /// Until when it stands still.
    frozen: Option<Instant>,
    dead: bool,
    /// Until when it reaches no tracker of those named.
    cut: Vec<Instant>,
}

impl Process {
    pub(super) fn new(weather: &Arc<Weather>, places: &Arc<[Place]>, unreachable: Vec<usize>) -> Arc<Self> {
        let now = Instant::now();
        let state = Mutex::new(Fate { frozen: None, dead: false, cut: vec![now; places.len()] });
        Arc::new(Self { weather: Arc::clone(weather), places: Arc::clone(places), unreachable, state })
    }

    fn lock(&self) -> MutexGuard<'_, Fate> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stands still for this long.
    pub(super) fn freeze(&self, time: Duration) {
        let mut state = self.lock();
        state.frozen = state.frozen.max(Some(Instant::now() + time));
    }

    /// Does not reach this tracker for this long.
    pub(super) fn cut(&self, tracker: usize, time: Duration) {
        let end = Instant::now() + time;
        let mut state = self.lock();
        state.cut[tracker] = state.cut[tracker].max(end);
        drop(state);
        // It fetches on meanwhile, and can know nothing.
        self.weather.disturb_until(end);
    }

    /// Ends without a word.
    pub(super) fn kill(&self) {
        self.lock().dead = true;
    }

    pub(super) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Whether it does something.
    pub(super) fn is_awake(&self) -> bool {
        !self.is_dead() && self.frozen().is_none()
    }

    /// Until when it stands still.
    fn frozen(&self) -> Option<Instant> {
        let mut state = self.lock();
        if state.frozen.is_some_and(|end| end <= Instant::now()) {
            state.frozen = None;
            // Whatever it believed when it stopped it believes now.
            self.weather.disturb();
        }
        state.frozen
    }

    /// Waits until it does not stand still; for ever when it is dead.
    pub(super) async fn awake(&self) {
        loop {
            if self.is_dead() {
                pending::<()>().await;
            }
            let Some(end) = self.frozen() else { return };
            sleep_until(end).await;
        }
    }

    async fn exchange(&self, number: usize, path: String, body: Bytes) -> Result<(StatusCode, Bytes), ExchangeError> {
        let weather = &self.weather;
        self.awake().await;
        sleep(weather.time(USUAL)).await;
        let cut = self.lock().cut[number];
        if self.unreachable.contains(&number) || Instant::now() < cut {
            if Instant::now() < cut {
                weather.disturb();
            }
            sleep(CONNECT_TIMEOUT).await;
            return Err(ExchangeError::Connect("nobody answers".to_owned()));
        }
        let (up, life) = {
            let running = self.places[number].lock();
            (running.tracker.is_some(), running.life)
        };
        if !up {
            weather.disturb();
            return Err(ExchangeError::Connect("it is not there".to_owned()));
        }
        if !weather.goes_wrong() {
            let answer = self.places[number].deliver(life, &path, &body).await;
            sleep(weather.time(USUAL)).await;
            self.awake().await;
            return answer;
        }
        weather.disturb();
        let (kind, late) = (weather.draw(6), weather.time(LONGEST));
        let (places, of) = (Arc::clone(&self.places), Arc::clone(weather));
        let later = async move |late: Duration| {
            sleep(late).await;
            of.disturb();
            places[number].deliver(life, &path, &body).await
        };
        match kind {
            // It never arrives.
            0 => pending().await,
            // It arrives late, whether or not anybody still waits, and so does the answer.
            1 => {
                let answer = tokio::spawn(async move { later(late).await }).await.unwrap();
                sleep(weather.time(LONGEST)).await;
                weather.disturb();
                self.awake().await;
                answer
            }
            // It arrives late, and its sender hears at once that it did not.
            2 => {
                tokio::spawn(async move { later(late).await });
                Err(ExchangeError::Broken("it came late".to_owned()))
            }
            // It arrives, and its sender waits for an answer in vain.
            3 => {
                let _ = later(Duration::ZERO).await;
                pending().await
            }
            // It arrives and is answered, and arrives again.
            4 => {
                let answer = later(Duration::ZERO).await;
                tokio::spawn(async move { later(late).await });
                answer
            }
            // It arrives, the answer does not, and it arrives again.
            _ => {
                tokio::spawn(async move {
                    let _ = later(Duration::ZERO).await;
                    later(late).await
                });
                Err(ExchangeError::Broken("it broke".to_owned()))
            }
        }
    }
}

impl Transport for Process {
    fn carry(&self, request: Request<Full<Bytes>>) -> BoxFuture<'_, Result<(StatusCode, Bytes), ExchangeError>> {
        Box::pin(async move {
            let uri = request.uri().clone();
            let number = uri.host().unwrap().strip_prefix("tracker-").unwrap().parse().unwrap();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            self.exchange(number, uri.path().to_owned(), body).await
        })
    }
}
