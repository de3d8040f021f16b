//! Fetching what the seeders want to have on this node before anybody pulls it.
//!
//! The proxy asks each of its seeders now and then; a seeder answers with everything that this node still has
//! to do. So the proxy needs no port for it, and does only what the seeders of its own configuration say.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use eagle_core::{Digest, NodeId};
use eagle_registry::Caller;
use eagle_seeder::{
    client::SeederClient,
    preheat::{JobId, NodeNews, WarmManifest, WarmOrder, WarmResult},
};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    download::{BlobRequest, Downloads},
    rules::{Action, Rules},
    service::Service,
    upstream::Upstream,
};

/// Blobs fetched at a time, for each seeder: as many as a runtime pulls.
const AT_ONCE: usize = 3;
/// Most results of one request; a seeder takes 1,000.
const MAX_RESULTS: usize = 500;
/// Most orders that are taken of one answer.
const MAX_ORDERS: usize = 500;
/// Bounds for the interval that a seeder names, seconds: it may be wrong, but not harm.
const INTERVALS: (f64, f64) = (0.5, 300.0);
/// Pause after a seeder could not be asked.
const FAILED: Duration = Duration::from_secs(30);

/// Asks the seeders for work and does it.
#[derive(Debug)]
pub(crate) struct Warmer {
    pub(crate) node: NodeId,
    pub(crate) seeders: SeederClient,
    pub(crate) downloads: Downloads,
    pub(crate) service: Arc<Service>,
    pub(crate) rules: Rules,
}

impl Warmer {
    /// Follows the configured seeders until `stop`. What was in hand when they are replaced, they order again.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut configured = self.seeders.configured();
        loop {
            let seeders = configured.borrow_and_update().clone();
            let following = join_all(seeders.iter().map(|seeder| self.follow(seeder)));
            tokio::select! {
                () = stop.cancelled() => return,
                _ = configured.changed() => {}
                _ = following, if !seeders.is_empty() => {}
            }
        }
    }

    async fn follow(&self, seeder: &Url) {
        let mut running = FuturesUnordered::new();
        let mut in_hand: HashSet<(JobId, Digest)> = HashSet::new();
        let mut waiting: VecDeque<WarmOrder> = VecDeque::new();
        let mut results: Vec<WarmResult> = Vec::new();
        let mut next = Instant::now();
        loop {
            while running.len() < AT_ONCE
                && let Some(order) = waiting.pop_front()
            {
                in_hand.insert((order.job.clone(), order.blob.digest));
                running.push(self.fetch(order));
            }
            tokio::select! {
                Some(result) = running.next(), if !running.is_empty() => {
                    let result: WarmResult = result;
                    in_hand.remove(&(result.job.clone(), result.digest));
                    results.push(result);
                    // All is done, or enough to tell: there may be more.
                    if (running.is_empty() && waiting.is_empty()) || results.len() >= MAX_RESULTS {
                        next = Instant::now();
                    }
                }
                () = tokio::time::sleep_until(next) => {
                    let told = results.len().min(MAX_RESULTS);
                    let news = NodeNews { node: self.node.clone(), results: results[..told].to_vec() };
                    let pause = match self.seeders.report(seeder, &news).await {
                        Ok(orders) => {
                            results.drain(..told);
                            // All that is left to do, so what a cancelled job wanted goes.
                            waiting = orders.work.into_iter().take(MAX_ORDERS).collect();
                            waiting.retain(|order| {
                                let is_told = |result: &WarmResult| result.job == order.job && result.digest == order.blob.digest;
                                !in_hand.contains(&(order.job.clone(), order.blob.digest)) && !results.iter().any(is_told)
                            });
                            let (least, most) = INTERVALS;
                            let seconds = orders.interval_seconds;
                            Duration::from_secs_f64(if seconds.is_finite() { seconds.clamp(least, most) } else { most })
                        }
                        Err(error) => {
                            tracing::debug!(%seeder, %error, "a seeder could not be asked what to warm");
                            FAILED
                        }
                    };
                    // Not all nodes at the same moment.
                    next = Instant::now() + pause.mul_f64(0.8 + rand::random::<f64>() * 0.4);
                }
            }
        }
    }

    async fn fetch(&self, order: WarmOrder) -> WarmResult {
        let WarmOrder { job, blob } = order;
        let digest = blob.digest;
        if let Some(WarmManifest { tag }) = blob.manifest {
            let upstream = Upstream { registry: blob.registry, repository: blob.repository, query: None };
            let error = self.service.learn(&upstream, digest, tag).await.err();
            if let Some(error) = &error {
                tracing::warn!(%digest, error, "a manifest could not be learnt beforehand");
            }
            return WarmResult { job, digest, error };
        }
        // The seeder was authorised by its own credentials, and gives the blob to any node of the cluster that
        // asks without any; who may read it here is asked when a runtime comes.
        let request =
            BlobRequest { digest, registry: blob.registry, repository: blob.repository, caller: Caller::anonymous() };
        let error = match self.rules.action(&request.registry, &request.repository) {
            Action::Peers => self.downloads.keep(request).await.err().map(|error| error.to_string()),
            Action::Origin | Action::Refuse => Some(format!(
                "proxy.rules of this node keep {}/{} out of the cache",
                request.registry, request.repository
            )),
        };
        match &error {
            Some(error) => tracing::warn!(%digest, error, "a blob could not be warmed"),
            None => tracing::debug!(%digest, "a blob is warm"),
        }
        WarmResult { job, digest, error }
    }
}
