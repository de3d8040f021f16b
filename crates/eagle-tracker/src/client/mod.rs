//! The client of trackers: keeps them informed of what this node owns and finds peers.
//!
//! [`Announcer`] is a handle to one task. Updates are coalesced in a table: however often
//! a blob changes, an announce carries its latest state once. A blob that newly wants peers goes out
//! at once (after a few milliseconds, so that a burst is one request), a blob that was completed or
//! dropped within a second, everything else with the next regular announce.
//!
//! With several trackers, each blob is announced to one of them, by rendezvous hashing. When that one fails, the next one in
//! the order of the blob stands in for it in the same moment, until it answers again. A tracker that is down is logged once and
//! never an error to a pull.
//!
//! What is said when and to whom is decided by `machine`, which has neither sockets nor a clock; `task` does what it says.

mod http;
mod live;
mod machine;
mod metrics;
mod reports;
mod seeders;
mod state;
mod task;

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use eagle_cluster::MemberTls;
use eagle_core::{Digest, Geometry, PeerInfo, PieceSet, Timestamp, tracker::NodeReports};
use prometheus_client::registry::Registry;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use self::{http::HttpClient, machine::Machine, metrics::Metrics};
pub use self::{
    live::LiveSeeders,
    seeders::{HeldLease, Registration, SeederClaim},
};

/// What a node says about one of its blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobStatus {
    /// How the blob is cut into pieces.
    pub geometry: Geometry,
    /// The pieces that the node owns and serves.
    pub pieces: PieceSet,
    /// Whether it looks for peers.
    pub want_peers: bool,
}

/// Peers that a tracker named for a blob, the best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The blob.
    pub digest: Digest,
    /// Its peers, this node not among them.
    pub peers: Vec<PeerInfo>,
}

/// Why a URL cannot be that of a tracker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrackerUrlError {
    /// Another scheme than http or https.
    #[error("tracker URL {0}: the scheme {1} is not supported; write http://HOST:PORT")]
    Scheme(Url, String),
    /// User name, password, query or fragment.
    #[error("tracker URL {0} has a user name, password, query or fragment, which a tracker does not take")]
    Excess(String),
    /// No host.
    #[error("tracker URL {0} has no host; write http://HOST:PORT")]
    Host(Url),
}

/// Checks that a URL can be that of a tracker: `http://HOST[:PORT][/PREFIX]`. With a cluster key `http://` is TLS too;
/// `https://` can be written where there is one.
///
/// # Errors
/// When it has another scheme, no host, or parts that a tracker has no use for.
pub fn check_tracker_url(url: &Url) -> Result<(), TrackerUrlError> {
    let named = !url.username().is_empty() || url.password().is_some();
    if named || url.query().is_some() || url.fragment().is_some() {
        // Whatever these parts are, they may be secrets: only the rest is shown.
        let shown = format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path());
        return Err(TrackerUrlError::Excess(shown));
    }
    if !["http", "https"].contains(&url.scheme()) {
        return Err(TrackerUrlError::Scheme(url.clone(), url.scheme().to_owned()));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(TrackerUrlError::Host(url.clone()));
    }
    Ok(())
}

/// What all nodes call a tracker, so that they agree on the order of trackers for a blob: host, port and path, without the scheme, which
/// need not be the same everywhere while a cluster is given a key.
fn identity(url: &Url) -> String {
    let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
    format!("{host}:{port}{}", url.path().trim_end_matches('/'))
}

/// What trackers' URLs come to, each once.
fn usable(trackers: Vec<Url>) -> Vec<task::Tracker> {
    let mut names = HashSet::new();
    trackers.into_iter().filter_map(task::Tracker::new).filter(|tracker| names.insert(tracker.name.clone())).collect()
}

/// Handle to the task that announces this node to its trackers. Clones share the task.
#[derive(Clone)]
pub struct Announcer {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

/// What handles and the task share.
struct Shared {
    machine: Mutex<Machine>,
    /// Trackers to announce to from now on, until the task has taken them.
    replaced: Mutex<Option<Vec<task::Tracker>>>,
    /// Notified when an update made the next announce due sooner, or there are other trackers.
    wake: Notify,
    started: Instant,
    /// What announces say of the node beside its blobs.
    reports: reports::Source,
    /// The seeders that are alive; `None` while no tracker says.
    seeders: watch::Sender<Option<Arc<LiveSeeders>>>,
    metrics: Metrics,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Machine> {
        // The machine is valid after every statement of its methods, so a panic elsewhere is no reason to stop.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Timestamp {
        Timestamp(0) + self.started.elapsed()
    }
}

impl Announcer {
    /// Starts announcing `node` to `trackers`, in whatever order, as a member by `members`, until `shutdown`.
    ///
    /// Peers come through `found`; when it is full for a second, they are dropped, and come again with
    /// the next announce. Without trackers nothing is announced. A URL that [`check_tracker_url`] refuses
    /// is logged as an error and not used, and one that is given twice is used once.
    ///
    /// Must be called within a tokio runtime.
    pub fn start(
        trackers: Vec<Url>,
        node: PeerInfo,
        found: mpsc::Sender<Found>,
        members: MemberTls,
        shutdown: CancellationToken,
    ) -> Announcer {
        Self::over(HttpClient::new(&members), trackers, node, found, rand::random(), shutdown)
    }

    /// The same over this client, with its pauses drawn from `seed`.
    fn over(
        client: HttpClient,
        trackers: Vec<Url>,
        node: PeerInfo,
        found: mpsc::Sender<Found>,
        seed: u64,
        shutdown: CancellationToken,
    ) -> Announcer {
        let trackers = usable(trackers);
        let names = trackers.iter().map(|tracker| tracker.name.clone()).collect();
        let machine = Mutex::new(Machine::new(names, node, Timestamp(0), seed));
        let seeders = watch::Sender::new(None);
        let (wake, reports, metrics) = (Notify::new(), reports::Source::new(), Metrics::new());
        let replaced = Mutex::default();
        let shared = Arc::new(Shared { machine, replaced, wake, started: Instant::now(), reports, seeders, metrics });
        let tasks = TaskTracker::new();
        tasks.spawn(task::run(Arc::clone(&shared), trackers, found, client, shutdown));
        tasks.close();
        Self { shared, tasks }
    }

    /// Makes what is counted of announces visible in `registry`, which has the prefix of the node's role.
    pub fn register(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry);
    }

    /// Announces to these trackers from now on, in place of those before. Those that are in both lists keep what they were told; new ones are told
    /// everything; those that are in neither forget the node when it has been silent for long enough. URLs are taken as by [`Announcer::start`].
    pub fn replace_trackers(&self, trackers: Vec<Url>) {
        *self.shared.replaced.lock().unwrap_or_else(PoisonError::into_inner) = Some(usable(trackers));
        self.shared.wake.notify_one();
    }

    /// Says what the node now owns of a blob, and whether it wants peers for it.
    pub fn update(&self, digest: Digest, status: BlobStatus) {
        self.change(|machine, now| machine.update(now, digest, status));
    }

    /// Says that the node no longer has a blob.
    pub fn remove(&self, digest: Digest) {
        self.change(|machine, now| machine.remove(now, digest));
    }

    /// The blobs that the node has by what was said so far, for who has missed what went.
    pub fn blobs(&self) -> HashSet<Digest> {
        self.shared.lock().blobs().collect()
    }

    /// The seeders that are alive, from the same tracker for all nodes as long as that answers; `None` while no tracker answers, or
    /// none knows of any. A change is known with the next announce.
    pub fn seeders(&self) -> watch::Receiver<Option<Arc<LiveSeeders>>> {
        self.shared.seeders.subscribe()
    }

    /// Has announces say from now on how busy the node is and what it received. Only the first call counts.
    pub fn reporting(&self, node: Arc<dyn NodeReports>) {
        // Fails when there is one already.
        let _ = self.shared.reports.set(node);
    }

    /// Waits for the end of the task: after `shutdown` is cancelled, at most about a second, in which
    /// the trackers are told that the node stops.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }

    fn change(&self, change: impl FnOnce(&mut Machine, Timestamp)) {
        let now = self.shared.now();
        let mut machine = self.shared.lock();
        let due = machine.next_timeout();
        change(&mut machine, now);
        let sooner = machine.next_timeout() < due;
        drop(machine);
        if sooner {
            self.shared.wake.notify_one();
        }
    }
}

impl fmt::Debug for Announcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Announcer").field("blobs", &self.shared.lock().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trackers_are_called_the_same_everywhere() {
        for (url, name) in [
            ("http://Tracker-0.eagle:6969", "tracker-0.eagle:6969"),
            ("https://tracker-0.eagle:6969/", "tracker-0.eagle:6969"),
            ("http://[::1]:6969/eagle/", "[::1]:6969/eagle"),
            ("http://10.0.0.1", "10.0.0.1:80"),
        ] {
            assert_eq!(identity(&url.parse().unwrap()), name);
        }
    }

    #[test]
    fn refuses_urls_of_something_else_without_showing_secrets() {
        let check = |text: &str| check_tracker_url(&text.parse().unwrap()).map_err(|error| error.to_string());
        assert_eq!(check("http://tracker:6969"), Ok(()));
        assert_eq!(check("http://[::1]:6969/eagle/"), Ok(()));
        assert_eq!(check("https://tracker:6969"), Ok(()));
        for bad in ["ftp://tracker", "udp://tracker:1", "file:///tmp/x"] {
            assert!(check(bad).unwrap_err().contains("http://HOST:PORT"), "{bad}");
        }
        for bad in ["http://user:secret@tracker", "http://tracker/?token=secret", "https://u:secret@x"] {
            let error = check(bad).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
