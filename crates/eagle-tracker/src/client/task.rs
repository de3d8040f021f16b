//! The task behind an [`Announcer`](super::Announcer): does what the machine says.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};
use url::Url;

use super::{
    Found, LiveSeeders, Shared, check_tracker_url,
    http::{Endpoint, ExchangeError, HttpClient},
    identity,
    machine::{Announce, SeedersFrom, Ticket},
    reports::Told,
};
use crate::api::AnnounceResponse;

/// Longest wait for the consumer of found peers, for one answer.
const FOUND_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for the list of seeders.
const SEEDERS_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for telling the trackers that the node stops.
const STOP_TIMEOUT: Duration = Duration::from_millis(900);

/// Most former trackers that are told of the end of the node, if it comes soon.
const FORMER: usize = 16;

struct Task {
    shared: Arc<Shared>,
    trackers: Vec<Tracker>,
    /// Those that were replaced and may still list this node, the latest last.
    former: Vec<Tracker>,
    client: HttpClient,
    found: mpsc::Sender<Found>,
}

/// A tracker to announce to.
#[derive(Debug, Clone)]
pub(super) struct Tracker {
    /// What all nodes call it.
    pub(super) name: String,
    endpoint: Endpoint,
}

impl Tracker {
    /// What a tracker's URL comes to; nothing for one that cannot be used.
    pub(super) fn new(url: Url) -> Option<Self> {
        if let Err(problem) = check_tracker_url(&url) {
            error!("{problem}; it is not used");
            return None;
        }
        match Endpoint::new(&url) {
            Ok(endpoint) => Some(Self { name: identity(&url), endpoint }),
            Err(problem) => {
                error!(%url, %problem, "tracker URL cannot be used in HTTP; it is not used");
                None
            }
        }
    }
}

/// What became of an announce.
type Outcome = (Ticket, usize, Result<AnnounceResponse, ExchangeError>);
/// Announces under way, at most one to each tracker.
type Announces = FuturesUnordered<Pin<Box<dyn Future<Output = Outcome> + Send>>>;
/// The list of seeders on its way, if it is.
type Pending = Option<Pin<Box<dyn Future<Output = Option<LiveSeeders>> + Send>>>;

/// Announces until `shutdown`, then says that the node stops. The machine names trackers by their places in `trackers`.
pub(super) async fn run(
    shared: Arc<Shared>,
    trackers: Vec<Tracker>,
    found: mpsc::Sender<Found>,
    client: HttpClient,
    shutdown: CancellationToken,
) {
    let mut task = Task { shared, trackers, former: Vec::new(), client, found };
    tokio::select! {
        // What the end breaks is no failure: a tracker that stops in the same moment closes the connections of announces.
        biased;
        () = shutdown.cancelled() => {}
        () = task.announce() => {}
    }
    task.stop().await;
}

impl Task {
    /// Goes on for ever.
    async fn announce(&mut self) {
        let mut announces = Announces::new();
        let mut list: Pending = None;
        let mut told = Told::default();
        loop {
            if let Some(trackers) = self.replaced() {
                // Places mean other trackers from here on. What was under way is said again.
                (announces, list) = (Announces::new(), None);
                self.replace(trackers);
                told.retain(|name| self.trackers.iter().any(|tracker| tracker.name == name));
            }
            while let Some(Announce { ticket, tracker, mut request }) = self.next_announce() {
                let Tracker { name, endpoint } = &self.trackers[tracker];
                told.add(Instant::now(), &self.shared.reports, name, &mut request);
                let (client, endpoint) = (self.client.clone(), endpoint.clone());
                announces.push(Box::pin(async move { (ticket, tracker, client.announce(&endpoint, &request).await) }));
            }
            let due = self.shared.lock().next_timeout();
            let due = due.map(|due| self.shared.started + Duration::from_nanos(due.0));
            tokio::select! {
                Some((ticket, tracker, outcome)) = announces.next() => {
                    if self.answered(ticket, tracker, outcome).await && list.is_none() {
                        list = Some(self.list_of_seeders(tracker));
                    }
                }
                fetched = resolve(&mut list) => {
                    list = None;
                    if let Some(live) = fetched {
                        self.shared.seeders.send_replace(Some(Arc::new(live)));
                    }
                }
                () = self.shared.wake.notified() => {}
                () = until(due) => {}
            }
        }
    }

    /// Other trackers, if there are.
    fn replaced(&self) -> Option<Vec<Tracker>> {
        self.shared.replaced.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Announces to other trackers from now on.
    fn replace(&mut self, trackers: Vec<Tracker>) {
        let names: Vec<String> = trackers.iter().map(|tracker| tracker.name.clone()).collect();
        self.former.retain(|former| !names.contains(&former.name));
        let mut machine = self.shared.lock();
        for place in machine.farewell().1 {
            if !names.contains(&self.trackers[place].name) {
                self.former.push(self.trackers[place].clone());
            }
        }
        self.former.drain(..self.former.len().saturating_sub(FORMER));
        machine.replace_trackers(self.shared.now(), names);
        drop(machine);
        if trackers.is_empty() {
            // Nobody says any more which seeders are alive.
            self.shared.seeders.send_if_modified(|seeders| seeders.take().is_some());
        }
        self.trackers = trackers;
    }

    fn next_announce(&self) -> Option<Announce> {
        let now = self.shared.now();
        self.shared.lock().poll(now)
    }

    /// Hands on what a tracker said. Whether it has another list of seeders than the one that is known.
    async fn answered(&self, ticket: Ticket, tracker: usize, outcome: Result<AnnounceResponse, ExchangeError>) -> bool {
        self.shared.metrics.announced(outcome.is_ok());
        let now = self.shared.now();
        let (found, version, from) = match outcome {
            Ok(response) => {
                let version = response.seeders_version;
                let mut machine = self.shared.lock();
                (machine.handle_answer(now, ticket, response), version, machine.seeders_from(now, tracker))
            }
            Err(problem) => {
                let mut machine = self.shared.lock();
                machine.handle_failure(now, ticket, &problem);
                if machine.is_alone() {
                    // Whom the last of them named may be gone: the configured seeders count until one answers.
                    self.shared.seeders.send_if_modified(|seeders| seeders.take().is_some());
                }
                return false;
            }
        };
        // One deadline for all: after it, only what fits at once is handed on.
        let deadline = Instant::now() + FOUND_TIMEOUT;
        for found in found {
            let digest = found.digest;
            if timeout_at(deadline, self.found.send(found)).await.is_err() {
                debug!(%digest, "peers found are not taken; they come again with the next announce");
            }
        }
        match from {
            SeedersFrom::This => self.shared.seeders.borrow().as_ref().map(|live| live.version) != version,
            SeedersFrom::Another => false,
            SeedersFrom::Nobody => {
                self.shared.seeders.send_if_modified(|seeders| seeders.take().is_some());
                false
            }
        }
    }

    /// Fetches the list of live seeders.
    fn list_of_seeders(&self, tracker: usize) -> Pin<Box<dyn Future<Output = Option<LiveSeeders>> + Send>> {
        let (client, endpoint) = (self.client.clone(), self.trackers[tracker].endpoint.clone());
        Box::pin(async move {
            match timeout(SEEDERS_TIMEOUT, client.seeders(&endpoint)).await {
                Ok(Ok(list)) => {
                    let live = LiveSeeders::new(list);
                    debug!(up = live.up.len(), draining = live.draining.len(), "seeders that are alive");
                    return Some(live);
                }
                Ok(Err(problem)) => debug!("the list of seeders is asked for again with the next announce: {problem}"),
                Err(_) => {
                    debug!("no list of seeders within {SEEDERS_TIMEOUT:?}; asked for again with the next announce");
                }
            }
            None
        })
    }

    /// Tells every tracker that may list this node that it stops.
    async fn stop(&self) {
        let (request, told) = self.shared.lock().farewell();
        let told = told.into_iter().map(|tracker| &self.trackers[tracker]).chain(&self.former);
        let farewells = told.map(async |Tracker { endpoint, .. }| {
            if let Err(problem) = self.client.announce(endpoint, &request).await {
                debug!(tracker = %endpoint, "could not say that this node stops: {problem}");
            }
        });
        if timeout(STOP_TIMEOUT, futures::future::join_all(farewells)).await.is_err() {
            debug!("a tracker did not take in time that this node stops");
        }
    }
}

/// Waits for what is under way, for ever when there is nothing.
async fn resolve(pending: &mut Pending) -> Option<LiveSeeders> {
    match pending {
        Some(pending) => pending.await,
        None => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use eagle_core::{Digest, Geometry, PeerInfo, PieceSet};
    use futures::future::BoxFuture;
    use http::{Request, StatusCode};
    use http_body_util::Full;
    use tokio::time::sleep;

    use super::{super::http::Transport, *};
    use crate::client::{Announcer, BlobStatus};

    /// A tracker that ends in the same moment as the node.
    #[derive(Debug)]
    struct EndsToo(CancellationToken);

    impl Transport for EndsToo {
        fn carry(&self, _: Request<Full<Bytes>>) -> BoxFuture<'_, Result<(StatusCode, Bytes), ExchangeError>> {
            Box::pin(async {
                self.0.cancelled().await;
                Err(ExchangeError::Broken("it ends".to_owned()))
            })
        }
    }

    /// Which of two things that are ready comes first is drawn where nothing says it: 64 times the right one is no chance.
    #[tokio::test(start_paused = true)]
    async fn an_announce_that_the_end_breaks_is_no_failure() {
        for seed in 0..64 {
            let shutdown = CancellationToken::new();
            let client = HttpClient::over(Arc::new(EndsToo(shutdown.clone())));
            let (found, _peers) = mpsc::channel(1);
            let trackers = vec!["http://tracker:6969".parse().unwrap()];
            let announcer = Announcer::over(client, trackers, PeerInfo::example(), found, seed, shutdown.clone());
            let geometry = Geometry::new(1 << 20, 1 << 16).unwrap();
            let status = BlobStatus { geometry, pieces: PieceSet::Complete, want_peers: true };
            announcer.update(Digest::of(b"blob"), status);
            // The announce is under way.
            sleep(Duration::from_millis(100)).await;
            shutdown.cancel();
            announcer.stopped().await;
            assert!(!announcer.shared.lock().is_alone(), "{seed}: the tracker counts as failed");
        }
    }
}
