//! What a seeder tells trackers besides announces: that it is alive, and for which blobs it holds the lease.
//!
//! [`Registration`] is a handle to one task, which sends a heartbeat to every tracker every other second. A lease is asked for at
//! every tracker that answers, one after the other in the order of the blob, which is the same for all seeders: two of them that want the same
//! blob meet at the first, and where one does not reach that, at the next that both reach. Renewals travel with the heartbeats. A tracker that
//! was started again or did not answer at first does not know of a lease: it is claimed there later, also when none answered at first. Where
//! another has the lease by then, this seeder's is lost.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use eagle_cluster::MemberTls;
use eagle_core::{
    Digest, NodeId, rendezvous,
    tracker::seeders::{SeederInfo, SeederState},
};
use futures::future::join_all;
use http::Uri;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::{sync::Notify, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};
use url::Url;

use super::{
    check_tracker_url,
    http::{ExchangeError, HttpClient},
    identity,
};
use crate::api::seeders::{
    ClaimRequest, ClaimResponse, HEARTBEAT, HeartbeatRequest, HeartbeatResponse, LEASES_PATH, LeaseRenewal,
    MAX_LEASES_PER_SEEDER, MAX_WITHOUT, RELEASE_PATH, ReleaseRequest, SEEDERS_PATH,
};

/// Longest wait for a tracker while somebody waits for a blob: one in the same cluster that takes longer is down.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for telling the trackers that the seeder ends.
const STOP_TIMEOUT: Duration = Duration::from_millis(900);

/// What became of a claim.
#[derive(Debug)]
pub enum SeederClaim {
    /// It is this seeder's turn, as long as the lease is kept.
    Granted(HeldLease),
    /// No tracker answers, so nobody keeps this seeder from fetching. The lease is claimed as soon as one does.
    Alone(HeldLease),
    /// Another seeder fetches the blob, or has it.
    Held(SeederInfo),
}

/// The right to fetch a blob; given back when dropped.
pub struct HeldLease {
    shared: Arc<Shared>,
    digest: Digest,
    /// Tells this lease from a later one of the same blob.
    number: u64,
    lost: CancellationToken,
}

impl HeldLease {
    /// Cancelled when a tracker says that another seeder fetches the blob by now, or has it: this one was silent for too long, or fetched
    /// where that tracker could not be asked.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }
}

impl fmt::Debug for HeldLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldLease").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.held.get(&self.digest).is_some_and(|held| held.number == self.number)
            && let Some(held) = state.held.remove(&self.digest)
        {
            state.release(self.digest, held.leases);
        }
        drop(state);
        self.shared.wake.notify_one();
    }
}

/// The trackers know of this seeder as long as its task runs. Clones share the task.
#[derive(Clone)]
pub struct Registration {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("leases", &self.shared.lock().held.len()).finish_non_exhaustive()
    }
}

struct Shared {
    client: HttpClient,
    trackers: Mutex<Arc<[Arc<Endpoint>]>>,
    state: Mutex<State>,
    /// Notified when something is to be told before the next heartbeat.
    wake: Notify,
    /// Notified when there are other trackers.
    replaced: Notify,
    draining: CancellationToken,
}

struct State {
    info: SeederInfo,
    /// Where trackers say that this seeder is.
    url: Option<String>,
    held: BTreeMap<Digest, Held>,
    /// Leases to give back, each to its tracker.
    released: Vec<(Arc<Endpoint>, ReleaseRequest)>,
    next_number: u64,
}

struct Held {
    leases: Leases,
    number: u64,
    /// Bytes of the blob that there are.
    progress: Arc<AtomicU64>,
    /// Seeders that turned out not to have it.
    without: Vec<NodeId>,
    lost: CancellationToken,
}

/// What trackers said to a claim; nothing of those that said nothing yet.
type Leases = Vec<(Arc<Endpoint>, Lease)>;

/// What a tracker says to a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lease {
    /// Granted, with this token.
    Token(u64),
    /// Another seeder has it, by a tracker that was out of reach when it was granted elsewhere.
    Refused,
}

/// The word of one of the trackers on a claim.
fn word_of(leases: &Leases, tracker: &Arc<Endpoint>) -> Option<Lease> {
    leases.iter().find(|(known, _)| Arc::ptr_eq(known, tracker)).map(|(_, lease)| *lease)
}

impl State {
    /// Gives leases back, as far as they were granted.
    fn release(&mut self, digest: Digest, leases: Leases) {
        let most = MAX_LEASES_PER_SEEDER * leases.len();
        for (tracker, lease) in leases {
            // As many as there can be leases; what is too much ends by itself.
            if let Lease::Token(token) = lease
                && self.released.len() < most
            {
                self.released.push((tracker, ReleaseRequest { digest, token }));
            }
        }
    }
}

/// What trackers' URLs come to, each once; those that are known already are the same as before.
fn endpoints(trackers: Vec<Url>, known: &[Arc<Endpoint>]) -> Arc<[Arc<Endpoint>]> {
    let mut names = HashSet::new();
    let once = trackers.into_iter().filter_map(|url| {
        let same = known.iter().find(|endpoint| endpoint.url == url).cloned();
        same.or_else(|| Endpoint::new(url).map(Arc::new))
    });
    once.filter(|endpoint| names.insert(endpoint.name.clone())).collect()
}

struct Endpoint {
    url: Url,
    /// What all seeders call it.
    name: String,
    seeders: Uri,
    leases: Uri,
    release: Uri,
    /// Whether it failed last time, so that an outage is logged once.
    down: std::sync::atomic::AtomicBool,
}

impl Endpoint {
    fn new(url: Url) -> Option<Self> {
        if let Err(problem) = check_tracker_url(&url) {
            error!("{problem}; it is not used");
            return None;
        }
        let at = |path: &str| format!("{}{path}", url.as_str().trim_end_matches('/')).parse().ok();
        let (seeders, leases, release) = (at(SEEDERS_PATH)?, at(LEASES_PATH)?, at(RELEASE_PATH)?);
        let name = identity(&url);
        Some(Self { url, name, seeders, leases, release, down: std::sync::atomic::AtomicBool::new(false) })
    }

    /// Takes note of what became of a heartbeat. Whoever drains is not surprised that a tracker ends, too.
    fn answered(&self, result: Result<(), &ExchangeError>, draining: bool) {
        let failed = result.is_err();
        let before = self.down.swap(failed, Ordering::AcqRel);
        match result {
            Err(problem) if !before && !draining => {
                warn!(tracker = %self.url, "the tracker does not know that this seeder is alive: {problem}");
            }
            Err(problem) => debug!(tracker = %self.url, "the tracker still fails: {problem}"),
            Ok(()) if before => info!(tracker = %self.url, "the tracker knows of this seeder again"),
            Ok(()) => {}
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement, so a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration {
    /// Makes the seeder known to these trackers, as a member by `members`; says that it drains when `draining` is cancelled, and that it
    /// ends when `ended` is. Must be called within a tokio runtime.
    pub fn start(
        trackers: Vec<Url>,
        info: SeederInfo,
        members: &MemberTls,
        draining: CancellationToken,
        ended: CancellationToken,
    ) -> Self {
        Self::over(HttpClient::new(members), trackers, info, rand::random(), draining, ended)
    }

    /// The same over this client, with its pauses drawn from `seed`.
    fn over(
        client: HttpClient,
        trackers: Vec<Url>,
        info: SeederInfo,
        seed: u64,
        draining: CancellationToken,
        ended: CancellationToken,
    ) -> Self {
        let state = State { info, url: None, held: BTreeMap::new(), released: Vec::new(), next_number: 0 };
        let shared = Arc::new(Shared {
            client,
            trackers: Mutex::new(endpoints(trackers, &[])),
            state: Mutex::new(state),
            wake: Notify::new(),
            replaced: Notify::new(),
            draining: draining.clone(),
        });
        let tasks = TaskTracker::new();
        tasks.spawn(run(Arc::clone(&shared), ChaCha8Rng::seed_from_u64(seed), draining, ended));
        tasks.close();
        Self { shared, tasks }
    }

    /// Makes the seeder known to these trackers from now on, in place of those before, which forget it soon. Leases that were granted are
    /// claimed at new trackers too. URLs are taken as by [`Registration::start`].
    pub fn replace_trackers(&self, trackers: Vec<Url>) {
        let mut present = self.shared.trackers.lock().unwrap_or_else(PoisonError::into_inner);
        *present = endpoints(trackers, &present);
        drop(present);
        self.shared.replaced.notify_one();
    }

    /// Where trackers say that this seeder is; `None` before one has answered.
    pub fn url(&self) -> Option<String> {
        self.shared.lock().url.clone()
    }

    /// Asks for the lease of a blob, of which `progress` counts the bytes that there are; `without` are seeders that turned
    /// out not to have it. `None` when this seeder has as many leases as it may: then nobody keeps it from fetching.
    pub async fn claim(&self, digest: Digest, without: &[NodeId], progress: &Arc<AtomicU64>) -> Option<SeederClaim> {
        let shared = &self.shared;
        if shared.lock().held.len() >= MAX_LEASES_PER_SEEDER {
            return None;
        }
        let trackers = shared.trackers();
        let names: Vec<&str> = trackers.iter().map(|endpoint| endpoint.name.as_str()).collect();
        let order = rendezvous::places(&names, digest.as_bytes()).into_iter().map(|place| &trackers[place]);
        // Nobody is kept waiting by a tracker that did not take the last heartbeat, unless no other answers.
        let (down, up): (Vec<_>, Vec<_>) = order.partition(|tracker| tracker.down.load(Ordering::Acquire));
        let mut leases = Leases::new();
        for trackers in [up, down] {
            for tracker in trackers {
                match shared.claim_at(tracker, digest, without).await {
                    Some(ClaimResponse::Granted { token, .. }) => {
                        leases.push((Arc::clone(tracker), Lease::Token(token)))
                    }
                    Some(ClaimResponse::Held { holder }) => {
                        // Of a seeder that could not reach the trackers before this one.
                        shared.lock().release(digest, leases);
                        shared.wake.notify_one();
                        return Some(SeederClaim::Held(holder));
                    }
                    None => {}
                }
            }
            if !leases.is_empty() {
                return Some(SeederClaim::Granted(shared.hold(digest, leases, without, progress)));
            }
        }
        Some(SeederClaim::Alone(shared.hold(digest, leases, without, progress)))
    }

    /// Waits for the end of the task, after `ended` was cancelled: about a second, in which the trackers are told.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

async fn run(shared: Arc<Shared>, mut rng: ChaCha8Rng, draining: CancellationToken, ended: CancellationToken) {
    loop {
        shared.heartbeat().await;
        let pause = HEARTBEAT.mul_f64(rng.random_range(0.9..1.1));
        let drains = shared.lock().info.state == SeederState::Draining;
        tokio::select! {
            () = ended.cancelled() => break,
            () = draining.cancelled(), if !drains => shared.lock().info.state = SeederState::Draining,
            () = shared.wake.notified() => shared.release().await,
            () = shared.replaced.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    let seeder = shared.lock().info.clone();
    let farewell = HeartbeatRequest { seeder, stopped: true, leases: Vec::new() };
    let trackers = shared.trackers();
    let told = trackers.iter().map(async |endpoint| {
        let told: Result<HeartbeatResponse, _> = shared.client.post(&endpoint.seeders, &farewell).await;
        if let Err(problem) = told {
            debug!(tracker = %endpoint.url, "could not say that this seeder ends: {problem}");
        }
    });
    if timeout(STOP_TIMEOUT, join_all(told)).await.is_err() {
        debug!("a tracker did not take in time that this seeder ends");
    }
}

impl Shared {
    /// The trackers at present.
    fn trackers(&self) -> Arc<[Arc<Endpoint>]> {
        Arc::clone(&self.trackers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps the leases of a blob that these trackers gave until the result is dropped.
    fn hold(
        self: &Arc<Self>,
        digest: Digest,
        leases: Leases,
        without: &[NodeId],
        progress: &Arc<AtomicU64>,
    ) -> HeldLease {
        let mut state = self.lock();
        let (number, lost) = (state.next_number, CancellationToken::new());
        state.next_number += 1;
        let (progress, without) = (Arc::clone(progress), without.to_vec());
        state.held.insert(digest, Held { leases, number, progress, without, lost: lost.clone() });
        HeldLease { shared: Arc::clone(self), digest, number, lost }
    }

    /// Asks a tracker for a lease while somebody waits for the blob.
    async fn claim_at(&self, endpoint: &Endpoint, digest: Digest, without: &[NodeId]) -> Option<ClaimResponse> {
        let seeder = self.lock().info.clone();
        let without = without.iter().take(MAX_WITHOUT).cloned().collect();
        let request = ClaimRequest { digest, seeder, without };
        match timeout(CLAIM_TIMEOUT, self.client.post(&endpoint.leases, &request)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(problem)) => debug!(tracker = %endpoint.url, blob = %digest, "no lease: {problem}"),
            Err(_) => debug!(tracker = %endpoint.url, blob = %digest, "no lease within {CLAIM_TIMEOUT:?}"),
        }
        None
    }

    /// Tells every tracker that this seeder is alive, and those that gave leases that they are used.
    async fn heartbeat(self: &Arc<Self>) {
        join_all(self.trackers().iter().map(|tracker| self.heartbeat_to(tracker))).await;
    }

    async fn heartbeat_to(&self, endpoint: &Arc<Endpoint>) {
        let (request, unknown) = {
            let state = self.lock();
            let (mut leases, mut unknown) = (Vec::new(), Vec::new());
            for (digest, held) in &state.held {
                match word_of(&held.leases, endpoint) {
                    Some(Lease::Token(token)) => {
                        let progress = held.progress.load(Ordering::Relaxed);
                        leases.push(LeaseRenewal { digest: *digest, token, progress });
                    }
                    Some(Lease::Refused) => {}
                    None => unknown.push((*digest, None)),
                }
            }
            (HeartbeatRequest { seeder: state.info.clone(), stopped: false, leases }, unknown)
        };
        let answer: Result<HeartbeatResponse, _> = self.client.post(&endpoint.seeders, &request).await;
        // What counts is now, not when the heartbeat went out.
        let draining = self.lock().info.state == SeederState::Draining || self.draining.is_cancelled();
        endpoint.answered(answer.as_ref().map(|_| ()), draining);
        let Ok(answer) = answer else { return };
        self.lock().url = Some(answer.url);
        let lost = request.leases.iter().filter(|renewal| answer.lost.contains(&renewal.digest));
        let lost = lost.map(|renewal| (renewal.digest, Some(Lease::Token(renewal.token))));
        for (digest, before) in lost.chain(unknown) {
            if !self.claim_again(endpoint, digest, before).await {
                // Tried again after the next heartbeat.
                return;
            }
        }
    }

    /// The tracker was started again, heard of this seeder too late, or could not be asked at first. Whether it answers.
    async fn claim_again(&self, tracker: &Arc<Endpoint>, digest: Digest, before: Option<Lease>) -> bool {
        let request = {
            let state = self.lock();
            // Unless it was given back meanwhile.
            let Some(held) = state.held.get(&digest) else { return true };
            let without = held.without.iter().take(MAX_WITHOUT).cloned().collect();
            ClaimRequest { digest, seeder: state.info.clone(), without }
        };
        let word = match self.client.post(&tracker.leases, &request).await {
            Ok(ClaimResponse::Granted { token, .. }) => Lease::Token(token),
            Ok(ClaimResponse::Held { .. }) => Lease::Refused,
            Err(problem) => {
                debug!(blob = %digest, "the lease is not renewed: {problem}");
                return false;
            }
        };
        let mut state = self.lock();
        // Unless it was given back meanwhile.
        let held = state.held.get_mut(&digest).filter(|held| word_of(&held.leases, tracker) == before);
        match (held, word) {
            (Some(held), word) => {
                held.leases.retain(|(known, _)| !Arc::ptr_eq(known, tracker));
                held.leases.push((Arc::clone(tracker), word));
                if word == Lease::Refused {
                    info!(blob = %digest, "another seeder has the lease of a blob that is fetched here");
                    // Otherwise both would fetch it to its end.
                    held.lost.cancel();
                }
            }
            (None, Lease::Token(token)) => {
                state.released.push((Arc::clone(tracker), ReleaseRequest { digest, token }));
                drop(state);
                self.wake.notify_one();
            }
            (None, Lease::Refused) => {}
        }
        true
    }

    async fn release(&self) {
        let released = std::mem::take(&mut self.lock().released);
        let told = released.iter().map(async |(endpoint, request)| {
            let told: Result<serde_json::Value, _> = self.client.post(&endpoint.release, request).await;
            if let Err(problem) = told {
                debug!(tracker = %endpoint.url, "a lease is not given back and ends by itself: {problem}");
            }
        });
        join_all(told).await;
    }
}

#[cfg(test)]
#[cfg(feature = "server")]
mod lossy_network;
#[cfg(test)]
#[cfg(feature = "server")]
mod lossy_tests;
