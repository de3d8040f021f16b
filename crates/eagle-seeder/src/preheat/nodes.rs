//! Warming of proxies.
//!
//! A proxy asks each of its seeders now and then whether there is something to warm, and tells how what it was
//! given went. Nobody connects to a proxy for this, so there is no port on it that could be asked by a stranger:
//! it does what the seeders of its own configuration say, which it trusts with every blob anyway. An answer
//! is all that the node still has to do, so that a lost answer, a cancelled job or a restart on either side
//! needs no further message.

use std::{
    collections::HashMap,
    net::IpAddr,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use eagle_core::{Bitfield, Digest, NodeId, PieceIndex};
use eagle_registry::{RegistryName, RepositoryName, Tag};
use lru::LruCache;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};

use super::node_target::NodeTarget;
use super::report::{JobId, JobState, one_line};

/// Nodes known at a time: the largest clusters of Kubernetes have 5,000.
const MAX_NODES: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
/// Blobs in one answer; a node asks for more when it has these.
const MAX_WORK: usize = 500;
/// Results in one request of a node.
pub(crate) const MAX_RESULTS: usize = 1000;
/// Requests that idle nodes are told to send per second, all together, and how long one may wait in between.
const IDLE_RATE: f64 = 100.0;
const IDLE_INTERVALS: (f64, f64) = (5.0, 60.0);
/// The same for nodes that have work.
const BUSY_RATE: f64 = 500.0;
const BUSY_INTERVALS: (f64, f64) = (1.0, 20.0);
/// How long a node that says nothing counts as there: three of the longest intervals.
const SILENCE: Duration = Duration::from_secs(180);
/// How long a node may take for one more blob: 10 GiB at 6 MB/s.
const PATIENCE: Duration = Duration::from_secs(1800);
/// How long after the start of the seeder nodes are waited for, to whom it is new.
const ACQUAINTANCE: Duration = Duration::from_secs(15);
/// How often the reports of nodes are brought up to date.
const UPDATE: Duration = Duration::from_secs(1);

/// A blob or manifest that nodes should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmBlob {
    /// The blob, or manifest.
    pub digest: Digest,
    /// Its size, bytes.
    pub size: u64,
    /// A registry that has it.
    pub registry: RegistryName,
    /// A repository there that has it.
    pub repository: RepositoryName,
    /// That it is a manifest, which a node remembers and does not store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<WarmManifest>,
}

/// What nodes are told of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmManifest {
    /// The tag by which it will be asked for; none for a manifest that another one names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
}

/// What a node tells: that it is there, and how its work went. Body of `POST /v1/nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeNews {
    /// The node.
    pub node: NodeId,
    /// Blobs that it has now, or cannot have; at most 1,000.
    #[serde(default)]
    pub results: Vec<WarmResult>,
}

/// How one blob went on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmResult {
    /// The job it was for.
    pub job: JobId,
    /// The blob.
    pub digest: Digest,
    /// Why the node does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a node is told: everything that it still has to do, up to 500 blobs. Answer to `POST /v1/nodes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeOrders {
    /// When to ask again, seconds, if nothing is done before.
    pub interval_seconds: f64,
    /// The blobs.
    pub work: Vec<WarmOrder>,
}

/// One blob that a node should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmOrder {
    /// The job it is for.
    pub job: JobId,
    /// The blob.
    #[serde(flatten)]
    pub blob: WarmBlob,
}

/// A node in the report of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node.
    pub node: NodeId,
    /// Where it was last heard from.
    pub address: IpAddr,
    /// How far it is.
    pub state: JobState,
    /// Blobs that it has to have.
    pub blobs: u32,
    /// Those that it has.
    pub stored: u32,
    /// Those that it cannot have.
    pub failed: u32,
    /// Why, of the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The proxies that a seeder knows, and what they are to do; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Nodes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    known: Mutex<LruCache<NodeId, Known>>,
    /// At most one per running job.
    warmings: Mutex<Vec<Arc<Warming>>>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    seen: Instant,
    address: IpAddr,
}

/// What the nodes of one job do.
#[derive(Debug)]
struct Warming {
    job: JobId,
    blobs: Vec<WarmBlob>,
    numbers: HashMap<Digest, u32>,
    nodes: Mutex<HashMap<NodeId, Progress>>,
    changed: Notify,
}

#[derive(Debug)]
struct Progress {
    address: IpAddr,
    /// Blobs of which the node has told.
    told: Bitfield,
    failed: u32,
    error: Option<String>,
    /// When it last told of a blob, or began.
    moved: Instant,
    /// It was given up.
    lost: bool,
}

impl Progress {
    fn is_over(&self) -> bool {
        self.lost || self.told.is_full()
    }

    fn report(&self, node: NodeId) -> NodeReport {
        let state = match () {
            () if !self.is_over() => JobState::Running,
            () if self.lost || self.failed > 0 => JobState::Failed,
            () => JobState::Succeeded,
        };
        NodeReport {
            node,
            address: self.address,
            state,
            blobs: self.told.len(),
            stored: self.told.count() - self.failed,
            failed: self.failed,
            error: self.error.clone(),
        }
    }
}

impl Warming {
    fn nodes(&self) -> MutexGuard<'_, HashMap<NodeId, Progress>> {
        // A panic between two assignments could only leave a count off.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Nodes {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            started: Instant::now(),
            known: Mutex::new(LruCache::new(MAX_NODES)),
            warmings: Mutex::default(),
        }))
    }

    /// Takes what a node tells, and gives what it has to do.
    pub(crate) fn report(&self, news: &NodeNews, address: IpAddr) -> NodeOrders {
        let now = Instant::now();
        let known = {
            let mut known = self.known();
            known.put(news.node.clone(), Known { seen: now, address });
            known.len()
        };
        let mut work = Vec::new();
        let mut is_busy = false;
        let warmings: Vec<_> = self.warmings().clone();
        for warming in warmings {
            let mut nodes = warming.nodes();
            let Some(progress) = nodes.get_mut(&news.node) else { continue };
            progress.address = address;
            for WarmResult { digest, error, .. } in news.results.iter().filter(|result| result.job == warming.job) {
                let Some(number) = warming.numbers.get(digest) else { continue };
                if progress.told.insert(PieceIndex(*number)) {
                    progress.moved = now;
                    if let Some(error) = error {
                        progress.failed += 1;
                        progress.error = Some(one_line(error));
                    }
                }
            }
            warming.changed.notify_one();
            if progress.is_over() {
                continue;
            }
            is_busy = true;
            for (number, blob) in (0u32..).zip(&warming.blobs) {
                if work.len() >= MAX_WORK {
                    break;
                }
                if !progress.told.contains(PieceIndex(number)) {
                    work.push(WarmOrder { job: warming.job.clone(), blob: blob.clone() });
                }
            }
        }
        let (rate, (least, most)) = if is_busy { (BUSY_RATE, BUSY_INTERVALS) } else { (IDLE_RATE, IDLE_INTERVALS) };
        #[expect(clippy::cast_precision_loss, reason = "at most MAX_NODES")]
        let interval_seconds = (known as f64 / rate).clamp(least, most);
        NodeOrders { interval_seconds, work }
    }

    /// Has nodes fetch these blobs; tells of their progress until all have ended, in one way or the other.
    ///
    /// # Errors
    /// When there are not the nodes that are wanted; those that there are have been warmed then.
    pub(super) async fn warm(
        &self,
        job: JobId,
        blobs: Vec<WarmBlob>,
        target: NodeTarget,
        update: impl Fn(Vec<NodeReport>),
    ) -> Result<(), String> {
        tokio::time::sleep_until(self.0.started + ACQUAINTANCE).await;
        let chosen = self.choose(target);
        let problem = match target {
            NodeTarget::Count(wanted) if chosen.len() < wanted as usize => {
                Some(format!("{wanted} nodes were asked for and this seeder knows {}", chosen.len()))
            }
            NodeTarget::All if chosen.is_empty() => Some("this seeder knows no proxies".to_owned()),
            _ => None,
        };
        let numbers = (0u32..).zip(&blobs).map(|(number, blob)| (blob.digest, number)).collect();
        let count = u32::try_from(blobs.len()).unwrap_or(u32::MAX);
        let now = Instant::now();
        let begin = |known: Known| Progress {
            address: known.address,
            told: Bitfield::new(count),
            failed: 0,
            error: None,
            moved: now,
            lost: false,
        };
        let nodes = Mutex::new(chosen.into_iter().map(|(node, known)| (node, begin(known))).collect());
        let warming = Arc::new(Warming { job, blobs, numbers, nodes, changed: Notify::new() });
        self.warmings().push(Arc::clone(&warming));
        // Also when the job is cancelled meanwhile.
        let _guard = Listed { nodes: self, warming: &warming };
        loop {
            let over = self.look(&warming);
            let mut reports: Vec<_> =
                warming.nodes().iter().map(|(node, progress)| progress.report(node.clone())).collect();
            reports.sort_by(|a, b| a.node.cmp(&b.node));
            update(reports);
            if over {
                return problem.map_or(Ok(()), Err);
            }
            tokio::time::sleep(UPDATE).await;
            // A node that is silent is to be found out, too.
            let _ = tokio::time::timeout(SILENCE / 10, warming.changed.notified()).await;
        }
    }

    /// Gives up on nodes that are silent or stuck; whether all have ended.
    fn look(&self, warming: &Warming) -> bool {
        let mut nodes = warming.nodes();
        let known = self.known();
        for (node, progress) in nodes.iter_mut().filter(|(_, progress)| !progress.is_over()) {
            let is_silent = known.peek(node).is_none_or(|known| known.seen.elapsed() >= SILENCE);
            if is_silent {
                progress.error = Some(format!("nothing was heard from the node for {} s", SILENCE.as_secs()));
            } else if progress.moved.elapsed() >= PATIENCE {
                progress.error = Some(format!("the node got no further blob within {} s", PATIENCE.as_secs()));
            } else {
                continue;
            }
            progress.lost = true;
        }
        nodes.values().all(Progress::is_over)
    }

    fn choose(&self, target: NodeTarget) -> Vec<(NodeId, Known)> {
        let there: Vec<(NodeId, Known)> = self
            .known()
            .iter()
            .filter(|(_, known)| known.seen.elapsed() < SILENCE)
            .map(|(node, known)| (node.clone(), *known))
            .collect();
        match target {
            NodeTarget::None => Vec::new(),
            NodeTarget::All => there,
            NodeTarget::Count(wanted) => there.sample(&mut rand::rng(), wanted as usize).cloned().collect(),
        }
    }

    fn known(&self) -> MutexGuard<'_, LruCache<NodeId, Known>> {
        // The map is whole between any two operations, so a panic elsewhere leaves it usable.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warmings(&self) -> MutexGuard<'_, Vec<Arc<Warming>>> {
        // As above.
        self.0.warmings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a warming off the list when its job is done with it.
struct Listed<'a> {
    nodes: &'a Nodes,
    warming: &'a Arc<Warming>,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.nodes.warmings().retain(|warming| !Arc::ptr_eq(warming, self.warming));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> IpAddr {
        "10.0.0.1".parse().unwrap()
    }

    fn news(node: &str, results: Vec<WarmResult>) -> NodeNews {
        NodeNews { node: node.parse().unwrap(), results }
    }

    fn blob(text: &str) -> WarmBlob {
        WarmBlob {
            digest: Digest::of(text.as_bytes()),
            size: 1,
            registry: "docker.io".parse().unwrap(),
            repository: "library/debian".parse().unwrap(),
            manifest: None,
        }
    }

    fn result(job: &JobId, text: &str, error: Option<&str>) -> WarmResult {
        WarmResult { job: job.clone(), digest: Digest::of(text.as_bytes()), error: error.map(str::to_owned) }
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_are_told_until_they_have_everything_or_are_lost() {
        let nodes = Nodes::new();
        for node in ["a", "b", "c"] {
            assert!(nodes.report(&news(node, Vec::new()), address()).work.is_empty());
        }
        let job = JobId::random();
        let seen = Mutex::new(Vec::new());
        let blobs = vec![blob("x"), blob("y")];
        let warming = nodes.warm(job.clone(), blobs, NodeTarget::All, |reports| *seen.lock().unwrap() = reports);
        let nodes_do = async {
            tokio::time::sleep(ACQUAINTANCE + UPDATE).await;
            assert_eq!(nodes.report(&news("a", Vec::new()), address()).work.len(), 2);
            assert_eq!(nodes.report(&news("a", Vec::new()), address()).work.len(), 2, "until it tells");
            let told = vec![result(&job, "x", None), result(&job, "x", Some("twice")), result(&job, "other", None)];
            let left = nodes.report(&news("a", told), address()).work;
            assert_eq!((left.len(), left[0].blob.digest), (1, Digest::of(b"y")));
            assert!(nodes.report(&news("a", vec![result(&job, "y", None)]), address()).work.is_empty());
            let told = vec![result(&job, "x", None), result(&job, "y", Some("no\nroom"))];
            assert!(nodes.report(&news("b", told), address()).work.is_empty());
            assert!(nodes.report(&news("stranger", Vec::new()), address()).work.is_empty());
            // And c is never heard of again.
        };
        let (ended, ()) = tokio::join!(warming, nodes_do);
        assert_eq!(ended, Ok(()));
        let seen = seen.into_inner().unwrap();
        let states: Vec<_> = seen.iter().map(|node| (node.state, node.stored, node.failed)).collect();
        assert_eq!(states, [(JobState::Succeeded, 2, 0), (JobState::Failed, 1, 1), (JobState::Failed, 0, 0)]);
        assert_eq!(seen[1].error.as_deref(), Some("no room"));
        assert!(seen[2].error.as_ref().unwrap().contains("nothing was heard"));
        assert!(nodes.warmings().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn fewer_nodes_than_asked_for_is_said() {
        let nodes = Nodes::new();
        let none = nodes.warm(JobId::random(), vec![blob("x")], NodeTarget::All, |_| ()).await;
        assert_eq!(none, Err("this seeder knows no proxies".to_owned()));
        for node in 0..5 {
            nodes.report(&news(&format!("n{node}"), Vec::new()), address());
        }
        assert_eq!(nodes.choose(NodeTarget::Count(3)).len(), 3);
        assert_eq!(nodes.choose(NodeTarget::All).len(), 5);
        tokio::time::advance(SILENCE).await;
        assert!(nodes.choose(NodeTarget::All).is_empty());
    }

    #[tokio::test]
    async fn what_nodes_make_this_remember_is_bounded() {
        let nodes = Nodes::new();
        for node in 0..MAX_NODES.get() + 10 {
            nodes.report(&news(&format!("n{node}"), Vec::new()), address());
        }
        assert_eq!(nodes.known().len(), MAX_NODES.get());
        assert_eq!(nodes.report(&news("n0", Vec::new()), address()).interval_seconds, 60.0);
    }
}
