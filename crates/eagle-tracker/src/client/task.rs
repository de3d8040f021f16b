//! The task behind an [`Announcer`](super::Announcer): when to announce, and to which tracker.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use eagle_cluster::MemberTls;
use eagle_core::PeerInfo;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use url::Url;

use super::{
    Found, Shared, check_tracker_url,
    http::{Endpoint, ExchangeError, HttpClient},
    state::{State, Urgency},
};
use crate::api::{AnnounceRequest, AnnounceResponse, MAX_PEERS_PER_BLOB};

/// How long an urgent announce waits for more of the same burst: a runtime asks for the layers of an
/// image within a few milliseconds.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// Within what time completed and dropped blobs are announced, spread over it at random.
const SOON: Duration = Duration::from_secs(1);
/// Within what time full states are sent to a tracker that comes up, spread over it at random, so that
/// thousands of nodes do not send theirs in the same moment.
const SPREAD: Duration = Duration::from_secs(1);
/// Least time between two full states asked for by the same tracker, should it never be content.
const FULL_AT_MOST_EVERY: Duration = Duration::from_secs(2);
/// First and longest wait after no tracker answered; doubles in between.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Least wait after no tracker answered even when a pull waits for peers.
const URGENT_BACKOFF: Duration = Duration::from_millis(500);
/// How often trackers before the one in use are probed.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// Bounds of the interval that a tracker may ask for.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(600));
/// Longest wait for the consumer of found peers, for one answer.
const FOUND_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time for telling the trackers that the node stops.
const STOP_TIMEOUT: Duration = Duration::from_millis(900);

struct Task {
    shared: Arc<Shared>,
    node: PeerInfo,
    found: mpsc::Sender<Found>,
    client: HttpClient,
    trackers: Vec<Tracker>,
    /// Index of the tracker in use.
    current: usize,
    /// Rounds in which no tracker answered, since one last did.
    failures: u32,
    last_full: Option<Instant>,
}

struct Tracker {
    url: Url,
    endpoint: Endpoint,
    /// Whether it failed last time, so that an outage is logged once.
    down: bool,
    /// Whether it may still list this node.
    told: bool,
}

type Probe = Pin<Box<dyn Future<Output = Option<usize>> + Send>>;

/// Announces until `shutdown`, then says that the node stops.
pub(super) async fn run(
    shared: Arc<Shared>,
    trackers: Vec<Url>,
    node: PeerInfo,
    found: mpsc::Sender<Found>,
    members: MemberTls,
    shutdown: CancellationToken,
) {
    let trackers: Vec<Tracker> = trackers.into_iter().filter_map(usable).collect();
    if trackers.is_empty() {
        return;
    }
    let client = HttpClient::new(&members);
    let mut task = Task { shared, node, found, client, trackers, current: 0, failures: 0, last_full: None };
    task.announce_until(&shutdown).await;
    task.stop().await;
}

fn usable(url: Url) -> Option<Tracker> {
    if let Err(problem) = check_tracker_url(&url) {
        error!("{problem}; it is not used");
        return None;
    }
    match Endpoint::new(&url) {
        Ok(endpoint) => Some(Tracker { url, endpoint, down: false, told: false }),
        Err(problem) => {
            error!(%url, %problem, "tracker URL cannot be used in HTTP; it is not used");
            None
        }
    }
}

impl Task {
    async fn announce_until(&mut self, shutdown: &CancellationToken) {
        let mut due = Instant::now() + DEBOUNCE;
        let mut probe_due = Instant::now() + PROBE_EVERY;
        let mut probe: Option<Probe> = None;
        loop {
            let may_probe = self.current != 0 && probe.is_none();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = sleep_until(due) => {
                    let wait = tokio::select! {
                        () = shutdown.cancelled() => return,
                        wait = self.announce() => wait,
                    };
                    due = Instant::now() + wait;
                }
                () = wake(&self.shared) => {
                    due = due.min(Instant::now() + self.wait_for_updates());
                }
                answered = resolve(&mut probe) => {
                    probe = None;
                    probe_due = Instant::now() + PROBE_EVERY;
                    if let Some(index) = answered.filter(|index| *index < self.current) {
                        self.use_tracker(index);
                        due = due.min(Instant::now() + up_to(SPREAD));
                    }
                }
                () = sleep_until(probe_due), if may_probe => probe = Some(self.probe()),
            }
        }
    }

    /// How long updates that ask for an announce may wait for others.
    fn wait_for_updates(&self) -> Duration {
        let wait = match self.shared.lock().urgency() {
            Urgency::Now => DEBOUNCE,
            Urgency::Soon => up_to(SOON).max(DEBOUNCE),
            Urgency::Regular => return INTERVAL.1,
        };
        if self.failures > 0 { wait.max(URGENT_BACKOFF) } else { wait }
    }

    /// Brings the first tracker that answers up to date; says when to announce again.
    async fn announce(&mut self) -> Duration {
        let others = (0..self.trackers.len()).filter(|index| *index != self.current);
        let order: Vec<usize> = std::iter::once(self.current).chain(others).collect();
        for index in order {
            if index != self.current {
                self.shared.lock().forget_tracker();
            }
            match self.deliver(index).await {
                Ok(wait) => {
                    self.use_tracker(index);
                    self.failures = 0;
                    return wait;
                }
                Err(problem) => {
                    self.shared.lock().forget_tracker();
                    self.failed(index, &problem);
                }
            }
        }
        let (first, longest) = BACKOFF;
        let backoff = first.saturating_mul(1 << self.failures.min(10)).min(longest);
        self.failures = self.failures.saturating_add(1);
        backoff.mul_f64(rand::random_range(0.5..1.0))
    }

    /// Sends all that a tracker is to know; says when to announce again.
    async fn deliver(&mut self, index: usize) -> Result<Duration, ExchangeError> {
        let requests = self.shared.lock().take(&self.node);
        let mut wait = INTERVAL.1;
        for request in requests {
            if request.full {
                self.last_full = Some(Instant::now());
            }
            // Told before it answers: it may have taken an announce whose answer was lost.
            self.trackers[index].told = true;
            let response = self.client.announce(&self.trackers[index].endpoint, &request).await?;
            wait = wait.min(self.accept(&request, response).await);
        }
        Ok(wait)
    }

    /// Hands on what a tracker said; gives the time until the next announce.
    async fn accept(&self, request: &AnnounceRequest, response: AnnounceResponse) -> Duration {
        for refused in &response.refused {
            if self.shared.lock().refused_first(refused.digest) {
                let reason: String = refused.reason.chars().filter(|c| !c.is_control()).take(200).collect();
                warn!(digest = %refused.digest, "the tracker refuses this node's announce of a blob: {reason}");
            }
        }
        // One deadline for all: after it, only what fits at once is handed on.
        let deadline = Instant::now() + FOUND_TIMEOUT;
        // Not more than were asked for, whatever the tracker says.
        for blob in response.peers.into_iter().take(request.blobs.len()) {
            let peers: Vec<PeerInfo> = blob.peers.into_iter().map(|peer| peer.info).collect();
            let peers = peers.into_iter().filter(|peer| peer.id != self.node.id).take(MAX_PEERS_PER_BLOB);
            let found = Found { digest: blob.digest, peers: peers.collect() };
            if !found.peers.is_empty() && timeout_at(deadline, self.found.send(found)).await.is_err() {
                debug!(digest = %blob.digest, "peers found are not taken; they come again with the next announce");
            }
        }
        let asked = Duration::try_from_secs_f64(response.interval_seconds).unwrap_or(INTERVAL.1);
        let interval = asked.clamp(INTERVAL.0, INTERVAL.1).mul_f64(rand::random_range(0.9..1.1));
        if !response.send_full || request.full {
            return interval;
        }
        self.shared.lock().forget_tracker();
        let since = self.last_full.map_or(FULL_AT_MOST_EVERY, |at| at.elapsed());
        interval.min(up_to(SPREAD).max(FULL_AT_MOST_EVERY.saturating_sub(since)))
    }

    /// Makes a tracker that answered the one in use.
    fn use_tracker(&mut self, index: usize) {
        if std::mem::replace(&mut self.trackers[index].down, false) {
            info!(tracker = %self.trackers[index].url, "the tracker answers again");
        }
        if std::mem::replace(&mut self.current, index) != index {
            self.shared.lock().forget_tracker();
            info!(tracker = %self.trackers[index].url, "announcing to this tracker now");
        }
    }

    fn failed(&mut self, index: usize, problem: &ExchangeError) {
        let tracker = &mut self.trackers[index];
        if std::mem::replace(&mut tracker.down, true) {
            debug!(tracker = %tracker.url, "the tracker still fails: {problem}");
        } else {
            warn!(
                tracker = %tracker.url,
                "announce failed: {problem}; pulls go on with the peers they know, the seeders and the origin"
            );
        }
    }

    /// Looks for a tracker before the one in use that answers again.
    fn probe(&self) -> Probe {
        let client = self.client.clone();
        let endpoints: Vec<Endpoint> =
            self.trackers[..self.current].iter().map(|tracker| tracker.endpoint.clone()).collect();
        Box::pin(async move {
            for (index, endpoint) in endpoints.iter().enumerate() {
                if client.probe(endpoint).await.is_ok() {
                    return Some(index);
                }
            }
            None
        })
    }

    /// Tells every tracker that may list this node that it stops.
    async fn stop(&self) {
        let request = State::stopped(&self.node);
        let told = self.trackers.iter().filter(|tracker| tracker.told);
        let farewells = told.map(async |tracker| {
            if let Err(problem) = self.client.announce(&tracker.endpoint, &request).await {
                debug!(tracker = %tracker.url, "could not say that this node stops: {problem}");
            }
        });
        if timeout(STOP_TIMEOUT, futures::future::join_all(farewells)).await.is_err() {
            debug!("a tracker did not take in time that this node stops");
        }
    }
}

async fn wake(shared: &Shared) {
    shared.wake.notified().await;
}

/// Waits for the probe under way, forever when there is none.
async fn resolve(probe: &mut Option<Probe>) -> Option<usize> {
    match probe {
        Some(probe) => probe.await,
        None => std::future::pending().await,
    }
}

/// A random part of a duration.
fn up_to(duration: Duration) -> Duration {
    duration.mul_f64(rand::random_range(0.0..1.0))
}
