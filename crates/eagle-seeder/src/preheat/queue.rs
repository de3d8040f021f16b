//! The jobs of a seeder: those that wait, run, and are over.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use eagle_registry::ImageReference;
use futures::future::join_all;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    journal::Journal,
    metrics::PreheatMetrics,
    node_target::NodeTarget,
    nodes::Nodes,
    platform::Platforms,
    report::{BlobState, ImageReport, Job, JobId, JobState, JobSummary, Trigger, one_line},
    run,
    sources::Sources,
};

/// Jobs that run at a time: one of a large image does not hold up the push of a small one.
const RUNNERS: usize = 2;
/// Jobs that may wait. A registry tells of a push by one; with more, something asks without end.
const MAX_QUEUED: usize = 256;
/// Jobs that are over and still shown: some days of a busy cluster.
const MAX_ENDED: usize = 200;
/// Blobs and nodes that all jobs together tell of, about 300 bytes each in memory and in the journal.
const MAX_ENTRIES: usize = 100_000;
/// Least time between two writes of the journal; a crash loses no more than that of what was noted.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// What is to be warmed.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) trigger: Trigger,
    /// Each with how it was named, where that says more.
    pub(crate) images: Vec<(ImageReference, Option<String>)>,
    pub(crate) platforms: Platforms,
    pub(crate) nodes: NodeTarget,
    /// The list that the images are from, as it may be shown.
    pub(crate) list: Option<String>,
    /// What is wrong already, beside the images.
    pub(crate) problem: Option<String>,
}

/// Too many jobs wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_QUEUED} jobs wait already; try again later")]
pub(crate) struct QueueFull;

/// How a request to cancel a job went.
#[derive(Debug)]
pub(crate) enum Cancelled {
    /// It ends, or never begins.
    Yes(Job),
    /// It was over before.
    TooLate(Job),
}

/// Preheating; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Preheat(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) sources: Sources,
    pub(super) nodes: Nodes,
    pub(super) metrics: PreheatMetrics,
    jobs: Mutex<Jobs>,
    /// Something waits.
    wake: Notify,
    /// The journal is behind.
    changed: Notify,
    journal: Option<Journal>,
}

#[derive(Debug, Default)]
struct Jobs {
    /// All of them, the oldest first.
    all: VecDeque<Arc<Handle>>,
    /// Those that wait, the next first.
    waiting: VecDeque<Arc<Handle>>,
}

/// One job.
#[derive(Debug)]
pub(super) struct Handle {
    job: Mutex<Job>,
    pub(super) cancel: CancellationToken,
}

impl Handle {
    fn new(job: Job) -> Arc<Self> {
        Arc::new(Self { job: Mutex::new(job), cancel: CancellationToken::new() })
    }

    /// The job, to be read or changed.
    pub(super) fn job(&self) -> MutexGuard<'_, Job> {
        // Changes are single assignments, so a panic elsewhere leaves it usable.
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a job that was cancelled.
    pub(super) fn end_cancelled(&self) {
        let mut job = self.job();
        job.state = JobState::Cancelled;
        job.ended = Some(Timestamp::now());
        for image in job.images.iter_mut().filter(|image| !image.state.is_over()) {
            image.state = JobState::Cancelled;
            for blob in image.blobs.iter_mut().filter(|blob| blob.state == BlobState::Fetching) {
                blob.state = BlobState::Waiting;
            }
        }
        for node in job.node_reports.iter_mut().filter(|node| !node.state.is_over()) {
            node.state = JobState::Cancelled;
        }
    }
}

impl Preheat {
    /// With the jobs of the journal: those that are over are shown, the others begin anew.
    pub(crate) async fn open(
        sources: Sources,
        nodes: Nodes,
        metrics: PreheatMetrics,
        directory: Option<&std::path::Path>,
    ) -> Self {
        let journal = directory.map(Journal::new);
        let mut jobs = Jobs::default();
        if let Some(journal) = journal.clone() {
            let path = journal.path().display().to_string();
            match tokio::task::spawn_blocking(move || journal.read()).await {
                Ok(Ok(read)) => {
                    for mut job in read.into_iter().take(MAX_ENDED + MAX_QUEUED + RUNNERS) {
                        let unfinished = !job.state.is_over();
                        if unfinished {
                            job.begin_anew();
                        }
                        let handle = Handle::new(job);
                        if unfinished {
                            jobs.waiting.push_back(Arc::clone(&handle));
                        }
                        jobs.all.push_back(handle);
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(path, %error, "what was preheated before is not known: the file cannot be used")
                }
                Err(error) => tracing::error!(path, %error, "the jobs of preheating could not be read"),
            }
        }
        prune(&mut jobs.all);
        Self(Arc::new(Inner {
            sources,
            nodes,
            metrics,
            jobs: Mutex::new(jobs),
            wake: Notify::new(),
            changed: Notify::new(),
            journal,
        }))
    }

    /// Puts a job into the queue, or gives one that waits for the same already.
    ///
    /// # Errors
    /// When too many wait.
    pub(crate) fn submit(&self, order: Order) -> Result<Job, QueueFull> {
        let Order { trigger, images, platforms, nodes, list, problem } = order;
        let mut jobs = self.0.lock();
        let same = jobs.waiting.iter().find_map(|handle| {
            let job = handle.job();
            let same_images = job.images.len() == images.len()
                && job
                    .images
                    .iter()
                    .zip(&images)
                    .all(|(known, (image, named))| known.image == *image && known.named == *named);
            (job.trigger == trigger && job.platforms == platforms && job.nodes == nodes && same_images)
                .then(|| job.clone())
        });
        if let Some(job) = same {
            return Ok(job);
        }
        if jobs.waiting.len() >= MAX_QUEUED {
            return Err(QueueFull);
        }
        let job = Job {
            id: JobId::random(),
            trigger,
            state: JobState::Queued,
            created: Timestamp::now(),
            started: None,
            ended: None,
            platforms,
            nodes,
            images: images.into_iter().map(|(image, named)| ImageReport::new(image, named)).collect(),
            node_reports: Vec::new(),
            list,
            error: problem.as_deref().map(one_line),
        };
        let handle = Handle::new(job.clone());
        jobs.all.push_back(Arc::clone(&handle));
        jobs.waiting.push_back(handle);
        drop(jobs);
        self.0.wake.notify_one();
        self.0.changed.notify_one();
        Ok(job)
    }

    /// All jobs that are known, the latest first.
    pub(crate) fn list(&self) -> Vec<JobSummary> {
        self.0.lock().all.iter().rev().map(|handle| handle.job().summary()).collect()
    }

    /// One job with everything that is known of it.
    pub(crate) fn get(&self, id: &JobId) -> Option<Job> {
        self.0.find(id).map(|handle| handle.job().clone())
    }

    /// Ends a job that waits or runs. What it has begun to fetch is fetched, as others may wait for it too.
    pub(crate) fn cancel(&self, id: &JobId) -> Option<Cancelled> {
        let handle = self.0.find(id)?;
        if handle.job().state.is_over() {
            let job = handle.job().clone();
            return Some(Cancelled::TooLate(job));
        }
        handle.cancel.cancel();
        let waited = {
            let mut jobs = self.0.lock();
            let before = jobs.waiting.len();
            jobs.waiting.retain(|waiting| !Arc::ptr_eq(waiting, &handle));
            jobs.waiting.len() < before
        };
        if waited {
            handle.end_cancelled();
            self.0.ended(&handle);
        }
        let mut job = handle.job().clone();
        // Its runner says so in a moment.
        job.state = JobState::Cancelled;
        Some(Cancelled::Yes(job))
    }

    /// Whether a job of this list waits or runs.
    pub(crate) fn is_under_way(&self, list: &str) -> bool {
        let jobs = self.0.lock();
        jobs.all.iter().any(|handle| {
            let job = handle.job();
            !job.state.is_over() && job.list.as_deref() == Some(list)
        })
    }

    /// Its counters.
    pub(crate) fn metrics(&self) -> &PreheatMetrics {
        &self.0.metrics
    }

    /// What proxies tell and are told.
    pub(crate) fn nodes(&self) -> &Nodes {
        &self.0.nodes
    }

    /// Does the jobs and keeps the journal, until `halt`.
    pub(crate) async fn run(self, halt: CancellationToken) {
        let runners = join_all((0..RUNNERS).map(|_| self.work()));
        tokio::join!(halt.run_until_cancelled(runners), self.keep(&halt));
    }

    async fn work(&self) {
        loop {
            let next = self.0.lock().waiting.pop_front();
            match next {
                Some(handle) => {
                    run::run(&self.0, &handle).await;
                    self.0.ended(&handle);
                }
                None => self.0.wake.notified().await,
            }
        }
    }

    async fn keep(&self, halt: &CancellationToken) {
        let Some(journal) = &self.0.journal else { return };
        loop {
            let ends = tokio::select! {
                () = self.0.changed.notified() => false,
                () = halt.cancelled() => true,
            };
            let jobs: Vec<Job> = self.0.lock().all.iter().map(|handle| handle.job().clone()).collect();
            let (writer, path) = (journal.clone(), journal.path().display().to_string());
            match tokio::task::spawn_blocking(move || writer.write(&jobs)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(path, %error, "the jobs of preheating cannot be kept; a restart forgets them")
                }
                Err(error) => tracing::error!(path, %error, "the jobs of preheating could not be written"),
            }
            if ends {
                return;
            }
            // Whatever changes meanwhile is in the next write; after `halt` that comes at once.
            halt.run_until_cancelled(tokio::time::sleep(WRITE_INTERVAL)).await;
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        // The lists are whole between any two operations, so a panic elsewhere leaves them usable.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &JobId) -> Option<Arc<Handle>> {
        self.lock().all.iter().find(|handle| handle.job().id == *id).cloned()
    }

    /// Something happened that a restart should know of.
    pub(super) fn changed(&self) {
        self.changed.notify_one();
    }

    fn ended(&self, handle: &Handle) {
        self.metrics.job(handle.job().state);
        prune(&mut self.lock().all);
        self.changed();
    }
}

/// Forgets the oldest jobs that are over, when there are too many or they tell of too much.
fn prune(all: &mut VecDeque<Arc<Handle>>) {
    let mut entries: usize = all.iter().map(|handle| handle.job().entries()).sum();
    let mut ended = all.iter().filter(|handle| handle.job().state.is_over()).count();
    all.retain(|handle| {
        let job = handle.job();
        let goes = job.state.is_over() && (ended > MAX_ENDED || entries > MAX_ENTRIES);
        if goes {
            ended -= 1;
            entries -= job.entries();
        }
        !goes
    });
}
