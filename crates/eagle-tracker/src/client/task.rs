//! The task behind an [`Announcer`](super::Announcer): does what the machine says.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use eagle_cluster::MemberTls;
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
    machine::{Action, Ticket},
};
use crate::api::AnnounceResponse;

/// Longest wait for the consumer of found peers, for one answer.
const FOUND_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for the list of seeders, which announces wait for.
const SEEDERS_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for telling the trackers that the node stops.
const STOP_TIMEOUT: Duration = Duration::from_millis(900);

struct Task {
    shared: Arc<Shared>,
    endpoints: Vec<Endpoint>,
    client: HttpClient,
    found: mpsc::Sender<Found>,
}

/// Something under way; at most one of each kind.
type Pending<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// Announces until `shutdown`, then says that the node stops. The machine names trackers by their places in `endpoints`.
pub(super) async fn run(
    shared: Arc<Shared>,
    endpoints: Vec<Endpoint>,
    found: mpsc::Sender<Found>,
    members: MemberTls,
    shutdown: CancellationToken,
) {
    if endpoints.is_empty() {
        return;
    }
    let task = Task { shared, endpoints, client: HttpClient::new(&members), found };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = task.announce() => {}
    }
    task.stop().await;
}

/// What a tracker's URL comes to, with its text; nothing for one that cannot be used.
pub(super) fn usable(url: Url) -> Option<(String, Endpoint)> {
    if let Err(problem) = check_tracker_url(&url) {
        error!("{problem}; it is not used");
        return None;
    }
    match Endpoint::new(&url) {
        Ok(endpoint) => Some((url.into(), endpoint)),
        Err(problem) => {
            error!(%url, %problem, "tracker URL cannot be used in HTTP; it is not used");
            None
        }
    }
}

impl Task {
    /// Goes on for ever.
    async fn announce(&self) {
        let mut announce: Pending<(Ticket, usize, Result<AnnounceResponse, ExchangeError>)> = None;
        let mut probe: Pending<Option<usize>> = None;
        loop {
            while let Some(action) = self.next_action() {
                match action {
                    Action::Announce { ticket, tracker, request } => {
                        let (client, endpoint) = (self.client.clone(), self.endpoints[tracker].clone());
                        announce =
                            Some(Box::pin(
                                async move { (ticket, tracker, client.announce(&endpoint, &request).await) },
                            ));
                    }
                    Action::Probe { trackers } => probe = Some(self.probe(trackers)),
                }
            }
            let due = self.shared.lock().next_timeout();
            let due = due.map(|due| self.shared.started + Duration::from_nanos(due.0));
            tokio::select! {
                (ticket, tracker, outcome) = resolve(&mut announce) => {
                    announce = None;
                    self.answered(ticket, tracker, outcome).await;
                }
                answered = resolve(&mut probe) => {
                    probe = None;
                    let now = self.shared.now();
                    self.shared.lock().handle_probe(now, answered);
                }
                () = self.shared.wake.notified() => {}
                () = until(due) => {}
            }
        }
    }

    fn next_action(&self) -> Option<Action> {
        let now = self.shared.now();
        self.shared.lock().poll(now)
    }

    /// Hands on what a tracker said.
    async fn answered(&self, ticket: Ticket, tracker: usize, outcome: Result<AnnounceResponse, ExchangeError>) {
        let now = self.shared.now();
        let (found, seeders) = match outcome {
            Ok(response) => {
                let seeders = response.seeders_version;
                (self.shared.lock().handle_answer(now, ticket, response), seeders)
            }
            Err(problem) => {
                let mut machine = self.shared.lock();
                machine.handle_failure(now, ticket, &problem);
                if machine.is_alone() {
                    // Whom the last of them named may be gone: the configured seeders count until one answers.
                    self.shared.seeders.send_if_modified(|seeders| seeders.take().is_some());
                }
                return;
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
        self.follow_seeders(tracker, seeders).await;
    }

    /// Fetches the list of live seeders when it is not the one that is known.
    async fn follow_seeders(&self, tracker: usize, version: Option<u64>) {
        let seeders = &self.shared.seeders;
        let Some(version) = version else {
            seeders.send_if_modified(|seeders| seeders.take().is_some());
            return;
        };
        if seeders.borrow().as_ref().is_some_and(|live| live.version == version) {
            return;
        }
        match timeout(SEEDERS_TIMEOUT, self.client.seeders(&self.endpoints[tracker])).await {
            Ok(Ok(list)) => {
                let live = LiveSeeders::new(list);
                debug!(up = live.up.len(), draining = live.draining.len(), "seeders that are alive");
                seeders.send_replace(Some(live));
            }
            Ok(Err(problem)) => debug!("the list of seeders is asked for again with the next announce: {problem}"),
            Err(_) => debug!("no list of seeders within {SEEDERS_TIMEOUT:?}; asked for again with the next announce"),
        }
    }

    /// Looks for one of the first trackers that answers again.
    fn probe(&self, trackers: usize) -> Pin<Box<dyn Future<Output = Option<usize>> + Send>> {
        let (client, endpoints) = (self.client.clone(), self.endpoints[..trackers].to_vec());
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
        let (request, told) = self.shared.lock().farewell();
        let farewells = told.into_iter().map(async |tracker| {
            if let Err(problem) = self.client.announce(&self.endpoints[tracker], &request).await {
                debug!(tracker = %self.endpoints[tracker], "could not say that this node stops: {problem}");
            }
        });
        if timeout(STOP_TIMEOUT, futures::future::join_all(farewells)).await.is_err() {
            debug!("a tracker did not take in time that this node stops");
        }
    }
}

/// Waits for what is under way, for ever when there is nothing.
async fn resolve<T>(pending: &mut Pending<T>) -> T {
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
